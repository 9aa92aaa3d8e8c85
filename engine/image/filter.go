package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"

	"enlarger/engine"
)

// patch is a rectangle of a picture as float planes: gamma-encoded sRGB of 0 to 1, premultiplied by alpha, row after row without
// gaps. Beyond the picture its edge goes on.
type patch struct {
	// x and y are where the patch's first sample lies in the picture; they are negative in a margin beyond its edge.
	x, y          int
	width, height int
	// planes are red, green, blue and alpha. All have a memory of their own, also in a grey or an opaque picture, where alpha
	// is 1 everywhere.
	planes [4][]float32
}

// load fills the patch from the picture with what lies in the rectangle. t is the memory of one worker.
func (p *patch) load(src *raster, t *tile, x, y, width, height int) error {
	if err := t.load(src, x, y, width, height, []int{0, 1, 2, 3}); err != nil {
		return err
	}
	p.x, p.y, p.width, p.height = x, y, width, height
	copy(p.planes[:], t.low[:])
	return nil
}

// patchOf reads a rectangle of the picture, which may reach beyond it.
func patchOf(src *raster, x, y, width, height int) (*patch, error) {
	p := new(patch)
	return p, p.load(src, new(tile), x, y, width, height)
}

// filter computes every pixel of an output as large as its source from what lies no more than margin pixels around it.
type filter struct {
	margin int
	// apply changes the planes of a patch in place. What it leaves in the outermost margin pixels does not count. It may be
	// called by several goroutines at once, each with a worker number of its own below processors().
	apply func(ctx context.Context, worker int, p *patch) error
	// scratchBytes is what apply takes beside the patch, in bytes for a pixel of it.
	scratchBytes int64
	// square is the side of the squares, a multiple of 16; 0 lets the margin decide.
	square int
}

// side is the width and height of the squares that a filter works on: large enough that the margins stay a small part.
func (f filter) side() int {
	const least, most, unit = 256, 1024, 16
	if f.square > 0 {
		return f.square
	}
	return min(max(least, 6*f.margin), most) / unit * unit
}

// memory estimates the bytes that applying the filter takes on all processors.
func (f filter) memory() int64 {
	side := int64(f.side() + 2*f.margin)
	const planeBytes = 4 * 4
	return int64(processors()) * side * side * (planeBytes + f.scratchBytes)
}

// prepared is what a tool decided after a look at the whole picture.
type prepared struct {
	filter filter
	// facts and warnings are for the job's output.
	facts    map[string]any
	warnings []string
	// deep asks for 16-bit output where the format has it, although the source has 8.
	deep bool
	// grey says that the output of a coloured source is grey; coloured that of a grey source is not.
	grey, coloured bool
	// transparent says that the output has transparent parts although the source may have none.
	transparent bool
	// faces asks that faces be restored as well.
	faces bool
}

// filtered is the body of a tool whose output has the size of its source: decode, let the tool look at the picture, filter it
// square by square and write it band by band.
func (o Options) filtered(ctx context.Context, name string, task engine.Task, prepare func(context.Context, *picture) (prepared, error)) (engine.Output, error) {
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
	if source.width != task.Plan.Width || source.height != task.Plan.Height {
		return engine.Output{}, fmt.Errorf("%s: source is %dx%d, planned %dx%d", name, source.width, source.height, task.Plan.Width, task.Plan.Height)
	}
	prep, err := prepare(ctx, source)
	if err != nil {
		return engine.Output{}, wrapRun(ctx, name, err)
	}
	const preparedPart = 0.2
	done.reach(preparedPart)

	l := look{width: source.width, height: source.height, deep: source.deep || prep.deep, alpha: source.alpha || prep.transparent, grey: (source.grey || prep.grey) && !prep.coloured}
	out, err := o.create(ctx, task.Output, task.Plan.Format, l)
	if err != nil {
		return engine.Output{}, err
	}
	var faces faceResult
	if prep.faces {
		faces, err = o.restoreFaces(ctx, faceJob{source: source.raster, scale: 1, filter: prep.filter})
		out.overlays = faces.overlays
	}
	if err != nil {
		out.abort()
		return engine.Output{}, wrapRun(ctx, name, err)
	}
	result, err := o.write(ctx, source, prep.filter, out, func(part float64) { done.reach(preparedPart + (0.98-preparedPart)*part) })
	if err != nil {
		out.abort()
		return engine.Output{}, wrapRun(ctx, name, err)
	}
	result.Warnings = slices.Concat(source.warnings, prep.warnings)
	if out.flatten {
		result.Warnings = append(result.Warnings, flattenWarning)
	}
	result.Facts = map[string]any{
		"bits": outputBits(out.deep), "source_format": source.header.format, "source_width": source.width, "source_height": source.height,
	}
	maps.Copy(result.Facts, prep.facts)
	if prep.faces {
		withFacts(result.Facts, faces)
	}
	done.reach(1)
	return result, nil
}

// flattenWarning tells a client of a lost transparency.
const flattenWarning = "A jpg has no transparency; the image was laid on white. Use png or webp to keep it."

// wrapRun says which tool failed, and puts the reason of a cancel in place of what it broke.
func wrapRun(ctx context.Context, name string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", name, context.Cause(ctx))
	}
	if _, ok := engine.AsFailure(err); ok {
		return err
	}
	return fmt.Errorf("%s: %w", name, err)
}

// write filters the picture and writes it, a band of squares at a time.
func (o Options) write(ctx context.Context, source *picture, f filter, out *encoder, done func(float64)) (engine.Output, error) {
	err := filterBands(ctx, source.raster, f, out.deep, func(y int, band []byte) error {
		if err := out.write(ctx, band); err != nil {
			return err
		}
		done(float64(y+len(band)/(source.width*bytesPerPixel(out.deep))) / float64(source.height))
		return nil
	})
	if err != nil {
		return engine.Output{}, err
	}
	return out.finish()
}

// filterBands filters a picture and hands it on, a band of squares at a time from the top, with pixels of 8 or 16 bits as deep says. emit may change
// a band but not keep it.
func filterBands(ctx context.Context, source *raster, f filter, deep bool, emit func(y int, band []byte) error) error {
	if f.apply == nil && deep == source.deep && !source.alpha {
		return plainBands(ctx, source, emit)
	}
	side := f.side()
	stride := source.width * bytesPerPixel(deep)
	band := make([]byte, min(side, source.height)*stride)
	across := (source.width + side - 1) / side
	tiles, patches := make([]tile, processors()), make([]patch, processors())
	for y := 0; y < source.height; y += side {
		rows := min(side, source.height-y)
		part := band[:rows*stride]
		err := parallel(ctx, across, func(worker, i int) error {
			x, p := i*side, &patches[worker]
			width := min(side, source.width-x)
			if err := p.load(source, &tiles[worker], x-f.margin, y-f.margin, width+2*f.margin, rows+2*f.margin); err != nil {
				return err
			}
			if f.apply != nil {
				if err := f.apply(ctx, worker, p); err != nil {
					return err
				}
			}
			for row := range rows {
				p.store(part[row*stride+x*bytesPerPixel(deep):][:width*bytesPerPixel(deep)], f.margin, f.margin+row, deep)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := emit(y, part); err != nil {
			return err
		}
	}
	return nil
}

// plainBands hands an opaque picture on as it is.
func plainBands(ctx context.Context, source *raster, emit func(y int, band []byte) error) error {
	const side = 256
	stride := source.width * source.pixelBytes()
	band := make([]byte, min(side, source.height)*stride)
	for y := 0; y < source.height; y += side {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := band[:min(side, source.height-y)*stride]
		if err := source.read(0, y, part); err != nil {
			return err
		}
		if err := emit(y, part); err != nil {
			return err
		}
	}
	return nil
}

// store writes the samples of a row from (x, y) of the patch as pixels of 8 or 16 bits, no longer premultiplied. A pixel whose alpha rounds to
// nothing becomes transparent black.
func (p *patch) store(out []byte, x, y int, deep bool) {
	at := y*p.width + x
	n := len(out) / bytesPerPixel(deep)
	red, green, blue, alpha := p.planes[0][at:][:n], p.planes[1][at:][:n], p.planes[2][at:][:n], p.planes[3][at:][:n]
	for i, a := range alpha {
		r, g, b := red[i], green[i], blue[i]
		if a < 1 {
			inverse := float32(0)
			if a > 0.25/65535 {
				inverse = 1 / a
			}
			r, g, b = r*inverse, g*inverse, b*inverse
		}
		if deep {
			v := uint64(code16(r))<<48 | uint64(code16(g))<<32 | uint64(code16(b))<<16 | uint64(code16(a))
			if v&0xFFFF == 0 {
				v = 0
			}
			binary.BigEndian.PutUint64(out[8*i:], v)
			continue
		}
		q := (*[4]byte)(out[4*i:])
		q[0], q[1], q[2], q[3] = code8(r), code8(g), code8(b), code8(a)
		if q[3] == 0 {
			q[0], q[1], q[2] = 0, 0, 0
		}
	}
}

// reduced is the whole picture with its long side made no longer than long pixels by averaging whole areas: what analyses look at.
func (r *raster) reduced(ctx context.Context, long int) (*patch, error) {
	shrink := max(1, float64(max(r.width, r.height))/float64(long))
	width, height := max(1, int(math.Round(float64(r.width)/shrink))), max(1, int(math.Round(float64(r.height)/shrink)))
	out := &patch{width: width, height: height}
	for c := range out.planes {
		out.planes[c] = make([]float32, width*height)
	}
	tiles := make([]tile, processors())
	err := parallel(ctx, height, func(worker, y int) error {
		t := &tiles[worker]
		top, bottom := y*r.height/height, max((y+1)*r.height/height, y*r.height/height+1)
		sums := [4][]float64{}
		for c := range sums {
			sums[c] = make([]float64, width)
		}
		for row := top; row < bottom; row++ {
			if err := t.load(r, 0, row, r.width, 1, []int{0, 1, 2, 3}); err != nil {
				return err
			}
			for c := range sums {
				for x := range width {
					for _, v := range t.low[c][x*r.width/width : max((x+1)*r.width/width, x*r.width/width+1)] {
						sums[c][x] += float64(v)
					}
				}
			}
		}
		for c := range sums {
			for x := range width {
				columns := max((x+1)*r.width/width-x*r.width/width, 1)
				out.planes[c][y*width+x] = float32(sums[c][x] / float64((bottom-top)*columns))
			}
		}
		return nil
	})
	return out, err
}

// filterMemory estimates the peak bytes of a tool that runs filtered: what decoding and encoding take, and the filter's own.
func (o Options) filterMemory(task engine.Task, f filter) int64 {
	return o.memory(task) + f.memory()
}
