package faults_test

import (
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/faults"
	"enlarger/job"
	"enlarger/testbed"
)

// F10: the answer to the last COMMIT is lost. The worker looks at the row again and knows; nothing is done twice.
func TestF10AnswerToCommitLost(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker").Ready()
	for name, match := range map[string]func(string) bool{"reserve": reserves, "finish": succeeds} {
		var cut atomic.Bool
		w.DB.Once(match, testbed.Committed, func() testbed.Verdict {
			cut.Store(true)
			return testbed.Verdict{Cut: true}
		})
		id := f.MustPhoto()
		f.Succeeds(id, 1, 0)
		if !cut.Load() {
			t.Errorf("no COMMIT of the %s passed", name)
		}
	}
	if _, frozen, used := f.Credits(""); frozen != 0 || used != 2 {
		t.Errorf("frozen %v, used %v for two jobs", frozen, used)
	}
	f.End()
}

// F11: Redis answers the ack with an error, once. The wake-up comes again later, claims nothing, and is acknowledged.
func TestF11AckRefused(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	first := f.Worker("first").Ready()
	refused := make(chan struct{})
	first.Redis.Once(acks, false, func() testbed.Verdict {
		close(refused)
		return testbed.Verdict{Answer: []byte("-ERR not now\r\n")}
	})
	id := f.MustPhoto()
	happens(t, "the ack", refused)
	f.Succeeds(id, 1, 0)
	if wakeUps := f.WakeUps(id); len(wakeUps) != 1 {
		t.Errorf("wake-ups after the ack was refused: %v", wakeUps)
	}
	// asynq delivers a wake-up again that nobody has spoken of for 30 s, and looks for such ones when a worker starts and every minute.
	f.AgeDeliveries()
	f.Worker("second")
	f.Until("the second delivery to be acknowledged", func() bool { return len(f.WakeUps(id)) == 0 })
	if j := f.Job(id); j.Fence != 1 || j.Failures != 0 {
		t.Errorf("fence %d, %d failures", j.Fence, j.Failures)
	}
	if _, _, used := f.Credits(""); used != 1 {
		t.Errorf("%v used", used)
	}
	f.End()
}

// F13: Redis stands still during a run, for longer than a lease. The run is not disturbed.
func TestF13RedisFrozenDuringARun(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker").Ready()
	w.Gate.Shut()
	id := f.MustClip()
	f.Running(id, 1)
	f.Redis.Freeze()
	lasts(profile(5*time.Second, 45*time.Second))
	w.Gate.Open()
	f.Succeeds(id, 1, 0) // while Redis still stands still
	f.Redis.Resume()
	f.Succeeds(f.MustPhoto(), 1, 0)
	f.End()
}

// F14: FLUSHALL with jobs queued and running. Those that run go on, those that wait are woken again.
func TestF14RedisFlushed(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker").Ready()
	w.Gate.Shut()
	running := f.MustClip()
	f.Running(running, 1)
	waiting := []string{f.MustClip(), f.MustClip(), f.MustClip()}
	f.Redis.FlushAll(t)
	for _, id := range waiting {
		f.Until("the wake-up to be sent again", func() bool { return len(f.WakeUps(id)) == 1 })
	}
	f.Redis.FlushAll(t)
	w.Gate.Open()
	for _, id := range append(waiting, running) {
		f.Succeeds(id, 1, 0)
	}
	f.End()
}

// F15: Redis comes back with what it held some time ago: wake-ups of jobs that have ended, and none of those that were submitted since.
func TestF15RedisRestoredFromASnapshot(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker").Ready()
	w.Gate.Shut()
	old := []string{f.MustClip()}
	f.Running(old[0], 1)
	old = append(old, f.MustClip(), f.MustClip())
	snapshot := f.Redis.Snapshot(t)
	w.Gate.Open()
	for _, id := range old {
		f.Succeeds(id, 1, 0)
	}
	w.Gate.Shut()
	recent := []string{f.MustClip()}
	f.Running(recent[0], 1)
	recent = append(recent, f.MustClip(), f.MustClip())
	f.Redis.Restore(t, snapshot)
	if len(f.WakeUps(old[2])) != 1 {
		t.Fatal("the snapshot held no wake-up of a job that waited: the test sees nothing")
	}
	w.Gate.Open()
	for _, id := range append(old, recent...) {
		f.Succeeds(id, 1, 0)
	}
	f.Until("the old wake-ups to be delivered", func() bool { return len(f.WakeUps(old[1])) == 0 && len(f.WakeUps(old[2])) == 0 })
	for _, id := range old {
		f.Succeeds(id, 1, 0)
	}
	f.End()
}

// F16: the database is away during a run. For less than a lease: the run goes on. For longer: it goes on or is fenced off, and is charged once either
// way. Meanwhile the API says when to come back.
func TestF16DatabaseGone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		settings map[string]string
		gone     time.Duration
		goesOn   bool
	}{
		{"for less than a lease", profile(faults.With("ENLARGER_LEASE", "20s"), nil), profile(2*time.Second, 10*time.Second), true},
		{"for longer than a lease", profile(faults.Quick(), nil), profile(6*time.Second, time.Minute), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			postgres := testbed.Postgres(t)
			settings := map[string]string{"ENLARGER_DATABASE": postgres.Database(t)}
			maps.Copy(settings, c.settings)
			f := faults.New(t, 1, settings)
			first := f.Worker("first").Ready()
			first.Gate.Shut()
			id := f.MustClip()
			f.Running(id, 1)
			f.Worker("second").Ready()
			waiting := f.MustClip()
			postgres.Stop()
			gone := time.Now()
			f.Until("an answer without a database", func() bool {
				status, answer, header := f.Do(faults.Request{Method: http.MethodGet, Path: "/credits"})
				if status != 0 && (status != http.StatusServiceUnavailable || header.Get("Retry-After") == "") {
					t.Errorf("without a database: %d, Retry-After %q, %v", status, header.Get("Retry-After"), answer)
				}
				return status != 0
			})
			lasts(c.gone - time.Since(gone))
			postgres.Start(t)
			first.Gate.Open()
			if c.goesOn {
				f.Succeeds(id, 1, 0)
			} else {
				f.Succeeds(id, -1, -1)
			}
			f.Succeeds(waiting, -1, -1)
			f.End()
		})
	}
}

// F23: clocks that are five minutes off. Leases and due times are by the database's clock, so that only the difference between a process and the
// database could matter: here the database is ahead of all, then behind.
func TestF23DatabaseClockShifted(t *testing.T) {
	t.Parallel()
	for name, seconds := range map[string]int{"ahead": 300, "behind": -300} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := faults.New(t, 1, faults.Quick())
			f.ShiftDatabase(seconds)
			takesOver(t, f, f.Worker("first"), f.Worker("second"))
		})
	}
}

// F23 with processes whose own clocks are shifted, each another way.
func TestF23ProcessClocksShifted(t *testing.T) {
	t.Parallel()
	if !*long {
		t.Skip("compiles the standard library with another clock, which takes minutes: make faults, or -faults.long")
	}
	program := faults.BuildShifted(t)
	f := faults.New(t, 1, faults.Quick())
	shift := func(n *faults.Node, seconds string) *faults.Node {
		n.Kill()
		n.Run(program, "ENLARGER_TEST_CLOCK", seconds)
		return n
	}
	shift(f.API(0), "300").Ready()
	takesOver(t, f, shift(f.Worker("first"), "-300"), shift(f.Worker("second"), "300"))
}

// takesOver lets a run outlive its lease several times undisturbed, then kills its worker, and demands that the other takes over.
func takesOver(t *testing.T, f *faults.Fleet, first, second *faults.Node) {
	t.Helper()
	first.Ready()
	second.Ready().Freeze()
	first.Gate.Shut()
	id := f.MustClip()
	f.Running(id, 1)
	second.Resume()
	lasts(6 * time.Second) // three leases
	if j := f.Job(id); j.Fence != 1 || j.Status != job.Processing {
		t.Errorf("%s with fence %d while its worker was well", j.Status, j.Fence)
	}
	first.Kill()
	f.Succeeds(id, 2, 1)
	f.Succeeds(f.MustPhoto(), 1, 0)
	f.End()
}

// toSource, toResult and atResult are the requests of a run to the storage.
func toSource(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/sources/")
}

func toResult(r *http.Request) bool {
	return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/results/")
}

func atResult(r *http.Request) bool {
	return r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/results/")
}

// F24: object storage that fails for a moment, at the source's read or at the result's write. The run outlives it.
func TestF24StorageFailsForAMoment(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker").Ready()
	for _, c := range []struct {
		name  string
		hits  func(*http.Request) bool
		times int64
		fault testbed.HTTPFault
	}{
		{"source read, 503 twice", toSource, 2, testbed.HTTPFault{Status: http.StatusServiceUnavailable}},
		{"source read, cut", toSource, 1, testbed.HTTPFault{Cut: true}},
		{"result write, 500 twice", toResult, 2, testbed.HTTPFault{Status: http.StatusInternalServerError}},
		{"result write, slow", toResult, 1, testbed.HTTPFault{Delay: 3 * time.Second}},
		{"result written, answer lost", toResult, 1, testbed.HTTPFault{Cut: true, After: true}},
		{"result check, cut twice", atResult, 2, testbed.HTTPFault{Cut: true}},
	} {
		var hits atomic.Int64
		w.S3.Break(func(r *http.Request) testbed.HTTPFault {
			if c.hits(r) && hits.Add(1) <= c.times {
				return c.fault
			}
			return testbed.HTTPFault{}
		})
		f.Succeeds(f.MustPhoto(), 1, 0)
		if hits.Load() < c.times {
			t.Errorf("%s: the fault was met %d times", c.name, hits.Load())
		}
	}
	f.End()
}

// F24: object storage that fails for good. Each run tries again within bounds, the budget is used up, and nothing is charged without a result
// that can be read.
func TestF24StorageFailsForGood(t *testing.T) {
	t.Parallel()
	down := testbed.HTTPFault{Status: http.StatusServiceUnavailable}
	for _, c := range []struct {
		name  string
		hits  func(*http.Request) bool
		fault testbed.HTTPFault
		long  bool
	}{
		{"source read", toSource, down, true},
		{"result write", toResult, down, false},
		{"result gone when it is looked at", atResult, testbed.HTTPFault{Status: http.StatusNotFound}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.long && !*long {
				t.Skip("waits as long as the result write: make faults, or -faults.long")
			}
			f := faults.New(t, 1, faults.With("ENLARGER_RETRY_BUDGET", "2"))
			w := f.Worker("worker").Ready()
			w.S3.Break(func(r *http.Request) testbed.HTTPFault {
				if c.hits(r) {
					return c.fault
				}
				return testbed.HTTPFault{}
			})
			givenUp(t, f, f.MustPhoto())
			if w.S3.Broken() == 0 {
				t.Error("the fault was never met")
			}
			w.S3.Break(nil)
			f.Succeeds(f.MustPhoto(), 1, 0)
			f.End()
		})
	}
}

// givenUp demands that a job fails for our reasons and costs nothing.
func givenUp(t *testing.T, f *faults.Fleet, id string) {
	t.Helper()
	if j := f.Ended(id); j.Status != job.Failed || j.ErrorCode != engine.ProcessingFailed || j.Fence != 2 || j.Charged != 0 {
		t.Errorf("%s %s, fence %d, charged %v; want it given up after two runs", j.Status, j.ErrorCode, j.Fence, j.Charged)
	}
	if _, frozen, used := f.Credits(""); frozen != 0 || used != 0 {
		t.Errorf("frozen %v, used %v", frozen, used)
	}
}

// F24: a disk that is full, the store's or the worker's.
func TestF24DiskFull(t *testing.T) {
	t.Parallel()
	if why := faults.SmallDisks(t); why != "" {
		t.Skip("no disk can be made small here: " + why)
	}
	t.Run("store", func(t *testing.T) {
		t.Parallel()
		f := faults.NewWithSmallStore(t, 1, 192, faults.With("ENLARGER_RETRY_BUDGET", "2"))
		f.Worker("worker").Ready()
		// The source of 300x300 fits and its result of 600x600 does not; later there is room again for small ones.
		id, err := f.Photo(faults.Request{}, faults.Noise(300, 300))
		if err != nil {
			t.Fatal(err)
		}
		givenUp(t, f, id)
		f.Succeeds(f.MustPhoto(), 1, 0)
		f.End()
	})
	t.Run("worker", func(t *testing.T) {
		t.Parallel()
		f := faults.New(t, 1, faults.With("ENLARGER_RETRY_BUDGET", "2"))
		w := f.Worker("worker")
		w.Kill()
		w.OnSmallDisk(192)
		w.Again()
		w.Ready()
		id, err := f.Photo(faults.Request{}, faults.Noise(300, 300))
		if err != nil {
			t.Fatal(err)
		}
		givenUp(t, f, id)
		f.Succeeds(f.MustPhoto(), 1, 0)
		f.End()
	})
}
