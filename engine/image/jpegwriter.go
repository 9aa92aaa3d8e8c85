package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"

	"enlarger/engine/turbojpeg"
)

// jpegWriter writes a baseline JPEG row by row. The standard library's encoder writes 4:2:0 only and wants the whole
// picture; this one keeps full colour resolution from quality 90 up, needs one band of rows, and codes the rows of blocks on all
// processors, each between restart markers (ITU-T T.81).
type jpegWriter struct {
	out           *bufio.Writer
	width, height int
	components    int
	// half says that colour is stored at half the resolution both ways (4:2:0).
	half   bool
	quant  [2][64]uint8
	divide [2][64]float32
	dc, ac [2][256]huffmanCode
	// next is the first row not yet written.
	next int
	// turbo codes the rows, four times as fast as we do; nil where there is none. quality is what it needs to make the same tables.
	turbo   *turbojpeg.Library
	quality int
	// coders are kept from band to band.
	coders []jpegCoder
}

// codedAhead is how many lines are coded at a time for each processor.
const codedAhead = 8

// jpegMostSide is the longest side that a JPEG can have, in pixels.
const jpegMostSide = 65535

// fullColourQuality is the quality from which colour is stored at full resolution.
const fullColourQuality = 90

type huffmanCode struct {
	code uint32
	size uint8
}

// newJPEGWriter writes the header. Grey pictures get one component. Quality is 1 to 100. dpi may be 0.
func newJPEGWriter(w io.Writer, width, height int, grey bool, quality, dpi int) *jpegWriter {
	j := &jpegWriter{out: bufio.NewWriterSize(w, 1<<16), width: width, height: height, components: 3, half: quality < fullColourQuality, quality: min(max(quality, 1), 100)}
	if grey {
		j.components, j.half = 1, false
	}
	for i, base := range [2]*[64]uint8{&jpegLumaQuant, &jpegChromaQuant} {
		j.quant[i] = scaleQuant(base, quality)
		j.divide[i] = foldScale(&j.quant[i])
		j.dc[i] = huffmanCodes(jpegDCCounts[i][:], jpegDCValues[:])
		j.ac[i] = huffmanCodes(jpegACCounts[i][:], jpegACValues[i][:])
	}
	j.header(dpi)
	return j
}

// unit is the side in pixels of what one minimum coded unit covers.
func (j *jpegWriter) unit() int {
	if j.half {
		return 16
	}
	return 8
}

// scaleQuant is the customary meaning of quality, that of the Independent JPEG Group.
func scaleQuant(base *[64]uint8, quality int) (scaled [64]uint8) {
	quality = min(max(quality, 1), 100)
	percent := 200 - 2*quality
	if quality < 50 {
		percent = 5000 / quality
	}
	for i, q := range base {
		scaled[i] = uint8(min(max((int(q)*percent+50)/100, 1), 255))
	}
	return scaled
}

// foldScale is one over the quantiser times the scale that forwardDCT leaves in its output, in natural order.
func foldScale(quant *[64]uint8) (divide [64]float32) {
	var scale [8]float64
	for i := range scale {
		scale[i] = math.Cos(float64(i)*math.Pi/16) * math.Sqrt2
	}
	scale[0] = 1
	for i, q := range quant {
		at := jpegZigzag[i]
		divide[at] = float32(1 / (float64(q) * scale[at/8] * scale[at%8] * 8))
	}
	return divide
}

func huffmanCodes(counts, values []uint8) (codes [256]huffmanCode) {
	code, k := uint32(0), 0
	for size, n := range counts {
		for range n {
			codes[values[k]] = huffmanCode{code, uint8(size + 1)}
			code++
			k++
		}
		code <<= 1
	}
	return codes
}

// header writes everything before the first scan byte. bufio keeps the first error for Flush.
func (j *jpegWriter) header(dpi int) {
	unit, density := byte(0), [2]byte{0, 1}
	if dpi > 0 {
		unit, density = 1, [2]byte{byte(dpi >> 8), byte(dpi)}
	}
	j.segment(0xD8, nil)
	j.segment(0xE0, []byte{'J', 'F', 'I', 'F', 0, 1, 1, unit, density[0], density[1], density[0], density[1], 0, 0})
	tables := min(j.components, 2)
	for i := range tables {
		j.segment(0xDB, append([]byte{byte(i)}, j.quant[i][:]...))
	}
	frame := []byte{8, byte(j.height >> 8), byte(j.height), byte(j.width >> 8), byte(j.width), byte(j.components)}
	scan := []byte{byte(j.components)}
	for c := range j.components {
		sampling := byte(0x11)
		if c == 0 && j.half {
			sampling = 0x22
		}
		table := byte(min(c, 1))
		frame = append(frame, byte(c+1), sampling, table)
		scan = append(scan, byte(c+1), table<<4|table)
	}
	j.segment(0xC0, frame)
	for i := range tables {
		j.segment(0xC4, append(append([]byte{byte(i)}, jpegDCCounts[i][:]...), jpegDCValues[:]...))
		j.segment(0xC4, append(append([]byte{0x10 | byte(i)}, jpegACCounts[i][:]...), jpegACValues[i][:]...))
	}
	// One restart interval is one row of units, so that rows can be coded at once.
	units := (j.width + j.unit() - 1) / j.unit()
	j.segment(0xDD, []byte{byte(units >> 8), byte(units)})
	j.segment(0xDA, append(scan, 0, 63, 0))
}

func (j *jpegWriter) segment(marker byte, payload []byte) {
	_, _ = j.out.Write([]byte{0xFF, marker})
	if payload != nil {
		_, _ = j.out.Write([]byte{byte((len(payload) + 2) >> 8), byte(len(payload) + 2)})
		_, _ = j.out.Write(payload)
	}
}

// write codes the next rows of 8-bit RGBA pixels, without alpha. Their number is a multiple of 16, except at the end.
func (j *jpegWriter) write(ctx context.Context, pixels []byte) error {
	stride := 4 * j.width
	rows, unit := len(pixels)/stride, j.unit()
	if rows%unit != 0 && j.next+rows != j.height {
		return fmt.Errorf("jpeg: %d rows at row %d of %d", rows, j.next, j.height)
	}
	lines := (rows + unit - 1) / unit
	first := j.next / unit
	// So many lines are coded at a time that the processors are busy, and no more than those wait to be written.
	step := codedAhead * processors()
	if len(j.coders) < step {
		j.coders = make([]jpegCoder, step)
	}
	for from := 0; from < lines; from += step {
		n := min(step, lines-from)
		err := parallel(ctx, n, func(_, i int) error {
			top := (from + i) * unit
			return j.coders[i].code(j, pixels[top*stride:min((top+unit)*stride, len(pixels))])
		})
		if err != nil {
			return err
		}
		for i := range n {
			if line := first + from + i; line > 0 {
				_, _ = j.out.Write([]byte{0xFF, 0xD0 + byte((line-1)%8)})
			}
			if _, err := j.out.Write(j.coders[i].out); err != nil {
				return fmt.Errorf("write jpeg: %w", err)
			}
		}
	}
	j.next += rows
	return nil
}

// close ends the picture.
func (j *jpegWriter) close() error {
	if j.next != j.height {
		return fmt.Errorf("jpeg: %d of %d rows written", j.next, j.height)
	}
	_, _ = j.out.Write([]byte{0xFF, 0xD9})
	if err := j.out.Flush(); err != nil {
		return fmt.Errorf("write jpeg: %w", err)
	}
	return nil
}

// jpegCoder codes one restart interval.
type jpegCoder struct {
	jpeg *jpegWriter
	// out is what was made, within buffer when it was made by the library.
	out, buffer []byte
	bits        uint64
	held        uint
	last        [4]int32
}

// code codes one row of units by the means that there are.
func (c *jpegCoder) code(j *jpegWriter, pixels []byte) (err error) {
	if j.turbo != nil {
		c.buffer, c.out, err = j.turboLine(c.buffer, pixels)
		if !errors.Is(err, errOtherTables) {
			return err
		}
	}
	*c = jpegCoder{jpeg: j, buffer: c.buffer, out: c.out[:0]}
	c.line(pixels)
	return nil
}

// line codes one row of units. Beyond the right and the bottom the last pixel goes on.
func (c *jpegCoder) line(pixels []byte) {
	j := c.jpeg
	rows, unit := len(pixels)/(4*j.width), j.unit()
	var planes [3][256]float32
	for x := 0; x < j.width; x += unit {
		c.convert(pixels, x, rows, unit, &planes)
		if !j.half {
			for p := range j.components {
				c.block((*[64]float32)(planes[p][:64]), p)
			}
			continue
		}
		var block [64]float32
		for corner := range 4 {
			from := corner/2*8*16 + corner%2*8
			for y := range 8 {
				copy(block[8*y:8*y+8], planes[0][from+16*y:])
			}
			c.block(&block, 0)
		}
		for p := 1; p < 3; p++ {
			for i := range block {
				at := i/8*32 + i%8*2
				block[i] = (planes[p][at] + planes[p][at+1] + planes[p][at+16] + planes[p][at+17]) * 0.25
			}
			c.block(&block, p)
		}
	}
	if rest := c.held % 8; rest != 0 { // ones fill the last byte
		c.put(1<<(8-rest)-1, 8-rest)
	}
	c.drain()
}

// convert brings the unit at x to luma and colour difference, centred on zero (JFIF 1.02).
func (c *jpegCoder) convert(pixels []byte, x, rows, unit int, planes *[3][256]float32) {
	width := c.jpeg.width
	whole := x+unit <= width
	for y := range unit {
		row := pixels[min(y, rows-1)*4*width:][:4*width]
		for i := range unit {
			at := x + i
			if !whole {
				at = min(at, width-1)
			}
			p := row[4*at : 4*at+4]
			r, g, b := float32(p[0]), float32(p[1]), float32(p[2])
			to := y*unit + i
			luma := 0.299*r + 0.587*g + 0.114*b
			planes[0][to] = luma - 128
			if c.jpeg.components > 1 {
				planes[1][to] = (b - luma) * (0.5 / 0.886)
				planes[2][to] = (r - luma) * (0.5 / 0.701)
			}
		}
	}
}

// block transforms, quantises and codes one block of component p.
func (c *jpegCoder) block(samples *[64]float32, p int) {
	table := min(p, 1)
	forwardDCT(samples)
	divide := &c.jpeg.divide[table]
	var coded [64]int32
	last := 0
	for i := range coded {
		at := jpegZigzag[i]
		v := samples[at] * divide[at]
		// Adding and taking away 1.5 * 2^23 rounds to the nearest integer without a branch.
		n := int32(v + 12582912 - 12582912)
		if i > 0 {
			n = min(max(n, -1023), 1023) // all that baseline can code
		}
		coded[i] = n
		if n != 0 {
			last = i
		}
	}
	dc, ac := &c.jpeg.dc[table], &c.jpeg.ac[table]
	delta := coded[0] - c.last[p]
	c.last[p] = coded[0]
	c.value(dc, 0, delta)
	run := 0
	for i := 1; i <= last; i++ {
		if coded[i] == 0 {
			run++
			continue
		}
		for ; run > 15; run -= 16 {
			c.put(ac[0xF0].code, uint(ac[0xF0].size))
		}
		c.value(ac, run<<4, coded[i])
		run = 0
	}
	if last < 63 {
		c.put(ac[0].code, uint(ac[0].size))
	}
}

// value codes one number: its bit count with the zeros before it, then its bits.
func (c *jpegCoder) value(table *[256]huffmanCode, run int, v int32) {
	magnitude, low := v, v
	if v < 0 {
		magnitude, low = -v, v-1
	}
	size := uint(bits.Len32(uint32(magnitude)))
	h := table[run|int(size)]
	c.put(h.code<<size|uint32(low)&(1<<size-1), uint(h.size)+size)
}

func (c *jpegCoder) put(code uint32, size uint) {
	c.bits = c.bits<<size | uint64(code)
	c.held += size
	if c.held >= 32 {
		c.drain()
	}
}

// drain writes whole bytes; a byte of ones is followed by a zero, so that it is no marker.
func (c *jpegCoder) drain() {
	for c.held >= 8 {
		c.held -= 8
		b := byte(c.bits >> c.held)
		c.out = append(c.out, b)
		if b == 0xFF {
			c.out = append(c.out, 0)
		}
	}
}

// forwardDCT is the transform of Arai, Agui and Nakajima (1988) on rows and columns; its scale is taken out by foldScale.
func forwardDCT(b *[64]float32) {
	for i := 0; i < 64; i += 8 {
		r := (*[8]float32)(b[i:])
		r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7] = dct8(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7])
	}
	for i := range 8 {
		b[i], b[8+i], b[16+i], b[24+i], b[32+i], b[40+i], b[48+i], b[56+i] = dct8(b[i], b[8+i], b[16+i], b[24+i], b[32+i], b[40+i], b[48+i], b[56+i])
	}
}

func dct8(x0, x1, x2, x3, x4, x5, x6, x7 float32) (y0, y1, y2, y3, y4, y5, y6, y7 float32) {
	a0, a7 := x0+x7, x0-x7
	a1, a6 := x1+x6, x1-x6
	a2, a5 := x2+x5, x2-x5
	a3, a4 := x3+x4, x3-x4

	b0, b3 := a0+a3, a0-a3
	b1, b2 := a1+a2, a1-a2
	y0, y4 = b0+b1, b0-b1
	c1 := (b2 + b3) * 0.707106781
	y2, y6 = b3+c1, b3-c1

	d0, d1, d2 := a4+a5, a5+a6, a6+a7
	z5 := (d0 - d2) * 0.382683433
	z2 := 0.541196100*d0 + z5
	z4 := 1.306562965*d2 + z5
	z3 := d1 * 0.707106781
	e0, e1 := a7+z3, a7-z3
	y5, y3 = e1+z2, e1-z2
	y1, y7 = e0+z4, e0-z4
	return y0, y1, y2, y3, y4, y5, y6, y7
}
