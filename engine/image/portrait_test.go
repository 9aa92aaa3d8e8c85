package image

import (
	"image"
	"image/color"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/disintegration/imaging"

	"enlarger/engine"
	"enlarger/testbed/onnx"
)

// TestOutlineTellsBadCuts cuts a portrait out before a busy background, and spoils the cut in the ways in which cuts go wrong.
func TestOutlineTellsBadCuts(t *testing.T) {
	t.Parallel()
	o := Options{}.withDefaults()
	source := opened(t, astronaut)
	found, err := o.faces.find(t.Context(), source.raster)
	if err != nil || len(found) != 1 {
		t.Fatal(found, err)
	}
	u, err := o.uprightOf(t.Context(), source, astronaut, found[0], portraitView())
	if err != nil {
		t.Fatal(err)
	}
	cut, m, err := o.cutPortrait(t.Context(), source, astronaut, found[0], u)
	if err != nil {
		t.Fatal(err)
	}
	if m.confidence < 0.7 {
		t.Errorf("a good cut is trusted by %.2f", m.confidence)
	}
	whole, err := patchOf(u.raster, 0, 0, u.width, u.height)
	if err != nil {
		t.Fatal(err)
	}
	colours, frame := labOf(whole), frameOf(u.face)
	m.confidence, m.plain = 1, false
	for name, alpha := range map[string]func(ring, p, q, was float64) float64{
		"a block of background around the head": func(_, p, q, was float64) float64 {
			if p > -1.9 && p < 1.9 && q > -2.6 {
				return 1
			}
			return was
		},
		"without the hair": func(ring, _, q, was float64) float64 {
			if ring > 0.8 && q < 0 {
				return 0
			}
			return was
		},
		"in rags": func(ring, p, q, was float64) float64 {
			if ring > 0.9 && q < 1 && int(12*(p+9))%3 == 0 {
				return 0
			}
			return was
		},
	} {
		bad := cut.clone()
		for i := range bad.planes[3] {
			p, q := frame.at(i%cut.width, i/cut.width)
			bad.planes[3][i] = float32(alpha(headRing(p, q), p, q, float64(cut.planes[3][i])))
		}
		if trust := outlineOf(u, colours, bad).trust(m); trust >= portraitLeast {
			t.Errorf("%s: trusted by %.2f, %+v", name, trust, outlineOf(u, colours, bad))
		}
	}
}

// TestPassportRefusesWhatItCannotCut: a background of the hair's own colours gives no photo, and the message names the remedy.
func TestPassportRefusesWhatItCannotCut(t *testing.T) {
	t.Parallel()
	photo := imaging.Clone(decodeFile(t, astronaut))
	f := theFace(t, photo)
	frame, random := frameOf(f), rand.New(rand.NewPCG(1, 1))
	hair := imaging.Clone(photo)
	for y := range 512 {
		for x := range 512 {
			if p, q := frame.at(x, y); headRing(p, q) > 1.2 && q < shoulderLine(p)-0.3 {
				from := image.Pt(int(frame.middle.x)-30+random.IntN(60), int(frame.middle.y-1.5*frame.apart)-10+random.IntN(20))
				hair.Set(x, y, photo.At(from.X, from.Y))
			}
		}
	}
	_, _, err := job{tool: "passport_photo"}.run(t.Context(), t, writeFile(t, pngBytes(t, hair)))
	if f, ok := engine.AsFailure(err); !ok || f.Code != engine.ProcessingFailed || !strings.Contains(f.Message, "plain, evenly lit background") {
		t.Errorf("%v", err)
	}
}

// seeing is a matting model that sees a subject by its colours: 1 where the weighted sum of red, green and blue passes a bound.
func seeing(t testing.TB, weights [3]float32, bound float32) Options {
	t.Helper()
	g := &onnx.Graph{}
	g.Input("in", onnx.Float, 1, 3, -1, -1)
	const steep = 60
	g.Conv("in", "mask", 3, 1, 1, []float32{steep * weights[0], steep * weights[1], steep * weights[2]}, []float32{-steep * bound})
	g.Output("mask", onnx.Float, 1, 1, -1, -1)
	return Options{Neural: models(t, map[string]string{
		"colour.json": `{"task": "matting", "multiple": 32, "whole": {"short": 256}, "input": {"channels": "rgb"}, "output": {"name": "mask", "activation": "sigmoid"}}`,
		"colour.onnx": string(g.Model()),
	})}
}

// TestRemoveBackgroundByModel: what the model sees is cut out, along the picture's own edges; where it sees nothing the classical way stands in.
func TestRemoveBackgroundByModel(t *testing.T) {
	t.Parallel()
	options := seeing(t, [3]float32{1, -1, 0}, 0.2)
	busy := func(subject bool) (*image.NRGBA, func(x, y int) bool) {
		img, random := scene(300, 220), rand.New(rand.NewPCG(2, 2))
		inside := func(x, y int) bool { return x > 20 && x < 110 && y > 120 && y < 200 }
		for y := range 220 {
			for x := range 300 {
				v := uint8(random.IntN(120))
				img.SetNRGBA(x, y, color.NRGBA{v, v + uint8(random.IntN(60)), 120, 255})
				if subject && inside(x, y) {
					img.SetNRGBA(x, y, color.NRGBA{200, uint8(x % 90), 40, 255})
				}
			}
		}
		return img, inside
	}
	img, inside := busy(true)
	out, got := job{tool: "remove_bg", options: options}.must(t, pngBytes(t, img))
	if out.Facts["method"] != "colour" || out.Facts["confidence"].(float64) < 0.7 || len(out.Warnings) != 0 {
		t.Errorf("%v %v", out.Facts, out.Warnings)
	}
	wrong := 0
	for y := range 220 {
		for x := range 300 {
			if _, _, _, a := got.At(x, y).RGBA(); (a > 0x8000) != inside(x, y) {
				wrong++
			}
		}
	}
	if wrong > 220*300/200 {
		t.Errorf("%d pixels are on the wrong side", wrong)
	}
	empty, _ := busy(false)
	if out, _ := (job{tool: "remove_bg", options: options}).must(t, pngBytes(t, empty)); out.Facts["method"] == "colour" {
		t.Errorf("a model that saw nothing was used: %v", out.Facts)
	}
	plain, _ := onPlain(320, 240)
	if out, _ := (job{tool: "remove_bg", options: options}).must(t, pngBytes(t, plain)); out.Facts["confidence"].(float64) < 0.7 {
		t.Errorf("both ways agree, but: %v", out.Facts)
	}
}

// TestPassportByModel: of a model's cut and the classical one, that whose outline agrees with the picture is taken.
func TestPassportByModel(t *testing.T) {
	t.Parallel()
	// A model for which all that is not blue is the person, and a studio that is blue right up to the person or only further out.
	options := seeing(t, [3]float32{0.5, 0.5, -0.6}, -0.2)
	for blueFrom, method := range map[float64]string{1.3: "colour", 1.7: "portrait+grabcut"} {
		photo := imaging.Clone(decodeFile(t, astronaut))
		frame := frameOf(theFace(t, photo))
		for y := range 512 {
			for x := range 512 {
				if p, q := frame.at(x, y); headRing(p, q) > blueFrom && q < shoulderLine(p)-0.1 {
					photo.SetNRGBA(x, y, color.NRGBA{uint8(x * y % 60), uint8(30 + 30*(x/8+y/8)%2), 255, 255})
				}
			}
		}
		out, _ := job{tool: "passport_photo", options: options}.must(t, pngBytes(t, photo))
		if out.Facts["method"] != method || out.Facts["confidence"].(float64) < 0.65 {
			t.Errorf("blue from %.1f: %v", blueFrom, out.Facts)
		}
	}
}

// TestChosen says whose word counts.
func TestChosen(t *testing.T) {
	t.Parallel()
	mask := func(values ...float32) *subject {
		return &subject{width: len(values), height: 1, inside: values, confidence: 0.5}
	}
	cut := mask(1, 1, 1, 0)
	cut.plain = true
	if got := chosen(nil, cut, true, nil); got != cut {
		t.Error("nothing was seen, and was taken")
	}
	printed := mask(0, 1, 0, 0)
	if got := chosen(printed, cut, true, nil); got != cut {
		t.Error("a face printed on a thing before a plain background is taken for the subject")
	}
	if got := chosen(printed, cut, false, nil); got != printed {
		t.Error("an operator's model is not believed")
	}
	same := mask(1, 1, 1, 0)
	if got := chosen(same, cut, true, nil); got != same || got.confidence != 0.75 {
		t.Errorf("agreement: %+v", got)
	}
	const side = 20
	body := &subject{width: side, height: side, inside: make([]float32, side*side)}
	for i := side * side / 2; i < len(body.inside); i++ {
		body.inside[i] = 1
	}
	whole := &subject{width: side, height: side, inside: make([]float32, side*side)}
	for _, c := range []struct {
		y, quality float64
		want       *subject
	}{{10, 100, whole}, {10, 30, body}, {16, 100, body}, {-40, 100, body}} {
		if got := chosen(body, whole, true, []face{{x: 10, y: c.y, size: 6, quality: c.quality}}); got != c.want {
			t.Errorf("a face of quality %.0f at %.0f: another was chosen", c.quality, c.y)
		}
	}
}
