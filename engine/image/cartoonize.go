package image

import (
	"context"
	"math"
	"slices"

	"enlarger/engine"
)

type cartoonizeConfig struct {
	Style       string `json:"style" doc:"The look of the output." enum:"anime,comic,sketch,watercolor,oil"`
	FaceEnhance bool   `json:"face_enhance" doc:"Restore faces as well."`
}

func cartoonizeTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[cartoonizeConfig]{
		Name:     "cartoonize",
		Media:    engine.Image,
		Doc:      "Redraws a photo as an anime frame, a comic panel, a pencil sketch, a watercolour or an oil painting. The size and the transparency stay.",
		Defaults: cartoonizeConfig{Style: "anime"},
		Examples: []cartoonizeConfig{{Style: "anime"}, {Style: "comic"}, {Style: "sketch"}, {Style: "watercolor", FaceEnhance: true}, {Style: "oil"}},
		Bad:      []string{`{"style": "cubism"}`, `{"style": ""}`, `{"style": 1}`, `{"style": "Anime"}`, `{"face_enhance": "yes"}`},
		Size: func(_ cartoonizeConfig, src engine.Source) (width, height int) {
			return src.Width, src.Height
		},
		Fits:    fits,
		Measure: o.Measure,
		Memory: func(c cartoonizeConfig, task engine.Task) int64 {
			return o.facesMemory(c.FaceEnhance) + o.filterMemory(task, filter{scratchBytes: cartoonScratch}) + cartoonMemory
		},
		Process: o.cartoonize,
	})
}

func (o Options) cartoonize(ctx context.Context, c cartoonizeConfig, task engine.Task) (engine.Output, error) {
	return o.filtered(ctx, "cartoonize", task, func(ctx context.Context, source *picture) (prepared, error) {
		if !c.FaceEnhance {
			return cartoonOf(ctx, source.raster, c.Style)
		}
		faces, err := o.enhanceFaces(ctx, source.raster)
		if err != nil {
			return prepared{}, err
		}
		prep, err := cartoonOf(ctx, source.raster, c.Style)
		prep.facts = withFacts(prep.facts, faces)
		return prep, err
	})
}

const (
	// cartoonPixels is the size that a look is composed at. Bigger pictures are composed small and drawn large: lines and the borders of
	// tones are cut sharp at full size, so that a photo of 12 megapixels looks like its reduction to one.
	cartoonPixels = 1_000_000
	// cartoonPlanes is the most planes of that size alive at the same time.
	cartoonPlanes = 20
	cartoonMemory = cartoonPlanes*4*cartoonPixels + 3*resizeBytes
	// cartoonScratch is what drawing takes in bytes for a pixel of a square.
	cartoonScratch = 8
)

// cartoon is a composed look, ready to be drawn at any place of the full size.
type cartoon struct {
	canvas
	// full is the size of the picture.
	full canvas
	// unit is the length on the canvas that is a pixel of a picture of one megapixel.
	unit float32
	// planes are what draw needs, with the size of the canvas.
	planes [][]float32
	// draw makes a row of colours. The place of pixel x on the canvas, in units, is (u0+x)*du and v: by its own number, not by steps, so
	// that it does not depend on where a square begins.
	draw func(in [][]float32, u0, du, v float32, red, green, blue []float32)
	grey bool
}

// cartoonOf composes a style for a picture.
func cartoonOf(ctx context.Context, source *raster, style string) (prepared, error) {
	return composed(ctx, source, style, cartoonPixels)
}

// composed composes a style at a size of no more than so many pixels.
func composed(ctx context.Context, source *raster, style string, pixels int) (prepared, error) {
	small, err := source.shrunk(ctx, pixels)
	if err != nil {
		return prepared{}, err
	}
	c := &cartoon{canvas: canvas{small.width, small.height}, full: canvas{source.width, source.height}}
	const leastUnit = 0.5 // below a quarter of a megapixel strokes stay as they are, or nobody could see them
	c.unit = float32(max(math.Sqrt(float64(small.width)*float64(small.height)/cartoonPixels), leastUnit))
	colours := small.uncovered()
	switch style {
	case "comic":
		err = c.comic(ctx, colours)
	case "sketch":
		err = c.sketch(ctx, colours)
	case "watercolor":
		err = c.watercolor(ctx, colours)
	case "oil":
		err = c.oil(ctx, colours)
	default:
		err = c.anime(ctx, colours)
	}
	if err != nil {
		return prepared{}, err
	}
	return prepared{
		filter: filter{apply: c.apply, scratchBytes: cartoonScratch}, grey: c.grey, coloured: !c.grey,
		facts: map[string]any{"method": "classical", "style": style, "composed_width": c.width, "composed_height": c.height},
	}, nil
}

// uncovered are the colours without alpha; where next to nothing is visible they are white.
func (p *patch) uncovered() [3][]float32 {
	const least = 1.0 / 64
	for i, a := range p.planes[3] {
		switch {
		case a >= 1:
		case a < least:
			p.planes[0][i], p.planes[1][i], p.planes[2][i] = 1, 1, 1
		default:
			for c := range 3 {
				p.planes[c][i] = min(p.planes[c][i]/a, 1)
			}
		}
	}
	return [3][]float32{p.planes[0], p.planes[1], p.planes[2]}
}

// apply draws a square.
func (c *cartoon) apply(ctx context.Context, _ int, p *patch) error {
	step := float32(c.width) / float32(c.full.width) / c.unit
	return c.eachDrawn(ctx, p, func(in [][]float32, y int, out [4][]float32) {
		v := (float32(y) + 0.5) * float32(c.height) / float32(c.full.height) / c.unit
		c.draw(in, float32(p.x)+0.5, step, v, out[0], out[1], out[2])
		for x, a := range out[3] {
			out[0][x], out[1][x], out[2][x] = hem(out[0][x], 1)*a, hem(out[1][x], 1)*a, hem(out[2][x], 1)*a
		}
	})
}

// eachDrawn enlarges the planes to the rows of a square, one after the other. y counts from the top of the picture.
func (c *cartoon) eachDrawn(ctx context.Context, p *patch, draw func(in [][]float32, y int, out [4][]float32)) error {
	stepX, stepY := float32(c.width)/float32(c.full.width), float32(c.height)/float32(c.full.height)
	across := cubicTaps(p.x, p.width, stepX, c.width)
	left, right := across[0].at[0], across[p.width-1].at[3]
	column := make([]float32, right-left+1)
	in := make([][]float32, len(c.planes))
	for i := range in {
		in[i] = make([]float32, p.width)
	}
	for row := range p.height {
		if err := ctx.Err(); err != nil {
			return err
		}
		down := cubicTaps(p.y+row, 1, stepY, c.height)[0]
		for i, plane := range c.planes {
			for x := range column {
				at := left + x
				column[x] = plane[down.at[0]*c.width+at]*down.w[0] + plane[down.at[1]*c.width+at]*down.w[1] +
					plane[down.at[2]*c.width+at]*down.w[2] + plane[down.at[3]*c.width+at]*down.w[3]
			}
			for x := range in[i] {
				t := &across[x]
				in[i][x] = column[t.at[0]-left]*t.w[0] + column[t.at[1]-left]*t.w[1] + column[t.at[2]-left]*t.w[2] + column[t.at[3]-left]*t.w[3]
			}
		}
		out := [4][]float32{}
		for i := range out {
			out[i] = p.planes[i][row*p.width:][:p.width]
		}
		draw(in, p.y+row, out)
	}
	return nil
}

// cubicTap is four neighbours on the canvas with their weights.
type cubicTap struct {
	at [4]int
	w  [4]float32
}

// cubicTaps are the cubic B-spline's and Catmull-Rom's weights in halves (Mitchell's family: sharp without rings) for n pixels of the full size from first on.
func cubicTaps(first, n int, step float32, size int) []cubicTap {
	all := make([]cubicTap, n)
	for i := range all {
		center := (float64(first+i)+0.5)*float64(step) - 0.5
		base := int(math.Floor(center))
		t := float32(center - float64(base))
		all[i].w = mitchell(t)
		if step == 1 {
			all[i].w = [4]float32{0, 1, 0, 0}
		}
		for k := range 4 {
			all[i].at[k] = min(max(base+k-1, 0), size-1)
		}
	}
	return all
}

// mitchell has the weights of the cubic of Mitchell and Netravali (1988) with B = C = 1/3 for the four samples around a place t of 0 to 1.
func mitchell(t float32) [4]float32 {
	near := func(x float32) float32 { return (7.0/6*x-2)*x*x + 8.0/9 }
	far := func(x float32) float32 { return ((-7.0/18*x+2)*x-10.0/3)*x + 16.0/9 }
	return [4]float32{far(1 + t), near(t), near(1 - t), far(2 - t)}
}

// lumaOf is the brightness of gamma-encoded colours (BT.601), which is close to how light they look.
func (c canvas) lumaOf(colours [3][]float32) []float32 {
	out := c.newPlane()
	for i := range out {
		out[i] = brightness(colours[0][i], colours[1][i], colours[2][i])
	}
	return out
}

func brightness(r, g, b float32) float32 { return 0.299*r + 0.587*g + 0.114*b }

// span of the brightness that all but a part of the samples at either end lie in.
func spread(luma []float32, part float64) (low, high float32) {
	counts := [256]int{}
	for _, v := range luma {
		counts[code8(v)]++
	}
	rank := int(part * float64(len(luma)))
	find := func(codes []int, counts [256]int) float32 {
		seen := 0
		for _, code := range codes {
			if seen += counts[code]; seen > rank {
				return float32(code) / 255
			}
		}
		return float32(codes[len(codes)-1]) / 255
	}
	up := make([]int, 256)
	for i := range up {
		up[i] = i
	}
	low = find(up, counts)
	slices.Reverse(up)
	return low, find(up, counts)
}

// stretch brings the brightness of colours to the whole range, in place, but makes it at most so many times as strong: a picture that is meant to
// be dark or misty stays so.
func (c canvas) stretch(colours [3][]float32, most float32) {
	low, high := spread(c.lumaOf(colours), 0.005)
	gain := min(1/max(high-low, 0.05), most)
	// What the gain leaves of the range is shared as it was.
	rest := max(1-gain*(high-low), 0)
	floor := rest * low / max(low+1-high, 1e-3)
	for _, v := range colours {
		for i := range v {
			v[i] = hem((v[i]-low)*gain+floor, 1)
		}
	}
}

// banded cuts brightness into soft steps (Winnemöller, Olsen and Gooch 2006); crisp is how hard the step is, 1 soft to 10 hard.
func banded(v, levels, crisp float32) float32 {
	scaled := v * levels
	nearest := float32(math.Floor(float64(scaled) + 0.5))
	t := (scaled - nearest) * 2 // -1 to 1 between two borders
	return (nearest + 0.5*hardened(t, crisp)) / levels
}

// hardened bends -1 to 1 so that it stays near 0 and goes to the ends fast: the inverse of a sigmoid around each border.
func hardened(t, crisp float32) float32 {
	a := t
	if a < 0 {
		a = -a
	}
	p := float32(math.Pow(float64(a), float64(crisp)))
	if t < 0 {
		return -p
	}
	return p
}

// tinted gives a colour another brightness and a stronger or weaker colour.
func tinted(r, g, b, to, saturation float32) (float32, float32, float32) {
	y := brightness(r, g, b)
	gain := saturation
	if y > 1e-3 {
		// Colours of a brighter place are stronger by half of what its brightness is.
		gain *= 0.5 + 0.5*min(to/y, 2)
	}
	return to + (r-y)*gain, to + (g-y)*gain, to + (b-y)*gain
}
