package image

import (
	"math"
	"slices"
)

// tone brings a faded or tinted picture back: a range for each colour, a gamma, and a little local contrast.
type tone struct {
	// low and gain stretch each colour: (v-low)*gain.
	low, gain [3]float32
	// gamma is applied to the stretched luma by its ratio; 1 does nothing.
	gamma float32
	// local are luma curves of a grid of cells, mixed in by localPart; nil for none.
	local     []toneCurve
	localPart float32
	// width and height are the picture's.
	width, height int
}

const (
	toneGrid  = 8
	toneSteps = 64
)

// toneCurve maps luma from 0 to 1 in steps.
type toneCurve [toneSteps + 1]float32

// toneReport says what a tone does, for people.
type toneReport struct {
	faded    bool
	gain     float64 // of the colour that is stretched most
	tint     float64 // in degrees, the angle between the colour of the light and grey
	gamma    float64
	contrast float64
}

// The dead zone. Fading lifts black and dims white in every colour at once; a photo in which one colour still reaches near its ends, or
// whose luma uses this much of its range, is left alone: mist and evenings are meant.
const (
	fadedRange = 0.65
	fadedBlack = 0.15
	fadedWhite = 0.92
	gainMost   = 2.0
	tintLeast  = 7.0
	tintPart   = 0.7
)

// toneOf looks at the whole picture, reduced, and returns nil when there is nothing to mend.
func toneOf(small *patch, width, height int, grey bool) (*tone, toneReport) {
	var samples [3][]float32
	var bright []float32
	for i, a := range small.planes[3] {
		if a < 0.99 {
			continue
		}
		for c := range samples {
			samples[c] = append(samples[c], small.planes[c][i])
		}
		bright = append(bright, lumaRed*small.planes[0][i]+lumaGreen*small.planes[1][i]+lumaBlue*small.planes[2][i])
	}
	const fewest = 400
	if len(bright) < fewest {
		return nil, toneReport{}
	}
	tint := 0.0
	if !grey {
		tint = tintOf(small)
	}
	low, high := percentiles(bright, 0.005, 0.995)
	report := toneReport{gain: 1, gamma: 1, tint: math.Round(tint*10) / 10}
	var ends [3][2]float32
	leastEnd, mostEnd := float32(1), float32(0)
	for c := range samples {
		ends[c][0], ends[c][1] = percentiles(samples[c], 0.005, 0.995)
		leastEnd, mostEnd = min(leastEnd, ends[c][0]), max(mostEnd, ends[c][1])
	}
	// A picture of few tones, such as a drawing or a page, is not faded.
	faded := high-low < fadedRange && high-low > 0.12 && leastEnd > fadedBlack && mostEnd < fadedWhite && spreads(bright, low, high)
	if !faded {
		return nil, report
	}
	t := &tone{gamma: 1, width: width, height: height}
	for c := range 3 {
		l, h := ends[c][0], ends[c][1]
		// A tint is what the colours' ranges differ by; a part of it may be meant.
		part := float32(tintPart)
		if grey || tint < tintLeast/2 {
			part = 0
		}
		l, h = low+part*(l-low), high+part*(h-high)
		const black, white = 0.02, 0.97
		t.gain[c] = min((white-black)/max(h-l, 0.05), gainMost)
		// Where the gain is held, the range's middle stays in the middle of what it becomes.
		t.low[c] = max(l-black/t.gain[c], 0)
		report.gain = max(report.gain, float64(t.gain[c]))
	}
	report.faded = true
	report.gain = math.Round(report.gain*100) / 100
	t.addGamma(bright, &report)
	t.addLocal(small)
	report.contrast = float64(t.localPart)
	return t, report
}

// percentiles sorts the samples.
func percentiles(samples []float32, low, high float64) (l, h float32) {
	slices.Sort(samples)
	n := float64(len(samples) - 1)
	return samples[int(low*n)], samples[int(high*n)]
}

// spreads says that tones lie all over the range, as in a photo: of 16 equal parts of it, ten and more hold at least half a percent.
func spreads(sorted []float32, low, high float32) bool {
	var parts [16]int
	for _, v := range sorted {
		if v >= low && v <= high {
			parts[min(int((v-low)/(high-low)*16), 15)]++
		}
	}
	used := 0
	for _, n := range parts {
		if n*200 >= len(sorted) {
			used++
		}
	}
	return used >= 10
}

// tintOf is the angle in degrees between grey and the colour of the light by the edges: what colours differ by at edges is grey
// on average (van de Weijer, Gevers and Gijsenij, "Edge-Based Color Constancy", 2007).
func tintOf(small *patch) float64 {
	var light [3]float64
	const power = 6
	for y := 1; y < small.height; y++ {
		for x := 1; x < small.width; x++ {
			at := y*small.width + x
			for c := range light {
				p := small.planes[c]
				dx, dy := float64(p[at]-p[at-1]), float64(p[at]-p[at-small.width])
				light[c] += math.Pow(math.Hypot(dx, dy), power)
			}
		}
	}
	sum, square := 0.0, 0.0
	for c := range light {
		light[c] = math.Pow(light[c], 1.0/power)
		sum += light[c]
		square += light[c] * light[c]
	}
	if square == 0 {
		return 0
	}
	return math.Acos(min(sum/math.Sqrt(3*square), 1)) * 180 / math.Pi
}

// addGamma brings the middle tone towards the middle, within limits.
func (t *tone) addGamma(sorted []float32, report *toneReport) {
	middle := (sorted[len(sorted)/2] - t.low[1]) * t.gain[1]
	if middle <= 0.05 || middle >= 0.95 {
		return
	}
	const wanted, least, most = 0.45, 0.85, 1.15
	t.gamma = float32(min(max(math.Log(wanted)/math.Log(float64(middle)), least), most))
	report.gamma = math.Round(float64(t.gamma)*100) / 100
}

// addLocal makes the curves of local contrast: histogram equalisation of each cell with a bound on its slope (Pizer et al., "Adaptive
// Histogram Equalization and Its Variations", 1987).
func (t *tone) addLocal(small *patch) {
	t.localPart = 0.25
	t.local = make([]toneCurve, toneGrid*toneGrid)
	for j := range toneGrid {
		for i := range toneGrid {
			var counts [toneSteps]float32
			total := float32(0)
			for y := j * small.height / toneGrid; y < (j+1)*small.height/toneGrid; y++ {
				for x := i * small.width / toneGrid; x < (i+1)*small.width/toneGrid; x++ {
					r, g, b := t.stretch(small.planes[0][y*small.width+x], small.planes[1][y*small.width+x], small.planes[2][y*small.width+x])
					v := lumaRed*r + lumaGreen*g + lumaBlue*b
					counts[min(max(int(v*toneSteps), 0), toneSteps-1)]++
					total++
				}
			}
			t.local[j*toneGrid+i] = equalised(counts, total)
		}
	}
}

// equalised is the curve of a cell's histogram.
func equalised(counts [toneSteps]float32, total float32) toneCurve {
	var curve toneCurve
	const slopeMost = 2
	limit, over := slopeMost*total/toneSteps, float32(0)
	for i, n := range counts {
		if n > limit {
			over += n - limit
			counts[i] = limit
		}
	}
	for i, n := range counts {
		share := float32(1) / toneSteps
		if total > 0 {
			share = (n + over/toneSteps) / total
		}
		curve[i+1] = curve[i] + share
	}
	return curve
}

func (t *tone) stretch(r, g, b float32) (red, green, blue float32) {
	return min(max((r-t.low[0])*t.gain[0], 0), 1), min(max((g-t.low[1])*t.gain[1], 0), 1), min(max((b-t.low[2])*t.gain[2], 0), 1)
}

// apply changes a patch, pixel by pixel.
func (t *tone) apply(p *patch) {
	for y := range p.height {
		v := (float32(p.y+y)+0.5)/float32(t.height)*toneGrid - 0.5
		for x := range p.width {
			at := y*p.width + x
			a := p.planes[3][at]
			if a == 0 {
				continue
			}
			r, g, b := t.stretch(p.planes[0][at]/a, p.planes[1][at]/a, p.planes[2][at]/a)
			bright := lumaRed*r + lumaGreen*g + lumaBlue*b
			if bright > 1e-4 {
				wanted := float32(math.Pow(float64(bright), float64(t.gamma)))
				if t.local != nil {
					u := (float32(p.x+x)+0.5)/float32(t.width)*toneGrid - 0.5
					wanted += t.localPart * (t.curve(u, v, wanted) - wanted)
				}
				ratio := min(wanted/bright, 3)
				r, g, b = min(r*ratio, 1), min(g*ratio, 1), min(b*ratio, 1)
			}
			p.planes[0][at], p.planes[1][at], p.planes[2][at] = r*a, g*a, b*a
		}
	}
}

// curve is the local curve at (u, v) in cells: linear between the four nearest.
func (t *tone) curve(u, v, bright float32) float32 {
	u, v = min(max(u, 0), toneGrid-1), min(max(v, 0), toneGrid-1)
	i, j := min(int(u), toneGrid-2), min(int(v), toneGrid-2)
	fu, fv := u-float32(i), v-float32(j)
	step := min(max(bright, 0), 1) * toneSteps
	k := min(int(step), toneSteps-1)
	part := step - float32(k)
	value := func(j, i int) float32 {
		c := &t.local[j*toneGrid+i]
		return c[k] + part*(c[k+1]-c[k])
	}
	top := value(j, i) + fu*(value(j, i+1)-value(j, i))
	bottom := value(j+1, i) + fu*(value(j+1, i+1)-value(j+1, i))
	return top + fv*(bottom-top)
}
