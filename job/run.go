package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
)

// Claim makes a queued, due job the caller's: status processing, fence + 1, a lease by the database's clock; phase uploading, or syncing when
// its source is in the bucket already.
// It returns ErrStale when there is nothing to claim: someone else has the job, it is over, or it is not due yet.
func (s *Store) Claim(ctx context.Context, id, worker string, lease time.Duration) (Job, error) {
	var j Job
	err := s.db.WriteRow(ctx, func(row *sql.Row) (err error) {
		j, err = scan(row)
		return err
	}, `UPDATE jobs SET status = 'processing', phase = CASE WHEN source_ready THEN 'syncing' ELSE 'uploading' END, progress = 0, fence = fence + 1,
			worker = $2, lease_until = now_micros() + $3, started_at = CASE WHEN started_at = 0 THEN now_micros() ELSE started_at END
		WHERE id = $1 AND status = 'queued' AND run_at <= now_micros() RETURNING `+columns, id, worker, lease.Microseconds())
	if errors.Is(err, ErrNotFound) {
		return Job{}, ErrStale
	}
	return j, err
}

// Heartbeat carries lease, phase and progress in one UPDATE. Nothing goes back within a run: an older phase or a smaller progress is not
// written. Phase processing is entered by Reserve alone; before it progress stays 0, and until the job has succeeded below 100.
// A crash of
// PostgreSQL may forget the last one, which costs the run a part of its lease. ErrStale means that the job is no longer the caller's.
func (s *Store) Heartbeat(ctx context.Context, id string, fence int64, phase Phase, progress int, lease time.Duration) error {
	return s.db.Relaxed(ctx, db.Step{
		What: "heartbeat", None: ErrStale, Args: []any{id, fence, lease.Microseconds(), phase, min(max(progress, 0), 99)},
		SQL: `UPDATE jobs SET lease_until = now_micros() + $3,
			phase = CASE WHEN phase = 'uploading' AND $4 <> 'uploading' THEN 'syncing' ELSE phase END,
			progress = CASE WHEN phase = 'processing' AND progress < $5 THEN $5 ELSE progress END
			WHERE id = $1 AND fence = $2 AND status = 'processing'`,
	})
}

// SourceStored notes that the source is in the bucket, and enters phase syncing. ErrStale: not the caller's any more.
func (s *Store) SourceStored(ctx context.Context, id string, fence, size int64) error {
	return changeOne(ctx, s.db, `UPDATE jobs SET source_ready = TRUE, source_size = $3, phase = CASE WHEN phase = 'uploading' THEN 'syncing' ELSE phase END
		WHERE id = $1 AND fence = $2 AND status = 'processing'`, id, fence, size)
}

// Reserve freezes the price on the account of j, a claimed job, and enters phase processing in one transaction, and returns the amount held: a job that holds
// credits already, from an earlier run, keeps that hold. It is safe to repeat, and repeats itself when the answer to COMMIT is lost.
// Errors: ErrStale, billing.ErrInsufficient.
func (s *Store) Reserve(ctx context.Context, j Job, price billing.Millicredits) (billing.Millicredits, error) {
	enter := db.Step{What: "enter phase processing", None: ErrStale, Args: []any{j.ID, j.Fence, j.AccountID},
		SQL: `UPDATE jobs SET phase = 'processing' WHERE id = $1 AND fence = $2 AND account_id = $3 AND status = 'processing'`}
	err := certainly(func() error {
		return s.db.Batch(ctx, append([]db.Step{enter}, billing.Reserving(j.ID, j.AccountID, price)...)...)
	})
	if errors.Is(err, billing.ErrHeld) {
		err = certainly(func() error {
			return s.db.InTx(ctx, func(tx *sql.Tx) (err error) {
				if err := enter.Run(ctx, tx); err != nil {
					return err
				}
				price, err = billing.Held(ctx, tx, j.ID)
				return err
			})
		})
	}
	if err != nil {
		return 0, err
	}
	return price, nil
}

// certainly repeats a transaction whose outcome is unknown: its first UPDATE waits for whatever the lost COMMIT still does, and then
// takes effect or finds the row moved on. It must be safe to repeat after its own success.
func certainly(transaction func() error) error {
	const tries = 3
	var uncertain error
	for range tries {
		err := transaction()
		if !errors.Is(err, db.ErrUncertain) {
			if db.Unavailable(err) {
				return errors.Join(uncertain, err)
			}
			return err
		}
		uncertain = err
	}
	return uncertain
}

// Succeed ends the run of j, a claimed job: the result becomes visible, the hold is confirmed and the account's place is free, in one transaction.
// discard names objects of earlier fences to be removed. A lost COMMIT answer is resolved by reading the row. ErrStale: not the caller's any more.
func (s *Store) Succeed(ctx context.Context, j Job, object string, out engine.Output, discard []string) error {
	result, err := json.Marshal(out)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	steps := []db.Step{{What: "end job", None: ErrStale, Args: []any{j.ID, j.Fence, object, string(result)},
		SQL: `UPDATE jobs SET status = 'succeeded', phase = '', progress = 100, lease_until = 0, worker = '',
			result_object = $3, result = $4, finished_at = now_micros(), finished_fence = fence
			WHERE id = $1 AND fence = $2 AND status = 'processing'`}}
	steps = append(steps, billing.Confirming(j.ID, freePlace(j.Media))...)
	steps = append(steps, garbage(lostFenceGrace, discard...)...)
	steps = append(steps, forgetting(j.ID, j.Media)...)
	return s.settle(ctx, j.ID, j.Fence, Succeeded, func() error { return s.db.Batch(ctx, steps...) })
}

// Fail ends the run with what the client is told, and releases the hold. ErrStale: not the caller's any more.
func (s *Store) Fail(ctx context.Context, id string, fence int64, f *engine.Failure) error {
	return s.settle(ctx, id, fence, Failed, func() error {
		return s.db.InTx(ctx, func(tx *sql.Tx) error {
			return failRow(ctx, tx, `id = $1 AND fence = $2 AND status = 'processing'`, f, id, fence)
		})
	})
}

// failRow fails the rows of a condition whose arguments are the first two parameters.
func failRow(ctx context.Context, tx *sql.Tx, condition string, f *engine.Failure, id string, fence int64) error {
	ended, err := endRow(ctx, tx, `UPDATE jobs SET status = 'failed', phase = '', lease_until = 0, worker = '', error_code = $3, error_message = $4,
			finished_at = now_micros(), finished_fence = fence WHERE `+condition+` RETURNING `+endedColumns, id, fence, f.Code, f.Message)
	if err != nil {
		return err
	}
	return ended.undo(ctx, tx)
}

// Retry gives a run that failed for no fault of the client back to the queue, due after delay; the failure counts. When the budget is used up
// the job fails with giveUp and is refunded: final is then true. ErrStale: not the caller's any more.
func (s *Store) Retry(ctx context.Context, id string, fence int64, delay time.Duration, budget int64, giveUp *engine.Failure) (dispatch int64, final bool, err error) {
	const mine = `id = $1 AND fence = $2 AND status = 'processing'`
	return s.requeue(ctx, mine, id, fence, delay, budget, giveUp)
}

// Expire gives a run whose lease has ended back to the queue, or fails it when the budget is used up. ErrStale: the lease is good, or the row has moved on.
func (s *Store) Expire(ctx context.Context, id string, fence, budget int64, giveUp *engine.Failure) (dispatch int64, final bool, err error) {
	const lost = `id = $1 AND fence = $2 AND status = 'processing' AND lease_until < now_micros()`
	return s.requeue(ctx, lost, id, fence, 0, budget, giveUp)
}

func (s *Store) requeue(ctx context.Context, condition, id string, fence int64, delay time.Duration, budget int64, giveUp *engine.Failure) (dispatch int64, final bool, err error) {
	err = s.db.InTx(ctx, func(tx *sql.Tx) error {
		final = false
		err := tx.QueryRowContext(ctx, backToQueue+`, failures = failures + 1, run_at = now_micros() + $3
			WHERE `+condition+` AND failures + 1 < $4 RETURNING dispatch`, id, fence, delay.Microseconds(), budget).Scan(&dispatch)
		if err == nil {
			return nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return fmt.Errorf("give job back: %w", err)
		}
		final = true
		return failRow(ctx, tx, condition, giveUp, id, fence)
	})
	if err != nil {
		return 0, false, err
	}
	return dispatch, final, nil
}

// What ran before has waited its turn: it goes to the front.
const backToQueue = `UPDATE jobs SET status = 'queued', phase = '', progress = 0, lease_until = 0, worker = '',
	lane = 0, dispatch = dispatch + 1, dispatched_at = now_micros()`

// Yield gives a run back to the queue because its worker is going away; nothing counts as a failure. ErrStale: not the caller's any more.
func (s *Store) Yield(ctx context.Context, id string, fence int64) (dispatch int64, err error) {
	err = s.db.WriteRow(ctx, func(row *sql.Row) error { return row.Scan(&dispatch) },
		backToQueue+`, run_at = now_micros() WHERE id = $1 AND fence = $2 AND status = 'processing' RETURNING dispatch`, id, fence)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, ErrStale
	}
	if err != nil {
		return 0, fmt.Errorf("yield job: %w", err)
	}
	return dispatch, nil
}

// settle runs a transaction that ends the run. When the answer to COMMIT is lost, or an earlier try's was, the row tells whether it happened.
func (s *Store) settle(ctx context.Context, id string, fence int64, want Status, transaction func() error) error {
	err := certainly(transaction)
	if !errors.Is(err, ErrStale) {
		return err
	}
	var status Status
	var finished int64
	if readErr := s.db.QueryRowContext(ctx, `SELECT status, finished_fence FROM jobs WHERE id = $1`, id).Scan(&status, &finished); readErr != nil {
		return fmt.Errorf("%w: read how the run ended: %w", db.ErrUncertain, readErr)
	}
	if status == want && finished == fence {
		return nil
	}
	return err
}

// ended is what ending a row tells: whose place in flight is free now, and which objects nothing needs any more.
type ended struct {
	id, account    string
	media          engine.Media
	source, prefix string
}

const endedColumns = "id, account_id, media, source_object, results_prefix"

// endRow runs an UPDATE that ends one job. ErrStale when it changes none.
func endRow(ctx context.Context, tx *sql.Tx, query string, args ...any) (ended, error) {
	var e ended
	err := tx.QueryRowContext(ctx, query, args...).Scan(&e.id, &e.account, &e.media, &e.source, &e.prefix)
	if errors.Is(err, sql.ErrNoRows) {
		return ended{}, ErrStale
	}
	if err != nil {
		return ended{}, fmt.Errorf("end job: %w", err)
	}
	return e, nil
}

// undo refunds a job that ended without a result and gives up everything it stored.
func (e ended) undo(ctx context.Context, tx *sql.Tx) error {
	if _, err := billing.Release(ctx, tx, e.id); err != nil {
		return err
	}
	if err := addGarbage(ctx, tx, lostFenceGrace, e.source, e.prefix); err != nil {
		return err
	}
	if e.media == engine.Video {
		if err := forgetRows(e.id).Run(ctx, tx); err != nil {
			return err
		}
	}
	if _, err := tx.ExecContext(ctx, `UPDATE accounts SET `+freePlace(e.media)+` WHERE id = $1`, e.account); err != nil {
		return fmt.Errorf("free place in flight: %w", err)
	}
	return nil
}

// freePlace is the assignment to an account's row that gives one of its places in flight back.
func freePlace(media engine.Media) string {
	column := activeColumn(media)
	return column + " = " + column + " - 1"
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// changeOne runs an UPDATE that must change one row; ErrStale when it changes none.
func changeOne(ctx context.Context, on execer, query string, args ...any) error {
	result, err := on.ExecContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("update job: %w", err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return fmt.Errorf("update job: %w", err)
	}
	if n == 0 {
		return ErrStale
	}
	return nil
}
