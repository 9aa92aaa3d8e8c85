package billing

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPrice(t *testing.T) {
	t.Parallel()
	p, err := DefaultPrices()
	if err != nil {
		t.Fatal(err)
	}
	image := func(tool string, w, h int) Work { return Work{Tool: tool, Width: w, Height: h} }
	video := func(tool string, w, h int, frames int64) Work {
		return Work{Tool: tool, Video: true, Width: w, Height: h, Frames: frames}
	}
	for _, c := range []struct {
		name string
		work Work
		want string
	}{
		{"the document's upscale", image("upscale", 4000, 3000), "1.0"},
		{"one pixel", image("upscale", 1, 1), "1.0"},
		{"24 megapixels to the pixel", image("upscale", 6000, 4000), "1.0"},
		{"24.000001 megapixels", image("upscale", 24_000_001, 1), "2.0"},
		{"48 megapixels", image("upscale", 8000, 6000), "2.0"},
		{"200 megapixels", image("upscale", 20_000, 10_000), "9.0"},
		{"a heavier tool", image("restore", 4000, 3000), "2.0"},
		{"an image of unknown size", image("restore", 0, 0), "2.0"},
		{"an image of unknown height", image("restore", 9000, 0), "2.0"},
		{"a negative size is unknown", image("upscale", -9000, -9000), "1.0"},
		{"sizes whose product passes 2^63", image("upscale", 1<<40, 1<<40), "50371909150609.549"},
		{"1080p", video("video_upscale", 1920, 1080, 1000), "2.0"},
		{"1080p upright", video("video_upscale", 1080, 1920, 1000), "2.0"},
		{"a row more", video("video_upscale", 1920, 1081, 1000), "5.0"},
		{"a column more, upright", video("video_upscale", 1081, 1920, 1000), "5.0"},
		{"2160p", video("video_upscale", 3840, 2160, 1000), "5.0"},
		{"wide and low", video("video_upscale", 4096, 400, 1000), "2.0"},
		{"above the last tier", video("video_upscale", 9000, 9000, 1000), "5.0"},
		{"one frame", video("video_upscale", 640, 480, 1), "0.002"},
		{"half a thousandth up", video("video_face_enhance", 640, 480, 1), "0.003"},
		{"7.5 thousandths up", video("video_face_enhance", 3840, 2160, 1), "0.008"},
		{"ten hours at 60", video("video_face_enhance", 3840, 2160, 2_160_000), "16200.0"},
		{"unknown frames", video("video_upscale", 640, 480, 0), "0"},
		{"unknown size", video("video_upscale", 0, 0, 100), "0"},
	} {
		want, err := ParseCredits(c.want)
		if c.name == "sizes whose product passes 2^63" {
			want, err = maxAmount, nil // the most any work costs
		}
		if got := p.Price(c.work); err != nil || got != want {
			t.Errorf("%s: %v costs %v, want %v", c.name, c.work, got, want)
		}
	}
}

func TestPriceRoundsUp(t *testing.T) {
	t.Parallel()
	p := &Prices{ImageBlock: 0.1, Tiers: []Tier{{1080, 0.0011}}, Weights: map[string]float64{"a": 0.1, "b": 1. / 3}}
	for _, c := range []struct {
		work Work
		want Millicredits
	}{
		{Work{Tool: "a", Width: 1000, Height: 100}, 100},   // 0.1 MP
		{Work{Tool: "a", Width: 1000, Height: 300}, 300},   // 0.3 / 0.1 is 2.9999999999999996
		{Work{Tool: "a", Width: 1000, Height: 1100}, 1100}, // 1.1 / 0.1 is 11.000000000000002
		{Work{Tool: "a", Width: 1_100_001, Height: 1}, 1200},
		{Work{Tool: "b", Width: 100, Height: 100}, 334},
		{Work{Tool: "a", Video: true, Width: 100, Height: 100, Frames: 1}, 1},
		{Work{Tool: "a", Video: true, Width: 100, Height: 100, Frames: 100}, 11},
		{Work{Tool: "a", Video: true, Width: 100, Height: 100, Frames: 101}, 12},
	} {
		if got := p.Price(c.work); got != c.want {
			t.Errorf("%+v costs %v, want %v", c.work, got, c.want)
		}
	}
}

const goodTable = `image_block_megapixels: 24
video_tiers: [{short_side: 2160, credits_per_frame: 0.005}, {short_side: 1080, credits_per_frame: 0.002}]
weights: {upscale: 1}
`

func TestReadPrices(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, from, to string
	}{
		{"empty", goodTable, ""},
		{"no YAML", "weights", "\t}{"},
		{"a list", goodTable, "[1, 2]"},
		{"no block", "image_block_megapixels: 24\n", ""},
		{"block 0", "24", "0"},
		{"negative block", "24", "-24"},
		{"endless block", "24", ".inf"},
		{"block below a pixel", "24", "1e-9"},
		{"block that is no number", "24", ".nan"},
		{"block in words", "24", "many"},
		{"no tiers", "[{short_side: 2160, credits_per_frame: 0.005}, {short_side: 1080, credits_per_frame: 0.002}]", "[]"},
		{"a tier without size", "short_side: 2160, ", ""},
		{"a tier of negative size", "2160", "-2160"},
		{"two tiers of one size", "2160", "1080"},
		{"a negative rate", "0.005", "-0.005"},
		{"a rate that is no number", "0.005", ".nan"},
		{"an endless rate", "0.005", ".inf"},
		{"no weights", "{upscale: 1}", "{}"},
		{"a negative weight", "upscale: 1", "upscale: -1"},
		{"a weight too large", "upscale: 1", "upscale: 1000001"},
		{"a misspelt key", "credits_per_frame: 0.005", "credit_per_frame: 0.005"},
		{"an unknown section", "weights:", "extra: 1\nweights:"},
	} {
		if p, err := parsePrices([]byte(strings.Replace(goodTable, c.from, c.to, 1))); err == nil || !strings.HasPrefix(err.Error(), "price table: ") {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
	}
	path := filepath.Join(t.TempDir(), "pricing.yaml")
	if err := os.WriteFile(path, []byte(goodTable), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := ReadPrices(path)
	if err != nil || p.Price(Work{Tool: "upscale", Video: true, Width: 100, Height: 100, Frames: 1000}) != 2000 {
		t.Errorf("tiers in the wrong order: %+v, %v", p, err)
	}
	if _, err := ReadPrices(path + ".none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if p, err := ReadPrices(""); err != nil || p.ImageBlock != 24 {
		t.Errorf("the default: %+v, %v", p, err)
	}
	if err := p.Covers([]string{"upscale"}); err != nil {
		t.Error(err)
	}
	if err := p.Covers([]string{"sharpen", "upscale", "custom"}); err == nil || !strings.Contains(err.Error(), "[sharpen custom]") {
		t.Errorf("missing tools: %v", err)
	}
}

func FuzzPrices(f *testing.F) {
	f.Add([]byte(goodTable), 4000, 3000, int64(100))
	f.Add(defaultPrices, 1<<30, 1<<30, int64(1)<<40)
	f.Add([]byte("image_block_megapixels: 1e-6\nvideo_tiers: [{short_side: 1, credits_per_frame: 1e6}]\nweights: {upscale: 1e6}"), 1<<62, 1<<62, int64(1)<<62)
	f.Fuzz(func(t *testing.T, table []byte, width, height int, frames int64) {
		p, err := parsePrices(table)
		if err != nil {
			return
		}
		for tool := range p.Weights {
			for _, video := range []bool{false, true} {
				if m := p.Price(Work{Tool: tool, Video: video, Width: width, Height: height, Frames: frames}); m < 0 || m > maxAmount {
					t.Fatalf("%s costs %d", tool, m)
				}
			}
		}
	})
}
