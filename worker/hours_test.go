package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// Hours pass in seconds here: the worker, the sweeper, asynq, a Redis, an S3 store and SQLite with its now_micros() all run in one synctest bubble, on
// its clock. What would wait for a network, which the bubble's clock does not wait for, goes through pipes.

// hours runs a story in a bubble. start begins at the real time of day, so that files and rows agree about it.
func hours(t *testing.T, story func(b *bubble)) {
	t.Helper()
	t.Parallel()
	dir, err := os.MkdirTemp("/dev/shm", "enlarger")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	now := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(now))
		b := newBubble(t, dir)
		story(b)
		b.audit()
		b.close()
	})
}

// bubble is a rig whose parts are all inside.
type bubble struct {
	*rig
	mini *miniredis.Miniredis
	// work is what a run of the tool does.
	work func(ctx context.Context, run int) error
	// mu guards begun, the times at which runs began.
	mu    sync.Mutex
	begun []time.Time
	// closers run last to first.
	closers []func()
}

func (b *bubble) close() {
	for _, closer := range slices.Backward(b.closers) {
		closer()
	}
	synctest.Wait()
}

func newBubble(t *testing.T, dir string) *bubble {
	t.Helper()
	b := &bubble{mini: miniredis.NewMiniRedis(), work: func(context.Context, int) error { return nil }}
	client := redis.NewClient(&redis.Options{
		Addr:   "127.0.0.1:1", // never dialed; but a name would be looked up, and net's look-ups of all bubbles meet
		Dialer: func(context.Context, string, string) (net.Conn, error) { return b.mini.Dial() }, DisableIdentity: true,
	})
	d, err := db.Open(t.Context(), db.Config{URL: "sqlite:" + dir + "/test.db"})
	must(t, err)
	must(t, d.Migrate(t.Context()))
	b.closers = append(b.closers, func() { d.Close() }, b.mini.Close, func() { client.Close() })
	b.rig = &rig{
		T: t, ctx: t.Context(), db: d, jobs: job.NewStore(d), ledger: billing.NewLedger(d), redis: client, storage: b.openStorage(t, dir), log: zap.NewNop(),
		prices:  &billing.Prices{ImageBlock: 1, Tiers: []billing.Tier{{ShortSide: 2160, Frame: 0.01}}, Weights: map[string]float64{"double": 1}},
		fetcher: storage.NewFetcher(storage.FetchConfig{}),
	}
	b.catalog = engine.NewCatalog(engine.DefaultLimits(), b.tool())
	created, err := account.NewStore(d).Create(b.ctx, "test")
	must(t, err)
	b.account = created.ID
	must(t, b.ledger.Grant(b.ctx, b.account, 100*billing.Credit, "", ""))
	return b
}

// openStorage serves an embedded store over pipes.
func (b *bubble) openStorage(t *testing.T, dir string) *storage.Store {
	t.Helper()
	embedded, err := storage.OpenEmbedded(dir+"/objects", storage.EmbeddedConfig{Bucket: "media"})
	must(t, err)
	pipes := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: embedded.Handler(), ReadHeaderTimeout: time.Minute}
	go server.Serve(pipes)
	access, secret := embedded.Credentials()
	store, err := storage.Open(storage.Config{
		Endpoint: "http://store.internal", Bucket: "media", AccessKey: access, SecretKey: secret, PathStyle: true, Dial: pipes.dial,
	})
	must(t, err)
	must(t, store.EnsureBucket(t.Context()))
	b.closers = append(b.closers, func() { embedded.Close() }, func() { server.Close() }, store.Close)
	return store
}

// pipeListener is a net.Listener of net.Pipe connections.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (*pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (l *pipeListener) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// tool doubles a text "WIDTHxHEIGHT" after it has done the bubble's work.
func (b *bubble) tool() engine.Tool {
	return engine.Define(engine.Spec[behavior]{
		Name: "double", Media: engine.Image, Doc: "Doubles a text.", Defaults: behavior{Do: "copy"},
		Size: func(_ behavior, s engine.Source) (int, int) { return 2 * s.Width, 2 * s.Height },
		Measure: func(_ context.Context, path string) (s engine.Source, err error) {
			text, err := os.ReadFile(path)
			if err == nil {
				_, err = fmt.Sscanf(string(text), "%dx%d", &s.Width, &s.Height)
			}
			return s, err
		},
		Process: func(ctx context.Context, _ behavior, task engine.Task) (engine.Output, error) {
			b.mu.Lock()
			b.begun = append(b.begun, time.Now())
			run := len(b.begun)
			b.mu.Unlock()
			if err := b.work(ctx, run); err != nil {
				return engine.Output{}, err
			}
			out := engine.Output{Width: task.Plan.Width, Height: task.Plan.Height}
			text := fmt.Sprintf("%dx%d", out.Width, out.Height)
			out.Size = int64(len(text))
			return out, os.WriteFile(task.Output, []byte(text), 0o600)
		},
	})
}

func (b *bubble) runs() []time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]time.Time(nil), b.begun...)
}

// spend lets time pass in a run, unless the run is stopped.
func spend(ctx context.Context, d time.Duration) error {
	if !sleep(ctx, d) {
		return context.Cause(ctx)
	}
	return nil
}

// serve runs a worker and a sweeper with the times of production, save that an idle worker asks Redis every poll only. The function returned drains.
func (b *bubble) serve(poll time.Duration, budget int64) (stop func()) {
	w, err := New(Config{
		Name: "a", Jobs: b.jobs, Prices: b.prices, Catalog: b.catalog, Storage: b.storage, Fetcher: b.fetcher, Redis: b.redis, Log: b.log,
		Scratch: b.TempDir(), ImageSlots: 20, Poll: poll, ImageTimeout: 24 * time.Hour, Budget: budget,
	})
	must(b.T, err)
	ctx, cancel := context.WithCancel(b.ctx)
	var both sync.WaitGroup
	both.Go(func() {
		if err := w.Run(ctx); err != nil {
			b.Error(err)
		}
	})
	both.Go(func() { b.sweeps(ctx, &Sweeper{Budget: budget}) })
	stop = sync.OnceFunc(func() { cancel(); both.Wait() })
	b.closers = append(b.closers, stop)
	return stop
}

func (b *bubble) sweeps(ctx context.Context, s *Sweeper) {
	s.Jobs, s.Storage, s.Dispatcher, s.Log = b.jobs, b.storage, NewDispatcher(b.redis), b.log
	if err := s.Run(ctx); err != nil {
		b.Error(err)
	}
}

// by lets time pass until a job has ended, and says how long that took. It looks once a second.
func (b *bubble) by(limit time.Duration, id string) time.Duration {
	b.Helper()
	began := time.Now()
	for !b.get(id).Status.Terminal() {
		if time.Since(began) > limit {
			b.Fatalf("after %v the job is %+v", limit, b.get(id))
		}
		time.Sleep(time.Second)
	}
	return time.Since(began)
}

// A run of five hours keeps its lease of 20 s by 3,600 heartbeats, while a sweeper looks for lost runs every 5 s.
func TestFiveHoursUnderALeaseOfSeconds(t *testing.T) {
	hours(t, func(b *bubble) {
		b.work = func(ctx context.Context, _ int) error { return spend(ctx, longRun) }
		b.serve(10*time.Second, 3)
		id := b.submit(b.submission("copy", "3x2"))
		for len(b.runs()) == 0 {
			time.Sleep(time.Second)
		}
		for time.Since(b.runs()[0]) < longRun-time.Minute {
			time.Sleep(time.Minute)
			var left int64
			must(b.T, b.db.QueryRowContext(b.ctx, "SELECT lease_until - now_micros() FROM jobs WHERE id = $1", id).Scan(&left))
			if left < (10*time.Second).Microseconds() || left > (20*time.Second).Microseconds() {
				b.Fatalf("after %v the lease is good for %v more", time.Since(b.runs()[0]), time.Duration(left)*time.Microsecond)
			}
		}
		b.by(10*time.Minute, id)
		if j := b.get(id); j.Status != job.Succeeded || j.Fence != 1 || j.Failures != 0 || len(b.runs()) != 1 {
			b.Errorf("%s, fence %d, failures %d, %d runs", j.Status, j.Fence, j.Failures, len(b.runs()))
		}
		b.balance(99*billing.Credit, 0, billing.Credit)
	})
}

// A job whose worker died runs again when its lease of 20 s and a sweep of 5 s are over, wherever between two sweeps it died.
func TestLostRunIsTakenUpWithinSeconds(t *testing.T) {
	hours(t, func(b *bubble) {
		type death struct {
			id string
			at time.Time
		}
		var deaths []death
		b.serve(100*time.Millisecond, 3)
		for range 10 {
			time.Sleep(700 * time.Millisecond)
			sub := b.submission("copy", "3x2")
			j, err := b.jobs.Submit(b.ctx, sub) // its wake-up dies with its worker
			must(b.T, err)
			_, err = b.jobs.Claim(b.ctx, j.ID, "dead", 20*time.Second)
			must(b.T, err)
			deaths = append(deaths, death{j.ID, time.Now()})
		}
		for _, d := range deaths {
			b.by(time.Minute, d.id)
			j := b.get(d.id)
			again := j.FinishedAt.Sub(d.at) // the work itself takes no time here
			if j.Status != job.Succeeded || j.Fence != 2 || j.Failures != 1 || again < 20*time.Second || again > 26*time.Second {
				b.Errorf("%s, fence %d, failures %d, %v after its worker died", j.Status, j.Fence, j.Failures, again)
			}
		}
	})
}

// A run that fails for our reasons is tried again after 5 s, 10 s, 20 s ... up to 320 s, each time with its credits still held, until the budget is used up.
func TestBackOffDoublesUpToMinutes(t *testing.T) {
	hours(t, func(b *bubble) {
		b.work = func(context.Context, int) error { return errors.New("the disk is on fire") }
		const poll, budget = 500 * time.Millisecond, tries
		b.serve(poll, budget)
		id := b.submit(b.submission("copy", "3x2"))
		took := b.by(time.Hour, id)
		begun := b.runs()
		if j := b.get(id); j.Status != job.Failed || j.Fence != budget || len(begun) != budget {
			b.Fatalf("%s after %v, fence %d, %d runs", j.Status, took, j.Fence, len(begun))
		}
		for i, seconds := range []int{5, 10, 20, 40, 80, 160, 320, 320}[:tries-1] {
			// What is due is moved to its queue every 10 polls and taken at the next.
			got, earliest := begun[i+1].Sub(begun[i]), time.Duration(seconds)*time.Second
			if got < earliest || got > earliest+12*poll+time.Second {
				b.Errorf("try %d came %v after the one before, want %v", i+2, got, earliest)
			}
		}
		b.balance(100*billing.Credit, 0, 0)
	})
}

// A try that is due has its own wake-up then: it does not wait for the sweeper to miss one that came too early.
func TestRetryIsOnTime(t *testing.T) {
	hours(t, func(b *bubble) {
		time.Sleep(700 * time.Millisecond) // off the second
		b.work = func(context.Context, int) error { return errors.New("the disk is on fire") }
		const poll = 100 * time.Millisecond
		b.serve(poll, 4)
		b.by(time.Hour, b.submit(b.submission("copy", "3x2")))
		begun := b.runs()
		for i, seconds := range []int{5, 10, 20} {
			// A second at most for asynq's whole seconds, one for its look at what is due.
			got, earliest := begun[i+1].Sub(begun[i]), time.Duration(seconds)*time.Second
			if got < earliest || got > earliest+2*time.Second+5*poll {
				b.Errorf("try %d came %v after the one before, want %v", i+2, got, earliest)
			}
		}
	})
}

// F13 and F14 at length: Redis refuses every command for half an hour, then comes back empty. The run under way does not notice, and what was submitted
// meanwhile runs within seconds.
func TestHalfAnHourWithoutRedis(t *testing.T) {
	hours(t, func(b *bubble) {
		b.work = func(ctx context.Context, run int) error {
			if run == 1 {
				return spend(ctx, outage+10*time.Minute)
			}
			return nil
		}
		b.serve(10*time.Second, 3)
		long := b.submit(b.submission("copy", "3x2"))
		for len(b.runs()) == 0 {
			time.Sleep(time.Second)
		}
		b.mini.SetError("LOADING Redis is loading the dataset in memory")
		time.Sleep(outage / 2)
		waiting, err := b.jobs.Submit(b.ctx, b.submission("copy", "3x2"))
		must(b.T, err)
		if NewDispatcher(b.redis).Dispatch(b.ctx, waiting.WakeUp()) == nil {
			b.Error("Redis took a wake-up")
		}
		time.Sleep(outage / 2)
		if j := b.get(waiting.ID); j.Status != job.Queued {
			b.Errorf("without Redis the job is %s", j.Status)
		}
		b.mini.SetError("")
		b.mini.FlushAll()
		if took := b.by(5*time.Minute, waiting.ID); took > 30*time.Second {
			b.Errorf("with Redis back the job took %v", took)
		}
		b.by(time.Hour, long)
		for _, id := range []string{long, waiting.ID} {
			if j := b.get(id); j.Status != job.Succeeded || j.Fence != 1 || j.Failures != 0 {
				b.Errorf("%s, fence %d, failures %d", j.Status, j.Fence, j.Failures)
			}
		}
	})
}

// stored says whether an object is in the bucket.
func (b *bubble) stored(key string) bool {
	b.Helper()
	_, err := b.storage.Head(b.ctx, key)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		b.Fatal(err)
	}
	return err == nil
}

// at lets time pass until so long after began.
func at(began time.Time, after time.Duration) { time.Sleep(time.Until(began.Add(after))) }

// A month of the sweeper: what has had its time goes, within a sweep or two, and not before; results stay.
func TestMonthOfRetention(t *testing.T) {
	hours(t, func(b *bubble) {
		const day, sweep = 24 * time.Hour, 20 * time.Minute
		stop := b.serve(time.Second, 3)
		done := b.submit(b.submission("copy", "3x2"))
		b.by(time.Minute, done)
		stop()
		began := time.Now()
		result, source := b.get(done).ResultObject, b.get(done).Source.Object
		ctx, end := context.WithCancel(b.ctx)
		var sweeper sync.WaitGroup
		sweeper.Go(func() { b.sweeps(ctx, &Sweeper{Every: sweep, KeepSources: day, OrphansEvery: time.Hour}) })
		b.closers = append(b.closers, func() { end(); sweeper.Wait() })

		unused := job.Upload{ID: job.NewUploadID(), AccountID: b.account, Object: "uploads/unused", CreatedAt: began, ExpiresAt: began.Add(day)}
		must(b.T, b.jobs.CreateUpload(b.ctx, unused, job.Idempotency{}))
		canceled := b.submission("copy", "3x2")
		_, err := b.jobs.Submit(b.ctx, canceled)
		must(b.T, err)
		_, err = b.jobs.Cancel(b.ctx, b.account, canceled.ID)
		must(b.T, err)
		keyed := func() error {
			sub := b.submission("copy", "3x2")
			sub.Idempotency = job.Idempotency{Key: "k", Fingerprint: "f", Status: 202, Body: []byte("{}")}
			_, err := b.jobs.Submit(b.ctx, sub)
			return err
		}
		must(b.T, keyed())
		for _, key := range []string{unused.Object, storage.SourceKey("job_orphan")} {
			_, err := b.storage.Put(b.ctx, key, strings.NewReader("x"), 1, "text/plain")
			must(b.T, err)
		}

		for _, moment := range []struct {
			after time.Duration
			// want says of each object whether it must be there.
			want    map[string]bool
			upload  error
			replays bool
		}{
			{time.Minute, map[string]bool{canceled.Source.Object: true, storage.SourceKey("job_orphan"): true}, nil, true},
			{2*time.Minute + 2*sweep, map[string]bool{canceled.Source.Object: false, storage.SourceKey("job_orphan"): true, source: true}, nil, true},
			{3 * time.Hour, map[string]bool{storage.SourceKey("job_orphan"): false, unused.Object: true, source: true}, nil, true},
			{day - time.Minute, map[string]bool{unused.Object: true, source: true}, nil, true},
			{day + 2*sweep, map[string]bool{unused.Object: true, source: false, result: true}, job.ErrUploadExpired, false},
			{day + time.Hour - time.Minute, map[string]bool{unused.Object: true}, job.ErrUploadExpired, true},
			{day + time.Hour + 2*sweep, map[string]bool{unused.Object: false, result: true}, job.ErrUploadExpired, true},
			{someDays * day, map[string]bool{result: true}, job.ErrUploadExpired, false},
		} {
			at(began, moment.after)
			for key, want := range moment.want {
				if got := b.stored(key); got != want {
					b.Errorf("after %v: %s is stored: %v", moment.after, key, got)
				}
			}
			if err := b.jobs.CheckUpload(b.ctx, b.account, unused.ID); !errors.Is(err, moment.upload) {
				b.Errorf("after %v the upload: %v, want %v", moment.after, err, moment.upload)
			}
			replayed := (*job.Replayed)(nil)
			if err := keyed(); errors.As(err, &replayed) != moment.replays || (err != nil && !moment.replays) {
				b.Errorf("after %v the key: %v, want an answer repeated: %v", moment.after, err, moment.replays)
			}
		}
		var keys int
		must(b.T, b.db.QueryRowContext(b.ctx, "SELECT COUNT(*) FROM idempotency").Scan(&keys))
		if keys != 1 {
			b.Errorf("%d idempotency keys are kept, want the last one", keys)
		}
	})
}
