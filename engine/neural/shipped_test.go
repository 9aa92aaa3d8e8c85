package neural

import (
	"encoding/json"
	"math"
	"testing"
)

// sample is what training/export.py has written beside each of our models: what PyTorch made of a picture that a rule gives.
type sample struct {
	Side   int         `json:"side"`   // of the picture
	Border int         `json:"border"` // pixels of the picture, on each side, whose answers were left out
	Step   int         `json:"step"`   // of the answer's pixels that were kept, one in so many each way
	Within float64     `json:"within"` // how far from it an answer may be; 1e-4 where it is not said, more for a net of whole numbers
	Planes [][]float64 `json:"planes"`
}

// picture follows the rule.
func (s *sample) picture(planes int) Patch {
	p := Patch{Width: s.Side, Height: s.Side}
	for c := range planes {
		plane := make([]float32, s.Side*s.Side)
		for y := range s.Side {
			for x := range s.Side {
				plane[y*s.Side+x] = float32((37*x+101*y+53*c+19*(x*y%7))%256) / 255
			}
		}
		p.Planes = append(p.Planes, plane)
	}
	return p
}

// ours are the models that enlarger ships.
func ours(t *testing.T) []*Model {
	t.Helper()
	r, err := Open(t.Context(), Config{Library: library(t), Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r.Models()
}

// TestShipped runs each of our models and finds what PyTorch found.
func TestShipped(t *testing.T) {
	for _, m := range ours(t) {
		text, err := shipped.ReadFile("models/" + m.Name() + ".sample")
		if err != nil {
			t.Errorf("%s: %v; training/export.py writes it", m.Name(), err)
			continue
		}
		var s sample
		if err := json.Unmarshal(text, &s); err != nil || s.Side < 1 || s.Step < 1 || len(s.Planes) == 0 {
			t.Errorf("%s.sample: %v", m.Name(), err)
			continue
		}
		out, err := m.Run(t.Context(), s.picture(m.Planes()), How{})
		if err != nil {
			t.Errorf("%s: %v", m.Name(), err)
			continue
		}
		if len(out.Planes) != len(s.Planes) {
			t.Errorf("%s: %d planes, want %d", m.Name(), len(out.Planes), len(s.Planes))
			continue
		}
		for c, want := range s.Planes {
			if d := s.furthest(t, m, out, c, want); d > max(s.Within, 1e-4) {
				t.Errorf("%s: plane %d is up to %g from PyTorch's", m.Name(), c, d)
			}
		}
	}
}

// furthest is the largest difference of a plane from the sample's.
func (s *sample) furthest(t *testing.T, m *Model, out Patch, plane int, want []float64) float64 {
	t.Helper()
	from, to := s.Border*m.Scale(), (s.Side-s.Border)*m.Scale()
	var worst float64
	i := 0
	for y := from; y < to; y += s.Step {
		for x := from; x < to; x += s.Step {
			if i < len(want) {
				worst = max(worst, math.Abs(float64(out.Planes[plane][y*out.Width+x])-want[i]))
			}
			i++
		}
	}
	if i != len(want) || i == 0 {
		t.Errorf("%s.sample: %d values, want %d", m.Name(), len(want), i)
	}
	return worst
}

// TestShippedWithoutSeams compares each net that works in tiles with itself in one piece.
func TestShippedWithoutSeams(t *testing.T) {
	for _, m := range ours(t) {
		if m.manifest.Whole != nil {
			continue
		}
		const width, height = 400, 300
		picture := Patch{Width: width, Height: height}
		for c := range m.Planes() {
			picture.Planes = append(picture.Planes, waves(width, height, float64(c)))
		}
		tiled, err := m.Run(t.Context(), picture, How{})
		if err != nil {
			t.Fatal(err)
		}
		whole, err := m.Run(t.Context(), picture, How{Tile: 1024})
		if err != nil {
			t.Fatal(err)
		}
		for c, plane := range tiled.Planes {
			if d := difference(t, plane, whole.Planes[c]); d > 0.5 {
				t.Errorf("%s: plane %d differs by up to %.3f codes in tiles", m.Name(), c, d)
			}
		}
	}
}

// TestShippedKeepsFlatColours gives each net that makes pictures flat ones, in which there is nothing to add or to remove.
func TestShippedKeepsFlatColours(t *testing.T) {
	for _, m := range ours(t) {
		if m.manifest.Whole != nil {
			continue
		}
		const side = 64
		for _, colour := range [][3]float32{{0, 0, 0}, {1, 1, 1}, {0.5, 0.5, 0.5}, {0.9, 0.2, 0.1}, {0.1, 0.3, 0.8}, {0.2, 0.7, 0.3}} {
			picture := Patch{Width: side, Height: side}
			for c := range m.Planes() {
				plane := make([]float32, side*side)
				for i := range plane {
					plane[i] = colour[c]
				}
				picture.Planes = append(picture.Planes, plane)
			}
			out, err := m.Run(t.Context(), picture, How{})
			if err != nil {
				t.Fatal(err)
			}
			for c, plane := range out.Planes {
				for _, v := range plane {
					// What is beyond black and white is cut off afterwards.
					if d := 255 * math.Abs(float64(min(max(v, 0), 1)-colour[c])); d > 2 {
						t.Errorf("%s: %v becomes %v in plane %d, %.2f codes off", m.Name(), colour, v, c, d)
						break
					}
				}
			}
		}
	}
}
