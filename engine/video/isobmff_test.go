package video

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"enlarger/engine/ffmpeg"
)

// leaf and parent write boxes as other programs do.
func leaf(kind string, content ...[]byte) []byte {
	text := bytes.Join(content, nil)
	b := binary.BigEndian.AppendUint32(nil, uint32(8+len(text)))
	return append(append(b, kind...), text...)
}

func parent(kind string, head []byte, children ...[]byte) []byte {
	return leaf(kind, head, bytes.Join(children, nil))
}

func words(values ...uint32) []byte {
	var b []byte
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

// tinyMovie is a movie box with one track of one chunk.
func tinyMovie(offsets []byte) []byte {
	entry := parent("avc1", make([]byte, visualHead), leaf("avcC", []byte{1, 2, 3}))
	stbl := parent("stbl", nil, parent("stsd", words(0, 1), entry), leaf("stsz", words(0, 4, 1)), leaf("stsc", words(0, 1, 1, 1, 1)), offsets)
	return parent("moov", nil, leaf("mvhd", []byte{0}), parent("trak", nil, parent("mdia", nil, parent("minf", nil, stbl))))
}

var (
	tinyDisplay = mastering(bt2020)
	tinyLight   = ffmpeg.Light{MaxContent: 333, MaxAverage: 84}
)

func TestFinishHDRBoxes(t *testing.T) {
	t.Parallel()
	ftyp := leaf("ftyp", []byte("isom"))
	mdat := leaf("mdat", []byte("....film...."))
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	at := func(parts ...[]byte) uint32 { return uint32(len(join(parts...)) + 12) } // of the film in mdat
	stco := func(at uint32) []byte { return leaf("stco", words(0, 1, at)) }
	co64 := func(at uint32) []byte { return leaf("co64", words(0, 1, 0, at)) }
	free := leaf("free", make([]byte, 30))
	wide := append(append(words(1), "mdat"...), append(words(0, 28), "....film...."...)...)
	for _, c := range []struct {
		name string
		file []byte
		err  error
	}{
		{"behind", join(ftyp, mdat, tinyMovie(stco(at(ftyp)))), nil},
		{"in front", join(ftyp, tinyMovie(stco(at(ftyp, tinyMovie(stco(0))))), mdat), nil},
		{"in front, free space, 64 bits", join(ftyp, tinyMovie(co64(at(ftyp, tinyMovie(co64(0)), free))), free, mdat), nil},
		{"long form of mdat", join(ftyp, free, wide, tinyMovie(stco(at(ftyp, free)+8))), nil},
		{"mdat to the end", join(ftyp, tinyMovie(stco(at(ftyp, tinyMovie(stco(0))))), words(0), mdat[4:]), nil},
		{"no file type", join(mdat, tinyMovie(stco(at()))), nil},
		{"finished twice", nil, nil},
		{"nothing", nil, errBoxes},
		{"no movie box", join(ftyp, mdat), errBoxes},
		{"two movie boxes", join(ftyp, tinyMovie(stco(8)), tinyMovie(stco(8))), errBoxes},
		{"fragments", join(ftyp, tinyMovie(stco(8)), leaf("moof"), mdat), errFragmented},
		{"cut short", join(ftyp, mdat, tinyMovie(stco(at(ftyp))))[:60], errBoxes},
		{"chunk outside", join(ftyp, mdat, tinyMovie(stco(4000))), errBoxes},
		{"table cut short", join(ftyp, mdat, tinyMovie(leaf("stco", words(0, 9, 1)))), errBoxes},
		{"no picture", join(ftyp, mdat, parent("moov", nil, leaf("mvhd", []byte{0}))), errBoxes},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "a.mp4")
			if c.name == "finished twice" {
				c.file = join(ftyp, mdat, tinyMovie(stco(at(ftyp))))
			}
			if err := os.WriteFile(path, c.file, 0o600); err != nil {
				t.Fatal(err)
			}
			if c.name == "finished twice" {
				if err := finishHDR(t.Context(), path, mastering(p3D65), ffmpeg.Light{MaxContent: 1, MaxAverage: 1}); err != nil {
					t.Fatal(err)
				}
			}
			err := finishHDR(t.Context(), path, tinyDisplay, tinyLight)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
				t.Errorf("files are left: %v", entries)
			}
			text, readErr := os.ReadFile(path)
			if readErr != nil {
				t.Fatal(readErr)
			}
			if c.err != nil {
				if !bytes.Equal(text, c.file) {
					t.Error("a file that cannot be finished was changed")
				}
				return
			}
			moov, _ := readMovie(t, path)
			entry := find(moov, "avc1")
			if got := entry.child("mdcv"); got == nil || !bytes.Equal(got.head, masteringBox(tinyDisplay)) || len(got.head) != 24 {
				t.Errorf("mdcv %v", got)
			}
			if got := entry.child("clli"); got == nil || !bytes.Equal(got.head, []byte{1, 77, 0, 84}) {
				t.Errorf("clli %v", got)
			}
			if len(entry.children) != 3 {
				t.Errorf("%d boxes in the description, want avcC, mdcv, clli", len(entry.children))
			}
			chunks, width := find(moov, "stbl"), 0
			var table []byte
			for _, b := range chunks.children {
				if b.kind == "stco" || b.kind == "co64" {
					table, width, _ = offsets(b)
				}
			}
			offset := binary.BigEndian.Uint32(table[width-4:])
			if got := string(text[offset:][:4]); got != "film" {
				t.Errorf("the chunk is now %q", got)
			}
			if bytes.Index(text, []byte("moov")) > bytes.Index(text, []byte("mdat")) {
				t.Error("the movie box stands behind the samples")
			}
		})
	}
}

func find(b *box, kind string) *box {
	var found *box
	_ = b.walk(func(b *box) error {
		if b.kind == kind {
			found = b
		}
		return nil
	})
	return found
}

// TestArrangeWidens moves chunks beyond what 32 bits hold.
func TestArrangeWidens(t *testing.T) {
	t.Parallel()
	boxes, _, err := (&boxReader{left: boxesMost}).list(tinyMovie(leaf("stco", words(0, 1, 1<<32-10))), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	kept := []region{{kind: "ftyp", size: 12}, {kind: "mdat", from: 12, size: 1<<32 - 20}}
	if err := arrange(boxes[0], kept); err != nil {
		t.Fatal(err)
	}
	co64 := find(boxes[0], "co64")
	if co64 == nil || find(boxes[0], "stco") != nil {
		t.Fatal("the offsets were not widened")
	}
	want := uint64(1<<32-10) + uint64(boxes[0].size())
	if got := binary.BigEndian.Uint64(co64.head[8:]); got != want || kept[1].to != int64(12+boxes[0].size()) {
		t.Errorf("offset %d, want %d; samples at %d", got, want, kept[1].to)
	}
}

// TestFinishHDRKeepsStreams compares the packets of a real file before and after, and stops when it is told to.
func TestFinishHDRKeepsStreams(t *testing.T) {
	t.Parallel()
	path := clip(t, "a.mp4", args(lavfi(smooth("96x64", "25", "1")), lavfi("sine=d=1"), x264, []string{"-g", "5"})...)
	sums := func() string {
		return string(probeRun(t, "-show_entries", "packet=stream_index,pts,dts,size,flags,data_hash", "-show_data_hash", "md5", "-of", "csv", path))
	}
	before := sums()
	stopped, stop := context.WithCancelCause(t.Context())
	cause := errors.New("no longer wanted")
	stop(cause)
	if err := finishHDR(stopped, path, tinyDisplay, tinyLight); !errors.Is(err, cause) {
		t.Errorf("error %v", err)
	}
	if err := finishHDR(t.Context(), path, tinyDisplay, tinyLight); err != nil {
		t.Fatal(err)
	}
	if after := sums(); after != before || strings.Count(before, "\n") < 50 {
		t.Errorf("packets were\n%s and are\n%s", before, after)
	}
}

// TestPutLight writes light levels into an H.265 description that has none, and over those that it has.
func TestPutLight(t *testing.T) {
	t.Parallel()
	record := append(make([]byte, 22), 1, 0xa0, 0, 1, 0, 2, 0x40, 1)
	first, err := putLight(record, []byte{1, 77, 0, 84})
	if err != nil {
		t.Fatal(err)
	}
	want := append(append(make([]byte, 22), 2), append(record[23:len(record):len(record)], 0xa7, 0, 1, 0, 9, 0x4e, 1, 0x90, 4, 1, 77, 0, 84, 0x80)...)
	if !bytes.Equal(first, want) {
		t.Errorf("% x, want % x", first, want)
	}
	second, err := putLight(first, []byte{2, 1, 3, 4})
	if err != nil || len(second) != len(first) || !bytes.Contains(second, []byte{0x90, 4, 2, 1, 3, 4, 0x80}) {
		t.Errorf("% x, %v", second, err)
	}
	sample := append(words(2), 0x40, 1)
	sample = append(sample, first[len(first)-11:]...) // with the two bytes of its length
	sample = append(sample[:6:6], append([]byte{0, 0}, sample[6:]...)...)
	sample = append(sample, append(words(3), 0x26, 1, 7)...)
	if at := lightIn(sample); at < 0 || !bytes.Equal(sample[at:at+4], []byte{1, 77, 0, 84}) {
		t.Errorf("found at %d of % x", at, sample)
	}
}

func FuzzFinishHDR(f *testing.F) {
	f.Add(bytes.Join([][]byte{leaf("ftyp", []byte("isom")), leaf("mdat", []byte("film")), tinyMovie(leaf("stco", words(0, 1, 20)))}, nil))
	hvcC := leaf("hvcC", append(make([]byte, 22), 1, 0xa7, 0, 1, 0, 9, 0x4e, 1, 0x90, 4, 1, 77, 0, 84, 0x80))
	stbl := parent("stbl", nil, parent("stsd", words(0, 1), parent("hvc1", make([]byte, visualHead), hvcC)),
		leaf("stsz", words(0, 0, 2, 4, 5)), leaf("stss", words(0, 1, 2)), leaf("stsc", words(0, 1, 1, 2, 1)), leaf("co64", words(0, 1, 0, 8)))
	f.Add(bytes.Join([][]byte{leaf("mdat", []byte("film and film")), parent("moov", nil, parent("trak", nil, parent("mdia", nil, parent("minf", nil, stbl))))}, nil))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(dir, "a.mp4")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := finishHDR(t.Context(), path, tinyDisplay, tinyLight); err != nil {
			return
		}
		// What was finished once is whole, and finishing it again changes nothing.
		once, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := finishHDR(t.Context(), path, tinyDisplay, tinyLight); err != nil {
			t.Fatalf("finished once, but not twice: %v", err)
		}
		if twice, err := os.ReadFile(path); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("finishing a file twice changed it: %v", err)
		}
	})
}
