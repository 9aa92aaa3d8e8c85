package video

import (
	"slices"
	"strings"
	"testing"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// TestCoding follows codec and quality to the encoder's arguments.
func TestCoding(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		codec, quality string
		side, bits     int
		want           string
		warning        bool
	}{
		{"", "", 64, 8, "libx264 high 17", false},
		{"", "", 64, 10, "libx265 main10 17", false},
		{"", "", 62, 10, "libx264 high10 17", false},
		{"h264", "high", 64, 8, "libx264 high 17", false},
		{"h264", "medium", 64, 8, "libx264 high 21", false},
		{"h264", "low", 64, 10, "libx264 high10 26", false},
		{"h265", "high", 64, 8, "libx265 main 17", false},
		{"h265", "medium", 64, 10, "libx265 main10 21", false},
		{"h265", "low", 62, 8, "libx264 high 26", true},
	} {
		r := recipe{
			media:   &ffmpeg.Media{Video: &ffmpeg.Video{Width: c.side, Height: c.side, FPS: 25, PixelFormat: "yuv420p", BitDepth: c.bits}},
			plan:    engine.Plan{Width: c.side, Height: c.side, FPS: 25, Frames: 10},
			options: Options{}.withDefaults(), pace: paceKept, coding: newCoding(c.codec, c.quality),
		}
		options, warnings := r.output()
		value := func(name string) string {
			return options[slices.IndexFunc(options, func(o ffmpeg.Option) bool { return o.Name == name })].Value
		}
		got := strings.Join([]string{value("c:v"), value("profile:v"), value("crf:v")}, " ")
		if got != c.want || (len(warnings) > 0) != c.warning {
			t.Errorf("%+v: %s, warnings %q", c, got, warnings)
		}
	}
	if got := newCoding("h264", "low").crf(Options{CRF: 48}); got != 51 {
		t.Errorf("crf %d is over the encoders' range", got)
	}
}
