package image

import (
	"bufio"
	"bytes"
	"image"
	"image/color"
	"io"
	"testing"
)

// adobeCMYK makes a CMYK JPEG as Adobe programs write it: ink inverted, an APP14 marker that says "no transform".
func adobeCMYK(t testing.TB, img *image.NRGBA) []byte {
	t.Helper()
	w, h := img.Rect.Dx(), img.Rect.Dy()
	var b bytes.Buffer
	j := newJPEGWriter(io.Discard, w, h, false, 97, 0)
	j.out, j.components = bufio.NewWriter(&b), 4
	j.header(0)
	for y := 0; y < h; y += 8 {
		coder := &jpegCoder{jpeg: j}
		for x := 0; x < w; x += 8 {
			for c := range 4 {
				var block [64]float32
				for i := range block {
					p := img.NRGBAAt(min(x+i%8, w-1), min(y+i/8, h-1))
					cyan, magenta, yellow, black := color.RGBToCMYK(p.R, p.G, p.B)
					block[i] = float32(255-[4]uint8{cyan, magenta, yellow, black}[c]) - 128
				}
				coder.block(&block, c)
			}
		}
		if rest := coder.held % 8; rest != 0 {
			coder.put(1<<(8-rest)-1, 8-rest)
		}
		coder.drain()
		if y > 0 {
			_, _ = j.out.Write([]byte{0xFF, 0xD0 + byte((y/8-1)%8)})
		}
		_, _ = j.out.Write(coder.out)
	}
	_, _ = j.out.Write([]byte{0xFF, 0xD9})
	if err := j.out.Flush(); err != nil {
		t.Fatal(err)
	}
	adobe := []byte{0xFF, 0xEE, 0, 14, 'A', 'd', 'o', 'b', 'e', 0, 100, 0, 0, 0, 0, 0}
	return append(append(bytes.Clone(b.Bytes()[:2]), adobe...), b.Bytes()[2:]...)
}
