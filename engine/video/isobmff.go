package video

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
)

// The little of the ISO base media file format (ISO/IEC 14496-12) that it takes to change the movie box of a finished MP4 file and to put
// it in front. ffmpeg before 7 writes no static HDR metadata for what it encodes, and none measured on the way could be known to it.

const (
	// movieMost bounds the movie box: ten hours at 60 frames a second take some 60 MB.
	movieMost = 512 << 20
	// boxesMost bounds the boxes of a file's top level, and those of the movie box; boxDepth how deep they stand in one another.
	boxesMost = 10_000
	boxDepth  = 12
)

var (
	errBoxes      = errors.New("not a whole MP4 file")
	errFragmented = errors.New("a fragmented MP4 file")
)

// box is one box. A leaf has its content in head; a container has there what stands before its children, and in tail what is left
// behind them: some writers end a list by four zero bytes.
type box struct {
	kind     string
	head     []byte
	children []*box
	tail     []byte
}

// visualHead is the length of a sample entry's fields and of those of a visual one.
const visualHead = 78

// headSize is how many bytes stand before the children of a container; it says false for a leaf.
func headSize(kind, parent string) (int, bool) {
	switch kind {
	case "moov", "trak", "mdia", "minf", "stbl":
		return 0, true
	case "stsd":
		return 8, true // version, flags, number of entries
	case "hvc1", "hev1", "avc1", "avc3":
		return visualHead, parent == "stsd"
	}
	return 0, false
}

// boxReader parses a movie box.
type boxReader struct{ left int }

// list reads boxes until less than a header is left.
func (r *boxReader) list(b []byte, parent string, depth int) (boxes []*box, rest []byte, err error) {
	for len(b) >= 8 {
		if r.left--; r.left < 0 || depth > boxDepth {
			return nil, nil, fmt.Errorf("%w: too many boxes", errBoxes)
		}
		size, from := uint64(binary.BigEndian.Uint32(b)), uint64(8)
		kind := string(b[4:8])
		if size == 1 {
			if len(b) < 16 {
				return nil, nil, fmt.Errorf("%w: %q is cut short", errBoxes, kind)
			}
			size, from = binary.BigEndian.Uint64(b[8:]), 16
		}
		if size < from || size > uint64(len(b)) {
			return nil, nil, fmt.Errorf("%w: %q claims %d bytes of %d", errBoxes, kind, size, len(b))
		}
		made, err := r.box(kind, b[from:size], parent, depth)
		if err != nil {
			return nil, nil, err
		}
		boxes, b = append(boxes, made), b[size:]
	}
	return boxes, b, nil
}

func (r *boxReader) box(kind string, content []byte, parent string, depth int) (*box, error) {
	n, container := headSize(kind, parent)
	if !container {
		return &box{kind: kind, head: content}, nil
	}
	if len(content) < n {
		return nil, fmt.Errorf("%w: %q is cut short", errBoxes, kind)
	}
	made := &box{kind: kind, head: content[:n]}
	var err error
	made.children, made.tail, err = r.list(content[n:], kind, depth+1)
	return made, err
}

func (b *box) size() int {
	n := 8 + len(b.head) + len(b.tail)
	for _, child := range b.children {
		n += child.size()
	}
	return n
}

// append writes the box; movieMost keeps every size within 32 bits.
func (b *box) append(to []byte) []byte {
	to = binary.BigEndian.AppendUint32(to, uint32(b.size())) // within movieMost
	to = append(append(to, b.kind...), b.head...)
	for _, child := range b.children {
		to = child.append(to)
	}
	return append(to, b.tail...)
}

// walk visits a box and all below it.
func (b *box) walk(visit func(*box) error) error {
	if err := visit(b); err != nil {
		return err
	}
	for _, child := range b.children {
		if err := child.walk(visit); err != nil {
			return err
		}
	}
	return nil
}

// put sets a child box, in the place of one of its kind or at the end.
func (b *box) put(kind string, content []byte) {
	made := &box{kind: kind, head: content}
	at := slices.IndexFunc(b.children, func(c *box) bool { return c.kind == kind })
	if at < 0 {
		b.children = append(b.children, made)
		return
	}
	b.children[at] = made
}

// region is a box of a file's top level, as it lies there; to is where it goes.
type region struct {
	kind           string
	from, size, to int64
}

// regions lists the top level of a file.
func regions(file io.ReaderAt, size int64) ([]region, error) {
	var all []region
	for at := int64(0); at < size; {
		if len(all) == boxesMost {
			return nil, fmt.Errorf("%w: too many boxes", errBoxes)
		}
		var head [16]byte
		n, err := file.ReadAt(head[:min(16, size-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read boxes: %w", err)
		}
		if n < 8 {
			return nil, fmt.Errorf("%w: it is cut short", errBoxes)
		}
		length, least := int64(binary.BigEndian.Uint32(head[:])), int64(8)
		switch {
		case length == 0: // to the end of the file
			length = size - at
		case length == 1 && n == 16:
			length, least = int64(min(binary.BigEndian.Uint64(head[8:]), math.MaxInt64)), 16
		}
		if length < least || length > size-at {
			return nil, fmt.Errorf("%w: %q claims %d bytes of %d", errBoxes, head[4:8], length, size-at)
		}
		all = append(all, region{kind: string(head[4:8]), from: at, size: length})
		at += length
	}
	return all, nil
}

// movie reads the movie box of a file, and the regions that stay, in which the samples lie. Free space does not stay.
func movie(file io.ReaderAt, size int64) (*box, []region, error) {
	all, err := regions(file, size)
	if err != nil {
		return nil, nil, err
	}
	var found *region
	var kept []region
	for i := range all {
		switch all[i].kind {
		case "moov":
			if found != nil {
				return nil, nil, fmt.Errorf("%w: two movie boxes", errBoxes)
			}
			found = &all[i]
		case "moof":
			return nil, nil, errFragmented
		case "free", "skip":
		default:
			kept = append(kept, all[i])
		}
	}
	if found == nil || found.size > movieMost {
		return nil, nil, fmt.Errorf("%w: no movie box of a size to be read", errBoxes)
	}
	text := make([]byte, found.size)
	if _, err := file.ReadAt(text, found.from); err != nil {
		return nil, nil, fmt.Errorf("read movie box: %w", err)
	}
	boxes, rest, err := (&boxReader{left: boxesMost}).list(text, "", 0)
	if err != nil {
		return nil, nil, err
	}
	if len(boxes) != 1 || len(rest) > 0 {
		return nil, nil, fmt.Errorf("%w: no movie box", errBoxes)
	}
	return boxes[0], kept, nil
}

// arrange decides where the regions go when the movie box stands behind the file type, and makes the chunk offsets say so. They are
// widened to 64 bits when one would not fit into 32.
func arrange(moov *box, kept []region) error {
	place := func() int64 {
		at := int64(moov.size())
		for i := range kept {
			kept[i].to = at
			if i == 0 && kept[i].kind == "ftyp" {
				kept[i].to = 0
			}
			at += kept[i].size
		}
		return at
	}
	if place() > math.MaxUint32 {
		if err := moov.walk(widen); err != nil {
			return err
		}
		place()
	}
	return moov.walk(func(b *box) error { return shift(b, kept) })
}

// offsets is the table of chunk offsets in a stco or co64 box, after its version, flags and count.
func offsets(b *box) (table []byte, width int, err error) {
	switch b.kind {
	case "stco":
		width = 4
	case "co64":
		width = 8
	default:
		return nil, 0, nil
	}
	if len(b.head) < 8 || uint64(binary.BigEndian.Uint32(b.head[4:]))*uint64(width) != uint64(len(b.head)-8) {
		return nil, 0, fmt.Errorf("%w: %q has another length than it says", errBoxes, b.kind)
	}
	return b.head[8:], width, nil
}

// widen turns a table of 32-bit chunk offsets into one of 64 bits.
func widen(b *box) error {
	table, width, err := offsets(b)
	if err != nil || width != 4 {
		return err
	}
	wide := slices.Clone(b.head[:8])
	for ; len(table) > 0; table = table[4:] {
		wide = binary.BigEndian.AppendUint64(wide, uint64(binary.BigEndian.Uint32(table)))
	}
	b.kind, b.head = "co64", wide
	return nil
}

// shift moves each chunk offset as the region moves that it points into.
func shift(b *box, kept []region) error {
	table, width, err := offsets(b)
	if err != nil || width == 0 {
		return err
	}
	last := 0
	for ; len(table) > 0; table = table[width:] {
		var at uint64
		if width == 4 {
			at = uint64(binary.BigEndian.Uint32(table))
		} else {
			at = binary.BigEndian.Uint64(table)
		}
		inside := func(r region) bool { return at >= uint64(r.from) && at-uint64(r.from) <= uint64(r.size) }
		if len(kept) == 0 || !inside(kept[last]) {
			if last = slices.IndexFunc(kept, inside); last < 0 {
				return fmt.Errorf("%w: a chunk lies outside the file", errBoxes)
			}
		}
		at = at - uint64(kept[last].from) + uint64(kept[last].to)
		if width == 4 {
			binary.BigEndian.PutUint32(table, uint32(at))
		} else {
			binary.BigEndian.PutUint64(table, at)
		}
	}
	return nil
}

// editMovie rewrites an MP4 file with its movie box changed and in front of the samples, where a player finds it at once. touch may then
// change bytes of the new file in their place. The file is whole, old or new, at every moment.
func editMovie(ctx context.Context, path string, change func(moov *box) error, touch func(ctx context.Context, file *os.File, moov *box) error) (err error) {
	source, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("edit movie box: %w", err)
	}
	defer func() { _ = source.Close() }()
	info, err := source.Stat()
	if err != nil {
		return fmt.Errorf("edit movie box: %w", err)
	}
	moov, kept, err := movie(source, info.Size())
	if err != nil {
		return fmt.Errorf("edit movie box: %w", err)
	}
	if err := change(moov); err != nil {
		return fmt.Errorf("edit movie box: %w", err)
	}
	if err := arrange(moov, kept); err != nil {
		return fmt.Errorf("edit movie box: %w", err)
	}
	edited := path + ".edited"
	if err := writeMovie(ctx, edited, source, moov, kept, touch); err != nil {
		_ = os.Remove(edited)
		return fmt.Errorf("edit movie box: %w", err)
	}
	if err := os.Rename(edited, path); err != nil {
		return fmt.Errorf("edit movie box: %w", err)
	}
	return nil
}

func writeMovie(
	ctx context.Context, path string, source *os.File, moov *box, kept []region, touch func(context.Context, *os.File, *box) error,
) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	text := moov.append(make([]byte, 0, moov.size()))
	if len(kept) == 0 || kept[0].to > 0 {
		if _, err := file.Write(text); err != nil {
			return err
		}
		text = nil
	}
	for _, r := range kept {
		if err := copyRegion(ctx, file, source, r); err != nil {
			return err
		}
		if _, err := file.Write(text); err != nil {
			return err
		}
		text = nil
	}
	return touch(ctx, file, moov)
}

// child is the first box of a kind, or nil.
func (b *box) child(kind string) *box {
	for _, c := range b.children {
		if c.kind == kind {
			return c
		}
	}
	return nil
}

// list is the numbers of a full box, width bytes each, of which the count stands behind skip bytes. What is absent has none.
func (b *box) list(skip, width int) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	if len(b.head) < skip+4 || uint64(binary.BigEndian.Uint32(b.head[skip:]))*uint64(width) > uint64(len(b.head)-skip-4) {
		return nil, fmt.Errorf("%w: %q has another length than it says", errBoxes, b.kind)
	}
	return b.head[skip+4:][:int(binary.BigEndian.Uint32(b.head[skip:]))*width], nil
}

// sampleTable reads a track's table of samples (ISO/IEC 14496-12, 8.6 and 8.7).
type sampleTable struct {
	keys, runs, chunks, sizes []byte
	width                     int    // of a chunk's offset
	count, size               uint32 // of samples, and of each when it is not 0
}

func newSampleTable(stbl *box) (t sampleTable, err error) {
	stsz := stbl.child("stsz")
	if stsz == nil || len(stsz.head) < 12 {
		return t, fmt.Errorf("%w: the sizes of samples are missing", errBoxes)
	}
	t.size, t.count = binary.BigEndian.Uint32(stsz.head[4:]), binary.BigEndian.Uint32(stsz.head[8:])
	if t.count > samplesMost {
		return t, fmt.Errorf("%w: too many samples", errBoxes)
	}
	if t.size == 0 {
		if t.sizes, err = stsz.list(8, 4); err != nil {
			return t, err
		}
	}
	if t.keys, err = stbl.child("stss").list(4, 4); err != nil {
		return t, err
	}
	if t.runs, err = stbl.child("stsc").list(4, 12); err != nil {
		return t, err
	}
	for _, b := range stbl.children {
		if b.kind == "stco" || b.kind == "co64" {
			if t.chunks, t.width, err = offsets(b); err != nil {
				return t, err
			}
		}
	}
	return t, nil
}

// samplesMost bounds the samples of a track: two days at 240 frames a second.
const samplesMost = 50_000_000

// keySamples visits the key samples in their order, with their place in the file.
func (t sampleTable) keySamples(visit func(at int64, size uint32) error) error {
	per, sample := uint32(0), uint32(0)
	for chunk := uint32(1); len(t.chunks) > 0 && len(t.keys) > 0; chunk++ {
		var at int64
		if t.width == 4 {
			at = int64(binary.BigEndian.Uint32(t.chunks))
		} else {
			at = int64(min(binary.BigEndian.Uint64(t.chunks), math.MaxInt64>>1))
		}
		t.chunks = t.chunks[t.width:]
		for len(t.runs) > 0 && binary.BigEndian.Uint32(t.runs) <= chunk {
			per = binary.BigEndian.Uint32(t.runs[4:])
			t.runs = t.runs[12:]
		}
		for i := uint32(0); i < per && sample < t.count && len(t.keys) > 0; i++ {
			size := t.size
			if size == 0 {
				size = binary.BigEndian.Uint32(t.sizes[4*sample:])
			}
			sample++
			if binary.BigEndian.Uint32(t.keys) == sample {
				t.keys = t.keys[4:]
				if err := visit(at, size); err != nil {
					return err
				}
			}
			at += int64(size)
		}
	}
	return nil
}

// copyRegion copies in steps, between which it looks whether it is still wanted. From file to file the kernel copies.
func copyRegion(ctx context.Context, to, from *os.File, r region) error {
	const step = 64 << 20
	if _, err := from.Seek(r.from, io.SeekStart); err != nil {
		return err
	}
	for left := r.size; left > 0; left -= min(left, step) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, err := io.CopyN(to, from, min(left, step)); err != nil {
			return err
		}
	}
	return nil
}
