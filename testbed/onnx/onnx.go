// Package onnx writes small neural nets as ONNX files, so that a test can know exactly what a net makes of every pixel. It encodes the
// few messages of the format (onnx.proto3 of the ONNX project, IR version 8) that a graph of plain operators needs.
package onnx

import (
	"encoding/binary"
	"math"
	"math/rand/v2"
)

// Element types of a tensor.
const (
	Float  = 1
	Uint8  = 2
	Int8   = 3
	Int32  = 6
	Int64  = 7
	Half   = 10
	Double = 11
)

// Graph is a net that is being written. Nodes must be added in an order in which each can be computed.
type Graph struct {
	nodes, weights, inputs, outputs []byte
}

// Input declares an input. Dimensions are numbers, or -1 for one that is free.
func (g *Graph) Input(name string, kind int, dims ...int) {
	g.inputs = append(g.inputs, field(11, valueInfo(name, kind, dims))...)
}

// Output declares an output.
func (g *Graph) Output(name string, kind int, dims ...int) {
	g.outputs = append(g.outputs, field(12, valueInfo(name, kind, dims))...)
}

func valueInfo(name string, kind int, dims []int) []byte {
	var shape []byte
	for i, d := range dims {
		dim := number(1, uint64(max(d, 0)))
		if d < 0 {
			dim = text(2, name+string(rune('a'+i)))
		}
		shape = append(shape, field(1, dim)...)
	}
	tensor := append(number(1, uint64(kind)), field(2, shape)...)
	return append(text(1, name), field(2, field(1, tensor))...)
}

// Weights adds a constant tensor of floats.
func (g *Graph) Weights(name string, values []float32, dims ...int) {
	raw := make([]byte, 4*len(values))
	for i, v := range values {
		binary.LittleEndian.PutUint32(raw[4*i:], math.Float32bits(v))
	}
	g.tensor(name, Float, raw, dims)
}

// Bytes adds a constant tensor of bytes, Int8 or Uint8.
func (g *Graph) Bytes(name string, kind int, values []byte, dims ...int) {
	g.tensor(name, kind, values, dims)
}

// Ints adds a constant tensor of whole numbers, Int32 or Int64.
func (g *Graph) Ints(name string, kind int, values []int64, dims ...int) {
	var raw []byte
	for _, v := range values {
		if kind == Int32 {
			raw = binary.LittleEndian.AppendUint32(raw, uint32(v))
			continue
		}
		raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
	}
	g.tensor(name, kind, raw, dims)
}

func (g *Graph) tensor(name string, kind int, raw []byte, dims []int) {
	var message []byte
	for _, d := range dims {
		message = append(message, number(1, uint64(d))...)
	}
	message = append(message, number(2, uint64(kind))...)
	message = append(message, text(8, name)...)
	message = append(message, field(9, raw)...)
	g.weights = append(g.weights, field(5, message)...)
}

// Attribute is a setting of a node: an int, a string, or a list of ints.
type Attribute struct {
	Name  string
	Value any
}

// Node adds an operator.
func (g *Graph) Node(operator string, inputs, outputs []string, attributes ...Attribute) {
	var message []byte
	for _, name := range inputs {
		message = append(message, text(1, name)...)
	}
	for _, name := range outputs {
		message = append(message, text(2, name)...)
	}
	message = append(message, text(4, operator)...)
	for _, a := range attributes {
		setting := text(1, a.Name)
		switch v := a.Value.(type) {
		case int:
			setting = append(append(setting, number(3, uint64(v))...), number(20, 2)...)
		case string:
			setting = append(append(setting, text(4, v)...), number(20, 3)...)
		case []int:
			for _, n := range v {
				setting = append(setting, number(8, uint64(n))...)
			}
			setting = append(setting, number(20, 7)...)
		default:
			panic("onnx: an attribute is an int, a string or a list of ints")
		}
		message = append(message, field(5, setting)...)
	}
	g.nodes = append(g.nodes, field(1, message)...)
}

// Model is the finished file.
func (g *Graph) Model() []byte {
	graph := append([]byte(nil), g.nodes...)
	graph = append(graph, text(2, "net")...)
	graph = append(graph, g.weights...)
	graph = append(graph, g.inputs...)
	graph = append(graph, g.outputs...)
	model := number(1, 8)
	model = append(model, text(2, "enlarger")...)
	model = append(model, field(7, graph)...)
	return append(model, field(8, number(2, 17))...) // the operators as of opset 17
}

func field(tag int, message []byte) []byte {
	out := binary.AppendUvarint(nil, uint64(tag)<<3|2)
	out = binary.AppendUvarint(out, uint64(len(message)))
	return append(out, message...)
}

func text(tag int, s string) []byte { return field(tag, []byte(s)) }

func number(tag int, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(tag)<<3), v)
}

// Conv adds a convolution with as many rows as columns that keeps the size, by zeros around the picture. weights are
// outputs x inputs x size x size; bias may be nil.
func (g *Graph) Conv(from, to string, inputs, outputs, size int, weights, bias []float32) {
	g.Weights(to+".w", weights, outputs, inputs, size, size)
	names := []string{from, to + ".w"}
	if bias != nil {
		g.Weights(to+".b", bias, outputs)
		names = append(names, to+".b")
	}
	half := size / 2
	g.Node("Conv", names, []string{to}, Attribute{"kernel_shape", []int{size, size}}, Attribute{"pads", []int{half, half, half, half}})
}

// Filter is a net that enlarges planes by scale: each output pixel is the weighted sum of the 3x3 pixels around the one it lies in.
// weights[phase] are those of output pixel phase (row by row) within it; each plane is treated alike and alone. Scale 1 filters.
func Filter(planes, scale int, weights [][9]float32) []byte {
	g := &Graph{}
	phases := scale * scale
	g.Input("in", Float, 1, planes, -1, -1)
	all := make([]float32, planes*phases*planes*9)
	for c := range planes {
		for phase, w := range weights {
			copy(all[((c*phases+phase)*planes+c)*9:], w[:])
		}
	}
	g.Conv("in", "phases", planes, planes*phases, 3, all, nil)
	if scale == 1 {
		g.Node("Identity", []string{"phases"}, []string{"out"})
	} else {
		g.Node("DepthToSpace", []string{"phases"}, []string{"out"}, Attribute{"blocksize", scale}, Attribute{"mode", "CRD"})
	}
	g.Output("out", Float, 1, planes, -1, -1)
	return g.Model()
}

// Random is a net of the usual shape with weights of chance, for measuring time and memory: a 5x5 convolution into width channels, layers
// of 3x3, and a last 5x5 one into the sub-pixels, with ReLU between. It enlarges one plane by scale and adds to repeated pixels so little
// that grey stays about grey. At scale 2 with 5 layers of 16 channels it has 13,620 weights.
func Random(scale, width, layers int) []byte {
	chance := rand.New(rand.NewPCG(1, 2))
	weights := func(n int, deviation float64) []float32 {
		w := make([]float32, n)
		for i := range w {
			w[i] = float32(chance.NormFloat64() * deviation)
		}
		return w
	}
	g := &Graph{}
	g.Input("in", Float, 1, 1, -1, -1)
	g.Conv("in", "c0", 1, width, 5, weights(25*width, 0.2), weights(width, 0.01))
	g.Node("Relu", []string{"c0"}, []string{"r0"})
	last := "r0"
	for i := range layers {
		name := string(rune('A' + i))
		g.Conv(last, name, width, width, 3, weights(9*width*width, 1.4/math.Sqrt(float64(9*width))), weights(width, 0.01))
		last = name + "r"
		g.Node("Relu", []string{name}, []string{last})
	}
	phases := scale * scale
	g.Conv(last, "phases", width, phases, 5, weights(25*width*phases, 0.002), weights(phases, 0.001))
	g.Node("Add", []string{"phases", "in"}, []string{"sum"})
	g.Node("DepthToSpace", []string{"sum"}, []string{"out"}, Attribute{"blocksize", scale}, Attribute{"mode", "CRD"})
	g.Output("out", Float, 1, 1, -1, -1)
	return g.Model()
}
