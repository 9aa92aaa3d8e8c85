package billing

import (
	"context"
	"fmt"
	"time"

	"enlarger/db"
)

// Entry is one line of an account's ledger: what a step added to its credits.
type Entry struct {
	ID string
	// Step is grant, reserve, confirm or release.
	Step string
	// Reference is the job's id, or a grant's own reference.
	Reference string
	// Balance, Frozen and Used are the changes; they add up to what Ledger.Balance says.
	Balance, Frozen, Used Millicredits
	Note                  string
	CreatedAt             time.Time
}

// EntryFilter narrows Entries. Zero fields match everything.
type EntryFilter struct {
	// Reference is a job's id, or a grant's own reference.
	Reference string
	// AfterTime and AfterID are the last entry of the page before.
	AfterTime time.Time
	AfterID   string
	// Limit is 1 to 100.
	Limit int
}

// Entries reads an account's ledger, newest first.
func (l *Ledger) Entries(ctx context.Context, accountID string, f EntryFilter) ([]Entry, error) {
	before := int64(1<<63 - 1)
	if f.AfterID != "" {
		before = db.Micros(f.AfterTime)
	}
	rows, err := l.db.QueryContext(ctx, `SELECT id, step, hold_id, posted, frozen, used, note, created_at FROM entries
		WHERE account_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3)) AND ($4 = '' OR hold_id = $4)
		ORDER BY created_at DESC, id DESC LIMIT $5`, accountID, before, f.AfterID, f.Reference, min(max(f.Limit, 1), 100))
	if err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	defer rows.Close()
	entries := []Entry{}
	for rows.Next() {
		var e Entry
		var posted Millicredits
		var created int64
		if err := rows.Scan(&e.ID, &e.Step, &e.Reference, &posted, &e.Frozen, &e.Used, &e.Note, &created); err != nil {
			return nil, fmt.Errorf("read ledger: %w", err)
		}
		e.Balance, e.CreatedAt = posted-e.Frozen, db.Time(created)
		entries = append(entries, e)
	}
	return entries, rows.Err()
}
