package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// run is one claim of one job: what this fence has learned and done so far.
type run struct {
	*Worker
	job   job.Job
	order *engine.Order
	log   *zap.Logger
	dir   string

	source engine.Source
	plan   engine.Plan
	input  string
	output string
	result engine.Output
	// object is the key of the stored result, "" until it is stored.
	object string

	// mu keeps a heartbeat from writing an older phase over a newer one.
	mu    sync.Mutex
	phase job.Phase

	// progress is the part done in percent.
	progress atomic.Int64
	kick     chan struct{}
	cancel   context.CancelCauseFunc

	// ending says how the run ended, for the metrics.
	ending string
}

// carry brings a claimed job to its end, or gives it back. The error is for asynq: the outcome could not be recorded.
func (w *Worker) carry(j job.Job) error {
	ctx, cancel := context.WithCancelCause(w.base)
	defer cancel(nil)
	r := &run{
		Worker: w, job: j, phase: j.Phase, kick: make(chan struct{}, 1), cancel: cancel,
		log: w.runLog(j),
	}
	w.mu.Lock()
	w.running[j.ID] = r
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		if w.running[j.ID] == r {
			delete(w.running, j.ID)
		}
		w.mu.Unlock()
	}()

	var heart sync.WaitGroup
	heart.Go(func() { r.beat(ctx) })
	started := time.Now()
	ended := w.Metrics.claimed(j)
	err := r.steps(ctx)
	outcome := r.settle(ctx, err)
	ended(r.ending)
	cancel(nil)
	heart.Wait()
	r.log.Info("run ended", zap.Duration("took", time.Since(started)), zap.NamedError("why", err), zap.NamedError("unrecorded", outcome))
	return outcome
}

func (w *Worker) runLog(j job.Job) *zap.Logger {
	return w.Log.With(zap.String("job_id", j.ID), zap.String("tool", j.Tool), zap.Int64("fence", j.Fence), zap.String("account_id", j.AccountID))
}

// steps is the life of a run. Nothing looks back.
func (r *run) steps(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	if r.dir, err = r.scratch.make(r.job.ID, r.job.Fence); err != nil {
		return err
	}
	defer os.RemoveAll(r.dir)
	if r.order, err = r.Catalog.Restore(r.job.Tool, r.job.Config, r.job.Format); err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{{"upload", r.upload}, {"sync", r.sync}, {"reserve", r.reserve}, {"process", r.process}, {"store", r.store}, {"finish", r.finish}} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return err
		}
		r.Metrics.step(r.job.Tool, step.name, time.Since(began))
	}
	return nil
}

// upload brings the source into the bucket.
func (r *run) upload(ctx context.Context) error {
	var size int64
	switch {
	case r.job.Source.Ready:
		return nil
	case r.job.Source.Kind == job.SourceUpload:
		object, err := r.uploaded(ctx)
		if err != nil {
			return err
		}
		size = object.Size
	default:
		object, err := r.fetch(ctx)
		if err != nil {
			return err
		}
		size = object.Size
	}
	r.job.Source.Size = size
	return r.transition(ctx, job.PhaseSyncing, func(ctx context.Context) error {
		return r.Jobs.SourceStored(ctx, r.job.ID, r.job.Fence, size)
	})
}

// uploaded checks that the client has put its file, all of it.
func (r *run) uploaded(ctx context.Context) (storage.Object, error) {
	var object storage.Object
	err := r.again(ctx, func() (err error) {
		object, err = r.Storage.Head(ctx, r.job.Source.Object)
		return err
	})
	declared := r.job.Source.Size
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return object, engine.Failf(engine.UploadIncomplete, "Nothing was uploaded to this upload_id: PUT the file to its put_url before creating the job.")
	case err != nil:
		return object, fmt.Errorf("look at the upload: %w", err)
	case object.Size == 0:
		return object, engine.Failf(engine.UploadIncomplete, "The uploaded file is empty.")
	case declared > 0 && object.Size != declared:
		return object, engine.Failf(engine.UploadIncomplete, "The uploaded file has %d bytes; %d were declared.", object.Size, declared)
	case object.Size > r.MaxUpload:
		return object, engine.Failf(engine.FileTooLarge, "The uploaded file has %d bytes; the limit is %d.", object.Size, r.MaxUpload)
	}
	return object, nil
}

// fetch streams the client's URL into the bucket.
func (r *run) fetch(ctx context.Context) (storage.Object, error) {
	var object storage.Object
	err := r.again(ctx, func() error {
		body, err := r.Fetcher.Fetch(ctx, r.job.Source.URL)
		if err != nil {
			return err
		}
		defer body.Close()
		object, err = r.Storage.Put(ctx, r.job.Source.Object, body, body.Size, "application/octet-stream")
		return err
	})
	switch {
	case err == nil && object.Size == 0:
		return object, engine.Failf(engine.UnsupportedFormat, "The URL gave an empty file.")
	case err == nil:
		return object, nil
	case ctx.Err() != nil:
	case errors.Is(err, storage.ErrBlocked):
		return object, engine.Failf(engine.SSRFBlocked, "%s", storage.ClientMessage(err)).Because(err)
	case errors.Is(err, storage.ErrTooLarge):
		return object, engine.Failf(engine.FileTooLarge, "The file behind the URL is larger than %d MiB.", r.MaxFetch>>20)
	case errors.Is(err, storage.ErrFetch), errors.Is(err, storage.ErrBadURL):
		return object, engine.Failf(engine.ProcessingFailed, "%s", storage.ClientMessage(err)).Because(err)
	}
	return object, fmt.Errorf("fetch source: %w", err)
}

// sync makes a local copy, measures it and plans the output: from here on the truth is known.
func (r *run) sync(ctx context.Context) error {
	r.input = filepath.Join(r.dir, "source")
	err := r.again(ctx, func() error {
		_, err := r.Storage.Download(ctx, r.job.Source.Object, r.input, r.MaxUpload)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy source: %w", err)
	}
	if r.source, err = r.order.Measure(ctx, r.input); err != nil {
		return err
	}
	r.plan, err = r.order.Plan(r.source)
	if err != nil {
		return err
	}
	if !r.plan.Known() {
		return engine.Failf(engine.UnsupportedFormat, "The size of the source could not be read.")
	}
	return nil
}

// reserve freezes the credits; with them the phase becomes processing.
func (r *run) reserve(ctx context.Context) error {
	price := job.Price(r.Prices, r.plan)
	err := r.transition(ctx, job.PhaseProcessing, func(ctx context.Context) error {
		_, err := r.Jobs.Reserve(ctx, r.job, price)
		return err
	})
	if errors.Is(err, billing.ErrInsufficient) {
		return engine.Failf(engine.InsufficientCredits, "The job costs %v credits, more than the account has available.", price)
	}
	return err
}

// process runs the tool and holds its result against the plan.
func (r *run) process(ctx context.Context) error {
	task := r.task()
	r.output = task.Output
	memory := min(r.order.Memory(task), r.Memory)
	if err := r.memory.Acquire(ctx, memory); err != nil {
		return fmt.Errorf("wait for memory: %w", err)
	}
	defer r.memory.Release(memory)

	limit := r.timeLimit()
	timed, stop := context.WithTimeoutCause(ctx, limit, engine.Failf(engine.ProcessingTimeout, "The job was stopped after %v, the longest it may take.", limit))
	defer stop()
	if err := r.make(timed, task); err != nil {
		if late, ok := engine.AsFailure(context.Cause(timed)); ok && ctx.Err() == nil {
			return late.Because(err)
		}
		return err
	}
	if r.result.Width != r.plan.Width || r.result.Height != r.plan.Height || r.result.Size <= 0 {
		return fmt.Errorf("result is %dx%d of %d bytes, planned %dx%d", r.result.Width, r.result.Height, r.result.Size, r.plan.Width, r.plan.Height)
	}
	return nil
}

// task is the run's work on local files.
func (r *run) task() engine.Task {
	return engine.Task{
		Plan: r.plan, Source: r.source, Input: r.input, Output: filepath.Join(r.dir, "result."+r.plan.Format), Scratch: r.dir,
		Progress: func(done float64) { r.advance(int64(math.Floor(done * 100))) },
	}
}

// timeLimit follows the work: no honest run needs ten times this on one slow core.
func (r *run) timeLimit() time.Duration {
	if r.plan.Media == engine.Image {
		return r.ImageTimeout
	}
	const base, perMegapixel = 10 * time.Minute, 3 * time.Second
	megapixels := float64(r.plan.Pixels()) / 1e6 * float64(max(r.plan.Frames, 1))
	seconds := min(megapixels*perMegapixel.Seconds(), r.VideoTimeout.Seconds())
	return min(base+time.Duration(seconds*float64(time.Second)), r.VideoTimeout)
}

// store writes the result and makes sure that it is there.
func (r *run) store(ctx context.Context) error {
	key := storage.ResultKey(r.job.ID, r.job.Fence, r.plan.Format)
	r.object = key
	err := r.again(ctx, func() error {
		if _, err := r.Storage.PutFile(ctx, key, r.output, r.plan.ContentType()); err != nil {
			return err
		}
		object, err := r.Storage.Head(ctx, key)
		if err == nil && object.Size != r.result.Size {
			err = fmt.Errorf("stored %d bytes of %d", object.Size, r.result.Size)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("store result: %w", err)
	}
	return nil
}

// maxDiscard bounds how many earlier fences' objects are looked for; the orphan sweep finds the rest.
const maxDiscard = 10

// finish makes the result visible and the charge final, in one transaction.
func (r *run) finish(ctx context.Context) error {
	var discard []string
	for fence := max(1, r.job.Fence-maxDiscard); fence < r.job.Fence; fence++ {
		discard = append(discard, storage.ResultKey(r.job.ID, fence, r.plan.Format))
	}
	// No heartbeat may come between the commit and its answer, or it would take the success for a loss; and once begun, the
	// transaction is not cut short, so that its outcome is known.
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return r.record(context.WithoutCancel(ctx), func(ctx context.Context) error {
		return r.Jobs.Succeed(ctx, r.job, r.object, r.result, discard)
	})
}

// settle records why a run ended early. It returns an error when that was not possible; the lease then ends by itself.
func (r *run) settle(ctx context.Context, err error) error {
	r.ending = endSucceeded
	if err == nil {
		return nil
	}
	r.ending = endFailed
	var failure *engine.Failure
	cause := context.Cause(ctx)
	// What must be written must outlive the run's own context; record has its own time limit.
	detached := context.WithoutCancel(ctx)
	switch {
	case errors.Is(err, job.ErrStale) || errors.Is(cause, errStale):
		r.ending = endLost
		r.removeResult(detached)
		return nil
	case errors.Is(cause, errYield):
		return r.yield(detached)
	case errors.As(err, &failure):
		if failure.Err != nil {
			r.log.Warn("job failed", zap.String("code", string(failure.Code)), zap.Error(failure.Err))
		}
	default:
		r.log.Error("run failed", zap.Error(err))
		return r.retry(detached)
	}
	return r.ended(detached, r.record(detached, func(ctx context.Context) error {
		return r.Jobs.Fail(ctx, r.job.ID, r.job.Fence, failure)
	}))
}

// ended turns "someone else has it" into nothing to do.
func (r *run) ended(ctx context.Context, err error) error {
	if errors.Is(err, job.ErrStale) {
		r.ending = endLost
		r.removeResult(ctx)
		return nil
	}
	if err != nil {
		r.ending = endUnrecorded
	}
	return err
}

func (r *run) yield(ctx context.Context) error {
	r.ending = endYielded
	var dispatch int64
	err := r.record(ctx, func(ctx context.Context) (err error) {
		dispatch, err = r.Jobs.Yield(ctx, r.job.ID, r.job.Fence)
		return err
	})
	if err != nil {
		return r.ended(ctx, err)
	}
	r.removeResult(ctx)
	return r.dispatcher.Dispatch(ctx, job.WakeUp{ID: r.job.ID, Media: r.job.Media, Number: dispatch})
}

// gaveUp is what the client of a job hears that failed for our reasons until its budget was used up.
var gaveUp = engine.Failf(engine.ProcessingFailed, "The job could not be completed. It was not charged.")

func (r *run) retry(ctx context.Context) error {
	delay := r.RetryDelay << min(r.job.Failures, 6)
	var dispatch int64
	var final bool
	err := r.record(ctx, func(ctx context.Context) (err error) {
		dispatch, final, err = r.Jobs.Retry(ctx, r.job.ID, r.job.Fence, delay, r.Budget, gaveUp)
		return err
	})
	if err != nil {
		return r.ended(ctx, err)
	}
	r.removeResult(ctx)
	r.ending = endRetried
	if final {
		r.ending = endGaveUp
		return nil
	}
	return r.dispatcher.DispatchIn(ctx, job.WakeUp{ID: r.job.ID, Media: r.job.Media, Number: dispatch}, delay)
}

// removeResult takes away what this fence wrote for nothing. The sweeper finds it too, later.
func (r *run) removeResult(ctx context.Context) {
	if r.object == "" {
		return
	}
	ctx, stop := context.WithTimeout(ctx, 10*time.Second)
	defer stop()
	// When the answer to the last COMMIT was lost and the database stayed away, this run may have succeeded without knowing: then the row
	// names the object, and it is the client's.
	if named, err := r.Jobs.Referenced(ctx, r.object); err != nil || named {
		return
	}
	if err := r.Storage.Delete(ctx, r.object); err != nil {
		r.log.Warn("lost result not removed", zap.Error(err))
	}
}

// transition changes phase and row together.
func (r *run) transition(ctx context.Context, to job.Phase, write func(context.Context) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.record(ctx, write); err != nil {
		return err
	}
	r.phase = to
	return nil
}

// record writes to the database, again and again while it is away, for as long as a healthy lease could be had back.
func (r *run) record(ctx context.Context, write func(context.Context) error) error {
	ctx, stop := context.WithTimeout(ctx, recordFor)
	defer stop()
	wait := 50 * time.Millisecond
	for {
		err := attempt(ctx, write)
		if err == nil || !db.Unavailable(err) {
			return err
		}
		if !sleep(ctx, wait) {
			return err
		}
		wait = min(2*wait, 2*time.Second)
	}
}

func attempt(ctx context.Context, write func(context.Context) error) error {
	ctx, stop := context.WithTimeout(ctx, attemptFor)
	defer stop()
	return write(ctx)
}

const (
	recordFor  = 2 * time.Minute
	attemptFor = 10 * time.Second
)

// again repeats a storage or network step a few times when its fault is transient.
func (r *run) again(ctx context.Context, step func() error) error {
	const tries = 4
	wait := 250 * time.Millisecond
	for try := 1; ; try++ {
		err := step()
		if err == nil || try == tries || ctx.Err() != nil || !storage.Transient(err) || errors.Is(err, io.ErrShortWrite) {
			return err
		}
		r.log.Warn("trying again", zap.Int("try", try), zap.Error(err))
		if !sleep(ctx, wait) {
			return err
		}
		wait *= 4
	}
}

// sleep waits, or returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (r *run) advance(percent int64) {
	for {
		old := r.progress.Load()
		if percent <= old || r.progress.CompareAndSwap(old, min(percent, 99)) {
			return
		}
	}
}

// wake makes the heart beat now.
func (r *run) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// beat keeps the lease, tells phase and progress, and ends the run when the job is no longer this worker's. While the database is
// away the run goes on: the fence keeps what it writes from counting if another worker got the job meanwhile.
func (r *run) beat(ctx context.Context) {
	tick := time.NewTicker(min(time.Second, r.Heartbeat))
	defer tick.Stop()
	last, told := time.Now(), int64(-1)
	for {
		kicked := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-r.kick:
			kicked = true
		}
		progress := r.progress.Load()
		if !kicked && progress == told && time.Since(last) < r.Heartbeat-100*time.Millisecond {
			continue
		}
		err := r.heartbeat(ctx, progress)
		switch {
		case errors.Is(err, job.ErrStale):
			r.cancel(errStale)
			return
		case err == nil:
			last, told = time.Now(), progress
		case ctx.Err() == nil:
			r.Metrics.heartbeatFailed()
			r.log.Warn("heartbeat failed", zap.Error(err))
			if time.Since(last) > 30*r.Lease {
				r.cancel(errStale)
				return
			}
		}
	}
}

func (r *run) heartbeat(ctx context.Context, progress int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ctx, stop := context.WithTimeout(ctx, r.Heartbeat)
	defer stop()
	return r.Jobs.Heartbeat(ctx, r.job.ID, r.job.Fence, r.phase, int(progress), r.Lease)
}
