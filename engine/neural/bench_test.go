package neural

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"enlarger/testbed/onnx"
)

// Sizes of what the benchmarks compute: a frame of video for the nets that enlarge, a megapixel for those that keep the size.
const (
	frameWidth, frameHeight = 640, 360
	megapixelSide           = 1000
)

// BenchmarkShipped measures each of our nets on one thread and on two. GFLOP/s counts the net's own multiplications and additions,
// without what tiles compute twice; BenchmarkReach is what to hold it against.
func BenchmarkShipped(b *testing.B) {
	for _, threads := range []int{1, 2} {
		r, err := Open(b.Context(), Config{Library: library(b), Threads: threads})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(r.Close)
		for _, m := range r.Models() {
			if m.manifest.Whole != nil {
				continue
			}
			b.Run(fmt.Sprintf("%s/threads=%d", m.Name(), threads), func(b *testing.B) { measure(b, m, multiplyAdds(b, m)) })
		}
	}
}

// BenchmarkTile runs our nets in tiles of several sizes, on one thread: larger ones compute less twice and take more memory.
func BenchmarkTile(b *testing.B) {
	r, err := Open(b.Context(), Config{Library: library(b), Threads: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(r.Close)
	for _, m := range r.Models() {
		if m.manifest.Whole != nil {
			continue
		}
		for _, side := range []int{64, 128, 192, 256, 384, 512} {
			if side < 2*m.Overlap()+24 {
				continue // of which nearly all would be seen only
			}
			b.Run(fmt.Sprintf("%s/tile=%d", m.Name(), side), func(b *testing.B) {
				measure(b, withTile(b, m, side), multiplyAdds(b, m))
			})
		}
	}
}

// BenchmarkReach is the most that ONNX Runtime does here with layers as ours are: wide ones, which it computes fastest, and none at the ends.
func BenchmarkReach(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, width := range []int{16, 32, 64, 128} {
			b.Run(fmt.Sprintf("width=%d/threads=%d", width, threads), func(b *testing.B) {
				const layers = 8
				r := open(b, threads, files{
					"x2.json": `{"task": "upscale", "scale": 2, "tile": 256, "overlap": 12, "input": {"channels": "y"}}`,
					"x2.onnx": string(onnx.Random(2, width, layers)),
				})
				measure(b, r.Find(Upscale, 2), 25*width+layers*9*width*width+25*width*4)
			})
		}
	}
}

// measure runs a net over a frame of luma, or over a megapixel of colour. work is its multiply-adds for each pixel.
func measure(b *testing.B, m *Model, work int) {
	picture := Patch{Width: frameWidth, Height: frameHeight}
	if m.Planes() == 3 {
		picture.Width, picture.Height = megapixelSide, megapixelSide
	}
	for c := range m.Planes() {
		picture.Planes = append(picture.Planes, waves(picture.Width, picture.Height, float64(c)))
	}
	var into [][]float32
	before := processorTime(b)
	for b.Loop() {
		out, err := m.Run(b.Context(), picture, How{Into: into})
		if err != nil {
			b.Fatal(err)
		}
		into = out.Planes
	}
	per, pixels := b.Elapsed().Seconds()/float64(b.N), float64(picture.Width*picture.Height)
	b.ReportMetric(per*1000, "ms/picture")
	b.ReportMetric((processorTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/picture")
	b.ReportMetric(per/pixels*1e6, "s/MP")
	b.ReportMetric(2*float64(work)*pixels/per/1e9, "GFLOP/s")
	b.ReportMetric(float64(m.Memory())/(1<<20), "MiB")
	b.ReportMetric(0, "ns/op")
}

// multiplyAdds are those of one of our nets for a pixel of its input, as its card has them.
func multiplyAdds(b *testing.B, m *Model) int {
	b.Helper()
	card, err := os.ReadFile("models/" + m.Name() + ".md")
	if err != nil {
		b.Fatal(err)
	}
	found := regexp.MustCompile(`([0-9.]+) thousand million multiply-adds for a megapixel`).FindSubmatch(card)
	if found == nil {
		b.Fatalf("the card of %s does not say how many multiply-adds it takes", m.Name())
	}
	work, err := strconv.ParseFloat(string(found[1]), 64)
	if err != nil {
		b.Fatal(err)
	}
	return int(work * 1e3)
}

// withTile is one of our models in tiles of another size.
func withTile(b *testing.B, m *Model, side int) *Model {
	b.Helper()
	graph, err := shipped.ReadFile("models/" + m.Name() + ".onnx")
	if err != nil {
		b.Fatal(err)
	}
	manifest := m.manifest
	manifest.Tile, manifest.File = side, "other.onnx"
	text, err := json.Marshal(manifest)
	if err != nil {
		b.Fatal(err)
	}
	return open(b, 1, files{"other.json": string(text), "other.onnx": string(graph)}).Models()[0]
}

// processorTime is what this process has used of the processors: the figure to trust on a machine that has other work.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var use unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
