package image

import (
	"context"

	"enlarger/engine/neural"
)

// net is the model for a task, or nil when this server has none. Scale is 1 for all but upscale. Among several, the first of the
// wanted variants that is there is taken.
func (o Options) net(task neural.Task, scale int, variants ...string) *neural.Model {
	return o.Neural.Find(task, scale, variants...)
}

// Weights of BT.601 luma.
const lumaRed, lumaGreen, lumaBlue = 0.299, 0.587, 0.114

// luma fills to with the BT.601 luma of full range of three planes.
func luma(to, red, green, blue []float32) {
	green, blue = green[:len(red)], blue[:len(red)]
	for i, r := range red {
		to[i] = lumaRed*r + lumaGreen*green[i] + lumaBlue*blue[i]
	}
}

// netColours is what a model that keeps the size (denoise, restore, deblur, face) makes of red, green and blue of 0 to 1, not
// premultiplied, width x height each. Where the picture ends it is mirrored, except for the margins of how, which are left off the
// result. A luma model changes the luma and leaves the colour. A grey picture comes out grey: its three planes are one.
func netColours(ctx context.Context, m *neural.Model, colours [3][]float32, width, height int, grey bool, how neural.How) ([3][]float32, error) {
	in := neural.Patch{Width: width, Height: height, Planes: colours[:]}
	bright := colours[0]
	if m.Planes() == 1 {
		if !grey {
			bright = make([]float32, width*height)
			luma(bright, colours[0], colours[1], colours[2])
		}
		in.Planes = [][]float32{bright}
	}
	out, err := m.Run(ctx, in, how)
	if err != nil {
		return [3][]float32{}, err
	}
	if len(out.Planes) == 3 && !grey {
		return [3][]float32(out.Planes), nil
	}
	if grey {
		only := out.Planes[0]
		if len(out.Planes) == 3 {
			luma(only, only, out.Planes[1], out.Planes[2])
		}
		return [3][]float32{only, only, only}, nil
	}
	var result [3][]float32
	for c, plane := range colours {
		result[c] = make([]float32, out.Width*out.Height)
		for y := range out.Height {
			at := (y+how.Top)*width + how.Left
			was, old, now := bright[at:][:out.Width], plane[at:][:out.Width], out.Planes[0][y*out.Width:][:out.Width]
			to := result[c][y*out.Width:][:out.Width]
			for x, v := range now {
				to[x] = old[x] + v - was[x]
			}
		}
	}
	return result, nil
}

// netPatch changes the colours of a patch in place, as filter.apply does, to what a model that keeps the size makes of them; the
// outermost margin pixels are seen only and must be at least m.Overlap() for there to be no seams. level is for models that have one.
// Where the picture is transparent, the model sees the colours around go on.
func netPatch(ctx context.Context, m *neural.Model, p *patch, margin int, grey bool, level float32) error {
	colours := straight(p)
	how := neural.How{Left: margin, Top: margin, Right: margin, Bottom: margin, Level: level}
	out, err := netColours(ctx, m, colours, p.width, p.height, grey, how)
	if err != nil {
		return err
	}
	width, height := p.width-2*margin, p.height-2*margin
	for c, plane := range out {
		for y := range height {
			at := (y+margin)*p.width + margin
			alpha, to := p.planes[3][at:][:width], p.planes[c][at:][:width]
			for x, v := range plane[y*width:][:width] {
				to[x] = min(max(v, 0), 1) * alpha[x]
			}
		}
	}
	return nil
}

// netMask is where a matting model sees the subject in a patch: 1 on it, 0 beside it. m.Whole tells the size at which it looks at a
// picture; a patch reduced to about that size loses nothing.
func netMask(ctx context.Context, m *neural.Model, p *patch) ([]float32, error) {
	colours := straight(p)
	in := neural.Patch{Width: p.width, Height: p.height, Planes: colours[:]}
	if m.Planes() == 1 {
		bright := make([]float32, p.width*p.height)
		luma(bright, colours[0], colours[1], colours[2])
		in.Planes = [][]float32{bright}
	}
	out, err := m.Run(ctx, in, neural.How{})
	if err != nil {
		return nil, err
	}
	mask := out.Planes[0]
	for i, v := range mask {
		mask[i] = min(max(v, 0), 1)
	}
	return mask, nil
}

// straight gives the colours of a patch without the premultiplied alpha. What is more or less transparent takes on, as far as it is,
// the mean colour of what is seen around it, so that a net meets no edge that is not in the picture. An opaque patch's own
// planes are returned.
func straight(p *patch) [3][]float32 {
	colours := [3][]float32{p.planes[0], p.planes[1], p.planes[2]}
	alpha := p.planes[3]
	opaque := true
	for _, a := range alpha {
		opaque = opaque && a >= 1
	}
	if opaque {
		return colours
	}
	// Twice the mean of a 7x7 box reaches 6 pixels beyond the edge; a net's answer near the edge hardly depends on more.
	const radius = 3
	covered := boxed(boxed(alpha, p.width, p.height, radius), p.width, p.height, radius)
	for c, plane := range colours {
		mean := boxed(boxed(plane, p.width, p.height, radius), p.width, p.height, radius)
		filled := make([]float32, len(plane))
		for i, a := range alpha {
			around := float32(0)
			if covered[i] > 1e-4 {
				around = mean[i] / covered[i]
			}
			filled[i] = plane[i] + (1-a)*around
		}
		colours[c] = filled
	}
	return colours
}

// boxed is the sum of the samples up to radius columns and rows away, over their number in the middle of the plane.
func boxed(plane []float32, width, height, radius int) []float32 {
	wide, out := make([]float32, len(plane)), make([]float32, len(plane))
	share := 1 / float32(2*radius+1)
	for y := range height {
		row, to := plane[y*width:][:width], wide[y*width:][:width]
		for x := range to {
			sum := float32(0)
			for _, v := range row[max(x-radius, 0):min(x+radius+1, width)] {
				sum += v
			}
			to[x] = sum * share
		}
	}
	for y := range height {
		to := out[y*width:][:width]
		for k := max(y-radius, 0); k < min(y+radius+1, height); k++ {
			for x, v := range wide[k*width:][:width] {
				to[x] += v * share
			}
		}
	}
	return out
}
