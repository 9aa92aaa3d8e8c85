package image

import (
	"math"
	"slices"
)

// scratches are the places of an old photo that scratches and dust have taken, found on a reduced picture.
type scratches struct {
	width, height int
	// mask is true where something is to be filled.
	mask []bool
	// lines and spots are how many were found, share is the part of the picture that they take.
	lines, spots int
	share        float64
	// scaleX and scaleY are mask pixels for a pixel of the picture; reach is how far a fill looks, in pixels of the picture.
	scaleX, scaleY float64
	reach          int
}

// Limits that keep a photo's own lines and specks: a scratch is long, thin, straight, and brighter or darker than nearly all of the picture.
const (
	scratchPixels     = 1_500_000 // of the reduced picture
	scratchContrast   = 0.14
	scratchSide       = 4    // how far beside a line it is compared, in pixels
	scratchLength     = 0.25 // of the longer side
	scratchWidthMost  = 4
	dustContrast      = 0.2
	dustAreaMost      = 40
	scratchShareMost  = 0.02 // of the picture
	scratchBelieved   = 0.04 // more of the picture that looks like lines is texture
	scratchesMost     = 400
	scratchReachMost  = 32
	scratchDilatation = 2
)

// findScratches looks for scratches and dust on a reduced luma. It returns nil when there are none, or so many that they must be
// something else.
func findScratches(bright []float32, width, height int) *scratches {
	if width < 4*scratchSide || height < 4*scratchSide {
		return nil
	}
	sorted := slices.Clone(bright)
	const extreme = 0.03 // the part of a picture that is lighter, or darker, than what a scratch may be
	low, high := percentiles(sorted, extreme, 1-extreme)
	low, high = min(low, 0.2), max(high, 0.75)
	s := &scratches{width: width, height: height, mask: make([]bool, width*height)}
	area := 0
	for _, lighter := range []bool{true, false} {
		found, n := thinPixels(bright, width, height, lighter, low, high)
		if float64(n) > scratchBelieved*float64(width*height) {
			continue
		}
		for _, c := range components(found, width, height) {
			switch {
			case c.isLine(max(width, height)):
				s.lines++
			case c.isSpot(bright, width, height):
				s.spots++
			default:
				continue
			}
			area += len(c.pixels)
			for _, at := range c.pixels {
				s.mask[at] = true
			}
		}
	}
	s.share = float64(area) / float64(width*height)
	const fewestSpots = 3 // a single speck may be a star or a lamp
	if (s.lines == 0 && s.spots < fewestSpots) || s.lines+s.spots > scratchesMost || s.share > scratchShareMost {
		return nil
	}
	s.dilate()
	return s
}

// thinPixels marks pixels lighter or darker than both sides of them, some way off, where the sides are alike.
func thinPixels(bright []float32, width, height int, lighter bool, low, high float32) (found []bool, n int) {
	found = make([]bool, len(bright))
	sign := float32(1)
	if !lighter {
		sign = -1
	}
	const d = scratchSide
	steps := [4]int{d, d * width, d*width + d, d*width - d}
	for y := d; y < height-d; y++ {
		for x := d; x < width-d; x++ {
			at := y*width + x
			v := bright[at]
			if (lighter && v < high) || (!lighter && v > low) {
				continue
			}
			for _, step := range steps {
				a, b := sign*(v-bright[at-step]), sign*(v-bright[at+step])
				if least := min(a, b); least > scratchContrast && max(a, b)-least < least/2 {
					found[at] = true
					n++
					break
				}
			}
		}
	}
	return found, n
}

// component is a set of pixels that touch.
type component struct {
	pixels []int
	// length is along the main axis, width the mean across it, bend the mean distance from it, in pixels.
	length, width, bend float64
	x, y                float64
}

// components finds them all; it clears found.
func components(found []bool, width, height int) []component {
	var all []component
	var stack []int
	for start, is := range found {
		if !is {
			continue
		}
		found[start] = false
		stack = append(stack[:0], start)
		var c component
		for len(stack) > 0 {
			at := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			c.pixels = append(c.pixels, at)
			x, y := at%width, at/width
			for j := max(y-1, 0); j <= min(y+1, height-1); j++ {
				for i := max(x-1, 0); i <= min(x+1, width-1); i++ {
					if found[j*width+i] {
						found[j*width+i] = false
						stack = append(stack, j*width+i)
					}
				}
			}
		}
		c.measure(width)
		all = append(all, c)
	}
	return all
}

// measure finds the main axis by the second moments.
func (c *component) measure(width int) {
	n := float64(len(c.pixels))
	for _, at := range c.pixels {
		c.x += float64(at%width) / n
		c.y += float64(at/width) / n
	}
	var xx, xy, yy float64
	for _, at := range c.pixels {
		dx, dy := float64(at%width)-c.x, float64(at/width)-c.y
		xx, xy, yy = xx+dx*dx/n, xy+dx*dy/n, yy+dy*dy/n
	}
	middle, spread := (xx+yy)/2, math.Hypot((xx-yy)/2, xy)
	c.length = math.Sqrt(12*(middle+spread)) + 1 // of a line with this variance
	c.bend = math.Sqrt(max(middle-spread, 0))
	c.width = n / c.length
}

func (c *component) isLine(longer int) bool {
	return c.length >= max(scratchLength*float64(longer), 40) && c.width <= scratchWidthMost && c.bend <= 2+0.01*c.length
}

// isSpot says that the component is small and lies in a smooth place.
func (c *component) isSpot(bright []float32, width, height int) bool {
	if len(c.pixels) > dustAreaMost || len(c.pixels) < 3 || c.length > 12 {
		return false
	}
	inside := float32(0)
	for _, at := range c.pixels {
		inside += bright[at] / float32(len(c.pixels))
	}
	sum, square, n := float32(0), float32(0), float32(0)
	radius := c.length/2 + 5
	for k := range 24 {
		angle := float64(k) * math.Pi / 12
		x, y := int(c.x+radius*math.Cos(angle)), int(c.y+radius*math.Sin(angle))
		if x < 0 || y < 0 || x >= width || y >= height {
			continue
		}
		v := bright[y*width+x]
		sum, square, n = sum+v, square+v*v, n+1
	}
	if n < 16 {
		return false
	}
	const smooth = 0.03
	mean := sum / n
	return square/n-mean*mean < smooth*smooth && abs32(inside-mean) > dustContrast
}

func abs32(v float32) float32 {
	if v < 0 {
		return -v
	}
	return v
}

// dilate grows the mask over the soft sides of what was found.
func (s *scratches) dilate() {
	grown := make([]bool, len(s.mask))
	for at, is := range s.mask {
		if !is {
			continue
		}
		x, y := at%s.width, at/s.width
		for j := max(y-scratchDilatation, 0); j <= min(y+scratchDilatation, s.height-1); j++ {
			for i := max(x-scratchDilatation, 0); i <= min(x+scratchDilatation, s.width-1); i++ {
				grown[j*s.width+i] = true
			}
		}
	}
	s.mask = grown
}

// fit says for which picture the mask is.
func (s *scratches) fit(width, height int) {
	s.scaleX, s.scaleY = float64(s.width)/float64(width), float64(s.height)/float64(height)
	s.reach = min(int(math.Ceil((scratchWidthMost+2*scratchDilatation+2)/min(s.scaleX, s.scaleY))), scratchReachMost)
}

// at says whether a pixel of the picture is to be filled.
func (s *scratches) at(x, y int) bool {
	i, j := int((float64(x)+0.5)*s.scaleX), int((float64(y)+0.5)*s.scaleY)
	return x >= 0 && y >= 0 && i < s.width && j < s.height && s.mask[j*s.width+i]
}

// fill replaces the masked pixels of a patch: along each of eight lines through one, the nearest sound pixels on both sides are joined
// by a straight ramp, and the pairs that differ least count most. So edges that cross a scratch go on. It is bounded by reach:
// what has no sound pixels within it stays.
func (s *scratches) fill(p *patch) {
	lines := [8][2]int{{1, 0}, {0, 1}, {1, 1}, {1, -1}, {2, 1}, {1, 2}, {2, -1}, {1, -2}}
	for y := range p.height {
		for x := range p.width {
			if !s.at(p.x+x, p.y+y) {
				continue
			}
			var sum [3]float32
			total := float32(0)
			for _, line := range lines {
				a, before := s.sound(p, x, y, -line[0], -line[1])
				b, after := s.sound(p, x, y, line[0], line[1])
				if before == 0 || after == 0 {
					continue
				}
				apart, part := float32(0), float32(before)/float32(before+after)
				var mean [3]float32
				for c := range mean {
					from, to := p.planes[c][a], p.planes[c][b]
					apart += (from - to) * (from - to)
					mean[c] = from + part*(to-from)
				}
				long := float32(before+after) * float32(math.Hypot(float64(line[0]), float64(line[1])))
				weight := 1 / ((apart + 1e-4) * long * long)
				weight *= weight
				total += weight
				for c := range sum {
					sum[c] += weight * mean[c]
				}
			}
			if total > 0 {
				for c := range sum {
					p.planes[c][y*p.width+x] = sum[c] / total
				}
			}
		}
	}
}

// sound walks from (x, y) to the first pixel that is not masked, and says where it lies and how many steps that were; 0 for none.
func (s *scratches) sound(p *patch, x, y, dx, dy int) (at, steps int) {
	for steps = 1; steps*max(dx, -dx, dy, -dy) <= s.reach; steps++ {
		x, y = x+dx, y+dy
		if x < 0 || y < 0 || x >= p.width || y >= p.height {
			return 0, 0
		}
		if !s.at(p.x+x, p.y+y) {
			return y*p.width + x, steps
		}
	}
	return 0, 0
}
