package video

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"sync"

	"enlarger/engine/ffmpeg"
)

// The colour science of video_hdr: pure functions from one pixel's SDR signal to its PQ signal, and the table that ffmpeg applies.

// HDRMethod is how SDR light becomes HDR light; both are of Report ITU-R BT.2446-1.
type HDRMethod string

const (
	// HDRNatural (section 6) keeps skin and mid-tones where they were and spreads what is above 80 % of the signal: SDR white comes to
	// 332.6 cd/m2.
	HDRNatural HDRMethod = "bt2446-c"
	// HDRVivid (section 4) spreads the whole range, to 1000 cd/m2 at SDR white, with stronger colours: vivid, and further from the source.
	HDRVivid HDRMethod = "bt2446-a"
)

// rgb is red, green and blue: signals from 0 to 1, or light in cd/m2.
type rgb [3]float64

// matrix maps one linear RGB space, or XYZ, to another.
type matrix [3]rgb

func (m matrix) apply(c rgb) rgb {
	var out rgb
	for i, row := range m {
		out[i] = row[0]*c[0] + row[1]*c[1] + row[2]*c[2]
	}
	return out
}

func (m matrix) times(o matrix) matrix {
	var out matrix
	for i := range 3 {
		for j := range 3 {
			out[i][j] = m[i][0]*o[0][j] + m[i][1]*o[1][j] + m[i][2]*o[2][j]
		}
	}
	return out
}

// inverse is by cofactors; no matrix of this file is singular.
func (m matrix) inverse() matrix {
	var out matrix
	for i := range 3 {
		for j := range 3 {
			a, b, c, d := (j+1)%3, (j+2)%3, (i+1)%3, (i+2)%3
			out[i][j] = m[a][c]*m[b][d] - m[a][d]*m[b][c]
		}
	}
	det := m[0][0]*out[0][0] + m[0][1]*out[1][0] + m[0][2]*out[2][0]
	for i := range 3 {
		for j := range 3 {
			out[i][j] /= det
		}
	}
	return out
}

// primaries are the CIE 1931 chromaticities of red, green, blue and white.
type primaries struct{ red, green, blue, white [2]float64 }

var (
	whiteD65 = [2]float64{0.3127, 0.3290}
	whiteC   = [2]float64{0.310, 0.316}
	bt2020   = primaries{[2]float64{0.708, 0.292}, [2]float64{0.170, 0.797}, [2]float64{0.131, 0.046}, whiteD65}
	p3D65    = primaries{[2]float64{0.680, 0.320}, [2]float64{0.265, 0.690}, [2]float64{0.150, 0.060}, whiteD65}
)

// sourcePrimaries are those of a tag, from Recommendation ITU-T H.273, table 2. What is unknown is BT.709.
func sourcePrimaries(tag string) primaries {
	switch tag {
	case "bt470m":
		return primaries{[2]float64{0.67, 0.33}, [2]float64{0.21, 0.71}, [2]float64{0.14, 0.08}, whiteC}
	case "bt470bg":
		return primaries{[2]float64{0.64, 0.33}, [2]float64{0.29, 0.60}, [2]float64{0.15, 0.06}, whiteD65}
	case "smpte170m", "smpte240m":
		return primaries{[2]float64{0.630, 0.340}, [2]float64{0.310, 0.595}, [2]float64{0.155, 0.070}, whiteD65}
	case "film":
		return primaries{[2]float64{0.681, 0.319}, [2]float64{0.243, 0.692}, [2]float64{0.145, 0.049}, whiteC}
	case "bt2020":
		return bt2020
	case "smpte431":
		p := p3D65
		p.white = [2]float64{0.314, 0.351}
		return p
	case "smpte432":
		return p3D65
	}
	return primaries{[2]float64{0.64, 0.33}, [2]float64{0.30, 0.60}, [2]float64{0.15, 0.06}, whiteD65}
}

// toXYZ is the matrix from linear RGB with these primaries, white being Y = 1 (SMPTE RP 177).
func (p primaries) toXYZ() matrix {
	xyz := func(c [2]float64) rgb { return rgb{c[0] / c[1], 1, (1 - c[0] - c[1]) / c[1]} }
	r, g, b := xyz(p.red), xyz(p.green), xyz(p.blue)
	m := matrix{{r[0], g[0], b[0]}, {r[1], g[1], b[1]}, {r[2], g[2], b[2]}}
	scale := m.inverse().apply(xyz(p.white))
	for i := range 3 {
		for j := range 3 {
			m[i][j] *= scale[j]
		}
	}
	return m
}

// to is the matrix to other primaries; between BT.709 and BT.2020 it is that of Recommendation ITU-R BT.2087. A white of another colour
// is adapted by the Bradford transform.
func (p primaries) to(o primaries) matrix {
	bradford := matrix{{0.8951, 0.2664, -0.1614}, {-0.7502, 1.7135, 0.0367}, {0.0389, -0.0685, 1.0296}}
	white := rgb{1, 1, 1}
	from, into := p.toXYZ(), o.toXYZ()
	a, b := bradford.apply(from.apply(white)), bradford.apply(into.apply(white))
	adapt := bradford.inverse().times(matrix{{b[0] / a[0], 0, 0}, {0, b[1] / a[1], 0}, {0, 0, b[2] / a[2]}}).times(bradford)
	return into.inverse().times(adapt).times(from)
}

// sdrLight is the light of an SDR signal on the reference display, white being 1: the EOTF of Recommendation ITU-R BT.1886 with a black
// of 0, whatever camera curve the tag names, but for tags that name a display's own.
func sdrLight(transfer string, e float64) float64 {
	e = max(e, 0)
	switch transfer {
	case "linear":
		return e
	case "iec61966-2-1": // sRGB
		if e <= 0.04045 {
			return e / 12.92
		}
		return math.Pow((e+0.055)/1.055, 2.4)
	case "bt470m":
		return math.Pow(e, 2.2)
	case "smpte428":
		return math.Pow(e, 2.6)
	}
	return math.Pow(e, 2.4)
}

// pq is the inverse EOTF of SMPTE ST 2084 (Recommendation ITU-R BT.2100, table 4): the signal for light in cd/m2.
func pq(light float64) float64 {
	const m1, m2, c1, c2, c3 = 2610.0 / 16384, 2523.0 / 4096 * 128, 3424.0 / 4096, 2413.0 / 4096 * 32, 2392.0 / 4096 * 32
	y := math.Pow(min(max(light, 0)/pqMost, 1), m1)
	return math.Pow((c1+c2*y)/(1+c3*y), m2)
}

// quickPQ gives pq of light up to 4096 cd/m2, within 1e-6, by straight lines between 256 points an octave: the table of colours asks for
// 800,000 signals, and the powers in them were most of its time.
var quickPQ = sync.OnceValue(func() func(light float64) float64 {
	const least, most = 0x1p-50, 0x1p12
	const between = 52 - 8 // of a number's bits, those that tell what lies between two points
	first := math.Float64bits(least) >> between
	points := make([]float64, math.Float64bits(most)>>between-first+2)
	for i := range points {
		points[i] = pq(math.Float64frombits((first + uint64(i)) << between))
	}
	return func(light float64) float64 {
		bits := math.Float64bits(min(max(light, least), most))
		at, part := bits>>between-first, float64(bits&(1<<between-1))/(1<<between)
		return points[at] + part*(points[at+1]-points[at])
	}
})

// pqLight is the EOTF of SMPTE ST 2084.
func pqLight(signal float64) float64 {
	const m1, m2, c1, c2, c3 = 2610.0 / 16384, 2523.0 / 4096 * 128, 3424.0 / 4096, 2413.0 / 4096 * 32, 2392.0 / 4096 * 32
	y := math.Pow(min(max(signal, 0), 1), 1/m2)
	return pqMost * math.Pow(max(y-c1, 0)/(c2-c3*y), 1/m1)
}

// In cd/m2: the most that PQ expresses, SDR white, and the HDR display for which BT.2446 is written.
const (
	pqMost   = 10_000
	sdrWhite = 100
	hdrPeak  = 1000
)

// luma2020 are the luminance weights of BT.2020.
var luma2020 = rgb{0.2627, 0.6780, 0.0593}

func (c rgb) dot(o rgb) float64 { return c[0]*o[0] + c[1]*o[1] + c[2]*o[2] }

// expandC is the inverse tone mapping of method C on luminance in cd/m2, BT.2446-1 section 6. Its parameters follow from three
// conditions stated there: the slope k1 that leaves skin tones alone, the end of the straight part at a signal of 80 %, and HDR reference
// white of 203 cd/m2 at 96 %. The crosstalk of the method is 0: it is there to keep colours that one of the two ranges cannot show.
func expandC(sdr float64) float64 {
	const k1, k3 = 0.83802, 0.74204
	const knee = sdrWhite * 0.5853504664669779 // 0.8 to the power of 2.4
	if sdr < knee {
		return sdr / k1
	}
	const k2 = knee * (1 - k3)
	const k4 = knee + k2*1.3549507448399605 // less the logarithm of 1 - k3
	return knee / k1 * (math.Exp((sdr-k4)/k2) + k3)
}

// expandA is the inverse tone mapping of method A on linear BT.2020 from 0 to 1, BT.2446-1 table 4; light comes out in cd/m2.
func expandA(sdr rgb) rgb {
	var signal rgb
	for i, v := range sdr {
		signal[i] = math.Pow(max(v, 0), 1/2.4)
	}
	y := luma2020.dot(signal)
	if y <= 0 {
		return rgb{}
	}
	wide := 255 * y
	exponent := 2.8305e-6*wide*wide - 7.4622e-4*wide + 1.2528
	if wide <= 70 {
		exponent = 1.8712e-5*wide*wide - 2.7334e-3*wide + 1.3141
	}
	bright := math.Pow(wide, exponent)
	colour := 1.075 * bright / y
	var out rgb
	for i, v := range signal {
		out[i] = hdrPeak * math.Pow(min(max(bright+(v-y)*colour, 0), hdrPeak)/hdrPeak, 2.4)
	}
	return out
}

// expansion is what becomes of the colours of one kind of source.
type expansion struct {
	method   HDRMethod
	transfer string
	toWide   matrix // from the source's primaries to BT.2020
	toGamut  matrix // from BT.2020 to the primaries that the output keeps to
}

func newExpansion(method HDRMethod, source colours, gamut primaries) expansion {
	return expansion{
		method: method, transfer: source.transfer,
		toWide: sourcePrimaries(source.primaries).to(bt2020), toGamut: bt2020.to(gamut),
	}
}

// light is that of a pixel's R'G'B' on the HDR display, linear BT.2020 in cd/m2.
func (x expansion) light(signal rgb) rgb {
	var c rgb
	for i, v := range signal {
		c[i] = sdrLight(x.transfer, v)
	}
	return x.expand(c)
}

// expand makes HDR light of linear SDR light in the source's primaries.
func (x expansion) expand(sdr rgb) rgb {
	c := x.toWide.apply(sdr)
	for i := range c {
		c[i] = max(c[i], 0)
	}
	if x.method == HDRVivid {
		return x.clip(expandA(c))
	}
	y := luma2020.dot(c)
	if y <= 0 {
		return rgb{}
	}
	// The chromaticity stays: all three grow as the luminance does.
	gain := expandC(sdrWhite*y) / y
	return x.clip(rgb{c[0] * gain, c[1] * gain, c[2] * gain})
}

// clip brings light into the gamut that the output promises.
func (x expansion) clip(c rgb) rgb {
	inside := x.toGamut.apply(c)
	if inside[0] >= 0 && inside[1] >= 0 && inside[2] >= 0 {
		return c
	}
	for i := range inside {
		inside[i] = max(inside[i], 0)
	}
	return x.toGamut.inverse().apply(inside)
}

// signal is the PQ signal of a pixel's R'G'B'.
func (x expansion) signal(in rgb) rgb { return pqOf(x.light(in)) }

func pqOf(light rgb) rgb { return rgb{pq(light[0]), pq(light[1]), pq(light[2])} }

// lutSide is how many points the table has on each side. Between them ffmpeg interpolates in tetrahedra; on greys that is within 1.4
// ten-bit codes of the formula for method C and within 2.6 for method A.
const lutSide = 65

// table is the table in the .cube format, red running fastest: 7 MB of text. Its layers are made beside each other.
func (x expansion) table() []byte {
	const layer = lutSide * lutSide * len("0.000000 0.000000 0.000000\n")
	var at [lutSide]float64
	for i := range at {
		at[i] = sdrLight(x.transfer, float64(i)/(lutSide-1))
	}
	signal := quickPQ()
	text := slices.Grow(fmt.Appendf(nil, "LUT_3D_SIZE %d\n", lutSide), lutSide*layer)
	var made sync.WaitGroup
	for blue := range lutSide {
		from := len(text) + blue*layer
		part := text[from : from : from+layer]
		made.Go(func() {
			for green := range lutSide {
				for red := range lutSide {
					for i, v := range x.expand(rgb{at[red], at[green], at[blue]}) {
						part = append(appendSignal(part, signal(v)), " \n"[i/2])
					}
				}
			}
		})
	}
	made.Wait()
	return text[:len(text)+lutSide*layer]
}

// appendSignal writes a signal from 0 to 1 with six decimals.
func appendSignal(text []byte, v float64) []byte {
	at := len(text)
	text = strconv.AppendInt(text, 10_000_000+int64(math.Round(v*1e6)), 10)
	text[at], text[at+1] = text[at+1], '.' // the 1 in front made room for the point
	return text
}

// tables keeps the tables used last: one takes half a second of a core to make, most sources are alike, and every part of a long video needs it.
type tables struct {
	mu   sync.Mutex
	kept []keptTable
}

type keptTable struct {
	expansion expansion
	text      []byte
}

// tablesMost bounds what is kept, to 15 MB.
const tablesMost = 2

func (t *tables) of(x expansion) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.kept {
		if k.expansion == x {
			return k.text
		}
	}
	k := keptTable{x, x.table()}
	t.kept = append(t.kept, k)
	if over := len(t.kept) - tablesMost; over > 0 {
		t.kept = slices.Delete(t.kept, 0, over)
	}
	return k.text
}

// mastering describes the display that a result is made for, in the units of SMPTE ST 2086.
func mastering(gamut primaries) ffmpeg.Mastering {
	unit := func(v float64) int64 { return int64(math.Round(v * 50_000)) }
	return ffmpeg.Mastering{
		RedX: unit(gamut.red[0]), RedY: unit(gamut.red[1]), GreenX: unit(gamut.green[0]), GreenY: unit(gamut.green[1]),
		BlueX: unit(gamut.blue[0]), BlueY: unit(gamut.blue[1]), WhiteX: unit(gamut.white[0]), WhiteY: unit(gamut.white[1]),
		MaxLuminance: hdrPeak * 10_000, MinLuminance: 1,
	}
}

// gamutNamed is a checked value of config.hdr_color_gamut.
func gamutNamed(name string) primaries {
	if name == "p3" {
		return p3D65
	}
	return bt2020
}
