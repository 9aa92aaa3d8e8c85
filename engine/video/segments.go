package video

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// segmentsMost bounds the parts of one video: each costs a row, an object and a search for its place in the source.
const segmentsMost = 512

// pixelsPerSecond is what one core of 2020 makes of an upscaled picture, in output pixels a second: measured 45 to 90 million, with the
// faster presets. It decides how long a part is and nothing else.
const pixelsPerSecond = 70e6

// window is a part of the source's time line: the frames whose time is at least From and less than To. The zero value is all of it.
type window struct {
	// From is the time of the first frame; To is that of the first frame of the next part, in the source's units.
	From int64 `json:"from"`
	To   int64 `json:"to"`
	// Seek is where decoding begins: the key frame before the one at From, so that frames which refer to what lies before their key frame
	// (open groups of pictures), and pictures refreshed bit by bit, are whole when From is reached. Nil: at the beginning of the file.
	Seek *int64 `json:"seek,omitempty"`
	// Means names what the parts of one video must all be made with.
	Means string `json:"means,omitempty"`
}

func (w window) cut() bool { return w != window{} }

// input gives the options that stand before the source: times are the file's own, and the search ends at a key frame.
func (w window) input(v *ffmpeg.Video) []ffmpeg.Option {
	if !w.cut() {
		return nil
	}
	options := []ffmpeg.Option{ffmpeg.Flag("copyts")}
	if w.Seek != nil {
		options = append(options, ffmpeg.Flag("noaccurate_seek"), ffmpeg.Int("seek_timestamp", 1),
			ffmpeg.Opt("ss", strconv.FormatInt(microseconds(*w.Seek, v.Unit), 10)+"us"))
	}
	return options
}

// filter is the beginning of the graph: it drops what was decoded on the way, ends the run behind the last frame, and counts the times
// from the first.
func (w window) filter() string {
	if !w.cut() {
		return ""
	}
	end := ""
	if w.To < math.MaxInt64 {
		end = fmt.Sprintf(":end_pts=%d", w.To)
	}
	return fmt.Sprintf("trim=start_pts=%d%s,setpts=PTS-(%d),", w.From, end, w.From)
}

// microseconds converts a time, to the nearest.
func microseconds(t int64, unit ffmpeg.Ratio) int64 {
	return int64(math.Round(float64(t) * float64(unit.Num) * 1e6 / float64(unit.Den)))
}

// cut divides a source into windows of about so many frames each, at its key frames; fewer than two when it cannot be divided without harm.
func cut(t ffmpeg.Timeline, frames int) (windows []window, counts []int64) {
	frames = max(frames, (len(t.Times)+segmentsMost-1)/segmentsMost, 1)
	if t.Missing > 0 || len(t.Times) < 2*frames || !increasing(t.Times) {
		return nil, nil
	}
	first := 0 // the index of the first frame of the window that is being filled
	var begins, seeks []int64
	before := int64(math.MinInt64) // the key frame before the one looked at
	begins, seeks = append(begins, t.Times[0]), append(seeks, before)
	for _, key := range t.Keys {
		at, _ := slices.BinarySearch(t.Times, key)
		// A last window of less than half a length goes to the one before it.
		if at-first >= frames && len(t.Times)-at >= frames/2 && len(begins) < segmentsMost && before > math.MinInt64 {
			begins, seeks = append(begins, key), append(seeks, before)
			counts = append(counts, int64(at-first))
			first = at
		}
		before = key
	}
	counts = append(counts, int64(len(t.Times)-first))
	for i, from := range begins {
		w := window{From: from, To: math.MaxInt64}
		if i+1 < len(begins) {
			w.To = begins[i+1]
		}
		if seeks[i] > t.Keys[0] {
			w.Seek = &seeks[i]
		}
		windows = append(windows, w)
	}
	return windows, counts
}

// increasing says that no two frames have the same time.
func increasing(times []int64) bool {
	for i := 1; i < len(times); i++ {
		if times[i] <= times[i-1] {
			return false
		}
	}
	return true
}

// divisible says whether the frames of a source can be worked on apart: each is made of one frame of the source, and the container tells
// when each is shown and can be entered in the middle.
func divisible(media *ffmpeg.Media, pace pacing) bool {
	v := media.Video
	return pace == paceKept && !v.Interlaced && !hidesFrames(v) && v.Unit.Known() &&
		slices.Contains([]string{"mp4", "matroska"}, media.Format)
}

// partFacts are what a part says of itself to the join.
type partFacts struct {
	Frames int64 `json:"frames"`
	// Start is when the first frame is shown, in microseconds from the beginning of the part: more than 0 when frames before it are damaged.
	Start int64 `json:"start,omitempty"`
	// Setup is ffmpeg.Video.Setup.
	Setup string `json:"setup"`
	// Light is what a look measured of the part.
	Light *contentLight `json:"light,omitempty"`
}

// parted shares out the work of a tool whose picture follows from a recipe, frame by frame. effort is how much longer a pixel takes than
// with video_upscale's classical method.
func parted[C any](e *editor, effort float64, recipeOf func(C, *ffmpeg.Media, engine.Plan) recipe) *engine.Parts[C] {
	prepare := func(ctx context.Context, c C, task engine.Task) (recipe, error) {
		media, err := e.inspected(ctx, task.Input)
		if err != nil {
			return recipe{}, err
		}
		return recipeOf(c, media, task.Plan), nil
	}
	return &engine.Parts[C]{
		Fits: func(part engine.Part) bool {
			var w window
			return json.Unmarshal(part.Spec, &w) == nil && w.Means == e.means()
		},
		Cut: func(ctx context.Context, c C, task engine.Task) ([]engine.Part, error) {
			frames := e.segmentFrames(task.Plan, effort)
			if frames == 0 || task.Plan.Frames < 2*int64(frames) {
				return nil, nil
			}
			r, err := prepare(ctx, c, task)
			if err != nil {
				return nil, err
			}
			return e.cut(ctx, task, r, frames)
		},
		Make: func(ctx context.Context, c C, task engine.Task, part engine.Part) (json.RawMessage, error) {
			r, err := prepare(ctx, c, task)
			if err != nil {
				return nil, err
			}
			if err := json.Unmarshal(part.Spec, &r.window); err != nil || !r.window.cut() {
				return nil, fmt.Errorf("part %d: %q is no window: %w", part.Number, part.Spec, err)
			}
			task.Plan.Frames = part.Frames
			return e.makePart(ctx, task, r)
		},
		Join: func(ctx context.Context, c C, task engine.Task, pieces []engine.Piece) (engine.Output, error) {
			r, err := prepare(ctx, c, task)
			if err != nil {
				return engine.Output{}, err
			}
			return e.join(ctx, task, r, pieces)
		},
	}
}

// means names all that shapes a picture beside the source and the config: the program, the encoders' settings, the models.
func (e *editor) means() string {
	o := e.options
	names := []string{}
	for _, m := range o.Neural.Models() {
		names = append(names, m.Name())
	}
	return fmt.Sprintf("ffmpeg %s, %s, %s, crf %d, hdr %s, models %s", e.runner.Version(), o.H264Preset, o.H265Preset, o.CRF, o.HDR, strings.Join(names, " "))
}

// segmentFrames is how many frames a part of a plan should have; 0 when nothing is to be cut.
func (e *editor) segmentFrames(p engine.Plan, effort float64) int {
	if e.options.Segment <= 0 || p.Pixels() <= 0 {
		return 0
	}
	const least = 24
	frames := e.options.Segment.Seconds() * pixelsPerSecond / effort / float64(p.Pixels())
	return int(min(max(frames, least), math.MaxInt32))
}

func (e *editor) cut(ctx context.Context, task engine.Task, r recipe, frames int) ([]engine.Part, error) {
	if !divisible(r.media, r.pace) {
		return nil, nil
	}
	times, err := e.runner.Timeline(ctx, task.Input, r.media.Video.Index)
	if err != nil {
		return nil, fmt.Errorf("read times: %w", err)
	}
	const fewest = 8 // an encoder holds some back, and a part should not be all beginning
	windows, counts := cut(times, max(frames, fewest))
	if len(windows) < 2 {
		return nil, nil
	}
	parts := make([]engine.Part, 0, len(windows))
	for i, w := range windows {
		w.Means = e.means()
		spec, err := json.Marshal(w)
		if err != nil {
			return nil, fmt.Errorf("cut video: %w", err)
		}
		parts = append(parts, engine.Part{Number: i, Frames: counts[i], Spec: spec})
	}
	return parts, nil
}

// makePart makes the picture of a window and measures it. How many frames may be missing is judged when all parts are there.
func (e *editor) makePart(ctx context.Context, task engine.Task, r recipe) (json.RawMessage, error) {
	if _, err := e.encode(ctx, task, &r); err != nil {
		return nil, err
	}
	written, err := e.runner.Probe(ctx, task.Output)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("measure part: %w", context.Cause(ctx))
	}
	if err != nil || written.Video == nil {
		return nil, engine.Failf(engine.ProcessingFailed, "A part of the video is damaged: no frame of it could be decoded.").Because(err)
	}
	v := written.Video
	if v.Width != r.plan.Width || v.Height != r.plan.Height || v.Frames > task.Plan.Frames {
		return nil, fmt.Errorf("part is %dx%d with %d frames, planned %dx%d with %d", v.Width, v.Height, v.Frames, r.plan.Width, r.plan.Height, task.Plan.Frames)
	}
	facts := partFacts{Frames: v.Frames, Setup: v.Setup, Start: int64(math.Round(max(written.Start, 0) * 1e6))}
	if r.look != nil {
		facts.Light = &r.look.light
	}
	return json.Marshal(facts)
}

// joining is how the picture of an output comes from pieces.
type joining struct {
	// list is the absolute path of ffmpeg's list of the pieces; delay is when the first frame is shown, in microseconds.
	list  string
	delay int64
}

func (j *joining) input() ffmpeg.Input {
	return ffmpeg.Input{Path: j.list, Options: []ffmpeg.Option{ffmpeg.Opt("itsoffset", strconv.FormatInt(j.delay, 10)+"us")}}
}

func (j *joining) picture(r recipe) []ffmpeg.Option {
	options := []ffmpeg.Option{ffmpeg.Opt("map", "1:v:0"), ffmpeg.Opt("c:v", "copy")}
	if r.hevc() {
		options = append(options, ffmpeg.Opt("tag:v", "hvc1"))
	}
	return options
}

// join copies the pictures of all parts, and whatever else the source holds, into the output, and checks that every frame stands where it
// stood in the source.
func (e *editor) join(ctx context.Context, task engine.Task, r recipe, pieces []engine.Piece) (engine.Output, error) {
	list, first, err := e.list(r, pieces)
	if err != nil {
		return engine.Output{}, err
	}
	r.joins = &joining{list: list, delay: first - int64(math.Round(r.media.Start*1e6))}
	out, written, err := e.convert(ctx, task, r)
	if err != nil {
		return engine.Output{}, err
	}
	if err := e.sameTimes(ctx, task, r.media.Video, written.Video); err != nil {
		return engine.Output{}, errors.Join(err, os.Remove(task.Output))
	}
	out.Facts["segments"] = len(pieces)
	return out, nil
}

// list writes the list of the pieces and gives when the first frame is shown, in microseconds by the source's clock.
func (e *editor) list(r recipe, pieces []engine.Piece) (path string, first int64, err error) {
	if len(pieces) == 0 {
		return "", 0, errors.New("no parts to join")
	}
	var windows []window
	var setup string
	start := int64(0)
	for i, p := range pieces {
		var w window
		var facts partFacts
		if err := json.Unmarshal(p.Part.Spec, &w); err != nil {
			return "", 0, fmt.Errorf("part %d: %w", i, err)
		}
		if err := json.Unmarshal(p.Facts, &facts); err != nil {
			return "", 0, fmt.Errorf("facts of part %d: %w", i, err)
		}
		if i == 0 {
			setup, start = facts.Setup, facts.Start
		}
		if r.look != nil {
			if facts.Light == nil {
				return "", 0, fmt.Errorf("part %d says nothing of its light", i)
			}
			r.look.light = r.look.light.with(*facts.Light)
		}
		if facts.Setup != setup || p.Part.Number != i || filepath.Dir(p.Path) != filepath.Dir(pieces[0].Path) {
			return "", 0, fmt.Errorf("part %d of %d does not fit: the decoder's parameters are %q, the first's %q", p.Part.Number, len(pieces), facts.Setup, setup)
		}
		windows = append(windows, w)
	}
	unit := r.media.Video.Unit
	lines := make([]ffmpeg.Piece, len(pieces))
	for i, p := range pieces {
		lines[i].Name = filepath.Base(p.Path)
		if i+1 < len(pieces) {
			// Of absolute times, so that no rounding adds up.
			lines[i].Microseconds = microseconds(windows[i+1].From-windows[0].From, unit) - microseconds(windows[i].From-windows[0].From, unit)
		}
	}
	if path, err = filepath.Abs(filepath.Join(filepath.Dir(pieces[0].Path), "list")); err != nil {
		return "", 0, fmt.Errorf("list of pieces: %w", err)
	}
	return path, microseconds(windows[0].From, unit) + start, ffmpeg.WriteList(path, lines)
}

// sameTimes demands that every frame written stands, counted from the first, at the time of a frame of the source, and that no two stand at
// the same.
func (e *editor) sameTimes(ctx context.Context, task engine.Task, source, written *ffmpeg.Video) error {
	want, err := e.runner.Timeline(ctx, task.Input, source.Index)
	if err != nil {
		return fmt.Errorf("read times: %w", err)
	}
	have, err := e.runner.Timeline(ctx, task.Output, written.Index)
	if err != nil {
		return fmt.Errorf("read times of the joined video: %w", err)
	}
	if len(have.Times) == 0 || len(want.Times) == 0 || !written.Unit.Known() {
		return fmt.Errorf("the joined video has %d frames with a time, the source %d", len(have.Times), len(want.Times))
	}
	next := 0
	for i, t := range have.Times {
		at := microseconds(t-have.Times[0], written.Unit)
		// Both sides are rounded to their unit.
		slack := microseconds(1, written.Unit) + microseconds(1, source.Unit)/2 + 1
		for next < len(want.Times) && microseconds(want.Times[next]-want.Times[0], source.Unit) < at-slack {
			next++
		}
		if next == len(want.Times) || microseconds(want.Times[next]-want.Times[0], source.Unit) > at+slack {
			return fmt.Errorf("frame %d of the joined video is at %d us, where the source has none", i, at)
		}
		next++
	}
	return nil
}

// known keeps what was found out about the last few files: each part of a video would measure its source anew otherwise, which reads it
// from end to end.
type known struct {
	mu    sync.Mutex
	files []knownFile
}

type knownFile struct {
	path    string
	size    int64
	changed time.Time
	media   *ffmpeg.Media
}

const knownFiles = 8

// inspected is inspect, of a file that may have been inspected before.
func (e *editor) inspected(ctx context.Context, path string) (*ffmpeg.Media, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("measure video: %w", err)
	}
	key := knownFile{path: path, size: info.Size(), changed: info.ModTime()}
	e.known.mu.Lock()
	for _, f := range e.known.files {
		if media := f.media; f.path == key.path && f.size == key.size && f.changed.Equal(key.changed) {
			e.known.mu.Unlock()
			return media, nil
		}
	}
	e.known.mu.Unlock()
	if key.media, err = e.inspect(ctx, path); err != nil {
		return nil, err
	}
	e.known.mu.Lock()
	defer e.known.mu.Unlock()
	e.known.files = append(e.known.files, key)
	if over := len(e.known.files) - knownFiles; over > 0 {
		e.known.files = slices.Delete(e.known.files, 0, over)
	}
	return key.media, nil
}
