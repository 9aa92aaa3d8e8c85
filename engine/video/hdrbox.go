package video

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"enlarger/engine/ffmpeg"
)

// finishHDR writes static metadata into an MP4 file: the boxes mdcv and clli beside the picture's description, whatever wrote the file, and
// the light levels as a message inside an H.265 description; the encoder has put the display's message into its stream. The movie box comes to stand in front.
func finishHDR(ctx context.Context, path string, m ffmpeg.Mastering, light ffmpeg.Light) error {
	display := masteringBox(m)
	level := lightLevel(light)
	return editMovie(ctx, path, func(moov *box) error {
		entries := 0
		err := moov.walk(func(b *box) error {
			if b.kind != "stsd" {
				return nil
			}
			for _, entry := range b.children {
				if _, visual := headSize(entry.kind, b.kind); !visual {
					continue
				}
				entries++
				if err := describeHDR(entry, display, level); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil && entries == 0 {
			err = fmt.Errorf("%w: no description of a picture", errBoxes)
		}
		return err
	})
}

// describeHDR completes one description of a picture.
func describeHDR(entry *box, display, level []byte) error {
	entry.put("mdcv", display)
	entry.put("clli", level)
	for _, child := range entry.children {
		if child.kind != "hvcC" {
			continue
		}
		var err error
		if child.head, err = putLight(child.head, level); err != nil {
			return err
		}
	}
	return nil
}

// masteringBox is the content of a MasteringDisplayColourVolumeBox: the payload of the message of the same name in H.265, D.2.28.
func masteringBox(m ffmpeg.Mastering) []byte {
	var b []byte
	for _, v := range []int64{m.GreenX, m.GreenY, m.BlueX, m.BlueY, m.RedX, m.RedY, m.WhiteX, m.WhiteY} {
		b = binary.BigEndian.AppendUint16(b, uint16(min(max(v, 0), math.MaxUint16)))
	}
	for _, v := range []int64{m.MaxLuminance, m.MinLuminance} {
		b = binary.BigEndian.AppendUint32(b, uint32(min(max(v, 0), math.MaxUint32)))
	}
	return b
}

// lightLevel is the content of a ContentLightLevelBox, and the payload of the message of H.265, D.2.35.
func lightLevel(l ffmpeg.Light) []byte {
	var b []byte
	for _, v := range []int64{l.MaxContent, l.MaxAverage} {
		b = binary.BigEndian.AppendUint16(b, uint16(min(max(v, 0), math.MaxUint16)))
	}
	return b
}

// putLight puts the payload of the content light level message into an H.265 description (HEVCDecoderConfigurationRecord, ISO/IEC
// 14496-15, 8.3.3.1), whose messages hold for the whole stream: in the place of one that is there, or as one more.
func putLight(record, level []byte) ([]byte, error) {
	const fixed, prefixSEI, complete = 22, 39, 0x80
	if len(record) <= fixed {
		return nil, fmt.Errorf("%w: hvcC is cut short", errBoxes)
	}
	arrays, rest := int(record[fixed]), record[fixed+1:]
	out := slices.Clone(record[:fixed+1])
	found := false
	for range arrays {
		if len(rest) < 3 {
			return nil, fmt.Errorf("%w: hvcC is cut short", errBoxes)
		}
		kind, units := rest[0]&0x3f, int(binary.BigEndian.Uint16(rest[1:]))
		out, rest = append(out, rest[:3]...), rest[3:]
		for range units {
			if len(rest) < 2 || len(rest)-2 < int(binary.BigEndian.Uint16(rest)) {
				return nil, fmt.Errorf("%w: hvcC is cut short", errBoxes)
			}
			unit := rest[2 : 2+int(binary.BigEndian.Uint16(rest))]
			rest = rest[2+len(unit):]
			if kind == prefixSEI && isLight(unit) {
				unit, found = lightUnit(level), true
			}
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(unit))), unit...) //nolint:gosec // as long as it was, or a few bytes
		}
	}
	if found {
		return append(out, rest...), nil
	}
	if arrays == math.MaxUint8 {
		return nil, fmt.Errorf("%w: hvcC is full", errBoxes)
	}
	unit := lightUnit(level)
	out[fixed]++
	out = append(out, complete|prefixSEI, 0, 1, 0, byte(len(unit)))
	return append(append(out, unit...), rest...), nil
}

// A unit of supplemental enhancement information with one message (H.265, 7.3.1 and 7.3.5): two bytes of header, type, size, payload, and
// the bit that ends it.
const (
	prefixSEIHeader   = "\x4e\x01"
	contentLightLevel = "\x90\x04"
)

// isLight says whether a unit begins with the content light level message.
func isLight(unit []byte) bool { return bytes.HasPrefix(unit, []byte(prefixSEIHeader+contentLightLevel)) }

func lightUnit(level []byte) []byte {
	message := slices.Concat([]byte(contentLightLevel), level, []byte{0x80})
	return append([]byte(prefixSEIHeader), escape(message)...)
}

// escape puts in the bytes of three that keep a start code from appearing by chance (H.265, 7.4.2).
func escape(b []byte) []byte {
	out := make([]byte, 0, len(b)+4)
	zeros := 0
	for _, v := range b {
		if zeros >= 2 && v <= 3 {
			out, zeros = append(out, 3), 0
		}
		if zeros++; v != 0 {
			zeros = 0
		}
		out = append(out, v)
	}
	return out
}
