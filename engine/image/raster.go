package image

import (
	"context"
	"encoding/binary"
	"fmt"
	"image"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/disintegration/imaging"

	"enlarger/engine"
)

// raster is a decoded picture: upright, sRGB, four samples a pixel (red, green, blue, alpha, not premultiplied), each of
// 8 bits or of 16 bits big-endian. The layout is that of image.NRGBA and image.NRGBA64, so that a raster in memory is one of
// them without a copy. A big one lies in an unlinked scratch file instead: reading and writing pieces of it costs page cache,
// which the kernel can take back, rather than memory of this process, and a full disk is an error rather than a signal.
type raster struct {
	width, height int
	deep          bool
	// alpha says that some pixel is not opaque; grey that red, green and blue are equal everywhere.
	alpha, grey bool

	pix  []byte
	file *os.File
}

// heapMost is the most bytes that one picture with what its decoder needs may take of this process's memory.
const heapMost = 96 << 20

// newRaster makes a raster in memory, or in a file under the scratch directory when inFile. Close it.
func newRaster(scratch string, width, height int, deep, inFile bool) (*raster, error) {
	r := &raster{width: width, height: height, deep: deep}
	if !inFile {
		r.pix = make([]byte, r.bytes())
		return r, nil
	}
	f, err := scratchFile(scratch)
	if err != nil {
		return nil, err
	}
	r.file = f
	if err := f.Truncate(r.bytes()); err != nil {
		return nil, fmt.Errorf("%w: size file: %w", errScratch, closing(f, err))
	}
	return r, nil
}

// scratchFile makes a file without a name, which is gone once it is closed, however the process ends.
func scratchFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "raster-*")
	if err != nil {
		return nil, fmt.Errorf("%w: make file: %w", errScratch, err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, fmt.Errorf("%w: unlink: %w", errScratch, closing(f, err))
	}
	return f, nil
}

// quietly is for what is given back after its last use, where an error says nothing that matters any more.
func quietly(f func() error) { _ = f() }

// closing closes the file on the way out with err, which is the error that matters.
func closing(f *os.File, err error) error {
	_ = f.Close()
	return err
}

// Close gives the memory or the file back. The raster must not be used after it.
func (r *raster) Close() {
	r.pix = nil
	if r.file != nil {
		_ = r.file.Close()
		r.file = nil
	}
}

// stride is the number of bytes of a pixel.
func (r *raster) pixelBytes() int { return bytesPerPixel(r.deep) }

func bytesPerPixel(deep bool) int {
	if deep {
		return 8
	}
	return 4
}

func (r *raster) bytes() int64 {
	return int64(r.width) * int64(r.height) * int64(r.pixelBytes())
}

func (r *raster) offset(x, y int) int64 {
	return (int64(y)*int64(r.width) + int64(x)) * int64(r.pixelBytes())
}

// read fills dst with the pixels from (x, y) to the right, within one row.
func (r *raster) read(x, y int, dst []byte) error {
	at := r.offset(x, y)
	if r.file == nil {
		copy(dst, r.pix[at:])
		return nil
	}
	if _, err := r.file.ReadAt(dst, at); err != nil {
		return fmt.Errorf("%w: read: %w", errScratch, err)
	}
	return nil
}

// write stores whole rows from row y.
func (r *raster) write(y int, src []byte) error {
	at := r.offset(0, y)
	if r.file == nil {
		if len(src) > 0 && &r.pix[at] != &src[0] { // else they were changed in place
			copy(r.pix[at:], src)
		}
		return nil
	}
	if _, err := r.file.WriteAt(src, at); err != nil {
		return fmt.Errorf("%w: write: %w", errScratch, err)
	}
	return nil
}

// view is the raster as a standard image, or nil when it lies in a file.
func (r *raster) view() image.Image {
	rect := image.Rect(0, 0, r.width, r.height)
	switch {
	case r.file != nil:
		return nil
	case r.deep:
		return &image.NRGBA64{Pix: r.pix, Stride: 8 * r.width, Rect: rect}
	}
	return &image.NRGBA{Pix: r.pix, Stride: 4 * r.width, Rect: rect}
}

// sink takes decoded rows, brings their colours to sRGB and stores them. It notices whether the picture uses its alpha and
// its colours at all. Different rows may come from different goroutines.
type sink struct {
	to        *raster
	transform *colorTransform
	// solid says that every pixel is known to be opaque.
	solid bool

	mu     sync.Mutex
	opaque bool
	grey   bool
}

func newSink(to *raster, transform *colorTransform) *sink {
	return &sink{to: to, transform: transform, opaque: true, grey: true}
}

// rows stores whole rows from row y. It changes them in place.
func (s *sink) rows(y int, pixels []byte) error {
	if s.transform != nil {
		s.transform.apply(pixels, s.to.deep)
	}
	s.mu.Lock()
	opaque, grey := s.opaque && !s.solid, s.grey
	s.mu.Unlock()
	if opaque || grey {
		opaque, grey = inspect(pixels, s.to.deep, opaque, grey)
		opaque = opaque || s.solid
		s.mu.Lock()
		s.opaque, s.grey = s.opaque && opaque, s.grey && grey
		s.mu.Unlock()
	}
	return s.to.write(y, pixels)
}

func (s *sink) finish() {
	s.to.alpha, s.to.grey = !s.opaque, s.grey
}

// inspect says whether the pixels are opaque and grey; what is already known to be false is not looked at.
func inspect(pixels []byte, deep, opaque, grey bool) (stillOpaque, stillGrey bool) {
	if !deep {
		if opaque {
			for i := 3; i < len(pixels); i += 4 {
				if pixels[i] != 0xFF {
					opaque = false
					break
				}
			}
		}
		for i := 0; grey && i+4 <= len(pixels); i += 4 {
			red, green, blue := pixels[i], pixels[i+1], pixels[i+2]
			grey = red == green && green == blue
		}
		return opaque, grey
	}
	for i := 0; (opaque || grey) && i+8 <= len(pixels); i += 8 {
		v := binary.BigEndian.Uint64(pixels[i:])
		opaque = opaque && v&0xFFFF == 0xFFFF
		grey = grey && v>>48 == v>>32&0xFFFF && v>>48 == v>>16&0xFFFF
	}
	return opaque, grey
}

// orient turns and mirrors the picture as the EXIF orientation asks. It may return another raster and close the given one.
func (r *raster) orient(ctx context.Context, orientation int, scratch string) (*raster, error) {
	if orientation <= 1 || orientation > 8 {
		return r, nil
	}
	if plain, ok := r.view().(*image.NRGBA); ok {
		turned := imagingOrient(plain, orientation)
		size := turned.Bounds().Size()
		return &raster{width: size.X, height: size.Y, alpha: r.alpha, grey: r.grey, pix: turned.Pix}, nil
	}
	return r.orientInBands(ctx, orientation, scratch)
}

func imagingOrient(img *image.NRGBA, orientation int) *image.NRGBA {
	switch orientation {
	case 2:
		return imaging.FlipH(img)
	case 3:
		return imaging.Rotate180(img)
	case 4:
		return imaging.FlipV(img)
	case 5:
		return imaging.Transpose(img)
	case 6:
		return imaging.Rotate270(img) // imaging turns anticlockwise
	case 7:
		return imaging.Transverse(img)
	case 8:
		return imaging.Rotate90(img)
	}
	return img
}

// orientBand is the number of rows of the turned picture made at a time.
const orientBand = 64

// orientInBands is orient for 16-bit pictures and for those in a file: a band of the result at a time.
func (r *raster) orientInBands(ctx context.Context, orientation int, scratch string) (*raster, error) {
	w, h := r.width, r.height
	if orientation >= 5 {
		w, h = h, w
	}
	out, err := newRaster(scratch, w, h, r.deep, r.file != nil)
	if err != nil {
		return nil, err
	}
	out.alpha, out.grey = r.alpha, r.grey
	for y := 0; y < h; y += orientBand {
		if err := ctx.Err(); err != nil {
			out.Close()
			return nil, err
		}
		n := min(orientBand, h-y)
		band := make([]byte, n*w*r.pixelBytes())
		if err := r.orientBand(orientation, y, n, w, band); err != nil {
			out.Close()
			return nil, err
		}
		if err := out.write(y, band); err != nil {
			out.Close()
			return nil, err
		}
	}
	r.Close()
	return out, nil
}

// orientBand fills band with n rows from row y of the turned picture, which is w pixels wide.
func (r *raster) orientBand(orientation, y, n, w int, band []byte) error {
	size := r.pixelBytes()
	if orientation < 5 {
		row := make([]byte, w*size)
		for i := range n {
			from := y + i
			if orientation != 2 {
				from = r.height - 1 - from
			}
			if err := r.read(0, from, row); err != nil {
				return err
			}
			to := band[i*w*size : (i+1)*w*size]
			if orientation == 4 {
				copy(to, row)
				continue
			}
			for x := range w {
				copy(to[(w-1-x)*size:(w-x)*size], row[x*size:])
			}
		}
		return nil
	}
	// The band's rows are columns of the source: n columns of every source row are read and laid down.
	left, backwards := y, orientation == 7 || orientation == 8
	if backwards {
		left = r.width - y - n
	}
	piece := make([]byte, n*size)
	for sy := range r.height {
		if err := r.read(left, sy, piece); err != nil {
			return err
		}
		x := sy
		if orientation == 6 || orientation == 7 {
			x = r.height - 1 - sy
		}
		for i := range n {
			from := i
			if backwards {
				from = n - 1 - i
			}
			copy(band[(i*w+x)*size:(i*w+x+1)*size], piece[from*size:])
		}
	}
	return nil
}

// processors is how many goroutines can compute at the same time: GOMAXPROCS may be larger than the machine.
func processors() int { return min(runtime.GOMAXPROCS(0), runtime.NumCPU()) }

// parallel runs work(worker, i) for i in [0, n) on all processors, at low priority, and stops at the first error or when ctx is done.
func parallel(ctx context.Context, n int, work func(worker, i int) error) error {
	workers := min(processors(), n)
	if workers <= 1 {
		for i := range n {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := work(0, i); err != nil {
				return err
			}
		}
		return nil
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var next atomic.Int64
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			engine.LowPriority()
			defer func() {
				if p := recover(); p != nil {
					stop(fmt.Errorf("panic: %v", p))
				}
			}()
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := work(worker, i); err != nil {
					stop(err)
					return
				}
			}
		})
	}
	group.Wait()
	return context.Cause(ctx)
}
