package image

import (
	"context"
	"math"
	"slices"
)

// measureBlur estimates how blurred the sharp edges of a picture are: the standard deviation in pixels of the Gaussian that would
// make a step look so. 0 when there are too few edges to tell. A picture is blurred once more, by a known amount, and at each
// edge the ratio of the two gradients tells its own blur (Zhuo and Sim, "Defocus map estimation from a single image", 2011).
// Most edges of things are soft by nature, so that a low part of them counts. deviation is the noise of the luma.
func measureBlur(ctx context.Context, src *raster, deviation float32) (float64, error) {
	windows := noiseWindowsOf(src.width, src.height)
	workers := make([][]float32, processors())
	err := parallel(ctx, len(windows), func(worker, i int) error {
		w := windows[i]
		p, err := patchOf(src, w[0], w[1], w[2], w[3])
		if err != nil {
			return err
		}
		bright := make([]float32, len(p.planes[0]))
		luma(bright, p.planes[0], p.planes[1], p.planes[2])
		workers[worker] = edgeBlurs(bright, p.width, p.height, deviation, workers[worker])
		return nil
	})
	if err != nil {
		return 0, err
	}
	all := slices.Concat(workers...)
	const fewest = 100
	if len(all) < fewest {
		return 0, nil
	}
	slices.Sort(all)
	const share = 0.2
	return trueBlur(float64(all[int(share*float64(len(all)))])), nil
}

// trueBlur maps what measureBlur finds at the edges to the blur that was put on a photo: measured on the BSDS photos, whose own sharpness
// counts as none.
func trueBlur(found float64) float64 {
	table := [...][2]float64{{0.74, 0}, {0.84, 0.6}, {1.0, 0.9}, {1.21, 1.2}, {1.53, 1.6}, {1.79, 2}, {2.35, 3}}
	if found <= table[0][0] {
		return 0
	}
	for i := 1; i < len(table); i++ {
		a, b := table[i-1], table[i]
		if found <= b[0] || i == len(table)-1 {
			return a[1] + (found-a[0])/(b[0]-a[0])*(b[1]-a[1])
		}
	}
	return 0
}

// edgeBlurs adds the blur at every strong edge of a plane.
func edgeBlurs(plane []float32, width, height int, deviation float32, to []float32) []float32 {
	const again = 1.0 // the known blur, in pixels
	const radius = 4
	if width <= 2*radius+2 || height <= 2*radius+2 {
		return to
	}
	kernel := gaussianTaps(again, radius)
	soft := convolved(plane, width, height, kernel)
	const least = 0.06 // of the range across two pixels: an edge that shows
	strong := max(least, 8*deviation)
	for y := radius + 1; y < height-radius-1; y++ {
		for x := radius + 1; x < width-radius-1; x++ {
			at := y*width + x
			dx, dy := plane[at+1]-plane[at-1], plane[at+width]-plane[at-width]
			size := dx*dx + dy*dy
			if size < strong*strong || !ridge(plane, at, width, dx, dy, size) {
				continue
			}
			sx, sy := soft[at+1]-soft[at-1], soft[at+width]-soft[at-width]
			ratio := math.Sqrt(float64(size / max(sx*sx+sy*sy, 1e-12)))
			if ratio <= 1.01 {
				continue // softer than can be told
			}
			to = append(to, float32(again/math.Sqrt(ratio*ratio-1)))
		}
	}
	return to
}

// ridge says that here is the middle of a step: the gradient is largest here, and along its direction the plane only rises or only
// falls. A thin line or fine texture would look sharper than it is.
func ridge(plane []float32, at, width int, dx, dy, size float32) bool {
	step, along := 1, dx
	if dy*dy > dx*dx {
		step, along = width, dy
	}
	for _, other := range [2]int{at - step, at + step} {
		ox, oy := plane[other+1]-plane[other-1], plane[other+width]-plane[other-width]
		if ox*ox+oy*oy > size {
			return false
		}
	}
	const reach, tolerance = 4, 0.004
	for k := -reach; k < reach; k++ {
		if d := plane[at+(k+1)*step] - plane[at+k*step]; (along > 0 && d < -tolerance) || (along < 0 && d > tolerance) {
			return false
		}
	}
	return true
}

func gaussianTaps(deviation float64, radius int) []float32 {
	taps, sum := make([]float32, 2*radius+1), 0.0
	for i := range taps {
		d := float64(i - radius)
		sum += math.Exp(-d * d / (2 * deviation * deviation))
	}
	for i := range taps {
		d := float64(i - radius)
		taps[i] = float32(math.Exp(-d*d/(2*deviation*deviation)) / sum)
	}
	return taps
}

// convolved is the plane convolved with the taps along both axes; beyond its edge the plane goes on.
func convolved(plane []float32, width, height int, taps []float32) []float32 {
	radius := len(taps) / 2
	wide, out := make([]float32, len(plane)), make([]float32, len(plane))
	line := make([]float32, width+2*radius)
	for y := range height {
		row := plane[y*width:][:width]
		for i := range line {
			line[i] = row[min(max(i-radius, 0), width-1)]
		}
		to := wide[y*width:][:width]
		for k, w := range taps {
			for x, v := range line[k:][:width] {
				to[x] += w * v
			}
		}
	}
	for y := range height {
		to := out[y*width:][:width]
		for k, w := range taps {
			for x, v := range wide[min(max(y+k-radius, 0), height-1)*width:][:width] {
				to[x] += w * v
			}
		}
	}
	return out
}

// wienerKernel is the linear filter that takes a Gaussian blur out of a photo best (Wiener, 1949): blur is the deviation in pixels, noise
// that of white noise in samples of 0 to 1. Photos have a power that falls with the square of the frequency. Its sum is 1; it has
// 2*radius+1 rows and columns.
func wienerKernel(blur, noise float64, radius int) []float32 {
	const size = 64
	// photoPower is in squared samples of 0 to 1, at a frequency of one cycle a pixel.
	const photoPower = 100.0 / 255 / 255
	var response [size][size]float64
	for v := range size {
		for u := range size {
			fu, fv := float64((u+size/2)%size-size/2)/size, float64((v+size/2)%size-size/2)/size
			f := fu*fu + fv*fv
			h := math.Exp(-2 * math.Pi * math.Pi * blur * blur * f)
			response[v][u] = h / (h*h + noise*noise*(f+1e-4)/photoPower)
		}
	}
	side := 2*radius + 1
	var cosines [size]float64
	for i := range cosines {
		cosines[i] = math.Cos(2 * math.Pi * float64(i) / size)
	}
	// The response is even along both axes, so that its transform is a product of cosines.
	across := make([]float64, size*side)
	for v := range size {
		for x := range side {
			for u := range size {
				across[v*side+x] += response[v][u] * cosines[u*(x-radius+size)%size]
			}
		}
	}
	kernel, sum := make([]float64, side*side), 0.0
	for y := range side {
		for x := range side {
			at := y*side + x
			for v := range size {
				kernel[at] += across[v*side+x] * cosines[v*(y-radius+size)%size]
			}
			wx, wy := float64(x-radius)/float64(radius+1), float64(y-radius)/float64(radius+1)
			kernel[at] *= (1 - wx*wx) * (1 - wy*wy) // softly to nothing where it is cut
			sum += kernel[at]
		}
	}
	out := make([]float32, len(kernel))
	for i, v := range kernel {
		out[i] = float32(v / sum)
	}
	return out
}
