package video

import (
	"context"
	"strings"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// frames is the part of a recipe in which Go works on the frames: one ffmpeg decodes, Go changes every frame, a second ffmpeg encodes
// it and takes sound, subtitles and chapters from the source. The three run side by side, and frames keep their times exactly.
type frames struct {
	// begin is called once before a run, or before the parts of one are joined, with the source's absolute path. It may change the recipe,
	// for what it measures, or take its frames away: then one process does all. May be nil.
	begin func(ctx context.Context, input string, r *recipe) error
	// facts are for the job's output.
	facts map[string]any
	// look sees every frame in order, one at a time, before it is worked on, and must not change it. May be nil.
	look func(context.Context, *frame) error
	// ahead is how many frames further than work look has seen, at most; fewer at the end of the clip. 0 to 64.
	ahead int
	// work changes a frame in place.
	work func(context.Context, *frame) error
	// workers is how many frames are worked on at once, in any order; with 1, in theirs.
	workers int
	// enlarged asks work to fill frame.luma, the luma of the output at the plan's size: ffmpeg then enlarges the colour alone. Without it
	// ffmpeg enlarges the whole picture, if the plan's size is another.
	enlarged bool
	// share is how much of frame.luma is taken, more than 0 to 1; the rest is the source's luma, enlarged by Lanczos.
	share float64
}

// frame is one picture of a clip on its way.
type frame struct {
	// index counts from 0. at is its time in seconds from the beginning of the file, as in the output.
	index int64
	at    float64
	// planes are luma and the two planes of chroma, of the source's size: 8 bits, or 10 in a source of more. Chroma may be halved in
	// width, or in both. full says that luma goes from 0 to 255 (1023) and not from 16 to 235 (64 to 940).
	planes [3]plane
	full   bool
	// luma is for work to fill when frames.enlarged asks for it: of the output's size and bits.
	luma plane
	// note carries to work what look has found.
	note any

	// memory is what planes lie in. time is in units of the recipe. done gets the error of work.
	memory []byte
	time   int64
	done   chan error
}

// plane is one component of a picture: rows of samples without gaps, of one byte, or of two with the lower first when deep.
type plane struct {
	pixels        []byte
	width, height int
	deep          bool
}

// sampleBytes is the size of a sample.
func (p *plane) sampleBytes() int {
	if p.deep {
		return 2
	}
	return 1
}

func (p *plane) bytes() int { return p.width * p.height * p.sampleBytes() }

// layout is how raw frames lie in memory.
type layout struct {
	// name is ffmpeg's, fourcc its mark in a container of raw frames.
	name, fourcc string
	// across and down are how many pixels share a sample of chroma.
	across, down  int
	width, height int
	deep          bool
	// grey has luma alone.
	grey bool
}

// frameLayout is that of the frames Go works on: as the source has them, or for a kind of its own the next that loses nothing.
func frameLayout(v *ffmpeg.Video) layout {
	l := layout{width: v.Width, height: v.Height, deep: v.BitDepth > 8 || deep(v) && !isYUV(v.PixelFormat)}
	format := v.PixelFormat
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(format, w) {
				return true
			}
		}
		return false
	}
	switch {
	case !isYUV(format):
		l.name, l.fourcc, l.across, l.down = "yuv444p", "444P", 1, 1
	case has("420", "nv12", "nv21", "p010", "p012", "p016", "410"):
		l.name, l.fourcc, l.across, l.down = "yuv420p", "I420", 2, 2
	case has("422", "411", "yuyv", "uyvy", "yvyu", "y21", "p21", "nv16", "nv20"):
		l.name, l.fourcc, l.across, l.down = "yuv422p", "Y42B", 2, 1
	default:
		l.name, l.fourcc, l.across, l.down = "yuv444p", "444P", 1, 1
	}
	if l.deep {
		// FFmpeg's own marks: Y3, the subsampling as two shifts, the bits.
		l.fourcc = map[string]string{"yuv420p": "Y3\x0b\x0a", "yuv422p": "Y3\x0a\x0a", "yuv444p": "Y3\x00\x0a"}[l.name]
		l.name += "10le"
	}
	return l
}

// lumaLayout is that of the luma Go makes.
func lumaLayout(v *ffmpeg.Video, p engine.Plan) layout {
	l := layout{name: "gray", fourcc: "Y800", width: p.Width, height: p.Height, deep: deep(v), grey: true}
	if l.deep {
		l.name, l.fourcc = "gray10le", "Y1\x00\x0a"
	}
	return l
}

// bytes is the size of a frame.
func (l layout) bytes() int {
	planes, n := l.over(nil), 0
	for i := range planes {
		n += planes[i].bytes()
	}
	return n
}

// over lays planes over memory, which may be nil when only their sizes are asked for.
func (l layout) over(memory []byte) [3]plane {
	var planes [3]plane
	planes[0] = plane{width: l.width, height: l.height, deep: l.deep}
	if !l.grey {
		chroma := plane{width: (l.width + l.across - 1) / l.across, height: (l.height + l.down - 1) / l.down, deep: l.deep}
		planes[1], planes[2] = chroma, chroma
	}
	if memory != nil {
		for i := range planes {
			n := planes[i].bytes()
			planes[i].pixels, memory = memory[:n:n], memory[n:]
		}
	}
	return planes
}

// held is how many frames are in memory at once: those looked at ahead, those being worked on, those done but waiting for one before
// them, one being read, one being written, and the one after that.
func (f *frames) held() int { return f.ahead + 2*f.workers + 3 }

// memory is what the frames of a recipe take in this process, in bytes.
func (f *frames) memory(v *ffmpeg.Video, p engine.Plan) int64 {
	each := int64(frameLayout(v).bytes())
	if f.enlarged {
		each += int64(lumaLayout(v, p).bytes())
	}
	return each * int64(f.held())
}
