package video

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// sound is how the audio tracks come into the output. When the muxer refuses one way before a frame is written, the next is tried.
type sound int

const (
	// soundCopied copies what MP4 holds and encodes the rest to AAC.
	soundCopied sound = iota
	soundEncoded
	soundDropped
	soundEnd
)

// tracksMost bounds how many audio tracks, and how many subtitle tracks, go into an output.
const tracksMost = 16

// recipe is all that decides the arguments of a run.
type recipe struct {
	media   *ffmpeg.Media
	plan    engine.Plan
	options Options
	threads int
	pace    pacing
	sound   sound
	coding  coding
	// window is the part of the source to work on; such a run writes the picture alone.
	window window
	// look makes the picture HDR; nil leaves its colours alone.
	look *look
	// joins names pieces that were made already, of which the picture is copied; nil to make it.
	joins *joining
	// frames has Go work on the frames, between two processes; nil leaves all to one.
	frames *frames
}

// hevcSide is the least side in pixels that x265 is given: its own limit is 32, but of pictures smaller than one of its blocks of 64, in
// 10 bits, version 3.5 writes beyond its memory (measured at 40x40, 48x36, 48x64).
const hevcSide = 64

// hevc says that the output is H.265: where it was asked for, and without a word what has 10 bits, which H.264 players seldom show.
func (r recipe) hevc() bool {
	return (r.coding.codec == codecH265 || r.coding.codec == "" && r.deep()) && min(r.plan.Width, r.plan.Height) >= hevcSide
}

// deep says that the output has 10 bits.
func (r recipe) deep() bool { return r.look != nil || deep(r.media.Video) }

// output gives ffmpeg's options for the written file, and warnings for what it cannot carry.
func (r recipe) output() ([]ffmpeg.Option, []string) {
	options := r.picture()
	if r.window.cut() {
		return append(options, ffmpeg.Flag("dn"), ffmpeg.Opt("map_metadata", "-1"), ffmpeg.Int("map_chapters", -1)), nil
	}
	var warnings []string
	for _, part := range []func() ([]ffmpeg.Option, []string){r.audio, r.subtitles, r.lost} {
		more, warn := part()
		options, warnings = append(options, more...), append(warnings, warn...)
	}
	// Of the file's own tags only the title stays: others hold places, people and devices. Tracks keep their language.
	options = append(options, ffmpeg.Flag("dn"), ffmpeg.Opt("map_metadata:g", "-1"), ffmpeg.Int("map_chapters", 0))
	if r.media.Title != "" {
		options = append(options, ffmpeg.Opt("metadata", "title="+r.media.Title))
	}
	options = append(options, ffmpeg.Int("max_muxing_queue_size", 4096))
	if r.look == nil { // which puts the movie box in front itself
		options = append(options, ffmpeg.Opt("movflags", "+faststart"))
	}
	return options, warnings
}

// picture gives the options that make the picture, or copy it from pieces.
func (r recipe) picture() []ffmpeg.Option {
	if r.joins != nil {
		return r.joins.picture(r)
	}
	if r.frames != nil {
		return r.framed()
	}
	if r.look != nil {
		return append(r.look.options(r), r.videoCodec()...)
	}
	options := []ffmpeg.Option{
		ffmpeg.Opt("map", stream(r.media.Video.Index)),
		ffmpeg.Opt("filter:v", r.window.filter()+graph(r.media.Video, r.plan, r.pace)),
		ffmpeg.Opt("fps_mode", "vfr"),
	}
	if r.pace == paceKept {
		// The source's own unit of time: the default, one frame, would shift the frames of a variable rate.
		options = append(options, ffmpeg.Opt("enc_time_base", "-1"))
	}
	return append(options, r.videoCodec()...)
}

func stream(index int) string { return "0:" + strconv.Itoa(index) }

// videoCodec is the encoder: H.264 High or High 10, H.265 Main or Main 10, by constant quality.
func (r recipe) videoCodec() []ffmpeg.Option {
	crf := ffmpeg.Int("crf:v", r.coding.crf(r.options))
	if !r.hevc() {
		profile := "high"
		if r.deep() {
			profile = "high10"
		}
		options := []ffmpeg.Option{
			ffmpeg.Opt("c:v", "libx264"), ffmpeg.Opt("preset:v", r.options.H264Preset), crf, ffmpeg.Opt("profile:v", profile),
		}
		if r.look != nil {
			options = append(options, ffmpeg.Opt("x264-params", "mastering-display="+masterDisplay(r.look.mastering)))
		}
		return options
	}
	profile := "main"
	if r.deep() {
		profile = "main10"
	}
	return []ffmpeg.Option{
		ffmpeg.Opt("c:v", "libx265"), ffmpeg.Opt("preset:v", r.options.H265Preset), crf,
		ffmpeg.Opt("profile:v", profile), ffmpeg.Opt("tag:v", "hvc1"), ffmpeg.Opt("x265-params", r.x265()),
	}
}

// x265 are the encoder's own parameters: quiet, bounded threads, and the static metadata of HDR10.
func (r recipe) x265() string {
	v := r.media.Video
	params := []string{"log-level=error", "pools=" + strconv.Itoa(r.threads)}
	// Of one or two frames in fine units of time x265 3.5 gives no decoding times that MP4 takes, unless no frame may wait for another.
	const few = 4
	if r.plan.Frames <= few {
		params = append(params, "bframes=0")
	}
	if r.look != nil {
		return strings.Join(append(params, r.look.x265()...), ":")
	}
	if v.Transfer == "smpte2084" {
		params = append(params, "hdr10=1", "repeat-headers=1")
	}
	if m := v.Mastering; m != nil {
		params = append(params, "master-display="+masterDisplay(*m))
	}
	if l := v.Light; l != nil {
		params = append(params, fmt.Sprintf("max-cll=%d,%d", l.MaxContent, l.MaxAverage))
	}
	return strings.Join(params, ":")
}

// masterDisplay writes mastering metadata as both encoders take it.
func masterDisplay(m ffmpeg.Mastering) string {
	return fmt.Sprintf("G(%d,%d)B(%d,%d)R(%d,%d)WP(%d,%d)L(%d,%d)",
		m.GreenX, m.GreenY, m.BlueX, m.BlueY, m.RedX, m.RedY, m.WhiteX, m.WhiteY, m.MaxLuminance, m.MinLuminance)
}

// audio keeps every track, up to tracksMost.
func (r recipe) audio() (options []ffmpeg.Option, warnings []string) {
	tracks := r.media.Audio
	if r.sound == soundDropped {
		if len(tracks) == 0 {
			return nil, nil
		}
		return nil, []string{"The sound could not be read and was left out."}
	}
	if len(tracks) > tracksMost {
		warnings = append(warnings, fmt.Sprintf("Only the first %d audio tracks were kept.", tracksMost))
		tracks = tracks[:tracksMost]
	}
	for i, a := range tracks {
		options = append(options, ffmpeg.Opt("map", stream(a.Index)))
		if r.sound == soundCopied && fitsMP4(a) {
			options = append(options, ffmpeg.Opt(fmt.Sprintf("c:a:%d", i), "copy"))
			continue
		}
		channels := min(max(a.Channels, 1), 6)
		options = append(options,
			ffmpeg.Opt(fmt.Sprintf("c:a:%d", i), "aac"), ffmpeg.Opt(fmt.Sprintf("b:a:%d", i), fmt.Sprintf("%dk", 96*channels)))
		if a.Channels > 8 {
			options = append(options, ffmpeg.Int(fmt.Sprintf("ac:a:%d", i), 2))
		}
	}
	return options, warnings
}

// fitsMP4 says whether MP4 takes the track as it is and players can be expected to play it there.
func fitsMP4(a ffmpeg.Audio) bool {
	if a.Channels == 0 || a.SampleRate == 0 {
		return false
	}
	if a.Codec == "mp3" {
		// Below that, MP3 in MP4 is outside the standard and ffmpeg refuses it.
		return a.SampleRate >= 16000
	}
	return slices.Contains([]string{"aac", "ac3", "eac3", "alac", "opus"}, a.Codec)
}

// subtitles turns text into MP4's kind. Pictures of text have no place there.
func (r recipe) subtitles() (options []ffmpeg.Option, warnings []string) {
	kept, dropped := 0, 0
	for _, s := range r.media.Subtitles {
		if !s.Text || kept == tracksMost {
			dropped++
			continue
		}
		options = append(options, ffmpeg.Opt("map", stream(s.Index)))
		kept++
	}
	if kept > 0 {
		options = append(options, ffmpeg.Opt("c:s", "mov_text"))
	}
	if dropped > 0 {
		warnings = append(warnings, fmt.Sprintf("%d subtitle track(s) cannot be kept in MP4 and were left out.", dropped))
	}
	return options, warnings
}

// lost names what the picture itself loses.
func (r recipe) lost() (_ []ffmpeg.Option, warnings []string) {
	v := r.media.Video
	if refused := r.refused(); refused != "" {
		warnings = append(warnings, refused)
	}
	if v.Alpha {
		warnings = append(warnings, "MP4 carries no transparency; it was dropped.")
	}
	if v.DolbyVision > 0 || v.DynamicHDR {
		warnings = append(warnings, "The dynamic HDR metadata of the source (Dolby Vision or HDR10+) was dropped; the HDR picture under it was kept.")
	}
	if r.pace == paceBlend && v.BitDepth > 8 {
		warnings = append(warnings, "The frame rate of a video of more than 8 bits was raised by blending frames, not by following their motion.")
	}
	return nil, warnings
}
