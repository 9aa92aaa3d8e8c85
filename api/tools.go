package api

import (
	"context"
	"encoding/json"
	"net/http"

	"enlarger/billing"
	"enlarger/engine"
)

// toolList is what this server can do and what it costs.
type toolList struct {
	Tools   []toolView  `json:"tools" nullable:"false"`
	Pricing pricingView `json:"pricing"`
	Limits  limitsView  `json:"limits"`
}

// toolView is one tool.
type toolView struct {
	Name        string            `json:"name" doc:"What to send as tool."`
	Media       engine.Media      `json:"media" enum:"image,video"`
	Description string            `json:"description"`
	Config      map[string]any    `json:"config" doc:"The JSON Schema (2020-12) of config."`
	Examples    []json.RawMessage `json:"examples" nullable:"false" doc:"Configs that are valid."`
	// OutputFormats is empty for videos.
	OutputFormats []string `json:"output_formats" nullable:"false" doc:"What output_format takes; empty for videos."`
	Weight        float64  `json:"weight" doc:"The tool's weight in the price rule."`
}

// pricingView is the price rule.
type pricingView struct {
	Image                string         `json:"image" doc:"How an image is priced, in words."`
	Video                string         `json:"video" doc:"How a video is priced, in words."`
	ImageBlockMegapixels float64        `json:"image_block_megapixels" doc:"Output megapixels that one weight of credits buys."`
	VideoTiers           []billing.Tier `json:"video_tiers" nullable:"false" doc:"Credits for one output frame by the output's short side."`
}

// limitsView is what an output and a source may have.
type limitsView struct {
	ImageUploadBytes int64 `json:"image_upload_bytes"`
	VideoUploadBytes int64 `json:"video_upload_bytes"`
	ImagePixels      int64 `json:"image_pixels" doc:"The most pixels of an image output."`
	VideoLongSide    int   `json:"video_long_side" doc:"Pixels of a video output."`
	VideoShortSide   int   `json:"video_short_side" doc:"Pixels of a video output."`
}

// getTools is GET /tools.
func (s *server) getTools(context.Context, *exchange, *http.Request) (*answer, error) {
	limits := s.cfg.Catalog.Limits()
	list := toolList{
		Tools: []toolView{},
		Pricing: pricingView{
			Image:                "weight x ceil(output megapixels / image_block_megapixels)",
			Video:                "weight x output frames x credits_per_frame of the first tier whose short_side the output's short side fits in",
			ImageBlockMegapixels: s.cfg.Prices.ImageBlock, VideoTiers: s.cfg.Prices.Tiers,
		},
		Limits: limitsView{
			ImageUploadBytes: s.cfg.Limits.ImageUploadBytes, VideoUploadBytes: s.cfg.Limits.VideoUploadBytes,
			ImagePixels: limits.ImagePixels, VideoLongSide: limits.VideoLong, VideoShortSide: limits.VideoShort,
		},
	}
	for _, t := range s.cfg.Catalog.Tools() {
		v := toolView{
			Name: t.Name, Media: t.Media, Description: t.Doc, Config: t.Schema(), Examples: t.Examples, OutputFormats: []string{},
			Weight: s.cfg.Prices.Weights[t.Name],
		}
		if v.Examples == nil {
			v.Examples = []json.RawMessage{}
		}
		if t.Media == engine.Image {
			v.OutputFormats = engine.Formats
		}
		list.Tools = append(list.Tools, v)
	}
	return &answer{status: http.StatusOK, body: list}, nil
}
