package image

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"enlarger/engine"
)

func BenchmarkUpscale12MP(b *testing.B) {
	path := writeFile(b, jpegBytes(b, scene(4000, 3000), 92))
	for _, format := range []string{"jpg", "png", "webp"} {
		b.Run(format, func(b *testing.B) {
			for b.Loop() {
				if _, _, err := (job{format: format, options: Options{FFmpeg: runner(b)}}).run(b.Context(), b, path); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// memoryMost is the most memory of its own, in MiB, that this process may take for any source.
const memoryMost = 300

// TestMemoryOfBigSources runs each case in a process of its own and reads its peak. Set ENLARGER_BIG=1: it takes minutes and gigabytes of disk.
func TestMemoryOfBigSources(t *testing.T) {
	if os.Getenv("ENLARGER_BIG") == "" {
		t.Skip("set ENLARGER_BIG=1 to run sources of 200 MiB")
	}
	dir := t.TempDir()
	deep := filepath.Join(dir, "deep.png")
	writeNoise(t, deep, "png", 6800, 5100, true)
	flat := filepath.Join(dir, "flat.jpg")
	writeNoise(t, flat, "jpg", 9000, 5500, false)
	for _, c := range []struct{ name, path, format string }{
		{"16-bit png to png", deep, "png"}, {"16-bit png to jpg", deep, "jpg"}, {"16-bit png to webp", deep, "webp"}, {"49 MP jpeg to jpg", flat, "jpg"},
	} {
		t.Run(c.name, func(t *testing.T) {
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self, "-test.run=^TestBigChild$", "-test.v")
			cmd.Env = append(os.Environ(), "ENLARGER_BIG_SOURCE="+c.path, "ENLARGER_BIG_FORMAT="+c.format)
			text, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			found := regexp.MustCompile(`peak (\d+) kB`).FindSubmatch(text)
			if found == nil {
				t.Fatalf("no peak in %s", text)
			}
			t.Logf("%s", text)
			if peak, _ := strconv.Atoi(string(found[1])); peak > memoryMost<<10 {
				t.Errorf("peak is %d MiB, want at most %d", peak>>10, memoryMost)
			}
		})
	}
}

// TestBigChild is one case of TestMemoryOfBigSources.
func TestBigChild(t *testing.T) {
	path := os.Getenv("ENLARGER_BIG_SOURCE")
	if path == "" {
		t.Skip("run by TestMemoryOfBigSources")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	out, _, err := job{format: os.Getenv("ENLARGER_BIG_FORMAT"), options: Options{FFmpeg: runner(t)}}.run(t.Context(), t, path)
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip(err)
	}
	peak := regexp.MustCompile(`VmHWM:\s*(\d+ kB)`).FindSubmatch(status)
	fmt.Printf("source %d MiB, output %dx%d %d MiB, %.1f s, peak %s\n", info.Size()>>20, out.Width, out.Height, out.Size>>20, time.Since(start).Seconds(), peak[1])
}

// writeNoise writes a picture that cannot be compressed, through the package's own encoders.
func writeNoise(t *testing.T, path, format string, w, h int, deep bool) {
	t.Helper()
	out, err := Options{}.withDefaults().create(t.Context(), path, format, look{width: w, height: h, deep: deep})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.NewChaCha8([32]byte{1})
	band := make([]byte, 16*w*bytesPerPixel(deep))
	for y := 0; y < h; y += 16 {
		part := band[:min(16, h-y)*w*bytesPerPixel(deep)]
		_, _ = random.Read(part)
		if err := out.write(t.Context(), part); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := out.finish(); err != nil {
		t.Fatal(err)
	}
}

func TestPlanRefusesBeforeWork(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		width, height int
		format        string
		code          engine.Code
	}{
		{8191, 10, "webp", ""},
		{8192, 10, "webp", engine.ResolutionLimitExceeded},
		{8192, 10, "png", ""},
		{32768, 10, "jpg", engine.ResolutionLimitExceeded},
		{10000, 5001, "png", engine.ResolutionLimitExceeded},
		{1 << 27, 1 << 27, "png", engine.ResolutionLimitExceeded},
	} {
		_, err := job{format: c.format}.order(t).Plan(engine.Source{Width: c.width, Height: c.height})
		var code engine.Code
		if failure, ok := engine.AsFailure(err); ok {
			code = failure.Code
		}
		if code != c.code {
			t.Errorf("%dx%d %s: %v, want %q", c.width, c.height, c.format, err, c.code)
		}
	}
}
