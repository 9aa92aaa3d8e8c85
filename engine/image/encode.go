package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"enlarger/engine"
)

// rowWriter takes RGBA rows from the top, in bands of a multiple of 16 rows except for the last.
type rowWriter interface {
	write(ctx context.Context, pixels []byte) error
	// close ends the file.
	close() error
	// abort gives back what a writer holds that will not be closed; it may follow close.
	abort()
}

func (j *jpegWriter) abort() {}
func (p *pngWriter) abort()  {}

// encoder writes one output file.
type encoder struct {
	path string
	file *os.File
	rows rowWriter
	// deep says that rows must have 16-bit samples.
	deep bool
	// flatten lays the picture on white, for formats without alpha.
	flatten bool
	// overlays are laid over the rows; next is the first row not yet written, width that of a row in pixels.
	overlays    []overlay
	next, width int
}

// look is what an encoder must know of the picture it will get.
type look struct {
	width, height     int
	deep, alpha, grey bool
	// dpi is written to the file when it is not 0.
	dpi int
}

// create opens the output file. Close or abort the encoder.
func (o Options) create(ctx context.Context, path, format string, l look) (*encoder, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create output: %w", err)
	}
	e := &encoder{path: path, file: f, width: l.width}
	switch format {
	case "jpg":
		e.flatten = l.alpha
		j := newJPEGWriter(f, l.width, l.height, l.grey, o.JPEGQuality, l.dpi)
		j.turbo = o.Turbo
		e.rows = j
	case "png":
		e.deep = l.deep
		e.rows, err = newPNGWriter(f, l.width, l.height, l.deep, l.alpha, l.grey, l.dpi)
	case "webp":
		if o.FFmpeg == nil || l.width*l.height <= webpInProcess {
			e.rows = newWebPHeap(f, l.width, l.height, o.WebPQuality)
		} else {
			e.rows, err = newWebPPipe(ctx, o.FFmpeg, path, l.width, l.height, o.WebPQuality)
		}
	default:
		err = fmt.Errorf("no encoder for %q", format)
	}
	if err != nil {
		return nil, errors.Join(closing(f, err), os.Remove(path))
	}
	return e, nil
}

// write takes the next rows, in 8 or 16 bits as deep says, and may change them.
func (e *encoder) write(ctx context.Context, pixels []byte) error {
	if len(e.overlays) > 0 {
		blendRows(e.overlays, e.next, e.width, pixels, e.deep)
	}
	e.next += len(pixels) / (e.width * bytesPerPixel(e.deep))
	if e.flatten {
		flattenOnWhite(pixels)
	}
	return e.rows.write(ctx, pixels)
}

// flattenOnWhite lays 8-bit pixels on white.
func flattenOnWhite(pixels []byte) {
	for i := 0; i+4 <= len(pixels); i += 4 {
		p := pixels[i : i+4]
		a := uint32(p[3])
		if a == 255 {
			continue
		}
		white := 255*(255-a) + 127
		p[0], p[1], p[2], p[3] = byte((uint32(p[0])*a+white)/255), byte((uint32(p[1])*a+white)/255), byte((uint32(p[2])*a+white)/255), 255
	}
}

// finish ends the file and measures it by reading it again.
func (e *encoder) finish() (engine.Output, error) {
	if err := e.rows.close(); err != nil {
		return engine.Output{}, err
	}
	if err := e.file.Close(); err != nil {
		return engine.Output{}, fmt.Errorf("close output: %w", err)
	}
	f, err := os.Open(e.path)
	if err != nil {
		return engine.Output{}, fmt.Errorf("measure output: %w", err)
	}
	defer quietly(f.Close)
	info, err := f.Stat()
	if err != nil {
		return engine.Output{}, fmt.Errorf("measure output: %w", err)
	}
	h, err := readHeader(f, info.Size())
	if err != nil {
		return engine.Output{}, fmt.Errorf("measure output: %w", err)
	}
	return engine.Output{Width: h.width, Height: h.height, Size: info.Size()}, nil
}

// abort removes the file.
func (e *encoder) abort() {
	e.rows.abort()
	_ = e.file.Close()
	_ = os.Remove(e.path)
}
