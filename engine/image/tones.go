package image

import (
	"context"
	"math"
)

// toneFilter is the filter of a step that changes every pixel by itself. full is the size of the picture at that step.
func toneFilter(s step, full canvas) filter {
	a := float32(s.amount)
	switch s.op {
	case opBrightness:
		// A power keeps black black and white white: half of the amount as a power of two.
		power := math.Exp2(-1.6 * s.amount)
		return curve(func(v float64) float64 { return math.Pow(v, power) })
	case opExposure:
		gain := math.Exp2(2 * s.amount)
		return curve(func(v float64) float64 { return exposed(v, gain) })
	case opContrast:
		return curve(contrast(s.amount))
	case opInvert:
		return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) { return 1 - r, 1 - g, 1 - b })
	case opSaturation:
		return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) {
			y := brightness(r, g, b)
			k := 1 + a
			if a > 0 { // what has much colour already gets less more
				k = 1 + 1.5*a*(1-0.6*(max(r, g, b)-min(r, g, b)))
			}
			return y + (r-y)*k, y + (g-y)*k, y + (b-y)*k
		})
	case opTemperature:
		return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) {
			return balanced(r, g, b, 1+0.22*a, 1+0.02*a, 1-0.25*a)
		})
	case opTint:
		return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) {
			return balanced(r, g, b, 1+0.08*a, 1-0.18*a, 1+0.08*a)
		})
	case opGrayscale:
		return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) {
			y := brightness(r, g, b)
			return y, y, y
		})
	case opSepia:
		return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) {
			y := brightness(r, g, b)
			return between(r, min(y*1.08+0.02, 1), a), between(g, y*0.94, a), between(b, y*0.74, a)
		})
	case opVintage:
		return vintage(a, full)
	case opVignette:
		return colours(func(r, g, b float32, x, y int) (float32, float32, float32) {
			k := 1 - 0.75*a*falloff(x, y, full)
			return r * k, g * k, b * k
		})
	case opGrain:
		size := max(full.grain(), 1)
		return colours(func(r, g, b float32, x, y int) (float32, float32, float32) {
			d := a * grainAt(x, y, size)
			return r + d, g + d, b + d
		})
	}
	return filter{}
}

// colours is a filter of single pixels: straight colours, not premultiplied, at a place of the picture.
func colours(change func(r, g, b float32, x, y int) (float32, float32, float32)) filter {
	return filter{apply: func(ctx context.Context, _ int, p *patch) error {
		red, green, blue, alpha := p.planes[0], p.planes[1], p.planes[2], p.planes[3]
		for row := range p.height {
			if err := ctx.Err(); err != nil {
				return err
			}
			for i := row * p.width; i < (row+1)*p.width; i++ {
				a := alpha[i]
				if a <= 0 {
					continue
				}
				inverse := 1 / a
				r, g, b := change(red[i]*inverse, green[i]*inverse, blue[i]*inverse, p.x+i-row*p.width, p.y+row)
				red[i], green[i], blue[i] = hem(r, 1)*a, hem(g, 1)*a, hem(b, 1)*a
			}
		}
		return nil
	}}
}

// curve is a filter that gives every sample what a curve says, by a table fine enough for 16 bits.
func curve(f func(float64) float64) filter {
	const steps = 4096
	table := make([]float32, steps+2)
	for i := range table {
		table[i] = float32(clampTo(f(math.Min(float64(i)/steps, 1)), 0, 1))
	}
	at := func(v float32) float32 {
		v = hem(v, 1) * steps
		i := int(v)
		return between(table[i], table[i+1], v-float32(i))
	}
	return colours(func(r, g, b float32, _, _ int) (float32, float32, float32) { return at(r), at(g), at(b) })
}

// exposed gives light times a gain, with a shoulder that keeps what becomes bright from being cut off.
func exposed(v, gain float64) float64 {
	light := math.Pow(v, 2.2) * gain
	if gain > 1 { // Reinhard et al. (2002): the gain's own white stays white
		light = light * (1 + light/(gain*gain)) / (1 + light) * (1 + gain) / (1 + 1/gain)
	}
	return math.Pow(math.Min(light, 1), 1/2.2)
}

// contrast is a curve around the middle: a sigmoid up, a line down.
func contrast(amount float64) func(float64) float64 {
	if amount <= 0 {
		return func(v float64) float64 { return 0.5 + (v-0.5)*(1+0.9*amount) }
	}
	steep := 8 * amount
	end := math.Tanh(steep / 4)
	return func(v float64) float64 { return 0.5 + 0.5*math.Tanh((v-0.5)*steep/2)/end }
}

// balanced gives the colours gains that leave the brightness as it is.
func balanced(r, g, b, red, green, blue float32) (float32, float32, float32) {
	y := brightness(r, g, b)
	r, g, b = r*red, g*green, b*blue
	if now := brightness(r, g, b); now > 1e-4 {
		k := y / now
		return r * k, g * k, b * k
	}
	return r, g, b
}

// falloff is 0 in the middle of a picture and 1 in its corners, round as a lens.
func falloff(x, y int, full canvas) float32 {
	w, h := float32(full.width), float32(full.height)
	dx, dy := (float32(x)+0.5-w/2)*2/w, (float32(y)+0.5-h/2)*2/h
	return smooth(0.35, 1.45, float32(math.Sqrt(float64(dx*dx+dy*dy))))
}

// grain is the size of a grain of film in pixels: a thousandth of a picture's size.
func (c canvas) grain() float32 {
	return float32(math.Sqrt(float64(c.width)*float64(c.height)) / 1000 * 1.2)
}

func grainAt(x, y int, size float32) float32 {
	u, v := float32(x)/size, float32(y)/size
	return 0.22 * (cloud(u, v, 7) + cloud(u*2+9, v*2+3, 8) - 1)
}

// vintage is faded black, warm light, less colour, dark corners and grain.
func vintage(a float32, full canvas) filter {
	size := max(full.grain(), 1)
	return colours(func(r, g, b float32, x, y int) (float32, float32, float32) {
		l := brightness(r, g, b)
		d := 0.35 * grainAt(x, y, size)
		k := 1 - 0.4*falloff(x, y, full)
		fade := func(v, black, white float32) float32 { return (black + (white-black)*(l+(v-l)*0.68) + d) * k }
		return between(r, fade(r, 0.09, 1.02), a), between(g, fade(g, 0.07, 0.94), a), between(b, fade(b, 0.12, 0.78), a)
	})
}

// blurFilter is a Gaussian of so many pixels, on premultiplied colours, so that what is transparent lends nothing.
func blurFilter(sigma float64) filter {
	weights := gaussianWeights(sigma)
	radius := len(weights) / 2
	return filter{margin: radius, scratchBytes: 8, apply: func(ctx context.Context, _ int, p *patch) error {
		c := canvas{p.width, p.height}
		middle, line := c.newPlane(), make([]float32, c.width+2*radius)
		for _, plane := range p.planes {
			for y := range c.height {
				if err := ctx.Err(); err != nil {
					return err
				}
				row := c.row(plane, y)
				for i := range line {
					line[i] = row[min(max(i-radius, 0), c.width-1)]
				}
				convolve(line, weights, c.row(middle, y))
			}
			for y := range c.height {
				to := c.row(plane, y)
				clear(to)
				for k, w := range weights {
					from := c.clampedRow(middle, y+k-radius)[:len(to)]
					for x := range to {
						to[x] += from[x] * w
					}
				}
			}
		}
		return nil
	}}
}

// wideBlur is a Gaussian so wide that a reduced picture has all that is left of it.
func wideBlur(ctx context.Context, source *raster, sigma float64) (filter, error) {
	const pixels = 250_000
	small, err := source.shrunk(ctx, pixels)
	if err != nil {
		return filter{}, err
	}
	c := &cartoon{canvas: canvas{small.width, small.height}, full: canvas{source.width, source.height}}
	factor := math.Sqrt(float64(c.width) * float64(c.height) / (float64(source.width) * float64(source.height)))
	for _, plane := range small.planes {
		blurred, err := c.blurred(ctx, plane, sigma*factor)
		if err != nil {
			return filter{}, err
		}
		c.planes = append(c.planes, blurred)
	}
	return filter{scratchBytes: cartoonScratch, apply: func(ctx context.Context, _ int, p *patch) error {
		return c.eachDrawn(ctx, p, func(in [][]float32, _ int, out [4][]float32) {
			for i := range out {
				copy(out[i], in[i])
			}
		})
	}}, nil
}
