package video

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// parts is made with video_upscale.
func (k *kit) parts(t *testing.T, r *result, media *ffmpeg.Media, frames int) (engine.Output, int) {
	t.Helper()
	c := UpscaleConfig{Scale: 2}
	return made(t, r, k.editor, c, k.editor.recipe(c, media, r.plan), parted(k.editor, 1, k.editor.recipe), frames)
}

// made cuts a source into parts of about so many frames, makes each, joins them, and gives the output and how many parts there were.
func made[C any](t *testing.T, r *result, e *editor, c C, whole recipe, shared *engine.Parts[C], frames int) (engine.Output, int) {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	task := r.task(t, r.path)
	parts, err := e.cut(t.Context(), task, whole, frames)
	if err != nil {
		t.Fatal(err)
	}
	var pieces []engine.Piece
	total := int64(0)
	for _, p := range slices.Backward(parts) { // no part needs another
		part := task
		part.Output = filepath.Join(task.Scratch, fmt.Sprintf("part-%d.mp4", p.Number))
		facts, err := shared.Make(t.Context(), c, part, p)
		if err != nil {
			t.Fatalf("part %+v: %v", p, err)
		}
		pieces = append(pieces, engine.Piece{Part: p, Path: part.Output, Facts: facts})
		total += p.Frames
	}
	if len(parts) == 0 {
		return engine.Output{}, 0
	}
	if total != whole.media.Video.Frames {
		t.Errorf("the parts have %d frames, the source %d", total, whole.media.Video.Frames)
	}
	slices.Reverse(pieces)
	task.Output = filepath.Join(task.Scratch, "joined.mp4")
	out, err := shared.Join(t.Context(), c, task, pieces)
	if err != nil {
		t.Fatalf("join: %v", err)
	}
	r.path = task.Output
	return out, len(parts)
}

// streams describes the tracks of a file as far as a client can tell.
func streams(t *testing.T, path string) string {
	t.Helper()
	return string(probeRun(t, "-show_entries", "stream=codec_name,profile,width,height,pix_fmt,sample_aspect_ratio,color_range,color_space,color_transfer,color_primaries,start_time,time_base,nb_frames,codec_tag_string:stream_tags=language:format_tags=title",
		"-show_chapters", "-of", "compact", path))
}

// shownTimes are the times of a file's frames in microseconds from the first.
func shownTimes(t *testing.T, k *kit, path string) []int64 {
	t.Helper()
	media, err := k.runner.Probe(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	times, err := k.runner.Timeline(t.Context(), path, media.Video.Index)
	if err != nil {
		t.Fatal(err)
	}
	for i := range times.Times {
		times.Times[i] = microseconds(times.Times[i], media.Video.Unit)
	}
	for i := range times.Times {
		times.Times[i] -= times.Times[0]
	}
	return times.Times
}

// quality is the PSNR of every frame of an output, brought back to the source's size, against the source.
func quality(t *testing.T, source, output string) (frames []float64) {
	t.Helper()
	same := "scale=96:64:flags=area+accurate_rnd,format=yuv420p,settb=1/25,setpts=N"
	text := ffmpegRun(t, "-i", source, "-i", output, "-lavfi", "[0:v:0]"+same+"[a];[1:v:0]"+same+"[b];[a][b]psnr=stats_file=-:eof_action=endall", "-f", "null", "-")
	for line := range strings.Lines(string(text)) {
		if _, after, found := strings.Cut(line, "psnr_avg:"); found {
			value, _, _ := strings.Cut(after, " ")
			db, err := strconv.ParseFloat(value, 64)
			if value == "inf" {
				db, err = 100, nil
			}
			if err != nil {
				t.Fatal(err)
			}
			frames = append(frames, db)
		}
	}
	return frames
}

// TestJoinedPartsAreTheWhole cuts sources of every kind that is cut, and holds the joined output against what one run makes of the whole.
func TestJoinedPartsAreTheWhole(t *testing.T) {
	t.Parallel()
	picture := []string{"-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2.4,noise=alls=6:allf=t"}
	sound := []string{"-f", "lavfi", "-i", "sine=d=2.4"}
	x264 := func(params string) []string {
		return []string{"-c:v", "libx264", "-preset", "veryfast", "-g", "12", "-bf", "3", "-x264-params", "scenecut=0:" + params}
	}
	for name, c := range map[string]struct {
		file string
		args [][]string
		// again is a second run over the first file, by stream copy.
		again []string
	}{
		"open groups, sound, an edit list": {"a.mp4", [][]string{picture, sound, x264("open-gop=1:b-pyramid=normal"), {"-c:a", "aac", "-metadata", "title=A film"}}, []string{"-ss", "0.3", "-c", "copy"}},
		"refresh bit by bit":               {"a.mp4", [][]string{picture, x264("intra-refresh=1:bframes=0")}, nil},
		"variable rate, matroska":          {"a.mkv", [][]string{picture, sound, {"-vf", "select='not(eq(mod(n,7),3))*not(between(n,30,38))',setpts='PTS+mod(N,3)*0.004/TB'", "-fps_mode", "vfr"}, x264("open-gop=1"), {"-c:a", "libopus"}}, nil},
		"sound first, 29.97":               {"a.mkv", [][]string{{"-itsoffset", "0.5"}, {"-f", "lavfi", "-i", "testsrc2=s=96x64:r=30000/1001:d=2.4,noise=alls=6:allf=t"}, sound, x264("open-gop=1"), {"-c:a", "aac"}}, nil},
		"H.265, 10 bits, open":             {"a.mp4", [][]string{picture, {"-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:open-gop=1:keyint=12:min-keyint=12:scenecut=0:bframes=4"}}, nil},
		"VP9 in WebM, hidden frame":        {"a.webm", [][]string{picture, {"-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "400k", "-g", "12", "-auto-alt-ref", "1", "-lag-in-frames", "10"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKit(t)
			path := clip(t, c.file, slices.Concat(c.args...)...)
			if c.again != nil {
				path = clip(t, c.file, append([]string{"-i", path}, c.again...)...)
			}
			whole, media := k.must(t, path, `{}`)
			source, err := k.editor.inspect(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			joined := result{source: whole.source, plan: whole.plan, path: path}
			out, n := k.parts(t, &joined, source, 15)
			if n < 2 {
				t.Fatalf("%d parts", n)
			}
			if out.Duration != whole.out.Duration || out.Width != whole.out.Width || out.Facts["frames"] != whole.out.Facts["frames"] || out.Facts["segments"] != n {
				t.Errorf("joined %+v, whole %+v", out, whole.out)
			}
			if got, want := streams(t, joined.path), streams(t, whole.path); got != want {
				t.Errorf("joined\n%s\nwhole\n%s", got, want)
			}
			if got, want := shownTimes(t, k, joined.path), shownTimes(t, k, whole.path); !slices.Equal(got, want) {
				t.Errorf("frames are shown at\n%v, those of the whole at\n%v", got, want)
			}
			sameStarts(t, path, joined.path)
			sameQuality(t, path, joined.path, whole.path, int(media.Video.Frames))
		})
	}
}

// sameQuality holds every frame of a joined output against that of the whole: the right picture, and no worse at the seams than elsewhere.
func sameQuality(t *testing.T, source, joined, whole string, frames int) {
	t.Helper()
	got, want := quality(t, source, joined), quality(t, source, whole)
	if len(got) != frames || len(want) != frames {
		t.Fatalf("%d and %d frames compared, want %d", len(got), len(want), frames)
	}
	worst := 0.0
	for i := range got {
		worst = math.Max(worst, want[i]-got[i])
		if got[i] < 28 || got[i] < want[i]-1.5 {
			t.Errorf("frame %d is %.1f dB from the source's, and %.1f dB in the whole", i, got[i], want[i])
		}
	}
	t.Logf("%d frames, at most %.2f dB below those of the whole", frames, worst)
}

// What cannot be cut without harm is made whole.
func TestUncut(t *testing.T) {
	t.Parallel()
	sound := func() *ffmpeg.Media {
		return &ffmpeg.Media{Format: "mp4", Video: &ffmpeg.Video{Codec: "h264", Unit: ffmpeg.Ratio{Num: 1, Den: 12800}}}
	}
	for name, c := range map[string]struct {
		pace   pacing
		change func(m *ffmpeg.Media)
		want   bool
	}{
		"a sound one":        {paceKept, func(*ffmpeg.Media) {}, true},
		"another rate":       {paceMotion, func(*ffmpeg.Media) {}, false},
		"fewer frames":       {paceEven, func(*ffmpeg.Media) {}, false},
		"interlaced":         {paceKept, func(m *ffmpeg.Media) { m.Video.Interlaced = true }, false},
		"VP8 hides frames":   {paceKept, func(m *ffmpeg.Media) { m.Video.Codec = "vp8" }, false},
		"AVI tells no times": {paceKept, func(m *ffmpeg.Media) { m.Format = "avi" }, false},
		"no unit":            {paceKept, func(m *ffmpeg.Media) { m.Video.Unit = ffmpeg.Ratio{} }, false},
	} {
		media := sound()
		c.change(media)
		if got := divisible(media, c.pace); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for name, line := range map[string]ffmpeg.Timeline{
		"one key frame":        {Times: []int64{0, 1, 2, 3, 4, 5, 6, 7}, Keys: []int64{0}},
		"two frames at once":   {Times: []int64{0, 1, 2, 3, 3, 4, 5, 6}, Keys: []int64{0, 2, 4}},
		"a frame with no time": {Times: []int64{0, 1, 2, 3, 4, 5, 6, 7}, Keys: []int64{0, 2, 4}, Missing: 1},
		"too short":            {Times: []int64{0, 1, 2}, Keys: []int64{0, 1, 2}},
		"nothing":              {},
	} {
		if windows, _ := cut(line, 2); len(windows) > 1 {
			t.Errorf("%s: %d windows", name, len(windows))
		}
	}
	k := newKit(t)
	plan := engine.Plan{Width: 1920, Height: 1080, Frames: 1 << 20}
	if n := k.editor.segmentFrames(plan, 1); n != 0 {
		t.Errorf("nothing is to be cut: %d frames", n)
	}
	cutting := &editor{options: Options{Segment: 20 * time.Second}}
	if n, dear := cutting.segmentFrames(plan, 1), cutting.segmentFrames(plan, 5); n < 200 || n > 2000 || dear < 24 || dear >= n {
		t.Errorf("parts of %d frames of 1080p, and of %d when each takes five times as long", n, dear)
	}
}

// A part that was made otherwise, lost, or doubled is never joined.
func TestJoinRefuses(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	path := clip(t, "a.mp4", "-f", "lavfi", "-i", "testsrc2=s=64x64:r=25:d=4", "-c:v", "libx264", "-g", "25", "-sc_threshold", "0")
	media, err := k.editor.inspected(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	plan := engine.Plan{Width: 128, Height: 128, Frames: 100, FPS: 25, Duration: 4, Format: "mp4", Media: engine.Video}
	dir := t.TempDir()
	task := engine.Task{Plan: plan, Source: source(media), Input: path, Output: filepath.Join(dir, "out.mp4"), Scratch: dir}
	c := UpscaleConfig{Scale: 2}
	shared := parted(k.editor, 1, k.editor.recipe)
	parts, err := k.editor.cut(t.Context(), task, k.editor.recipe(c, media, plan), 24)
	if err != nil || len(parts) != 4 {
		t.Fatalf("%d parts, %v", len(parts), err)
	}
	var pieces []engine.Piece
	for _, p := range parts {
		part := task
		part.Output = filepath.Join(dir, fmt.Sprintf("part-%d.mp4", p.Number))
		facts, err := shared.Make(t.Context(), c, part, p)
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, engine.Piece{Part: p, Path: part.Output, Facts: facts})
	}
	with := func(change func(p []engine.Piece) []engine.Piece) []engine.Piece { return change(slices.Clone(pieces)) }
	for name, list := range map[string][]engine.Piece{
		"one missing": with(func(p []engine.Piece) []engine.Piece { return p[:3] }),
		"one twice":   with(func(p []engine.Piece) []engine.Piece { return append(p, p[3]) }),
		"beside the beat": with(func(p []engine.Piece) []engine.Piece {
			p[1].Path = remade(t, p[1].Path, "setpts=PTS+0.02/TB")
			return p
		}),
		"out of turn": with(func(p []engine.Piece) []engine.Piece { p[1], p[2] = p[2], p[1]; return p }),
		"another setup": with(func(p []engine.Piece) []engine.Piece {
			p[1].Facts = json.RawMessage(`{"frames":25,"setup":"SHA256:0"}`)
			return p
		}),
		"not there": with(func(p []engine.Piece) []engine.Piece { p[1].Path = filepath.Join(dir, "none.mp4"); return p }),
		"none":      nil,
	} {
		if _, err := shared.Join(t.Context(), c, task, list); err == nil {
			t.Errorf("%s: joined", name)
		}
		if _, err := os.Stat(task.Output); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something was written", name)
		}
	}
	if _, err := shared.Join(t.Context(), c, task, pieces); err != nil {
		t.Errorf("all of them: %v", err)
	}
	whole := shownTimes(t, k, task.Output)
	// A frame that could not be decoded is missing, and no other moves.
	out, err := shared.Join(t.Context(), c, task, with(func(p []engine.Piece) []engine.Piece {
		p[1].Path = remade(t, p[1].Path, "trim=start_frame=1")
		return p
	}))
	if err != nil || len(out.Warnings) != 1 {
		t.Fatalf("without one frame: %v, %v", err, out.Warnings)
	}
	if got, want := shownTimes(t, k, task.Output), slices.Delete(slices.Clone(whole), 25, 26); !slices.Equal(got, want) {
		t.Errorf("frames are shown at\n%v, want\n%v", got, want)
	}
}

// remade puts a part through a filter that keeps the times.
func remade(t *testing.T, path, filter string) string {
	t.Helper()
	name := strings.TrimSuffix(path, ".mp4") + "-again.mp4"
	ffmpegRun(t, "-y", "-copyts", "-i", path, "-vf", filter, "-fps_mode", "vfr", "-enc_time_base", "1/12800", "-video_track_timescale", "12800",
		"-c:v", "libx264", "-preset", "ultrafast", "-crf", "17", name)
	return name
}

// TestCutCoversEverything: however key frames lie, the windows cover every frame once, and there are not too many.
func TestCutCoversEverything(t *testing.T) {
	t.Parallel()
	for _, gap := range []int{1, 7, 25, 250} {
		for _, n := range []int{1, 2, 47, 48, 49, 1000, 30_000} {
			for _, frames := range []int{1, 24, 600} {
				var line ffmpeg.Timeline
				for i := range n {
					line.Times = append(line.Times, int64(i)*512-7)
					if i%gap == 0 {
						line.Keys = append(line.Keys, line.Times[i])
					}
				}
				windows, counts := cut(line, frames)
				if len(windows) < 2 {
					continue
				}
				if len(windows) > segmentsMost || len(counts) != len(windows) || windows[0].From != line.Times[0] || windows[len(windows)-1].To != math.MaxInt64 {
					t.Fatalf("%d frames, a key frame each %d, parts of %d: %d windows", n, gap, frames, len(windows))
				}
				for i, w := range windows {
					have := int64(0)
					for _, at := range line.Times {
						if at >= w.From && at < w.To {
							have++
						}
					}
					if have != counts[i] || have == 0 || (i > 0 && windows[i-1].To != w.From) || (w.Seek != nil && *w.Seek >= w.From) {
						t.Fatalf("%d frames, a key frame each %d, parts of %d: window %d %+v has %d frames, says %d", n, gap, frames, i, w, have, counts[i])
					}
				}
			}
		}
	}
}

// A film that becomes HDR in parts says the same of itself as one made whole, light levels and all.
func TestJoinedHDR(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	// The brightest part is the second.
	path := clip(t, "a.mp4", "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2,eq=brightness='-0.3+0.3*between(t,0.6,1.2)':eval=frame", "-f", "lavfi", "-i", "sine=d=2",
		"-c:v", "libx264", "-g", "12", "-sc_threshold", "0", "-pix_fmt", "yuv420p", "-c:a", "aac")
	for _, codec := range []string{codecH265} {
		t.Run(codec, func(t *testing.T) {
			t.Parallel()
			whole, _, err := hdrJob(t, k.editor.options, path, `{"codec":"`+codec+`"}`)
			if err != nil {
				t.Fatal(err)
			}
			media, err := k.editor.inspected(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			e := k.editor
			c := HDRConfig{Quality: qualityHigh, Codec: codec, Gamut: "bt2020"}
			joined := result{source: whole.source, plan: whole.plan, path: path}
			out, n := made(t, &joined, e, c, e.hdrRecipe(c, media, whole.plan), parted(e, 1, e.hdrRecipe), 15)
			if n < 2 {
				t.Fatalf("%d parts", n)
			}
			for _, fact := range []string{"max_cll", "max_fall", "frames", "hdr", "audio_tracks"} {
				if out.Facts[fact] != whole.out.Facts[fact] {
					t.Errorf("%s is %v, of the whole %v", fact, out.Facts[fact], whole.out.Facts[fact])
				}
			}
			if got, want := streams(t, joined.path), streams(t, whole.path); got != want {
				t.Errorf("joined\n%s\nwhole\n%s", got, want)
			}
			if got, want := shownTimes(t, k, joined.path), shownTimes(t, k, whole.path); !slices.Equal(got, want) {
				t.Errorf("frames are shown at\n%v, those of the whole at\n%v", got, want)
			}
			for i, db := range quality(t, whole.path, joined.path) {
				if db < 40 {
					t.Errorf("frame %d is %.1f dB from that of the whole", i, db)
				}
			}
		})
	}
}
