package neural

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	ort "github.com/yalue/onnxruntime_go"
)

// Model is a net that is loaded and was tried. It is safe for concurrent use.
type Model struct {
	name     string
	shipped  bool
	manifest *Manifest
	runtime  *Runtime
	session  *ort.DynamicAdvancedSession
	// inputs are the names of the session's inputs: the picture, the level when it is one of its own, the constants.
	inputs    []string
	constants []ort.Value
	// levelRank is the number of dimensions of the level's input.
	levelRank int
	// fixed says that the net takes one size only: Tile x Tile, or Whole.
	fixed bool
	// tried says that the trial has shown the output's shape, so that its memory can be given from then on.
	tried bool
	// pixelBytes is the peak memory of a run for each pixel of the input.
	pixelBytes int64
}

// Name is the manifest's file name without its extension.
func (m *Model) Name() string { return m.name }

// Task is what the model is for.
func (m *Model) Task() Task { return m.manifest.Task }

// Variant tells models of one task and scale apart.
func (m *Model) Variant() string { return m.manifest.Variant }

// Shipped says that the model is ours rather than the operator's.
func (m *Model) Shipped() bool { return m.shipped }

// Scale is how many times wider and higher the output is.
func (m *Model) Scale() int { return m.manifest.Scale }

// Planes is how many planes Run takes: one, luma, or three, red, green and blue.
func (m *Model) Planes() int { return m.manifest.Input.planes() }

// Levels says that the model is told by Run's Level how strong to be.
func (m *Model) Levels() bool { return m.manifest.Level != nil }

// Overlap is how many pixels around those that are wanted the model sees; 0 for one that sees the whole picture.
func (m *Model) Overlap() int { return m.manifest.Overlap }

// Core is how many pixels of a tile are not overlap; 0 for a model that sees the whole picture.
func (m *Model) Core() int {
	if m.manifest.Whole != nil {
		return 0
	}
	return m.manifest.core()
}

// Whole is the size a picture is resized to for the model; ok is false for one that works in tiles.
func (m *Model) Whole(width, height int) (w, h int, ok bool) {
	if m.manifest.Whole == nil {
		return 0, 0, false
	}
	w, h = m.manifest.Whole.size(width, height, m.manifest.Multiple)
	return w, h, true
}

// Memory estimates the peak bytes that runs for one picture need inside the runtime, on all threads, without the planes that go
// in and come out.
func (m *Model) Memory() int64 {
	if w := m.manifest.Whole; w != nil {
		area := int64(w.Width) * int64(w.Height)
		if w.Short > 0 {
			area = shapeMost * int64(w.Short) * int64(w.Short)
		}
		return area * m.pixelBytes
	}
	return m.MemoryAt(0)
}

// MemoryAt is Memory for runs with How.Tile.
func (m *Model) MemoryAt(tile int) int64 {
	if m.manifest.Whole != nil {
		return m.Memory()
	}
	side := int64(m.manifest.Tile)
	if !m.fixed {
		side = max(side, int64(tile))
	}
	return side * side * m.pixelBytes * int64(m.runtime.threads)
}

func (m *Model) destroy() {
	for _, c := range m.constants {
		_ = c.Destroy()
	}
	if m.session != nil {
		_ = m.session.Destroy()
	}
}

// newModel loads a model and tries it.
func (r *Runtime) newModel(ctx context.Context, c Config, folder fs.FS, path, name string, manifest *Manifest) (*Model, error) {
	if manifest.File == "" {
		manifest.File = name + ".onnx"
	}
	info, err := fs.Stat(folder, manifest.File)
	switch {
	case err != nil:
		return nil, wrong("file", "%v", err)
	case !info.Mode().IsRegular():
		return nil, wrong("file", "%s is no file", manifest.File)
	case info.Size() > modelSizeMost:
		return nil, wrong("file", "%s has %d bytes; at most %d are loaded", manifest.File, info.Size(), int64(modelSizeMost))
	}
	source := modelSource{path: filepath.Join(path, manifest.File)}
	if path == "" {
		if source.data, err = fs.ReadFile(folder, manifest.File); err != nil {
			return nil, wrong("file", "%v", err)
		}
	}
	m := &Model{name: name, shipped: path == "", manifest: manifest, runtime: r}
	// A thread of its own, so that the threads which the session starts inherit its priority.
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		c.Thread()
		failed <- m.open(source, c)
	}()
	if err = <-failed; err == nil {
		err = m.try(ctx)
	}
	if err != nil {
		m.destroy()
		return nil, err
	}
	return m, nil
}

// modelSource is a model in memory, or else in a file.
type modelSource struct {
	data []byte
	path string
}

// open makes the session.
func (m *Model) open(source modelSource, c Config) error {
	options, err := ort.NewSessionOptions()
	if err != nil {
		return fmt.Errorf("session options: %w", err)
	}
	defer func() { _ = options.Destroy() }()
	if err := m.setOptions(options, c.Threads); err != nil {
		return fmt.Errorf("session options: %w", err)
	}
	if c.CUDA {
		if err := useCUDA(options); err != nil {
			return fmt.Errorf("CUDA cannot be used: %w", err)
		}
	}
	var inputs, outputs []ort.InputOutputInfo
	if source.data != nil {
		inputs, outputs, err = ort.GetInputOutputInfoWithONNXData(source.data)
	} else {
		inputs, outputs, err = ort.GetInputOutputInfo(source.path)
	}
	if err != nil {
		return wrong("file", "ONNX Runtime cannot load %s: %v", m.manifest.File, err)
	}
	if err := m.nameInputs(inputs); err != nil {
		return err
	}
	if err := m.nameOutput(outputs); err != nil {
		return err
	}
	if err := m.makeConstants(); err != nil {
		return err
	}
	output := []string{m.manifest.Output.Name}
	if source.data != nil {
		m.session, err = ort.NewDynamicAdvancedSessionWithONNXData(source.data, m.inputs, output, options)
	} else {
		m.session, err = ort.NewDynamicAdvancedSession(source.path, m.inputs, output, options)
	}
	if err != nil {
		return wrong("file", "ONNX Runtime cannot load %s: %v", m.manifest.File, err)
	}
	return nil
}

// setOptions chooses how the session computes. Tiles run side by side, each on the one thread it is on, which wastes nothing on
// waiting; a net that sees the whole picture has threads of its own. Those must not spin while they wait: other work wants the
// processors. The memory of tiles is kept between runs; that of a whole picture, which may be a gigabyte, is given back.
func (m *Model) setOptions(options *ort.SessionOptions, threads int) error {
	whole := m.manifest.Whole != nil
	if !whole {
		threads = 1
	}
	return errors.Join(
		options.SetGraphOptimizationLevel(ort.GraphOptimizationLevelEnableAll),
		options.SetExecutionMode(ort.ExecutionModeSequential),
		options.SetIntraOpNumThreads(threads),
		options.SetInterOpNumThreads(1),
		options.SetCpuMemArena(!whole),
		options.AddSessionConfigEntry("session.intra_op.allow_spinning", "0"),
	)
}

// useCUDA puts the GPU before the processors, which take only what it cannot do.
func useCUDA(options *ort.SessionOptions) error {
	cuda, err := ort.NewCUDAProviderOptions()
	if err != nil {
		return err
	}
	defer func() { _ = cuda.Destroy() }()
	return options.AppendExecutionProviderCUDA(cuda)
}

// nameInputs holds the model's inputs against the manifest.
func (m *Model) nameInputs(infos []ort.InputOutputInfo) error {
	extra := map[string]bool{}
	for _, c := range m.manifest.Constants {
		extra[c.Name] = true
	}
	if m.manifest.Level != nil && m.manifest.Level.Input != "" {
		extra[m.manifest.Level.Input] = true
	}
	picture := &m.manifest.Input
	var left []string
	for _, info := range infos {
		if !extra[info.Name] {
			left = append(left, info.Name)
		}
	}
	if picture.Name == "" && len(left) == 1 {
		picture.Name = left[0]
	}
	if len(left) != 1 || left[0] != picture.Name {
		return wrong("input.name", "the model has the inputs %s; one must be input.name and the rest constants or the level", nameList(infos))
	}
	m.inputs = []string{picture.Name}
	for _, info := range infos {
		if info.OrtValueType != ort.ONNXTypeTensor {
			return wrong("input", "%s is no tensor", info.Name)
		}
		if info.Name == picture.Name {
			if err := m.checkInput(info); err != nil {
				return err
			}
		}
		if m.manifest.Level != nil && info.Name == m.manifest.Level.Input {
			m.levelRank = len(info.Dimensions)
			m.inputs = append(m.inputs, info.Name)
		}
		delete(extra, info.Name)
	}
	for name := range extra {
		return wrong("constants", "the model has no input %q; it has %s", name, nameList(infos))
	}
	for _, c := range m.manifest.Constants {
		m.inputs = append(m.inputs, c.Name)
	}
	return nil
}

// checkInput looks at the type and shape of the picture's input, and notes a fixed size.
func (m *Model) checkInput(info ort.InputOutputInfo) error {
	man := m.manifest
	if info.DataType != ort.TensorElementDataTypeFloat {
		return wrong("input", "%s takes %v; only models with float32 inputs and outputs are run, export it so", info.Name, info.DataType)
	}
	if len(info.Dimensions) != 4 {
		return wrong("input", "%s has the shape %v; it must have four dimensions", info.Name, info.Dimensions)
	}
	channels, height, width := info.Dimensions[1], info.Dimensions[2], info.Dimensions[3]
	if man.Input.Layout == "nhwc" {
		height, width, channels = info.Dimensions[1], info.Dimensions[2], info.Dimensions[3]
	}
	switch want := int64(m.channels()); {
	case info.Dimensions[0] > 1:
		return wrong("input", "%s takes %d pictures at a time; it must take one", info.Name, info.Dimensions[0])
	case channels > 0 && channels != want:
		return wrong("input.channels", "%s has the shape %v, with %d channels where %s would have %d", info.Name, info.Dimensions, channels, man.Input.Channels, want)
	case (width > 0) != (height > 0):
		return wrong("input", "%s has the shape %v: width and height must both be free or both be fixed", info.Name, info.Dimensions)
	case width <= 0:
		return nil
	case man.Whole == nil && (width != int64(man.Tile) || height != int64(man.Tile)):
		return wrong("tile", "the model takes %dx%d only, which must be the tile, not %d", width, height, man.Tile)
	case man.Whole != nil && (width != int64(man.Whole.Width) || height != int64(man.Whole.Height)):
		return wrong("whole", "the model takes %dx%d only, which must be width and height", width, height)
	}
	m.fixed = true
	return nil
}

// channels is the number of channels of the picture's tensor.
func (m *Model) channels() int {
	n := m.manifest.Input.planes()
	if m.manifest.Level != nil && m.manifest.Level.Input == "" {
		n++
	}
	return n
}

func (m *Model) nameOutput(infos []ort.InputOutputInfo) error {
	out := &m.manifest.Output
	if out.Name == "" && len(infos) == 1 {
		out.Name = infos[0].Name
	}
	at := slices.IndexFunc(infos, func(i ort.InputOutputInfo) bool { return i.Name == out.Name })
	if at < 0 {
		return wrong("output.name", "the model has the outputs %s; say which", nameList(infos))
	}
	if infos[at].OrtValueType != ort.ONNXTypeTensor || infos[at].DataType != ort.TensorElementDataTypeFloat {
		return wrong("output", "%s gives %v; only models with float32 inputs and outputs are run, export it so", out.Name, infos[at].DataType)
	}
	return nil
}

func nameList(infos []ort.InputOutputInfo) string {
	names := make([]string, len(infos))
	for i, info := range infos {
		names[i] = fmt.Sprintf("%q", info.Name)
	}
	return strings.Join(names, ", ")
}

// makeConstants makes the tensors that are the same at every run.
func (m *Model) makeConstants() error {
	for i, c := range m.manifest.Constants {
		shape := ort.Shape(c.Shape)
		if len(shape) == 0 {
			shape = ort.NewShape(1)
		}
		var tensor ort.Value
		var err error
		switch c.Type {
		case "float64":
			tensor, err = ort.NewTensor(shape, slices.Clone(c.Values))
		case "int64":
			tensor, err = ort.NewTensor(shape, convert[int64](c.Values))
		default:
			tensor, err = ort.NewTensor(shape, convert[float32](c.Values))
		}
		if err != nil {
			return wrong(fmt.Sprintf("constants[%d]", i), "%v", err)
		}
		m.constants = append(m.constants, tensor)
	}
	return nil
}

func convert[T int64 | float32](values []float64) []T {
	out := make([]T, len(values))
	for i, v := range values {
		out[i] = T(v)
	}
	return out
}

// trialSide is the side of the picture that a model is tried with.
const trialSide = 64

// try runs the model once on plain grey and looks at the answer: its shape, that it is numbers, and for a model that gives back
// the picture that grey comes out about grey, which it does not where range, mean or std are wrong. It measures the memory as well.
func (m *Model) try(ctx context.Context) error {
	const grey = 0.5
	in := Patch{Width: trialSide, Height: trialSide, Planes: make([][]float32, m.Planes())}
	for i := range in.Planes {
		in.Planes[i] = slices.Repeat([]float32{grey}, trialSide*trialSide)
	}
	settle()
	before := resident()
	resetPeak()
	out, err := m.Run(ctx, in, How{Level: 0.1})
	if err != nil {
		return fmt.Errorf("trial run: %w", err)
	}
	m.tried = true
	m.pixelBytes = m.manifest.Memory
	if m.pixelBytes == 0 {
		m.pixelBytes = max((peak()-before)/m.trialPixels(), m.leastBytes())
	}
	if m.manifest.Task == Matting || m.manifest.Task == Face {
		return nil
	}
	for _, plane := range out.Planes {
		sum := 0.0
		for _, v := range plane {
			sum += float64(v)
		}
		if mean := sum / float64(len(plane)); math.Abs(mean-grey) > 0.25 {
			return wrong("input", "plain grey of 0.5 comes out as %.3f: range, mean, std of input or output are wrong, or the model is broken", mean)
		}
	}
	return nil
}

// trialPixels is how many pixels of the net's input the trial computed.
func (m *Model) trialPixels() int64 {
	if w, h, ok := m.Whole(trialSide, trialSide); ok {
		return int64(w) * int64(h)
	}
	tile := m.cut(trialSide, 0, 0)
	return int64(tile.window) * int64(tile.window)
}

// leastBytes is what even a small net needs for a pixel: its tensors going in and out, and two layers of sixteen channels.
func (m *Model) leastBytes() int64 {
	const float, layers = 4, 2 * 16
	enlarged := m.manifest.Scale * m.manifest.Scale * m.manifest.Output.planes()
	return int64(float * (m.channels() + 2*enlarged + layers))
}
