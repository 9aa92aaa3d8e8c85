package job

import (
	"testing"
	"time"

	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed"
	"enlarger/testbed/databases"
)

// TestNothingReadsTheWholeTable: whatever clients, workers and sweepers ask, PostgreSQL answers by an index, so that a table of ended jobs may grow for
// years. The server counts its own sequential scans.
func TestNothingReadsTheWholeTable(t *testing.T) {
	t.Parallel()
	url := testbed.PostgreSQL(t)
	databases.Open(t, url) // migrates it
	// One connection, so that its counts can be had at once.
	d, err := db.Open(t.Context(), db.Config{URL: url, MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	w := newWorld(t, d, 1_000_000)
	w.exec(`INSERT INTO jobs (id, account_id, key_id, tool, media, config, format, source_kind, source_object, results_prefix, source_ready, status,
			run_at, created_at, finished_at, progress, result_object, result, fence, finished_fence)
		SELECT 'job_old' || n, $1, 'k', 'upscale', 'image', '{}', 'jpg', 'inline', 'sources/old' || n, 'results/old' || n, TRUE, 'succeeded', 0, n, now_micros(), 100, 'results/old' || n, '{}', 1, 1
		FROM generate_series(1, 30000) n`, w.account)
	var waiting Job
	for range 300 {
		waiting = w.submit("upscale")
	}
	w.exec("ANALYZE")
	scans := func() (n int) {
		t.Helper()
		w.exec("SELECT pg_stat_force_next_flush()")
		return w.count("SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'jobs'")
	}
	page := func(f Filter) func() error {
		return func() error { f.Limit = 20; _, err := w.store.List(w.ctx, w.account, f); return err }
	}
	long := time.Now().Add(-time.Hour)
	for _, c := range []struct {
		name string
		do   func() error
	}{
		{"submit", func() error { _, err := w.store.Submit(w.ctx, w.submission("upscale")); return err }},
		{"get", func() error { _, err := w.store.Get(w.ctx, w.account, waiting.ID); return err }},
		{"list", page(Filter{})},
		{"list from the middle", page(Filter{AfterTime: time.UnixMicro(15000), AfterID: "job_old15000"})},
		{"list by status", page(Filter{Status: Succeeded})},
		{"list by tool and time", page(Filter{Tool: "upscale", Media: engine.Image, CreatedAfter: long})},
		{"claim", func() error { _, err := w.store.Claim(w.ctx, waiting.ID, "worker", time.Minute); return err }},
		{"heartbeat", func() error { return w.do("beat", waiting.ID, 1) }},
		{"stored", func() error { return w.do("stored", waiting.ID, 1) }},
		{"reserve", func() error { return w.do("reserve", waiting.ID, 1) }},
		{"yield", func() error { return w.do("yield", waiting.ID, 1) }},
		{"waiting", func() error { _, err := w.store.WaitingJobs(w.ctx, 0, 500); return err }},
		{"promote", func() error { _, err := w.store.Promote(w.ctx, w.waiting(waiting.ID, 0)); return err }},
		{"lost", func() error { _, err := w.store.LostRuns(w.ctx, 200); return err }},
		{"sources", func() error { _, err := w.store.ExpireSources(w.ctx, time.Hour, 1000); return err }},
		{"referenced", func() error { _, err := w.store.Referenced(w.ctx, "sources/none"); return err }},
		{"in flight", func() error { _, err := w.store.InFlight(w.ctx); return err }},
		{"active", func() error { _, err := w.store.Active(w.ctx); return err }},
		{"cancel", func() error { return w.do("cancel", waiting.ID, 1) }},
		{"delete", func() error { return w.do("delete", waiting.ID, 1) }},
	} {
		before := scans()
		w.ok(c.do())
		if n := scans() - before; n != 0 {
			t.Errorf("%s read the whole table", c.name)
		}
	}
	w.exec("SET enable_indexscan = off")
	w.exec("SET enable_bitmapscan = off")
	w.exec("SET enable_indexonlyscan = off")
	before := scans()
	w.ok(page(Filter{})())
	if scans() == before {
		t.Error("a sequential scan is not counted: this test proves nothing")
	}
}
