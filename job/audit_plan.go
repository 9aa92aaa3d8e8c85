package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"enlarger/billing"
	"enlarger/db"
)

// auditAgain is how soon an audit is due again whose process died in the middle of it.
const auditAgain = time.Hour

// AuditReport is what the last audit found that a process of the fleet did by itself.
type AuditReport struct {
	// FinishedAt is zero before the first.
	FinishedAt time.Time
	Took       time.Duration
	// Broken is how many rows break each rule, at most 100 each. Rules that hold are not in it.
	Broken map[string]int
}

// PlanAudit makes sure that an audit is due within every: the fleet's first after a random part of it, so that fleets that are started together
// do not audit together. Any process may call it, at any time.
func (s *Store) PlanAudit(ctx context.Context, every time.Duration) error {
	_, err := s.db.ExecContext(ctx, `INSERT INTO audits (id, due_at) VALUES ('books', now_micros() + $1)
		ON CONFLICT (id) DO UPDATE SET due_at = now_micros() + $2 WHERE audits.due_at > now_micros() + $2`,
		rand.Int64N(max(every.Microseconds(), 1)), every.Microseconds())
	if err != nil {
		return fmt.Errorf("plan audit: %w", err)
	}
	return nil
}

// TakeAudit says whether an audit is due, and gives it to one caller of the fleet. One that never calls FileAudit is due again after an hour, or every
// if that is sooner.
func (s *Store) TakeAudit(ctx context.Context, every time.Duration) (mine bool, err error) {
	err = changeOne(ctx, s.db, `UPDATE audits SET due_at = now_micros() + $1 WHERE id = 'books' AND due_at <= now_micros()`, min(every, auditAgain).Microseconds())
	if errors.Is(err, ErrStale) {
		return false, nil
	}
	return err == nil, err
}

// FileAudit writes down what an audit found, and when the next is due.
func (s *Store) FileAudit(ctx context.Context, found []billing.Violation, took, every time.Duration) error {
	broken := map[string]int{}
	for _, v := range found {
		broken[v.Rule]++
	}
	text, err := json.Marshal(broken)
	if err != nil {
		return fmt.Errorf("file audit: %w", err)
	}
	return changeOne(ctx, s.db, `UPDATE audits SET due_at = now_micros() + $1, finished_at = now_micros(), took = $2, broken = $3 WHERE id = 'books'`,
		every.Microseconds(), took.Microseconds(), string(text))
}

// LastAudit reads what the fleet's last audit found; the zero report when there was none.
func (s *Store) LastAudit(ctx context.Context) (AuditReport, error) {
	var finished, took int64
	var broken string
	err := s.db.QueryRowContext(ctx, `SELECT finished_at, took, broken FROM audits WHERE id = 'books'`).Scan(&finished, &took, &broken)
	if errors.Is(err, sql.ErrNoRows) {
		return AuditReport{}, nil
	}
	if err != nil {
		return AuditReport{}, fmt.Errorf("read audit: %w", err)
	}
	report := AuditReport{FinishedAt: db.Time(finished), Took: time.Duration(took) * time.Microsecond}
	if err := json.Unmarshal([]byte(broken), &report.Broken); err != nil {
		return AuditReport{}, fmt.Errorf("read audit: %w", err)
	}
	return report, nil
}
