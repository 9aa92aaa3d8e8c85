package neural

import "math"

// shapeMost is how many times longer than the shorter side a whole picture's longer side may be at most.
const shapeMost = 3

// size is what a picture is resized to.
func (w *Whole) size(width, height, multiple int) (int, int) {
	if w.Short == 0 {
		return w.Width, w.Height
	}
	long := float64(max(width, height)) / float64(min(width, height)) * float64(w.Short)
	side := int(math.Round(min(long, shapeMost*float64(w.Short))/float64(multiple))) * multiple
	if width < height {
		return w.Short, side
	}
	return side, w.Short
}

// Resize makes a plane of another size: linear interpolation where it grows, the mean under a triangle where it shrinks, so that
// nothing is skipped. The ends of the picture go on.
func Resize(plane []float32, width, height, toWidth, toHeight int) []float32 {
	across, down := triangles(width, toWidth), triangles(height, toHeight)
	// Sideways first, a row at a time, into only the rows that are needed: the result is small, the plane may be large.
	wide := make([]float32, toWidth*height)
	for y := range height {
		row, to := plane[y*width:][:width], wide[y*toWidth:][:toWidth]
		for x, t := range across {
			sum := float32(0)
			for k, weight := range t.weights {
				sum += row[t.first+k] * weight
			}
			to[x] = sum
		}
	}
	out := make([]float32, toWidth*toHeight)
	for y, t := range down {
		to := out[y*toWidth:][:toWidth]
		for k, weight := range t.weights {
			for x, v := range wide[(t.first+k)*toWidth:][:toWidth] {
				to[x] += v * weight
			}
		}
	}
	return out
}

// triangle is one output sample's share of the samples from first on.
type triangle struct {
	first   int
	weights []float32
}

func triangles(from, to int) []triangle {
	step := float64(from) / float64(to)
	reach := max(step, 1)
	all := make([]triangle, to)
	for i := range all {
		center := (float64(i)+0.5)*step - 0.5
		first := max(int(math.Ceil(center-reach)), 0)
		last := min(int(math.Floor(center+reach)), from-1)
		weights, sum := make([]float32, 0, last-first+1), 0.0
		for k := first; k <= last; k++ {
			weight := 1 - math.Abs(float64(k)-center)/reach
			weights = append(weights, float32(weight))
			sum += weight
		}
		for k := range weights {
			weights[k] /= float32(sum)
		}
		all[i] = triangle{first, weights}
	}
	return all
}
