package image

import (
	"context"
	"encoding/binary"
	"math"

	"enlarger/engine/neural"
)

// overlay is a restored face, laid over an output with a soft edge while its rows are written.
type overlay struct {
	x, y, width, height int
	// planes are red, green and blue of 0 to 1, gamma-encoded, not premultiplied.
	planes [3][]float32
	// middleX, middleY, radiusX and radiusY are the ellipse, in the output's pixels, at which the overlay has faded to nothing.
	middleX, middleY, radiusX, radiusY float64
}

// cover is how much of the overlay shows at a pixel of the output, 0 to 1: all within a part of the ellipse, then less.
func (o *overlay) cover(x, y int) float32 {
	return ovalCover(o.middleX, o.middleY, o.radiusX, o.radiusY, x, y)
}

// ovalCover is how much of what lies in an ellipse shows at a pixel.
func ovalCover(middleX, middleY, radiusX, radiusY float64, x, y int) float32 {
	const whole = 0.65
	u, v := (float64(x)+0.5-middleX)/radiusX, (float64(y)+0.5-middleY)/radiusY
	d := math.Sqrt(u*u + v*v)
	if d >= 1 {
		return 0
	}
	t := min((1-d)/(1-whole), 1)
	return float32(t * t * (3 - 2*t))
}

// blend lays the overlay over a row of an output's pixels. Their alpha stays.
func (o *overlay) blend(y int, row []byte, deep bool) {
	if y < o.y || y >= o.y+o.height {
		return
	}
	at := (y - o.y) * o.width
	for i := range o.width {
		cover := o.cover(o.x+i, y)
		if cover == 0 {
			continue
		}
		for c, plane := range o.planes {
			v := plane[at+i]
			if deep {
				sample := row[8*(o.x+i)+2*c:]
				was := float32(binary.BigEndian.Uint16(sample)) / 65535
				binary.BigEndian.PutUint16(sample, code16(was+cover*(v-was)))
				continue
			}
			sample := &row[4*(o.x+i)+c]
			was := float32(*sample) / 255
			*sample = code8(was + cover*(v-was))
		}
	}
}

// blendRows lays overlays over whole rows from row y of a picture.
func blendRows(overlays []overlay, y, width int, pixels []byte, deep bool) {
	stride := width * bytesPerPixel(deep)
	for row := range len(pixels) / stride {
		for i := range overlays {
			overlays[i].blend(y+row, pixels[row*stride:][:stride], deep)
		}
	}
}

const (
	// faceAcross and faceDown are the radii of the ellipse that is restored, in sides of the face's square.
	faceAcross, faceDown = 0.8, 0.98
	// faceLift is how far the middle of the ellipse lies above that of the square, in sides of it.
	faceLift = 0.02
	// facePixels bounds the pixels of a face in the output: a larger one has its detail. facesPixels bounds those of all.
	facePixels, facesPixels = 1_500_000, 4_000_000
	// faceMemory bounds the bytes that restoring faces takes: the reduced picture in which they are found, the overlays, and the planes
	// for one face at work.
	faceMemory = 4*4*faceLong*faceLong + 12*facesPixels + 60*facePixels
)

// facesMemory is what restoring faces takes beside what the tool does, when it is asked for.
func (o Options) facesMemory(asked bool) int64 {
	if !asked {
		return 0
	}
	return faceMemory + o.netMemory(neural.Face)
}

// faceJob is what faces are restored for.
type faceJob struct {
	source *raster
	// scale is how many times larger than the source the output is.
	scale int
	// quality is that of the source's JPEG coding, 1 to 100; 100 for a source of another kind. It matters when the scale is more than 1.
	quality float32
	// filter is what the tool makes of the source, when the scale is 1.
	filter filter
	// enlarge makes output rows of a source, when the scale is more.
	enlarge func(ctx context.Context, src *raster, y int, out []byte, deep bool) error
	// enlargeClean, when not nil, does so for a source without noise, and enlarge for one with.
	enlargeClean func(ctx context.Context, src *raster, y int, out []byte, deep bool) error
}

// faceResult is the restored faces of a picture and what to say of them.
type faceResult struct {
	overlays []overlay
	found    int
	method   string
}

// withFacts adds what was done about faces to the facts of a job's output.
func withFacts(facts map[string]any, r faceResult) map[string]any {
	if facts == nil {
		facts = map[string]any{}
	}
	facts["faces"], facts["faces_enhanced"] = r.found, len(r.overlays)
	if len(r.overlays) > 0 {
		facts["face_method"] = r.method
	}
	return facts
}

// restoreFaces finds the faces of a picture and restores each: by a model for faces where there is one, or else by taking noise and
// coding out of the skin before it is enlarged and giving soft features their detail back.
func (o Options) restoreFaces(ctx context.Context, j faceJob) (faceResult, error) {
	found, err := o.faces.find(ctx, j.source)
	if err != nil {
		return faceResult{}, err
	}
	result := faceResult{found: len(found), method: "denoise+detail"}
	model := o.net(neural.Face, 1)
	if model != nil {
		result.method = model.Name()
	}
	pixels := 0
	for _, f := range found {
		a := faceArea{picture: j.source}
		a.place(f)
		if n := a.width * a.height * j.scale * j.scale; a.width < 1 || a.height < 1 || n > facePixels || pixels+n > facesPixels {
			continue
		}
		pixels += a.width * a.height * j.scale * j.scale
		restored, err := a.restore(ctx, j, f, model)
		if err != nil {
			return faceResult{}, err
		}
		result.overlays = append(result.overlays, restored)
	}
	return result, nil
}

// faceArea is the rectangle of a picture in which a face is restored.
type faceArea struct {
	picture             *raster
	x, y, width, height int
	middle              point
}

// place finds the rectangle around the ellipse of a face that lies in the picture.
func (a *faceArea) place(f face) {
	a.middle = point{f.x, f.y - faceLift*f.size}
	// A turned face is long the other way.
	sin, cos := math.Sincos(f.roll())
	across, down := radiiOf(f.size, sin, cos)
	a.x, a.y = max(0, int(a.middle.x-across)), max(0, int(a.middle.y-down))
	a.width = min(a.picture.width, int(math.Ceil(a.middle.x+across))) - a.x
	a.height = min(a.picture.height, int(math.Ceil(a.middle.y+down))) - a.y
}

// radiiOf are the half sides of the rectangle around the ellipse of a face of a size that is turned.
func radiiOf(size, sin, cos float64) (across, down float64) {
	wide, high := faceAcross*size, faceDown*size
	return math.Hypot(wide*cos, high*sin), math.Hypot(wide*sin, high*cos)
}

// restore makes the overlay of one face.
func (a *faceArea) restore(ctx context.Context, j faceJob, f face, model *neural.Model) (overlay, error) {
	sin, cos := math.Sincos(f.roll())
	across, down := radiiOf(f.size, sin, cos)
	s := float64(j.scale)
	out := overlay{
		x: a.x * j.scale, y: a.y * j.scale, width: a.width * j.scale, height: a.height * j.scale,
		middleX: a.middle.x * s, middleY: a.middle.y * s, radiusX: across * s, radiusY: down * s,
	}
	clean, err := a.cleaned(ctx, j, 0)
	if err != nil {
		return overlay{}, err
	}
	softness := clean.softness()
	rough := clean
	if model == nil {
		if clean, err = a.cleaned(ctx, j, j.noise(f.size, softness)); err != nil {
			return overlay{}, err
		}
	}
	large, err := a.enlarged(ctx, j, rough, clean)
	if err != nil {
		return overlay{}, err
	}
	switch {
	case model != nil:
		if err := large.throughModel(ctx, model); err != nil {
			return overlay{}, err
		}
	case j.enlargeClean == nil: // in a rough source, what seems to be softness is coding
		large.detail(j.scale, missing(softness, j.scale))
	}
	out.planes = large.within(clean.margin*j.scale, out.width, out.height)
	return out, nil
}

// faceCrop is a face with a margin around it.
type faceCrop struct {
	width, height, margin int
	grey                  bool
	planes                [3][]float32
}

// faceMargin is what is kept around a face's rectangle while it is worked on, in source pixels: what enlarging and the detail look at.
const faceMargin = 16

// noise is the deviation in 8-bit codes of what is taken out of a face as noise: 2 always, about what the coding of a good JPEG leaves. Before
// enlarging it is more for JPEG of lower quality, and for a small face whose finest detail is crisp, for that is what a sharp reduction folded
// into it and would come out as features. size is the face's, in pixels of the source; softness as faceCrop.softness has it. The steps were chosen
// on 18 faces of 17 to 92 pixels made 2 and 4 times smaller in several ways, with JPEG of quality 75 to 95: with 2 codes for all, PSNR is 0.15 dB worse
// in the mean. A larger face shows true texture so fine: one of 132 pixels lost 0.14 dB to 2.5 codes more.
func (j faceJob) noise(size, softness float64) float32 {
	const always, crisp, good, step = 2, 2.5, 92, 0.15
	const small, large = 90, 130
	if j.scale == 1 {
		return always
	}
	reduced := min(max((large-size)/(large-small), 0), 1)
	return always + crisp*float32(reduced*(1-softness)) + step*max(good-j.quality, 0)
}

// missing is the part of a face's softness, 0 to 1, that is to be mended after it was enlarged: a reduction four times as small leaves features so
// wide that enlarging them shows no blur until it is strong.
func missing(softness float64, scale int) float64 {
	least := 0.0
	switch {
	case scale >= 4:
		least = 0.25
	case scale >= 2:
		least = 0.05
	}
	return max(0, softness-least) / (1 - least)
}

// cleaned is the source around the face as the tool's filter leaves it, and without noise of so many codes.
func (a *faceArea) cleaned(ctx context.Context, j faceJob, noise float32) (*faceCrop, error) {
	d := newDenoiser(j.source, noiseModel{luma: noise / 255, chroma: noise / 255})
	filter := d.filter()
	margin := faceMargin + filter.margin + j.filter.margin
	p, err := patchOf(j.source, a.x-margin, a.y-margin, a.width+2*margin, a.height+2*margin)
	if err != nil {
		return nil, err
	}
	if j.filter.apply != nil {
		if err := j.filter.apply(ctx, 0, p); err != nil {
			return nil, err
		}
	}
	if noise > 0 {
		if err := filter.apply(ctx, 0, p); err != nil {
			return nil, err
		}
	}
	straight := straight(p)
	c := &faceCrop{width: a.width + 2*faceMargin, height: a.height + 2*faceMargin, margin: faceMargin, grey: j.source.grey}
	for i, plane := range straight {
		c.planes[i] = cropped(plane, p.width, margin-faceMargin, c.width, c.height)
	}
	return c, nil
}

// cropped takes out of a plane what lies the inset from its left and top.
func cropped(plane []float32, width, inset, toWidth, toHeight int) []float32 {
	out := make([]float32, toWidth*toHeight)
	for y := range toHeight {
		copy(out[y*toWidth:][:toWidth], plane[(y+inset)*width+inset:])
	}
	return out
}

// enlarged is a face at the output's size: of the crop that was cleaned, or, where there is a way to enlarge rough sources, the mean of that with
// what it makes of the crop as it came. The two err differently, see cleaner.
func (a *faceArea) enlarged(ctx context.Context, j faceJob, rough, clean *faceCrop) (*faceCrop, error) {
	if j.enlargeClean == nil || rough == clean {
		return clean.enlarged(ctx, j, j.enlarge)
	}
	large, err := clean.enlarged(ctx, j, j.enlargeClean)
	if err != nil {
		return nil, err
	}
	other, err := rough.enlarged(ctx, j, j.enlarge)
	if err != nil {
		return nil, err
	}
	for c, plane := range large.planes {
		for i, v := range other.planes[c] {
			plane[i] = (plane[i] + v) / 2
		}
	}
	return large, nil
}

// enlarged is the crop at the output's size.
func (c *faceCrop) enlarged(ctx context.Context, j faceJob, enlarge func(context.Context, *raster, int, []byte, bool) error) (*faceCrop, error) {
	if j.scale == 1 {
		return c, nil
	}
	small, err := newRaster("", c.width, c.height, true, false)
	if err != nil {
		return nil, err
	}
	small.grey = c.grey
	for i := range c.planes[0] {
		v := uint64(code16(c.planes[0][i]))<<48 | uint64(code16(c.planes[1][i]))<<32 | uint64(code16(c.planes[2][i]))<<16 | 0xFFFF
		binary.BigEndian.PutUint64(small.pix[8*i:], v)
	}
	out := &faceCrop{width: c.width * j.scale, height: c.height * j.scale, margin: c.margin * j.scale, grey: c.grey}
	pixels := make([]byte, 8*out.width*out.height)
	if err := enlarge(ctx, small, 0, pixels, true); err != nil {
		return nil, err
	}
	for i := range out.planes {
		out.planes[i] = make([]float32, out.width*out.height)
		unpack(out.planes[i], pixels, i, true)
	}
	return out, nil
}

func (c *faceCrop) luma() []float32 {
	out := make([]float32, len(c.planes[0]))
	luma(out, c.planes[0], c.planes[1], c.planes[2])
	return out
}

// softness is 1 for a face whose finest features are blurred and 0 for a crisp one: it compares the detail of half a pixel to one pixel with that of
// one to two. Where a camera or a careful reduction made the picture the first is about 0.4 of the second, and up to 0.7 where it was sharpened.
func (c *faceCrop) softness() float64 {
	const soft, crisp = 0.35, 0.6
	plane := canvas{c.width, c.height}
	bright := c.luma()
	var levels [3][]float32
	for i, sigma := range [3]float64{0.5, 1, 2} {
		levels[i] = plane.smooth(bright, sigma)
	}
	fine, coarse := 0.0, 0.0
	for y := c.margin; y < c.height-c.margin; y++ {
		for x := c.margin; x < c.width-c.margin; x++ {
			i := y*c.width + x
			a, b := float64(levels[0][i]-levels[1][i]), float64(levels[1][i]-levels[2][i])
			fine, coarse = fine+a*a, coarse+b*b
		}
	}
	if coarse == 0 {
		return 0
	}
	return min(max((crisp-fine/coarse)/(crisp-soft), 0), 1)
}

// smooth is a plane under a Gaussian of so many pixels.
func (c canvas) smooth(v []float32, sigma float64) []float32 {
	weights := gaussianWeights(sigma)
	radius := len(weights) / 2
	middle, out := make([]float32, len(v)), make([]float32, len(v))
	line := make([]float32, c.width+2*radius)
	for y := range c.height {
		row := v[y*c.width:][:c.width]
		for i := range line {
			line[i] = row[min(max(i-radius, 0), c.width-1)]
		}
		convolve(line, weights, middle[y*c.width:][:c.width])
	}
	for y := range c.height {
		to := out[y*c.width:][:c.width]
		for k, w := range weights {
			for x, m := range middle[min(max(y+k-radius, 0), c.height-1)*c.width:][:c.width] {
				to[x] += w * m
			}
		}
	}
	return out
}

// detail gives the features of a soft face back what blur took, in two bands of its luma, and no more than a bounded amount at any pixel.
func (c *faceCrop) detail(scale int, softness float64) {
	// The gains at full softness: the least squares fit to 25 faces made half as large.
	const fine, coarse, most = 0.5, 0.1, 0.08
	if softness == 0 {
		return
	}
	plane := canvas{c.width, c.height}
	bright := c.luma()
	first, second := plane.smooth(bright, 0.5*float64(scale)), plane.smooth(bright, float64(scale))
	for i, v := range bright {
		d := float32(softness) * (fine*(v-first[i]) + coarse*(v-second[i]))
		d = min(max(d, -most), most)
		for k := range c.planes {
			c.planes[k][i] = min(max(c.planes[k][i]+d, 0), 1)
		}
	}
}

// throughModel has a model for faces restore the crop.
func (c *faceCrop) throughModel(ctx context.Context, m *neural.Model) error {
	out, err := netColours(ctx, m, c.planes, c.width, c.height, c.grey, neural.How{})
	if err != nil {
		return err
	}
	for k, plane := range out {
		for i, v := range plane {
			plane[i] = min(max(v, 0), 1)
		}
		c.planes[k] = plane
	}
	return nil
}

// within is the crop without its margin.
func (c *faceCrop) within(margin, width, height int) (out [3][]float32) {
	for i, plane := range c.planes {
		out[i] = cropped(plane, c.width, margin, width, height)
	}
	return out
}

// enhanceFaces restores the faces of a picture in place, for tools that redraw it.
func (o Options) enhanceFaces(ctx context.Context, source *raster) (faceResult, error) {
	result, err := o.restoreFaces(ctx, faceJob{source: source, scale: 1})
	if err != nil {
		return faceResult{}, err
	}
	row := make([]byte, source.width*source.pixelBytes())
	for y := range source.height {
		reached := false
		for i := range result.overlays {
			reached = reached || (y >= result.overlays[i].y && y < result.overlays[i].y+result.overlays[i].height)
		}
		if !reached {
			continue
		}
		if err := source.read(0, y, row); err != nil {
			return faceResult{}, err
		}
		blendRows(result.overlays, y, source.width, row, source.deep)
		if err := source.write(y, row); err != nil {
			return faceResult{}, err
		}
	}
	return result, nil
}
