package image

import (
	"image"
	"math"
	"slices"
	"testing"
)

// softened blurs a picture by a Gaussian, alpha left alone.
func softened(t testing.TB, img *image.NRGBA, deviation float64) *image.NRGBA {
	t.Helper()
	p, err := patchOf(laidOut(img), 0, 0, img.Rect.Dx(), img.Rect.Dy())
	if err != nil {
		t.Fatal(err)
	}
	out := image.NewNRGBA(img.Rect)
	copy(out.Pix, img.Pix)
	for c := range 3 {
		for i, v := range convolved(p.planes[c], p.width, p.height, gaussianTaps(deviation, int(4*deviation)+1)) {
			out.Pix[4*i+c] = code8(v)
		}
	}
	return out
}

// hardEdges is a picture of hard edges of many directions and heights.
func hardEdges(w, h int) *image.NRGBA {
	img := scene(w, h)
	for y := range h {
		for x := range w {
			for k := range 9 {
				cx, cy := float64(w)*(0.15+0.35*float64(k%3)), float64(h)*(0.15+0.35*float64(k/3))
				if d := math.Hypot(float64(x)-cx, float64(y)-cy); d < 18 && math.Mod(d, 9) < 5 {
					at := img.PixOffset(x, y)
					img.Pix[at], img.Pix[at+1], img.Pix[at+2] = uint8(20+20*k), uint8(220-15*k), uint8(40+10*k)
				}
			}
		}
	}
	return img
}

func TestBlurIsMeasured(t *testing.T) {
	t.Parallel()
	sharp := hardEdges(240, 200)
	last := 0.0
	for _, deviation := range []float64{0.8, 1.2, 2} {
		got, err := measureBlur(t.Context(), laidOut(softened(t, sharp, deviation)), 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("blur %.1f: found %.2f", deviation, got)
		if math.Abs(got-deviation) > 0.25*deviation || got <= last {
			t.Errorf("blur %.1f: found %.2f", deviation, got)
		}
		last = got
	}
	if got, err := measureBlur(t.Context(), laidOut(scene(9, 9)), 0); err != nil || got != 0 {
		t.Errorf("a picture without edges: %.2f, %v", got, err)
	}
}

func TestSharpenTakesBlurOut(t *testing.T) {
	t.Parallel()
	sharp := hardEdges(240, 200)
	for _, c := range []struct{ deviation, gain float64 }{{0.8, 2}, {1.2, 2}, {2, 1}} {
		soft := softened(t, sharp, c.deviation)
		out, got := job{tool: "sharpen", format: "png"}.must(t, pngBytes(t, soft))
		before, after := psnr(t, sharp, soft), psnr(t, sharp, got)
		t.Logf("%.1f: %.2f dB -> %.2f dB, %v", c.deviation, before, after, out.Facts)
		if after < before+c.gain {
			t.Errorf("blur %.1f: %.2f dB became %.2f dB, want %.1f dB more", c.deviation, before, after, c.gain)
		}
	}
}

// TestSharpenHasLittleHalo looks at a soft step: beyond its two levels there may be no more than the overshoot.
func TestSharpenHasLittleHalo(t *testing.T) {
	t.Parallel()
	step := image.NewNRGBA(image.Rect(0, 0, 80, 160))
	for i := 0; i < len(step.Pix); i += 4 {
		v := uint8(80)
		if i/4%80 >= 40 {
			v = 180
		}
		copy(step.Pix[i:], []uint8{v, v, v, 255})
	}
	_, got := job{tool: "sharpen", format: "png"}.must(t, pngBytes(t, softened(t, step, 1.5)))
	grey := got.(*image.Gray)
	row := grey.Pix[80*grey.Stride:][:80]
	if least, most := slices.Min(row), slices.Max(row); least < 80-25 || most > 180+25 {
		t.Errorf("the step runs from %d to %d", least, most)
	}
	soft := softened(t, step, 1.5)
	slope := func(at func(x int) float64) float64 { return at(41) - at(38) }
	before := slope(func(x int) float64 { return float64(soft.Pix[4*(80*80+x)]) })
	if after := slope(func(x int) float64 { return float64(row[x]) }); after < 1.3*before {
		t.Errorf("the slope was %.0f and is %.0f", before, after)
	}
}

// TestSharpenDoesNotFeedNoise holds flat areas to the noise they had.
func TestSharpenDoesNotFeedNoise(t *testing.T) {
	t.Parallel()
	for _, deviation := range []float64{2, 6, 15} {
		flat := hardEdges(240, 200)
		for y := range 80 {
			for x := range 240 {
				copy(flat.Pix[flat.PixOffset(x, y):], []uint8{120, 130, 140, 255})
			}
		}
		noisy := grainy(softened(t, flat, 1.2), deviation, 11)
		_, got := job{tool: "sharpen", format: "png"}.must(t, pngBytes(t, noisy))
		spread := func(img image.Image) float64 {
			sum, square, n := 0.0, 0.0, 0.0
			for y := 8; y < 70; y++ {
				for x := 8; x < 230; x++ {
					_, g, _, _ := img.At(x, y).RGBA()
					sum, square, n = sum+float64(g), square+float64(g)*float64(g), n+1
				}
			}
			return math.Sqrt(square/n-sum/n*sum/n) / 257
		}
		before, after := spread(noisy), spread(got)
		t.Logf("noise %.0f: %.2f -> %.2f codes", deviation, before, after)
		if after > 1.05*before {
			t.Errorf("noise %.0f: %.2f codes became %.2f", deviation, before, after)
		}
	}
}

func TestSharpenHasNoSeams(t *testing.T) {
	t.Parallel()
	source := laidOut(grainy(hardEdges(230, 170), 3, 12))
	if most := seamless(t, source, newDeconvolution(1.3, noiseModel{luma: 3.0 / 255, chroma: 3.0 / 255}, false).filter()); most > 0.5 {
		t.Errorf("squares and the whole differ by %.2f codes", most)
	}
}
