package image

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"os/exec"
	"testing"

	"github.com/klauspost/compress/zlib"
)

// pngChunk is one chunk with its checksum.
func pngChunk(kind string, data []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	b = append(append(b, kind...), data...)
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[4:]))
}

// insertChunk puts a chunk after the header of a PNG.
func insertChunk(content []byte, kind string, data []byte) []byte {
	const end = 8 + 25
	return append(append(bytes.Clone(content[:end]), pngChunk(kind, data)...), content[end:]...)
}

// adam7 makes an interlaced PNG of a pattern; all rows have filter 0 or 1.
func adam7(w, h, kind, channels, depth int) []byte {
	var raw bytes.Buffer
	z := zlib.NewWriter(&raw)
	size := channels * depth / 8
	for _, pass := range [][4]int{{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4}, {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}} {
		for y := pass[1]; y < h; y += pass[3] {
			row := []byte{byte(y % 2)}
			for x := pass[0]; x < w; x += pass[2] {
				for c := range size {
					row = append(row, byte(x*31+y*17+c*101))
				}
			}
			if len(row) > 1 {
				_, _ = z.Write(row)
			}
		}
	}
	_ = z.Close()
	header := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(w)), uint32(h))
	header = append(header, byte(depth), byte(kind), 0, 0, 1)
	out := append(bytes.Clone(pngSignature), pngChunk("IHDR", header)...)
	out = append(out, pngChunk("IDAT", raw.Bytes())...)
	return append(out, pngChunk("IEND", nil)...)
}

// makeWithFFmpeg writes the picture to path with the installed ffmpeg, in the format of its name.
func makeWithFFmpeg(t testing.TB, img image.Image, path string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ffmpeg", append(append([]string{"-v", "error", "-f", "png_pipe", "-i", "pipe:0", "-frames:v", "1"}, args...), path)...)
	cmd.Stdin = bytes.NewReader(pngBytes(t, img))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Skipf("ffmpeg cannot make %s: %v: %s", path, err, out)
	}
}
