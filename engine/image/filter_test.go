package image

import (
	"bytes"
	"context"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// TestFilterPassesPicturesThrough holds the shared body to its promise: a filter that changes nothing gives back every code, at
// every size around the edge of a square, with alpha and in 16 bits, whatever its margin.
func TestFilterPassesPicturesThrough(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, size := range [][2]int{{1, 1}, {1, 700}, {255, 257}, {256, 256}, {521, 300}} {
		for _, deep := range []bool{false, true} {
			for _, margin := range []int{0, 3, 50} {
				source, err := newRaster("", size[0], size[1], deep, false)
				if err != nil {
					t.Fatal(err)
				}
				source.alpha = true
				for i := range source.pix {
					source.pix[i] = byte(rng.Uint32())
				}
				for i := bytesPerPixel(deep) / 4 * 3; i < len(source.pix); i += bytesPerPixel(deep) {
					source.pix[i] |= 0xC0 // where little is visible, colours cannot be kept to the code
				}
				o := Options{}.withDefaults()
				out, err := o.create(t.Context(), filepath.Join(t.TempDir(), "out"), "png", look{width: size[0], height: size[1], deep: deep, alpha: true})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := o.write(t.Context(), &picture{raster: source}, filter{margin: margin}, out, func(float64) {}); err != nil {
					t.Fatal(err)
				}
				got, err := o.open(t.Context(), out.path, t.TempDir())
				if err != nil {
					t.Fatal(err)
				}
				if got.deep != deep || !bytes.Equal(got.pix, source.pix) {
					t.Errorf("%v deep %t margin %d: pixels changed", size, deep, margin)
				}
			}
		}
	}
}

// TestFilterSquaresHaveNoSeams runs a blur as wide as its margin over pictures of several squares and demands the very codes that one
// square over everything gives.
func TestFilterSquaresHaveNoSeams(t *testing.T) {
	t.Parallel()
	const margin = 7
	rng := rand.New(rand.NewPCG(3, 4))
	source, err := newRaster("", 600, 530, false, false)
	if err != nil {
		t.Fatal(err)
	}
	for i := range source.pix {
		source.pix[i] = byte(rng.Uint32())
	}
	for i := 3; i < len(source.pix); i += 4 {
		source.pix[i] = 0xFF
	}
	blur := func(_ context.Context, _ int, p *patch) error {
		from := append([]float32(nil), p.planes[1]...)
		for y := margin; y < p.height-margin; y++ {
			for x := margin; x < p.width-margin; x++ {
				p.planes[1][y*p.width+x] = (from[(y-margin)*p.width+x-margin] + from[(y+margin)*p.width+x+margin]) / 2
			}
		}
		return nil
	}
	o := Options{}.withDefaults()
	out, err := o.create(t.Context(), filepath.Join(t.TempDir(), "out"), "png", look{width: 600, height: 530})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.write(t.Context(), &picture{raster: source}, filter{margin: margin, apply: blur}, out, func(float64) {}); err != nil {
		t.Fatal(err)
	}
	got, err := o.open(t.Context(), out.path, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	whole, err := patchOf(source, -margin, -margin, 600+2*margin, 530+2*margin)
	if err != nil {
		t.Fatal(err)
	}
	if err := blur(t.Context(), 0, whole); err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 600*530*4)
	for y := range 530 {
		whole.store(want[y*600*4:][:600*4], margin, margin+y, false)
	}
	if !bytes.Equal(got.pix, want) {
		t.Error("squares and the whole differ")
	}
}

// TestReducedKeepsTheMean checks that every source pixel counts once.
func TestReducedKeepsTheMean(t *testing.T) {
	t.Parallel()
	source, err := newRaster("", 300, 200, false, false)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(5, 6))
	mean := 0.0
	for i := 0; i < len(source.pix); i += 4 {
		v := byte(rng.Uint32())
		copy(source.pix[i:], []byte{v, v, v, 0xFF})
		mean += float64(v) / 255 / float64(300*200)
	}
	small, err := source.reduced(t.Context(), 30)
	if err != nil {
		t.Fatal(err)
	}
	if small.width != 30 || small.height != 20 {
		t.Fatalf("reduced to %dx%d", small.width, small.height)
	}
	got := 0.0
	for _, v := range small.planes[0] {
		got += float64(v) / float64(30*20)
	}
	if d := got - mean; d > 1e-5 || d < -1e-5 {
		t.Errorf("mean %f, want %f", got, mean)
	}
}
