package image

import (
	"bytes"
	"errors"
	"image"
	"os"
	"path/filepath"
	"testing"

	"enlarger/engine"
)

// seeds adds small files of every format, and the broken samples where they are at hand.
func seeds(f *testing.F) {
	f.Helper()
	for _, content := range encodings(f, scene(9, 7)) {
		f.Add(content)
	}
	f.Add(withOrientation(jpegBytes(f, scene(5, 4), 80), 6))
	f.Add(adobeCMYK(f, scene(9, 9)))
	kinds, _ := jpegKinds(f)
	for _, content := range kinds {
		f.Add(content)
	}
	f.Add(adam7(9, 9, 2, 3, 8))
	f.Add(adam7(3, 3, 6, 4, 16))
	f.Add(insertChunk(pngBytes(f, scene(3, 3)), "iCCP", append([]byte("n\x00\x00"), zlibBytes(displayP3())...)))
	f.Add(webpWithProfile(f, scene(4, 4), displayP3()))
	f.Add(tiffWithProfile(f, scene(4, 4), displayP3()))
	f.Add(animatedWebP(f, 8, 8, image.Pt(2, 2), scene(4, 4)))
	f.Add([]byte("\x00\x00\x00\x18ftypavif\x00\x00\x00\x00mif1avif\x00\x00\x00\x40meta\x00\x00\x00\x00\x00\x00\x00\x34iprp\x00\x00\x00\x2cipco\x00\x00\x00\x14ispe\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00\x00\x20\x00\x00\x00\x09irot\x01"))
	paths, _ := filepath.Glob(filepath.Join(os.Getenv("ENLARGER_SAMPLES"), "bad", "image", "*"))
	for _, path := range paths {
		if content, err := os.ReadFile(path); err == nil && len(content) < 16<<10 {
			f.Add(content)
		}
	}
}

func FuzzSniffPrefix(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, content []byte) {
		source, err := SniffPrefix(content)
		if err != nil {
			if failure, ok := engine.AsFailure(err); !ok || failure.Code != engine.UnsupportedFormat {
				t.Fatalf("error = %v", err)
			}
			return
		}
		if source.Format == "" || source.Width < 0 || source.Height < 0 || source.Width > maxSide || source.Height > maxSide {
			t.Fatalf("source = %+v", source)
		}
		whole, err := Sniff(bytes.NewReader(content), int64(len(content)))
		if source.Known() && (err != nil || whole.Width != source.Width || whole.Height != source.Height) {
			t.Fatalf("prefix %+v, whole %+v, %v", source, whole, err)
		}
	})
}

func FuzzDecode(f *testing.F) {
	seeds(f)
	options := Options{SourcePixels: 1 << 20, Turbo: turbo(f)}.withDefaults()
	f.Fuzz(func(t *testing.T, content []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "source")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := options.open(t.Context(), path, dir)
		if err != nil {
			if _, ok := engine.AsFailure(err); !ok || errors.Is(err, errScratch) {
				t.Fatalf("error is no failure: %v", err)
			}
			return
		}
		defer p.Close()
		if source, err := Sniff(bytes.NewReader(content), int64(len(content))); err != nil || source.Width != p.width || source.Height != p.height {
			t.Fatalf("sniffed %+v, %v; decoded %dx%d", source, err, p.width, p.height)
		}
		row := make([]byte, p.width*p.pixelBytes())
		if err := p.read(0, p.height-1, row); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzProfile(f *testing.F) {
	f.Add(displayP3())
	f.Add(rgbProfile(curveTag(0x01CD), srgbR, srgbG, srgbB))
	f.Add(rgbProfile(curveTag(0, 100, 65535), srgbR, srgbG, srgbB))
	f.Add(profile("GRAY", "XYZ ", map[string][]byte{"kTRC": paraTag(4, 2.4, 1, 0, 1, 0, 0, 0)}, "kTRC"))
	f.Fuzz(func(t *testing.T, content []byte) {
		transform, err := parseProfile(content)
		if err != nil && !errors.Is(err, errProfile) {
			t.Fatal(err)
		}
		if err != nil {
			return
		}
		pixels := noise(4, 4, 1).Pix
		want := bytes.Clone(pixels)
		transform.apply(pixels, false)
		transform.apply(bytes.Clone(want), true)
		for i := 3; i < len(pixels); i += 4 {
			if pixels[i] != want[i] {
				t.Fatal("alpha changed")
			}
		}
	})
}
