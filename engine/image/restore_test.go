package image

import (
	"bytes"
	"fmt"
	"image"
	"image/jpeg"
	"math"
	"slices"
	"testing"
)

func TestQuantiserIsRead(t *testing.T) {
	t.Parallel()
	for _, quality := range []int{5, 10, 30, 50, 75, 90, 97} {
		for name, img := range map[string]image.Image{"colour": scene(40, 30), "grey": greenOnly(scene(40, 30))} {
			q, err := readQuantiser(writeFile(t, jpegBytes(t, img, quality)))
			if err != nil {
				t.Fatal(err)
			}
			if d := q.quality() - quality; d < -2 || d > 2 {
				t.Errorf("%s of quality %d is taken for %d", name, quality, q.quality())
			}
			if noise := q.noise(false); q.colour <= 0 || noise.luma <= 0 || noise.chroma <= 0 {
				t.Errorf("%s: %+v, %+v", name, q, noise)
			}
		}
	}
	for name, content := range map[string][]byte{"nothing": nil, "png": pngBytes(t, scene(3, 3)), "cut": jpegBytes(t, scene(9, 9), 50)[:30]} {
		if q, err := readQuantiser(writeFile(t, content)); err == nil {
			t.Errorf("%s has %+v", name, q)
		}
	}
}

func FuzzQuantiser(f *testing.F) {
	f.Add(jpegBytes(f, scene(9, 9), 50))
	f.Add(jpegBytes(f, greenOnly(scene(9, 9)), 90))
	f.Add([]byte("\xFF\xD8\xFF\xDB\x00\x43\x10"))
	f.Fuzz(func(t *testing.T, content []byte) {
		q, err := quantiserOf(&headerReader{r: bytes.NewReader(content), size: int64(len(content))})
		if err != nil {
			return
		}
		if quality := q.quality(); quality < 1 || quality > 100 || math.IsNaN(q.luma) || q.luma < 0 || q.luma > 65535 {
			t.Fatalf("%+v, quality %d", q, quality)
		}
	})
}

func TestRestoreRemovesArtefacts(t *testing.T) {
	t.Parallel()
	clean := softened(t, hardEdges(240, 200), 0.7)
	for _, c := range []struct {
		quality int
		gain    float64
	}{{10, 0.8}, {30, 0.8}} {
		for name, img := range map[string]image.Image{"colour": clean, "grey": greenOnly(clean)} {
			content := jpegBytes(t, img, c.quality)
			bad, err := jpeg.Decode(bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			out, got := job{tool: "restore", format: "png"}.must(t, content)
			before, after := psnr(t, img, bad), psnr(t, img, got)
			t.Logf("%s %d: %.2f dB -> %.2f dB, %v", name, c.quality, before, after, out.Facts)
			if after < before+c.gain {
				t.Errorf("%s %d: %.2f dB became %.2f dB", name, c.quality, before, after)
			}
			if steps, ok := out.Facts["steps"].([]string); !ok || !slices.Contains(steps, "jpeg") {
				t.Errorf("%s %d: facts = %v", name, c.quality, out.Facts)
			}
		}
	}
}

func TestRestoreLeavesSoundPhotosAlone(t *testing.T) {
	t.Parallel()
	for name, img := range map[string]*image.NRGBA{"scene": scene(200, 150), "stripes": striped(200, 150), "edges": hardEdges(240, 200)} {
		for format, content := range map[string][]byte{"png": pngBytes(t, img), "fine jpeg": jpegBytes(t, img, 95)} {
			_, same := job{tool: "denoise", format: "png"}.must(t, content)
			out, got := job{tool: "restore", format: "png"}.must(t, content)
			if p := psnr(t, same, got); p < 40 {
				t.Errorf("%s as %s: %.1f dB to itself, %v", name, format, p, out.Facts)
			}
		}
	}
}

// scratched draws scratches and dust, and says which pixels they took.
func scratched(img *image.NRGBA) (bad *image.NRGBA, taken []bool) {
	bad = image.NewNRGBA(img.Rect)
	copy(bad.Pix, img.Pix)
	w, h := img.Rect.Dx(), img.Rect.Dy()
	taken = make([]bool, w*h)
	dot := func(x, y int, v uint8) {
		if x >= 0 && y >= 0 && x < w && y < h {
			copy(bad.Pix[bad.PixOffset(x, y):], []uint8{v, v, v})
			taken[y*w+x] = true
		}
	}
	for y := range h {
		for k := range 2 {
			dot(w/3+y/12+k, y, 252)
			dot(3*w/4-y/30+k, y, 250)
		}
	}
	for _, at := range [][2]int{{w / 2, h / 5}, {w / 8, h / 2}, {w / 2, 5 * h / 6}} {
		for j := -1; j <= 1; j++ {
			for i := -1; i <= 1; i++ {
				dot(at[0]+i, at[1]+j, 255)
			}
		}
	}
	return bad, taken
}

// oldPrint is a photo without colours, dark enough that scratches show.
func oldPrint(w, h int) *image.NRGBA {
	img := scene(w, h)
	for i := 0; i < len(img.Pix); i += 4 {
		v := uint8(0.15*float64(img.Pix[i]) + 0.4*float64(img.Pix[i+1]) + 0.3*float64(img.Pix[i+2]))
		img.Pix[i], img.Pix[i+1], img.Pix[i+2] = v, v, v
	}
	return img
}

func TestRestoreFillsScratches(t *testing.T) {
	t.Parallel()
	whole := oldPrint(300, 260)
	bad, taken := scratched(whole)
	found := findScratches(plain(bad), 300, 260)
	if found == nil {
		t.Fatal("no scratches found")
	}
	if found.lines < 2 || found.spots < 2 {
		t.Errorf("found %d lines and %d spots", found.lines, found.spots)
	}
	found.fit(300, 260)
	missed, wrong := 0, 0
	for i, is := range taken {
		if is && !found.mask[i] {
			missed++
		}
	}
	p, err := patchOf(laidOut(bad), -40, -40, 380, 340)
	if err != nil {
		t.Fatal(err)
	}
	found.fill(p)
	for i := range taken {
		got := 255 * float64(p.planes[0][(i/300+40)*p.width+i%300+40])
		d := math.Abs(got - float64(whole.Pix[4*i]))
		if !taken[i] && !found.mask[i] && d > 0.01 {
			wrong++
		}
	}
	if missed > len(taken)/200 || wrong > 0 {
		t.Errorf("%d pixels of scratches missed, %d others changed", missed, wrong)
	}
	_, got := job{tool: "restore", format: "png"}.must(t, pngBytes(t, bad))
	before, after := psnr(t, whole, bad), psnr(t, whole, got)
	t.Logf("%d lines, %d spots: %.2f dB -> %.2f dB", found.lines, found.spots, before, after)
	if after < before+6 {
		t.Errorf("%.2f dB became %.2f dB", before, after)
	}
}

func plain(img *image.NRGBA) []float32 {
	bright := make([]float32, len(img.Pix)/4)
	for i := range bright {
		bright[i] = lumaRed*float32(img.Pix[4*i])/255 + lumaGreen*float32(img.Pix[4*i+1])/255 + lumaBlue*float32(img.Pix[4*i+2])/255
	}
	return bright
}

// TestRestoreLeavesLinesAlone holds the search for scratches to what is no scratch: lines of a coloured photo, texture, short strokes.
func TestRestoreLeavesLinesAlone(t *testing.T) {
	t.Parallel()
	coloured, _ := scratched(scene(300, 260))
	out, got := job{tool: "restore", format: "png"}.must(t, pngBytes(t, coloured))
	if p := psnr(t, coloured, got); p < 40 {
		t.Errorf("lines in a coloured photo: %.1f dB, %v", p, out.Facts)
	}
	for name, img := range map[string]*image.NRGBA{"stripes": striped(300, 200), "edges": hardEdges(240, 200)} {
		if found := findScratches(plain(img), img.Rect.Dx(), img.Rect.Dy()); found != nil {
			t.Errorf("%s: %d lines, %d spots", name, found.lines, found.spots)
		}
	}
}

// fadedPhoto squeezes the range of a photo with many tones and tints it.
func fadedPhoto(w, h int) (sound, faded *image.NRGBA) {
	sound = scene(w, h)
	for y := range h {
		for x := range w {
			at := sound.PixOffset(x, y)
			light := 0.5 + 0.5*math.Sin(float64(x)/23)*math.Cos(float64(y)/31)
			for c := range 3 {
				sound.Pix[at+c] = uint8(min(max(float64(sound.Pix[at+c])*1.3*light+4, 0), 252))
			}
		}
	}
	faded = image.NewNRGBA(sound.Rect)
	for i, v := range sound.Pix {
		faded.Pix[i] = v
		if i%4 != 3 {
			low, high := [3]float64{90, 70, 50}[i%4], [3]float64{215, 190, 160}[i%4]
			faded.Pix[i] = uint8(low + (high-low)*float64(v)/255)
		}
	}
	return sound, faded
}

func TestRestoreBringsFadedTonesBack(t *testing.T) {
	t.Parallel()
	sound, faded := fadedPhoto(240, 200)
	out, got := job{tool: "restore", format: "png"}.must(t, pngBytes(t, faded))
	before, after := psnr(t, sound, faded), psnr(t, sound, got)
	t.Logf("%.2f dB -> %.2f dB, %v", before, after, out.Facts)
	if steps, ok := out.Facts["steps"].([]string); !ok || !slices.Contains(steps, "fading") || after < before+3 {
		t.Errorf("%.2f dB became %.2f dB, %v", before, after, out.Facts)
	}
	out, got = job{tool: "restore", format: "png"}.must(t, pngBytes(t, sound))
	if p := psnr(t, sound, got); p < 40 {
		t.Errorf("a sound photo: %.1f dB to itself, %v", p, out.Facts)
	}
}

func TestRestoreHasNoSeams(t *testing.T) {
	t.Parallel()
	bad, _ := scratched(oldPrint(230, 180))
	source := laidOut(grainy(bad, 9, 13))
	r := &restoration{facts: map[string]any{}, steps: []string{"all"}}
	r.scratches = findScratches(plain(bad), 230, 180)
	if r.scratches == nil {
		t.Fatal("no scratches found")
	}
	r.scratches.fit(230, 180)
	noise := noiseModel{luma: 9.0 / 255, chroma: 9.0 / 255}
	r.clean = &cleaner{own: newDenoiser(source, noise)}
	r.sharpen = newDeconvolution(1, noise, false)
	_, faded := fadedPhoto(230, 180)
	small, err := patchOf(laidOut(faded), 0, 0, 230, 180)
	if err != nil {
		t.Fatal(err)
	}
	if r.tone, _ = toneOf(small, 230, 180, false); r.tone == nil {
		t.Fatal("a faded photo is taken for sound")
	}
	if most := seamless(t, source, r.prepared().filter); most > 0.5 {
		t.Errorf("squares and the whole differ by %.2f codes, margin %s", most, fmt.Sprint(r.prepared().filter.margin))
	}
}
