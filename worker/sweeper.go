package worker

import (
	"context"
	"errors"
	"strings"
	"time"

	"go.uber.org/zap"

	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// Sweeper repairs what fell: runs whose lease ended, wake-ups that were lost, objects that nothing refers to. Any number of sweepers may
// run at the same time, and any of them may be killed at any point.
type Sweeper struct {
	Jobs       *job.Store
	Storage    *storage.Store
	Dispatcher *Dispatcher
	Log        *zap.Logger
	// Metrics may be nil.
	Metrics *Metrics
	// Every (5 s) is the time between sweeps, and how long a wake-up may be quiet before it is looked after.
	Every time.Duration
	// Budget (3) is the number of failed runs after which a job fails for good.
	Budget int64
	// KeepSources (24 h) is how long a finished job's source is kept.
	KeepSources time.Duration
	// OrphansEvery (1 h) is the time between searches for objects without a row, and how old such an object must be.
	OrphansEvery time.Duration

	nextOrphans time.Time
}

// Bounds of one sweep.
const (
	sweepLost    = 200
	sweepWaiting = 500
	sweepGarbage = 500
	sweepRows    = 1000
	sweepBatches = 20
)

// Run sweeps until ctx is done. The first sweep is at once: it wakes what a restart left behind.
func (s *Sweeper) Run(ctx context.Context) error {
	def(&s.Every, 5*time.Second)
	def(&s.Budget, 3)
	def(&s.KeepSources, 24*time.Hour)
	def(&s.OrphansEvery, time.Hour)
	s.nextOrphans = time.Now().Add(s.OrphansEvery)
	for {
		s.Sweep(ctx)
		if !sleep(ctx, s.Every) {
			return nil
		}
	}
}

// Sweep does one round. Each part is on its own: storage being away must not keep jobs from being woken.
func (s *Sweeper) Sweep(ctx context.Context) {
	parts := []struct {
		name string
		do   func(context.Context) error
	}{
		{"lost runs", s.lostRuns}, {"waiting jobs", s.waitingJobs}, {"expired rows", s.expired}, {"garbage", s.garbage}, {"orphans", s.orphans},
	}
	for _, part := range parts {
		if err := part.do(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("sweep failed", zap.String("part", part.name), zap.Error(err))
		}
	}
}

// lostFailure is what the client of a job hears whose workers died under it until its budget was used up.
var lostFailure = engine.Failf(engine.ProcessingFailed, "The job could not be completed: its processing was interrupted too often. It was not charged.")

func (s *Sweeper) lostRuns(ctx context.Context) error {
	lost, err := s.Jobs.LostRuns(ctx, sweepLost)
	if err != nil {
		return err
	}
	for _, l := range lost {
		dispatch, final, err := s.Jobs.Expire(ctx, l.ID, l.Fence, s.Budget, lostFailure)
		if errors.Is(err, job.ErrStale) {
			continue
		}
		if err != nil {
			return err
		}
		s.Metrics.leaseLost()
		s.Log.Warn("lease ended", zap.String("job_id", l.ID), zap.Int64("fence", l.Fence), zap.String("worker", l.Worker), zap.Bool("given_up", final))
		if final {
			continue
		}
		if err := s.Dispatcher.Dispatch(ctx, job.WakeUp{ID: l.ID, Media: l.Media, Number: dispatch}); err != nil {
			return err
		}
	}
	return nil
}

// waitingJobs makes sure that every queued job has a wake-up in Redis. While wake-ups turn out to be missing (Redis was flushed or restarted) it
// goes on with the next batch at once.
func (s *Sweeper) waitingJobs(ctx context.Context) error {
	for ctx.Err() == nil {
		jobs, err := s.Jobs.WaitingJobs(ctx, s.Every, sweepWaiting)
		if err != nil {
			return err
		}
		repaired := 0
		for _, w := range jobs {
			missing, err := s.look(ctx, w)
			if err != nil {
				return err
			}
			if missing {
				repaired++
			}
		}
		if err := s.Jobs.Seen(ctx, jobs); err != nil {
			return err
		}
		if err := s.promote(ctx, jobs); err != nil {
			return err
		}
		if repaired > 0 {
			s.Metrics.wakeUpsRepaired(repaired)
			s.Log.Info("wake-ups sent again", zap.Int("jobs", repaired))
		}
		if repaired == 0 || len(jobs) < sweepWaiting {
			return nil
		}
	}
	return nil
}

// promote lets the longest waiting job of each account go first of which nothing is running.
func (s *Sweeper) promote(ctx context.Context, jobs []job.Waiting) error {
	type line struct {
		account string
		media   engine.Media
	}
	looked := map[line]bool{}
	for _, w := range jobs {
		l := line{w.AccountID, w.Media}
		if looked[l] {
			continue
		}
		looked[l] = true
		if w.Lane == 0 {
			continue
		}
		next, err := s.Jobs.Promote(ctx, w)
		if errors.Is(err, job.ErrStale) {
			continue
		}
		if err != nil {
			return err
		}
		if err := s.Dispatcher.Dispatch(ctx, next); err != nil {
			return err
		}
	}
	return nil
}

// look sends a waiting job's wake-up again when Redis does not have it, or will never deliver it.
func (s *Sweeper) look(ctx context.Context, w job.Waiting) (repaired bool, err error) {
	added, err := s.Dispatcher.enqueue(ctx, w.WakeUp, 0)
	if err != nil || added {
		return added, err
	}
	if !s.Dispatcher.lost(w.WakeUp) {
		return false, nil
	}
	next, err := s.Jobs.Redispatch(ctx, w)
	if errors.Is(err, job.ErrStale) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, s.Dispatcher.Dispatch(ctx, next)
}

func (s *Sweeper) expired(ctx context.Context) error {
	err1 := whileFull(ctx, sweepRows, func() (int, error) { return s.Jobs.ExpireUploads(ctx, sweepRows) })
	err2 := whileFull(ctx, sweepRows, func() (int, error) { return s.Jobs.ExpireSources(ctx, s.KeepSources, sweepRows) })
	return errors.Join(err1, err2, s.Jobs.ExpireKeys(ctx, sweepRows))
}

// whileFull repeats what handles a batch of rows for as long as the batches are full, so that a busy day's rows do not pile up, and no longer than
// sweepBatches times, so that the other parts get their turn.
func whileFull(ctx context.Context, full int, batch func() (int, error)) error {
	for range sweepBatches {
		n, err := batch()
		if err != nil || n < full || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

// garbage removes objects that rows gave up. Rows are forgotten only after the objects are gone.
func (s *Sweeper) garbage(ctx context.Context) error {
	return whileFull(ctx, sweepGarbage, func() (int, error) { return s.removeGarbage(ctx) })
}

func (s *Sweeper) removeGarbage(ctx context.Context) (n int, err error) {
	objects, err := s.Jobs.Garbage(ctx, sweepGarbage)
	if err != nil || len(objects) == 0 {
		return 0, err
	}
	keys := []string{}
	for _, object := range objects {
		if !strings.HasSuffix(object, "/") {
			keys = append(keys, object)
			continue
		}
		found, err := s.Storage.List(ctx, object, "", sweepRows)
		if err != nil {
			return 0, err
		}
		for _, f := range found {
			keys = append(keys, f.Key)
		}
	}
	if err := s.Storage.Delete(ctx, keys...); err != nil {
		return 0, err
	}
	return len(objects), s.Jobs.Removed(ctx, objects)
}

// orphans removes objects of ours that no row names: what was written by a process that died before its transaction. They must be older
// than OrphansEvery, longer than any request or run takes from writing an object to naming it.
func (s *Sweeper) orphans(ctx context.Context) error {
	if time.Now().Before(s.nextOrphans) {
		return nil
	}
	s.nextOrphans = time.Now().Add(s.OrphansEvery)
	for _, prefix := range storage.Prefixes() {
		if err := s.orphansUnder(ctx, prefix); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sweeper) orphansUnder(ctx context.Context, prefix string) error {
	after := ""
	for ctx.Err() == nil {
		objects, err := s.Storage.List(ctx, prefix, after, sweepRows)
		if err != nil || len(objects) == 0 {
			return err
		}
		after = objects[len(objects)-1].Key
		for _, o := range objects {
			if time.Since(o.Modified) < s.OrphansEvery {
				continue
			}
			named, err := s.Jobs.Referenced(ctx, o.Key)
			if err != nil {
				return err
			}
			if named {
				continue
			}
			s.Metrics.orphanRemoved()
			s.Log.Info("orphan removed", zap.String("object", o.Key))
			if err := s.Storage.Delete(ctx, o.Key); err != nil {
				return err
			}
		}
	}
	return nil
}
