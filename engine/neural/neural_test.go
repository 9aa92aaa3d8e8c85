package neural

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

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

// chance is a net of chance that enlarges luma twice, with its manifest.
func chance(tile, width, layers int) files {
	return files{
		"x2.json": fmt.Sprintf(`{"task": "upscale", "scale": 2, "tile": %d, "overlap": %d, "input": {"channels": "y"}}`, tile, 4+layers),
		"x2.onnx": string(onnx.Random(2, width, layers)),
	}
}

func TestTiledIsUntiled(t *testing.T) {
	t.Parallel()
	const width, height = 301, 203
	in := Patch{width, height, [][]float32{waves(width, height, 2)}}
	whole, err := open(t, 2, chance(1024, 16, 5)).Find(Upscale, 2).Run(t.Context(), in, How{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tile := range []int{40, 64, 150, 256} {
		tiled, err := open(t, 2, chance(tile, 16, 5)).Find(Upscale, 2).Run(t.Context(), in, How{})
		if err != nil {
			t.Fatal(err)
		}
		if d := difference(t, whole.Planes[0], tiled.Planes[0]); d > 0.01 {
			t.Errorf("tiles of %d differ by %.3f codes", tile, d)
		}
	}
	for _, tile := range []int{90, 400} {
		larger, err := open(t, 2, chance(64, 16, 5)).Find(Upscale, 2).Run(t.Context(), in, How{Tile: tile})
		if err != nil {
			t.Fatal(err)
		}
		if d := difference(t, whole.Planes[0], larger.Planes[0]); d > 0.01 {
			t.Errorf("tiles of %d asked for differ by %.3f codes", tile, d)
		}
	}
	// The check is worth something only if tiles without the overlap would show.
	narrow := chance(64, 16, 5)
	narrow["x2.json"] = strings.Replace(narrow["x2.json"], `"overlap": 9`, `"overlap": 1`, 1)
	seams, err := open(t, 2, narrow).Find(Upscale, 2).Run(t.Context(), in, How{})
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(t, whole.Planes[0], seams.Planes[0]); d < 0.02 {
		t.Errorf("tiles with too little overlap differ by %.4f codes only: the net sees too little to test with", d)
	}
}

// halves is a net that shrinks its picture by two, adds a quarter of each pixel to its right neighbour of the small picture's, and enlarges
// it again: what it makes of a pixel depends on whether its column is even.
func halves() []byte {
	g := &onnx.Graph{}
	g.Input("in", onnx.Float, 1, 1, -1, -1)
	g.Node("SpaceToDepth", []string{"in"}, []string{"small"}, onnx.Attribute{Name: "blocksize", Value: 2})
	weights := make([]float32, 4*4*9)
	for c := range 4 {
		weights[(c*4+c)*9+4] = 0.75
		weights[(c*4+(c+1)%4)*9+5] = 0.25
	}
	g.Conv("small", "mixed", 4, 4, 3, weights, nil)
	g.Node("DepthToSpace", []string{"mixed"}, []string{"out"}, onnx.Attribute{Name: "blocksize", Value: 2})
	g.Output("out", onnx.Float, 1, 1, -1, -1)
	return g.Model()
}

func TestWindowsBeginAtMultiples(t *testing.T) {
	t.Parallel()
	const width, height = 131, 77
	plane := waves(width, height, 1)
	manifest := `{"task": "denoise", "tile": %d, "overlap": 5, "multiple": 2, "input": {"channels": "y"}}`
	whole, err := open(t, 1, files{"a.json": fmt.Sprintf(manifest, 1024), "a.onnx": string(halves())}).Find(Denoise, 1).Run(t.Context(), Patch{width, height, [][]float32{plane}}, How{})
	if err != nil {
		t.Fatal(err)
	}
	m := open(t, 2, files{"a.json": fmt.Sprintf(manifest, 36), "a.onnx": string(halves())}).Find(Denoise, 1)
	for top := range 12 {
		const rows = 40
		out, err := m.Run(t.Context(), Patch{width, rows + 12, [][]float32{plane[top*width : (top+rows+12)*width]}}, How{Y: top, Top: 6, Bottom: 6})
		if err != nil {
			t.Fatal(err)
		}
		if d := difference(t, out.Planes[0], whole.Planes[0][(top+6)*width:][:rows*width]); d > 0.001 {
			t.Errorf("a band from row %d differs by %.3f codes", top, d)
		}
	}
}

// TestTensors feeds one picture through every way a tensor can be laid out. Each net keeps the middle of 3x3, so that what comes out is the
// picture, and a net that adds to its first channel shows which that is.
func TestTensors(t *testing.T) {
	t.Parallel()
	const width, height = 37, 23
	colours := [][]float32{waves(width, height, 0), waves(width, height, 1), waves(width, height, 2)}
	for name, c := range map[string]struct {
		input, output string
		// add is what the net adds to its first channel, and where that must show.
		add   float32
		shows int
		by    float64
	}{
		"rgb":      {`{"channels": "rgb"}`, `{}`, 0.1, 0, 0.1 * 255},
		"bgr":      {`{"channels": "bgr"}`, `{}`, 0.1, 2, 0.1 * 255},
		"bgr in":   {`{"channels": "bgr"}`, `{"channels": "bgr", "range": [0, 1]}`, -0.1, 2, 0.1 * 255},
		"bytes":    {`{"channels": "rgb", "range": [0, 255]}`, `{}`, 10, 0, 10},
		"bytes in": {`{"channels": "rgb", "range": [0, 255], "std": [255]}`, `{"range": [0, 1], "std": [1]}`, 10. / 255, 0, 10},
		"centred":  {`{"channels": "rgb", "mean": [0.5], "std": [0.5]}`, `{}`, 0.1, 0, 0.05 * 255},
		"imagenet": {`{"channels": "rgb", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}`, `{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}`, 1, 0, 0.229 * 255},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, layout := range []string{"nchw", "nhwc"} {
				g := &onnx.Graph{}
				from, to := "in", "out"
				dims := []int{1, 3, -1, -1}
				if layout == "nhwc" {
					dims = []int{1, -1, -1, 3}
				}
				g.Input("in", onnx.Float, dims...)
				if layout == "nhwc" {
					g.Node("Transpose", []string{"in"}, []string{"planes"}, onnx.Attribute{Name: "perm", Value: []int{0, 3, 1, 2}})
					from, to = "planes", "answer"
				}
				weights := make([]float32, 3*3*9)
				for i := range 3 {
					weights[(i*3+i)*9+4] = 1
				}
				g.Conv(from, to, 3, 3, 3, weights, []float32{c.add, 0, 0})
				if layout == "nhwc" {
					g.Node("Transpose", []string{to}, []string{"out"}, onnx.Attribute{Name: "perm", Value: []int{0, 2, 3, 1}})
				}
				g.Output("out", onnx.Float, dims...)
				manifest := fmt.Sprintf(`{"task": "denoise", "tile": 32, "overlap": 1, "input": %s, "output": %s}`, strings.Replace(c.input, "{", `{"layout": "`+layout+`", `, 1), c.output)
				r := open(t, 2, files{"net.json": manifest, "net.onnx": string(g.Model())})
				out, err := r.Find(Denoise, 1).Run(t.Context(), Patch{width, height, colours}, How{})
				if err != nil {
					t.Fatal(err)
				}
				for i, plane := range out.Planes {
					want := 0.0
					if i == c.shows {
						want = c.by
					}
					if d := difference(t, plane, colours[i]); math.Abs(d-want) > 0.01 {
						t.Errorf("%s: plane %d differs by %.3f codes, want %.3f", layout, i, d, want)
					}
				}
			}
		})
	}
}

// strengthNet adds to its picture: a level, from a channel or an input of its own, and a constant.
func strengthNet(channel bool) []byte {
	g := &onnx.Graph{}
	g.Input("gain", onnx.Double, 1)
	g.Node("Cast", []string{"gain"}, []string{"constant"}, onnx.Attribute{Name: "to", Value: onnx.Float})
	if channel {
		g.Input("in", onnx.Float, 1, 2, -1, -1)
		g.Conv("in", "both", 2, 1, 1, []float32{1, 1}, nil)
	} else {
		g.Input("sigma", onnx.Float, 1, 1, 1, 1)
		g.Input("in", onnx.Float, 1, 1, -1, -1)
		g.Node("Add", []string{"in", "sigma"}, []string{"both"})
	}
	g.Node("Add", []string{"both", "constant"}, []string{"out"})
	g.Output("out", onnx.Float, 1, 1, -1, -1)
	return g.Model()
}

func TestLevelsAndConstants(t *testing.T) {
	t.Parallel()
	for name, level := range map[string]string{"channel": `{"scale": 0.5}`, "input": `{"scale": 0.5, "input": "sigma"}`} {
		r := open(t, 1, files{
			"net.json": `{"task": "denoise", "overlap": 1, "input": {"channels": "y"}, "level": ` + level + `,
				"constants": [{"name": "gain", "type": "float64", "values": [0.0625]}]}`,
			"net.onnx": string(strengthNet(name == "channel")),
		})
		m := r.Find(Denoise, 1)
		if !m.Levels() {
			t.Errorf("%s: has no levels", name)
		}
		out, err := m.Run(t.Context(), Patch{2, 1, [][]float32{{0.25, 0.5}}}, How{Level: 0.25})
		if err != nil {
			t.Fatal(err)
		}
		if d := difference(t, out.Planes[0], []float32{0.25 + 0.1875, 0.5 + 0.1875}); d > 0.001 {
			t.Errorf("%s: %v", name, out.Planes[0])
		}
	}
}

// maskNet gives the mean of the colours as a mask, without a dimension for its one plane when flat. A fixed size may be given.
func maskNet(side int, flat bool) []byte {
	g := &onnx.Graph{}
	if side == 0 {
		side = -1
	}
	g.Input("image", onnx.Float, 1, 3, side, side)
	g.Output("second", onnx.Float, 1, 1, side, side)
	g.Conv("image", "second", 3, 1, 1, []float32{4, 4, 4}, []float32{-6})
	if flat {
		g.Ints("axes", onnx.Int64, []int64{1}, 1)
		g.Node("Squeeze", []string{"second", "axes"}, []string{"mask"})
		g.Output("mask", onnx.Float, 1, side, side)
	} else {
		g.Node("Identity", []string{"second"}, []string{"mask"})
		g.Output("mask", onnx.Float, 1, 1, side, side)
	}
	return g.Model()
}

func TestWholePictures(t *testing.T) {
	t.Parallel()
	const width, height = 200, 90
	subject := make([]float32, width*height) // bright on the left half
	for i := range subject {
		if i%width < width/2 {
			subject[i] = 1
		}
	}
	in := Patch{width, height, [][]float32{subject, subject, subject}}
	for name, c := range map[string]struct {
		whole, activation string
		side, w, h        int
		flat              bool
	}{
		"fixed":         {`{"width": 64, "height": 64}`, `"activation": "sigmoid"`, 64, 64, 64, false},
		"free":          {`{"width": 96, "height": 64}`, `"activation": "sigmoid"`, 0, 96, 64, false},
		"shorter side":  {`{"short": 64}`, `"activation": "stretch"`, 0, 128, 64, false},
		"without plane": {`{"short": 32}`, `"activation": "stretch"`, 0, 64, 32, true},
		"own range":     {`{"short": 32}`, `"range": [-6, 6]`, 0, 64, 32, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := open(t, 2, files{
				"cut.json": fmt.Sprintf(`{"task": "matting", "multiple": 32, "whole": %s, "input": {"channels": "rgb"}, "output": {"name": "mask", %s}}`, c.whole, c.activation),
				"cut.onnx": string(maskNet(c.side, c.flat)),
			})
			m := r.Find(Matting, 1)
			if w, h, ok := m.Whole(width, height); !ok || w != c.w || h != c.h {
				t.Errorf("seen at %dx%d, %v; want %dx%d", w, h, ok, c.w, c.h)
			}
			out, err := m.Run(t.Context(), in, How{})
			if err != nil {
				t.Fatal(err)
			}
			if out.Width != width || out.Height != height || len(out.Planes) != 1 {
				t.Fatalf("mask of %dx%d, %d planes", out.Width, out.Height, len(out.Planes))
			}
			for _, x := range []int{0, 90, 110, 199} {
				want := float32(0)
				if x < 100 {
					want = 1
				}
				if got := out.Planes[0][45*width+x]; math.Abs(float64(got-want)) > 0.01 {
					t.Errorf("column %d is %.3f, want %.0f", x, got, want)
				}
			}
		})
	}
}

// quantised is a net of int8 weights and bytes between its layers that keeps the middle of 3x3: QuantizeLinear, QLinearConv, DequantizeLinear.
func quantised() []byte {
	g := &onnx.Graph{}
	g.Input("in", onnx.Float, 1, 1, -1, -1)
	g.Weights("step", []float32{1. / 255})
	g.Bytes("zero", onnx.Uint8, []byte{0})
	g.Weights("wstep", []float32{1. / 64})
	g.Bytes("wzero", onnx.Int8, []byte{0})
	kernel := make([]byte, 9)
	kernel[4] = 64
	g.Bytes("kernel", onnx.Int8, kernel, 1, 1, 3, 3)
	g.Node("QuantizeLinear", []string{"in", "step", "zero"}, []string{"bytes"})
	g.Node("QLinearConv", []string{"bytes", "step", "zero", "kernel", "wstep", "wzero", "step", "zero"}, []string{"kept"},
		onnx.Attribute{Name: "kernel_shape", Value: []int{3, 3}}, onnx.Attribute{Name: "pads", Value: []int{1, 1, 1, 1}})
	g.Node("DequantizeLinear", []string{"kept", "step", "zero"}, []string{"out"})
	g.Output("out", onnx.Float, 1, 1, -1, -1)
	return g.Model()
}

func TestInt8(t *testing.T) {
	t.Parallel()
	r := open(t, 2, files{"q.json": `{"task": "restore", "tile": 32, "overlap": 1, "input": {"channels": "y"}}`, "q.onnx": string(quantised())})
	plane := waves(75, 41, 0)
	out, err := r.Find(Restore, 1).Run(t.Context(), Patch{75, 41, [][]float32{plane}}, How{})
	if err != nil {
		t.Fatal(err)
	}
	if d := difference(t, out.Planes[0], plane); d > 0.51 || d == 0 {
		t.Errorf("differs by %.3f codes, want the half code of rounding", d)
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	manifest := func(variant string) string {
		return fmt.Sprintf(`{"task": "upscale", "scale": 2, "variant": %q, "overlap": 1, "file": "net.onnx", "input": {"channels": "y"}}`, variant)
	}
	net := string(onnx.Filter(1, 2, slants))
	ours := fstest.MapFS{}
	for name, content := range map[string]string{"net.onnx": net, "fast.json": manifest("fast"), "photo.json": manifest("photo"), "README.md": "for people"} {
		ours[name] = &fstest.MapFile{Data: []byte(content)}
	}
	theirs := t.TempDir()
	for name, content := range map[string]string{"net.onnx": net, "big.json": strings.Replace(manifest("big"), `"scale": 2`, `"scale": 2, "about": "mine"`, 1)} {
		if err := os.WriteFile(filepath.Join(theirs, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	only, err := Open(t.Context(), Config{Library: library(t), Threads: 1, shipped: ours})
	if err != nil {
		t.Fatal(err)
	}
	defer only.Close()
	both, err := Open(t.Context(), Config{Library: library(t), Threads: 1, Models: theirs, shipped: ours})
	if err != nil {
		t.Fatal(err)
	}
	defer both.Close()
	name := func(m *Model) string {
		if m == nil {
			return ""
		}
		return fmt.Sprint(m.Name(), m.Shipped())
	}
	for _, c := range []struct {
		r        *Runtime
		scale    int
		variants []string
		want     string
	}{
		{only, 2, nil, "fasttrue"},
		{only, 2, []string{"quality", "photo", "fast"}, "phototrue"},
		{only, 4, nil, ""},
		{both, 2, []string{"photo"}, "bigfalse"},
		{nil, 2, nil, ""},
	} {
		if got := name(c.r.Find(Upscale, c.scale, c.variants...)); got != c.want {
			t.Errorf("x%d %v: %q, want %q", c.scale, c.variants, got, c.want)
		}
	}
	if n := len(both.Models()); n != 3 {
		t.Errorf("%d models, want 3", n)
	}
}

func TestOneRuntimeForManyPictures(t *testing.T) {
	t.Parallel()
	m := open(t, 3, chance(64, 16, 2)).Find(Upscale, 2)
	const pictures = 8
	var group sync.WaitGroup
	for i := range pictures {
		group.Go(func() {
			width, height := 60+17*i, 150-13*i
			in := Patch{width, height, [][]float32{waves(width, height, float64(i))}}
			first, err := m.Run(t.Context(), in, How{})
			if err != nil {
				t.Error(err)
				return
			}
			again, err := m.Run(t.Context(), in, How{Into: [][]float32{make([]float32, 4*width*height)}})
			if err != nil {
				t.Error(err)
				return
			}
			if d := difference(t, first.Planes[0], again.Planes[0]); d != 0 {
				t.Errorf("picture %d differs from itself by %.3f codes", i, d)
			}
		})
	}
	group.Wait()
}

func TestCancel(t *testing.T) {
	t.Parallel()
	m := open(t, 2, chance(128, 64, 20)).Find(Upscale, 2)
	why := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(t.Context())
	const side = 2000 // minutes of work
	ended := make(chan error, 1)
	go func() {
		_, err := m.Run(ctx, Patch{side, side, [][]float32{make([]float32, side*side)}}, How{})
		ended <- err
	}()
	// Another picture gets its turn although the first has hundreds of tiles to go.
	if _, err := m.Run(t.Context(), Patch{8, 8, [][]float32{make([]float32, 64)}}, How{}); err != nil {
		t.Fatal(err)
	}
	cancel(why)
	select {
	case err := <-ended:
		if !errors.Is(err, why) {
			t.Errorf("error = %v, want the cancel's cause", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("still running a minute after the cancel")
	}
	if _, err := m.Run(ctx, Patch{8, 8, [][]float32{make([]float32, 64)}}, How{}); !errors.Is(err, why) {
		t.Errorf("a run that was canceled before: %v", err)
	}
}

func TestCloseEndsAll(t *testing.T) {
	before := goleak.IgnoreCurrent()
	r, err := openFiles(t, 2, chance(64, 16, 2))
	if err != nil {
		t.Fatal(err)
	}
	m := r.Find(Upscale, 2)
	if _, err := m.Run(t.Context(), Patch{8, 8, [][]float32{make([]float32, 64)}}, How{}); err != nil {
		t.Fatal(err)
	}
	r.Close()
	r.Close()
	goleak.VerifyNone(t, before)
	if _, err := m.Run(t.Context(), Patch{8, 8, [][]float32{make([]float32, 64)}}, How{}); !errors.Is(err, ErrClosed) {
		t.Errorf("a run after Close: %v", err)
	}
}

// TestPriority looks at the niceness of every thread of this process: those that compute, ONNX Runtime's own among them, must have the
// one that Thread gave theirs.
func TestPriority(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("threads have a niceness of their own on Linux only")
	}
	const niceness, threads = 13, 4
	dir := t.TempDir()
	for name, content := range map[string]string{
		"cut.json": `{"task": "matting", "whole": {"width": 64, "height": 64}, "input": {"channels": "rgb"}, "output": {"name": "mask"}}`,
		"cut.onnx": string(maskNet(0, false)),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(t.Context(), Config{Library: library(t), Threads: threads, Models: dir, shipped: fstest.MapFS{}, Thread: func() {
		runtime.LockOSThread()
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, niceness); err != nil {
			t.Error(err)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tasks, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil {
		t.Fatal(err)
	}
	nice := 0
	for _, path := range tasks {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		if n, err := strconv.Atoi(string(fields[16])); err == nil && n == niceness {
			nice++
		}
	}
	// Ours, and those that the session started beside the one it is called on.
	if want := threads + threads - 1; nice < want {
		t.Errorf("%d threads have a niceness of %d, want %d", nice, niceness, want)
	}
}

// Not parallel: what others use would count.
func TestMemoryIsEstimated(t *testing.T) {
	small, large := open(t, 1, chance(128, 16, 2)).Find(Upscale, 2), open(t, 2, chance(256, 128, 2)).Find(Upscale, 2)
	const layer = 256 * 256 * 128 * 4 // bytes of one layer of one tile; two are needed at once
	if got := large.Memory(); got < 2*2*layer || got > 2*12*layer {
		t.Errorf("large net: %d bytes, want %d to %d", got, 2*2*layer, 2*12*layer)
	}
	if got := small.Memory(); got < 128*128*16*4*2 || got > large.Memory()/8 {
		t.Errorf("small net: %d bytes beside %d of the large one", got, large.Memory())
	}
	given := chance(64, 16, 2)
	given["x2.json"] = strings.Replace(given["x2.json"], `"scale": 2`, `"scale": 2, "memory": 1000`, 1)
	if got := open(t, 3, given).Find(Upscale, 2).Memory(); got != 3*64*64*1000 {
		t.Errorf("given by the manifest: %d bytes", got)
	}
}
