package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// errProfile is returned for a colour profile that is broken or of a kind that is not applied here.
var errProfile = errors.New("colour profile not applied")

const (
	// maxProfileBytes bounds a profile; display profiles have at most a few hundred KB.
	maxProfileBytes = 4 << 20
	maxProfileTags  = 256
	// maxCurvePoints bounds a sampled curve: 16 bits can tell no more apart.
	maxCurvePoints = 65536
)

// colorTransform brings samples from a matrix/TRC profile to sRGB: linearise, three by three, encode.
type colorTransform struct {
	// linear[c][v] is the light of 16-bit code v of channel c.
	linear [3][]float32
	// matrix goes from the profile's linear RGB to linear sRGB, row by row.
	matrix [9]float32
	// encoded is the sRGB code, 0 to 65535, of light i/65535; one entry more for interpolation.
	encoded []float32
}

// xyzToLinear goes from XYZ relative to D50 to linear sRGB, with Bradford adaptation from D65 (IEC 61966-2-1, ICC.1:2022 annex E).
var xyzToLinear = [9]float64{
	3.1338561, -1.6168667, -0.4906146,
	-0.9787684, 1.9161415, 0.0334540,
	0.0719453, -0.2289914, 1.4052427,
}

// parseProfile makes the transform of an ICC profile to sRGB. Profiles that need a look-up table (CMYK, Lab, printers) are an errProfile.
func parseProfile(profile []byte) (*colorTransform, error) {
	const headerBytes = 128
	if len(profile) < headerBytes+4 || len(profile) > maxProfileBytes || string(profile[36:40]) != "acsp" {
		return nil, fmt.Errorf("%w: no ICC header in %d bytes", errProfile, len(profile))
	}
	tags, err := profileTags(profile)
	if err != nil {
		return nil, err
	}
	t := &colorTransform{}
	switch space := string(profile[16:20]); space {
	case "RGB ":
		err = t.readRGB(tags, string(profile[20:24]))
	case "GRAY":
		err = t.readGrey(tags)
	default:
		err = fmt.Errorf("%w: colour space %q", errProfile, space)
	}
	if err != nil {
		return nil, err
	}
	t.encoded = make([]float32, 65537)
	for i := range t.encoded {
		t.encoded[i] = float32(65535 * encodeSRGB(float64(min(i, 65535))/65535))
	}
	return t, nil
}

func profileTags(profile []byte) (map[string][]byte, error) {
	n := int(binary.BigEndian.Uint32(profile[128:]))
	if n < 0 || n > maxProfileTags || len(profile) < 132+12*n {
		return nil, fmt.Errorf("%w: %d tags", errProfile, n)
	}
	tags := make(map[string][]byte, n)
	for i := range n {
		b := profile[132+12*i:]
		offset, size := uint64(binary.BigEndian.Uint32(b[4:])), uint64(binary.BigEndian.Uint32(b[8:]))
		if offset+size > uint64(len(profile)) {
			return nil, fmt.Errorf("%w: tag beyond the end", errProfile)
		}
		tags[string(b[:4])] = profile[offset : offset+size]
	}
	return tags, nil
}

func (t *colorTransform) readRGB(tags map[string][]byte, connection string) error {
	if connection != "XYZ " {
		return fmt.Errorf("%w: RGB profile with a look-up table", errProfile)
	}
	var toXYZ [9]float64
	for c, name := range []string{"r", "g", "b"} {
		column := tags[name+"XYZ"]
		if len(column) < 20 || string(column[:4]) != "XYZ " {
			return fmt.Errorf("%w: no %sXYZ", errProfile, name)
		}
		for row := range 3 {
			toXYZ[3*row+c] = float64(int32(binary.BigEndian.Uint32(column[8+4*row:]))) / 65536
		}
		line, err := readCurve(tags[name+"TRC"])
		if err != nil {
			return fmt.Errorf("%sTRC: %w", name, err)
		}
		t.linear[c] = line
	}
	for row := range 3 {
		for c := range 3 {
			sum := 0.0
			for k := range 3 {
				sum += xyzToLinear[3*row+k] * toXYZ[3*k+c]
			}
			t.matrix[3*row+c] = float32(sum)
		}
	}
	return nil
}

func (t *colorTransform) readGrey(tags map[string][]byte) error {
	line, err := readCurve(tags["kTRC"])
	if err != nil {
		return fmt.Errorf("kTRC: %w", err)
	}
	t.linear = [3][]float32{line, line, line}
	t.matrix = [9]float32{1, 0, 0, 0, 1, 0, 0, 0, 1}
	return nil
}

// readCurve samples a tone curve at all 16-bit codes.
func readCurve(tag []byte) ([]float32, error) {
	if len(tag) < 12 {
		return nil, fmt.Errorf("%w: no curve", errProfile)
	}
	var curve func(x float64) float64
	switch string(tag[:4]) {
	case "curv":
		n := int64(binary.BigEndian.Uint32(tag[8:]))
		if n > maxCurvePoints || int64(len(tag)) < 12+2*n {
			return nil, fmt.Errorf("%w: curve of %d points", errProfile, n)
		}
		curve = sampledCurve(tag[12 : 12+2*n])
	case "para":
		var err error
		if curve, err = parametricCurve(tag); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("%w: curve of kind %q", errProfile, tag[:4])
	}
	line := make([]float32, 65536)
	for i := range line {
		v := curve(float64(i) / 65535)
		if math.IsNaN(v) {
			return nil, fmt.Errorf("%w: curve without a value at %d", errProfile, i)
		}
		line[i] = float32(min(max(v, 0), 1))
	}
	return line, nil
}

// sampledCurve is a `curv`: nothing is the identity, one value a gamma, more are points of the curve.
func sampledCurve(points []byte) func(float64) float64 {
	n := len(points) / 2
	at := func(i int) float64 { return float64(binary.BigEndian.Uint16(points[2*i:])) }
	switch n {
	case 0:
		return func(x float64) float64 { return x }
	case 1:
		gamma := at(0) / 256
		return func(x float64) float64 { return math.Pow(x, gamma) }
	}
	return func(x float64) float64 {
		place := x * float64(n-1)
		i := min(int(place), n-2)
		part := place - float64(i)
		return (at(i)*(1-part) + at(i+1)*part) / 65535
	}
}

// parametricCurve is a `para` of one of the five kinds of ICC.1:2022, 10.18.
func parametricCurve(tag []byte) (func(float64) float64, error) {
	kind := int(binary.BigEndian.Uint16(tag[8:]))
	count, known := map[int]int{0: 1, 1: 3, 2: 4, 3: 5, 4: 7}[kind]
	if !known || len(tag) < 12+4*count {
		return nil, fmt.Errorf("%w: parametric curve of kind %d", errProfile, kind)
	}
	var p [7]float64
	for i := range count {
		p[i] = float64(int32(binary.BigEndian.Uint32(tag[12+4*i:]))) / 65536
	}
	g, a, b, c, d, e, f := p[0], p[1], p[2], p[3], p[4], p[5], p[6]
	switch kind {
	case 0:
		return func(x float64) float64 { return math.Pow(x, g) }, nil
	case 1, 2: // the second adds c everywhere
		if a == 0 {
			return nil, fmt.Errorf("%w: parametric curve without slope", errProfile)
		}
		return func(x float64) float64 {
			if x < -b/a {
				return c
			}
			return math.Pow(a*x+b, g) + c
		}, nil
	}
	return func(x float64) float64 {
		if x < d {
			return c*x + f
		}
		return math.Pow(a*x+b, g) + e
	}, nil
}

func encodeSRGB(light float64) float64 {
	if light <= 0.0031308 {
		return 12.92 * light
	}
	return 1.055*math.Pow(light, 1/2.4) - 0.055
}

// convert brings one pixel of 16-bit codes to sRGB, 0 to 65535.
func (t *colorTransform) convert(red, green, blue uint16) (r, g, b float32) {
	lr, lg, lb := t.linear[0][red], t.linear[1][green], t.linear[2][blue]
	m := &t.matrix
	return t.encode(m[0]*lr + m[1]*lg + m[2]*lb), t.encode(m[3]*lr + m[4]*lg + m[5]*lb), t.encode(m[6]*lr + m[7]*lg + m[8]*lb)
}

func (t *colorTransform) encode(light float32) float32 {
	if light <= 0 {
		return 0
	}
	if light >= 1 {
		return 65535
	}
	place := light * 65535
	i := int(place)
	return t.encoded[i] + (t.encoded[i+1]-t.encoded[i])*(place-float32(i))
}

// apply converts rows of pixels in place; alpha stays.
func (t *colorTransform) apply(pixels []byte, deep bool) {
	if deep {
		for i := 0; i+8 <= len(pixels); i += 8 {
			p := pixels[i : i+8]
			r, g, b := t.convert(binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:]), binary.BigEndian.Uint16(p[4:]))
			binary.BigEndian.PutUint16(p, uint16(r+0.5))
			binary.BigEndian.PutUint16(p[2:], uint16(g+0.5))
			binary.BigEndian.PutUint16(p[4:], uint16(b+0.5))
		}
		return
	}
	for i := 0; i+4 <= len(pixels); i += 4 {
		p := pixels[i : i+4]
		r, g, b := t.convert(uint16(p[0])*257, uint16(p[1])*257, uint16(p[2])*257)
		p[0], p[1], p[2] = byte(r*(1.0/257)+0.5), byte(g*(1.0/257)+0.5), byte(b*(1.0/257)+0.5)
	}
}

// isIdentity says that the profile is sRGB already: no pixel of a coarse grid changes by more than one 8-bit code.
func (t *colorTransform) isIdentity() bool {
	const step, one = 17, 257.5
	for r := 0; r <= 255; r += step {
		for g := 0; g <= 255; g += step {
			for b := 0; b <= 255; b += step {
				from := [3]float32{float32(r * 257), float32(g * 257), float32(b * 257)}
				x, y, z := t.convert(uint16(r*257), uint16(g*257), uint16(b*257))
				for c, v := range [3]float32{x, y, z} {
					if d := v - from[c]; d > one || d < -one {
						return false
					}
				}
			}
		}
	}
	return true
}
