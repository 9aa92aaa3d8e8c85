// Package video holds the video tools, one file each, and what they share: measuring a source, the filter graph that brings its
// frames to the output's size and rate, the encoders, the streams beside the picture, and the check of what was written. It hides
// every ffmpeg option from the rest of the engine; engine/ffmpeg runs them safely.
package video

import (
	"context"
	"errors"
	"fmt"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/neural"
)

// Options are the operator's choices; the zero value is a good service.
type Options struct {
	// H264Preset and H265Preset trade the encoder's time for the file's size: by default veryfast for H.264 and fast for H.265.
	H264Preset, H265Preset string
	// CRF is the constant quality of both encoders, 0 (lossless) to 51; by default 17, which nobody tells from the source.
	CRF int
	// Stall is how long a run may stand still before it is ended; by default 2 minutes, and 20 s more for each megapixel of the
	// output, because an encoder holds frames back before it gives the first.
	Stall time.Duration
	// Segment is how much work of one ordinary core a part of a long video should be, so that several workers can share it and a
	// crash costs no more; 0 never cuts a video.
	Segment time.Duration
	// HDR is how video_hdr makes light of standard video; by default HDRNatural.
	HDR HDRMethod
	// Neural runs the models; without it every tool uses its classical method.
	Neural *neural.Runtime
}

func (o Options) withDefaults() Options {
	if o.H264Preset == "" {
		o.H264Preset = "veryfast"
	}
	if o.H265Preset == "" {
		o.H265Preset = "fast"
	}
	if o.CRF == 0 {
		o.CRF = 17
	}
	if o.HDR == "" {
		o.HDR = HDRNatural
	}
	return o
}

// stall is the longest standstill allowed for a plan.
func (o Options) stall(p engine.Plan) time.Duration {
	if o.Stall > 0 {
		return o.Stall
	}
	return 2*time.Minute + time.Duration(p.Pixels()/1e6)*20*time.Second
}

// Tools are the video tools, in the order of the API document.
func Tools(runner *ffmpeg.Runner, options Options) []engine.Tool {
	e := &editor{runner: runner, options: options.withDefaults()}
	return []engine.Tool{e.upscale(), e.hdr(), e.faceEnhance()}
}

// editor is what every tool works with.
type editor struct {
	runner  *ffmpeg.Runner
	options Options
	known   known
	tables  tables
}

// measure reads the facts of a source file. What is no video that can be worked on is a Failure.
func (e *editor) measure(ctx context.Context, path string) (engine.Source, error) {
	media, err := e.inspected(ctx, path)
	if err != nil {
		return engine.Source{}, err
	}
	return source(media), nil
}

func source(media *ffmpeg.Media) engine.Source {
	v := media.Video
	return engine.Source{
		Width: v.Width, Height: v.Height, Frames: v.Frames, FPS: v.FPS, Duration: v.Duration,
		Size: media.Size, Format: media.Format, Codec: codecName(v.Codec), Alpha: v.Alpha, Audio: len(media.Audio) > 0,
	}
}

// dolbyVision5 is ffmpeg.Video.DolbyVision of profile 5, whose picture has no meaning without Dolby's own processing.
const dolbyVision5 = 5 + 1

// inspect probes a source and refuses what is no video.
func (e *editor) inspect(ctx context.Context, path string) (*ffmpeg.Media, error) {
	media, err := e.runner.Probe(ctx, path)
	switch {
	case errors.Is(err, ffmpeg.ErrTooManyFrames):
		return nil, engine.Failf(engine.ResolutionLimitExceeded, "The video has more frames than this server takes. Send a shorter one.").Because(err)
	case errors.Is(err, ffmpeg.ErrCodec):
		return nil, engine.Failf(engine.UnsupportedFormat,
			"The codec of the picture or of the sound is not supported. Send H.264, H.265, AV1, VP8, VP9, MPEG-2, MPEG-4 or ProRes, with any usual sound.").Because(err)
	case errors.Is(err, ffmpeg.ErrUnreadable):
		return nil, engine.Failf(engine.UnsupportedFormat,
			"The file is not a video that can be read, or it is damaged. Send MP4, MOV, MKV, WebM, AVI, MPEG, FLV, WMV, OGG or MXF.").Because(err)
	case err != nil:
		return nil, fmt.Errorf("measure video: %w", err)
	case media.Format == "picture":
		return nil, engine.Failf(engine.UnsupportedFormat, "The file is a still picture. Use an image tool.")
	case media.Video == nil && len(media.Audio) > 0:
		return nil, engine.Failf(engine.UnsupportedFormat, "The file has no video track with frames; it holds audio only.")
	case media.Video == nil:
		return nil, engine.Failf(engine.UnsupportedFormat, "The file has no video track with frames.")
	case media.Video.PixelFormat == "":
		return nil, engine.Failf(engine.UnsupportedFormat, "The video track cannot be decoded: its codec is not supported, or it is damaged.")
	case cutShort(media.Video):
		return nil, engine.Failf(engine.UnsupportedFormat, "The file is cut short: it announces %d frames and holds %d. Send the whole file.",
			media.Video.Claimed, media.Video.Frames)
	case media.Video.DolbyVision == dolbyVision5:
		return nil, engine.Failf(engine.UnsupportedFormat, "Dolby Vision profile 5 is not supported. Export the video as HDR10 or HLG.")
	}
	return media, nil
}

// cutShort says that a file breaks off behind its index: an upload that did not end, say. One frame in twenty may be missing, for
// an edit list or a careless muxer leaves some out. A container without an index cannot tell.
func cutShort(v *ffmpeg.Video) bool { return v.Claimed-v.Frames > max(3, v.Claimed/20) }

// codecName is the API's name of a codec.
func codecName(name string) string {
	if name == "hevc" {
		return "h265"
	}
	return name
}
