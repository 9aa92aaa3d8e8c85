package image

import (
	"context"
	"math"
)

// canvas is the size of planes that a look of the whole picture is computed on: samples of 0 to 1, row after row.
type canvas struct{ width, height int }

// eachRow runs work for every row on all processors.
func (c canvas) eachRow(ctx context.Context, work func(y int)) error {
	return parallel(ctx, c.height, func(_, y int) error {
		work(y)
		return nil
	})
}

// newPlane makes a plane of zeros.
func (c canvas) newPlane() []float32 { return make([]float32, c.width*c.height) }

func (c canvas) row(v []float32, y int) []float32 { return v[y*c.width:][:c.width] }

// clampedRow is a row of a plane; beyond the canvas its edge goes on.
func (c canvas) clampedRow(v []float32, y int) []float32 {
	return c.row(v, min(max(y, 0), c.height-1))
}

// sample reads a plane between its samples, bilinearly; beyond the canvas its edge goes on.
func (c canvas) sample(v []float32, x, y float32) float32 {
	x, y = hem(x, float32(c.width-1)), hem(y, float32(c.height-1))
	x0, y0 := int(x), int(y)
	fx, fy := x-float32(x0), y-float32(y0)
	x1, down := x0, 0
	if x0+1 < c.width {
		x1 = x0 + 1
	}
	if y0+1 < c.height {
		down = c.width
	}
	at := y0 * c.width
	top := v[at+x0] + (v[at+x1]-v[at+x0])*fx
	bottom := v[at+down+x0] + (v[at+down+x1]-v[at+down+x0])*fx
	return top + (bottom-top)*fy
}

// gaussianWeights are the weights of a Gaussian at whole distances from -radius to radius, with the sum 1.
func gaussianWeights(sigma float64) []float32 {
	radius := int(math.Ceil(3 * sigma))
	weights, sum := make([]float32, 2*radius+1), 0.0
	for i := range weights {
		d := float64(i - radius)
		w := math.Exp(-d * d / (2 * sigma * sigma))
		weights[i] = float32(w)
		sum += w
	}
	for i := range weights {
		weights[i] /= float32(sum)
	}
	return weights
}

// gaussianLeast is the sigma in pixels below which a Gaussian changes nothing that could be seen.
const gaussianLeast = 0.25

// blurred is a plane under a Gaussian of so many pixels.
func (c canvas) blurred(ctx context.Context, v []float32, sigma float64) ([]float32, error) {
	out := c.newPlane()
	if sigma < gaussianLeast {
		copy(out, v)
		return out, nil
	}
	weights := gaussianWeights(sigma)
	radius := len(weights) / 2
	middle := c.newPlane()
	lines := make([][]float32, processors())
	err := parallel(ctx, c.height, func(worker, y int) error {
		lines[worker] = grow(lines[worker], c.width+2*radius)
		line, row := lines[worker], c.row(v, y)
		for i := range line {
			line[i] = row[min(max(i-radius, 0), c.width-1)]
		}
		convolve(line, weights, c.row(middle, y))
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = c.eachRow(ctx, func(y int) {
		to := c.row(out, y)
		for k, w := range weights {
			from := c.clampedRow(middle, y+k-radius)[:len(to)]
			for x := range to {
				to[x] += from[x] * w
			}
		}
	})
	return out, err
}

// convolve weighs line, which is longer than to by the weights, into to.
func convolve(line, weights, to []float32) {
	clear(to)
	for k, w := range weights {
		from := line[k:][:len(to)]
		for x := range to {
			to[x] += from[x] * w
		}
	}
}

// flow is the direction of the edges at every sample of a canvas: the unit tangent, and how much there is one direction (0 none, 1 only one).
type flow struct {
	canvas
	x, y, directed []float32
	// strength is how much changes across the direction: the square root of the greater eigenvalue.
	strength []float32
}

// flowOf finds the direction that edges have around each sample: the minor eigenvector of the structure tensor of the colours
// smoothed over sigma pixels (Brox et al. 2006; Kyprianidis and Kang 2011).
func (c canvas) flowOf(ctx context.Context, colours [3][]float32, sigma float64) (*flow, error) {
	tensor := [3][]float32{c.newPlane(), c.newPlane(), c.newPlane()}
	err := c.eachRow(ctx, func(y int) {
		for _, v := range colours {
			above, here, below := c.clampedRow(v, y-1), c.row(v, y), c.clampedRow(v, y+1)
			for x := range c.width {
				l, r := max(x-1, 0), min(x+1, c.width-1)
				// The derivatives of Scharr, turned alike in all directions.
				dx := 0.183*(above[r]-above[l]+below[r]-below[l]) + 0.634*(here[r]-here[l])
				dy := 0.183*(below[l]-above[l]+below[r]-above[r]) + 0.634*(below[x]-above[x])
				at := y*c.width + x
				tensor[0][at] += dx * dx
				tensor[1][at] += dx * dy
				tensor[2][at] += dy * dy
			}
		}
	})
	for i := range tensor {
		if err == nil {
			tensor[i], err = c.blurred(ctx, tensor[i], sigma)
		}
	}
	if err != nil {
		return nil, err
	}
	f := &flow{canvas: c, x: tensor[0], y: tensor[1], directed: tensor[2], strength: c.newPlane()}
	err = c.eachRow(ctx, func(y int) {
		for at := y * c.width; at < (y+1)*c.width; at++ {
			e, m, g := float64(tensor[0][at]), float64(tensor[1][at]), float64(tensor[2][at])
			root := math.Sqrt((e-g)*(e-g) + 4*m*m)
			most, least := (e+g+root)/2, max((e+g-root)/2, 0)
			tx, ty := most-e, -m
			if e >= g { // the better conditioned of two forms of one vector
				tx, ty = -m, most-g
			}
			length := math.Hypot(tx, ty)
			if length < 1e-12 {
				tx, ty, length = 0, 1, 1
			}
			f.x[at], f.y[at] = float32(tx/length), float32(ty/length)
			f.directed[at], f.strength[at] = float32((most-least)/(most+least+1e-9)), float32(math.Sqrt(most))
		}
	})
	return f, err
}

// lines finds where lines are drawn: the difference of two Gaussians across the flow, smoothed along it (FDoG, Kang, Lee and Chui
// 2009; separated as in Kyprianidis and Kang 2011). sigma is half the width of a line in pixels and length how far lines are carried on.
// The response is the inner Gaussian in the one plane and inner minus outer in the other; dark lines are negative there.
func (f *flow) lines(ctx context.Context, luma []float32, sigma, length float64) (inner, difference []float32, err error) {
	const wider = 1.6 // approximates the Laplacian of a Gaussian (Marr and Hildreth 1980)
	radius := int(math.Ceil(2 * wider * sigma))
	narrow, wide := make([]float32, radius+1), make([]float32, radius+1)
	sums := [2]float64{}
	for i := range narrow {
		d, twice := float64(i), 2.0
		if i == 0 {
			twice = 1
		}
		a, b := math.Exp(-d*d/(2*sigma*sigma)), math.Exp(-d*d/(2*wider*wider*sigma*sigma))
		narrow[i], wide[i] = float32(a), float32(b)
		sums[0] += twice * a
		sums[1] += twice * b
	}
	for i := range narrow {
		narrow[i] /= float32(sums[0])
		wide[i] /= float32(sums[1])
	}
	across, diff := f.newPlane(), f.newPlane()
	err = f.eachRow(ctx, func(y int) {
		for x := range f.width {
			at := y*f.width + x
			nx, ny := -f.y[at], f.x[at]
			a, b := luma[at]*narrow[0], luma[at]*wide[0]
			for i := 1; i <= radius; i++ {
				d := float32(i)
				v := f.sample(luma, float32(x)+d*nx, float32(y)+d*ny) + f.sample(luma, float32(x)-d*nx, float32(y)-d*ny)
				a += v * narrow[i]
				b += v * wide[i]
			}
			across[at], diff[at] = a, a-b
		}
	})
	if err != nil {
		return nil, nil, err
	}
	if inner, err = f.along(ctx, across, length); err != nil {
		return nil, nil, err
	}
	difference, err = f.along(ctx, diff, length)
	return inner, difference, err
}

// along smooths a plane along the flow under a Gaussian of so many pixels (line integral convolution, Cabral and Leedom 1993).
func (f *flow) along(ctx context.Context, v []float32, sigma float64) ([]float32, error) {
	out := f.newPlane()
	if sigma < gaussianLeast {
		copy(out, v)
		return out, nil
	}
	weights := gaussianWeights(sigma)
	half := len(weights) / 2
	steps := (2*half + 2) / 3 // two sigmas say nearly all
	err := f.eachRow(ctx, func(y int) {
		for x := range f.width {
			at := y*f.width + x
			sum, norm := v[at]*weights[half], weights[half]
			for _, sign := range [2]float32{1, -1} {
				px, py := float32(x), float32(y)
				tx, ty := f.x[at]*sign, f.y[at]*sign
				for i := 1; i <= steps; i++ {
					px, py = px+tx, py+ty
					if px < 0 || py < 0 || px > float32(f.width-1) || py > float32(f.height-1) {
						break
					}
					w := weights[half+i]
					sum += w * f.sample(v, px, py)
					norm += w
					next := int(py+0.5)*f.width + int(px+0.5)
					nx, ny := f.x[next], f.y[next]
					if nx*tx+ny*ty < 0 { // a tangent has no front
						nx, ny = -nx, -ny
					}
					tx, ty = nx, ny
				}
			}
			out[at] = sum / norm
		}
	})
	return out, err
}

// flattened takes texture away and keeps large edges as they are: rolling guidance (Zhang et al. 2014), in which a picture without its small
// structures guides the smoothing of the picture itself, again and again; the smoothing is the weighted least squares of Farbman et al. (2008)
// solved along rows and columns in turn (Min et al. 2014). scale is the size in pixels of what goes; contrast is the step that counts
// as an edge; reach is how far flat areas run together.
func (c canvas) flattened(ctx context.Context, colours [3][]float32, scale, contrast, reach float64) ([3][]float32, error) {
	const rolls = 3
	guide := [3][]float32{}
	for i, v := range colours {
		var err error
		if guide[i], err = c.blurred(ctx, v, scale); err != nil {
			return guide, err
		}
	}
	for range rolls {
		out := [3][]float32{}
		for i, v := range colours {
			out[i] = append([]float32(nil), v...)
		}
		if err := c.solve(ctx, out, guide, contrast, reach*reach); err != nil {
			return guide, err
		}
		guide = out
	}
	return guide, nil
}

// solve smooths the planes in place, rows and columns in turn. Weights come from the steps of the guide.
func (c canvas) solve(ctx context.Context, planes, guide [3][]float32, contrast, lambda float64) error {
	const rounds = 3
	table := make([]float32, 1024)
	for i := range table {
		table[i] = float32(math.Exp(-float64(i) / float64(len(table)) / contrast))
	}
	weight := func(a, b int) float32 {
		d := float32(0)
		for _, g := range guide {
			d = max(d, g[a]-g[b], g[b]-g[a])
		}
		return table[min(int(d*float32(len(table))), len(table)-1)]
	}
	lines := make([][]float32, processors())
	for round := 1; round <= rounds; round++ {
		l := float32(1.5 * lambda * math.Pow(4, float64(rounds-round)) / (math.Pow(4, rounds) - 1))
		err := parallel(ctx, c.height, func(worker, y int) error {
			lines[worker] = grow(lines[worker], 2*c.width)
			solveLines(planes, y*c.width, 1, c.width, 1, l, weight, lines[worker])
			return nil
		})
		if err != nil {
			return err
		}
		const strip = 32 // columns that are solved side by side, so that rows are read in pieces
		err = parallel(ctx, (c.width+strip-1)/strip, func(worker, i int) error {
			lines[worker] = grow(lines[worker], 2*c.height*strip)
			solveLines(planes, i*strip, c.width, c.height, min(strip, c.width-i*strip), l, weight, lines[worker])
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// solveLines solves a tridiagonal system (Thomas) for so many neighbouring lines of n samples, which are step apart from start on.
func solveLines(planes [3][]float32, start, step, n, lines int, l float32, weight func(a, b int) float32, memory []float32) {
	upper, before := memory[:n*lines], memory[n*lines:][:n*lines]
	for i := range n {
		for j := range lines {
			at, k := start+i*step+j, i*lines+j
			left, right, last := float32(0), float32(0), float32(0)
			if i > 0 {
				left, last = before[k-lines], upper[k-lines]
			}
			if i+1 < n {
				right = l * weight(at, at+step)
			}
			before[k] = right
			inverse := 1 / (1 + left + right - left*last)
			upper[k] = right * inverse
			for _, p := range planes {
				v := p[at]
				if i > 0 {
					v += left * p[at-step]
				}
				p[at] = v * inverse
			}
		}
	}
	for i := n - 2; i >= 0; i-- {
		for j := range lines {
			at, u := start+i*step+j, upper[i*lines+j]
			for _, p := range planes {
				p[at] += u * p[at+step]
			}
		}
	}
}
