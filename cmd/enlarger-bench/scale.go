package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"enlarger/db"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
	"enlarger/worker"
)

// scalePart asks whether anything grows with the jobs that have ended or that wait: the operations of API, workers and sweeper on a table of many jobs,
// and a fleet of several worker processes on it.
func scalePart(b *bed, o *options, out io.Writer) {
	if o.in(modeEmbedded) {
		b.scope(func(b *bed) {
			r := newRig(b, o, openDatabase(b, "sqlite:"+filepath.Join(tempDir(b), "scale.db"), 0), openMiniRedis(b), openStore(b, startStore(b)), o.slots)
			growth(b, o, out, "SQLite", r)
		})
	}
	if !o.in(modeFleet) {
		return
	}
	b.scope(func(b *bed) {
		postgres, server, at := startPostgres(b, o.noSync), testbed.Redis(b), startStore(b)
		database := postgres.Database(b)
		r := newRig(b, o, openDatabase(b, database, 2*o.slots), openRedis(b, server, 4*o.slots), openStore(b, at), o.slots)
		growth(b, o, out, "PostgreSQL", r)
		processes(b, o, out, r, noopWorker{Database: database, Redis: server.URL(), Store: at, Slots: 4})
		broken, err := r.jobs.Audit(b.ctx)
		b.must(err)
		if len(broken) > 0 {
			b.Fatalf("the audit is not clean: %+v", broken[0])
		}
	})
}

// growth prints what each operation takes while the table of jobs fills.
func growth(b *bed, o *options, out io.Writer, name string, r *rig) {
	b.Logf("scale: %s, %d queued jobs", name, o.queued)
	r.fill(b, "q", o.queued, "queued")
	rows := [][]string{{name, "submit", "claim", "heartbeat", "list, newest 20", "list, 20 from the middle", "sweep"}}
	ended := 0
	for round, want := range []int{0, o.ended / 10, o.ended} {
		b.Logf("scale: %s, %d ended jobs", name, want)
		r.fill(b, fmt.Sprint("f", want), want-ended, "succeeded")
		ended = want
		_, err := r.db.ExecContext(b.ctx, "ANALYZE")
		b.must(err)
		scans := r.tableScans(b)
		row := []string{fmt.Sprintf("%d queued, %d ended", o.queued, ended)}
		for _, op := range r.operations(b, round, ended) {
			row = append(row, timed(b, op))
		}
		rows = append(rows, row)
		// A table without ended jobs is small enough to be read.
		if now := r.tableScans(b); ended > 0 && now != scans {
			b.Fatalf("%d of the operations read the whole table of jobs", now-scans)
		}
	}
	start := time.Now()
	broken, err := r.jobs.Audit(b.ctx)
	b.must(err)
	if len(broken) > 0 {
		b.Fatalf("the audit is not clean: %+v", broken[0])
	}
	note := "the whole audit took " + time.Since(start).Round(100*time.Millisecond).String()
	if r.db.Postgres() {
		note += "; PostgreSQL counted no sequential scan of the table during the operations"
	}
	fmt.Fprintf(out, "\n### Scale: %s\n\np50 and p99 of 200 calls each, one at a time, on a table that fills; %s. Load average afterwards: %s.\n\n%s",
		name, note, loadAverage(), table(rows))
}

// tableScans is how often PostgreSQL has read all of jobs, to date.
func (r *rig) tableScans(b *bed) (n int64) {
	if !r.db.Postgres() {
		return 0
	}
	// Each connection reports what it did within a second of its next command.
	b.must(r.db.QueryRowContext(b.ctx, `SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'jobs'`).Scan(&n))
	return n
}

// filled is the id of the nth job that fill added to an account.
func filled(prefix string, account, n int) string {
	return fmt.Sprintf("job_%s_%d_%d", prefix, account, n)
}

// fill adds n jobs with the rows that belong to them, so that the audit is clean: queued ones that nobody wakes, or ended ones that cost nothing.
func (r *rig) fill(b *bed, prefix string, n int, status string) {
	each := n / len(r.accounts)
	if each == 0 {
		return
	}
	const numbers = `WITH RECURSIVE g(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM g WHERE n < %d) `
	ended := status == "succeeded"
	finished := `0, 0, '', '', 0`
	if ended {
		finished = `1, 100, 'results/x', '{}', 1`
	}
	for i, account := range r.accounts {
		id := fmt.Sprintf("'job_%s_%d_' || n", prefix, i)
		with := fmt.Sprintf(numbers, each)
		statements := []string{`INSERT INTO jobs (id, account_id, key_id, tool, media, config, format, source_kind, source_object, results_prefix, source_ready, status, run_at, dispatched_at,
			created_at, lane, finished_at, progress, result_object, result, fence, finished_fence)
			` + with + `SELECT ` + id + `, $1, 'bench', 'noop', 'image', '{}', 'jpg', 'inline', '` + r.source.Key + `', 'results/' || ` + id + `, TRUE, '` + status + `', 0, now_micros(), 1000000 + n, 2,
			` + strings.Replace(finished, "1, 100", "now_micros(), 100", 1) + `, CASE WHEN '` + status + `' = 'succeeded' THEN 1 ELSE 0 END FROM g`}
		if ended {
			statements = append(statements,
				`INSERT INTO holds (job_id, account_id, amount, state, created_at, ended_at) `+with+`SELECT `+id+`, $1, 0, 'confirmed', 1, 1 FROM g`,
				`INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, created_at) `+with+`SELECT 'r' || `+id+`, $1, `+id+`, 'reserve', 0, 0, 0, n FROM g`,
				`INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, created_at) `+with+`SELECT 'c' || `+id+`, $1, `+id+`, 'confirm', 0, 0, 0, n FROM g`)
		} else {
			statements = append(statements, fmt.Sprintf(`UPDATE accounts SET active_image = active_image + %d WHERE id = $1`, each))
		}
		for _, s := range statements {
			_, err := r.db.ExecContext(b.ctx, s, account)
			b.must(err)
		}
	}
}

// operation is what a timed call does, and what puts things back afterwards.
type operation struct {
	do   func(ctx context.Context, i int) error
	undo func(ctx context.Context, i int) error
}

func (r *rig) operations(b *bed, round, ended int) []operation {
	account := r.accounts[0]
	middle := job.Filter{Limit: 20, AfterTime: time.UnixMicro(1_000_000 + int64(ended/len(r.accounts)/2)), AfterID: "job_z"}
	fences := make([]int64, calls)
	beating, err := r.jobs.Claim(b.ctx, filled("q", 0, calls+1+round), "bench", time.Hour)
	b.must(err)
	list := func(f job.Filter) operation {
		return operation{do: func(ctx context.Context, _ int) error { _, err := r.jobs.List(ctx, account, f); return err }}
	}
	return []operation{
		{do: func(ctx context.Context, _ int) error { _, err := r.jobs.Submit(ctx, r.submission()); return err }},
		{
			do: func(ctx context.Context, i int) error {
				j, err := r.jobs.Claim(ctx, filled("q", 0, i+1), "bench", time.Minute)
				fences[i] = j.Fence
				return err
			},
			undo: func(ctx context.Context, i int) error {
				_, err := r.jobs.Yield(ctx, filled("q", 0, i+1), fences[i])
				return err
			},
		},
		{
			do: func(ctx context.Context, _ int) error {
				return r.jobs.Heartbeat(ctx, beating.ID, beating.Fence, job.PhaseSyncing, 0, time.Minute)
			},
		},
		list(job.Filter{Limit: 20}), list(middle),
		{do: func(ctx context.Context, _ int) error {
			_, err1 := r.jobs.WaitingJobs(ctx, 0, 500)
			_, err2 := r.jobs.LostRuns(ctx, 200)
			_, err3 := r.jobs.ExpireUploads(ctx, 1000)
			_, err4 := r.jobs.ExpireSources(ctx, 24*time.Hour, 1000)
			_, err5 := r.jobs.Garbage(ctx, 200)
			return errors.Join(err1, err2, err3, err4, err5, r.jobs.ExpireKeys(ctx, 1000))
		}},
	}
}

// calls is how often each operation is timed.
const calls = 200

func timed(b *bed, op operation) string {
	took := make([]time.Duration, 0, calls)
	for i := range calls {
		start := time.Now()
		b.must(op.do(b.ctx, i))
		took = append(took, time.Since(start))
		if op.undo != nil {
			b.must(op.undo(b.ctx, i))
		}
	}
	slices.Sort(took)
	return fmt.Sprintf("%.1f / %.1f ms", percentile(took, 0.5).Seconds()*1000, percentile(took, 0.99).Seconds()*1000)
}

// processes lets 1, 2, 4 and 8 worker processes work on the full table, each for a while.
func processes(b *bed, o *options, out io.Writer, r *rig, spec noopWorker) {
	b.Logf("scale: waking %d jobs", o.queued)
	s := &worker.Sweeper{Jobs: r.jobs, Storage: r.storage, Dispatcher: r.dispatcher, Log: zap.NewNop(), Every: time.Millisecond, Budget: 3, KeepSources: 24 * time.Hour}
	for range o.queued/500 + 1 {
		s.Sweep(b.ctx)
	}
	rows := [][]string{{"worker processes", "slots", "jobs a second"}}
	for _, n := range []int{1, 2, 4, 8} {
		b.scope(func(b *bed) {
			var workers []*testbed.Process
			for range n {
				spec.Scratch = tempDir(b)
				text, err := json.Marshal(spec)
				b.must(err)
				program, err := os.Executable()
				b.must(err)
				workers = append(workers, testbed.StartProgram(b, "worker", program, nil, noopWorkerCommand, string(text)))
			}
			before := r.paid(b)
			testbed.Until(b, 30*time.Second, "the workers to begin", func() bool { return r.paid(b) > before+int64(20*n) })
			before = r.paid(b)
			start := time.Now()
			sleepUntil(b.ctx, start.Add(o.duration))
			rate := float64(r.paid(b)-before) / time.Since(start).Seconds()
			rows = append(rows, []string{fmt.Sprint(n), fmt.Sprint(n * spec.Slots), fmt.Sprintf("%.0f", rate)})
			b.Logf("scale: %d worker processes: %.0f jobs/s", n, rate)
			for _, w := range workers {
				w.Stop(b, 30*time.Second)
			}
		})
	}
	fmt.Fprintf(out, "\n### Scale: worker processes\n\nNo-op jobs with ledger and files, %v a line, while the table holds %d waiting and %d ended jobs. PostgreSQL, Redis, store and workers share this machine's cores. "+
		"Load average afterwards: %s.\n\n%s", o.duration, o.queued, o.ended, loadAverage(), table(rows))
}

// paid is how many jobs have been charged.
func (r *rig) paid(b *bed) (n int64) {
	b.must(r.db.QueryRowContext(b.ctx, `SELECT CAST(SUM(used) / 1000 AS BIGINT) FROM accounts`).Scan(&n))
	return n
}

// noopWorker is a worker process for no-op jobs: `enlarger-bench noop-worker JSON`.
type noopWorker struct {
	Database string     `json:"database"`
	Redis    string     `json:"redis"`
	Scratch  string     `json:"scratch"`
	Store    storeReady `json:"store"`
	Slots    int        `json:"slots"`
}

const noopWorkerCommand = "noop-worker"

func isNoopWorker(args []string) bool { return len(args) == 3 && args[1] == noopWorkerCommand }

// serveNoopWorker works until a signal ends it.
func serveNoopWorker(text string) error {
	var spec noopWorker
	if err := json.Unmarshal([]byte(text), &spec); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	b := newBed(ctx, os.Stderr)
	var err error
	func() {
		defer b.close(&err)
		d, openErr := db.Open(ctx, db.Config{URL: spec.Database})
		b.must(openErr)
		b.closes(d)
		options, parseErr := redis.ParseURL(spec.Redis)
		b.must(parseErr)
		client := redis.NewClient(options)
		b.closes(client)
		var ran atomic.Int64
		r := &rig{db: d, jobs: job.NewStore(d), prices: noopPrices(), redis: client, dispatcher: worker.NewDispatcher(client), scratch: spec.Scratch, slots: spec.Slots}
		r.catalog = noopCatalog(&ran)
		r.storage, openErr = storage.Open(storage.Config{
			Endpoint: spec.Store.Endpoint, Bucket: bucket, AccessKey: spec.Store.AccessKey, SecretKey: spec.Store.SecretKey, PathStyle: true,
		})
		b.must(openErr)
		b.Cleanup(r.storage.Close)
		r.startWorker(b)
		<-ctx.Done()
	}()
	return err
}
