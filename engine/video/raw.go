package video

import (
	"encoding/binary"
	"math"
)

// The little of Matroska (RFC 9559) that carries raw frames with exact times to ffmpeg: a segment and clusters of one frame each, times in
// nanoseconds, so that no rounding shows in the units of any source.

// element is one EBML element: its identifier and its content, the length of which stands between them in eight bytes.
func element(id uint32, content ...[]byte) []byte {
	size := 0
	for _, c := range content {
		size += len(c)
	}
	b := append(identifier(id), length(uint64(size))...)
	for _, c := range content {
		b = append(b, c...)
	}
	return b
}

// identifier writes an element's identifier without leading zeros.
func identifier(id uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, id)
	for b[0] == 0 {
		b = b[1:]
	}
	return b
}

// length writes a size in eight bytes; all ones are an unknown size.
func length(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n|1<<56) }

func number(id uint32, n uint64) []byte {
	return element(id, binary.BigEndian.AppendUint64(nil, n))
}

const unknownLength = 1<<56 - 1

// rawHeader begins a stream of raw frames: tracks numbered from 1. nominal is the frame rate by which an encoder plans, 0 unknown.
func rawHeader(tracks []layout, nominal float64) []byte {
	const (
		ebml, docType                                         = 0x1A45DFA3, 0x4282
		segment, info, scale, muxer, writer                   = 0x18538067, 0x1549A966, 0x2AD7B1, 0x4D80, 0x5741
		list, entry, trackNumber, uid, kind, laced            = 0x1654AE6B, 0xAE, 0xD7, 0x73C5, 0x83, 0x9C
		codec, language, duration, video, w, h, fourcc        = 0x86, 0x22B59C, 0x23E383, 0xE0, 0xB0, 0xBA, 0x2EB524
		kindVideo                                      uint64 = 1
	)
	name := []byte("enlarger")
	b := element(ebml, element(docType, []byte("matroska")))
	b = append(b, identifier(segment)...)
	b = append(b, length(unknownLength)...)
	b = append(b, element(info, number(scale, 1), element(muxer, name), element(writer, name))...)
	var entries []byte
	for i, t := range tracks {
		step := []byte(nil)
		if nominal > 0 {
			step = number(duration, uint64(math.Round(1e9/nominal)))
		}
		entries = append(entries, element(entry,
			number(trackNumber, uint64(i+1)), number(uid, uint64(i+1)), number(kind, kindVideo), number(laced, 0),
			element(codec, []byte("V_UNCOMPRESSED")), element(language, []byte("und")), step,
			element(video, number(w, uint64(t.width)), number(h, uint64(t.height)), element(fourcc, []byte(t.fourcc))),
		)...)
	}
	return append(b, element(list, entries)...)
}

// rawFrame is what stands before and after the pixels of one frame of a track: a cluster with its time in nanoseconds, not negative, and
// one block with the time for which it is shown. size is that of the pixels in bytes.
func rawFrame(track int, at, shown int64, size int) (head, tail []byte) {
	const cluster, timestamp, group, block, duration = 0x1F43B675, 0xE7, 0xA0, 0xA1, 0x9B
	tail = number(duration, uint64(max(shown, 0)))
	mark := []byte{0x81 + byte(track), 0, 0, 0} // the track, no time beside the cluster's, no flags
	blocked := append(append(identifier(block), length(uint64(len(mark)+size))...), mark...)
	grouped := append(append(identifier(group), length(uint64(len(blocked)+size+len(tail)))...), blocked...)
	inner := append(number(timestamp, uint64(max(at, 0))), grouped...)
	return append(append(identifier(cluster), length(uint64(len(inner)+size+len(tail)))...), inner...), tail
}
