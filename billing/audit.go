package billing

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"enlarger/db"
)

// Violation is one broken rule of the books, with the row that breaks it.
type Violation struct {
	Rule string `json:"rule"`
	// Row is the account, hold or job that breaks it.
	Row    string `json:"row"`
	Detail string `json:"detail"`
}

// Rule is a rule of the books with the query that finds the rows that break it: it selects a row's name and a detail.
type Rule struct {
	Name, Query string
}

// maxViolations bounds what one rule reports.
const maxViolations = 100

var rules = []Rule{
	{"an account's credits are the sum of its entries", `
		SELECT a.id, 'posted ' || a.posted || ' frozen ' || a.frozen || ' used ' || a.used || ' but entries say ' || s.posted || ' ' || s.frozen || ' ' || s.used
		FROM accounts a JOIN (
			SELECT a2.id AS id, COALESCE(SUM(e.posted), 0) AS posted, COALESCE(SUM(e.frozen), 0) AS frozen, COALESCE(SUM(e.used), 0) AS used
			FROM accounts a2 LEFT JOIN entries e ON e.account_id = a2.id GROUP BY a2.id) s ON s.id = a.id
		WHERE a.posted <> s.posted OR a.frozen <> s.frozen OR a.used <> s.used`},
	{"0 <= frozen <= posted", `SELECT id, 'posted ' || posted || ' frozen ' || frozen FROM accounts WHERE frozen < 0 OR frozen > posted`},
	{"frozen is the sum of the open holds", `
		SELECT a.id, 'frozen ' || a.frozen || ' but open holds say ' || s.held
		FROM accounts a JOIN (
			SELECT a2.id AS id, COALESCE(SUM(h.amount), 0) AS held
			FROM accounts a2 LEFT JOIN holds h ON h.account_id = a2.id AND h.state = 'held' GROUP BY a2.id) s ON s.id = a.id
		WHERE a.frozen <> s.held`},
	{"a hold's entries tell its state", `
		SELECT h.job_id, h.state || ' of ' || h.amount
		FROM holds h
		LEFT JOIN entries r ON r.hold_id = h.job_id AND r.step = 'reserve'
		LEFT JOIN entries c ON c.hold_id = h.job_id AND c.step = 'confirm'
		LEFT JOIN entries l ON l.hold_id = h.job_id AND l.step = 'release'
		WHERE r.id IS NULL OR r.frozen <> h.amount OR r.account_id <> h.account_id OR c.account_id <> h.account_id OR l.account_id <> h.account_id
			OR (h.state = 'confirmed') <> (c.id IS NOT NULL) OR (h.state = 'released') <> (l.id IS NOT NULL)
			OR (c.id IS NOT NULL AND c.used <> h.amount) OR (l.id IS NOT NULL AND l.frozen <> -h.amount)`},
	{"every entry but a grant belongs to a hold", `
		SELECT e.id, e.step FROM entries e LEFT JOIN holds h ON h.job_id = e.hold_id WHERE e.step <> 'grant' AND h.job_id IS NULL`},
}

// Rules names what Audit checks.
func Rules() []string { return Names(rules) }

// Names lists the names of rules.
func Names(rules []Rule) (names []string) {
	for _, r := range rules {
		names = append(names, r.Name)
	}
	return names
}

// Audit recomputes every account from its entries and holds and returns what does not agree; empty means clean.
func (l *Ledger) Audit(ctx context.Context) ([]Violation, error) { return Check(ctx, l.db, rules) }

// ruleTimeout bounds one rule on PostgreSQL: it reads whole tables, which takes longer than any other statement may.
const ruleTimeout = 10 * time.Minute

// Check runs rules and collects what breaks them, at most 100 rows a rule. It only reads. Each rule is one statement, so that it sees one moment
// of a fleet at work. What was found before an error is returned with it.
func Check(ctx context.Context, on *db.DB, rules []Rule) ([]Violation, error) {
	var found []Violation
	for _, r := range rules {
		broken, err := r.check(ctx, on)
		if err != nil {
			return found, fmt.Errorf("audit %q: %w", r.Name, err)
		}
		found = append(found, broken...)
	}
	return found, nil
}

func (r Rule) check(ctx context.Context, on *db.DB) ([]Violation, error) {
	tx, err := on.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer tx.Rollback() //nolint:errcheck // nothing was written
	if on.Postgres() {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", ruleTimeout.Milliseconds())); err != nil {
			return nil, err
		}
	}
	rows, err := tx.QueryContext(ctx, r.Query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var broken []Violation
	for rows.Next() && len(broken) < maxViolations {
		v := Violation{Rule: r.Name}
		if err := rows.Scan(&v.Row, &v.Detail); err != nil {
			return nil, err
		}
		broken = append(broken, v)
	}
	return broken, rows.Err()
}

// Totals are the credits of all accounts together.
type Totals struct {
	Accounts                int64
	Available, Frozen, Used Millicredits
}

// Totals adds up all accounts' credits.
func (l *Ledger) Totals(ctx context.Context) (Totals, error) {
	var t Totals
	err := l.db.QueryRowContext(ctx, `SELECT COUNT(*), CAST(COALESCE(SUM(posted - frozen), 0) AS BIGINT), CAST(COALESCE(SUM(frozen), 0) AS BIGINT),
		CAST(COALESCE(SUM(used), 0) AS BIGINT) FROM accounts`).Scan(&t.Accounts, &t.Available, &t.Frozen, &t.Used)
	if err != nil {
		return Totals{}, fmt.Errorf("add up credits: %w", err)
	}
	return t, nil
}
