package image

import (
	"context"
	_ "embed"
	"math"
	"slices"
)

// personShape says how often each place around an upright face is the person, learned from photos of whole people: 0 to 255, in cells
// of a quarter of the face's side. The test of it makes it anew.
//
//go:embed cascade/personshape
var personShape []byte

const (
	shapeCell = 0.25 // in sides of the face
	// shapeWidth and shapeHeight are in cells. The face's middle lies in the middle of the width, shapeAbove cells from the top.
	shapeWidth, shapeHeight, shapeAbove = 32, 64, 8
)

// subject is where a picture shows what it is about, at a reduced size.
type subject struct {
	width, height int
	// inside is 1 on the subject and 0 beside it; a model gives what lies between as well.
	inside []float32
	// method says how it was found.
	method string
	// confidence is 0 to 1: how far the colours and edges of the picture agree with the answer.
	confidence float64
	faces      int
	// plain says that the background is of one colour.
	plain bool
}

// part is how much of the picture is the subject.
func (s *subject) part() float64 {
	total := 0.0
	for _, v := range s.inside {
		total += float64(v)
	}
	return total / float64(len(s.inside))
}

// subjectLong is the long side in pixels at which the subject is cut out; its edge is refined at a larger size.
const subjectLong = 400

// subjectIn finds the subject of a picture by classical means: what stands before a plain background, else the people whose
// faces are found, else what stands out. A portrait is of the first face, seen from the front.
func subjectIn(ctx context.Context, small *patch, faces []face, portrait bool) (*subject, error) {
	l := labOf(small)
	s := &subject{width: small.width, height: small.height, faces: len(faces)}
	belief, plain := plainGround(l)
	s.plain = plain
	switch {
	case portrait && !plain:
		s.method = "portrait+grabcut"
		belief = portraitBelief(l.width, l.height, faces[0])
	case plain:
		s.method = "plain-background"
	case len(faces) > 0:
		s.method = "face+grabcut"
		belief = personBelief(l.width, l.height, faces)
	default:
		s.method = "saliency+grabcut"
		belief = salience(l)
	}
	for i, a := range small.planes[3] {
		if a < 0.1 {
			belief[i] = 0.001 // what the source leaves out is no subject
		}
	}
	near, err := grabCut(ctx, l, belief)
	if err != nil {
		return nil, err
	}
	keepPieces(near, belief, l.width, l.height)
	s.inside = make([]float32, len(near))
	for i, n := range near {
		if n {
			s.inside[i] = 1
		}
	}
	s.confidence = s.judge(l, belief, plain)
	return s, nil
}

// plainGround tells a background of one smoothly changing colour, as in a studio, by the border of the picture, and believes what can be reached
// over it from the border to be background. The bottom border does not count: there people are cut off.
func plainGround(l lab) (belief []float32, plain bool) {
	const (
		// Units of L*a*b*: how far neighbours and how far a place and the border's middle colour may differ.
		step, most = 2.5, 14
		// The part of the border that must be plain, and the bounds of what a subject takes of a picture.
		needed, smallest, largest = 0.92, 0.01, 0.97
	)
	w, h := l.width, l.height
	var border []int
	for x := range w {
		border = append(border, x)
	}
	for y := 1; y < h*4/5; y++ {
		border = append(border, y*w, y*w+w-1)
	}
	middle := l.middle(border)
	reached := make([]bool, w*h)
	var queue []int
	for _, i := range border {
		if labApart(l.pix[i], middle) < most && !reached[i] {
			reached[i] = true
			queue = append(queue, i)
		}
	}
	if float64(len(queue)) < needed*float64(len(border)) {
		return nil, false
	}
	for len(queue) > 0 {
		i := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		x, y := i%w, i/w
		for _, s := range cutSteps[:4] {
			u, v := x+s[0], y+s[1]
			if u < 0 || v < 0 || u >= w || v >= h {
				continue
			}
			j := v*w + u
			if !reached[j] && labApart(l.pix[i], l.pix[j]) < step && labApart(l.pix[j], middle) < 1.5*most {
				reached[j] = true
				queue = append(queue, j)
			}
		}
	}
	belief = make([]float32, w*h)
	inside := 0
	for i, r := range reached {
		belief[i] = 0.95
		if r {
			belief[i] = 0.03
			continue
		}
		inside++
	}
	part := float64(inside) / float64(w*h)
	return belief, part > smallest && part < largest
}

// middle is the median of the colours of some pixels, each channel for itself.
func (l lab) middle(at []int) (m [3]float32) {
	values := make([]float32, len(at))
	for c := range m {
		for k, i := range at {
			values[k] = l.pix[i][c]
		}
		slices.Sort(values)
		m[c] = values[len(values)/2]
	}
	return m
}

// personBelief lays the shape of a person under each face of the foremost people.
func personBelief(w, h int, faces []face) []float32 {
	belief := make([]float32, w*h)
	largest := 0.0
	for _, f := range faces {
		largest = max(largest, f.size)
	}
	for _, f := range faces {
		if f.size < 0.45*largest {
			continue // a passer-by
		}
		sin, cos := math.Sincos(-f.roll() * 0.5) // heads tilt more than bodies
		for y := range h {
			for x := range w {
				dx, dy := (float64(x)+0.5-f.x)/f.size, (float64(y)+0.5-f.y)/f.size
				u := (cos*dx-sin*dy)/shapeCell + shapeWidth/2 - 0.5
				v := (sin*dx+cos*dy)/shapeCell + shapeAbove - 0.5
				i := y*w + x
				belief[i] = max(belief[i], shapeAt(u, v))
			}
		}
	}
	return belief
}

// shapeAt interpolates personShape. Above and beside it nobody is; below it the last row goes on.
func shapeAt(u, v float64) float32 {
	left, top := int(math.Floor(u)), int(math.Floor(v))
	p, q := float32(u-float64(left)), float32(v-float64(top))
	sample := func(x, y int) float32 {
		if x < 0 || x >= shapeWidth || y < 0 {
			return 0
		}
		return float32(personShape[min(y, shapeHeight-1)*shapeWidth+x]) * (1.0 / 255)
	}
	above := sample(left, top)*(1-p) + sample(left+1, top)*p
	below := sample(left, top+1)*(1-p) + sample(left+1, top+1)*p
	return above*(1-q) + below*q
}

// salience believes in what is hard to reach from the border: the minimum barrier distance of Zhang et al. (2015), which is the least
// range of values that a way from the border must cross; together with a mild preference for the middle.
func salience(l lab) []float32 {
	w, h := l.width, l.height
	total := make([]float32, w*h)
	for c := range 3 {
		for i, d := range barrier(l, c) {
			total[i] += d
		}
	}
	sorted := slices.Clone(total)
	slices.Sort(sorted)
	most := max(sorted[len(sorted)*98/100], 1)
	for i, d := range total {
		x, y := (float64(i%w)+0.5)/float64(w)-0.5, (float64(i/w)+0.5)/float64(h)-0.52
		centre := math.Exp(-(x*x/(2*0.26*0.26) + y*y/(2*0.36*0.36)))
		s := min(float64(d/most), 1)
		const steep, half = 6, 0.42
		total[i] = float32(1 / (1 + math.Exp(-steep*(0.55*s+0.45*centre-half))))
		if edge := min(i%w, w-1-i%w, i/w); edge < 2 {
			total[i] *= 0.3
		}
	}
	return total
}

// barrier is the minimum barrier distance of every pixel to the border in one channel, by raster scans from alternate corners.
func barrier(l lab, channel int) []float32 {
	w, h := l.width, l.height
	n := w * h
	distance, high, low, value := make([]float32, n), make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range n {
		v := l.pix[i][channel]
		value[i], high[i], low[i] = v, v, v
		if x, y := i%w, i/w; x > 0 && y > 0 && x < w-1 && y < h-1 {
			distance[i] = math.MaxFloat32
		}
	}
	relax := func(i, j int) {
		top, bottom := max(high[j], value[i]), min(low[j], value[i])
		if d := top - bottom; d < distance[i] {
			distance[i], high[i], low[i] = d, top, bottom
		}
	}
	const scans = 4
	for scan := range scans {
		if scan%2 == 0 {
			for i := w + 1; i < n; i++ {
				if i%w != 0 {
					relax(i, i-1)
					relax(i, i-w)
				}
			}
			continue
		}
		for i := n - w - 2; i >= 0; i-- {
			if i%w != w-1 {
				relax(i, i+1)
				relax(i, i+w)
			}
		}
	}
	return distance
}

// piece is a connected part of a cut, of the subject or beside it.
type piece struct {
	pixels []int
	inside bool
	belief float64
	// edge says that it touches the edge of the picture.
	edge bool
}

// keepPieces drops pieces of the subject that are small and not believed in, and fills small holes.
func keepPieces(near []bool, belief []float32, w, h int) {
	seen := make([]bool, len(near))
	var pieces []piece
	best := 0.0
	for start := range near {
		if seen[start] {
			continue
		}
		p := pieceAt(start, near, seen, belief, w, h)
		if p.inside {
			best = max(best, p.belief)
		}
		pieces = append(pieces, p)
	}
	for _, p := range pieces {
		flip := p.inside && p.belief < 0.15*best
		if !p.inside && !p.edge {
			flip = len(p.pixels)*400 < len(near)
		}
		if flip {
			for _, i := range p.pixels {
				near[i] = !p.inside
			}
		}
	}
}

// pieceAt gathers the piece that a pixel lies in and marks its pixels as seen.
func pieceAt(start int, near, seen []bool, belief []float32, w, h int) piece {
	p := piece{inside: near[start], pixels: []int{start}}
	seen[start] = true
	for k := 0; k < len(p.pixels); k++ {
		i := p.pixels[k]
		p.belief += float64(belief[i])
		x, y := i%w, i/w
		for _, s := range cutSteps[:4] {
			u, v := x+s[0], y+s[1]
			if u < 0 || v < 0 || u >= w || v >= h {
				p.edge = true
				continue
			}
			if j := v*w + u; !seen[j] && near[j] == p.inside {
				seen[j] = true
				p.pixels = append(p.pixels, j)
			}
		}
	}
	return p
}

// judge is how sure the cut is: whether it follows edges, agrees with the belief, and takes a sensible part of the picture.
func (s *subject) judge(l lab, belief []float32, plain bool) float64 {
	w := s.width
	area, agree, edges, along := 0.0, 0.0, 0.0, 0.0
	mean, n := 0.0, 0.0
	for i, v := range s.inside {
		area += float64(v)
		agree += 1 - math.Abs(float64(v-belief[i]))
		for _, j := range [2]int{i + 1, i + w} {
			if j >= len(s.inside) || (j == i+1 && j%w == 0) {
				continue
			}
			d := float64(labApart(l.pix[i], l.pix[j]))
			mean += d
			n++
			if s.inside[j] != v {
				edges += d
				along++
			}
		}
	}
	part := area / float64(len(s.inside))
	if along == 0 || n == 0 || part < 0.003 || part > 0.985 {
		return 0
	}
	contrast := min(edges/along/max(mean/n, 0.5)/6, 1)
	agreement := agree / float64(len(s.inside))
	confidence := 0.45*contrast + 0.55*max(0, 2*agreement-1)
	switch {
	case plain:
		confidence = 0.5 + 0.5*confidence
	case s.faces == 0:
		confidence *= 0.7
	}
	return min(max(confidence, 0), 1)
}
