package image

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestRestoreFace takes noise out of what is flat, makes a soft step steeper without a rim, and does the same to what has moved.
func TestRestoreFace(t *testing.T) {
	t.Parallel()
	const w, h = 96, 64
	chance := rand.New(rand.NewPCG(3, 4))
	for strong, steeper := range map[bool]float32{false: 1.02, true: 1.1} {
		flat := make([]float32, w*h)
		for i := range flat {
			flat[i] = 0.5 + float32(chance.NormFloat64())*1.5/255
		}
		before := variance(flat)
		traits := MeasureFace(flat, w, h)
		traits.Softness = 1
		RestoreFace(flat, w, h, traits, strong)
		if after := variance(flat); after > before/3 {
			t.Errorf("strong %t: the variance of noise goes from %.2g to %.2g", strong, before, after)
		}
		step := func(shift int) []float32 {
			out := make([]float32, w*h)
			for i := range out {
				out[i] = float32(0.2 + 0.6/(1+math.Exp(-float64(i%w-48-shift)/1.5)))
			}
			return out
		}
		one, two := step(0), step(3)
		steep := one[49] - one[47]
		RestoreFace(one, w, h, FaceTraits{Softness: 1}, strong)
		RestoreFace(two, w, h, FaceTraits{Softness: 1}, strong)
		at := 32 * w
		if one[at+49]-one[at+47] < steeper*steep {
			t.Errorf("strong %t: a soft step rises by %.3f, before by %.3f", strong, one[at+49]-one[at+47], steep)
		}
		if low, high := slices.Min(one), slices.Max(one); low < 0.2-0.1 || high > 0.8+0.1 {
			t.Errorf("strong %t: a step from 0.2 to 0.8 reaches from %.3f to %.3f", strong, low, high)
		}
		for x := 16; x < w-16; x++ {
			if d := one[at+x] - two[at+x+3]; d > 1e-5 || d < -1e-5 {
				t.Fatalf("strong %t: what has moved differs by %g at %d", strong, d, x)
			}
		}
	}
	// What is beyond black stays, and is no reason to fail.
	beyond := make([]float32, w*h)
	for i := range beyond {
		beyond[i] = float32(i%w)/w*1.2 - 0.1
	}
	was := slices.Clone(beyond)
	RestoreFace(beyond, w, h, MeasureFace(beyond, w, h), true)
	for i, v := range beyond {
		if d := v - was[i]; d > 0.02 || d < -0.02 {
			t.Fatalf("a ramp changes by %.3f at %d", d, i%w)
		}
	}
}

func variance(v []float32) float64 {
	mean, square := 0.0, 0.0
	for _, x := range v {
		mean += float64(x) / float64(len(v))
	}
	for _, x := range v {
		square += (float64(x) - mean) * (float64(x) - mean) / float64(len(v))
	}
	return square
}

// TestFaceFinder finds in a frame what a still's finder finds, and refuses what is no frame.
func TestFaceFinder(t *testing.T) {
	t.Parallel()
	img := decodeFile(t, astronaut)
	want := theFace(t, img)
	bounds := img.Bounds()
	grey := make([]byte, bounds.Dx()*bounds.Dy())
	for i := range grey {
		r, g, b, _ := img.At(i%bounds.Dx(), i/bounds.Dx()).RGBA()
		grey[i] = byte((299*r + 587*g + 114*b) / 1000 >> 8)
	}
	finder := NewFaceFinder()
	found, err := finder.Find(t.Context(), grey, bounds.Dx(), bounds.Dy(), 15)
	if err != nil || len(found) == 0 {
		t.Fatalf("%v, %v", found, err)
	}
	f := found[0]
	if math.Hypot(f.X-want.x, f.Y-want.y) > 8 || math.Abs(f.Size-want.size) > 10 || f.Quality < 20 {
		t.Errorf("%+v, want %+v", f, want)
	}
	if o := f.Oval(); o.Cover(int(f.X), int(f.Y)) != 1 || o.Cover(int(o.X+o.RadiusX)+1, int(o.Y)) != 0 || o.Cover(int(f.X-0.4*f.Size), int(f.Y+0.4*f.Size)) == 0 {
		t.Errorf("%+v", o)
	}
	if _, err := finder.Find(t.Context(), grey, 3, 3, 0); err == nil {
		t.Error("a frame of another size was searched")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := finder.Find(ctx, grey, bounds.Dx(), bounds.Dy(), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if FindFaceModel(nil) != nil {
		t.Error("a model without a runtime")
	}
}
