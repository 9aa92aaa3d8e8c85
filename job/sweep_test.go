package job

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"enlarger/account"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

func ids(jobs []Job) (list []string) {
	for _, j := range jobs {
		list = append(list, j.ID)
	}
	return list
}

func TestList(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		var all []Job
		for i := range 12 {
			sub := w.submission([]string{"upscale", "video_upscale"}[i%2])
			sub.CreatedAt = start.Add(time.Duration(i/3) * time.Microsecond) // three at the same moment
			j, err := w.store.Submit(w.ctx, sub)
			w.ok(err)
			all = append(all, j)
		}
		slices.SortFunc(all, func(a, b Job) int {
			if c := b.CreatedAt.Compare(a.CreatedAt); c != 0 {
				return c
			}
			return strings.Compare(b.ID, a.ID)
		})
		var paged []string
		f := Filter{Limit: 5}
		for range 5 {
			page, err := w.store.List(w.ctx, w.account, f)
			w.ok(err)
			if len(page) == 0 {
				break
			}
			paged = append(paged, ids(page)...)
			last := page[len(page)-1]
			f.AfterTime, f.AfterID = last.CreatedAt, last.ID
		}
		if !slices.Equal(paged, ids(all)) {
			t.Errorf("pages %v, want %v", paged, ids(all))
		}
		w.filters(all, start)
	})
}

// filters checks each filter against the same choice made in Go.
func (w *world) filters(all []Job, start time.Time) {
	w.Helper()
	_, err := w.store.Claim(w.ctx, all[0].ID, "worker", time.Hour)
	w.ok(err)
	_, err = w.store.Cancel(w.ctx, w.account, all[1].ID)
	w.ok(err)
	_, err = w.store.Delete(w.ctx, w.account, all[2].ID)
	w.ok(err)
	status := map[string]Status{all[0].ID: Processing, all[1].ID: Canceled}
	for name, c := range map[string]struct {
		filter Filter
		keep   func(Job) bool
	}{
		"everything":       {Filter{}, func(Job) bool { return true }},
		"queued":           {Filter{Status: Queued}, func(j Job) bool { return status[j.ID] == "" }},
		"processing":       {Filter{Status: Processing}, func(j Job) bool { return status[j.ID] == Processing }},
		"canceled":         {Filter{Status: Canceled}, func(j Job) bool { return status[j.ID] == Canceled }},
		"failed":           {Filter{Status: Failed}, func(Job) bool { return false }},
		"tool":             {Filter{Tool: "upscale"}, func(j Job) bool { return j.Tool == "upscale" }},
		"media":            {Filter{Media: engine.Video}, func(j Job) bool { return j.Media == engine.Video }},
		"tool and media":   {Filter{Tool: "upscale", Media: engine.Video}, func(Job) bool { return false }},
		"created after":    {Filter{CreatedAfter: start.Add(2 * time.Microsecond)}, func(j Job) bool { return !j.CreatedAt.Before(start.Add(2 * time.Microsecond)) }},
		"created before":   {Filter{CreatedBefore: start.Add(2 * time.Microsecond)}, func(j Job) bool { return j.CreatedAt.Before(start.Add(2 * time.Microsecond)) }},
		"everything asked": {Filter{Status: Queued, Tool: "video_upscale", CreatedAfter: start, CreatedBefore: start.Add(time.Hour)}, func(j Job) bool { return status[j.ID] == "" && j.Media == engine.Video }},
	} {
		var want []string
		for _, j := range all {
			if j.ID != all[2].ID && c.keep(j) {
				want = append(want, j.ID)
			}
		}
		c.filter.Limit = 100
		got, err := w.store.List(w.ctx, w.account, c.filter)
		if err != nil || !slices.Equal(ids(got), want) {
			w.Errorf("%s: %v, %v; want %v", name, ids(got), err, want)
		}
	}
	for limit, want := range map[int]int{-1: 1, 0: 1, 3: 3, 1000: 11} {
		if got, err := w.store.List(w.ctx, w.account, Filter{Limit: limit}); err != nil || len(got) != want {
			w.Errorf("limit %d: %d jobs, %v; want %d", limit, len(got), err, want)
		}
	}
	if got, err := w.store.List(w.ctx, w.newAccount(0), Filter{Limit: 100}); err != nil || got == nil || len(got) > 0 {
		w.Errorf("another account: %v, %v", got, err)
	}
}

func TestListByMetadata(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for _, metadata := range []map[string]string{
			{"order": "4", "shop": "a"}, {"order": "42"}, {"a": "b", "order": "4"}, {"note": `","order":"4`}, {"xorder": "4"}, {"order": "<&>%_?$1"}, nil,
		} {
			sub := w.submission("upscale")
			sub.Metadata = metadata
			_, err := w.store.Submit(w.ctx, sub)
			w.ok(err)
		}
		for _, c := range []struct {
			want map[string]string
			n    int
		}{
			{nil, 7}, {map[string]string{"order": "4"}, 2}, {map[string]string{"order": "4", "shop": "a"}, 1}, {map[string]string{"order": "4", "shop": "b"}, 0},
			{map[string]string{"order": "42"}, 1}, {map[string]string{"note": `","order":"4`}, 1}, {map[string]string{"order": "<&>%_?$1"}, 1}, {map[string]string{"order": ""}, 0},
		} {
			got, err := w.store.List(w.ctx, w.account, Filter{Metadata: c.want, Limit: 100})
			if err != nil || len(got) != c.n {
				t.Errorf("%v: %d jobs, %v; want %d", c.want, len(got), err, c.n)
			}
		}
	})
}

// Delete takes the content and leaves the ledger.
func TestDeleteWipes(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		const secret = "my-private-words"
		for _, end := range []string{"succeed", "fail", "cancel", ""} {
			u := Upload{ID: NewUploadID(), AccountID: w.account, FileName: secret + ".mp4", ContentType: "video/mp4", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
			u.Object = "uploads/" + u.ID
			w.ok(w.store.CreateUpload(w.ctx, u, Idempotency{}))
			sub := w.submission("video_upscale")
			sub.Metadata, sub.Order.Canonical, sub.Order.Warnings = map[string]string{"k": secret}, []byte(`{"prompt":"`+secret+`"}`), []string{secret}
			sub.Source = Source{Kind: SourceUpload, UploadID: u.ID, URL: "https://host/" + secret}
			j, err := w.store.Submit(w.ctx, sub)
			w.ok(err)
			for _, op := range []string{"claim", "stored", "reserve"} {
				w.ok(w.do(op, j.ID, 1))
			}
			switch end {
			case "succeed":
				j.Fence = 1
				w.ok(w.store.Succeed(w.ctx, j, j.ResultsPrefix+"1.mp4", engine.Output{Width: 1, Warnings: []string{secret}}, nil))
			case "fail":
				w.ok(w.store.Fail(w.ctx, j.ID, 1, engine.Failf(engine.ProcessingFailed, "%s", secret)))
			case "cancel":
				w.ok(w.do("cancel", j.ID, 1))
			}
			deleted, err := w.store.Delete(w.ctx, w.account, j.ID)
			w.ok(err)
			if !slices.Equal(deleted.Objects, []string{u.Object, j.ResultsPrefix}) || deleted.WasProcessing != (end == "") {
				t.Errorf("%q: %+v", end, deleted)
			}
			for _, object := range deleted.Objects {
				if n := w.count("SELECT COUNT(*) FROM garbage WHERE object = $1", object); n != 1 {
					t.Errorf("%q: %s is not in the garbage", end, object)
				}
			}
			if n := w.count("SELECT COUNT(*) FROM entries WHERE hold_id = $1", j.ID); n != 2 {
				t.Errorf("%q: %d entries, want reserve and its end", end, n)
			}
			if again, err := w.store.Delete(w.ctx, w.account, j.ID); err != nil || len(again.Objects) > 0 || again.WasProcessing {
				t.Errorf("%q, again: %+v, %v", end, again, err)
			}
			for _, err := range []error{w.do("cancel", j.ID, 1), func() error { _, err := w.store.Get(w.ctx, w.account, j.ID); return err }()} {
				if !errors.Is(err, ErrNotFound) {
					t.Errorf("%q, after: %v", end, err)
				}
			}
		}
		for _, column := range []string{"config", "hint", "warnings", "metadata", "source_url", "result", "result_object", "error_message"} {
			if n := w.count("SELECT COUNT(*) FROM jobs WHERE " + column + " LIKE '%" + secret + "%'"); n != 0 {
				t.Errorf("%d deleted jobs keep their %s", n, column)
			}
		}
		if n := w.count("SELECT COUNT(*) FROM uploads WHERE file_name <> ''"); n != 0 {
			t.Errorf("%d uploads of deleted jobs keep their file name", n)
		}
		if _, err := w.store.Delete(w.ctx, w.newAccount(0), NewID()); !errors.Is(err, ErrNotFound) {
			t.Errorf("a job that never was: %v", err)
		}
		w.clean()
	})
}

func TestGarbage(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 0)
		w.ok(w.store.Discard(w.ctx, time.Hour, "later", ""))
		w.ok(w.store.Discard(w.ctx, 0, "a", "b", "prefix/"))
		due := func(limit int) []string {
			list, err := w.store.Garbage(w.ctx, limit)
			w.ok(err)
			slices.Sort(list)
			return list
		}
		if got := due(10); !slices.Equal(got, []string{"a", "b", "prefix/"}) {
			t.Errorf("due %v", got)
		}
		if got := due(2); len(got) != 2 {
			t.Errorf("two of the due: %v", got)
		}
		// Removing is safe to repeat, and forgets nothing that is not due.
		for range 2 {
			w.ok(w.store.Removed(w.ctx, []string{"a", "later", "never"}))
		}
		if got := due(10); !slices.Equal(got, []string{"b", "prefix/"}) {
			t.Errorf("after a was removed: %v", got)
		}
		w.ok(w.store.Discard(w.ctx, time.Hour, "b")) // noted anew: its time starts again
		if got := due(10); !slices.Equal(got, []string{"prefix/"}) {
			t.Errorf("after b was noted anew: %v", got)
		}
		if found, err := w.store.Referenced(w.ctx, "later"); err != nil || !found {
			t.Errorf("later is still in the list: %v, %v", found, err)
		}
	})
}

func TestReferenced(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		id := w.bring("processing+held")
		upload := Upload{ID: "upl_1", AccountID: w.account, Object: "uploads/1", CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
		w.ok(w.store.CreateUpload(w.ctx, upload, Idempotency{}))
		check := func(object string, want bool) {
			t.Helper()
			if got, err := w.store.Referenced(w.ctx, object); err != nil || got != want {
				t.Errorf("%s: %v, %v; want %v", object, got, err, want)
			}
		}
		result := "results/" + id + "/1.jpg"
		check("sources/"+id, true)
		check("uploads/1", true)
		sub := w.submission("video_upscale")
		sub.Source = Source{Kind: SourceUpload, UploadID: "upl_1"}
		_, err := w.store.Submit(w.ctx, sub)
		w.ok(err)
		check("uploads/1", true) // used, and not yet looked at by a worker
		check(result, false)
		check("nothing", false)
		check("", false)
		w.ok(w.do("succeed", id, 1))
		check(result, true)
		w.ok(w.do("delete", id, 1))
		check("sources/"+id, true) // in the garbage now
		w.exec("UPDATE garbage SET not_before = 1")
		w.ok(w.store.Removed(w.ctx, []string{"sources/" + id, "results/" + id + "/"}))
		check("sources/"+id, false)
		check(result, false)
	})
}

func TestExpireUploads(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for i, age := range []time.Duration{-time.Hour, time.Minute, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour} {
			u := Upload{ID: fmt.Sprint("upl_", i), AccountID: w.account, Object: fmt.Sprint("uploads/", i), CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
			w.ok(w.store.CreateUpload(w.ctx, u, Idempotency{}))
			if i == 4 {
				sub := w.submission("video_upscale")
				sub.Source = Source{Kind: SourceUpload, UploadID: u.ID}
				_, err := w.store.Submit(w.ctx, sub)
				w.ok(err)
			}
			w.exec("UPDATE uploads SET expires_at = now_micros() - $1 WHERE id = $2", age.Microseconds(), u.ID)
		}
		// 0 is in time, 1 may still be under way, 4 was used.
		for _, want := range []struct{ limit, n int }{{1, 1}, {10, 1}, {10, 0}} {
			if n, err := w.store.ExpireUploads(w.ctx, want.limit); err != nil || n != want.n {
				t.Errorf("expired %d, %v; want %d", n, err, want.n)
			}
		}
		due, err := w.store.Garbage(w.ctx, 10)
		slices.Sort(due)
		if err != nil || !slices.Equal(due, []string{"uploads/2", "uploads/3"}) {
			t.Errorf("garbage %v, %v", due, err)
		}
		if err := w.store.CheckUpload(w.ctx, w.account, "upl_2"); !errors.Is(err, ErrUploadExpired) {
			t.Errorf("a removed upload: %v", err)
		}
	})
}

func TestExpireSources(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		old, fresh, running := w.bring("succeeded+confirmed"), w.bring("succeeded+confirmed"), w.bring("processing+held")
		w.exec("UPDATE jobs SET finished_at = now_micros() - $1 WHERE id = $2", (25 * time.Hour).Microseconds(), old)
		for _, want := range []int{1, 0} {
			if n, err := w.store.ExpireSources(w.ctx, 24*time.Hour, 10); err != nil || n != want {
				t.Errorf("expired %d, %v; want %d", n, err, want)
			}
		}
		for id, ready := range map[string]bool{old: false, fresh: true, running: true} {
			if j, err := w.store.Get(w.ctx, w.account, id); err != nil || j.Source.Ready != ready {
				t.Errorf("source ready %v, %v; want %v", j.Source.Ready, err, ready)
			}
		}
		if due, err := w.store.Garbage(w.ctx, 10); err != nil || !slices.Equal(due, []string{"sources/" + old}) {
			t.Errorf("garbage %v, %v", due, err)
		}
	})
}

func TestWaiting(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		quiet, recent, running, later := w.bring("queued"), w.bring("queued"), w.bring("uploading"), w.bring("queued")
		w.exec("UPDATE jobs SET dispatched_at = dispatched_at - $1 WHERE id <> $2", time.Hour.Microseconds(), recent)
		w.exec("UPDATE jobs SET run_at = run_at + $1 WHERE id = $2", time.Hour.Microseconds(), later)
		waiting := func() []Waiting {
			t.Helper()
			list, err := w.store.WaitingJobs(w.ctx, time.Minute, 10)
			w.ok(err)
			return list
		}
		want := w.waiting(quiet, 0)
		got := waiting()
		if len(got) != 1 || got[0] != want {
			t.Fatalf("waiting %+v, want %+v alone of %s", got, want, running)
		}
		w.ok(w.store.Seen(w.ctx, []Waiting{w.waiting(quiet, 6)})) // another wake-up
		if got := waiting(); len(got) != 1 {
			t.Errorf("an old wake-up was seen: %+v", got)
		}
		w.ok(w.store.Seen(w.ctx, got))
		w.ok(w.store.Seen(w.ctx, nil))
		if got := waiting(); len(got) != 0 {
			t.Errorf("seen, yet waiting: %+v", got)
		}
		next, err := w.store.Redispatch(w.ctx, want)
		if err != nil || next != (WakeUp{ID: quiet, Media: engine.Image, Number: 2}) {
			t.Errorf("redispatched as %+v, %v", next, err)
		}
		for _, wrong := range []Waiting{want, w.waiting(running, 0), {WakeUp: WakeUp{ID: "job_none", Number: 1}}} {
			if _, err := w.store.Redispatch(w.ctx, wrong); !errors.Is(err, ErrStale) {
				t.Errorf("%+v: %v", wrong, err)
			}
		}
		w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1", running)
		lost, err := w.store.LostRuns(w.ctx, 10)
		if err != nil || len(lost) != 1 || lost[0] != (Lost{ID: running, Media: engine.Image, Fence: 1, Worker: "worker"}) {
			t.Errorf("lost %+v, %v", lost, err)
		}
	})
}

// What a client has written comes back as it was.
func TestJobRoundTrip(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		sub := w.submission("video_upscale")
		sub.Metadata = map[string]string{"ключ": "值\x00\"\\<>&\u2028", "": ""}
		order, err := w.catalog.Order("video_upscale", []byte(`{"scale": 4, "source_width": 640, "source_height": 360, "duration": 1.5, "no": 1}`), "png")
		w.ok(err)
		sub.Order, sub.Source = order, Source{Kind: SourceURL, URL: "https://host/ü?a=b&c=%00", Object: "sources/x"}
		_, err = w.store.Submit(w.ctx, sub)
		w.ok(err)
		got, err := w.store.Get(w.ctx, w.account, sub.ID)
		w.ok(err)
		if got.Metadata["ключ"] != sub.Metadata["ключ"] || len(got.Metadata) != 2 || got.Source != sub.Source || got.Hint != order.Hint || len(got.Warnings) != 2 ||
			!slices.Equal(got.Warnings, order.Warnings) || string(got.Config) != `{"scale":4}` || got.Format != "mp4" || got.Media != engine.Video || got.KeyID != "key_1" ||
			got.Estimate != 1000 || !got.CreatedAt.Equal(sub.CreatedAt.Truncate(time.Microsecond)) || got.ResultsPrefix != sub.ResultsPrefix {
			t.Errorf("%+v", got)
		}
		restored, err := w.catalog.Restore(got.Tool, got.Config, got.Format)
		if err != nil || string(restored.Canonical) != string(order.Canonical) {
			t.Errorf("restored %+v, %v", restored, err)
		}
		if _, err := w.store.Get(w.ctx, w.newAccount(0), sub.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("a foreign job: %v", err)
		}
	})
}

// The audit names the job whose row does not fit the books.
func TestAuditFinds(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for _, c := range []struct{ state, query, rule string }{
			{"succeeded+confirmed", "UPDATE holds SET state = 'released' WHERE job_id = $1", "a succeeded job is confirmed once"},
			{"succeeded+confirmed", "DELETE FROM holds WHERE job_id = $1", "a succeeded job is confirmed once"},
			{"failed+released", "UPDATE holds SET state = 'confirmed' WHERE job_id = $1", "a failed or canceled job holds nothing"},
			{"canceled+released", "UPDATE holds SET state = 'held', ended_at = 0 WHERE job_id = $1", "a failed or canceled job holds nothing"},
			{"queued+held", "UPDATE holds SET state = 'released', ended_at = 1 WHERE job_id = $1", "a job in progress is not settled"},
			{"processing+held", "DELETE FROM holds WHERE job_id = $1", "a job is not worked on before its credits are reserved"},
			{"processing+held", "UPDATE holds SET account_id = (SELECT MAX(id) FROM accounts WHERE name = 'other') WHERE job_id = $1", "a hold belongs to a job of the same account"},
			{"failed+released", "UPDATE jobs SET finished_fence = 7 WHERE id = $1", "a job ended with its last fence"},
			{"canceled", "UPDATE jobs SET fence = 3 WHERE id = $1", "a job ended with its last fence"},
		} {
			if _, err := account.NewStore(d).Create(w.ctx, "other"); err != nil {
				t.Fatal(err)
			}
			id := w.bring(c.state)
			w.exec(c.query, id)
			w.finds(c.query, c.rule, id)
		}
		for _, column := range []string{"active_image", "active_video"} {
			other := w.newAccount(0)
			w.exec("UPDATE accounts SET "+column+" = 1 WHERE id = $1", other)
			w.finds(column, "the places in flight are counted right", other)
		}
		w.exec("INSERT INTO uploads (id, account_id, object, file_name, content_type, status, job_id, created_at, expires_at) VALUES ('upl_x', $1, '', '', '', 'consumed', 'job_none', 1, 1)", w.account)
		w.finds("a lost consumer", "an upload is consumed by one job of its account", "upl_x")
	})
}

func (w *world) finds(what, rule, row string) {
	w.Helper()
	all, err := w.store.Audit(w.ctx)
	w.ok(err)
	for _, v := range all {
		if v.Rule == rule && v.Row == row && v.Detail != "" {
			return
		}
	}
	w.Errorf("%s: the audit does not name %s for %q: %+v", what, row, rule, all)
}

// A server that is alone after a crash takes its runs up at once, with the same fence rule as ever.
func TestEndLeases(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		queued, running, done := w.bring("queued"), w.bring("processing+held"), w.bring("succeeded+confirmed")
		before := []rowFacts{w.row(queued), w.row(done)}
		if n, err := w.store.EndLeases(w.ctx); err != nil || n != 1 {
			t.Errorf("ended %d leases, %v; want 1", n, err)
		}
		if w.row(queued) != before[0] || w.row(done) != before[1] {
			t.Error("a job that is not running was changed")
		}
		lost, err := w.store.LostRuns(w.ctx, 10)
		if err != nil || len(lost) != 1 || lost[0].ID != running {
			t.Errorf("lost %+v, %v", lost, err)
		}
		w.ok(w.do("expire over", running, 1))
		w.clean()
	})
}

// What a job leaves in the bucket is noted in the transaction that ends it, and is due once a worker that was fenced off has stopped writing.
func TestEndsLeaveGarbage(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for op, all := range map[string]bool{"fail": true, "retry last": true, "expire last": true, "cancel": true, "delete": true, "retry": false, "yield": false, "succeed": false} {
			id := w.bring("processing+held")
			w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1", id)
			w.ok(w.do(op, id, 1))
			for _, object := range []string{"sources/" + id, "results/" + id + "/"} {
				n := w.count("SELECT COUNT(*) FROM garbage WHERE object = $1 AND not_before > now_micros() + $2", object, (time.Minute).Microseconds())
				if (n == 1) != all {
					t.Errorf("after %s %s is noted %d times", op, object, n)
				}
			}
		}
		id := w.bring("processing+held")
		w.ok(w.store.Succeed(w.ctx, w.claimed(id, 1), "results/"+id+"/2.jpg", engine.Output{Width: 1}, []string{"results/" + id + "/1.jpg", ""}))
		if n := w.count("SELECT COUNT(*) FROM garbage WHERE object LIKE $1", "%"+id+"%"); n != 1 {
			t.Errorf("%d objects noted, want the one of the earlier fence", n)
		}
	})
}
