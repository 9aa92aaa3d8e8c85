package job

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// A state is written status or phase, "+" and the state of its hold: uploading+held is a second run whose price is frozen already.
// An outcome is the state after it, "=" for no change, or an error with no change.
const (
	stale    = "stale"      // ErrStale
	settled  = "hold ended" // billing.ErrHoldEnded
	toolate  = "too late"   // ErrNotCancelable
	notfound = "not found"  // ErrNotFound
)

const held = billing.Millicredits(700)

// machine is every operation on every state, by the caller that has the right fence.
func machine() map[string]map[string]string {
	table := `
	state               | claim          | beat            | stored           | reserve         | succeed             | fail            | retry       | retry last      | expire good | expire over | expire last     | yield       | cancel            | delete
	queued              | uploading      | stale           | stale            | stale           | stale               | stale           | stale       | stale           | stale       | stale       | stale           | stale       | canceled          | deleted
	queued+held         | uploading+held | stale           | stale            | stale           | stale               | stale           | stale       | stale           | stale       | stale       | stale           | stale       | canceled+released | deleted+released
	uploading           | stale          | =               | syncing          | processing+held | hold ended          | failed          | queued      | failed          | stale       | queued      | failed          | queued      | canceled          | deleted
	uploading+held      | stale          | =               | syncing+held     | processing+held | succeeded+confirmed | failed+released | queued+held | failed+released | stale       | queued+held | failed+released | queued+held | canceled+released | deleted+released
	syncing             | stale          | =               | =                | processing+held | hold ended          | failed          | queued      | failed          | stale       | queued      | failed          | queued      | canceled          | deleted
	syncing+held        | stale          | =               | =                | processing+held | succeeded+confirmed | failed+released | queued+held | failed+released | stale       | queued+held | failed+released | queued+held | canceled+released | deleted+released
	processing+held     | stale          | =               | =                | =               | succeeded+confirmed | failed+released | queued+held | failed+released | stale       | queued+held | failed+released | queued+held | canceled+released | deleted+released
	succeeded+confirmed | stale          | stale           | stale            | stale           | =                   | stale           | stale       | stale           | stale       | stale       | stale           | stale       | too late          | deleted+confirmed
	failed              | stale          | stale           | stale            | stale           | stale               | =               | stale       | stale           | stale       | stale       | stale           | stale       | too late          | deleted
	failed+released     | stale          | stale           | stale            | stale           | stale               | =               | stale       | stale           | stale       | stale       | stale           | stale       | too late          | deleted+released
	canceled            | stale          | stale           | stale            | stale           | stale               | stale           | stale       | stale           | stale       | stale       | stale           | stale       | too late          | deleted
	canceled+released   | stale          | stale           | stale            | stale           | stale               | stale           | stale       | stale           | stale       | stale       | stale           | stale       | too late          | deleted+released
	deleted             | stale          | stale           | stale            | stale           | stale               | stale           | stale       | stale           | stale       | stale       | stale           | stale       | not found         | =
	deleted+confirmed   | stale          | stale           | stale            | stale           | =                   | stale           | stale       | stale           | stale       | stale       | stale           | stale       | not found         | =
	deleted+released    | stale          | stale           | stale            | stale           | stale               | stale           | stale       | stale           | stale       | stale       | stale           | stale       | not found         | =`
	return cellsOf(table)
}

// fenced are the operations that carry a fence; with a wrong one every one of them is stale in every state.
const fenced = "beat stored reserve succeed fail retry yield expire over"

func TestStateMachine(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000_000)
		cases := 0
		for state, row := range machine() {
			for op, outcome := range row {
				w.step(state, op, outcome, 0)
				cases++
				if strings.Contains(fenced, op) {
					w.step(state, op, stale, -1)
					w.step(state, op, stale, +1)
					cases += 2
				}
			}
			// No job is touched again, so that what any operation broke is still there to be seen.
			if broken, err := w.store.Audit(w.ctx); err != nil || len(broken) > 0 {
				t.Fatalf("audit after the operations on %s: %+v, %v", state, broken, err)
			}
		}
		if cases != 15*(14+2*8) {
			t.Errorf("%d cases", cases)
		}
	})
}

// step brings a new job into a state, does one operation with the row's fence off by wrong, and compares.
func (w *world) step(state, op, outcome string, wrong int64) {
	w.Helper()
	id := w.bring(state)
	if got := w.state(id); got != state {
		w.Fatalf("brought the job into %s, want %s", got, state)
	}
	if strings.HasPrefix(op, "expire") && op != "expire good" {
		w.exec("UPDATE jobs SET lease_until = 1 WHERE id = $1 AND status = 'processing'", id)
	}
	before := w.row(id)
	err := w.do(op, id, before.fence+wrong)
	want := map[string]error{stale: ErrStale, settled: billing.ErrHoldEnded, toolate: ErrNotCancelable, notfound: ErrNotFound}[outcome]
	after := w.row(id)
	name := fmt.Sprintf("%s on %s with fence %+d", op, state, wrong)
	switch {
	case !errors.Is(err, want):
		w.Errorf("%s: %v, want %v", name, err, want)
	case want != nil || outcome == "=":
		if op != "beat" && after != before && (want != nil || op != "stored") {
			w.Errorf("%s changed the row from %+v to %+v", name, before, after)
		}
		if got := w.state(id); got != state {
			w.Errorf("%s leads to %s, want no change", name, got)
		}
	case w.state(id) != outcome:
		w.Errorf("%s leads to %s, want %s", name, w.state(id), outcome)
	}
	w.charged(id)
}

// bring makes a job and leads it into a state through the store's own operations.
func (w *world) bring(state string) (id string) {
	w.Helper()
	id = w.submitUnstored("upscale").ID
	do := func(ops ...string) {
		for _, op := range ops {
			w.ok(w.do(op, id, w.row(id).fence))
		}
	}
	again := []string{"claim", "reserve", "yield"} // leaves the job queued, with a hold
	switch state {
	case "queued":
	case "queued+held":
		do(again...)
	case "uploading":
		do("claim")
	case "uploading+held":
		do(append(again, "claim")...)
	case "syncing":
		do("claim", "stored")
	case "syncing+held":
		do(append(again, "claim", "stored")...)
	case "processing+held":
		do("claim", "stored", "reserve")
	case "succeeded+confirmed":
		do("claim", "stored", "reserve", "succeed")
	case "failed":
		do("claim", "fail")
	case "failed+released":
		do("claim", "reserve", "fail")
	case "canceled":
		do("cancel")
	case "canceled+released":
		do("claim", "reserve", "cancel")
	case "deleted":
		do("delete")
	case "deleted+confirmed":
		do("claim", "reserve", "succeed", "delete")
	case "deleted+released":
		do("claim", "reserve", "delete")
	default:
		w.Fatalf("no way into %s", state)
	}
	return id
}

func (w *world) do(op, id string, fence int64) error {
	w.Helper()
	var err error
	var final bool
	want := strings.HasSuffix(op, "last")
	switch op {
	case "claim":
		_, err = w.store.Claim(w.ctx, id, "worker", time.Hour)
		return err
	case "beat":
		return w.store.Heartbeat(w.ctx, id, fence, PhaseUploading, 40, time.Hour)
	case "stored":
		return w.store.SourceStored(w.ctx, id, fence, 11)
	case "reserve":
		_, err = w.store.Reserve(w.ctx, w.claimed(id, fence), held)
		return err
	case "succeed":
		return w.store.Succeed(w.ctx, w.claimed(id, fence), "results/"+id+"/1.jpg", engine.Output{Width: 2, Height: 2, Size: 5}, nil)
	case "fail":
		return w.store.Fail(w.ctx, id, fence, giveUp)
	case "retry":
		_, final, err = w.store.Retry(w.ctx, id, fence, time.Minute, 3, giveUp)
	case "retry last":
		_, final, err = w.store.Retry(w.ctx, id, fence, time.Minute, 1, giveUp)
	case "expire good", "expire over":
		_, final, err = w.store.Expire(w.ctx, id, fence, 3, giveUp)
	case "expire last":
		_, final, err = w.store.Expire(w.ctx, id, fence, 1, giveUp)
	case "yield":
		_, err = w.store.Yield(w.ctx, id, fence)
		return err
	case "cancel":
		_, err = w.store.Cancel(w.ctx, w.account, id)
		return err
	case "delete":
		_, err = w.store.Delete(w.ctx, w.account, id)
		return err
	default:
		w.Fatalf("no operation %s", op)
	}
	if err == nil && final != want {
		w.Errorf("%s: final is %v", op, final)
	}
	return err
}

// rowFacts are what no refused operation may change.
type rowFacts struct {
	status, phase, worker, result, object, code       string
	progress, fence, failures, dispatch, lease, runAt int64
	size, started, finished, finishedFence, deleted   int64
	hold                                              string
	amount                                            int64
}

func (w *world) row(id string) (r rowFacts) {
	w.Helper()
	w.ok(w.db.QueryRowContext(w.ctx, `SELECT j.status, j.phase, j.worker, j.result, j.result_object, j.error_code, j.progress, j.fence, j.failures, j.dispatch,
		j.lease_until, j.run_at, j.source_size, j.started_at, j.finished_at, j.finished_fence, j.deleted_at, COALESCE(h.state, ''), COALESCE(h.amount, 0)
		FROM jobs j LEFT JOIN holds h ON h.job_id = j.id WHERE j.id = $1`, id).
		Scan(&r.status, &r.phase, &r.worker, &r.result, &r.object, &r.code, &r.progress, &r.fence, &r.failures, &r.dispatch,
			&r.lease, &r.runAt, &r.size, &r.started, &r.finished, &r.finishedFence, &r.deleted, &r.hold, &r.amount))
	return r
}

func (w *world) state(id string) string {
	w.Helper()
	r := w.row(id)
	name := r.status
	if r.phase != "" {
		name = r.phase
	}
	if r.deleted > 0 {
		name = "deleted"
	}
	if r.hold != "" {
		name += "+" + r.hold
	}
	return name
}

// charged checks credits_charged: 0 while queued, the frozen amount while processing, the final amount on success, else 0.
func (w *world) charged(id string) {
	w.Helper()
	r := w.row(id)
	j, err := w.store.Get(w.ctx, w.account, id)
	if r.deleted > 0 {
		if !errors.Is(err, ErrNotFound) {
			w.Errorf("a deleted job is found: %v", err)
		}
		return
	}
	w.ok(err)
	want := billing.Millicredits(0)
	if r.hold != "" && (r.status == "processing" || r.status == "succeeded") {
		want = held
	}
	if j.Charged != want {
		w.Errorf("%s %s with a hold %q is charged %v, want %v", r.status, r.phase, r.hold, j.Charged, want)
	}
}
