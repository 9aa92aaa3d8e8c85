package video

import (
	"context"
	"encoding/json"
	"regexp"
	"testing"
)

// piped runs a recipe over a file, with Go between two processes when f is not nil.
func (k *kit) piped(t testing.TB, ctx context.Context, path string, c UpscaleConfig, f *frames) (result, error) {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	media, err := k.editor.inspect(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	r := result{source: source(media)}
	spec, err := k.catalog.Order("video_upscale", marshal(t, c), "")
	if err != nil {
		t.Fatal(err)
	}
	if r.plan, err = spec.Plan(r.source); err != nil {
		t.Fatal(err)
	}
	recipe := k.editor.recipe(c, media, r.plan)
	recipe.frames = f
	r.out, r.written, err = k.editor.convert(ctx, r.task(t, path), recipe)
	return r, err
}

// untouched are frames that come out as they went in.
func untouched() *frames {
	return &frames{workers: 2, work: func(context.Context, *frame) error { return nil }}
}

// TestPipeIsOneProcess compares files written through the pipe, with frames that nobody changes, with those of one process: the tracks,
// the time and the length of every packet, and every decoded frame.
func TestPipeIsOneProcess(t *testing.T) {
	t.Parallel()
	k := newKit(t)
	tone := lavfi("sine=440:d=0.4")
	for _, c := range []struct {
		name, file string
		config     UpscaleConfig
		make       []string
		change     func(t *testing.T, path string) string
		// near says that the frames need not be equal, but nearly so: they are converted elsewhere on the way.
		near bool
	}{
		{name: "even rate", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.4")), x264, sd)},
		{name: "12.5 frames a second, B-frames", file: "a.mp4", make: args(lavfi(smooth("64x48", "25/2", "0.8")), []string{"-c:v", "libx264", "-bf", "3"}, sd)},
		{name: "broadcast rate", file: "a.mov", make: args(lavfi(smooth("64x48", "30000/1001", "0.4")), x264, sd)},
		{name: "variable rate", file: "a.mp4", make: args(variable, x264, sd)},
		{name: "variable rate in milliseconds", file: "a.mkv", make: args(variable, x264, sd)},
		{name: "edit list", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.8")), lavfi("sine=440:d=0.8"), []string{"-c:v", "libx264", "-bf", "2", "-g", "5", "-c:a", "aac"}), change: trimmed},
		{name: "turned by 90", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.2")+",setsar=16/11"), x264, sd), change: func(t *testing.T, path string) string { return rotated(t, path, "90") }},
		{name: "turned by 270", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.2")), x264, sd), change: func(t *testing.T, path string) string { return rotated(t, path, "270") }},
		{name: "odd size", file: "a.mkv", make: args(lavfi(smooth("66x50", "25", "0.2")+",format=yuv420p,crop=65:49:exact=1"), []string{"-c:v", "ffv1"}, sd)},
		{name: "4:4:4, full range", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuv444p,scale=out_range=pc,format=yuvj444p"), x264, sd)},
		{name: "full range", file: "a.avi", make: args(lavfi(smooth("64x48", "25", "0.2")), []string{"-pix_fmt", "yuvj420p", "-c:v", "mjpeg", "-q:v", "2"})},
		{name: "4:2:2 of 10 bits", file: "a.mov", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuv422p10le"), []string{"-c:v", "prores_ks"}, sd)},
		{name: "10 bits", file: "a.mp4", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuv420p10le"), x265, sd)},
		{name: "transparent, 12 bits", file: "a.mov", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuva444p10le"), []string{"-c:v", "prores_ks", "-profile:v", "4444"}, sd), near: true},
		{name: "RGB", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=gbrp"), []string{"-c:v", "ffv1"})},
		{name: "grey of 16 bits", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=gray16le"), []string{"-c:v", "ffv1"})},
		{name: "packed 4:2:2", file: "a.avi", make: args(lavfi(smooth("64x48", "25", "0.2")+",format=yuyv422"), []string{"-c:v", "rawvideo"})},
		{name: "interlaced", file: "a.mp4", make: args(lavfi(smooth("64x48", "50", "0.4")+",tinterlace=mode=interleave_top,fieldorder=tff"), x264, []string{"-flags", "+ilme+ildct"})},
		{name: "late picture, three tracks", file: "a.mkv", make: args([]string{"-itsoffset", "0.3"}, lavfi(smooth("64x48", "25", "0.4")), tone, lavfi("sine=660:d=0.5"), x264, []string{"-map", "0", "-map", "1", "-map", "2", "-c:a:0", "aac", "-c:a:1", "flac"})},
		{name: "late sound", file: "a.mkv", make: args(lavfi(smooth("64x48", "25", "0.4")), []string{"-itsoffset", "0.3"}, tone, x264, []string{"-c:a", "aac"})},
		{name: "transport stream", file: "a.ts", make: args([]string{"-itsoffset", "0.2"}, lavfi(smooth("64x48", "25", "0.4")), tone, []string{"-map", "0", "-map", "1", "-c:v", "libx264", "-c:a", "aac"})},
		{name: "program stream", file: "a.mpg", make: args(lavfi(smooth("64x48", "25", "0.4")), tone, []string{"-c:v", "mpeg2video", "-q:v", "2", "-c:a", "mp2"})},
		{name: "faster", file: "a.mp4", config: UpscaleConfig{FPS: 50}, make: args(lavfi(smooth("64x48", "25", "0.4")), tone, x264, []string{"-c:a", "aac"})},
		{name: "slower, of a variable rate", file: "a.mp4", config: UpscaleConfig{FPS: 12}, make: args(variable, x264)},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			source := clip(t, c.file, c.make...)
			if c.change != nil {
				source = c.change(t, source)
			}
			c.config.Scale = 2
			one, err := k.piped(t, t.Context(), source, c.config, nil)
			if err != nil {
				t.Fatal(err)
			}
			two, err := k.piped(t, t.Context(), source, c.config, untouched())
			if err != nil {
				t.Fatal(err)
			}
			sameFile(t, one.path, two.path, c.near)
		})
	}
}

// trimmed cuts the beginning of a clip off between key frames without touching its frames, which only an edit list can say.
func trimmed(t *testing.T, path string) string {
	t.Helper()
	return clip(t, "trimmed.mp4", "-ss", "0.09", "-i", path, "-c", "copy")
}

// lastLength is the length of the last packet of a file, which one process takes from the nominal rate.
var lastLength = regexp.MustCompile(`duration=[0-9.]+(\|flags=\S*\s*)$`)

// sameFile compares two files by their tracks, packets and decoded frames.
func sameFile(t *testing.T, one, two string, near bool) {
	t.Helper()
	for _, look := range [][]string{
		{"-show_entries", "stream=codec_name,profile,width,height,pix_fmt,sample_aspect_ratio,color_range,color_space,color_transfer,color_primaries,time_base,r_frame_rate,start_time:stream_side_data=displaymatrix:stream_tags=language:chapter=start,end", "-show_chapters"},
		{"-show_entries", "packet=stream_index,pts,duration,flags"},
	} {
		read := func(path string) string {
			return lastLength.ReplaceAllString(string(probeRun(t, append(look, "-of", "compact", path)...)), "$1")
		}
		if a, b := read(one), read(two); a != b {
			t.Errorf("one process:\n%s\nthrough the pipe:\n%s", a, b)
		}
	}
	if near {
		samePictures(t, one, two, 64, 48, 40)
		return
	}
	read := func(path string) string {
		return string(ffmpegRun(t, "-i", path, "-map", "0:v", "-f", "framehash", "-hash", "adler32", "-"))
	}
	if a, b := read(one), read(two); a != b {
		t.Errorf("one process:\n%s\nthrough the pipe:\n%s", a, b)
	}
}

func marshal(t testing.TB, v any) json.RawMessage {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
