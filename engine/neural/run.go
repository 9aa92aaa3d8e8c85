package neural

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

// Patch is a rectangle of a picture: planes of Width x Height samples from 0 to 1, row after row. One plane is luma, or the mask of
// a matting model; three are red, green and blue.
type Patch struct {
	Width, Height int
	Planes        [][]float32
}

// How says more of a run.
type How struct {
	// Left, Top, Right and Bottom are how many columns and rows of the patch are there to be seen only: they are not in the
	// output. Where the patch ends without them, the picture ends, and is continued by its mirror image.
	Left, Top, Right, Bottom int
	// X and Y are where the patch's first sample lies in the picture. A net that shrinks the picture on its way, by its Multiple,
	// sees the same from everywhere only if its windows begin at multiples of it.
	X, Y int
	// Level is for models that have one (see Levels): the strength to work with, such as the standard deviation of the noise,
	// where 1 is the whole range from black to white.
	Level float32
	// Tile is the side of the windows in which the patch is computed, in pixels, where it is larger than that of the manifest: less is
	// computed twice, and more memory needed (see MemoryAt). A model for one size of window keeps to that.
	Tile int
	// Into are planes whose memory is used for the output where it is large enough. May be nil.
	Into [][]float32
}

// scratch is what one thread needs to run pieces, kept between them.
type scratch struct{ in, out []float32 }

// keepMost is the most samples of a buffer that a thread keeps.
const keepMost = 8 << 20

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

func (s *scratch) trim() {
	if cap(s.in) > keepMost {
		s.in = nil
	}
	if cap(s.out) > keepMost {
		s.out = nil
	}
}

// Run gives what the model makes of a patch: the same planes, Scale times as wide and high, or the mask of a matting model at the
// patch's size. Samples may overshoot 0 to 1, by at most 1. It returns soon after ctx is done, with its cause in the chain.
func (m *Model) Run(ctx context.Context, in Patch, how How) (Patch, error) {
	if err := m.checkPatch(in, how); err != nil {
		return Patch{}, err
	}
	job := &run{model: m, in: in, how: how}
	job.out.Width = (in.Width - how.Left - how.Right) * m.manifest.Scale
	job.out.Height = (in.Height - how.Top - how.Bottom) * m.manifest.Scale
	job.out.Planes = make([][]float32, m.manifest.Output.planes())
	for i := range job.out.Planes {
		if i < len(how.Into) {
			job.out.Planes[i] = how.Into[i]
		}
		job.out.Planes[i] = grow(job.out.Planes[i], job.out.Width*job.out.Height)
	}
	if err := job.run(ctx); err != nil {
		return Patch{}, fmt.Errorf("model %s: %w", m.name, err)
	}
	return job.out, nil
}

func (m *Model) checkPatch(in Patch, how How) error {
	if len(in.Planes) != m.Planes() {
		return fmt.Errorf("model %s takes %d planes, not %d", m.name, m.Planes(), len(in.Planes))
	}
	if min(how.Left, how.Top, how.Right, how.Bottom) < 0 || in.Width <= how.Left+how.Right || in.Height <= how.Top+how.Bottom {
		return fmt.Errorf("model %s: nothing is left of a patch of %dx%d without its margins", m.name, in.Width, in.Height)
	}
	if m.manifest.Whole != nil && how.Left+how.Right+how.Top+how.Bottom > 0 {
		return fmt.Errorf("model %s sees the whole picture and takes no margins", m.name)
	}
	for _, plane := range in.Planes {
		if len(plane) != in.Width*in.Height {
			return fmt.Errorf("model %s: a plane of %d samples where the patch has %d", m.name, len(plane), in.Width*in.Height)
		}
	}
	return nil
}

// run is one picture on its way through a model.
type run struct {
	model   *Model
	in, out Patch
	how     How
	options *ort.RunOptions
}

// run hands the pieces to the runtime's threads, one after the other, and waits for them.
func (j *run) run(ctx context.Context) (err error) {
	r := j.model.runtime
	if j.options, err = ort.NewRunOptions(); err != nil {
		return err
	}
	ctx, fail := context.WithCancelCause(ctx)
	terminated := make(chan struct{})
	// ONNX Runtime looks at this between the layers of a net, so that even a large one ends soon.
	unlink := context.AfterFunc(ctx, func() {
		defer close(terminated)
		_ = j.options.Terminate()
	})
	defer func() {
		if !unlink() {
			<-terminated
		}
		fail(nil)
		_ = j.options.Destroy()
	}()
	var pieces sync.WaitGroup
	give := func(work func(*scratch) error) bool {
		pieces.Add(1)
		piece := func(s *scratch) {
			defer pieces.Done()
			defer func() {
				if p := recover(); p != nil {
					fail(fmt.Errorf("panic: %v", p))
				}
			}()
			if ctx.Err() != nil {
				return
			}
			if err := work(s); err != nil {
				fail(err)
			}
			s.trim()
		}
		select {
		case r.work <- piece:
			return true
		case <-ctx.Done():
		case <-r.closing:
			fail(ErrClosed)
		}
		pieces.Done()
		return false
	}
	j.pieces(give)
	pieces.Wait()
	return context.Cause(ctx)
}

// pieces gives each piece of the picture until one is not taken.
func (j *run) pieces(give func(func(*scratch) error) bool) {
	m := j.model
	if m.manifest.Whole != nil {
		give(j.whole)
		return
	}
	width, height := j.in.Width-j.how.Left-j.how.Right, j.in.Height-j.how.Top-j.how.Bottom
	across, down := m.cut(width, j.how.X+j.how.Left, j.how.Tile), m.cut(height, j.how.Y+j.how.Top, j.how.Tile)
	for y := range down.count {
		for x := range across.count {
			if !give(func(s *scratch) error { return j.tile(s, across, down, x, y) }) {
				return
			}
		}
	}
}

// cutting divides a length into count pieces of step pixels, the last of which may be shorter. Each is computed by a window of
// window pixels, overlap included, all of one size, for which ONNX Runtime plans its memory once. first is where the first window begins,
// at a multiple of the net's, before the first piece.
type cutting struct{ length, count, step, window, first int }

// cut divides a length, which begins at the given place in the picture, into pieces of about one size, by windows of at most tile or the
// model's own.
func (m *Model) cut(length, begin, tile int) cutting {
	overlap, multiple := m.manifest.Overlap, m.manifest.Multiple
	up := func(n int) int { return (n + multiple - 1) / multiple * multiple }
	core := m.manifest.core()
	if tile > m.manifest.Tile && !m.fixed {
		core += (tile - m.manifest.Tile) / multiple * multiple
	}
	c := cutting{length: length, count: (length + core - 1) / core}
	c.step = up((length + c.count - 1) / c.count)
	c.count = (length + c.step - 1) / c.step
	c.first = -overlap - positive(begin-overlap, multiple)
	c.window = up(min(c.step, length) + overlap - c.first)
	if m.fixed {
		c.window = m.manifest.Tile
	}
	return c
}

// positive is the rest of a division, 0 or more.
func positive(n, by int) int { return (n%by + by) % by }

// at gives piece i, which is the pixels [from, to), and where its window begins.
func (c cutting) at(i int) (from, to, start int) {
	from = i * c.step
	return from, min(from+c.step, c.length), from + c.first
}

// tile computes one piece.
func (j *run) tile(s *scratch, across, down cutting, x, y int) error {
	m := j.model
	scale := m.manifest.Scale
	left, right, startX := across.at(x)
	top, bottom, startY := down.at(y)
	s.in = grow(s.in, across.window*down.window*m.channels())
	in := &view{s.in, across.window, down.window, m.channels(), &m.manifest.Input}
	for i, plane := range j.in.Planes {
		in.gather(i, plane, j.in.Width, j.in.Height, startX+j.how.Left, startY+j.how.Top)
	}
	j.level(in)
	planes := m.manifest.Output.planes()
	s.out = grow(s.out, in.width*scale*in.height*scale*planes)
	out := &view{s.out, in.width * scale, in.height * scale, planes, &m.manifest.Output}
	if err := m.infer(in, out, j.how.Level, j.options); err != nil {
		return err
	}
	for i, plane := range j.out.Planes {
		out.scatter(i, (left-startX)*scale, (top-startY)*scale,
			window{plane, j.out.Width, left * scale, top * scale, (right - left) * scale, (bottom - top) * scale})
	}
	return nil
}

// whole computes the picture at once, resized to the size the net takes and back.
func (j *run) whole(s *scratch) error {
	m := j.model
	width, height := m.manifest.Whole.size(j.in.Width, j.in.Height, m.manifest.Multiple)
	s.in = grow(s.in, width*height*m.channels())
	in := &view{s.in, width, height, m.channels(), &m.manifest.Input}
	for i, plane := range j.in.Planes {
		if width != j.in.Width || height != j.in.Height {
			plane = Resize(plane, j.in.Width, j.in.Height, width, height)
		}
		in.gather(i, plane, width, height, 0, 0)
	}
	j.level(in)
	out := &view{tensor: &m.manifest.Output, channels: m.manifest.Output.planes()}
	if err := m.infer(in, out, j.how.Level, j.options); err != nil {
		return err
	}
	for i, plane := range j.out.Planes {
		if out.width == j.out.Width && out.height == j.out.Height {
			out.scatter(i, 0, 0, window{plane, out.width, 0, 0, out.width, out.height})
			continue
		}
		small := make([]float32, out.width*out.height)
		out.scatter(i, 0, 0, window{small, out.width, 0, 0, out.width, out.height})
		copy(plane, Resize(small, out.width, out.height, j.out.Width, j.out.Height))
	}
	return nil
}

// level fills the further channel of a net that takes its level there.
func (j *run) level(in *view) {
	l := j.model.manifest.Level
	if l == nil || l.Input != "" {
		return
	}
	first, step := in.samples(in.channels - 1)
	for i := range in.width * in.height {
		in.data[first+i*step] = j.how.Level * l.Scale
	}
}

// infer runs the net on a tensor. An out without a size takes that of the answer.
func (m *Model) infer(in, out *view, level float32, options *ort.RunOptions) error {
	var pinned runtime.Pinner // the library keeps pointers to the samples for as long as a tensor lives
	defer pinned.Unpin()
	pinned.Pin(&in.data[0])
	tensor, err := ort.NewTensor(in.shape(), in.data)
	if err != nil {
		return fmt.Errorf("input: %w", err)
	}
	defer func() { _ = tensor.Destroy() }()
	inputs := []ort.Value{tensor}
	if m.levelRank > 0 {
		shape := make(ort.Shape, m.levelRank)
		for i := range shape {
			shape[i] = 1
		}
		value, err := ort.NewTensor(shape, []float32{level * m.manifest.Level.Scale})
		if err != nil {
			return wrong("level", "%v", err)
		}
		defer func() { _ = value.Destroy() }()
		inputs = append(inputs, value)
	}
	inputs = append(inputs, m.constants...)
	outputs := []ort.Value{nil}
	if out.data != nil && m.tried {
		pinned.Pin(&out.data[0])
		answer, err := ort.NewTensor(out.shape(), out.data)
		if err != nil {
			return fmt.Errorf("output: %w", err)
		}
		outputs[0] = answer
	}
	err = m.session.RunWithOptions(inputs, outputs, options)
	if outputs[0] != nil {
		defer func() { _ = outputs[0].Destroy() }()
	}
	if err != nil {
		return err
	}
	if out.data != nil && m.tried {
		return nil
	}
	return out.take(outputs[0])
}

// view is a tensor as a picture of channels.
type view struct {
	data                    []float32
	width, height, channels int
	tensor                  *Tensor
}

func (v *view) shape() ort.Shape {
	if v.tensor.Layout == "nhwc" {
		return ort.NewShape(1, int64(v.height), int64(v.width), int64(v.channels))
	}
	return ort.NewShape(1, int64(v.channels), int64(v.height), int64(v.width))
}

// samples says where the samples of a channel begin, and how far apart they are.
func (v *view) samples(channel int) (first, step int) {
	if v.tensor.Layout == "nhwc" {
		return channel, v.channels
	}
	return channel * v.width * v.height, 1
}

// place is where plane i (red, green, blue) lies among the channels.
func (t *Tensor) place(i int) int {
	if t.Channels == "bgr" {
		return 2 - i
	}
	return i
}

// affine gives the factor and the term that turn a sample of 0 to 1 into the tensor's value.
func (t *Tensor) affine(channel int) (factor, term float32) {
	mean, std := t.Mean[channel%len(t.Mean)], t.Std[channel%len(t.Std)]
	return (t.Range[1] - t.Range[0]) / std, (t.Range[0] - mean) / std
}

// gather fills the channel of plane i with the rectangle of the plane that begins at (x, y), mirrored where the plane ends.
func (v *view) gather(i int, plane []float32, width, height, x, y int) {
	channel := v.tensor.place(i)
	factor, term := v.tensor.affine(channel)
	first, step := v.samples(channel)
	left := min(max(-x, 0), v.width)           // columns before the plane
	inside := max(min(v.width, width-x), left) // the end of those in it
	for row := range v.height {
		from := plane[mirror(y+row, height)*width:][:width]
		to := v.data[first+row*v.width*step:]
		for col := range left {
			to[col*step] = from[mirror(x+col, width)]*factor + term
		}
		if step == 1 {
			part := to[left:inside]
			for col, sample := range from[x+left:][:len(part)] {
				part[col] = sample*factor + term
			}
		} else {
			for col := left; col < inside; col++ {
				to[col*step] = from[x+col]*factor + term
			}
		}
		for col := inside; col < v.width; col++ {
			to[col*step] = from[mirror(x+col, width)]*factor + term
		}
	}
}

// mirror brings an index that is beyond the ends of a line back into it, as if mirrors stood there.
func mirror(i, length int) int {
	i %= 2 * length
	if i < 0 {
		i += 2 * length
	}
	if i >= length {
		return 2*length - 1 - i
	}
	return i
}

// window is a rectangle of a plane.
type window struct {
	plane               []float32
	stride              int
	x, y, width, height int
}

// scatter brings the rectangle of the channel of plane i that begins at (x, y) back to samples.
func (v *view) scatter(i, x, y int, to window) {
	channel := v.tensor.place(i)
	factor, term := v.tensor.affine(channel)
	inverse := 1 / factor
	first, step := v.samples(channel)
	for row := range to.height {
		from := v.data[first+((y+row)*v.width+x)*step:]
		line := to.plane[(to.y+row)*to.stride+to.x:][:to.width]
		if step == 1 {
			for col, value := range from[:len(line)] {
				line[col] = bounded((value - term) * inverse)
			}
			continue
		}
		for col := range line {
			line[col] = bounded((from[col*step] - term) * inverse)
		}
	}
}

// bounded keeps what a net makes of what it never saw, up to numbers that are none, within -1 to 2.
func bounded(v float32) float32 {
	if !(v > -1) {
		return -1
	}
	if v > 2 {
		return 2
	}
	return v
}

// take makes the view one of what ONNX Runtime allocated. Its data are a copy.
func (v *view) take(value ort.Value) error {
	tensor, ok := value.(*ort.Tensor[float32])
	if !ok {
		return wrong("output", "gives no float32 tensor")
	}
	shape := tensor.GetShape()
	if len(shape) == 3 && v.channels == 1 { // without a dimension for the one plane
		shape = ort.NewShape(shape[0], 1, shape[1], shape[2])
		if v.tensor.Layout == "nhwc" {
			shape = ort.NewShape(shape[0], shape[2], shape[3], 1)
		}
	}
	if len(shape) != 4 || shape[0] != 1 {
		return wrong("output", "has the shape %v; it must have four dimensions, the first 1", tensor.GetShape())
	}
	channels, height, width := shape[1], shape[2], shape[3]
	if v.tensor.Layout == "nhwc" {
		height, width, channels = shape[1], shape[2], shape[3]
	}
	if channels != int64(v.channels) || width < 1 || height < 1 || (v.data != nil && (width != int64(v.width) || height != int64(v.height))) {
		if v.data == nil {
			return wrong("output", "has the shape %v, where %d channels were expected", tensor.GetShape(), v.channels)
		}
		return wrong("scale", "the output has the shape %v, where %v was expected", tensor.GetShape(), v.shape())
	}
	v.width, v.height, v.data = int(width), int(height), tensor.GetData()
	v.activate()
	return nil
}

// activate does what the net left out.
func (v *view) activate() {
	switch v.tensor.Activation {
	case "sigmoid":
		for i, x := range v.data {
			v.data[i] = float32(1 / (1 + math.Exp(-float64(x))))
		}
	case "stretch":
		least, most := float32(math.Inf(1)), float32(math.Inf(-1))
		for _, x := range v.data {
			least, most = min(least, x), max(most, x)
		}
		if most-least < 1e-6 {
			return
		}
		for i, x := range v.data {
			v.data[i] = (x - least) / (most - least)
		}
	}
}
