package video

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"

	"enlarger/engine/ffmpeg"
)

// finishHDR writes static metadata into an MP4 file: the boxes mdcv and clli beside the picture's description, whatever wrote the file, and
// the light levels into the messages of an H.265 stream, in its description and at every key frame, where the encoder has kept the place.
// The movie box comes to stand in front. path is written anew; light is of the whole video.
func finishHDR(ctx context.Context, path string, m ffmpeg.Mastering, light ffmpeg.Light) error {
	display := masteringBox(m)
	level := lightLevel(light)
	var tables []*box
	change := func(moov *box) error {
		err := moov.walk(func(b *box) error {
			if b.kind != "stbl" {
				return nil
			}
			description := b.child("stsd")
			if description == nil {
				return fmt.Errorf("%w: a track without a description", errBoxes)
			}
			for _, entry := range description.children {
				if _, visual := headSize(entry.kind, description.kind); !visual {
					continue
				}
				tables = append(tables, b)
				if err := describeHDR(entry, display, level); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil && len(tables) == 0 {
			err = fmt.Errorf("%w: no description of a picture", errBoxes)
		}
		return err
	}
	return editMovie(ctx, path, change, func(ctx context.Context, file *os.File, _ *box) error {
		for _, stbl := range tables {
			if err := levelStream(ctx, file, stbl, level); err != nil {
				return err
			}
		}
		return nil
	})
}

// levelStream writes the light levels over those in the key frames of an H.265 track.
func levelStream(ctx context.Context, file *os.File, stbl *box, level []byte) error {
	if entry := stbl.child("stsd").children[0]; entry.kind != "hvc1" && entry.kind != "hev1" {
		return nil
	}
	table, err := newSampleTable(stbl)
	if err != nil {
		return err
	}
	return table.keySamples(func(at int64, size uint32) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		// What comes before the picture itself fits in well.
		head := make([]byte, min(size, 4096))
		if _, err := file.ReadAt(head, at); err != nil {
			return err
		}
		from := lightIn(head)
		if from < 0 {
			return nil
		}
		_, err := file.WriteAt(level, at+int64(from))
		return err
	})
}

// lightIn finds the payload of the light level message among the units before the picture, each of them behind its length in four bytes; -1
// when there is none of the usual length.
func lightIn(sample []byte) int {
	for at := 0; len(sample)-at > 6; {
		size := int(binary.BigEndian.Uint32(sample[at:]))
		at += 4
		if kind := sample[at] >> 1 & 0x3f; kind < 32 || size > len(sample)-at {
			return -1
		}
		if size == lightUnitSize && isLight(sample[at:at+size]) {
			return at + len(prefixSEIHeader) + len(contentLightLevel)
		}
		at += size
	}
	return -1
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
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(unit))), unit...)
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

// lightUnitSize is that of such a unit of light levels without escapes.
const lightUnitSize = len(prefixSEIHeader) + len(contentLightLevel) + 4 + 1

// isLight says whether a unit begins with the content light level message.
func isLight(unit []byte) bool {
	return bytes.HasPrefix(unit, []byte(prefixSEIHeader+contentLightLevel))
}

func lightUnit(level []byte) []byte {
	return slices.Concat([]byte(prefixSEIHeader+contentLightLevel), level, []byte{0x80})
}
