package image

import (
	"context"
	"math"
)

// resizer makes a picture of another size with the Lanczos-3 kernel, widened when the picture shrinks so that every source
// pixel counts. It works in two passes, sideways and then down, a band of output rows at a time, on gamma-encoded samples
// premultiplied by alpha, as nearly every program does.
type resizer struct {
	src           *raster
	width, height int
	across, down  []tap
	tiles         []tile
}

// tap is what one output pixel is made of along one axis: source pixels from first on, by their weights.
type tap struct {
	first   int
	weights []float32
}

// taps computes the weights of all output pixels of an axis. Beyond the picture its edge goes on.
func taps(from, to int) []tap {
	const lobes = 3
	step := float64(from) / float64(to)
	wide := max(step, 1)
	all := make([]tap, to)
	for i := range all {
		center := (float64(i)+0.5)*step - 0.5
		first, last := int(math.Ceil(center-lobes*wide)), int(math.Floor(center+lobes*wide))
		low, high := max(first, 0), min(last, from-1)
		weights, sum := make([]float32, high-low+1), 0.0
		for j := first; j <= last; j++ {
			w := lanczos3((float64(j) - center) / wide)
			weights[min(max(j, low), high)-low] += float32(w)
			sum += w
		}
		for k := range weights {
			weights[k] /= float32(sum)
		}
		all[i] = tap{low, weights}
	}
	return all
}

func newResizer(src *raster, width, height int) *resizer {
	return &resizer{src: src, width: width, height: height, across: taps(src.width, width), down: taps(src.height, height), tiles: make([]tile, processors())}
}

// resizeBand bounds the output rows made at a time, and resizeBytes the memory of the source rows made narrow for them.
const (
	resizeBand  = 128
	resizeBytes = 32 << 20
)

// rows makes all output rows, a band at a time. emit gets planes with width samples a row, premultiplied and within range.
func (z *resizer) rows(ctx context.Context, emit func(y, n int, planes [4][]float32) error) error {
	planes := planesOf(z.src)
	var narrow, out [4][]float32
	for y := 0; y < z.height; {
		n := z.bandFrom(y)
		first := z.down[y].first
		last := z.down[y+n-1].first + len(z.down[y+n-1].weights)
		for _, c := range []int{0, 1, 2, 3} {
			out[c] = grow(out[c], n*z.width)
		}
		for _, c := range planes {
			narrow[c] = grow(narrow[c], (last-first)*z.width)
		}
		err := parallel(ctx, last-first, func(worker, row int) error {
			t := &z.tiles[worker]
			if err := t.load(z.src, 0, first+row, z.src.width, 1, planes); err != nil {
				return err
			}
			for _, c := range planes {
				sideways(z.across, t.low[c], narrow[c][row*z.width:][:z.width])
			}
			return nil
		})
		if err != nil {
			return err
		}
		err = parallel(ctx, n, func(_, row int) error {
			d := z.down[y+row]
			for _, c := range planes {
				downwards(d.weights, narrow[c][(d.first-first)*z.width:], out[c][row*z.width:][:z.width])
			}
			z.settle(out, row)
			return nil
		})
		if err != nil {
			return err
		}
		if err := emit(y, n, out); err != nil {
			return err
		}
		y += n
	}
	return nil
}

// bandFrom is how many output rows from y on can be made within the memory bound: at least one.
func (z *resizer) bandFrom(y int) int {
	most := max(resizeBytes/(16*z.width), 1)
	n := 1
	for n < min(resizeBand, z.height-y) {
		next := z.down[y+n]
		if next.first+len(next.weights)-z.down[y].first > most {
			break
		}
		n++
	}
	return n
}

func sideways(taps []tap, from, to []float32) {
	for x, t := range taps[:len(to)] {
		part := from[t.first:][:len(t.weights)]
		sum0, sum1 := float32(0), float32(0)
		i := 0
		for ; i+4 <= len(part); i += 4 {
			v, w := (*[4]float32)(part[i:]), (*[4]float32)(t.weights[i:])
			sum0 += v[0]*w[0] + v[1]*w[1]
			sum1 += v[2]*w[2] + v[3]*w[3]
		}
		for ; i < len(part); i++ {
			sum0 += part[i] * t.weights[i]
		}
		to[x] = sum0 + sum1
	}
}

func downwards(weights, from, to []float32) {
	width := len(to)
	clear(to)
	k := 0
	for ; k+4 <= len(weights); k += 4 {
		w0, w1, w2, w3 := weights[k], weights[k+1], weights[k+2], weights[k+3]
		a, b := from[k*width:][:width], from[(k+1)*width:][:width]
		c, d := from[(k+2)*width:][:width], from[(k+3)*width:][:width]
		for x := range to {
			to[x] += (a[x]*w0 + b[x]*w1) + (c[x]*w2 + d[x]*w3)
		}
	}
	for ; k < len(weights); k++ {
		a, w := from[k*width:][:width], weights[k]
		for x := range to {
			to[x] += a[x] * w
		}
	}
}

// settle holds a row within range, and fills the planes that were not computed.
func (z *resizer) settle(out [4][]float32, row int) {
	red, green, blue, alpha := out[0][row*z.width:][:z.width], out[1][row*z.width:][:z.width], out[2][row*z.width:][:z.width], out[3][row*z.width:][:z.width]
	if !z.src.alpha {
		for x := range alpha {
			alpha[x] = 1
		}
	}
	if z.src.grey {
		copy(green, red)
		copy(blue, red)
	}
	for x, a := range alpha {
		a = hem(a, 1)
		alpha[x], red[x], green[x], blue[x] = a, hem(red[x], a), hem(green[x], a), hem(blue[x], a)
	}
}

// hem holds a sample within 0 to most.
func hem(v, most float32) float32 {
	if v < 0 {
		return 0
	}
	if v > most {
		return most
	}
	return v
}

// memory estimates the bytes that resizing takes beside its source and its result.
func resizeMemory() int64 { return 3 * resizeBytes }

// resized is the picture in another size, as a raster of its own.
func (r *raster) resized(ctx context.Context, width, height int, scratch string, inFile bool) (*raster, error) {
	out, err := newRaster(scratch, width, height, r.deep, inFile)
	if err != nil {
		return nil, err
	}
	out.alpha, out.grey = r.alpha, r.grey
	if z := newFixedResizer(r, width, height); z != nil {
		if err := z.into(ctx, out); err != nil {
			out.Close()
			return nil, err
		}
		return out, nil
	}
	var band []byte
	stride := width * out.pixelBytes()
	err = newResizer(r, width, height).rows(ctx, func(y, n int, planes [4][]float32) error {
		if cap(band) < n*stride {
			band = make([]byte, n*stride)
		}
		band = band[:n*stride]
		p := &patch{width: width, height: n, planes: planes}
		for row := range n {
			p.store(band[row*stride:][:stride], 0, row, out.deep)
		}
		return out.write(y, band)
	})
	if err != nil {
		out.Close()
		return nil, err
	}
	return out, nil
}

// shrunk is the whole picture as planes with no more than the given number of pixels: what global looks are computed on.
// A picture that has fewer keeps its size.
func (r *raster) shrunk(ctx context.Context, pixels int) (*patch, error) {
	width, height := workSize(r.width, r.height, pixels)
	out := &patch{width: width, height: height}
	for c := range out.planes {
		out.planes[c] = make([]float32, width*height)
	}
	err := newResizer(r, width, height).rows(ctx, func(y, n int, planes [4][]float32) error {
		for c := range planes {
			copy(out.planes[c][y*width:], planes[c][:n*width])
		}
		return nil
	})
	return out, err
}

// workSize is the size of a picture reduced to no more than so many pixels, each side at least one.
func workSize(width, height, pixels int) (w, h int) {
	factor := math.Sqrt(float64(pixels) / (float64(width) * float64(height)))
	if factor >= 1 {
		return width, height
	}
	w = min(max(int(math.Round(float64(width)*factor)), 1), pixels)
	h = min(max(int(math.Round(float64(height)*factor)), 1), pixels)
	return w, min(h, max(pixels/w, 1))
}
