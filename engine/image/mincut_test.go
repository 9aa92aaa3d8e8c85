package image

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestGridCutIsTheLeast compares the cost of the cut with the best of all cuts, on grids small enough to try every one.
func TestGridCutIsTheLeast(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 8))
	for trial := range 200 {
		w, h := 1+rng.IntN(4), 1+rng.IntN(4)
		if w*h > 12 {
			h = 3
		}
		g := newGridCut(w, h)
		terminal := make([]float32, w*h)
		var links [8][]float32
		for i := range terminal {
			terminal[i] = float32(rng.IntN(21) - 10)
		}
		for d := range links {
			links[d] = make([]float32, w*h)
		}
		for d := 0; d < 8; d += 2 {
			for i := range terminal {
				if j := g.next(int32(i), d); j >= 0 {
					v := float32(rng.IntN(6))
					links[d][i], links[d^1][j] = v, v
				}
			}
		}
		copy(g.terminal, terminal)
		for d := range links {
			copy(g.links[d], links[d])
		}
		cost := func(near func(i int) bool) float64 {
			sum := 0.0
			for i, v := range terminal {
				if v > 0 && !near(i) || v < 0 && near(i) {
					sum += math.Abs(float64(v))
				}
				for d := range links {
					if j := g.next(int32(i), d); j >= 0 && near(i) && !near(int(j)) {
						sum += float64(links[d][i])
					}
				}
			}
			return sum
		}
		got, err := g.solve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		least := math.Inf(1)
		for all := range 1 << (w * h) {
			least = min(least, cost(func(i int) bool { return all>>i&1 == 1 }))
		}
		if c := cost(func(i int) bool { return got[i] }); c != least {
			t.Fatalf("trial %d, %dx%d: cut costs %v, the least is %v", trial, w, h, c, least)
		}
	}
}
