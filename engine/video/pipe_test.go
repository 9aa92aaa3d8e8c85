package video

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// piped runs a recipe over a file, with Go between two processes when f is not nil.
func (k *kit) piped(t testing.TB, ctx context.Context, path string, c UpscaleConfig, f *frames) (result, error) {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	media, err := k.editor.inspect(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	r := result{source: source(media)}
	spec, err := k.catalog.Order("video_upscale", marshal(t, c), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.plan, err = spec.Plan(r.source); err != nil {
		t.Fatal(err)
	}
	recipe := k.editor.recipe(c, media, r.plan)
	recipe.frames = f
	r.out, r.written, err = k.editor.convert(ctx, r.task(t, path), recipe)
	return r, err
}

// untouched are frames that come out as they went in.
func untouched() *frames {
	return &frames{workers: 2, work: func(context.Context, *frame) error { return nil }}
}

// TestPipeIsOneProcess compares files written through the pipe, with frames that nobody changes, with those of one process: the tracks,
// the time and the length of every packet, and every decoded frame.
func TestPipeIsOneProcess(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	tone := lavfi("sine=440:d=0.4")
	for _, c := range []struct {
		name, file string
		config     UpscaleConfig
		make       []string
		change     func(t *testing.T, path string) string
		// near says that the frames need not be equal, but nearly so: they are converted elsewhere on the way.
		near bool
	}{
		{name: "even rate", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.4")), x264, sd)},
		{name: "12.5 frames a second, B-frames", file: "a.mp4", make: args(lavfi(smooth("64x48", "25/2", "0.8")), []string{"-c:v", "libx264", "-bf", "3"}, sd)},
		{name: "broadcast rate", file: "a.mov", make: args(lavfi(smooth("64x48", "30000/1001", "0.4")), x264, sd)},
		{name: "variable rate", file: "a.mp4", make: args(variable, x264, sd)},
		{name: "variable rate in milliseconds", file: "a.mkv", make: args(variable, x264, sd)},
		{name: "edit list", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.8")), lavfi("sine=440:d=0.8"), []string{"-c:v", "libx264", "-bf", "2", "-g", "5", "-c:a", "aac"}), change: trimmed},
		{name: "turned by 90", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.2")+",setsar=16/11"), x264, sd), change: func(t *testing.T, path string) string { return rotated(t, path, "90") }},
		{name: "turned by 270", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.2")), x264, sd), change: func(t *testing.T, path string) string { return rotated(t, path, "270") }},
		{name: "odd size", file: "a.mkv", make: args(lavfi(smooth("66x50", "25", "0.2")+",format=yuv420p,crop=65:49:exact=1"), []string{"-c:v", "ffv1"}, sd)},
		{name: "4:4:4, full range", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuv444p,scale=out_range=pc,format=yuvj444p"), x264, sd)},
		{name: "full range", file: "a.avi", make: args(lavfi(smooth("64x48", "25", "0.2")), []string{"-pix_fmt", "yuvj420p", "-c:v", "mjpeg", "-q:v", "2"})},
		{name: "4:2:2 of 10 bits", file: "a.mov", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuv422p10le"), []string{"-c:v", "prores_ks"}, sd)},
		{name: "10 bits", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuv420p10le"), x265, sd)},
		{name: "transparent, 12 bits", file: "a.mov", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuva444p10le"), []string{"-c:v", "prores_ks", "-profile:v", "4444"}, sd), near: true},
		{name: "RGB", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=gbrp"), []string{"-c:v", "ffv1"})},
		{name: "grey of 16 bits", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=gray16le"), []string{"-c:v", "ffv1"})},
		{name: "packed 4:2:2", file: "a.avi", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuyv422"), []string{"-c:v", "rawvideo"})},
		{name: "interlaced", file: "a.mp4", make: args(lavfi(smooth("64x48", "50", "0.4")+",tinterlace=mode=interleave_top,fieldorder=tff"), x264, []string{"-flags", "+ilme+ildct"})},
		{name: "late picture, three tracks", file: "a.mkv", make: args([]string{"-itsoffset", "0.3"}, lavfi(smooth("64x48", "25", "0.4")), tone, lavfi("sine=660:d=0.5"), x264, []string{"-map", "0", "-map", "1", "-map", "2", "-c:a:0", "aac", "-c:a:1", "flac"})},
		{name: "late sound", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.4")), []string{"-itsoffset", "0.3"}, tone, x264, []string{"-c:a", "aac"})},
		{name: "transport stream", file: "a.ts", make: args([]string{"-itsoffset", "0.2"}, lavfi(smooth("64x48", "25", "0.4")), tone, []string{"-map", "0", "-map", "1", "-c:v", "libx264", "-c:a", "aac"})},
		{name: "program stream", file: "a.mpg", make: args(lavfi(smooth("64x48", "25", "0.4")), tone, []string{"-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2"})},
		{name: "faster", file: "a.mp4", config: UpscaleConfig{FPS: 50}, make: args(lavfi(smooth("64x48", "25", "0.4")), tone, x264, []string{"-c:a", "aac"})},
		{name: "slower, of a variable rate", file: "a.mp4", config: UpscaleConfig{FPS: 12}, make: args(variable, x264)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, c.file, c.make...)
			if c.change != nil {
				source = c.change(t, source)
			}
			c.config.Scale = 2
			one, err := k.piped(t, t.Context(), source, c.config, nil)
			if err != nil {
				t.Fatal(err)
			}
			two, err := k.piped(t, t.Context(), source, c.config, untouched())
			if err != nil {
				t.Fatal(err)
			}
			sameFile(t, one.path, two.path, c.near)
		})
	}
}

// trimmed cuts the beginning of a clip off between key frames without touching its frames, which only an edit list can say.
func trimmed(t *testing.T, path string) string {
	t.Helper()
	return clip(t, "trimmed.mp4", "-ss", "0.09", "-i", path, "-c", "copy")
}

// lastLength is the length of the last packet of a file, which one process takes from the nominal rate.
var lastLength = regexp.MustCompile(`duration=[0-9.]+(\|flags=\S*\s*)$`)

// sameFile compares two files by their tracks, packets and decoded frames.
func sameFile(t *testing.T, one, two string, near bool) {
	t.Helper()
	for _, look := range [][]string{
		{"-show_entries", "stream=codec_name,profile,width,height,pix_fmt,sample_aspect_ratio,color_range,color_space,color_transfer,color_primaries,time_base,r_frame_rate,start_time:stream_side_data=displaymatrix:stream_tags=language:chapter=start,end", "-show_chapters"},
		{"-show_entries", "packet=stream_index,pts,duration,flags"},
	} {
		read := func(path string) string {
			return lastLength.ReplaceAllString(string(probeRun(t, append(look, "-of", "compact", path)...)), "$1")
		}
		if a, b := read(one), read(two); a != b {
			t.Errorf("one process:\n%s\nthrough the pipe:\n%s", a, b)
		}
	}
	if near {
		samePictures(t, one, two, 64, 48, 40)
		return
	}
	read := func(path string) string {
		return string(ffmpegRun(t, "-i", path, "-map", "0:v", "-f", "framehash", "-hash", "adler32", "-"))
	}
	if a, b := read(one), read(two); a != b {
		t.Errorf("one process:\n%s\nthrough the pipe:\n%s", a, b)
	}
}

func marshal(t testing.TB, v any) json.RawMessage {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestPipeGivesFramesInOrder looks at what look and work are shown, and when; and that what work changes is what comes out.
func TestPipeGivesFramesInOrder(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	const count, ahead, workers = 24, 4, 3
	source := clip(t, "a.mkv", args([]string{"-itsoffset", "0.2"}, lavfi("color=c=0x404040:s=64x48:r=25:d=0.96"), lavfi("sine=440:d=1.2"), x264, sd, []string{"-map", "0", "-map", "1", "-c:a", "aac"})...)
	var mu sync.Mutex
	var looked int64
	memories := map[*byte]bool{}
	f := &frames{
		ahead: ahead, workers: workers,
		look: func(_ context.Context, f *frame) error {
			mu.Lock()
			defer mu.Unlock()
			// The file begins with the sound, which AAC begins 1,024 samples of 44.1 kHz early.
			if at := 0.2 + 1024.0/44100 + float64(f.index)/25; f.index != looked || f.note != nil || math.Abs(f.at-at) > 0.0011 {
				t.Errorf("frame %d at %.4f s with %v, after %d others", f.index, f.at, f.note, looked)
			}
			looked, f.note = looked+1, f.index
			memories[&f.memory[0]] = true
			return nil
		},
		work: func(_ context.Context, f *frame) error {
			mu.Lock()
			defer mu.Unlock()
			if f.note != f.index || looked < min(count, f.index+1+ahead) {
				t.Errorf("frame %d with %v comes to work when %d were looked at", f.index, f.note, looked)
			}
			luma := f.planes[0]
			if luma.width != 64 || luma.height != 48 || len(luma.pixels) != 64*48 || f.planes[1].width != 32 || len(f.planes[2].pixels) != 32*24 || luma.pixels[100] != 71 {
				t.Errorf("frame %d has planes of %d and %d, luma %d", f.index, len(luma.pixels), len(f.planes[1].pixels), luma.pixels[100])
			}
			for i := range luma.pixels {
				luma.pixels[i] = byte(100 + 4*f.index)
			}
			return nil
		},
	}
	r, err := k.piped(t, t.Context(), source, UpscaleConfig{Scale: 2}, f)
	if err != nil {
		t.Fatal(err)
	}
	if looked != count || len(memories) > f.held() {
		t.Errorf("%d frames in %d memories, want %d in at most %d", looked, len(memories), count, f.held())
	}
	pixels := ffmpegRun(t, "-i", r.path, "-vf", "extractplanes=y", "-fps_mode", "passthrough", "-f", "rawvideo", "-")
	for i := range count {
		if got, want := int(pixels[i*128*96+5000]), 100+4*i; got < want-1 || got > want+1 {
			t.Errorf("frame %d comes out with luma %d, want %d", i, got, want)
		}
	}
}

// TestPipeEnds ends a run from each place, and looks for what is left of it.
func TestPipeEnds(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	cause := errors.New("the lease is lost")
	broken := errors.New("the net is broken")
	for _, c := range []struct {
		name   string
		cancel bool
		look   func(*frame) error
		work   func(*frame) error
		want   error
		words  string
	}{
		{name: "cancelled", cancel: true, want: cause},
		{name: "work fails", work: func(f *frame) error {
			if f.index == 7 {
				return broken
			}
			return nil
		}, want: broken, words: "frame 7"},
		{name: "look fails", look: func(f *frame) error {
			if f.index == 3 {
				return broken
			}
			return nil
		}, want: broken, words: "frame 3"},
		{name: "work panics", work: func(*frame) error { panic("out of range") }, words: "out of range"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, "a.mp4", args(lavfi(smooth("64x48", "25", "2")), lavfi("sine=440:d=2"), x264, []string{"-c:a", "aac"})...)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			var cancelled atomic.Int64
			f := &frames{workers: 2, ahead: 1, look: func(_ context.Context, f *frame) error {
				if c.look != nil {
					return c.look(f)
				}
				return nil
			}, work: func(ctx context.Context, f *frame) error {
				switch {
				case c.cancel && f.index == 5:
					cancelled.Store(time.Now().UnixNano())
					cancel(cause)
					<-ctx.Done()
					return context.Cause(ctx)
				case c.work != nil:
					return c.work(f)
				}
				return nil
			}}
			r, err := k.piped(t, ctx, source, UpscaleConfig{Scale: 2}, f)
			if took := time.Since(time.Unix(0, cancelled.Load())); c.cancel && took > 5*time.Second {
				t.Errorf("the run took %v to end", took)
			}
			if err == nil || (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.words) {
				t.Errorf("error %v", err)
			}
			if _, told := engine.AsFailure(err); told {
				t.Errorf("the client is told of %v", err)
			}
			if _, err := os.Stat(r.path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("an output is left: %v", err)
			}
			names, err := filepath.Glob("/proc/[0-9]*/cmdline")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range names {
				if text, _ := os.ReadFile(name); strings.Contains(string(text), filepath.Dir(source)) {
					t.Errorf("a process is left: %s", strings.ReplaceAll(string(text), "\x00", " "))
				}
			}
		})
	}
}

// TestPipeOfDamagedFrames loses the same frames as one process does.
func TestPipeOfDamagedFrames(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	source := clip(t, "a.mkv", args(lavfi(smooth("64x48", "25", "1")), []string{"-c:v", "mjpeg", "-q:v", "4"})...)
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	// Half a frame's data, so that its header goes too.
	copy(text[len(text)/2:], make([]byte, len(text)/40))
	if err := os.WriteFile(source, text, 0o600); err != nil {
		t.Fatal(err)
	}
	one, err := k.piped(t, t.Context(), source, UpscaleConfig{Scale: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.piped(t, t.Context(), source, UpscaleConfig{Scale: 2}, untouched())
	if err != nil {
		t.Fatal(err)
	}
	if one.written.Video.Frames != two.written.Video.Frames || one.written.Video.Duration != two.written.Video.Duration {
		t.Errorf("%d frames in %.3f s, one process has %d in %.3f s", two.written.Video.Frames, two.written.Video.Duration, one.written.Video.Frames, one.written.Video.Duration)
	}
}

// TestPipeOfAChangingSize joins two transport streams of different sizes.
func TestPipeOfAChangingSize(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	var joined []byte
	for _, size := range []string{"64x48", "96x80"} {
		part, err := os.ReadFile(clip(t, "a.ts", args(lavfi(smooth(size, "25", "0.4")), []string{"-c:v", "mpeg2video", "-q:v", "2"})...))
		if err != nil {
			t.Fatal(err)
		}
		joined = append(joined, part...)
	}
	source := filepath.Join(t.TempDir(), "joined.ts")
	if err := os.WriteFile(source, joined, 0o600); err != nil {
		t.Fatal(err)
	}
	one, err := k.piped(t, t.Context(), source, UpscaleConfig{Scale: 2}, nil)
	if err != nil {
		t.Fatal(err)
	}
	two, err := k.piped(t, t.Context(), source, UpscaleConfig{Scale: 2}, untouched())
	if err != nil {
		t.Fatal(err)
	}
	if a, b := one.written.Video, two.written.Video; a.Frames != b.Frames || b.Width != 128 || b.Height != 96 {
		t.Errorf("%d frames of %dx%d, one process has %d", b.Frames, b.Width, b.Height, a.Frames)
	}
}

// TestPipeOfAWindow makes a part of a clip in both ways.
func TestPipeOfAWindow(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	source := clip(t, "a.mp4", args(lavfi(smooth("64x48", "25", "1.2")), lavfi("sine=440:d=1.2"), []string{"-c:v", "libx264", "-g", "5", "-bf", "2", "-c:a", "aac"})...)
	media, err := k.editor.inspect(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	unit := media.Video.Unit
	at := func(frame int64) int64 { return frame * unit.Den / (25 * unit.Num) }
	seek := at(5)
	plan := engine.Plan{Tool: "video_upscale", Media: engine.Video, Width: 128, Height: 96, Frames: 10, FPS: 25, Duration: 0.4, Format: "mp4"}
	made := map[bool]string{}
	for _, pipe := range []bool{false, true} {
		r := k.editor.recipe(UpscaleConfig{Scale: 2}, media, plan)
		r.window = window{From: at(10), To: at(20), Seek: &seek}
		if pipe {
			r.frames = untouched()
		}
		made[pipe] = filepath.Join(t.TempDir(), "part.mp4")
		if _, err := k.editor.encode(t.Context(), engine.Task{Plan: plan, Input: source, Output: made[pipe]}, &r); err != nil {
			t.Fatal(err)
		}
	}
	if n := strings.Count(string(probeRun(t, "-show_entries", "packet=pts", "-of", "csv", made[true])), "packet"); n != 10 {
		t.Errorf("%d frames, want 10", n)
	}
	sameFile(t, made[false], made[true], false)
}

func FuzzReadTimes(f *testing.F) {
	f.Add("frame:0    pts:512     pts_time:0.04\nenlarger=1\nframe:1    pts:NOPTS   pts_time:NOPTS\n")
	f.Add("frame:\nframe: pts:\nframe: pts:99999999999999999999 \n")
	f.Fuzz(func(t *testing.T, text string) {
		times := make(chan int64, 1+strings.Count(text, "\n"))
		err := readTimes(t.Context(), strings.NewReader(text), times)
		if n := strings.Count(text, "frame:"); len(times) > n {
			t.Errorf("%d times of %d frames, %v", len(times), n, err)
		}
	})
}

func TestReadTimes(t *testing.T) {
	t.Parallel()
	times := make(chan int64, 3)
	err := readTimes(t.Context(), strings.NewReader("frame:0    pts:-512    pts_time:-0.04\nenlarger=1\nframe:1    pts:NOPTS   pts_time:NOPTS\nenlarger=1\nframe:12   pts:7 pts_time:1\n"), times)
	if a, b, c := <-times, <-times, <-times; err != nil || a != -512 || b != math.MinInt64 || c != 7 {
		t.Errorf("%d, %d, %d, %v", a, b, c, err)
	}
	if err := readTimes(t.Context(), strings.NewReader("frame:0 pts:x y\n"), times); err == nil {
		t.Error("a time that is none was taken")
	}
}

func TestNanoseconds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ time, num, den, want int64 }{
		{0, 1, 25, 0},
		{1, 1, 25, 40_000_000},
		{-1, 1, 25, -40_000_000},
		{1001, 1, 30000, 33_366_667},
		{100, 1001, 30000, 3_336_666_667},
		{36000 * 23040000, 1, 23040000, 36_000_000_000_000},
		{7, 1, 1_000_000_000, 7},
		{36000 * 1_000_000_000, 1, 1_000_000_000, 36_000_000_000_000},
	} {
		if got := nanoseconds(c.time, ffmpeg.Ratio{Num: c.num, Den: c.den}); got != c.want {
			t.Errorf("%d of %d/%d s are %d ns, want %d", c.time, c.num, c.den, got, c.want)
		}
	}
}

func TestFrameLayout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		format string
		bits   int
		want   string
		bytes  int
	}{
		{"yuv420p", 8, "yuv420p", 5*3 + 2*3*2}, {"yuvj420p", 8, "yuv420p", 5*3 + 2*3*2}, {"nv12", 8, "yuv420p", 5*3 + 2*3*2}, {"yuv420p10le", 10, "yuv420p10le", 2 * (5*3 + 2*3*2)},
		{"p010le", 10, "yuv420p10le", 2 * (5*3 + 2*3*2)}, {"yuva420p", 8, "yuv420p", 5*3 + 2*3*2}, {"yuyv422", 8, "yuv422p", 5*3 + 2*3*3}, {"yuv411p", 8, "yuv422p", 5*3 + 2*3*3},
		{"yuv440p", 8, "yuv444p", 45}, {"yuva444p12le", 12, "yuv444p10le", 90}, {"gbrp", 8, "yuv444p", 45}, {"gray16le", 16, "yuv444p10le", 90}, {"pal8", 8, "yuv444p", 45},
	} {
		l := frameLayout(&ffmpeg.Video{Width: 5, Height: 3, PixelFormat: c.format, BitDepth: c.bits})
		if l.name != c.want || l.bytes() != c.bytes || len(l.fourcc) != 4 {
			t.Errorf("%s: %s of %d bytes, marked %q", c.format, l.name, l.bytes(), l.fourcc)
		}
	}
}
