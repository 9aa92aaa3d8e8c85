package image

import (
	"context"
	"slices"

	"enlarger/engine/neural"
)

// matte is the subject of a picture with a soft edge: how much of each pixel is the subject, and what colour the subject has there
// without the background that shines through.
type matte struct {
	subject
	// pictureWidth and pictureHeight are those of the picture that the matte is of.
	pictureWidth, pictureHeight int
	// slope and level make the alpha of a pixel of its colours (a guided filter); around is how much subject is near, which bounds
	// where an edge may be. All are planes at a reduced size.
	slope         [3][]float32
	level, around []float32
	// fore and back are the colours of the subject and of the background nearby.
	fore, back [3][]float32
	// part is how much of the picture is the subject.
	part float64
}

// matteLong is the long side in pixels at which the edge of a subject is refined. What is finer follows the colours of the picture itself.
const matteLong = 800

// matteMemory bounds the bytes that finding a matte takes: some forty planes at its size.
const matteMemory = matteLong * matteLong * 4 * 40

// matteOf finds the subject of a picture, by a model where there is one that sees one, and else by classical means.
func (o Options) matteOf(ctx context.Context, source *raster) (*matte, error) {
	medium, err := source.reduced(ctx, matteLong)
	if err != nil {
		return nil, err
	}
	seen, shipped, err := o.modelSubject(ctx, medium)
	if err != nil {
		return nil, err
	}
	faces, err := o.faces.findIn(ctx, medium)
	if err != nil {
		return nil, err
	}
	cut, err := classicalSubject(ctx, source, medium, faces, false)
	if err != nil {
		return nil, err
	}
	m := &matte{pictureWidth: source.width, pictureHeight: source.height, subject: *chosen(seen, cut, shipped, faces)}
	return m, m.refine(ctx, medium)
}

// portraitMattes finds the person of a portrait whose face is known: by classical means, and by a model where there is one that sees one.
func (o Options) portraitMattes(ctx context.Context, source *raster, known face) ([]*matte, error) {
	medium, err := source.reduced(ctx, matteLong)
	if err != nil {
		return nil, err
	}
	known.scale(float64(medium.width)/float64(source.width), float64(medium.height)/float64(source.height))
	cut, err := classicalSubject(ctx, source, medium, []face{known}, true)
	if err != nil {
		return nil, err
	}
	all := []*subject{cut}
	seen, _, err := o.modelSubject(ctx, medium)
	if err != nil {
		return nil, err
	}
	if seen != nil {
		agreed(seen, cut)
		all = append(all, seen)
	}
	mattes := make([]*matte, len(all))
	for i, s := range all {
		mattes[i] = &matte{pictureWidth: source.width, pictureHeight: source.height, subject: *s}
		if err := mattes[i].refine(ctx, medium); err != nil {
			return nil, err
		}
	}
	return mattes, nil
}

// modelSubject is what a model sees of a subject, or nil where there is no model or it sees none. shipped says that the model is ours, which knows
// people only.
func (o Options) modelSubject(ctx context.Context, medium *patch) (s *subject, shipped bool, err error) {
	model := o.net(neural.Matting, 1)
	if model == nil {
		return nil, false, nil
	}
	inside, err := netMask(ctx, model, medium)
	if err != nil {
		return nil, false, err
	}
	s = &subject{width: medium.width, height: medium.height, inside: inside, method: model.Name(), confidence: decided(inside)}
	const undecided = 0.3
	if part := s.part(); part < partLeast || part > partMost || s.confidence < undecided {
		return nil, false, nil
	}
	return s, model.Shipped(), nil
}

// classicalSubject finds the subject by classical means, at a size at which a cut is quick. The faces are those of the medium picture.
func classicalSubject(ctx context.Context, source *raster, medium *patch, faces []face, portrait bool) (*subject, error) {
	small, err := source.reduced(ctx, subjectLong)
	if err != nil {
		return nil, err
	}
	faces = slices.Clone(faces)
	for i := range faces {
		faces[i].scale(float64(small.width)/float64(medium.width), float64(small.height)/float64(medium.height))
	}
	s, err := subjectIn(ctx, small, faces, portrait)
	if err != nil {
		return nil, err
	}
	s.inside = neural.Resize(s.inside, small.width, small.height, medium.width, medium.height)
	s.width, s.height = medium.width, medium.height
	return s, nil
}

// chosen is the one of two finds to go by: what a model sees, unless that is nothing, or ours sees people in what is a thing before a plain background,
// or ours leaves out a face that was found.
func chosen(seen, cut *subject, shipped bool, faces []face) *subject {
	if seen == nil {
		return cut
	}
	if agreement := agreed(seen, cut); shipped && cut.plain && agreement < 0.5 {
		return cut
	}
	if shipped && slices.ContainsFunc(faces, seen.misses) {
		return cut
	}
	return seen
}

// misses says that a good part of a head, from the hair to the chin, was taken for background, whose face was surely found.
func (s *subject) misses(f face) bool {
	const sure, least = 60, 0.8
	if f.quality < sure {
		return false
	}
	sum, count := 0.0, 0.0
	for y := max(0, int(f.y-0.8*f.size)); y < min(s.height, int(f.y+0.5*f.size)); y++ {
		for x := max(0, int(f.x-0.4*f.size)); x < min(s.width, int(f.x+0.4*f.size)); x++ {
			sum += float64(s.inside[y*s.width+x])
			count++
		}
	}
	return count > 0 && sum < least*count
}

// agreed is the intersection of two finds over their union. The more of it there is, the surer is the first.
func agreed(s, other *subject) float64 {
	both, either := 0.0, 0.0
	for i, v := range s.inside {
		both += float64(min(v, other.inside[i]))
		either += float64(max(v, other.inside[i]))
	}
	agreement := both / max(either, 1)
	s.confidence += (1 - s.confidence) * agreement * agreement / 2
	return agreement
}

// decided is how far a model's mask is from "perhaps": 1 when every pixel is inside or outside.
func decided(inside []float32) float64 {
	unsure, some := 0.0, 0.0
	for _, v := range inside {
		unsure += float64(min(v, 1-v))
		some += float64(v)
	}
	if some == 0 {
		return 0
	}
	return max(0, 1-4*unsure/some)
}

// refine fits the edge of the mask to that of the picture by a guided filter (He, Sun and Tang, 2013) and estimates the colours on both
// sides of it by blur fusion (Forte and Pitié, 2021).
func (m *matte) refine(ctx context.Context, p *patch) error {
	w, h := p.width, p.height
	long := max(w, h)
	m.part = m.subject.part()
	// Half the width of the band in which an edge is looked for, in pixels of the reduced picture.
	radius := max(1, long/100)
	colours := straight(p)
	m.guide(colours, w, h, radius)
	m.around = boxed(m.inside, w, h, radius)
	covered := boxed(constant(len(m.inside), 1), w, h, radius)
	for i := range m.around {
		m.around[i] /= covered[i]
	}
	alpha := make([]float32, len(m.inside))
	for i := range alpha {
		alpha[i] = m.alphaOf(colours[0][i], colours[1][i], colours[2][i], [3]float32{m.slope[0][i], m.slope[1][i], m.slope[2][i]}, m.level[i], m.around[i])
	}
	fore := colours
	for _, reach := range [2]int{max(2, long/24), max(3, long/70)} {
		if err := ctx.Err(); err != nil {
			return err
		}
		rest := make([]float32, len(alpha))
		for i, a := range alpha {
			rest[i] = 1 - a
		}
		next, back := spreadColours(fore, alpha, w, h, reach), spreadColours(colours, rest, w, h, reach)
		m.fore, m.back = next, back
		for c := range fore {
			mixed := make([]float32, len(alpha))
			for i, a := range alpha {
				mixed[i] = unmix(colours[c][i], a, next[c][i], back[c][i])
			}
			fore[c] = mixed
		}
	}
	return nil
}

// unmix is the subject's colour in a pixel of colour v that is part alpha subject, between colours fore and back.
func unmix(v, alpha, fore, back float32) float32 {
	return min(max(fore+alpha*(v-alpha*fore-(1-alpha)*back), 0), 1)
}

func constant(n int, v float32) []float32 {
	plane := make([]float32, n)
	for i := range plane {
		plane[i] = v
	}
	return plane
}

// spreadColours is the mean of the colours nearby, weighted.
func spreadColours(colours [3][]float32, weight []float32, w, h, radius int) (out [3][]float32) {
	const least = 1e-5
	sum := boxed(weight, w, h, radius)
	weighted := make([]float32, len(weight))
	for c, plane := range colours {
		for i, v := range plane {
			weighted[i] = v*weight[i] + v*least
		}
		out[c] = boxed(weighted, w, h, radius)
	}
	all := boxed(constant(len(weight), least), w, h, radius)
	for i, s := range sum {
		for c := range out {
			out[c][i] /= s + all[i]
		}
	}
	return out
}

// guide fits, around every pixel, the mask as a linear function of the three colours, and takes the mean of the fits that cover it.
func (m *matte) guide(colours [3][]float32, w, h, radius int) {
	// smooth keeps the fit from following noise: the variance, in squares of the range of 0 to 1, below which colours say nothing.
	const smooth = 3e-4
	n := len(m.inside)
	count := boxed(constant(n, 1), w, h, radius)
	mean := func(v []float32) []float32 {
		b := boxed(v, w, h, radius)
		for i := range b {
			b[i] /= count[i]
		}
		return b
	}
	product := make([]float32, n)
	times := func(a, b []float32) []float32 {
		for i, v := range a {
			product[i] = v * b[i]
		}
		return mean(product)
	}
	masks := mean(m.inside)
	var means, cross [3][]float32
	for c := range colours {
		means[c] = mean(colours[c])
		cross[c] = times(colours[c], m.inside)
	}
	rr, rg, rb := times(colours[0], colours[0]), times(colours[0], colours[1]), times(colours[0], colours[2])
	gg, gb, bb := times(colours[1], colours[1]), times(colours[1], colours[2]), times(colours[2], colours[2])
	for c := range m.slope {
		m.slope[c] = make([]float32, n)
	}
	m.level = make([]float32, n)
	for i := range n {
		x, y, z := float64(means[0][i]), float64(means[1][i]), float64(means[2][i])
		a, b, c := float64(rr[i])-x*x+smooth, float64(rg[i])-x*y, float64(rb[i])-x*z
		d, e, f := float64(gg[i])-y*y+smooth, float64(gb[i])-y*z, float64(bb[i])-z*z+smooth
		k := float64(masks[i])
		u, v, t := float64(cross[0][i])-x*k, float64(cross[1][i])-y*k, float64(cross[2][i])-z*k
		// The inverse of the symmetric matrix (a b c; b d e; c e f), by cofactors.
		aa, ab, ac := d*f-e*e, c*e-b*f, b*e-c*d
		dd, de, ff := a*f-c*c, b*c-a*e, a*d-b*b
		det := a*aa + b*ab + c*ac
		sx, sy, sz := (aa*u+ab*v+ac*t)/det, (ab*u+dd*v+de*t)/det, (ac*u+de*v+ff*t)/det
		m.slope[0][i], m.slope[1][i], m.slope[2][i] = float32(sx), float32(sy), float32(sz)
		m.level[i] = float32(k - sx*x - sy*y - sz*z)
	}
	for c := range m.slope {
		m.slope[c] = mean(m.slope[c])
	}
	m.level = mean(m.level)
}

// alphaOf is the alpha of a pixel. Where only the subject or only background is near it is 1 or 0, whatever the colours say.
func (m *matte) alphaOf(r, g, b float32, slope [3]float32, level, around float32) float32 {
	// The fit never quite reaches 0 and 1; what is nearly so is so.
	const hem = 0.06
	a := (slope[0]*r + slope[1]*g + slope[2]*b + level - hem) / (1 - 2*hem)
	a = min(max(a, 0), 1)
	const inner, outer = 0.9, 0.1
	switch {
	case around > inner:
		t := min((around-inner)/(1-inner)*2, 1)
		a += t * (1 - a)
	case around < outer:
		a *= max(1-(outer-around)/outer*2, 0)
	}
	return a
}

// places maps a row of picture pixels to the reduced planes.
type places struct {
	first, second int // rows
	down          float32
}

// row finds the rows of the planes around a picture row.
func (m *matte) row(y int) places {
	v := (float32(y)+0.5)*float32(m.height)/float32(m.pictureHeight) - 0.5
	v = min(max(v, 0), float32(m.height-1))
	top := int(v)
	return places{top * m.width, min(top+1, m.height-1) * m.width, v - float32(top)}
}

// sampler interpolates planes at one pixel.
type sampler struct {
	a, b, c, d     int
	wa, wb, wc, wd float32
}

func (m *matte) at(r places, x int) sampler {
	u := (float32(x)+0.5)*float32(m.width)/float32(m.pictureWidth) - 0.5
	u = min(max(u, 0), float32(m.width-1))
	left := int(u)
	right, t := min(left+1, m.width-1), u-float32(left)
	return sampler{
		r.first + left, r.first + right, r.second + left, r.second + right,
		(1 - t) * (1 - r.down), t * (1 - r.down), (1 - t) * r.down, t * r.down,
	}
}

func (s sampler) of(plane []float32) float32 {
	return plane[s.a]*s.wa + plane[s.b]*s.wb + plane[s.c]*s.wc + plane[s.d]*s.wd
}

// cut takes the background out of a patch of the picture: its alpha becomes the subject's, times what it was, and its colours the subject's own.
func (m *matte) cut(_ context.Context, _ int, p *patch) error {
	for y := range p.height {
		row := m.row(min(max(p.y+y, 0), m.pictureHeight-1))
		for x := range p.width {
			i := y*p.width + x
			old := p.planes[3][i]
			if old <= 0 {
				continue
			}
			s := m.at(row, min(max(p.x+x, 0), m.pictureWidth-1))
			r, g, b := p.planes[0][i]/old, p.planes[1][i]/old, p.planes[2][i]/old
			alpha := m.alphaOf(r, g, b, [3]float32{s.of(m.slope[0]), s.of(m.slope[1]), s.of(m.slope[2])}, s.of(m.level), s.of(m.around))
			if alpha < 1 {
				r = unmix(r, alpha, s.of(m.fore[0]), s.of(m.back[0]))
				g = unmix(g, alpha, s.of(m.fore[1]), s.of(m.back[1]))
				b = unmix(b, alpha, s.of(m.fore[2]), s.of(m.back[2]))
			}
			now := alpha * old
			p.planes[0][i], p.planes[1][i], p.planes[2][i], p.planes[3][i] = r*now, g*now, b*now, now
		}
	}
	return nil
}
