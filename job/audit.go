package job

import (
	"context"
	"errors"

	"enlarger/billing"
)

var rules = []billing.Rule{
	{Name: "a succeeded job is confirmed once", Query: `
		SELECT j.id, COALESCE(h.state, 'no hold') FROM jobs j LEFT JOIN holds h ON h.job_id = j.id
		WHERE j.status = 'succeeded' AND (h.state IS NULL OR h.state <> 'confirmed')`},
	{Name: "a failed or canceled job holds nothing", Query: `
		SELECT j.id, j.status || ' but ' || h.state FROM jobs j JOIN holds h ON h.job_id = j.id
		WHERE j.status IN ('failed', 'canceled') AND h.state <> 'released'`},
	{Name: "a job in progress is not settled", Query: `
		SELECT j.id, j.status || ' but ' || h.state FROM jobs j JOIN holds h ON h.job_id = j.id
		WHERE j.status IN ('queued', 'processing') AND h.state <> 'held'`},
	{Name: "a job is not worked on before its credits are reserved", Query: `
		SELECT j.id, 'phase processing without a hold' FROM jobs j LEFT JOIN holds h ON h.job_id = j.id WHERE j.phase = 'processing' AND h.job_id IS NULL`},
	{Name: "a hold belongs to a job of the same account", Query: `
		SELECT h.job_id, 'account ' || h.account_id FROM holds h LEFT JOIN jobs j ON j.id = h.job_id WHERE j.id IS NULL OR j.account_id <> h.account_id`},
	{Name: "a job ended with its last fence", Query: `
		SELECT id, 'fence ' || fence || ' finished by ' || finished_fence FROM jobs WHERE status IN ('succeeded', 'failed', 'canceled') AND finished_fence <> fence`},
	{Name: "the places in flight are counted right", Query: `
		SELECT a.id, 'says ' || a.active_image || ' images and ' || a.active_video || ' videos, has ' || s.images || ' and ' || s.videos
		FROM accounts a JOIN (
			SELECT a2.id AS id, COALESCE(SUM(CASE WHEN j.media = 'image' THEN 1 ELSE 0 END), 0) AS images,
				COALESCE(SUM(CASE WHEN j.media = 'video' THEN 1 ELSE 0 END), 0) AS videos
			FROM accounts a2 LEFT JOIN jobs j ON j.account_id = a2.id AND j.status IN ('queued', 'processing') GROUP BY a2.id) s ON s.id = a.id
		WHERE a.active_image <> s.images OR a.active_video <> s.videos`},
	{Name: "only a job in progress has segments", Query: `
		SELECT s.job_id, 'segment ' || s.number || ' of a job that is ' || COALESCE(j.status, 'unknown') FROM segments s LEFT JOIN jobs j ON j.id = s.job_id
		WHERE j.id IS NULL OR j.status NOT IN ('queued', 'processing') OR j.media <> 'video'`},
	{Name: "an upload is consumed by one job of its account", Query: `
		SELECT u.id, 'job ' || u.job_id FROM uploads u LEFT JOIN jobs j ON j.id = u.job_id AND j.upload_id = u.id AND j.account_id = u.account_id
		WHERE u.status = 'consumed' AND j.id IS NULL`},
}

// AuditRules names what Audit checks.
func AuditRules() []string { return append(billing.Rules(), billing.Names(rules)...) }

// Audit checks the books (billing) and that jobs and books tell the same story; empty means clean.
func (s *Store) Audit(ctx context.Context) ([]billing.Violation, error) {
	books, err := billing.NewLedger(s.db).Audit(ctx)
	stories, err2 := billing.Check(ctx, s.db, rules)
	return append(books, stories...), errors.Join(err, err2)
}

// Counts is the number of jobs in each status that a fleet's dashboard wants; terminal jobs are left out, for they only grow.
type Counts struct {
	Queued, Processing int
}

// Active counts the jobs in flight.
func (s *Store) Active(ctx context.Context) (Counts, error) {
	var c Counts
	err := s.db.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM jobs WHERE status = 'queued'), (SELECT COUNT(*) FROM jobs WHERE status = 'processing')`).Scan(&c.Queued, &c.Processing)
	return c, err
}
