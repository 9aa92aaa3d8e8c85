// Package worker carries jobs: it takes wake-ups from asynq, claims the job's row, and brings it through
// claim -> upload -> sync -> reserve -> process -> store -> finish.
//
// Nothing here trusts Redis. A job belongs to the worker that holds its fence, for as long as the lease in the database is kept up; a
// run has a context of its own that ends when the job is canceled, when the fence is lost, or when the worker drains. The
// sweeper repairs what fell between the steps.
package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"

	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// Config is what a worker needs. Zero durations and counts take the defaults named beside them.
type Config struct {
	// Name tells workers apart in the job rows and logs.
	Name    string
	Jobs    *job.Store
	Prices  *billing.Prices
	Catalog *engine.Catalog
	Storage *storage.Store
	Fetcher *storage.Fetcher
	Redis   redis.UniversalClient
	Log     *zap.Logger
	// Metrics may be nil.
	Metrics *Metrics

	// Scratch is a directory for the local files of runs. It may be shared by processes of one machine.
	Scratch string
	// ImageSlots (the number of CPUs) and VideoSlots (1) are the jobs carried at the same time.
	ImageSlots, VideoSlots int
	// Memory bounds the sum of the estimated peak bytes of runs at the same time (1 GiB).
	Memory int64

	// Lease (20 s) is how long a silent worker keeps a job; Heartbeat (5 s) is how often it speaks.
	Lease, Heartbeat time.Duration
	// Poll (100 ms) is how often an idle worker asks Redis.
	Poll time.Duration
	// Budget (3) is the number of failed runs after which a job fails for good.
	Budget int64
	// RetryDelay (5 s) is the wait after the first failed run; it doubles with each.
	RetryDelay time.Duration
	// Grace (25 s) is how long a draining worker lets its runs go on.
	Grace time.Duration
	// ImageTimeout (15 min) and VideoTimeout (24 h) are the longest a run may process. A video's limit follows its work below that.
	ImageTimeout, VideoTimeout time.Duration
	// MaxUpload (5261334937) and MaxFetch (200 MiB) are the largest sources in bytes.
	MaxUpload, MaxFetch int64
}

func (c Config) withDefaults() Config {
	def(&c.ImageSlots, runtime.NumCPU())
	def(&c.VideoSlots, 1)
	def(&c.Memory, 1<<30)
	def(&c.Lease, 20*time.Second)
	def(&c.Heartbeat, 5*time.Second)
	def(&c.Poll, 100*time.Millisecond)
	def(&c.Budget, 3)
	def(&c.RetryDelay, 5*time.Second)
	def(&c.Grace, 25*time.Second)
	def(&c.ImageTimeout, 15*time.Minute)
	def(&c.VideoTimeout, 24*time.Hour)
	def(&c.MaxUpload, 5261334937)
	def(&c.MaxFetch, 200<<20)
	return c
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Reasons that end a run's context.
var (
	errStale = errors.New("the job is no longer this worker's")
	errYield = errors.New("the worker is draining")
	// errPartStale ends the work on one part, not the run.
	errPartStale = errors.New("the part is no longer this worker's")
)

// Worker carries jobs until its context ends.
type Worker struct {
	Config
	dispatcher *Dispatcher
	servers    []*asynq.Server
	// slots bound the runs per queue. asynq's own concurrency cannot: a handler that it gave up on goes on running.
	slots   map[string]*semaphore.Weighted
	memory  *semaphore.Weighted
	scratch *Scratch

	// base is the parent of every run's context; ending it is the drain's last step.
	base     context.Context
	yieldAll context.CancelCauseFunc
	draining chan struct{}

	mu      sync.Mutex
	running map[string]*run
	parts   map[*part]struct{}
	runs    sync.WaitGroup
	// helps counts the times this worker helped, to tell their folders apart.
	helps atomic.Int64
}

// New makes a worker and cleans up what dead workers left in the scratch directory.
func New(cfg Config) (*Worker, error) {
	cfg = cfg.withDefaults()
	if cfg.Lease < 3*cfg.Heartbeat/2 {
		return nil, fmt.Errorf("lease %v must be at least 1.5 heartbeats of %v", cfg.Lease, cfg.Heartbeat)
	}
	dir, err := OpenScratch(cfg.Scratch)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		Config:     cfg,
		dispatcher: NewDispatcher(cfg.Redis),
		slots: map[string]*semaphore.Weighted{
			queueImage: semaphore.NewWeighted(int64(cfg.ImageSlots)), queueVideo: semaphore.NewWeighted(int64(cfg.VideoSlots)),
		},
		memory:   semaphore.NewWeighted(cfg.Memory),
		scratch:  dir,
		draining: make(chan struct{}),
		running:  map[string]*run{},
		parts:    map[*part]struct{}{},
	}
	w.base, w.yieldAll = context.WithCancelCause(context.Background())
	w.servers = []*asynq.Server{w.server(queueImage, cfg.ImageSlots), w.server(queueVideo, cfg.VideoSlots)}
	return w, nil
}

func (w *Worker) server(queue string, concurrency int) *asynq.Server {
	return asynq.NewServerFromRedisClient(w.Redis, asynq.Config{
		Concurrency:       concurrency,
		Queues:            lanes(queue),
		StrictPriority:    true,
		TaskCheckInterval: w.Poll,
		// How often wake-ups that were due later are looked at.
		DelayedTaskCheckInterval: 10 * w.Poll,
		// An error of the handler means "could not record": soon again.
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration { return w.RetryDelay },
		// Redis is asked to keep nothing of tasks that are done, so there is next to nothing to tidy up.
		JanitorInterval: time.Hour,
		ShutdownTimeout: time.Second,
		Logger:          asynqLog{w.Log.Named("asynq").Sugar()},
		LogLevel:        asynq.WarnLevel,
	})
}

// Run takes jobs until ctx is done, then drains: it takes no more, lets its runs go on for the grace, gives the rest back to
// the queue, and returns when nothing runs any more.
func (w *Worker) Run(ctx context.Context) error {
	defer w.scratch.Close()
	for _, s := range w.servers {
		if err := s.Start(asynq.HandlerFunc(w.handle)); err != nil {
			return fmt.Errorf("start worker: %w", err)
		}
	}
	listening, stopListening := context.WithCancel(context.WithoutCancel(ctx))
	var listener sync.WaitGroup
	listener.Go(func() { w.listen(listening) })
	w.Log.Info("worker started", zap.String("worker", w.Name), zap.Int("image_slots", w.ImageSlots), zap.Int("video_slots", w.VideoSlots))
	<-ctx.Done()
	w.drain()
	stopListening()
	listener.Wait()
	return nil
}

func (w *Worker) drain() {
	w.mu.Lock() // so that no run is counted in once the wait for all of them began
	close(w.draining)
	w.mu.Unlock()
	for _, s := range w.servers {
		s.Stop()
	}
	ended := make(chan struct{})
	go func() { w.runs.Wait(); close(ended) }()
	grace := time.NewTimer(w.Grace)
	defer grace.Stop()
	select {
	case <-ended:
	case <-grace.C:
		w.Log.Info("worker gives its jobs back", zap.String("worker", w.Name))
	}
	w.yieldAll(errYield)
	<-ended
	for _, s := range w.servers {
		s.Shutdown()
	}
	w.Log.Info("worker stopped", zap.String("worker", w.Name))
}

// handle takes one wake-up. It returns nil for everything that the job's row records; an error means that the row could not be
// reached and the wake-up should come again.
func (w *Worker) handle(ctx context.Context, task *asynq.Task) error {
	id := string(task.Payload())
	queue, _ := asynq.GetQueueName(ctx)
	queue, _, _ = strings.Cut(queue, ".")
	slots := w.slots[queue]
	if slots == nil {
		return nil
	}
	if err := slots.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("wait for a slot: %w", err)
	}
	defer slots.Release(1)
	if !w.enter() {
		return fmt.Errorf("not taken: %w", errYield)
	}
	defer w.runs.Done()

	if task.Type() == taskHelp {
		w.help(id)
		return nil
	}
	j, err := w.Jobs.Claim(w.base, id, w.Name, w.Lease)
	if errors.Is(err, job.ErrStale) {
		w.Metrics.duplicate()
		return nil
	}
	if err != nil {
		return fmt.Errorf("claim: %w", err)
	}
	return w.carry(j)
}

// enter counts a run in, unless the worker is draining.
func (w *Worker) enter() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	select {
	case <-w.draining:
		return false
	default:
		w.runs.Add(1)
		return true
	}
}

func (w *Worker) isDraining() bool {
	select {
	case <-w.draining:
		return true
	default:
		return false
	}
}

// enterPart and leavePart tell which parts are under way here.
func (w *Worker) enterPart(p *part) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parts[p] = struct{}{}
}

func (w *Worker) leavePart(p *part) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.parts, p)
}

// listen passes on that jobs were canceled, so that their work stops now and not at the next heartbeat. It reconnects for ever.
func (w *Worker) listen(ctx context.Context) {
	messages := w.Redis.Subscribe(ctx, stopChannel)
	defer messages.Close()
	channel := messages.Channel()
	for {
		select {
		case <-ctx.Done():
			return
		case m, ok := <-channel:
			if !ok {
				return
			}
			w.mu.Lock()
			r := w.running[m.Payload]
			for p := range w.parts {
				if p.segment.JobID == m.Payload {
					p.wakePart()
				}
			}
			w.mu.Unlock()
			if r != nil {
				r.wake()
			}
		}
	}
}

// asynqLog sends asynq's own log to ours.
type asynqLog struct{ *zap.SugaredLogger }

func (l asynqLog) Fatal(args ...any) { l.Error(args...) }
