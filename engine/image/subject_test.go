package image

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var makeShape = flag.Bool("make-person-shape", false, "learn cascade/personshape from the sample photos of people")

var allPeople = flag.Bool("all-people", false, "measure remove_bg on 45 sample photos rather than 4")

// peoplePhoto is one photo of a person with its mask, 1 on the person.
type peoplePhoto struct {
	name  string
	photo *picture
	mask  []float32
}

// peoplePhotos opens the photos of people whose number leaves a remainder.
func peoplePhotos(t testing.TB, every, remainder int, visit func(p peoplePhoto)) {
	t.Helper()
	people := samples(t, "train/people")
	photos, err := filepath.Glob(filepath.Join(people, "img", "*.jpg"))
	if err != nil || len(photos) == 0 {
		t.Skip("no photos of people")
	}
	for _, path := range photos {
		name := strings.TrimSuffix(filepath.Base(path), ".jpg")
		if n, err := strconv.Atoi(name); err != nil || n%every != remainder {
			continue
		}
		p, m := opened(t, path), opened(t, filepath.Join(people, "mask", name+".png"))
		mask := make([]float32, m.width*m.height)
		for i := range mask {
			if m.pix[4*i] > 127 {
				mask[i] = 1
			}
		}
		visit(peoplePhoto{name: name, photo: p, mask: mask})
		p.Close()
		m.Close()
	}
}

// TestPersonShape checks that the shape is one of a person: head over shoulders over legs, the same on both sides. With
// -make-person-shape it learns it from photos whose number 5 does not divide; the others measure.
func TestPersonShape(t *testing.T) {
	if *makeShape {
		learnShape(t)
	}
	t.Parallel()
	if len(personShape) != shapeWidth*shapeHeight {
		t.Fatalf("%d bytes", len(personShape))
	}
	at := func(x, y float64) float32 { return shapeAt(x/shapeCell+shapeWidth/2-0.5, y/shapeCell+shapeAbove-0.5) }
	for _, c := range []struct {
		x, y        float64
		least, most float32
	}{
		{0, 0, 0.9, 1}, {0, -1.7, 0, 0.1}, {2, 0, 0, 0.15}, {-2, 0, 0, 0.15}, {0, 2, 0.9, 1}, {0.8, 1.7, 0.5, 1}, {3.8, 2, 0, 0.1}, {9, 2, 0, 0}, {0, 7, 0.4, 1},
	} {
		if v := at(c.x, c.y); v < c.least || v > c.most {
			t.Errorf("%.1f, %.1f faces from the face: %.2f, want %.2f to %.2f", c.x, c.y, v, c.least, c.most)
		}
		if a, b := at(c.x, c.y), at(-c.x, c.y); a-b > 0.02 || b-a > 0.02 {
			t.Errorf("%.1f, %.1f: sides differ: %.3f and %.3f", c.x, c.y, a, b)
		}
	}
}

func learnShape(t *testing.T) {
	t.Helper()
	finder := newFaceFinder()
	sum, n := make([]float64, shapeWidth*shapeHeight), make([]float64, shapeWidth*shapeHeight)
	used := 0
	for remainder := 1; remainder < 5; remainder++ {
		peoplePhotos(t, 5, remainder, func(p peoplePhoto) {
			found, err := finder.find(t.Context(), p.photo.raster)
			if err != nil {
				t.Fatal(err)
			}
			if len(found) != 1 || found[0].quality < 40 {
				return
			}
			f := found[0]
			used++
			for i, v := range p.mask {
				x := int((float64(i%p.photo.width)+0.5-f.x)/f.size/shapeCell + shapeWidth/2)
				y := int((float64(i/p.photo.width)+0.5-f.y)/f.size/shapeCell + shapeAbove)
				if x < 0 || y < 0 || x >= shapeWidth || y >= shapeHeight {
					continue
				}
				for _, u := range [2]int{x, shapeWidth - 1 - x} {
					sum[y*shapeWidth+u] += float64(v)
					n[y*shapeWidth+u]++
				}
			}
		})
	}
	for i := range personShape {
		personShape[i] = 0
		if n[i] > float64(used)/5 { // few photos say nothing
			personShape[i] = byte(255*sum[i]/n[i] + 0.5)
		}
	}
	t.Logf("learned from %d photos", used)
	if err := os.WriteFile("cascade/personshape", personShape, 0o600); err != nil {
		t.Fatal(err)
	}
}
