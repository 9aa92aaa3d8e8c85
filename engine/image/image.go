// Package image holds the image tools and the pipeline they share: find the format by content, decode with the right colours
// and the right way up, work on float rows in tiles, encode row by row. It hides how a picture far larger than the memory it may take
// passes through: big sources are decoded into scratch files, outputs are made a band at a time and never whole.
package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/neural"
	"enlarger/engine/turbojpeg"
)

// Options are what an operator chooses. The zero value works.
type Options struct {
	// FFmpeg decodes AVIF and what is too big to decode in this process's memory, and encodes big WebP. Without it AVIF is
	// refused, and memory follows the size of the picture.
	FFmpeg *ffmpeg.Runner
	// Neural runs the models; without it every tool uses its classical method.
	Neural *neural.Runtime
	// Turbo decodes and encodes JPEG; without it that takes three times as long.
	Turbo *turbojpeg.Library
	// JPEGQuality and WebPQuality are 1 to 100; by default 92 and 90. A JPEG of quality 90 and more keeps colour at full resolution.
	JPEGQuality, WebPQuality int
	// SourcePixels is the most pixels of a source image, over all that its header claims; by default 200 million.
	SourcePixels int64

	// Edit has a generative model edit a picture as a prompt says; nil when the operator has none. What it cannot do is a Failure.
	Edit func(ctx context.Context, edit Edit) error

	// heap is heapMost; tests make it small.
	heap int64
	// faces finds faces; it is made once for all tools.
	faces *faceFinder
}

func (o Options) withDefaults() Options {
	if o.JPEGQuality == 0 {
		o.JPEGQuality = 92
	}
	if o.WebPQuality == 0 {
		o.WebPQuality = 90
	}
	if o.SourcePixels == 0 {
		o.SourcePixels = 200_000_000
	}
	if o.heap == 0 {
		o.heap = heapMost
	}
	if o.faces == nil {
		o.faces = newFaceFinder()
	}
	return o
}

// Tools are the image tools in the order of the API document.
func Tools(o Options) []engine.Tool {
	o = o.withDefaults()
	return []engine.Tool{
		upscaleTool(o),
		sharpenTool(o),
		denoiseTool(o),
		removeBgTool(o),
		restoreTool(o),
		cartoonizeTool(o),
		passportTool(o),
		customTool(o),
	}
}

// Measure reads the facts of an image file from its header. What is no image is an unsupported_format Failure, and one with
// too many pixels a resolution_limit_exceeded Failure.
func (o Options) Measure(_ context.Context, path string) (engine.Source, error) {
	f, err := os.Open(path)
	if err != nil {
		return engine.Source{}, fmt.Errorf("open source: %w", err)
	}
	defer quietly(f.Close)
	info, err := f.Stat()
	if err != nil {
		return engine.Source{}, fmt.Errorf("stat source: %w", err)
	}
	src, err := Sniff(f, info.Size())
	if err != nil {
		return engine.Source{}, err
	}
	if err := o.withDefaults().acceptSize(src.Width, src.Height); err != nil {
		return engine.Source{}, err
	}
	if src.Format == "avif" && o.FFmpeg == nil {
		return engine.Source{}, unsupported(errors.New("avif without ffmpeg"))
	}
	return src, nil
}

// acceptSize refuses a source of too many pixels before anything of it is decoded.
func (o Options) acceptSize(width, height int) error {
	if pixels := int64(width) * int64(height); pixels > o.SourcePixels {
		return engine.Failf(engine.ResolutionLimitExceeded, "The source is %dx%d (%.0f megapixels); the limit is %.0f megapixels.",
			width, height, float64(pixels)/1e6, float64(o.SourcePixels)/1e6)
	}
	return nil
}

// sideMost is the longest output side in pixels by format: what JPEG and WebP can hold, and for PNG what a band of rows allows.
func sideMost(format string) int {
	switch format {
	case "jpg":
		return jpegMostSide
	case "webp":
		return webpMostSide
	}
	return 1 << 18
}

// fits refuses an output that its format cannot hold.
func fits(p engine.Plan) error {
	if most := sideMost(p.Format); max(p.Width, p.Height) > most {
		advice := "Use a smaller scale or a smaller source."
		if p.Format != "png" {
			advice = "Use png, or a smaller scale or source."
		}
		return engine.Failf(engine.ResolutionLimitExceeded, "The output would be %dx%d; the longest side of a %s is %d pixels. %s",
			p.Width, p.Height, p.Format, most, advice)
	}
	return nil
}

// progress maps the parts of a run to 0 to 1 and never falls, whatever order its steps report in.
type progress struct {
	mu     sync.Mutex
	at     float64
	report func(float64)
}

func (p *progress) reach(done float64) {
	if p.report == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if done > p.at {
		p.at = done
		p.report(done)
	}
}
