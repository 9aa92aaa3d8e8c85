package video

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"enlarger/engine"
	"enlarger/engine/neural"
	"enlarger/testbed"
)

// netKit is a kit whose tools have our models.
func netKit(t testing.TB) *kit {
	t.Helper()
	k := newKit(t)
	library, err := neural.FindLibrary(testbed.ONNXRuntime())
	if err != nil {
		t.Fatalf("%v; run `make deps`", err)
	}
	models, err := neural.Open(t.Context(), neural.Config{Library: library, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(models.Close)
	options := k.editor.options
	options.Neural = models
	return &kit{runner: k.runner, editor: &editor{runner: k.runner, options: options}, catalog: engine.NewCatalog(engine.DefaultLimits(), Tools(k.runner, options)...)}
}

// photo is a moving picture that models were not made for a clip of: a window that wanders over a photo.
func photo(size string, frames int, filter string) []string {
	return []string{
		"-loop", "1", "-r", "25", "-i", filepath.Join("..", "..", "fixtures", "media", "astronaut.png"),
		"-vf", fmt.Sprintf("crop=192:192:x='100+4*n':y='20+2*n',scale=%s:flags=bicubic+accurate_rnd%s", size, filter), "-frames:v", fmt.Sprint(frames),
	}
}

// lumaPSNR compares the luma of two clips of one size.
func lumaPSNR(t testing.TB, one, two string) float64 {
	t.Helper()
	read := func(path string) []byte {
		return ffmpegRun(t, "-i", path, "-vf", "format=yuv420p,extractplanes=y", "-fps_mode", "passthrough", "-f", "rawvideo", "-")
	}
	a, b := read(one), read(two)
	if len(a) != len(b) || len(a) == 0 {
		t.Fatalf("%d samples and %d", len(a), len(b))
	}
	sum := 0.0
	for i := range a {
		d := float64(a[i]) - float64(b[i])
		sum += d * d
	}
	return 10 * math.Log10(255*255*float64(len(a))/sum)
}

// TestNetUpscale compares what the models make of a clip that was made smaller with the clip, and with what Lanczos makes.
func TestNetUpscale(t *testing.T) {
	t.Parallel()
	with, without := netKit(t), newKit(t)
	lossless := []string{"-c:v", "libx264", "-preset", "ultrafast", "-qp", "0"}
	whole := clip(t, "whole.mkv", args(photo("192:192", 5, ",format=yuv420p"), lossless)...)
	for _, c := range []struct {
		name, size, filter string
		encoder            []string
		scale              int
		// more is by how much the models must be better, in dB.
		more  float64
		codec string
	}{
		{"x2", "96:96", ",format=yuv420p", lossless, 2, 0.8, "h264"},
		{"x4", "48:48", ",format=yuv420p", lossless, 4, 0.3, "h264"},
		{"10 bits", "96:96", ",format=yuv420p10le", []string{"-c:v", "ffv1"}, 2, 0.8, "h265"},
		{"full range", "96:96", ",scale=out_range=pc,format=yuvj420p", lossless, 2, 0.8, "h264"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, "small.mkv", args(photo(c.size, 5, c.filter), c.encoder, sd)...)
			config := fmt.Sprintf(`{"scale":%d}`, c.scale)
			net, m := with.must(t, source, config)
			classic, _ := without.must(t, source, config)
			if net.out.Facts["method"] != "neural" || net.out.Facts["model"] != fmt.Sprintf("upscale-x%d-fast", c.scale) || net.out.Codec != c.codec {
				t.Errorf("%s by %v", net.out.Codec, net.out.Facts)
			}
			if share, _ := net.out.Facts["model_strength"].(float64); share < 0.3 || share > shareMost {
				t.Errorf("%.2f of the models is taken", share)
			}
			if classic.out.Facts["method"] != "lanczos" || classic.out.Facts["model"] != nil {
				t.Errorf("without models: %v", classic.out.Facts)
			}
			reference := whole
			if m.Video.Range == "pc" {
				reference = clip(t, "full.mkv", args([]string{"-i", whole, "-vf", "scale=out_range=pc,format=yuvj420p"}, lossless)...)
			}
			a, b := lumaPSNR(t, net.path, reference), lumaPSNR(t, classic.path, reference)
			t.Logf("%.2f dB, Lanczos %.2f dB", a, b)
			if a < b+c.more {
				t.Errorf("%.2f dB, Lanczos has %.2f", a, b)
			}
		})
	}
}

// TestNetUpscaleKeepsTheRest follows sound, subtitles, times, a turn and an odd size through the models.
func TestNetUpscaleKeepsTheRest(t *testing.T) {
	t.Parallel()
	with, without := netKit(t), newKit(t)
	srt := filepath.Join(t.TempDir(), "a.srt")
	if err := os.WriteFile(srt, []byte("1\n00:00:00,100 --> 00:00:00,300\nGood evening\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, file, config string
		make               []string
		change             func(t *testing.T, path string) string
	}{
		{name: "sound and subtitles", file: "a.mkv", config: `{}`, make: args([]string{"-itsoffset", "0.2"}, lavfi(smooth("64x48", "25", "0.4")), lavfi("sine=440:d=0.4"), []string{"-i", srt, "-map", "0", "-map", "1", "-map", "2", "-c:a", "aac", "-c:s", "srt"}, x264, sd)},
		{name: "variable rate, x4", file: "a.mp4", config: `{"scale":4}`, make: args(variable, x264, sd)},
		{name: "turned", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("64x48", "25", "0.2")), x264, sd), change: func(t *testing.T, path string) string { return rotated(t, path, "90") }},
		{name: "odd size, 4:4:4", file: "a.mkv", config: `{}`, make: args(lavfi(smooth("66x50", "25", "0.2")+",format=yuv444p,crop=65:49:exact=1"), []string{"-c:v", "ffv1"}, sd)},
		{name: "one pixel", file: "a.mkv", config: `{"scale":4}`, make: args(lavfi("color=c=red:s=2x2:r=25:d=0.2,format=yuv444p,crop=1:1:exact=1"), []string{"-c:v", "ffv1"})},
		{name: "faster", file: "a.mp4", config: `{"fps":50}`, make: args(lavfi(smooth("64x48", "25", "0.4")), lavfi("sine=440:d=0.4"), x264, sd, []string{"-c:a", "aac"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, c.file, c.make...)
			if c.change != nil {
				source = c.change(t, source)
			}
			net, m := with.must(t, source, c.config)
			classic, w := without.must(t, source, c.config)
			if net.out.Facts["method"] != "neural" || len(m.Subtitles) != len(w.Subtitles) || len(m.Audio) != len(w.Audio) || m.Video.SAR != w.Video.SAR {
				t.Errorf("%v, %+v, without models %+v", net.out.Facts, m, w)
			}
			times := func(path string) string {
				return lastLength.ReplaceAllString(string(probeRun(t, "-select_streams", "v", "-show_entries", "packet=pts,duration", "-of", "compact", path)), "")
			}
			if a, b := times(net.path), times(classic.path); a != b {
				t.Errorf("times\n%s\nwithout models\n%s", a, b)
			}
			samePictures(t, classic.path, net.path, net.source.Width, net.source.Height, 30)
		})
	}
}

// TestNoiseHoldsModelsBack measures noise of known size, and finds that a clip full of it is left to Lanczos.
func TestNoiseHoldsModelsBack(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for _, sigma := range []float64{0, 1, 3, 8} {
		pixels := make([]byte, 200*120)
		for i := range pixels {
			pixels[i] = byte(min(max(math.Round(100+0.2*float64(i%200)+sigma*random.NormFloat64()), 0), 255))
		}
		// The rounding to codes is noise as well, of 0.29.
		if got := noiseOf(pixels, 200, 120); math.Abs(got-sigma) > 0.15*sigma+0.3 {
			t.Errorf("noise of %.1f is measured as %.2f", sigma, got)
		}
	}
	if got := noiseOf(make([]byte, 100), 10, 10); got != 0 {
		t.Errorf("noise of black: %.2f", got)
	}
	k := netKit(t)
	for amount, want := range map[int]string{0: "neural", 25: "lanczos"} {
		source := clip(t, "a.mkv", args(lavfi(fmt.Sprintf("testsrc2=s=96x96:r=25:d=0.2,gblur=sigma=2,noise=alls=%d:allf=t,format=yuv420p", amount)), []string{"-c:v", "ffv1"}, sd)...)
		r, _ := k.must(t, source, `{}`)
		if r.out.Facts["method"] != want {
			t.Errorf("noise %d: %v, want %s", amount, r.out.Facts, want)
		}
	}
}

func TestPlaneSamples(t *testing.T) {
	t.Parallel()
	for _, full := range []bool{false, true} {
		for _, deep := range []bool{false, true} {
			codes := 256
			if deep {
				codes = 1024
			}
			p := plane{width: codes, height: 1, deep: deep}
			p.pixels = make([]byte, p.bytes())
			for i := range codes {
				if deep {
					p.pixels[2*i], p.pixels[2*i+1] = byte(i), byte(i>>8)
				} else {
					p.pixels[i] = byte(i)
				}
			}
			was := string(p.pixels)
			samples := make([]float32, codes)
			p.samples(samples, full)
			black, white := p.levels(full)
			if math.Abs(float64(samples[int(black)])) > 1e-6 || math.Abs(float64(samples[int(white)])-1) > 1e-6 {
				t.Errorf("full %v, deep %v: black is %f, white %f", full, deep, samples[int(black)], samples[int(white)])
			}
			p.take(samples, full)
			if string(p.pixels) != was {
				t.Errorf("full %v, deep %v: codes do not come back", full, deep)
			}
		}
	}
}

// TestUpscaleMemoryCountsModels holds the estimate with models against the one without, and asks for no allocation of the size itself.
func TestUpscaleMemoryCountsModels(t *testing.T) {
	t.Parallel()
	with, without := netKit(t), newKit(t)
	task := engine.Task{Source: engine.Source{Width: 640, Height: 360, FPS: 25, Frames: 25, Duration: 1}}
	memory := func(k *kit) int64 {
		order, err := k.catalog.Order("video_upscale", json.RawMessage(`{}`), "")
		if err != nil {
			t.Fatal(err)
		}
		if task.Plan, err = order.Plan(task.Source); err != nil {
			t.Fatal(err)
		}
		return order.Memory(task)
	}
	if more := (memory(with) - memory(without)) >> 20; more < 60 || more > 400 {
		t.Errorf("models are estimated to take %d MB for 640x360", more)
	}
}
