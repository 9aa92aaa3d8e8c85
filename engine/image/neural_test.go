package image

import (
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/engine/neural"
	"enlarger/testbed"
	"enlarger/testbed/onnx"
)

// models opens a runtime with the given files as an operator's models folder.
func models(t testing.TB, files map[string]string) *neural.Runtime {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	library, err := neural.FindLibrary(testbed.ONNXRuntime())
	if err != nil {
		t.Fatalf("%v; run `make deps`", err)
	}
	r, err := neural.Open(t.Context(), neural.Config{Library: library, Models: dir, Thread: engine.LowPriority})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// slants are four different 3x3 filters for the four pixels that one becomes, each a mean of pixels.
var slants = [][9]float32{{0: 0.25, 4: 0.75}, {2: 0.5, 4: 0.5}, {6: 0.25, 4: 0.75}, {8: 0.25, 4: 0.5, 5: 0.25}}

// x2 is a model of luma or of colours that enlarges by slants.
func x2(t testing.TB, channels string) *neural.Runtime {
	t.Helper()
	planes := 3
	if channels == "y" {
		planes = 1
	}
	return models(t, map[string]string{
		"slants.json": fmt.Sprintf(`{"task": "upscale", "scale": 2, "tile": 64, "overlap": 2, "input": {"channels": %q}}`, channels),
		"slants.onnx": string(onnx.Filter(planes, 2, slants)),
	})
}

// slanted is one sample of what slants make of an image: channel c at (x, y) of the output.
func slanted(img image.Image, x, y int, sample func(color.Color) float64) float64 {
	size, sum := img.Bounds().Size(), 0.0
	for k, w := range slants[y%2*2+x%2] {
		at := image.Pt(min(max(x/2+k%3-1, 0), size.X-1), min(max(y/2+k/3-1, 0), size.Y-1))
		sum += float64(w) * sample(img.At(at.X, at.Y))
	}
	return sum
}

func channel(c int) func(color.Color) float64 {
	return func(at color.Color) float64 {
		v := color.NRGBA64Model.Convert(at).(color.NRGBA64)
		return float64([]uint16{v.R, v.G, v.B, v.A}[c]) / 65535
	}
}

func lumaOf(at color.Color) float64 {
	return lumaRed*channel(0)(at) + lumaGreen*channel(1)(at) + lumaBlue*channel(2)(at)
}

func TestColourModelGivesExactlyItsPixels(t *testing.T) {
	t.Parallel()
	img := scene(150, 90)
	out, got := job{options: Options{Neural: x2(t, "bgr")}, format: "png"}.must(t, pngBytes(t, img))
	if out.Facts["method"] != "neural" || out.Facts["model"] != "slants" {
		t.Errorf("facts = %v", out.Facts)
	}
	for y := range 180 {
		for x := range 300 {
			for c := range 3 {
				if want, is := slanted(img, x, y, channel(c)), channel(c)(got.At(x, y)); math.Abs(want-is) > 0.51/255 {
					t.Fatalf("channel %d at (%d, %d) is %.4f, want %.4f", c, x, y, is, want)
				}
			}
		}
	}
}

func TestLumaModelGivesTheLumaAndLanczosTheColour(t *testing.T) {
	t.Parallel()
	img := scene(150, 90)
	_, got := job{options: Options{Neural: x2(t, "y")}, format: "png"}.must(t, pngBytes(t, img))
	_, classic := job{format: "png"}.must(t, pngBytes(t, img))
	clipped := 0
	for y := range 180 {
		for x := range 300 {
			at := got.At(x, y)
			r, g, b := channel(0)(at), channel(1)(at), channel(2)(at)
			if min(r, g, b) == 0 || max(r, g, b) == 1 {
				clipped++
				continue
			}
			if want, is := slanted(img, x, y, lumaOf), lumaOf(at); math.Abs(want-is) > 0.6/255 {
				t.Fatalf("luma at (%d, %d) is %.4f, want %.4f", x, y, is, want)
			}
			for c := range 3 {
				was := channel(c)(classic.At(x, y)) - lumaOf(classic.At(x, y))
				if is := channel(c)(at) - lumaOf(at); math.Abs(was-is) > 1.3/255 {
					t.Fatalf("colour %d at (%d, %d) is %.4f from the luma, want %.4f", c, x, y, is, was)
				}
			}
		}
	}
	if clipped > 180*300/10 {
		t.Errorf("%d pixels are at an end of the range", clipped)
	}
}

// still is whether every pixel of the result is the colour, which is one of the source's.
func still(t *testing.T, got image.Image, want color.NRGBA) {
	t.Helper()
	for y := range got.Bounds().Dy() {
		for x := range got.Bounds().Dx() {
			if is := color.NRGBAModel.Convert(got.At(x, y)); is != want {
				t.Fatalf("pixel (%d, %d) is %v, want %v", x, y, is, want)
			}
		}
	}
}

// TestLumaModelKeepsConstantsAndGrey takes a net of chance, which turns every grey into a slightly different one.
func TestLumaModelKeepsConstantsAndGrey(t *testing.T) {
	t.Parallel()
	net := models(t, map[string]string{
		"chance.json": `{"task": "upscale", "scale": 2, "tile": 64, "overlap": 9, "input": {"channels": "y"}}`,
		"chance.onnx": string(onnx.Random(2, 16, 5)),
	})
	for _, scale := range []int{2, 4, 8} {
		t.Run(fmt.Sprintf("x%d", scale), func(t *testing.T) {
			t.Parallel()
			job := job{options: Options{Neural: net}, config: fmt.Sprintf(`{"scale": %d}`, scale), format: "png"}
			for _, c := range []color.NRGBA{{255, 255, 255, 255}, {A: 255}, {1, 128, 254, 255}, {200, 100, 50, 77}} {
				img := image.NewNRGBA(image.Rect(0, 0, 37, 21))
				for i := range img.Pix {
					img.Pix[i] = [4]uint8{c.R, c.G, c.B, c.A}[i%4]
				}
				_, got := job.must(t, pngBytes(t, img))
				still(t, got, c)
			}
			grey := image.NewNRGBA(image.Rect(0, 0, 90, 70))
			for i, v := range noise(90, 70, 3).Pix {
				grey.Pix[i] = v
				if i%4 == 3 {
					grey.Pix[i-2], grey.Pix[i-1] = grey.Pix[i-3], grey.Pix[i-3]
				}
			}
			out, got := job.must(t, pngBytes(t, grey))
			for i, p := 0, got.(*image.NRGBA).Pix; i < len(p); i += 4 {
				if p[i] != p[i+1] || p[i] != p[i+2] {
					t.Fatalf("a grey pixel became %v", p[i:i+4])
				}
			}
			// For the other scales there may be models of ours.
			if scale == 2 && out.Facts["model"] != "chance" || out.Facts["method"] != "neural" {
				t.Errorf("facts = %v", out.Facts)
			}
		})
	}
}

func TestGreyThroughAColourModelStaysGrey(t *testing.T) {
	t.Parallel()
	// This one makes red darker and blue brighter.
	warm := make([][9]float32, 4)
	for i := range warm {
		warm[i] = [9]float32{4: 1}
	}
	net := models(t, map[string]string{
		"warm.json": `{"task": "upscale", "scale": 2, "tile": 64, "overlap": 1, "input": {"channels": "rgb"}, "output": {"mean": [0.01, 0, -0.02]}}`,
		"warm.onnx": string(onnx.Filter(3, 2, warm)),
	})
	img := image.NewGray(image.Rect(0, 0, 50, 40))
	for i := range img.Pix {
		img.Pix[i] = uint8(i * 7)
	}
	for _, scale := range []string{`{"scale": 2}`, `{"scale": 8}`} {
		_, got := job{options: Options{Neural: net}, config: scale, format: "png"}.must(t, pngBytes(t, img))
		if _, ok := got.(*image.Gray); !ok {
			t.Errorf("output is %T, want grey", got)
		}
	}
	_, coloured := job{options: Options{Neural: net}, format: "png"}.must(t, pngBytes(t, scene(40, 30)))
	if r, g := channel(0)(coloured.At(5, 5)), channel(0)(scene(40, 30).At(2, 2)); math.Abs(r-g-0.01) > 0.003 {
		t.Errorf("red is %.3f, want 0.01 more than %.3f: the model's own colours are kept", r, g)
	}
}

func TestSixteenBitsThroughAModel(t *testing.T) {
	t.Parallel()
	img := image.NewNRGBA64(image.Rect(0, 0, 80, 60))
	for y := range 60 {
		for x := range 80 {
			img.SetNRGBA64(x, y, color.NRGBA64{uint16(x*701 + y), uint16(y*1001 + x), uint16(20000 + x*y), 0xFFFF})
		}
	}
	out, got := job{options: Options{Neural: x2(t, "rgb")}, format: "png"}.must(t, pngBytes(t, img))
	if out.Facts["bits"] != 16 {
		t.Fatalf("facts = %v", out.Facts)
	}
	for y := range 120 {
		for x := range 160 {
			for c := range 3 {
				if want, is := slanted(img, x, y, channel(c)), channel(c)(got.At(x, y)); math.Abs(want-is) > 1.5/65535 {
					t.Fatalf("channel %d at (%d, %d) is %.1f of 65535, want %.1f", c, x, y, is*65535, want*65535)
				}
			}
		}
	}
}

func TestAlphaThroughAModel(t *testing.T) {
	t.Parallel()
	// A green disc on transparent red: no red may show, and the green goes to the edge.
	img := image.NewNRGBA(image.Rect(0, 0, 40, 40))
	for y := range 40 {
		for x := range 40 {
			c := color.NRGBA{R: 255}
			if (x-20)*(x-20)+(y-20)*(y-20) < 150 {
				c = color.NRGBA{R: 10, G: 200, B: 30, A: 255}
			}
			img.SetNRGBA(x, y, c)
		}
	}
	_, classic := job{format: "png"}.must(t, pngBytes(t, img))
	for _, channels := range []string{"y", "rgb"} {
		_, got := job{options: Options{Neural: x2(t, channels)}, format: "png"}.must(t, pngBytes(t, img))
		partly := 0
		for y := range 80 {
			for x := range 80 {
				is, was := color.NRGBAModel.Convert(got.At(x, y)).(color.NRGBA), color.NRGBAModel.Convert(classic.At(x, y)).(color.NRGBA)
				if d := int(is.A) - int(was.A); d < -1 || d > 1 {
					t.Fatalf("%s: alpha at (%d, %d) is %d, want %d", channels, x, y, is.A, was.A)
				}
				if is.A == 0 {
					continue
				}
				if is.A < 255 {
					partly++
				}
				if is.A > 30 && (is.R > 30 || is.G < 180 || is.G > 220) {
					t.Fatalf("%s: pixel (%d, %d) is %v", channels, x, y, is)
				}
			}
		}
		if partly == 0 {
			t.Errorf("%s: the edge has no soft pixels", channels)
		}
	}
}

func TestBandsJoinWithoutSeams(t *testing.T) {
	t.Parallel()
	net := models(t, map[string]string{
		"chance.json": `{"task": "upscale", "scale": 2, "tile": 64, "overlap": 9, "input": {"channels": "y"}}`,
		"chance.onnx": string(onnx.Random(2, 16, 5)),
	})
	options := Options{Neural: net}.withDefaults()
	for name, img := range map[string]image.Image{"opaque": noisyScene(40, 90), "alpha": noise(40, 90, 9)} {
		source, err := options.open(t.Context(), writeFile(t, pngBytes(t, img)), t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer source.Close()
		for _, scale := range []int{2, 8} {
			n := options.netUpscaler(scale)
			stride := 40 * scale * 4
			whole, bands := make([]byte, stride*90*scale), make([]byte, stride*90*scale)
			if err := n.band(t.Context(), source.raster, 0, whole, false); err != nil {
				t.Fatal(err)
			}
			for y := 0; y < 90*scale; y += 16 * scale {
				if err := n.band(t.Context(), source.raster, y, bands[y*stride:min((y+16*scale)*stride, len(bands))], false); err != nil {
					t.Fatal(err)
				}
			}
			for i := range whole {
				if d := int(whole[i]) - int(bands[i]); d < -1 || d > 1 {
					t.Fatalf("%s x%d: byte %d (row %d) is %d in a band and %d in the whole", name, scale, i, i/stride, bands[i], whole[i])
				}
			}
		}
	}
}

// noisyScene is scene with something in every pixel.
func noisyScene(w, h int) *image.NRGBA {
	img := scene(w, h)
	for i, v := range noise(w, h, 5).Pix {
		if i%4 != 3 {
			img.Pix[i] = uint8(min(max(int(img.Pix[i])+int(v)%31-15, 0), 255))
		}
	}
	return img
}

func TestModelSizes(t *testing.T) {
	t.Parallel()
	for _, channels := range []string{"y", "rgb"} {
		net := x2(t, channels)
		for _, size := range []image.Point{{1, 1}, {1, 9}, {9, 1}, {3, 2}, {65, 33}, {1, 20000}, {20000, 1}} {
			_, _, err := job{options: Options{Neural: net}, config: `{"scale": 2}`, format: "png"}.run(t.Context(), t, writeFile(t, pngBytes(t, scene(size.X, size.Y))))
			if err != nil {
				t.Errorf("%s %v: %v", channels, size, err)
			}
		}
	}
}

func TestCancelStopsAModel(t *testing.T) {
	t.Parallel()
	net := models(t, map[string]string{
		"slow.json": `{"task": "upscale", "scale": 2, "tile": 256, "overlap": 20, "input": {"channels": "y"}}`,
		"slow.onnx": string(onnx.Random(2, 96, 12)),
	})
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("the client thought better of it")
	began := make(chan struct{}, 1)
	go func() {
		<-began
		cancel(stopped)
	}()
	time.AfterFunc(2*time.Second, func() { began <- struct{}{} })
	path := writeFile(t, pngBytes(t, noisyScene(1200, 1200))) // a minute of work and more
	_, _, err := job{options: Options{Neural: net}, format: "png", progress: func(float64) {
		select {
		case began <- struct{}{}:
		default:
		}
	}}.run(ctx, t, path)
	if !errors.Is(err, stopped) {
		t.Fatalf("error = %v, want the cancel's cause", err)
	}
}

func TestWithoutAFittingModelTheMethodIsClassical(t *testing.T) {
	t.Parallel()
	net := models(t, map[string]string{
		"x4.json": `{"task": "upscale", "scale": 4, "tile": 64, "overlap": 1, "input": {"channels": "y"}}`,
		"x4.onnx": string(onnx.Filter(1, 4, make16())),
	})
	for scale, want := range map[int]string{2: "", 4: "x4", 8: ""} {
		if net.Find(neural.Upscale, 2) != nil && scale != 4 {
			continue // one of ours makes it
		}
		o := Options{Neural: net}
		n := o.netUpscaler(scale)
		if (n == nil) != (want == "") || (n != nil && n.name() != want) {
			t.Errorf("x%d: %v, want %q", scale, n, want)
		}
	}
	source := engine.Source{Width: 3000, Height: 2000}
	if o := (Options{Neural: net}); o.netUpscaleMemory(4, source) < 16<<20 || o.netUpscaleMemory(4, source) > 256<<20 {
		t.Errorf("x4 of 6 megapixels is estimated to take %d MiB", o.netUpscaleMemory(4, source)>>20)
	}
	if o := (Options{}); o.netUpscaler(2) != nil || o.net(neural.Denoise, 1) != nil || o.netUpscaleMemory(2, source) != 0 {
		t.Error("a server without models has one")
	}
}

func make16() [][9]float32 {
	all := make([][9]float32, 16)
	for i := range all {
		all[i] = [9]float32{4: 1}
	}
	return all
}

// BenchmarkSet5 prints what the models make of Set5 beside the classical method: PSNR of luma in dB. It is a benchmark so that it runs
// when it is asked for.
func BenchmarkSet5(b *testing.B) {
	dir := samples(b, "bench/Set5")
	options := Options{Neural: models(b, nil)}.withDefaults()
	for _, scale := range []int{2, 4} {
		b.Run(fmt.Sprintf("x%d", scale), func(b *testing.B) {
			n := options.netUpscaler(scale)
			if n == nil {
				b.Skip("no model")
			}
			for b.Loop() {
				net, classic := 0.0, 0.0
				for i := 1; i <= 5; i++ {
					low := readRaster(b, filepath.Join(dir, fmt.Sprintf("x%d/img_%03d_SRF_%d_LR.png", scale, i, scale)))
					high := readRaster(b, filepath.Join(dir, fmt.Sprintf("x%d/img_%03d_SRF_%d_HR.png", scale, i, scale)))
					out := make([]byte, 4*low.width*low.height*scale*scale)
					if err := n.band(b.Context(), low, 0, out, false); err != nil {
						b.Fatal(err)
					}
					net += lumaPSNR(out, low.width*scale, high, scale) / 5
					if err := newUpscaler(scale).band(b.Context(), low, 0, out, false, make([]tile, processors())); err != nil {
						b.Fatal(err)
					}
					classic += lumaPSNR(out, low.width*scale, high, scale) / 5
				}
				b.ReportMetric(net, "dB")
				b.ReportMetric(classic, "dB-classical")
			}
		})
	}
}

func TestJPEGQualityIsRead(t *testing.T) {
	t.Parallel()
	img := scene(40, 30)
	for _, quality := range []int{25, 30, 50, 75, 90, 95, 100} {
		if got := jpegQuality(writeFile(t, jpegBytes(t, img, quality))); math.Abs(float64(got)-float64(quality)) > 1 {
			t.Errorf("quality %d is read as %.1f", quality, got)
		}
	}
	if got := jpegQuality(writeFile(t, pngBytes(t, img))); got != 100 {
		t.Errorf("a png has quality %.1f", got)
	}
	wide := make([]byte, 128)
	for i, q := range jpegLumaQuant {
		wide[2*i+1] = q
	}
	if got := quantQuality(wide, true); got != 50 {
		t.Errorf("the standard's table in 16 bits is of quality %.1f, want 50", got)
	}
}

// TestRoughSourcesTakeLessOfAModel: ours was trained on clean pictures.
func TestRoughSourcesTakeLessOfAModel(t *testing.T) {
	t.Parallel()
	options := Options{Neural: models(t, nil)}
	if m := options.net(neural.Upscale, 2, "quality", "fast"); m == nil || options.net(neural.Upscale, 2, "photo").Variant() == "photo" {
		t.Skip("this is about a server with our model for clean pictures only")
	}
	noisy := scene(200, 160)
	chance := rand.New(rand.NewPCG(4, 4))
	for i := range noisy.Pix {
		if i%4 != 3 {
			noisy.Pix[i] = uint8(min(max(float64(noisy.Pix[i])+20*chance.NormFloat64(), 0), 255))
		}
	}
	for name, c := range map[string]struct {
		content []byte
		least   float64
		most    float64
	}{
		"clean":       {pngBytes(t, scene(200, 160)), 0.95, 1},
		"JPEG 95":     {jpegBytes(t, scene(200, 160), 95), 0.95, 1},
		"JPEG 60":     {jpegBytes(t, scene(200, 160), 60), 0.2, 0.5},
		"JPEG 20":     {jpegBytes(t, scene(200, 160), 20), 0, 0},
		"noise of 20": {pngBytes(t, noisy), 0, 0},
	} {
		out, _ := job{options: options, format: "png"}.must(t, c.content)
		strength, _ := out.Facts["model_strength"].(float64)
		if strength < c.least || strength > c.most || (out.Facts["method"] == "neural") != (strength > 0) {
			t.Errorf("%s: facts = %v, want a strength of %.2f to %.2f", name, out.Facts, c.least, c.most)
		}
	}
}
