package worker

import (
	"context"
	"errors"
	neturl "net/url"
	"strings"
	"testing"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// workAlone runs a worker without a sweeper: what is lost stays lost.
func (r *rig) workAlone(cfg Config) {
	r.Helper()
	w, err := New(cfg)
	must(r.T, err)
	ctx, stop := context.WithCancel(r.ctx)
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	r.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			r.Error(err)
		}
	})
}

// A wake-up stays in Redis until the row says what became of it: while the run goes on, and while the database cannot be asked.
func TestAcknowledgedOnlyWhenRecorded(t *testing.T) {
	t.Parallel()
	options, err := redis.ParseURL(testbed.Redis(t).URL())
	must(t, err)
	client := redis.NewClient(options)
	t.Cleanup(func() { client.Close() })
	address, err := neturl.Parse(testbed.PostgreSQL(t))
	must(t, err)
	proxy := testbed.NewProxy(t, address.Host)
	address.Host = proxy.Addr()
	r := newRig(t, address.String(), client)
	dispatcher := NewDispatcher(client)

	running := r.submit(r.submission("wait", "3x2"))
	waiting, err := r.jobs.Submit(r.ctx, r.submission("copy", "3x2"))
	must(t, err)
	wakeUp := func(w job.WakeUp) *asynq.TaskInfo {
		t.Helper()
		info, err := dispatcher.inspector.GetTaskInfo(queueOf(w), wakeUpID(w))
		if err != nil {
			t.Fatalf("the wake-up is gone: %v", err)
		}
		return info
	}
	r.workAlone(r.config("a"))
	t.Cleanup(proxy.Heal) // before the worker drains, which needs the database
	r.running()
	testbed.Until(t, 10*time.Second, "the run to be recorded", func() bool { return r.get(running).Phase == job.PhaseProcessing })
	if got := wakeUp(r.get(running).WakeUp()); got.State != asynq.TaskStateActive {
		t.Errorf("the wake-up of a run under way is %v", got.State)
	}

	proxy.Cut()
	must(t, dispatcher.Dispatch(r.ctx, waiting.WakeUp()))
	testbed.Until(t, 20*time.Second, "a delivery that cannot be recorded", func() bool { return wakeUp(waiting.WakeUp()).Retried > 0 })
	proxy.Heal()
	r.ends(waiting.ID, job.Succeeded, "") // delivered again, with no sweeper to help
	_, err = r.jobs.Cancel(r.ctx, r.account, running)
	must(t, err)
	testbed.Until(t, 10*time.Second, "the canceled run to stop", func() bool { _, stopped := r.tool.counts(); return stopped == 1 })
}

// A stop message ends the work long before the next heartbeat would.
func TestStopMessageStopsAtOnce(t *testing.T) {
	each(t, func(r *rig) {
		cfg := r.config("a")
		cfg.Heartbeat, cfg.Lease = time.Hour, 2*time.Hour
		r.start(cfg)
		id := r.submit(r.submission("wait", "3x2"))
		r.running()
		// Its only progress is told within a second; from then on it is silent for an hour.
		testbed.Until(r, 10*time.Second, "the progress to be told", func() bool { return r.get(id).Progress == 50 })
		_, err := r.jobs.Cancel(r.ctx, r.account, id)
		must(t, err)
		must(t, NewDispatcher(r.redis).Stop(r.ctx, id))
		testbed.Until(r, 20*time.Second, "the run to stop", func() bool { _, stopped := r.tool.counts(); return stopped == 1 })
	})
}

// F8: a worker dies after it wrote its result and before it said so. The next one's result is served, the first one's goes.
func TestSecondFencesResultOutlivesTheFirsts(t *testing.T) {
	each(t, func(r *rig) {
		id := r.submit(r.submission("copy", "3x2"))
		_, err := r.jobs.Claim(r.ctx, id, "dead", 0)
		must(t, err)
		lost := storage.ResultKey(id, 1, "jpg")
		_, err = r.storage.Put(r.ctx, lost, strings.NewReader("half a resu"), 11, "image/jpeg")
		must(t, err)
		r.start(r.config("b"))
		j := r.ends(id, job.Succeeded, "")
		if j.Fence != 2 || j.ResultObject == lost {
			t.Errorf("fence %d, result %s", j.Fence, j.ResultObject)
		}
		testbed.Until(r, 10*time.Second, "the first result to be removed", func() bool {
			r.expireGarbage()
			_, err := r.storage.Head(r.ctx, lost)
			return errors.Is(err, storage.ErrNotFound)
		})
		if got := r.object(j.ResultObject); got != "6x4" {
			t.Errorf("result %q", got)
		}
		r.balance(99_000, 0, 1000)
	})
}
