package video

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"sync"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/image"
)

// FaceEnhanceConfig is the config of video_face_enhance.
type FaceEnhanceConfig struct {
	Mode    string `json:"face_enhanced_mode" doc:"How strongly faces are restored: natural is hardly noticed as such, strong shows." enum:"natural,strong"`
	Quality string `json:"quality" doc:"Quality of the encoding: high is not told from the original, medium and low make smaller files." enum:"high,medium,low"`
	// Codec "" lets the source choose.
	Codec string `json:"codec,omitempty" doc:"Codec of the result; when left out H.264, or 10-bit H.265 for sources of more than 8 bits and HDR." enum:"h264,h265"`
}

// faceNatural and faceStrong are the modes.
const faceNatural, faceStrong = "natural", "strong"

// faceEnhance restores the faces of a video.
func (e *editor) faceEnhance() engine.Tool {
	return engine.Define(engine.Spec[FaceEnhanceConfig]{
		Name:  "video_face_enhance",
		Media: engine.Video,
		Doc: "Restores the faces of a video: takes noise and coding out of skin and gives soft features their detail back. Faces are found, followed and " +
			"faded in and out, so that nothing flickers; all else stays as it is. The size stays; the result is MP4.",
		Defaults: FaceEnhanceConfig{Mode: faceNatural, Quality: qualityHigh},
		Examples: []FaceEnhanceConfig{
			{Mode: faceNatural, Quality: qualityHigh},
			{Mode: faceStrong, Quality: qualityHigh, Codec: codecH265},
			{Mode: faceNatural, Quality: qualityLow, Codec: codecH264},
		},
		Bad: []string{`{"face_enhanced_mode": "extreme"}`, `{"face_enhanced_mode": true}`, `{"quality": "best"}`, `{"codec": "av1"}`},
		Size: func(_ FaceEnhanceConfig, s engine.Source) (int, int) {
			return even(s.Width), even(s.Height)
		},
		Measure: e.measure,
		Memory:  func(_ FaceEnhanceConfig, task engine.Task) int64 { return e.faceMemory(task) },
		Process: func(ctx context.Context, c FaceEnhanceConfig, task engine.Task) (engine.Output, error) {
			if !task.Plan.Known() || task.Plan.Frames == 0 {
				return engine.Output{}, errors.New("video_face_enhance: the plan was made without measuring the source")
			}
			media, err := e.inspected(ctx, task.Input)
			if err != nil {
				return engine.Output{}, err
			}
			j := e.faceJob(c, media, task.Plan, window{})
			out, _, err := e.convert(ctx, task, j.recipe)
			if err != nil {
				return engine.Output{}, err
			}
			j.say(&out, j.facts())
			return out, nil
		},
		Parts: e.faceParts(),
	})
}

// faceMemory is memory, and the frames held while faces are looked for ahead.
func (e *editor) faceMemory(task engine.Task) int64 {
	const mostBytes = 6 // of a pixel in 10 bits without subsampled chroma
	frames := int64(faceAhead(task.Source.FPS, mostBytes*task.Plan.Pixels()) + 2*e.runner.Threads() + 2)
	need := e.memory(task) + frames*mostBytes*task.Plan.Pixels() + int64(e.runner.Threads())*12*4*facePixelsMost
	if m := image.FindFaceModel(e.options.Neural); m != nil {
		need += m.Memory()
	}
	return need
}

// faceAhead is how many frames of so many bytes tracking runs ahead of the work.
func faceAhead(fps float64, bytes int64) int {
	const most, memory = 64, 256 << 20
	wanted := int(math.Ceil(aheadTime * fps))
	return max(min(wanted, most, int(memory/max(bytes, 1))), 1)
}

// faceJob is one run of the tool over a clip or a window of it.
type faceJob struct {
	recipe  recipe
	mode    string
	tracker *faceTracker
	model   *image.FaceModel
	matrix  lumaWeights

	// mu guards what workers count.
	mu           sync.Mutex
	frames, most int
}

func (e *editor) faceJob(c FaceEnhanceConfig, media *ffmpeg.Media, plan engine.Plan, w window) *faceJob {
	v := media.Video
	ahead := faceAhead(v.FPS, int64(frameLayout(v).bytes()))
	origin := 0.0
	if w.cut() && v.Unit.Known() {
		origin = float64(microseconds(w.From, v.Unit)) / 1e6
	}
	j := &faceJob{mode: c.Mode, tracker: newFaceTracker(v.FPS, origin, ahead), matrix: weightsOf(outputColours(v).matrix)}
	if !v.HDR() {
		j.model = image.FindFaceModel(e.options.Neural) // which knows sRGB
	}
	j.recipe = recipe{
		media: media, plan: plan, options: e.options, threads: e.runner.Threads(), pace: paceKept, coding: newCoding(c.Codec, c.Quality), window: w,
		frames: &frames{look: j.tracker.look, ahead: ahead, work: j.work, workers: max(e.runner.Threads(), 1)},
	}
	return j
}

// faceFacts are what a run, or a part of one, says of faces.
type faceFacts struct {
	// Faces is the most at once, Tracks how many were followed from their coming to their going, FaceFrames the frames that show any.
	Faces      int `json:"faces"`
	Tracks     int `json:"face_tracks"`
	FaceFrames int `json:"frames_with_faces"`
}

func (j *faceJob) facts() faceFacts {
	j.mu.Lock()
	defer j.mu.Unlock()
	return faceFacts{Faces: j.most, Tracks: j.tracker.found, FaceFrames: j.frames}
}

// say puts the facts into a job's output.
func (j *faceJob) say(out *engine.Output, f faceFacts) {
	out.Facts["method"], out.Facts["face_enhanced_mode"] = "guided filter+detail", j.mode
	if j.model != nil {
		out.Facts["method"], out.Facts["model"] = "neural", j.model.Name()
	}
	out.Facts["faces"], out.Facts["face_tracks"], out.Facts["frames_with_faces"] = f.Faces, f.Tracks, f.FaceFrames
	if f.Faces == 0 {
		out.Warnings = append(out.Warnings, "No face was found; the picture was left as it is.")
	}
}

// facePart is what a part says of itself: what every part says, and of its faces.
type facePart struct {
	partFacts
	faceFacts
}

// faceParts shares a long video out. Faces at the beginning of a part are there from its first frame, as they were at the end of the one before.
func (e *editor) faceParts() *engine.Parts[FaceEnhanceConfig] {
	// effort is how much longer a pixel takes than with video_upscale's classical method.
	const effort = 1.5
	whole := func(c FaceEnhanceConfig, media *ffmpeg.Media, plan engine.Plan) recipe {
		return e.faceJob(c, media, plan, window{}).recipe
	}
	parts := parted(e, effort, whole)
	parts.Make = func(ctx context.Context, c FaceEnhanceConfig, task engine.Task, part engine.Part) (json.RawMessage, error) {
		media, err := e.inspected(ctx, task.Input)
		if err != nil {
			return nil, err
		}
		var w window
		if err := json.Unmarshal(part.Spec, &w); err != nil || !w.cut() {
			return nil, fmt.Errorf("part %d: %q is no window: %w", part.Number, part.Spec, err)
		}
		task.Plan.Frames = part.Frames
		j := e.faceJob(c, media, task.Plan, w)
		raw, err := e.makePart(ctx, task, j.recipe)
		if err != nil {
			return nil, err
		}
		said := facePart{faceFacts: j.facts()}
		if err := json.Unmarshal(raw, &said.partFacts); err != nil {
			return nil, fmt.Errorf("facts of part %d: %w", part.Number, err)
		}
		return json.Marshal(said)
	}
	join := parts.Join
	parts.Join = func(ctx context.Context, c FaceEnhanceConfig, task engine.Task, pieces []engine.Piece) (engine.Output, error) {
		var all faceFacts
		for i, p := range pieces {
			var said facePart
			if err := json.Unmarshal(p.Facts, &said); err != nil {
				return engine.Output{}, fmt.Errorf("facts of part %d: %w", i, err)
			}
			all.Faces = max(all.Faces, said.Faces)
			all.Tracks += said.Tracks
			all.FaceFrames += said.FaceFrames
		}
		out, err := join(ctx, c, task, pieces)
		if err != nil {
			return engine.Output{}, err
		}
		media, err := e.inspected(ctx, task.Input)
		if err != nil {
			return engine.Output{}, err
		}
		e.faceJob(c, media, task.Plan, window{}).say(&out, all)
		return out, nil
	}
	return parts
}

const (
	// facePixelsMost is the most pixels of a face's rectangle that are worked on: a larger face has its detail, and is left as it is. From
	// facePixelsFull on, the restoration fades, so that a face that comes nearer does not jump.
	facePixelsFull, facePixelsMost = 900_000, 1_200_000
	// fullSizeLong is the longest side of a frame whose faces are worked on at full size; in a larger one it is done at half.
	fullSizeLong = 2600
)

// workShrink is how many times smaller than the frame faces are worked on.
func workShrink(f *frame) int {
	if max(f.planes[0].width, f.planes[0].height) > fullSizeLong {
		return 2
	}
	return 1
}

// faceArea is a rectangle of a frame, in pixels of the work.
type faceArea struct{ x, y, width, height int }

// areaAround is the rectangle around an oval of a frame that is worked on.
func areaAround(f *frame, o image.Oval, shrink int) faceArea {
	p, k := &f.planes[0], float64(shrink)
	a := faceArea{x: max(int((o.X-o.RadiusX)/k)-image.FaceMargin, 0), y: max(int((o.Y-o.RadiusY)/k)-image.FaceMargin, 0)}
	a.width = min(int((o.X+o.RadiusX)/k)+image.FaceMargin, p.width/shrink) - a.x
	a.height = min(int((o.Y+o.RadiusY)/k)+image.FaceMargin, p.height/shrink) - a.y
	return a
}

// lumaAround is the luma around an oval, 0 to 1.
func lumaAround(f *frame, o image.Oval, shrink int) ([]float32, faceArea) {
	a := areaAround(f, o, shrink)
	if a.width < 1 || a.height < 1 {
		return nil, faceArea{}
	}
	out := make([]float32, a.width*a.height)
	black, scale := lumaScale(f)
	share := 1 / (scale * float32(shrink*shrink))
	for y := range a.height {
		to := out[y*a.width:][:a.width]
		for row := (a.y + y) * shrink; row < (a.y+y+1)*shrink; row++ {
			for x := range to {
				for i := (a.x + x) * shrink; i < (a.x+x+1)*shrink; i++ {
					to[x] += (float32(f.planes[0].sample(i, row)) - black) * share
				}
			}
		}
	}
	return out, a
}

// sample is one sample of a plane.
func (p *plane) sample(x, y int) int {
	i := y*p.width + x
	if p.deep {
		return int(p.pixels[2*i]) | int(p.pixels[2*i+1])<<8
	}
	return int(p.pixels[i])
}

// set writes a sample, rounded and held within what the plane can say.
func (p *plane) set(x, y int, v float32) {
	i, most := y*p.width+x, float32(255)
	if p.deep {
		most = 1023
	}
	code := uint16(min(max(v+0.5, 0), most))
	if p.deep {
		p.pixels[2*i], p.pixels[2*i+1] = byte(code), byte(code>>8)
		return
	}
	p.pixels[i] = byte(code)
}

// lumaScale is the code of black and how many codes lie from there to white.
func lumaScale(f *frame) (black, scale float32) {
	step := float32(1)
	if f.planes[0].deep {
		step = 4
	}
	if f.full {
		return 0, 256*step - 1
	}
	return 16 * step, 219 * step
}

// work restores the faces of a frame.
func (j *faceJob) work(ctx context.Context, f *frame) error {
	note, ok := f.note.(*faceNote)
	if !ok {
		return fmt.Errorf("frame %d has no note of faces", f.index)
	}
	if !note.settled {
		j.tracker.settle(note) // the clip has ended
	}
	if n := len(note.places); n > 0 {
		j.mu.Lock()
		j.frames++
		j.most = max(j.most, n)
		j.mu.Unlock()
	}
	for _, place := range note.places {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := j.restore(ctx, f, place); err != nil {
			return err
		}
	}
	return nil
}

// restore restores one face.
func (j *faceJob) restore(ctx context.Context, f *frame, place facePlace) error {
	oval, shrink := place.face.Oval(), workShrink(f)
	was, area := lumaAround(f, oval, shrink)
	pixels := float64(area.width * area.height)
	strength := float32(place.strength * min(max((facePixelsMost-pixels)/(facePixelsMost-facePixelsFull), 0), 1))
	if strength <= 0 || area.width < 8 || area.height < 8 {
		return nil
	}
	now := append([]float32(nil), was...)
	if j.model != nil {
		if err := j.throughModel(ctx, f, area, shrink, now); err != nil {
			return err
		}
		if j.mode == faceNatural {
			strength *= modelNatural
		}
	} else {
		image.RestoreFace(now, area.width, area.height, place.traits, j.mode == faceStrong)
	}
	for i, v := range was {
		now[i] -= v
	}
	f.add(now, area, shrink, oval, strength)
	return nil
}

// modelNatural is how much of a model's answer is taken in natural mode.
const modelNatural = 0.6

// add adds to the luma in an oval what was found for an area that may be smaller than the frame.
func (f *frame) add(more []float32, a faceArea, shrink int, oval image.Oval, strength float32) {
	luma := &f.planes[0]
	_, scale := lumaScale(f)
	for y := a.y * shrink; y < (a.y+a.height)*shrink; y++ {
		for x := a.x * shrink; x < (a.x+a.width)*shrink; x++ {
			cover := oval.Cover(x, y) * strength
			if cover == 0 {
				continue
			}
			var d float32
			if shrink == 1 {
				d = more[(y-a.y)*a.width+x-a.x]
			} else {
				d = between(more, a, (float32(x)+0.5)/float32(shrink)-0.5-float32(a.x), (float32(y)+0.5)/float32(shrink)-0.5-float32(a.y))
			}
			if d != 0 {
				luma.set(x, y, float32(luma.sample(x, y))+cover*d*scale)
			}
		}
	}
}

// between interpolates in an area.
func between(v []float32, a faceArea, x, y float32) float32 {
	x, y = min(max(x, 0), float32(a.width-1)), min(max(y, 0), float32(a.height-1))
	left, top := int(x), int(y)
	right, below := min(left+1, a.width-1), min(top+1, a.height-1)
	s, t := x-float32(left), y-float32(top)
	above := v[top*a.width+left]*(1-s) + v[top*a.width+right]*s
	return above*(1-t) + (v[below*a.width+left]*(1-s)+v[below*a.width+right]*s)*t
}

// lumaWeights are red's and blue's parts of luma.
type lumaWeights struct{ red, blue float32 }

// weightsOf are those of a colour matrix by its name (ITU-T H.273).
func weightsOf(matrix string) lumaWeights {
	switch matrix {
	case "bt709":
		return lumaWeights{0.2126, 0.0722}
	case "bt2020nc", "bt2020c":
		return lumaWeights{0.2627, 0.0593}
	case "smpte240m":
		return lumaWeights{0.212, 0.087}
	}
	return lumaWeights{0.299, 0.114}
}

// throughModel makes luma, that of an area, what a model makes of the area's colours. The colour stays.
func (j *faceJob) throughModel(ctx context.Context, f *frame, a faceArea, shrink int, luma []float32) error {
	var rgb [3][]float32
	for c := range rgb {
		rgb[c] = make([]float32, len(luma))
	}
	w := j.matrix
	green := 1 - w.red - w.blue
	across, down := f.planes[0].width/max(f.planes[1].width, 1), f.planes[0].height/max(f.planes[1].height, 1)
	middle, span := float32(128), float32(224)
	if f.full {
		span = 255
	}
	if f.planes[1].deep {
		middle, span = 4*middle, 4*span
	}
	for y := range a.height {
		for x := range a.width {
			i := y*a.width + x
			cx := min((a.x+x)*shrink/max(across, 1), f.planes[1].width-1)
			cy := min((a.y+y)*shrink/max(down, 1), f.planes[1].height-1)
			u, v := (float32(f.planes[1].sample(cx, cy))-middle)/span, (float32(f.planes[2].sample(cx, cy))-middle)/span
			r, b := luma[i]+2*(1-w.red)*v, luma[i]+2*(1-w.blue)*u
			g := (luma[i] - w.red*r - w.blue*b) / green
			rgb[0][i], rgb[1][i], rgb[2][i] = min(max(r, 0), 1), min(max(g, 0), 1), min(max(b, 0), 1)
		}
	}
	out, err := j.model.Restore(ctx, rgb, a.width, a.height)
	if err != nil {
		return fmt.Errorf("restore a face: %w", err)
	}
	for i := range luma {
		// What was cut off on the way to RGB is not the model's doing.
		luma[i] += w.red*(out[0][i]-rgb[0][i]) + green*(out[1][i]-rgb[1][i]) + w.blue*(out[2][i]-rgb[2][i])
	}
	return nil
}
