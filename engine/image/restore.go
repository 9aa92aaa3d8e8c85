package image

import (
	"context"
	"math"

	"enlarger/engine"
	"enlarger/engine/neural"
)

type restoreConfig struct {
	FaceEnhance bool `json:"face_enhance" doc:"Restore faces as well."`
}

func restoreTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[restoreConfig]{
		Name:     "restore",
		Media:    engine.Image,
		Doc:      "Restores an old or damaged photo: removes the traces of JPEG compression, noise, scratches and dust, and brings back faded tones. What needs no mending stays as it is.",
		Defaults: restoreConfig{},
		Examples: []restoreConfig{{}, {FaceEnhance: true}},
		Bad:      []string{`{"face_enhance": "yes"}`, `{"face_enhance": 1}`},
		Size: func(_ restoreConfig, src engine.Source) (width, height int) {
			return src.Width, src.Height
		},
		Fits:    fits,
		Measure: o.Measure,
		Memory: func(c restoreConfig, task engine.Task) int64 {
			return o.memory(task) + o.restoreMemory() + o.netMemory(neural.Restore) + o.facesMemory(c.FaceEnhance)
		},
		Process: o.restore,
	})
}

// restoreMemory is what restoring takes beside decoding and encoding.
func (o Options) restoreMemory() int64 {
	f := o.cleanerFilter(neural.Restore)
	f.margin, f.scratchBytes = restoreMarginMost, f.scratchBytes+deconvolutionBytes
	const looking = 16 * scratchPixels * 4 // the reduced picture and what is found on it
	return f.memory() + looking
}

func (o Options) restore(ctx context.Context, c restoreConfig, task engine.Task) (engine.Output, error) {
	return o.filtered(ctx, "restore", task, func(ctx context.Context, source *picture) (prepared, error) {
		r, err := o.restoring(ctx, source, task.Input)
		if err != nil {
			return prepared{}, err
		}
		prep := r.prepared()
		prep.faces = c.FaceEnhance
		return prep, nil
	})
}

// restoration is what is wrong with a picture and what is done about it, in the order of the fields; nil is nothing.
type restoration struct {
	scratches *scratches
	clean     *cleaner
	sharpen   *deconvolution
	tone      *tone

	grey  bool
	facts map[string]any
	steps []string
}

// coarse is the quantiser's mean step from which a JPEG's artefacts are removed: it is that of quality 84. Above, they are hardly seen, and
// removing them would cost more detail than it gains.
const coarse = 4.0

// restoring looks for what is wrong.
func (o Options) restoring(ctx context.Context, source *picture, path string) (*restoration, error) {
	r := &restoration{grey: source.grey, facts: map[string]any{}}
	noise, err := measureNoise(ctx, source.raster)
	if err != nil {
		return nil, err
	}
	small, err := source.shrunk(ctx, scratchPixels)
	if err != nil {
		return nil, err
	}
	var report toneReport
	r.tone, report = toneOf(small, source.width, source.height, source.grey)
	r.lookForScratches(small, source)
	artefacts := o.artefacts(source, path, r)
	r.facts["noise"] = hundredths(max(noise.luma, noise.chroma) * 255)
	total := noise
	noisy := max(noise.luma, noise.chroma)*255 >= noiseLeast
	if artefacts.luma > 0 {
		// Of noise, coarse coding leaves less than it makes itself; and what is found may be its traces.
		total, noisy = artefacts, false
	}
	if noisy {
		r.steps = append(r.steps, "noise")
	}
	if noisy || artefacts.luma > 0 {
		r.clean = o.cleaner(neural.Restore, source, total)
	}
	blur, err := measureBlur(ctx, source.raster, total.bright(source.grey))
	if err != nil {
		return nil, err
	}
	r.facts["blur"] = math.Round(blur*100) / 100
	// Soft photos only, and lightly: to sharpen is another tool's.
	const soft, part, most = 1.8, 0.5, 1.5
	if blur >= soft {
		left := total
		left.luma, left.chroma = left.luma/3, left.chroma/3 // of the noise, once it is removed
		r.sharpen = newDeconvolution(min(part*blur, most), left, source.grey)
		r.facts["sharpened_by"] = math.Round(r.sharpen.blur*100) / 100
		r.steps = append(r.steps, "sharpen")
	}
	if r.tone != nil {
		r.facts["gain"], r.facts["tint"], r.facts["gamma"], r.facts["local_contrast"] = report.gain, report.tint, report.gamma, report.contrast
		r.steps = append(r.steps, "fading")
	}
	return r, nil
}

// lookForScratches looks for them where they occur: on photos without colours, or with faded ones.
func (r *restoration) lookForScratches(small *patch, source *picture) {
	if source.alpha || (!source.grey && r.tone == nil && !colourless(small)) {
		return
	}
	bright := make([]float32, len(small.planes[0]))
	luma(bright, small.planes[0], small.planes[1], small.planes[2])
	found := findScratches(bright, small.width, small.height)
	if found == nil {
		return
	}
	found.fit(source.width, source.height)
	r.scratches = found
	r.steps = append(r.steps, "scratches")
	r.facts["scratches"], r.facts["dust"], r.facts["filled"] = found.lines, found.spots, math.Round(found.share*1e5)/1e5
}

// colourless says that a picture's colours are all of one hue, as of a toned print, or none.
func colourless(p *patch) bool {
	var u, v, uu, vv float64
	n := float64(len(p.planes[0]))
	for i, red := range p.planes[0] {
		_, a, b := opponent(red, p.planes[1][i], p.planes[2][i])
		u, v = u+float64(a), v+float64(b)
		uu, vv = uu+float64(a)*float64(a), vv+float64(b)*float64(b)
	}
	const most = 0.025
	return math.Sqrt(max(uu/n-u/n*u/n, 0))+math.Sqrt(max(vv/n-v/n*v/n, 0)) < most
}

// artefacts is the noise that stands for those of the source's JPEG coding; none when it is no JPEG or a fine one.
func (o Options) artefacts(source *picture, path string, r *restoration) noiseModel {
	if source.header.format != "jpeg" {
		return noiseModel{}
	}
	q, err := readQuantiser(path)
	if err != nil {
		return noiseModel{} // tables in an odd place are no reason to fail
	}
	r.facts["jpeg_quality"] = q.quality()
	if q.luma < coarse {
		return noiseModel{}
	}
	r.steps = append(r.steps, "jpeg")
	return q.noise(source.grey)
}

// restoreMarginMost is the widest margin: of the fill, of denoising, and of sharpening.
const restoreMarginMost = scratchReachMost + 48 + deconvolutionRadiusMost

// prepared makes the filter of the steps.
func (r *restoration) prepared() prepared {
	switch {
	case r.clean != nil:
		r.clean.describe(r.facts)
	case len(r.steps) > 0:
		r.facts["method"] = "classical"
	default:
		r.facts["method"] = "none"
		return prepared{facts: r.facts}
	}
	r.facts["steps"] = r.steps
	inner := 0 // what the steps after denoising need around each pixel
	if r.sharpen != nil {
		inner = deconvolutionRadiusMost
	}
	margin := inner
	f := filter{scratchBytes: deconvolutionBytes}
	if r.clean != nil {
		clean := r.clean.filter()
		margin += clean.margin
		f.scratchBytes += clean.scratchBytes
		f.square = clean.square
	}
	if r.scratches != nil {
		margin += scratchReachMost
	}
	f.margin = margin
	f.apply = func(ctx context.Context, worker int, p *patch) error {
		return r.apply(ctx, worker, p, margin-inner)
	}
	return prepared{filter: f, facts: r.facts}
}

// apply restores a patch. margin is that of the steps up to denoising.
func (r *restoration) apply(ctx context.Context, worker int, p *patch, margin int) error {
	if r.scratches != nil {
		r.scratches.fill(p)
	}
	if r.clean != nil {
		if err := r.clean.apply(ctx, worker, p, margin); err != nil {
			return err
		}
	}
	if r.sharpen != nil {
		if err := r.sharpen.apply(ctx, p); err != nil {
			return err
		}
	}
	if r.tone != nil {
		r.tone.apply(p)
	}
	return nil
}
