package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/adler32"
	"hash/crc32"
	"io"
	"math"

	"github.com/klauspost/compress/flate"
)

// pngWriter writes a PNG row by row with 8 or 16 bits a sample and one to four channels. Groups of rows are filtered and
// deflated on all processors, each into an IDAT chunk of its own.
type pngWriter struct {
	out           io.Writer
	width, height int
	deep          bool
	channels      int
	alpha, grey   bool
	// above is the last row of the band before, packed.
	above []byte
	// checksum is the Adler-32 of all that was deflated.
	checksum uint32
	started  bool
	next     int
	packers  []pngPacker
}

const (
	// pngGroupBytes is about how much is deflated in one piece; a piece starts with an empty window, which costs under 1 %.
	pngGroupBytes = 1 << 20
	// pngLevel is a trade measured on photographs: level 1 is no faster, level 6 takes 1.6 times as long for 3 % fewer bytes.
	pngLevel = 2
)

// newPNGWriter writes the header. dpi may be 0.
func newPNGWriter(w io.Writer, width, height int, deep, alpha, grey bool, dpi int) (*pngWriter, error) {
	p := &pngWriter{out: w, width: width, height: height, deep: deep, alpha: alpha, grey: grey, checksum: 1}
	kind := byte(2)
	p.channels = 3
	if grey {
		kind, p.channels = 0, 1
	}
	if alpha {
		kind |= 4
		p.channels++
	}
	depth := byte(8)
	if deep {
		depth = 16
	}
	if _, err := w.Write(pngSignature); err != nil {
		return nil, fmt.Errorf("write png: %w", err)
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(width))
	header = binary.BigEndian.AppendUint32(header, uint32(height))
	if err := p.chunk("IHDR", append(header, depth, kind, 0, 0, 0)); err != nil {
		return nil, err
	}
	if err := p.chunk("sRGB", []byte{0}); err != nil {
		return nil, err
	}
	if dpi > 0 {
		perMetre := uint32(math.Round(float64(dpi) / 0.0254))
		density := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, perMetre), perMetre)
		if err := p.chunk("pHYs", append(density, 1)); err != nil {
			return nil, err
		}
	}
	p.above = make([]byte, p.rowBytes())
	p.packers = make([]pngPacker, processors())
	return p, nil
}

// rowBytes is the length of a packed row without its filter byte.
func (p *pngWriter) rowBytes() int {
	if p.deep {
		return 2 * p.channels * p.width
	}
	return p.channels * p.width
}

func (p *pngWriter) chunk(kind string, data []byte) error {
	head := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	head = append(head, kind...)
	sum := crc32.Update(crc32.ChecksumIEEE(head[4:]), crc32.IEEETable, data)
	for _, part := range [][]byte{head, data, binary.BigEndian.AppendUint32(nil, sum)} {
		if _, err := p.out.Write(part); err != nil {
			return fmt.Errorf("write png: %w", err)
		}
	}
	return nil
}

// pngPacker is one worker's memory.
type pngPacker struct {
	rows, best, trial []byte
	deflate           *flate.Writer
	out               bytes.Buffer
	checksum          uint32
	length            int
}

// write filters and deflates the next rows of RGBA pixels.
func (p *pngWriter) write(ctx context.Context, pixels []byte) error {
	stride := bytesPerPixel(p.deep) * p.width
	rows := len(pixels) / stride
	group := min(max(pngGroupBytes/(p.rowBytes()+1), 1), rows)
	groups := (rows + group - 1) / group
	step := len(p.packers)
	for from := 0; from < groups; from += step {
		n := min(step, groups-from)
		err := parallel(ctx, n, func(_, i int) error {
			top := (from + i) * group
			count := min(group, rows-top)
			before := pixels[max(top-1, 0)*stride:][:stride]
			last := p.next+top+count == p.height
			return p.pack(&p.packers[i], before, pixels[top*stride:][:count*stride], top == 0, last)
		})
		if err != nil {
			return err
		}
		for i := range n {
			if err := p.emit(&p.packers[i]); err != nil {
				return err
			}
		}
	}
	packRow(p.above, pixels[(rows-1)*stride:], p.deep, p.alpha, p.grey)
	p.next += rows
	return nil
}

// emit writes one deflated group.
func (p *pngWriter) emit(packer *pngPacker) error {
	data := packer.out.Bytes()
	if !p.started {
		p.started = true
		data = append([]byte{0x78, 0x01}, data...)
	}
	p.checksum = joinAdler(p.checksum, packer.checksum, int64(packer.length))
	return p.chunk("IDAT", data)
}

// joinAdler is the Adler-32 of two texts one after the other, from the sums of both and the length of the second.
func joinAdler(first, second uint32, length int64) uint32 {
	const mod = 65521
	a1, b1 := int64(first&0xFFFF), int64(first>>16)
	a2, b2 := int64(second&0xFFFF), int64(second>>16)
	a := (a1 + a2 + mod - 1) % mod
	b := (b1 + b2 + length%mod*(a1+mod-1)) % mod
	return uint32(b<<16 | a)
}

// close ends the picture.
func (p *pngWriter) close() error {
	if p.next != p.height {
		return fmt.Errorf("png: %d of %d rows written", p.next, p.height)
	}
	if err := p.chunk("IDAT", binary.BigEndian.AppendUint32(nil, p.checksum)); err != nil {
		return err
	}
	return p.chunk("IEND", nil)
}

// pack filters and deflates one group of rows. before is the row above it in the band; where there is none, it is the last of the band before.
func (p *pngWriter) pack(packer *pngPacker, before, pixels []byte, first, last bool) error {
	length, stride := p.rowBytes(), bytesPerPixel(p.deep)*p.width
	if packer.rows == nil {
		packer.rows, packer.best, packer.trial = make([]byte, 2*length), make([]byte, length+1), make([]byte, length+1)
		deflate, err := flate.NewWriter(nil, pngLevel)
		if err != nil {
			return fmt.Errorf("start deflate: %w", err)
		}
		packer.deflate = deflate
	}
	packer.out.Reset()
	packer.deflate.Reset(&packer.out)
	packer.checksum, packer.length = 1, 0
	above, row := packer.rows[:length], packer.rows[length:]
	if first {
		copy(above, p.above)
	} else {
		packRow(above, before, p.deep, p.alpha, p.grey)
	}
	unit := length / p.width
	for at := 0; at < len(pixels); at += stride {
		packRow(row, pixels[at:at+stride], p.deep, p.alpha, p.grey)
		filtered := packer.filter(row, above, unit)
		packer.checksum = joinAdler(packer.checksum, adler32.Checksum(filtered), int64(len(filtered)))
		packer.length += len(filtered)
		if _, err := packer.deflate.Write(filtered); err != nil {
			return fmt.Errorf("deflate: %w", err)
		}
		above, row = row, above
	}
	end := packer.deflate.Flush
	if last {
		end = packer.deflate.Close
	}
	if err := end(); err != nil {
		return fmt.Errorf("deflate: %w", err)
	}
	return nil
}

// packRow drops the samples that the file does not hold.
func packRow(to, pixels []byte, deep, alpha, grey bool) {
	size := 1
	if deep {
		size = 2
	}
	switch {
	case alpha && !grey:
		copy(to, pixels)
	case !alpha && !grey && size == 1:
		for i, o := 0, 0; o+3 <= len(to); i, o = i+4, o+3 {
			to[o], to[o+1], to[o+2] = pixels[i], pixels[i+1], pixels[i+2]
		}
	case !alpha && !grey:
		for i, o := 0, 0; o+6 <= len(to); i, o = i+8, o+6 {
			copy(to[o:o+6], pixels[i:])
		}
	case alpha:
		for i, o := 0, 0; o+2*size <= len(to); i, o = i+4*size, o+2*size {
			copy(to[o:o+size], pixels[i:])
			copy(to[o+size:o+2*size], pixels[i+3*size:])
		}
	default:
		for i, o := 0, 0; o+size <= len(to); i, o = i+4*size, o+size {
			copy(to[o:o+size], pixels[i:])
		}
	}
}

// filter tries Sub, Up and Paeth (PNG third edition, clause 9) and returns the one with the least sum of absolute differences.
// unit is the number of bytes of a pixel. None and Average hardly ever win on photographs.
func (k *pngPacker) filter(row, above []byte, unit int) []byte {
	best, least := k.best, math.MaxInt
	for _, kind := range []byte{4, 1, 2} {
		k.trial[0] = kind
		var sum int
		switch kind {
		case 1:
			sum = filterSub(k.trial[1:], row, unit)
		case 2:
			sum = filterUp(k.trial[1:], row, above)
		default:
			sum = filterPaeth(k.trial[1:], row, above, unit)
		}
		if sum < least {
			least = sum
			k.trial, k.best = k.best, k.trial
			best = k.best
		}
	}
	return best
}

func filterSub(to, row []byte, unit int) (sum int) {
	to = to[:len(row)]
	for i := 0; i < unit && i < len(row); i++ {
		to[i] = row[i]
		sum += size8(to[i])
	}
	left := row[:max(len(row)-unit, 0)]
	for i, l := range left {
		d := row[i+unit] - l
		to[i+unit] = d
		sum += size8(d)
	}
	return sum
}

func filterUp(to, row, above []byte) (sum int) {
	to, above = to[:len(row)], above[:len(row)]
	for i, v := range row {
		d := v - above[i]
		to[i] = d
		sum += size8(d)
	}
	return sum
}

func filterPaeth(to, row, above []byte, unit int) (sum int) {
	to, above = to[:len(row)], above[:len(row)]
	for i := range row {
		var left, corner int
		if i >= unit {
			left, corner = int(row[i-unit]), int(above[i-unit])
		}
		d := row[i] - paeth(left, int(above[i]), corner)
		to[i] = d
		sum += size8(d)
	}
	return sum
}

// size8 is the distance from zero of a byte taken as signed.
func size8(d byte) int {
	v := int(int8(d))
	sign := v >> 63
	return (v ^ sign) - sign
}

// paeth predicts a sample: whichever of left, above and corner is nearest to left + above - corner.
func paeth(left, above, corner int) byte {
	pa, pb := above-corner, left-corner
	pc := pa + pb
	pa, pb, pc = distance(pa), distance(pb), distance(pc)
	switch {
	case pa <= pb && pa <= pc:
		return byte(left)
	case pb <= pc:
		return byte(above)
	}
	return byte(corner)
}

func distance(v int) int {
	sign := v >> 63
	return (v ^ sign) - sign
}
