package video

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// hdrJob runs video_hdr over a file, as a worker does but with the source measured once, and gives what came out as measured.
func hdrJob(t testing.TB, options Options, path, config string) (result, *ffmpeg.Media, error) {
	t.Helper()
	k := newKit(t)
	slots <- struct{}{}
	defer func() { <-slots }()
	if options.H265Preset == "" {
		options.H264Preset, options.H265Preset = "ultrafast", "ultrafast"
	}
	var r result
	e := &editor{runner: k.runner, options: options.withDefaults()}
	c := HDRConfig{Quality: qualityHigh, Codec: codecH265, Gamut: "bt2020"}
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		t.Fatal(err)
	}
	media, err := e.inspectSDR(t.Context(), path)
	if err != nil {
		return r, nil, err
	}
	r.source = source(media)
	order, err := k.catalog.Order("video_hdr", json.RawMessage(config), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.plan, err = order.Plan(r.source); err != nil {
		return r, nil, err
	}
	var m *ffmpeg.Media
	r.out, m, err = e.convert(t.Context(), r.task(t, path), e.hdrRecipe(c, media, r.plan))
	return r, m, err
}

func mustHDR(t testing.TB, options Options, path, config string) (result, *ffmpeg.Media) {
	t.Helper()
	r, m, err := hdrJob(t, options, path, config)
	if err != nil {
		t.Fatalf("%s: %v", filepath.Base(path), err)
	}
	return r, m
}

// bands is a clip of upright bands, eight pixels wide and 32 high: each of one colour, given as the codes of a lossless 8-bit file.
func bands(t testing.TB, name string, codes [][3]byte, options ...string) string {
	t.Helper()
	const wide, high = 8, 32
	width := wide * len(codes)
	raw := filepath.Join(t.TempDir(), "bands.raw")
	var text []byte
	for plane := range 3 {
		for range high {
			for _, c := range codes {
				for range wide {
					text = append(text, c[plane])
				}
			}
		}
	}
	if err := os.WriteFile(raw, text, 0o600); err != nil {
		t.Fatal(err)
	}
	in := []string{"-f", "rawvideo", "-pix_fmt", "yuv444p", "-s", fmt.Sprintf("%dx%d", width, high), "-r", "25", "-i", raw}
	return clip(t, name, args(in, []string{"-vf", "loop=loop=1:size=1", "-c:v", "ffv1"}, options)...)
}

// luma10 decodes the first frame and gives the code in the middle of each band, for the three planes in 4:4:4.
func bandCodes(t testing.TB, path string, count int) [][3]int {
	t.Helper()
	raw := ffmpegRun(t, "-i", path, "-map", "v:0", "-frames:v", "1", "-vf", "scale=flags=neighbor,format=yuv444p10le", "-f", "rawvideo", "-")
	width := 8 * count
	plane := len(raw) / 3
	var out [][3]int
	for i := range count {
		at := 2 * (width*16 + 8*i + 4)
		var c [3]int
		for p := range 3 {
			c[p] = int(binary.LittleEndian.Uint16(raw[p*plane+at:]))
		}
		out = append(out, c)
	}
	return out
}

// weights are the luma weights of red and blue of a matrix.
type weights struct{ red, blue float64 }

var (
	bt601       = weights{0.299, 0.114}
	bt709       = weights{0.2126, 0.0722}
	weights2020 = weights{0.2627, 0.0593}
)

// signal is the R'G'B' of 8-bit codes.
func (w weights) signal(code [3]byte, full bool) rgb {
	y, cb, cr := (float64(code[0])-16)/219, (float64(code[1])-128)/224, (float64(code[2])-128)/224
	if full {
		y, cb, cr = float64(code[0])/255, (float64(code[1])-128)/255, (float64(code[2])-128)/255
	}
	r, b := y+2*(1-w.red)*cr, y+2*(1-w.blue)*cb
	c := rgb{r, (y - w.red*r - w.blue*b) / (1 - w.red - w.blue), b}
	for i := range c {
		c[i] = min(max(c[i], 0), 1)
	}
	return c
}

// codes are the codes of R'G'B' in 10 bits of limited range.
func (w weights) codes(c rgb) [3]float64 {
	y := w.red*c[0] + (1-w.red-w.blue)*c[1] + w.blue*c[2]
	return [3]float64{64 + 876*y, 512 + 896*(c[2]-y)/2/(1-w.blue), 512 + 896*(c[0]-y)/2/(1-w.red)}
}

// code are the 8-bit codes of R'G'B' in limited range.
func (w weights) code(c rgb) [3]byte {
	wide := w.codes(c)
	return [3]byte{byte(math.Round(wide[0] / 4)), byte(math.Round(wide[1] / 4)), byte(math.Round(wide[2] / 4))}
}

// TestHDRColours takes colours through ffmpeg and holds them against the formulas: every grey that video can have, and colours at the
// corners of the source's gamut and within it.
func TestHDRColours(t *testing.T) {
	t.Parallel()
	var greys, greysFull [][3]byte
	for code := 16; code <= 235; code++ {
		greys = append(greys, [3]byte{byte(code), 128, 128})
	}
	for code := range 256 {
		greysFull = append(greysFull, [3]byte{byte(code), 128, 128})
	}
	colour := func(w weights) (all [][3]byte) {
		for _, high := range []float64{1, 0.6} {
			for corner := range 8 {
				all = append(all, w.code(rgb{high * float64(corner&1), high * float64(corner>>1&1), high * float64(corner>>2)}))
			}
		}
		return append(all, w.code(rgb{0.76, 0.57, 0.48}), w.code(rgb{0.2, 0.3, 0.1})) // skin, leaf
	}
	tagged := func(span, matrix, primaries, transfer string) []string {
		return []string{"-color_range", span, "-colorspace", matrix, "-color_primaries", primaries, "-color_trc", transfer}
	}
	for _, c := range []struct {
		name, config string
		method       HDRMethod
		codes        [][3]byte
		tags         []string
		weights      weights
		full         bool
		assumed      colours
		gamut        primaries
	}{
		{name: "greys", codes: greys, tags: tagged("tv", "bt709", "bt709", "bt709"), weights: bt709},
		{name: "greys, full range, H.264", config: `{"codec": "h264"}`, codes: greysFull, tags: tagged("pc", "smpte170m", "smpte170m", "smpte170m"), weights: bt601, full: true, assumed: colours{primaries: "smpte170m"}},
		{name: "greys, vivid, untagged", method: HDRVivid, codes: greys, weights: bt601, assumed: colours{primaries: "smpte170m"}},
		{name: "colours", codes: colour(bt709), tags: tagged("tv", "bt709", "bt709", "bt709"), weights: bt709},
		{name: "colours, sRGB", codes: colour(bt601), tags: tagged("tv", "bt470bg", "bt470bg", "iec61966-2-1"), weights: bt601, assumed: colours{primaries: "bt470bg", transfer: "iec61966-2-1"}},
		{name: "colours, wide, to P3", config: `{"hdr_color_gamut": "p3"}`, codes: colour(weights2020), tags: tagged("tv", "bt2020nc", "bt2020", "bt2020-10"), weights: weights2020, assumed: colours{primaries: "bt2020"}, gamut: p3D65},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.config == "" {
				c.config = `{}`
			}
			options := Options{H264Preset: "ultrafast", H265Preset: "ultrafast", CRF: 1, HDR: c.method}
			r, _ := mustHDR(t, options, bands(t, "bands.mkv", c.codes, c.tags...), c.config)
			if c.gamut == (primaries{}) {
				c.gamut = bt2020
			}
			x := newExpansion(options.withDefaults().HDR, c.assumed, c.gamut)
			worst := [3]float64{}
			for i, got := range bandCodes(t, r.path, len(c.codes)) {
				want := weights2020.codes(x.signal(c.weights.signal(c.codes[i], c.full)))
				for p := range 3 {
					off := math.Abs(float64(got[p]) - want[p])
					worst[p] = max(worst[p], off)
					if off > 3 {
						t.Errorf("%v became %v, want %.1f", c.codes[i], got, want)
						break
					}
				}
			}
			t.Logf("at most %.2f codes off", worst)
		})
	}
}

// bt709Tags are what a usual file says of itself.
var bt709Tags = []string{"-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"}

// TestHDRMetadata reads what a result says of itself, by ffprobe and by its boxes.
func TestHDRMetadata(t *testing.T) {
	t.Parallel()
	// A quarter of the picture is white, the rest black.
	source := clip(t, "a.mp4", args(lavfi("color=black:s=64x64:r=25:d=0.2,drawbox=w=32:h=32:c=white:t=fill,format=yuv420p"), lavfi("sine=d=0.2"), []string{"-c:v", "libx264", "-qp", "0"}, bt709Tags)...)
	for _, c := range []struct {
		config, codec, tag, profile string
		gamut                       primaries
	}{
		{`{}`, "h265", "hvc1", "Main 10", bt2020},
		{`{"codec": "h264", "hdr_color_gamut": "p3", "quality": "low"}`, "h264", "avc1", "High 10", p3D65},
	} {
		t.Run(c.codec, func(t *testing.T) {
			t.Parallel()
			r, m := mustHDR(t, Options{}, source, c.config)
			v := m.Video
			if r.out.Codec != c.codec || v.Primaries != "bt2020" || v.Transfer != "smpte2084" || v.Matrix != "bt2020nc" || v.Range != "tv" || v.BitDepth != 10 {
				t.Errorf("%s, %+v", r.out.Codec, v)
			}
			if text := string(ffmpegProbe(t, r.path, "stream=codec_tag_string,profile")); !strings.Contains(text, c.tag) || !strings.Contains(text, c.profile) {
				t.Errorf("%s", text)
			}
			if v.Mastering == nil || *v.Mastering != mastering(c.gamut) {
				t.Errorf("mastering display %+v", v.Mastering)
			}
			// White is at 332.58 cd/m2, a quarter of the picture.
			if v.Light == nil || *v.Light != (ffmpeg.Light{MaxContent: 333, MaxAverage: 84}) {
				t.Errorf("light %+v", v.Light)
			}
			if f := r.out.Facts; f["hdr"] != "pq" || f["method"] != "bt2446-c" || f["max_cll"] != int64(333) || f["max_fall"] != int64(84) {
				t.Errorf("facts %v", f)
			}
			if len(m.Audio) != 1 || len(r.out.Warnings) > 0 || v.Frames != 5 || math.Abs(v.FPS-25) > 0.01 || r.progress[len(r.progress)-1] != 1 {
				t.Errorf("audio %v, warnings %q, %d frames at %v, progress %v", m.Audio, r.out.Warnings, v.Frames, v.FPS, r.progress)
			}
			moov, kept := readMovie(t, r.path)
			if kept[0].kind != "ftyp" || kept[1].from < int64(moov.size()) {
				t.Errorf("the movie box is not in front of the samples: %+v", kept)
			}
			found := map[string]int{}
			_ = moov.walk(func(b *box) error {
				found[b.kind]++
				return nil
			})
			if found["mdcv"] != 1 || found["clli"] != 1 || found["colr"] != 1 {
				t.Errorf("boxes %v", found)
			}
			// No message inside the stream may contradict the boxes.
			for line := range strings.Lines(string(probeRun(t, "-select_streams", "v", "-show_entries", "frame_side_data", "-of", "compact", r.path))) {
				if strings.Contains(line, "max_content=") && !strings.Contains(line, "max_content=333|max_average=84") {
					t.Errorf("a frame says %s", line)
				}
			}
		})
	}
}

func readMovie(t testing.TB, path string) (*box, []region) {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	moov, kept, err := movie(file, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return moov, kept
}

// TestHDRSources runs sources of unusual kinds. The picture is checked by two pixels: its grey comes to the same whatever the format.
func TestHDRSources(t *testing.T) {
	t.Parallel()
	grey := func(size, rate, seconds, format string) []string {
		return lavfi(fmt.Sprintf("color=0x808080:s=%s:r=%s:d=%s,format=%s", size, rate, seconds, format))
	}
	v := 128.0 / 255
	want := int(weights2020.codes(newExpansion(HDRNatural, colours{}, bt2020).signal(rgb{v, v, v}))[0])
	for _, c := range []struct {
		name, file, config string
		make               []string
		w, h               int
		codec              string
		check              func(t *testing.T, source string, r result, m *ffmpeg.Media)
	}{
		{
			name: "variable rate", file: "a.mp4", make: args(grey("96x64", "30", "1", "yuv420p"), []string{"-vf", "select='not(mod(n,3))+lt(n,10)'", "-fps_mode", "vfr", "-enc_time_base", "1/90000"}, x264, bt709Tags), w: 96, h: 64,
			check: func(t *testing.T, source string, r result, _ *ffmpeg.Media) {
				want, got := frameTimes(t, source), frameTimes(t, r.path)
				if len(want) != len(got) {
					t.Fatalf("%d frames, want %d", len(got), len(want))
				}
				for i := range want {
					if math.Abs(want[i]-got[i]) > 0.0005 {
						t.Errorf("frame %d at %.4f s, want %.4f s", i, got[i], want[i])
					}
				}
			},
		},
		{name: "odd size", file: "a.mkv", make: args(lavfi("color=0x808080:s=96x96:r=25:d=0.2,format=yuv420p,crop=65:67:exact=1"), []string{"-c:v", "ffv1"}, bt709Tags), w: 66, h: 68},
		{name: "odd size, 4:4:4, 10 bits", file: "a.mkv", make: args(lavfi("color=0x808080:s=65x67:r=25:d=0.2,format=yuv444p10le"), []string{"-c:v", "ffv1"}, bt709Tags), w: 66, h: 68},
		{name: "RGBA", file: "a.mkv", make: args(grey("96x64", "25", "0.2", "rgba"), []string{"-c:v", "png"}), w: 96, h: 64},
		{name: "JPEG", file: "a.mkv", make: args(grey("96x64", "25", "0.2", "yuvj420p"), []string{"-c:v", "mjpeg", "-q:v", "1"}), w: 96, h: 64},
		{name: "grey", file: "a.mkv", make: args(grey("96x64", "25", "0.2", "gray"), []string{"-c:v", "png"}), w: 96, h: 64},
		{name: "smaller than H.265 takes", file: "a.mp4", make: args(grey("16x16", "25", "0.2", "yuv420p"), x264, bt709Tags), w: 16, h: 16, codec: "h264"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, c.file, c.make...)
			if c.config == "" {
				c.config = `{}`
			}
			if c.codec == "" {
				c.codec = "h265"
			}
			r, m := mustHDR(t, Options{}, source, c.config)
			if m.Video.Width != c.w || m.Video.Height != c.h || r.out.Codec != c.codec {
				t.Errorf("%dx%d %s", m.Video.Width, m.Video.Height, r.out.Codec)
			}
			if (c.codec == "h264" || c.name == "RGBA") != (len(r.out.Warnings) == 1) {
				t.Errorf("warnings %q", r.out.Warnings)
			}
			raw := ffmpegRun(t, "-i", r.path, "-map", "v:0", "-frames:v", "1", "-pix_fmt", "yuv420p10le", "-f", "rawvideo", "-")
			middle := int(binary.LittleEndian.Uint16(raw[2*(c.w*c.h/2+c.w/2):]))
			corner := int(binary.LittleEndian.Uint16(raw[2*(c.w*c.h-1):]))
			if max(middle-want, want-middle) > 5 || max(corner-want, want-corner) > 5 {
				t.Errorf("luma %d in the middle, %d in the corner, want %d", middle, corner, want)
			}
			if c.check != nil {
				c.check(t, source, r, m)
			}
		})
	}
}

// TestHDRRotated puts the rotation into the pixels.
func TestHDRRotated(t *testing.T) {
	t.Parallel()
	flat := clip(t, "flat.mp4", args(lavfi("color=black:s=96x64:r=25:d=0.2,drawbox=w=48:h=32:c=white:t=fill,format=yuv420p"), x264, bt709Tags)...)
	source := rotated(t, flat, "90")
	r, m := mustHDR(t, Options{}, source, `{}`)
	if m.Video.Width != 64 || m.Video.Height != 96 || m.Video.Rotation != 0 {
		t.Fatalf("%dx%d turned by %d", m.Video.Width, m.Video.Height, m.Video.Rotation)
	}
	corners := func(path string) (bright [4]bool) {
		raw := ffmpegRun(t, "-i", path, "-map", "v:0", "-frames:v", "1", "-pix_fmt", "gray", "-f", "rawvideo", "-")
		for i := range bright {
			bright[i] = raw[64*(24+48*(i/2))+16+32*(i%2)] > 128
		}
		return bright
	}
	if want, got := corners(source), corners(r.path); want != got || got == ([4]bool{}) {
		t.Errorf("bright corners %v, want %v", got, want)
	}
}

// TestHDRRefused measures sources that are no standard video.
func TestHDRRefused(t *testing.T) {
	t.Parallel()
	wide := func(transfer string) []string {
		return args(lavfi("color=gray:s=64x48:r=25:d=0.08,format=yuv420p10le"), x265, []string{"-color_primaries", "bt2020", "-color_trc", transfer, "-colorspace", "bt2020nc"})
	}
	for _, c := range []struct{ name, word, path string }{
		{"PQ", "(PQ)", clip(t, "a.mp4", wide("smpte2084")...)},
		{"HLG", "(HLG)", clip(t, "a.mp4", wide("arib-std-b67")...)},
		{"text", "not a video", func() string {
			path := filepath.Join(t.TempDir(), "a.mp4")
			if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}()},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, _, err := hdrJob(t, Options{}, c.path, `{}`)
			wantFailure(t, err, engine.UnsupportedFormat)
			if f, _ := engine.AsFailure(err); !strings.Contains(f.Message, c.word) {
				t.Errorf("message %q", f.Message)
			}
		})
	}
	// Facts of sources that ffmpeg cannot make.
	for _, c := range []struct {
		v    ffmpeg.Video
		want string
	}{
		{ffmpeg.Video{DolbyVision: 9, Transfer: "bt709"}, "Dolby Vision"},
		{ffmpeg.Video{DynamicHDR: true}, "HDR10+"},
		{ffmpeg.Video{Mastering: &ffmpeg.Mastering{}}, "HDR10 metadata"},
		{ffmpeg.Video{Transfer: "bt2020-10", Primaries: "bt2020", BitDepth: 10}, ""},
		{ffmpeg.Video{Transfer: "bt709", Mastering: &ffmpeg.Mastering{}}, ""},
	} {
		if got := hdrKind(&c.v); got != c.want {
			t.Errorf("%+v is %q, want %q", c.v, got, c.want)
		}
	}
}

func BenchmarkTable(b *testing.B) {
	x := newExpansion(HDRNatural, colours{}, bt2020)
	for b.Loop() {
		x.table()
	}
}

func TestQuickPQ(t *testing.T) {
	t.Parallel()
	quick := quickPQ()
	for light := 4096.0; light > 1e-18; light *= 0.9993 {
		if got, want := quick(light), pq(light); math.Abs(got-want) > 1e-6 {
			t.Fatalf("%v cd/m2 are %v, want %v", light, got, want)
		}
	}
	if got := quick(0); math.Abs(got-pq(0)) > 1e-6 {
		t.Errorf("black is %v", got)
	}
}

func TestAppendSignal(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0.000000", 1: "1.000000", 0.5: "0.500000", 0.1234567: "0.123457", 0.9999996: "1.000000", 0.000012: "0.000012"} {
		if got := string(appendSignal(nil, v)); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
}

// The tables used last are kept, few of them, each its own.
func TestTables(t *testing.T) {
	t.Parallel()
	var known tables
	var first []byte
	for i, tag := range []string{"bt709", "bt2020", "smpte432", "bt709"} {
		x := newExpansion(HDRNatural, colours{primaries: tag}, bt2020)
		text := known.of(x)
		if again := known.of(x); &again[0] != &text[0] {
			t.Errorf("%s: made twice", tag)
		}
		if len(known.kept) > tablesMost {
			t.Errorf("%d tables are kept", len(known.kept))
		}
		switch i {
		case 0:
			first = text
		case 3:
			if !bytes.Equal(text, first) {
				t.Error("the table of one kind of source became another's")
			}
		default:
			if bytes.Equal(text, first) {
				t.Errorf("%s has the table of bt709", tag)
			}
		}
	}
}

// TestHDRAsATool runs the whole tool, from a client's words to the file, and finds what it refuses in the measuring, before anything is
// reserved.
func TestHDRAsATool(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	order, err := k.catalog.Order("video_hdr", json.RawMessage(`{"codec": "h264", "quality": "low"}`), "")
	if err != nil {
		t.Fatal(err)
	}
	path := clip(t, "a.mp4", args(lavfi("color=gray:s=64x48:r=25:d=0.2,format=yuv420p"), x264, bt709Tags)...)
	var r result
	if r.source, err = order.Measure(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if r.plan, err = order.Plan(r.source); err != nil {
		t.Fatal(err)
	}
	out, err := order.Process(t.Context(), r.task(t, path))
	if err != nil || out.Width != 64 || out.Height != 48 || out.Codec != "h264" || out.Facts["hdr"] != "pq" || len(out.Warnings) > 0 {
		t.Errorf("%+v, %v", out, err)
	}
	hlg := clip(t, "a.mp4", args(lavfi("color=gray:s=64x48:r=25:d=0.08,format=yuv420p10le"), x264, []string{"-color_primaries", "bt2020", "-color_trc", "arib-std-b67", "-colorspace", "bt2020nc"})...)
	_, err = order.Measure(t.Context(), hlg)
	wantFailure(t, err, engine.UnsupportedFormat)
}

// TestHDRSampleClips runs the smaller clips of the sample media, and measures those that are HDR.
func TestHDRSampleClips(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(samples(t), "clips")
	for name, want := range map[string]struct {
		w, h   int
		frames int64
		audio  int
		word   string
	}{
		"3gp__bbb_176x144_128kbps_15fps_h263.3gp": {w: 176, h: 144, frames: 15},
		"mp4__bt601.mp4": {w: 360, h: 240, frames: 30, audio: 1},
		"mp4__sample_edit_list_only_preroll_sync_sample.mp4": {w: 640, h: 360, frames: 16, audio: 1},
		"vp9__bear-vp9-odd-dimensions.webm":                  {w: 162, h: 122, frames: 30},
		"mp4__hdr10-av1.mp4":                                 {word: "(PQ)"},
		"mp4__hlg10-color-test.mp4":                          {word: "(HLG)"},
		"mp4__sample_audio_only.mp4":                         {word: "audio only"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, name)
			r, m, err := hdrJob(t, Options{}, path, `{}`)
			if want.word != "" {
				wantFailure(t, err, engine.UnsupportedFormat)
				if f, _ := engine.AsFailure(err); !strings.Contains(f.Message, want.word) {
					t.Errorf("message %q", f.Message)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if v := m.Video; v.Width != want.w || v.Height != want.h || v.Frames != want.frames || len(m.Audio) != want.audio {
				t.Errorf("%dx%d, %d frames, %d audio tracks", v.Width, v.Height, v.Frames, len(m.Audio))
			}
			if off := math.Abs(m.Video.Duration - r.source.Duration); off > 1/r.source.FPS+0.002 {
				t.Errorf("duration %.3f s, source %.3f s", m.Video.Duration, r.source.Duration)
			}
			sameStarts(t, path, r.path)
		})
	}
}

// TestFilterValue has ffmpeg read a table out of a folder whose name has every character that a filter graph gives a meaning.
func TestFilterValue(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), `a:b'c[d],e;f\g h=i`)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "hdr.cube")
	// Two points a side: everything becomes white.
	if err := os.WriteFile(path, []byte("LUT_3D_SIZE 2\n"+strings.Repeat("1 1 1\n", 8)), 0o600); err != nil {
		t.Fatal(err)
	}
	raw := ffmpegRun(t, "-f", "lavfi", "-i", "color=black:s=16x16:d=0.04", "-filter_complex", "[0:0]format=gbrp16le,lut3d=file="+filterValue(path)+"[o]", "-map", "[o]", "-pix_fmt", "gray", "-f", "rawvideo", "-")
	if len(raw) != 256 || raw[0] != 255 {
		t.Errorf("%d bytes, the first %v", len(raw), raw[:min(1, len(raw))])
	}
}
