package video

import (
	"encoding/binary"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"enlarger/engine/ffmpeg"
)

// lavfi names a generated picture as an input.
func lavfi(source string) []string { return []string{"-f", "lavfi", "-i", source} }

func args(groups ...[]string) []string {
	var all []string
	for _, g := range groups {
		all = append(all, g...)
	}
	return all
}

// smooth is a moving picture whose details survive being enlarged and brought back.
func smooth(size, rate, seconds string) string {
	return "testsrc2=s=" + size + ":r=" + rate + ":d=" + seconds + ",gblur=sigma=1.5"
}

var (
	x264 = []string{"-c:v", "libx264", "-preset", "ultrafast", "-crf", "8"}
	x265 = []string{"-c:v", "libx265", "-preset", "ultrafast", "-crf", "8", "-tag:v", "hvc1", "-x265-params", "log-level=error"}
	// sd tags standard definition as what it is, so that both ends of a comparison are decoded alike.
	sd = []string{"-colorspace", "smpte170m", "-color_primaries", "smpte170m", "-color_trc", "smpte170m"}
)

func TestUpscale(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	cases := []struct {
		name, file, config string
		make               []string
		// dB is how near each frame must come to the source's; 0 compares no pictures.
		dB     float64
		codec  string
		format string
		check  func(t *testing.T, r result, m *ffmpeg.Media)
	}{
		{name: "plain x2", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.4")), x264, sd), dB: 30, codec: "h264", format: "yuv420p"},
		{name: "plain x4", file: "a.mp4", config: `{"scale":4}`, make: args(lavfi(smooth("96x64", "25", "0.4")), x264, sd), dB: 30, codec: "h264", format: "yuv420p"},
		{
			name: "odd size", file: "a.webm", config: `{}`, make: args(lavfi(smooth("162x122", "30", "0.3")+",crop=161:121:exact=1,format=yuv444p"), []string{"-c:v", "libvpx-vp9", "-crf", "4", "-cpu-used", "8"}),
			dB: 30, codec: "h264", format: "yuv420p",
		},
		{name: "odd size, 4:2:0", file: "a.mkv", config: `{}`, make: args(lavfi(smooth("162x122", "30", "0.3")+",crop=161:121:exact=1,format=yuv420p"), []string{"-c:v", "ffv1"}, sd), dB: 30, codec: "h264", format: "yuv420p"},
		{name: "one frame", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.04")), x264, sd), dB: 30, codec: "h264"},
		{name: "one frame, more frames asked", file: "a.mp4", config: `{"fps":50}`, make: args(lavfi(smooth("96x64", "25", "0.04")), x264), codec: "h264"},
		{name: "one pixel", file: "a.mkv", config: `{}`, make: args(lavfi("color=c=red:s=2x2:r=25:d=0.2,format=yuv444p,crop=1:1:exact=1"), []string{"-c:v", "ffv1"}), dB: 30, codec: "h264"},
		{
			name: "one pixel, 10 bits, more frames", file: "a.mkv", config: `{"scale":4,"fps":50}`,
			make: args(lavfi("color=c=red:s=2x2:r=25:d=0.2,format=yuv444p10le,crop=1:1:exact=1"), []string{"-c:v", "ffv1"}), codec: "h264",
		},
		{name: "4:4:4", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=yuv444p"), x264, sd), dB: 30, codec: "h264", format: "yuv420p"},
		{name: "4:2:2 10 bits", file: "a.mov", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=yuv422p10le"), []string{"-c:v", "prores_ks"}, sd), dB: 30, codec: "h265", format: "yuv420p10le"},
		{name: "10 bits", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=yuv420p10le"), x265, sd), dB: 30, codec: "h265", format: "yuv420p10le"},
		{
			name: "full range", file: "a.avi", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")), []string{"-pix_fmt", "yuvj420p", "-c:v", "mjpeg", "-q:v", "2"}), dB: 30, codec: "h264",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if m.Video.Range != "pc" {
					t.Errorf("range %q, want pc", m.Video.Range)
				}
			},
		},
		{
			name: "full range, odd size", file: "a.mkv", config: `{}`, make: args(lavfi(smooth("98x66", "25", "0.3")+",format=yuv444p,crop=97:65:exact=1,scale=out_range=pc,format=yuvj444p"), x264, sd), dB: 30, codec: "h264",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if m.Video.Range != "pc" {
					t.Errorf("range %q, want pc", m.Video.Range)
				}
			},
		},
		{
			name: "RGB", file: "a.mkv", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=gbrp"), []string{"-c:v", "ffv1"}), dB: 30, codec: "h264", format: "yuv420p",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if m.Video.Matrix != "bt709" || m.Video.Range != "tv" {
					t.Errorf("matrix %q, range %q", m.Video.Matrix, m.Video.Range)
				}
			},
		},
		{name: "palette", file: "a.mov", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=rgb24"), []string{"-c:v", "png", "-pix_fmt", "pal8"}), dB: 25, codec: "h264", format: "yuv420p"},
		{name: "grey", file: "a.mkv", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=gray"), []string{"-c:v", "ffv1"}), dB: 30, codec: "h264", format: "yuv420p"},
		{
			name: "transparent", file: "a.mov", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",format=yuva444p10le"), []string{"-c:v", "prores_ks", "-profile:v", "4444"}, sd), codec: "h265", format: "yuv420p10le",
			check: func(t *testing.T, r result, _ *ffmpeg.Media) { wantWarning(t, r, "transparency") },
		},
		{
			name: "sample aspect", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.3")+",setsar=16/11"), x264, sd), dB: 30, codec: "h264",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if m.Video.SAR != (ffmpeg.Ratio{Num: 16, Den: 11}) {
					t.Errorf("sample aspect %v, want 16:11", m.Video.SAR)
				}
			},
		},
		{
			name: "untagged SD", file: "a.mp4", config: `{"scale":4}`, make: args(lavfi(smooth("320x240", "25", "0.1")), x264), codec: "h264",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if m.Video.Matrix != "smpte170m" {
					t.Errorf("matrix %q: players would take the larger picture for BT.709", m.Video.Matrix)
				}
			},
		},
		{
			name: "tags", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.2")), x264, []string{"-colorspace", "bt709", "-color_primaries", "bt470bg", "-color_trc", "gamma28"}), codec: "h264",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if v := m.Video; v.Matrix != "bt709" || v.Primaries != "bt470bg" || v.Transfer != "bt470bg" {
					t.Errorf("tags %q %q %q", v.Matrix, v.Primaries, v.Transfer)
				}
			},
		},
		{name: "faster", file: "a.mp4", config: `{"fps":50}`, make: args(lavfi(smooth("96x64", "25", "1")), x264), codec: "h264", check: wantPace(paceMotion, 50, 50)},
		{name: "broadcast rate", file: "a.mp4", config: `{"fps":59.94}`, make: args(lavfi(smooth("96x64", "30000/1001", "1.001")), x264), codec: "h264", check: wantPace(paceMotion, 60, 60000.0/1001)},
		{name: "slower", file: "a.mp4", config: `{"fps":12}`, make: args(lavfi(smooth("96x64", "25", "1")), x264), codec: "h264", check: wantPace(paceEven, 12, 12)},
		{name: "same rate", file: "a.mp4", config: `{"fps":25}`, make: args(lavfi(smooth("96x64", "25", "0.4")), x264, sd), dB: 30, codec: "h264", check: wantPace(paceKept, 10, 25)},
		{
			name: "faster, 10 bits", file: "a.mp4", config: `{"fps":50}`, make: args(lavfi(smooth("96x64", "25", "0.4")+",format=yuv420p10le"), x265), codec: "h265",
			check: func(t *testing.T, r result, m *ffmpeg.Media) {
				wantPace(paceBlend, 20, 50)(t, r, m)
				wantWarning(t, r, "blending")
			},
		},
		{name: "faster, odd size", file: "a.mkv", config: `{"fps":60}`, make: args(lavfi(smooth("162x122", "30", "0.5")+",format=yuv420p,crop=161:121:exact=1"), []string{"-c:v", "ffv1"}), codec: "h264", check: wantPace(paceMotion, 30, 60)},
		{name: "variable rate", file: "a.mp4", config: `{}`, make: args(variable, x264, sd), dB: 30, codec: "h264", check: stillVariable},
		{name: "variable rate in milliseconds", file: "a.mkv", config: `{}`, make: args(variable, x264, sd), dB: 30, codec: "h264", check: stillVariable},
		{
			name: "variable rate, 20 asked", file: "a.mp4", config: `{"fps":20}`, make: args(variable, x264), codec: "h264",
			check: func(t *testing.T, r result, m *ffmpeg.Media) {
				if m.Video.VariableRate || math.Abs(m.Video.FPS-20) > 0.01 {
					t.Errorf("rate %v, variable %v; want an even 20", m.Video.FPS, m.Video.VariableRate)
				}
			},
		},
		{
			name: "interlaced", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "50", "0.8")+",tinterlace=mode=interleave_top,fieldorder=tff"), x264, []string{"-flags", "+ilme+ildct"}), codec: "h264",
			check: func(t *testing.T, r result, m *ffmpeg.Media) {
				if m.Video.Interlaced || r.out.Facts["deinterlaced"] != true {
					t.Errorf("interlaced %v, facts %v", m.Video.Interlaced, r.out.Facts)
				}
			},
		},
		{
			name: "no audio", file: "a.mp4", config: `{}`, make: args(lavfi(smooth("96x64", "25", "0.2")), x264), codec: "h264",
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if len(m.Audio) != 0 {
					t.Errorf("audio %v out of nothing", m.Audio)
				}
			},
		},
		{
			name: "three audio tracks", file: "a.mkv", config: `{}`, codec: "h264", make: args(lavfi(smooth("96x64", "25", "1")), lavfi("sine=440:d=1"), lavfi("sine=660:d=1"), lavfi("anoisesrc=d=1:c=pink"), x264,
				[]string{"-map", "0", "-map", "1", "-map", "2", "-map", "3", "-c:a:0", "aac", "-c:a:1", "vorbis", "-strict", "-2", "-ac", "2", "-c:a:2", "pcm_s16le", "-metadata:s:a:1", "language=deu"}),
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if len(m.Audio) != 3 || m.Audio[0].Codec != "aac" || m.Audio[1].Codec != "aac" || m.Audio[2].Codec != "aac" {
					t.Errorf("audio %v, want three tracks of AAC", m.Audio)
				}
			},
		},
		{
			name: "mpeg-ts", file: "a.ts", config: `{}`, codec: "h264", make: args(lavfi(smooth("96x64", "25", "0.6")), lavfi("sine=440:d=0.6"), x264, sd, []string{"-c:a", "aac"}), dB: 30,
			check: func(t *testing.T, _ result, m *ffmpeg.Media) {
				if len(m.Audio) != 1 {
					t.Errorf("audio %v", m.Audio)
				}
			},
		},
		{name: "vp8 with hidden frames", file: "a.webm", config: `{}`, make: args(lavfi(smooth("96x64", "25", "1")), []string{"-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "10", "-b:v", "500k", "-quality", "good", "-cpu-used", "4"}), codec: "h264"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, c.file, c.make...)
			r, m := k.must(t, source, c.config)
			if r.out.Codec != c.codec {
				t.Errorf("codec %s, want %s", r.out.Codec, c.codec)
			}
			if c.format != "" && m.Video.PixelFormat != c.format {
				t.Errorf("pixels %s, want %s", m.Video.PixelFormat, c.format)
			}
			if c.dB > 0 {
				samePictures(t, source, r.path, r.source.Width, r.source.Height, c.dB)
			}
			if c.check != nil {
				c.check(t, r, m)
			}
		})
	}
}

// variable is two thirds of a second at 30 frames a second and then one frame in three.
var variable = args(lavfi(smooth("96x64", "30", "2")), []string{"-vf", "select='not(mod(n,3))+lt(n,20)'", "-fps_mode", "vfr", "-enc_time_base", "1/90000"})

func wantWarning(t *testing.T, r result, word string) {
	t.Helper()
	if !strings.Contains(strings.Join(r.out.Warnings, "\n"), word) {
		t.Errorf("warnings %q do not speak of %s", r.out.Warnings, word)
	}
}

func wantPace(pace pacing, frames int64, fps float64) func(*testing.T, result, *ffmpeg.Media) {
	return func(t *testing.T, r result, m *ffmpeg.Media) {
		t.Helper()
		if r.out.Facts["fps_method"] != string(pace) || m.Video.Frames != frames || math.Abs(m.Video.FPS-fps) > 0.01 {
			t.Errorf("%v: %d frames at %.3f, want %v: %d at %.3f", r.out.Facts["fps_method"], m.Video.Frames, m.Video.FPS, pace, frames, fps)
		}
	}
}

func stillVariable(t *testing.T, r result, m *ffmpeg.Media) {
	t.Helper()
	if !m.Video.VariableRate {
		t.Error("the variable rate is gone")
	}
}

// TestUpscaleTimes follows each frame of a variable rate through the tool.
func TestUpscaleTimes(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	source := clip(t, "a.mp4", args(variable, x264)...)
	r, _ := k.must(t, source, `{}`)
	want, got := frameTimes(t, source), frameTimes(t, r.path)
	if len(want) != len(got) {
		t.Fatalf("%d frames, want %d", len(got), len(want))
	}
	for i := range want {
		if math.Abs(want[i]-got[i]) > 0.0005 {
			t.Errorf("frame %d at %.4f s, want %.4f s", i, got[i], want[i])
		}
	}
}

func frameTimes(t *testing.T, path string) []float64 {
	t.Helper()
	text := ffmpegRun(t, "-i", path, "-map", "v:0", "-fps_mode", "passthrough", "-vf", "metadata=mode=add:key=a:value=b,metadata=mode=print:key=a:file=-", "-f", "null", "-")
	var times []float64
	for line := range strings.Lines(string(text)) {
		if _, after, found := strings.Cut(line, "pts_time:"); found {
			at, err := strconv.ParseFloat(strings.TrimSpace(after), 64)
			if err != nil {
				t.Fatal(err)
			}
			times = append(times, at)
		}
	}
	return times
}

// TestUpscaleRotated puts each of the four rotations, and a flip, into the pixels.
func TestUpscaleRotated(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	flat := clip(t, "flat.mp4", args(lavfi(smooth("96x64", "25", "0.2")), x264, sd)...)
	for _, angle := range []string{"0", "90", "180", "270"} {
		t.Run(angle, func(t *testing.T) {
			t.Parallel()
			source := rotated(t, flat, angle)
			r, m := k.must(t, source, `{}`)
			w, h := 96, 64
			if angle == "90" || angle == "270" {
				w, h = h, w
			}
			if r.source.Width != w || r.source.Height != h || m.Video.Width != 2*w {
				t.Fatalf("source measured as %dx%d, output %dx%d", r.source.Width, r.source.Height, m.Video.Width, m.Video.Height)
			}
			samePictures(t, source, r.path, w, h, 30)
		})
	}
}

// rotated asks players to turn a clip, without touching its frames.
func rotated(t testing.TB, path, angle string) string {
	t.Helper()
	return clip(t, "rotated.mp4", "-i", path, "-c", "copy", "-metadata:s:v:0", "rotate="+angle)
}

// TestUpscaleHDR keeps what HDR video says of itself.
func TestUpscaleHDR(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	pq := args(lavfi(smooth("96x64", "25", "0.3")+",format=yuv420p10le"), []string{
		"-c:v", "libx265", "-preset", "ultrafast", "-crf", "8", "-tag:v", "hvc1",
		"-x265-params", "log-level=error:hdr10=1:repeat-headers=1:master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400",
		"-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc",
	})
	hlg := args(lavfi(smooth("96x64", "25", "0.3")+",format=yuv420p10le"), x265, []string{"-color_primaries", "bt2020", "-color_trc", "arib-std-b67", "-colorspace", "bt2020nc"})
	for _, c := range []struct {
		name, transfer, fact string
		make                 []string
		static               bool
	}{{"HDR10", "smpte2084", "pq", pq, true}, {"HLG", "arib-std-b67", "hlg", hlg, false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, "a.mp4", c.make...)
			r, m := k.must(t, source, `{}`)
			v := m.Video
			if v.Codec != "hevc" || v.BitDepth != 10 || v.Primaries != "bt2020" || v.Transfer != c.transfer || v.Matrix != "bt2020nc" || r.out.Facts["hdr"] != c.fact {
				t.Errorf("%+v, facts %v", v, r.out.Facts)
			}
			want := ffmpeg.Mastering{RedX: 34000, RedY: 16000, GreenX: 13250, GreenY: 34500, BlueX: 7500, BlueY: 3000, WhiteX: 15635, WhiteY: 16450, MaxLuminance: 10_000_000, MinLuminance: 50}
			if c.static && (v.Mastering == nil || *v.Mastering != want || v.Light == nil || *v.Light != ffmpeg.Light{MaxContent: 1000, MaxAverage: 400}) {
				t.Errorf("static metadata %v %v", v.Mastering, v.Light)
			}
			tag := string(ffmpegProbe(t, r.path, "stream=codec_tag_string,profile"))
			if !strings.Contains(tag, "hvc1") || !strings.Contains(tag, "Main 10") {
				t.Errorf("%s", tag)
			}
			samePictures(t, source, r.path, 96, 64, 30)
		})
	}
}

// TestUpscaleExtras keeps text subtitles, chapters and the title, and drops what says where and by whom a film was made.
func TestUpscaleExtras(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	dir := t.TempDir()
	write := func(name, text string) string {
		path := dir + "/" + name
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	srt := write("a.srt", "1\n00:00:00,100 --> 00:00:00,600\nGood evening\n\n")
	meta := write("a.txt", ";FFMETADATA1\ntitle=A = b; 'c'\nartist=Someone\nlocation=+52.5+013.4/\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\ntitle=One\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=500\nEND=1000\ntitle=Two\n")
	source := clip(t, "a.mkv", args(lavfi(smooth("96x64", "25", "1")), []string{"-i", srt, "-i", meta, "-map", "0", "-map", "1", "-map_metadata", "2", "-map_chapters", "2", "-c:s", "srt"}, x264)...)
	r, m := k.must(t, source, `{}`)
	if len(r.out.Warnings) > 0 {
		t.Errorf("warnings %q", r.out.Warnings)
	}
	if m.Title != "A = b; 'c'" || m.Chapters != 2 || len(m.Subtitles) != 1 || m.Subtitles[0].Codec != "mov_text" {
		t.Errorf("title %q, %d chapters, subtitles %v", m.Title, m.Chapters, m.Subtitles)
	}
	if text := string(ffmpegRun(t, "-i", r.path, "-map", "s:0", "-f", "srt", "-")); !strings.Contains(text, "Good evening") || !strings.Contains(text, "00:00:00,100") {
		t.Errorf("subtitles are now %q", text)
	}
	tags := string(ffmpegProbe(t, r.path, "format_tags"))
	if strings.Contains(tags, "Someone") || strings.Contains(tags, "52.5") {
		t.Errorf("tags kept: %s", tags)
	}
}

// TestUpscaleSync measures a flash and a beep at the same moment, before and after.
func TestUpscaleSync(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	flash := "color=black:s=96x64:r=25:d=2,drawbox=c=white:t=fill:enable='between(t,1,1.3)'"
	beep := "aevalsrc='if(between(t,1,1.3),0.8*sin(1760*PI*t),0)':s=48000:d=2"
	for _, c := range []struct {
		name, file, config string
		make               []string
	}{
		{"AAC copied", "a.mp4", `{}`, args(lavfi(flash), lavfi(beep), x264, []string{"-c:a", "aac"})},
		{"B-frames", "a.mp4", `{}`, args(lavfi(flash), lavfi(beep), []string{"-c:v", "libx264", "-bf", "3", "-c:a", "aac"})},
		{"Opus", "a.mkv", `{}`, args(lavfi(flash), lavfi(beep), x264, []string{"-c:a", "libopus"})},
		{"MP3 in AVI", "a.avi", `{}`, args(lavfi(flash), lavfi(beep), []string{"-c:v", "mpeg4", "-c:a", "libmp3lame"})},
		{"transport stream", "a.ts", `{}`, args(lavfi(flash), lavfi(beep), x264, []string{"-c:a", "aac"})},
		{"late audio", "a.mkv", `{}`, args(lavfi(flash), []string{"-itsoffset", "0.4"}, lavfi("aevalsrc='if(between(t,0.6,0.9),0.8*sin(1760*PI*t),0)':s=48000:d=1.6"), x264, []string{"-c:a", "flac"})},
		{"late video", "a.mkv", `{}`, args([]string{"-itsoffset", "0.4"}, lavfi("color=black:s=96x64:r=25:d=1.6,drawbox=c=white:t=fill:enable='between(t,0.6,0.9)'"), lavfi(beep), x264, []string{"-c:a", "aac", "-map", "0", "-map", "1"})},
		{"late video, faster", "a.mkv", `{"fps":50}`, args([]string{"-itsoffset", "0.4"}, lavfi("color=black:s=96x64:r=25:d=1.6,drawbox=c=white:t=fill:enable='between(t,0.6,0.9)'"), lavfi(beep), x264, []string{"-c:a", "aac", "-map", "0", "-map", "1"})},
		{"faster", "a.mp4", `{"fps":50}`, args(lavfi(flash), lavfi(beep), x264, []string{"-c:a", "aac"})},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, c.file, c.make...)
			r, _ := k.must(t, source, c.config)
			before, after := flashAt(t, source)-beepAt(t, source), flashAt(t, r.path)-beepAt(t, r.path)
			if math.Abs(after-before) > 0.040 {
				t.Errorf("picture was %.3f s after sound, now %.3f s", before, after)
			}
		})
	}
}

// flashAt is the time of the first bright frame, by the file's own clock.
func flashAt(t *testing.T, path string) float64 {
	t.Helper()
	text := ffmpegRun(t, "-i", path, "-map", "v:0", "-fps_mode", "passthrough", "-vf", "signalstats,metadata=mode=print:key=lavfi.signalstats.YAVG:file=-", "-f", "null", "-")
	at := ""
	for line := range strings.Lines(string(text)) {
		if _, after, found := strings.Cut(line, "pts_time:"); found {
			at = strings.TrimSpace(after)
		}
		if _, after, found := strings.Cut(line, "YAVG="); found {
			light, err := strconv.ParseFloat(strings.TrimSpace(after), 64)
			if err != nil {
				t.Fatal(err)
			}
			if light > 128 {
				seconds, err := strconv.ParseFloat(at, 64)
				if err != nil {
					t.Fatal(err)
				}
				return seconds
			}
		}
	}
	t.Fatalf("%s has no flash", path)
	return 0
}

// beepAt is the time of the first loud sample, by the same clock.
func beepAt(t *testing.T, path string) float64 {
	t.Helper()
	const hertz, loud = 48000, 4000
	raw := ffmpegRun(t, "-i", path, "-map", "a:0", "-af", "aresample=48000:async=1:first_pts=0", "-ac", "1", "-f", "s16le", "-")
	for i := 0; i+1 < len(raw); i += 2 {
		if s := int16(binary.LittleEndian.Uint16(raw[i:])); s > loud || s < -loud {
			return float64(i/2) / hertz
		}
	}
	t.Fatalf("%s has no beep", path)
	return 0
}

// ffmpegProbe prints entries of a file.
func ffmpegProbe(t testing.TB, path, entries string) []byte {
	t.Helper()
	return probeRun(t, "-show_entries", entries, "-of", "compact", path)
}
