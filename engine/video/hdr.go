package video

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// HDRConfig is the config of video_hdr.
type HDRConfig struct {
	Quality string `json:"quality" doc:"Quality of the encoding: high is not told from the original, medium and low make smaller files." enum:"high,medium,low"`
	Codec   string `json:"codec" doc:"Codec of the result, in 10 bits: H.265 Main 10, which HDR players expect, or H.264 High 10, which few of them play." enum:"h264,h265"`
	Gamut   string `json:"hdr_color_gamut" doc:"The colours that the result keeps to and names in its metadata: all of BT.2020, or those of P3 displays. The file is coded in BT.2020 either way." enum:"bt2020,p3"`
}

// hdr makes HDR10 of standard video.
func (e *editor) hdr() engine.Tool {
	return engine.Define(engine.Spec[HDRConfig]{
		Name:     "video_hdr",
		Media:    engine.Video,
		Doc:      "Turns a standard (SDR) video into HDR10: PQ in 10 bits, with measured light levels. A video that is HDR already is refused. The result is MP4.",
		Defaults: HDRConfig{Quality: qualityHigh, Codec: codecH265, Gamut: "bt2020"},
		Examples: []HDRConfig{
			{Quality: "high", Codec: "h265", Gamut: "bt2020"}, {Quality: "medium", Codec: "h265", Gamut: "p3"}, {Quality: "low", Codec: "h264", Gamut: "bt2020"},
		},
		Bad: []string{`{"quality": "best"}`, `{"quality": 1}`, `{"codec": "av1"}`, `{"codec": "hevc"}`, `{"hdr_color_gamut": "rec709"}`, `{"hdr_color_gamut": true}`},
		Size: func(_ HDRConfig, s engine.Source) (int, int) {
			return even(s.Width), even(s.Height)
		},
		Measure: e.measureSDR,
		Memory:  func(_ HDRConfig, task engine.Task) int64 { return e.hdrMemory(task) },
		Process: func(ctx context.Context, c HDRConfig, task engine.Task) (engine.Output, error) {
			if !task.Plan.Known() || task.Plan.Frames == 0 {
				return engine.Output{}, errors.New("video_hdr: the plan was made without measuring the source")
			}
			media, err := e.inspectSDR(ctx, task.Input)
			if err != nil {
				return engine.Output{}, err
			}
			out, _, err := e.convert(ctx, task, e.hdrRecipe(c, media, task.Plan))
			return out, err
		},
		Parts: parted(e, hdrEffort, e.hdrRecipe),
	})
}

// hdrEffort is how much longer a pixel takes than with video_upscale's classical method: the encoder's preset is slower, and H.265.
const hdrEffort = 6

// even is the next even number: the chroma of 4:2:0 has half of a picture's sides, and players take nothing else.
func even(n int) int { return n + n&1 }

func (e *editor) hdrRecipe(c HDRConfig, media *ffmpeg.Media, plan engine.Plan) recipe {
	return recipe{
		media: media, plan: plan, options: e.options, threads: e.runner.Threads(), pace: paceKept,
		coding: newCoding(c.Codec, c.Quality), look: newLook(e.options.HDR, c.Gamut, media.Video),
	}
}

// hdrMemory is memory, and the frames of 48 bits a pixel between the filters.
func (e *editor) hdrMemory(task engine.Task) int64 {
	const deepFrames, table = 12, 64 << 20 // the table as text and as numbers, in two processes
	return table + e.memory(task) + 6*deepFrames*task.Plan.Pixels()
}

// measureSDR is measure, and refuses what is HDR already: twice expanded it would only be wrong.
func (e *editor) measureSDR(ctx context.Context, path string) (engine.Source, error) {
	media, err := e.inspectSDR(ctx, path)
	if err != nil {
		return engine.Source{}, err
	}
	return source(media), nil
}

func (e *editor) inspectSDR(ctx context.Context, path string) (*ffmpeg.Media, error) {
	media, err := e.inspected(ctx, path)
	if err != nil {
		return nil, err
	}
	if kind := hdrKind(media.Video); kind != "" {
		return nil, engine.Failf(engine.UnsupportedFormat, "The video is HDR already (%s). video_hdr makes HDR out of standard video.", kind)
	}
	if c := media.Video.Primaries; c == "smpte428" || strings.HasPrefix(media.Video.PixelFormat, "xyz") {
		return nil, engine.Failf(engine.UnsupportedFormat, "The colours of a digital cinema package (XYZ) are not supported. Export the video as BT.709.")
	}
	return media, nil
}

// hdrKind names the kind of HDR that a video says it is, or "".
func hdrKind(v *ffmpeg.Video) string {
	switch {
	case v.DolbyVision > 0:
		return "Dolby Vision"
	case v.Transfer == "smpte2084":
		return "PQ"
	case v.Transfer == "arib-std-b67":
		return "HLG"
	case v.DynamicHDR:
		return "HDR10+"
	case v.Transfer == "" && (v.Mastering != nil || v.Light != nil):
		return "HDR10 metadata"
	}
	return ""
}

// look is the treatment of the picture that makes it HDR: the table its colours go through, the tags that follow, and the light measured
// on the way.
type look struct {
	expansion expansion
	gamut     string
	mastering ffmpeg.Mastering
	// lut is the absolute path of the table, written before a run.
	lut string
	// light is what was measured, of this run or of the parts that are joined.
	light contentLight
}

// newLook takes checked values of a config.
func newLook(method HDRMethod, gamut string, v *ffmpeg.Video) *look {
	primaries := gamutNamed(gamut)
	return &look{expansion: newExpansion(method, outputColours(v), primaries), gamut: gamut, mastering: mastering(primaries)}
}

// write writes the table into a run's private folder.
func (l *look) write(dir string, known *tables) error {
	path, err := filepath.Abs(filepath.Join(dir, "hdr.cube"))
	if err != nil {
		return fmt.Errorf("colour table: %w", err)
	}
	l.lut = path
	if err := os.WriteFile(path, known.of(l.expansion), 0o600); err != nil {
		return fmt.Errorf("write colour table: %w", err)
	}
	return nil
}

// bright is the name of the graph's second output, the brightest component of each pixel; picture that of its first.
const (
	lookPicture = "[picture]"
	lookBright  = "[bright]"
)

// graph is the filter graph from the decoded frame, already turned upright: R'G'B' in 16 bits, the table, and from there the picture for the
// encoder and the frames for the meter. opening comes before all of it.
func (l *look) graph(v *ffmpeg.Video, p engine.Plan, opening string) string {
	chain := signalRGB(v)
	if p.Width != v.Width || p.Height != v.Height {
		// The edge is repeated: a stretch by one pixel would soften the whole picture.
		chain = append(chain, fmt.Sprintf("pad=%d:%d:0:0", p.Width, p.Height),
			fmt.Sprintf("fillborders=right=%d:bottom=%d:mode=smear", p.Width-v.Width, p.Height-v.Height))
	}
	chain = append(chain, "lut3d=file="+filterValue(l.lut)+":interp=tetrahedral", "split=2[wide][measured]")
	return "[" + stream(v.Index) + "]" + opening + strings.Join(chain, ",") +
		";[wide]zscale=matrixin=gbr:rangein=full:matrix=bt2020nc:range=limited:filter=bicubic:dither=none,format=yuv420p10le," +
		"setparams=range=limited:color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc" + lookPicture +
		";[measured]extractplanes=g+b+r[g][b][r];[g][b]blend=all_mode=lighten[gb];[gb][r]blend=all_mode=lighten" + lookBright
}

// signalRGB is the chain to R'G'B' of 16 bits, full range, with the source's own primaries and curve. zscale converts in floating point,
// where swscale would round to the source's bits; it is told what to do and not what the colours are, so it changes nothing else.
func signalRGB(v *ffmpeg.Video) []string {
	var chain []string
	if v.Interlaced {
		chain = append(chain, "bwdif=mode=send_frame:parity=auto:deint=interlaced")
	}
	const rgb16 = "format=gbrp16le"
	if !isYUV(v.PixelFormat) {
		return append(chain, rgb16)
	}
	span := "limited"
	if fullRange(v) {
		span = "full"
	}
	if v.Width%2 != 0 || v.Height%2 != 0 {
		// zscale refuses a size that the chroma does not divide.
		format := "yuv444p"
		if v.BitDepth > 8 {
			format = fmt.Sprintf("yuv444p%dle", v.BitDepth)
		}
		chain = append(chain, "scale=flags=bicubic+accurate_rnd+full_chroma_int:in_range="+span+":out_range="+span, "format="+format)
	}
	chain = append(chain, untagged)
	return append(chain, fmt.Sprintf("zscale=matrixin=%s:rangein=%s:matrix=gbr:range=full:filter=bicubic:dither=none", or(outputColours(v).matrix), span), rgb16)
}

// filterValue writes a value into a filter graph, past its two levels of escapes.
func filterValue(text string) string {
	inner := strings.NewReplacer(`\`, `\\`, `'`, `\'`, `:`, `\:`).Replace(text)
	return strings.NewReplacer(`\`, `\\`, `'`, `\'`, `[`, `\[`, `]`, `\]`, `,`, `\,`, `;`, `\;`).Replace(inner)
}

// options map the picture out of the graph.
func (l *look) options(r recipe) []ffmpeg.Option {
	return []ffmpeg.Option{
		ffmpeg.Opt("filter_complex", l.graph(r.media.Video, r.plan, r.window.filter())),
		ffmpeg.Opt("map", lookPicture), ffmpeg.Opt("fps_mode", "vfr"),
		// The source's own unit of time, which ffmpeg would not know behind such a graph.
		ffmpeg.Opt("enc_time_base", fmt.Sprintf("%d/%d", r.media.Video.Unit.Num, r.media.Video.Unit.Den)),
	}
}

// measured is the second output of a run, for the meter.
func (l *look) measured() ffmpeg.Output {
	return ffmpeg.Output{Pipe: 1, Format: "rawvideo", Options: []ffmpeg.Option{
		ffmpeg.Opt("map", lookBright), ffmpeg.Opt("fps_mode", "passthrough"), ffmpeg.Opt("c:v", "rawvideo"), ffmpeg.Opt("pix_fmt", "gray16le"),
	}}
}

// x265 are the encoder's parameters for static metadata. The light levels are known only when it has ended: finish writes them over these,
// which stand at every key frame.
func (l *look) x265() []string {
	return []string{"hdr10=1", "master-display=" + masterDisplay(l.mastering), fmt.Sprintf("max-cll=%d,%d", hdrPeak, hdrPeak)}
}

// run encodes with the meter on the second output.
func (l *look) run(ctx context.Context, runner *ffmpeg.Runner, p engine.Plan, c ffmpeg.Command) error {
	read, write, err := ffmpeg.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = read.Close() }()
	meter := newLightMeter(p.Width, p.Height)
	var measured error
	var reading sync.WaitGroup
	reading.Go(func() {
		// As ffmpeg's own threads, which it would otherwise cut off at every piece of a frame to look at it.
		engine.LowPriority()
		measured = meter.read(read)
	})
	c.Stdout = write
	err = runner.Run(ctx, c)
	_ = write.Close() // ours of the two that ffmpeg had
	reading.Wait()
	if err == nil && measured != nil {
		err = measured
	}
	if err != nil {
		return err
	}
	l.light = meter.light
	return nil
}

// finish writes the static metadata into a finished file.
func (l *look) finish(ctx context.Context, path string) error {
	return finishHDR(ctx, path, l.mastering, l.light.metadata())
}

// verify holds what was measured of the written file against what it should say of itself.
func (l *look) verify(v *ffmpeg.Video) error {
	want := l.light.metadata()
	switch {
	case v.BitDepth != 10 || v.Primaries != "bt2020" || v.Transfer != "smpte2084" || v.Matrix != "bt2020nc" || v.Range != "tv":
		return fmt.Errorf("output is tagged %s %s %s %s with %d bits, not as HDR10", v.Primaries, v.Transfer, v.Matrix, v.Range, v.BitDepth)
	case v.Mastering == nil || *v.Mastering != l.mastering:
		return fmt.Errorf("output has mastering metadata %+v, want %+v", v.Mastering, l.mastering)
	case v.Light == nil || *v.Light != want:
		return fmt.Errorf("output has light levels %+v, want %+v", v.Light, want)
	}
	return nil
}

// facts are what a client may like to know.
func (l *look) facts(to map[string]any) {
	light := l.light.metadata()
	to["method"], to["hdr"], to["hdr_color_gamut"] = string(l.expansion.method), "pq", l.gamut
	to["max_cll"], to["max_fall"] = light.MaxContent, light.MaxAverage
}
