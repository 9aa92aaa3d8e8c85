package neural

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Task is what a model does to a picture.
type Task string

// The tasks a model can have. Scale is 2, 4 or 8 for Upscale and 1 for all others.
const (
	Upscale Task = "upscale" // enlarge
	Denoise Task = "denoise" // remove noise
	Restore Task = "restore" // remove the traces of compression, age and noise
	Deblur  Task = "deblur"  // sharpen
	Matting Task = "matting" // tell the subject from its background: one plane, 1 where the subject is
	Face    Task = "face"    // restore one face that fills the picture
)

var (
	tasks       = []Task{Upscale, Denoise, Restore, Deblur, Matting, Face}
	scales      = []int{2, 4, 8}
	layouts     = []string{"nchw", "nhwc"}
	colours     = []string{"y", "rgb", "bgr"}
	activations = []string{"", "sigmoid", "stretch"}
	types       = []string{"float32", "float64", "int64"}
)

// Limits of a manifest and of what it may ask for.
const (
	manifestMost = 64 << 10 // bytes of a manifest
	tileLeast    = 16       // source pixels
	tileMost     = 1024
	tileUsual    = 256
	coreLeast    = 16 // pixels of a tile that are not overlap
	overlapMost  = 256
	multipleMost = 256
	wholeMost    = 2048 // pixels of a side of a net that sees the whole picture
	namedMost    = 8    // constants
	valuesMost   = 64   // numbers of a constant
	textMost     = 200  // bytes of a name
	aboutMost    = 2000
	numberMost   = 1e6
)

// Manifest describes one ONNX model: what it is for, and how its tensors are made of a picture and a picture of its tensors.
// It is a JSON file beside the model; docs/models.md has one for each of the well-known models. All sizes are in pixels
// of the model's input.
//
// The smallest one, for a net with one input [1,1,H,W] and one output [1,1,2H,2W] of luma from 0 to 1, is
//
//	{"task": "upscale", "scale": 2, "overlap": 8, "input": {"channels": "y"}}
type Manifest struct {
	// Task and Scale say what the model is for. Scale is 1 when left out.
	Task  Task `json:"task"`
	Scale int  `json:"scale,omitempty"`
	// Variant tells models of one task and scale apart, such as fast, quality and photo: lower-case letters, digits and dashes.
	Variant string `json:"variant,omitempty"`
	// File is the model's file name, in the folder of the manifest. By default the manifest's name with .onnx for .json.
	File string `json:"file,omitempty"`
	// About is for people: origin, licence, scores.
	About string `json:"about,omitempty"`

	// Tile is the side of the squares that a picture is cut into, overlap included: 16 to 1024, by default 256. A model made for
	// one size of input takes that size.
	Tile int `json:"tile,omitempty"`
	// Overlap is how far beyond the pixels it is for a tile reaches on each side. It must be at least the radius of the net's
	// receptive field, or seams show. Required unless Whole is set.
	Overlap int `json:"overlap,omitempty"`
	// Multiple is what width and height of the input must be a multiple of: the factor by which a net shrinks the picture on its way.
	// By default 1.
	Multiple int `json:"multiple,omitempty"`
	// Whole is for a net that must see all of the picture at once: the picture is resized, and the answer resized back.
	Whole *Whole `json:"whole,omitempty"`

	Input  Tensor `json:"input"`
	Output Tensor `json:"output,omitzero"`

	// Constants are further inputs, the same at every run.
	Constants []Constant `json:"constants,omitempty"`
	// Level is for a net that is told how strong to be.
	Level *Level `json:"level,omitempty"`

	// Memory is the peak bytes a run needs for each pixel of the input. By default it is measured when the model is loaded.
	Memory int64 `json:"memory,omitempty"`
}

// Whole is the size that a whole picture is resized to: either Width and Height, whatever the picture's shape, or Short, the
// shorter side, with the longer one as the shape asks but at most three times as long. At most 2048 each.
type Whole struct {
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	Short  int `json:"short,omitempty"`
}

// Tensor says how samples of 0 to 1 become a tensor: Range stretches them, then Mean is subtracted, then Std divides.
// An output goes the same way back; it has the input's numbers, layout and channels where it gives none, except a mask, which has the layout.
type Tensor struct {
	// Name is needed when the model has several inputs or outputs.
	Name string `json:"name,omitempty"`
	// Layout is nchw (by default) or nhwc.
	Layout string `json:"layout,omitempty"`
	// Channels is y (BT.601 luma of full range), rgb or bgr. The output of a matting model is one plane and says nothing.
	Channels string `json:"channels,omitempty"`
	// Range is what 0 and 1 become; by default [0, 1]. Many nets take [0, 255]; one of luma as video codes it has [16/255, 235/255].
	Range []float32 `json:"range,omitempty"`
	// Mean and Std have one number for all channels or one for each, in the model's order of colours; by default 0 and 1.
	Mean []float32 `json:"mean,omitempty"`
	Std  []float32 `json:"std,omitempty"`
	// Activation is what an output still lacks: sigmoid, or stretch (its least value becomes 0 and its most 1). Matting only.
	Activation string `json:"activation,omitempty"`
}

// Constant is an input of fixed values, such as the fidelity weight of CodeFormer.
type Constant struct {
	Name string `json:"name"`
	// Type is float32 (by default), float64 or int64.
	Type string `json:"type,omitempty"`
	// Shape may be left out for a single number.
	Shape  []int64   `json:"shape,omitempty"`
	Values []float64 `json:"values"`
}

// Level says how a net takes the strength it is to work with, such as the standard deviation of the noise.
type Level struct {
	// Input is the name of an input of its own, of shape [1,1,1,1]. Left out, the level is a further channel of the picture's tensor.
	Input string `json:"input,omitempty"`
	// Scale is what a level of 1, the whole range from black to white, becomes; by default 1.
	Scale float32 `json:"scale,omitempty"`
}

// FieldError names the field of a manifest that is wrong.
type FieldError struct {
	Field   string
	Problem string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

func wrong(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// ParseManifest reads and checks a manifest and fills in the defaults, except File. Its errors name the field.
func ParseManifest(text []byte) (*Manifest, error) {
	if len(text) > manifestMost {
		return nil, fmt.Errorf("manifest of %d bytes: at most %d are read", len(text), manifestMost)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	var m Manifest
	if err := decoder.Decode(&m); err != nil {
		if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && kind.Field != "" {
			return nil, wrong(kind.Field, "must be %s, not %s", plainType(kind.Type.String()), kind.Value)
		}
		return nil, fmt.Errorf("not a manifest: %s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not a manifest: something follows its closing brace")
	}
	return &m, m.check()
}

// plainType is a Go type as someone who writes JSON would call it.
func plainType(name string) string {
	switch {
	case strings.HasPrefix(name, "[]"):
		return "a list"
	case strings.HasPrefix(name, "int"):
		return "a whole number"
	case strings.HasPrefix(name, "float"):
		return "a number"
	case strings.HasPrefix(name, "neural.") && name != "neural.Task", strings.HasPrefix(name, "*"):
		return "an object"
	}
	return "a text"
}

// check refuses what cannot be right and fills in defaults.
func (m *Manifest) check() error {
	if m.Scale == 0 && m.Task != Upscale {
		m.Scale = 1
	}
	switch {
	case !slices.Contains(tasks, m.Task):
		return wrong("task", "must be one of %s, not %q", list(tasks), m.Task)
	case m.Task == Upscale && !slices.Contains(scales, m.Scale):
		return wrong("scale", "must be 2, 4 or 8, not %d", m.Scale)
	case m.Task != Upscale && m.Scale != 1:
		return wrong("scale", "must be 1 for %s, not %d", m.Task, m.Scale)
	case !isWord(m.Variant):
		return wrong("variant", "must be at most 40 lower-case letters, digits and dashes, not %q", m.Variant)
	case len(m.File) > textMost || strings.ContainsAny(m.File, "/\\\x00") || strings.HasPrefix(m.File, "."):
		return wrong("file", "must be the plain name of a file beside the manifest, not %q", m.File)
	case len(m.About) > aboutMost:
		return wrong("about", "must have at most %d bytes", aboutMost)
	case m.Memory < 0 || m.Memory > 1<<30:
		return wrong("memory", "must be 0 to %d bytes a pixel, not %d", 1<<30, m.Memory)
	}
	if err := m.checkSizes(); err != nil {
		return err
	}
	if err := m.Input.check("input", false); err != nil {
		return err
	}
	if err := m.likeInput(); err != nil {
		return err
	}
	if err := m.Output.check("output", m.Task == Matting); err != nil {
		return err
	}
	if m.Task != Matting && m.Output.planes() != m.Input.planes() {
		return wrong("output.channels", "must have as many planes as input.channels (%s), not %s", m.Input.Channels, m.Output.Channels)
	}
	return m.checkExtras()
}

// likeInput fills what is left out of the output with what the input has; a mask has its layout only.
func (m *Manifest) likeInput() error {
	in, out := &m.Input, &m.Output
	if out.Layout == "" {
		out.Layout = in.Layout
	}
	if m.Task == Matting {
		if out.Channels != "" {
			return wrong("output.channels", "must be left out for matting, whose output is one plane")
		}
		out.Channels = "y"
		return nil
	}
	if out.Channels == "" {
		out.Channels = in.Channels
	}
	if out.Range == nil {
		out.Range = slices.Clone(in.Range)
	}
	if out.Mean == nil {
		out.Mean = slices.Clone(in.Mean)
	}
	if out.Std == nil {
		out.Std = slices.Clone(in.Std)
	}
	return nil
}

func (m *Manifest) checkSizes() error {
	if m.Multiple == 0 {
		m.Multiple = 1
	}
	if m.Multiple < 1 || m.Multiple > multipleMost {
		return wrong("multiple", "must be 1 to %d, not %d", multipleMost, m.Multiple)
	}
	if m.Whole != nil {
		return m.Whole.check(m)
	}
	if m.Task == Matting || m.Task == Face {
		return wrong("whole", "must be given for %s, which sees all of the picture at once", m.Task)
	}
	if m.Tile == 0 {
		m.Tile = (tileUsual + m.Multiple - 1) / m.Multiple * m.Multiple
	}
	switch {
	case m.Tile < tileLeast || m.Tile > tileMost:
		return wrong("tile", "must be %d to %d, not %d", tileLeast, tileMost, m.Tile)
	case m.Tile%m.Multiple != 0:
		return wrong("tile", "must be a multiple of %d (see multiple), not %d", m.Multiple, m.Tile)
	case m.Overlap < 1 || m.Overlap > overlapMost:
		return wrong("overlap", "must be 1 to %d, at least the radius of the net's receptive field, not %d", overlapMost, m.Overlap)
	case m.core() < coreLeast:
		return wrong("tile", "must leave at least %d pixels beside twice the overlap and the multiple; %d leaves %d", coreLeast, m.Tile, m.core())
	}
	return nil
}

// core is how many pixels of a tile are not overlap, nor lost to a window that begins at a multiple.
func (m *Manifest) core() int {
	return (m.Tile - 2*m.Overlap - (m.Multiple - 1)) / m.Multiple * m.Multiple
}

func (w *Whole) check(m *Manifest) error {
	if m.Scale != 1 {
		return wrong("whole", "must be left out for a model that enlarges")
	}
	if m.Tile != 0 || m.Overlap != 0 {
		return wrong("whole", "must be left out where tile or overlap is given")
	}
	given := []struct {
		name  string
		value int
	}{{"whole.short", w.Short}}
	if w.Short == 0 {
		given[0].name, given[0].value = "whole.width", w.Width
		given = append(given, given[0])
		given[1].name, given[1].value = "whole.height", w.Height
	} else if w.Width != 0 || w.Height != 0 {
		return wrong("whole", "must have either short or width and height")
	}
	for _, g := range given {
		if g.value < tileLeast || g.value > wholeMost {
			return wrong(g.name, "must be %d to %d, not %d", tileLeast, wholeMost, g.value)
		}
		if g.value%m.Multiple != 0 {
			return wrong(g.name, "must be a multiple of %d (see multiple), not %d", m.Multiple, g.value)
		}
	}
	return nil
}

// check refuses what cannot be right in a tensor and fills in defaults. field is its name.
func (t *Tensor) check(field string, mask bool) error {
	if t.Layout == "" {
		t.Layout = "nchw"
	}
	if t.Range == nil {
		t.Range = []float32{0, 1}
	}
	if t.Mean == nil {
		t.Mean = []float32{0}
	}
	if t.Std == nil {
		t.Std = []float32{1}
	}
	switch {
	case len(t.Name) > textMost || strings.ContainsRune(t.Name, 0):
		return wrong(field+".name", "must have at most %d bytes and no zero byte", textMost)
	case !slices.Contains(layouts, t.Layout):
		return wrong(field+".layout", "must be nchw or nhwc, not %q", t.Layout)
	case !slices.Contains(colours, t.Channels):
		return wrong(field+".channels", "must be y, rgb or bgr, not %q", t.Channels)
	case len(t.Range) != 2 || !sane(t.Range) || t.Range[0] >= t.Range[1]:
		return wrong(field+".range", "must be two numbers, the first below the second, not %v", t.Range)
	case !slices.Contains(activations, t.Activation):
		return wrong(field+".activation", "must be sigmoid, stretch or left out, not %q", t.Activation)
	case t.Activation != "" && !mask:
		return wrong(field+".activation", "must be left out: only the output of matting can have one")
	}
	for _, numbers := range []struct {
		name   string
		values []float32
	}{{"mean", t.Mean}, {"std", t.Std}} {
		if (len(numbers.values) != 1 && len(numbers.values) != t.planes()) || !sane(numbers.values) {
			return wrong(field+"."+numbers.name, "must be one number or one for each of the %d channels, not %v", t.planes(), numbers.values)
		}
	}
	if slices.ContainsFunc(t.Std, func(v float32) bool { return v < 1e-6 }) {
		return wrong(field+".std", "must be above 0, not %v", t.Std)
	}
	return nil
}

// checkExtras looks at the constants and the level.
func (m *Manifest) checkExtras() error {
	if len(m.Constants) > namedMost {
		return wrong("constants", "must be at most %d", namedMost)
	}
	names := []string{m.Input.Name}
	for i := range m.Constants {
		c := &m.Constants[i]
		field := fmt.Sprintf("constants[%d].", i)
		if c.Type == "" {
			c.Type = "float32"
		}
		size := int64(1)
		for _, n := range c.Shape {
			if n < 1 || n > valuesMost || len(c.Shape) > 8 {
				return wrong(field+"shape", "must be at most 8 numbers of 1 to %d, not %v", valuesMost, c.Shape)
			}
			size = min(size*n, valuesMost+1)
		}
		switch {
		case c.Name == "" || len(c.Name) > textMost || strings.ContainsRune(c.Name, 0) || slices.Contains(names, c.Name):
			return wrong(field+"name", "must be the name of an input of the model that nothing else has, not %q", c.Name)
		case !slices.Contains(types, c.Type):
			return wrong(field+"type", "must be float32, float64 or int64, not %q", c.Type)
		case size > valuesMost || int64(len(c.Values)) != size:
			return wrong(field+"values", "must be as many as the shape %v says and at most %d, not %d", c.Shape, valuesMost, len(c.Values))
		}
		names = append(names, c.Name)
	}
	if m.Level == nil {
		return nil
	}
	if m.Level.Scale == 0 {
		m.Level.Scale = 1
	}
	if !sane([]float32{m.Level.Scale}) || m.Level.Scale < 0 {
		return wrong("level.scale", "must be above 0 and at most %g, not %g", numberMost, m.Level.Scale)
	}
	if len(m.Level.Input) > textMost || strings.ContainsRune(m.Level.Input, 0) || (m.Level.Input != "" && slices.Contains(names, m.Level.Input)) {
		return wrong("level.input", "must be the name of an input of the model that nothing else has, not %q", m.Level.Input)
	}
	return nil
}

// planes is the number of channels of the picture in the tensor.
func (t *Tensor) planes() int {
	if t.Channels == "y" {
		return 1
	}
	return 3
}

// sane says that numbers are finite and of a size that no rounding hurts.
func sane(values []float32) bool {
	for _, v := range values {
		if !(math.Abs(float64(v)) <= numberMost) {
			return false
		}
	}
	return true
}

func isWord(s string) bool {
	return len(s) <= 40 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
	})
}

func list(words []Task) string {
	texts := make([]string, len(words))
	for i, w := range words {
		texts[i] = string(w)
	}
	return strings.Join(texts[:len(texts)-1], ", ") + " or " + texts[len(texts)-1]
}
