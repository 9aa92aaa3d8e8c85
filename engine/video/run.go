package video

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// convert runs a recipe over a task: ffmpeg decodes, filters and encodes in one process. It returns the output as measured, for the
// client and in full; on any error the output file is gone.
func (e *editor) convert(ctx context.Context, task engine.Task, r recipe) (engine.Output, *ffmpeg.Media, error) {
	var written *ffmpeg.Media
	out, err := e.encode(ctx, task, &r)
	if err == nil && r.look != nil {
		err = r.look.finish(ctx, task.Output)
	}
	if err == nil {
		written, err = e.check(ctx, task, r, &out)
	}
	if err != nil {
		if removed := os.Remove(task.Output); removed != nil && !errors.Is(removed, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove unfinished output: %w", removed))
		}
		return engine.Output{}, nil, err
	}
	if task.Progress != nil {
		task.Progress(1)
	}
	return out, written, nil
}

// encode writes the output, with the audio treated in the best way that works, which it leaves in r.
func (e *editor) encode(ctx context.Context, task engine.Task, r *recipe) (engine.Output, error) {
	input, err := filepath.Abs(task.Input)
	if err != nil {
		return engine.Output{}, fmt.Errorf("source path: %w", err)
	}
	output, err := filepath.Abs(task.Output)
	if err != nil {
		return engine.Output{}, fmt.Errorf("output path: %w", err)
	}
	if r.look != nil && r.joins == nil {
		if err := r.look.write(task.Scratch, &e.tables); err != nil {
			return engine.Output{}, err
		}
	}
	if r.frames != nil && r.frames.begin != nil {
		if err := r.frames.begin(ctx, input, r); err != nil {
			return engine.Output{}, failure(err)
		}
	}
	for {
		options, warnings := r.output()
		var frames atomic.Int64
		err := e.run(ctx, r, input, ffmpeg.Output{Path: output, Format: "mp4", Options: options}, func(n int64, _ time.Duration) {
			frames.Store(n)
			if task.Progress != nil && task.Plan.Frames > 0 {
				task.Progress(min(1, float64(n)/float64(task.Plan.Frames)))
			}
		})
		if err == nil {
			return engine.Output{Warnings: warnings}, nil
		}
		// A muxer that cannot take an audio track says so before the first frame is out.
		if !refused(err) || frames.Load() > 0 || len(r.media.Audio) == 0 || r.window.cut() || r.sound+1 == soundEnd {
			return engine.Output{}, failure(err)
		}
		r.sound++
	}
}

// arguments are those of one run of a recipe.
func (e *editor) arguments(r *recipe, input string, out ffmpeg.Output) []string {
	source := ffmpeg.Input{Path: input, Options: r.window.input(r.media.Video)}
	if r.joins != nil {
		return e.runner.JoinArgs(source, r.joins.input(), out)
	}
	outputs := []ffmpeg.Output{out}
	if r.look != nil {
		outputs = append(outputs, r.look.measured())
	}
	return e.runner.ArgsOf([]ffmpeg.Input{source}, outputs)
}

// run runs a recipe once: in one process, of which a look measures on the way, or in two with Go between them.
func (e *editor) run(ctx context.Context, r *recipe, input string, out ffmpeg.Output, progress func(int64, time.Duration)) error {
	if r.frames != nil && r.joins == nil {
		return e.pipe(ctx, r, input, out, progress)
	}
	c := ffmpeg.Command{Args: e.arguments(r, input, out), Progress: progress, StallTimeout: e.options.stall(r.plan)}
	if r.look == nil || r.joins != nil {
		return e.runner.Run(ctx, c)
	}
	return r.look.run(ctx, e.runner, r.plan, c)
}

// refused says that ffmpeg gave up by itself.
func refused(err error) bool {
	var exit *exec.ExitError
	return errors.As(err, &exit) && exit.Exited()
}

// failure says what an error of ffmpeg means: the client's file, the guard against standstill, or a fault of this machine, which
// is worth another try and stays internal.
func failure(err error) error {
	if errors.Is(err, ffmpeg.ErrStalled) || errors.Is(err, ffmpeg.ErrTimeout) {
		return engine.Failf(engine.ProcessingTimeout, "The video made no progress for too long and was stopped.").Because(err)
	}
	var exit *exec.ExitError
	var failed *ffmpeg.Error
	if !errors.As(err, &exit) || !errors.As(err, &failed) {
		return fmt.Errorf("encode video: %w", err)
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return fmt.Errorf("encode video: ffmpeg was killed, as by a lack of memory: %w", err)
	}
	for _, fault := range []string{"No space left on device", "Cannot allocate memory", "Input/output error", "Read-only file system"} {
		if strings.Contains(failed.Tail, fault) {
			return fmt.Errorf("encode video: %w", err)
		}
	}
	return engine.Failf(engine.ProcessingFailed, "The video could not be processed; it may be damaged.").Because(err)
}

// check measures the written file and compares it with the plan and with the frames that were counted in the source.
func (e *editor) check(ctx context.Context, task engine.Task, r recipe, out *engine.Output) (*ffmpeg.Media, error) {
	written, err := e.runner.Probe(ctx, task.Output)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("measure output: %w", context.Cause(ctx))
	}
	if err != nil || written.Video == nil {
		return nil, engine.Failf(engine.ProcessingFailed, "No frame of the video could be decoded.").Because(err)
	}
	v, source := written.Video, r.media.Video
	if v.Width != r.plan.Width || v.Height != r.plan.Height || v.Rotation != 0 {
		return nil, fmt.Errorf("output is %dx%d turned by %d, planned %dx%d", v.Width, v.Height, v.Rotation, r.plan.Width, r.plan.Height)
	}
	if r.look != nil {
		if err := r.look.verify(v); err != nil {
			return nil, err
		}
	}
	expected := source.Frames
	if r.pace != paceKept {
		expected = r.plan.Frames
	}
	if lost := expected - v.Frames; lost > spare(source, expected) {
		return nil, engine.Failf(engine.ProcessingFailed, "The video is damaged: about %d of its %d frames could not be decoded.",
			min(source.Frames, lost*source.Frames/expected), source.Frames)
	} else if lost > 0 && !hidesFrames(source) {
		out.Warnings = append(out.Warnings, fmt.Sprintf("%d of %d frames could not be decoded and are missing.", lost, expected))
	}
	out.Width, out.Height, out.Duration, out.Size, out.Codec = v.Width, v.Height, v.Duration, written.Size, codecName(v.Codec)
	out.Facts = r.facts(v, len(written.Audio))
	return written, nil
}

// spare is how many frames may be missing before a result is no longer one: a few, or one in a hundred.
func spare(v *ffmpeg.Video, frames int64) int64 {
	if hidesFrames(v) {
		return frames/2 + 1
	}
	return max(3, frames/100)
}

// hidesFrames says that packets may rightly outnumber frames: VP8 has frames that are never shown, and interlaced video may put
// each field into a packet.
func hidesFrames(v *ffmpeg.Video) bool { return v.Codec == "vp8" || v.Interlaced }

// facts are what a client may like to know of how the output came about.
func (r recipe) facts(written *ffmpeg.Video, tracks int) map[string]any {
	facts := map[string]any{
		"method": "lanczos", "frames": written.Frames, "fps": written.FPS, "fps_method": string(r.pace), "audio_tracks": tracks,
		"bit_depth": written.BitDepth,
	}
	if r.look != nil {
		r.look.facts(facts)
	}
	switch r.media.Video.Transfer {
	case "smpte2084":
		facts["hdr"] = "pq"
	case "arib-std-b67":
		facts["hdr"] = "hlg"
	}
	if r.media.Video.Interlaced {
		facts["deinterlaced"] = true
	}
	if r.frames != nil {
		maps.Copy(facts, r.frames.facts)
	}
	return facts
}
