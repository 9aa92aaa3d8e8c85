package image

import (
	"context"
	"math"
)

// px is a length in pixels of a one-megapixel picture as pixels of the canvas.
func (c *cartoon) px(length float64) float64 { return length * float64(c.unit) }

// anime composes flat colours with soft bands of light, clear and bright, and thin lines in the darkened colour of what they part.
func (c *cartoon) anime(ctx context.Context, colours [3][]float32) error {
	c.stretch(colours, 1.5)
	f, err := c.flowOf(ctx, colours, c.px(1.6))
	if err != nil {
		return err
	}
	_, line, err := f.lines(ctx, c.lumaOf(colours), max(c.px(1.0), 0.6), c.px(2.5))
	if err != nil {
		return err
	}
	flat, err := c.flattened(ctx, colours, c.px(1.5), 0.022, c.px(9))
	if err != nil {
		return err
	}
	glow, err := c.blurred(ctx, c.lumaOf(flat), c.px(14))
	if err != nil {
		return err
	}
	c.planes = [][]float32{flat[0], flat[1], flat[2], line, glow}
	c.draw = func(in [][]float32, _, _, _ float32, red, green, blue []float32) {
		for x := range red {
			r, g, b := in[0][x], in[1][x], in[2][x]
			y := brightness(r, g, b)
			to := between(y, banded(y, 6, 5), 0.8)
			to += 0.16 * to * (1 - to) * 2                    // lighter in the middle
			to += 0.12 * smooth(0.55, 1, in[4][x]) * (1 - to) // light runs over
			r, g, b = tinted(r, g, b, to, 1.4)
			k := 1 - 0.82*smooth(0.006, 0.032, -in[3][x])
			red[x], green[x], blue[x] = r*k, g*k*k, b*k*k // warm lines
			green[x], blue[x] = between(green[x], g*k, 0.6), between(blue[x], b*k, 0.6)
		}
	}
	return nil
}

// comic composes few flat colours, ink and printed dots for the tones between.
func (c *cartoon) comic(ctx context.Context, colours [3][]float32) error {
	c.stretch(colours, 1.8)
	f, err := c.flowOf(ctx, colours, c.px(2.2))
	if err != nil {
		return err
	}
	inner, line, err := f.lines(ctx, c.lumaOf(colours), max(c.px(1.5), 0.7), c.px(4))
	if err != nil {
		return err
	}
	flat, err := c.flattened(ctx, colours, c.px(1.6), 0.02, c.px(9))
	if err != nil {
		return err
	}
	c.planes = [][]float32{flat[0], flat[1], flat[2], line, inner}
	c.draw = func(in [][]float32, u0, du, v float32, red, green, blue []float32) {
		const pitch = 5 // of the dots, in units
		const turn = math.Sqrt2 / 2 * 2 * math.Pi / pitch
		for x := range red {
			u := (u0 + float32(x)) * du
			r, g, b := in[0][x], in[1][x], in[2][x]
			y := brightness(r, g, b)
			// A screen of dots, 45 degrees: 0 in the middle of a dot, 1 between dots.
			screen := 0.5 - 0.25*(cosine((u+v)*turn)+cosine((u-v)*turn))
			to := between(banded(y, 4, 8), screened(y, 4, screen), 0.8)
			r, g, b = tinted(r, g, b, 0.1+0.9*to, 1.6)
			ink := max(smooth(0.012, 0.03, -in[3][x]), 1-smooth(0.06, 0.14, in[4][x]+2*in[3][x]))
			paper := 1 - 0.93*ink
			red[x], green[x], blue[x] = r*paper, g*paper, b*paper
		}
	}
	return nil
}

// cosine is good to a thousandth, which a printed dot does not show.
func cosine(x float32) float32 { return float32(math.Cos(float64(x))) }

// screened prints a brightness with so many tones: between two tones dots of the darker one grow on the lighter one.
func screened(y, levels, screen float32) float32 {
	scaled := hem(y, 1) * levels
	base := float32(math.Floor(float64(scaled)))
	part := scaled - base
	const margin = 0.25 // near a tone there are no dots
	part = hem((part-margin)/(1-2*margin), 1)
	light := smooth(-0.08, 0.08, part-1+screen+0.04)
	if part <= 0 {
		light = 0
	}
	if part >= 1 {
		light = 1
	}
	return min((base+light)/levels, 1)
}

// sketch composes pencil lines and tones of strokes on paper.
func (c *cartoon) sketch(ctx context.Context, colours [3][]float32) error {
	c.stretch(colours, 2)
	c.grey = true
	f, err := c.flowOf(ctx, colours, c.px(1.8))
	if err != nil {
		return err
	}
	luma := c.lumaOf(colours)
	_, line, err := f.lines(ctx, luma, max(c.px(0.9), 0.6), c.px(3))
	if err != nil {
		return err
	}
	tone, err := c.blurred(ctx, luma, c.px(1.2))
	if err != nil {
		return err
	}
	c.planes = [][]float32{line, tone}
	c.draw = func(in [][]float32, u0, du, v float32, red, green, blue []float32) {
		for x := range red {
			u := (u0 + float32(x)) * du
			grain := clouds(u/1.3, v/1.3, 2, 11)
			// Graphite stays on the crests of the paper.
			crest := 0.72 + 0.5*smooth(0.25, 0.8, grain)
			dark := hem(hatched(u, v, in[1][x])*crest, 0.93)
			pencil := hem(smooth(0.004, 0.04, -in[0][x])*crest, 0.9)
			light := (0.985 - 0.025*grain) * (1 - dark) * (1 - pencil)
			red[x], green[x], blue[x] = light, light, light
		}
	}
	return nil
}

// hatched is how dark pencil strokes make a place whose tone is between black and white: noise drawn out along a stroke (after Mao, Nagasaka and Imamiya
// 2001), cut off where the tone asks for paper; one direction in light tones, a second and a third across it in the dark.
func hatched(u, v, tone float32) float32 {
	left := float32(1)
	for n, l := range [3]struct{ dx, dy, from, to, most float32 }{
		{0.77, -0.64, 0.97, 0.25, 0.58},
		{0.94, 0.34, 0.55, 0.05, 0.55},
		{0.1, 0.995, 0.25, 0, 0.5},
	} {
		want := hem((l.from-tone)/(l.from-l.to), 1)
		if want <= 0 {
			break
		}
		along, across := u*l.dx+v*l.dy, v*l.dx-u*l.dy
		bend := 2.5 * cloud(along/60, across/60, uint32(37+n)) // no ruler
		seed := uint32(31 + 3*n)
		stroke := 0.7*cloud(along/26, (across+bend)/1.5, seed) + 0.3*cloud(along/9, (across+bend)/0.8, seed+1)
		edge := 1 - want*0.95
		left *= 1 - l.most*smooth(edge-0.3, edge+0.3, stroke)*(0.45+0.55*want)
	}
	return 1 - left
}

// watercolor composes washes of pigment on rough paper.
func (c *cartoon) watercolor(ctx context.Context, colours [3][]float32) error {
	c.stretch(colours, 1.6)
	wobbled, err := c.wobble(ctx, colours)
	if err != nil {
		return err
	}
	f, err := c.flowOf(ctx, wobbled, c.px(2))
	if err != nil {
		return err
	}
	washes, err := f.kuwahara(ctx, wobbled, max(c.px(4.5), 2), 8)
	if err != nil {
		return err
	}
	if washes, err = c.flattened(ctx, washes, c.px(1), 0.03, c.px(8)); err != nil {
		return err
	}
	edges, err := c.pools(ctx, washes)
	if err != nil {
		return err
	}
	c.planes = [][]float32{washes[0], washes[1], washes[2], edges}
	c.draw = func(in [][]float32, u0, du, v float32, red, green, blue []float32) {
		for x := range red {
			u := (u0 + float32(x)) * du
			r, g, b := in[0][x], in[1][x], in[2][x]
			y := brightness(r, g, b)
			to := between(y, banded(y, 6, 2.5), 0.5)
			r, g, b = tinted(r, g, b, 0.16+0.84*to, 1.18)
			paper := clouds(u/2.6, v/2.6, 3, 71)
			density := 1 + 1.05*(clouds(u/80, v/80, 4, 51)-0.5) + 0.4*(paper-0.5) + in[3][x]
			// Pigment of more density takes more light away (Bousseau et al. 2006).
			red[x], green[x], blue[x] = pigment(r, density), pigment(g, density), pigment(b, density)
			light := 1 - 0.06*smooth(0.35, 0.75, paper)
			red[x], green[x], blue[x] = red[x]*light, green[x]*light, blue[x]*light*0.985
		}
	}
	return nil
}

// pigment is a colour laid on in another density than 1.
func pigment(v, density float32) float32 {
	v = hem(v, 1)
	return v * (1 - (1-v)*(density-1))
}

// wobble moves every place a little, as a wet brush does.
func (c *cartoon) wobble(ctx context.Context, colours [3][]float32) ([3][]float32, error) {
	out := [3][]float32{c.newPlane(), c.newPlane(), c.newPlane()}
	amount := float32(c.px(2.2))
	err := c.eachRow(ctx, func(y int) {
		for x := range c.width {
			u, v := float32(x)/c.unit, float32(y)/c.unit
			px := float32(x) + 2*amount*(clouds(u/13, v/13, 2, 91)-0.5)
			py := float32(y) + 2*amount*(clouds(u/13, v/13, 2, 95)-0.5)
			for i := range out {
				out[i][y*c.width+x] = c.sample(colours[i], px, py)
			}
		}
	})
	return out, err
}

// pools is the density that pigment gathers at the border of a wash, and loses beside it.
func (c *cartoon) pools(ctx context.Context, washes [3][]float32) ([]float32, error) {
	luma := c.lumaOf(washes)
	near, err := c.blurred(ctx, luma, c.px(1))
	if err != nil {
		return nil, err
	}
	far, err := c.blurred(ctx, luma, c.px(4))
	if err != nil {
		return nil, err
	}
	for i := range near {
		// Darker than around: the inner border of a dark wash.
		d := far[i] - near[i]
		if d > 0 {
			d *= 5.5
		}
		near[i] = hem(d*1.4+0.35, 1.35) - 0.35
	}
	return near, nil
}

// oil composes dabs of thick paint and the light on them.
func (c *cartoon) oil(ctx context.Context, colours [3][]float32) error {
	c.stretch(colours, 1.5)
	f, err := c.flowOf(ctx, colours, c.px(2.5))
	if err != nil {
		return err
	}
	dabs, err := f.kuwahara(ctx, colours, max(c.px(6), 2.5), 8)
	if err != nil {
		return err
	}
	height, err := c.bristles(ctx, dabs)
	if err != nil {
		return err
	}
	c.planes = [][]float32{dabs[0], dabs[1], dabs[2], height}
	c.draw = func(in [][]float32, u0, du, v float32, red, green, blue []float32) {
		for x := range red {
			u := (u0 + float32(x)) * du
			r, g, b := in[0][x], in[1][x], in[2][x]
			y := brightness(r, g, b)
			r, g, b = tinted(r, g, b, y+0.1*(y-0.45)*4*y*(1-y), 1.35)
			light := 1 + in[3][x] + 0.025*(clouds(u/3, v/3, 2, 41)-0.5)
			shine := max(in[3][x]-0.1, 0) * 0.6
			red[x], green[x], blue[x] = r*light+shine, g*light+shine, b*light+shine
		}
	}
	return nil
}

// bristles is how much brighter or darker the relief of the strokes is in light from the upper left.
func (c *cartoon) bristles(ctx context.Context, dabs [3][]float32) ([]float32, error) {
	f, err := c.flowOf(ctx, dabs, c.px(5))
	if err != nil {
		return nil, err
	}
	noise := c.newPlane()
	if err := c.eachRow(ctx, func(y int) {
		for x := range c.width {
			u, v := float32(x)/c.unit, float32(y)/c.unit
			noise[y*c.width+x] = 0.65*cloud(u/1.3, v/1.3, 21) + 0.35*cloud(u/4, v/4, 22)
		}
	}); err != nil {
		return nil, err
	}
	height, err := f.along(ctx, noise, c.px(6))
	if err != nil {
		return nil, err
	}
	luma := c.lumaOf(dabs)
	out := c.newPlane()
	err = c.eachRow(ctx, func(y int) {
		above, below := min(max(y-1, 0), c.height-1)*c.width, min(y+1, c.height-1)*c.width
		for x := range c.width {
			l, r := max(x-1, 0), min(x+1, c.width-1)
			at := y * c.width
			slope := (height[at+r] - height[at+l]) + (height[below+x] - height[above+x])
			// Paint is thicker where it is lighter.
			slope += 0.5*hem(0.5+(luma[at+r]-luma[at+l])+(luma[below+x]-luma[above+x]), 1) - 0.25
			out[at+x] = hem(0.7*slope+0.3, 0.6) - 0.3
		}
	})
	return out, err
}
