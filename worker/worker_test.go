package worker

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

func TestJobIsCarriedToItsResult(t *testing.T) {
	each(t, func(r *rig) {
		r.start(r.config("a"))
		id := r.submit(r.submission("copy", "300x200"))
		j := r.ends(id, job.Succeeded, "")
		if got := r.object(j.ResultObject); got != "600x400" || j.Result.Width != 600 || j.Result.Height != 400 || j.Progress != 100 || j.Charged != billing.Credit {
			t.Errorf("result %q, job %+v", got, j)
		}
		r.balance(99*billing.Credit, 0, billing.Credit)
	})
}

func TestFailuresRefundAndLeaveNothing(t *testing.T) {
	for _, c := range []struct {
		name, do, text string
		code           engine.Code
		runs           int
	}{
		{"the tool's own failure is final", "fail", "3x2", engine.ProcessingFailed, 1},
		{"an internal error is tried again", "break", "3x2", engine.ProcessingFailed, 3},
		{"a panic is an internal error", "panic", "3x2", engine.ProcessingFailed, 3},
		{"a result other than planned is an internal error", "lie", "3x2", engine.ProcessingFailed, 3},
		{"a source that is none", "copy", "hello", engine.UnsupportedFormat, 0},
		{"an output over the limit", "copy", "30000x30000", engine.ResolutionLimitExceeded, 0},
		{"a price over the balance", "copy", "8000x6000", engine.InsufficientCredits, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			each(t, func(r *rig) {
				r.start(r.config("a"))
				id := r.submit(r.submission(c.do, c.text))
				j := r.ends(id, job.Failed, c.code)
				if strings.Contains(j.ErrorMessage, "inner") || strings.Contains(j.ErrorMessage, "fire") || j.ErrorMessage == "" {
					t.Errorf("message for the client: %q", j.ErrorMessage)
				}
				if runs, _ := r.tool.counts(); runs != c.runs {
					t.Errorf("%d runs, want %d", runs, c.runs)
				}
				if j.Charged != 0 {
					t.Errorf("charged %v", j.Charged)
				}
				r.balance(100*billing.Credit, 0, 0)
				r.nothingLeft()
			})
		})
	}
}

// nothingLeft lets the grace pass and demands an empty bucket.
func (r *rig) nothingLeft() {
	r.Helper()
	r.expireGarbage()
	testbed.Until(r, 10*time.Second, "an empty bucket", func() bool {
		objects, err := r.storage.List(r.ctx, "", "", 10)
		return err == nil && len(objects) == 0
	})
}

func TestSources(t *testing.T) {
	served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/good":
			fmt.Fprint(w, "30x20")
		case "/text":
			fmt.Fprint(w, "no picture")
		case "/inside":
			http.Redirect(w, req, "http://169.254.169.254/latest/meta-data", http.StatusFound)
		default:
			http.NotFound(w, req)
		}
	}))
	t.Cleanup(served.Close)
	for _, c := range []struct {
		name   string
		source func(r *rig, sub *job.Submission)
		code   engine.Code
	}{
		{"a URL", url(served.URL + "/good"), ""},
		{"a URL that gives no picture", url(served.URL + "/text"), engine.UnsupportedFormat},
		{"a URL that gives nothing", url(served.URL + "/missing"), engine.ProcessingFailed},
		{"a URL that leads inside", url(served.URL + "/inside"), engine.SSRFBlocked},
		{"a private address", url("http://10.1.2.3/x"), engine.SSRFBlocked},
		{"an upload", upload("30x20", 5), ""},
		{"an upload without declared size", upload("30x20", 0), ""},
		{"an upload that was never put", upload("", 0), engine.UploadIncomplete},
		{"an upload of another size", upload("30x20", 6), engine.UploadIncomplete},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			each(t, func(r *rig) {
				r.start(r.config("a"))
				sub := r.submission("copy", "unused")
				must(t, r.storage.Delete(r.ctx, sub.Source.Object))
				c.source(r, &sub)
				id := r.submit(sub)
				if c.code == "" {
					j := r.ends(id, job.Succeeded, "")
					if got := r.object(j.ResultObject); got != "60x40" {
						t.Errorf("result %q", got)
					}
					return
				}
				r.ends(id, job.Failed, c.code)
				r.balance(100*billing.Credit, 0, 0)
				r.nothingLeft()
			})
		})
	}
}

func url(address string) func(*rig, *job.Submission) {
	return func(r *rig, sub *job.Submission) {
		sub.Source = job.Source{Kind: job.SourceURL, URL: address, Object: storage.SourceKey(sub.ID)}
	}
}

func upload(text string, declared int64) func(*rig, *job.Submission) {
	return func(r *rig, sub *job.Submission) {
		u := job.Upload{
			ID: job.NewUploadID(), AccountID: r.account, FileName: "clip.mp4", ContentType: "video/mp4", Size: declared,
			CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
		}
		u.Object = storage.UploadKey(u.ID, "mp4")
		must(r.T, r.jobs.CreateUpload(r.ctx, u, job.Idempotency{}))
		if text != "" {
			_, err := r.storage.Put(r.ctx, u.Object, strings.NewReader(text), int64(len(text)), u.ContentType)
			must(r.T, err)
		}
		sub.Source = job.Source{Kind: job.SourceUpload, UploadID: u.ID}
	}
}

func TestCancelStopsTheWork(t *testing.T) {
	for _, told := range []bool{true, false} {
		t.Run(fmt.Sprintf("told by Redis %v", told), func(t *testing.T) {
			t.Parallel()
			each(t, func(r *rig) {
				r.start(r.config("a"))
				id := r.submit(r.submission("wait", "3x2"))
				r.running()
				r.balance(99*billing.Credit, billing.Credit, 0)
				was, err := r.jobs.Cancel(r.ctx, r.account, id)
				must(t, err)
				if !was {
					t.Error("Cancel did not see that the job was processing")
				}
				r.balance(100*billing.Credit, 0, 0) // at once, before the worker knows
				if told {
					must(t, NewDispatcher(r.redis).Stop(r.ctx, id))
				}
				testbed.Until(r, 10*time.Second, "the run to stop", func() bool { _, stopped := r.tool.counts(); return stopped == 1 })
				r.ends(id, job.Canceled, "")
				r.nothingLeft()
			})
		})
	}
}

func TestLostFenceWritesNothing(t *testing.T) {
	each(t, func(r *rig) {
		r.start(r.config("a"))
		id := r.submit(r.submission("wait", "3x2"))
		r.running()
		// Another worker has the job now, says the row.
		_, err := r.db.ExecContext(r.ctx, `UPDATE jobs SET fence = fence + 1, worker = 'other', lease_until = now_micros() + 3600000000 WHERE id = $1`, id)
		must(t, err)
		testbed.Until(r, 10*time.Second, "the run to stop", func() bool { _, stopped := r.tool.counts(); return stopped == 1 })
		if j := r.get(id); j.Status != job.Processing || j.Fence != 2 || j.Failures != 0 {
			t.Errorf("the row was changed by a run that had lost it: %+v", j)
		}
	})
}

func TestExpiredLeaseRunsAgain(t *testing.T) {
	each(t, func(r *rig) {
		// A worker that dies right after its claim: nobody renews the lease.
		id := r.submit(r.submission("copy", "3x2"))
		_, err := r.jobs.Claim(r.ctx, id, "dead", 50*time.Millisecond)
		must(t, err)
		r.start(r.config("b"))
		j := r.ends(id, job.Succeeded, "")
		if j.Fence != 2 || j.Failures != 1 {
			t.Errorf("fence %d failures %d, want 2 and 1", j.Fence, j.Failures)
		}
	})
}

func TestJobThatKillsItsWorkersIsGivenUp(t *testing.T) {
	each(t, func(r *rig) {
		id := r.submit(r.submission("copy", "3x2"))
		s := r.sweeper()
		for range 3 {
			_, err := r.jobs.Claim(r.ctx, id, "dead", 0)
			must(t, err)
			testbed.Until(r, 10*time.Second, "the lease to be swept", func() bool {
				s.Sweep(r.ctx)
				return r.get(id).Status != job.Processing
			})
		}
		r.ends(id, job.Failed, engine.ProcessingFailed)
		r.balance(100*billing.Credit, 0, 0)
	})
}

func TestDrainYieldsWithoutCountingAFailure(t *testing.T) {
	each(t, func(r *rig) {
		stop := r.start(r.config("a"))
		id := r.submit(r.submission("wait", "3x2"))
		r.running()
		stop()
		if _, stopped := r.tool.counts(); stopped != 1 {
			t.Error("the run was not stopped before the drain ended")
		}
		if j := r.get(id); j.Status != job.Queued || j.Failures != 0 || j.Fence != 1 {
			t.Fatalf("after the drain: %+v", j)
		}
		r.balance(99*billing.Credit, billing.Credit, 0) // the hold stays with the job
		r.start(r.config("b"))
		r.running()
		if j := r.get(id); j.Fence != 2 || j.Failures != 0 {
			t.Errorf("fence %d failures %d, want 2 and 0", j.Fence, j.Failures)
		}
		_, err := r.jobs.Cancel(r.ctx, r.account, id)
		must(t, err)
	})
}

func TestFlushedRedisLosesNothing(t *testing.T) {
	each(t, func(r *rig) {
		ids := []string{}
		for range 20 {
			ids = append(ids, r.submit(r.submission("copy", "3x2")))
		}
		must(t, r.redis.FlushAll(r.ctx).Err())
		r.start(r.config("a"))
		for _, id := range ids {
			r.ends(id, job.Succeeded, "")
		}
		r.balance(80*billing.Credit, 0, 20*billing.Credit)
	})
}

func TestWakeUpThatDiedWithItsWorkerIsReplaced(t *testing.T) {
	each(t, func(r *rig) {
		sub := r.submission("copy", "3x2")
		j, err := r.jobs.Submit(r.ctx, sub)
		must(t, err)
		d := NewDispatcher(r.redis)
		must(t, d.Dispatch(r.ctx, j.WakeUp()))
		// A wake-up that gave up is never delivered, and its id is taken.
		testbed.Until(r, 10*time.Second, "the wake-up to be archived", func() bool {
			return d.inspector.ArchiveTask(queueImage, wakeUpID(j.WakeUp())) == nil
		})
		r.start(r.config("a"))
		if done := r.ends(j.ID, job.Succeeded, ""); done.Dispatch != 2 || done.Failures != 0 {
			t.Errorf("dispatch %d failures %d, want 2 and 0", done.Dispatch, done.Failures)
		}
	})
}

func TestSecondDeliveryClaimsNothing(t *testing.T) {
	each(t, func(r *rig) {
		r.start(r.config("a"))
		id := r.submit(r.submission("copy", "3x2"))
		for n := range int64(10) {
			must(t, NewDispatcher(r.redis).Dispatch(r.ctx, job.WakeUp{ID: id, Media: engine.Image, Number: 100 + n}))
		}
		r.ends(id, job.Succeeded, "")
		after := r.submit(r.submission("copy", "3x2"))
		r.ends(after, job.Succeeded, "")
		if runs, _ := r.tool.counts(); runs != 2 {
			t.Errorf("%d runs of two jobs", runs)
		}
	})
}

func TestOrphansAndExpiredSourcesAreRemoved(t *testing.T) {
	each(t, func(r *rig) {
		r.start(r.config("a"))
		id := r.submit(r.submission("copy", "3x2"))
		j := r.ends(id, job.Succeeded, "")
		orphan := storage.SourceKey(job.NewID())
		_, err := r.storage.Put(r.ctx, orphan, strings.NewReader(randomText(10)), 10, "text/plain")
		must(t, err)
		const foreign = "backups/of-somebody-else"
		_, err = r.storage.Put(r.ctx, foreign, strings.NewReader("x"), 1, "text/plain")
		must(t, err)
		s := r.sweeper()
		s.KeepSources = time.Nanosecond
		s.OrphansEvery = time.Nanosecond
		testbed.Until(r, 20*time.Second, "only the result and what is not ours to be left", func() bool {
			r.expireGarbage()
			s.Sweep(r.ctx)
			objects, err := r.storage.List(r.ctx, "", "", 10)
			return err == nil && len(objects) == 2 && objects[0].Key == foreign && objects[1].Key == j.ResultObject
		})
	})
}

func TestScratchOfTheDeadIsRemoved(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	alive, err := OpenScratch(root)
	must(t, err)
	defer alive.Close()
	dead := filepath.Join(root, "worker-dead")
	must(t, os.MkdirAll(filepath.Join(dead, "job_x-1"), 0o700))
	second, err := OpenScratch(root)
	must(t, err)
	defer second.Close()
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a dead worker's directory: %v", err)
	}
	if _, err := os.Stat(alive.Dir); err != nil {
		t.Errorf("a living worker's directory: %v", err)
	}
}

func TestTimeLimitFollowsTheWork(t *testing.T) {
	t.Parallel()
	w := &Worker{Config: Config{}.withDefaults()}
	short := &run{Worker: w, plan: engine.Plan{Media: engine.Video, Width: 1000, Height: 1000, Frames: 100}}
	if got, want := short.timeLimit(), 10*time.Minute+300*time.Second; got != want {
		t.Errorf("100 megapixels: %v, want %v", got, want)
	}
	long := &run{Worker: w, plan: engine.Plan{Media: engine.Video, Width: 4096, Height: 2160, Frames: 1 << 40}}
	if got := long.timeLimit(); got != w.VideoTimeout {
		t.Errorf("endless film: %v, want %v", got, w.VideoTimeout)
	}
}

func TestSlowRunIsTimedOut(t *testing.T) {
	each(t, func(r *rig) {
		cfg := r.config("a")
		cfg.ImageTimeout = 50 * time.Millisecond
		r.start(cfg)
		r.ends(r.submit(r.submission("wait", "3x2")), job.Failed, engine.ProcessingTimeout)
		r.balance(100*billing.Credit, 0, 0)
	})
}

func TestLeaseShorterThanHeartbeatIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{Lease: time.Second, Heartbeat: time.Second, Scratch: t.TempDir()}); err == nil {
		t.Error("New took a lease that no heartbeat can keep up")
	}
}

func TestLeasesOfTheLastProcessEnd(t *testing.T) {
	each(t, func(r *rig) {
		// What the all-in-one process does when it starts: nobody else can hold a lease.
		id := r.submit(r.submission("copy", "3x2"))
		_, err := r.jobs.Claim(r.ctx, id, "killed", time.Hour)
		must(t, err)
		if n, err := r.jobs.EndLeases(r.ctx); n != 1 || err != nil {
			t.Fatalf("%d leases ended: %v", n, err)
		}
		r.start(r.config("b"))
		if j := r.ends(id, job.Succeeded, ""); j.Fence != 2 || j.Failures != 1 {
			t.Errorf("fence %d failures %d, want 2 and 1", j.Fence, j.Failures)
		}
	})
}

// A run that succeeded without knowing, because the answer to its COMMIT was lost, must not take its own result away.
func TestStaleRunKeepsAResultThatItsRowNames(t *testing.T) {
	each(t, func(r *rig) {
		stop := r.start(r.config("a"))
		j := r.ends(r.submit(r.submission("copy", "3x2")), job.Succeeded, "")
		stop()
		w, err := New(r.config("b"))
		must(t, err)
		defer w.scratch.Close()
		unknowing := &run{Worker: w, job: j, object: j.ResultObject, log: r.log}
		must(t, unknowing.retry(r.ctx))
		if got := r.object(j.ResultObject); got != "6x4" {
			t.Errorf("result %q", got)
		}
		lost := &run{Worker: w, job: j, object: storage.ResultKey(j.ID, 99, "jpg"), log: r.log}
		_, err = r.storage.Put(r.ctx, lost.object, strings.NewReader("x"), 1, "text/plain")
		must(t, err)
		must(t, lost.retry(r.ctx))
		if _, err := r.storage.Head(r.ctx, lost.object); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("a result that no row names: %v", err)
		}
	})
}
