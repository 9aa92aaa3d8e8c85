package video

import (
	"context"
	"errors"
	"fmt"
	stdimage "image"
	_ "image/png"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/image"
	"enlarger/engine/neural"
	"enlarger/testbed"
	"enlarger/testbed/onnx"
)

// portrait is a public domain photo of 512x512 with one face, in the middle of its upper half.
const portrait = "../../fixtures/media/astronaut.png"

// faceRun runs video_face_enhance over a file, as a worker does.
func faceRun(ctx context.Context, t testing.TB, path, config string) (result, error) {
	t.Helper()
	return newKit(t).run(ctx, t, "video_face_enhance", path, config)
}

// facts are the counts of a result.
func (r *result) faces() string {
	return fmt.Sprintf("%v %v %v", r.out.Facts["faces"], r.out.Facts["face_tracks"], r.out.Facts["frames_with_faces"])
}

// plainRun encodes a file as video_face_enhance does, without working on it, and gives the result's path.
func plainRun(t testing.TB, path string) string {
	t.Helper()
	slots <- struct{}{}
	defer func() { <-slots }()
	e := newKit(t).editor
	media, err := e.inspect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	v := media.Video
	r := result{source: source(media), plan: engine.Plan{Media: engine.Video, Width: v.Width, Height: v.Height, Frames: v.Frames, FPS: v.FPS, Format: "mp4"}}
	task := r.task(t, path)
	recipe := e.faceJob(FaceEnhanceConfig{Mode: faceNatural, Quality: qualityHigh, Codec: codecH264}, media, r.plan, window{}).recipe
	recipe.frames = nil
	if _, _, err := e.convert(t.Context(), task, recipe); err != nil {
		t.Fatal(err)
	}
	return r.path
}

// lumas decodes the luma of all frames of a file, 8 bits.
func lumas(t testing.TB, path string, width, height int) [][]byte {
	t.Helper()
	raw := ffmpegRun(t, "-i", path, "-an", "-fps_mode", "passthrough", "-vf", "extractplanes=y,format=gray", "-f", "rawvideo", "-")
	return slices.Collect(slices.Chunk(raw, width*height))
}

// apart is the mean difference of two lumas in a rectangle of a, of which b is moved by a shift.
func apart(a, b []byte, width int, r stdimage.Rectangle, shift stdimage.Point) float64 {
	sum := 0
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			v, w := int(a[y*width+x]), int(b[(y+shift.Y)*width+x+shift.X])
			sum += max(v, w) - min(v, w)
		}
	}
	return float64(sum) / float64(r.Dx()*r.Dy())
}

// squares is the mean squared difference.
func squares(a, b []byte, width int, r stdimage.Rectangle) float64 {
	sum := 0
	for y := r.Min.Y; y < r.Max.Y; y++ {
		for x := r.Min.X; x < r.Max.X; x++ {
			d := int(a[y*width+x]) - int(b[y*width+x])
			sum += d * d
		}
	}
	return float64(sum) / float64(r.Dx()*r.Dy())
}

// TestFaceEnhanceMovingFace restores a face that moves, of a clip that was made soft: the face comes nearer to the sharp clip, what is beside it
// stays, and nothing flickers that did not before.
func TestFaceEnhanceMovingFace(t *testing.T) {
	t.Parallel()
	const width, height, frames = 240, 240, 30
	// The window moves 3 pixels in 2 frames; the face stands at about (222, 112) of the photo.
	move := fmt.Sprintf("crop=%d:%d:x='95+floor(1.5*n)':y='10+floor(n/3)',fps=25", width, height)
	sharp := clip(t, "sharp.mkv", "-loop", "1", "-i", portrait, "-frames:v", fmt.Sprint(frames), "-vf", move+",format=yuv420p", "-c:v", "ffv1")
	soft := clip(t, "soft.mp4", "-i", sharp, "-vf", "scale=150:150:flags=area,scale=240:240:flags=bicubic", "-c:v", "libx264", "-crf", "16", "-preset", "veryfast")
	wanted, was := lumas(t, sharp, width, height), lumas(t, soft, width, height)
	plain := lumas(t, plainRun(t, soft), width, height)
	for _, config := range []string{`{}`, `{"face_enhanced_mode":"strong","codec":"h265"}`} {
		r, err := faceRun(t.Context(), t, soft, config)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.faces(); got != "1 1 30" || len(r.out.Warnings) != 0 || r.out.Width != width {
			t.Fatalf("%s: %s %+v", config, got, r.out)
		}
		now := lumas(t, r.path, width, height)
		if len(now) != frames || len(was) != frames {
			t.Fatalf("%d frames of %d", len(now), len(was))
		}
		var error0, error1, moved0, moved1, moved2, flicker0, flicker1, beside, changed float64
		var changes []float64
		still := stdimage.Point{}
		for n := range frames {
			face := stdimage.Rect(-40, -45, 40, 45).Add(stdimage.Pt(222-95-n*3/2, 112-10-n/3))
			error0, error1 = error0+squares(was[n], wanted[n], width, face), error1+squares(now[n], wanted[n], width, face)
			beside += apart(now[n], was[n], width, stdimage.Rect(0, 0, width, 10), still) / frames
			changes = append(changes, apart(now[n], was[n], width, face, still))
			changed += changes[n] / frames
			if n > 0 {
				shift := stdimage.Pt(n*3/2-(n-1)*3/2, n/3-(n-1)/3)
				flicker0, flicker1 = flicker0+apart(plain[n], plain[n-1], width, face, shift), flicker1+apart(now[n], now[n-1], width, face, shift)
				moved0, moved1 = moved0+apart(was[n], was[n-1], width, face, still), moved1+apart(now[n], now[n-1], width, face, still)
				moved2 += apart(wanted[n], wanted[n-1], width, face, still)
			}
		}
		gain := 10 * math.Log10(error0/error1)
		t.Logf("%s: %+.2f dB on the face, changed by %.2f codes, beside it by %.2f; from frame to frame %.3f of before (sharp: %.3f), along the movement %.3f",
			config, gain, changed, beside, moved1/moved0, moved2/moved0, flicker1/flicker0)
		if beside > 1.3 || changed < beside+0.3 {
			t.Errorf("%s: the face changed by %.2f codes, what is beside it by %.2f", config, changed, beside)
		}
		if config == `{}` && gain < 0.4 {
			t.Errorf("the face came %.2f dB nearer", gain)
		}
		// A sharper face that moves changes more from frame to frame; it must not do so more than the sharp clip.
		if moved1 > moved2 || flicker1 > 1.5*flicker0 || slices.Max(changes) > 2*slices.Min(changes) {
			t.Errorf("%s: frames differ %.3f times as much as before, %.3f times along the movement; changes by %.2f", config, moved1/moved0, flicker1/flicker0, changes)
		}
	}
}

// TestFaceEnhanceWithoutFace leaves a clip without a face as it is and says so, of any depth.
func TestFaceEnhanceWithoutFace(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"yuv420p", "yuv422p10le"} {
		source := clip(t, "test.mkv", "-f", "lavfi", "-i", "testsrc2=s=161x121:r=25:d=0.6", "-vf", "format="+format, "-c:v", "ffv1")
		r, err := faceRun(t.Context(), t, source, `{}`)
		if err != nil {
			t.Fatal(err)
		}
		if r.faces() != "0 0 0" || len(r.out.Warnings) != 1 || !strings.HasPrefix(r.out.Warnings[0], "No face was found") {
			t.Errorf("%s: %s %q", format, r.faces(), r.out.Warnings)
		}
		samePictures(t, source, r.path, 161, 121, 27) // the colours of half size cost as much
	}
}

// TestFaceEnhanceDeep keeps ten bits and restores the face in them.
func TestFaceEnhanceDeep(t *testing.T) {
	t.Parallel()
	source := clip(t, "deep.mp4", "-loop", "1", "-i", portrait, "-frames:v", "8", "-vf", "crop=240:240:100:0,scale=160:160,scale=240:240:flags=bicubic,fps=10,format=yuv420p10le",
		"-c:v", "libx265", "-x265-params", "log-level=error", "-preset", "ultrafast", "-crf", "12")
	r, err := faceRun(t.Context(), t, source, `{"face_enhanced_mode":"strong"}`)
	if err != nil {
		t.Fatal(err)
	}
	if r.faces() != "1 1 8" || r.out.Facts["bit_depth"] != 10 || r.out.Codec != "h265" {
		t.Errorf("%s %+v", r.faces(), r.out)
	}
	was, now := lumas(t, source, 240, 240), lumas(t, r.path, 240, 240)
	if d := apart(was[4], now[4], 240, stdimage.Rect(85, 75, 160, 150), stdimage.Point{}); d < 1 || d > 12 {
		t.Errorf("the face changed by %.2f codes", d)
	}
}

func TestFaceEnhanceCancel(t *testing.T) {
	t.Parallel()
	source := clip(t, "long.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=20", "-c:v", "libx264", "-preset", "ultrafast")
	ctx, cancel := context.WithCancel(t.Context())
	k := newKit(t)
	order, err := k.catalog.Order("video_face_enhance", nil, "")
	if err != nil {
		t.Fatal(err)
	}
	var r result
	if r.source, err = order.Measure(ctx, source); err != nil {
		t.Fatal(err)
	}
	if r.plan, err = order.Plan(r.source); err != nil {
		t.Fatal(err)
	}
	task := r.task(t, source)
	task.Progress = func(float64) { cancel() }
	if _, err := order.Process(ctx, task); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(task.Output); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the unfinished output is there: %v", err)
	}
}

// TestFaceEnhanceParts makes a clip in parts: the same facts as of the whole, and at the seam frames as alike as elsewhere.
func TestFaceEnhanceParts(t *testing.T) {
	t.Parallel()
	source := clip(t, "parts.mp4", "-loop", "1", "-i", portrait, "-frames:v", "48", "-vf", "crop=200:200:x='110+n/2':y=10,fps=25,format=yuv420p", "-c:v", "libx264", "-crf", "20",
		"-preset", "veryfast", "-g", "24", "-sc_threshold", "0", "-bf", "0")
	whole, err := faceRun(t.Context(), t, source, `{"face_enhanced_mode":"strong"}`)
	if err != nil {
		t.Fatal(err)
	}
	e := newKit(t).editor
	media, err := e.inspect(t.Context(), source)
	if err != nil {
		t.Fatal(err)
	}
	c := FaceEnhanceConfig{Mode: faceStrong, Quality: qualityHigh, Codec: codecH264}
	shared := e.faceParts()
	joined := result{plan: whole.plan, source: whole.source}
	task := joined.task(t, source)
	parts, err := e.cut(t.Context(), task, e.faceJob(c, media, whole.plan, window{}).recipe, 24)
	if err != nil || len(parts) != 2 {
		t.Fatalf("%d parts, %v", len(parts), err)
	}
	var pieces []engine.Piece
	for _, p := range parts {
		part := task
		part.Output = filepath.Join(task.Scratch, fmt.Sprintf("part-%d.mp4", p.Number))
		facts, err := shared.Make(t.Context(), c, part, p)
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, engine.Piece{Part: p, Path: part.Output, Facts: facts})
	}
	if joined.out, err = shared.Join(t.Context(), c, task, pieces); err != nil {
		t.Fatal(err)
	}
	if whole.faces() != "1 1 48" || joined.faces() != "1 2 48" { // a face that goes on in the next part begins there anew
		t.Errorf("%s, in parts %s", whole.faces(), joined.faces())
	}
	one, two := lumas(t, whole.path, 200, 200), lumas(t, joined.path, 200, 200)
	for n := range one {
		if d := apart(one[n], two[n], 200, stdimage.Rect(0, 0, 200, 200), stdimage.Point{}); d > 1.5 {
			t.Errorf("frame %d differs by %.2f codes", n, d)
		}
	}
}

// trackClip has a tracker look at windows of the portrait, of which at gives the corner, or false for a frame of another scene, and gives what it
// settled of each frame.
func trackClip(t *testing.T, frames int, fps float64, at func(n int) (x, y int, shown bool)) ([]*faceNote, *faceTracker) {
	t.Helper()
	file, err := os.Open(portrait)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	photo, _, err := stdimage.Decode(file)
	if err != nil {
		t.Fatal(err)
	}
	const side = 200
	tracker := newFaceTracker(fps, 0, faceAhead(fps, side*side))
	var notes []*faceNote
	for n := range frames {
		f := &frame{index: int64(n), at: float64(n) / fps}
		f.planes[0] = plane{pixels: make([]byte, side*side), width: side, height: side}
		x0, y0, shown := at(n)
		for i := range side * side {
			v := uint32(60 + 60*(i/side/25%2))
			if shown {
				r, g, b, _ := photo.At(x0+i%side, y0+i/side).RGBA()
				v = (299*r + 587*g + 114*b) / 1000 >> 8
			}
			f.planes[0].pixels[i] = byte(v)
		}
		if err := tracker.look(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		notes = append(notes, f.note.(*faceNote))
	}
	for _, n := range notes {
		if !n.settled {
			tracker.settle(n)
		}
	}
	return notes, tracker
}

// TestFacesAreFollowed follows the face of the portrait while it moves: it is there in every frame from the first, and moves as it does.
func TestFacesAreFollowed(t *testing.T) {
	t.Parallel()
	at := func(n int) (int, int, bool) { return 110 + n, 10 + n/4, true }
	notes, tracker := trackClip(t, 40, 25, at)
	for n, note := range notes {
		if len(note.places) != 1 {
			t.Fatalf("frame %d: %d faces", n, len(note.places))
		}
		p := note.places[0]
		x, y, _ := at(n)
		if math.Hypot(p.face.X-float64(222-x), p.face.Y-float64(112-y)) > 8 || p.strength != 1 || p.face.Size < 85 || p.face.Size > 135 {
			t.Errorf("frame %d: %+v, should be at (%d, %d)", n, p, 222-x, 112-y)
		}
		if n > 0 {
			q := notes[n-1].places[0]
			if step := math.Abs(p.face.X - q.face.X + 1); step > 1.2 || math.Abs(p.face.Size-q.face.Size) > 1.5 {
				t.Errorf("frame %d: from %+v to %+v", n, q.face, p.face)
			}
		}
	}
	if tracker.found != 1 {
		t.Errorf("%d faces", tracker.found)
	}
}

// TestFacesComeAndGo has the face leave the picture and come back, and a cut to another scene and back.
func TestFacesComeAndGo(t *testing.T) {
	t.Parallel()
	const fps = 25
	// Out to the left and back, 6 pixels a frame.
	sliding, tracker := trackClip(t, 100, fps, func(n int) (int, int, bool) { return 130 + 6*min(n, 100-n), 10, true })
	if tracker.found != 2 {
		t.Errorf("%d faces, the one that comes back is the second", tracker.found)
	}
	for n, note := range sliding {
		var now, before float64
		for _, p := range note.places {
			now = max(now, p.strength)
		}
		if n > 0 {
			for _, p := range sliding[n-1].places {
				before = max(before, p.strength)
			}
			if step := math.Abs(now - before); step > 1.01/(fadeTime*fps) {
				t.Errorf("frame %d: the strength jumps by %.2f", n, step)
			}
		}
		if inside, away := n < 8 || n > 98, n > 45 && n < 75; (inside && now < 0.5) || (away && now > 0) {
			t.Errorf("frame %d: strength %.2f", n, now)
		}
	}
	cuts, tracker := trackClip(t, 75, fps, func(n int) (int, int, bool) { return 120, 10, n < 25 || n >= 50 })
	for n, note := range cuts {
		if shown := n < 25 || n >= 50; shown && (len(note.places) != 1 || note.places[0].strength != 1) || !shown && len(note.places) != 0 {
			t.Errorf("frame %d: %+v", n, note.places)
		}
	}
	if tracker.found != 2 {
		t.Errorf("%d faces before and after a cut", tracker.found)
	}
}

// TestFalseFindNeverShows finds something once that is no face, and a face that is missed for half a second.
func TestFalseFindNeverShows(t *testing.T) {
	t.Parallel()
	const fps, side = 25.0, 160
	tracker := newFaceTracker(fps, 0, 12)
	var notes []*faceNote
	pixels := make([]byte, side*side)
	for i := range pixels {
		pixels[i] = byte(120 + 60*math.Sin(float64(i%side)/9)*math.Cos(float64(i/side)/7))
	}
	small := smallLuma{width: side, height: side, shrink: 1, pix: pixels}
	for n := range 60 {
		f := &frame{index: int64(n), at: float64(n) / fps}
		f.planes[0] = plane{pixels: pixels, width: side, height: side}
		if err := tracker.look(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		find := func(x float64) {
			face := image.Face{X: x, Y: 80, Size: 40, Quality: 40}
			track := nearest(tracker.live(), face, map[*faceTrack]bool{})
			if track == nil {
				track = &faceTrack{face: face, steady: true}
				tracker.tracks = append(tracker.tracks, track)
			}
			tracker.seen(track, f, &small, face)
		}
		if n == 5 {
			find(40)
		}
		if n >= 10 && n <= 14 || n >= 26 && n < 40 {
			find(110)
		}
		notes = append(notes, f.note.(*faceNote))
	}
	for n, note := range notes {
		for _, p := range note.places {
			if p.face.X < 80 {
				t.Fatalf("frame %d shows what was found once: %+v", n, p)
			}
		}
		if n > 22 && n < 40 && (len(note.places) != 1 || note.places[0].strength < 1) {
			t.Errorf("frame %d: a face that was missed for a while is %+v", n, note.places)
		}
	}
}

// TestReducedLuma averages squares in both depths.
func TestReducedLuma(t *testing.T) {
	t.Parallel()
	const width, height = 1302, 4
	for _, deep := range []bool{false, true} {
		p := plane{width: width, height: height, deep: deep}
		p.pixels = make([]byte, p.bytes())
		for y := range height {
			for x := range width {
				v := float32(x%3*30 + 60*y)
				if deep {
					v *= 4
				}
				p.set(x, y, v)
			}
		}
		s := reducedLuma(&p)
		if s.width != width/3 || s.height != 1 || s.shrink != 3 {
			t.Fatalf("%dx%d by %d", s.width, s.height, s.shrink)
		}
		for _, v := range s.pix {
			if v != 90 { // the mean of 0, 30, 60 and of 0, 60, 120
				t.Fatalf("deep %t: %d", deep, v)
			}
		}
	}
	tiny := reducedLuma(&plane{width: 1, height: 1, pixels: []byte{7}})
	if len(tiny.pix) != 1 || tiny.pix[0] != 7 {
		t.Errorf("%+v", tiny)
	}
}

// TestWorkAtHalfSize restores in a frame of more than fullSizeLong at half size, and only within the oval.
func TestWorkAtHalfSize(t *testing.T) {
	t.Parallel()
	const width, height = 2602, 300
	f := &frame{planes: [3]plane{{width: width, height: height, pixels: make([]byte, width*height)}}}
	for i := range f.planes[0].pixels {
		f.planes[0].pixels[i] = byte(120 + 40*math.Sin(float64(i%width)/5))
	}
	was := slices.Clone(f.planes[0].pixels)
	j := &faceJob{mode: faceStrong}
	place := facePlace{face: image.Face{X: 1300, Y: 150, Size: 140}, strength: 1, traits: image.FaceTraits{Softness: 1}}
	if err := j.restore(t.Context(), f, place); err != nil {
		t.Fatal(err)
	}
	oval, changed := place.face.Oval(), 0
	for i, v := range was {
		if now := f.planes[0].pixels[i]; now != v {
			if changed++; oval.Cover(i%width, i/width) == 0 {
				t.Fatalf("(%d, %d) changed", i%width, i/width)
			}
		}
	}
	if changed < 5000 {
		t.Errorf("%d pixels changed", changed)
	}
	// A face so large has its detail.
	copy(f.planes[0].pixels, was)
	place.face.Size = 4000
	if err := j.restore(t.Context(), f, place); err != nil || !slices.Equal(was, f.planes[0].pixels) && width*height/4 > facePixelsMost {
		t.Errorf("%v", err)
	}
}

// bigFace is a frame of 1920x1080 with a note of one face of a size.
func bigFace(size float64) (*frame, facePlace) {
	const width, height = 1920, 1080
	f := &frame{planes: [3]plane{{width: width, height: height, pixels: make([]byte, width*height)}}}
	for i := range f.planes[0].pixels {
		f.planes[0].pixels[i] = byte(120 + 60*math.Sin(float64(i%width)/7)*math.Cos(float64(i/width)/11))
	}
	return f, facePlace{face: image.Face{X: 960, Y: 540, Size: size}, strength: 1, traits: image.FaceTraits{Softness: 1}}
}

func BenchmarkRestoreFace(b *testing.B) {
	for _, size := range []float64{100, 300, 600} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			f, place := bigFace(size)
			j := &faceJob{mode: faceStrong}
			for b.Loop() {
				if err := j.restore(b.Context(), f, place); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLook looks at a second of 1920x1080 at 25 frames a second, with nothing to follow.
func BenchmarkLook(b *testing.B) {
	f, _ := bigFace(100)
	for b.Loop() {
		tracker := newFaceTracker(25, 0, 12)
		for n := range 25 {
			f.index, f.at = int64(n), float64(n)/25
			if err := tracker.look(b.Context(), f); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// faceModel opens a runtime with one model for faces, which multiplies colours by a factor.
func faceModel(t testing.TB, factor float32) *neural.Runtime {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{
		"shade.json": `{"task": "face", "whole": {"width": 96, "height": 96}, "input": {"channels": "rgb"}}`,
		"shade.onnx": string(onnx.Filter(3, 1, [][9]float32{{4: factor}})),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	library, err := neural.FindLibrary(testbed.ONNXRuntime())
	if err != nil {
		t.Fatalf("%v; run `make deps`", err)
	}
	r, err := neural.Open(t.Context(), neural.Config{Library: library, Models: dir, Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// TestFaceEnhanceByModel has an operator's model darken the face: by its part in natural mode, wholly in strong, of any layout, and the colour stays.
func TestFaceEnhanceByModel(t *testing.T) {
	t.Parallel()
	model := image.FindFaceModel(faceModel(t, 0.5))
	const width, height = 160, 160
	for _, c := range []struct {
		across, down int
		deep, full   bool
		mode         string
		part         float64
	}{
		{2, 2, false, false, faceStrong, 0.5}, {2, 2, false, false, faceNatural, 0.7}, {2, 1, true, false, faceStrong, 0.5}, {1, 1, true, true, faceStrong, 0.5},
	} {
		f := &frame{full: c.full}
		f.planes[0] = plane{width: width, height: height, deep: c.deep}
		f.planes[1] = plane{width: width / c.across, height: height / c.down, deep: c.deep}
		f.planes[2] = f.planes[1]
		for i := range f.planes {
			f.planes[i].pixels = make([]byte, f.planes[i].bytes())
		}
		black, scale := lumaScale(f)
		grey, skin := float32(0.5), float32(1)
		if c.deep {
			skin = 4
		}
		for y := range height {
			for x := range width {
				f.planes[0].set(x, y, black+grey*scale)
				f.planes[1].set(x/c.across, y/c.down, 118*skin)
				f.planes[2].set(x/c.across, y/c.down, 143*skin)
			}
		}
		j := &faceJob{mode: c.mode, model: model, matrix: weightsOf("bt709")}
		if err := j.restore(t.Context(), f, facePlace{face: image.Face{X: 80, Y: 80, Size: 70}, strength: 1}); err != nil {
			t.Fatal(err)
		}
		middle, rim := (float32(f.planes[0].sample(80, 80))-black)/scale, (float32(f.planes[0].sample(3, 3))-black)/scale
		if math.Abs(float64(middle)-c.part*float64(grey)) > 0.01 || math.Abs(float64(rim-grey)) > 0.004 || f.planes[1].sample(20, 20) != int(118*skin) {
			t.Errorf("%+v: %.3f in the middle, %.3f outside, chroma %d", c, middle, rim, f.planes[1].sample(20, 20))
		}
	}
	e := newKit(t).editor
	options := e.options
	options.Neural = faceModel(t, 0.5)
	named := (&editor{runner: e.runner, options: options}).faceJob(FaceEnhanceConfig{Mode: faceStrong}, &ffmpeg.Media{Video: &ffmpeg.Video{
		Width: 64, Height: 64, PixelFormat: "yuv420p", BitDepth: 8, FPS: 25,
	}}, engine.Plan{}, window{})
	out := engine.Output{Facts: map[string]any{}}
	named.say(&out, faceFacts{Faces: 1})
	if out.Facts["method"] != "neural" || out.Facts["model"] != "shade" || len(out.Warnings) != 0 {
		t.Errorf("%v", out)
	}
}

// TestFaceEnhanceSamples runs beginnings of sample clips: the size upright, every frame at its time, the depth and the tags kept, and faces where there are any.
func TestFaceEnhanceSamples(t *testing.T) {
	t.Parallel()
	clips := filepath.Join(samples(t), "clips")
	for _, c := range []struct {
		name          string
		width, height int
		codec         string
		depth, faces  int
	}{
		{"short_hamilton_clip.mp4", 640, 360, "h264", 8, 1},
		{"mp4__bt601.mp4", 360, 240, "h264", 8, 1},
		{"mp4__internal_emulator_transformer_output_270_rotated.mp4", 720, 1280, "h264", 8, 0},
		{"vp9__bear-vp9-odd-dimensions.webm", 162, 122, "h264", 8, 0},
		{"mp4__hdr10-av1.mp4", 720, 1280, "h265", 10, 0},
	} {
		cut := []string{"-c", "copy"}
		if c.name == "short_hamilton_clip.mp4" { // whose edit list a copy of its beginning does not survive
			cut = []string{"-c:v", "libx264", "-preset", "ultrafast", "-crf", "12"}
		}
		source := clip(t, "begin"+filepath.Ext(c.name), append([]string{"-t", "0.4", "-i", filepath.Join(clips, c.name), "-map", "0:v:0"}, cut...)...)
		r, err := faceRun(t.Context(), t, source, `{"quality":"medium"}`)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		o := r.out
		if o.Width != c.width || o.Height != c.height || o.Codec != c.codec || o.Facts["bit_depth"] != c.depth || o.Facts["faces"] != c.faces || o.Facts["frames"] != r.source.Frames {
			t.Errorf("%s: %+v of %+v", c.name, o, r.source)
		}
		if (len(o.Warnings) > 0) != (c.faces == 0) {
			t.Errorf("%s: %q", c.name, o.Warnings)
		}
		one, two := shownTimes(t, newKit(t), source), shownTimes(t, newKit(t), r.path)
		if off := math.Abs(o.Duration - r.source.Duration); off > 1/r.source.FPS+0.002 || len(one) != len(two) {
			t.Errorf("%s: %d frames in %.3f s of %d in %.3f s", c.name, len(two), o.Duration, len(one), r.source.Duration)
			continue
		}
		for i := range one {
			if d := one[i] - two[i]; d > 1000 || d < -1000 {
				t.Errorf("%s: frame %d is at %d us, in the source at %d", c.name, i, two[i], one[i])
				break
			}
		}
	}
}
