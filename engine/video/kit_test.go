package video

import (
	"bytes"
	"context"
	"encoding/json"
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
	catalog *engine.Catalog
}

var openKit = sync.OnceValues(func() (*kit, error) {
	runner, err := ffmpeg.Open(ffmpeg.Config{Threads: 2})
	if err != nil {
		return nil, err
	}
	// The encoder's fastest preset: these tests are about what is kept, not about the size of the file.
	tools := Tools(runner, Options{H264Preset: "ultrafast", H265Preset: "ultrafast"})
	return &kit{runner: runner, catalog: engine.NewCatalog(engine.DefaultLimits(), tools...)}, nil
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
	source engine.Source
	plan   engine.Plan
	out    engine.Output
	path   string
	// progress are the values reported, in order.
	progress []float64
}

// job runs video_upscale over a file.
func (k *kit) job(t testing.TB, path, config string) (result, error) {
	t.Helper()
	return k.jobContext(t, context.Background(), path, config)
}

func (k *kit) jobContext(t testing.TB, ctx context.Context, path, config string) (result, error) {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	var r result
	order, err := k.catalog.Order("video_upscale", json.RawMessage(config), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.source, err = order.Measure(ctx, path); err != nil {
		return r, err
	}
	if r.plan, err = order.Plan(r.source); err != nil {
		return r, err
	}
	dir := t.TempDir()
	r.path = filepath.Join(dir, "output.mp4")
	var mu sync.Mutex
	r.out, err = order.Process(ctx, engine.Task{
		Plan: r.plan, Source: r.source, Input: path, Output: r.path, Scratch: dir,
		Progress: func(done float64) {
			mu.Lock()
			defer mu.Unlock()
			r.progress = append(r.progress, done)
		},
	})
	return r, err
}

// must is job for a file that has to succeed; it checks what holds of every result.
func (k *kit) must(t testing.TB, path, config string) (result, *ffmpeg.Media) {
	t.Helper()
	r, err := k.job(t, path, config)
	if err != nil {
		t.Fatalf("%s: %v", filepath.Base(path), err)
	}
	media, err := k.runner.Probe(context.Background(), r.path)
	if err != nil {
		t.Fatal(err)
	}
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

// luma decodes every frame upright, as grey pictures of w x h in 8 bits.
func luma(t testing.TB, path string, w, h int) [][]byte {
	t.Helper()
	size := strconv.Itoa(w) + ":" + strconv.Itoa(h)
	raw := ffmpegRun(t, "-i", path, "-map", "v:0", "-fps_mode", "passthrough", "-vf", "scale="+size+":flags=area+accurate_rnd,format=gray", "-f", "rawvideo", "-")
	return split(raw, w*h)
}

// rgb decodes every frame upright as RGB pictures of w x h, by the file's own colour tags.
func rgb(t testing.TB, path string, w, h int) [][]byte {
	t.Helper()
	size := strconv.Itoa(w) + ":" + strconv.Itoa(h)
	raw := ffmpegRun(t, "-i", path, "-map", "v:0", "-fps_mode", "passthrough", "-vf", "scale="+size+":flags=area+accurate_rnd+full_chroma_int,format=rgb24", "-f", "rawvideo", "-")
	return split(raw, w*h*3)
}

func split(raw []byte, size int) [][]byte {
	var frames [][]byte
	for ; len(raw) >= size; raw = raw[size:] {
		frames = append(frames, raw[:size])
	}
	return frames
}

// psnr compares two pictures of one size, in dB; equal ones give 99.
func psnr(a, b []byte) float64 {
	var sum float64
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		sum += d * d
	}
	if sum == 0 {
		return 99
	}
	return 10 * math.Log10(255*255*float64(len(a))/sum)
}

// samePictures fails unless each frame of the result, brought back to the source's size, is the source's frame.
func samePictures(t testing.TB, source, output string, w, h int, least float64) {
	t.Helper()
	a, b := rgb(t, source, w, h), rgb(t, output, w, h)
	if len(a) != len(b) || len(a) == 0 {
		t.Fatalf("source has %d frames, output %d", len(a), len(b))
	}
	for i := range a {
		if got := psnr(a[i], b[i]); got < least {
			t.Fatalf("frame %d of %d is %.1f dB from the source's, want at least %.1f", i, len(a), got, least)
		}
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
