package image

import (
	"context"
	"math"
	"slices"
)

// noiseModel is what a picture tells of its own noise, in units of its samples (1 is white).
type noiseModel struct {
	// luma is the standard deviation of the noise along opponent's first axis, or of the one plane of a grey picture; chroma that along
	// the other two. Equal white noise in all colours makes them equal.
	luma, chroma float32
	// fine is how much of the luma's deviation is left in the finest grain: 1 for white noise, less after JPEG coding, which keeps coarse
	// grain and drops fine.
	fine float32
	// clipped says for black and white that noise was cut off there.
	clipped [2]bool
}

const (
	// noisePatch is the side of the patches whose covariance is taken.
	noisePatch = 6
	noiseDims  = noisePatch * noisePatch
	// noiseWindow is the side of the windows that a large picture is sampled by, and noiseWindows the most of them.
	noiseWindow, noiseWindows = 256, 12
)

// covariance gathers the second moments of patches that have their mean taken away.
type covariance struct {
	n   int
	sum [noiseDims][noiseDims]float64
}

func (c *covariance) add(o *covariance) {
	c.n += o.n
	for i := range noiseDims {
		for j := i; j < noiseDims; j++ {
			c.sum[i][j] += o.sum[i][j]
		}
	}
}

// eigen are the covariance's eigenvalues in rising order, without that of the mean, which was taken away.
func (c *covariance) eigen() []float64 {
	var m [noiseDims][noiseDims]float64
	for i := range noiseDims {
		for j := i; j < noiseDims; j++ {
			m[i][j] = c.sum[i][j] / float64(c.n)
			m[j][i] = m[i][j]
		}
	}
	values := eigenvalues(&m)
	slices.Sort(values)
	return values[1:]
}

// noiseVariance is the variance of the noise by the eigenvalues: the least of them are those of the noise alone, for what is depicted
// varies in few directions (Pyatykh, Hesser and Zheng, "Image Noise Level Estimation by Principal Component Analysis", 2013). Of n
// patches, the least quarter lies below the truth by what chance makes of so few (Marchenko and Pastur, 1967).
func noiseVariance(eigen []float64, n int) float64 {
	least, mean := eigen[:len(eigen)/4], 0.0
	for _, v := range least {
		mean += v
	}
	mean /= float64(len(least))
	const depth = 1.3 // of the least quarter's mean, in half widths of the spread
	return max(mean, 0) / (1 - depth*math.Sqrt(noiseDims/float64(n)))
}

// textured are the covariances of patches by how much their neighbours differ, in half octaves.
type textured [textureBins]*covariance

const textureBins = 48

// textureBin is for the sum of the squared differences of all neighbours within a patch, in squared 8-bit codes.
func textureBin(energy float64) int {
	return min(max(int(2*math.Log2(energy*255*255+1e-9))+8, 0), textureBins-1)
}

func (t *textured) add(o *textured) {
	for i, c := range o {
		switch {
		case c == nil:
		case t[i] == nil:
			t[i] = c
		default:
			t[i].add(c)
		}
	}
}

// fewestPatches are needed to say anything about noise.
const fewestPatches = 10 * noiseDims

// deviation estimates the standard deviation of the noise from the weakly textured patches alone (Liu, Tanaka and Okutomi, "Single-Image
// Noise Level Estimation for Blind Denoising", 2013): those whose neighbours differ no more than noise of the deviation found
// so far makes them. It is below 0 when there are too few patches.
func (t *textured) deviation() float64 {
	// Noise of variance 1 gives an energy of 120 with a deviation of 33: one in 20,000 has more.
	const energyMost = 300
	limit := textureBins - 1
	variance := 0.0
	for range 12 {
		var weak covariance
		for i, c := range t {
			if c == nil || (i > limit && weak.n >= fewestPatches) {
				continue
			}
			weak.add(c)
		}
		if weak.n < fewestPatches {
			return -1
		}
		eigen := weak.eigen()
		variance = noiseVariance(eigen, weak.n)
		next := textureBin(energyMost * variance)
		if next >= limit {
			break
		}
		limit = next
	}
	return math.Sqrt(variance)
}

// eigenvalues finds those of a symmetric matrix by cyclic Jacobi rotations; it destroys the matrix.
func eigenvalues(m *[noiseDims][noiseDims]float64) []float64 {
	const sweeps = 12 // six reach float64's precision
	for range sweeps {
		rest, whole := 0.0, 0.0
		for i := range noiseDims {
			whole += m[i][i] * m[i][i]
			for j := i + 1; j < noiseDims; j++ {
				rest += m[i][j] * m[i][j]
			}
		}
		if rest <= 1e-18*whole {
			break
		}
		for p := range noiseDims {
			for q := p + 1; q < noiseDims; q++ {
				rotate(m, p, q)
			}
		}
	}
	values := make([]float64, noiseDims)
	for i := range values {
		values[i] = m[i][i]
	}
	return values
}

// rotate makes the element (p, q) zero.
func rotate(m *[noiseDims][noiseDims]float64, p, q int) {
	off := m[p][q]
	if off == 0 {
		return
	}
	theta := (m[q][q] - m[p][p]) / (2 * off)
	t := 1 / (math.Abs(theta) + math.Sqrt(theta*theta+1))
	if theta < 0 {
		t = -t
	}
	cos := 1 / math.Sqrt(t*t+1)
	sin := t * cos
	for k := range noiseDims {
		a, b := m[k][p], m[k][q]
		m[k][p], m[k][q] = cos*a-sin*b, sin*a+cos*b
	}
	rowP, rowQ := &m[p], &m[q]
	for k := range noiseDims {
		a, b := rowP[k], rowQ[k]
		rowP[k], rowQ[k] = cos*a-sin*b, sin*a+cos*b
	}
}

// noiseSample is what the windows of a picture add up to.
type noiseSample struct {
	// axes has the covariances of the opponent axes at full size and, for the first, at a half and a quarter of it.
	axes [3][3]textured
	// cut are those of the axes at full size where more of a patch is clipped.
	cut      [3]textured
	clipping clipping
}

func (s *noiseSample) add(o *noiseSample) {
	s.clipping.add(&o.clipping)
	for c := range s.axes {
		for l := range s.axes[c] {
			s.axes[c][l].add(&o.axes[c][l])
		}
		s.cut[c].add(&o.cut[c])
	}
}

// measureNoise estimates the noise of the picture from windows spread over it. The work does not grow with large pictures.
func measureNoise(ctx context.Context, src *raster) (noiseModel, error) {
	windows := noiseWindowsOf(src.width, src.height)
	workers := make([]noiseSample, processors())
	patches, tiles := make([]patch, processors()), make([]tile, processors())
	err := parallel(ctx, len(windows), func(worker, i int) error {
		w := windows[i]
		p := &patches[worker]
		if err := p.load(src, &tiles[worker], w[0], w[1], w[2], w[3]); err != nil {
			return err
		}
		workers[worker].window(p, src.grey)
		return nil
	})
	if err != nil {
		return noiseModel{}, err
	}
	all := &workers[0]
	for i := 1; i < len(workers); i++ {
		all.add(&workers[i])
	}
	return all.model(src.grey), nil
}

// noiseWindowsOf spreads windows (x, y, width, height) evenly over a picture; a small picture is one window, or a few.
func noiseWindowsOf(width, height int) [][4]int {
	across, down := (width+noiseWindow-1)/noiseWindow, (height+noiseWindow-1)/noiseWindow
	for across*down > noiseWindows {
		if across*height >= down*width && across > 1 {
			across--
		} else {
			down--
		}
	}
	var all [][4]int
	w, h := min(noiseWindow, width), min(noiseWindow, height)
	place := func(i, n, room int) int {
		if n == 1 {
			return room / 2
		}
		return i * room / (n - 1)
	}
	for j := range down {
		for i := range across {
			all = append(all, [4]int{place(i, across, width-w), place(j, down, height-h), w, h})
		}
	}
	return all
}

// window adds the patches of one window.
func (s *noiseSample) window(p *patch, grey bool) {
	step := 1
	if p.width*p.height > 128*128 {
		step = 2
	}
	clipped := clippedPixels(p)
	for c := range 3 {
		s.clipping.window(p.planes[c], p.width, p.height)
		if grey {
			break
		}
	}
	for c, axis := range opponentPlanes(p, grey) {
		gather(axis, clipped, p.width, p.height, step, &s.axes[c][0], &s.cut[c])
		if c == 0 {
			mask, w, h := clipped, p.width, p.height
			for size := 1; size < 3; size++ {
				axis, mask, w, h = halved(axis, w, h), halved(mask, w, h), w/2, h/2
				gather(axis, mask, w, h, 1, &s.axes[c][size], nil)
			}
		}
	}
}

// clippedPixels has 1 for those that are not opaque or where a colour is at an end of its range, where noise is cut off.
func clippedPixels(p *patch) []float32 {
	const low, high = 0.5 / 255, 254.5 / 255
	all := make([]float32, p.width*p.height)
	for i := range all {
		r, g, b := p.planes[0][i], p.planes[1][i], p.planes[2][i]
		if p.planes[3][i] != 1 || r < low || g < low || b < low || r > high || g > high || b > high {
			all[i] = 1
		}
	}
	return all
}

// opponentPlanes are the axes of opponent as new planes; a grey picture is its own one.
func opponentPlanes(p *patch, grey bool) [][]float32 {
	if grey {
		return [][]float32{p.planes[0]}
	}
	n := p.width * p.height
	axes := [][]float32{make([]float32, n), make([]float32, n), make([]float32, n)}
	for i := range n {
		axes[0][i], axes[1][i], axes[2][i] = opponent(p.planes[0][i], p.planes[1][i], p.planes[2][i])
	}
	return axes
}

// opponent turns the colours into luma and two colour differences. The axes are orthonormal, so that white noise stays so.
func opponent(r, g, b float32) (y, u, v float32) {
	const third, half, sixth = 0.57735026919, 0.70710678119, 0.40824829046
	return (r + g + b) * third, (r - b) * half, (r - 2*g + b) * sixth
}

// coloursOf is opponent's inverse.
func coloursOf(y, u, v float32) (r, g, b float32) {
	const third, half, sixth = 0.57735026919, 0.70710678119, 0.40824829046
	return y*third + u*half + v*sixth, y*third - 2*v*sixth, y*third - u*half + v*sixth
}

// halved is the plane at half the size, scaled so that white noise keeps its deviation.
func halved(plane []float32, width, height int) []float32 {
	w, h := width/2, height/2
	half := make([]float32, w*h)
	for y := range h {
		for x := range w {
			i := 2*y*width + 2*x
			half[y*w+x] = (plane[i] + plane[i+1] + plane[i+width] + plane[i+width+1]) / 2
		}
	}
	return half
}

// gather adds the patches of a plane to the covariances. A patch with more than a few clipped pixels goes to cut, if there is
// one, and one with many nowhere.
func gather(plane, clipped []float32, width, height, step int, to, cut *textured) {
	const mostClipped, mostCut = noiseDims / 12, noiseDims / 2
	var v [noiseDims]float64
	for y := 0; y+noisePatch <= height; y += step {
		for x := 0; x+noisePatch <= width; x += step {
			mean, lost := 0.0, float32(0)
			for j := range noisePatch {
				at := (y+j)*width + x
				for i, s := range plane[at : at+noisePatch] {
					v[j*noisePatch+i] = float64(s)
					mean += float64(s)
					lost += clipped[at+i]
				}
			}
			if lost > mostCut || (lost > mostClipped && cut == nil) {
				continue
			}
			mean /= noiseDims
			into := cut
			if lost <= mostClipped {
				into = to
			}
			for i := range v {
				v[i] -= mean
			}
			bin := &into[textureBin(patchEnergy(&v))]
			if *bin == nil {
				*bin = new(covariance)
			}
			(*bin).patch(&v)
		}
	}
}

// patchEnergy is the sum of the squared differences of all neighbours in a patch.
func patchEnergy(v *[noiseDims]float64) float64 {
	energy := 0.0
	for y := range noisePatch {
		row := v[y*noisePatch:][:noisePatch]
		for x := 1; x < noisePatch; x++ {
			d := row[x] - row[x-1]
			energy += d * d
		}
		if y > 0 {
			for x, above := range v[(y-1)*noisePatch:][:noisePatch] {
				d := row[x] - above
				energy += d * d
			}
		}
	}
	return energy
}

// patch adds one patch.
func (c *covariance) patch(v *[noiseDims]float64) {
	c.n++
	for i, a := range v {
		row := &c.sum[i]
		for j := i; j < noiseDims; j++ {
			row[j] += a * v[j]
		}
	}
}

// model turns the covariances into deviations.
func (s *noiseSample) model(grey bool) noiseModel {
	m := noiseModel{}
	var full [3]float64
	for c := range full {
		if full[c] = s.axes[c][0].deviation(); full[c] < 0 {
			const lostByClipping = 1.25 // of the deviation, by what is cut off from patches that are clipped in part
			full[c] = max(0, lostByClipping*s.cut[c].deviation())
		}
	}
	luma, chroma := full[0], math.Sqrt((full[1]*full[1]+full[2]*full[2])/2)
	coarse := 1.0
	half, quarter := s.axes[0][1].deviation(), s.axes[0][2].deviation()
	if half > 0 && luma > 0 {
		coarse = half / luma
	}
	m.luma, m.chroma, m.fine = float32(believable(luma, chroma, coarse, grey)), float32(chroma), 1
	// Noise that went through JPEG is as strong at a quarter of the size as at a half, and weaker at full size; what a photo shows is
	// several times as strong at a quarter. JPEG takes the noise of colours away altogether. Below so many codes it may be a clean photo's grain.
	const grain, level = 3.2 / 255, 1.4
	if half > grain && quarter > half/level && quarter < half*level && float64(m.luma) < 0.8*half && chroma < 0.4*half {
		m.fine = float32(max(luma/half, 0.3))
		m.luma = float32(half)
	}
	m.clipped = s.clipping.found(math.Sqrt((float64(m.luma*m.luma) + 2*chroma*chroma) / 3))
	if grey {
		m.chroma = 0
		m.clipped = s.clipping.found(float64(m.luma))
	}
	return m
}

// believable is what to take for the luma's noise when so much was found. Fine texture looks like noise in luma, hardly ever in colour
// differences; and where it is taken for noise, there is far more of it at half the size.
func believable(luma, chroma, coarse float64, grey bool) float64 {
	const near, nearPart = 1.25, 0.25
	if grey {
		chroma = 0
	}
	if luma <= chroma {
		return luma
	}
	if luma < near*chroma {
		return chroma + nearPart*(luma-chroma)
	}
	const white, texture = 1.4, 2.0
	trust := min(max((texture-coarse)/(texture-white), 0), 1)
	return chroma + trust*(luma-chroma)
}

// clipping counts how often samples lie at an end of the range, by the mean of the 4x4 around them in 64 equal parts.
type clipping struct {
	samples [64]int
	ends    [2][64]int
}

func (c *clipping) add(o *clipping) {
	for i := range c.samples {
		c.samples[i] += o.samples[i]
		c.ends[0][i] += o.ends[0][i]
		c.ends[1][i] += o.ends[1][i]
	}
}

func (c *clipping) window(plane []float32, width, height int) {
	const side, area = 4, 16
	for y := 0; y+side <= height; y += side {
		for x := 0; x+side <= width; x += side {
			mean, low, high := float32(0), 0, 0
			for j := range side {
				for _, v := range plane[(y+j)*width+x:][:side] {
					mean += v
					if v <= 0 {
						low++
					} else if v >= 1 {
						high++
					}
				}
			}
			if low == area || high == area {
				continue // flat, and nothing to be learnt from
			}
			bin := min(int(mean/area*64), 63)
			c.samples[bin] += area
			c.ends[0][bin] += low
			c.ends[1][bin] += high
		}
	}
}

// found says for black and white whether noise of the deviation is cut off there: of what should then lie within one deviation of the
// end, a quarter or more lies at it.
func (c *clipping) found(deviation float64) (ends [2]bool) {
	const least, fewest = 0.2, 256
	bins := min(int(0.8*deviation*64)+1, 16)
	if deviation*255 < 4 {
		return ends // what could be won is less than a code
	}
	for end := range ends {
		all, at := 0, 0
		for i := range bins {
			bin := i
			if end == 1 {
				bin = 63 - i
			}
			all += c.samples[bin]
			at += c.ends[end][bin]
		}
		ends[end] = all >= fewest && float64(at) >= least*float64(all)
	}
	return ends
}

// unclipped maps the mean of noise that was cut off at 0 to what it was before: the mean of a normal variable of the given mean
// and deviation 1 with its negative part made 0 is mean*Phi(mean)+phi(mean).
func unclipped(mean float64) float64 {
	low, high := 0.0, mean
	for range 40 {
		x := (low + high) / 2
		if x*0.5*math.Erfc(-x/math.Sqrt2)+math.Exp(-x*x/2)/math.Sqrt(2*math.Pi) < mean {
			low = x
		} else {
			high = x
		}
	}
	return low
}
