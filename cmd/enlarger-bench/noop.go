package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/worker"
)

// content is the source and the result of every no-op job.
const content = "nothing"

// noConfig is the config of the no-op tool.
type noConfig struct{}

// noopTool does nothing but what every tool must: it writes a result. ran counts its runs.
func noopTool(ran *atomic.Int64) engine.Tool {
	return engine.Define(engine.Spec[noConfig]{
		Name: "noop", Media: engine.Image, Doc: "Does nothing.",
		Size: func(_ noConfig, s engine.Source) (int, int) { return s.Width, s.Height },
		Measure: func(context.Context, string) (engine.Source, error) {
			return engine.Source{Width: 640, Height: 480}, nil
		},
		Process: func(_ context.Context, _ noConfig, task engine.Task) (engine.Output, error) {
			if err := os.WriteFile(task.Output, []byte(content), 0o600); err != nil {
				return engine.Output{}, fmt.Errorf("write result: %w", err)
			}
			ran.Add(1)
			return engine.Output{Width: task.Plan.Width, Height: task.Plan.Height, Size: int64(len(content))}, nil
		},
	})
}

func noopCatalog(ran *atomic.Int64) *engine.Catalog {
	return engine.NewCatalog(engine.DefaultLimits(), noopTool(ran))
}

func noopPrices() *billing.Prices {
	return &billing.Prices{ImageBlock: 24, Tiers: []billing.Tier{{ShortSide: 2160, Frame: 1}}, Weights: map[string]float64{"noop": 1}}
}

// rig is enlarger around the no-op tool on one database, Redis and store.
type rig struct {
	db         *db.DB
	jobs       *job.Store
	ledger     *billing.Ledger
	prices     *billing.Prices
	catalog    *engine.Catalog
	order      *engine.Order
	storage    *storage.Store
	redis      redis.UniversalClient
	dispatcher *worker.Dispatcher
	scratch    string
	accounts   []string
	// source is the one stored object that all jobs have as their source.
	source storage.Object
	slots  int
	ran    atomic.Int64
	turn   atomic.Int64
}

func newRig(b *bed, o *options, d *db.DB, client redis.UniversalClient, store *storage.Store, slots int) *rig {
	r := &rig{
		db: d, jobs: job.NewStore(d), ledger: billing.NewLedger(d), storage: store, redis: client,
		prices:  noopPrices(),
		scratch: tempDir(b), slots: slots,
	}
	if client != nil { // River has no Redis
		r.dispatcher = worker.NewDispatcher(client)
	}
	r.catalog = noopCatalog(&r.ran)
	var err error
	r.order, err = r.catalog.Order("noop", nil, "")
	b.must(err)
	for range o.accounts {
		id, _ := newAccount(b, d)
		r.accounts = append(r.accounts, id)
	}
	r.source, err = store.Put(b.ctx, storage.SourceKey(job.NewID()), strings.NewReader(content), int64(len(content)), "text/plain")
	b.must(err)
	return r
}

// account gives each job the next account.
func (r *rig) account() string { return r.accounts[int(r.turn.Add(1))%len(r.accounts)] }

func (r *rig) submission() job.Submission {
	id := job.NewID()
	return job.Submission{
		ID: id, AccountID: r.account(), KeyID: "bench", Order: r.order, ResultsPrefix: storage.ResultPrefix(id), Estimate: billing.Credit,
		MaxActive: 10_000_000, CreatedAt: time.Now(),
		Source: job.Source{Kind: job.SourceInline, Object: r.source.Key, Ready: true, Size: r.source.Size},
	}
}

// submit is what the API does once the source is stored: the row, the account's place, the wake-up.
func (r *rig) submit(ctx context.Context) error {
	j, err := r.jobs.Submit(ctx, r.submission())
	if err != nil {
		return fmt.Errorf("submit: %w", err)
	}
	return r.dispatcher.Dispatch(ctx, j.WakeUp())
}

// startWorker runs worker and sweeper as `enlarger worker` does.
func (r *rig) startWorker(b *bed) (stop func()) {
	log := zap.NewNop()
	w, err := worker.New(worker.Config{
		Name: "bench", Jobs: r.jobs, Prices: r.prices, Catalog: r.catalog, Storage: r.storage, Redis: r.redis, Log: log,
		Fetcher: storage.NewFetcher(storage.FetchConfig{}), Scratch: r.scratch, ImageSlots: r.slots,
	})
	b.must(err)
	sweeper := &worker.Sweeper{Jobs: r.jobs, Storage: r.storage, Dispatcher: r.dispatcher, Log: log}
	return inBackground(b, w.Run, sweeper.Run)
}

// inBackground runs loops until the returned function is called, which waits for them. It is called at the end of the bed at the latest.
func inBackground(b *bed, loops ...func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.ctx))
	ended := make(chan error, len(loops))
	for _, loop := range loops {
		go func() { ended <- loop(ctx) }()
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		for range loops {
			if err := <-ended; err != nil {
				b.Logf("%v", err)
			}
		}
	}
	b.Cleanup(stop)
	return stop
}

// ended looks at the database only once the tool has run often enough.
func (r *rig) ended(ctx context.Context, n int64) (bool, error) {
	if r.ran.Load() < n {
		return false, nil
	}
	counts, err := r.jobs.Active(ctx)
	return counts.Queued+counts.Processing == 0, err
}

// verify holds the books against the jobs: all succeeded, all charged, nothing frozen.
func (r *rig) verify(b *bed, n int64) {
	broken, err := r.jobs.Audit(b.ctx)
	b.must(err)
	if len(broken) > 0 {
		b.Fatalf("the audit is not clean: %+v", broken[0])
	}
	if got := finished(b, r.db); int64(got) != n {
		b.Fatalf("%d of %d jobs succeeded", got, n)
	}
	r.charged(b, n)
}

// charged ends the run unless n jobs were paid for and nothing is frozen any more.
func (r *rig) charged(b *bed, n int64) {
	var sum billing.Balance
	for _, id := range r.accounts {
		balance, err := r.ledger.Balance(b.ctx, id)
		b.must(err)
		sum.Used += balance.Used
		sum.Frozen += balance.Frozen
	}
	if want := billing.Millicredits(n) * billing.Credit; sum.Used != want || sum.Frozen != 0 {
		b.Fatalf("%v credits were charged and %v are frozen, want %v and none", sum.Used, sum.Frozen, want)
	}
}
