package video

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// TestSampleClipsKeepTheirSize runs every clip of the sample media, or its first part, through the tools that keep the size. What is
// demanded follows from what ffprobe says of the source. Without ENLARGER_CLIPS (make test-clips) it is a few of them.
func TestSampleClipsKeepTheirSize(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(samples(t), "clips")
	k := newKit(t)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	tools := map[string]func(t *testing.T, path string) (result, error){
		"video_hdr": func(t *testing.T, path string) (result, error) {
			r, _, err := hdrJob(t, Options{}, path, `{"quality":"low"}`)
			return r, err
		},
		"video_face_enhance": func(t *testing.T, path string) (result, error) {
			return faceRun(t.Context(), t, path, `{"face_enhanced_mode":"strong","quality":"low"}`)
		},
	}
	for _, file := range files {
		if file.Name() == "mp4__long_4k_av1.mp4" {
			continue // it may be worked on by these tools, and is six minutes of 4K
		}
		if os.Getenv("ENLARGER_CLIPS") == "" && !slices.ContainsFunc([]string{"rotated", "hlg", "12_5fps"}, func(few string) bool { return strings.Contains(file.Name(), few) }) {
			continue
		}
		for tool, run := range tools {
			t.Run(tool+"/"+file.Name(), func(t *testing.T) {
				t.Parallel()
				path := filepath.Join(dir, file.Name())
				if strings.Contains(path, "audio_only") {
					_, err := run(t, path)
					wantFailure(t, err, engine.UnsupportedFormat)
					return
				}
				seconds := "0.15"
				if strings.Contains(path, "hamilton") {
					seconds = "1" // its sound begins earlier
				}
				if !strings.Contains(path, "edit_list") {
					path = clip(t, "cut"+filepath.Ext(path), "-i", path, "-t", seconds, "-map", "0:v:0", "-map", "0:a?", "-map", "0:s?", "-c", "copy")
				}
				source, err := k.runner.Probe(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				r, err := run(t, path)
				if tool == "video_hdr" && source.Video.HDR() {
					wantFailure(t, err, engine.UnsupportedFormat)
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				sameFacts(t, k, path, source, r, tool == "video_hdr")
			})
		}
	}
}

// sameFacts holds a result of the source's size against the source.
func sameFacts(t *testing.T, k *kit, path string, source *ffmpeg.Media, r result, hdr bool) {
	t.Helper()
	written, err := k.runner.Probe(t.Context(), r.path)
	if err != nil {
		t.Fatal(err)
	}
	s, v := source.Video, written.Video
	if v.Width != even(s.Width) || v.Height != even(s.Height) || v.Rotation != 0 || v.Mirrored {
		t.Errorf("%dx%d turned by %d, want %dx%d upright", v.Width, v.Height, v.Rotation, even(s.Width), even(s.Height))
	}
	frame := 1 / s.FPS
	if v.Frames != s.Frames || math.Abs(v.Duration-s.Duration) > frame+0.002 {
		t.Errorf("%d frames in %.3f s, want %d in %.3f s", v.Frames, v.Duration, s.Frames, s.Duration)
	}
	if len(written.Audio) != len(source.Audio) || len(written.Subtitles) != len(source.Subtitles) {
		t.Errorf("%d audio and %d subtitle tracks, want %d and %d", len(written.Audio), len(written.Subtitles), len(source.Audio), len(source.Subtitles))
	}
	sameStarts(t, path, r.path)
	if !hdr {
		sameTags(t, k, path, v)
		return
	}
	if v.Primaries != "bt2020" || v.Transfer != "smpte2084" || v.Matrix != "bt2020nc" || v.BitDepth != 10 || v.Mastering == nil || v.Light == nil {
		t.Errorf("%s/%s/%s of %d bits, mastering display %+v, light %+v", v.Primaries, v.Transfer, v.Matrix, v.BitDepth, v.Mastering, v.Light)
	}
}
