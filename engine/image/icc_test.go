package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"image"
	"image/color"
	"math"
	"testing"

	"github.com/klauspost/compress/zlib"
	"golang.org/x/image/tiff"
)

// profile builds an ICC profile of the given tags.
func profile(space, connection string, tags map[string][]byte, order ...string) []byte {
	b := append([]byte(nil), make([]byte, 128)...)
	copy(b[12:], "mntr")
	copy(b[16:], space)
	copy(b[20:], connection)
	copy(b[36:], "acsp")
	b = binary.BigEndian.AppendUint32(b, uint32(len(order)))
	offset := 132 + 12*len(order)
	var data []byte
	for _, name := range order {
		b = append(b, name...)
		b = binary.BigEndian.AppendUint32(b, uint32(offset+len(data)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(tags[name])))
		data = append(data, tags[name]...)
		for len(data)%4 != 0 {
			data = append(data, 0)
		}
	}
	b = append(b, data...)
	binary.BigEndian.PutUint32(b, uint32(len(b)))
	return b
}

func fixed(values ...float64) (b []byte) {
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, uint32(int32(math.Round(v*65536))))
	}
	return b
}

func xyzTag(x, y, z float64) []byte { return append([]byte("XYZ \x00\x00\x00\x00"), fixed(x, y, z)...) }

func paraTag(kind int, values ...float64) []byte {
	return append([]byte{'p', 'a', 'r', 'a', 0, 0, 0, 0, 0, byte(kind), 0, 0}, fixed(values...)...)
}

func curveTag(points ...uint16) []byte {
	b := append([]byte("curv\x00\x00\x00\x00"), binary.BigEndian.AppendUint32(nil, uint32(len(points)))...)
	for _, p := range points {
		b = binary.BigEndian.AppendUint16(b, p)
	}
	return b
}

var srgbCurve = paraTag(3, 2.4, 1/1.055, 0.055/1.055, 1/12.92, 0.04045)

// rgbProfile has the primaries given as columns of XYZ relative to D50.
func rgbProfile(curve []byte, r, g, b [3]float64) []byte {
	tags := map[string][]byte{
		"rXYZ": xyzTag(r[0], r[1], r[2]), "gXYZ": xyzTag(g[0], g[1], g[2]), "bXYZ": xyzTag(b[0], b[1], b[2]),
		"rTRC": curve, "gTRC": curve, "bTRC": curve,
	}
	return profile("RGB ", "XYZ ", tags, "rXYZ", "gXYZ", "bXYZ", "rTRC", "gTRC", "bTRC")
}

// Primaries of common spaces, relative to D50 (as their published profiles have them).
var (
	srgbR, srgbG, srgbB = [3]float64{0.43607, 0.22249, 0.01392}, [3]float64{0.38515, 0.71687, 0.09708}, [3]float64{0.14307, 0.06061, 0.71410}
	p3R, p3G, p3B       = [3]float64{0.51512, 0.24120, -0.00105}, [3]float64{0.29198, 0.69225, 0.04189}, [3]float64{0.15710, 0.06657, 0.78407}
)

func displayP3() []byte { return rgbProfile(srgbCurve, p3R, p3G, p3B) }

func TestProfileSRGBIsIdentity(t *testing.T) {
	t.Parallel()
	if transform, err := parseProfile(rgbProfile(srgbCurve, srgbR, srgbG, srgbB)); err != nil || !transform.isIdentity() {
		t.Errorf("not the identity, error %v", err)
	}
}

func TestProfileValues(t *testing.T) {
	t.Parallel()
	grey := func(curve []byte) []byte { return profile("GRAY", "XYZ ", map[string][]byte{"kTRC": curve}, "kTRC") }
	for _, c := range []struct {
		name     string
		profile  []byte
		from, to [3]uint8
	}{
		// The P3 values are those of the CSS Color 4 conversion, rounded.
		{"p3 grey", displayP3(), [3]uint8{128, 128, 128}, [3]uint8{128, 128, 128}},
		{"p3 white", displayP3(), [3]uint8{255, 255, 255}, [3]uint8{255, 255, 255}},
		{"p3 muted red", displayP3(), [3]uint8{200, 100, 100}, [3]uint8{215, 93, 97}},
		{"p3 pure red is clipped", displayP3(), [3]uint8{255, 0, 0}, [3]uint8{255, 0, 0}},
		{"gamma 1.8", rgbProfile(curveTag(0x01CD), srgbR, srgbG, srgbB), [3]uint8{128, 128, 128}, [3]uint8{146, 146, 146}},
		{"linear", rgbProfile(curveTag(), srgbR, srgbG, srgbB), [3]uint8{55, 55, 55}, [3]uint8{128, 128, 128}},
		{"sampled linear", rgbProfile(curveTag(0, 32768, 65535), srgbR, srgbG, srgbB), [3]uint8{55, 55, 55}, [3]uint8{128, 128, 128}},
		{"grey gamma 1", grey(paraTag(0, 1)), [3]uint8{55, 55, 55}, [3]uint8{128, 128, 128}},
		{"grey gamma 2.2", grey(curveTag(0x0233)), [3]uint8{128, 128, 128}, [3]uint8{128, 128, 128}},
	} {
		transform, err := parseProfile(c.profile)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		pixel := []byte{c.from[0], c.from[1], c.from[2], 77}
		transform.apply(pixel, false)
		for i, want := range c.to {
			if d := int(pixel[i]) - int(want); d < -1 || d > 1 {
				t.Errorf("%s: %v became %v, want %v", c.name, c.from, pixel[:3], c.to)
				break
			}
		}
		if pixel[3] != 77 {
			t.Errorf("%s: alpha changed", c.name)
		}
	}
}

func TestProfilesRefused(t *testing.T) {
	t.Parallel()
	whole := displayP3()
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"text":           bytes.Repeat([]byte("text"), 100),
		"cut off":        whole[:len(whole)-10],
		"cmyk":           profile("CMYK", "Lab ", nil),
		"lab table":      profile("RGB ", "Lab ", nil),
		"no curve":       profile("GRAY", "XYZ ", nil),
		"many points":    profile("GRAY", "XYZ ", map[string][]byte{"kTRC": []byte("curv\x00\x00\x00\x00\xff\xff\xff\xff")}, "kTRC"),
		"odd parameters": profile("GRAY", "XYZ ", map[string][]byte{"kTRC": paraTag(9, 1, 1)}, "kTRC"),
		"no slope":       profile("GRAY", "XYZ ", map[string][]byte{"kTRC": paraTag(1, 2, 0, 1)}, "kTRC"),
	} {
		if _, err := parseProfile(b); !errors.Is(err, errProfile) {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

// TestProfileInEveryContainer puts a P3 profile into each format and finds its effect in the decoded pixels.
func TestProfileInEveryContainer(t *testing.T) {
	t.Parallel()
	img := image.NewNRGBA(image.Rect(0, 0, 16, 16))
	for y := range 16 {
		for x := range 16 {
			img.Set(x, y, color.NRGBA{200, 100, 100, 255})
		}
	}
	p3 := displayP3()
	jpg := jpegBytes(t, img, 100)
	half := len(p3) / 2
	var segments []byte
	for i, part := range [][]byte{p3[:half], p3[half:]} {
		body := append([]byte("ICC_PROFILE\x00"), byte(i+1), 2)
		body = append(body, part...)
		segments = append(segments, 0xFF, 0xE2, byte((len(body)+2)>>8), byte(len(body)+2))
		segments = append(segments, body...)
	}
	var packed bytes.Buffer
	packed.WriteString("name\x00\x00")
	z := zlib.NewWriter(&packed)
	_, _ = z.Write(p3)
	_ = z.Close()
	for name, content := range map[string][]byte{
		"jpeg": append(append(bytes.Clone(jpg[:2]), segments...), jpg[2:]...),
		"png":  insertChunk(pngBytes(t, img), "iCCP", packed.Bytes()),
		"webp": webpWithProfile(t, img, p3),
		"tiff": tiffWithProfile(t, img, p3),
	} {
		p, got := decoded(t, Options{}, content)
		c := got.(*image.NRGBA).NRGBAAt(8, 8)
		for i, d := range [3]int{int(c.R) - 215, int(c.G) - 93, int(c.B) - 97} {
			if d < -3 || d > 3 {
				t.Errorf("%s: channel %d of %v is off", name, i, c)
			}
		}
		if len(p.warnings) > 0 {
			t.Errorf("%s: warnings = %q", name, p.warnings)
		}
	}
	p, _ := decoded(t, Options{}, insertChunk(pngBytes(t, img), "iCCP", append([]byte("name\x00\x00"), zlibBytes(profile("RGB ", "Lab ", nil))...)))
	if len(p.warnings) != 1 {
		t.Errorf("table profile: warnings = %q", p.warnings)
	}
}

func zlibBytes(b []byte) []byte {
	var packed bytes.Buffer
	z := zlib.NewWriter(&packed)
	_, _ = z.Write(b)
	_ = z.Close()
	return packed.Bytes()
}

// webpWithProfile wraps a lossless still in the extended format.
func webpWithProfile(t testing.TB, img *image.NRGBA, icc []byte) []byte {
	t.Helper()
	still := encodings(t, img)["lossless webp"]
	size := img.Rect.Size()
	extended := []byte{0x20, 0, 0, 0, byte(size.X - 1), 0, 0, byte(size.Y - 1), 0, 0}
	body := append([]byte("WEBPVP8X"), binary.LittleEndian.AppendUint32(nil, 10)...)
	body = append(body, extended...)
	body = append(append(body, "ICCP"...), binary.LittleEndian.AppendUint32(nil, uint32(len(icc)))...)
	body = append(body, icc...)
	if len(icc)%2 == 1 {
		body = append(body, 0)
	}
	body = append(body, still[12:]...)
	return append(append([]byte("RIFF"), binary.LittleEndian.AppendUint32(nil, uint32(len(body)))...), body...)
}

// tiffWithProfile appends the profile and a directory with one entry more.
func tiffWithProfile(t testing.TB, img *image.NRGBA, icc []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := tiff.Encode(&b, img, nil); err != nil {
		t.Fatal(err)
	}
	content := b.Bytes()
	directory := int(binary.LittleEndian.Uint32(content[4:]))
	n := int(binary.LittleEndian.Uint16(content[directory:]))
	entries := bytes.Clone(content[directory+2 : directory+2+12*n])
	at := len(content)
	content = append(content, icc...)
	if len(content)%2 == 1 {
		content = append(content, 0)
	}
	binary.LittleEndian.PutUint32(content[4:], uint32(len(content)))
	content = binary.LittleEndian.AppendUint16(content, uint16(n+1))
	content = append(content, entries...)
	content = binary.LittleEndian.AppendUint16(content, tiffProfile)
	content = binary.LittleEndian.AppendUint16(content, 7)
	content = binary.LittleEndian.AppendUint32(content, uint32(len(icc)))
	content = binary.LittleEndian.AppendUint32(content, uint32(at))
	return append(content, 0, 0, 0, 0)
}
