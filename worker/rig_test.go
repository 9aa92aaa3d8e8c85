package worker

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// rig is everything around a worker, real, for one test.
type rig struct {
	*testing.T
	ctx     context.Context
	db      *db.DB
	jobs    *job.Store
	ledger  *billing.Ledger
	storage *storage.Store
	redis   redis.UniversalClient
	prices  *billing.Prices
	catalog *engine.Catalog
	fetcher *storage.Fetcher
	log     *zap.Logger
	account string
	tool    *testTool
}

// each runs a test on SQLite with the in-process Redis, and on PostgreSQL with a real one.
func each(t *testing.T, test func(r *rig)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		server := miniredis.NewMiniRedis()
		client := redis.NewClient(&redis.Options{Dialer: func(context.Context, string, string) (net.Conn, error) { return server.Dial() }})
		t.Cleanup(func() { client.Close(); server.Close() })
		test(newRig(t, "sqlite:"+t.TempDir()+"/test.db", client))
	})
	t.Run("fleet", func(t *testing.T) {
		t.Parallel()
		options, err := redis.ParseURL(testbed.Redis(t).URL())
		must(t, err)
		client := redis.NewClient(options)
		t.Cleanup(func() { client.Close() })
		test(newRig(t, testbed.PostgreSQL(t), client))
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRig(t *testing.T, database string, client redis.UniversalClient) *rig {
	ctx := context.Background()
	d, err := db.Open(ctx, db.Config{URL: database})
	must(t, err)
	t.Cleanup(func() { d.Close() })
	must(t, d.Migrate(ctx))
	embedded, err := storage.OpenEmbedded(t.TempDir(), storage.EmbeddedConfig{Bucket: "media"})
	must(t, err)
	t.Cleanup(func() { embedded.Close() })
	endpoint, err := embedded.Start("127.0.0.1:0")
	must(t, err)
	access, secret := embedded.Credentials()
	store, err := storage.Open(storage.Config{Endpoint: endpoint, Bucket: "media", AccessKey: access, SecretKey: secret, PathStyle: true})
	must(t, err)
	must(t, store.EnsureBucket(ctx))

	r := &rig{
		T: t, ctx: ctx, db: d, jobs: job.NewStore(d), ledger: billing.NewLedger(d), storage: store, redis: client,
		prices:  &billing.Prices{ImageBlock: 1, Tiers: []billing.Tier{{ShortSide: 2160, Frame: 0.01}}, Weights: map[string]float64{"double": 1, "film": 1}},
		fetcher: storage.NewFetcher(storage.FetchConfig{AnyPort: true, AllowPrefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}}),
		log:     zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)), tool: &testTool{started: make(chan string, 100)},
	}
	r.catalog = engine.NewCatalog(engine.DefaultLimits(), r.tool.define("double", engine.Image), r.tool.define("film", engine.Video))
	created, err := account.NewStore(d).Create(ctx, "test")
	must(t, err)
	r.account = created.ID
	must(t, r.ledger.Grant(ctx, r.account, 100*billing.Credit, "", ""))
	t.Cleanup(r.audit)
	return r
}

func (r *rig) audit() {
	found, err := r.jobs.Audit(r.ctx)
	if err != nil || len(found) > 0 {
		r.Errorf("audit: %v %v", found, err)
	}
}

// behavior is the config of the test tool: what its run does.
type behavior struct {
	Do string `json:"do" doc:"What the run does." enum:"copy,fail,break,panic,wait,lie"`
}

// testTool doubles a "picture" that is a text "WIDTHxHEIGHT".
type testTool struct {
	mu      sync.Mutex
	started chan string
	runs    int
	stopped int
}

func (tool *testTool) define(name string, media engine.Media) engine.Tool {
	return engine.Define(engine.Spec[behavior]{
		Name: name, Media: media, Doc: "Doubles a text.", Defaults: behavior{Do: "copy"},
		Size: func(_ behavior, s engine.Source) (int, int) { return 2 * s.Width, 2 * s.Height },
		Measure: func(_ context.Context, path string) (engine.Source, error) {
			text, err := os.ReadFile(path)
			if err != nil {
				return engine.Source{}, err
			}
			s := engine.Source{Frames: 10, FPS: 10, Duration: 1}
			if _, err := fmt.Sscanf(string(text), "%dx%d", &s.Width, &s.Height); err != nil {
				return engine.Source{}, engine.Failf(engine.UnsupportedFormat, "This is no text of two numbers.")
			}
			return s, nil
		},
		Process: func(ctx context.Context, b behavior, task engine.Task) (engine.Output, error) {
			return tool.process(ctx, b, task)
		},
	})
}

func (tool *testTool) process(ctx context.Context, b behavior, task engine.Task) (engine.Output, error) {
	tool.mu.Lock()
	tool.runs++
	tool.mu.Unlock()
	tool.started <- task.Input
	task.Progress(0.5)
	switch b.Do {
	case "fail":
		return engine.Output{}, engine.Failf(engine.ProcessingFailed, "This picture cannot be doubled.").Because(errors.New("inner detail"))
	case "break":
		return engine.Output{}, errors.New("the disk is on fire")
	case "panic":
		panic("a bug")
	case "wait":
		<-ctx.Done()
		tool.mu.Lock()
		tool.stopped++
		tool.mu.Unlock()
		return engine.Output{}, ctx.Err()
	}
	out := engine.Output{Width: task.Plan.Width, Height: task.Plan.Height}
	if b.Do == "lie" {
		out.Width++
	}
	text := fmt.Sprintf("%dx%d", out.Width, out.Height)
	out.Size = int64(len(text))
	return out, os.WriteFile(task.Output, []byte(text), 0o600)
}

func (tool *testTool) counts() (runs, stopped int) {
	tool.mu.Lock()
	defer tool.mu.Unlock()
	return tool.runs, tool.stopped
}

// config makes a worker's config with short times.
func (r *rig) config(name string) Config {
	return Config{
		Name: name, Jobs: r.jobs, Prices: r.prices, Catalog: r.catalog, Storage: r.storage, Fetcher: r.fetcher, Redis: r.redis, Log: r.log,
		Scratch: r.TempDir(), Lease: 2 * time.Second, Heartbeat: 200 * time.Millisecond, Poll: 10 * time.Millisecond,
		RetryDelay: 20 * time.Millisecond, Grace: 100 * time.Millisecond, ImageSlots: 4, VideoSlots: 1,
	}
}

func (r *rig) sweeper() *Sweeper {
	return &Sweeper{
		Jobs: r.jobs, Storage: r.storage, Dispatcher: NewDispatcher(r.redis), Log: r.log,
		Every: 50 * time.Millisecond, Budget: 3, KeepSources: time.Hour, OrphansEvery: time.Hour,
	}
}

// start runs a worker and a sweeper; the returned function drains the worker.
func (r *rig) start(cfg Config) (stop func()) {
	w, err := New(cfg)
	must(r.T, err)
	ctx, cancel := context.WithCancel(r.ctx)
	var both sync.WaitGroup
	both.Go(func() {
		if err := w.Run(ctx); err != nil {
			r.Error(err)
		}
	})
	both.Go(func() { r.sweeper().Run(ctx) }) //nolint:errcheck // it always returns nil
	stop = sync.OnceFunc(func() { cancel(); both.Wait() })
	r.Cleanup(stop)
	return stop
}

// submission prepares a job of the test tool with an inline source.
func (r *rig) submission(do, text string) job.Submission {
	order, err := r.catalog.Order("double", json.RawMessage(`{"do":"`+do+`"}`), "")
	must(r.T, err)
	id := job.NewID()
	object, err := r.storage.Put(r.ctx, storage.SourceKey(id), strings.NewReader(text), int64(len(text)), "text/plain")
	must(r.T, err)
	return job.Submission{
		ID: id, AccountID: r.account, KeyID: "key", Order: order, ResultsPrefix: storage.ResultPrefix(id), Estimate: billing.Credit, MaxActive: 1000,
		CreatedAt: time.Now(), Source: job.Source{Kind: job.SourceInline, Object: object.Key, Ready: true, Size: object.Size},
	}
}

func (r *rig) submit(sub job.Submission) string {
	r.Helper()
	j, err := r.jobs.Submit(r.ctx, sub)
	must(r.T, err)
	must(r.T, NewDispatcher(r.redis).Dispatch(r.ctx, j.WakeUp()))
	return j.ID
}

func (r *rig) get(id string) job.Job {
	r.Helper()
	j, err := r.jobs.Get(r.ctx, r.account, id)
	must(r.T, err)
	return j
}

// ends waits until a job has ended and holds it against the status and code wanted.
func (r *rig) ends(id string, status job.Status, code engine.Code) job.Job {
	r.Helper()
	var j job.Job
	testbed.Until(r, 30*time.Second, "the end of the job", func() bool { j = r.get(id); return j.Status.Terminal() })
	if j.Status != status || j.ErrorCode != code {
		r.Fatalf("job ended %s %q (%s), want %s %q", j.Status, j.ErrorCode, j.ErrorMessage, status, code)
	}
	return j
}

// running waits until the test tool is at work on a job.
func (r *rig) running() {
	r.Helper()
	select {
	case <-r.tool.started:
	case <-time.After(30 * time.Second):
		r.Fatal("no run started")
	}
}

func (r *rig) balance(balance, frozen, used billing.Millicredits) {
	r.Helper()
	got, err := r.ledger.Balance(r.ctx, r.account)
	must(r.T, err)
	if want := (billing.Balance{Balance: balance, Frozen: frozen, Used: used}); got != want {
		r.Errorf("credits %+v, want %+v", got, want)
	}
}

func (r *rig) object(key string) string {
	r.Helper()
	body, _, err := r.storage.Get(r.ctx, key)
	must(r.T, err)
	defer body.Close()
	text, err := io.ReadAll(body)
	must(r.T, err)
	return string(text)
}

// expireGarbage lets the grace of all garbage pass.
func (r *rig) expireGarbage() {
	_, err := r.db.ExecContext(r.ctx, `UPDATE garbage SET not_before = 0`)
	must(r.T, err)
}

func randomText(n int) string {
	b := make([]byte, n)
	rand.Read(b) //nolint:errcheck // crypto/rand.Read never fails
	return string(b)
}
