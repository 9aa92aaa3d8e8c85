package image

import "math"

// headFrame measures places around an upright face in distances between its pupils (about 63 mm), from the middle of the eyes, y down.
type headFrame struct {
	middle   point
	apart    float64
	sin, cos float64
}

func frameOf(f face) headFrame {
	h := headFrame{middle: point{(f.eyes[0].x + f.eyes[1].x) / 2, (f.eyes[0].y + f.eyes[1].y) / 2}}
	h.apart = math.Hypot(f.eyes[1].x-f.eyes[0].x, f.eyes[1].y-f.eyes[0].y)
	h.sin, h.cos = math.Sincos(-f.roll())
	return h
}

// at gives the place of a pixel.
func (h headFrame) at(x, y int) (u, v float64) {
	dx, dy := (float64(x)+0.5-h.middle.x)/h.apart, (float64(y)+0.5-h.middle.y)/h.apart
	return h.cos*dx - h.sin*dy, h.sin*dx + h.cos*dy
}

// headRing is how far a place is from the middle of the head, 1 being the outline of a head with short hair: an ellipse from ear to ear (about
// 160 mm with the ears) and from the crown to below the chin.
func headRing(u, v float64) float64 {
	const wide, up, down = 1.28, 1.98, 1.86
	v += 0.05
	high := up
	if v > 0 {
		high = down
	}
	return math.Hypot(u/wide, v/high)
}

// shoulderLine is how far below the eyes the shoulders are, so far from the middle of the neck.
func shoulderLine(u float64) float64 {
	const neck, half = 0.85, 3.3
	u = math.Abs(u)
	switch {
	case u < neck:
		return 1.7
	case u < half:
		return 2.35 + 0.5*(u-neck)
	}
	return 2.35 + 0.5*(half-neck) + 3*(u-half)
}

// portraitBelief is how likely each pixel is the person of a portrait seen from the front, by the proportions of heads and shoulders alone
// (ISO/IEC 19794-5, annex): sure within the face and beyond the hair, and open to what colours say where hair and clothes end.
func portraitBelief(w, h int, f face) []float32 {
	frame := frameOf(f)
	belief := make([]float32, w*h)
	for y := range h {
		for x := range w {
			u, v := frame.at(x, y)
			belief[y*w+x] = float32(max(headBelief(u, v), bodyBelief(u, v)))
		}
	}
	return belief
}

func headBelief(u, v float64) float64 {
	return steps(headRing(u, v), [][2]float64{{0.8, 0.995}, {0.95, 0.9}, {1.05, 0.5}, {1.2, 0.25}, {1.55, 0.12}, {1.9, 0.004}})
}

func bodyBelief(u, v float64) float64 {
	below := v - shoulderLine(u)
	b := steps(-below, [][2]float64{{-0.7, 0.99}, {-0.25, 0.9}, {0, 0.6}, {0.3, 0.15}, {0.8, 0.04}, {1.5, 0.004}})
	// Long hair falls beside the neck, and no further out than the hair of the head goes.
	if math.Abs(u) < 1.9 && v > 0 {
		b = max(b, 0.12)
	}
	return b
}

// steps interpolates between points of rising x; beyond the first and the last their y goes on.
func steps(x float64, points [][2]float64) float64 {
	if x <= points[0][0] {
		return points[0][1]
	}
	for i := 1; i < len(points); i++ {
		a, b := points[i-1], points[i]
		if x < b[0] {
			return a[1] + (b[1]-a[1])*(x-a[0])/(b[0]-a[0])
		}
	}
	return points[len(points)-1][1]
}

// outline is what the edge of a cut-out head looks like, along rays from the middle of the head to all sides but the body's.
type outline struct {
	// clear is the part of the rays along which the source's colours change where the cut ends. rough is how far the rays' lengths
	// leave a smooth line, in distances between the pupils. stray is the part of what lies beyond any hair, above the shoulders, that was kept.
	clear, rough, stray float64
}

// portraitLeast is the confidence below which there is no passport photo.
const portraitLeast = 0.4

// trust is how far a cut may be believed, 0 to 1. Before busy backgrounds, 12 cuts of a portrait whose true outline was known were right (more than 0.96 of
// intersection over union) where 0.96 of the rays and more were clear, and wrong (less than 0.87) below 0.75. Before a plain background what stays of it is plain.
func (o outline) trust(m *matte) float64 {
	const clearLeast, clearMost, roughLeast, roughMost, strayLeast, strayMost = 0.55, 0.97, 0.012, 0.04, 0.03, 0.1
	fall := func(v, least, most float64) float64 { return min(max((most-v)/(most-least), 0), 1) }
	trust := m.confidence * fall(o.stray, strayLeast, strayMost)
	if m.plain {
		return trust
	}
	return trust * (1 - fall(o.clear, clearLeast, clearMost)) * fall(o.rough, roughLeast, roughMost)
}

// outlineOf measures a cut against the colours of the portrait it was made of.
func outlineOf(u *upright, l lab, cut *patch) outline {
	const (
		rays = 96
		// The rays leave out a third of a turn, below.
		fromAngle, toAngle = -7 * math.Pi / 6, math.Pi / 6
		// From where to where on both sides of the edge colours are compared, and by how many units of L*a*b* they must differ.
		near, far = 0.04, 0.16
		differ    = 12
	)
	r := rayTracer{u: u, colours: l, cut: cut, frame: frameOf(u.face)}
	var o outline
	var lengths []float64
	changes := 0
	for i := range rays {
		angle := fromAngle + (toAngle-fromAngle)*float64(i)/(rays-1)
		edge := r.edge(angle)
		inside, ok := r.mean(angle, edge-far, edge-near)
		outside, ok2 := r.mean(angle, edge+near, edge+far)
		if !ok || !ok2 {
			continue // the source ends there
		}
		lengths = append(lengths, edge)
		if labApart(inside, outside) > differ {
			changes++
		}
	}
	if len(lengths) < 3 {
		return o
	}
	o.clear = float64(changes) / float64(len(lengths))
	for i := 1; i+1 < len(lengths); i++ {
		o.rough += math.Abs(lengths[i]-(lengths[i-1]+lengths[i+1])/2) / float64(len(lengths)-2)
	}
	o.stray = r.stray()
	return o
}

// rayTracer looks along rays from the middle of a head.
type rayTracer struct {
	u       *upright
	colours lab
	cut     *patch
	frame   headFrame
}

// rayStep is how far apart places along a ray are, in distances between the pupils.
const rayStep = 0.02

// pixel is that at a place of a ray, -1 beyond the source.
func (t *rayTracer) pixel(angle, r float64) int {
	sin, cos := math.Sincos(angle)
	x, y := int(t.frame.middle.x+t.frame.apart*r*cos), int(t.frame.middle.y+t.frame.apart*r*sin)
	if x < 0 || y < 0 || x >= t.cut.width || y >= t.cut.height || t.u.pix[4*(y*t.u.width+x)+3] == 0 {
		return -1
	}
	return y*t.cut.width + x
}

// edge is where the cut ends along a ray.
func (t *rayTracer) edge(angle float64) (edge float64) {
	const reach = 2.6
	for r := 0.5; r < reach; r += rayStep {
		if i := t.pixel(angle, r); i >= 0 && t.cut.planes[3][i] > 0.5 {
			edge = r
		}
	}
	return edge
}

// mean is the mean colour along a part of a ray, and false where the source has too little of it.
func (t *rayTracer) mean(angle, from, to float64) (m [3]float32, ok bool) {
	n := float32(0)
	for r := from; r <= to; r += rayStep {
		if i := t.pixel(angle, r); i >= 0 {
			for c, v := range t.colours.pix[i] {
				m[c] += v
			}
			n++
		}
	}
	for c := range m {
		m[c] /= max(n, 1)
	}
	return m, n >= 4
}

// stray is the part kept of what lies beyond any hair, above the shoulders.
func (t *rayTracer) stray() float64 {
	kept, all := 0.0, 0.0
	for i, a := range t.cut.planes[3] {
		p, q := t.frame.at(i%t.cut.width, i/t.cut.width)
		if headRing(p, q) > 1.75 && q < shoulderLine(p)-0.6 && t.u.pix[4*i+3] > 0 {
			kept += float64(a)
			all++
		}
	}
	return kept / max(all, 1)
}
