package image

import (
	"encoding/binary"
	"fmt"
)

// TIFF tags read here (TIFF 6.0, section 8; 34675 from the ICC specification, annex B).
const (
	tiffWidth        = 256
	tiffHeight       = 257
	tiffBits         = 258
	tiffOrientation  = 274
	tiffSamples      = 277
	tiffExtraSamples = 338
	tiffProfile      = 34675
)

// tiffEntry is one field of the first directory.
type tiffEntry struct {
	kind   uint16
	count  uint32
	offset int64
	// value is the first value when it is a SHORT or LONG.
	value uint32
}

// tiffFields reads the first directory of a classic TIFF file.
func tiffFields(in *headerReader) (map[uint16]tiffEntry, error) {
	start, err := in.at(0, 8)
	if err != nil {
		return nil, err
	}
	var order binary.ByteOrder = binary.LittleEndian
	if start[0] == 'M' {
		order = binary.BigEndian
	}
	directory := int64(order.Uint32(start[4:]))
	count, err := in.at(directory, 2)
	if err != nil {
		return nil, err
	}
	n := int(order.Uint16(count))
	if n == 0 || n > maxSegments {
		return nil, fmt.Errorf("%w: TIFF directory of %d fields", errNotImage, n)
	}
	raw, err := in.at(directory+2, 12*n)
	if err != nil {
		return nil, err
	}
	fields := make(map[uint16]tiffEntry, n)
	for i := range n {
		b := raw[12*i:]
		e := tiffEntry{kind: order.Uint16(b[2:]), count: order.Uint32(b[4:]), offset: directory + 2 + int64(12*i) + 8}
		width := int64(1)
		switch e.kind {
		case 3:
			width, e.value = 2, uint32(order.Uint16(b[8:]))
		case 4:
			width, e.value = 4, order.Uint32(b[8:])
		}
		if width*int64(e.count) > 4 {
			e.offset = int64(order.Uint32(b[8:]))
			if e.kind == 3 {
				if first, err := in.at(e.offset, 2); err == nil {
					e.value = uint32(order.Uint16(first))
				}
			}
		}
		fields[order.Uint16(b)] = e
	}
	return fields, nil
}

func tiffHeader(in *headerReader) (header, error) {
	h := header{format: "tiff", channels: 4, samples: 4}
	fields, err := tiffFields(in)
	if err != nil {
		return h, err
	}
	width, height := fields[tiffWidth].value, fields[tiffHeight].value
	if width > maxSide || height > maxSide {
		return h, fmt.Errorf("%w: TIFF of %dx%d", errNotImage, width, height)
	}
	h.width, h.height = int(width), int(height)
	h.deep = fields[tiffBits].value > 8
	h.orientation = 1
	if o := fields[tiffOrientation].value; o >= 1 && o <= 8 {
		h.orientation = int(o)
	}
	if extra, ok := fields[tiffExtraSamples]; ok {
		h.alpha = extra.value == 1 || extra.value == 2
	}
	return h, nil
}
