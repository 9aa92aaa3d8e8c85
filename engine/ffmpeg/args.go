package ffmpeg

import (
	"strconv"
	"strings"
)

// Option is one ffmpeg option: -Name, and Value when it takes one.
type Option struct{ Name, Value string }

// Opt makes an option with a value.
func Opt(name, value string) Option { return Option{name, value} }

// Int makes an option with a whole number.
func Int(name string, value int) Option { return Option{name, strconv.Itoa(value)} }

// Flag makes an option without a value.
func Flag(name string) Option { return Option{Name: name} }

func appendOptions(args []string, options []Option) []string {
	for _, o := range options {
		args = append(args, "-"+o.Name)
		if o.Value != "" {
			args = append(args, o.Value)
		}
	}
	return args
}

// Input is one foreign file to read.
type Input struct {
	// Path is absolute.
	Path    string
	Options []Option
}

// Output is the file to write.
type Output struct {
	// Path is absolute. Format is the muxer, such as mp4: a file's name never chooses it.
	Path, Format string
	Options      []Option
}

// Args are the arguments of one ffmpeg run over one foreign file: a pure function of its parameters and the runner's limits.
// Everything that makes the input safe stands in front of it.
func (r *Runner) Args(in Input, out Output) []string {
	args := []string{
		"-hide_banner", "-nostdin", "-y", "-loglevel", "level+warning",
		"-filter_threads", strconv.Itoa(r.threads),
	}
	args = append(args, r.guard()...)
	args = appendOptions(args, in.Options)
	args = append(args, "-i", "file:"+in.Path)
	args = append(args, "-threads", strconv.Itoa(r.threads))
	args = appendOptions(args, out.Options)
	return append(args, "-f", out.Format, "file:"+out.Path)
}

// guard stands before every foreign input, of ffmpeg and ffprobe alike.
func (r *Runner) guard() []string {
	return []string{
		"-protocol_whitelist", "file",
		"-format_whitelist", strings.Join(inputFormats, ","),
		"-codec_whitelist", strings.Join(inputCodecs, ","),
		"-max_pixels", strconv.FormatInt(r.limits.Pixels, 10),
		"-threads", strconv.Itoa(r.threads),
	}
}

// inputFormats are the demuxers for what people call a video file. What is not here cannot be opened: above all hls, dash,
// concat and image sequences, which open other files, and raw elementary streams, which have no times.
var inputFormats = []string{"mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf"}

// inputCodecs are the decoders that may run, by ffmpeg's decoder names.
var inputCodecs = []string{
	// Video.
	"h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "vp6", "vp6f", "libvpx", "libvpx-vp9",
	"mpeg1video", "mpeg2video", "mpegvideo", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h263", "h263p", "h261", "flv",
	"wmv1", "wmv2", "wmv3", "vc1", "theora", "mjpeg", "mjpegb", "jpeg2000", "prores", "dnxhd", "cfhd", "ffv1", "huffyuv", "ffvhuff",
	"utvideo", "magicyuv", "rawvideo", "v210", "v410", "r210", "dvvideo", "qtrle", "rpza", "cinepak", "svq1", "svq3", "indeo5", "png",
	"hap", "flashsv", "vp7", "rv30", "rv40",
	// Audio.
	"aac", "aac_latm", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "ac3", "eac3", "dca", "truehd", "mlp", "opus", "libopus", "vorbis", "libvorbis",
	"flac", "alac", "wmav1", "wmav2", "wmapro", "wmalossless", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "gsm", "speex", "libspeex",
	"nellymoser", "qdm2", "qdmc", "wavpack", "pcm_s8", "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be",
	"pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw", "pcm_dvd", "pcm_bluray", "pcm_s16le_planar",
	"adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_swf", "adpcm_yamaha",
	// Text subtitles.
	"srt", "subrip", "ass", "ssa", "mov_text", "webvtt", "text",
}
