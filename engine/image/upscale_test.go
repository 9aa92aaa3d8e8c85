package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coalaura/webp"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"

	"enlarger/engine"
)

func TestUpscaleKeepsThePicture(t *testing.T) {
	t.Parallel()
	want := scene(320, 240)
	for _, size := range []image.Point{{160, 120}, {80, 60}, {40, 30}} {
		scale := 320 / size.X
		for _, format := range []string{"jpg", "png", "webp"} {
			t.Run(fmt.Sprintf("x%d %s", scale, format), func(t *testing.T) {
				t.Parallel()
				out, got := job{config: fmt.Sprintf(`{"scale":%d}`, scale), format: format}.must(t, pngBytes(t, shrink(want, scale)))
				mean, _ := apart(t, want, got)
				if most := 1.2 * float64(scale); mean > most {
					t.Errorf("mean difference is %.2f codes, want at most %.1f", mean, most)
				}
				if out.Facts["method"] != "lanczos+backprojection" || out.Size == 0 || len(out.Warnings) > 0 {
					t.Errorf("output = %+v", out)
				}
			})
		}
	}
}

// shrink averages squares of pixels: where a pixel lies, it stays.
func shrink(img *image.NRGBA, by int) *image.NRGBA {
	size := img.Bounds().Size()
	small := image.NewNRGBA(image.Rect(0, 0, size.X/by, size.Y/by))
	for y := range size.Y / by {
		for x := range size.X / by {
			for c := range 4 {
				sum := 0
				for i := range by * by {
					sum += int(img.Pix[img.PixOffset(x*by+i%by, y*by+i/by)+c])
				}
				small.Pix[small.PixOffset(x, y)+c] = uint8((sum + by*by/2) / (by * by))
			}
		}
	}
	return small
}

func TestUpscaleOddSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []image.Point{{1, 1}, {1, 7}, {7, 1}, {2, 3}, {17, 9}, {161, 121}, {1, 20000}, {20000, 1}} {
		for _, scale := range []int{2, 8} {
			for _, format := range []string{"jpg", "png", "webp"} {
				t.Run(fmt.Sprintf("%v x%d %s", size, scale, format), func(t *testing.T) {
					t.Parallel()
					_, _, err := job{config: fmt.Sprintf(`{"scale":%d}`, scale), format: format}.run(t.Context(), t, writeFile(t, pngBytes(t, scene(size.X, size.Y))))
					if fitting := max(size.X, size.Y)*scale <= sideMost(format); fitting && err != nil {
						t.Fatal(err)
					} else if failure, ok := engine.AsFailure(err); !fitting && (!ok || failure.Code != engine.ResolutionLimitExceeded) {
						t.Fatalf("error = %v, want resolution_limit_exceeded", err)
					}
				})
			}
		}
	}
}

func TestUpscaleConstantStaysConstant(t *testing.T) {
	t.Parallel()
	for _, c := range []color.NRGBA{{255, 255, 255, 255}, {0, 0, 0, 255}, {1, 128, 254, 255}, {200, 100, 50, 77}} {
		img := image.NewNRGBA(image.Rect(0, 0, 33, 21))
		for i := range img.Pix {
			img.Pix[i] = [4]uint8{c.R, c.G, c.B, c.A}[i%4]
		}
		_, got := job{config: `{"scale":4}`, format: "png"}.must(t, pngBytes(t, img))
		for y := range got.Bounds().Dy() {
			for x := range got.Bounds().Dx() {
				if g := color.NRGBAModel.Convert(got.At(x, y)); g != c {
					t.Fatalf("pixel (%d, %d) is %v, want %v", x, y, g, c)
				}
			}
		}
	}
}

func TestUpscaleHasNoRingsAndRises(t *testing.T) {
	t.Parallel()
	ramp, edge := image.NewGray(image.Rect(0, 0, 64, 4)), image.NewGray(image.Rect(0, 0, 64, 4))
	for i := range ramp.Pix {
		ramp.Pix[i] = uint8(4 * (i % 64))
		edge.Pix[i] = 60
		if i%64 >= 32 {
			edge.Pix[i] = 200
		}
	}
	for name, img := range map[string]*image.Gray{"ramp": ramp, "edge": edge} {
		_, got := job{config: `{"scale":8}`, format: "png"}.must(t, pngBytes(t, img))
		gray, ok := got.(*image.Gray)
		if !ok {
			t.Fatalf("%s: output is %T, want grey", name, got)
		}
		row := gray.Pix[8*gray.Stride:][:512]
		if !slices.IsSorted(row) {
			t.Errorf("%s falls somewhere: %v", name, row)
		}
		if row[0] != img.Pix[0] || row[511] != img.Pix[63] {
			t.Errorf("%s runs from %d to %d, want %d to %d", name, row[0], row[511], img.Pix[0], img.Pix[63])
		}
	}
}

func TestUpscaleAlphaDoesNotBleed(t *testing.T) {
	t.Parallel()
	// Green beside transparent red: no red may show.
	img := image.NewNRGBA(image.Rect(0, 0, 32, 32))
	for y := range 32 {
		for x := range 32 {
			c := color.NRGBA{R: 255}
			if (x-16)*(x-16)+(y-16)*(y-16) < 90 {
				c = color.NRGBA{G: 200, A: 255}
			}
			img.SetNRGBA(x, y, c)
		}
	}
	for _, format := range []string{"png", "webp"} {
		_, got := job{config: `{"scale":4}`, format: format}.must(t, pngBytes(t, img))
		partly := 0
		for y := range 128 {
			for x := range 128 {
				c := color.NRGBAModel.Convert(got.At(x, y)).(color.NRGBA)
				if c.A > 0 && c.A < 255 {
					partly++
				}
				// WebP is lossy in colour.
				if most := map[string]uint8{"png": 0, "webp": 40}[format]; c.A > 128 && c.R > most {
					t.Fatalf("%s: pixel (%d, %d) is %v", format, x, y, c)
				}
			}
		}
		if partly < 50 {
			t.Errorf("%s: %d pixels are partly transparent, want a smooth edge", format, partly)
		}
	}
	out, got := job{format: "jpg"}.must(t, pngBytes(t, img))
	if r, g, b, _ := got.At(1, 1).RGBA(); r < 0xFE00 || g < 0xFE00 || b < 0xFE00 {
		t.Errorf("jpg: corner is %x %x %x, want white", r, g, b)
	}
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "transparency") {
		t.Errorf("jpg: warnings = %q", out.Warnings)
	}
}

func TestUpscaleKeeps16Bit(t *testing.T) {
	t.Parallel()
	img := image.NewNRGBA64(image.Rect(0, 0, 256, 4))
	for y := range 4 {
		for x := range 256 {
			v := uint16(30000 + 16*x) // 16 steps within one 8-bit code
			img.SetNRGBA64(x, y, color.NRGBA64{R: v, G: v + 1000, B: 65535 - v, A: 65535})
		}
	}
	var tiffBytes bytes.Buffer
	if err := tiff.Encode(&tiffBytes, img, nil); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"png": pngBytes(t, img), "tiff": tiffBytes.Bytes()} {
		out, got := job{format: "png"}.must(t, content)
		if out.Facts["bits"] != 16 {
			t.Errorf("%s: facts = %v", name, out.Facts)
		}
		codes := map[uint32]bool{}
		for x := range 512 {
			r, g, _, _ := got.At(x, 3).RGBA()
			codes[r] = true
			if want := 30000 + 8*float64(x) - 4; x > 20 && x < 490 && (float64(r)-want > 2 || want-float64(r) > 2 || g-r != 1000) {
				t.Fatalf("%s: red at %d is %d, want %.0f; green %d", name, x, r, want, g)
			}
		}
		if len(codes) < 400 {
			t.Errorf("%s: %d different codes, want a fine ramp", name, len(codes))
		}
	}
}

func TestUpscaleReadsEveryFormat(t *testing.T) {
	t.Parallel()
	img := scene(61, 43)
	encode := func(f func(b *bytes.Buffer) error) []byte {
		var b bytes.Buffer
		if err := f(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	grey := image.NewGray(img.Rect)
	for y := range 43 {
		for x := range 61 {
			grey.Set(x, y, img.At(x, y))
		}
	}
	for _, c := range []struct {
		name    string
		content []byte
		want    image.Image
		most    float64
	}{
		{"png", pngBytes(t, img), img, 0.8},
		{"jpeg", jpegBytes(t, img, 98), img, 2.5},
		{"grey jpeg", jpegBytes(t, grey, 98), grey, 1.2},
		{"gif", encode(func(b *bytes.Buffer) error { return gif.Encode(b, grey, nil) }), grey, 30},
		{"bmp", encode(func(b *bytes.Buffer) error { return bmp.Encode(b, img) }), img, 0.8},
		{"tiff", encode(func(b *bytes.Buffer) error {
			return tiff.Encode(b, img, &tiff.Options{Compression: tiff.Deflate, Predictor: true})
		}), img, 0.8},
		{"lossy webp", encode(func(b *bytes.Buffer) error { return webp.Encode(b, img, &webp.Options{Quality: 98, Method: 4}) }), img, 3},
		{"lossless webp", encode(func(b *bytes.Buffer) error { return webp.Encode(b, img, &webp.Options{Lossless: true, Method: 4}) }), img, 0.8},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			out, got := job{format: "png"}.must(t, c.content)
			_, want := job{format: "png"}.must(t, pngBytes(t, c.want))
			if mean, _ := apart(t, want, got); mean > c.most {
				t.Errorf("mean difference is %.2f codes, want at most %.1f", mean, c.most)
			}
			format := c.name[strings.LastIndex(c.name, " ")+1:]
			if out.Facts["source_format"] != format {
				t.Errorf("source_format = %v, want %s", out.Facts["source_format"], format)
			}
		})
	}
}

func TestLossyWebPWhiteStaysWhite(t *testing.T) {
	t.Parallel()
	img := image.NewRGBA(image.Rect(0, 0, 40, 40))
	for i := range img.Pix {
		img.Pix[i] = 255
	}
	var b bytes.Buffer
	if err := webp.Encode(&b, img, &webp.Options{Quality: 80, Method: 4}); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"png", "webp", "jpg"} {
		_, got := job{format: format}.must(t, b.Bytes())
		if r, g, bl, _ := got.At(20, 20).RGBA(); r>>8 < 254 || g>>8 < 254 || bl>>8 < 254 {
			t.Errorf("%s: white became %d %d %d", format, r>>8, g>>8, bl>>8)
		}
	}
}

func TestUpscaleProgressAndCancel(t *testing.T) {
	t.Parallel()
	path := writeFile(t, jpegBytes(t, scene(800, 600), 90))
	var mu sync.Mutex
	var seen []float64
	record := func(done float64) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, done)
	}
	if _, _, err := (job{config: `{"scale":4}`, progress: record}).run(t.Context(), t, path); err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(seen) || len(seen) < 5 || seen[len(seen)-1] != 1 {
		t.Errorf("progress = %v", seen)
	}
	for _, format := range []string{"jpg", "png", "webp"} {
		stopped := errors.New("stopped by the test")
		ctx, cancel := context.WithCancelCause(t.Context())
		var at time.Time
		stop := func(done float64) {
			if done > 0.3 && at.IsZero() {
				at = time.Now()
				cancel(stopped)
			}
		}
		_, out, err := job{config: `{"scale":8}`, format: format, progress: stop, options: Options{FFmpeg: runner(t)}}.run(ctx, t, path)
		if !errors.Is(err, stopped) {
			t.Errorf("%s: error = %v", format, err)
		}
		// Generous: what is checked is that a run of many seconds does not go on to its end.
		if waited := time.Since(at); waited > 5*time.Second {
			t.Errorf("%s: ended %v after the cancel", format, waited)
		}
		if _, err := os.Stat(out); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a part of the output was left", format)
		}
		cancel(nil)
	}
}

func TestUpscaleLeavesNothingInScratch(t *testing.T) {
	t.Parallel()
	_, out, err := job{}.run(t.Context(), t, writeFile(t, jpegBytes(t, scene(300, 200), 90)))
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(filepath.Dir(out))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestUpscaleMemoryGrowsAndIsBounded(t *testing.T) {
	t.Parallel()
	estimate := func(width, height int, from, to string) int64 {
		order := job{format: to}.order(t)
		source := engine.Source{Width: width, Height: height, Format: from, Size: 1 << 20}
		plan, err := order.Plan(source)
		if err != nil {
			t.Fatal(err)
		}
		return order.Memory(engine.Task{Plan: plan, Source: source})
	}
	small, usual, big := estimate(100, 100, "jpeg", "jpg"), estimate(4000, 3000, "jpeg", "jpg"), estimate(7000, 7000, "png", "png")
	if small >= usual || usual > 300<<20 || big > 300<<20 {
		t.Errorf("estimates are %d, %d and %d MiB", small>>20, usual>>20, big>>20)
	}
	if webp := estimate(4000, 3000, "jpeg", "webp"); webp < usual+200<<20 {
		t.Errorf("webp of 48 megapixels is estimated at %d MiB", webp>>20)
	}
}

func TestUpscaleRefuses(t *testing.T) {
	t.Parallel()
	whole := jpegBytes(t, scene(200, 200), 90)
	wholePNG := pngBytes(t, noise(100, 100, 1))
	var huge bytes.Buffer
	huge.Write(pngSignature)
	huge.Write([]byte{0, 0, 0, 13, 'I', 'H', 'D', 'R', 0, 1, 0, 0, 0, 1, 0, 0, 8, 6, 0, 0, 0, 0, 0, 0, 0})
	flipped := bytes.Clone(wholePNG)
	flipped[len(flipped)/2] ^= 0x40
	for _, c := range []struct {
		name    string
		content []byte
		code    engine.Code
	}{
		{"nothing", nil, engine.UnsupportedFormat},
		{"text", []byte("this is no picture, whatever it is called"), engine.UnsupportedFormat},
		{"svg", []byte(`<svg xmlns="http://www.w3.org/2000/svg"/>`), engine.UnsupportedFormat},
		{"half a jpeg", whole[:len(whole)/2], engine.UnsupportedFormat},
		{"half a png", wholePNG[:len(wholePNG)/2], engine.UnsupportedFormat},
		{"png with a flipped bit", flipped, engine.UnsupportedFormat},
		{"jpeg start only", []byte{0xFF, 0xD8, 0xFF}, engine.UnsupportedFormat},
		{"65536x65536 png", huge.Bytes(), engine.ResolutionLimitExceeded},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := job{}.run(t.Context(), t, writeFile(t, c.content))
			if failure, ok := engine.AsFailure(err); !ok || failure.Code != c.code {
				t.Errorf("error = %v, want %s", err, c.code)
			}
		})
	}
}

func TestUpscaleBadSamples(t *testing.T) {
	t.Parallel()
	dir := samples(t, "bad/image")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, options := range []Options{{}, {FFmpeg: runner(t)}} {
		for _, entry := range entries {
			t.Run(fmt.Sprintf("%s ffmpeg %t", entry.Name(), options.FFmpeg != nil), func(t *testing.T) {
				t.Parallel()
				out, _, err := job{options: options}.run(t.Context(), t, filepath.Join(dir, entry.Name()))
				if _, ok := engine.AsFailure(err); err != nil && !ok {
					t.Errorf("error is no failure: %v", err)
				}
				t.Logf("%dx%d %v", out.Width, out.Height, err)
			})
		}
	}
}

func TestUpscaleThroughFileAndFFmpeg(t *testing.T) {
	t.Parallel()
	// Large enough that the raster goes to a file; the picture is checked against the one made in memory, tile by tile the same.
	img := scene(64, 48)
	want := &raster{width: 64, height: 48, pix: img.Pix}
	dir := t.TempDir()
	file, err := newRaster(dir, 64, 48, false, true)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.write(0, img.Pix); err != nil {
		t.Fatal(err)
	}
	u := newUpscaler(4)
	whole := make([]byte, 256*192*4)
	if err := u.band(t.Context(), want, 0, whole, false, make([]tile, 64)); err != nil {
		t.Fatal(err)
	}
	for y := 0; y < 192; y += 16 {
		band := make([]byte, 16*256*4)
		if err := u.band(t.Context(), file, y, band, false, make([]tile, 64)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(band, whole[y*256*4:][:len(band)]) {
			t.Fatalf("band at %d differs", y)
		}
	}
}

func TestCMYKWarnsAndIsNotInverted(t *testing.T) {
	t.Parallel()
	img := scene(48, 32)
	content := adobeCMYK(t, img)
	if _, err := jpeg.DecodeConfig(bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	out, got := job{format: "png"}.must(t, content)
	_, want := job{format: "png"}.must(t, pngBytes(t, img))
	if mean, _ := apart(t, want, got); mean > 6 {
		t.Errorf("mean difference is %.1f codes", mean)
	}
	if len(out.Warnings) != 1 || !strings.Contains(out.Warnings[0], "CMYK") {
		t.Errorf("warnings = %q", out.Warnings)
	}
}
