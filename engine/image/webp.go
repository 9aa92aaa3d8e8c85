package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/coalaura/webp"

	"enlarger/engine/ffmpeg"
)

// webpMostSide is the longest side that a WebP can have, in pixels.
const webpMostSide = 16383

// standardImage is image.Image, named here because this package has the same name.
type standardImage = image.Image

// webpChunks calls visit for the chunks from offset on until it returns false, with the offset and length of their payload.
func webpChunks(in *headerReader, offset int64, visit func(name string, offset, length int64) bool) error {
	for range maxSegments {
		b, err := in.at(offset, 8)
		if err != nil {
			return err
		}
		length := int64(binary.LittleEndian.Uint32(b[4:]))
		if !visit(string(b[:4]), offset+8, length) {
			return nil
		}
		offset += 8 + length + length%2
	}
	return errNotImage
}

// riffHeader is the length of RIFF, its size and WEBP.
const riffHeader = 12

func webpProfile(in *headerReader) (profile []byte, err error) {
	walked := webpChunks(in, riffHeader, func(name string, offset, length int64) bool {
		switch name {
		case "VP8X":
			return true
		case "ICCP":
			if length <= maxProfileBytes {
				profile, err = in.at(offset, int(length))
			}
		}
		return false // the profile stands before the pixels
	})
	return profile, errors.Join(walked, err)
}

// decodeWebP decodes a WebP, or the first frame of an animation with its place on the canvas in its bounds.
func decodeWebP(data []byte) (image.Image, error) {
	left, top := 0, 0
	if len(data) > 20 && string(data[12:16]) == "VP8X" && data[20]&0x02 != 0 {
		var err error
		if data, left, top, err = webpFirstFrame(data); err != nil {
			return nil, err
		}
	}
	img, err := webp.DecodeRGBA(data, nil)
	if err != nil {
		return nil, fmt.Errorf("decode webp: %w", err)
	}
	// The library says RGBA but does not premultiply.
	size := img.Rect.Size()
	return &image.NRGBA{Pix: img.Pix, Stride: img.Stride, Rect: image.Rect(left, top, left+size.X, top+size.Y)}, nil
}

// webpFirstFrame makes a still WebP of the first ANMF chunk of an animation.
func webpFirstFrame(data []byte) (still []byte, left, top int, err error) {
	var frame []byte
	in := &headerReader{r: readerAt(data), size: int64(len(data))}
	err = webpChunks(in, riffHeader, func(name string, offset, length int64) bool {
		if name == "ANMF" && offset+length <= int64(len(data)) {
			frame = data[offset : offset+length]
		}
		return name != "ANMF"
	})
	const frameHeader = 16
	if err != nil || len(frame) < frameHeader {
		return nil, 0, 0, fmt.Errorf("animated webp without a frame: %w", errors.Join(err, errShort))
	}
	left, top = 2*uint24(frame), 2*uint24(frame[3:])
	// An extended header with alpha, then the frame's own chunks.
	extended := make([]byte, 18)
	copy(extended, "VP8X\x0a\x00\x00\x00\x10")
	copy(extended[12:], frame[6:12])
	body := append(append([]byte("WEBP"), extended...), frame[frameHeader:]...)
	still = binary.LittleEndian.AppendUint32([]byte("RIFF"), uint32(len(body)))
	return append(still, body...), left, top, nil
}

// readerAt is bytes.Reader's ReadAt without its state.
type readerAt []byte

func (r readerAt) ReadAt(b []byte, offset int64) (int, error) {
	if offset < 0 || offset >= int64(len(r)) {
		return 0, io.EOF
	}
	n := copy(b, r[offset:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// webpInProcess is the most pixels that are encoded in this process: libwebp wants the whole picture, takes about 8 bytes a pixel
// beside it, and cannot be stopped; this many take about a second. Bigger ones go through ffmpeg, which uses the same library.
const webpInProcess = 6 << 20

// webpHeap collects the picture and encodes it at the end.
type webpHeap struct {
	out     io.Writer
	picture *image.RGBA
	quality int
	next    int
}

func newWebPHeap(out io.Writer, width, height, quality int) *webpHeap {
	return &webpHeap{out: out, picture: image.NewRGBA(image.Rect(0, 0, width, height)), quality: quality}
}

func (w *webpHeap) write(_ context.Context, pixels []byte) error {
	w.next += copy(w.picture.Pix[w.next:], pixels)
	return nil
}

func (w *webpHeap) close() error {
	if w.next != len(w.picture.Pix) {
		return fmt.Errorf("webp: %d of %d bytes written", w.next, len(w.picture.Pix))
	}
	// The library takes RGBA without premultiplying or asking for it.
	options := &webp.Options{Quality: float32(w.quality), Method: 4, AlphaQuality: 100, UseThreads: true}
	if err := webp.Encode(w.out, w.picture, options); err != nil {
		return fmt.Errorf("encode webp: %w", err)
	}
	return nil
}

func (w *webpHeap) abort() {}

// webpPipe has ffmpeg encode rows that are written to it.
type webpPipe struct {
	rows *os.File
	done chan error
	// result is that of the run, once it was taken from done.
	result error
	ended  bool
	stop   context.CancelFunc
}

func newWebPPipe(ctx context.Context, runner *ffmpeg.Runner, path string, width, height, quality int) (*webpPipe, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("find output: %w", err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	args := []string{
		"-hide_banner", "-y", "-loglevel", "level+warning",
		"-f", "rawvideo", "-pix_fmt", "rgba", "-video_size", fmt.Sprintf("%dx%d", width, height), "-i", "pipe:0",
		"-frames:v", "1", "-c:v", "libwebp", "-pix_fmt", "bgra", "-quality", strconv.Itoa(quality), "-compression_level", "4",
		"-threads", strconv.Itoa(runner.Threads()), "-f", "webp", "file:" + path,
	}
	w := &webpPipe{rows: write, done: make(chan error, 1), stop: stop}
	go func() {
		err := runner.Run(ctx, ffmpeg.Command{Args: args, Stdin: read, Timeout: externalTime})
		quietly(read.Close)
		w.done <- err
	}()
	return w, nil
}

func (w *webpPipe) write(ctx context.Context, pixels []byte) error {
	if _, err := w.rows.Write(pixels); err != nil {
		// The reader has gone: its own error says why.
		if ended := w.wait(); ended != nil {
			err = ended
		}
		return errors.Join(ctx.Err(), fmt.Errorf("encode webp: %w", err))
	}
	return nil
}

func (w *webpPipe) wait() error {
	if !w.ended {
		_ = w.rows.Close()
		w.result = <-w.done
		w.ended = true
		w.stop()
	}
	return w.result
}

func (w *webpPipe) close() error {
	if err := w.wait(); err != nil {
		return fmt.Errorf("encode webp: %w", err)
	}
	return nil
}

// abort ends the run without a result.
func (w *webpPipe) abort() {
	w.stop()
	_ = w.wait()
}
