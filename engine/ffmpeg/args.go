package ffmpeg

import (
	"slices"
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

// Input is one foreign file to read, or what this program itself writes to the standard input.
type Input struct {
	// Path is absolute; empty for the standard input.
	Path string
	// Pipe is the format of the standard input, which holds raw pictures; empty for a file.
	Pipe    string
	Options []Option
}

// Output is the file to write, or a pipe.
type Output struct {
	// Path is absolute; empty for a pipe. Format is the muxer, such as mp4: a file's name never chooses it.
	Path, Format string
	// Pipe is the child's number of a pipe: 1 for Command.Stdout, FirstExtra and up for Command.Extra; 0 for a file.
	Pipe    int
	Options []Option
}

// Args are the arguments of one ffmpeg run over one foreign file: a pure function of its parameters and the runner's limits.
// Everything that makes the input safe stands in front of it.
func (r *Runner) Args(in Input, out Output) []string { return r.ArgsOf([]Input{in}, []Output{out}) }

// ArgsOf are the arguments of a run with several inputs or outputs.
func (r *Runner) ArgsOf(inputs []Input, outputs []Output) []string {
	args := []string{
		"-hide_banner", "-nostdin", "-y", "-loglevel", "level+warning",
		"-filter_threads", strconv.Itoa(r.threads),
	}
	for _, in := range inputs {
		name := "file:" + in.Path
		if in.Pipe != "" {
			name = "pipe:0"
			args = append(args, r.pipeGuard(in.Pipe)...)
		} else {
			args = append(args, r.guard()...)
		}
		args = append(appendOptions(args, in.Options), "-i", name)
	}
	for _, out := range outputs {
		name := "file:" + out.Path
		if out.Pipe > 0 {
			name = "pipe:" + strconv.Itoa(out.Pipe)
		}
		args = append(args, "-threads", strconv.Itoa(r.threads))
		args = append(appendOptions(args, out.Options), "-f", out.Format, name)
	}
	return args
}

// pipeGuard stands before the standard input, which this program writes itself: raw pictures in a container, and nothing else.
func (r *Runner) pipeGuard(format string) []string {
	return []string{
		"-protocol_whitelist", "pipe", "-format_whitelist", format, "-codec_whitelist", "rawvideo",
		"-max_pixels", strconv.FormatInt(r.limits.Pixels, 10), "-threads", "1", "-f", format,
	}
}

// guard stands before every foreign input of ffmpeg, which opens decoders for the tracks it is told to read alone.
func (r *Runner) guard() []string {
	return append(r.commonGuard(), "-codec_whitelist", strings.Join(slices.Concat(videoCodecs, audioCodecs, subtitleCodecs), ","))
}

// probeGuard stands before every input of ffprobe. ffprobe opens a decoder for every track, whether it is asked to decode or
// not, and gives up when one does not open: so the list binds picture and sound, and a film with teletext or subtitles made of
// pictures can still be measured.
func (r *Runner) probeGuard() []string {
	return append(r.commonGuard(), "-codec_whitelist:v", strings.Join(videoCodecs, ","), "-codec_whitelist:a", strings.Join(audioCodecs, ","))
}

func (r *Runner) commonGuard() []string {
	return []string{
		"-protocol_whitelist", "file",
		"-format_whitelist", strings.Join(inputFormats, ","),
		"-max_pixels", strconv.FormatInt(r.limits.Pixels, 10),
		"-threads", strconv.Itoa(r.threads),
	}
}

// inputFormats are the demuxers for what people call a video file. What is not here cannot be opened: above all hls, dash,
// concat and image sequences, which open other files, and raw elementary streams, which have no times.
var inputFormats = []string{"mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf"}

// The decoders that may run, by ffmpeg's names.
var (
	videoCodecs = []string{
		"h264", "hevc", "av1", "libdav1d", "libaom-av1", "vp8", "vp9", "vp6", "vp6f", "vp7", "libvpx", "libvpx-vp9",
		"mpeg1video", "mpeg2video", "mpegvideo", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "h261", "h263", "h263p", "flv",
		"wmv1", "wmv2", "wmv3", "vc1", "theora", "mjpeg", "mjpegb", "jpeg2000", "prores", "dnxhd", "cfhd", "ffv1", "huffyuv", "ffvhuff",
		"utvideo", "magicyuv", "rawvideo", "v210", "v410", "r210", "dvvideo", "qtrle", "rpza", "cinepak", "svq1", "svq3", "indeo5", "png",
		"hap", "flashsv", "rv30", "rv40",
	}
	audioCodecs = []string{
		"aac", "aac_latm", "mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float", "ac3", "eac3", "dca", "truehd", "mlp",
		"opus", "libopus", "vorbis", "libvorbis", "flac", "alac", "tta", "wavpack", "wmav1", "wmav2", "wmapro", "wmalossless", "wmavoice",
		"amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "evrc", "qcelp", "ilbc", "gsm", "gsm_ms", "libgsm", "libgsm_ms", "speex", "libspeex",
		"nellymoser", "qdm2", "qdmc", "mace3", "mace6", "truespeech", "imc", "cook", "g722", "g726", "s302m",
		"pcm_s8", "pcm_u8", "pcm_s16le", "pcm_s16be", "pcm_u16le", "pcm_u16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_s32be",
		"pcm_f32le", "pcm_f32be", "pcm_f64le", "pcm_f64be", "pcm_alaw", "pcm_mulaw", "pcm_dvd", "pcm_bluray", "pcm_s16le_planar",
		"adpcm_ms", "adpcm_ima_wav", "adpcm_ima_qt", "adpcm_swf", "adpcm_yamaha",
	}
	subtitleCodecs = []string{"srt", "subrip", "ass", "ssa", "mov_text", "webvtt", "text"}
)
