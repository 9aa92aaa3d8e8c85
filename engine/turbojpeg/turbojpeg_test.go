package turbojpeg

import (
	"bytes"
	"errors"
	"image/jpeg"
	"strings"
	"testing"
)

func library(t testing.TB) *Library {
	t.Helper()
	l, err := Open()
	if err != nil {
		t.Fatalf("%v; `make deps` installs it", err)
	}
	return l
}

func pixels(width, height int) []byte {
	b := make([]byte, 4*width*height)
	for i := range width * height {
		b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(i%width*3), byte(i/width*5), 90, 255
	}
	return b
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	if _, err := open("libnothing-of-the-kind.so.0"); err == nil || !strings.Contains(err.Error(), "libnothing") {
		t.Errorf("%v", err)
	}
	if _, err := open("libc.so.6"); err == nil || !strings.Contains(err.Error(), "tjInitDecompress") {
		t.Errorf("%v", err)
	}
}

// TestRoundTrip encodes, looks at the result with another decoder, and decodes.
func TestRoundTrip(t *testing.T) {
	t.Parallel()
	l := library(t)
	const width, height = 37, 21
	from := pixels(width, height)
	for _, colour := range []Colour{Full, Half, Grey} {
		made, err := l.Encode([]byte("kept"), from, width, height, 95, colour)
		if err != nil || !bytes.HasPrefix(made, []byte("kept\xff\xd8")) {
			t.Fatalf("%v", err)
		}
		made = made[4:]
		if c, err := jpeg.DecodeConfig(bytes.NewReader(made)); err != nil || c.Width != width || c.Height != height {
			t.Errorf("%+v, %v", c, err)
		}
		back := make([]byte, len(from))
		if err := l.Decode(made, back, width, height); err != nil {
			t.Fatal(err)
		}
		for i, v := range back {
			if d := int(v) - int(from[i]); colour != Grey && (d < -12 || d > 12) {
				t.Fatalf("%d: byte %d is %d, was %d", colour, i, v, from[i])
			}
		}
		img, err := l.DecodePlanes(made, width, height)
		if err != nil || img.Bounds().Dx() != width || img.Bounds().Dy() != height {
			t.Errorf("%v, %v", img.Bounds(), err)
		}
	}
}

func TestWrongUse(t *testing.T) {
	t.Parallel()
	l := library(t)
	made, err := l.Encode(nil, pixels(8, 8), 8, 8, 90, Full)
	if err != nil {
		t.Fatal(err)
	}
	for name, err := range map[string]error{
		"nothing":        l.Decode(nil, make([]byte, 256), 8, 8),
		"no JPEG":        l.Decode([]byte("not a picture"), make([]byte, 256), 8, 8),
		"other size":     l.Decode(made, make([]byte, 4*9*8), 9, 8),
		"cut off":        l.Decode(made[:len(made)-5], make([]byte, 256), 8, 8),
		"size too large": l.Decode(made, make([]byte, 256), 8, 1<<20),
	} {
		if !errors.Is(err, ErrNotTaken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := l.Decode(made, make([]byte, 255), 8, 8); err == nil {
		t.Error("decoded into too little memory")
	}
	if _, err := l.DecodePlanes(made[:40], 8, 8); !errors.Is(err, ErrNotTaken) {
		t.Errorf("planes of a file cut off: %v", err)
	}
	for _, bad := range [][3]int{{0, 8, 90}, {8, 0, 90}, {8, 8, 0}, {8, 8, 101}, {9, 8, 90}, {1 << 16, 1, 90}} {
		if _, err := l.Encode(nil, pixels(8, 8), bad[0], bad[1], bad[2], Full); err == nil {
			t.Errorf("%v was encoded", bad)
		}
	}
}

func FuzzDecode(f *testing.F) {
	l := library(f)
	for _, colour := range []Colour{Full, Half, Grey} {
		made, err := l.Encode(nil, pixels(19, 9), 19, 9, 70, colour)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(made)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		c, err := jpeg.DecodeConfig(bytes.NewReader(content))
		if err != nil || c.Width*c.Height > 1<<18 {
			return
		}
		back := make([]byte, 4*c.Width*c.Height)
		whole := l.Decode(content, back, c.Width, c.Height)
		if whole != nil && !errors.Is(whole, ErrNotTaken) {
			t.Fatal(whole)
		}
		if _, err := l.DecodePlanes(content, c.Width, c.Height); (err == nil) != (whole == nil) {
			t.Fatalf("planes: %v, pixels: %v", err, whole)
		}
	})
}
