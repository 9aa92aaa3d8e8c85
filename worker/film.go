package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// helpersMost bounds the wake-ups that call other workers to a job: more than so many seldom have a slot to spare.
const helpersMost = 8

// make runs the tool: over the whole, or part by part when the tool cuts the task.
func (r *run) make(ctx context.Context, task engine.Task) error {
	segments, err := r.segments(ctx, task)
	if err != nil {
		return err
	}
	if len(segments) > 1 {
		return r.film(ctx, task, len(segments))
	}
	return lowly(func() (err error) {
		r.result, err = r.order.Process(ctx, task)
		return err
	})
}

// segments reads the parts that an earlier run has cut, or cuts the task. Parts that this process would make in another way are begun anew.
func (r *run) segments(ctx context.Context, task engine.Task) (segments []job.Segment, err error) {
	if r.plan.Media != engine.Video {
		return nil, nil
	}
	read := func(ctx context.Context) (err error) {
		segments, err = r.Jobs.Segments(ctx, r.job.ID)
		return err
	}
	if err := r.record(ctx, read); err != nil || len(segments) > 0 && r.order.Fits(segments[0].Part) {
		return segments, err
	}
	parts := []engine.Part{}
	err = lowly(func() error {
		cut, err := r.order.Cut(ctx, task)
		if len(cut) > 1 {
			parts = cut
		}
		return err
	})
	if err != nil || len(parts) == 0 && len(segments) == 0 {
		return nil, err
	}
	write := func(ctx context.Context) error { return r.Jobs.AddSegments(ctx, r.job, parts) }
	if len(segments) > 0 {
		r.log.Warn("parts are cut anew: earlier ones were made with other means")
		write = func(ctx context.Context) error { return r.Jobs.RestartSegments(ctx, r.job, parts) }
	}
	if err := r.record(ctx, write); err != nil {
		return nil, err
	}
	r.log.Info("cut into parts", zap.Int("parts", len(parts)))
	return segments, r.record(ctx, read)
}

// film makes the parts of the run's job, one after the other, beside whoever helps, until all are there, and joins them.
func (r *run) film(ctx context.Context, task engine.Task, parts int) error {
	looking, stop := context.WithCancel(ctx)
	defer stop()
	var lookout sync.WaitGroup
	lookout.Go(func() { r.oversee(looking) })
	defer lookout.Wait()
	defer stop()
	for {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		segment, err := r.claimSegment(ctx, true)
		switch {
		case err == nil && r.isDraining():
			r.giveBack(ctx, segment, false)
			r.cancel(errYield)
			return errYield
		case err == nil:
			if err := r.part(ctx, task, segment); err != nil {
				return err
			}
			continue
		case !errors.Is(err, job.ErrNoSegment):
			return err
		}
		done, err := r.allDone(ctx, parts)
		if err != nil {
			return err
		}
		if done != nil {
			stop()
			return r.join(ctx, task, done)
		}
		if r.isDraining() {
			r.cancel(errYield)
			return errYield
		}
		// Others have the rest: one of them may die.
		if !sleep(ctx, min(time.Second, r.Heartbeat)) {
			return context.Cause(ctx)
		}
	}
}

// claimSegment asks for a part, again while the database is away.
func (r *run) claimSegment(ctx context.Context, own bool) (segment job.Segment, err error) {
	err = r.record(ctx, func(ctx context.Context) (err error) {
		segment, err = r.Jobs.ClaimSegment(ctx, r.job.ID, r.Name, own, r.Lease)
		return err
	})
	return segment, err
}

// allDone gives the parts when all are done, else nil.
func (r *run) allDone(ctx context.Context, parts int) (segments []job.Segment, err error) {
	err = r.record(ctx, func(ctx context.Context) (err error) {
		segments, err = r.Jobs.Segments(ctx, r.job.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	if len(segments) != parts {
		return nil, job.ErrStale // the job has ended
	}
	for _, s := range segments {
		if s.Status != job.SegmentDone {
			return nil, nil
		}
	}
	return segments, nil
}

// oversee tells how far all parts are together, and calls for help while some wait.
func (r *run) oversee(ctx context.Context) {
	var called time.Time
	for wait := time.Duration(0); sleep(ctx, wait); wait = min(time.Second, r.Heartbeat) {
		segments, err := r.Jobs.Segments(ctx, r.job.ID)
		if err != nil {
			continue // the heartbeat says that the database is away
		}
		var done, all float64
		waiting := 0
		for _, s := range segments {
			all += float64(s.Part.Frames)
			switch s.Status {
			case job.SegmentDone:
				done += float64(s.Part.Frames)
			case job.SegmentRunning:
				done += float64(s.Part.Frames) * float64(s.Progress) / 100
			case job.SegmentQueued:
				waiting++
			}
		}
		if all > 0 {
			r.advance(int64(math.Floor(100 * done / all)))
		}
		if waiting == 0 || time.Since(called) < r.Heartbeat {
			continue
		}
		called = time.Now()
		if err := r.dispatcher.callForHelp(ctx, r.job.ID, min(waiting, helpersMost), r.Heartbeat); err != nil && ctx.Err() == nil {
			r.log.Warn("no help called", zap.Error(err))
		}
	}
}

// join makes the result of all parts.
func (r *run) join(ctx context.Context, task engine.Task, segments []job.Segment) error {
	pieces := make([]engine.Piece, 0, len(segments))
	err := func() error {
		for _, s := range segments {
			path := r.partPath(s)
			if _, err := os.Stat(path); err != nil { // another's, or an earlier run's
				err := r.again(ctx, func() error {
					_, err := r.Storage.Download(ctx, s.Object, path, math.MaxInt64)
					return err
				})
				if err != nil {
					return fmt.Errorf("copy part %d: %w", s.Part.Number, err)
				}
			}
			pieces = append(pieces, engine.Piece{Part: s.Part, Path: path, Facts: s.Facts})
		}
		return lowly(func() (err error) {
			r.result, err = r.order.Join(ctx, task, pieces)
			return err
		})
	}()
	if _, failed := engine.AsFailure(err); err == nil || failed || ctx.Err() != nil {
		return err
	}
	// What cannot be joined would be found the same by every later run.
	again := r.record(ctx, func(ctx context.Context) error { return r.Jobs.RestartSegments(ctx, r.job, nil) })
	return errors.Join(fmt.Errorf("join %d parts: %w", len(segments), err), again)
}

// partPath is where this run keeps a part. The fence is in the name, so that no file is taken for what another run made.
func (r *run) partPath(s job.Segment) string {
	return filepath.Join(r.dir, fmt.Sprintf("part-%d-%d.%s", s.Part.Number, s.Fence, r.plan.Format))
}

// part is one claim of one part of a job.
type part struct {
	*run
	segment job.Segment
	done    atomic.Int64 // percent
	kick    chan struct{}
}

// part makes a claimed part and stores it. It returns nil when the part is done, and when it turns out to be another's by now.
func (r *run) part(ctx context.Context, task engine.Task, s job.Segment) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	p := &part{run: r, segment: s, kick: make(chan struct{}, 1)}
	r.enterPart(p)
	defer r.leavePart(p)
	var heart sync.WaitGroup
	heart.Go(func() { p.beat(ctx, cancel) })
	began := time.Now()
	log := r.log.With(zap.Int("part", s.Part.Number), zap.Int64("part_fence", s.Fence))
	log.Info("part begun")
	err := p.work(ctx, task)
	cause := context.Cause(ctx)
	cancel(nil)
	heart.Wait()
	log = log.With(zap.Duration("took", time.Since(began)))
	detached := context.WithoutCancel(ctx)
	switch {
	case err == nil:
		r.Metrics.segment(segmentMade)
		log.Info("part made")
		return nil
	case errors.Is(err, job.ErrStale), errors.Is(cause, errPartStale):
		r.Metrics.segment(segmentLost)
		log.Info("part lost", zap.Error(err))
		p.removeObject(detached)
		return nil
	case cause != nil:
		r.Metrics.segment(segmentGivenBack)
		r.giveBack(detached, s, false)
		return err
	}
	r.Metrics.segment(segmentFailed)
	log.Warn("part failed", zap.Error(err))
	r.giveBack(detached, s, true)
	return err
}

// work makes the part's file, stores it, and notes that it is there.
func (p *part) work(ctx context.Context, task engine.Task) error {
	path := p.partPath(p.segment)
	task.Output = path
	task.Progress = func(done float64) { p.done.Store(int64(math.Floor(done * 100))) }
	var facts json.RawMessage
	err := lowly(func() (err error) {
		facts, err = p.order.Make(ctx, task, p.segment.Part)
		return err
	})
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("part: %w", err)
	}
	err = p.again(ctx, func() error {
		if _, err := p.Storage.PutFile(ctx, p.key(), path, p.plan.ContentType()); err != nil {
			return err
		}
		object, err := p.Storage.Head(ctx, p.key())
		if err == nil && object.Size != info.Size() {
			err = fmt.Errorf("stored %d bytes of %d", object.Size, info.Size())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("store part: %w", err)
	}
	return p.record(ctx, func(ctx context.Context) error { return p.Jobs.SegmentDone(ctx, p.segment, p.key(), facts) })
}

func (p *part) key() string {
	return storage.SegmentKey(p.segment.JobID, p.segment.Part.Number, p.segment.Fence, p.plan.Format)
}

// removeObject takes away what was stored for nothing. The sweeper finds it too, later.
func (p *part) removeObject(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	if named, err := p.Jobs.Referenced(ctx, p.key()); err != nil || named {
		return
	}
	if err := p.Storage.Delete(ctx, p.key()); err != nil {
		p.log.Warn("lost part not removed", zap.Error(err))
	}
}

// beat keeps the part, and ends its work when it is no longer this worker's. While the database is away the work goes on.
func (p *part) beat(ctx context.Context, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(p.Heartbeat)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-p.kick:
		}
		err := attempt(ctx, func(ctx context.Context) error {
			return p.Jobs.SegmentHeartbeat(ctx, p.segment, int(p.done.Load()), p.Lease)
		})
		if errors.Is(err, job.ErrStale) && ctx.Err() == nil {
			cancel(errPartStale)
			return
		}
		if err != nil && ctx.Err() == nil {
			p.Metrics.heartbeatFailed()
		}
	}
}

// wakePart makes the heart beat now.
func (p *part) wakePart() {
	select {
	case p.kick <- struct{}{}:
	default:
	}
}

// giveBack lets another worker have a part at once. When that cannot be recorded its lease ends by itself.
func (r *run) giveBack(ctx context.Context, s job.Segment, failed bool) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), attemptFor)
	defer stop()
	if err := r.Jobs.ReleaseSegment(ctx, s, failed); err != nil && !errors.Is(err, job.ErrStale) {
		r.log.Warn("part not given back", zap.Int("part", s.Part.Number), zap.Error(err))
	}
}

// help makes parts of a job that another worker's run carries, for as long as there are any and no job waits for the slot. Whatever goes wrong
// is the other's to see: the parts are free again.
func (w *Worker) help(id string) {
	ctx, cancel := context.WithCancelCause(w.base)
	defer cancel(nil)
	part := w.helpIsWanted(ctx, id)
	if part == nil {
		return
	}
	j, err := w.Jobs.Wanted(ctx, id)
	if err != nil {
		return // it has ended, or the database is away
	}
	order, err := w.Catalog.Restore(j.Tool, j.Config, j.Format)
	if err != nil || !order.Fits(*part) {
		w.runLog(j).Warn("no help with a video that another worker makes with other means", zap.Error(err))
		return
	}
	r := &run{order: order, Worker: w, job: j, cancel: cancel, kick: make(chan struct{}, 1), log: w.runLog(j).With(zap.Bool("helps", true))}
	if err := r.helping(ctx); err != nil && !errors.Is(err, job.ErrNoSegment) && !errors.Is(err, errYield) {
		r.log.Warn("help ended", zap.Error(err))
	}
}

// helpIsWanted gives a part of a job that waits, unless a whole job does.
func (w *Worker) helpIsWanted(ctx context.Context, id string) *engine.Part {
	if w.isDraining() {
		return nil
	}
	waits, err := w.Jobs.Waits(ctx, engine.Video)
	if err != nil || waits {
		return nil
	}
	segments, err := w.Jobs.Segments(ctx, id)
	if err != nil {
		return nil
	}
	for _, s := range segments {
		if s.Status == job.SegmentQueued {
			return &s.Part
		}
	}
	return nil
}

func (r *run) helping(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if r.dir, err = r.scratch.make(r.job.ID+"-help", r.helps.Add(1)); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	if err := r.sync(ctx); err != nil {
		return err
	}
	task := r.task()
	memory := min(r.order.Memory(task), r.Memory)
	if !r.memory.TryAcquire(memory) {
		return nil
	}
	defer r.memory.Release(memory)
	ctx, stop := context.WithTimeout(ctx, r.timeLimit())
	defer stop()
	for made := 0; ; made++ {
		if made > 0 && r.helpIsWanted(ctx, r.job.ID) == nil {
			return nil
		}
		segment, err := r.claimSegment(ctx, false)
		if err != nil {
			return err
		}
		if !r.order.Fits(segment.Part) { // cut anew meanwhile
			r.giveBack(ctx, segment, false)
			return nil
		}
		if err := r.part(ctx, task, segment); err != nil {
			return err
		}
	}
}

// lowly runs what computes on a thread of its own, at low priority: in the all-in-one process clients are answered meanwhile.
func lowly(compute func() error) error {
	done := make(chan error, 1)
	go func() {
		engine.LowPriority()
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		done <- compute()
	}()
	return <-done
}
