package image

import (
	"context"
	"math"
)

// backgroundOf removes, replaces or blurs what is behind the subject. A picture without a subject is left whole, with a warning.
func (o Options) backgroundOf(ctx context.Context, source *raster, s step) (prepared, error) {
	m, err := o.matteOf(ctx, source)
	if err != nil {
		return prepared{}, err
	}
	prep := m.cutting()
	if prep.filter.apply == nil || s.way == "remove" {
		return prep, nil
	}
	prep.transparent = false
	if s.way == "replace" {
		prep.coloured = s.colour[0] != s.colour[1] || s.colour[1] != s.colour[2]
		prep.filter = m.on(s.colour)
		return prep, nil
	}
	prep.filter, err = m.before(ctx, source, s.amount)
	return prep, err
}

// on lays the subject on a colour.
func (m *matte) on(colour [3]uint8) filter {
	return filter{apply: func(ctx context.Context, worker int, p *patch) error {
		if err := m.cut(ctx, worker, p); err != nil {
			return err
		}
		for i, a := range p.planes[3] {
			for c := range colour {
				p.planes[c][i] += (1 - a) * float32(colour[c]) / 255
			}
			p.planes[3][i] = 1
		}
		return nil
	}}
}

// before lays the subject on its own background, blurred. Of the subject nothing is blurred into it, so that there is no glow around.
// amount is 0 to 1.
func (m *matte) before(ctx context.Context, source *raster, amount float64) (filter, error) {
	small, err := source.reduced(ctx, matteLong)
	if err != nil {
		return filter{}, err
	}
	c := &cartoon{canvas: canvas{small.width, small.height}, full: canvas{source.width, source.height}}
	colours := small.uncovered()
	weight := c.newPlane()
	const least = 1e-3 // where all is subject its own colours stand in, and are covered
	for i := range weight {
		weight[i] = max(1-m.inside[i], 0) + least
		for _, v := range colours {
			v[i] *= weight[i]
		}
	}
	sigma := max(0.025*amount*float64(max(c.width, c.height)), 1)
	around, err := c.blurred(ctx, weight, sigma)
	if err != nil {
		return filter{}, err
	}
	for _, v := range colours {
		blurred, err := c.blurred(ctx, v, sigma)
		if err != nil {
			return filter{}, err
		}
		for i := range blurred {
			blurred[i] /= around[i]
		}
		c.planes = append(c.planes, blurred)
	}
	return filter{scratchBytes: cartoonScratch + 4, apply: func(ctx context.Context, worker int, p *patch) error {
		old := append([]float32(nil), p.planes[3]...)
		if err := m.cut(ctx, worker, p); err != nil {
			return err
		}
		return c.eachDrawn(ctx, p, func(in [][]float32, y int, out [4][]float32) {
			was := old[(y-p.y)*p.width:][:p.width]
			for x, a := range out[3] {
				for i := range in {
					out[i][x] += max(was[x]-a, 0) * hem(in[i][x], 1)
				}
				out[3][x] = float32(math.Max(float64(was[x]), float64(a)))
			}
		})
	}}, nil
}
