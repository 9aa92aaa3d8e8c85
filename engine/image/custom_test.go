package image

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"math"
	"os"
	"strings"
	"testing"

	"enlarger/engine"
)

// edited runs custom on a picture.
func edited(t *testing.T, prompt string, img image.Image) (engine.Output, *image.NRGBA) {
	t.Helper()
	out, got := job{tool: "custom", config: fmt.Sprintf(`{"prompt":%q}`, prompt), format: "png"}.must(t, pngBytes(t, img))
	n := image.NewNRGBA(image.Rect(0, 0, out.Width, out.Height))
	for y := range out.Height {
		for x := range out.Width {
			n.Set(x, y, got.At(x, y))
		}
	}
	return out, n
}

// means are the mean codes of red, green and blue.
func means(img *image.NRGBA) (sums [3]float64) {
	for i := 0; i < len(img.Pix); i += 4 {
		for c := range sums {
			sums[c] += float64(img.Pix[i+c]) / float64(len(img.Pix)/4)
		}
	}
	return sums
}

// roughness is the mean step between neighbours.
func roughness(img *image.NRGBA) float64 {
	sum := 0.0
	for i := 4; i < len(img.Pix); i++ {
		sum += math.Abs(float64(img.Pix[i])-float64(img.Pix[i-4])) / float64(len(img.Pix))
	}
	return sum
}

func TestCustomChangesWhatItSays(t *testing.T) {
	t.Parallel()
	src := scene(160, 120)
	was := means(src)
	sum := func(m [3]float64) float64 { return m[0] + m[1] + m[2] }
	for _, c := range []struct {
		prompt string
		holds  func(got *image.NRGBA, m [3]float64) bool
	}{
		{"brighter", func(_ *image.NRGBA, m [3]float64) bool { return sum(m) > sum(was)+15 }},
		{"darker", func(_ *image.NRGBA, m [3]float64) bool { return sum(m) < sum(was)-15 }},
		{"exposure -1", func(_ *image.NRGBA, m [3]float64) bool { return sum(m) < sum(was)-40 }},
		{"warmer", func(_ *image.NRGBA, m [3]float64) bool { return m[0]-m[2] > was[0]-was[2]+8 }},
		{"cooler", func(_ *image.NRGBA, m [3]float64) bool { return m[0]-m[2] < was[0]-was[2]-8 }},
		{"greener", func(_ *image.NRGBA, m [3]float64) bool { return m[1]-m[2] > was[1]-was[2]+3 }},
		{"black and white", func(got *image.NRGBA, _ [3]float64) bool { return rasterFrom(got).grey }},
		{"black and white, then sepia", func(got *image.NRGBA, m [3]float64) bool { return !rasterFrom(got).grey && m[0] > m[2] }},
		{"invert", func(got *image.NRGBA, _ [3]float64) bool { return got.Pix[0] == 255-src.Pix[0] }},
		{"more contrast", func(got *image.NRGBA, _ [3]float64) bool { return roughness(got) > 1.03*roughness(src) }},
		{"blur", func(got *image.NRGBA, _ [3]float64) bool { return roughness(got) < 0.99*roughness(src) }},
		{"very strong blur", func(got *image.NRGBA, _ [3]float64) bool { return roughness(got) < 0.95*roughness(src) }},
		{"add grain", func(got *image.NRGBA, _ [3]float64) bool { return roughness(got) > 1.3*roughness(src) }},
		{"dark corners", func(got *image.NRGBA, _ [3]float64) bool {
			return got.NRGBAAt(159, 119).R < src.NRGBAAt(159, 119).R-20 && got.NRGBAAt(80, 60) == src.NRGBAAt(80, 60)
		}},
		{"vintage", func(_ *image.NRGBA, m [3]float64) bool { return m[2] < was[2] }},
		{"mirror", func(got *image.NRGBA, _ [3]float64) bool { return got.NRGBAAt(0, 7) == src.NRGBAAt(159, 7) }},
		{"flip vertically", func(got *image.NRGBA, _ [3]float64) bool { return got.NRGBAAt(3, 0) == src.NRGBAAt(3, 119) }},
		{"rotate right", func(got *image.NRGBA, _ [3]float64) bool {
			return got.Rect.Dx() == 120 && got.NRGBAAt(119, 0) == src.NRGBAAt(0, 0)
		}},
		{"rotate left", func(got *image.NRGBA, _ [3]float64) bool {
			return got.Rect.Dx() == 120 && got.NRGBAAt(0, 159) == src.NRGBAAt(0, 0)
		}},
		{"upside down", func(got *image.NRGBA, _ [3]float64) bool { return got.NRGBAAt(0, 0) == src.NRGBAAt(159, 119) }},
		{"square", func(got *image.NRGBA, _ [3]float64) bool {
			return got.Rect.Dx() == 120 && got.NRGBAAt(0, 0) == src.NRGBAAt(20, 0)
		}},
		{"crop to 100x50 at the bottom", func(got *image.NRGBA, _ [3]float64) bool {
			return got.Rect.Dy() == 50 && got.NRGBAAt(0, 49) == src.NRGBAAt(30, 119)
		}},
		{"half the size", func(got *image.NRGBA, m [3]float64) bool { return got.Rect.Dx() == 80 && math.Abs(sum(m)-sum(was)) < 1 }},
		{"3 times larger", func(got *image.NRGBA, m [3]float64) bool {
			return got.Rect.Dx() == 480 && math.Abs(sum(m)-sum(was)) < 1
		}},
		{"resize to 50x50", func(got *image.NRGBA, _ [3]float64) bool { return got.Rect.Dx() == 50 && got.Rect.Dy() == 50 }},
		{"fit within 80x80", func(got *image.NRGBA, _ [3]float64) bool { return got.Rect.Dx() == 80 && got.Rect.Dy() == 60 }},
		{"fit within 500x500", func(got *image.NRGBA, _ [3]float64) bool { return got.Rect.Dx() == 160 }},
		{"a 7 px red border", func(got *image.NRGBA, _ [3]float64) bool {
			return got.Rect.Dx() == 174 && got.NRGBAAt(6, 60) == color.NRGBA{255, 0, 0, 255} && got.NRGBAAt(7, 7) == src.NRGBAAt(0, 0)
		}},
		{"sketch", func(got *image.NRGBA, _ [3]float64) bool { return rasterFrom(got).grey }},
	} {
		out, got := edited(t, c.prompt, src)
		if !c.holds(got, means(got)) {
			t.Errorf("%q does not show: means %.0f, were %.0f, roughness %.2f, was %.2f, size %v", c.prompt, means(got), was, roughness(got), roughness(src), got.Rect)
		}
		if plan, ok := out.Facts["plan"].([]map[string]any); !ok || len(plan) == 0 || plan[0]["op"] == "" {
			t.Errorf("%q: the output tells no plan: %v", c.prompt, out.Facts)
		}
	}
}

// TestCustomDoesNothingByHalves checks that steps which undo each other give the picture back, which needs more than 8 bits between them.
func TestCustomDoesNothingByHalves(t *testing.T) {
	t.Parallel()
	src := scene(90, 70)
	for _, prompt := range []string{"invert, invert", "rotate left, rotate right", "mirror, flip", "40% darker, rotate left, 40% brighter, rotate right", "rotate 180, invert, rotate 180, invert"} {
		_, got := edited(t, prompt, src)
		if mean, most := apart(t, src, got); most > 3 || mean > 0.5 {
			t.Errorf("%q: %.2f codes apart, at most %.0f", prompt, mean, most)
		}
	}
}

// TestCustomUsesTheTools asks for what other tools do: their own facts stand in the output, and the noise that one step adds the next takes away.
func TestCustomUsesTheTools(t *testing.T) {
	t.Parallel()
	src := scene(160, 120)
	soft, got := edited(t, "sharpen", src)
	if soft.Facts["sharpen"] == nil || roughness(got) <= roughness(src) {
		t.Errorf("sharpen: %v, roughness %.2f, was %.2f", soft.Facts, roughness(got), roughness(src))
	}
	old := image.NewNRGBA(src.Rect) // faded
	for i, v := range src.Pix {
		old.Pix[i] = uint8(90 + int(v)/4)
		if i%4 == 3 {
			old.Pix[i] = 255
		}
	}
	mended, got := edited(t, "restore this old photo", old)
	if mended.Facts["restore"] == nil || roughness(got) < 1.5*roughness(old) {
		t.Errorf("restore: %v, roughness %.2f, was %.2f", mended.Facts, roughness(got), roughness(old))
	}
	_, grainy := edited(t, "add noise", src)
	clean, got := edited(t, "add noise, remove noise", src)
	if clean.Facts["denoise"] == nil || roughness(got) > 0.8*roughness(grainy) {
		t.Errorf("denoise: %v, roughness %.2f, was %.2f", clean.Facts, roughness(got), roughness(grainy))
	}
}

func TestCustomKeepsAlpha(t *testing.T) {
	t.Parallel()
	src := noise(64, 48, 3)
	for _, prompt := range []string{"brighter", "sepia and contrast", "vintage"} {
		_, got := edited(t, prompt, src)
		for i := 3; i < len(src.Pix); i += 4 {
			if got.Pix[i] != src.Pix[i] {
				t.Fatalf("%q: alpha %d was %d", prompt, got.Pix[i], src.Pix[i])
			}
		}
	}
}

func TestCustomEnhanceIsCareful(t *testing.T) {
	t.Parallel()
	dull := scene(200, 150)
	for i := range dull.Pix {
		if i%4 < 3 {
			dull.Pix[i] = uint8(60 + float64(dull.Pix[i])*0.3)
		}
	}
	_, got := edited(t, "enhance", dull)
	if roughness(got) < 1.2*roughness(dull) {
		t.Errorf("a dull picture stays dull: %.2f, was %.2f", roughness(got), roughness(dull))
	}
	// A picture with every tone, evenly, and no cast: nothing much to mend.
	good := image.NewNRGBA(image.Rect(0, 0, 256, 64))
	for i := 0; i < len(good.Pix); i += 4 {
		v := uint8(i / 4 % 256)
		copy(good.Pix[i:], []uint8{v, v, v, 255})
	}
	_, got = edited(t, "enhance", good)
	if mean, _ := apart(t, good, got); mean > 8 {
		t.Errorf("a good picture changes by %.1f codes", mean)
	}
}

func TestCustomFails(t *testing.T) {
	t.Parallel()
	content := writeFile(t, pngBytes(t, scene(40, 30)))
	for _, c := range []struct {
		prompt, says string
		code         engine.Code
	}{
		{"put a cat on the sofa", `"cat"`, engine.ProcessingFailed},
		{"put a cat on the sofa", "Understood are", engine.ProcessingFailed},
		{"ai: a cat on a sofa", "no model server", engine.ProcessingFailed},
		{"resize to 200000x200000, resize to 10x10", "limit is 200 megapixels", engine.ResolutionLimitExceeded},
		{strings.Repeat("unheard ", 100), "...", engine.ProcessingFailed},
	} {
		_, _, err := job{tool: "custom", config: fmt.Sprintf(`{"prompt":%q}`, c.prompt), format: "png"}.run(t.Context(), t, content)
		f, ok := engine.AsFailure(err)
		if !ok || f.Code != c.code || !strings.Contains(f.Message, c.says) || len(f.Message) > 1000 {
			t.Errorf("%q: %v", c.prompt, err)
		}
	}
}

func TestCustomAtOddSizes(t *testing.T) {
	t.Parallel()
	for _, size := range [][2]int{{1, 1}, {1, 20000}, {20000, 1}} {
		for _, prompt := range []string{"brighter, blur, vignette", "crop to 16:9, rotate left", "enhance and half the size", "upscale 2x, add a border"} {
			edited(t, prompt, scene(size[0], size[1]))
		}
	}
}

func TestCustomStops(t *testing.T) {
	t.Parallel()
	content := writeFile(t, pngBytes(t, scene(600, 500)))
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the client has gone")
	j := job{tool: "custom", config: `{"prompt":"oil painting, upscale 4x, blur"}`, format: "png", progress: func(float64) { cancel(gone) }}
	if _, _, err := j.run(ctx, t, content); !errors.Is(err, gone) {
		t.Error(err)
	}
}

// TestCustomAsksTheModelServer stands in for the room that speaks HTTP.
func TestCustomAsksTheModelServer(t *testing.T) {
	t.Parallel()
	src := scene(120, 90)
	answering := func(answer func(Edit) error) job {
		return job{tool: "custom", config: `{"prompt":"AI: put a cat on the sofa"}`, format: "png", options: Options{Edit: func(_ context.Context, e Edit) error { return answer(e) }}}
	}
	var asked Edit
	out, got := answering(func(e Edit) error {
		asked = e
		sent := decodeFile(t, e.Input)
		if mean, _ := apart(t, src, sent); mean > 0 {
			t.Errorf("the source arrives %.2f codes different", mean)
		}
		return os.WriteFile(e.Output, jpegBytes(t, scene(240, 180), 95), 0o600) // larger, and another format
	}).must(t, pngBytes(t, src))
	if asked.Prompt != "put a cat on the sofa" || asked.Width != 120 || asked.Height != 90 || out.Facts["method"] != "model server" || out.Facts["answer_width"] != 240 {
		t.Errorf("asked %+v, got %+v", asked, out)
	}
	if mean, _ := apart(t, src, got); mean > 3 {
		t.Errorf("the answer arrives %.2f codes different", mean)
	}
	for name, answer := range map[string]func(Edit) error{
		"no image":           func(e Edit) error { return os.WriteFile(e.Output, []byte("<html>"), 0o600) },
		"nothing":            func(Edit) error { return nil },
		"cut off":            func(e Edit) error { return os.WriteFile(e.Output, pngBytes(t, src)[:2000], 0o600) },
		"another proportion": func(e Edit) error { return os.WriteFile(e.Output, pngBytes(t, scene(90, 120)), 0o600) },
		"a refusal":          func(Edit) error { return engine.Failf(engine.ProcessingFailed, "No.") },
	} {
		_, _, err := answering(answer).run(t.Context(), t, writeFile(t, pngBytes(t, src)))
		f, ok := engine.AsFailure(err)
		if name == "nothing" { // a fault of ours or of the client's function: internal
			if err == nil || ok {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if !ok || f.Code != engine.ProcessingFailed {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCustomBackgrounds cuts a disc out of a plain ground.
func TestCustomBackgrounds(t *testing.T) {
	t.Parallel()
	src := image.NewNRGBA(image.Rect(0, 0, 200, 160))
	for y := range 160 {
		for x := range 200 {
			c := color.NRGBA{200, 205, uint8(209 + (x+y)%3), 255}
			if math.Hypot(float64(x-100), float64(y-80)) < 50 {
				c = color.NRGBA{170, 40, uint8(30 + x%3), 255}
			}
			src.SetNRGBA(x, y, c)
		}
	}
	for _, c := range []struct {
		prompt        string
		corner, inner color.NRGBA
		near          float64
	}{
		{"remove the background", color.NRGBA{}, src.NRGBAAt(100, 80), 6},
		{"make the background #00f", color.NRGBA{0, 0, 255, 255}, src.NRGBAAt(100, 80), 6},
		{"blur the background", color.NRGBA{200, 205, 210, 255}, src.NRGBAAt(100, 80), 8},
		{"remove the background, then invert", color.NRGBA{}, color.NRGBA{85, 215, 224, 255}, 6},
	} {
		out, got := edited(t, c.prompt, src)
		for _, at := range []struct {
			x, y int
			want color.NRGBA
		}{{4, 4, c.corner}, {100, 80, c.inner}} {
			n := got.NRGBAAt(at.x, at.y)
			if d := math.Abs(float64(n.R)-float64(at.want.R)) + math.Abs(float64(n.G)-float64(at.want.G)) + math.Abs(float64(n.B)-float64(at.want.B)) + math.Abs(float64(n.A)-float64(at.want.A)); d > 2*c.near {
				t.Errorf("%q: pixel %d,%d is %v, want %v", c.prompt, at.x, at.y, n, at.want)
			}
		}
		if out.Facts["background"] == nil {
			t.Errorf("%q: no facts of the background: %v", c.prompt, out.Facts)
		}
	}
}
