package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"math"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"enlarger/engine"
)

// sameSize are the tools held to the promises of this file.
func sameSize() []string { return []string{"sharpen", "denoise", "restore"} }

// grainy adds normal noise of a deviation in 8-bit codes to a picture, alpha left alone, always the same for a seed.
func grainy(img *image.NRGBA, deviation float64, seed uint64) *image.NRGBA {
	out := image.NewNRGBA(img.Rect)
	random := rand.New(rand.NewPCG(seed, 2))
	for i, v := range img.Pix {
		out.Pix[i] = v
		if i%4 != 3 {
			out.Pix[i] = uint8(min(max(math.Round(float64(v)+deviation*random.NormFloat64()), 0), 255))
		}
	}
	return out
}

// greenOnly is the green of a picture.
func greenOnly(img *image.NRGBA) *image.Gray {
	out := image.NewGray(img.Rect)
	for i := range out.Pix {
		out.Pix[i] = img.Pix[4*i+1]
	}
	return out
}

// psnr compares red, green and blue, in dB.
func psnr(t testing.TB, a, b image.Image) float64 {
	t.Helper()
	if a.Bounds().Size() != b.Bounds().Size() {
		t.Fatalf("sizes differ: %v and %v", a.Bounds(), b.Bounds())
	}
	sum, size := 0.0, a.Bounds().Size()
	for y := range size.Y {
		for x := range size.X {
			r1, g1, b1, _ := a.At(a.Bounds().Min.X+x, a.Bounds().Min.Y+y).RGBA()
			r2, g2, b2, _ := b.At(b.Bounds().Min.X+x, b.Bounds().Min.Y+y).RGBA()
			for _, d := range [3]float64{float64(r1) - float64(r2), float64(g1) - float64(g2), float64(b1) - float64(b2)} {
				sum += d * d
			}
		}
	}
	return 10 * math.Log10(65535*65535*float64(3*size.X*size.Y)/(sum+1e-9))
}

func TestSameSizeOddSizes(t *testing.T) {
	t.Parallel()
	for _, tool := range sameSize() {
		for _, size := range []image.Point{{1, 1}, {1, 7}, {7, 1}, {2, 3}, {17, 9}, {9, 130}, {1, 20000}, {20000, 1}} {
			for _, format := range []string{"jpg", "png", "webp"} {
				t.Run(fmt.Sprintf("%s %v %s", tool, size, format), func(t *testing.T) {
					t.Parallel()
					img := grainy(scene(size.X, size.Y), 20, 1)
					_, _, err := job{tool: tool, format: format}.run(t.Context(), t, writeFile(t, pngBytes(t, img)))
					if fitting := max(size.X, size.Y) <= sideMost(format); fitting && err != nil {
						t.Fatal(err)
					} else if failure, ok := engine.AsFailure(err); !fitting && (!ok || failure.Code != engine.ResolutionLimitExceeded) {
						t.Fatalf("error = %v, want resolution_limit_exceeded", err)
					}
				})
			}
		}
	}
}

func TestSameSizeKeepsGreyAlphaAndDepth(t *testing.T) {
	t.Parallel()
	for _, tool := range sameSize() {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			img := grainy(scene(120, 90), 15, 2)
			if _, got := (job{tool: tool, format: "png"}).must(t, pngBytes(t, greenOnly(img))); got.ColorModel() != color.GrayModel {
				t.Errorf("grey became %T", got)
			}
			for i := 3; i < len(img.Pix); i += 4 {
				img.Pix[i] = uint8(i / 4 % 120 * 2)
			}
			_, got := job{tool: tool, format: "png"}.must(t, pngBytes(t, img))
			kept, ok := got.(*image.NRGBA)
			if !ok {
				t.Fatalf("transparent became %T", got)
			}
			for i := 3; i < len(img.Pix); i += 4 {
				if kept.Pix[i] != img.Pix[i] {
					t.Fatalf("alpha %d became %d", img.Pix[i], kept.Pix[i])
				}
			}
			out, got := job{tool: tool, format: "png"}.must(t, pngBytes(t, deepRamp(256, 40, 900)))
			codes := map[uint32]bool{}
			for x := range 256 {
				r, _, _, _ := got.At(x, 20).RGBA()
				codes[r] = true
			}
			if out.Facts["bits"] != 16 || len(codes) < 200 {
				t.Errorf("16 bits became %v with %d codes", out.Facts["bits"], len(codes))
			}
		})
	}
}

// deepRamp is a 16-bit ramp of 16 steps to an 8-bit code, with normal noise of a deviation in 16-bit codes.
func deepRamp(w, h int, deviation float64) *image.NRGBA64 {
	img := image.NewNRGBA64(image.Rect(0, 0, w, h))
	random := rand.New(rand.NewPCG(3, 3))
	for y := range h {
		for x := range w {
			v := func() uint16 { return uint16(30000 + 16*float64(x) + deviation*random.NormFloat64()) }
			img.SetNRGBA64(x, y, color.NRGBA64{R: v(), G: v(), B: v(), A: 65535})
		}
	}
	return img
}

func TestSameSizeConstantStaysConstant(t *testing.T) {
	t.Parallel()
	for _, tool := range sameSize() {
		for _, c := range []color.NRGBA{{255, 255, 255, 255}, {0, 0, 0, 255}, {1, 128, 254, 255}, {200, 100, 50, 77}} {
			img := image.NewNRGBA(image.Rect(0, 0, 61, 47))
			for i := range img.Pix {
				img.Pix[i] = [4]uint8{c.R, c.G, c.B, c.A}[i%4]
			}
			_, got := job{tool: tool, format: "png"}.must(t, pngBytes(t, img))
			for y := range 47 {
				for x := range 61 {
					if g := color.NRGBAModel.Convert(got.At(x, y)); g != c {
						t.Fatalf("%s: pixel (%d, %d) is %v, want %v", tool, x, y, g, c)
					}
				}
			}
		}
	}
}

func TestSameSizeCancel(t *testing.T) {
	t.Parallel()
	path := writeFile(t, pngBytes(t, grainy(scene(1100, 1100), 20, 4)))
	for _, tool := range sameSize() {
		stopped := errors.New("stopped by the test")
		ctx, cancel := context.WithCancelCause(t.Context())
		var at time.Time
		stop := func(done float64) {
			if done >= 0.2 && at.IsZero() {
				at = time.Now()
				cancel(stopped)
			}
		}
		_, out, err := job{tool: tool, format: "png", progress: stop}.run(ctx, t, path)
		cancel(nil)
		if !errors.Is(err, stopped) {
			t.Errorf("%s: error = %v", tool, err)
		}
		// Generous: what is checked is that a run of many seconds does not go on to its end.
		if waited := time.Since(at); waited > 5*time.Second {
			t.Errorf("%s: ended %v after the cancel", tool, waited)
		}
		if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a part of the output was left", tool)
		}
	}
}

func TestSameSizeRefuses(t *testing.T) {
	t.Parallel()
	whole := jpegBytes(t, scene(200, 200), 90)
	var huge bytes.Buffer
	huge.Write(pngSignature)
	huge.Write([]byte{0, 0, 0, 13, 'I', 'H', 'D', 'R', 0, 1, 0, 0, 0, 1, 0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0})
	for _, tool := range sameSize() {
		for _, c := range []struct {
			name    string
			content []byte
			code    engine.Code
		}{
			{"nothing", nil, engine.UnsupportedFormat},
			{"text", []byte("this is no picture, whatever it is called"), engine.UnsupportedFormat},
			{"half a jpeg", whole[:len(whole)/2], engine.UnsupportedFormat},
			{"65536x65536 png", huge.Bytes(), engine.ResolutionLimitExceeded},
		} {
			_, _, err := job{tool: tool}.run(t.Context(), t, writeFile(t, c.content))
			if failure, ok := engine.AsFailure(err); !ok || failure.Code != c.code {
				t.Errorf("%s %s: error = %v, want %s", tool, c.name, err, c.code)
			}
		}
	}
}

// seamless runs a filter over a picture in small squares and in one, and reports the largest difference of any sample in 8-bit codes.
func seamless(t *testing.T, source *raster, f filter) float64 {
	t.Helper()
	paint := func(side int) []float32 {
		out := make([]float32, 3*source.width*source.height)
		for y := 0; y < source.height; y += side {
			for x := 0; x < source.width; x += side {
				w, h := min(side, source.width-x), min(side, source.height-y)
				p, err := patchOf(source, x-f.margin, y-f.margin, w+2*f.margin, h+2*f.margin)
				if err != nil {
					t.Fatal(err)
				}
				if err := f.apply(t.Context(), 0, p); err != nil {
					t.Fatal(err)
				}
				for c := range 3 {
					for row := range h {
						copy(out[(c*source.height+y+row)*source.width+x:][:w], p.planes[c][(row+f.margin)*p.width+f.margin:])
					}
				}
			}
		}
		return out
	}
	whole, most := paint(1<<20), 0.0
	for i, v := range paint(96) {
		most = max(most, math.Abs(float64(v-whole[i])))
	}
	return most * 255
}

// laidOut makes a raster of a picture.
func laidOut(img *image.NRGBA) *raster {
	r := &raster{width: img.Rect.Dx(), height: img.Rect.Dy(), pix: img.Pix, grey: true}
	for i := 0; i < len(img.Pix); i += 4 {
		r.alpha = r.alpha || img.Pix[i+3] != 255
		r.grey = r.grey && img.Pix[i] == img.Pix[i+1] && img.Pix[i] == img.Pix[i+2]
	}
	return r
}
