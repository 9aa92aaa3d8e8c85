package image

import (
	"context"
	"fmt"
	"math"
)

// prepareStep looks at the picture for a step that depends on all of it. path is its file when it lies in one, or "".
func (o Options) prepareStep(ctx context.Context, source *picture, path string, s step) (prepared, error) {
	switch s.op {
	case opEnhance:
		return enhanceOf(ctx, source.raster, s.amount)
	case opCartoonize:
		return cartoonOf(ctx, source.raster, s.way)
	case opBackground:
		return o.backgroundOf(ctx, source.raster, s)
	case opDenoise:
		noise, err := measureNoise(ctx, source.raster)
		if err != nil {
			return prepared{}, err
		}
		return o.denoising(source, noise), nil
	case opSharpen:
		noise, err := measureNoise(ctx, source.raster)
		if err != nil {
			return prepared{}, err
		}
		blur, err := measureBlur(ctx, source.raster, noise.bright(source.grey))
		if err != nil {
			return prepared{}, err
		}
		return o.sharpening(source, noise, blur), nil
	case opRestore:
		r, err := o.restoring(ctx, source, path)
		if err != nil {
			return prepared{}, err
		}
		return r.prepared(), nil
	}
	return prepared{}, fmt.Errorf("no operation %q", s.op)
}

// enhancePixels is the size that a picture's light and colours are judged at.
const enhancePixels = 200_000

// enhanceOf mends light and colour with care: white balance where the picture has a cast, black and white points, a middle tone, and a little more
// colour. A picture that is well exposed and neutral hardly changes. amount is 0 to 1, usually one half.
func enhanceOf(ctx context.Context, source *raster, amount float64) (prepared, error) {
	small, err := source.shrunk(ctx, enhancePixels)
	if err != nil {
		return prepared{}, err
	}
	c := canvas{small.width, small.height}
	seen := small.uncovered()
	gains := castOf(seen, min(2*amount, 1))
	for i := range seen {
		for k := range seen[i] {
			seen[i][k] = hem(seen[i][k]*gains[i], 1)
		}
	}
	luma := c.lumaOf(seen)
	low, high := spread(luma, 0.004)
	mean := 0.0
	for _, v := range luma {
		mean += float64(v) / float64(len(luma))
	}
	strength := min(1.4*amount, 1)
	black, white := strength*math.Min(float64(low), 0.2), 1-strength*math.Min(1-float64(high), 0.25)
	// The power that brings the middle to 0.45, held within half a stop and weakened.
	middle := clampTo((mean-black)/math.Max(white-black, 0.1), 0.05, 0.95)
	power := math.Exp(clampTo(math.Log(math.Log(0.45)/math.Log(middle))*0.6*strength, -0.4, 0.4))
	bend := contrast(0.12 * strength)
	tone := func(v float64) float64 {
		return bend(math.Pow(clampTo((v-black)/(white-black), 0, 1), power))
	}
	table := make([]float32, 1025)
	for i := range table {
		table[i] = float32(tone(float64(i) / 1024))
	}
	more := float32(1 + 0.25*strength)
	f := colours(func(r, g, b float32, _, _ int) (float32, float32, float32) {
		r, g, b = r*gains[0], g*gains[1], b*gains[2]
		y := hem(brightness(r, g, b), 1)
		at := y * 1024
		i := min(int(at), 1023)
		to := between(table[i], table[i+1], at-float32(i))
		k := more
		if y > 1e-3 {
			k *= 0.5 + 0.5*min(to/y, 2)
		}
		return to + (r-y)*k, to + (g-y)*k, to + (b-y)*k
	})
	facts := map[string]any{"black": hundredths(float32(black)), "white": hundredths(float32(white)), "gamma": hundredths(float32(power))}
	if !source.grey {
		facts["white_balance"] = []float64{hundredths(gains[0]), hundredths(gains[1]), hundredths(gains[2])}
	}
	return prepared{filter: f, facts: facts}, nil
}

// castOf has gains for red, green and blue that take away a part of a picture's cast: the mean of its least colourful pixels (grey edges and
// shades of grey agree there; after Buchsbaum 1980, who took all pixels), and at most by a sixth.
func castOf(colours [3][]float32, part float64) [3]float32 {
	const most, colourful = 0.16, 0.18
	sums, n := [3]float64{}, 0.0
	for i, r := range colours[0] {
		g, b := colours[1][i], colours[2][i]
		if high := max(r, g, b); high > 0.1 && high < 0.97 && high-min(r, g, b) < colourful {
			sums[0], sums[1], sums[2], n = sums[0]+float64(r), sums[1]+float64(g), sums[2]+float64(b), n+1
		}
	}
	gains := [3]float32{1, 1, 1}
	if n < 0.05*float64(len(colours[0])) { // too little grey to judge by
		return gains
	}
	mean := (sums[0] + sums[1] + sums[2]) / 3
	for i := range gains {
		gains[i] = float32(1 + clampTo((mean/math.Max(sums[i], 1e-9)-1)*part, -most, most))
	}
	return gains
}
