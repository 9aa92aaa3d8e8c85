package image

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/disintegration/imaging"
)

// faceScore compares the square of a face in two pictures of a size by their luma: PSNR in dB and the mean structural similarity (Wang et
// al., 2004, Gaussian window of 1.5).
func faceScore(t testing.TB, got, want image.Image, f face) (decibels, similarity float64) {
	t.Helper()
	if got.Bounds().Size() != want.Bounds().Size() {
		t.Fatalf("sizes differ: %v and %v", got.Bounds(), want.Bounds())
	}
	box := image.Rect(int(f.x-f.size/2), int(f.y-f.size/2), int(f.x+f.size/2), int(f.y+f.size/2)).Intersect(want.Bounds())
	c := canvas{box.Dx(), box.Dy()}
	plane := func(img image.Image) []float32 {
		out := make([]float32, c.width*c.height)
		for i := range out {
			r, g, b, _ := img.At(box.Min.X+i%c.width, box.Min.Y+i/c.width).RGBA()
			out[i] = float32(0.299*float64(r)+0.587*float64(g)+0.114*float64(b)) / 65535
		}
		return out
	}
	smooth := func(a, b []float32) []float32 {
		product := make([]float32, len(a))
		for i := range a {
			product[i] = a[i] * b[i]
		}
		return c.smooth(product, 1.5)
	}
	a, b := plane(got), plane(want)
	ones := make([]float32, len(a))
	for i := range ones {
		ones[i] = 1
	}
	ma, mb, aa, bb, ab := smooth(a, ones), smooth(b, ones), smooth(a, a), smooth(b, b), smooth(a, b)
	const c1, c2 = 0.01 * 0.01, 0.03 * 0.03
	for i := range a {
		d := float64(a[i] - b[i])
		decibels += d * d / float64(len(a))
		x, y := float64(ma[i]), float64(mb[i])
		similarity += (2*x*y + c1) * (2*(float64(ab[i])-x*y) + c2) / ((x*x + y*y + c1) * (float64(aa[i]) - x*x + float64(bb[i]) - y*y + c2)) / float64(len(a))
	}
	return -10 * math.Log10(decibels), similarity
}

// theFace is the one face of a picture.
func theFace(t testing.TB, img image.Image) face {
	t.Helper()
	found, err := newFaceFinder().find(t.Context(), rasterOf(t, img))
	if err != nil || len(found) != 1 {
		t.Fatalf("%d faces, %v", len(found), err)
	}
	return found[0]
}

// TestFaceEnhanceBettersAFace makes a photo half as large in several ways, has it enlarged again with and without face_enhance, and compares
// the face with the photo's.
func TestFaceEnhanceBettersAFace(t *testing.T) {
	t.Parallel()
	whole := decodeFile(t, astronaut)
	f := theFace(t, whole)
	shipped := Options{Neural: models(t, nil)}
	for _, c := range []struct {
		name    string
		options Options
		filter  imaging.ResampleFilter
		quality int
		// gain is what PSNR and SSIM must gain. The model for rough sources leaves less to do.
		gain, likeness float64
	}{
		{"soft, classical", Options{}, imaging.Linear, 90, 0.2, 0.004},
		{"soft", shipped, imaging.Linear, 90, 0.2, 0.004},
		{"sharp", shipped, imaging.Lanczos, 95, 0.2, 0.004},
		{"coarsely coded", shipped, imaging.Box, 75, 0.08, 0},
	} {
		low := jpegBytes(t, imaging.Resize(whole, 256, 256, c.filter), c.quality)
		plainOut, plain := job{options: c.options, format: "png"}.must(t, low)
		out, enhanced := job{options: c.options, format: "png", config: `{"face_enhance":true}`}.must(t, low)
		if plainOut.Facts["faces"] != nil || out.Facts["faces"] != 1 || out.Facts["faces_enhanced"] != 1 || len(out.Warnings) != 0 {
			t.Errorf("%s: %v, then %v %v", c.name, plainOut.Facts, out.Facts, out.Warnings)
		}
		p0, s0 := faceScore(t, plain, whole, f)
		p1, s1 := faceScore(t, enhanced, whole, f)
		t.Logf("%s: %.2f dB %.4f without, %.2f dB %.4f with", c.name, p0, s0, p1, s1)
		if p1 < p0+c.gain || s1 < s0+c.likeness {
			t.Errorf("%s: %.2f dB %.4f without, %.2f dB %.4f with", c.name, p0, s0, p1, s1)
		}
		// What is not the face is as it was.
		for _, at := range [][2]int{{10, 10}, {500, 20}, {100, 400}, {int(f.x), int(f.y + 1.1*f.size)}, {int(f.x + 0.9*f.size), int(f.y)}} {
			if plain.At(at[0], at[1]) != enhanced.At(at[0], at[1]) {
				t.Errorf("%s: the pixel at %v changed", c.name, at)
			}
		}
	}
}

// TestFaceEnhancePortrait scores the real 240p file against the 720p file of the same photo: enlarged 4 times, reduced to 720p, on the face. The
// two files lie 0.4 pixels apart and the smaller is oversharp, so that the best of all 13x13 filters would gain 1.3 dB, and most of that by the shift.
func TestFaceEnhancePortrait(t *testing.T) {
	t.Parallel()
	faces := samples(t, "faces")
	low, err := os.ReadFile(filepath.Join(faces, "obama-240p.jpg"))
	if err != nil {
		t.Fatal(err)
	}
	want := decodeFile(t, filepath.Join(faces, "obama-720p.jpg"))
	f := theFace(t, want)
	var decibels, similarity [2]float64
	for i, config := range []string{`{"scale":4}`, `{"scale":4,"face_enhance":true}`} {
		_, got := job{options: Options{Neural: models(t, nil)}, config: config}.must(t, low)
		decibels[i], similarity[i] = faceScore(t, imaging.Resize(got, 1280, 720, imaging.Linear), want, f)
	}
	t.Logf("without %.3f dB %.4f, with %.3f dB %.4f", decibels[0], similarity[0], decibels[1], similarity[1])
	if decibels[1] < decibels[0]+0.08 || similarity[1] < similarity[0]+0.003 {
		t.Errorf("without %.3f dB %.4f, with %.3f dB %.4f", decibels[0], similarity[0], decibels[1], similarity[1])
	}
}

// TestFaceEnhanceWithoutFace changes nothing where there is no face, and says that there is none.
func TestFaceEnhanceWithoutFace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ tool, config, plain string }{
		{"upscale", `{"face_enhance":true}`, `{}`},
		{"denoise", `{"face_enhance":true}`, `{}`},
		{"cartoonize", `{"face_enhance":true}`, `{}`},
		{"custom", `{"prompt":"brighter","face_enhance":true}`, `{"prompt":"brighter"}`},
	} {
		for _, img := range []image.Image{scene(60, 50), scene(1, 1), scene(2, 900)} {
			out, with := job{tool: c.tool, config: c.config, format: "png"}.must(t, pngBytes(t, img))
			_, without := job{tool: c.tool, config: c.plain, format: "png"}.must(t, pngBytes(t, img))
			if out.Facts["faces"] != 0 || len(out.Warnings) != 0 {
				t.Errorf("%s: %v %v", c.tool, out.Facts, out.Warnings)
			}
			if _, most := apart(t, with, without); most != 0 {
				t.Errorf("%s %v: changed by %.0f codes", c.tool, img.Bounds(), most)
			}
		}
	}
}

// TestFaceEnhanceOnEveryTool has each tool say that it restored the one face, in whatever form the photo comes.
func TestFaceEnhanceOnEveryTool(t *testing.T) {
	t.Parallel()
	photo := imaging.Resize(decodeFile(t, astronaut), 200, 200, imaging.Linear)
	hole := imaging.Clone(photo)
	for i := range 40 {
		hole.SetNRGBA(i, 199-i/8, color.NRGBA{})
	}
	for _, c := range []struct{ tool, config string }{
		{"denoise", `{"face_enhance":true}`}, {"cartoonize", `{"face_enhance":true}`}, {"custom", `{"prompt":"brighter","face_enhance":true}`},
	} {
		for name, img := range map[string]image.Image{"plain": photo, "hole": hole, "grey": imaging.Grayscale(photo)} {
			out, _ := job{tool: c.tool, config: c.config}.must(t, pngBytes(t, img))
			if out.Facts["faces"] != 1 || out.Facts["faces_enhanced"] != 1 {
				t.Errorf("%s %s: %v", c.tool, name, out.Facts)
			}
		}
	}
}

// TestOverlay lays a bright overlay over a dark picture in 8 and in 16 bits: whole in the middle, nothing at the rim, no steps between.
func TestOverlay(t *testing.T) {
	t.Parallel()
	for _, deep := range []bool{false, true} {
		o := overlay{x: 10, y: 6, width: 80, height: 90, middleX: 50, middleY: 51, radiusX: 40, radiusY: 45}
		for c := range o.planes {
			o.planes[c] = bytesOf(80*90, 1)
		}
		const w, h = 100, 110
		pixels := make([]byte, w*h*bytesPerPixel(deep))
		whole := bytes.Clone(pixels)
		blendRows([]overlay{o}, 0, w, whole, deep)
		stride := w * bytesPerPixel(deep)
		for y := range h {
			blendRows([]overlay{o}, y, w, pixels[y*stride:][:stride], deep)
		}
		if !bytes.Equal(pixels, whole) {
			t.Error("rows and the whole differ")
		}
		at := func(x, y int) int { return int(pixels[(y*w+x)*bytesPerPixel(deep)]) }
		if at(50, 51) != 255 || at(10, 51) > 3 || at(50, 6) > 3 || at(5, 51) != 0 || at(12, 8) != 0 {
			t.Errorf("deep %t: %d %d %d", deep, at(50, 51), at(10, 51), at(50, 6))
		}
		for x := 1; x < w; x++ {
			if d := at(x, 51) - at(x-1, 51); d > 32 || d < -32 {
				t.Errorf("deep %t: a step of %d at %d", deep, d, x)
			}
		}
		if pixels[(51*w+50)*bytesPerPixel(deep)+bytesPerPixel(deep)-1] != 0 {
			t.Error("alpha changed")
		}
	}
}

func bytesOf(n int, v float32) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = v
	}
	return out
}

func TestFaceEnhanceCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	photo := pngBytes(t, decodeFile(t, astronaut))
	j := job{config: `{"face_enhance":true}`, progress: func(done float64) {
		if done >= decodedPart {
			cancel()
		}
	}}
	if _, _, err := j.run(ctx, t, writeFile(t, photo)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
