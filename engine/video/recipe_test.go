package video

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestChoosePacing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fps  float64
		v    ffmpeg.Video
		want pacing
	}{
		{0, ffmpeg.Video{FPS: 25}, paceKept},
		{25, ffmpeg.Video{FPS: 25}, paceKept},
		{29.97, ffmpeg.Video{FPS: 30000.0 / 1001}, paceKept},
		{25, ffmpeg.Video{FPS: 25, VariableRate: true}, paceEven},
		{30, ffmpeg.Video{FPS: 30000.0 / 1001, BitDepth: 8, Width: 64, Height: 64}, paceMotion},
		{24, ffmpeg.Video{FPS: 25}, paceEven},
		{50, ffmpeg.Video{FPS: 25, BitDepth: 8, Width: 64, Height: 64}, paceMotion},
		{50, ffmpeg.Video{FPS: 25, BitDepth: 8, Width: 64, Height: 31}, paceBlend},
		{50, ffmpeg.Video{FPS: 25, BitDepth: 10, Width: 64, Height: 64}, paceBlend},
	} {
		if got := choosePacing(&c.v, c.fps); got != c.want {
			t.Errorf("%v of %+v: %s, want %s", c.fps, c.v, got, c.want)
		}
	}
}

func TestRate(t *testing.T) {
	t.Parallel()
	for fps, want := range map[float64]string{
		24: "24000/1000", 23.976: "24000/1001", 23.98: "24000/1001", 29.97: "30000/1001", 59.94: "60000/1001", 60: "60000/1000", 119.88: "120000/1001", 12.5: "12500/1000", 1: "1000/1000", 120: "120000/1000",
	} {
		if got := rate(fps); got != want {
			t.Errorf("%v: %s, want %s", fps, got, want)
		}
	}
}

// TestGraphTakesNoForeignText gives a file's words to the graph: none may come out.
func TestGraphTakesNoForeignText(t *testing.T) {
	t.Parallel()
	evil := "x,movie=/etc/passwd[out];"
	v := &ffmpeg.Video{Width: 64, Height: 48, FPS: 25, PixelFormat: "yuv420p", BitDepth: 8, Primaries: evil, Transfer: evil, Matrix: evil, Range: evil, Codec: evil}
	plan := engine.Plan{Width: 128, Height: 96, FPS: 25, Frames: 10}
	for _, format := range []string{"yuv420p", evil} {
		v.PixelFormat = format
		if got := graph(v, plan, paceEven); strings.Contains(got, "movie") || strings.Contains(got, ";") {
			t.Errorf("graph %s", got)
		}
	}
}

func TestRecipeStreams(t *testing.T) {
	t.Parallel()
	r := recipe{
		media: &ffmpeg.Media{
			Video: &ffmpeg.Video{Index: 3, Width: 64, Height: 48, FPS: 25, PixelFormat: "yuv420p", BitDepth: 8, DolbyVision: 9},
			Audio: []ffmpeg.Audio{
				{Index: 0, Codec: "aac", Channels: 2, SampleRate: 48000},
				{Index: 1, Codec: "mp3", Channels: 1, SampleRate: 8000},
				{Index: 2, Codec: "truehd", Channels: 12, SampleRate: 48000},
				{Index: 4, Codec: "aac"},
			},
			Subtitles: []ffmpeg.Subtitle{{Index: 5, Codec: "hdmv_pgs_subtitle"}, {Index: 6, Codec: "ass", Text: true}},
			Title:     "T",
		},
		plan: engine.Plan{Width: 128, Height: 96, FPS: 25, Frames: 10}, options: Options{}.withDefaults(), pace: paceKept,
	}
	options, warnings := r.output()
	has := func(name, value string) bool { return slices.Contains(options, ffmpeg.Opt(name, value)) }
	for _, want := range [][2]string{
		{"map", "0:3"},
		{"map", "0:0"},
		{"map", "0:1"},
		{"map", "0:2"},
		{"map", "0:4"},
		{"map", "0:6"},
		{"c:a:0", "copy"},
		{"c:a:1", "aac"},
		{"b:a:1", "96k"},
		{"c:a:2", "aac"},
		{"b:a:2", "576k"},
		{"ac:a:2", "2"},
		{"c:a:3", "aac"},
		{"c:s", "mov_text"},
		{"metadata", "title=T"},
		{"map_metadata:g", "-1"},
		{"enc_time_base", "-1"},
		{"c:v", "libx264"},
		{"preset:v", "veryfast"},
		{"crf:v", "17"},
		{"movflags", "+faststart"},
	} {
		if !has(want[0], want[1]) {
			t.Errorf("no -%s %s in %v", want[0], want[1], options)
		}
	}
	if has("map", "0:5") || len(warnings) != 2 || !strings.Contains(warnings[0], "1 subtitle track") || !strings.Contains(warnings[1], "Dolby Vision") {
		t.Errorf("warnings %q, options %v", warnings, options)
	}
	r.sound = soundDropped
	options, warnings = r.output()
	if has("map", "0:0") || !strings.Contains(warnings[0], "sound") {
		t.Errorf("warnings %q, options %v", warnings, options)
	}
	r.media.Audio = make([]ffmpeg.Audio, 40)
	r.sound = soundCopied
	if options, warnings = r.output(); !strings.Contains(warnings[0], "first 16 audio") || has("c:a:16", "aac") {
		t.Errorf("warnings %q", warnings)
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	exit := func(shell string) error { return exec.Command("sh", "-c", shell).Run() }
	for _, c := range []struct {
		name string
		err  error
		want engine.Code
	}{
		{"stalled", &ffmpeg.Error{Reason: ffmpeg.ErrStalled}, engine.ProcessingTimeout},
		{"gave up", &ffmpeg.Error{Reason: exit("exit 1"), Tail: "Invalid data"}, engine.ProcessingFailed},
		{"crashed", &ffmpeg.Error{Reason: exit("kill -SEGV $$")}, engine.ProcessingFailed},
		{"killed for memory", &ffmpeg.Error{Reason: exit("kill -KILL $$")}, ""},
		{"disk full", &ffmpeg.Error{Reason: exit("exit 1"), Tail: "av_interleaved_write_frame(): No space left on device"}, ""},
		{"not started", errors.New("fork: resource temporarily unavailable"), ""},
	} {
		f, ok := engine.AsFailure(failure(fmt.Errorf("wrapped: %w", c.err)))
		if ok != (c.want != "") || (ok && f.Code != c.want) {
			t.Errorf("%s: %v", c.name, f)
		}
	}
}

func TestStallGrowsWithTheOutput(t *testing.T) {
	t.Parallel()
	if got := (Options{}).stall(engine.Plan{Width: 192, Height: 128}); got != 2*time.Minute {
		t.Errorf("small: %v", got)
	}
	if got := (Options{}).stall(engine.Plan{Width: 4096, Height: 2160}); got != 2*time.Minute+160*time.Second {
		t.Errorf("large: %v", got)
	}
	if got := (Options{Stall: time.Second}).stall(engine.Plan{Width: 4096, Height: 2160}); got != time.Second {
		t.Errorf("set: %v", got)
	}
}
