package video

import "fmt"

// coding is the codec and the quality that a client asked for. Its zero value asks for nothing: the source chooses the codec and
// the operator the quality, as video_upscale has it.
type coding struct {
	// codec is "h264" or "h265", or "" for whichever suits the source: see recipe.hevc.
	codec string
	// coarser is added to the operator's CRF: 0 for what nobody tells from the source, more for smaller files.
	coarser int
}

// The values of `codec` and `quality` in a config, whose struct has them so, because a struct's tags are constants:
//
//	Quality string `json:"quality" doc:"..." enum:"high,medium,low"`
//	Codec   string `json:"codec" doc:"..." enum:"h264,h265"`
const (
	codecH264 = "h264"
	codecH265 = "h265"

	qualityHigh   = "high"
	qualityMedium = "medium"
	qualityLow    = "low"
)

// newCoding reads checked values of a config. The steps of quality are four and nine in CRF for both encoders: measured on a face clip of
// 640x360, medium takes 0.66 and low 0.40 of the bytes of high.
func newCoding(codec, quality string) coding {
	c := coding{codec: codec}
	switch quality {
	case qualityMedium:
		c.coarser = 4
	case qualityLow:
		c.coarser = 9
	}
	return c
}

// crf is the constant rate factor for both encoders, from the operator's for high quality; 51 is the coarsest they take.
func (c coding) crf(o Options) int { return min(o.CRF+c.coarser, 51) }

// refused is the warning for a codec that was asked for and cannot be had, or "".
func (r recipe) refused() string {
	if r.coding.codec == codecH265 && !r.hevc() {
		return fmt.Sprintf("H.265 is made for sides of at least %d pixels; the video was encoded as H.264.", hevcSide)
	}
	return ""
}
