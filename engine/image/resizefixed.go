package image

import (
	"context"
	"encoding/binary"
	"math"
)

// fixedResizer is the resizer for opaque pictures of 8 bits: the same two passes in whole numbers, on red, green and blue together. A pixel is a
// word of three lanes of 21 bits, so that one multiplication weighs all three; lanes carry an offset that keeps every sum above zero, and whole-number
// arithmetic does not care that it was added before the other lanes were. Results differ from the exact ones by a code at most.
type fixedResizer struct {
	src           *raster
	width, height int
	across, down  []fixedTap
	workers       []fixedWorker
}

type fixedTap struct {
	first   int
	weights []int32
}

const (
	laneBits = 21
	laneOnes = 1 | 1<<laneBits | 1<<(2*laneBits)
	laneMask = 1<<laneBits - 1
	// Weights sideways sum to 2^11, of which one bit more than a code's is kept between the passes; weights down sum to 2^10. Lanczos-3 overshoots
	// by at most 0.28 of the range, and the offsets leave room for 0.3: lanes stay below 2^20.4.
	acrossBits, keptBits, downBits = 11, 1, 10
	acrossDrop                     = acrossBits - keptBits
	keptOffset                     = 160
	acrossOffset                   = keptOffset<<acrossDrop + 1<<(acrossDrop-1)
	downOffset                     = 256 << downBits
	keptMask                       = (laneMask >> acrossDrop) * laneOnes
	// fixedShrinkMost is how far a picture may shrink: beyond it so many weights are so small that whole numbers do not hold them.
	fixedShrinkMost = 6
	// fixedRows is how many output rows one worker makes at a time.
	fixedRows = 64
)

type fixedWorker struct {
	raw []byte
	// line is a source row; kept are rows made narrow, in a ring.
	line []uint64
	kept [][]uint64
	// sum is an output row.
	sum []uint64
	out []byte
}

// fixedTaps are the weights of an axis in whole numbers that sum to 2^bits.
func fixedTaps(from, to int, bits uint) []fixedTap {
	exact := taps(from, to)
	all := make([]fixedTap, len(exact))
	for i, t := range exact {
		weights, rest, largest := make([]int32, len(t.weights)), int32(1)<<bits, 0
		for k, w := range t.weights {
			weights[k] = int32(math.Round(float64(w) * float64(int32(1)<<bits)))
			rest -= weights[k]
			if weights[k] > weights[largest] {
				largest = k
			}
		}
		weights[largest] += rest
		all[i] = fixedTap{t.first, weights}
	}
	return all
}

// newFixedResizer is nil for what whole numbers are not for.
func newFixedResizer(src *raster, width, height int) *fixedResizer {
	if src.deep || src.alpha || src.width > fixedShrinkMost*width || src.height > fixedShrinkMost*height {
		return nil
	}
	return &fixedResizer{
		src: src, width: width, height: height, workers: make([]fixedWorker, processors()),
		across: fixedTaps(src.width, width, acrossBits), down: fixedTaps(src.height, height, downBits),
	}
}

// into makes the whole picture.
func (z *fixedResizer) into(ctx context.Context, to *raster) error {
	return parallel(ctx, (z.height+fixedRows-1)/fixedRows, func(worker, i int) error {
		y := i * fixedRows
		return z.band(&z.workers[worker], y, min(fixedRows, z.height-y), to)
	})
}

// band makes n output rows from y.
func (z *fixedResizer) band(w *fixedWorker, y, n int, to *raster) error {
	if w.line == nil {
		most := 0
		for _, d := range z.down {
			most = max(most, len(d.weights))
		}
		w.raw, w.line, w.sum, w.out = make([]byte, 4*z.src.width), make([]uint64, z.src.width), make([]uint64, z.width), make([]byte, 4*z.width*fixedRows)
		w.kept = make([][]uint64, most)
		for i := range w.kept {
			w.kept[i] = make([]uint64, z.width)
		}
	}
	next := z.down[y].first // the first source row not yet made narrow
	for row := range n {
		d := z.down[y+row]
		for ; next < d.first+len(d.weights); next++ {
			pixels := w.raw
			if z.src.file == nil {
				pixels = z.src.pix[z.src.offset(0, next):][:4*z.src.width]
			} else if err := z.src.read(0, next, pixels); err != nil {
				return err
			}
			toLanes(w.line, pixels)
			fixedSideways(z.across, w.line, w.kept[next%len(w.kept)])
		}
		fixedDownwards(d, w.kept, w.sum)
		fromLanes(w.out[4*z.width*row:][:4*z.width], w.sum)
	}
	return to.write(y, w.out[:4*z.width*n])
}

func toLanes(line []uint64, pixels []byte) {
	for x := range line {
		p := binary.LittleEndian.Uint32(pixels[4*x:])
		line[x] = uint64(p&0xFF) | uint64(p&0xFF00)<<(laneBits-8) | uint64(p&0xFF0000)<<(2*laneBits-16)
	}
}

func fixedSideways(taps []fixedTap, from, to []uint64) {
	for x := range to {
		t := &taps[x]
		weights := t.weights
		part := from[t.first:][:len(weights)]
		sum, other := uint64(acrossOffset*laneOnes), uint64(0)
		for len(weights) >= 4 && len(part) >= 4 {
			w, v := (*[4]int32)(weights), (*[4]uint64)(part)
			sum += v[0]*uint64(w[0]) + v[1]*uint64(w[1])
			other += v[2]*uint64(w[2]) + v[3]*uint64(w[3])
			weights, part = weights[4:], part[4:]
		}
		for i, w := range weights {
			sum += part[i] * uint64(w)
		}
		to[x] = (sum + other) >> acrossDrop & keptMask
	}
}

func fixedDownwards(d fixedTap, ring [][]uint64, sum []uint64) {
	width, rows := len(sum), len(d.weights)
	row := func(k int) ([]uint64, uint64) {
		return ring[(d.first+k)%len(ring)][:width], uint64(d.weights[k])
	}
	first, w0 := row(0)
	const offset = uint64(downOffset * laneOnes)
	for x := range sum {
		sum[x] = offset + first[x]*w0
	}
	k := 1
	for ; k+4 <= rows; k += 4 {
		a, w0 := row(k)
		b, w1 := row(k + 1)
		c, w2 := row(k + 2)
		e, w3 := row(k + 3)
		a, b, c, e = a[:len(sum)], b[:len(sum)], c[:len(sum)], e[:len(sum)]
		for x := range sum {
			sum[x] += a[x]*w0 + b[x]*w1 + c[x]*w2 + e[x]*w3
		}
	}
	for ; k < rows; k++ {
		a, w := row(k)
		a = a[:len(sum)]
		for x := range sum {
			sum[x] += a[x] * w
		}
	}
}

func fromLanes(out []byte, sum []uint64) {
	const drop = keptBits + downBits
	const offset = int32(downOffset + keptOffset<<downBits - 1<<(drop-1))
	for x, s := range sum {
		r := clamp8((int32(s&laneMask) - offset) >> drop)
		g := clamp8((int32(s>>laneBits&laneMask) - offset) >> drop)
		b := clamp8((int32(s>>(2*laneBits)&laneMask) - offset) >> drop)
		binary.LittleEndian.PutUint32(out[4*x:], uint32(r)|uint32(g)<<8|uint32(b)<<16|0xFF<<24)
	}
}
