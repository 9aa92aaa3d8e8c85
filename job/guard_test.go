package job

import (
	"errors"
	"testing"
	"time"

	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// What each way out of a run does to the counters: the budget is used by faults alone, and every way back to the queue has a wake-up of its own.
func TestCounters(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for _, c := range []struct {
			op                                string
			failures, dispatch, finishedFence int64
		}{
			{"retry", 1, 2, 0},
			{"expire over", 1, 2, 0},
			{"yield", 0, 2, 0},
			{"succeed", 0, 1, 1},
			{"fail", 0, 1, 1},
			{"cancel", 0, 1, 1},
		} {
			id := w.bring("processing+held")
			if c.op == "expire over" {
				w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1", id)
			}
			w.ok(w.do(c.op, id, 1))
			r := w.row(id)
			if r.fence != 1 || r.failures != c.failures || r.dispatch != c.dispatch || r.finishedFence != c.finishedFence {
				t.Errorf("after %s: fence %d, failures %d, dispatch %d, finished fence %d; want %+v", c.op, r.fence, r.failures, r.dispatch, r.finishedFence, c)
			}
			if c.finishedFence > 0 {
				continue
			}
			w.exec("UPDATE jobs SET run_at = 0 WHERE id = $1", id)
			w.ok(w.do("claim", id, 1))
			if again := w.row(id); again.fence != 2 || again.failures != c.failures || again.hold != "held" {
				t.Errorf("claimed again after %s: %+v", c.op, again)
			}
		}
		w.clean()
	})
}

// The budget is the number of failed runs: with 3, the third is the last.
func TestBudget(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for _, how := range []string{"retry", "expire"} {
			id := w.bring("queued")
			for run := int64(1); run <= 3; run++ {
				w.exec("UPDATE jobs SET run_at = 0 WHERE id = $1", id)
				w.ok(w.do("claim", id, run))
				var final bool
				var err error
				if how == "retry" {
					_, final, err = w.store.Retry(w.ctx, id, run, 0, 3, giveUp)
				} else {
					w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1", id)
					_, final, err = w.store.Expire(w.ctx, id, run, 3, giveUp)
				}
				if err != nil || final != (run == 3) {
					t.Errorf("%s %d of 3: final %v, %v", how, run, final, err)
				}
			}
			if r := w.row(id); r.status != "failed" || r.code != "processing_failed" {
				t.Errorf("after three runs by %s: %+v", how, r)
			}
		}
		w.clean()
	})
}

// A job that waits for its next try is nobody's until then: a wake-up that comes early claims nothing, and the sweeper lets it wait.
func TestBackOffIsKept(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		id := w.bring("processing+held")
		_, _, err := w.store.Retry(w.ctx, id, 1, time.Hour, 3, giveUp)
		w.ok(err)
		if _, err := w.store.Claim(w.ctx, id, "worker", time.Hour); !errors.Is(err, ErrStale) {
			t.Errorf("claimed an hour early: %v", err)
		}
		w.exec("UPDATE jobs SET dispatched_at = 1 WHERE id = $1", id)
		if waiting, err := w.store.WaitingJobs(w.ctx, time.Second, 10); err != nil || len(waiting) > 0 {
			t.Errorf("the sweeper wakes it early: %+v, %v", waiting, err)
		}
		w.exec("UPDATE jobs SET run_at = now_micros() - 1 WHERE id = $1", id)
		if waiting, err := w.store.WaitingJobs(w.ctx, time.Second, 10); err != nil || len(waiting) != 1 {
			t.Errorf("the sweeper does not wake it when it is due: %+v, %v", waiting, err)
		}
		w.ok(w.do("claim", id, 1))
	})
}

// waiting is an image with its last wake-up, or with an older one.
func (w *world) waiting(id string, off int64) Waiting {
	w.Helper()
	return Waiting{AccountID: w.account, WakeUp: WakeUp{ID: id, Media: engine.Image, Number: w.row(id).dispatch + off}}
}

// The sweeper's own operations on a job in every state: they touch what waits, and nothing else.
func TestSweepersOperationsOnEveryState(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000_000)
		for state := range machine() {
			for name, do := range map[string]func(id string) error{
				"redispatch": func(id string) error {
					_, err := w.store.Redispatch(w.ctx, w.waiting(id, 0))
					return err
				},
				"redispatch of an older wake-up": func(id string) error {
					_, err := w.store.Redispatch(w.ctx, w.waiting(id, -1))
					return err
				},
				"seen": func(id string) error { return w.store.Seen(w.ctx, []Waiting{w.waiting(id, 0)}) },
				"seen of an older wake-up": func(id string) error {
					return w.store.Seen(w.ctx, []Waiting{w.waiting(id, -1)})
				},
				"expire sources in time": func(string) error { _, err := w.store.ExpireSources(w.ctx, time.Hour, 1000); return err },
				"expire keys":            func(string) error { return w.store.ExpireKeys(w.ctx, 1000) },
				"expire uploads":         func(string) error { _, err := w.store.ExpireUploads(w.ctx, 1000); return err },
			} {
				id := w.bring(state)
				before := w.row(id)
				err := do(id)
				want := before
				var wantErr error
				if name == "redispatch" && before.status == "queued" {
					want.dispatch++
				} else if name == "redispatch" || name == "redispatch of an older wake-up" {
					wantErr = ErrStale
				}
				if after := w.row(id); after != want || !errors.Is(err, wantErr) {
					t.Errorf("%s on %s: %v, and the row from %+v to %+v", name, state, err, before, after)
				}
			}
		}
		w.clean()
	})
}

// EndLeases is for a process that knows itself alone: every run becomes due for the sweeper, and nothing else changes.
func TestEndLeasesOnEveryState(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000_000)
		before, running := map[string]rowFacts{}, int64(0)
		for state := range machine() {
			id := w.bring(state)
			before[id] = w.row(id)
			if before[id].status == "processing" {
				running++
			}
		}
		if n, err := w.store.EndLeases(w.ctx); err != nil || n != running {
			t.Errorf("ended %d leases, %v; want %d", n, err, running)
		}
		for id, was := range before {
			if was.status == "processing" {
				was.lease = 1
			}
			if now := w.row(id); now != was {
				t.Errorf("the row went from %+v to %+v", was, now)
			}
		}
		lost, err := w.store.LostRuns(w.ctx, 100)
		if err != nil || int64(len(lost)) != running {
			t.Errorf("%d lost runs, %v; want %d", len(lost), err, running)
		}
		w.clean()
	})
}
