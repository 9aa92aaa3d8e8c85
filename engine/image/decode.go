package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image/gif"
	"image/jpeg"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/image/bmp"
	"golang.org/x/image/tiff"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// picture is a decoded source.
type picture struct {
	*raster
	header   header
	warnings []string
}

// errScratch marks a fault of this machine, as opposed to one of the file.
var errScratch = errors.New("scratch space or decoder")

// open decodes the task's input: upright, in sRGB. A file that cannot be decoded whole is an unsupported_format Failure.
func (o Options) open(ctx context.Context, input, scratch string) (*picture, error) {
	f, err := os.Open(input)
	if err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	defer quietly(f.Close)
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat source: %w", err)
	}
	h, err := readHeader(f, info.Size())
	if err != nil {
		return nil, unsupported(err)
	}
	if err := o.acceptSize(h.width, h.height); err != nil {
		return nil, err
	}
	d := &decoding{options: o, file: f, size: info.Size(), scratch: scratch, picture: &picture{header: h}}
	if err := d.run(ctx); err != nil {
		if d.picture.raster != nil {
			d.picture.Close()
		}
		return nil, decodeFailure(ctx, err)
	}
	return d.picture, nil
}

// decodeFailure says whose fault an error is: the caller's who gave up, this machine's, or the file's.
func decodeFailure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("decode: %w", context.Cause(ctx))
	}
	if _, ok := engine.AsFailure(err); ok || errors.Is(err, errScratch) {
		return err
	}
	return engine.Failf(engine.UnsupportedFormat, "The image is damaged, cut off or of a kind that cannot be read.").Because(err)
}

// decoding is one source on its way to a picture.
type decoding struct {
	options Options
	file    *os.File
	size    int64
	scratch string
	picture *picture
	profile []byte
}

func (d *decoding) run(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("decoder panicked: %v", p)
		}
	}()
	h := d.picture.header
	if d.profile, err = readProfile(d.file, d.size, h.format); err != nil {
		return err
	}
	outside, inFile := d.options.where(h, d.size)
	if outside {
		err = d.external(ctx)
	} else {
		err = d.internal(ctx, inFile)
		if unsupportedKind(err) && d.options.FFmpeg != nil {
			if d.picture.raster != nil {
				d.picture.Close()
			}
			err = d.external(ctx)
		}
	}
	if err != nil {
		return err
	}
	turned, err := d.picture.orient(ctx, h.orientation, d.scratch)
	if err != nil {
		return err
	}
	d.picture.raster = turned
	return nil
}

// where decides whether ffmpeg decodes, and whether the pixels go to a file.
func (o Options) where(h header, size int64) (outside, inFile bool) {
	pixels := int64(h.width) * int64(h.height)
	raster := pixels * int64(bytesPerPixel(h.deep))
	decoder := decoderBytes(h, size)
	outside = h.format == "avif"
	if o.FFmpeg != nil {
		outside = outside || decoder > o.heap || (h.format == "png" && h.interlaced && raster > o.heap)
	}
	return outside, outside || (raster+decoder > o.heap && !h.interlaced)
}

// decoderBytes is what decoding in this process takes beside the raster, as measured with the decoders in use.
func decoderBytes(h header, size int64) int64 {
	pixels := float64(int64(h.width) * int64(h.height))
	switch h.format {
	case "jpeg":
		bytes := pixels * h.samples
		if h.progressive { // a 32-bit coefficient per sample until the last scan
			bytes *= 5
		}
		if h.channels == 4 {
			bytes += 4 * pixels
		}
		return int64(bytes)
	case "gif":
		return int64(pixels)
	case "bmp":
		return int64(4 * pixels)
	case "tiff":
		return int64(float64(bytesPerPixel(h.deep)) * pixels)
	case "webp":
		return int64(12*pixels) + size
	}
	return 0
}

// unsupportedKind says that the file may be sound but our decoder does not know its kind.
func unsupportedKind(err error) bool {
	var jpegKind jpeg.UnsupportedError
	var tiffKind tiff.UnsupportedError
	return errors.As(err, &jpegKind) || errors.As(err, &tiffKind) || errors.Is(err, bmp.ErrUnsupported)
}

// transform makes the colour transform of the source's profile and warns when it cannot be applied.
func (d *decoding) transform() *colorTransform {
	h := d.picture.header
	if h.format == "jpeg" && h.channels == 4 {
		d.picture.warnings = append(d.picture.warnings, "The source is CMYK; its colours were converted without its colour profile and may look different.")
		return nil
	}
	if len(d.profile) == 0 {
		return nil
	}
	t, err := parseProfile(d.profile)
	if err != nil {
		d.picture.warnings = append(d.picture.warnings, "The colour profile of the source could not be applied; colours may look different.")
		return nil
	}
	if t.isIdentity() {
		return nil
	}
	return t
}

// internal decodes in this process.
func (d *decoding) internal(ctx context.Context, inFile bool) error {
	h := d.picture.header
	in := &contextReader{ended: ctx.Err, File: d.file}
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("%w: %w", errScratch, err)
	}
	if h.format == "png" {
		return d.png(ctx, in, inFile)
	}
	if done, err := d.byTurbo(ctx, in, inFile); done || err != nil {
		return err
	}
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("%w: %w", errScratch, err)
	}
	img, err := decodeStandard(h.format, in, d.size)
	if err != nil {
		return err
	}
	return d.store(ctx, img, inFile)
}

// store makes the raster of a decoded standard image.
func (d *decoding) store(ctx context.Context, img standardImage, inFile bool) (err error) {
	h := d.picture.header
	b := img.Bounds()
	placed := h.format == "gif" || h.animated
	if b.Min.X < 0 || b.Min.Y < 0 || b.Max.X > h.width || b.Max.Y > h.height || (!placed && (b.Dx() != h.width || b.Dy() != h.height)) {
		return fmt.Errorf("decoded %v, header says %dx%d", b, h.width, h.height)
	}
	if d.picture.raster, err = newRaster(d.scratch, h.width, h.height, h.deep, inFile); err != nil {
		return err
	}
	to := newSink(d.picture.raster, d.transform())
	if err := storeImage(ctx, img, to); err != nil {
		return err
	}
	to.finish()
	return nil
}

func (d *decoding) png(ctx context.Context, in io.Reader, inFile bool) error {
	p, err := newPNGReader(in)
	if err != nil {
		return err
	}
	h := d.picture.header
	if p.width != h.width || p.height != h.height {
		return fmt.Errorf("%w: size changed", errPNG)
	}
	d.profile = p.profile
	if d.picture.raster, err = newRaster(d.scratch, h.width, h.height, p.deep(), inFile); err != nil {
		return err
	}
	to := newSink(d.picture.raster, d.transform())
	stride := h.width * d.picture.pixelBytes()
	if p.interlace == 1 {
		if err := p.interlaced(d.picture.pix); err != nil {
			return err
		}
		if err := d.recolour(ctx, to); err != nil {
			return err
		}
		to.finish()
		return nil
	}
	const groupBytes = 256 << 10
	err = p.rows(min(max(groupBytes/stride, 1), h.height), func(y int, pixels []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return to.rows(y, pixels)
	})
	to.finish()
	return err
}

// recolour passes a raster that is already filled through its sink.
func (d *decoding) recolour(ctx context.Context, to *sink) error {
	const groupBytes = 1 << 20
	r := d.picture.raster
	stride := r.width * r.pixelBytes()
	group := min(max(groupBytes/stride, 1), r.height)
	return parallel(ctx, (r.height+group-1)/group, func(_, i int) error {
		y := i * group
		if r.file == nil {
			return to.rows(y, r.pix[y*stride:][:min(group, r.height-y)*stride])
		}
		pixels := make([]byte, min(group, r.height-y)*stride)
		if err := r.read(0, y, pixels); err != nil {
			return err
		}
		return to.rows(y, pixels)
	})
}

// decoders by format, as ffmpeg names them.
var ffmpegDecoders = map[string]string{"jpeg": "mjpeg", "png": "png", "webp": "webp", "gif": "gif", "bmp": "bmp", "tiff": "tiff", "avif": "libdav1d"}

// externalTime bounds one decode or encode by ffmpeg: 200 megapixels take under a minute.
const externalTime = 10 * time.Minute

// external has ffmpeg decode the first frame into a file of raw pixels.
func (d *decoding) external(ctx context.Context) error {
	h := d.picture.header
	if d.options.FFmpeg == nil {
		return errors.New("no ffmpeg to decode with")
	}
	path, err := d.wholePath()
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(d.scratch, "decoded-*")
	if err != nil {
		return fmt.Errorf("%w: %w", errScratch, err)
	}
	defer quietly(func() error { return os.Remove(f.Name()) })
	d.picture.raster = &raster{width: h.width, height: h.height, deep: h.deep, file: f}
	target, err := filepath.Abs(f.Name())
	if err != nil {
		return fmt.Errorf("%w: %w", errScratch, err)
	}
	pixelFormat := "rgba"
	if h.deep {
		pixelFormat = "rgba64be"
	}
	demuxer, whitelist := h.format+"_pipe", h.format+"_pipe"
	switch h.format {
	case "avif":
		demuxer, whitelist = "mov", "mov"
	case "gif":
		demuxer, whitelist = "gif", "gif"
	}
	decoder := ffmpegDecoders[h.format]
	detect := "explode"
	if h.format == "tiff" {
		detect = "crccheck" // any private tag would explode; missing pixels are an error without it
	}
	args := d.options.FFmpeg.Args(
		ffmpeg.Input{Path: path, Options: []ffmpeg.Option{
			ffmpeg.Opt("format_whitelist", whitelist), ffmpeg.Opt("codec_whitelist", decoder+",libaom-av1,av1"),
			ffmpeg.Opt("max_pixels", strconv.FormatInt(d.options.SourcePixels, 10)),
			ffmpeg.Opt("err_detect", detect), ffmpeg.Flag("xerror"), ffmpeg.Flag("noautorotate"),
			ffmpeg.Opt("f", demuxer), ffmpeg.Opt("c:v", decoder),
		}},
		ffmpeg.Output{Path: target, Format: "rawvideo", Options: []ffmpeg.Option{
			ffmpeg.Opt("map", "0:v:0"), ffmpeg.Int("frames:v", 1), ffmpeg.Opt("pix_fmt", pixelFormat),
			ffmpeg.Opt("sws_flags", "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"),
		}},
	)
	if err := d.options.FFmpeg.Run(ctx, ffmpeg.Command{Args: args, Timeout: externalTime}); err != nil {
		// A run that ended by itself has judged the file; anything else, such as a kill, is a fault of this machine.
		var ended interface{ ExitCode() int }
		if errors.As(err, &ended) && ended.ExitCode() > 0 {
			return err
		}
		return fmt.Errorf("%w: %w", errScratch, err)
	}
	info, err := os.Stat(f.Name())
	if err != nil {
		return fmt.Errorf("%w: %w", errScratch, err)
	}
	if info.Size() != d.picture.bytes() {
		return fmt.Errorf("ffmpeg decoded %d bytes, want %d", info.Size(), d.picture.bytes())
	}
	to := newSink(d.picture.raster, d.transform())
	if err := d.recolour(ctx, to); err != nil {
		return err
	}
	to.finish()
	return nil
}

// wholePath is the absolute path of what ffmpeg is to read. A file that is cut off would be filled with grey, so a JPEG without its
// end is refused, and a BMP that is smaller than its pixels; that refuses most run-length BMPs too, which hardly anyone has.
func (d *decoding) wholePath() (string, error) {
	h := d.picture.header
	if h.format == "bmp" && float64(d.size) < h.samples*float64(int64(h.width)*int64(h.height)) {
		return "", errors.New("bmp is cut off or run-length coded")
	}
	if h.format == "jpeg" {
		const tail = 64 << 10
		end := (&headerReader{r: d.file, size: d.size}).upTo(max(0, d.size-tail), tail)
		if !bytes.Contains(end, []byte{0xFF, 0xD9}) {
			return "", errors.New("jpeg without an end")
		}
	}
	path := d.file.Name()
	if h.format == "webp" && h.animated {
		return "", errors.New("animated webp too large to decode here")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errScratch, err)
	}
	return path, nil
}

// contextReader ends a decoder that cannot be cancelled by failing its next read.
type contextReader struct {
	// ended is the context's Err.
	ended func() error
	*os.File
}

func (r *contextReader) Read(b []byte) (int, error) {
	if err := r.ended(); err != nil {
		return 0, err
	}
	return r.File.Read(b)
}

func (r *contextReader) ReadAt(b []byte, offset int64) (int, error) {
	if err := r.ended(); err != nil {
		return 0, err
	}
	return r.File.ReadAt(b, offset)
}

// WriteTo hides os.File's, which would not look at the context.
func (r *contextReader) WriteTo(w io.Writer) (int64, error) {
	return io.Copy(w, struct{ io.Reader }{r})
}

// decodeStandard decodes with the decoder of the format; GIF and WebP give the first frame, placed by its bounds.
func decodeStandard(format string, in *contextReader, size int64) (standardImage, error) {
	switch format {
	case "jpeg":
		return jpeg.Decode(in)
	case "gif":
		return gif.Decode(in)
	case "bmp":
		return bmp.Decode(in)
	case "tiff":
		return tiff.Decode(in)
	case "webp":
		data, err := io.ReadAll(io.LimitReader(in, size))
		if err != nil {
			return nil, err
		}
		return decodeWebP(data)
	}
	return nil, fmt.Errorf("no decoder for %q", format)
}
