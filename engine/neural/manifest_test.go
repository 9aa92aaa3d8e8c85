package neural

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"enlarger/testbed/onnx"
)

func TestManifestDefaults(t *testing.T) {
	t.Parallel()
	got, err := ParseManifest([]byte(`{"task": "upscale", "scale": 2, "overlap": 8, "multiple": 3, "input": {"channels": "y"}}`))
	if err != nil {
		t.Fatal(err)
	}
	tensor := Tensor{Layout: "nchw", Channels: "y", Range: []float32{0, 1}, Mean: []float32{0}, Std: []float32{1}}
	want := &Manifest{Task: Upscale, Scale: 2, Tile: 258, Overlap: 8, Multiple: 3, Input: tensor, Output: tensor}
	if !reflect.DeepEqual(want, got) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestManifestSaysWhichFieldIsWrong(t *testing.T) {
	t.Parallel()
	const good = `"task": "denoise", "overlap": 8, "input": {"channels": "rgb"}`
	if _, err := ParseManifest([]byte("{" + good + "}")); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 201)
	for _, c := range []struct{ text, field string }{
		{`{"overlap": 8, "input": {"channels": "y"}}`, "task"},
		{`{"task": "dance", "overlap": 8, "input": {"channels": "y"}}`, "task"},
		{`{"task": 3}`, "task"},
		{`{"task": "upscale", "overlap": 8, "input": {"channels": "y"}}`, "scale"},
		{`{"task": "upscale", "scale": 3, "overlap": 8, "input": {"channels": "y"}}`, "scale"},
		{`{"task": "upscale", "scale": 2.5, "overlap": 8, "input": {"channels": "y"}}`, "scale"},
		{`{"scale": 2, ` + good + `}`, "scale"},
		{`{"variant": "Fast!", ` + good + `}`, "variant"},
		{`{"file": "../../etc/passwd", ` + good + `}`, "file"},
		{`{"file": ".hidden", ` + good + `}`, "file"},
		{`{"about": "` + strings.Repeat("x", 2001) + `", ` + good + `}`, "about"},
		{`{"tile": 8, ` + good + `}`, "tile"},
		{`{"tile": 4096, ` + good + `}`, "tile"},
		{`{"tile": 24, ` + good + `}`, "tile"},
		{`{"tile": 100, "multiple": 32, ` + good + `}`, "tile"},
		{`{"multiple": -1, ` + good + `}`, "multiple"},
		{`{"multiple": 1000, ` + good + `}`, "multiple"},
		{`{"task": "denoise", "input": {"channels": "rgb"}}`, "overlap"},
		{`{"task": "denoise", "overlap": 300, "tile": 1024, "input": {"channels": "rgb"}}`, "overlap"},
		{`{"task": "matting", "overlap": 3, "input": {"channels": "rgb"}}`, "whole"},
		{`{"whole": {"short": 512}, ` + good + `}`, "whole"},
		{`{"task": "upscale", "scale": 2, "whole": {"short": 512}, "input": {"channels": "rgb"}}`, "whole"},
		{`{"task": "matting", "whole": {"short": 512, "width": 3}, "input": {"channels": "rgb"}}`, "whole"},
		{`{"task": "matting", "whole": {"short": 500}, "multiple": 32, "input": {"channels": "rgb"}}`, "whole.short"},
		{`{"task": "matting", "whole": {"width": 512}, "input": {"channels": "rgb"}}`, "whole.height"},
		{`{"task": "matting", "whole": {"width": 5000, "height": 320}, "input": {"channels": "rgb"}}`, "whole.width"},
		{`{"task": "matting", "whole": 3, "input": {"channels": "rgb"}}`, "whole"},
		{`{"task": "matting", "whole": {"short": 512}, "input": {"channels": "rgb"}, "output": {"channels": "rgb"}}`, "output.channels"},
		{`{"task": "matting", "whole": {"short": 512}, "input": {"channels": "rgb"}, "output": {"activation": "relu"}}`, "output.activation"},
		{`{"output": {"activation": "sigmoid"}, ` + good + `}`, "output.activation"},
		{`{"output": {"channels": "y"}, ` + good + `}`, "output.channels"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "cmyk"}}`, "input.channels"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "layout": "chw"}}`, "input.layout"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "range": [1, 0]}}`, "input.range"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "range": [0]}}`, "input.range"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "mean": [0, 0]}}`, "input.mean"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "std": [1, 0, 1]}}`, "input.std"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "std": [1e30]}}`, "input.std"},
		{`{"task": "denoise", "overlap": 8, "input": {"channels": "rgb", "name": "` + long + `"}}`, "input.name"},
		{`{"memory": -1, ` + good + `}`, "memory"},
		{`{"constants": [{"values": [1]}], ` + good + `}`, "constants[0].name"},
		{`{"constants": [{"name": "a", "values": [1]}, {"name": "a", "values": [1]}], ` + good + `}`, "constants[1].name"},
		{`{"constants": [{"name": "a", "values": []}], ` + good + `}`, "constants[0].values"},
		{`{"constants": [{"name": "a", "shape": [2, 2], "values": [1]}], ` + good + `}`, "constants[0].values"},
		{`{"constants": [{"name": "a", "shape": [64, 64, 64], "values": [1]}], ` + good + `}`, "constants[0].values"},
		{`{"constants": [{"name": "a", "shape": [-1], "values": [1]}], ` + good + `}`, "constants[0].shape"},
		{`{"constants": [{"name": "a", "type": "half", "values": [1]}], ` + good + `}`, "constants[0].type"},
		{`{"constants": [` + strings.TrimSuffix(strings.Repeat(`{"name": "a", "values": [1]},`, 9), ",") + `], ` + good + `}`, "constants"},
		{`{"level": {"scale": -1}, ` + good + `}`, "level.scale"},
		{`{"constants": [{"name": "a", "values": [1]}], "level": {"input": "a"}, ` + good + `}`, "level.input"},
	} {
		_, err := ParseManifest([]byte(c.text))
		field, ok := errors.AsType[*FieldError](err)
		if !ok || field.Field != c.field {
			t.Errorf("%s: error = %v, want one of %s", c.text, err, c.field)
		}
	}
	for text, want := range map[string]string{
		`{"taks": "denoise"}`:               `unknown field "taks"`,
		`{` + good + `} {}`:                 "closing brace",
		`[]`:                                "not a manifest",
		``:                                  "not a manifest",
		strings.Repeat(" ", manifestMost+1): "at most",
	} {
		if _, err := ParseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: error = %v, want %q in it", text, err, want)
		}
	}
}

// FuzzParseManifest: what is accepted has sizes that can be worked with, and means the same when it is written down and read again.
func FuzzParseManifest(f *testing.F) {
	for _, text := range []string{
		`{"task": "upscale", "scale": 2, "overlap": 8, "input": {"channels": "y"}}`,
		`{"task": "denoise", "tile": 192, "overlap": 8, "multiple": 8, "input": {"name": "x", "layout": "nhwc", "channels": "bgr", "range": [0, 255], "mean": [1, 2, 3], "std": [4]}, "level": {"scale": 255}}`,
		`{"task": "matting", "whole": {"short": 512}, "multiple": 32, "input": {"channels": "rgb"}, "output": {"activation": "sigmoid"}}`,
		`{"task": "face", "whole": {"width": 512, "height": 512}, "input": {"channels": "rgb"}, "constants": [{"name": "w", "type": "float64", "shape": [1, 1], "values": [0.5]}]}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		m, err := ParseManifest(text)
		if err != nil {
			return
		}
		model := &Model{manifest: m, runtime: &Runtime{threads: 1}}
		if w, h, ok := model.Whole(3000, 17); ok {
			if w < tileLeast || h < tileLeast || w > shapeMost*wholeMost || h > shapeMost*wholeMost || (m.Whole.Short > 0 && (w%m.Multiple != 0 || h%m.Multiple != 0)) {
				t.Fatalf("%s: sees %dx%d", text, w, h)
			}
		} else {
			for _, length := range []int{1, 15, 16, 17, 1000, 65500} {
				checkCutting(t, model, length, 0, 0)
				checkCutting(t, model, length, 333, 0)
			}
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		same, err := ParseManifest(again)
		if m.Task == Matting { // its output's channels are filled in and may not be given
			return
		}
		if err != nil {
			t.Fatalf("%s: read again: %v", again, err)
		}
		if written, err := json.Marshal(same); err != nil || string(written) != string(again) {
			t.Fatalf("%s means something else when read again: %s, %v", again, written, err)
		}
	})
}

// checkCutting demands that pieces cover a length once, each with its overlap inside its window, which begins at a multiple and is no
// larger than the manifest's tile or the one asked for.
func checkCutting(t *testing.T, m *Model, length, begin, tile int) {
	t.Helper()
	c, overlap, multiple, end := m.cut(length, begin, tile), m.manifest.Overlap, m.manifest.Multiple, 0
	most := m.manifest.Tile
	if !m.fixed {
		most = max(most, tile)
	}
	if c.window%multiple != 0 || c.window > most {
		t.Fatalf("length %d from %d: window of %d for tiles of %d, multiple %d", length, begin, c.window, most, multiple)
	}
	for i := range c.count {
		from, to, start := c.at(i)
		if from != end || to <= from || start > from-overlap || start+c.window < to+overlap || (begin+start)%multiple != 0 {
			t.Fatalf("length %d from %d: piece %d is [%d, %d) in a window from %d, %d wide, overlap %d", length, begin, i, from, to, start, c.window, overlap)
		}
		end = to
	}
	if end != length {
		t.Fatalf("length %d from %d: pieces end at %d", length, begin, end)
	}
}

func TestCutting(t *testing.T) {
	t.Parallel()
	for _, fixed := range []bool{false, true} {
		for _, c := range [][3]int{{256, 8, 1}, {64, 20, 4}, {64, 16, 16}, {24, 2, 3}, {1024, 128, 256}} {
			m := &Model{manifest: &Manifest{Tile: c[0], Overlap: c[1], Multiple: c[2]}, fixed: fixed}
			for length := 1; length < 300; length++ {
				for _, begin := range []int{0, 1, -5, 23, length} {
					for _, tile := range []int{0, 16, c[0] + 1, 2*c[0] + 7} {
						checkCutting(t, m, length, begin, tile)
					}
				}
			}
		}
	}
}

// TestBrokenModelsAreRefused: each says which file and what of it.
func TestBrokenModelsAreRefused(t *testing.T) {
	t.Parallel()
	const manifest = `{"task": "upscale", "scale": 2, "tile": 64, "overlap": 1, "input": {"channels": "y"}}`
	good := string(onnx.Filter(1, 2, slants))
	half := &onnx.Graph{}
	half.Input("in", onnx.Half, 1, 1, -1, -1)
	half.Node("Identity", []string{"in"}, []string{"out"})
	half.Output("out", onnx.Half, 1, 1, -1, -1)
	fixed := &onnx.Graph{}
	fixed.Input("in", onnx.Float, 1, 1, 48, 48)
	fixed.Node("Identity", []string{"in"}, []string{"out"})
	fixed.Output("out", onnx.Float, 1, 1, 48, 48)
	two := strengthNet(false)
	for name, c := range map[string]struct {
		manifest, net string
		want          []string
	}{
		"manifest":      {`{"task": "upscale"}`, good, []string{"x.json", "scale"}},
		"no net":        {manifest, "", []string{"x.json", "file", "x.onnx"}},
		"not ONNX":      {manifest, "GIF89a", []string{"x.json", "file", "cannot load"}},
		"cut short":     {manifest, good[:len(good)/2], []string{"x.json", "file", "cannot load"}},
		"other planes":  {manifest, string(onnx.Filter(3, 2, slants)), []string{"x.json", "input.channels", "3"}},
		"other scale":   {strings.Replace(manifest, `"scale": 2`, `"scale": 4`, 1), good, []string{"x.json", "scale", "68"}},
		"other name":    {strings.Replace(manifest, `"channels"`, `"name": "image", "channels"`, 1), good, []string{"x.json", "input.name", `"in"`}},
		"other output":  {strings.Replace(manifest, `}}`, `}, "output": {"name": "y"}}`, 1), good, []string{"x.json", "output.name", `"out"`}},
		"half floats":   {manifest, string(half.Model()), []string{"x.json", "input", "float32"}},
		"one size":      {strings.Replace(manifest, `"upscale", "scale": 2`, `"denoise"`, 1), string(fixed.Model()), []string{"x.json", "tile", "48"}},
		"two inputs":    {strings.Replace(manifest, `"upscale", "scale": 2`, `"denoise"`, 1), string(two), []string{"x.json", "input.name", "sigma", "gain"}},
		"no such input": {strings.Replace(manifest, `"tile"`, `"constants": [{"name": "w", "values": [1]}], "tile"`, 1), good, []string{"x.json", "constants", `"w"`}},
		"wrong range":   {strings.Replace(manifest, `}}`, `}, "output": {"range": [0, 255]}}`, 1), good, []string{"x.json", "range", "0.002"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := files{"x.json": c.manifest}
			if c.net != "" {
				f["x.onnx"] = c.net
			}
			r, err := openFiles(t, 1, f)
			if err == nil {
				r.Close()
				t.Fatal("was loaded")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in: %v", want, err)
				}
			}
		})
	}
}

func TestModelsFolder(t *testing.T) {
	t.Parallel()
	const manifest = `{"task": "upscale", "scale": 2, "overlap": 1, "file": "net.onnx", "input": {"channels": "y"}}`
	if _, err := openFiles(t, 1, files{"a.json": manifest, "b.json": manifest, "net.onnx": string(onnx.Filter(1, 2, slants))}); err == nil ||
		!strings.Contains(err.Error(), "b.json") || !strings.Contains(err.Error(), "variant") {
		t.Errorf("two models for one task: %v", err)
	}
	many := files{}
	for i := range modelsMost + 1 {
		many[fmt.Sprintf("%d.json", i)] = manifest
	}
	if _, err := openFiles(t, 1, many); err == nil || !strings.Contains(err.Error(), "at most 64") {
		t.Errorf("too many: %v", err)
	}
	if _, err := openFiles(t, 1, files{"a.json": strings.Repeat(" ", manifestMost+1)}); err == nil || !strings.Contains(err.Error(), "a.json") {
		t.Errorf("a large manifest: %v", err)
	}
	for _, folder := range []string{"/does/not/exist", os.Args[0]} {
		if _, err := Open(t.Context(), Config{Library: library(t), Models: folder}); err == nil || !strings.Contains(err.Error(), "models folder") {
			t.Errorf("%s: %v", folder, err)
		}
	}
	if _, err := Open(t.Context(), Config{Library: library(t), Threads: 1000}); err == nil {
		t.Error("1000 threads were accepted")
	}
	// The library of `make deps` has no CUDA, and this machine may have no GPU: either must be said, not passed over.
	theirs := t.TempDir()
	for name, content := range map[string]string{"net.json": manifest, "net.onnx": string(onnx.Filter(1, 2, slants))} {
		if err := os.WriteFile(filepath.Join(theirs, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), Config{Library: library(t), Models: theirs, CUDA: true}); err == nil || !strings.Contains(err.Error(), "CUDA cannot be used") {
		t.Errorf("CUDA: %v", err)
	}
	if _, err := FindLibrary("/does/not/exist.so"); err == nil || !strings.Contains(err.Error(), "/does/not/exist.so") {
		t.Errorf("FindLibrary: %v", err)
	}
}

func TestRunRefusesWhatDoesNotFit(t *testing.T) {
	t.Parallel()
	m := open(t, 1, files{
		"x2.json": `{"task": "upscale", "scale": 2, "tile": 48, "overlap": 1, "input": {"channels": "y"}}`,
		"x2.onnx": string(onnx.Filter(1, 2, slants)),
	}).Find(Upscale, 2)
	plane := make([]float32, 12)
	for name, c := range map[string]struct {
		in  Patch
		how How
	}{
		"planes":       {Patch{4, 3, [][]float32{plane, plane, plane}}, How{}},
		"samples":      {Patch{4, 4, [][]float32{plane}}, How{}},
		"no size":      {Patch{0, 0, [][]float32{nil}}, How{}},
		"only margins": {Patch{4, 3, [][]float32{plane}}, How{Left: 2, Right: 2}},
		"negative":     {Patch{4, 3, [][]float32{plane}}, How{Top: -1}},
	} {
		if _, err := m.Run(t.Context(), c.in, c.how); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestManifestsOfThePage: docs/models.md promises that its manifests are right.
func TestManifestsOfThePage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/models.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := strings.Split(string(page), "```json\n")[1:]
	if len(blocks) < 10 {
		t.Fatalf("%d manifests", len(blocks))
	}
	for _, block := range blocks {
		text, _, _ := strings.Cut(block, "```")
		if _, err := ParseManifest([]byte(text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
}
