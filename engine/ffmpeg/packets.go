package ffmpeg

import (
	"bytes"
	"math"
	"slices"
	"strconv"
)

// timeline counts the packets of one video track from ffprobe's lines "stream|pts|dts|duration|flags".
type timeline struct {
	// times are those of the frames that are shown, in the order of the file. missing counts packets without a time.
	times   []int64
	missing int64
	// keys are those of times at which decoding can begin, when timelines.keep asks for them.
	keys []int64
	// last is the greatest time and lastDuration what its packet says of its length.
	last, lastDuration int64
}

// timelines reads ffprobe's packet lines as they come, in bounded memory, for each track.
type timelines struct {
	most   int64
	count  int64
	over   bool
	keep   bool
	tracks map[int]*timeline
	line   []byte
}

const (
	// lineBytes bounds one packet line; a real one is under 100 bytes.
	lineBytes = 1 << 10
	// trackCount bounds the video tracks looked at.
	trackCount = 16
)

func (t *timelines) Write(p []byte) (int, error) {
	written := len(p)
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			if len(t.line)+len(p) > lineBytes {
				return 0, errTooMuch
			}
			t.line = append(t.line, p...)
			break
		}
		t.take(append(t.line, p[:end]...))
		t.line, p = t.line[:0], p[end+1:]
		if t.count > t.most {
			t.over = true
			return 0, errTooMuch
		}
	}
	return written, nil
}

func (t *timelines) take(line []byte) {
	fields := bytes.SplitN(line, []byte("|"), 6)
	if len(fields) < 5 {
		return
	}
	index, err := strconv.Atoi(string(fields[0]))
	if err != nil {
		return
	}
	t.count++
	track := t.tracks[index]
	if track == nil {
		if len(t.tracks) >= trackCount {
			return
		}
		track = &timeline{last: math.MinInt64}
		t.tracks[index] = track
	}
	// D marks what an edit list keeps from being shown.
	if bytes.IndexByte(fields[4], 'D') >= 0 {
		return
	}
	at, err := strconv.ParseInt(string(fields[1]), 10, 64)
	if err != nil {
		if at, err = strconv.ParseInt(string(fields[2]), 10, 64); err != nil {
			track.missing++
			return
		}
	}
	// Beyond this sums would overflow; no honest time comes near.
	if at > 1<<60 || at < -1<<60 {
		track.missing++
		return
	}
	if at >= track.last {
		track.last = at
		track.lastDuration, _ = strconv.ParseInt(string(fields[3]), 10, 64)
	}
	track.times = append(track.times, at)
	if t.keep && bytes.IndexByte(fields[4], 'K') >= 0 {
		track.keys = append(track.keys, at)
	}
}

// measure sets the counted facts of a video from its timeline.
func (v *Video) measure(t *timeline, r rates) {
	base, nominal, average := r.unit, r.nominal, r.average
	v.Unit = base
	v.Frames = int64(len(t.times)) + t.missing
	if v.Frames == 0 {
		return
	}
	guess := nominal.Float()
	if guess == 0 || guess > 1000 {
		guess = average.Float()
	}
	if guess == 0 || guess > 1000 {
		guess = 25
	}
	if len(t.times) == 0 || !base.Known() {
		v.FPS, v.Duration, v.LastHold = guess, float64(v.Frames)/guess, 1/guess
		return
	}
	slices.Sort(t.times)
	step := medianStep(t.times)
	if step <= 0 {
		step = max(1, int64(math.Round(1/(guess*base.Float()))))
	}
	span := t.times[len(t.times)-1] - t.times[0]
	// Some containers give packets a length of one unit, or none. A variable rate may hold its last frame for long.
	end := step
	if t.lastDuration > step/2 && (t.lastDuration < 2*step || t.lastDuration <= span) {
		end = t.lastDuration
	}
	v.Duration, v.LastHold = float64(span+end)*base.Float(), float64(end)*base.Float()
	v.FPS = float64(v.Frames) / v.Duration
	v.VariableRate = uneven(t.times, step, base.Float())
	for _, r := range []Ratio{nominal, average} {
		// Times in whole milliseconds put a short clip some percent off its true rate.
		if !v.VariableRate && r.Known() && math.Abs(r.Float()/v.FPS-1) < max(0.005, 1/float64(v.Frames)) {
			v.FPS = r.Float()
			break
		}
	}
}

// medianStep is the middle distance between neighbours of sorted times.
func medianStep(times []int64) int64 {
	if len(times) < 2 {
		return 0
	}
	steps := make([]int64, len(times)-1)
	for i := range steps {
		steps[i] = times[i+1] - times[i]
	}
	slices.Sort(steps)
	return steps[len(steps)/2]
}

// uneven says whether some step between neighbours is far from the middle one: by more than 30 % and more than the 2 ms that
// rounding to milliseconds can make of equal steps.
func uneven(times []int64, step int64, unit float64) bool {
	for i := 1; i < len(times); i++ {
		off := math.Abs(float64(times[i] - times[i-1] - step))
		if off*unit > 0.002 && off > 0.3*float64(step) {
			return true
		}
	}
	return false
}
