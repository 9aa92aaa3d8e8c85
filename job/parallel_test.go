package job

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// together runs n functions that start at the same moment.
func together(n int, f func(i int)) {
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		all.Go(func() {
			<-start
			f(i)
		})
	}
	close(start)
	all.Wait()
}

func (w *world) count(query string, args ...any) (n int) {
	w.Helper()
	w.ok(w.db.QueryRowContext(w.ctx, query, args...).Scan(&n))
	return n
}

// F4: the same key fifty times in parallel is one job and 49 replays of its answer; another body is a conflict; a day later the key is free.
func TestIdempotentTwins(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 100_000)
		const twins = 50
		twin := func(key, fingerprint string) (Submission, error) {
			sub := w.submission("upscale")
			sub.Idempotency = Idempotency{Key: key, Fingerprint: fingerprint, Status: 202, Body: []byte(`{"id":"` + sub.ID + `"}`)}
			_, err := w.store.Submit(w.ctx, sub)
			return sub, err
		}
		var mu sync.Mutex
		var first []string
		var replayed [][]byte
		together(twins, func(int) {
			sub, err := twin("key", "same")
			mu.Lock()
			defer mu.Unlock()
			var r *Replayed
			switch {
			case err == nil:
				first = append(first, sub.ID)
			case errors.As(err, &r) && r.Status == 202:
				replayed = append(replayed, r.Body)
			default:
				t.Errorf("a twin: %v", err)
			}
		})
		if len(first) != 1 || len(replayed) != twins-1 {
			t.Fatalf("%d accepted and %d replayed", len(first), len(replayed))
		}
		answer := []byte(`{"id":"` + first[0] + `"}`)
		for _, body := range replayed {
			if !bytes.Equal(body, answer) {
				t.Errorf("replayed %s, want %s", body, answer)
			}
		}
		if n := w.count("SELECT COUNT(*) FROM jobs"); n != 1 {
			t.Errorf("%d jobs", n)
		}
		_, err := twin("key", "other")
		for what, err := range map[string]error{"submit": err, "look up": w.store.Replay(w.ctx, w.account, "key", "other")} {
			if !errors.Is(err, ErrIdempotencyConflict) {
				t.Errorf("%s another request: %v", what, err)
			}
		}
		other := w.newAccount(5000)
		if err := w.store.Replay(w.ctx, other, "key", "same"); err != nil {
			t.Errorf("another account's key: %v", err)
		}
		w.idempotencyEnds(twin)
		w.clean()
	})
}

// idempotencyEnds: an accepted key lives 24 hours and outlives its job; a refused request binds none.
func (w *world) idempotencyEnds(twin func(key, fingerprint string) (Submission, error)) {
	w.Helper()
	var r *Replayed
	j := Job{}
	w.ok(w.db.QueryRowContext(w.ctx, "SELECT id FROM jobs").Scan(&j.ID))
	_, err := w.store.Delete(w.ctx, w.account, j.ID)
	w.ok(err)
	const lives = "SELECT COUNT(*) FROM idempotency WHERE expires_at BETWEEN now_micros() + $1 AND now_micros() + $2"
	if n := w.count(lives, (24*time.Hour - 10*time.Minute).Microseconds(), (24 * time.Hour).Microseconds()); n != 1 {
		w.Errorf("%d keys live 24 hours", n)
	}
	w.exec("UPDATE idempotency SET expires_at = now_micros() + $1", time.Hour.Microseconds()) // 23 hours later
	w.ok(w.store.ExpireKeys(w.ctx, 10))
	if _, err := twin("key", "same"); !errors.As(err, &r) {
		w.Errorf("after 23 hours and with the job deleted: %v", err)
	}
	w.exec("UPDATE idempotency SET expires_at = now_micros()") // 24 hours later
	if err := w.store.Replay(w.ctx, w.account, "key", "same"); err != nil {
		w.Errorf("look up after 24 hours: %v", err)
	}
	if _, err := twin("key", "other"); err != nil {
		w.Errorf("after 24 hours: %v", err)
	}
	w.exec("UPDATE idempotency SET expires_at = now_micros()")
	w.ok(w.store.ExpireKeys(w.ctx, 10))
	if n := w.count("SELECT COUNT(*) FROM idempotency"); n != 0 {
		w.Errorf("%d expired keys are left", n)
	}
	poor := w.submission("upscale")
	poor.Estimate, poor.Idempotency = 1_000_000, Idempotency{Key: "refused", Fingerprint: "f", Status: 202}
	if _, err := w.store.Submit(w.ctx, poor); !errors.Is(err, billing.ErrInsufficient) {
		w.Errorf("a poor request: %v", err)
	}
	if _, err := twin("refused", "g"); err != nil {
		w.Errorf("a refused request bound its key: %v", err)
	}
}

// A twin of a request that is still under way waits, and is then told to come back.
func TestTwinWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, databases.PostgreSQL(t), 100_000)
	tx, err := w.db.BeginTx(w.ctx, nil)
	w.ok(err)
	defer tx.Rollback() //nolint:errcheck // the test is over
	first := Idempotency{Key: "key", Fingerprint: "f", Status: 202, Body: []byte("{}")}
	for _, step := range w.store.binding(w.account, first) {
		w.ok(step.Run(w.ctx, tx))
	}
	sub := w.submission("upscale")
	sub.Idempotency = first
	if _, err := w.store.Submit(w.ctx, sub); !errors.Is(err, ErrIdempotencyBusy) {
		t.Errorf("got %v, want ErrIdempotencyBusy", err)
	}
	w.ok(tx.Rollback())
	if _, err := w.store.Submit(w.ctx, sub); err != nil {
		t.Errorf("after the first gave up: %v", err)
	}
	w.clean()
}

// The cap on jobs in flight holds exactly under parallel submits, separately for images and videos, and an ended job frees its place.
func TestConcurrencyCap(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		caps := map[engine.Media]int{engine.Image: 7, engine.Video: 3}
		var mu sync.Mutex
		accepted := map[engine.Media][]string{}
		together(40, func(i int) {
			sub := w.submission([]string{"upscale", "video_upscale"}[i%2])
			sub.MaxActive = caps[sub.Order.Tool.Media]
			_, err := w.store.Submit(w.ctx, sub)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				accepted[sub.Order.Tool.Media] = append(accepted[sub.Order.Tool.Media], sub.ID)
			} else if !errors.Is(err, ErrConcurrency) {
				t.Error(err)
			}
		})
		for media, most := range caps {
			if len(accepted[media]) != most {
				t.Errorf("%d of %s in flight, want %d", len(accepted[media]), media, most)
			}
			if err := w.store.Preflight(w.ctx, w.account, media, 1, most); !errors.Is(err, ErrConcurrency) {
				t.Errorf("preflight of %s: %v", media, err)
			}
		}
		counts, err := w.store.Active(w.ctx)
		if err != nil || counts != (Counts{Queued: 10}) {
			t.Errorf("active %+v, %v", counts, err)
		}
		w.clean()
		_, err = w.store.Cancel(w.ctx, w.account, accepted[engine.Video][0])
		w.ok(err)
		sub := w.submission("video_upscale")
		sub.MaxActive = caps[engine.Video]
		if _, err := w.store.Submit(w.ctx, sub); err != nil {
			t.Errorf("after one ended: %v", err)
		}
		w.clean()
	})
}

// F5 through the jobs: balance B and price p, many workers at once: floor(B/p) reserve.
func TestParallelReserve(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000)
		const jobs, price = 20, 1700
		ids, claimed := make([]string, jobs), make([]Job, jobs)
		for i := range ids {
			ids[i] = w.submit("upscale").ID
			var err error
			claimed[i], err = w.store.Claim(w.ctx, ids[i], "worker", time.Hour)
			w.ok(err)
		}
		var won atomic.Int64
		together(jobs, func(i int) {
			_, err := w.store.Reserve(w.ctx, claimed[i], price)
			switch {
			case err == nil:
				won.Add(1)
				err = w.store.Succeed(w.ctx, claimed[i], "results/x", engine.Output{Width: 1}, nil)
			case errors.Is(err, billing.ErrInsufficient):
				err = w.store.Fail(w.ctx, ids[i], 1, engine.Failf(engine.InsufficientCredits, "Not enough credits."))
			}
			if err != nil {
				t.Error(err)
			}
		})
		b, err := w.ledger.Balance(w.ctx, w.account)
		if err != nil || won.Load() != 5 || b != (billing.Balance{Balance: 1500, Used: 8500}) {
			t.Errorf("%d reserved, %+v, %v; want 5 and 1.5 left", won.Load(), b, err)
		}
		w.clean()
	})
}

// One of many workers gets a job.
func TestParallelClaim(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000)
		for round := range 5 {
			id := w.submit("upscale").ID
			var won atomic.Int64
			together(10, func(i int) {
				_, err := w.store.Claim(w.ctx, id, fmt.Sprint("worker", i), time.Hour)
				if err == nil {
					won.Add(1)
				} else if !errors.Is(err, ErrStale) {
					t.Error(err)
				}
			})
			if won.Load() != 1 || w.row(id).fence != 1 {
				t.Errorf("round %d: %d workers have the job, fence %d", round, won.Load(), w.row(id).fence)
			}
		}
	})
}

// An upload is used once, by its own account, in time.
func TestUploads(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 100_000)
		other := w.newAccount(100_000)
		upload := func(expires time.Duration) string {
			u := Upload{ID: NewUploadID(), AccountID: w.account, FileName: "a.mp4", ContentType: "video/mp4", Size: 5, CreatedAt: time.Now(), ExpiresAt: time.Now().Add(expires)}
			u.Object = "uploads/" + u.ID
			w.ok(w.store.CreateUpload(w.ctx, u, Idempotency{}))
			return u.ID
		}
		use := func(account, id string) (Job, error) {
			sub := w.submission("video_upscale")
			sub.AccountID, sub.Source = account, Source{Kind: SourceUpload, UploadID: id}
			return w.store.Submit(w.ctx, sub)
		}
		good, late := upload(time.Hour), upload(-time.Second)
		for _, c := range []struct {
			account, id string
			want        error
		}{{w.account, late, ErrUploadExpired}, {other, good, ErrUploadNotFound}, {w.account, "upl_none", ErrUploadNotFound}} {
			_, err := use(c.account, c.id)
			if check := w.store.CheckUpload(w.ctx, c.account, c.id); !errors.Is(err, c.want) || !errors.Is(check, c.want) {
				t.Errorf("%+v: %v and %v", c, err, check)
			}
		}
		w.ok(w.store.CheckUpload(w.ctx, w.account, good))
		var won atomic.Int64
		together(12, func(int) {
			j, err := use(w.account, good)
			switch {
			case err == nil:
				won.Add(1)
				if j.Source.Object != "uploads/"+good || j.Source.Size != 5 || j.Source.UploadID != good || j.Source.Ready {
					t.Errorf("source %+v", j.Source)
				}
			case !errors.Is(err, ErrUploadConsumed):
				t.Error(err)
			}
		})
		if n := w.count("SELECT COUNT(*) FROM jobs"); won.Load() != 1 || n != 1 {
			t.Errorf("%d submits won, %d jobs; want one", won.Load(), n)
		}
		// Who saw it open before another took it, or its time was over, does not get it.
		for _, id := range []string{good, late} {
			sub := w.submission("video_upscale")
			sub.Source = Source{Kind: SourceUpload, UploadID: id}
			if err := w.db.Batch(w.ctx, consumption(sub)); !errors.Is(err, errConsumed) {
				t.Errorf("taken all the same: %v", err)
			}
		}
		// A submit that is refused after it took the upload gives it back.
		second := upload(time.Hour)
		sub := w.submission("video_upscale")
		sub.Source, sub.MaxActive = Source{Kind: SourceUpload, UploadID: second}, 1
		if _, err := w.store.Submit(w.ctx, sub); !errors.Is(err, ErrConcurrency) {
			t.Errorf("above the cap: %v", err)
		}
		w.ok(w.store.CheckUpload(w.ctx, w.account, second))
		w.clean()
	})
}

// F17, small: cancel against finish. One terminal state, and the credits moved once, its way.
func TestCancelAgainstSucceed(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		const price = 700
		canceled := 0
		for i := range races {
			id := w.bring("processing+held")
			j := w.claimed(id, 1)
			var cancelErr, succeedErr error
			together(2, func(side int) {
				if side == i%2 {
					_, cancelErr = w.store.Cancel(w.ctx, w.account, id)
				} else {
					succeedErr = w.store.Succeed(w.ctx, j, "results/x", engine.Output{Width: 1}, nil)
				}
			})
			state := w.state(id)
			switch {
			case cancelErr == nil && errors.Is(succeedErr, ErrStale) && state == "canceled+released":
				canceled++
			case errors.Is(cancelErr, ErrNotCancelable) && succeedErr == nil && state == "succeeded+confirmed":
			default:
				t.Fatalf("race %d: cancel %v, succeed %v, then %s", i, cancelErr, succeedErr, state)
			}
		}
		b, err := w.ledger.Balance(w.ctx, w.account)
		if want := billing.Millicredits((races - canceled) * price); err != nil || b.Used != want || b.Frozen != 0 || b.Balance != 1_000_000-want {
			t.Errorf("%d of %d canceled, and %+v, %v", canceled, races, b, err)
		}
		w.clean()
	})
}

// Everything that can end or return one run at once: one of them wins.
func TestManyEnds(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for range 25 {
			id := w.bring("processing+held")
			w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1", id)
			var won atomic.Int64
			ops := []string{"succeed", "fail", "retry last", "expire last", "cancel", "delete", "delete", "cancel"}
			var deletes atomic.Int64
			together(len(ops), func(i int) {
				err := w.do(ops[i], id, 1)
				switch {
				case err == nil && ops[i] == "delete":
					deletes.Add(1)
				case err == nil:
					won.Add(1)
				case !errors.Is(err, ErrStale) && !errors.Is(err, ErrNotCancelable) && !errors.Is(err, ErrNotFound):
					t.Errorf("%s: %v", ops[i], err)
				}
			})
			r := w.row(id)
			// fail, retry last and expire last end alike, so that a later fail with the same fence is told of success too.
			if deletes.Load() != 2 || won.Load() > 2 || r.deleted == 0 || r.finishedFence != 1 {
				t.Fatalf("%d deletes and %d others succeeded; %+v", deletes.Load(), won.Load(), r)
			}
		}
		w.clean()
	})
}

// F22: two sweepers and a worker that comes back on the same lost run: one step.
func TestParallelExpire(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for range 20 {
			id := w.bring("processing+held")
			w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1", id)
			ops := []string{"expire over", "expire over", "retry", "beat"}
			var won atomic.Int64
			together(len(ops), func(i int) {
				if err := w.do(ops[i], id, 1); err == nil && ops[i] != "beat" {
					won.Add(1)
				} else if err != nil && !errors.Is(err, ErrStale) {
					t.Errorf("%s: %v", ops[i], err)
				}
			})
			// Either way the run was given back once. (When the heartbeat came first, it was the worker who did.)
			if r := w.row(id); won.Load() != 1 || r.failures != 1 || r.dispatch != 2 || r.status != "queued" || r.hold != "held" {
				t.Fatalf("%d gave the run back: %+v", won.Load(), r)
			}
		}
		w.clean()
	})
}
