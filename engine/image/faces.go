package image

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"

	pigo "github.com/esimov/pigo/core"
)

//go:embed cascade/facefinder
var faceCascade []byte

//go:embed cascade/puploc
var pupilCascade []byte

// point is a place in a picture, in its pixels; (0.5, 0.5) is the middle of the first.
type point struct{ x, y float64 }

// face is one face of a picture, in the picture's pixels.
type face struct {
	// x and y are the middle of the square from ear to ear and from the brows to the chin, and size is its side.
	x, y, size float64
	// quality is the sum of the classifier's confidence over the windows that agree: 20 is a likely face, 100 a plain frontal one.
	quality float64
	// eyes are the pupils, that of the left of an upright face first.
	eyes [2]point
	// seen says that the pupils were found; else they are where such a face has them.
	seen bool
}

// roll is the angle in radians by which the face is turned clockwise, as its eyes say.
func (f *face) roll() float64 {
	return math.Atan2(f.eyes[1].y-f.eyes[0].y, f.eyes[1].x-f.eyes[0].x)
}

// faceFinder holds the unpacked cascades. They are unpacked at the first use and only read after that.
type faceFinder struct {
	load func() (*cascades, error)
}

type cascades struct {
	faces  *pigo.Pigo
	pupils *pupilTrees
}

func newFaceFinder() *faceFinder {
	return &faceFinder{load: sync.OnceValues(func() (*cascades, error) {
		faces, err := pigo.NewPigo().Unpack(faceCascade)
		if err != nil {
			return nil, fmt.Errorf("unpack face cascade: %w", err)
		}
		pupils, err := readPupilTrees(pupilCascade)
		if err != nil {
			return nil, fmt.Errorf("unpack pupil cascade: %w", err)
		}
		return &cascades{faces: faces, pupils: pupils}, nil
	})}
}

const (
	// faceLong is the long side in pixels of the reduced picture in which faces are looked for: a face of 5 % of the short side
	// still has the 24 pixels that the cascade needs.
	faceLong = 800
	// facePart and faceLeast bound the smallest face: a part of the short side, and what the cascade can tell apart.
	facePart, faceLeast = 0.05, 22
	// facesMost is the most faces that one picture is given.
	facesMost = 32
)

// find finds the faces of a picture, the best first. When no upright one is there it looks at the picture turned.
func (ff *faceFinder) find(ctx context.Context, src *raster) ([]face, error) {
	small, err := src.reduced(ctx, faceLong)
	if err != nil {
		return nil, err
	}
	found, err := ff.findIn(ctx, small)
	scaleX, scaleY := float64(src.width)/float64(small.width), float64(src.height)/float64(small.height)
	for i := range found {
		found[i].scale(scaleX, scaleY)
	}
	return found, err
}

// scale takes a face to a picture of another size.
func (f *face) scale(x, y float64) {
	f.x, f.y, f.size = f.x*x, f.y*y, f.size*math.Sqrt(x*y)
	for i := range f.eyes {
		f.eyes[i] = point{f.eyes[i].x * x, f.eyes[i].y * y}
	}
}

// findIn is find in a picture that is small already; places are in its pixels.
func (ff *faceFinder) findIn(ctx context.Context, small *patch) ([]face, error) {
	trees, err := ff.load()
	if err != nil {
		return nil, err
	}
	grey := greyOf(small)
	var found []face
	for _, l := range looks {
		if l.last && len(found) > 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		found = append(found, trees.turned(grey, l)...)
	}
	return alone(found), nil
}

// faceLook is one way of looking for faces.
type faceLook struct {
	// degrees is the angle clockwise by which the faces are turned.
	degrees float64
	// quality is the least of a face. The cascade covers about 15 degrees either way.
	quality float64
	// last says that the look is taken only when those before it have found nothing.
	last bool
}

// looks are in their order. The qualities are set so that about one street photo in a hundred has a false face: each look brings false
// finds of its own, so that the ones that find little must be surer.
var looks = [...]faceLook{{0, 12, false}, {-15, 20, false}, {15, 20, false}, {-35, 40, true}, {35, 40, true}, {90, 40, true}, {-90, 40, true}, {180, 40, true}}

// greyPicture is 8-bit luma.
type greyPicture struct {
	width, height int
	pix           []byte
}

// greyOf is the luma (BT.601, as the cascades were trained) of a picture, laid on mid-grey where it is transparent.
func greyOf(p *patch) greyPicture {
	g := greyPicture{width: p.width, height: p.height, pix: make([]byte, p.width*p.height)}
	for i := range g.pix {
		g.pix[i] = code8(0.299*p.planes[0][i] + 0.587*p.planes[1][i] + 0.114*p.planes[2][i] + 0.5*(1-p.planes[3][i]))
	}
	return g
}

// turned finds the faces that are turned clockwise by about the angle.
func (c *cascades) turned(grey greyPicture, l faceLook) []face {
	angle := l.degrees * math.Pi / 180
	level, back := grey, func(p point) point { return p }
	if angle != 0 {
		level, back = grey.turn(angle)
	}
	found := c.upright(level)
	for i := range found {
		f := &found[i]
		middle := back(point{f.x, f.y})
		f.x, f.y = middle.x, middle.y
		f.eyes = [2]point{back(f.eyes[0]), back(f.eyes[1])}
	}
	return slices.DeleteFunc(found, func(f face) bool {
		out := f.x < 0 || f.y < 0 || f.x >= float64(grey.width) || f.y >= float64(grey.height)
		return out || f.quality < l.quality || (l.degrees != 0 && !f.seen)
	})
}

// turn makes the picture that is this one turned anticlockwise by the angle about its middle, on mid-grey, and the way back from places
// in it.
func (g greyPicture) turn(angle float64) (greyPicture, func(point) point) {
	sin, cos := math.Sincos(angle)
	w, h := float64(g.width), float64(g.height)
	width, height := math.Abs(w*cos)+math.Abs(h*sin), math.Abs(w*sin)+math.Abs(h*cos)
	out := greyPicture{width: int(math.Round(width)), height: int(math.Round(height))}
	out.pix = make([]byte, out.width*out.height)
	back := func(p point) point {
		x, y := p.x-width/2, p.y-height/2
		return point{cos*x - sin*y + w/2, sin*x + cos*y + h/2}
	}
	for y := range out.height {
		for x := range out.width {
			p := back(point{float64(x) + 0.5, float64(y) + 0.5})
			out.pix[y*out.width+x] = g.at(p.x-0.5, p.y-0.5)
		}
	}
	return out, back
}

// at interpolates between the samples around; beyond the picture is mid-grey.
func (g greyPicture) at(x, y float64) byte {
	left, top := int(math.Floor(x)), int(math.Floor(y))
	if left < -1 || top < -1 || left >= g.width || top >= g.height {
		return 128
	}
	u, v := x-float64(left), y-float64(top)
	sample := func(x, y int) float64 {
		return float64(g.pix[min(max(y, 0), g.height-1)*g.width+min(max(x, 0), g.width-1)])
	}
	above := sample(left, top)*(1-u) + sample(left+1, top)*u
	below := sample(left, top+1)*(1-u) + sample(left+1, top+1)*u
	return byte(above*(1-v) + below*v + 0.5)
}

// upright finds the upright faces.
func (c *cascades) upright(grey greyPicture) []face {
	short := min(grey.width, grey.height)
	least := max(faceLeast, int(facePart*float64(short)))
	if short < least {
		return nil
	}
	windows := c.faces.RunCascade(pigo.CascadeParams{
		MinSize: least, MaxSize: short, ShiftFactor: 0.1, ScaleFactor: 1.1,
		ImageParams: pigo.ImageParams{Pixels: grey.pix, Rows: grey.height, Cols: grey.width, Dim: grey.width},
	}, 0)
	found := together(windows)
	for i := range found {
		c.pupils.find(grey, &found[i])
	}
	return found
}

// together makes one face of the windows that overlap, in the order of the classifier's confidence.
func together(windows []pigo.Detection) []face {
	slices.SortFunc(windows, func(a, b pigo.Detection) int {
		return cmp.Or(cmp.Compare(b.Q, a.Q), cmp.Compare(a.Row, b.Row), cmp.Compare(a.Col, b.Col), cmp.Compare(a.Scale, b.Scale))
	})
	const overlap = 0.3
	var found []face
	for len(windows) > 0 {
		best := squareOf(windows[0])
		var sum face
		rest := windows[:0]
		for _, w := range windows {
			s := squareOf(w)
			if s.overlap(&best) <= overlap {
				rest = append(rest, w)
				continue
			}
			q := float64(w.Q)
			sum.x, sum.y, sum.size, sum.quality = sum.x+q*s.x, sum.y+q*s.y, sum.size+q*s.size, sum.quality+q
		}
		windows = rest
		sum.x, sum.y, sum.size = sum.x/sum.quality, sum.y/sum.quality, sum.size/sum.quality
		found = append(found, sum)
	}
	return found
}

func squareOf(d pigo.Detection) face {
	return face{x: float64(d.Col), y: float64(d.Row), size: float64(d.Scale)}
}

// overlap is the intersection of two squares over their union.
func (f *face) overlap(g *face) float64 {
	wide := min(f.x+f.size/2, g.x+g.size/2) - max(f.x-f.size/2, g.x-g.size/2)
	high := min(f.y+f.size/2, g.y+g.size/2) - max(f.y-f.size/2, g.y-g.size/2)
	if wide <= 0 || high <= 0 {
		return 0
	}
	return wide * high / (f.size*f.size + g.size*g.size - wide*high)
}

// alone drops a face that lies in or over a better one, and what is beyond facesMost.
func alone(found []face) []face {
	slices.SortFunc(found, func(a, b face) int {
		return cmp.Or(cmp.Compare(b.quality, a.quality), cmp.Compare(a.y, b.y), cmp.Compare(a.x, b.x))
	})
	var kept []face
	for _, f := range found {
		covered := slices.ContainsFunc(kept, func(k face) bool {
			return math.Hypot(f.x-k.x, f.y-k.y) < 0.6*max(f.size, k.size)
		})
		if !covered && len(kept) < facesMost {
			kept = append(kept, f)
		}
	}
	return kept
}

// pupilTrees are an ensemble of randomised trees that lead from a rough place of an eye to its pupil (Markuš et al., 2014): in each
// stage every tree compares pairs of pixels and votes for a shift, and the window shrinks.
type pupilTrees struct {
	stages, trees, depth int
	shrink               float64
	// codes are four offsets a node (row and column of two pixels, in 1/256 of the window); votes two a leaf (rows and columns).
	codes []int8
	votes []float32
}

var errCascade = errors.New("not a pupil cascade")

// readPupilTrees unpacks the cascade: stages, shrink, trees a stage, depth, then for each tree its nodes and leaves, little-endian.
func readPupilTrees(data []byte) (*pupilTrees, error) {
	const head, most = 16, 64
	if len(data) < head {
		return nil, errCascade
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(data[i:]) }
	t := &pupilTrees{stages: int(word(0)), shrink: float64(math.Float32frombits(word(4))), trees: int(word(8)), depth: int(word(12))}
	if t.stages > most || t.trees > most || t.depth > most/4 {
		return nil, errCascade
	}
	nodes, leaves := 1<<t.depth-1, 1<<t.depth
	if len(data) != head+t.stages*t.trees*(4*nodes+8*leaves) {
		return nil, errCascade
	}
	at := head
	for range t.stages * t.trees {
		for _, b := range data[at:][:4*nodes] {
			t.codes = append(t.codes, int8(b))
		}
		at += 4 * nodes
		for range 2 * leaves {
			t.votes = append(t.votes, math.Float32frombits(word(at)))
			at += 4
		}
	}
	return t, nil
}

// find sets the eyes of an upright face. A pupil is the middle of where the trees lead from several places around the usual one.
func (t *pupilTrees) find(grey greyPicture, f *face) {
	const (
		// Where pupils are in a face square, as parts of its side from the middle, and the window of an eye.
		aside, above, window = 0.18, 0.075, 0.25
		// A frontal pair is 0.36 apart; a turned head brings them nearer.
		nearest, farthest, steepest = 0.2, 0.55, 0.18
	)
	for i, side := range [2]float64{-1, 1} {
		usual := point{f.x + side*aside*f.size, f.y - above*f.size}
		f.eyes[i] = t.settle(grey, usual, window*f.size)
	}
	dx, dy := (f.eyes[1].x-f.eyes[0].x)/f.size, (f.eyes[1].y-f.eyes[0].y)/f.size
	height := ((f.eyes[0].y+f.eyes[1].y)/2 - f.y) / f.size
	f.seen = dx > nearest && dx < farthest && math.Abs(dy) < steepest && height > -0.3 && height < 0.1
	if !f.seen {
		f.eyes = [2]point{{f.x - aside*f.size, f.y - above*f.size}, {f.x + aside*f.size, f.y - above*f.size}}
	}
}

// settle starts the trees at a grid of places and sizes around the given ones and takes the median of where they end.
func (t *pupilTrees) settle(grey greyPicture, near point, window float64) point {
	var xs, ys []float64
	for _, dy := range [5]float64{-0.07, -0.035, 0, 0.035, 0.07} {
		for _, dx := range [5]float64{-0.07, -0.035, 0, 0.035, 0.07} {
			for _, size := range [3]float64{0.94, 1, 1.06} {
				p := t.lead(grey, point{near.x + dx*window, near.y + dy*window}, window*size)
				xs, ys = append(xs, p.x), append(ys, p.y)
			}
		}
	}
	slices.Sort(xs)
	slices.Sort(ys)
	return point{xs[len(xs)/2], ys[len(ys)/2]}
}

// lead follows the trees from one place.
func (t *pupilTrees) lead(grey greyPicture, p point, window float64) point {
	nodes, leaves := 1<<t.depth-1, 1<<t.depth
	sample := func(row, column int8) byte {
		y := int(p.y + float64(row)*window/256)
		x := int(p.x + float64(column)*window/256)
		return grey.pix[min(max(y, 0), grey.height-1)*grey.width+min(max(x, 0), grey.width-1)]
	}
	codes, votes := t.codes, t.votes
	for range t.stages {
		var down, right float64
		for range t.trees {
			node := 0
			for range t.depth {
				c := codes[4*node:][:4]
				node = 2*node + 1
				if sample(c[0], c[1]) > sample(c[2], c[3]) {
					node++
				}
			}
			down += float64(votes[2*(node-nodes)])
			right += float64(votes[2*(node-nodes)+1])
			codes, votes = codes[4*nodes:], votes[2*leaves:]
		}
		p.x, p.y = p.x+right*window, p.y+down*window
		window *= t.shrink
	}
	return p
}
