package image

import "testing"

func BenchmarkBand(b *testing.B) {
	img := scene(1000, 800)
	src := &raster{width: 1000, height: 800, pix: img.Pix}
	out := make([]byte, 2000*1600*4)
	tiles := make([]tile, 64)
	u := newUpscaler(2)
	for b.Loop() {
		if err := u.band(b.Context(), src, 0, out, false, tiles); err != nil {
			b.Fatal(err)
		}
	}
}
