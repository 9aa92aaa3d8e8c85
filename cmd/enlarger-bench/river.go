package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"enlarger/billing"
	"enlarger/storage"
	"enlarger/testbed"
)

// riverRig is River, a queue that lives in PostgreSQL, with enlarger's accounts, holds and entries beside it: the statements of
// the ledger run in transactions with River's own of the job, as its users write them.
type riverRig struct {
	*rig
	pool   *pgxpool.Pool
	insert *river.Client[pgx.Tx]
	// files says whether a job also reads its source and stores a result.
	files bool
	ran   atomic.Int64
}

type riverArgs struct {
	Account string `json:"account"`
}

func (riverArgs) Kind() string { return "noop" }

// riverPeers measures River without and with the files that a job of enlarger reads and writes.
func riverPeers(b *bed, o *options, postgres *testbed.PostgresServer, store *storage.Store) []*peer {
	with := func(name string, files bool) *peer {
		r := newRiverRig(b, o, postgres.Database(b), store)
		r.files = files
		return &peer{name: name, submit: r.submit, start: r.start, verify: r.verify, ended: func(_ context.Context, n int64) (bool, error) { return r.ran.Load() >= n, nil }}
	}
	return []*peer{with("River with the same ledger", false), with("River with the same ledger and files", true)}
}

func newRiverRig(b *bed, o *options, database string, store *storage.Store) *riverRig {
	r := &riverRig{rig: newRig(b, o, openDatabase(b, database, 4), nil, store, o.slots)}
	config, err := pgxpool.ParseConfig(database)
	b.must(err)
	config.MaxConns = int32(2*o.slots + 4) // as many as enlarger has, and those of River's own housekeeping
	r.pool, err = pgxpool.NewWithConfig(b.ctx, config)
	b.must(err)
	b.Cleanup(r.pool.Close)
	migrator, err := rivermigrate.New(riverpgxv5.New(r.pool), &rivermigrate.Config{Logger: quiet()})
	b.must(err)
	_, err = migrator.Migrate(b.ctx, rivermigrate.DirectionUp, nil)
	b.must(err)
	r.insert, err = river.NewClient(riverpgxv5.New(r.pool), &river.Config{Logger: quiet()})
	b.must(err)
	return r
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start works with the intervals of River's own benchmark: its defaults (100 ms between fetches) would bound it to 160 jobs a second here.
func (r *riverRig) start(b *bed) (stop func()) {
	workers := river.NewWorkers()
	river.AddWorker(workers, river.WorkFunc(r.work))
	client, err := river.NewClient(riverpgxv5.New(r.pool), &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: r.slots}},
		Workers: workers, Logger: quiet(), FetchCooldown: 2 * time.Millisecond, FetchPollInterval: 20 * time.Millisecond,
	})
	b.must(err)
	b.must(client.Start(b.ctx))
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), 30*time.Second)
		defer cancel()
		if err := client.Stop(ctx); err != nil {
			b.Logf("stop River: %v", err)
		}
	}
}

// statements runs statements of which each must change one row.
func statements(ctx context.Context, tx pgx.Tx, list ...statement) error {
	for _, s := range list {
		tag, err := tx.Exec(ctx, s.query, s.args...)
		if err != nil {
			return fmt.Errorf("%.40s: %w", s.query, err)
		}
		if tag.RowsAffected() != 1 {
			return fmt.Errorf("%.40s: %d rows", s.query, tag.RowsAffected())
		}
	}
	return nil
}

type statement struct {
	query string
	args  []any
}

// submit is what job.Submit does: the job and the account's place in flight, with the check of its cap and credits.
func (r *riverRig) submit(ctx context.Context) error {
	account := r.account()
	return pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if _, err := r.insert.InsertTx(ctx, tx, riverArgs{account}, nil); err != nil {
			return fmt.Errorf("insert: %w", err)
		}
		return statements(ctx, tx, statement{`UPDATE accounts SET active_image = active_image + 1
			WHERE id = $1 AND active_image < 10000000 AND posted - frozen >= $2`, []any{account, billing.Credit}})
	})
}

// work reserves, does nothing, and confirms together with River's own completion of the job.
func (r *riverRig) work(ctx context.Context, j *river.Job[riverArgs]) error {
	id := "river_" + strconv.FormatInt(j.ID, 10)
	if r.files {
		if err := r.fetch(ctx, id); err != nil {
			return err
		}
	}
	if err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error { return reserve(ctx, tx, id, j.Args.Account) }); err != nil {
		return err
	}
	if r.files {
		if err := r.store(ctx, id); err != nil {
			return err
		}
	}
	err := pgx.BeginFunc(ctx, r.pool, func(tx pgx.Tx) error {
		if err := confirm(ctx, tx, id, j.Args.Account); err != nil {
			return err
		}
		if _, err := river.JobCompleteTx[*riverpgxv5.Driver](ctx, tx, j); err != nil {
			return fmt.Errorf("complete: %w", err)
		}
		return nil
	})
	if err == nil {
		r.ran.Add(1)
	}
	return err
}

const entrySQL = `INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, created_at)
	VALUES ($1, $2, $3, $4, $5, $6, $7, now_micros()) ON CONFLICT (hold_id, step) DO NOTHING`

func reserve(ctx context.Context, tx pgx.Tx, id, account string) error {
	return statements(ctx, tx,
		statement{`INSERT INTO holds (job_id, account_id, amount, state, created_at) VALUES ($1, $2, $3, 'held', now_micros())
			ON CONFLICT (job_id) DO NOTHING`, []any{id, account, billing.Credit}},
		statement{entrySQL, []any{"ent_" + rand.Text(), account, id, "reserve", 0, billing.Credit, 0}},
		statement{`UPDATE accounts SET frozen = frozen + $2 WHERE id = $1 AND posted - frozen >= $2`, []any{account, billing.Credit}})
}

func confirm(ctx context.Context, tx pgx.Tx, id, account string) error {
	return statements(ctx, tx,
		statement{`UPDATE holds SET state = 'confirmed', ended_at = now_micros() WHERE job_id = $1 AND state = 'held'`, []any{id}},
		statement{entrySQL, []any{"ent_" + rand.Text(), account, id, "confirm", -billing.Credit, -billing.Credit, billing.Credit}},
		statement{`UPDATE accounts SET posted = posted - $2, frozen = frozen - $2, used = used + $2 WHERE id = $1`, []any{account, billing.Credit}},
		statement{`UPDATE accounts SET active_image = active_image - 1 WHERE id = $1`, []any{account}})
}

// fetch and store are what a worker does with files: a copy of the source, a result, and a look that it is there.
func (r *riverRig) fetch(ctx context.Context, id string) error {
	_, err := r.storage.Download(ctx, r.source.Key, filepath.Join(r.scratch, id), r.source.Size)
	return err
}

func (r *riverRig) store(ctx context.Context, id string) error {
	path := filepath.Join(r.scratch, id)
	if err := os.WriteFile(path+".jpg", []byte(content), 0o600); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	key := storage.ResultKey(id, 1, "jpg")
	if _, err := r.storage.PutFile(ctx, key, path+".jpg", "image/jpeg"); err != nil {
		return err
	}
	if _, err := r.storage.Head(ctx, key); err != nil {
		return err
	}
	for _, done := range []string{path, path + ".jpg"} {
		if err := os.Remove(done); err != nil {
			return fmt.Errorf("remove scratch file: %w", err)
		}
	}
	return nil
}

// verify holds the books against the number of jobs.
func (r *riverRig) verify(b *bed, n int64) {
	broken, err := r.ledger.Audit(b.ctx)
	b.must(err)
	if len(broken) > 0 {
		b.Fatalf("River's audit is not clean: %+v", broken[0])
	}
	r.charged(b, n)
}
