package job

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// One process of the fleet audits, when it is due; one that dies over it is followed by another.
func TestAuditIsTakenByOne(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 0)
		const day = 24 * time.Hour
		due := func() time.Duration {
			var micros int64
			w.ok(w.db.QueryRowContext(w.ctx, "SELECT due_at - now_micros() FROM audits").Scan(&micros))
			return time.Duration(micros) * time.Microsecond
		}
		takers := func() int64 {
			var won atomic.Int64
			together(8, func(int) {
				mine, err := w.store.TakeAudit(w.ctx, day)
				if err != nil {
					t.Error(err)
				}
				if mine {
					won.Add(1)
				}
			})
			return won.Load()
		}
		if report, err := w.store.LastAudit(w.ctx); err != nil || !report.FinishedAt.IsZero() {
			t.Errorf("before anything: %+v, %v", report, err)
		}
		if n := takers(); n != 0 {
			t.Errorf("%d took an audit that nobody planned", n)
		}
		for range 5 { // as many processes do
			w.ok(w.store.PlanAudit(w.ctx, day))
		}
		if in := due(); in < -time.Minute || in > day {
			t.Errorf("the first is due in %v", in)
		}
		w.exec("UPDATE audits SET due_at = now_micros() + 3600000000")
		if n := takers(); n != 0 {
			t.Errorf("%d took an audit an hour early", n)
		}
		w.exec("UPDATE audits SET due_at = now_micros()")
		if n := takers(); n != 1 {
			t.Errorf("%d took one audit", n)
		}
		if in := due(); in > auditAgain || in < auditAgain/2 {
			t.Errorf("the audit of a process that dies is due again in %v", in)
		}
		found := []billing.Violation{{Rule: "r", Row: "a"}, {Rule: "r", Row: "b"}, {Rule: "q", Row: "a"}}
		w.ok(w.store.FileAudit(w.ctx, found, 3*time.Second, day))
		report, err := w.store.LastAudit(w.ctx)
		if err != nil || time.Since(report.FinishedAt).Abs() > time.Hour || report.Took != 3*time.Second || len(report.Broken) != 2 || report.Broken["r"] != 2 || report.Broken["q"] != 1 {
			t.Errorf("filed %+v, %v", report, err)
		}
		if in := due(); in > day || in < day-time.Hour {
			t.Errorf("the next is due in %v", in)
		}
		// A shorter time between audits counts at once, a longer one from the next on.
		w.ok(w.store.PlanAudit(w.ctx, time.Hour))
		if in := due(); in > time.Hour {
			t.Errorf("every hour: due in %v", in)
		}
		w.ok(w.store.PlanAudit(w.ctx, 30*day))
		if in := due(); in > time.Hour {
			t.Errorf("every month: due in %v", in)
		}
	})
}

func TestInFlight(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for state := range machine() { // whatever has ended does not count
			id := w.bring(state)
			if w.row(id).status == "queued" {
				w.exec("UPDATE jobs SET run_at = now_micros() + 3600000000 WHERE id = $1", id)
			}
		}
		w.submit("video_upscale")
		w.exec("UPDATE jobs SET run_at = now_micros() - 60000000 WHERE id = $1", w.submit("video_upscale").ID)
		got, err := w.store.InFlight(w.ctx)
		w.ok(err)
		if image := got[engine.Image]; image != (InFlight{Queued: 2, Processing: 5}) {
			t.Errorf("images %+v", image)
		}
		if video := got[engine.Video]; video.Queued != 2 || video.Processing != 0 || video.Oldest < time.Minute || video.Oldest > time.Hour {
			t.Errorf("videos %+v", video)
		}
	})
}

// The count reads what is in flight, and not the jobs that have ended.
func TestInFlightUsesIndexes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, databases.PostgreSQL(t), 0)
	w.exec(`INSERT INTO jobs (id, account_id, key_id, tool, media, config, format, source_kind, source_object, results_prefix, source_ready, status,
			error_code, run_at, created_at, finished_at)
		SELECT 'job_' || n, $1, 'k', 'upscale', 'image', '{}', 'jpg', 'inline', 's', 'r', FALSE, 'failed', 'x', 1, n, 1 FROM generate_series(1, 20000) n`, w.account)
	w.exec("ANALYZE jobs")
	plan, err := w.store.strings(w.ctx, "EXPLAIN "+inFlight)
	w.ok(err)
	if text := strings.Join(plan, "\n"); strings.Contains(text, "Seq Scan on jobs") {
		t.Errorf("plan:\n%s", text)
	}
}
