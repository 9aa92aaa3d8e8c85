package video

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// pacing is how the output's frame rate comes about.
type pacing string

const (
	// paceKept passes every frame on with its own time, so that a variable rate stays one.
	paceKept pacing = "source"
	// paceEven drops frames, or repeats one here and there, for an equal step at no more than the source's rate.
	paceEven pacing = "even"
	// paceMotion makes frames in between by following the motion; paceBlend by mixing neighbours.
	paceMotion pacing = "motion_compensated"
	paceBlend  pacing = "blended"
)

// interpolateSide is the least side in pixels that ffmpeg's minterpolate takes.
const interpolateSide = 32

// choosePacing compares the rate asked for (0: none) with the source's.
func choosePacing(v *ffmpeg.Video, fps float64) pacing {
	// A tenth of a percent tells 29.97 from 30 and takes 29.97 for 30000/1001.
	const same = 0.0005
	switch {
	case fps == 0:
		return paceKept
	case math.Abs(fps/v.FPS-1) < same:
		if v.VariableRate {
			return paceEven
		}
		return paceKept
	case fps < v.FPS:
		return paceEven
	case v.BitDepth > 8 || min(v.Width, v.Height) < interpolateSide:
		// minterpolate works in 8 bits only, which would band a 10-bit picture.
		return paceBlend
	}
	return paceMotion
}

// rate writes a frame rate as ffmpeg takes it, with the broadcast rates exact.
func rate(fps float64) string {
	for _, whole := range []int{24, 30, 48, 60, 120} {
		if math.Abs(fps-float64(whole)*1000/1001) < 0.005 {
			return fmt.Sprintf("%d/1001", whole*1000)
		}
	}
	return fmt.Sprintf("%d/1000", int(math.Round(fps*1000)))
}

// colours are the tags of an output.
type colours struct{ primaries, transfer, matrix string }

// outputColours keeps the source's tags. An untagged source gets what players assume of a picture of its size, because they
// would assume otherwise of the larger output: BT.601 for standard definition, BT.709 above. RGB becomes BT.709.
func outputColours(v *ffmpeg.Video) colours {
	c := colours{
		primaries: allowed(v.Primaries, primariesNames), transfer: allowed(v.Transfer, transferNames), matrix: allowed(v.Matrix, matrixNames),
	}
	if !isYUV(v.PixelFormat) || c.matrix == "" {
		assumed := "bt709"
		if isYUV(v.PixelFormat) && max(v.Width, v.Height) < 1280 && min(v.Width, v.Height) < 720 {
			assumed = "smpte170m"
		}
		c.matrix = assumed
		if c.primaries == "" && c.transfer == "" {
			c.primaries, c.transfer = assumed, assumed
		}
	}
	return c
}

// The tags that setparams and the encoders know by these names.
var (
	primariesNames = []string{"bt709", "bt470m", "bt470bg", "smpte170m", "smpte240m", "film", "bt2020", "smpte428", "smpte431", "smpte432"}
	transferNames  = []string{
		"bt709", "bt470m", "bt470bg", "smpte170m", "smpte240m", "linear", "iec61966-2-4", "bt1361e", "iec61966-2-1",
		"bt2020-10", "bt2020-12", "smpte2084", "smpte428", "arib-std-b67",
	}
	matrixNames = []string{"bt709", "fcc", "bt470bg", "smpte170m", "smpte240m", "ycgco", "bt2020nc", "bt2020c"}
)

func allowed(name string, names []string) string {
	if slices.Contains(names, name) {
		return name
	}
	return ""
}

// or is the name, or ffmpeg's word for none.
func or(name string) string {
	if name == "" {
		return "unknown"
	}
	return name
}

// isYUV says that a pixel format is luma and chroma, planar or packed, and not RGB, grey or a palette.
func isYUV(format string) bool {
	for _, prefix := range []string{"yuv", "nv1", "nv2", "p010", "p012", "p016", "p2", "p4", "yuyv", "uyvy", "yvyu", "y21"} {
		if strings.HasPrefix(format, prefix) {
			return true
		}
	}
	return false
}

// deep says that the output has 10 bits: sources of more than 8, and HDR, which needs them.
func deep(v *ffmpeg.Video) bool { return v.BitDepth > 8 || v.HDR() }

// graph is the chain of filters from the decoded frame, already turned upright by ffmpeg, to the encoder. Nothing in it is text
// of the client or of the file: numbers and names of our own lists.
func graph(v *ffmpeg.Video, p engine.Plan, pace pacing) string {
	chain := append(prepared(v, p, pace), scaled(v, p.Width, p.Height), "format="+outputFormat(v), tags(v))
	return strings.Join(chain, ",")
}

// outputFormat is the pixel format of the encoder.
func outputFormat(v *ffmpeg.Video) string {
	if deep(v) {
		return "yuv420p10le"
	}
	return "yuv420p"
}

// workFormat is what a source that is not luma and chroma is turned into.
func workFormat(v *ffmpeg.Video) string {
	if deep(v) {
		return "yuv444p10le"
	}
	return "yuv444p"
}

func fullRange(v *ffmpeg.Video) bool { return v.Range == "pc" && isYUV(v.PixelFormat) }

// prepared is the chain from the decoded frame to frames of luma and chroma at the output's times, of the source's size.
func prepared(v *ffmpeg.Video, p engine.Plan, pace pacing) []string {
	var chain []string
	add := func(format string, args ...any) { chain = append(chain, fmt.Sprintf(format, args...)) }

	if v.Interlaced {
		add("bwdif=mode=send_frame:parity=auto:deint=interlaced")
	}
	if !isYUV(v.PixelFormat) {
		add("scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int+full_chroma_inp,format=%s", workFormat(v))
	}
	// The scalers must resample and nothing else. They convert between what they know of, so they are told nothing.
	chain = append(chain, untagged)
	if pace != paceKept {
		// The filters below end a few frames early; the last frame is held for them, and the surplus cut.
		add("tpad=stop_mode=clone:stop_duration=%.6f", v.LastHold+4/v.FPS+2/p.FPS)
		switch pace {
		case paceEven:
			add("fps=fps=%s:round=near", rate(p.FPS))
		case paceBlend:
			add("framerate=fps=%s", rate(p.FPS))
		case paceMotion:
			add("minterpolate=fps=%s:mi_mode=mci:mc_mode=obmc:me_mode=bilat", rate(p.FPS))
		}
		add("trim=end_frame=%d", p.Frames)
	}
	return chain
}

const untagged = "setparams=color_primaries=unknown:color_trc=unknown:colorspace=unknown"

// scaled enlarges, by Lanczos, to the size of the output.
func scaled(v *ffmpeg.Video, width, height int) string {
	if isYUV(v.PixelFormat) && v.Width%2 == 0 && v.Height%2 == 0 {
		return fmt.Sprintf("zscale=w=%d:h=%d:filter=lanczos:dither=none", width, height)
	}
	// zscale refuses a size that the chroma does not divide.
	span := "tv"
	if fullRange(v) {
		span = "pc"
	}
	return fmt.Sprintf("scale=w=%d:h=%d:flags=lanczos+accurate_rnd+full_chroma_int:in_range=%s:out_range=%s", width, height, span, span)
}

// tags names the colours and the range of the output.
func tags(v *ffmpeg.Video) string {
	c := outputColours(v)
	span := "limited"
	if fullRange(v) {
		span = "full"
	}
	return fmt.Sprintf("setparams=range=%s:color_primaries=%s:color_trc=%s:colorspace=%s", span, or(c.primaries), or(c.transfer), or(c.matrix))
}
