package video

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
)

// piping is one run of frames through two processes.
type piping struct {
	frames *frames
	recipe *recipe
	runner *ffmpeg.Runner
	stall  time.Duration

	layout, luma layout
	unit         ffmpeg.Ratio

	// free are frames to be filled. Those filled go in order to queue, for the writer, and to jobs, for the workers.
	free, queue, jobs chan *frame
	// times are those of the frames to come. decoded and encoded are closed when a process has ended.
	times            chan int64
	decoded, encoded chan struct{}
	fail             context.CancelCauseFunc
	group            sync.WaitGroup
}

// timesMost is how far the times may run ahead of the frames: filters let go of many frames at once, of 120 a second after a pause, say.
const timesMost = 1 << 14

// pipe runs a recipe with frames.
func (e *editor) pipe(parent context.Context, r *recipe, input string, out ffmpeg.Output, progress func(int64, time.Duration)) error {
	ctx, fail := context.WithCancelCause(parent)
	defer fail(nil)
	p := &piping{
		frames: r.frames, recipe: r, runner: e.runner, stall: e.options.stall(r.plan),
		layout: frameLayout(r.media.Video), luma: lumaLayout(r.media.Video, r.plan), unit: r.unit(), fail: fail,
		free: make(chan *frame, r.frames.held()), queue: make(chan *frame, r.frames.held()), jobs: make(chan *frame, r.frames.held()),
		times: make(chan int64, timesMost), decoded: make(chan struct{}), encoded: make(chan struct{}),
	}
	for range r.frames.held() {
		p.free <- nil // its memory comes with its first use
	}
	if err := p.decode(ctx, input); err != nil {
		return err
	}
	p.group.Go(func() { p.write(ctx, input, out, progress) })
	for range p.frames.workers {
		p.group.Go(func() { p.work(ctx) })
	}
	p.group.Wait()
	if ctx.Err() == nil {
		return nil
	}
	if err := context.Cause(ctx); !errors.Is(err, errEmpty) {
		return err
	}
	return engine.Failf(engine.ProcessingFailed, "No frame of the video could be decoded.")
}

// errEmpty ends a run over a source without frames.
var errEmpty = errors.New("no frames")

// decode starts the first process, and what reads from it.
func (p *piping) decode(ctx context.Context, input string) error {
	pictures, picturesIn, err := ffmpeg.Pipe()
	if err != nil {
		return err
	}
	times, timesIn, err := ffmpeg.Pipe()
	if err != nil {
		_, _ = pictures.Close(), picturesIn.Close()
		return err
	}
	p.group.Go(func() {
		err := p.runner.Run(ctx, ffmpeg.Command{
			Args: p.runner.ArgsOf([]ffmpeg.Input{p.recipe.source(input)}, p.recipe.decoder()), Stdout: picturesIn, Extra: []*os.File{timesIn}, StallTimeout: p.stall,
		})
		if err != nil {
			p.fail(err)
		}
		// The readers see the end only now, when it is known how it came.
		close(p.decoded)
		_, _ = picturesIn.Close(), timesIn.Close()
	})
	p.group.Go(func() {
		defer close(p.times)
		defer func() { _ = times.Close() }()
		if err := readTimes(ctx, times, p.times); err != nil {
			p.fail(err)
		}
	})
	p.group.Go(func() {
		defer close(p.queue)
		defer close(p.jobs)
		defer func() { _ = pictures.Close() }()
		if err := p.read(ctx, pictures); err != nil {
			p.fail(err)
		}
	})
	return nil
}

// timeKey is what the times are printed under by the filter metadata.
const timeKey = "enlarger"

// readTimes reads the times of frames from what the filter metadata prints: "frame:0    pts:512     pts_time:0.04" for each, and a
// line with the key. A frame without a time has math.MinInt64.
func readTimes(ctx context.Context, from io.Reader, to chan<- int64) error {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		line := lines.Bytes()
		if !bytes.HasPrefix(line, []byte("frame:")) {
			continue
		}
		_, after, _ := bytes.Cut(line, []byte(" pts:"))
		word, _, _ := bytes.Cut(after, []byte(" "))
		at := int64(math.MinInt64)
		if string(word) != "NOPTS" {
			var err error
			if at, err = strconv.ParseInt(string(word), 10, 64); err != nil {
				return fmt.Errorf("read the time of a frame: %q", line)
			}
		}
		select {
		case to <- at:
		case <-ctx.Done():
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the times of frames: %w", err)
	}
	return nil
}

// read takes frame after frame from the first process, has them looked at, and hands them on once look is far enough ahead.
func (p *piping) read(ctx context.Context, pictures io.Reader) error {
	var waiting []*frame
	give := func(f *frame) { // both have room for all frames there are
		p.queue <- f
		p.jobs <- f
	}
	last, step := int64(math.MinInt64), int64(1)
	for index := int64(0); ; index++ {
		f, err := p.next(ctx, pictures)
		if err != nil || f == nil {
			for _, f := range waiting {
				give(f)
			}
			return err
		}
		// Without a time of its own, a frame follows the one before at the distance of those two.
		switch {
		case f.time != math.MinInt64:
			step = max(1, f.time-last)
		case last == math.MinInt64:
			f.time = 0
		default:
			f.time = last + step
		}
		last = f.time
		f.index, f.at, f.note = index, float64(f.time)*p.unit.Float(), nil
		if p.frames.look != nil {
			if err := p.frames.look(ctx, f); err != nil {
				return fmt.Errorf("look at frame %d: %w", index, err)
			}
		}
		if waiting = append(waiting, f); len(waiting) > p.frames.ahead {
			give(waiting[0])
			waiting = waiting[1:]
		}
	}
}

// next reads one frame; nil is the end.
func (p *piping) next(ctx context.Context, pictures io.Reader) (*frame, error) {
	var f *frame
	select {
	case f = <-p.free:
	case <-ctx.Done():
		return nil, nil //nolint:nilnil // there are no more frames, and why is known
	}
	if f == nil {
		f = &frame{memory: make([]byte, p.layout.bytes()), done: make(chan error, 1), full: fullRange(p.recipe.media.Video)}
		f.planes = p.layout.over(f.memory)
		if p.frames.enlarged {
			f.luma = p.luma.over(make([]byte, p.luma.bytes()))[0]
		}
	}
	if _, err := io.ReadFull(pictures, f.memory); errors.Is(err, io.EOF) {
		return nil, nil //nolint:nilnil // the end
	} else if err != nil {
		<-p.decoded // whose own error goes first
		return nil, fmt.Errorf("read a frame: %w", err)
	}
	select {
	case at, ok := <-p.times:
		if !ok {
			return nil, errors.New("read a frame: it has no time")
		}
		f.time = at
		return f, nil
	case <-ctx.Done():
		return nil, nil //nolint:nilnil // there are no more frames, and why is known
	}
}

// work changes frames until there are no more.
func (p *piping) work(ctx context.Context) {
	for f := range p.jobs {
		if ctx.Err() != nil {
			f.done <- context.Cause(ctx)
			continue
		}
		f.done <- p.workOn(ctx, f)
	}
}

func (p *piping) workOn(ctx context.Context, f *frame) (err error) {
	defer func() {
		if caught := recover(); caught != nil {
			err = fmt.Errorf("work on frame %d: panic: %v", f.index, caught)
		}
	}()
	if err := p.frames.work(ctx, f); err != nil {
		return fmt.Errorf("work on frame %d: %w", f.index, err)
	}
	return nil
}

// write starts the second process when the first frame is there, and gives it one after the other.
func (p *piping) write(ctx context.Context, input string, out ffmpeg.Output, progress func(int64, time.Duration)) {
	var first *frame
	select {
	case first = <-p.queue:
	case <-ctx.Done():
	}
	if first == nil {
		p.fail(errEmpty)
		return
	}
	stdin, pictures, err := ffmpeg.Pipe()
	if err != nil {
		p.fail(err)
		return
	}
	// Times in the pipe count from the microsecond in which the first frame comes, and ffmpeg adds that again: it takes away from an
	// input's times the first of them, to the nearest microsecond.
	zero := nanoseconds(first.time, p.unit) / 1000 * 1000
	offset := (nanoseconds(first.time, p.unit) + 500) / 1000
	p.group.Go(func() {
		defer close(p.encoded)
		defer func() { _ = stdin.Close() }()
		args := p.runner.ArgsOf(p.recipe.encoderInputs(input, offset), append([]ffmpeg.Output{out}, p.recipe.alike(false)...))
		err := p.runner.Run(ctx, ffmpeg.Command{Args: args, Stdin: stdin, Progress: progress, StallTimeout: p.stall})
		if err != nil {
			p.fail(err)
		}
	})
	err = p.send(pictures, first, zero)
	if err != nil && !errors.Is(err, errPipe) {
		// Before the encoder sees the end of its input and has an opinion of it.
		p.fail(err)
	}
	if closed := pictures.Close(); err == nil && closed != nil {
		p.fail(closed)
	}
	if errors.Is(err, errPipe) {
		<-p.encoded // whose own error goes first
		p.fail(err)
	}
}

var errPipe = errors.New("the encoder took no more frames")

// send writes frames in order, as they are done.
func (p *piping) send(to io.Writer, first *frame, zero int64) error {
	tracks := []layout{p.layout}
	if p.frames.enlarged {
		tracks = append(tracks, p.luma)
	}
	if _, err := to.Write(rawHeader(tracks, p.recipe.nominal())); err != nil {
		return fmt.Errorf("%w: %w", errPipe, err)
	}
	for f := first; f != nil; {
		if err := <-f.done; err != nil {
			return err
		}
		// Only the next frame, or the end, tells how long this one is shown.
		next := <-p.queue
		at, until := nanoseconds(f.time, p.unit)-zero, p.end(f.time)
		if next != nil {
			until = nanoseconds(next.time, p.unit)
		}
		for i := range tracks {
			pixels := f.memory
			if i == 1 {
				pixels = f.luma.pixels
			}
			head, tail := rawFrame(i, at, until-zero-at, len(pixels))
			for _, part := range [][]byte{head, pixels, tail} {
				if _, err := to.Write(part); err != nil {
					return fmt.Errorf("%w: %w", errPipe, err)
				}
			}
		}
		p.free <- f
		f = next
	}
	return nil
}

// end is when the last frame, which comes at a given time, is shown no more, in nanoseconds.
func (p *piping) end(last int64) int64 {
	r := p.recipe
	switch {
	case r.pace != paceKept:
		return nanoseconds(last+1, p.unit)
	case r.window.cut() && r.window.To < math.MaxInt64:
		return nanoseconds(r.window.To-r.window.From, p.unit)
	}
	return nanoseconds(last, p.unit) + int64(r.media.Video.LastHold*1e9)
}

// nanoseconds converts a time.
func nanoseconds(t int64, unit ffmpeg.Ratio) int64 {
	// In two steps, so that neither overflows: no unit is longer than some seconds.
	whole, rest := t/unit.Den, t%unit.Den
	return whole*unit.Num*1e9 + int64(math.Round(float64(rest)*float64(unit.Num)*1e9/float64(unit.Den)))
}

// fineUnit is the parts of a second that times are counted in for sources that do not say theirs.
const fineUnit = 90000

// unit is what the times of frames are counted in, in seconds: the source's own unit, or one frame of an even rate.
func (r recipe) unit() ffmpeg.Ratio {
	if r.pace == paceKept {
		if r.media.Video.Unit.Known() {
			return r.media.Video.Unit
		}
		return ffmpeg.Ratio{Num: 1, Den: fineUnit}
	}
	var frames, seconds int64
	if n, err := fmt.Sscanf(rate(r.plan.FPS), "%d/%d", &frames, &seconds); n != 2 || err != nil || frames < 1 {
		return ffmpeg.Ratio{Num: 1, Den: fineUnit}
	}
	a, b := frames, seconds
	for b > 0 {
		a, b = b, a%b
	}
	return ffmpeg.Ratio{Num: seconds / a, Den: frames / a}
}

// nominal is the frame rate for the encoder's planning, by which the muxer also knows how long the last frame is shown.
func (r recipe) nominal() float64 {
	switch v := r.media.Video; {
	case r.pace != paceKept:
		return r.plan.FPS
	case v.VariableRate && v.LastHold > 0:
		return min(max(1/v.LastHold, 1), 240)
	default:
		return v.FPS
	}
}

// source is the file to read, from the window on.
func (r recipe) source(path string) ffmpeg.Input {
	return ffmpeg.Input{Path: path, Options: r.window.input(r.media.Video)}
}

// decoder gives the outputs of the process that decodes: raw frames, and their times on a pipe of their own.
func (r recipe) decoder() []ffmpeg.Output {
	v, l, unit := r.media.Video, frameLayout(r.media.Video), r.unit()
	formats := l.name
	if !l.deep {
		// The same frames under the old name of full range, so that nothing converts the range.
		formats += "|" + strings.Replace(l.name, "yuv", "yuvj", 1)
	}
	chain := append(prepared(v, r.plan, r.pace),
		// A picture that changes its size on the way is brought to that of the first.
		fmt.Sprintf("scale=w=%d:h=%d", v.Width, v.Height), "format="+formats, fmt.Sprintf("settb=%d/%d", unit.Num, unit.Den),
		fmt.Sprintf(`metadata=mode=add:key=%[1]s:value=1,metadata=mode=print:key=%[1]s:file='pipe\:%[2]d':direct=1`, timeKey, ffmpeg.FirstExtra))
	raw := ffmpeg.Output{Pipe: 1, Format: "rawvideo", Options: []ffmpeg.Option{
		ffmpeg.Opt("map", stream(v.Index)), ffmpeg.Opt("filter:v", r.window.filter()+strings.Join(chain, ",")),
		ffmpeg.Opt("fps_mode", "passthrough"), ffmpeg.Opt("c:v", "rawvideo"),
	}}
	return append([]ffmpeg.Output{raw}, r.alike(true)...)
}

// alike makes a process read the tracks that the other one uses as well, and throw them away: in formats whose times may jump, ffmpeg
// puts the times right by the tracks it reads, and both have to come to the same.
func (r recipe) alike(sound bool) []ffmpeg.Output {
	jumps := r.media.Format == "mpegts" || r.media.Format == "mpeg" || r.media.Format == "ogg"
	if !jumps || r.window.cut() {
		return nil
	}
	options := []ffmpeg.Option{ffmpeg.Opt("map", stream(r.media.Video.Index))}
	if sound {
		if options = nil; r.sound != soundDropped {
			for _, a := range r.media.Audio[:min(len(r.media.Audio), tracksMost)] {
				options = append(options, ffmpeg.Opt("map", stream(a.Index)))
			}
		}
	}
	if len(options) == 0 {
		return nil
	}
	return []ffmpeg.Output{{Path: os.DevNull, Format: "null", Options: append(options, ffmpeg.Opt("c", "copy"))}}
}

// encoderInputs are those of the process that encodes: the source, unless only the picture is written, and the frames, whose times
// begin at offset microseconds.
func (r recipe) encoderInputs(path string, offset int64) []ffmpeg.Input {
	// Few frames wait between pipe and filters: they are large.
	pipe := ffmpeg.Input{Pipe: "matroska", Options: []ffmpeg.Option{
		ffmpeg.Int("thread_queue_size", 2), ffmpeg.Opt("itsoffset", strconv.FormatInt(offset, 10)+"us"),
	}}
	if at := allowed(r.media.Video.ChromaLocation, []string{"left", "center", "topleft", "top", "bottomleft", "bottom"}); at != "" {
		pipe.Options = append(pipe.Options, ffmpeg.Opt("chroma_sample_location", at))
	}
	if r.window.cut() {
		return []ffmpeg.Input{pipe}
	}
	return []ffmpeg.Input{r.source(path), pipe}
}

// framed gives the options that make the picture of the frames that come through the pipe.
func (r recipe) framed() []ffmpeg.Option {
	v, unit, l := r.media.Video, r.unit(), frameLayout(r.media.Video)
	pipe := 1
	if r.window.cut() {
		pipe = 0
	}
	chain := []string{untagged}
	if r.plan.Width != v.Width || r.plan.Height != v.Height || l.across*l.down != 4 {
		chain = append(chain, scaled(v, r.plan.Width, r.plan.Height))
	}
	format, sar := outputFormat(v), v.SAR
	if v.Rotation%180 == 90 {
		sar.Num, sar.Den = sar.Den, sar.Num
	}
	if !sar.Known() {
		sar = ffmpeg.Ratio{Num: 0, Den: 1}
	}
	colour := strings.Join(append(chain, "format="+format), ",")
	end := fmt.Sprintf("%s,setsar=%d/%d", tags(v), sar.Num, sar.Den)
	merged := "mergeplanes=map1s=1:map2s=2:format=" + format
	var options []ffmpeg.Option
	switch f := r.frames; {
	case !f.enlarged:
		options = append(options, ffmpeg.Opt("map", fmt.Sprintf("%d:0", pipe)), ffmpeg.Opt("filter:v", colour+","+end))
	case f.share < 1:
		options = append(options, ffmpeg.Opt("map", "[out]"), ffmpeg.Opt("filter_complex", fmt.Sprintf(
			"[%[1]d:0]%[2]s,extractplanes=y+u+v[l][u][v];[%[1]d:1][l]blend=all_mode=normal:all_opacity=%.3[3]f[y];[y][u][v]%[4]s,%[5]s[out]",
			pipe, colour, f.share, merged, end)))
	default:
		options = append(options, ffmpeg.Opt("map", "[out]"), ffmpeg.Opt("filter_complex", fmt.Sprintf(
			"[%[1]d:0]%[2]s,extractplanes=u+v[u][v];[%[1]d:1][u][v]%[3]s,%[4]s[out]", pipe, colour, merged, end)))
	}
	if r.frames.enlarged {
		options = append(options, ffmpeg.Int("filter_complex_threads", r.threads))
	}
	options = append(options, ffmpeg.Opt("fps_mode", "vfr"), ffmpeg.Opt("enc_time_base", fmt.Sprintf("%d:%d", unit.Num, unit.Den)))
	return append(options, r.videoCodec()...)
}
