package billing

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sort"

	"go.yaml.in/yaml/v3"
)

// Work is what a job is charged for.
type Work struct {
	Tool  string
	Video bool
	// Width and Height of the output in pixels; 0 when unknown.
	Width, Height int
	// Frames of a video output; 0 when unknown.
	Frames int64
}

// Prices is the price table.
//
// An image costs weight x ceil(output megapixels / ImageBlock) credits. A video costs weight x output frames x the rate of the first tier
// that its short side fits in.
type Prices struct {
	// ImageBlock is the number of output megapixels that one weight of credits buys.
	ImageBlock float64 `yaml:"image_block_megapixels" json:"image_block_megapixels"`
	// Tiers are the credits for one video frame by the output's short side, smallest first.
	Tiers []Tier `yaml:"video_tiers" json:"video_tiers"`
	// Weights are the tools' weights. A tool that is missing cannot be priced, so the server refuses to start.
	Weights map[string]float64 `yaml:"weights" json:"weights"`
}

// Tier is a rate for video frames up to a size.
type Tier struct {
	// ShortSide is the largest short side of the tier in pixels.
	ShortSide int `yaml:"short_side" json:"short_side"`
	// Frame is the price of one output frame in credits.
	Frame float64 `yaml:"credits_per_frame" json:"credits_per_frame"`
}

//go:embed pricing.yaml
var defaultPrices []byte

// DefaultPrices is the table that ships with enlarger.
func DefaultPrices() (*Prices, error) { return parsePrices(defaultPrices) }

// ReadPrices reads an operator's table; an empty path means the default.
func ReadPrices(path string) (*Prices, error) {
	if path == "" {
		return DefaultPrices()
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the price table: %w", err)
	}
	return parsePrices(text)
}

func parsePrices(text []byte) (*Prices, error) {
	p := &Prices{}
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true) // a misspelt key must not become a free tool
	if err := decoder.Decode(p); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("price table: %w", err)
	}
	if p.ImageBlock == 0 || len(p.Tiers) == 0 || len(p.Weights) == 0 {
		return nil, fmt.Errorf("price table: image_block_megapixels, video_tiers and weights are all required")
	}
	if !(p.ImageBlock >= minImageBlock && p.ImageBlock <= maxRate) {
		return nil, fmt.Errorf("price table: image_block_megapixels must be %v to 1,000,000", minImageBlock)
	}
	for _, t := range p.Tiers {
		if t.ShortSide <= 0 || !validRate(t.Frame) {
			return nil, fmt.Errorf("price table: tier %d has a bad short_side or credits_per_frame", t.ShortSide)
		}
	}
	for tool, weight := range p.Weights {
		if !validRate(weight) {
			return nil, fmt.Errorf("price table: weight of %s must be 0 to 1,000,000", tool)
		}
	}
	sort.Slice(p.Tiers, func(i, j int) bool { return p.Tiers[i].ShortSide < p.Tiers[j].ShortSide })
	for i, t := range p.Tiers[1:] {
		if t.ShortSide == p.Tiers[i].ShortSide {
			return nil, fmt.Errorf("price table: two tiers have short_side %d", t.ShortSide)
		}
	}
	return p, nil
}

const (
	maxRate = 1e6
	// minImageBlock is a pixel.
	minImageBlock = 1e-6
)

func validRate(rate float64) bool { return rate >= 0 && rate <= maxRate }

// Covers returns an error that names the tools that the table has no weight for.
func (p *Prices) Covers(tools []string) error {
	var missing []string
	for _, tool := range tools {
		if _, ok := p.Weights[tool]; !ok {
			missing = append(missing, tool)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("price table: no weight for %v", missing)
	}
	return nil
}

// Price is what the work costs, rounded up to a millicredit. For an image of unknown size it is the least an image
// can cost; for a video of unknown size or length it is 0.
func (p *Prices) Price(w Work) Millicredits {
	weight := p.Weights[w.Tool]
	known := w.Width > 0 && w.Height > 0
	if !w.Video {
		blocks := 1.0
		if known {
			megapixels := float64(w.Width) * float64(w.Height) / 1e6
			// The grain keeps 1.1 megapixels at 11 blocks of 0.1; it is far below one pixel.
			blocks = math.Ceil(megapixels / p.ImageBlock * (1 - 1e-12))
		}
		return ceilMillicredits(weight * blocks)
	}
	if !known || w.Frames <= 0 {
		return 0
	}
	return ceilMillicredits(weight * float64(w.Frames) * p.frame(min(w.Width, w.Height)))
}

// frame is the rate of a short side; above the last tier the last tier's rate holds.
func (p *Prices) frame(shortSide int) float64 {
	for _, t := range p.Tiers {
		if shortSide <= t.ShortSide {
			return t.Frame
		}
	}
	return p.Tiers[len(p.Tiers)-1].Frame
}
