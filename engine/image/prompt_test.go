package image

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// plans is what prompts become: operations with their arguments, in order.
var plans = []struct{ prompt, plan string }{
	{"make it brighter", "brightness[amount:0.25]"},
	{"Please make the photo a bit brighter and slightly warmer.", "brightness[amount:0.125] temperature[amount:0.175]"},
	{"black and white, crop to 16:9", "grayscale[] crop[keep:center ratio:16:9]"},
	{"B&W with high contrast", "grayscale[] contrast[amount:0.25]"},
	{"BLACK-AND-WHITE!!", "grayscale[]"},
	{"increase contrast by 20%, reduce saturation", "contrast[amount:0.2] saturation[amount:-0.35]"},
	{"more contrast and saturation", "contrast[amount:0.25] saturation[amount:0.35]"},
	{"it's too dark", "brightness[amount:0.25]"},
	{"the picture is too bright", "brightness[amount:-0.25]"},
	{"not so dark please", "brightness[amount:0.25]"},
	{"make it less saturated", "saturation[amount:-0.35]"},
	{"more vivid colors", "saturation[amount:0.35]"},
	{"brightness +30%, contrast -10%", "brightness[amount:0.3] contrast[amount:-0.1]"},
	{"set the contrast to 120 percent", "contrast[amount:0.2]"},
	{"contrast 1.5", "contrast[amount:0.5]"},
	{"exposure +1", "exposure[amount:0.5]"},
	{"turn it into a black-and-white photo", "grayscale[]"},
	{"give it a retro look with a vignette", "vintage[amount:1] vignette[amount:1]"},
	{"make it look like an old photo", "vintage[amount:1]"},
	{"invert the colors", "invert[]"},
	{"can you blur the background?", "background[action:blur]"},
	{"make the background blurry", "background[action:blur]"},
	{"remove the background", "background[action:remove]"},
	{"without a background", "background[action:remove]"},
	{"replace the background with light blue", "background[action:replace colour:#add8e6]"},
	{"put it on a white background", "background[action:replace colour:#ffffff]"},
	{"make the background #F80", "background[action:replace colour:#ff8800]"},
	{"remove noise", "denoise[amount:0.5]"},
	{"denoise strongly then upscale 2x", "denoise[amount:0.9] upscale[factor:2]"},
	{"add some noise", "grain[amount:0.5]"},
	{"enlarge it 3 times", "upscale[factor:3]"},
	{"twice as large", "upscale[factor:2]"},
	{"make it smaller", "resize[factor:0.5]"},
	{"reduce the size by 30%", "resize[factor:0.7]"},
	{"resize to 640 x 480", "resize[height:480 width:640]"},
	{"make it 1200 pixels wide", "resize[width:1200]"},
	{"width 800 and height 600", "resize[height:600 width:800]"},
	{"fit within 1000×900", "fit[height:900 width:1000]"},
	{"upscale to 4k", "fit[height:2160 width:3840]"},
	{"rotate by 90° counterclockwise", "rotate[degrees:270]"},
	{"turn upside down", "rotate[degrees:180]"},
	{"rotate -90 degrees", "rotate[degrees:270]"},
	{"flip it vertically", "flip[axis:vertical]"},
	{"crop to a square and keep the top", "crop[keep:top ratio:1:1]"},
	{"crop to 800x800 px", "crop[height:800 keep:center width:800]"},
	{"crop 10%", "crop[keep:center off_each_side_percent:10]"},
	{"add a 20px black border", "border[colour:#000000 pixels:20]"},
	{"a thin frame", "border[colour:#ffffff percent:2]"},
	{"turn this photo into an anime", "cartoonize[style:anime]"},
	{"make it look like a watercolor painting", "cartoonize[style:watercolor]"},
	{"sketch with white border", "cartoonize[style:sketch] border[colour:#ffffff percent:4]"},
	{"improve the colors", "enhance[amount:0.5]"},
	{"auto enhance, then sharpen", "enhance[amount:0.5] sharpen[amount:0.5]"},
	{"less blurry", "sharpen[amount:0.5]"},
	{"restore this old photo", "restore[amount:0.5]"},
	{"don't blur, just brighten", "brightness[amount:0.25]"},
	{"brighter, but do not crop", "brightness[amount:0.25]"},
	{"remove the color", "grayscale[]"},
	{"Could you please make the image brighter, then rotate it to the right and add a thick white border? Thank you!", "brightness[amount:0.25] rotate[degrees:90] border[colour:#ffffff percent:7.2]"},
}

// spell writes a plan as the table above does.
func spell(steps []step) string {
	words := make([]string, len(steps))
	for i, s := range steps {
		r := s.report()
		words[i] = fmt.Sprintf("%s%s", r["op"], strings.TrimPrefix(fmt.Sprint(r["args"]), "map"))
	}
	return strings.Join(words, " ")
}

func TestReadPrompt(t *testing.T) {
	t.Parallel()
	for _, p := range plans {
		steps, err := readPrompt(p.prompt)
		if got := spell(steps); err != nil || got != p.plan {
			t.Errorf("%q: %s, %v; want %s", p.prompt, got, err, p.plan)
		}
		if slices.ContainsFunc(steps, func(s step) bool { return s.words == "" }) {
			t.Errorf("%q: a step does not say what it was read from", p.prompt)
		}
	}
}

func TestReadPromptRefuses(t *testing.T) {
	t.Parallel()
	for _, p := range []struct{ prompt, says string }{
		{"put a cat on the sofa", `"cat"`},
		{"brighter and add a unicorn", `"unicorn"`},
		{"make the sky purple", `"sky"`},
		{"rotate 45 degrees", "90, 180 or 270"},
		{"crop", "say which ratio"},
		{"resize", "say which size"},
		{"enlarge 100 times", "from 1% to 800%"},
		{"remove the border", "borders can be added only"},
		{"sepia background", "a background can be"},
		{"increase", `"increase"`},
		{"please", "no instruction"},
		{"do not crop", "no instruction"},
		{" ,.! ", "no instruction"},
		{"日本語", "日本語"},
		{"resize to 99999999x1", ""},
		{strings.Repeat("brighter, ", 21), "more than 20"},
	} {
		steps, err := readPrompt(p.prompt)
		if m := (misunderstood{}); !errors.As(err, &m) || !strings.Contains(err.Error(), p.says) || steps != nil {
			t.Errorf("%q: %s, %v; want a refusal that says %s", p.prompt, spell(steps), err, p.says)
		}
	}
}

// FuzzReadPrompt holds the grammar to what the rest relies on: it ends, it names what it does not understand, and every plan has sizes that can be made.
func FuzzReadPrompt(f *testing.F) {
	for _, p := range plans {
		f.Add(p.prompt)
	}
	for _, odd := range []string{"#", "x", "x2", "1:", "%", "10%%", "1e9x1e9", "crop 0:0", "0x0", "resize to 0 px", "border -5px", "\x00", "rotate 360", "not not brighter"} {
		f.Add(odd)
	}
	f.Fuzz(func(t *testing.T, prompt string) {
		steps, err := readPrompt(prompt)
		if (err == nil) != (len(steps) > 0) {
			t.Fatalf("%d steps and error %v", len(steps), err)
		}
		for _, size := range [][2]int{{1, 1}, {1, 20000}, {4000, 3000}} {
			w, h := size[0], size[1]
			for _, s := range steps {
				if s.op == opCrop {
					x, y, cw, ch := s.box(w, h)
					if x < 0 || y < 0 || cw < 1 || ch < 1 || x+cw > w || y+ch > h {
						t.Fatalf("%q crops %d,%d %dx%d of %dx%d", prompt, x, y, cw, ch, w, h)
					}
				}
				if w, h = s.size(w, h); w < 1 || h < 1 {
					t.Fatalf("%q makes %dx%d", prompt, w, h)
				}
				s.report()
			}
		}
	})
}
