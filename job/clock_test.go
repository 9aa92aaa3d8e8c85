package job

import (
	"testing"
	"testing/synctest"
	"time"

	"enlarger/db"
	"enlarger/testbed/databases"
)

// F23: the clock of a worker is of no account. In the bubble it shows January 2000, while PostgreSQL knows the day. (SQLite's clock is that of
// the one process that uses it.)
func TestLeaseIsByTheDatabasesClock(t *testing.T) {
	t.Parallel()
	w := newWorld(t, databases.PostgreSQL(t), 1_000_000)
	const lease = time.Hour
	id := w.submit("upscale").ID
	left := func(when string) {
		t.Helper()
		var micros int64
		w.ok(w.db.QueryRowContext(w.ctx, "SELECT lease_until - now_micros() FROM jobs WHERE id = $1", id).Scan(&micros))
		if got := time.Duration(micros) * time.Microsecond; got > lease || got < lease/2 {
			t.Errorf("after the %s the lease ends in %v, want about %v", when, got, lease)
		}
	}
	inThePast := func(when string, do func() error) {
		synctest.Test(t, func(t *testing.T) {
			if time.Now().Year() != 2000 {
				t.Fatalf("the worker's clock is right: %v", time.Now())
			}
			if err := do(); err != nil {
				t.Errorf("%s: %v", when, err)
			}
		})
		left(when)
	}
	inThePast("claim", func() error { _, err := w.store.Claim(w.ctx, id, "worker", lease); return err })
	w.exec("UPDATE jobs SET lease_until = now_micros() + 1000000 WHERE id = $1", id)
	inThePast("heartbeat", func() error { return w.store.Heartbeat(w.ctx, id, 1, PhaseUploading, 0, lease) })
	synctest.Test(t, func(t *testing.T) {
		if lost, err := w.store.LostRuns(w.ctx, 10); err != nil || len(lost) > 0 {
			t.Errorf("a sweeper in January 2000 finds lost runs: %+v, %v", lost, err)
		}
	})
	w.exec("UPDATE jobs SET lease_until = now_micros() - 1000000 WHERE id = $1", id)
	synctest.Test(t, func(t *testing.T) {
		lost, err := w.store.LostRuns(w.ctx, 10)
		if err != nil || len(lost) != 1 {
			t.Errorf("a sweeper in January 2000 does not find the run that is lost now: %+v, %v", lost, err)
		}
	})
	var started int64
	w.ok(w.db.QueryRowContext(w.ctx, "SELECT started_at FROM jobs WHERE id = $1", id).Scan(&started))
	if away := time.Since(db.Time(started)).Abs(); away > time.Hour {
		t.Errorf("started %v away: by the worker's clock", away)
	}
}
