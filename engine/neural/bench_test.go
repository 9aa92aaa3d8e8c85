package neural

import (
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"enlarger/testbed/onnx"
)

// BenchmarkFrame enlarges the luma of a video frame of 640x360 twice by a net of 13,620 weights, the size of our fast one, at several
// sizes of tile. GFLOP/s counts the net's own multiplications and additions, without what tiles compute twice.
func BenchmarkFrame(b *testing.B) {
	const width, height, weights = 640, 360, 13_620
	for _, threads := range []int{1, 2} {
		for _, tile := range []int{128, 192, 256, 384, 1024} {
			b.Run(fmt.Sprintf("threads=%d/tile=%d", threads, tile), func(b *testing.B) {
				r := open(b, threads, files{
					"x2.json": fmt.Sprintf(`{"task": "upscale", "scale": 2, "tile": %d, "overlap": 9, "input": {"channels": "y"}}`, tile),
					"x2.onnx": string(onnx.Random(2, 16, 5)),
				})
				m := r.Find(Upscale, 2)
				frame := Patch{width, height, [][]float32{waves(width, height, 0)}}
				var into [][]float32
				before := processorTime(b)
				for b.Loop() {
					out, err := m.Run(b.Context(), frame, How{Into: into})
					if err != nil {
						b.Fatal(err)
					}
					into = out.Planes
				}
				perFrame := b.Elapsed().Seconds() / float64(b.N)
				b.ReportMetric(perFrame*1000, "ms/frame")
				b.ReportMetric((processorTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/frame")
				b.ReportMetric(2*weights*width*height/perFrame/1e9, "GFLOP/s")
				b.ReportMetric(float64(m.Memory())/(1<<20), "MiB")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
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

// BenchmarkWide enlarges the luma of 512x512 twice by a net of 172,800 weights: 48 channels, and eight layers between its ends.
func BenchmarkWide(b *testing.B) {
	const side, width, layers = 512, 48, 8
	const weights = 25*width + layers*9*width*width + 25*width*4
	r := open(b, 2, files{
		"x2.json": `{"task": "upscale", "scale": 2, "tile": 192, "overlap": 12, "input": {"channels": "y"}}`,
		"x2.onnx": string(onnx.Random(2, width, layers)),
	})
	frame := Patch{side, side, [][]float32{waves(side, side, 0)}}
	for b.Loop() {
		if _, err := r.Find(Upscale, 2).Run(b.Context(), frame, How{}); err != nil {
			b.Fatal(err)
		}
	}
	per := b.Elapsed().Seconds() / float64(b.N)
	b.ReportMetric(2*weights*side*side/per/1e9, "GFLOP/s")
	b.ReportMetric(per/(side*side/1e6), "s/MP")
	b.ReportMetric(0, "ns/op")
}
