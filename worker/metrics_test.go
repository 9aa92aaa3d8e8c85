package worker

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"enlarger/engine"
	"enlarger/job"
	"enlarger/testbed"
)

func TestMetricsTellWhatHappened(t *testing.T) {
	each(t, func(r *rig) {
		m := NewMetrics()
		is := func(what string, c prometheus.Collector, want float64) {
			t.Helper()
			testbed.Until(r, 10*time.Second, what, func() bool { return testutil.ToFloat64(c) == want })
		}
		ended := func(outcome string) prometheus.Collector { return m.ends.WithLabelValues("double", outcome) }
		// One whose worker died, one whose wake-up was never sent.
		fallen := r.submit(r.submission("copy", "3x2"))
		_, err := r.jobs.Claim(r.ctx, fallen, "dead", 0)
		must(t, err)
		silent, err := r.jobs.Submit(r.ctx, r.submission("copy", "3x2"))
		must(t, err)
		cfg := r.config("a")
		cfg.Metrics = m
		s := r.sweeper()
		s.Metrics = m
		must(t, s.waitingJobs(r.ctx))
		r.workAlone(cfg)
		testbed.Until(r, 10*time.Second, "the lost run and the lost wake-up", func() bool {
			s.Sweep(r.ctx)
			return r.get(fallen).Status == job.Succeeded && r.get(silent.ID).Status == job.Succeeded
		})
		is("leases lost", m.lost, 1)
		// A sweep may take a wake-up for lost that is on its way to the claim, and send another.
		testbed.Until(r, 10*time.Second, "wake-ups repaired", func() bool { return testutil.ToFloat64(m.repaired) >= 1 })
		is("runs that succeeded", ended(endSucceeded), 2)
		is("runs again", m.again, 1)

		s.Budget = 3
		r.ends(r.submit(r.submission("break", "3x2")), job.Failed, engine.ProcessingFailed)
		is("runs that will be tried again", ended(endRetried), 2)
		is("runs given up", ended(endGaveUp), 1)
		is("failures by error", m.failures.WithLabelValues("error"), 3)
		is("failures by lease", m.failures.WithLabelValues("lease"), 1)
		r.ends(r.submit(r.submission("fail", "3x2")), job.Failed, engine.ProcessingFailed)
		is("runs failed", ended(endFailed), 1)

		id := r.submit(r.submission("wait", "3x2"))
		testbed.Until(r, 10*time.Second, "the run", func() bool { return r.get(id).Phase == job.PhaseProcessing })
		is("runs under way", m.running.WithLabelValues("image"), 1)
		_, err = r.jobs.Cancel(r.ctx, r.account, id)
		must(t, err)
		is("runs lost", ended(endLost), 1)
		is("runs under way at the end", m.running.WithLabelValues("image"), 0)
		before := testutil.ToFloat64(m.stale)
		must(t, NewDispatcher(r.redis).Dispatch(r.ctx, job.WakeUp{ID: id, Media: engine.Image, Number: 7}))
		testbed.Until(r, 10*time.Second, "the wake-up of a job that is over", func() bool { return testutil.ToFloat64(m.stale) > before })
		is("claims", m.claims.WithLabelValues("double"), 7)
		if n := testutil.CollectAndCount(m.steps); n != 6 {
			t.Errorf("%d steps have times, want 6", n)
		}
		if problems, err := testutil.CollectAndLint(m); err != nil || len(problems) > 0 {
			t.Errorf("names: %v %v", problems, err)
		}
	})
}
