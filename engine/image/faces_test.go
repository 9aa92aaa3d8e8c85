package image

import (
	"context"
	"image"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/disintegration/imaging"
)

const astronaut = "../../fixtures/media/astronaut.png"

// rasterOf makes a raster of a standard picture.
func rasterOf(t testing.TB, img image.Image) *raster {
	t.Helper()
	size := img.Bounds().Size()
	r, err := newRaster("", size.X, size.Y, false, false)
	if err != nil {
		t.Fatal(err)
	}
	s := newSink(r, nil)
	if err := storeImage(context.Background(), imaging.Clone(img), s); err != nil {
		t.Fatal(err)
	}
	s.finish()
	return r
}

// opened decodes a file through the pipeline.
func opened(t testing.TB, path string) *picture {
	t.Helper()
	p, err := Options{}.withDefaults().open(t.Context(), path, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// TestFacesAstronaut finds the one face of a known photo, upright, turned and mirrored, small and large. Its pupils are at (204, 102) and
// (246, 103).
func TestFacesAstronaut(t *testing.T) {
	t.Parallel()
	upright := decodeFile(t, astronaut)
	for name, c := range map[string]struct {
		img  image.Image
		eyes [2]point
		roll float64
	}{
		"upright":  {upright, [2]point{{204, 102}, {246, 103}}, 2},
		"mirrored": {imaging.FlipH(upright), [2]point{{266, 103}, {308, 102}}, -2},
		"tilted":   {imaging.Rotate(upright, 14, image.Black.C), [2]point{{222, 173}, {263, 164}}, -12},
		"left":     {imaging.Rotate90(upright), [2]point{{102, 308}, {103, 266}}, -88},
		"right":    {imaging.Rotate270(upright), [2]point{{410, 204}, {409, 246}}, 92},
		"turned":   {imaging.Rotate180(upright), [2]point{{308, 410}, {266, 409}}, 182},
		"small":    {imaging.Resize(upright, 150, 150, imaging.Box), [2]point{{59.8, 30}, {72, 30.2}}, 2},
		"large":    {imaging.Resize(upright, 2000, 2000, imaging.CatmullRom), [2]point{{797, 398}, {961, 402}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			found, err := newFaceFinder().find(t.Context(), rasterOf(t, c.img))
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 {
				t.Fatalf("%d faces: %+v", len(found), found)
			}
			f := found[0]
			if !f.seen {
				t.Error("the eyes were not seen")
			}
			apart := math.Hypot(c.eyes[1].x-c.eyes[0].x, c.eyes[1].y-c.eyes[0].y)
			for i := range f.eyes {
				if d := math.Hypot(f.eyes[i].x-c.eyes[i].x, f.eyes[i].y-c.eyes[i].y); d > 0.15*apart {
					t.Errorf("eye %d at %.1f, want %.1f", i, f.eyes[i], c.eyes[i])
				}
			}
			if d := math.Remainder(f.roll()*180/math.Pi-c.roll, 360); math.Abs(d) > 8 {
				t.Errorf("roll %.1f, want %.1f", f.roll()*180/math.Pi, c.roll)
			}
			if f.size < 2*apart || f.size > 3.2*apart {
				t.Errorf("size %.0f for eyes %.0f apart", f.size, apart)
			}
		})
	}
}

// TestFacesNone looks at pictures without any, down to a single pixel.
func TestFacesNone(t *testing.T) {
	t.Parallel()
	for _, img := range []image.Image{scene(400, 300), noise(300, 400, 1), scene(1, 1), scene(1, 3000), scene(3000, 2), scene(30, 30)} {
		found, err := newFaceFinder().find(t.Context(), rasterOf(t, img))
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 0 {
			t.Errorf("%v: %+v", img.Bounds(), found)
		}
	}
}

// TestFacesAreStable demands the same answer of the same picture.
func TestFacesAreStable(t *testing.T) {
	t.Parallel()
	src := opened(t, astronaut)
	finder := newFaceFinder()
	first, err := finder.find(t.Context(), src.raster)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		again, err := finder.find(t.Context(), src.raster)
		if err != nil {
			t.Fatal(err)
		}
		if len(again) != len(first) || again[0] != first[0] {
			t.Fatalf("%+v, then %+v", first, again)
		}
	}
}

// TestFacesSamples holds the finder to the rates that its thresholds were chosen for: every face of the portraits, none too many, and few
// false ones among street photos, where a face is right when its middle lies in the upper part of the person.
func TestFacesSamples(t *testing.T) {
	t.Parallel()
	finder := newFaceFinder()
	faces := samples(t, "faces")
	for name, want := range map[string]int{
		"obama-240p.jpg": 1, "obama-480p.jpg": 1, "obama-720p.jpg": 1, "obama-1080p.jpg": 1, "two_people.jpg": 2, "astronaut.png": 1,
	} {
		found, err := finder.find(t.Context(), opened(t, filepath.Join(faces, name)).raster)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != want {
			t.Errorf("%s: %d faces, want %d: %+v", name, len(found), want, found)
		}
	}
	people := samples(t, "train/people")
	photos, err := filepath.Glob(filepath.Join(people, "img", "*.jpg"))
	if err != nil {
		t.Fatal(err)
	}
	right, wrong, all := 0, 0, 0
	for i := 0; i < len(photos); i += 60 {
		all++
		found, err := finder.find(t.Context(), opened(t, photos[i]).raster)
		if err != nil {
			t.Fatal(err)
		}
		mask := opened(t, filepath.Join(people, "mask", strings.TrimSuffix(filepath.Base(photos[i]), ".jpg")+".png"))
		one := 0
		for _, f := range found {
			if inHead(mask.raster, f) {
				one = 1
			} else {
				wrong++
			}
		}
		right += one
	}
	t.Logf("street photos: a face found in %d of %d, %d false", right, all, wrong)
	if right*100 < 50*all || wrong > 1 {
		t.Errorf("street photos: a face found in %d of %d, %d false", right, all, wrong)
	}
}

// inHead says whether the middle of a face lies on the person of a mask, in its upper quarter.
func inHead(mask *raster, f face) bool {
	on := func(x, y int) bool { return mask.pix[4*(y*mask.width+x)] > 127 }
	top, bottom := mask.height, 0
	for y := range mask.height {
		for x := range mask.width {
			if on(x, y) {
				top, bottom = min(top, y), y
			}
		}
	}
	x, y := int(f.x), int(f.y)
	return x >= 0 && y >= 0 && x < mask.width && y < mask.height && on(x, y) && 4*(y-top) < bottom-top
}

// FuzzPupilCascade feeds the reader of cascades what it was not made for.
func FuzzPupilCascade(f *testing.F) {
	f.Add(pupilCascade[:200])
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 63, 1, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		trees, err := readPupilTrees(data)
		if err != nil {
			return
		}
		if len(trees.votes) != trees.stages*trees.trees*2<<trees.depth {
			t.Error("leaves are missing")
		}
	})
}
