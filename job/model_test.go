package job

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// modelJob is a job in a few fields, as the states page tells it.
type modelJob struct {
	id, account                         string
	video, ready                        bool
	status                              Status
	phase                               Phase
	progress                            int
	fence, failures, dispatch, finished int64
	due, leaseOver, deleted             bool
	hold                                string
	amount                              billing.Millicredits
}

// modelAccount is an account's money and places.
type modelAccount struct {
	posted, frozen, used billing.Millicredits
	active               map[bool]int
}

// model is the whole story in plain Go, with the database beside it.
type model struct {
	*world
	accounts map[string]*modelAccount
	names    []string
	jobs     []*modelJob
}

const modelCap = 3

// TestModel draws random operations of random workers with right and wrong fences and compares every answer, every row, every
// balance and the audit with the model after each.
func TestModel(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		rapid.Check(t, func(rt *rapid.T) {
			m := &model{world: newWorld(t, d, 0), accounts: map[string]*modelAccount{}}
			for _, credits := range []billing.Millicredits{3000, 100_000} {
				name := m.newAccount(credits)
				m.names = append(m.names, name)
				m.accounts[name] = &modelAccount{posted: credits, active: map[bool]int{}}
			}
			// Names early in the alphabet are drawn more often; without a job every other operation is skipped, and rapid gives up.
			rt.Repeat(map[string]func(*rapid.T){
				"": m.check, "a submit": m.submit, "submit": m.submit, "claim": m.claim, "claim again": m.claim, "heartbeat": m.heartbeat, "stored": m.stored, "reserve": m.reserve,
				"succeed": m.succeed, "fail": m.fail, "retry": m.retry, "expire": m.expire, "yield": m.yield, "cancel": m.cancel, "delete": m.delete,
			})
		})
	})
}

func (m *model) pick(rt *rapid.T) (j *modelJob, fence int64) {
	if len(m.jobs) == 0 {
		rt.Skip("no job yet")
	}
	j = rapid.SampledFrom(m.jobs).Draw(rt, "job")
	// Mostly the right fence.
	return j, j.fence + rapid.SampledFrom([]int64{0, 0, 0, 0, -1, 1}).Draw(rt, "fence off by")
}

func (j *modelJob) mine(fence int64) bool { return j.status == Processing && j.fence == fence }

// claimed is the job as a worker with this fence knows it.
func (j *modelJob) claimed(fence int64) Job {
	media := engine.Image
	if j.video {
		media = engine.Video
	}
	return Job{ID: j.id, AccountID: j.account, Media: media, Fence: fence}
}

func (m *model) expect(rt *rapid.T, err, want error) (ok bool) {
	if !errors.Is(err, want) {
		rt.Fatalf("got %v, want %v", err, want)
	}
	return want == nil
}

func (m *model) submit(rt *rapid.T) {
	if len(m.jobs) == 8 {
		rt.Skip("enough jobs")
	}
	tool := rapid.SampledFrom([]string{"upscale", "video_upscale"}).Draw(rt, "tool")
	sub := m.submission(tool)
	sub.AccountID = rapid.SampledFrom(m.names).Draw(rt, "account")
	sub.Estimate = billing.Millicredits(rapid.IntRange(0, 4000).Draw(rt, "estimate"))
	sub.MaxActive = modelCap
	sub.Source.Ready = rapid.Bool().Draw(rt, "source ready")
	a, video := m.accounts[sub.AccountID], tool == "video_upscale"
	available := a.posted - a.frozen
	var want error
	switch {
	case a.active[video] >= modelCap:
		want = ErrConcurrency
	case sub.Estimate > available, available == 0 && sub.Estimate == 0:
		want = billing.ErrInsufficient
	}
	preflight := m.store.Preflight(m.ctx, sub.AccountID, sub.Order.Tool.Media, sub.Estimate, modelCap)
	m.expect(rt, preflight, want)
	_, err := m.store.Submit(m.ctx, sub)
	if m.expect(rt, err, want) {
		a.active[video]++
		m.jobs = append(m.jobs, &modelJob{id: sub.ID, account: sub.AccountID, video: video, ready: sub.Source.Ready, status: Queued, dispatch: 1, due: true})
	}
}

func drawLease(rt *rapid.T) (lease time.Duration, over bool) {
	over = rapid.Bool().Draw(rt, "lease over")
	if over {
		return -time.Second, true
	}
	return time.Hour, false
}

func (m *model) claim(rt *rapid.T) {
	j, _ := m.pick(rt)
	lease, over := drawLease(rt)
	_, err := m.store.Claim(m.ctx, j.id, fmt.Sprint("worker", rapid.IntRange(1, 3).Draw(rt, "worker")), lease)
	if j.status != Queued || !j.due {
		m.expect(rt, err, ErrStale)
		return
	}
	m.expect(rt, err, nil)
	j.status, j.phase, j.progress, j.leaseOver = Processing, PhaseUploading, 0, over
	if j.ready {
		j.phase = PhaseSyncing
	}
	j.fence++
}

func (m *model) heartbeat(rt *rapid.T) {
	j, fence := m.pick(rt)
	phase := rapid.SampledFrom([]Phase{PhaseUploading, PhaseSyncing, PhaseProcessing}).Draw(rt, "phase")
	progress := rapid.IntRange(-5, 120).Draw(rt, "progress")
	lease, over := drawLease(rt)
	err := m.store.Heartbeat(m.ctx, j.id, fence, phase, progress, lease)
	if !j.mine(fence) {
		m.expect(rt, err, ErrStale)
		return
	}
	m.expect(rt, err, nil)
	j.leaseOver = over
	if j.phase == PhaseProcessing {
		j.progress = max(j.progress, min(progress, 99))
	}
	if j.phase == PhaseUploading && phase != PhaseUploading {
		j.phase = PhaseSyncing
	}
}

func (m *model) stored(rt *rapid.T) {
	j, fence := m.pick(rt)
	err := m.store.SourceStored(m.ctx, j.id, fence, 5)
	if !j.mine(fence) {
		m.expect(rt, err, ErrStale)
		return
	}
	m.expect(rt, err, nil)
	j.ready = true
	if j.phase == PhaseUploading {
		j.phase = PhaseSyncing
	}
}

func (m *model) reserve(rt *rapid.T) {
	j, fence := m.pick(rt)
	price := billing.Millicredits(rapid.IntRange(0, 2500).Draw(rt, "price"))
	got, err := m.store.Reserve(m.ctx, j.claimed(fence), price)
	a := m.accounts[j.account]
	switch {
	case !j.mine(fence):
		m.expect(rt, err, ErrStale)
		return
	case j.hold == "" && a.posted-a.frozen < price:
		m.expect(rt, err, billing.ErrInsufficient)
		return
	case j.hold == "":
		j.hold, j.amount = "held", price
		a.frozen += price
	}
	m.expect(rt, err, nil)
	if got != j.amount {
		rt.Fatalf("held %v, want %v", got, j.amount)
	}
	j.phase = PhaseProcessing
}

func (m *model) succeed(rt *rapid.T) {
	j, fence := m.pick(rt)
	err := m.store.Succeed(m.ctx, j.claimed(fence), "results/x", engine.Output{Width: 1, Height: 1, Size: 1}, []string{"results/old"})
	switch {
	case j.status == Succeeded && j.finished == fence:
		m.expect(rt, err, nil)
	case !j.mine(fence):
		m.expect(rt, err, ErrStale)
	case j.hold == "":
		m.expect(rt, err, billing.ErrHoldEnded)
	default:
		m.expect(rt, err, nil)
		a := m.accounts[j.account]
		a.posted, a.frozen, a.used = a.posted-j.amount, a.frozen-j.amount, a.used+j.amount
		j.hold = "confirmed"
		m.end(j, Succeeded)
		j.progress = 100
	}
}

// end is what every way to end has in common.
func (m *model) end(j *modelJob, status Status) {
	j.status, j.phase, j.finished = status, "", j.fence
	m.accounts[j.account].active[j.video]--
	if j.hold == "held" {
		j.hold = "released"
		m.accounts[j.account].frozen -= j.amount
	}
}

func (m *model) fail(rt *rapid.T) {
	j, fence := m.pick(rt)
	err := m.store.Fail(m.ctx, j.id, fence, giveUp)
	switch {
	case j.status == Failed && j.finished == fence:
		m.expect(rt, err, nil)
	case !j.mine(fence):
		m.expect(rt, err, ErrStale)
	default:
		m.expect(rt, err, nil)
		m.end(j, Failed)
	}
}

func (m *model) retry(rt *rapid.T) {
	j, fence := m.pick(rt)
	delay := rapid.SampledFrom([]time.Duration{0, 0, time.Hour}).Draw(rt, "delay")
	budget := rapid.Int64Range(1, 4).Draw(rt, "budget")
	dispatch, final, err := m.store.Retry(m.ctx, j.id, fence, delay, budget, giveUp)
	if !j.mine(fence) {
		m.expect(rt, err, ErrStale)
		return
	}
	m.expect(rt, err, nil)
	m.requeue(rt, j, dispatch, final, delay, budget)
}

func (m *model) expire(rt *rapid.T) {
	j, fence := m.pick(rt)
	budget := rapid.Int64Range(1, 4).Draw(rt, "budget")
	dispatch, final, err := m.store.Expire(m.ctx, j.id, fence, budget, giveUp)
	if !j.mine(fence) || !j.leaseOver {
		m.expect(rt, err, ErrStale)
		return
	}
	m.expect(rt, err, nil)
	m.requeue(rt, j, dispatch, final, 0, budget)
}

func (m *model) requeue(rt *rapid.T, j *modelJob, dispatch int64, final bool, delay time.Duration, budget int64) {
	if j.failures+1 >= budget {
		if !final {
			rt.Fatalf("%d failures with a budget of %d, and not final", j.failures+1, budget)
		}
		m.end(j, Failed)
		return
	}
	j.failures++
	m.back(rt, j, dispatch, delay)
}

func (m *model) back(rt *rapid.T, j *modelJob, dispatch int64, delay time.Duration) {
	j.dispatch++
	j.status, j.phase, j.progress, j.due = Queued, "", 0, delay == 0
	if dispatch != j.dispatch {
		rt.Fatalf("dispatch %d, want %d", dispatch, j.dispatch)
	}
}

func (m *model) yield(rt *rapid.T) {
	j, fence := m.pick(rt)
	dispatch, err := m.store.Yield(m.ctx, j.id, fence)
	if !j.mine(fence) {
		m.expect(rt, err, ErrStale)
		return
	}
	m.expect(rt, err, nil)
	m.back(rt, j, dispatch, 0)
}

// by draws who asks: mostly the job's own account.
func (m *model) by(rt *rapid.T, j *modelJob) (account string, own bool) {
	account = rapid.SampledFrom([]string{j.account, j.account, j.account, m.names[0], m.names[1]}).Draw(rt, "by")
	return account, account == j.account
}

func (m *model) cancel(rt *rapid.T) {
	j, _ := m.pick(rt)
	account, own := m.by(rt, j)
	was, err := m.store.Cancel(m.ctx, account, j.id)
	switch {
	case !own || j.deleted:
		m.expect(rt, err, ErrNotFound)
	case j.status.Terminal():
		m.expect(rt, err, ErrNotCancelable)
	default:
		m.expect(rt, err, nil)
		if was != (j.status == Processing) {
			rt.Fatalf("was processing: %v, want the opposite", was)
		}
		m.end(j, Canceled)
	}
}

func (m *model) delete(rt *rapid.T) {
	j, _ := m.pick(rt)
	account, own := m.by(rt, j)
	d, err := m.store.Delete(m.ctx, account, j.id)
	if !own {
		m.expect(rt, err, ErrNotFound)
		return
	}
	m.expect(rt, err, nil)
	if d.WasProcessing != (j.status == Processing) || (len(d.Objects) == 0) != j.deleted {
		rt.Fatalf("deleted %+v of %+v", d, j)
	}
	if !j.status.Terminal() {
		m.end(j, Canceled)
	}
	j.deleted = true
}

// check compares everything the database says with the model.
func (m *model) check(rt *rapid.T) {
	for _, j := range m.jobs {
		m.checkJob(rt, j)
	}
	for name, a := range m.accounts {
		b, err := m.ledger.Balance(m.ctx, name)
		if err != nil || b != (billing.Balance{Balance: a.posted - a.frozen, Frozen: a.frozen, Used: a.used}) {
			rt.Fatalf("%s: %+v, %v; the model says %+v", name, b, err, a)
		}
		var images, videos int
		err = m.db.QueryRowContext(m.ctx, "SELECT active_image, active_video FROM accounts WHERE id = $1", name).Scan(&images, &videos)
		if err != nil || images != a.active[false] || videos != a.active[true] {
			rt.Fatalf("%s: %d images and %d videos in flight, %v; the model says %v", name, images, videos, err, a.active)
		}
	}
	if broken, err := m.store.Audit(m.ctx); err != nil || len(broken) > 0 {
		rt.Fatalf("audit: %+v, %v", broken, err)
	}
}

func (m *model) checkJob(rt *rapid.T, j *modelJob) {
	r := m.row(j.id)
	got := modelJob{
		id: j.id, account: j.account, video: j.video, ready: j.ready, status: Status(r.status), phase: Phase(r.phase), progress: int(r.progress), fence: r.fence,
		failures: r.failures, dispatch: r.dispatch, finished: r.finishedFence, due: j.due, leaseOver: j.leaseOver, deleted: r.deleted > 0,
		hold: r.hold, amount: billing.Millicredits(r.amount),
	}
	want := *j
	if j.status == Failed || j.status == Canceled {
		got.progress, want.progress = 0, 0 // the last progress stays; nobody is told that it means anything
	}
	if got != want {
		rt.Fatalf("the row says   %+v\nthe model says %+v", got, want)
	}
	shown, err := m.store.Get(m.ctx, j.account, j.id)
	if j.deleted {
		m.expect(rt, err, ErrNotFound)
		return
	}
	m.expect(rt, err, nil)
	charged := billing.Millicredits(0)
	if j.status == Processing || j.status == Succeeded {
		charged = j.amount
	}
	if shown.Charged != charged || shown.Status != j.status || (shown.Status.Terminal() == shown.FinishedAt.IsZero()) {
		rt.Fatalf("shown %+v; the model says %+v charged %v", shown, j, charged)
	}
}
