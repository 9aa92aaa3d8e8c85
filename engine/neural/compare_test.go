package neural

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

// BenchmarkCompare runs the models of each folder that NEURAL_COMPARE names (separated by colons) on the same picture, one folder after the
// other, so that variants of a net, such as its float and its int8 form, are compared within one run:
//
//	NEURAL_COMPARE=/models/float:/models/int8 go test ./engine/neural -run '^$' -bench Compare -benchtime 5x
//
// Enlarging nets get the luma of a video frame of 640x360, others a megapixel.
func BenchmarkCompare(b *testing.B) {
	for _, folder := range filepath.SplitList(os.Getenv("NEURAL_COMPARE")) {
		for _, threads := range []int{1, 2} {
			r, err := Open(b.Context(), Config{Library: library(b), Threads: threads, Models: folder, shipped: fstest.MapFS{}})
			if err != nil {
				b.Fatal(err)
			}
			for _, m := range r.Models() {
				b.Run(fmt.Sprintf("%s/%s/threads=%d", filepath.Base(folder), m.Name(), threads), func(b *testing.B) { compared(b, m) })
			}
			r.Close()
		}
	}
}

// compared measures one model.
func compared(b *testing.B, m *Model) {
	width, height := 1024, 1024
	if m.Task() == Upscale {
		width, height = 640, 360
	}
	picture := Patch{Width: width, Height: height}
	for i := range m.Planes() {
		picture.Planes = append(picture.Planes, waves(width, height, float64(i)))
	}
	out, err := m.Run(b.Context(), picture, How{})
	if err != nil {
		b.Fatal(err)
	}
	before := processorTime(b)
	for b.Loop() {
		if out, err = m.Run(b.Context(), picture, How{Into: out.Planes}); err != nil {
			b.Fatal(err)
		}
	}
	per := b.Elapsed().Seconds() / float64(b.N)
	if m.Task() == Upscale {
		b.ReportMetric(per*1000, "ms/frame")
	} else {
		b.ReportMetric(per/(float64(width*height)/1e6), "s/MP")
	}
	b.ReportMetric((processorTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms")
	b.ReportMetric(float64(m.Memory())/(1<<20), "MiB")
	b.ReportMetric(0, "ns/op")
}
