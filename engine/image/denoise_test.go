package image

import (
	"bytes"
	"context"
	"image"
	"image/jpeg"
	"math"
	"math/rand/v2"
	"testing"

	"enlarger/engine/neural"
)

// striped is a scene with fine stripes in its left half, which a bad estimate takes for noise.
func striped(w, h int) *image.NRGBA {
	img := scene(w, h)
	for y := range h {
		for x := range w / 2 {
			at := img.PixOffset(x, y)
			for c := range 3 {
				img.Pix[at+c] = uint8(float64(img.Pix[at+c])*0.7 + 30 + 20*math.Sin(float64(x)*1.3)*math.Cos(float64(y)*0.9))
			}
		}
	}
	return img
}

func TestNoiseIsMeasured(t *testing.T) {
	t.Parallel()
	for _, deviation := range []float64{0, 3, 8, 20, 45} {
		img := grainy(striped(320, 240), deviation, 5)
		for _, grey := range []bool{false, true} {
			source := laidOut(img)
			if grey {
				for i := 0; i < len(source.pix); i += 4 {
					source.pix[i], source.pix[i+2] = source.pix[i+1], source.pix[i+1]
				}
				source.grey = true
			}
			got, err := measureNoise(t.Context(), source)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("noise %.0f, grey %t: luma %.2f, chroma %.2f, clipped %v", deviation, grey, got.luma*255, got.chroma*255, got.clipped)
			most := 0.7 + 0.08*deviation
			if d := math.Abs(float64(got.luma)*255 - deviation); d > most {
				t.Errorf("noise %.0f, grey %t: luma found %.2f", deviation, grey, got.luma*255)
			}
			if d := math.Abs(float64(got.chroma)*255 - deviation); !grey && d > most {
				t.Errorf("noise %.0f: chroma found %.2f", deviation, got.chroma*255)
			}
		}
	}
}

// TestNoiseOfFlatAreas holds the estimate to areas that say nothing: white paper around a noisy photo must not dilute its noise.
func TestNoiseOfFlatAreas(t *testing.T) {
	t.Parallel()
	img := image.NewNRGBA(image.Rect(0, 0, 400, 300))
	for i := range img.Pix {
		img.Pix[i] = 255
	}
	photo := grainy(scene(200, 150), 10, 6)
	for y := range 150 {
		copy(img.Pix[img.PixOffset(100, 75+y):], photo.Pix[photo.PixOffset(0, y):][:4*200])
	}
	got, err := measureNoise(t.Context(), laidOut(img))
	if err != nil {
		t.Fatal(err)
	}
	if got.luma*255 < 8.5 || got.luma*255 > 11.5 || got.chroma*255 < 8.5 || got.chroma*255 > 11.5 {
		t.Errorf("found %.2f and %.2f, want 10", got.luma*255, got.chroma*255)
	}
}

func TestDenoiseRemovesNoise(t *testing.T) {
	t.Parallel()
	clean := striped(300, 220)
	for _, c := range []struct{ deviation, gain float64 }{{5, 4}, {15, 7}, {30, 9}} {
		noisy := grainy(clean, c.deviation, 7)
		out, got := job{tool: "denoise", format: "png"}.must(t, pngBytes(t, noisy))
		before, after := psnr(t, clean, noisy), psnr(t, clean, got)
		t.Logf("%.0f: %.2f dB -> %.2f dB, %v", c.deviation, before, after, out.Facts)
		if after < before+c.gain {
			t.Errorf("noise %.0f: %.2f dB became %.2f dB, want %.0f dB more", c.deviation, before, after, c.gain)
		}
		if out.Facts["method"] != "bm3d" {
			t.Errorf("facts = %v", out.Facts)
		}
	}
}

func TestDenoiseLeavesCleanAlone(t *testing.T) {
	t.Parallel()
	for name, img := range map[string]*image.NRGBA{"scene": scene(200, 150), "stripes": striped(200, 150)} {
		out, got := job{tool: "denoise", format: "png"}.must(t, pngBytes(t, img))
		if p := psnr(t, img, got); p < 45 {
			t.Errorf("%s: %.1f dB to itself, %v", name, p, out.Facts)
		}
	}
}

func TestDenoiseHasNoSeams(t *testing.T) {
	t.Parallel()
	source := laidOut(grainy(scene(230, 170), 20, 8))
	d := newDenoiser(source, noiseModel{luma: 20.0 / 255, chroma: 20.0 / 255, clipped: [2]bool{true, true}})
	if most := seamless(t, source, d.filter()); most > 0.5 {
		t.Errorf("squares and the whole differ by %.2f codes", most)
	}
}

// TestClippingIsUndone checks the table against noise that was really cut off.
func TestClippingIsUndone(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(9, 9))
	for _, truth := range []float64{0, 0.5, 1, 2} {
		sum := 0.0
		const n = 200000
		for range n {
			sum += max(0, truth+random.NormFloat64())
		}
		if got := unclipped(sum / n); math.Abs(got-truth) > 0.02 {
			t.Errorf("mean %.3f came from %.2f, want %.2f", sum/n, got, truth)
		}
	}
}

func TestBlockTransformsAreInverse(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(10, 10))
	var b, was block
	for i := range b {
		b[i] = random.Float32()
	}
	was = b
	forwardDCT((*[blockArea]float32)(&b))
	power, want := 0.0, 0.0
	for i, v := range b {
		scaled := float64(v / (dctScale(i%blockSide) * dctScale(i/blockSide)))
		power += scaled * scaled
		want += float64(was[i] * was[i])
	}
	if math.Abs(power-want) > 1e-4*want {
		t.Errorf("the scaled transform has a power of %f, want %f", power, want)
	}
	inverseDCT(&b)
	for i, v := range b {
		if math.Abs(float64(v/64-was[i])) > 1e-5 {
			t.Fatalf("sample %d is %f, want %f", i, v/64, was[i])
		}
	}
}

// TestNoiseBehindJPEG is the usual case of a phone's photo at night: noise first, then coding that drops the finest grain.
func TestNoiseBehindJPEG(t *testing.T) {
	t.Parallel()
	clean := scene(360, 300)
	coded := jpegBytes(t, grainy(clean, 8, 14), 88)
	bad, err := jpeg.Decode(bytes.NewReader(coded))
	if err != nil {
		t.Fatal(err)
	}
	out, got := job{tool: "denoise", format: "png"}.must(t, coded)
	before, after := psnr(t, clean, bad), psnr(t, clean, got)
	t.Logf("%.2f dB -> %.2f dB, %v", before, after, out.Facts)
	if after < before+2 {
		t.Errorf("%.2f dB became %.2f dB, %v", before, after, out.Facts)
	}
}

// TestDenoiseTwoWays holds the mean of our model and of BM3D against each of them, and looks for seams in it.
func TestDenoiseTwoWays(t *testing.T) {
	t.Parallel()
	ours := models(t, nil)
	clean := scene(230, 170)
	noisy := grainy(clean, 25, 8)
	out, got := job{tool: "denoise", format: "png", options: Options{Neural: ours}}.must(t, pngBytes(t, noisy))
	if out.Facts["method"] != "bm3d+neural" || out.Facts["model"] != ours.Find(neural.Denoise, 1).Name() {
		t.Errorf("facts = %v", out.Facts)
	}
	source := laidOut(noisy)
	c := Options{Neural: ours}.cleaner(neural.Denoise, &picture{raster: source}, noiseModel{luma: 25.0 / 255, chroma: 25.0 / 255})
	f := c.filter()
	f.apply = func(ctx context.Context, worker int, p *patch) error { return c.apply(ctx, worker, p, f.margin) }
	if most := seamless(t, source, f); most > 0.5 {
		t.Errorf("squares and the whole differ by %.2f codes", most)
	}
	_, plain := job{tool: "denoise", format: "png"}.must(t, pngBytes(t, noisy))
	both, alone := psnr(t, clean, got), psnr(t, clean, plain)
	t.Logf("%.2f dB; by BM3D alone %.2f dB", both, alone)
	if both < alone {
		t.Errorf("%.2f dB by both, %.2f dB by BM3D alone", both, alone)
	}
}
