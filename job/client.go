package job

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"enlarger/db"
	"enlarger/engine"
)

// Get reads a job of the account that has not been deleted. ErrNotFound for any other.
func (s *Store) Get(ctx context.Context, accountID, id string) (Job, error) {
	return scan(s.db.QueryRowContext(ctx, `SELECT `+columns+` FROM jobs WHERE jobs.id = $1 AND jobs.account_id = $2 AND jobs.deleted_at = 0`, id, accountID))
}

// Filter narrows List. Zero fields match everything.
type Filter struct {
	Status Status
	Tool   string
	Media  engine.Media
	// CreatedAfter and CreatedBefore bound the time of creation.
	CreatedAfter, CreatedBefore time.Time
	// After is the last job of the page before: its time of creation and id.
	AfterTime time.Time
	AfterID   string
	// Limit is 1 to 100.
	Limit int
}

// List reads an account's jobs, newest first.
func (s *Store) List(ctx context.Context, accountID string, f Filter) ([]Job, error) {
	query := strings.Builder{}
	query.WriteString(`SELECT ` + columns + ` FROM jobs WHERE jobs.account_id = $1 AND jobs.deleted_at = 0`)
	args := []any{accountID}
	where := func(condition string, values ...any) {
		for _, v := range values {
			args = append(args, v)
			condition = strings.Replace(condition, "?", fmt.Sprintf("$%d", len(args)), 1)
		}
		query.WriteString(" AND " + condition)
	}
	if f.Status != "" {
		where("jobs.status = ?", f.Status)
	}
	if f.Tool != "" {
		where("jobs.tool = ?", f.Tool)
	}
	if f.Media != "" {
		where("jobs.media = ?", f.Media)
	}
	if !f.CreatedAfter.IsZero() {
		where("jobs.created_at >= ?", db.Micros(f.CreatedAfter))
	}
	if !f.CreatedBefore.IsZero() {
		where("jobs.created_at < ?", db.Micros(f.CreatedBefore))
	}
	if f.AfterID != "" {
		where("(jobs.created_at, jobs.id) < (?, ?)", db.Micros(f.AfterTime), f.AfterID)
	}
	query.WriteString(fmt.Sprintf(" ORDER BY jobs.created_at DESC, jobs.id DESC LIMIT %d", min(max(f.Limit, 1), 100)))
	rows, err := s.db.QueryContext(ctx, query.String(), args...)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	defer rows.Close()
	jobs := []Job{}
	for rows.Next() {
		j, err := scan(rows)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	}
	return jobs, rows.Err()
}

// Cancel ends a job that has not ended: final at once, with the refund in the same transaction. wasProcessing tells that a
// worker may be busy with it. Errors: ErrNotFound, ErrNotCancelable.
func (s *Store) Cancel(ctx context.Context, accountID, id string) (wasProcessing bool, err error) {
	err = s.db.InTx(ctx, func(tx *sql.Tx) error {
		wasProcessing, err = cancel(ctx, tx, accountID, id)
		return err
	})
	return wasProcessing, err
}

func cancel(ctx context.Context, tx *sql.Tx, accountID, id string) (wasProcessing bool, err error) {
	// Two UPDATEs rather than one, so that the old status is known without a read that could be outdated. A job claimed between them
	// is caught by the second.
	for _, status := range []Status{Queued, Processing, Queued} {
		e, err := endRow(ctx, tx, `UPDATE jobs SET status = 'canceled', phase = '', lease_until = 0, worker = '', finished_at = now_micros(), finished_fence = fence
			WHERE id = $1 AND account_id = $2 AND status = $3 AND deleted_at = 0 RETURNING `+endedColumns, id, accountID, status)
		if errors.Is(err, ErrStale) {
			continue
		}
		if err != nil {
			return false, err
		}
		return status == Processing, e.undo(ctx, tx)
	}
	var found bool
	err = tx.QueryRowContext(ctx, `SELECT TRUE FROM jobs WHERE id = $1 AND account_id = $2 AND deleted_at = 0`, id, accountID).Scan(&found)
	if errors.Is(err, sql.ErrNoRows) {
		return false, ErrNotFound
	}
	if err != nil {
		return false, fmt.Errorf("read job: %w", err)
	}
	return false, ErrNotCancelable
}

// Deleted is what Delete leaves to do: objects to remove now (a name that ends in / is a prefix), and a worker to tell.
type Deleted struct {
	Objects       []string
	WasProcessing bool
}

// Delete cancels the job when it is in progress, then takes its content away; the ledger keeps its rows. Deleting again
// is no error. ErrNotFound for a job that never was the account's.
func (s *Store) Delete(ctx context.Context, accountID, id string) (Deleted, error) {
	var d Deleted
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		d = Deleted{}
		var deleted bool
		err := tx.QueryRowContext(ctx, `SELECT deleted_at > 0 FROM jobs WHERE id = $1 AND account_id = $2`, id, accountID).Scan(&deleted)
		if errors.Is(err, sql.ErrNoRows) {
			return ErrNotFound
		}
		if err != nil {
			return fmt.Errorf("read job: %w", err)
		}
		if deleted {
			return nil
		}
		if d.WasProcessing, err = cancel(ctx, tx, accountID, id); err != nil && !errors.Is(err, ErrNotCancelable) {
			return err
		}
		e, err := endRow(ctx, tx, `UPDATE jobs SET deleted_at = now_micros(), source_ready = FALSE, source_url = '', metadata = '{}', hint = '{}', config = '{}',
				warnings = '[]', result_object = '', result = CASE WHEN status = 'succeeded' THEN '{}' ELSE '' END
			WHERE id = $1 AND account_id = $2 AND deleted_at = 0 RETURNING `+endedColumns, id, accountID)
		if errors.Is(err, ErrStale) {
			return nil // a twin deleted it between the read and here
		}
		if err != nil {
			return err
		}
		d.Objects = []string{e.source, e.prefix}
		return addGarbage(ctx, tx, lostFenceGrace, d.Objects...)
	})
	return d, err
}
