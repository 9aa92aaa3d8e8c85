package job

import (
	"context"
	"database/sql"
	"encoding/json"
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
	// Metadata are pairs that a job must all have.
	Metadata map[string]string
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
	for key, value := range f.Metadata {
		// The column is the compact JSON of a flat map, so a pair is in it exactly as it is encoded here, after a brace or a comma.
		pair, err := json.Marshal(map[string]string{key: value})
		if err != nil {
			return nil, fmt.Errorf("list jobs: %w", err)
		}
		text := strings.Trim(string(pair), "{}")
		where("(replace(jobs.metadata, ?, '') <> jobs.metadata OR replace(jobs.metadata, ?, '') <> jobs.metadata)", "{"+text, ","+text)
	}
	if f.AfterID != "" {
		where("(jobs.created_at, jobs.id) < (?, ?)", db.Micros(f.AfterTime), f.AfterID)
	}
	fmt.Fprintf(&query, " ORDER BY jobs.created_at DESC, jobs.id DESC LIMIT %d", min(max(f.Limit, 1), 100))
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
	status, deleted, err := touch(ctx, tx, accountID, id)
	switch {
	case err != nil:
		return false, err
	case deleted:
		return false, ErrNotFound
	case status.Terminal():
		return false, ErrNotCancelable
	}
	e, err := endRow(ctx, tx, `UPDATE jobs SET status = 'canceled', phase = '', lease_until = 0, worker = '', finished_at = now_micros(), finished_fence = fence
		WHERE id = $1 AND status IN ('queued', 'processing') RETURNING `+endedColumns, id)
	if err != nil {
		return false, err
	}
	return status == Processing, e.undo(ctx, tx)
}

// touch writes the row unchanged: what it returns is then true until the transaction ends, which a SELECT could not promise. ErrNotFound
// when the account never had such a job.
func touch(ctx context.Context, tx *sql.Tx, accountID, id string) (status Status, deleted bool, err error) {
	err = tx.QueryRowContext(ctx, `UPDATE jobs SET status = status WHERE id = $1 AND account_id = $2 RETURNING status, deleted_at > 0`, id, accountID).
		Scan(&status, &deleted)
	if errors.Is(err, sql.ErrNoRows) {
		return "", false, ErrNotFound
	}
	if err != nil {
		return "", false, fmt.Errorf("read job: %w", err)
	}
	return status, deleted, nil
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
		status, deleted, err := touch(ctx, tx, accountID, id)
		if err != nil || deleted {
			return err
		}
		if !status.Terminal() {
			if d.WasProcessing, err = cancel(ctx, tx, accountID, id); err != nil {
				return err
			}
		}
		e, err := endRow(ctx, tx, `UPDATE jobs SET deleted_at = now_micros(), source_ready = FALSE, source_url = '', metadata = '{}', hint = '{}', config = '{}',
				warnings = '[]', error_message = '', result_object = '', result = CASE WHEN status = 'succeeded' THEN '{}' ELSE '' END
			WHERE id = $1 RETURNING `+endedColumns, id)
		if err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `UPDATE uploads SET file_name = '' WHERE id = (SELECT upload_id FROM jobs WHERE id = $1)`, id); err != nil {
			return fmt.Errorf("forget file name: %w", err)
		}
		d.Objects = []string{e.source, e.prefix}
		return addGarbage(ctx, tx, lostFenceGrace, d.Objects...)
	})
	return d, err
}
