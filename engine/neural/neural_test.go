package neural

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"enlarger/testbed"
	"enlarger/testbed/onnx"
)

// library is ONNX Runtime as `make deps` puts it.
func library(t testing.TB) string {
	t.Helper()
	path, err := FindLibrary(testbed.ONNXRuntime())
	if err != nil {
		t.Fatalf("%v; run `make deps`", err)
	}
	return path
}

// files is a models folder: the content of each file by name.
type files map[string]string

// open makes a runtime of one thread or more with the operator's models in files and no others.
func open(t testing.TB, threads int, f files) *Runtime {
	t.Helper()
	r, err := openFiles(t, threads, f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func openFiles(t testing.TB, threads int, f files) (*Runtime, error) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range f {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Open(t.Context(), Config{Library: library(t), Threads: threads, Models: dir, shipped: fstest.MapFS{}})
}

// repeat is the filter that repeats each pixel, and blur the mean of 3x3.
var (
	keep = [9]float32{4: 1}
	blur = [9]float32{1. / 9, 1. / 9, 1. / 9, 1. / 9, 1. / 9, 1. / 9, 1. / 9, 1. / 9, 1. / 9}
)

// waves is a plane that differs everywhere.
func waves(width, height int, phase float64) []float32 {
	plane := make([]float32, width*height)
	for y := range height {
		for x := range width {
			plane[y*width+x] = float32(0.5 + 0.25*math.Sin(float64(x)*0.9+phase) + 0.2*math.Cos(float64(y)*1.3+float64(x)*0.1))
		}
	}
	return plane
}

// difference is the largest one between two planes, in codes of 255.
func difference(t *testing.T, a, b []float32) float64 {
	t.Helper()
	if len(a) != len(b) {
		t.Fatalf("%d samples and %d", len(a), len(b))
	}
	most := 0.0
	for i := range a {
		most = max(most, math.Abs(float64(a[i]-b[i]))*255)
	}
	return most
}

// filtered is what Filter's net must make of a plane, computed pixel by pixel with mirrored ends.
func filtered(plane []float32, width, height, scale int, weights [][9]float32) []float32 {
	out := make([]float32, width*scale*height*scale)
	for y := range height * scale {
		for x := range width * scale {
			w := weights[y%scale*scale+x%scale]
			sum := float32(0)
			for k, v := range w {
				sum += v * plane[mirror(y/scale+k/3-1, height)*width+mirror(x/scale+k%3-1, width)]
			}
			out[y*width*scale+x] = sum
		}
	}
	return out
}

// slants are four different filters, so that a phase or a direction that is mixed up shows.
var slants = [][9]float32{
	{0: 0.25, 4: 0.75}, {2: 0.25, 4: 0.75}, {6: 0.25, 4: 0.75}, {8: 0.25, 4: 0.5, 5: 0.25},
}

func TestRunGivesExactlyWhatTheNetMakes(t *testing.T) {
	t.Parallel()
	for _, size := range [][2]int{{1, 1}, {1, 70}, {90, 1}, {5, 3}, {32, 32}, {33, 31}, {100, 61}, {257, 129}} {
		for _, threads := range []int{1, 3} {
			t.Run(fmt.Sprintf("%dx%d/%d", size[0], size[1], threads), func(t *testing.T) {
				t.Parallel()
				r := open(t, threads, files{
					"x2.json": `{"task": "upscale", "scale": 2, "tile": 48, "overlap": 2, "multiple": 4, "input": {"channels": "y"}}`,
					"x2.onnx": string(onnx.Filter(1, 2, slants)),
				})
				width, height := size[0], size[1]
				plane := waves(width, height, 0)
				out, err := r.Find(Upscale, 2).Run(t.Context(), Patch{width, height, [][]float32{plane}}, How{})
				if err != nil {
					t.Fatal(err)
				}
				if out.Width != 2*width || out.Height != 2*height {
					t.Fatalf("output is %dx%d", out.Width, out.Height)
				}
				if d := difference(t, out.Planes[0], filtered(plane, width, height, 2, slants)); d > 0.001 {
					t.Errorf("differs by %.4f codes", d)
				}
			})
		}
	}
}

func TestMargins(t *testing.T) {
	t.Parallel()
	r := open(t, 2, files{
		"x2.json": `{"task": "upscale", "scale": 2, "tile": 32, "overlap": 1, "input": {"channels": "y"}}`,
		"x2.onnx": string(onnx.Filter(1, 2, slants)),
	})
	const width, height = 75, 66
	plane := waves(width, height, 1)
	whole, err := r.Find(Upscale, 2).Run(t.Context(), Patch{width, height, [][]float32{plane}}, How{})
	if err != nil {
		t.Fatal(err)
	}
	var joined []float32
	for top := 0; top < height; top += 20 {
		from, to := max(top-1, 0), min(top+21, height)
		how := How{Top: top - from, Bottom: to - min(top+20, height)}
		out, err := r.Find(Upscale, 2).Run(t.Context(), Patch{width, to - from, [][]float32{plane[from*width : to*width]}}, how)
		if err != nil {
			t.Fatal(err)
		}
		joined = append(joined, out.Planes[0]...)
	}
	if d := difference(t, joined, whole.Planes[0]); d > 0.001 {
		t.Errorf("bands differ from the whole by %.4f codes", d)
	}
}

var _ = context.Canceled
var _ = strings.Contains
