package image

import (
	"context"
	"math"

	"enlarger/engine"
	"enlarger/engine/neural"
)

type sharpenConfig struct {
	FaceEnhance bool `json:"face_enhance" doc:"Restore faces as well."`
}

func sharpenTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[sharpenConfig]{
		Name:     "sharpen",
		Media:    engine.Image,
		Doc:      "Sharpens an image. How strong it works follows the blur that is found at its edges; noise in flat areas is not made stronger.",
		Defaults: sharpenConfig{},
		Examples: []sharpenConfig{{}, {FaceEnhance: true}},
		Bad:      []string{`{"face_enhance": "yes"}`, `{"face_enhance": 1}`},
		Size: func(_ sharpenConfig, src engine.Source) (width, height int) {
			return src.Width, src.Height
		},
		Fits:    fits,
		Measure: o.Measure,
		Memory: func(c sharpenConfig, task engine.Task) int64 {
			return o.facesMemory(c.FaceEnhance) + o.filterMemory(task, filter{margin: deconvolutionRadiusMost, scratchBytes: deconvolutionBytes}) + o.netMemory(neural.Deblur)
		},
		Process: o.sharpen,
	})
}

func (o Options) sharpen(ctx context.Context, c sharpenConfig, task engine.Task) (engine.Output, error) {
	return o.filtered(ctx, "sharpen", task, func(ctx context.Context, source *picture) (prepared, error) {
		noise, err := measureNoise(ctx, source.raster)
		if err != nil {
			return prepared{}, err
		}
		blur, err := measureBlur(ctx, source.raster, noise.bright(source.grey))
		if err != nil {
			return prepared{}, err
		}
		prep := o.sharpening(source, noise, blur)
		prep.faces = c.FaceEnhance
		return prep, nil
	})
}

// bright is the deviation of the noise in BT.601 luma.
func (n noiseModel) bright(grey bool) float32 {
	if grey {
		return n.luma
	}
	// The luma lies along the first axis but for a part that colour differences add.
	const along, across = 0.577, 0.337
	return float32(math.Hypot(float64(along*n.luma), float64(across*n.chroma)))
}

// blurMost is the strongest blur that is taken out, as the deviation of a Gaussian in pixels; blurLeast the least, so that asking to
// sharpen always shows.
const blurLeast, blurMost = 0.4, 3.0

// sharpening chooses what to do about blur.
func (o Options) sharpening(source *picture, noise noiseModel, blur float64) prepared {
	facts := map[string]any{"blur": math.Round(blur*100) / 100, "noise": hundredths(noise.bright(source.grey) * 255)}
	if m := o.net(neural.Deblur, 1); m != nil {
		facts["method"], facts["model"] = "neural", m.Name()
		level, grey, margin := float32(blur), source.grey, m.Overlap()
		return prepared{facts: facts, filter: filter{margin: margin, scratchBytes: netBytes, apply: func(ctx context.Context, _ int, p *patch) error {
			return netPatch(ctx, m, p, margin, grey, level)
		}}}
	}
	facts["method"] = "wiener"
	d := newDeconvolution(min(max(blur, blurLeast), blurMost), noise, source.grey)
	facts["strength"] = math.Round(d.blur*100) / 100
	return prepared{facts: facts, filter: d.filter()}
}

// deconvolution takes a Gaussian blur out of a picture by linear filters, and holds the result to what keeps halos and noise down.
type deconvolution struct {
	// blur is in pixels; radius is that of the kernels.
	blur   float64
	radius int
	// planes are luma and, in coloured pictures, blue and red without luma.
	planes []sharpPlane
}

// sharpPlane says how one plane is sharpened.
type sharpPlane struct {
	kernel []float32
	// noise is the deviation of the plane's noise.
	noise float32
}

const (
	deconvolutionRadiusMost = 16
	// deconvolutionBytes is what sharpening takes beside a patch in bytes for a pixel.
	deconvolutionBytes = 4 * 14
	// A sharpened sample may leave the range of the 5x5 around it by overshoot of that range, and by no more than haloMost and haloPart of
	// it: fine texture may gain contrast, strong edges hardly get a rim.
	overshoot, haloMost, haloPart = 0.4, 0.05, 0.05
)

func newDeconvolution(blur float64, noise noiseModel, grey bool) *deconvolution {
	// Less noise than this is not believed: it also stands for a blur that is no perfect Gaussian. Colour is measured more coarsely in
	// most files.
	const least, leastColour, more = 1.0 / 255, 2.0 / 255, 1.5
	d := &deconvolution{blur: blur, radius: min(int(math.Ceil(4*blur))+6, deconvolutionRadiusMost)}
	bright := noise.bright(grey)
	d.planes = []sharpPlane{{wienerKernel(blur, max(least, more*float64(bright)), d.radius), bright}}
	if !grey {
		colour := sharpPlane{wienerKernel(blur, max(leastColour, more*float64(noise.chroma)), d.radius), noise.chroma}
		d.planes = append(d.planes, colour, colour)
	}
	return d
}

func (d *deconvolution) filter() filter {
	return filter{margin: d.radius, scratchBytes: deconvolutionBytes, apply: func(ctx context.Context, _ int, p *patch) error {
		return d.apply(ctx, p)
	}}
}

// apply sharpens a patch.
func (d *deconvolution) apply(ctx context.Context, p *patch) error {
	colours := straight(p)
	n := p.width * p.height
	bright := make([]float32, n)
	luma(bright, colours[0], colours[1], colours[2])
	more := make([][]float32, len(d.planes))
	for i, plane := range d.planes {
		from := bright
		if i > 0 {
			from = make([]float32, n)
			for k, v := range colours[[3]int{0, 2, 0}[i]][:n] {
				from[k] = v - bright[k]
			}
		}
		more[i] = make([]float32, n)
		if err := d.convolve(ctx, plane.kernel, from, more[i], p.width, p.height); err != nil {
			return err
		}
		plane.restrain(from, more[i], p.width, p.height)
	}
	alpha := p.planes[3]
	red, green, blue := p.planes[0][:n], p.planes[1][:n], p.planes[2][:n]
	for i, light := range more[0] {
		var toBlue, toRed float32
		if len(more) == 3 {
			toBlue, toRed = more[1][i], more[2][i]
		}
		toGreen := -(lumaRed*toRed + lumaBlue*toBlue) / lumaGreen
		a := alpha[i]
		red[i] = min(max(colours[0][i]+light+toRed, 0), 1) * a
		green[i] = min(max(colours[1][i]+light+toGreen, 0), 1) * a
		blue[i] = min(max(colours[2][i]+light+toBlue, 0), 1) * a
	}
	return nil
}

// convolve makes the filtered plane. The kernel is even along both axes, so that four samples share a product.
func (d *deconvolution) convolve(ctx context.Context, kernel, plane, to []float32, width, height int) error {
	r, side := d.radius, 2*d.radius+1
	line := make([]float32, width+2*r)
	for y := range height {
		if y%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		out := to[y*width:][:width]
		for j := range r + 1 {
			above, below := plane[max(y-j, 0)*width:][:width], plane[min(y+j, height-1)*width:][:width]
			middle := line[r:][:width]
			if j == 0 {
				copy(middle, above)
			} else {
				for x, v := range above {
					middle[x] = v + below[x]
				}
			}
			for i := range r {
				line[i], line[r+width+i] = middle[0], middle[width-1]
			}
			weights := kernel[(r+j)*side+r:][:r+1]
			w := weights[0]
			for x, v := range middle {
				out[x] += w * v
			}
			for i := 1; i <= r; i++ {
				addPair(out, line[r-i:], line[r+i:], weights[i])
			}
		}
	}
	return nil
}

// addPair adds the weighted sum of two rows.
func addPair(to, a, b []float32, weight float32) {
	a, b = a[:len(to)], b[:len(to)]
	for i := range to {
		to[i] += weight * (a[i] + b[i])
	}
}

// restrain turns the sharpened plane into what is to be added to the old one: no further than the overshoot beyond what is around,
// and the less the more what is there looks like noise.
func (s sharpPlane) restrain(plane, sharp []float32, width, height int) {
	const radius, samples = 2, 25
	low, high := make([]float32, len(plane)), make([]float32, len(plane))
	rangeOf(plane, low, high, width, height, radius)
	square := make([]float32, len(plane))
	for i, v := range plane {
		square[i] = v * v
	}
	mean := boxed(plane, width, height, radius)
	square = boxed(square, width, height, radius)
	const belief = 0.5 / 255 // of the noise: rounding is noise too
	noise := max(s.noise, belief)
	least, half := 1.6*noise*noise, 3*noise*noise
	for i, v := range plane {
		across := high[i] - low[i]
		room := min(overshoot*across, haloMost+haloPart*across)
		held := min(max(sharp[i], low[i]-room), high[i]+room)
		variance := max((square[i]-mean[i]*mean[i])*(samples/(samples-1.0))-least, 0)
		sharp[i] = (held - v) * variance / (variance + half)
	}
}

// rangeOf finds the least and the most of the samples up to radius away.
func rangeOf(plane, low, high []float32, width, height, radius int) {
	below, above := make([]float32, len(plane)), make([]float32, len(plane))
	for y := range height {
		row := plane[y*width:][:width]
		for x := range row {
			least, most := row[x], row[x]
			for _, v := range row[max(x-radius, 0):min(x+radius+1, width)] {
				if v < least {
					least = v
				}
				if v > most {
					most = v
				}
			}
			below[y*width+x], above[y*width+x] = least, most
		}
	}
	for y := range height {
		to, from := high[y*width:][:width], low[y*width:][:width]
		copy(from, below[y*width:])
		copy(to, above[y*width:])
		for k := max(y-radius, 0); k < min(y+radius+1, height); k++ {
			least, most := below[k*width:][:width], above[k*width:][:width]
			for x := range to {
				if least[x] < from[x] {
					from[x] = least[x]
				}
				if most[x] > to[x] {
					to[x] = most[x]
				}
			}
		}
	}
}
