package image

import (
	"context"
	"errors"
	"image"
	"image/color"
	"math"
	"slices"
	"testing"
)

// onPlain is a disc with a blurred edge, red with a stripe, on a plain background that gets slowly darker.
func onPlain(w, h int) (*image.NRGBA, func(x, y int) float64) {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	radius := float64(min(w, h)) / 3
	cover := func(x, y int) float64 {
		d := math.Hypot(float64(x)+0.5-float64(w)/2, float64(y)+0.5-float64(h)/2)
		return min(max((radius-d)/3+0.5, 0), 1)
	}
	for y := range h {
		for x := range w {
			a := cover(x, y)
			subject := [3]float64{190, 40, 30}
			if x%40 < 8 {
				subject = [3]float64{235, 200, 40}
			}
			ground := 215 - 20*float64(y)/float64(h)
			mix := func(c int) uint8 { return uint8(a*subject[c] + (1-a)*ground + 0.5) }
			img.SetNRGBA(x, y, color.NRGBA{mix(0), mix(1), mix(2), 255})
		}
	}
	return img, cover
}

// TestRemoveBackgroundPlain cuts out a thing before a plain wall: the wall is gone, the thing is whole, its soft edge is soft, and
// nothing of the wall's colour is left in it.
func TestRemoveBackgroundPlain(t *testing.T) {
	t.Parallel()
	img, cover := onPlain(320, 240)
	out, got := job{tool: "remove_bg"}.must(t, pngBytes(t, img))
	if out.Facts["method"] != "plain-background" || out.Facts["confidence"].(float64) < 0.7 || len(out.Warnings) != 0 {
		t.Errorf("%v %v", out.Facts, out.Warnings)
	}
	wrong, edge, halo := 0.0, 0, 0.0
	for y := range 240 {
		for x := range 320 {
			c, _ := color.NRGBAModel.Convert(got.At(x, y)).(color.NRGBA)
			a := float64(c.A) / 255
			wrong += math.Abs(a - cover(x, y))
			if a > 0.2 && a < 0.9 && x%40 > 12 && x%40 < 36 {
				edge++
				halo += math.Abs(float64(c.B) - 30)
			}
		}
	}
	if mean := wrong / (320 * 240); mean > 0.006 {
		t.Errorf("alpha is off by %.4f on the mean", mean)
	}
	if edge < 50 || halo/float64(edge) > 50 {
		t.Errorf("%d edge pixels; their blue is off by %.1f codes, the wall's by 185", edge, halo/float64(edge))
	}
	_, flat := job{tool: "remove_bg", format: "jpg"}.must(t, pngBytes(t, img))
	if r, g, b, _ := flat.At(3, 3).RGBA(); r < 0xFB00 || g < 0xFB00 || b < 0xFB00 {
		t.Errorf("the corner of the jpg is %d %d %d", r>>8, g>>8, b>>8)
	}
}

// TestRemoveBackgroundFormats checks that png is what comes out unless the client asks, and what a jpg says.
func TestRemoveBackgroundFormats(t *testing.T) {
	t.Parallel()
	img, _ := onPlain(80, 60)
	for asked, want := range map[string]string{"": "png", "png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"} {
		order := job{tool: "remove_bg", format: asked}.order(t)
		if order.Format != want {
			t.Errorf("asked %q, planned %q", asked, order.Format)
		}
	}
	out, _ := job{tool: "remove_bg", format: "jpg"}.must(t, pngBytes(t, img))
	if !slices.Contains(out.Warnings, flattenWarning) {
		t.Errorf("warnings: %v", out.Warnings)
	}
}

// TestRemoveBackgroundNothingToSee leaves pictures without a subject whole and says so.
func TestRemoveBackgroundNothingToSee(t *testing.T) {
	t.Parallel()
	grey := image.NewGray(image.Rect(0, 0, 90, 70))
	for i := range grey.Pix {
		grey.Pix[i] = 120
	}
	for name, img := range map[string]image.Image{"flat": grey, "pixel": scene(1, 1), "thread": scene(1, 20000), "wide": scene(9000, 2)} {
		out, got := job{tool: "remove_bg"}.must(t, pngBytes(t, img))
		if _, _, _, a := got.At(0, 0).RGBA(); name != "wide" && name != "thread" && a != 0xFFFF {
			t.Errorf("%s: alpha %d", name, a)
		}
		if out.Facts["confidence"].(float64) < 0.4 && len(out.Warnings) == 0 {
			t.Errorf("%s: %v without a warning", name, out.Facts)
		}
	}
}

// TestRemoveBackgroundKeepsHoles checks that what was transparent stays so, in 16 bits too.
func TestRemoveBackgroundKeepsHoles(t *testing.T) {
	t.Parallel()
	plain, cover := onPlain(160, 120)
	deep := image.NewNRGBA64(plain.Rect)
	for y := range 120 {
		for x := range 160 {
			c := plain.NRGBAAt(x, y)
			a := uint16(0xFFFF)
			if x > 70 && x < 90 && y > 50 && y < 70 {
				a = 0x4000
			}
			deep.SetNRGBA64(x, y, color.NRGBA64{uint16(c.R) * 257, uint16(c.G) * 257, uint16(c.B) * 257, a})
		}
	}
	out, got := job{tool: "remove_bg"}.must(t, pngBytes(t, deep))
	if out.Facts["bits"] != 16 {
		t.Errorf("%v", out.Facts)
	}
	c, _ := color.NRGBA64Model.Convert(got.At(80, 60)).(color.NRGBA64)
	if cover(80, 60) != 1 || c.A > 0x4000 || c.A < 0x3800 {
		t.Errorf("a hole of alpha 0x4000 became %#x", c.A)
	}
}

func TestRemoveBackgroundCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	img, _ := onPlain(300, 200)
	_, _, err := job{tool: "remove_bg"}.run(ctx, t, writeFile(t, pngBytes(t, img)))
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestRemoveBackgroundPeople measures how well people are cut out of street photos that took no part in learning: the intersection over
// union with masks drawn by hand. The mean over all 180 such photos is in docs; a few are enough to notice a loss.
func TestRemoveBackgroundPeople(t *testing.T) {
	t.Parallel()
	o := Options{}.withDefaults()
	every := 200
	if *allPeople {
		every = 20
	}
	sum, n := 0.0, 0
	peoplePhotos(t, every, 0, func(p peoplePhoto) {
		m, err := o.matteOf(t.Context(), p.photo.raster)
		if err != nil {
			t.Fatal(err)
		}
		whole, err := patchOf(p.photo.raster, 0, 0, p.photo.width, p.photo.height)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.cut(t.Context(), 0, whole); err != nil {
			t.Fatal(err)
		}
		both, either := 0.0, 0.0
		for i, v := range p.mask {
			if a := whole.planes[3][i]; a > 0.5 || v > 0.5 {
				either++
				if a > 0.5 && v > 0.5 {
					both++
				}
			}
		}
		t.Logf("%s: %.3f, confidence %.2f, %s", p.name, both/either, m.confidence, m.method)
		sum += both / either
		n++
	})
	t.Logf("mean intersection over union of %d photos: %.3f", n, sum/float64(n))
	if sum < 0.7*float64(n) {
		t.Errorf("mean intersection over union of %d photos: %.3f", n, sum/float64(n))
	}
}
