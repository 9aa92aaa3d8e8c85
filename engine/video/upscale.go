package video

import (
	"context"
	"errors"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// UpscaleConfig is the config of video_upscale.
type UpscaleConfig struct {
	Scale int `json:"scale" doc:"How many times larger each side becomes." enum:"2,4"`
	// FPS 0 keeps the source's rate.
	FPS float64 `json:"fps,omitempty" doc:"Frame rate of the output in frames a second; the source's when left out. A higher rate is made by motion interpolation." min:"1" max:"120"`
}

// upscale enlarges every frame, and changes the frame rate when asked.
func (e *editor) upscale() engine.Tool {
	return engine.Define(engine.Spec[UpscaleConfig]{
		Name:     "video_upscale",
		Media:    engine.Video,
		Doc:      "Enlarges a video 2 or 4 times and can change its frame rate. The result is MP4: H.264, or 10-bit H.265 for sources of more than 8 bits and HDR.",
		Defaults: UpscaleConfig{Scale: 2},
		Examples: []UpscaleConfig{{Scale: 2}, {Scale: 4}, {Scale: 2, FPS: 60}, {Scale: 2, FPS: 23.976}},
		Bad:      []string{`{"scale": 3}`, `{"scale": "2"}`, `{"scale": 8}`, `{"fps": 0}`, `{"fps": 121}`, `{"fps": "60"}`, `{"scale": 2.5}`},
		Size: func(c UpscaleConfig, s engine.Source) (int, int) {
			return s.Width * c.Scale, s.Height * c.Scale
		},
		FPS:     func(c UpscaleConfig, _ engine.Source) float64 { return c.FPS },
		Measure: e.measure,
		Memory:  e.upscaleMemory,
		Process: func(ctx context.Context, c UpscaleConfig, task engine.Task) (engine.Output, error) {
			if !task.Plan.Known() || task.Plan.Frames == 0 {
				return engine.Output{}, errors.New("video_upscale: the plan was made without measuring the source")
			}
			media, err := e.inspected(ctx, task.Input)
			if err != nil {
				return engine.Output{}, err
			}
			out, _, err := e.convert(ctx, task, e.recipe(c, media, task.Plan))
			return out, err
		},
		Parts: parted(e, e.upscaleEffort(), e.recipe),
	})
}

func (e *editor) recipe(c UpscaleConfig, media *ffmpeg.Media, plan engine.Plan) recipe {
	r := recipe{media: media, plan: plan, options: e.options, threads: e.runner.Threads(), pace: choosePacing(media.Video, c.FPS)}
	if n := e.options.netUpscaler(c.Scale); n != nil {
		r.frames = n.frames(media.Video, e.options.Neural.Threads())
		r.frames.begin = e.chooseShare
	}
	return r
}

// upscaleMemory estimates the peak of a run: the encoder's process, and where models work on the frames, that of the decoder and
// what this process holds.
func (e *editor) upscaleMemory(c UpscaleConfig, task engine.Task) int64 {
	need := e.memory(task)
	if n := e.options.netUpscaler(c.Scale); n != nil {
		threads := e.options.Neural.Threads()
		v := &ffmpeg.Video{Width: task.Source.Width, Height: task.Source.Height, BitDepth: 10}
		need += n.memory(task.Source, threads) + n.frames(v, threads).memory(v, task.Plan)
	}
	return need
}

// memory estimates the peak of one ffmpeg run. Encoders hold many output frames back, and more with more threads; decoders and
// filters hold some source frames. Measured at 2560x1440: x264 veryfast takes 416 MB with 2 threads and 935 MB with 16, x265 fast
// in 10 bits 1,040 MB with 2. A source does not say whether the output has 10 bits, so each pixel is counted with the 3 bytes of that.
func (e *editor) memory(task engine.Task) int64 {
	const base, inFrames = 100 << 20, 30
	outFrames := int64(90 + 4*e.runner.Threads())
	return base + 3*outFrames*task.Plan.Pixels() + 3*inFrames*int64(task.Source.Width)*int64(task.Source.Height)
}
