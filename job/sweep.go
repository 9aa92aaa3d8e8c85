package job

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"enlarger/db"
	"enlarger/engine"
)

// lostFenceGrace is how long an object outlives the row that named it: longer than a worker that was fenced off can go on writing.
const lostFenceGrace = 2 * time.Minute

// addGarbage notes objects for removal; a name that ends in / is a prefix. Removal is the sweeper's, and safe to repeat.
func addGarbage(ctx context.Context, on execer, grace time.Duration, objects ...string) error {
	for _, s := range garbage(grace, objects...) {
		if _, err := on.ExecContext(ctx, s.SQL, s.Args...); err != nil {
			return fmt.Errorf("%s: %w", s.What, err)
		}
	}
	return nil
}

func garbage(grace time.Duration, objects ...string) (steps []db.Step) {
	for _, object := range objects {
		if object != "" {
			steps = append(steps, db.Step{What: "note garbage", Args: []any{object, grace.Microseconds()},
				SQL: `INSERT INTO garbage (object, not_before) VALUES ($1, now_micros() + $2) ON CONFLICT (object) DO UPDATE SET not_before = EXCLUDED.not_before`})
		}
	}
	return steps
}

// Discard notes an object that nothing refers to for removal after the grace.
func (s *Store) Discard(ctx context.Context, grace time.Duration, objects ...string) error {
	return addGarbage(ctx, s.db, grace, objects...)
}

// Garbage reads up to limit objects that are due for removal.
func (s *Store) Garbage(ctx context.Context, limit int) ([]string, error) {
	return s.strings(ctx, `SELECT object FROM garbage WHERE not_before <= now_micros() ORDER BY not_before LIMIT $1`, limit)
}

// Removed forgets objects that are gone from the bucket.
func (s *Store) Removed(ctx context.Context, objects []string) error {
	steps := make([]db.Step, 0, len(objects))
	for _, object := range objects {
		steps = append(steps, db.Step{What: "forget garbage", SQL: `DELETE FROM garbage WHERE object = $1 AND not_before <= now_micros()`, Args: []any{object}})
	}
	return s.db.Batch(ctx, steps...)
}

func (s *Store) strings(ctx context.Context, query string, args ...any) ([]string, error) {
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("sweep: %w", err)
	}
	defer rows.Close()
	var list []string
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			return nil, fmt.Errorf("sweep: %w", err)
		}
		list = append(list, v)
	}
	return list, rows.Err()
}

// Lost is a run whose lease has ended.
type Lost struct {
	ID     string
	Media  engine.Media
	Fence  int64
	Worker string
}

// LostRuns reads up to limit runs whose lease has ended.
func (s *Store) LostRuns(ctx context.Context, limit int) ([]Lost, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, media, fence, worker FROM jobs WHERE status = 'processing' AND lease_until < now_micros()
		ORDER BY lease_until LIMIT $1`, limit)
	if err != nil {
		return nil, fmt.Errorf("find lost runs: %w", err)
	}
	defer rows.Close()
	var list []Lost
	for rows.Next() {
		var l Lost
		if err := rows.Scan(&l.ID, &l.Media, &l.Fence, &l.Worker); err != nil {
			return nil, fmt.Errorf("find lost runs: %w", err)
		}
		list = append(list, l)
	}
	return list, rows.Err()
}

// Waiting is a queued job whose last wake-up was sent or seen some time ago.
type Waiting struct {
	WakeUp
	AccountID string
}

// WaitingJobs reads up to limit queued, due jobs whose wake-up was last seen longer ago than quiet, the longest first.
func (s *Store) WaitingJobs(ctx context.Context, quiet time.Duration, limit int) ([]Waiting, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT id, media, lane, dispatch, account_id FROM jobs
		WHERE status = 'queued' AND dispatched_at < now_micros() - $1 AND run_at <= now_micros() ORDER BY dispatched_at, id LIMIT $2`, quiet.Microseconds(), limit)
	if err != nil {
		return nil, fmt.Errorf("find waiting jobs: %w", err)
	}
	defer rows.Close()
	var list []Waiting
	for rows.Next() {
		var w Waiting
		if err := rows.Scan(&w.ID, &w.Media, &w.Lane, &w.Number, &w.AccountID); err != nil {
			return nil, fmt.Errorf("find waiting jobs: %w", err)
		}
		list = append(list, w)
	}
	return list, rows.Err()
}

// Redispatch gives a waiting job a new wake-up. ErrStale: it is not queued any more, or another sweeper was first.
func (s *Store) Redispatch(ctx context.Context, w Waiting) (WakeUp, error) {
	err := changeOne(ctx, s.db, `UPDATE jobs SET dispatch = dispatch + 1, dispatched_at = now_micros() WHERE id = $1 AND status = 'queued' AND dispatch = $2`, w.ID, w.Number)
	w.Number++
	return w.WakeUp, err
}

// Promote moves a waiting job to lane 0, with a new wake-up, when nothing of its account and media is running: however many others come first, an
// account is always served. ErrStale: something is running, or the job is not waiting any more.
func (s *Store) Promote(ctx context.Context, w Waiting) (WakeUp, error) {
	err := changeOne(ctx, s.db, `UPDATE jobs SET lane = 0, dispatch = dispatch + 1, dispatched_at = now_micros() WHERE id = $1 AND status = 'queued' AND dispatch = $2
		AND NOT EXISTS (SELECT 1 FROM jobs running WHERE running.status = 'processing' AND running.account_id = $3 AND running.media = $4)`, w.ID, w.Number, w.AccountID, w.Media)
	w.Number, w.Lane = w.Number+1, 0
	return w.WakeUp, err
}

// Seen notes that the wake-ups of these jobs are in Redis.
func (s *Store) Seen(ctx context.Context, jobs []Waiting) error {
	steps := make([]db.Step, 0, len(jobs))
	for _, w := range jobs {
		steps = append(steps, db.Step{What: "note wake-up", SQL: `UPDATE jobs SET dispatched_at = now_micros() WHERE id = $1 AND status = 'queued' AND dispatch = $2`, Args: []any{w.ID, w.Number}})
	}
	if len(steps) == 0 {
		return nil
	}
	return s.db.Batch(ctx, steps...)
}

// uploadGrace lets a PUT that began before its upload expired end first: the largest file at 12 Mbit/s.
const uploadGrace = time.Hour

// ExpireUploads gives up uploads that were never used and expired an hour ago, up to limit.
func (s *Store) ExpireUploads(ctx context.Context, limit int) (int, error) {
	return s.sweepObjects(ctx, `UPDATE uploads SET status = 'removed' WHERE id IN (
		SELECT id FROM uploads WHERE status = 'open' AND expires_at < now_micros() - $2 ORDER BY expires_at LIMIT $1) AND status = 'open' RETURNING object`,
		limit, uploadGrace.Microseconds())
}

// ExpireSources gives up the sources of jobs that ended longer ago than keep.
func (s *Store) ExpireSources(ctx context.Context, keep time.Duration, limit int) (int, error) {
	return s.sweepObjects(ctx, `UPDATE jobs SET source_ready = FALSE WHERE id IN (
		SELECT id FROM jobs WHERE finished_at > 0 AND source_ready AND finished_at < now_micros() - $2 ORDER BY finished_at LIMIT $1) AND finished_at > 0 AND source_ready
		RETURNING source_object`, limit, keep.Microseconds())
}

func (s *Store) sweepObjects(ctx context.Context, query string, args ...any) (int, error) {
	var n int
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, query, args...)
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		var objects []string
		for rows.Next() {
			var object string
			if err := rows.Scan(&object); err != nil {
				rows.Close()
				return fmt.Errorf("sweep: %w", err)
			}
			objects = append(objects, object)
		}
		rows.Close()
		n = len(objects)
		return errors.Join(rows.Err(), addGarbage(ctx, tx, 0, objects...))
	})
	return n, err
}

// ExpireKeys forgets idempotency keys whose day is over.
func (s *Store) ExpireKeys(ctx context.Context, limit int) error {
	_, err := s.db.ExecContext(ctx, `DELETE FROM idempotency WHERE (account_id, key) IN (
		SELECT account_id, key FROM idempotency WHERE expires_at <= now_micros() LIMIT $1)`, limit)
	if err != nil {
		return fmt.Errorf("forget idempotency keys: %w", err)
	}
	return nil
}

// Referenced says whether a job, a part of one, an upload or the garbage list still names the object: what nothing names is an orphan. The source of a
// job that has not ended counts before it is ready too: it may have been uploaded long before a worker takes the job.
func (s *Store) Referenced(ctx context.Context, object string) (bool, error) {
	var found bool
	err := s.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM jobs WHERE result_object = $1 AND result_object <> '')
		OR EXISTS (SELECT 1 FROM jobs WHERE source_object = $1 AND (source_ready OR finished_at = 0))
		OR EXISTS (SELECT 1 FROM segments WHERE object = $1 AND object <> '')
		OR EXISTS (SELECT 1 FROM uploads WHERE object = $1 AND status = 'open') OR EXISTS (SELECT 1 FROM garbage WHERE object = $1)`, object).Scan(&found)
	if err != nil {
		return false, fmt.Errorf("look up object: %w", err)
	}
	return found, nil
}

// EndLeases ends every lease at once: for a process that knows itself to be the only one.
func (s *Store) EndLeases(ctx context.Context) (int64, error) {
	if _, err := s.db.ExecContext(ctx, `UPDATE segments SET lease_until = 1 WHERE status = 'running'`); err != nil {
		return 0, fmt.Errorf("end leases: %w", err)
	}
	result, err := s.db.ExecContext(ctx, `UPDATE jobs SET lease_until = 1 WHERE status = 'processing'`)
	if err != nil {
		return 0, fmt.Errorf("end leases: %w", err)
	}
	return result.RowsAffected()
}
