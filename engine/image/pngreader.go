package image

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zlib"
)

// pngReader reads a PNG row by row, so that a picture of any size needs memory for two rows. The standard library's decoder holds the
// whole picture. Broken checksums and missing rows are errors.
type pngReader struct {
	in                     *bufio.Reader
	width, height          int
	depth, kind, interlace int
	palette                [256][4]byte
	paletteSize            int
	// key is the transparent colour of a picture without alpha, when keyed.
	key   [3]uint16
	keyed bool
	// profile is the ICC profile, nil when there is none.
	profile []byte

	// left are the bytes left in the IDAT chunk being read; sum is its running checksum.
	left int64
	sum  uint32
	done bool
}

// errPNG is returned for every fault of the file.
var errPNG = errors.New("broken PNG")

// newPNGReader reads everything before the pixels.
func newPNGReader(r io.Reader) (*pngReader, error) {
	p := &pngReader{in: bufio.NewReaderSize(r, 1<<16)}
	start := make([]byte, len(pngSignature))
	if _, err := io.ReadFull(p.in, start); err != nil || !bytes.Equal(start, pngSignature) {
		return nil, fmt.Errorf("%w: signature", errPNG)
	}
	for range maxSegments {
		length, kind, err := p.chunkHead()
		if err != nil {
			return nil, err
		}
		if kind == "IDAT" {
			if p.width == 0 || (p.kind == 3 && p.paletteSize == 0) {
				return nil, fmt.Errorf("%w: pixels before header or palette", errPNG)
			}
			p.left = int64(length)
			return p, nil
		}
		if p.width == 0 && kind != "IHDR" {
			return nil, fmt.Errorf("%w: starts with %q", errPNG, kind)
		}
		if err := p.chunk(kind, length); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: too many chunks", errPNG)
}

func (p *pngReader) chunkHead() (length uint32, kind string, err error) {
	var b [8]byte
	if _, err := io.ReadFull(p.in, b[:]); err != nil {
		return 0, "", fmt.Errorf("%w: chunk: %w", errPNG, err)
	}
	length = binary.BigEndian.Uint32(b[:])
	if length > 1<<31-1 {
		return 0, "", fmt.Errorf("%w: chunk of %d bytes", errPNG, length)
	}
	p.sum = crc32.ChecksumIEEE(b[4:])
	return length, string(b[4:]), nil
}

// chunk reads one chunk before the pixels. What is not needed is skipped.
func (p *pngReader) chunk(kind string, length uint32) error {
	switch kind {
	case "IHDR", "PLTE", "tRNS", "iCCP":
	case "IEND":
		return fmt.Errorf("%w: no pixels", errPNG)
	default:
		if _, err := io.CopyN(io.Discard, p.in, int64(length)+4); err != nil {
			return fmt.Errorf("%w: %s: %w", errPNG, kind, err)
		}
		return nil
	}
	if length > maxProfileBytes {
		return fmt.Errorf("%w: %s of %d bytes", errPNG, kind, length)
	}
	data, err := io.ReadAll(io.LimitReader(p.in, int64(length)))
	if err != nil || len(data) < int(length) {
		return fmt.Errorf("%w: %s is cut off", errPNG, kind)
	}
	p.sum = crc32.Update(p.sum, crc32.IEEETable, data)
	if err := p.checkSum(); err != nil {
		return err
	}
	switch kind {
	case "IHDR":
		return p.readHeader(data)
	case "PLTE":
		return p.readPalette(data)
	case "tRNS":
		return p.readTransparency(data)
	}
	p.readProfile(data)
	return nil
}

func (p *pngReader) checkSum() error {
	var b [4]byte
	if _, err := io.ReadFull(p.in, b[:]); err != nil {
		return fmt.Errorf("%w: checksum: %w", errPNG, err)
	}
	if binary.BigEndian.Uint32(b[:]) != p.sum {
		return fmt.Errorf("%w: checksum", errPNG)
	}
	return nil
}

func (p *pngReader) readHeader(b []byte) error {
	if len(b) != 13 || p.width != 0 {
		return fmt.Errorf("%w: IHDR", errPNG)
	}
	width, height := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	p.depth, p.kind, p.interlace = int(b[8]), int(b[9]), int(b[12])
	depths := map[int][]int{0: {1, 2, 4, 8, 16}, 2: {8, 16}, 3: {1, 2, 4, 8}, 4: {8, 16}, 6: {8, 16}}
	known := false
	for _, depth := range depths[p.kind] {
		known = known || depth == p.depth
	}
	if !known || width == 0 || height == 0 || width > maxSide || height > maxSide || b[10] != 0 || b[11] != 0 || p.interlace > 1 {
		return fmt.Errorf("%w: IHDR %v", errPNG, b)
	}
	p.width, p.height = int(width), int(height)
	return nil
}

func (p *pngReader) readPalette(b []byte) error {
	if len(b)%3 != 0 || len(b) == 0 || len(b) > 768 {
		return fmt.Errorf("%w: palette of %d bytes", errPNG, len(b))
	}
	p.paletteSize = len(b) / 3
	for i := range p.palette {
		p.palette[i] = [4]byte{0, 0, 0, 255}
		if i < p.paletteSize {
			p.palette[i] = [4]byte{b[3*i], b[3*i+1], b[3*i+2], 255}
		}
	}
	return nil
}

func (p *pngReader) readTransparency(b []byte) error {
	switch p.kind {
	case 3:
		if len(b) > p.paletteSize {
			return fmt.Errorf("%w: tRNS of %d bytes", errPNG, len(b))
		}
		for i, a := range b {
			p.palette[i][3] = a
		}
	case 0, 2:
		if len(b) < 2 || (p.kind == 2 && len(b) < 6) {
			return fmt.Errorf("%w: tRNS of %d bytes", errPNG, len(b))
		}
		p.keyed = true
		for c := range p.key {
			at := 0
			if p.kind == 2 {
				at = 2 * c
			}
			p.key[c] = binary.BigEndian.Uint16(b[at:])
		}
	}
	return nil
}

// readProfile unpacks an iCCP chunk: a name, a zero, the method, a zlib stream. A broken one is no profile.
func (p *pngReader) readProfile(b []byte) {
	name := bytes.IndexByte(b, 0)
	if name < 0 || name > 79 || len(b) < name+2 {
		return
	}
	z, err := zlib.NewReader(bytes.NewReader(b[name+2:]))
	if err != nil {
		return
	}
	profile, err := io.ReadAll(io.LimitReader(z, maxProfileBytes+1))
	if err == nil && len(profile) <= maxProfileBytes {
		p.profile = profile
	}
}

// Read gives the bytes of all IDAT chunks to the decompressor.
func (p *pngReader) Read(b []byte) (int, error) {
	for p.left == 0 {
		if p.done {
			return 0, io.EOF
		}
		if err := p.checkSum(); err != nil {
			return 0, err
		}
		length, kind, err := p.chunkHead()
		if err != nil {
			return 0, err
		}
		if kind != "IDAT" {
			p.done = true
			return 0, io.EOF
		}
		p.left = int64(length)
	}
	n, err := p.in.Read(b[:min(int64(len(b)), p.left)])
	p.sum = crc32.Update(p.sum, crc32.IEEETable, b[:n])
	p.left -= int64(n)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// deep says that samples have 16 bits.
func (p *pngReader) deep() bool { return p.depth == 16 }

func (p *pngReader) channels() int {
	return [7]int{1, 0, 3, 1, 2, 0, 4}[p.kind]
}

// rows decodes a picture that is not interlaced and calls store with groups of rows of RGBA pixels.
func (p *pngReader) rows(group int, store func(y int, pixels []byte) error) error {
	lines, err := p.lines()
	if err != nil {
		return err
	}
	stride := bytesPerPixel(p.deep()) * p.width
	pixels := make([]byte, group*stride)
	held := 0
	err = lines.pass(p.width, p.height, func(y int, row []byte) error {
		p.expand(pixels[held*stride:][:stride], row, p.width)
		if held++; held < group && y < p.height-1 {
			return nil
		}
		n := held
		held = 0
		return store(y-n+1, pixels[:n*stride])
	})
	if err != nil {
		return err
	}
	return lines.end()
}

// interlaced decodes an Adam7 picture into pixels, which hold all of it.
func (p *pngReader) interlaced(pixels []byte) error {
	lines, err := p.lines()
	if err != nil {
		return err
	}
	size := bytesPerPixel(p.deep())
	line := make([]byte, p.width*size)
	for _, pass := range [7][4]int{{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}} {
		left, top, stepX, stepY := pass[0], pass[1], pass[2], pass[3]
		w, h := (p.width-left+stepX-1)/stepX, (p.height-top+stepY-1)/stepY
		if w <= 0 || h <= 0 {
			continue
		}
		err := lines.pass(w, h, func(y int, row []byte) error {
			p.expand(line, row, w)
			to := pixels[(top+y*stepY)*p.width*size:]
			for x := range w {
				copy(to[(left+x*stepX)*size:][:size], line[x*size:])
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return lines.end()
}

// pngLines undoes compression and filters.
type pngLines struct {
	z    io.ReadCloser
	png  *pngReader
	unit int
}

func (p *pngReader) lines() (*pngLines, error) {
	z, err := zlib.NewReader(p)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errPNG, err)
	}
	return &pngLines{z: z, png: p, unit: max(1, p.channels()*p.depth/8)}, nil
}

// pass reads h rows of w pixels.
func (l *pngLines) pass(w, h int, visit func(y int, row []byte) error) error {
	length := (w*l.png.channels()*l.png.depth + 7) / 8
	now, above := make([]byte, length+1), make([]byte, length+1)
	for y := range h {
		if _, err := io.ReadFull(l.z, now); err != nil {
			return fmt.Errorf("%w: row %d: %w", errPNG, y, err)
		}
		if err := unfilter(now[0], now[1:], above[1:], l.unit); err != nil {
			return err
		}
		if err := visit(y, now[1:]); err != nil {
			return err
		}
		now, above = above, now
	}
	return nil
}

// end reads on to the end of the compressed data, which checks its checksum.
func (l *pngLines) end() error {
	var b [1]byte
	if n, err := l.z.Read(b[:]); n == 0 && err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", errPNG, err)
	}
	return nil
}

func unfilter(kind byte, row, above []byte, unit int) error {
	switch kind {
	case 0:
	case 1:
		for i := unit; i < len(row); i++ {
			row[i] += row[i-unit]
		}
	case 2:
		above = above[:len(row)]
		for i := range row {
			row[i] += above[i]
		}
	case 3:
		for i := range row {
			left := 0
			if i >= unit {
				left = int(row[i-unit])
			}
			row[i] += byte((left + int(above[i])) / 2)
		}
	case 4:
		for i := range row {
			var left, corner int
			if i >= unit {
				left, corner = int(row[i-unit]), int(above[i-unit])
			}
			row[i] += paeth(left, int(above[i]), corner)
		}
	default:
		return fmt.Errorf("%w: filter %d", errPNG, kind)
	}
	return nil
}

// expand makes RGBA pixels of n pixels of a row.
func (p *pngReader) expand(to, row []byte, n int) {
	switch {
	case p.deep():
		p.expandDeep(to, row, n)
	case p.kind == 6:
		copy(to[:4*n], row)
	case p.kind == 4:
		for x := range n {
			g := row[2*x]
			to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = g, g, g, row[2*x+1]
		}
	case p.kind == 2:
		key := [3]byte{byte(p.key[0]), byte(p.key[1]), byte(p.key[2])}
		for x := range n {
			r, g, b, a := row[3*x], row[3*x+1], row[3*x+2], byte(255)
			if p.keyed && [3]byte{r, g, b} == key {
				a = 0
			}
			to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = r, g, b, a
		}
	default:
		p.expandSmall(to, row, n)
	}
}

// expandSmall is for palettes and grey of 1 to 8 bits.
func (p *pngReader) expandSmall(to, row []byte, n int) {
	mask := byte(1<<p.depth - 1)
	for x := range n {
		bit := x * p.depth
		v := row[bit/8] >> (8 - p.depth - bit%8) & mask
		if p.kind == 3 {
			copy(to[4*x:4*x+4], p.palette[v][:])
			continue
		}
		g, a := v*(255/mask), byte(255)
		if p.keyed && uint16(v) == p.key[0] {
			a = 0
		}
		to[4*x], to[4*x+1], to[4*x+2], to[4*x+3] = g, g, g, a
	}
}

func (p *pngReader) expandDeep(to, row []byte, n int) {
	switch p.kind {
	case 6:
		copy(to[:8*n], row)
	case 2:
		for x := range n {
			from, out := row[6*x:6*x+6], to[8*x:8*x+8]
			copy(out, from)
			a := uint16(65535)
			if p.keyed && binary.BigEndian.Uint16(from) == p.key[0] && binary.BigEndian.Uint16(from[2:]) == p.key[1] && binary.BigEndian.Uint16(from[4:]) == p.key[2] {
				a = 0
			}
			binary.BigEndian.PutUint16(out[6:], a)
		}
	default: // grey, with or without alpha
		step := 2 * p.channels()
		for x := range n {
			g, a := binary.BigEndian.Uint16(row[step*x:]), uint16(65535)
			if p.kind == 4 {
				a = binary.BigEndian.Uint16(row[step*x+2:])
			} else if p.keyed && g == p.key[0] {
				a = 0
			}
			binary.BigEndian.PutUint64(to[8*x:], uint64(g)*0x0001_0001_0001_0000|uint64(a))
		}
	}
}
