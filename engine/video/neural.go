package video

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/neural"
)

// netUpscaler enlarges the luma of frames by models, one after the other where no single one has the scale.
type netUpscaler struct {
	models []*neural.Model
	scale  int
	// free are the memories of workers that are not at work.
	free chan *netMemory
}

// netMemory is what one worker computes in: the luma of the source, and that of the output of every model, as samples of 0 to 1.
type netMemory struct {
	source []float32
	made   [][]float32
}

// windowSide is the side of the windows in which a model computes frames, in pixels. At 640x360 and with a model that looks 10 pixels far, 12 %
// of what windows of 512 compute is computed twice, and 22 % with those of 256, which pictures use; more than that hardly helps.
const windowSide = 512

// workersMost bounds the frames in work at once.
const workersMost = 16

// netUpscaler finds models for a scale that take luma; nil when this server has none. An operator's go before ours.
func (o Options) netUpscaler(scale int) *netUpscaler {
	for _, steps := range map[int][][]int{2: {{2}}, 4: {{4}, {2, 2}}}[scale] {
		var models []*neural.Model
		for _, step := range steps {
			if m := o.lumaModel(step); m != nil {
				models = append(models, m)
			}
		}
		if len(models) == len(steps) {
			return &netUpscaler{models: models, scale: scale}
		}
	}
	return nil
}

// lumaModel is the model for a scale that takes luma: the operator's, or else ours, of which the fast one is meant for video.
func (o Options) lumaModel(scale int) *neural.Model {
	var found *neural.Model
	for _, m := range o.Neural.Models() {
		switch {
		case m.Task() != neural.Upscale || m.Scale() != scale || m.Planes() != 1 || m.Levels():
		case found == nil, found.Shipped() == m.Shipped() && found.Variant() != "fast" && m.Variant() == "fast":
			found = m
		}
	}
	return found
}

// Measured on a core of 2020, models of ours take some 100 ns for a pixel of the output at x2 and 20 at x4: on the average three times
// what the rest takes.
func (e *editor) upscaleEffort() float64 {
	if e.options.netUpscaler(2) == nil {
		return 1
	}
	return 4
}

// name is what the job's output says of the models.
func (n *netUpscaler) name() string {
	names := make([]string, len(n.models))
	for i, m := range n.models {
		names[i] = m.Name()
	}
	return strings.Join(names, ", ")
}

// workers is how many frames to work on at once: as many as keep all threads of the models busy while others are between two frames.
func (n *netUpscaler) workers(width, height, threads int) int {
	pieces := max(1, (width+windowSide-1)/windowSide*((height+windowSide-1)/windowSide))
	return min(1+(threads+pieces-1)/pieces, workersMost)
}

// frames is the part of a recipe that enlarges by the models.
func (n *netUpscaler) frames(v *ffmpeg.Video, threads int) *frames {
	workers := n.workers(v.Width, v.Height, threads)
	n.free = make(chan *netMemory, workers)
	for range workers {
		n.free <- &netMemory{made: make([][]float32, len(n.models))}
	}
	return &frames{work: n.work, workers: workers, enlarged: true, share: 1}
}

// memory estimates what enlarging takes in this process, in bytes, beside the frames: what the models need, and samples of four bytes.
func (n *netUpscaler) memory(s engine.Source, threads int) int64 {
	models, samples, side := int64(0), int64(1), int64(1)
	for _, m := range n.models {
		models = max(models, m.MemoryAt(windowSide)) // one runs at a time
		side *= int64(m.Scale())
		samples += side * side
	}
	const float = 4
	return models + float*samples*int64(s.Width)*int64(s.Height)*int64(n.workers(s.Width, s.Height, threads))
}

// work fills the luma of a frame.
func (n *netUpscaler) work(ctx context.Context, f *frame) error {
	m := <-n.free // there are as many as workers
	defer func() { n.free <- m }()
	in := neural.Patch{Width: f.planes[0].width, Height: f.planes[0].height}
	m.source = grow(m.source, in.Width*in.Height)
	f.planes[0].samples(m.source, f.full)
	in.Planes = [][]float32{m.source}
	for i, model := range n.models {
		out, err := model.Run(ctx, in, neural.How{Tile: windowSide, Into: m.made[i : i+1]})
		if err != nil {
			return err
		}
		m.made[i] = out.Planes[0]
		keepNear(out.Planes[0], in.Planes[0], in.Width, in.Height, model.Scale())
		in = out
	}
	if in.Width != f.luma.width || in.Height != f.luma.height {
		return fmt.Errorf("the models make %dx%d of a frame, planned %dx%d", in.Width, in.Height, f.luma.width, f.luma.height)
	}
	f.luma.take(in.Planes[0], f.full)
	return nil
}

func grow(s []float32, n int) []float32 {
	if cap(s) < n {
		return make([]float32, n)
	}
	return s[:n]
}

// levels are the codes of black and white in luma.
func (p *plane) levels(full bool) (black, white float32) {
	black, white = 16, 235
	if full {
		black, white = 0, 255
	}
	if p.deep {
		if full {
			return 0, 1023
		}
		return 4 * black, 4 * white
	}
	return black, white
}

// samples gives luma as numbers of 0 to 1, less or more beyond black and white.
func (p *plane) samples(to []float32, full bool) {
	black, white := p.levels(full)
	scale := 1 / (white - black)
	if p.deep {
		for i := range to {
			to[i] = (float32(binary.LittleEndian.Uint16(p.pixels[2*i:])) - black) * scale
		}
		return
	}
	var table [256]float32
	for i := range table {
		table[i] = (float32(i) - black) * scale
	}
	for i, v := range p.pixels[:len(to)] {
		to[i] = table[v]
	}
}

// take writes numbers of 0 to 1 as luma, rounded to the nearest code.
func (p *plane) take(from []float32, full bool) {
	black, white := p.levels(full)
	span, black := white-black, black+0.5
	if p.deep {
		for i, v := range from {
			binary.LittleEndian.PutUint16(p.pixels[2*i:], uint16(min(max(v*span+black, 0), 1023)))
		}
		return
	}
	to := p.pixels[:len(from)]
	for i, v := range from {
		to[i] = uint8(min(max(v*span+black, 0), 255))
	}
}

// keepNear keeps the enlarged samples near the 3x3 samples of the source around each: no further beyond their range than it is wide. An edge may
// become as sharp as it likes, and what is flat stays exactly flat.
func keepNear(out, in []float32, width, height, scale int) {
	low, high := make([]float32, width), make([]float32, width)
	for y := range height {
		above, here, below := in[max(y-1, 0)*width:][:width], in[y*width:][:width], in[min(y+1, height-1)*width:][:width]
		for x, v := range here {
			a, b := above[x], below[x]
			low[x], high[x] = min(v, a, b), max(v, a, b)
		}
		for sub := range scale {
			row := out[(y*scale+sub)*width*scale:][:width*scale]
			for x := range width {
				l, r := max(x-1, 0), min(x+1, width-1)
				least, most := min(low[l], low[x], low[r]), max(high[l], high[x], high[r])
				reach := most - least
				least, most = least-reach, most+reach
				part := row[x*scale:][:scale]
				for i, v := range part {
					part[i] = min(max(v, least), most)
				}
			}
		}
	}
}

// shareMost is how much of the models' luma is taken of a clean source. On four clips reduced to half and coded by x264, mean PSNR of luma
// at x2:
//
//	CRF          10     18     23     28     34    noise 4  noise 10
//	classical    38.38  37.62  36.66  35.17  32.75  36.78    32.30
//	half each    40.93  39.40  37.80  35.69  32.87  37.59    31.28
//	three parts  41.74  39.85  38.00  35.72  32.83  37.41    30.53
//	models       41.61  39.76  37.86  35.58  32.73  36.88    29.71
//
// Coding takes so much away that what the models sharpen is in part not there, and nothing in a picture says how much.
const shareMost = 0.8

// chooseShare measures the noise of a source, by a few frames of its beginning, so that the whole clip and all its parts are treated alike,
// and takes less of the models the more there is: they take noise for detail.
func (e *editor) chooseShare(ctx context.Context, input string, r *recipe) error {
	noise, err := e.measureNoise(ctx, input, r.media)
	if err != nil {
		return err
	}
	const little, much = 0.5, 4 // standard deviations in 8-bit codes
	share := shareMost * min(max((much-noise)/(much-little), 0), 1)
	if share < 0.05 {
		r.frames = nil
		return nil
	}
	share = math.Round(share*100) / 100
	f := *r.frames
	f.share = share
	f.facts = map[string]any{"method": "neural", "model": e.options.netUpscaler(r.plan.Width / r.media.Video.Width).name(), "model_strength": share}
	r.frames = &f
	return nil
}

// measureNoise is the standard deviation of the noise in the luma of a clip, in 8-bit codes: the median over a few frames of its first
// two seconds. 0 when no frame can be read, which the run itself will find out.
func (e *editor) measureNoise(ctx context.Context, input string, media *ffmpeg.Media) (float64, error) {
	const count, step, most = 5, 12, 768
	width, height := min(media.Video.Width, most), min(media.Video.Height, most)
	filter := fmt.Sprintf(`select='not(mod(n,%d))',scale=w=%d:h=%d,crop=w=%d:h=%d,format=yuv420p|yuvj420p,extractplanes=y`, step, media.Video.Width, media.Video.Height, width, height)
	var out bytes.Buffer
	err := e.runner.Run(ctx, ffmpeg.Command{
		Args: e.runner.Args(ffmpeg.Input{Path: input}, ffmpeg.Output{Pipe: 1, Format: "rawvideo", Options: []ffmpeg.Option{
			ffmpeg.Opt("map", stream(media.Video.Index)), ffmpeg.Opt("filter:v", filter), ffmpeg.Opt("fps_mode", "passthrough"), ffmpeg.Opt("c:v", "rawvideo"), ffmpeg.Int("frames:v", count),
		}}),
		Stdout: &out, StallTimeout: e.options.stall(engine.Plan{}),
	})
	if ctx.Err() != nil {
		return 0, fmt.Errorf("measure noise: %w", context.Cause(ctx))
	}
	if err != nil && !refused(err) {
		return 0, fmt.Errorf("measure noise: %w", err)
	}
	var all []float64
	for frame := range slices.Chunk(out.Bytes(), width*height) {
		if len(frame) == width*height {
			all = append(all, noiseOf(frame, width, height))
		}
	}
	if len(all) == 0 {
		return 0, nil
	}
	slices.Sort(all)
	return all[len(all)/2], nil
}

// noiseOf estimates the standard deviation of the noise of luma by the mean size of a difference of Laplacians (Immerkaer, Fast Noise
// Variance Estimation, 1996), of blocks of 8x8: of the tenth that has least texture, whose noise seems less by a seventh than it is. Black and
// white hide noise.
func noiseOf(pixels []byte, width, height int) float64 {
	const side, black, white = 8, 18, 233
	var all []float64
	for top := 1; top+side < height; top += side {
		for left := 1; left+side < width; left += side {
			sum, light := 0, 0
			for y := top; y < top+side; y++ {
				a, b, c := pixels[(y-1)*width+left-1:][:side+2], pixels[y*width+left-1:][:side+2], pixels[(y+1)*width+left-1:][:side+2]
				for x := 1; x <= side; x++ {
					v := int(a[x-1]) - 2*int(a[x]) + int(a[x+1]) - 2*int(b[x-1]) + 4*int(b[x]) - 2*int(b[x+1]) + int(c[x-1]) - 2*int(c[x]) + int(c[x+1])
					sum += max(v, -v)
					light += int(b[x])
				}
			}
			if mean := light / (side * side); mean >= black && mean <= white {
				all = append(all, float64(sum)/(side*side)*math.Sqrt(math.Pi/2)/6)
			}
		}
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[len(all)/10] * 8 / 7
}
