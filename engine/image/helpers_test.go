package image

import (
	"bytes"
	"context"
	"encoding/json"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/coalaura/webp"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// samples finds a folder of the sample media, which lie beside a checkout of the project; without them the test is skipped.
func samples(t testing.TB, folder string) string {
	t.Helper()
	roots := []string{os.Getenv("ENLARGER_SAMPLES")}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		roots = append(roots, filepath.Join(dir, "shared", "data"))
	}
	for _, root := range roots {
		if root == "" {
			continue
		}
		path := filepath.Join(root, folder)
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path
		}
	}
	t.Skipf("no sample media: set ENLARGER_SAMPLES to a folder that holds %s", folder)
	return ""
}

// openFFmpeg opens the installed ffmpeg once for all tests of a binary.
var openFFmpeg = sync.OnceValues(func() (*ffmpeg.Runner, error) { return ffmpeg.Open(ffmpeg.Config{}) })

func runner(t testing.TB) *ffmpeg.Runner {
	t.Helper()
	r, err := openFFmpeg()
	if err != nil {
		t.Skipf("no usable ffmpeg: %v", err)
	}
	return r
}

// job is one run of a tool, upscale unless it is named.
type job struct {
	tool     string
	options  Options
	config   string
	format   string
	progress func(float64)
}

func (j job) order(t testing.TB) *engine.Order {
	t.Helper()
	if j.config == "" {
		j.config = "{}"
	}
	if j.tool == "" {
		j.tool = "upscale"
	}
	catalog := engine.NewCatalog(engine.DefaultLimits(), Tools(j.options)...)
	order, err := catalog.Order(j.tool, json.RawMessage(j.config), j.format)
	if err != nil {
		t.Fatal(err)
	}
	return order
}

// run measures, plans and processes the file at path, and returns the path of the result.
func (j job) run(ctx context.Context, t testing.TB, path string) (engine.Output, string, error) {
	t.Helper()
	order := j.order(t)
	source, err := order.Measure(ctx, path)
	if err != nil {
		return engine.Output{}, "", err
	}
	plan, err := order.Plan(source)
	if err != nil {
		return engine.Output{}, "", err
	}
	dir := t.TempDir()
	task := engine.Task{Plan: plan, Source: source, Input: path, Output: filepath.Join(dir, "out"), Scratch: dir, Progress: j.progress}
	out, err := order.Process(ctx, task)
	if err == nil && (out.Width != plan.Width || out.Height != plan.Height) {
		t.Errorf("output is %dx%d, planned %dx%d", out.Width, out.Height, plan.Width, plan.Height)
	}
	return out, task.Output, err
}

// must is run on the given content, which must succeed; the result is decoded.
func (j job) must(t testing.TB, content []byte) (engine.Output, image.Image) {
	t.Helper()
	out, path, err := j.run(t.Context(), t, writeFile(t, content))
	if err != nil {
		t.Fatal(err)
	}
	return out, decodeFile(t, path)
}

func writeFile(t testing.TB, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// decodeFile decodes a result with decoders that are not ours.
func decodeFile(t testing.TB, path string) image.Image {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case bytes.HasPrefix(data, pngSignature):
		img, err := png.Decode(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		return img
	case bytes.HasPrefix(data, []byte("RIFF")):
		img, err := webp.DecodeRGBA(data, nil)
		if err != nil {
			t.Fatal(err)
		}
		return &image.NRGBA{Pix: img.Pix, Stride: img.Stride, Rect: img.Rect}
	}
	img, err := jpeg.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func pngBytes(t testing.TB, img image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func jpegBytes(t testing.TB, img image.Image, quality int) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, img, &jpeg.Options{Quality: quality}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// scene is a smooth picture with edges and colours, different at every corner.
func scene(w, h int) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			u, v := float64(x)/float64(max(w-1, 1)), float64(y)/float64(max(h-1, 1))
			c := color.NRGBA{
				R: uint8(40 + 180*u), G: uint8(30 + 200*v), B: uint8(128 + 90*math.Sin(9*u+5*v)), A: 255,
			}
			if math.Hypot(u-0.3, v-0.6) < 0.2 {
				c.R, c.G = 230, 220
			}
			img.SetNRGBA(x, y, c)
		}
	}
	return img
}

// noise is a picture of random pixels, alpha included, always the same for a seed.
func noise(w, h int, seed uint64) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	random := rand.New(rand.NewPCG(seed, 1))
	for i := range img.Pix {
		img.Pix[i] = uint8(random.Uint32())
	}
	return img
}

// apart is the mean and the largest difference of two pictures in 8-bit codes, over red, green and blue.
func apart(t testing.TB, a, b image.Image) (mean, most float64) {
	t.Helper()
	if a.Bounds().Size() != b.Bounds().Size() {
		t.Fatalf("sizes differ: %v and %v", a.Bounds(), b.Bounds())
	}
	size := a.Bounds().Size()
	sum := 0.0
	for y := range size.Y {
		for x := range size.X {
			r1, g1, b1, _ := a.At(a.Bounds().Min.X+x, a.Bounds().Min.Y+y).RGBA()
			r2, g2, b2, _ := b.At(b.Bounds().Min.X+x, b.Bounds().Min.Y+y).RGBA()
			for _, d := range [3]float64{float64(r1) - float64(r2), float64(g1) - float64(g2), float64(b1) - float64(b2)} {
				d = math.Abs(d) / 257
				sum += d
				most = max(most, d)
			}
		}
	}
	return sum / float64(3*size.X*size.Y), most
}
