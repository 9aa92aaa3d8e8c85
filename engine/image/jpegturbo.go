package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"enlarger/engine"
	"enlarger/engine/turbojpeg"
)

const (
	// turboScansMost is the most scans of a JPEG that libjpeg-turbo is given: each costs as much as a picture, and it cannot be stopped. Progressive
	// files as programs make them have about ten.
	turboScansMost = 40
	// turboFileMost is the largest such file in bytes, which is held in memory whole.
	turboFileMost = 48 << 20
	// turboWidthLeast is the least width in pixels: the library does not interpolate the colour of narrow pictures.
	turboWidthLeast = 8
)

// byTurbo decodes a JPEG by libjpeg-turbo. It says false, having changed nothing, for a file that the library is not given or does not take on: a
// damaged one among them, so that all that is said of damage comes from one decoder. It takes no more memory than decoderBytes and the raster do.
func (d *decoding) byTurbo(ctx context.Context, in io.Reader, inFile bool) (bool, error) {
	h := d.picture.header
	library := d.options.Turbo
	const small = 1 << 20 // where the size of the file does not matter
	if library == nil || h.format != "jpeg" || h.deep || (h.channels != 1 && h.channels != 3) || h.width < turboWidthLeast {
		return false, nil
	}
	if d.size > turboFileMost || d.size > max(decoderBytes(h, d.size), small) {
		return false, nil
	}
	content := make([]byte, d.size)
	if _, err := io.ReadFull(in, content); err != nil {
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		return false, nil // read again, by the decoder that knows what to say
	}
	if bytes.Count(content, []byte{0xFF, 0xDA}) > turboScansMost {
		return false, nil
	}
	if inFile {
		return d.turboInFile(ctx, library, content)
	}
	r, err := newRaster(d.scratch, h.width, h.height, false, false)
	if err != nil {
		return false, err
	}
	if err := yielding(func() error { return library.Decode(content, r.pix, h.width, h.height) }); err != nil {
		r.Close()
		return false, otherThanTaken(err)
	}
	d.picture.raster = r
	to := newSink(r, d.transform())
	to.solid = true
	if err := d.recolour(ctx, to); err != nil {
		return false, err
	}
	to.finish()
	return true, nil
}

// turboInFile goes by planes, which are smaller, into a raster in a file.
func (d *decoding) turboInFile(ctx context.Context, library *turbojpeg.Library, content []byte) (bool, error) {
	h := d.picture.header
	if float64(len(content))+h.samples*float64(h.width)*float64(h.height) > float64(d.options.heap) {
		return false, nil
	}
	var img standardImage
	err := yielding(func() (err error) {
		img, err = library.DecodePlanes(content, h.width, h.height)
		return err
	})
	if err != nil {
		return false, otherThanTaken(err)
	}
	return true, d.store(ctx, img, true)
}

// otherThanTaken is the error, unless it says that the library does not take the file on.
func otherThanTaken(err error) error {
	if errors.Is(err, turbojpeg.ErrNotTaken) {
		return nil
	}
	return err
}

// yielding runs long work on a thread of low priority.
func yielding(work func() error) error {
	result := make(chan error, 1)
	go func() {
		engine.LowPriority()
		result <- work()
	}()
	return <-result
}

// turboLine codes one row of units by libjpeg-turbo: as a JPEG of its own with the tables of this one, of which the coded part is taken. The part
// of a restart interval is coded as if it were alone, so it is the same.
func (j *jpegWriter) turboLine(buffer, pixels []byte) (whole, coded []byte, err error) {
	colour := turbojpeg.Full
	switch {
	case j.components == 1:
		colour = turbojpeg.Grey
	case j.half:
		colour = turbojpeg.Half
	}
	whole, err = j.turbo.Encode(buffer[:0], pixels, j.width, len(pixels)/(4*j.width), j.quality, colour)
	if err != nil {
		return buffer, nil, err
	}
	coded, err = j.coded(whole)
	return whole, coded, err
}

// errOtherTables says that the library codes in another way than this writer's header announces.
var errOtherTables = errors.New("the library's JPEG has other tables")

// coded gives the coded part of a JPEG of one scan, after a look at its tables.
func (j *jpegWriter) coded(made []byte) ([]byte, error) {
	tables := 0
	for at := 2; at+4 <= len(made); {
		marker, length := made[at+1], int(binary.BigEndian.Uint16(made[at+2:]))
		if made[at] != 0xFF || length < 2 || at+2+length > len(made) {
			break
		}
		payload := made[at+4 : at+2+length]
		at += 2 + length
		switch marker {
		case 0xE0, 0xC0:
		case 0xDB, 0xC4:
			n, ok := j.sameTables(marker, payload)
			if !ok {
				return nil, errOtherTables
			}
			tables += n
		case 0xDA:
			if tables != 3*min(j.components, 2) || !bytes.HasSuffix(made, []byte{0xFF, 0xD9}) {
				return nil, errOtherTables
			}
			return made[at : len(made)-2], nil
		default: // another kind of JPEG, or restarts
			return nil, errOtherTables
		}
	}
	return nil, errOtherTables
}

// sameTables compares the tables of a segment with this writer's, and counts them.
func (j *jpegWriter) sameTables(marker byte, payload []byte) (n int, same bool) {
	for len(payload) > 0 {
		kind, id := payload[0]>>4, payload[0]&15
		if id > 1 || kind > 1 {
			return n, false
		}
		want := j.quant[id][:]
		if marker == 0xC4 {
			want = append(append([]byte(nil), jpegDCCounts[id][:]...), jpegDCValues[:]...)
			if kind == 1 {
				want = append(append([]byte(nil), jpegACCounts[id][:]...), jpegACValues[id][:]...)
			}
		} else if kind != 0 {
			return n, false
		}
		if !bytes.HasPrefix(payload[1:], want) {
			return n, false
		}
		payload = payload[1+len(want):]
		n++
	}
	return n, true
}
