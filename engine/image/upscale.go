package image

import (
	"context"
	"fmt"

	"enlarger/engine"
)

type upscaleConfig struct {
	Scale       int  `json:"scale" doc:"How many times wider and higher the output is." enum:"2,4,8"`
	FaceEnhance bool `json:"face_enhance" doc:"Restore faces as well."`
}

func upscaleTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[upscaleConfig]{
		Name:     "upscale",
		Media:    engine.Image,
		Doc:      "Enlarges an image 2, 4 or 8 times. Transparency and 16-bit depth are kept where the output format can hold them.",
		Defaults: upscaleConfig{Scale: 2},
		Examples: []upscaleConfig{{Scale: 2}, {Scale: 4, FaceEnhance: true}, {Scale: 8}},
		Bad:      []string{`{"scale": 3}`, `{"scale": "2"}`, `{"scale": 2.5}`, `{"scale": 0}`, `{"face_enhance": "yes"}`},
		Size: func(c upscaleConfig, src engine.Source) (width, height int) {
			return src.Width * c.Scale, src.Height * c.Scale
		},
		Fits:    fits,
		Measure: o.Measure,
		Memory: func(c upscaleConfig, task engine.Task) int64 {
			need := o.memory(task) + o.facesMemory(c.FaceEnhance)
			if n := o.netUpscaler(c.Scale); n != nil && task.Source.Known() {
				need += n.memory(task.Source.Width, task.Source.Height)
			}
			return need
		},
		Process: o.upscale,
	})
}

// decodedPart is the part of the progress that decoding is given.
const decodedPart = 0.1

func (o Options) upscale(ctx context.Context, c upscaleConfig, task engine.Task) (engine.Output, error) {
	if err := fits(task.Plan); err != nil {
		return engine.Output{}, err
	}
	done := &progress{report: task.Progress}
	source, err := o.open(ctx, task.Input, task.Scratch)
	if err != nil {
		return engine.Output{}, err
	}
	defer source.Close()
	done.reach(decodedPart)

	l := look{width: source.width * c.Scale, height: source.height * c.Scale, deep: source.deep, alpha: source.alpha, grey: source.grey}
	if l.width != task.Plan.Width || l.height != task.Plan.Height {
		return engine.Output{}, fmt.Errorf("upscale: output is %dx%d, planned %dx%d", l.width, l.height, task.Plan.Width, task.Plan.Height)
	}
	out, err := o.create(ctx, task.Output, task.Plan.Format, l)
	if err != nil {
		return engine.Output{}, err
	}
	how, err := o.enlarger(ctx, c.Scale, task.Input, source)
	var faces faceResult
	if err == nil && c.FaceEnhance {
		faces, err = o.restoreFaces(ctx, faceJob{source: source.raster, scale: c.Scale, quality: source.codingQuality(task.Input), enlarge: how.band, enlargeClean: how.bandClean})
		out.overlays = faces.overlays
	}
	var result engine.Output
	if err == nil {
		result, err = how.enlarge(ctx, source, out, done)
	}
	if err != nil {
		out.abort()
		if ctx.Err() != nil {
			return engine.Output{}, fmt.Errorf("upscale: %w", context.Cause(ctx))
		}
		return engine.Output{}, fmt.Errorf("upscale: %w", err)
	}
	result.Warnings = source.warnings
	if out.flatten {
		result.Warnings = append(result.Warnings, "A jpg has no transparency; the image was laid on white. Use png or webp to keep it.")
	}
	result.Facts = map[string]any{
		"method": how.method, "scale": c.Scale, "bits": outputBits(out.deep),
		"source_format": source.header.format, "source_width": source.width, "source_height": source.height,
	}
	if c.FaceEnhance {
		withFacts(result.Facts, faces)
	}
	if how.model != "" {
		result.Facts["model"], result.Facts["model_strength"] = how.model, how.strength
	}
	done.reach(1)
	return result, nil
}

// enlarger is a way of enlarging.
type enlarger struct {
	scale int
	// method and model are for the job's output; model is "" when there is none. strength is how much of its answer is taken.
	method, model string
	strength      float64
	// rows is how many output rows to make at a time.
	rows func(stride, width, height int) int
	// band makes the output rows from y as far as out reaches.
	band func(ctx context.Context, src *raster, y int, out []byte, deep bool) error
	// bandClean is, where band is for rough sources, that for clean ones.
	bandClean func(ctx context.Context, src *raster, y int, out []byte, deep bool) error
}

// enlarger chooses by what is measured of the source: models where there are some that help, or else the classical method.
func (o Options) enlarger(ctx context.Context, scale int, input string, source *picture) (enlarger, error) {
	n, err := o.netUpscalerFor(ctx, scale, input, source)
	if err != nil {
		return enlarger{}, err
	}
	if n != nil {
		how := enlarger{
			scale: scale, method: "neural", model: n.name(), strength: hundredths(n.strength), band: n.band,
			rows: func(_, width, height int) int { return n.rows(width, height) * scale },
		}
		if n.models[0].Variant() == photo {
			if clean := o.netUpscaler(scale, "quality", "fast"); clean.models[0] != n.models[0] {
				how.bandClean = clean.band
			}
		}
		return how, nil
	}
	u, tiles := newUpscaler(scale), make([]tile, processors())
	return enlarger{
		scale: scale, method: "lanczos+backprojection",
		rows: func(stride, _, height int) int { return bandRows(stride, height*scale) },
		band: func(ctx context.Context, src *raster, y int, out []byte, deep bool) error {
			return u.band(ctx, src, y, out, deep, tiles)
		},
	}, nil
}

// enlarge makes and writes the output band by band.
func (e enlarger) enlarge(ctx context.Context, source *picture, out *encoder, done *progress) (engine.Output, error) {
	height := source.height * e.scale
	stride := source.width * e.scale * bytesPerPixel(out.deep)
	rows := e.rows(stride, source.width, source.height)
	band := make([]byte, rows*stride)
	for y := 0; y < height; y += rows {
		part := band[:min(rows, height-y)*stride]
		if err := e.band(ctx, source.raster, y, part, out.deep); err != nil {
			return engine.Output{}, err
		}
		if err := out.write(ctx, part); err != nil {
			return engine.Output{}, err
		}
		const writtenPart = 0.98 // the rest is for what an encoder does at its end
		done.reach(decodedPart + (writtenPart-decodedPart)*float64(y+len(part)/stride)/float64(height))
	}
	return out.finish()
}

// bandRows is how many output rows of so many bytes are made at a time: a multiple of 16, which every scale and the blocks of a
// JPEG divide, and of the tile height unless rows are very long.
func bandRows(stride, height int) int {
	const usual, most = 4 << 20, 32 << 20
	const unit = 16
	rows := max(usual/stride/tileHeight*tileHeight, tileHeight)
	if rows*stride > most {
		rows = max(most/stride/unit*unit, unit)
	}
	return min(rows, height)
}

func outputBits(deep bool) int {
	if deep {
		return 16
	}
	return 8
}

// memory estimates the peak bytes of a run, those of an ffmpeg child included.
func (o Options) memory(task engine.Task) int64 {
	// Tiles, bands and deflate, and what the runtime keeps free between collections: half as much as is in use.
	const base = 64 << 20
	slack := func(bytes int64) int64 { return bytes * 3 / 2 }
	if !task.Source.Known() || !task.Plan.Known() {
		return base + slack(2*heapMost)
	}
	pixels := int64(task.Source.Width) * int64(task.Source.Height)
	// Depth and coding are not known here, so the worst of each format counts.
	h := header{format: task.Source.Format, width: task.Source.Width, height: task.Source.Height, deep: true, samples: 1.5, progressive: true}
	decoder := decoderBytes(h, task.Source.Size)
	need := base + slack(min(decoder+int64(bytesPerPixel(true))*pixels, heapMost))
	if decoder > heapMost || h.format == "avif" {
		const childPixel = 16 // its frame, and the same converted
		need += childPixel * pixels
	}
	if task.Plan.Format == "webp" {
		const encodePixel = 12 // the rows, the library's planes and what it codes into
		need += encodePixel * task.Plan.Pixels()
	}
	return need
}
