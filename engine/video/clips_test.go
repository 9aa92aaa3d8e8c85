package video

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// TestSampleClips runs every clip of the sample media. Long ones are cut to their first part without touching their frames.
func TestSampleClips(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(samples(t), "clips")
	k := newKit(t)
	type want struct {
		w, h   int
		frames int64
		codec  string
		audio  int
		// cut keeps only so many seconds.
		cut string
		// failure is what the job ends with instead.
		failure engine.Code
	}
	table := map[string]want{
		"3gp__bbb_176x144_128kbps_15fps_h263.3gp":                   {w: 352, h: 288, frames: 15, codec: "h264"},
		"avi__sample.avi":                                           {w: 1920, h: 800, codec: "h264", audio: 1, cut: "0.4"},
		"cockatoo_yuv420.mp4":                                       {w: 2560, h: 1440, codec: "h264", cut: "0.2"},
		"mkv__bbb_642x642_768kbps_30fps_vp9.webm":                   {w: 1284, h: 1284, codec: "h264", cut: "0.4"},
		"mkv__sample_with_srt.mkv":                                  {w: 2160, h: 1440, frames: 30, codec: "h264", audio: 1},
		"mp4__bbb_176x144_192kbps_15fps_mpeg4.mp4":                  {w: 352, h: 288, frames: 15, codec: "h264"},
		"mp4__bt601.mp4":                                            {w: 720, h: 480, frames: 30, codec: "h264", audio: 1},
		"mp4__h265_bframes.mp4":                                     {w: 1708, h: 960, frames: 30, codec: "h264"},
		"mp4__hdr10-av1.mp4":                                        {w: 1440, h: 2560, codec: "h265", audio: 1, cut: "0.15"},
		"mp4__hlg10-color-test.mp4":                                 {w: 3840, h: 2160, frames: 9, codec: "h265", audio: 1},
		"mp4__internal_emulator_transformer_output_270_rotated.mp4": {w: 1440, h: 2560, codec: "h264", audio: 1, cut: "0.2"},
		"mp4__long_4k_av1.mp4":                                      {failure: engine.ResolutionLimitExceeded},
		"mp4__sample_12_5fps_720p_1s.mp4":                           {w: 2560, h: 1440, frames: 13, codec: "h264", audio: 1},
		"mp4__sample_audio_only.mp4":                                {failure: engine.UnsupportedFormat},
		"mp4__sample_edit_list_only_preroll_sync_sample.mp4":        {w: 1280, h: 720, frames: 16, codec: "h264", audio: 1},
		"mp4__sample_empty_track.mp4":                               {w: 2160, h: 1440, frames: 30, codec: "h264", audio: 1},
		"mp4__sample_fragmented.mp4":                                {w: 2160, h: 1440, frames: 30, codec: "h264", audio: 1},
		"short_hamilton_clip.mp4":                                   {w: 1280, h: 720, codec: "h264", audio: 1, cut: "1"},
		"vp9__bear-vp9-odd-dimensions.webm":                         {w: 322, h: 242, frames: 30, codec: "h264"},
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		t.Run(file.Name(), func(t *testing.T) {
			t.Parallel()
			w, ok := table[file.Name()]
			if !ok {
				t.Fatal("a clip that this table does not know")
			}
			path := filepath.Join(dir, file.Name())
			if w.failure != "" {
				_, err := k.job(t, path, `{}`)
				wantFailure(t, err, w.failure)
				return
			}
			if w.cut != "" {
				path = clip(t, "cut"+filepath.Ext(path), "-i", path, "-t", w.cut, "-map", "0:v:0", "-map", "0:a?", "-c", "copy")
			}
			r, m := k.must(t, path, `{}`)
			v := m.Video
			if v.Width != w.w || v.Height != w.h || r.out.Codec != w.codec || len(m.Audio) != w.audio {
				t.Errorf("%dx%d %s, %d audio tracks; want %+v", v.Width, v.Height, r.out.Codec, len(m.Audio), w)
			}
			if w.cut == "" && v.Frames != w.frames {
				t.Errorf("%d frames, want %d", v.Frames, w.frames)
			}
			sameTags(t, k, path, v)
			sameStarts(t, path, r.path)
			if w.cut == "" && v.Width < 2000 {
				samePictures(t, path, r.path, 64, 64, 30)
			}
		})
	}
}

// sameTags compares the colour tags that the source has.
func sameTags(t *testing.T, k *kit, source string, v *ffmpeg.Video) {
	t.Helper()
	media, err := k.runner.Probe(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	s := media.Video
	for _, tag := range [][2]string{{s.Primaries, v.Primaries}, {s.Transfer, v.Transfer}, {s.Matrix, v.Matrix}, {s.Range, v.Range}} {
		if tag[0] != "" && tag[0] != tag[1] {
			t.Errorf("a colour tag was %q and is %q", tag[0], tag[1])
		}
	}
}

// sameStarts compares how long after the picture the sound begins.
func sameStarts(t *testing.T, source, output string) {
	t.Helper()
	lag := func(path string) float64 {
		var starts [2]float64
		for i, kind := range []string{"v:0", "a:0"} {
			text := probeRun(t, "-select_streams", kind, "-show_entries", "stream=start_time", "-of", "default=nw=1:nk=1", path)
			if _, err := fmt.Sscan(string(text), &starts[i]); err != nil {
				return 0
			}
		}
		return starts[1] - starts[0]
	}
	if before, after := lag(source), lag(output); math.Abs(before-after) > 0.040 {
		t.Errorf("the sound began %.3f s after the picture, and now %.3f s", before, after)
	}
}

func wantFailure(t *testing.T, err error, code engine.Code) {
	t.Helper()
	f, ok := engine.AsFailure(err)
	if !ok || f.Code != code {
		t.Fatalf("error %v, want %s", err, code)
	}
	for _, secret := range []string{"/", "ffmpeg", "ffprobe", "exit status"} {
		if strings.Contains(f.Message, secret) {
			t.Errorf("the client is told %q", f.Message)
		}
	}
}

// TestBadClips runs broken files: each is the client's failure.
func TestBadClips(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(samples(t), "bad")
	k := newKit(t)
	for _, folder := range []string{"video", "image"} {
		files, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil {
			t.Fatal(err)
		}
		if folder == "image" {
			files = files[:min(6, len(files))]
		}
		for _, file := range files {
			t.Run(file.Name(), func(t *testing.T) {
				t.Parallel()
				_, err := k.job(t, filepath.Join(dir, folder, file.Name()), `{}`)
				wantFailure(t, err, engine.UnsupportedFormat)
			})
		}
	}
}

// TestRefused makes files that are no source for a video tool.
func TestRefused(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	dir := t.TempDir()
	good := clip(t, "good.mp4", args(lavfi(smooth("96x64", "25", "1")), x264)...)
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		name, path string
		code       engine.Code
		word       string
	}{
		{"text", write("a.mp4", []byte("hello")), engine.UnsupportedFormat, "not a video"},
		{"nothing", write("b.mp4", nil), engine.UnsupportedFormat, "not a video"},
		{"no index", write("c.mp4", text[:len(text)/2]), engine.UnsupportedFormat, "not a video"},
		{"playlist", write("d.mp4", []byte("#EXTM3U\n#EXTINF:1.0,\ngood.mp4\n#EXT-X-ENDLIST\n")), engine.UnsupportedFormat, "not a video"},
		{"picture", clip(t, "a.png", lavfi("color=red:s=64x64:d=0.04")...), engine.UnsupportedFormat, "not a video"},
		{"audio", clip(t, "a.m4a", lavfi("sine=d=0.2")...), engine.UnsupportedFormat, "audio only"},
		{"audio with a cover", clip(t, "a.m4a", args(lavfi("sine=d=0.2"), lavfi("color=red:s=64x64:d=0.04"), []string{"-map", "0", "-map", "1", "-c:v", "png", "-disposition:v", "attached_pic"})...), engine.UnsupportedFormat, "audio only"},
		{"raw stream", clip(t, "a.264", args(lavfi("testsrc2=s=64x64:d=0.2"), x264)...), engine.UnsupportedFormat, "not a video"},
		{"too large", clip(t, "big.mkv", args(lavfi("color=red:s=4096x2162:d=0.04"), []string{"-c:v", "png"})...), engine.ResolutionLimitExceeded, "8192x4324"},
		{"unknown codec", clip(t, "a.mkv", args(lavfi("testsrc2=s=96x64:d=0.2"), []string{"-c:v", "snow", "-strict", "-2"})...), engine.UnsupportedFormat, "codec"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r, err := k.job(t, c.path, `{}`)
			wantFailure(t, err, c.code)
			if f, _ := engine.AsFailure(err); !strings.Contains(f.Message, c.word) {
				t.Errorf("message %q, want %q in it", f.Message, c.word)
			}
			if r.path != "" {
				wantNoFile(t, r.path)
			}
		})
	}
}

func wantNoFile(t *testing.T, path string) {
	t.Helper()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", path, err)
	}
}

// TestDamaged spoils files after the fact.
func TestDamaged(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	dir := t.TempDir()
	whole := clip(t, "whole.mkv", args(lavfi(smooth("96x64", "25", "4")), lavfi("sine=d=4"), []string{"-c:v", "libx264", "-preset", "ultrafast", "-g", "25", "-bf", "0", "-c:a", "aac"})...)
	front := clip(t, "front.mp4", "-i", whole, "-c", "copy", "-movflags", "+faststart")
	write := func(name, from string, change func([]byte) []byte) string {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, change(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	half := func(b []byte) []byte { return b[:len(b)/2] }
	// What lies between a tenth and nine tenths becomes noise.
	noise := func(b []byte) []byte {
		for i := len(b) / 10; i < len(b)*9/10; i++ {
			b[i] = byte(i * 7919 >> 3)
		}
		return b
	}
	t.Run("cut short", func(t *testing.T) {
		t.Parallel()
		// A file without an index gives what is there; one with an index in front says itself that it is not whole.
		r, err := k.job(t, write("half"+filepath.Ext(whole), whole, half), `{}`)
		if err != nil {
			t.Fatal(err)
		}
		if r.source.Frames < 20 || r.source.Frames > 80 || r.source.Frames-r.out.Facts["frames"].(int64) > 3 {
			t.Errorf("%d of 100 frames counted, %v written", r.source.Frames, r.out.Facts["frames"])
		}
		r, err = k.job(t, write("half"+filepath.Ext(front), front, half), `{}`)
		wantFailure(t, err, engine.UnsupportedFormat)
		wantNoFile(t, r.path)
	})
	t.Run("spoilt", func(t *testing.T) {
		t.Parallel()
		path := write("noise.mp4", front, noise)
		r, err := k.job(t, path, `{}`)
		wantFailure(t, err, engine.ProcessingFailed)
		wantNoFile(t, r.path)
	})
	t.Run("spoilt frames", func(t *testing.T) {
		t.Parallel()
		pictures := clip(t, "a.mkv", args(lavfi(smooth("96x64", "25", "1.2")), []string{"-c:v", "png"})...)
		// Each picture begins with the name of its format; without that it is none.
		spoil := func(each int) string {
			return write(fmt.Sprintf("each%d.mkv", each), pictures, func(b []byte) []byte {
				for i, at := 0, 0; ; i++ {
					next := bytes.Index(b[at:], []byte("\x89PNG"))
					if next < 0 {
						return b
					}
					at += next + 4
					if i%each == 5%each {
						copy(b[at-4:], "ruin")
					}
				}
			})
		}
		r, err := k.job(t, spoil(3), `{}`)
		wantFailure(t, err, engine.ProcessingFailed)
		if f, _ := engine.AsFailure(err); !strings.Contains(f.Message, "damaged: about 10 of") {
			t.Errorf("message %q", f.Message)
		}
		wantNoFile(t, r.path)
		if r, err = k.job(t, spoil(30), `{}`); err != nil {
			t.Fatal(err)
		}
		wantWarning(t, r, "1 of ")
	})
	t.Run("spoilt sound", func(t *testing.T) {
		t.Parallel()
		// Sound of which nothing can be decoded must not take the picture down with it.
		sound := clip(t, "a.mkv", args(lavfi(smooth("96x64", "25", "0.4")), lavfi("sine=d=0.4"), x264, []string{"-c:a", "flac"})...)
		path := clip(t, "b.mkv", "-i", sound, "-c", "copy", "-bsf:a", "noise=amount=1")
		r, err := k.job(t, path, `{}`)
		if err != nil {
			t.Fatal(err)
		}
		if r.out.Facts["frames"] != int64(10) {
			t.Errorf("facts %v", r.out.Facts)
		}
	})
}

// TestCancel ends a run in its middle.
func TestCancel(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	source := clip(t, "a.mp4", args(lavfi("testsrc2=s=640x360:r=60:d=20"), x264)...)
	order, err := k.catalog.Order("video_upscale", []byte(`{"fps":120}`), "")
	if err != nil {
		t.Fatal(err)
	}
	src, err := order.Measure(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := order.Plan(src)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	output := filepath.Join(dir, "out.mp4")
	cause := errors.New("the client thought better of it")
	ctx, cancel := context.WithCancelCause(t.Context())
	moving := make(chan struct{}, 1)
	var canceled time.Time
	go func() {
		<-moving
		canceled = time.Now()
		cancel(cause)
	}()
	_, err = order.Process(ctx, engine.Task{Plan: plan, Source: src, Input: source, Output: output, Scratch: dir, Progress: func(float64) {
		select {
		case moving <- struct{}{}:
		default:
		}
	}})
	if took := time.Since(canceled); took > 5*time.Second {
		t.Errorf("the run ended %v after the cancel", took)
	}
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
	if _, ok := engine.AsFailure(err); ok {
		t.Errorf("a cancel is shown to the client as %v", err)
	}
	wantNoFile(t, output)
}

// TestStall has a source that gives no bytes once the run begins.
func TestStall(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	source := clip(t, "a.mp4", args(lavfi("testsrc2=s=96x64:r=25:d=0.4"), x264)...)
	tools := &editor{runner: k.runner, options: Options{Stall: 300 * time.Millisecond}.withDefaults()}
	media, err := tools.inspect(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	silent := filepath.Join(t.TempDir(), "silent.mp4")
	if err := syscall.Mkfifo(silent, 0o600); err != nil {
		t.Fatal(err)
	}
	hold, err := os.OpenFile(silent, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	plan := engine.Plan{Media: engine.Video, Width: 192, Height: 128, Frames: 10, FPS: 25, Duration: 0.4, Format: "mp4"}
	output := filepath.Join(t.TempDir(), "out.mp4")
	_, _, err = tools.convert(t.Context(), engine.Task{Plan: plan, Input: silent, Output: output}, recipe{media: media, plan: plan, options: tools.options, threads: 1, pace: paceKept})
	wantFailure(t, err, engine.ProcessingTimeout)
	wantNoFile(t, output)
}

// TestTrimmed runs videos that were trimmed without being encoded anew: their edit list hides what was cut off, and they are not
// taken for files that break off.
func TestTrimmed(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	long := clip(t, "long.mp4", args(lavfi(smooth("96x64", "25", "4")), lavfi("sine=d=4"), x264, []string{"-g", "50", "-c:a", "aac"})...)
	path := clip(t, "trimmed.mp4", "-ss", "3.6", "-i", long, "-c", "copy")
	r, m := k.must(t, path, `{}`)
	if v := m.Video; v.Frames != 10 || len(m.Audio) != 1 {
		t.Errorf("%d frames and %d audio tracks, want 10 and 1", v.Frames, len(m.Audio))
	}
	sameStarts(t, path, r.path)
	samePictures(t, path, r.path, 48, 32, 30)
}
