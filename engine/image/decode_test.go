package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"image"
	"image/color"
	"image/gif"
	"image/png"
	"os"
	"path/filepath"
	"testing"

	"github.com/coalaura/webp"
	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"

	"enlarger/engine"
)

// decoded opens content with the options and returns it as a standard image.
func decoded(t testing.TB, o Options, content []byte) (*picture, image.Image) {
	t.Helper()
	p, err := o.withDefaults().open(t.Context(), writeFile(t, content), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	memory := *p.raster
	memory.file, memory.pix = nil, make([]byte, p.bytes())
	if err := p.read(0, 0, memory.pix); err != nil {
		t.Fatal(err)
	}
	return p, memory.view()
}

// encodings holds the same picture in every format that tests can write.
func encodings(t testing.TB, img *image.NRGBA) map[string][]byte {
	t.Helper()
	all := map[string][]byte{"png": pngBytes(t, img), "jpeg": jpegBytes(t, img, 97)}
	for name, encode := range map[string]func(b *bytes.Buffer) error{
		"gif":           func(b *bytes.Buffer) error { return gif.Encode(b, img, nil) },
		"bmp":           func(b *bytes.Buffer) error { return bmp.Encode(b, img) },
		"tiff":          func(b *bytes.Buffer) error { return tiff.Encode(b, img, &tiff.Options{Compression: tiff.Deflate}) },
		"lossy webp":    func(b *bytes.Buffer) error { return webp.Encode(b, img, &webp.Options{Quality: 95, Method: 4}) },
		"lossless webp": func(b *bytes.Buffer) error { return webp.Encode(b, img, &webp.Options{Lossless: true, Method: 4}) },
	} {
		var b bytes.Buffer
		if err := encode(&b); err != nil {
			t.Fatal(err)
		}
		all[name] = b.Bytes()
	}
	return all
}

func TestDecodeInsideAndOutsideAgree(t *testing.T) {
	t.Parallel()
	outside := Options{FFmpeg: runner(t), heap: 1}
	for name, content := range encodings(t, scene(203, 101)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, want := decoded(t, Options{}, content)
			p, got := decoded(t, outside, content)
			if p.file == nil {
				t.Error("raster is in memory")
			}
			// Colour at half resolution and its conversion differ a little between decoders.
			most := map[string]float64{"jpeg": 2, "lossy webp": 2}[name]
			if mean, _ := apart(t, want, got); mean > most {
				t.Errorf("mean difference is %.2f codes, want at most %.1f", mean, most)
			}
		})
	}
}

func TestDecodeOutsideRefusesWhatIsCutOff(t *testing.T) {
	t.Parallel()
	outside := Options{FFmpeg: runner(t), heap: 1}
	for name, content := range encodings(t, noise(200, 150, 3)) {
		if name == "gif" {
			continue // ffmpeg fills the rest of a GIF; here GIF takes a byte a pixel and is never decoded outside
		}
		for _, options := range []Options{{}, outside} {
			path := writeFile(t, content[:len(content)*2/3])
			p, err := options.withDefaults().open(t.Context(), path, t.TempDir())
			if failure, ok := engine.AsFailure(err); !ok || failure.Code != engine.UnsupportedFormat {
				t.Errorf("%s outside %t: error = %v", name, options.FFmpeg != nil, err)
			}
			if err == nil {
				p.Close()
			}
		}
	}
}

func TestDecodeAVIF(t *testing.T) {
	t.Parallel()
	r := runner(t)
	source := filepath.Join(t.TempDir(), "picture.avif")
	makeWithFFmpeg(t, scene(96, 64), source, "-c:v", "libaom-av1", "-still-picture", "1", "-cpu-used", "8", "-crf", "10", "-pix_fmt", "yuv444p")
	content, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	p, got := decoded(t, Options{FFmpeg: r}, content)
	if p.header.format != "avif" {
		t.Errorf("format = %s", p.header.format)
	}
	if mean, _ := apart(t, scene(96, 64), got); mean > 4 {
		t.Errorf("mean difference is %.1f codes", mean)
	}
	if _, err := (Options{}).Measure(t.Context(), source); err == nil {
		t.Error("accepted without ffmpeg")
	}
}

// withOrientation puts an EXIF orientation into a JPEG.
func withOrientation(content []byte, orientation int) []byte {
	exif := []byte("Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01")
	exif = append(exif, 0, byte(orientation), 0, 0, 0, 0, 0, 0)
	segment := append([]byte{0xFF, 0xE1, 0, byte(len(exif) + 2)}, exif...)
	return append(append(bytes.Clone(content[:2]), segment...), content[2:]...)
}

// turned is the picture as the orientation asks to show it, by definition (EXIF 2.32, 4.6.4): where the stored row 0 and
// column 0 belong.
func turned(img image.Image, orientation int) *image.NRGBA {
	w, h := img.Bounds().Dx(), img.Bounds().Dy()
	out := image.NewNRGBA(image.Rect(0, 0, w, h))
	if orientation >= 5 {
		out = image.NewNRGBA(image.Rect(0, 0, h, w))
	}
	for y := range h {
		for x := range w {
			at := [9]image.Point{
				1: {x, y}, 2: {w - 1 - x, y}, 3: {w - 1 - x, h - 1 - y}, 4: {x, h - 1 - y},
				5: {y, x}, 6: {h - 1 - y, x}, 7: {h - 1 - y, w - 1 - x}, 8: {y, w - 1 - x},
			}[orientation]
			out.Set(at.X, at.Y, img.At(x, y))
		}
	}
	return out
}

func TestOrientation(t *testing.T) {
	t.Parallel()
	content := jpegBytes(t, scene(70, 130), 95)
	_, upright := decoded(t, Options{}, content)
	for orientation := 1; orientation <= 8; orientation++ {
		marked := withOrientation(content, orientation)
		want := turned(upright, orientation)
		p, got := decoded(t, Options{}, marked)
		if _, most := apart(t, want, got); most > 0 {
			t.Errorf("orientation %d in memory is wrong", orientation)
		}
		source, err := SniffPrefix(marked)
		if err != nil || source.Width != p.width || source.Height != p.height {
			t.Errorf("orientation %d: sniffed %+v, %v; decoded %dx%d", orientation, source, err, p.width, p.height)
		}
		file, err := newRaster(t.TempDir(), 70, 130, false, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := file.write(0, upright.(*image.NRGBA).Pix); err != nil {
			t.Fatal(err)
		}
		out, err := file.orient(t.Context(), orientation, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		pix := make([]byte, out.bytes())
		if err := out.read(0, 0, pix); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(pix, want.Pix) {
			t.Errorf("orientation %d in a file is wrong", orientation)
		}
		out.Close()
	}
}

func TestOrientationSamples(t *testing.T) {
	t.Parallel()
	dir := samples(t, "exif")
	for _, name := range []string{"Landscape", "Portrait"} {
		var first image.Image
		for i := 1; i <= 8; i++ {
			content, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("%s_%d.jpg", name, i)))
			if err != nil {
				t.Fatal(err)
			}
			_, got := decoded(t, Options{}, content)
			if first == nil {
				first = got
			}
			if mean, _ := apart(t, first, got); mean > 6 {
				t.Errorf("%s_%d differs from the first by %.1f codes", name, i, mean)
			}
		}
	}
}

func TestAnimationsGiveTheFirstFrame(t *testing.T) {
	t.Parallel()
	// A frame smaller than the canvas, then one that fills it.
	palette := color.Palette{color.NRGBA{}, color.NRGBA{R: 255, A: 255}, color.NRGBA{B: 255, A: 255}}
	fill := func(r image.Rectangle, index uint8) *image.Paletted {
		p := image.NewPaletted(r, palette)
		for i := range p.Pix {
			p.Pix[i] = index
		}
		return p
	}
	var g bytes.Buffer
	err := gif.EncodeAll(&g, &gif.GIF{
		Image: []*image.Paletted{fill(image.Rect(4, 6, 12, 10), 1), fill(image.Rect(0, 0, 20, 16), 2)},
		Delay: []int{1, 1}, Config: image.Config{Width: 20, Height: 16, ColorModel: palette},
	})
	if err != nil {
		t.Fatal(err)
	}
	frame := func(index uint8, r image.Rectangle) *image.NRGBA {
		img := image.NewNRGBA(r)
		for y := range r.Dy() {
			for x := range r.Dx() {
				img.Set(r.Min.X+x, r.Min.Y+y, palette[index])
			}
		}
		return img
	}
	for name, content := range map[string][]byte{
		"gif":  g.Bytes(),
		"webp": animatedWebP(t, 20, 16, image.Pt(4, 6), frame(1, image.Rect(0, 0, 8, 4)), frame(2, image.Rect(0, 0, 20, 16))),
	} {
		p, got := decoded(t, Options{}, content)
		if p.width != 20 || p.height != 16 || !p.alpha {
			t.Errorf("%s: %dx%d alpha %t", name, p.width, p.height, p.alpha)
		}
		inside, outside := color.NRGBAModel.Convert(got.At(6, 8)).(color.NRGBA), color.NRGBAModel.Convert(got.At(1, 1)).(color.NRGBA)
		if inside.R < 250 || inside.B > 5 || inside.A != 255 || outside.A != 0 {
			t.Errorf("%s: inside %v, outside %v", name, inside, outside)
		}
	}
}

// animatedWebP puts two lossless stills into an animation, the first at the given place.
func animatedWebP(t testing.TB, width, height int, at image.Point, frames ...*image.NRGBA) []byte {
	t.Helper()
	put24 := func(b []byte, v int) []byte { return append(b, byte(v), byte(v>>8), byte(v>>16)) }
	chunk := func(name string, payload []byte) []byte {
		b := binary.LittleEndian.AppendUint32([]byte(name), uint32(len(payload)))
		b = append(b, payload...)
		if len(payload)%2 == 1 {
			b = append(b, 0)
		}
		return b
	}
	body := []byte("WEBP")
	body = append(body, chunk("VP8X", put24(put24([]byte{0x12, 0, 0, 0}, width-1), height-1))...)
	body = append(body, chunk("ANIM", make([]byte, 6))...)
	for i, frame := range frames {
		var still bytes.Buffer
		if err := webp.Encode(&still, frame, &webp.Options{Lossless: true, Method: 2}); err != nil {
			t.Fatal(err)
		}
		place := image.Point{}
		if i == 0 {
			place = at
		}
		head := put24(put24(nil, place.X/2), place.Y/2)
		head = put24(put24(head, frame.Rect.Dx()-1), frame.Rect.Dy()-1)
		head = append(put24(head, 100), 0)
		body = append(body, chunk("ANMF", append(head, still.Bytes()[12:]...))...)
	}
	return append(binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(len(body))), body...)
}

func TestPNGReaderAgreesWithTheStandardLibrary(t *testing.T) {
	t.Parallel()
	rect := image.Rect(0, 0, 37, 23)
	coloured := noise(37, 23, 7)
	opaque := scene(37, 23)
	deep := image.NewNRGBA64(rect)
	copy(deep.Pix, append(bytes.Clone(coloured.Pix), opaque.Pix...))
	grey, grey16 := image.NewGray(rect), image.NewGray16(rect)
	copy(grey.Pix, coloured.Pix)
	copy(grey16.Pix, coloured.Pix)
	images := map[string]image.Image{"rgba": coloured, "rgb": opaque, "rgba16": deep, "grey": grey, "grey16": grey16}
	for _, n := range []int{2, 4, 16, 256} {
		p := image.NewPaletted(rect, nil)
		for i := range n {
			p.Palette = append(p.Palette, color.NRGBA{uint8(i * 9), uint8(255 - i), uint8(i), uint8(255 - i%3*80)})
		}
		for i := range p.Pix {
			p.Pix[i] = uint8(i * 7 % n)
		}
		images[fmt.Sprintf("palette of %d", n)] = p
	}
	for name, img := range images {
		content := pngBytes(t, img)
		want, err := png.Decode(bytes.NewReader(content))
		if err != nil {
			t.Fatal(err)
		}
		_, got := decoded(t, Options{}, content)
		for y := range 23 {
			for x := range 37 {
				a, b := color.NRGBA64Model.Convert(want.At(x, y)), color.NRGBA64Model.Convert(got.At(x, y))
				if a != b {
					t.Fatalf("%s: pixel (%d, %d) is %v, want %v", name, x, y, b, a)
				}
			}
		}
	}
}

func TestPNGReaderInterlacedAndKeyed(t *testing.T) {
	t.Parallel()
	for _, size := range []image.Point{{1, 1}, {3, 2}, {5, 5}, {8, 8}, {37, 23}} {
		for kind, channels := range map[int]int{0: 1, 2: 3, 6: 4} {
			for _, depth := range []int{8, 16} {
				content := adam7(size.X, size.Y, kind, channels, depth)
				want, err := png.Decode(bytes.NewReader(content))
				if err != nil {
					t.Fatal(err)
				}
				_, got := decoded(t, Options{}, content)
				if _, most := apart(t, want, got); most > 0 {
					t.Errorf("%v kind %d depth %d differs", size, kind, depth)
				}
			}
		}
	}
	// A grey picture whose code 5 is transparent.
	var b bytes.Buffer
	if err := png.Encode(&b, &image.Gray{Pix: []byte{4, 5, 6, 7}, Stride: 2, Rect: image.Rect(0, 0, 2, 2)}); err != nil {
		t.Fatal(err)
	}
	keyed := insertChunk(b.Bytes(), "tRNS", []byte{0, 5})
	p, got := decoded(t, Options{}, keyed)
	if _, _, _, a := got.At(1, 0).RGBA(); a != 0 || !p.alpha {
		t.Error("the key colour is not transparent")
	}
	if source, err := SniffPrefix(keyed); err != nil || !source.Alpha {
		t.Errorf("sniffed %+v, %v", source, err)
	}
}
