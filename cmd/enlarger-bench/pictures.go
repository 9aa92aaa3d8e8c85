package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/jpeg"
	"image/png"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"github.com/disintegration/imaging"

	"enlarger/engine"
	imagetools "enlarger/engine/image"
	"enlarger/engine/neural"
)

// picturesCommand is the first argument that asks for the pictures of docs/tools.md.
const picturesCommand = "pictures"

// shown is what a picture shows: what the tool gets, and with which config.
type shown struct {
	tool    string
	configs []string
	// spoil makes the source of the photo; nil takes it as it is.
	spoil func(*image.NRGBA) *image.NRGBA
	// detail, when not empty, is what is shown of source and result, in parts of a thousand.
	detail image.Rectangle
	// quality of the source as a JPEG; 0 is a PNG.
	quality int
}

func showing() []shown {
	face := image.Rect(290, 60, 610, 380)
	return []shown{
		{tool: "upscale", configs: []string{`{"scale":4}`}, spoil: func(i *image.NRGBA) *image.NRGBA { return imaging.Resize(i, i.Rect.Dx()/4, 0, imaging.CatmullRom) }, detail: face},
		{tool: "sharpen", configs: []string{`{}`}, spoil: func(i *image.NRGBA) *image.NRGBA { return imaging.Blur(i, 1.2) }, detail: face},
		{tool: "denoise", configs: []string{`{}`}, spoil: func(i *image.NRGBA) *image.NRGBA { return grainy(i, 25) }, detail: face},
		{tool: "remove_bg", configs: []string{`{}`}},
		{tool: "restore", configs: []string{`{}`}, spoil: faded, quality: 25},
		{tool: "cartoonize", configs: []string{`{"style":"anime"}`, `{"style":"comic"}`, `{"style":"sketch"}`, `{"style":"watercolor"}`, `{"style":"oil"}`}},
		{tool: "passport_photo", configs: []string{`{}`}},
		{tool: "custom", configs: []string{`{"prompt":"vintage look, crop to a square at the top, white border"}`, `{"prompt":"black and white with high contrast and film grain"}`}},
	}
}

// grainy adds noise of so many 8-bit codes, the same in every run.
func grainy(i *image.NRGBA, deviation float64) *image.NRGBA {
	out, random := imaging.Clone(i), rand.New(rand.NewPCG(25, 1))
	for k := range out.Pix {
		if k%4 < 3 {
			out.Pix[k] = uint8(max(0, min(255, math.Round(float64(out.Pix[k])+random.NormFloat64()*deviation))))
		}
	}
	return out
}

// faded is an old print: yellowed, without black or white.
func faded(i *image.NRGBA) *image.NRGBA {
	out := imaging.Clone(i)
	for k := 0; k < len(out.Pix); k += 4 {
		for c, tone := range [3][2]float64{{85, 100}, {76, 92}, {62, 80}} {
			out.Pix[k+c] = uint8(tone[0] + tone[1]*float64(out.Pix[k+c])/255)
		}
	}
	return out
}

// pictures writes NAME.jpg, before and after, for every image tool that there is.
func pictures(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("enlarger-bench "+picturesCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("out", "docs/tools", "folder to write to")
	photo := flags.String("photo", "fixtures/media/astronaut.png", "the photo")
	if err := flags.Parse(args); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	img, err := imaging.Open(*photo)
	if err != nil {
		return fmt.Errorf("photo: %w", err)
	}
	options := imagetools.Options{}
	if library, err := neural.FindLibrary(""); err == nil {
		runtime, err := neural.Open(ctx, neural.Config{Library: library})
		if err != nil {
			return err
		}
		defer runtime.Close()
		options.Neural = runtime
	}
	known := imagetools.Tools(options)
	for _, s := range showing() {
		if !slices.ContainsFunc(known, func(t engine.Tool) bool { return t.Name == s.tool }) {
			continue
		}
		path := filepath.Join(*out, s.tool+".jpg")
		if err := s.write(ctx, options, imaging.Clone(img), path); err != nil {
			return fmt.Errorf("%s: %w", s.tool, err)
		}
		fmt.Fprintln(stdout, path)
	}
	return nil
}

// write runs the tool and lays source and results side by side.
func (s shown) write(ctx context.Context, options imagetools.Options, photo *image.NRGBA, path string) error {
	dir, err := os.MkdirTemp("", "pictures-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if s.spoil != nil {
		photo = s.spoil(photo)
	}
	in := filepath.Join(dir, "in")
	if err := saveSource(in, photo, s.quality); err != nil {
		return err
	}
	before, err := imaging.Open(in)
	if err != nil {
		return err
	}
	panels := []*image.NRGBA{s.panel(before)}
	for i, config := range s.configs {
		out := filepath.Join(dir, fmt.Sprintf("out-%d.png", i))
		if _, _, err := runTool(ctx, options, s.tool, []byte(config), "png", in, out); err != nil {
			return err
		}
		after, err := imaging.Open(out)
		if err != nil {
			return err
		}
		panels = append(panels, s.panel(after))
	}
	return savePanels(path, panels)
}

func saveSource(path string, img *image.NRGBA, quality int) error {
	var file bytes.Buffer
	if quality > 0 {
		if err := jpeg.Encode(&file, img, &jpeg.Options{Quality: quality}); err != nil {
			return err
		}
	} else if err := png.Encode(&file, img); err != nil {
		return err
	}
	return os.WriteFile(path, file.Bytes(), 0o600) //nolint:gosec // the path is the caller's own
}

// panel is what is shown of a picture: as high as the page can take, transparent parts on a checkerboard.
func (s shown) panel(img image.Image) *image.NRGBA {
	height := 320
	if len(s.configs) > 3 { // two rows
		height = 250
	}
	b := img.Bounds()
	if !s.detail.Empty() {
		part := func(v, of int) int { return v * of / 1000 }
		img = imaging.Crop(img, image.Rect(part(s.detail.Min.X, b.Dx()), part(s.detail.Min.Y, b.Dy()), part(s.detail.Max.X, b.Dx()), part(s.detail.Max.Y, b.Dy())))
	}
	filter := imaging.Lanczos
	if img.Bounds().Dy() < height {
		filter = imaging.NearestNeighbor // so that the source's pixels are seen
	}
	small := imaging.Resize(img, 0, height, filter)
	out := image.NewNRGBA(small.Rect)
	for y := range small.Rect.Dy() {
		for x := range small.Rect.Dx() {
			v := uint8(255 - (x/12+y/12)%2*40)
			out.SetNRGBA(x, y, color.NRGBA{v, v, v, 255})
		}
	}
	draw.Draw(out, out.Rect, small, image.Point{}, draw.Over)
	return out
}

// savePanels lays panels in rows of three.
func savePanels(path string, panels []*image.NRGBA) error {
	const across, gap = 3, 6
	sheet := imaging.New(1, 1, color.White)
	x, y := 0, 0
	for i, p := range panels {
		if i > 0 && i%across == 0 {
			x, y = 0, y+p.Rect.Dy()+gap
		}
		grown := imaging.New(max(sheet.Rect.Dx(), x+p.Rect.Dx()), max(sheet.Rect.Dy(), y+p.Rect.Dy()), color.White)
		sheet = imaging.Paste(imaging.Paste(grown, sheet, image.Point{}), p, image.Pt(x, y))
		x += p.Rect.Dx() + gap
	}
	var file bytes.Buffer
	if err := jpeg.Encode(&file, sheet, &jpeg.Options{Quality: 82}); err != nil {
		return err
	}
	return os.WriteFile(path, file.Bytes(), 0o600)
}
