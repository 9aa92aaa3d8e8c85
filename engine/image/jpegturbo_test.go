package image

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"enlarger/engine"
	"enlarger/engine/turbojpeg"
)

var openTurbo = sync.OnceValues(turbojpeg.Open)

func turbo(t testing.TB) *turbojpeg.Library {
	t.Helper()
	library, err := openTurbo()
	if err != nil {
		t.Fatalf("%v; `make deps` installs it", err)
	}
	return library
}

// progressiveJPEG is 41 x 29 pixels of 4:2:0 in ten scans, made by ImageMagick from a drawn gradient.
const progressiveJPEG = "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKC" +
	"goKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCj/wgARCAAdACkDASIAAhEBAxEB/8QAGQABAQADAQAAAAAAAAAAAAAABAABAgMG/8QAFwEAAwEAAAAAAAAAAAAAAAAA" +
	"AAIGAf/aAAwDAQACEAMQAAAB8xk2Sz7xtXRcazT5LWkknXhMqI8H/8QAFhABAQEAAAAAAAAAAAAAAAAAEQAQ/9oACAEBAAEFAmZmZmZmZmZmZmZxm//EABgRAQEBAQEAAAAAAAAAAAAAAAEABBEU/9" +
	"oACAEDAQE/ATZ2d/L3RtSdi3sb/8QAGxEAAgIDAQAAAAAAAAAAAAAAAAEEEQIFFBX/2gAIAQIBAT8BcGjHXWeeOAmKEkcSP//EABQQAQAAAAAAAAAAAAAAAAAAAED/2gAIAQEABj8CR//EABgQAAMB" +
	"AQAAAAAAAAAAAAAAAAEQIBEw/9oACAEBAAE/IeH8ViPNyNZ//9oADAMBAAIAAwAAABCH3U713//EABoRAAMAAwEAAAAAAAAAAAAAAAABERAhMVH/2gAIAQMBAT8Q9RZKKl3CONiQf//EABkRAAMAAw" +
	"AAAAAAAAAAAAAAAAABERBBUf/aAAgBAgEBPxDiIbBzrDLYhuP/xAAaEAACAwEBAAAAAAAAAAAAAAAAEQFhcRBB/9oACAEBAAE/ENca50aIsRcUbLTRFiLjfeYvwwww4wx//9k="

// jpegKinds are JPEGs as they come, and whether libjpeg-turbo takes them on.
func jpegKinds(t testing.TB) (all map[string][]byte, taken map[string]bool) {
	t.Helper()
	progressive, err := base64.StdEncoding.DecodeString(progressiveJPEG)
	if err != nil {
		t.Fatal(err)
	}
	grey := image.NewGray(image.Rect(0, 0, 50, 30))
	for i := range grey.Pix {
		grey.Pix[i] = uint8(i)
	}
	all = map[string][]byte{
		"progressive": progressive, "turned": withOrientation(jpegBytes(t, scene(70, 33), 85), 6), "turned progressive": withOrientation(progressive, 7),
		"1x1": jpegBytes(t, scene(1, 1), 90), "1x300": jpegBytes(t, scene(1, 300), 90), "300x1": jpegBytes(t, scene(300, 1), 90), "2x3": jpegBytes(t, scene(2, 3), 90),
		"grey 4:0:0": jpegBytes(t, grey, 90), "17x16": jpegBytes(t, scene(17, 16), 60), "noise": jpegBytes(t, noise(64, 48, 5), 75),
	}
	taken = map[string]bool{}
	for name := range all {
		taken[name] = true
	}
	for _, format := range []string{"yuvj444p", "yuvj422p", "yuvj420p", "yuvj440p", "yuvj411p", "gray"} {
		path := filepath.Join(t.TempDir(), "source.jpg")
		makeWithFFmpeg(t, scene(83, 61), path, "-pix_fmt", format, "-q:v", "2")
		if all[format], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		taken[format] = true
	}
	for _, name := range []string{"1x1", "1x300", "2x3"} { // narrower than turboWidthLeast
		taken[name] = false
	}
	all["cmyk"] = adobeCMYK(t, scene(33, 17))
	all["many scans"] = append(bytes.Clone(all["17x16"]), bytes.Repeat([]byte{0xFF, 0xDA}, turboScansMost+1)...)
	all["cut off"] = all["noise"][:len(all["noise"])*3/4]
	return all, taken
}

// TestTurboAgrees holds the pictures of libjpeg-turbo against those of the standard library's decoder, in memory and in a file.
func TestTurboAgrees(t *testing.T) {
	t.Parallel()
	all, taken := jpegKinds(t)
	for name, content := range all {
		for _, inFile := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s in file %t", name, inFile), func(t *testing.T) {
				t.Parallel()
				path := writeFile(t, content)
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				h, err := readHeader(f, int64(len(content)))
				if err != nil {
					t.Fatal(err)
				}
				options := Options{Turbo: turbo(t)}.withDefaults()
				d := &decoding{options: options, file: f, size: int64(len(content)), scratch: t.TempDir(), picture: &picture{header: h}}
				done, err := d.byTurbo(t.Context(), f, inFile)
				if err != nil || done != taken[name] {
					t.Fatalf("taken on: %t, %v", done, err)
				}
				if !done {
					if d.picture.raster != nil {
						t.Error("a raster is left")
					}
					return
				}
				defer d.picture.Close()
				if (d.picture.file != nil) != inFile {
					t.Errorf("in a file: %t", d.picture.file != nil)
				}
				got := make([]byte, d.picture.bytes())
				if err := d.picture.read(0, 0, got); err != nil {
					t.Fatal(err)
				}
				h.orientation = 1
				d2 := &decoding{options: Options{}.withDefaults(), file: f, size: d.size, picture: &picture{header: h}}
				if err := d2.internal(t.Context(), false); err != nil {
					t.Fatal(err)
				}
				for i, v := range d2.picture.pix {
					const most = 3 // two transforms that round, and the colours made of them
					if e := int(v) - int(got[i]); e < -most || e > most {
						t.Fatalf("byte %d is %d, by the standard library %d", i, got[i], v)
					}
				}
				if d.picture.grey != d2.picture.grey || d.picture.alpha != d2.picture.alpha {
					t.Errorf("grey %t alpha %t, by the standard library %t %t", d.picture.grey, d.picture.alpha, d2.picture.grey, d2.picture.alpha)
				}
			})
		}
	}
}

// TestTurboDamage cuts and spoils files everywhere; what becomes of them is the same with and without the library.
func TestTurboDamage(t *testing.T) {
	t.Parallel()
	with := Options{Turbo: turbo(t)}.withDefaults()
	without := Options{}.withDefaults()
	code := func(o Options, path string) string {
		p, err := o.open(t.Context(), path, filepath.Dir(path))
		if err == nil {
			p.Close()
			return "sound"
		}
		if f, ok := engine.AsFailure(err); ok {
			return fmt.Sprint(f.Code, f.Message)
		}
		return err.Error()
	}
	all, _ := jpegKinds(t)
	for _, name := range []string{"progressive", "noise", "yuvj422p", "gray", "cmyk"} {
		content := all[name]
		for n := 0; n < len(content); n += max(len(content)/37, 1) {
			path := writeFile(t, content[:n])
			if a, b := code(with, path), code(without, path); a != b {
				t.Errorf("%s cut at %d: %s, without the library %s", name, n, a, b)
			}
		}
	}
	random := rand.New(rand.NewPCG(3, 4))
	refused := 0
	for range 300 {
		content := bytes.Clone(all["noise"])
		content[20+random.IntN(len(content)-20)] ^= byte(1 << random.IntN(8))
		if got := code(with, writeFile(t, content)); got != "sound" {
			if got != code(without, writeFile(t, content)) {
				t.Errorf("%s", got)
			}
			refused++
		}
	}
	if refused == 0 {
		t.Error("no spoilt file was refused")
	}
}

// TestTurboWrites compares what is written with the library and without.
func TestTurboWrites(t *testing.T) {
	t.Parallel()
	for _, size := range []image.Point{{1, 1}, {1, 40}, {9, 7}, {33, 50}, {200, 64}} {
		for _, quality := range []int{1, 60, 92, 100} {
			for _, grey := range []bool{false, true} {
				made := func(library *turbojpeg.Library, libraryQuality int) (int, image.Image) {
					img := scene(size.X, size.Y)
					if grey {
						for i := range len(img.Pix) / 4 {
							img.Pix[4*i+1], img.Pix[4*i+2] = img.Pix[4*i], img.Pix[4*i]
						}
					}
					var b bytes.Buffer
					j := newJPEGWriter(&b, size.X, size.Y, grey, quality, 0)
					j.turbo = library
					if libraryQuality > 0 {
						j.quality = libraryQuality
					}
					const rows = 48
					for y := 0; y < size.Y; y += rows {
						if err := j.write(t.Context(), img.Pix[y*4*size.X:min(y+rows, size.Y)*4*size.X]); err != nil {
							t.Fatal(err)
						}
					}
					if err := j.close(); err != nil {
						t.Fatal(err)
					}
					return b.Len(), decodeFile(t, writeFile(t, b.Bytes()))
				}
				_, plain := made(nil, 0)
				_, fast := made(turbo(t), 0)
				// Both round, each in its own way; neither may be further from the source.
				source := scene(size.X, size.Y)
				if grey {
					for i := range len(source.Pix) / 4 {
						source.Pix[4*i+1], source.Pix[4*i+2] = source.Pix[4*i], source.Pix[4*i]
					}
				}
				ours, _ := apart(t, source, plain)
				its, _ := apart(t, source, fast)
				if its > 1.1*ours+0.5 {
					t.Errorf("%v at %d, grey %t: %.2f codes from the source, by our own coder %.2f", size, quality, grey, its, ours)
				}
				// A library that uses other tables than the header says is not trusted.
				if _, other := made(turbo(t), quality%100+1); quality > 1 {
					if _, most := apart(t, plain, other); most > 0 {
						t.Errorf("%v at %d: written with other tables than announced", size, quality)
					}
				}
			}
		}
	}
}

// TestFixedResizeIsExact holds the resizer in whole numbers against the one in floating point.
func TestFixedResizeIsExact(t *testing.T) {
	t.Parallel()
	harsh := image.NewNRGBA(image.Rect(0, 0, 130, 90))
	random := rand.New(rand.NewPCG(1, 2))
	for i := range harsh.Pix {
		harsh.Pix[i] = uint8(255 * random.IntN(2))
		if i%4 == 3 {
			harsh.Pix[i] = 255
		}
	}
	for _, img := range []*image.NRGBA{scene(130, 90), harsh} {
		for _, size := range []image.Point{{65, 45}, {130, 90}, {131, 97}, {300, 200}, {33, 80}, {9, 6}, {1, 1}, {130, 7}} {
			src := rasterFrom(img)
			to, err := newRaster("", size.X, size.Y, false, false)
			if err != nil {
				t.Fatal(err)
			}
			z := newFixedResizer(src, size.X, size.Y)
			if z == nil {
				if size.X > 130/fixedShrinkMost && size.Y > 90/fixedShrinkMost {
					t.Errorf("%v is not taken on", size)
				}
				continue
			}
			if err := z.into(t.Context(), to); err != nil {
				t.Fatal(err)
			}
			err = newResizer(src, size.X, size.Y).rows(t.Context(), func(y, n int, planes [4][]float32) error {
				for i := range n * size.X {
					for c := range 3 {
						want, got := code8(planes[c][i]), to.pix[4*(y*size.X+i)+c]
						if d := int(want) - int(got); d < -1 || d > 1 {
							t.Fatalf("%v: pixel %d of row %d is %d, want %d", size, i, y, got, want)
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}
