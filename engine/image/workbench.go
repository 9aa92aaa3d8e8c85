package image

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"enlarger/engine"
)

// workbench carries out a plan: the picture as it is, and the filters that wait to be applied to it. Filters in a row are applied
// together, square by square in floating point, so that five corrections of colour cost one pass and round once.
type workbench struct {
	options Options
	scratch string
	picture *picture
	// path is the source's file as long as the picture is what lies in it.
	path    string
	waiting []filter
	// facts are what single steps have to say.
	facts map[string]any
	// grey and coloured are what the waiting filters do to the colours.
	grey, coloured bool
	// alpha says that a waiting filter makes parts transparent.
	alpha    bool
	warnings []string
}

// workMargin is the most pixels around a square that waiting filters may ask for together; more are applied one after the other.
const workMargin = 240

// run carries out the steps and writes the output.
func (w *workbench) run(ctx context.Context, steps []step, task engine.Task, done *progress) (engine.Output, error) {
	deep := w.picture.deep
	header, warnings := w.picture.header, w.picture.warnings
	width, height := w.picture.width, w.picture.height
	const steppedPart = 0.8
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return engine.Output{}, err
		}
		if err := w.step(ctx, s); err != nil {
			return engine.Output{}, err
		}
		done.reach(decodedPart + (steppedPart-decodedPart)*float64(i+1)/float64(len(steps)))
	}
	result, err := w.finishAs(ctx, task, deep, func(part float64) { done.reach(steppedPart + (0.98-steppedPart)*part) })
	if err != nil {
		return engine.Output{}, err
	}
	result.Warnings = slices.Concat(warnings, w.warnings, result.Warnings)
	facts := map[string]any{
		"method": "prompt", "plan": planFacts(steps), "source_format": header.format, "source_width": width, "source_height": height,
	}
	maps.Copy(facts, w.facts)
	maps.Copy(facts, result.Facts)
	result.Facts = facts
	return result, nil
}

// step carries out one step, or lays its filter with those that wait.
func (w *workbench) step(ctx context.Context, s step) error {
	width, height := s.size(w.picture.width, w.picture.height)
	switch s.op {
	case opRotate, opFlip:
		return w.turn(ctx, s)
	case opCrop:
		return w.crop(ctx, s)
	case opResize, opFit:
		if s.op == opResize && s.width > 0 && s.height > 0 { // no distortion: what is too much of one side goes
			if err := w.crop(ctx, step{op: opCrop, width: s.width, height: s.height, way: "center"}); err != nil {
				return err
			}
		}
		return w.toSize(ctx, width, height)
	case opUpscale:
		return w.toSize(ctx, width, height)
	case opBorder:
		return w.border(ctx, s)
	case opDenoise, opSharpen, opRestore, opEnhance, opCartoonize, opBackground:
		return w.prepare(ctx, s)
	}
	full := canvas{w.picture.width, w.picture.height}
	w.lay(ctx, toneFilter(s, full))
	w.grey = w.grey || s.op == opGrayscale
	if s.op == opSepia || s.op == opVintage || s.op == opTemperature || s.op == opTint {
		w.grey, w.coloured = false, true
	}
	if s.op == opBlur {
		return w.blur(ctx, s)
	}
	return nil
}

// lay puts a filter with those that wait.
func (w *workbench) lay(_ context.Context, f filter) {
	if f.apply != nil {
		w.waiting = append(w.waiting, f)
	}
}

// apply makes the waiting filters real, for what needs the whole picture.
func (w *workbench) apply(ctx context.Context) error {
	if len(w.waiting) == 0 {
		return nil
	}
	f := inRow(w.waiting)
	grey, alpha := w.isGrey(), w.picture.alpha || w.alpha
	const deep = true // a picture between two steps is not rounded to 8 bits
	err := w.replace(w.picture.width, w.picture.height, deep, func(to *raster) error {
		return filterBands(ctx, w.picture.raster, f, deep, func(y int, band []byte) error { return to.write(y, band) })
	})
	if err != nil {
		return err
	}
	w.picture.grey, w.picture.alpha = grey, alpha
	w.waiting, w.grey, w.coloured, w.alpha = nil, false, false, false
	return nil
}

func (w *workbench) isGrey() bool { return (w.picture.grey || w.grey) && !w.coloured }

// inRow is one filter that applies several, one after the other.
func inRow(all []filter) filter {
	if len(all) == 1 {
		return all[0]
	}
	one := filter{}
	for _, f := range all {
		one.margin += f.margin
		one.scratchBytes = max(one.scratchBytes, f.scratchBytes)
	}
	one.apply = func(ctx context.Context, worker int, p *patch) error {
		for _, f := range all {
			if err := f.apply(ctx, worker, p); err != nil {
				return err
			}
		}
		return nil
	}
	return one
}

// replace makes the picture's successor and gives the picture back.
func (w *workbench) replace(width, height int, deep bool, fill func(*raster) error) error {
	bytes := int64(width) * int64(height) * int64(bytesPerPixel(deep))
	to, err := newRaster(w.scratch, width, height, deep, bytes > w.options.heap)
	if err != nil {
		return err
	}
	to.grey, to.alpha = w.picture.grey, w.picture.alpha
	if err := fill(to); err != nil {
		to.Close()
		return err
	}
	w.picture.Close()
	w.picture, w.path = &picture{raster: to, header: w.picture.header}, ""
	return nil
}

// turn rotates and mirrors.
func (w *workbench) turn(ctx context.Context, s step) error {
	if err := w.apply(ctx); err != nil {
		return err
	}
	orientation := map[float64]int{90: 6, 180: 3, 270: 8}[s.amount] // as EXIF counts them
	if s.op == opFlip {
		orientation = map[string]int{"horizontal": 2, "vertical": 4}[s.way]
	}
	if orientation == 0 {
		orientation = map[string]int{"top": 4, "bottom": 4}[s.way]
	}
	turned, err := w.picture.orient(ctx, max(orientation, 2), w.scratch)
	if err != nil {
		return err
	}
	w.picture, w.path = &picture{raster: turned, header: w.picture.header}, ""
	return nil
}

// crop keeps a box of the picture.
func (w *workbench) crop(ctx context.Context, s step) error {
	x, y, width, height := s.box(w.picture.width, w.picture.height)
	if width == w.picture.width && height == w.picture.height {
		return nil
	}
	if err := w.apply(ctx); err != nil {
		return err
	}
	from := w.picture.raster
	return w.replace(width, height, from.deep, func(to *raster) error {
		row := make([]byte, width*from.pixelBytes())
		for line := range height {
			if line%256 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			if err := from.read(x, y+line, row); err != nil {
				return err
			}
			if err := to.write(line, row); err != nil {
				return err
			}
		}
		return nil
	})
}

// toSize gives the picture another size, with the means of the upscale tool where it becomes larger.
func (w *workbench) toSize(ctx context.Context, width, height int) error {
	const clearly = 1.2
	if float64(width) > clearly*float64(w.picture.width) && float64(height) > clearly*float64(w.picture.height) {
		return w.enlarge(ctx, width, height)
	}
	return w.resize(ctx, width, height)
}

// resize gives the picture another size.
func (w *workbench) resize(ctx context.Context, width, height int) error {
	if width == w.picture.width && height == w.picture.height {
		return nil
	}
	if err := w.apply(ctx); err != nil {
		return err
	}
	bytes := int64(width) * int64(height) * int64(w.picture.pixelBytes())
	to, err := w.picture.resized(ctx, width, height, w.scratch, bytes > w.options.heap)
	if err != nil {
		return err
	}
	w.picture.Close()
	w.picture, w.path = &picture{raster: to, header: w.picture.header}, ""
	return nil
}

// enlarge brings the picture to a larger size by the upscale tool's classical method, and what is no power of two to its size after it.
func (w *workbench) enlarge(ctx context.Context, width, height int) error {
	if err := w.apply(ctx); err != nil {
		return err
	}
	const most = 8
	scale := 2
	for scale < most && (w.picture.width*scale < width || w.picture.height*scale < height) {
		scale *= 2
	}
	if int64(w.picture.width*scale)*int64(w.picture.height*scale) > w.options.SourcePixels {
		return w.resize(ctx, width, height)
	}
	from, u := w.picture.raster, newUpscaler(scale)
	tiles := make([]tile, processors())
	err := w.replace(from.width*scale, from.height*scale, from.deep, func(to *raster) error {
		stride := to.width * to.pixelBytes()
		rows := bandRows(stride, to.height)
		band := make([]byte, rows*stride)
		for y := 0; y < to.height; y += rows {
			part := band[:min(rows, to.height-y)*stride]
			if err := u.band(ctx, from, y, part, to.deep, tiles); err != nil {
				return err
			}
			if err := to.write(y, part); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return w.resize(ctx, width, height)
}

// border lays the picture on a plain one that is larger.
func (w *workbench) border(ctx context.Context, s step) error {
	if err := w.apply(ctx); err != nil {
		return err
	}
	from := w.picture.raster
	edge := s.edge(from.width, from.height)
	pixel := make([]byte, 0, 8)
	for _, v := range []byte{s.colour[0], s.colour[1], s.colour[2], 255} {
		pixel = append(pixel, v)
		if from.deep {
			pixel = append(pixel, v)
		}
	}
	err := w.replace(from.width+2*edge, from.height+2*edge, from.deep, func(to *raster) error {
		plain := slices.Repeat(pixel, to.width)
		row := make([]byte, len(plain))
		for y := range to.height {
			if y%256 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			copy(row, plain)
			if line := y - edge; line >= 0 && line < from.height {
				size := from.pixelBytes()
				if err := from.read(0, line, row[edge*size:(edge+from.width)*size]); err != nil {
					return err
				}
			}
			if err := to.write(y, row); err != nil {
				return err
			}
		}
		return nil
	})
	if s.colour[0] != s.colour[1] || s.colour[1] != s.colour[2] {
		w.picture.grey = false
	}
	return err
}

// blur is laid like a tone, but a wide one is computed on a reduced picture, so that it costs no more.
func (w *workbench) blur(ctx context.Context, s step) error {
	long := float64(max(w.picture.width, w.picture.height))
	sigma := max(0.03*s.amount*long, 0.6)
	const widest = workMargin / 3
	if sigma <= widest/4 {
		f := blurFilter(sigma)
		if w.margin()+f.margin > workMargin {
			if err := w.apply(ctx); err != nil {
				return err
			}
		}
		w.lay(ctx, f)
		return nil
	}
	if err := w.apply(ctx); err != nil {
		return err
	}
	f, err := wideBlur(ctx, w.picture.raster, sigma)
	w.lay(ctx, f)
	return err
}

func (w *workbench) margin() int {
	sum := 0
	for _, f := range w.waiting {
		sum += f.margin
	}
	return sum
}

// prepare lays the filter of another tool, which looks at the whole picture first.
func (w *workbench) prepare(ctx context.Context, s step) error {
	if err := w.apply(ctx); err != nil {
		return err
	}
	prep, err := w.options.prepareStep(ctx, w.picture, w.path, s)
	if err != nil {
		return fmt.Errorf("%s: %w", s.op, err)
	}
	w.lay(ctx, prep.filter)
	w.grey, w.coloured = w.grey || prep.grey, w.coloured || prep.coloured
	if prep.transparent {
		w.alpha = prep.filter.apply != nil
	}
	w.warnings = append(w.warnings, prep.warnings...)
	if len(prep.facts) > 0 {
		if w.facts == nil {
			w.facts = map[string]any{}
		}
		w.facts[s.op] = prep.facts
	}
	if prep.filter.margin > 0 { // it may count on squares of its own
		return w.apply(ctx)
	}
	return nil
}

// finishAs writes the output; deep asks for 16 bits where the format has them.
func (w *workbench) finishAs(ctx context.Context, task engine.Task, deep bool, done func(float64)) (engine.Output, error) {
	if w.picture.width != task.Plan.Width || w.picture.height != task.Plan.Height {
		return engine.Output{}, fmt.Errorf("output is %dx%d, planned %dx%d", w.picture.width, w.picture.height, task.Plan.Width, task.Plan.Height)
	}
	l := look{width: w.picture.width, height: w.picture.height, deep: deep, alpha: w.picture.alpha || w.alpha, grey: w.isGrey()}
	out, err := w.options.create(ctx, task.Output, task.Plan.Format, l)
	if err != nil {
		return engine.Output{}, err
	}
	f := filter{}
	if len(w.waiting) > 0 {
		f = inRow(w.waiting)
	}
	result, err := w.options.write(ctx, w.picture, f, out, done)
	if err != nil {
		out.abort()
		return engine.Output{}, err
	}
	if out.flatten {
		result.Warnings = append(result.Warnings, flattenWarning)
	}
	result.Facts = map[string]any{"bits": outputBits(out.deep)}
	return result, nil
}

// finish is finishAs in the depth of the picture.
func (w *workbench) finish(ctx context.Context, task engine.Task, done func(float64)) (engine.Output, error) {
	return w.finishAs(ctx, task, w.picture.deep, done)
}

// encode writes a picture to a file as it is.
func (o Options) encode(ctx context.Context, r *raster, path, format string, deep bool) error {
	out, err := o.create(ctx, path, format, look{width: r.width, height: r.height, deep: deep, alpha: r.alpha, grey: r.grey})
	if err != nil {
		return err
	}
	if _, err := o.write(ctx, &picture{raster: r}, filter{}, out, func(float64) {}); err != nil {
		out.abort()
		return err
	}
	return nil
}
