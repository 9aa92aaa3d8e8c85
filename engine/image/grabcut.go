package image

import (
	"context"
	"math"
	"slices"
)

// lab is a picture in CIE L*a*b* (D65), three samples a pixel: distances in it are about what the eye sees, 2.3 being just seen.
type lab struct {
	width, height int
	pix           [][3]float32
}

// labOf converts a patch of sRGB.
func labOf(p *patch) lab {
	l := lab{width: p.width, height: p.height, pix: make([][3]float32, p.width*p.height)}
	linear := func(v float32) float64 {
		if v <= 0.04045 {
			return float64(v) / 12.92
		}
		return math.Pow((float64(v)+0.055)/1.055, 2.4)
	}
	bend := func(t float64) float64 {
		if t > 216.0/24389 {
			return math.Cbrt(t)
		}
		return (24389.0/27*t + 16) / 116
	}
	for i := range l.pix {
		r, g, b := linear(p.planes[0][i]), linear(p.planes[1][i]), linear(p.planes[2][i])
		x := bend((0.4124564*r + 0.3575761*g + 0.1804375*b) / 0.95047)
		y := bend(0.2126729*r + 0.7151522*g + 0.0721750*b)
		z := bend((0.0193339*r + 0.1191920*g + 0.9503041*b) / 1.08883)
		l.pix[i] = [3]float32{float32(116*y - 16), float32(500 * (x - y)), float32(200 * (y - z))}
	}
	return l
}

func labApart(a, b [3]float32) float32 {
	x, y, z := a[0]-b[0], a[1]-b[1], a[2]-b[2]
	return float32(math.Sqrt(float64(x*x + y*y + z*z)))
}

// colourParts is the number of Gaussians a side's colours are described by, as in GrabCut.
const colourParts = 5

// colourModel is a mixture of Gaussians over L*a*b*.
type colourModel struct {
	parts []colourPart
}

type colourPart struct {
	mean [3]float64
	// inverse is that of the covariance; offset is the logarithm of the weight over the root of its determinant.
	inverse [3][3]float64
	offset  float64
}

// colourSums add up the colours of a part.
type colourSums struct {
	n      float64
	v      [3]float64
	square [3][3]float64
}

func (s *colourSums) add(w float64, c [3]float32) {
	s.n += w
	for a := range 3 {
		s.v[a] += w * float64(c[a])
		for b := range 3 {
			s.square[a][b] += w * float64(c[a]) * float64(c[b])
		}
	}
}

func (s *colourSums) mean() [3]float64 { return [3]float64{s.v[0] / s.n, s.v[1] / s.n, s.v[2] / s.n} }

func (s *colourSums) covariance() (c [3][3]float64) {
	m := s.mean()
	for a := range 3 {
		for b := range 3 {
			c[a][b] = s.square[a][b]/s.n - m[a]*m[b]
		}
	}
	return c
}

// gatherColours adds every pixel with a weight above 0 to the part of the nearest centre. Parts without any are left out.
func gatherColours(l lab, weight []float32, centres [][3]float64) []colourSums {
	// Few pixels say as much about colours as all.
	step := max(1, len(l.pix)/30000)
	all := make([]colourSums, len(centres))
	for i := 0; i < len(l.pix); i += step {
		if weight[i] <= 0 {
			continue
		}
		c := l.pix[i]
		best, least := 0, math.Inf(1)
		for k, centre := range centres {
			x, y, z := float64(c[0])-centre[0], float64(c[1])-centre[1], float64(c[2])-centre[2]
			if d := x*x + y*y + z*z; d < least {
				best, least = k, d
			}
		}
		all[best].add(float64(weight[i]), c)
	}
	return slices.DeleteFunc(all, func(s colourSums) bool { return s.n == 0 })
}

// fit learns the model of the pixels with weights above 0, by rounds of splitting the widest part and assigning again.
func (m *colourModel) fit(l lab, weight []float32) {
	all := gatherColours(l, weight, [][3]float64{{50, 0, 0}})
	total := 0.0
	for i := range all {
		total += all[i].n
	}
	if total == 0 {
		return
	}
	for round := range 3 * colourParts {
		var centres [][3]float64
		for i := range all {
			centres = append(centres, all[i].mean())
		}
		if round%2 == 0 && len(centres) < colourParts {
			centres = splitWidest(all, centres, total)
		}
		all = gatherColours(l, weight, centres)
	}
	m.parts = m.parts[:0]
	for i := range all {
		m.parts = append(m.parts, newColourPart(all[i].n/total, all[i].mean(), all[i].covariance()))
	}
}

// splitWidest puts a second centre beside that of the part that spreads most, along the channel in which it does.
func splitWidest(all []colourSums, centres [][3]float64, total float64) [][3]float64 {
	widest, spread, axis := -1, 1.0, 0
	for i := range all {
		c := all[i].covariance()
		for a := range 3 {
			if v := c[a][a] * all[i].n / total; v > spread {
				widest, spread, axis = i, v, a
			}
		}
	}
	if widest < 0 {
		return centres
	}
	other := centres[widest]
	shift := math.Sqrt(spread) / 2
	centres[widest][axis] -= shift
	other[axis] += shift
	return append(centres, other)
}

// newColourPart prepares one Gaussian. No part is narrower than noise and coding make colours anyway: 2 units each way.
func newColourPart(weight float64, mean [3]float64, c [3][3]float64) colourPart {
	const least = 4
	for a := range 3 {
		c[a][a] += least
	}
	det := c[0][0]*(c[1][1]*c[2][2]-c[1][2]*c[2][1]) - c[0][1]*(c[1][0]*c[2][2]-c[1][2]*c[2][0]) + c[0][2]*(c[1][0]*c[2][1]-c[1][1]*c[2][0])
	p := colourPart{mean: mean, offset: math.Log(weight) - 0.5*math.Log(max(det, 1e-9))}
	for a := range 3 {
		for b := range 3 {
			i, j, k, l := (b+1)%3, (b+2)%3, (a+1)%3, (a+2)%3
			p.inverse[a][b] = (c[i][k]*c[j][l] - c[i][l]*c[j][k]) / max(det, 1e-9)
		}
	}
	return p
}

// log is the logarithm of how likely the colour is, of the likeliest part, up to a constant.
func (m *colourModel) log(c [3]float32) float64 {
	best := -1e3
	for i := range m.parts {
		p := &m.parts[i]
		x, y, z := float64(c[0])-p.mean[0], float64(c[1])-p.mean[1], float64(c[2])-p.mean[2]
		q := x*(p.inverse[0][0]*x+2*p.inverse[0][1]*y+2*p.inverse[0][2]*z) + y*(p.inverse[1][1]*y+2*p.inverse[1][2]*z) + z*p.inverse[2][2]*z
		best = max(best, p.offset-0.5*q)
	}
	return best
}

// grabCut parts the subject from the background (Rother, Kolmogorov and Blake, 2004): colour models of both sides and a least cut
// between them, in turns. belief is how likely each pixel is the subject, 0 to 1, before its colour is looked at, and keeps its say in every round.
func grabCut(ctx context.Context, l lab, belief []float32) (near []bool, err error) {
	const (
		rounds = 4
		// colourSay weighs the colour models against the belief, colourMost bounds what a single colour can say, and smooth is the price of
		// a border between two equal pixels. Chosen on photos of people.
		colourSay, colourMost, smooth = 0.6, 6, 12
	)
	inside, outside := make([]float32, len(belief)), make([]float32, len(belief))
	for i, b := range belief {
		inside[i] = max(0, 2*b-1)
		outside[i] = max(0, 1-2*b)
	}
	pairs := pairPrices(l, smooth)
	var subject, ground colourModel
	for range rounds {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		subject.fit(l, inside)
		ground.fit(l, outside)
		g := newGridCut(l.width, l.height)
		for i, c := range l.pix {
			colour := 0.0
			if len(subject.parts) > 0 && len(ground.parts) > 0 {
				colour = min(max(subject.log(c)-ground.log(c), -colourMost), colourMost)
			}
			b := min(max(float64(belief[i]), 0.001), 0.999)
			g.terminal[i] = float32(colourSay*colour + math.Log(b/(1-b)))
		}
		for d := range pairs {
			copy(g.links[d], pairs[d])
		}
		last := near
		if near, err = g.solve(ctx); err != nil {
			return nil, err
		}
		changed := 0
		for i, n := range near {
			if last == nil || n != last[i] {
				changed++
			}
			inside[i], outside[i] = 0, 1
			if n {
				inside[i], outside[i] = 1, 0
			}
		}
		if changed*1000 < len(near) {
			break
		}
	}
	return near, nil
}

// pairPrices is what a border between neighbours costs: less where their colours differ more than neighbours do on the whole.
func pairPrices(l lab, smooth float64) (links [8][]float32) {
	sum, n := 0.0, 0
	each := func(visit func(d, i, j int)) {
		for d := 0; d < 8; d += 2 {
			step := cutSteps[d]
			for y := range l.height {
				for x := range l.width {
					if u, v := x+step[0], y+step[1]; u >= 0 && v >= 0 && u < l.width && v < l.height {
						visit(d, y*l.width+x, v*l.width+u)
					}
				}
			}
		}
	}
	square := func(i, j int) float64 {
		d := float64(labApart(l.pix[i], l.pix[j]))
		return d * d
	}
	each(func(_, i, j int) {
		sum += square(i, j)
		n++
	})
	beta := 0.0
	if sum > 0 {
		beta = float64(n) / (2 * sum)
	}
	for d := range links {
		links[d] = make([]float32, len(l.pix))
	}
	each(func(d, i, j int) {
		price := smooth * math.Exp(-beta*square(i, j))
		if d >= 4 {
			price /= math.Sqrt2
		}
		links[d][i], links[d^1][j] = float32(price), float32(price)
	})
	return links
}
