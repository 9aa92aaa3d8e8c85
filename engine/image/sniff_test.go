package image

import (
	"bytes"
	"strings"
	"testing"

	"enlarger/engine"
)

func TestSniffPrefix(t *testing.T) {
	t.Parallel()
	for name, content := range encodings(t, scene(61, 43)) {
		format := name[strings.LastIndex(name, " ")+1:]
		source, err := SniffPrefix(content)
		if err != nil || source.Width != 61 || source.Height != 43 || source.Format != format {
			t.Errorf("%s: %+v, %v", name, source, err)
		}
		if source, err = Sniff(bytes.NewReader(content), int64(len(content))); err != nil || source.Size != int64(len(content)) || !source.Known() {
			t.Errorf("%s whole: %+v, %v", name, source, err)
		}
		// Every shorter prefix is either recognised or not, never wrong.
		for n := range min(len(content), 400) {
			source, err := SniffPrefix(content[:n])
			if err != nil && n >= 16 && format != "bmp" {
				t.Fatalf("%s: refused with %d bytes: %v", name, n, err)
			}
			if err == nil && source.Known() && (source.Width != 61 || source.Height != 43) {
				t.Fatalf("%s: %+v with %d bytes", name, source, n)
			}
		}
	}
}

func TestSniffPrefixSizeBehindIt(t *testing.T) {
	t.Parallel()
	content := jpegBytes(t, scene(30, 20), 90)
	long := bytes.Clone(content[:2])
	for range 3 { // three full comment segments put the size behind the first 128 KiB
		long = append(append(long, 0xFF, 0xFE, 0xFF, 0xFF), make([]byte, 65533)...)
	}
	long = append(long, content[2:]...)
	source, err := SniffPrefix(long[:128<<10])
	if err != nil || source.Known() || source.Format != "jpeg" {
		t.Errorf("prefix: %+v, %v", source, err)
	}
	if source, err = Sniff(bytes.NewReader(long), int64(len(long))); err != nil || source.Width != 30 {
		t.Errorf("whole: %+v, %v", source, err)
	}
	if _, err = Sniff(bytes.NewReader(long[:128<<10]), 128<<10); err == nil {
		t.Error("a whole file that ends in its header is accepted")
	}
}

func TestSniffRefuses(t *testing.T) {
	t.Parallel()
	for name, content := range map[string]string{
		"nothing": "", "one byte": "\xff", "text": "BMW is a car maker, and this is a text about it, not a picture",
		"html": "<!doctype html><html></html>", "pdf": "%PDF-1.7\n%abc", "zip": "PK\x03\x04\x14\x00\x06\x00",
		"mp4":  "\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2avc1mp41",
		"heic": "\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic\x00\x00\x00\x00",
		"svg":  `<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"/>`, "avi": "RIFF\x00\x00\x00\x00AVI LIST",
		"empty jpeg": "\xff\xd8\xff\xd9\x00\x00\x00\x00",
	} {
		_, err := SniffPrefix([]byte(content))
		if failure, ok := engine.AsFailure(err); !ok || failure.Code != engine.UnsupportedFormat {
			t.Errorf("%s: error = %v", name, err)
		}
	}
}

func TestSniffAlpha(t *testing.T) {
	t.Parallel()
	img := scene(8, 8)
	img.Pix[3] = 10
	for _, name := range []string{"png", "lossless webp", "lossy webp", "tiff"} {
		content := encodings(t, img)[name]
		if source, err := SniffPrefix(content); err != nil || !source.Alpha {
			t.Errorf("%s: %+v, %v", name, source, err)
		}
	}
	if source, err := SniffPrefix(pngBytes(t, scene(8, 8))); err != nil || source.Alpha {
		t.Errorf("opaque: %+v, %v", source, err)
	}
}

func TestIsoOrientation(t *testing.T) {
	t.Parallel()
	// A turn is anticlockwise and comes before the mirror; compare with doing both.
	img := scene(5, 3)
	for turn := range 4 {
		for _, mirror := range []int{-1, 0, 1} {
			want := img
			for range turn {
				want = turned(want, 8)
			}
			switch mirror {
			case 0:
				want = turned(want, 4)
			case 1:
				want = turned(want, 2)
			}
			if _, most := apart(t, want, turned(img, isoOrientation(turn, mirror))); most > 0 {
				t.Errorf("turn %d mirror %d is wrong", turn, mirror)
			}
		}
	}
}
