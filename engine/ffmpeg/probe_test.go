package ffmpeg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

// hostile are files that make a careless ffmpeg open another file, by the name of that file.
func hostile(secret string) map[string]string {
	return map[string]string{
		"hls":    fmt.Sprintf("#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXT-X-TARGETDURATION:10\n#EXTINF:1.0,\nfile:%s\n#EXT-X-ENDLIST\n", secret),
		"concat": fmt.Sprintf("ffconcat version 1.0\nfile %s\n", filepath.Base(secret)),
		"dash": fmt.Sprintf(`<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S" profiles="urn:mpeg:dash:profile:isoff-main:2011">`+
			`<Period duration="PT1S"><AdaptationSet mimeType="video/mp4"><Representation id="0" codecs="avc1" bandwidth="1000" width="64" height="48"><BaseURL>%s</BaseURL></Representation></AdaptationSet></Period></MPD>`, secret),
		"sdp":   "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
		"image": "\x89PNG\r\n\x1a\n",
	}
}

// TestHostileFiles names playlists .mp4: neither program may read what they point at.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	r := runner(t)
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret.mp4")
	text, err := os.ReadFile(small(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secret, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range hostile(secret) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, name+".mp4")
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if media, err := r.Probe(t.Context(), path); !errors.Is(err, ErrUnreadable) {
				t.Errorf("probe: %+v, %v", media, err)
			}
			var out strings.Builder
			err := r.Run(t.Context(), Command{Args: r.Args(Input{Path: path}, Output{Path: "/dev/stdout", Format: "framemd5"}), Stdout: &out, Timeout: time.Minute})
			var failed *Error
			if !errors.As(err, &failed) || out.Len() > 0 {
				t.Errorf("ffmpeg: %v, wrote %q", err, out.String())
			}
		})
	}
}

func TestProbe(t *testing.T) {
	t.Parallel()
	r := runner(t)
	lavfi := func(source string, more ...string) []string {
		return append([]string{"-f", "lavfi", "-i", source}, more...)
	}
	h264 := []string{"-c:v", "libx264", "-preset", "ultrafast"}
	for _, c := range []struct {
		name, file string
		make       []string
		want       Video
		audio      int
	}{
		{
			"mp4", "a.mp4", append(lavfi("testsrc2=s=64x48:r=25:d=0.4"), h264...),
			Video{Codec: "h264", Width: 64, Height: 48, PixelFormat: "yuv420p", BitDepth: 8, Frames: 10, Duration: 0.4, FPS: 25},
			0,
		},
		{
			"webm, times in milliseconds", "a.webm", lavfi("testsrc2=s=64x48:r=30000/1001:d=0.5", "-c:v", "libvpx-vp9", "-cpu-used", "8"),
			Video{Codec: "vp9", Width: 64, Height: 48, PixelFormat: "yuv420p", BitDepth: 8, Frames: 15, Duration: 0.5005, FPS: 30000.0 / 1001},
			0,
		},
		{
			"audio first", "a.mkv", append(lavfi("sine=d=0.4", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.4,format=yuv422p10le", "-map", "0", "-map", "1"), h264...),
			Video{Index: 1, Codec: "h264", Width: 64, Height: 48, PixelFormat: "yuv422p10le", BitDepth: 10, Frames: 10, Duration: 0.4, FPS: 25},
			1,
		},
		{
			"variable", "a.mp4", append(lavfi("testsrc2=s=64x48:r=30:d=1", "-vf", "select='lt(n,10)+eq(n,20)'", "-fps_mode", "vfr"), h264...),
			Video{Codec: "h264", Width: 64, Height: 48, PixelFormat: "yuv420p", BitDepth: 8, Frames: 11, Duration: 0.7, FPS: 11 / 0.7, VariableRate: true},
			0,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			media, err := r.Probe(t.Context(), generate(t, c.file, c.make...))
			if err != nil || media.Video == nil {
				t.Fatal(media, err)
			}
			v := *media.Video
			got := Video{
				Index: v.Index, Codec: v.Codec, Width: v.Width, Height: v.Height, PixelFormat: v.PixelFormat, BitDepth: v.BitDepth, Frames: v.Frames,
				Duration: math.Round(v.Duration*200) / 200, FPS: v.FPS, VariableRate: v.VariableRate,
			}
			c.want.Duration = math.Round(c.want.Duration*200) / 200
			if math.Abs(got.FPS-c.want.FPS) < 0.05 {
				got.FPS = c.want.FPS
			}
			if !reflect.DeepEqual(got, c.want) || len(media.Audio) != c.audio {
				t.Errorf("got  %+v\nwant %+v; audio %v", got, c.want, media.Audio)
			}
		})
	}
}

// TestProbeForeignTracks measures a film beside subtitles made of pictures, for which no decoder is accepted.
func TestProbeForeignTracks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	srt := filepath.Join(dir, "a.srt")
	if err := os.WriteFile(srt, []byte("1\n00:00:00,100 --> 00:00:00,300\nx\n\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := generate(t, "a.mkv", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.4", "-i", srt, "-c:v", "libx264", "-c:s", "srt")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(text, []byte("S_TEXT/UTF8"), []byte("S_HDMV/PGS\x00"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	media, err := runner(t).Probe(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Subtitle{{Index: 1, Codec: "hdmv_pgs_subtitle"}}; media.Video == nil || media.Video.Frames != 10 || !reflect.DeepEqual(media.Subtitles, want) {
		t.Errorf("%+v, subtitles %+v", media.Video, media.Subtitles)
	}
}

func TestProbeRefuses(t *testing.T) {
	t.Parallel()
	r := runner(t)
	dir := t.TempDir()
	whole, err := os.ReadFile(small(t))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	few := *r
	few.limits.Packets = 5
	tiny := *r
	tiny.limits.ProbeTime = time.Nanosecond
	for _, c := range []struct {
		name, path string
		runner     *Runner
		want       error
	}{
		{"empty", write("empty.mp4", nil), r, ErrUnreadable},
		{"noise", write("noise.mp4", []byte(strings.Repeat("not a film ", 1000))), r, ErrUnreadable},
		{"no index", write("cut.mp4", whole[:len(whole)/2]), r, ErrUnreadable},
		{"folder", dir, r, ErrUnreadable},
		{"missing", filepath.Join(dir, "missing.mp4"), r, os.ErrNotExist},
		{"too many frames", write("many.mp4", whole), &few, ErrTooManyFrames},
		{"codec", generate(t, "snow.mkv", "-f", "lavfi", "-i", "testsrc2=s=64x48:d=0.2", "-c:v", "snow", "-strict", "-2"), r, ErrCodec},
		{"too slow", write("slow.mp4", whole), &tiny, ErrTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if media, err := c.runner.Probe(t.Context(), c.path); !errors.Is(err, c.want) {
				t.Errorf("%+v, %v", media, err)
			}
		})
	}
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := r.Probe(ctx, write("fine.mp4", whole)); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreadable) {
			t.Errorf("error %v", err)
		}
	})
}

// TestProbeAwkwardName reads a file whose name means something to ffmpeg or to a shell.
func TestProbeAwkwardName(t *testing.T) {
	t.Parallel()
	r := runner(t)
	text, err := os.ReadFile(small(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"-i.mp4", "http:a", "concat:a|b", "a %03d.mp4", "$(id) ; 'q\".mp4", "pipe:0"} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if media, err := r.Probe(t.Context(), path); err != nil || media.Video.Frames != 10 {
			t.Errorf("%q: %v", name, err)
		}
	}
}

const headerJSON = `{"streams":[
 {"index":0,"codec_name":"mjpeg","codec_type":"video","width":600,"height":600,"disposition":{"attached_pic":1}},
 {"index":1,"codec_name":"hevc","codec_type":"video","width":1920,"height":1080,"sample_aspect_ratio":"4:3","pix_fmt":"yuv420p10le","field_order":"tt",
  "color_range":"tv","color_space":"bt2020nc","color_transfer":"smpte2084","color_primaries":"reserved","duration_ts":-5,"nb_frames":"77",
  "side_data_list":[{"side_data_type":"Display Matrix","displaymatrix":"\n00000000:            0       65536           0\n00000001:       -65536           0           0\n00000002:            0           0  1073741824\n","rotation":-90},
   {"side_data_type":"Mastering display metadata","red_x":"34000/50000","red_y":"16000/50000","green_x":"13250/50000","green_y":"34500/50000","blue_x":"7500/50000","blue_y":"3000/50000",
    "white_point_x":"15635/50000","white_point_y":"16450/50000","min_luminance":"50/10000","max_luminance":"10000000/10000"},
   {"side_data_type":"Content light level metadata","max_content":1000,"max_average":400},
   {"side_data_type":"DOVI configuration record","dv_profile":8}]},
 {"index":2,"codec_name":"aac","codec_type":"audio","channels":2,"sample_rate":"48000"},
 {"index":3,"codec_name":"subrip","codec_type":"subtitle"},{"index":4,"codec_name":"dvd_subtitle","codec_type":"subtitle"}],
 "chapters":[{"id":0,"start_time":"0.0","end_time":"1.0"}],
 "format":{"format_name":"mov,mp4,m4a,3gp,3g2,mj2","size":"1234","tags":{"title":"A\u0000 \u202eb\nc","major_brand":"isom"}}}`

func TestHeaderFacts(t *testing.T) {
	t.Parallel()
	h, err := headerFacts([]byte(headerJSON))
	if err != nil {
		t.Fatal(err)
	}
	want := Media{
		Format: "mp4", Size: 1234, Title: "A   b c", Chapters: 1, Audio: []Audio{{Index: 2, Codec: "aac", Channels: 2, SampleRate: 48000}},
		Subtitles: []Subtitle{{Index: 3, Codec: "subrip", Text: true}, {Index: 4, Codec: "dvd_subtitle"}},
	}
	if !reflect.DeepEqual(h.media, want) {
		t.Errorf("got  %+v\nwant %+v", h.media, want)
	}
	if len(h.videos) != 1 {
		t.Fatalf("%d video tracks", len(h.videos))
	}
	video := Video{
		Index: 1, Codec: "hevc", Width: 1080, Height: 1920, Rotation: 90, SAR: Ratio{4, 3}, PixelFormat: "yuv420p10le", BitDepth: 10,
		Transfer: "smpte2084", Matrix: "bt2020nc", Range: "tv", Interlaced: true, DolbyVision: 9, Claimed: 77,
		Mastering: &Mastering{RedX: 34000, RedY: 16000, GreenX: 13250, GreenY: 34500, BlueX: 7500, BlueY: 3000, WhiteX: 15635, WhiteY: 16450, MaxLuminance: 10_000_000, MinLuminance: 50},
		Light:     &Light{MaxContent: 1000, MaxAverage: 400},
	}
	if !reflect.DeepEqual(*h.videos[0], video) || !h.videos[0].HDR() {
		t.Errorf("got  %+v\nwant %+v", *h.videos[0], video)
	}
}

func TestRotation(t *testing.T) {
	t.Parallel()
	for angle, want := range map[float64]int{0: 0, -90: 90, 90: 270, 180: 180, -180: 180, 270: 90, -89.5: 90, 45: 315, 359.9: 0, -0.4: 0} {
		if got := clockwise(angle); got != want {
			t.Errorf("%v: %d, want %d", angle, got, want)
		}
	}
	flip := "\n00000000:       -65536           0           0\n00000001:            0       65536           0\n00000002:            0           0  1073741824\n"
	turn := strings.Replace(flip, "       65536 ", "      -65536 ", 1)
	if !mirrored(flip) || mirrored(turn) || mirrored("") || mirrored("a: x y\nb: 1 2") {
		t.Error("mirrored is wrong")
	}
}

func TestPixelFacts(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]struct {
		bits  int
		alpha bool
	}{
		"yuv420p": {8, false}, "yuvj420p": {8, false}, "yuv410p": {8, false}, "yuv420p10le": {10, false}, "yuva444p12be": {12, true}, "gbrp": {8, false}, "gbrap12le": {12, true},
		"p010le": {10, false}, "nv12": {8, false}, "gray": {8, false}, "gray10le": {10, false}, "gray16be": {16, false}, "ya8": {8, true}, "ya16le": {16, true}, "rgb48le": {16, false},
		"rgba64be": {16, true}, "bgra": {8, true}, "rgb24": {8, false}, "pal8": {8, false}, "yuv444p9le": {9, false}, "gbrpf32le": {32, false}, "x2rgb10le": {10, false}, "": {8, false},
	} {
		if bits, alpha := pixelFacts(name); bits != want.bits || alpha != want.alpha {
			t.Errorf("%s: %d bits, alpha %v", name, bits, alpha)
		}
	}
}

func TestTimelines(t *testing.T) {
	t.Parallel()
	ms := Ratio{1, 1000}
	for _, c := range []struct {
		name, lines   string
		base, nominal Ratio
		frames        int64
		duration, fps float64
		variable      bool
	}{
		{"steady", "0|0|0|40|K_\n0|80|40|40|__\n0|40|80|40|__\n", ms, Ratio{25, 1}, 3, 0.12, 25, false},
		{"rounded to milliseconds, lengths of one", "0|0|0|1|K_\n0|33|0|1|__\n0|67|0|1|__\n0|100|0|1|__\n", ms, Ratio{60, 1}, 4, 0.133, 30.07, false},
		{"edit list", "0|-40|-40|40|KD\n0|0|0|40|__\n0|40|40|40|__\n", ms, Ratio{25, 1}, 2, 0.08, 25, false},
		{"no times", "0|N/A|N/A|N/A|K_\n0|N/A|N/A|N/A|__\n", ms, Ratio{25, 1}, 2, 0.08, 25, false},
		{"one frame", "0|7|7|N/A|K_\n", ms, Ratio{25, 1}, 1, 0.04, 25, false},
		{"held frame", "0|0|0|40|K_\n0|40|40|40|__\n0|1040|1040|40|__\n0|1080|1080|500|__\n", ms, Ratio{25, 1}, 4, 1.58, 4 / 1.58, true},
		{"absurd", "0|9223372036854775807|0|40|K_\n0|-9223372036854775808|0|1|__\n", ms, Ratio{25, 1}, 2, 0.08, 25, false},
		{"no rate at all", "0|0|0|0|K_\n", Ratio{}, Ratio{}, 1, 0.04, 25, false},
		{"other tracks and nonsense", "1|0|0|40|K_\n\n|||\nx|1|1|1|_\n0|0|0|40|K_\n", ms, Ratio{25, 1}, 1, 0.04, 25, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			lines := &timelines{most: 100, tracks: map[int]*timeline{}}
			// In small pieces, as a pipe may give them.
			for i := range c.lines {
				if _, err := lines.Write([]byte(c.lines[i : i+1])); err != nil {
					t.Fatal(err)
				}
			}
			v := &Video{}
			v.measure(lines.tracks[0], rates{unit: c.base, nominal: c.nominal})
			if v.Frames != c.frames || math.Abs(v.Duration-c.duration) > 0.0011 || math.Abs(v.FPS-c.fps) > 0.3 || v.VariableRate != c.variable {
				t.Errorf("%d frames, %.4f s, %.3f fps, variable %v", v.Frames, v.Duration, v.FPS, v.VariableRate)
			}
		})
	}
}

func FuzzHeaderFacts(f *testing.F) {
	f.Add([]byte(headerJSON))
	f.Add([]byte(`{"streams":[{"codec_type":"video","width":1,"height":-1,"duration_ts":"x","side_data_list":[{"rotation":"nan"},{"side_data_type":"Mastering display metadata","red_x":"1/0"}]}],"format":{"format_name":"","start_time":"x"}}`))
	f.Add([]byte(`{"streams":null,"format":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, err := headerFacts(text)
		if err != nil {
			return
		}
		for _, v := range h.videos {
			if v.Width <= 0 || v.Height <= 0 || v.BitDepth < 8 || v.Rotation < 0 || v.Rotation >= 360 || (v.SAR != Ratio{} && !v.SAR.Known()) {
				t.Errorf("%+v", v)
			}
		}
		if len([]rune(h.media.Title)) > 200 || strings.ContainsAny(h.media.Title, "\x00\n") {
			t.Errorf("title %q", h.media.Title)
		}
	})
}

func FuzzFrameFacts(f *testing.F) {
	f.Add([]byte(`{"frames":[{"pix_fmt":"yuv420p10le","interlaced_frame":1,"color_range":"tv","side_data_list":[{"side_data_type":"Content light level metadata","max_content":1000,"max_average":-4}]}]}`))
	f.Add([]byte(`{"frames":[{"pix_fmt":7,"side_data_list":[{"side_data_type":"Mastering display metadata","max_luminance":"2147483647/1","white_point_x":"1/2","white_point_y":"1/2"}]}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		v := &Video{BitDepth: 8}
		if _, err := v.frameFacts(text); err != nil {
			return
		}
		if l := v.Light; l != nil && (l.MaxContent <= 0 || l.MaxAverage < 0) {
			t.Errorf("light %+v", l)
		}
		if m := v.Mastering; m != nil && (m.MaxLuminance <= 0 || m.WhiteX <= 0 || m.RedX < 0 || m.MinLuminance < 0) {
			t.Errorf("mastering %+v", m)
		}
	})
}

func FuzzTimelines(f *testing.F) {
	f.Add("0|0|0|40|K_\n0|40|40|40|__\n", int64(1), int64(1000), int64(25), int64(1))
	f.Add("0|N/A|5|N/A|K_\n0|-3|1|99999999999|D_\n", int64(1), int64(90000), int64(0), int64(0))
	f.Add("0|1152921504606846976|0|1152921504606846976|_\n0|-1152921504606846976|0|1|_\n", int64(2147483647), int64(1), int64(2147483647), int64(1))
	f.Fuzz(func(t *testing.T, text string, a, b, c, d int64) {
		lines := &timelines{most: 1000, tracks: map[int]*timeline{}}
		_, _ = lines.Write([]byte(text))
		if len(lines.tracks) > trackCount || lines.count > 1001 {
			t.Fatalf("%d tracks, %d packets", len(lines.tracks), lines.count)
		}
		clamp := func(n int64) int64 { return n % math.MaxInt32 }
		for _, track := range lines.tracks {
			v := &Video{}
			v.measure(track, rates{unit: Ratio{clamp(a), clamp(b)}, nominal: Ratio{clamp(c), clamp(d)}})
			if v.Frames > 0 && !(v.Duration > 0 && v.FPS > 0 && !math.IsInf(v.Duration, 0) && !math.IsInf(v.FPS, 0) && v.LastHold > 0) {
				t.Fatalf("%+v", v)
			}
		}
	})
}
