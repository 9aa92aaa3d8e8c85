package main

import (
	"bytes"
	"image"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/image/bmp"
)

// textured is a picture of stripes, a disc and a slope.
func textured(side int) *picture {
	return newPicture(side, side).each(func(x, y int, to []float32) {
		v := 90 + 60*math.Sin(float64(x)/5)*math.Cos(float64(y)/7) + float64(x)/2
		if math.Hypot(float64(x-side/2), float64(y-side/2)) < float64(side)/5 {
			v = 210 - float64(y)/3
		}
		to[0], to[1], to[2] = float32(math.Round(v)), float32(math.Round(0.8*v+20)), float32(math.Round(255-v))
	})
}

func writePNG(t *testing.T, p *picture, path ...string) {
	t.Helper()
	content, err := p.png()
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestQualityMeasuresThroughTheEngine prints every table of made pictures and looks at what stands in it.
func TestQualityMeasuresThroughTheEngine(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	original := textured(128)
	for _, set := range []string{"Set5", "Set14"} {
		for scale, name := range map[int]string{2: "SRF_2", 4: "SRF_4"} {
			folder := filepath.Join(data, "bench", set, map[int]string{2: "x2", 4: "x4"}[scale])
			writePNG(t, original, folder, "a_"+name+"_HR.png")
			small := newPicture(128/scale, 128/scale).each(func(x, y int, to []float32) {
				for i := range scale * scale {
					for c, v := range original.at(x*scale+i%scale, y*scale+i/scale) {
						to[c] += v / float32(scale*scale)
					}
				}
			})
			writePNG(t, small, folder, "a_"+name+"_LR.png")
		}
	}
	writePNG(t, original, data, "bench", "CBSD68", "a.png")
	var plain bytes.Buffer
	grey := original.each(func(x, y int, to []float32) {
		for c := range to {
			to[c] = original.at(x, y)[0]
		}
	})
	if err := bmp.Encode(&plain, grey.image()); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(data, "bench", "classic5")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(folder, "a.bmp"), plain.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sheets := t.TempDir()
	var out strings.Builder
	if err := quality(t.Context(), []string{"-data", data, "-sheets", sheets, "-quick", "-neural=false"}, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, tool := range []string{"upscale", "denoise", "sharpen", "restore"} {
		if !strings.Contains(out.String(), "### "+tool) {
			t.Errorf("no table of %s in %s", tool, out.String())
		}
		f, err := os.Open(filepath.Join(sheets, tool+".png"))
		if err != nil {
			t.Error(err)
			continue
		}
		if _, _, err := image.Decode(f); err != nil {
			t.Errorf("sheet of %s: %v", tool, err)
		}
		_ = f.Close()
	}
	for _, method := range []string{"bm3d", "wiener", "| CBSD68 (1) | noise 25 |", "| classic5 (1) | JPEG 10 |"} {
		if !strings.Contains(out.String(), method) {
			t.Errorf("no %q in %s", method, out.String())
		}
	}
}

func TestQualityRefusesBadFlags(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{nil, {"-data", t.TempDir(), "-tools", "frob"}, {"-data", t.TempDir()}, {"-data", "x", "-every", "0"}, {"-data", "x", "rest"}} {
		if err := quality(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
}

func TestFidelity(t *testing.T) {
	t.Parallel()
	p := textured(64)
	off := p.each(func(x, y int, to []float32) {
		for c, v := range p.at(x, y) {
			to[c] = v + 2
		}
	})
	same, apart := trial{}.measure(p, p), trial{}.measure(p, off)
	if same.psnr != 60 || math.Abs(same.ssim-1) > 1e-9 {
		t.Errorf("a picture and itself: %v", same)
	}
	if want := 20 * math.Log10(255.0/2); math.Abs(apart.psnr-want) > 0.01 || apart.ssim >= 1 || apart.ssim < 0.9 {
		t.Errorf("two codes apart: %v, want %.2f", apart, want)
	}
}

// TestPeersMend holds every peer to doing some good, so that none is a straw man by a fault.
func TestPeersMend(t *testing.T) {
	t.Parallel()
	p := textured(96)
	dir := t.TempDir()
	for _, tr := range trials() {
		if tr.tool == "upscale" || strings.Contains(tr.damage, "20") || strings.Contains(tr.damage, "50") {
			continue
		}
		if tr.damage == "noise 0" || tr.damage == "noise 5" {
			continue // of which a median makes more harm than good
		}
		content, err := tr.spoil("", p, 1)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, strings.ReplaceAll(tr.damage, " ", "-"))
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		spoilt, err := readPicture(path)
		if err != nil {
			t.Fatal(err)
		}
		before := tr.measure(p, spoilt)
		for _, r := range tr.peers {
			after := tr.measure(p, r.mend(spoilt))
			t.Logf("%s, %s: %v -> %v", tr.damage, r.name, before, after)
			if better := after.psnr > before.psnr; !better && tr.tool != "restore" {
				t.Errorf("%s, %s: %v became %v", tr.damage, r.name, before, after)
			}
		}
	}
}
