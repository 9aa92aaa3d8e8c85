package image

import (
	"context"
	"fmt"
	"math"
	"slices"

	"enlarger/engine"
	"enlarger/engine/neural"
)

type denoiseConfig struct {
	FaceEnhance bool `json:"face_enhance" doc:"Restore faces as well."`
}

func denoiseTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[denoiseConfig]{
		Name:     "denoise",
		Media:    engine.Image,
		Doc:      "Removes noise. How strong it works follows the noise that is found in the image; a clean image stays as it is.",
		Defaults: denoiseConfig{},
		Examples: []denoiseConfig{{}, {FaceEnhance: true}},
		Bad:      []string{`{"face_enhance": "yes"}`, `{"face_enhance": 1}`},
		Size: func(_ denoiseConfig, src engine.Source) (width, height int) {
			return src.Width, src.Height
		},
		Fits:    fits,
		Measure: o.Measure,
		Memory: func(c denoiseConfig, task engine.Task) int64 {
			return o.filterMemory(task, o.cleanerFilter(neural.Denoise)) + o.netMemory(neural.Denoise) + o.facesMemory(c.FaceEnhance)
		},
		Process: o.denoise,
	})
}

func (o Options) denoise(ctx context.Context, c denoiseConfig, task engine.Task) (engine.Output, error) {
	return o.filtered(ctx, "denoise", task, func(ctx context.Context, source *picture) (prepared, error) {
		noise, err := measureNoise(ctx, source.raster)
		if err != nil {
			return prepared{}, err
		}
		prep := o.denoising(source, noise)
		prep.faces = c.FaceEnhance
		return prep, nil
	})
}

// netMemory is what the model for a task takes, 0 when there is none.
func (o Options) netMemory(task neural.Task) int64 {
	if m := o.net(task, 1); m != nil {
		return m.Memory()
	}
	return 0
}

// noiseLeast is the noise, in 8-bit codes, below which a picture is left alone: less is hardly seen, and half a code is what rounding makes.
const noiseLeast = 1.0

// denoising chooses what to do about noise.
func (o Options) denoising(source *picture, noise noiseModel) prepared {
	facts := map[string]any{"noise": hundredths(noise.luma * 255)}
	if !source.grey {
		facts["noise_colour"] = hundredths(noise.chroma * 255)
	}
	if max(noise.luma, noise.chroma)*255 < noiseLeast {
		facts["method"] = "none"
		return prepared{facts: facts}
	}
	c := o.cleaner(neural.Denoise, source, noise)
	if c.own != nil && c.net != nil {
		// A blind net takes fine texture for weak noise, BM3D goes by what was measured: below a few codes that alone is right.
		const least, span = 2.0 / 255, 12.0 / 255
		if c.share = min(max((c.level-least)/span, 0), c.share); c.share == 0 {
			c.net = nil
		}
	}
	c.describe(facts)
	if c.own != nil && noise.fine < 1 {
		facts["noise_fine"] = hundredths(noise.fine)
	}
	f := c.filter()
	f.apply = func(ctx context.Context, worker int, p *patch) error { return c.apply(ctx, worker, p, f.margin) }
	return prepared{facts: facts, filter: f}
}

// cleaner removes noise, or what stands for it: by the picture's own similar blocks, by a model, or by the mean of the two. The two err
// differently, the one where a picture does not repeat itself, the other where it is unlike those learnt from, and their mean is nearer
// than either: internal and external denoising, combined (Mosseri, Zontak and Irani, ICCP 2013). Our models are small enough to gain from it;
// an operator's works alone.
type cleaner struct {
	own   *denoiser
	net   *neural.Model
	level float32 // of the noise, for a model that is told
	share float32 // of the model's answer in the mean
	grey  bool
}

func (o Options) cleaner(task neural.Task, source *picture, noise noiseModel) *cleaner {
	c := &cleaner{net: o.net(task, 1), level: float32(math.Sqrt(float64(noise.meanSquare(source.grey)))), share: 0.5, grey: source.grey}
	if c.net == nil || c.net.Shipped() {
		c.own = newDenoiser(source.raster, noise)
	}
	return c
}

// describe says in the job's output what does the work.
func (c *cleaner) describe(facts map[string]any) {
	switch {
	case c.net == nil:
		facts["method"] = "bm3d"
	case c.own == nil:
		facts["method"], facts["model"] = "neural", c.net.Name()
	default:
		facts["method"], facts["model"] = "bm3d+neural", c.net.Name()
	}
}

// filter is a cleaner's filter without what it does, which is to be given the margin.
func (c *cleaner) filter() filter {
	var f filter
	if c.own != nil {
		f = denoiseFilter()
	}
	if c.net != nil {
		f.margin = max(f.margin, c.net.Overlap())
		f.scratchBytes += netBytes
	}
	return f
}

// cleanerFilter is that of the cleaner that a picture will get, for its memory.
func (o Options) cleanerFilter(task neural.Task) filter {
	c := &cleaner{net: o.net(task, 1)}
	if c.net == nil || c.net.Shipped() {
		c.own = new(denoiser)
	}
	return c.filter()
}

// apply cleans a patch.
func (c *cleaner) apply(ctx context.Context, worker int, p *patch, margin int) error {
	if c.net == nil {
		return c.own.apply(ctx, &c.own.scratch[worker], p, margin)
	}
	if c.own == nil {
		return netPatch(ctx, c.net, p, margin, c.grey, c.level)
	}
	learnt := *p
	for i := range 3 {
		learnt.planes[i] = slices.Clone(p.planes[i])
	}
	if err := netPatch(ctx, c.net, &learnt, margin, c.grey, c.level); err != nil {
		return err
	}
	if err := c.own.apply(ctx, &c.own.scratch[worker], p, margin); err != nil {
		return err
	}
	for i := range 3 {
		plane := p.planes[i]
		for k, v := range learnt.planes[i][:len(plane)] {
			plane[k] += c.share * (v - plane[k])
		}
	}
	return nil
}

// netBytes is what netPatch takes beside the patch in bytes for a pixel: its input where alpha is taken out, its output, and the planes
// that it changes where they are not the patch's.
const netBytes = 4 * 9

func hundredths(v float32) float64 { return math.Round(float64(v)*100) / 100 }

// meanSquare is the variance of the noise in one colour.
func (n noiseModel) meanSquare(grey bool) float32 {
	if grey {
		return n.luma * n.luma
	}
	return (n.luma*n.luma + 2*n.chroma*n.chroma) / 3
}

// denoiser removes noise that is known by collaborative filtering.
type denoiser struct {
	collaborative
	// pictureWidth and pictureHeight are those of the whole picture.
	pictureWidth, pictureHeight int
	scratch                     []denoiseScratch
	// lifted, when not nil, is what a denoised sample from 0 to 1 in 1024 steps stands for, because noise was cut off.
	lifted []float32
}

// The search: larger is better and slower. With groups of 16 and a radius of 8, CBSD68 loses 0.15 dB to the paper's 32 and 19
// and takes a tenth of the time.
const (
	denoiseStep, denoiseRadius, denoiseGroup = 4, 8, 16
)

func newDenoiser(source *raster, noise noiseModel) *denoiser {
	d := &denoiser{pictureWidth: source.width, pictureHeight: source.height, scratch: make([]denoiseScratch, processors())}
	d.collaborative = collaborative{planes: 3, step: denoiseStep, radius: denoiseRadius, group: [2]int{denoiseGroup, denoiseGroup}}
	if source.grey {
		d.planes = 1
	}
	// A plane with next to no noise still needs some, for the weights divide by it.
	const least = 0.1 / 255
	for c := range d.planes {
		deviation := max(noise.chroma, least)
		if c == 0 {
			deviation = max(noise.luma, least)
		}
		d.white(c, deviation*deviation)
	}
	if noise.fine > 0 && noise.fine < 1 {
		d.coarsen(noise.fine)
	}
	d.similar = similarUpTo(noise.luma, source.grey)
	d.lifted = liftedBy(noise, source.grey)
	return d
}

// similarUpTo are the mean squared differences up to which blocks are similar: the paper's, for noise up to 40 codes, and above it
// no less than what the noise itself makes.
func similarUpTo(deviation float32, grey bool) [2]float32 {
	const first, second = 2500.0 / 255 / 255, 400.0 / 255 / 255
	scale := float32(3) // of the first opponent axis
	if grey {
		scale = 1
	}
	return [2]float32{max(first*scale, 6*deviation*deviation), max(second*scale, deviation*deviation)}
}

// liftedBy makes denoiser.lifted.
func liftedBy(noise noiseModel, grey bool) []float32 {
	if !noise.clipped[0] && !noise.clipped[1] {
		return nil
	}
	const steps = 1024
	deviation := math.Sqrt(float64(noise.meanSquare(grey)))
	table := make([]float32, steps+1)
	for i := range table {
		v := float64(i) / steps
		x := v
		if noise.clipped[0] && v < 3*deviation {
			x = deviation * unclipped(v/deviation)
		}
		if noise.clipped[1] && 1-v < 3*deviation {
			x += (1 - v) - deviation*unclipped((1-v)/deviation)
		}
		table[i] = float32(min(max(x, 0), 1))
	}
	return table
}

// lift is the table's value for v, linear between its steps.
func (d *denoiser) lift(v float32) float32 {
	v = min(max(v, 0), 1) * float32(len(d.lifted)-1)
	i := min(int(v), len(d.lifted)-2)
	part := v - float32(i)
	return d.lifted[i] + part*(d.lifted[i+1]-d.lifted[i])
}

// denoiseFilter is a denoiser's filter without what it does, for its memory.
func denoiseFilter() filter {
	return filter{margin: (&collaborative{radius: denoiseRadius}).margin(), scratchBytes: collaborativeBytes, square: 512}
}

func (d *denoiser) filter() filter {
	f := denoiseFilter()
	f.apply = func(ctx context.Context, worker int, p *patch) error {
		return d.apply(ctx, &d.scratch[worker], p, f.margin)
	}
	return f
}

// apply denoises a patch.
func (d *denoiser) apply(ctx context.Context, s *denoiseScratch, p *patch, margin int) error {
	n := p.width * p.height
	for c := range d.planes {
		s.planes[c] = grow(s.planes[c], n)
	}
	if d.planes == 1 {
		copy(s.planes[0], p.planes[0])
	} else {
		red, green, blue := p.planes[0][:n], p.planes[1][:n], p.planes[2][:n]
		y, u, v := s.planes[0][:n], s.planes[1][:n], s.planes[2][:n]
		for i, r := range red {
			y[i], u[i], v[i] = opponent(r, green[i], blue[i])
		}
	}
	f, err := d.frame(p, margin)
	if err != nil {
		return err
	}
	if err := d.run(ctx, s, f); err != nil {
		return err
	}
	if d.planes == 1 {
		copy(p.planes[0], s.planes[0])
	} else {
		red, green, blue := p.planes[0][:n], p.planes[1][:n], p.planes[2][:n]
		u, v := s.planes[1][:n], s.planes[2][:n]
		for i, y := range s.planes[0][:n] {
			red[i], green[i], blue[i] = coloursOf(y, u[i], v[i])
		}
	}
	d.finish(p)
	return nil
}

// finish holds the colours within what alpha allows and undoes clipping.
func (d *denoiser) finish(p *patch) {
	alpha := p.planes[3]
	for c := range d.planes {
		plane := p.planes[c][:len(alpha)]
		for i, a := range alpha {
			v := plane[i]
			if d.lifted != nil && a >= 1 {
				v = d.lift(v)
			}
			plane[i] = min(max(v, 0), a)
		}
	}
	if d.planes == 1 {
		copy(p.planes[1], p.planes[0])
		copy(p.planes[2], p.planes[0])
	}
}

// frame finds where the picture lies in a patch. One that is narrower than a block is taken as wide as one.
func (d *denoiser) frame(p *patch, margin int) (frame, error) {
	if p.width < 2*margin || p.height < 2*margin || margin < blockSide {
		return frame{}, fmt.Errorf("a patch of %dx%d has no margin of %d", p.width, p.height, margin)
	}
	axis := func(at, length, picture int) (within, inner extent, origin, end int) {
		origin = -at
		end = origin + max(picture, blockSide)
		return extent{max(origin, 0), min(end, length)}, extent{margin, length - margin}, origin, end
	}
	f := frame{width: p.width, height: p.height}
	f.across, f.innerAcross, f.originX, f.endX = axis(p.x, p.width, d.pictureWidth)
	f.down, f.innerDown, f.originY, f.endY = axis(p.y, p.height, d.pictureHeight)
	return f, nil
}
