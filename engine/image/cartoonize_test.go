package image

import (
	"bytes"
	"context"
	"errors"
	"image"
	"image/color"
	"math"
	"testing"
	"time"
)

var cartoonStyles = []string{"anime", "comic", "sketch", "watercolor", "oil"}

// drawn composes a style and draws all of a picture in one square, or in many small ones.
func drawn(t *testing.T, source *raster, style string, pixels, side int) []byte {
	t.Helper()
	prep, err := composed(t.Context(), source, style, pixels)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, source.width*source.height*4)
	for y := 0; y < source.height; y += side {
		for x := 0; x < source.width; x += side {
			w, h := min(side, source.width-x), min(side, source.height-y)
			p, err := patchOf(source, x, y, w, h)
			if err != nil {
				t.Fatal(err)
			}
			if err := prep.filter.apply(t.Context(), 0, p); err != nil {
				t.Fatal(err)
			}
			for row := range h {
				p.store(out[((y+row)*source.width+x)*4:][:w*4], 0, row, false)
			}
		}
	}
	return out
}

// rasterFrom is a standard image as a raster.
func rasterFrom(img *image.NRGBA) *raster {
	r := &raster{width: img.Rect.Dx(), height: img.Rect.Dy(), pix: img.Pix}
	opaque, grey := inspect(r.pix, false, true, true)
	r.alpha, r.grey = !opaque, grey
	return r
}

func TestCartoonSquaresHaveNoSeams(t *testing.T) {
	t.Parallel()
	source := rasterFrom(scene(150, 97))
	for _, style := range cartoonStyles {
		if !bytes.Equal(drawn(t, source, style, 9000, 1000), drawn(t, source, style, 9000, 37)) {
			t.Errorf("%s: squares and the whole differ", style)
		}
	}
}

// TestCartoonFollowsTheSize draws a picture and its enlargement, both over the size that looks are composed at, and compares them at one size.
func TestCartoonFollowsTheSize(t *testing.T) {
	t.Parallel()
	small := rasterFrom(scene(300, 240))
	large, err := small.resized(t.Context(), 900, 720, t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, style := range cartoonStyles {
		a := rasterFrom(&image.NRGBA{Pix: drawn(t, small, style, 40_000, 300), Stride: 4 * 300, Rect: image.Rect(0, 0, 300, 240)})
		b := rasterFrom(&image.NRGBA{Pix: drawn(t, large, style, 40_000, 900), Stride: 4 * 900, Rect: image.Rect(0, 0, 900, 720)})
		b, err := b.resized(t.Context(), 300, 240, "", false)
		if err != nil {
			t.Fatal(err)
		}
		most := 4.0
		if style == "sketch" { // its grain is finer than a pixel of so small a picture
			most = 9
		}
		if mean, _ := apart(t, a.view(), b.view()); mean > most {
			t.Errorf("%s: a picture three times as large looks %.2f codes different", style, mean)
		}
	}
}

func TestCartoonStyles(t *testing.T) {
	t.Parallel()
	img := scene(120, 80)
	for y := range 80 {
		for x := range 30 {
			img.Pix[img.PixOffset(x, y)+3] = uint8(x * 8)
		}
	}
	content := pngBytes(t, img)
	seen := map[string]string{}
	for _, style := range cartoonStyles {
		j := job{tool: "cartoonize", config: `{"style":"` + style + `"}`, format: "png"}
		out, got := j.must(t, content)
		if out.Width != 120 || out.Height != 80 || out.Facts["style"] != style {
			t.Errorf("%s: %+v", style, out)
		}
		colours, changed := 0.0, 0.0
		for y := range 80 {
			for x := range 120 {
				n := color.NRGBAModel.Convert(got.At(x, y)).(color.NRGBA)
				was := img.NRGBAAt(x, y)
				if n.A != was.A {
					t.Fatalf("%s: alpha at %d,%d is %d, was %d", style, x, y, n.A, was.A)
				}
				colours += math.Abs(float64(n.R) - float64(n.B))
				changed += math.Abs(float64(n.G) - float64(was.G))
			}
		}
		if grey := colours == 0; grey != (style == "sketch") {
			t.Errorf("%s: the output is grey: %t", style, grey)
		}
		if changed < 120*80 {
			t.Errorf("%s: the picture hardly changed", style)
		}
		_, again := j.must(t, content)
		if mean, most := apart(t, got, again); most != 0 {
			t.Errorf("%s: a second run differs by %f", style, mean)
		}
		seen[string(pngBytes(t, got))] = style
	}
	if len(seen) != len(cartoonStyles) {
		t.Errorf("only %d of the styles differ", len(seen))
	}
}

func TestCartoonizeAtOddSizes(t *testing.T) {
	t.Parallel()
	for _, size := range [][2]int{{1, 1}, {1, 20000}, {20000, 1}, {2, 3}, {7, 300}} {
		for _, style := range cartoonStyles {
			j := job{tool: "cartoonize", config: `{"style":"` + style + `"}`, format: "png"}
			if out, _ := j.must(t, pngBytes(t, scene(size[0], size[1]))); out.Width != size[0] || out.Height != size[1] {
				t.Errorf("%s of %v: %+v", style, size, out)
			}
		}
	}
}

func TestCartoonizeStops(t *testing.T) {
	t.Parallel()
	content := writeFile(t, pngBytes(t, scene(500, 400)))
	for _, style := range []string{"anime", "oil"} {
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the client has gone")
		j := job{tool: "cartoonize", config: `{"style":"` + style + `"}`, format: "png", progress: func(float64) { cancel(gone) }}
		start := time.Now()
		if _, _, err := j.run(ctx, t, content); !errors.Is(err, gone) {
			t.Errorf("%s: %v", style, err)
		}
		t.Logf("%s stopped after %v", style, time.Since(start))
	}
}

func TestBanded(t *testing.T) {
	t.Parallel()
	before := float32(-1)
	for i := range 1001 {
		v := float32(i) / 1000
		b := banded(v, 6, 3)
		if b < before-1e-6 || math.Abs(float64(b-v)) > 0.5/6 {
			t.Fatalf("%f becomes %f after %f", v, b, before)
		}
		before = b
	}
}

func TestResizeKeepsFlatAndStraight(t *testing.T) {
	t.Parallel()
	for _, size := range [][4]int{{100, 80, 33, 27}, {100, 80, 211, 97}, {1, 1, 50, 40}, {5000, 3, 10, 1}, {64, 64, 64, 64}} {
		img := image.NewNRGBA(image.Rect(0, 0, size[0], size[1]))
		for i := range img.Pix {
			img.Pix[i] = []uint8{200, 100, 50, 255}[i%4]
		}
		got, err := rasterFrom(img).resized(t.Context(), size[2], size[3], t.TempDir(), size[0] == 100)
		if err != nil {
			t.Fatal(err)
		}
		row := make([]byte, got.width*4)
		for y := range got.height {
			if err := got.read(0, y, row); err != nil {
				t.Fatal(err)
			}
			for i, v := range row {
				if v != []uint8{200, 100, 50, 255}[i%4] {
					t.Fatalf("%v: sample %d of row %d is %d", size, i, y, v)
				}
			}
		}
		got.Close()
	}
	// A ramp stays one: no shift by half a pixel.
	ramp := image.NewNRGBA(image.Rect(0, 0, 256, 4))
	for i := range 256 * 4 {
		v := uint8(i % 256)
		copy(ramp.Pix[4*i:], []uint8{v, v, v, 255})
	}
	got, err := rasterFrom(ramp).resized(t.Context(), 128, 2, "", false)
	if err != nil {
		t.Fatal(err)
	}
	for x := 4; x < 124; x++ {
		if want := float64(2*x) + 0.5; math.Abs(float64(got.pix[4*x])-want) > 0.51 {
			t.Errorf("column %d is %d, want %.1f", x, got.pix[4*x], want)
		}
	}
}
