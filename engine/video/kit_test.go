package video

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// kit is what the tests of this package share: one runner, and a catalog with the tools.
type kit struct {
	runner  *ffmpeg.Runner
	editor  *editor
	catalog *engine.Catalog
}

var openKit = sync.OnceValues(func() (*kit, error) {
	runner, err := ffmpeg.Open(ffmpeg.Config{Threads: 2})
	if err != nil {
		return nil, err
	}
	// The encoder's fastest preset: these tests are about what is kept, not about the size of the file.
	options := Options{H264Preset: "ultrafast", H265Preset: "ultrafast"}.withDefaults()
	return &kit{
		runner: runner, editor: &editor{runner: runner, options: options}, catalog: engine.NewCatalog(engine.DefaultLimits(), Tools(runner, options)...),
	}, nil
})

// slots keeps the number of encoders at once down to what a small machine bears.
var slots = make(chan struct{}, 2)

func newKit(t testing.TB) *kit {
	t.Helper()
	k, err := openKit()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// clip makes a file with ffmpeg. args hold inputs and options; the file's name comes last.
func clip(t testing.TB, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	ffmpegRun(t, append(append([]string{"-y"}, args...), path)...)
	return path
}

func ffmpegRun(t testing.TB, args ...string) []byte {
	t.Helper()
	var stderr bytes.Buffer
	cmd := exec.Command("ffmpeg", append([]string{"-v", "error", "-nostdin"}, args...)...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("ffmpeg %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return out
}

// result is one job from measuring to the output file.
type result struct {
	// written is the output in full, of short alone.
	written *ffmpeg.Media
	source  engine.Source
	plan    engine.Plan
	out     engine.Output
	path    string
	// progress are the values reported, in order.
	progress []float64
}

// job runs video_upscale over a file, as a worker does.
func (k *kit) job(t testing.TB, path, config string) (result, error) {
	t.Helper()
	return k.run(t.Context(), t, "video_upscale", path, config)
}

// run runs a tool over a file, as a worker does.
func (k *kit) run(ctx context.Context, t testing.TB, tool, path, config string) (result, error) {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	var r result
	order, err := k.catalog.Order(tool, json.RawMessage(config), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.source, err = order.Measure(ctx, path); err != nil {
		return r, err
	}
	if r.plan, err = order.Plan(r.source); err != nil {
		return r, err
	}
	r.out, err = order.Process(ctx, r.task(t, path))
	return r, err
}

// short is job with the source measured once and not twice, for the many cases in which that is all the same.
func (k *kit) short(t testing.TB, path, config string) (result, error) {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	media, err := k.editor.inspect(t.Context(), path)
	if err != nil {
		return result{}, err
	}
	order, err := k.catalog.Order("video_upscale", json.RawMessage(config), "")
	if err != nil {
		t.Fatal(err)
	}
	r := result{source: source(media)}
	if r.plan, err = order.Plan(r.source); err != nil {
		return r, err
	}
	c := UpscaleConfig{Scale: 2}
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	r.out, r.written, err = k.editor.convert(t.Context(), r.task(t, path), k.editor.recipe(c, media, r.plan))
	return r, err
}

func (r *result) task(t testing.TB, path string) engine.Task {
	t.Helper()
	dir := t.TempDir()
	r.path = filepath.Join(dir, "output.mp4")
	var mu sync.Mutex
	return engine.Task{
		Plan: r.plan, Source: r.source, Input: path, Output: r.path, Scratch: dir,
		Progress: func(done float64) {
			mu.Lock()
			defer mu.Unlock()
			r.progress = append(r.progress, done)
		},
	}
}

// must is short for a file that has to succeed; it checks what holds of every result.
func (k *kit) must(t testing.TB, path, config string) (result, *ffmpeg.Media) {
	t.Helper()
	r, err := k.short(t, path, config)
	if err != nil {
		t.Fatalf("%s: %v", filepath.Base(path), err)
	}
	media := r.written
	v := media.Video
	if v.Width != r.plan.Width || v.Height != r.plan.Height || v.Rotation != 0 || v.Mirrored {
		t.Errorf("output is %dx%d turned by %d, want %dx%d upright", v.Width, v.Height, v.Rotation, r.plan.Width, r.plan.Height)
	}
	if r.out.Width != v.Width || r.out.Height != v.Height || r.out.Size != media.Size || r.out.Duration != v.Duration || r.out.Codec != codecName(v.Codec) {
		t.Errorf("output says %+v of a file with %+v", r.out, v)
	}
	frame := max(1/r.source.FPS, 1/v.FPS)
	if off := math.Abs(v.Duration - r.source.Duration); off > frame+0.002 {
		t.Errorf("duration %.4f s, source %.4f s: more than a frame (%.4f s) apart", v.Duration, r.source.Duration, frame)
	}
	if v.Frames != r.plan.Frames {
		t.Errorf("%d frames, planned %d", v.Frames, r.plan.Frames)
	}
	for i, done := range r.progress {
		if done < 0 || done > 1 || (i > 0 && done < r.progress[i-1]) {
			t.Errorf("progress %v", r.progress)
			break
		}
	}
	if len(r.progress) == 0 || r.progress[len(r.progress)-1] != 1 {
		t.Errorf("progress ends with %v, want 1", r.progress)
	}
	return r, media
}

// samePictures fails unless each frame of the result, brought back to w x h and to RGB by its own colour tags, is the source's
// frame, upright.
func samePictures(t testing.TB, source, output string, w, h int, least float64) {
	t.Helper()
	size := fmt.Sprintf("scale=%d:%d:flags=area+accurate_rnd+full_chroma_int,setsar=1,format=gbrp,settb=1/25,setpts=N", w, h)
	text := ffmpegRun(t, "-i", source, "-i", output, "-lavfi", "[0:v:0]"+size+"[a];[1:v:0]"+size+"[b];[a][b]psnr=stats_file=-:eof_action=endall", "-f", "null", "-")
	frames := 0
	for line := range strings.Lines(string(text)) {
		_, after, found := strings.Cut(line, "psnr_avg:")
		if !found {
			continue
		}
		frames++
		value, _, _ := strings.Cut(after, " ")
		if got, err := strconv.ParseFloat(value, 64); err != nil || got < least {
			t.Fatalf("frame %d is %s dB from the source's, want at least %.1f", frames, value, least)
		}
	}
	if frames == 0 {
		t.Fatal("no frames were compared")
	}
}

// samples finds the folder of sample media, which is not part of the repository.
func samples(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("ENLARGER_SAMPLES"); dir != "" {
		return dir
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		data := filepath.Join(dir, "shared", "data")
		if info, err := os.Stat(data); err == nil && info.IsDir() {
			return data
		}
	}
	t.Skip("no sample media: put them in shared/data above the repository, or name their folder in ENLARGER_SAMPLES")
	return ""
}

func probeRun(t testing.TB, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("ffprobe", append([]string{"-v", "error"}, args...)...).Output()
	if err != nil {
		t.Fatalf("ffprobe %s: %v", strings.Join(args, " "), err)
	}
	return out
}
