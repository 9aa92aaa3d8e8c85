package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disintegration/imaging"

	"enlarger/engine"
)

// passportMeasure is what ICAO asks about, measured on a finished photo without what made it: the eyes are found anew, and the crown is the
// first row with something dark.
type passportMeasure struct {
	eyeLine, centre, tilt, head, ground float64
}

func measurePassport(t testing.TB, img image.Image) passportMeasure {
	t.Helper()
	if img.Bounds().Dx() != passportWidth || img.Bounds().Dy() != passportHeight {
		t.Fatalf("the photo is %v", img.Bounds())
	}
	f := theFace(t, img)
	eyes := point{(f.eyes[0].x + f.eyes[1].x) / 2, (f.eyes[0].y + f.eyes[1].y) / 2}
	m := passportMeasure{eyeLine: 1 - eyes.y/passportHeight, centre: eyes.x/passportWidth - 0.5, tilt: f.roll() * 180 / math.Pi}
	grey := func(x, y int) float64 {
		r, g, b, _ := img.At(x, y).RGBA()
		return (0.299*float64(r) + 0.587*float64(g) + 0.114*float64(b)) / 65535
	}
	crown := 0.0
	for y := range passportHeight {
		dark := 0
		for x := passportWidth * 3 / 8; x < passportWidth*5/8; x++ {
			if grey(x, y) < 0.8 {
				dark++
			}
		}
		if dark > passportWidth/16 {
			crown = float64(y)
			break
		}
	}
	chin := f.y + 0.5*f.size
	m.head = (chin - crown) / passportHeight
	// The background is where the photo is lightest: the two upper corners.
	sum, square, n := 0.0, 0.0, 0.0
	for y := range passportHeight / 12 {
		for x := range passportWidth / 8 {
			for _, v := range [2]float64{grey(x, y), grey(passportWidth-1-x, y)} {
				sum, square, n = sum+255*v, square+255*255*v*v, n+1
			}
		}
	}
	m.ground = math.Sqrt(max(0, square/n-sum/n*sum/n))
	return m
}

// within holds the measures to the ranges of ICAO Doc 9303. The head's height is measured more loosely than it is made: hair counts in the one and
// not in the other.
func (m passportMeasure) within() error {
	var wrong []error
	for _, c := range []struct {
		what           string
		v, least, most float64
	}{
		{"eye line", m.eyeLine, 0.5, 0.7},
		{"centre", m.centre, -0.05, 0.05},
		{"tilt", m.tilt, -5, 5},
		{"head", m.head, 0.66, 0.82},
		{"background deviation", m.ground, 0, 3},
	} {
		if c.v < c.least || c.v > c.most {
			wrong = append(wrong, fmt.Errorf("%s is %.3f, allowed are %.2f to %.2f", c.what, c.v, c.least, c.most))
		}
	}
	return errors.Join(wrong...)
}

// TestPassportPhoto makes photos of one portrait, as it is, turned and large, and measures them.
func TestPassportPhoto(t *testing.T) {
	t.Parallel()
	portrait := decodeFile(t, astronaut)
	for name, img := range map[string]image.Image{
		"tilted": imaging.Rotate(portrait, 9, color.Gray{200}), "large": imaging.Resize(portrait, 1600, 1600, imaging.Linear),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, got := job{tool: "passport_photo", format: "png"}.must(t, pngBytes(t, img))
			m := measurePassport(t, got)
			t.Logf("%+v %v", m, out.Facts)
			if err := m.within(); err != nil {
				t.Error(err)
			}
			if large := name == "large"; large == strings.Contains(strings.Join(out.Warnings, " "), "pixels high") {
				t.Errorf("warnings: %v", out.Warnings)
			}
		})
	}
}

// TestPassportSamples measures photos of real portraits.
func TestPassportSamples(t *testing.T) {
	t.Parallel()
	dir := samples(t, "faces")
	for _, name := range []string{"obama-480p.jpg"} {
		_, path, err := job{tool: "passport_photo"}.run(t.Context(), t, filepath.Join(dir, name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		m := measurePassport(t, decodeFile(t, path))
		t.Logf("%s: %+v", name, m)
		if err := m.within(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, _, err := job{tool: "passport_photo"}.run(t.Context(), t, filepath.Join(dir, "two_people.jpg"))
	if f, ok := engine.AsFailure(err); !ok || f.Code != engine.ProcessingFailed || !strings.Contains(f.Message, "2 faces") {
		t.Errorf("two people: %v", err)
	}
}

// TestPassportRefuses says of each unsuitable source what is wrong.
func TestPassportRefuses(t *testing.T) {
	t.Parallel()
	portrait := imaging.Clone(decodeFile(t, astronaut))
	pair := image.NewNRGBA(image.Rect(0, 0, 1024, 512))
	draw.Draw(pair, pair.Rect, portrait, image.Point{}, draw.Src)
	draw.Draw(pair, image.Rect(512, 0, 1024, 512), imaging.FlipH(portrait), image.Point{}, draw.Src)
	for want, img := range map[string]image.Image{
		"No face":         scene(300, 300),
		"2 faces":         pair,
		"too small":       imaging.Resize(portrait, 200, 200, imaging.Linear),
		"No face was":     scene(1, 1),
		"below the head":  imaging.Crop(portrait, image.Rect(0, 0, 512, 172)),
		"cut off at the ": imaging.Crop(portrait, image.Rect(0, 62, 512, 512)),
	} {
		_, _, err := job{tool: "passport_photo"}.run(t.Context(), t, writeFile(t, pngBytes(t, img)))
		if f, ok := engine.AsFailure(err); !ok || f.Code != engine.ProcessingFailed || !strings.Contains(f.Message, want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestPassportResolution reads the resolution back from the files' bytes: JFIF's density, and PNG's pHYs in pixels a metre.
func TestPassportResolution(t *testing.T) {
	t.Parallel()
	portrait := pngBytes(t, imaging.Resize(decodeFile(t, astronaut), 300, 300, imaging.Linear))
	for format, want := range map[string][]byte{
		"jpg":  {'J', 'F', 'I', 'F', 0, 1, 1, 1, 600 >> 8, 600 & 0xFF, 600 >> 8, 600 & 0xFF},
		"png":  {'p', 'H', 'Y', 's', 0, 0, 0x5C, 0x46, 0, 0, 0x5C, 0x46, 1},
		"webp": nil,
	} {
		out, path, err := job{tool: "passport_photo", format: format}.run(t.Context(), t, writeFile(t, portrait))
		if err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(content, want) {
			t.Errorf("%s: no resolution in % x", format, content[:60])
		}
		if warned := strings.Contains(strings.Join(out.Warnings, " "), "print size"); warned != (format == "webp") {
			t.Errorf("%s: %v", format, out.Warnings)
		}
	}
}

func TestPassportCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	j := job{tool: "passport_photo", progress: func(done float64) {
		if done >= 0.3 {
			cancel()
		}
	}}
	if _, _, err := j.run(ctx, t, astronaut); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
