package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/bep/imagemeta"

	"enlarger/engine"
)

// header is what the first part of an image file says of it. Sizes are as stored, before orientation.
type header struct {
	format        string
	width, height int
	// orientation is the EXIF value, 1 to 8; 1 is upright.
	orientation int
	alpha       bool
	// deep says that samples have more than 8 bits.
	deep bool
	// animated says that there is more than one frame.
	animated bool
	// interlaced is PNG's Adam7; progressive is JPEG's.
	interlaced, progressive bool
	// samples is the number of stored samples per pixel over all components: 1.5 for a 4:2:0 JPEG. For a BMP it is bytes.
	samples float64
	// channels is the number of components.
	channels int
}

// displayed is the size after orientation.
func (h header) displayed() (width, height int) {
	if h.orientation >= 5 {
		return h.height, h.width
	}
	return h.width, h.height
}

func (h header) source() engine.Source {
	w, ht := h.displayed()
	return engine.Source{Width: w, Height: ht, Format: h.format, Alpha: h.alpha}
}

var (
	// errNotImage is returned for content that is no image this package reads.
	errNotImage = errors.New("not a supported image")
	// errShort is returned when the header goes on beyond the bytes at hand.
	errShort = errors.New("header is not complete")
)

// maxSegments bounds the walk over the segments, chunks or boxes of a header.
const maxSegments = 4096

// maxSide is the longest side in pixels that a header may claim. It keeps width times height times the square of the largest scale within 64 bits.
const maxSide = 1 << 27

// SniffPrefix reads what the first bytes of a file say of it. Content that is no supported image is an unsupported_format
// Failure. An image whose size does not stand in the prefix gives a Source with Format set and Known() false. An EXIF
// orientation behind the prefix is not seen, which can swap width and height but not change their product.
// 64 KiB are enough for nearly every file.
func SniffPrefix(prefix []byte) (engine.Source, error) {
	h, err := readHeader(bytes.NewReader(prefix), int64(len(prefix)))
	if errors.Is(err, errShort) && h.format != "" {
		return engine.Source{Format: h.format}, nil
	}
	if err != nil {
		return engine.Source{}, unsupported(err)
	}
	return h.source(), nil
}

// Sniff reads the header of a whole file of size bytes. A header that is cut off is an unsupported_format Failure, like any
// other content that is no supported image.
func Sniff(r io.ReaderAt, size int64) (engine.Source, error) {
	h, err := readHeader(r, size)
	if err != nil {
		return engine.Source{}, unsupported(err)
	}
	src := h.source()
	src.Size = size
	return src, nil
}

func unsupported(err error) *engine.Failure {
	return engine.Failf(engine.UnsupportedFormat, "The source is not an image that can be read. Send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file.").Because(err)
}

// readHeader finds the format by content and reads its header. With errShort, the format is set when it is recognised.
func readHeader(r io.ReaderAt, size int64) (h header, err error) {
	in := &headerReader{r: r, size: size}
	start := in.upTo(0, 16)
	switch {
	case bytes.HasPrefix(start, []byte{0xFF, 0xD8, 0xFF}):
		h, err = jpegHeader(in)
	case bytes.HasPrefix(start, pngSignature):
		h, err = pngHeader(in)
	case bytes.HasPrefix(start, []byte("GIF87a")), bytes.HasPrefix(start, []byte("GIF89a")):
		h, err = gifHeader(in)
	case len(start) >= 12 && string(start[:4]) == "RIFF" && string(start[8:12]) == "WEBP":
		h, err = webpHeader(in)
	case bytes.HasPrefix(start, []byte("II*\x00")), bytes.HasPrefix(start, []byte("MM\x00*")):
		h, err = tiffHeader(in)
	case bytes.HasPrefix(start, []byte("BM")):
		h, err = bmpHeader(in)
	case len(start) >= 12 && string(start[4:8]) == "ftyp":
		h, err = isoHeader(in)
	default:
		return header{}, errNotImage
	}
	if err != nil {
		return h, err
	}
	if h.width <= 0 || h.height <= 0 || h.width > maxSide || h.height > maxSide {
		return h, fmt.Errorf("%w: %s of %dx%d", errNotImage, h.format, h.width, h.height)
	}
	if h.orientation == 0 {
		h.orientation = exifOrientation(in, h.format)
	}
	return h, nil
}

// headerReader reads small pieces at offsets; a read beyond the end is errShort.
type headerReader struct {
	r    io.ReaderAt
	size int64
}

func (in *headerReader) at(offset int64, n int) ([]byte, error) {
	if offset < 0 || n < 0 || offset > in.size-int64(n) {
		return nil, errShort
	}
	buf := make([]byte, n)
	if _, err := in.r.ReadAt(buf, offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read header: %w", err)
	}
	return buf, nil
}

// upTo reads n bytes or as many as there are.
func (in *headerReader) upTo(offset int64, n int) []byte {
	n = int(max(0, min(int64(n), in.size-offset)))
	buf, err := in.at(offset, n)
	if err != nil {
		return nil
	}
	return buf
}

// exifOrientation reads the orientation tag. Whatever is wrong with the metadata, the picture is taken as upright.
func exifOrientation(in *headerReader, format string) (orientation int) {
	orientation = 1
	formats := map[string]imagemeta.ImageFormat{"jpeg": imagemeta.JPEG, "png": imagemeta.PNG, "webp": imagemeta.WebP}
	kind, ok := formats[format]
	if !ok {
		return orientation
	}
	// The metadata is foreign: a panic in its parser costs the orientation only.
	defer func() { _ = recover() }()
	const mostTags = 2000
	_, _ = imagemeta.Decode(imagemeta.Options{
		R:               io.NewSectionReader(in.r, 0, in.size),
		ImageFormat:     kind,
		Sources:         imagemeta.EXIF,
		LimitNumTags:    mostTags,
		Warnf:           func(string, ...any) {},
		ShouldHandleTag: func(tag imagemeta.TagInfo) bool { return tag.Tag == "Orientation" && tag.Namespace == "IFD0" },
		HandleTag: func(tag imagemeta.TagInfo) error {
			if n, ok := tag.Value.(uint16); ok && n >= 1 && n <= 8 {
				orientation = int(n)
			}
			return imagemeta.ErrStopWalking
		},
	})
	return orientation
}

// jpegSegments calls visit for every marker segment before the first scan, with the offset and length of its payload,
// until visit returns false.
func jpegSegments(in *headerReader, visit func(marker byte, offset int64, length int) (bool, error)) error {
	offset := int64(2)
	for range maxSegments {
		b, err := in.at(offset, 4)
		if err != nil {
			return err
		}
		switch {
		case b[0] != 0xFF:
			return fmt.Errorf("%w: no JPEG marker at %d", errNotImage, offset)
		case b[1] == 0xFF: // fill byte
			offset++
			continue
		case b[1] == 0x01 || (b[1] >= 0xD0 && b[1] <= 0xD8): // no payload
			offset += 2
			continue
		case b[1] == 0xD9:
			return fmt.Errorf("%w: JPEG ends before its picture", errNotImage)
		}
		length := int(binary.BigEndian.Uint16(b[2:]))
		if length < 2 {
			return fmt.Errorf("%w: JPEG segment of %d bytes", errNotImage, length)
		}
		goOn, err := visit(b[1], offset+4, length-2)
		if err != nil || !goOn || b[1] == 0xDA {
			return err
		}
		offset += 2 + int64(length)
	}
	return fmt.Errorf("%w: too many JPEG segments", errNotImage)
}

func jpegHeader(in *headerReader) (header, error) {
	h := header{format: "jpeg"}
	err := jpegSegments(in, func(marker byte, offset int64, length int) (bool, error) {
		if marker == 0xDA {
			return false, fmt.Errorf("%w: JPEG scan before the frame header", errNotImage)
		}
		// C4, C8 and CC are tables, the other Cx are frame headers.
		if marker < 0xC0 || marker > 0xCF || marker == 0xC4 || marker == 0xC8 || marker == 0xCC {
			return true, nil
		}
		if length < 9 {
			return false, fmt.Errorf("%w: JPEG frame header of %d bytes", errNotImage, length)
		}
		b, err := in.at(offset, length)
		if err != nil {
			return false, err
		}
		h.deep = b[0] > 8
		h.height, h.width = int(binary.BigEndian.Uint16(b[1:])), int(binary.BigEndian.Uint16(b[3:]))
		h.channels = int(b[5])
		h.progressive = marker == 0xC2
		h.samples = jpegSamples(b[6:], h.channels)
		if h.channels == 0 || h.samples == 0 {
			return false, fmt.Errorf("%w: JPEG frame header", errNotImage)
		}
		return false, nil
	})
	return h, err
}

// jpegSamples is the mean number of samples per pixel of a frame with these component specifications, 0 when they are broken.
func jpegSamples(specs []byte, channels int) float64 {
	if len(specs) < 3*channels {
		return 0
	}
	most, sum := 0, 0
	for c := range channels {
		h, v := int(specs[3*c+1]>>4), int(specs[3*c+1]&15)
		if h == 0 || v == 0 || h > 4 || v > 4 {
			return 0
		}
		most = max(most, h*v)
		sum += h * v
	}
	if most == 0 {
		return 0
	}
	return float64(sum) / float64(most)
}

var pngSignature = []byte("\x89PNG\r\n\x1a\n")

func pngHeader(in *headerReader) (header, error) {
	h := header{format: "png"}
	b, err := in.at(8, 25)
	if err != nil {
		return h, err
	}
	if string(b[4:8]) != "IHDR" || binary.BigEndian.Uint32(b) != 13 {
		return h, fmt.Errorf("%w: PNG without IHDR", errNotImage)
	}
	width, height := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])
	if width > maxSide || height > maxSide {
		return h, fmt.Errorf("%w: PNG of %dx%d", errNotImage, width, height)
	}
	h.width, h.height = int(width), int(height)
	h.deep = b[16] == 16
	h.alpha = b[17] == 4 || b[17] == 6
	h.interlaced = b[20] == 1
	h.channels = 4
	h.samples = 4
	// tRNS stands before the pixels; where it is not in a prefix, the picture is taken as opaque.
	offset := int64(8 + 25)
	for range maxSegments {
		b := in.upTo(offset, 8)
		if len(b) < 8 || string(b[4:]) == "IDAT" {
			break
		}
		if string(b[4:]) == "tRNS" {
			h.alpha = true
		}
		offset += 12 + int64(binary.BigEndian.Uint32(b))
	}
	return h, nil
}

func gifHeader(in *headerReader) (header, error) {
	h := header{format: "gif", channels: 4, samples: 1}
	b, err := in.at(6, 7)
	if err != nil {
		return h, err
	}
	h.width, h.height = int(binary.LittleEndian.Uint16(b)), int(binary.LittleEndian.Uint16(b[2:]))
	offset := int64(13)
	if b[4]&0x80 != 0 {
		offset += 3 << (1 + b[4]&7)
	}
	for range maxSegments {
		b := in.upTo(offset, 10)
		if len(b) < 10 || b[0] != 0x21 {
			if len(b) == 10 && b[0] == 0x2C {
				left, top := int(binary.LittleEndian.Uint16(b[1:])), int(binary.LittleEndian.Uint16(b[3:]))
				w, ht := int(binary.LittleEndian.Uint16(b[5:])), int(binary.LittleEndian.Uint16(b[7:]))
				h.alpha = h.alpha || left > 0 || top > 0 || w < h.width || ht < h.height
			}
			break
		}
		if b[1] == 0xF9 && b[3]&1 != 0 {
			h.alpha = true
		}
		offset += 2
		for range maxSegments {
			size := in.upTo(offset, 1)
			if len(size) == 0 {
				return h, nil
			}
			offset += 1 + int64(size[0])
			if size[0] == 0 {
				break
			}
		}
	}
	return h, nil
}

func bmpHeader(in *headerReader) (header, error) {
	h := header{format: "bmp", channels: 4, samples: 4}
	b, err := in.at(14, 16)
	if err != nil {
		if len(in.upTo(0, 6)) == 6 {
			return h, err
		}
		return header{}, errNotImage
	}
	switch binary.LittleEndian.Uint32(b) {
	case 40, 52, 56, 64, 108, 124:
		width, height := int64(int32(binary.LittleEndian.Uint32(b[4:]))), int64(int32(binary.LittleEndian.Uint32(b[8:])))
		if height < 0 { // stored from the top
			height = -height
		}
		if binary.LittleEndian.Uint16(b[12:]) != 1 {
			return header{}, fmt.Errorf("%w: BMP planes", errNotImage)
		}
		if width <= 0 || height <= 0 {
			return h, fmt.Errorf("%w: BMP of %dx%d", errNotImage, width, height)
		}
		h.width, h.height = int(width), int(height)
		bits := binary.LittleEndian.Uint16(b[14:])
		h.alpha = bits == 32
		h.samples = float64(bits) / 8
	default: // two letters are a weak signature: text may begin with BM
		return header{}, fmt.Errorf("%w: BMP header", errNotImage)
	}
	return h, nil
}

func webpHeader(in *headerReader) (header, error) {
	h := header{format: "webp", channels: 4, samples: 4}
	b, err := in.at(12, 18)
	if err != nil {
		return h, err
	}
	switch string(b[:4]) {
	case "VP8X":
		h.alpha = b[8]&0x10 != 0
		h.animated = b[8]&0x02 != 0
		h.width, h.height = 1+uint24(b[12:]), 1+uint24(b[15:])
	case "VP8L":
		if b[8] != 0x2F {
			return h, fmt.Errorf("%w: WebP lossless signature", errNotImage)
		}
		bits := binary.LittleEndian.Uint32(b[9:])
		h.width, h.height = 1+int(bits&0x3FFF), 1+int(bits>>14&0x3FFF)
		h.alpha = bits>>28&1 != 0
	case "VP8 ":
		if b[11] != 0x9D || b[12] != 0x01 || b[13] != 0x2A {
			return h, fmt.Errorf("%w: WebP key frame", errNotImage)
		}
		h.width, h.height = int(binary.LittleEndian.Uint16(b[14:])&0x3FFF), int(binary.LittleEndian.Uint16(b[16:])&0x3FFF)
	default:
		return h, fmt.Errorf("%w: WebP chunk %q", errNotImage, b[:4])
	}
	return h, nil
}

func uint24(b []byte) int { return int(b[0]) | int(b[1])<<8 | int(b[2])<<16 }

func isoHeader(in *headerReader) (header, error) {
	b, err := in.at(0, 16)
	if err != nil {
		return header{}, errNotImage
	}
	length := binary.BigEndian.Uint32(b)
	const mostBrands = 256
	if length < 16 || length > mostBrands {
		return header{}, errNotImage
	}
	brands := in.upTo(8, int(length)-8)
	for i := 0; i+4 <= len(brands); i += 4 {
		switch string(brands[i : i+4]) {
		case "avif", "avis":
			h := header{format: "avif", channels: 4, samples: 4}
			return h, isoSize(in, int64(length), &h)
		case "heic", "heix", "heim", "heis", "hevc", "hevx":
			return header{}, fmt.Errorf("%w: HEIC", errNotImage)
		}
	}
	return header{}, errNotImage
}

// isoSize finds the largest `ispe` among the item properties, and the turn and mirror that go with them.
func isoSize(in *headerReader, offset int64, h *header) error {
	end := in.size
	turn, mirror := 0, -1
	for range maxSegments {
		if offset >= end {
			break
		}
		b, err := in.at(offset, 8)
		if err != nil {
			break
		}
		length, kind := int64(binary.BigEndian.Uint32(b)), string(b[4:])
		if length < 8 {
			break
		}
		switch kind {
		case "meta": // a full box: four bytes of version and flags, then boxes
			end = min(end, offset+length)
			offset += 12
			continue
		case "iprp", "ipco":
			end = min(end, offset+length)
			offset += 8
			continue
		case "ispe":
			if p, err := in.at(offset+12, 8); err == nil {
				w, ht := int64(binary.BigEndian.Uint32(p)), int64(binary.BigEndian.Uint32(p[4:]))
				if w <= maxSide && ht <= maxSide && w*ht > int64(h.width)*int64(h.height) {
					h.width, h.height = int(w), int(ht)
				}
			}
		case "irot":
			if p, err := in.at(offset+8, 1); err == nil {
				turn = int(p[0] & 3)
			}
		case "imir":
			if p, err := in.at(offset+8, 1); err == nil {
				mirror = int(p[0] & 1)
			}
		case "pixi":
			if p, err := in.at(offset+12, 2); err == nil && p[0] > 0 {
				h.deep = p[1] > 8
			}
		case "auxC":
			h.alpha = true
		}
		offset += length
	}
	h.orientation = isoOrientation(turn, mirror)
	if h.width == 0 {
		return errShort
	}
	return nil
}

// isoOrientation is the EXIF value for a turn of so many quarters anticlockwise, followed by a mirror: -1 none,
// 0 top to bottom, 1 left to right (ISO/IEC 23008-12, irot and imir).
func isoOrientation(turn, mirror int) int {
	plain := [4]int{1, 8, 3, 6}
	switch mirror {
	case 0:
		return [4]int{4, 5, 2, 7}[turn]
	case 1:
		return [4]int{2, 7, 4, 5}[turn]
	}
	return plain[turn]
}
