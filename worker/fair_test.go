package worker

import (
	"testing"
	"time"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/job"
	"enlarger/testbed"
)

// newAccount is one more account with credits; the rig's submissions go to it from now on.
func (r *rig) newAccount() string {
	r.Helper()
	created, err := account.NewStore(r.db).Create(r.ctx, "another")
	must(r.T, err)
	must(r.T, r.ledger.Grant(r.ctx, created.ID, 1000*billing.Credit, "", ""))
	return created.ID
}

// F27: one account floods, another submits one job: with one slot, it is the next to start.
func TestFloodDelaysNobody(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		flood := []string{r.submit(r.submission("wait", "3x2"))}
		cfg := r.config("a")
		cfg.ImageSlots = 1
		r.start(cfg)
		r.running()
		for range 40 {
			flood = append(flood, r.submit(r.submission("copy", "3x2")))
		}
		flooder := r.account
		r.account = r.newAccount()
		small := r.submit(r.submission("copy", "3x2"))
		_, err := r.jobs.Cancel(r.ctx, flooder, flood[0])
		must(t, err)
		done := r.ends(small, job.Succeeded, "")
		r.account = flooder
		before := 0
		for _, id := range flood[1:] {
			if j := r.ends(id, job.Succeeded, ""); j.FinishedAt.Before(done.StartedAt) {
				before++
			}
		}
		if before > 0 {
			t.Errorf("%d jobs of the flood ran before the other account's only one", before)
		}
		r.balance(60*billing.Credit, 0, 40*billing.Credit)
	})
}

// While others keep all lanes before it busy, an account of which nothing is running is served all the same.
func TestNobodyStarves(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		// The account's first job is gone, and what is left of its flood waits in the last lane.
		var flood []string
		for range 12 {
			flood = append(flood, r.submit(r.submission("copy", "3x2")))
		}
		for _, id := range flood[:11] {
			_, err := r.jobs.Cancel(r.ctx, r.account, id)
			must(t, err)
		}
		last := r.get(flood[11])
		if last.Lane != 2 {
			t.Fatalf("it waits in lane %d", last.Lane)
		}
		s := r.sweeper()
		testbed.Until(r, 10*time.Second, "the sweeper to let it go first", func() bool {
			s.Sweep(r.ctx)
			return r.get(last.ID).Lane == 0
		})
		if info, err := s.Dispatcher.inspector.GetTaskInfo(queueImage, wakeUpID(r.get(last.ID).WakeUp())); err != nil {
			t.Errorf("no wake-up in the first lane: %v %v", info, err)
		}
		r.start(r.config("a"))
		r.ends(last.ID, job.Succeeded, "")
	})
}

// A busy day's leavings are gone after one sweep, however many batches they take.
func TestSweepTakesBatchAfterBatch(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		const leavings = 2*sweepGarbage + 7
		_, err := r.db.ExecContext(r.ctx, `WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < $1) INSERT INTO garbage (object, not_before)
			SELECT 'sources/gone' || n, 0 FROM g`, leavings)
		must(t, err)
		r.sweeper().Sweep(r.ctx)
		if left, err := r.jobs.Garbage(r.ctx, leavings); err != nil || len(left) > 0 {
			t.Errorf("%d of %d are left, %v", len(left), leavings, err)
		}
	})
}
