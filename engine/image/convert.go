package image

import (
	"context"
	"encoding/binary"
	"image"
	"image/color"
)

// storeImage converts a decoded standard image into the sink, on all processors. Its bounds place it on the canvas, which is
// transparent elsewhere.
func storeImage(ctx context.Context, img image.Image, to *sink) error {
	const group = 32
	b := img.Bounds()
	height, size := to.to.height, to.to.pixelBytes()
	return parallel(ctx, (height+group-1)/group, func(_, i int) error {
		y := i * group
		n := min(group, height-y)
		stride := to.to.width * to.to.pixelBytes()
		pixels := make([]byte, n*stride)
		for row := range n {
			if y+row >= b.Min.Y && y+row < b.Max.Y {
				convertRow(img, y+row, pixels[row*stride+b.Min.X*size:][:b.Dx()*size], to.to.deep)
			}
		}
		return to.rows(y, pixels)
	})
}

// convertRow makes RGBA pixels of row y of the image.
func convertRow(img image.Image, y int, to []byte, deep bool) {
	b := img.Bounds()
	w := b.Dx()
	switch img := img.(type) {
	case *image.YCbCr:
		convertYCbCr(img, y-b.Min.Y, to)
	case *image.NRGBA:
		copy(to, img.Pix[img.PixOffset(b.Min.X, y):][:4*w])
	case *image.NRGBA64:
		copy(to, img.Pix[img.PixOffset(b.Min.X, y):][:8*w])
	case *image.RGBA:
		convertRGBA(img.Pix[img.PixOffset(b.Min.X, y):][:4*w], to)
	case *image.RGBA64:
		convertRGBA64(img.Pix[img.PixOffset(b.Min.X, y):][:8*w], to)
	case *image.Paletted:
		convertPaletted(img, y, to)
	case *image.Gray:
		for x, g := range img.Pix[img.PixOffset(b.Min.X, y):][:w] {
			to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = g, g, g, 255
		}
	case *image.Gray16:
		row := img.Pix[img.PixOffset(b.Min.X, y):]
		for x := range w {
			g := binary.BigEndian.Uint16(row[2*x:])
			binary.BigEndian.PutUint64(to[8*x:], uint64(g)*0x0001_0001_0001_0000|0xFFFF)
		}
	case *image.CMYK:
		row := img.Pix[img.PixOffset(b.Min.X, y):]
		for x := range w {
			r, g, b := color.CMYKToRGB(row[4*x], row[4*x+1], row[4*x+2], row[4*x+3])
			to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = r, g, b, 255
		}
	default:
		for x := range w {
			c := img.At(b.Min.X+x, y)
			if deep {
				n, _ := color.NRGBA64Model.Convert(c).(color.NRGBA64)
				binary.BigEndian.PutUint64(to[8*x:], uint64(n.R)<<48|uint64(n.G)<<32|uint64(n.B)<<16|uint64(n.A))
				continue
			}
			n, _ := color.NRGBAModel.Convert(c).(color.NRGBA)
			to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = n.R, n.G, n.B, n.A
		}
	}
}

// convertRGBA undoes the premultiplication.
func convertRGBA(from, to []byte) {
	for i := 0; i+4 <= len(from); i += 4 {
		p := from[i : i+4]
		if p[3] == 255 {
			copy(to[i:i+4], p)
			continue
		}
		n, _ := color.NRGBAModel.Convert(color.RGBA{R: p[0], G: p[1], B: p[2], A: p[3]}).(color.NRGBA)
		to[i], to[i+1], to[i+2], to[i+3] = n.R, n.G, n.B, n.A
	}
}

func convertRGBA64(from, to []byte) {
	for i := 0; i+8 <= len(from); i += 8 {
		v := binary.BigEndian.Uint64(from[i:])
		if v&0xFFFF != 0xFFFF {
			c := color.RGBA64{R: uint16(v >> 48), G: uint16(v >> 32), B: uint16(v >> 16), A: uint16(v)}
			n, _ := color.NRGBA64Model.Convert(c).(color.NRGBA64)
			v = uint64(n.R)<<48 | uint64(n.G)<<32 | uint64(n.B)<<16 | uint64(n.A)
		}
		binary.BigEndian.PutUint64(to[i:], v)
	}
}

// convertPaletted looks colours up; an index beyond the palette is transparent.
func convertPaletted(img *image.Paletted, y int, to []byte) {
	var table [256][4]byte
	for i, c := range img.Palette[:min(len(img.Palette), 256)] {
		n, _ := color.NRGBAModel.Convert(c).(color.NRGBA)
		table[i] = [4]byte{n.R, n.G, n.B, n.A}
	}
	for x, v := range img.Pix[img.PixOffset(img.Rect.Min.X, y):][:img.Rect.Dx()] {
		copy(to[4*x:4*x+4], table[v][:])
	}
}

// convertYCbCr makes pixels of a row of a JPEG. Colour stored at half the resolution is interpolated between the two or four
// samples around a pixel (weights 3 and 1 each way, as the samples sit midway), where the standard library repeats it.
func convertYCbCr(img *image.YCbCr, y int, to []byte) {
	w, h := img.Rect.Dx(), img.Rect.Dy()
	luma := img.Y[y*img.YStride:][:w]
	halfX := img.SubsampleRatio == image.YCbCrSubsampleRatio422 || img.SubsampleRatio == image.YCbCrSubsampleRatio420
	halfY := img.SubsampleRatio == image.YCbCrSubsampleRatio440 || img.SubsampleRatio == image.YCbCrSubsampleRatio420
	if !halfX && !halfY {
		for x := range w {
			at := img.COffset(img.Rect.Min.X+x, img.Rect.Min.Y+y)
			putYCbCr(to[4*x:4*x+4], int32(luma[x]), int32(img.Cb[at])*16, int32(img.Cr[at])*16)
		}
		return
	}
	near, far := y, y
	if halfY {
		near = y / 2
		far = min(max(near+y%2*2-1, 0), (h+1)/2-1)
	}
	columns := w
	if halfX {
		columns = (w + 1) / 2
	}
	cb1, cb2 := img.Cb[near*img.CStride:][:columns], img.Cb[far*img.CStride:][:columns]
	cr1, cr2 := img.Cr[near*img.CStride:][:columns], img.Cr[far*img.CStride:][:columns]
	for x := range w {
		a, b := x, x
		if halfX {
			a = x / 2
			b = min(max(a+x%2*2-1, 0), columns-1)
		}
		cb := 9*int32(cb1[a]) + 3*int32(cb1[b]) + 3*int32(cb2[a]) + int32(cb2[b])
		cr := 9*int32(cr1[a]) + 3*int32(cr1[b]) + 3*int32(cr2[a]) + int32(cr2[b])
		putYCbCr(to[4*x:4*x+4], int32(luma[x]), cb, cr)
	}
}

// putYCbCr converts one pixel (JFIF 1.02). cb and cr are times 16.
func putYCbCr(to []byte, luma, cb, cr int32) {
	cb -= 128 * 16
	cr -= 128 * 16
	// The factors are 1.402, 0.344136, 0.714136 and 1.772, times 65536/16.
	y := luma<<16 + 1<<15
	p := (*[4]byte)(to)
	p[0] = clamp8((y + 5743*cr) >> 16)
	p[1] = clamp8((y - 1410*cb - 2925*cr) >> 16)
	p[2] = clamp8((y + 7258*cb) >> 16)
	p[3] = 255
}

func clamp8(v int32) byte {
	if uint32(v) <= 255 {
		return byte(v)
	}
	return byte(^(v >> 31))
}
