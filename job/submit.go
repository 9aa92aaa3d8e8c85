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

// Idempotency binds a client's key to its request. The zero value binds nothing.
type Idempotency struct {
	Key string
	// Fingerprint tells one request from another.
	Fingerprint string
	// Status and Body are the answer that a replay repeats.
	Status int
	Body   []byte
}

// idempotencyLife is how long a key stays bound.
const idempotencyLife = 24 * time.Hour

// idempotencyWait is how long a twin waits for the first request of its key.
const idempotencyWait = 5 * time.Second

// Submission is a checked request for a job.
type Submission struct {
	ID, AccountID, KeyID string
	Order                *engine.Order
	Source               Source
	ResultsPrefix        string
	Estimate             billing.Millicredits
	Metadata             map[string]string
	// MaxActive caps the account's jobs in flight for this media, this one included.
	MaxActive   int
	CreatedAt   time.Time
	Idempotency Idempotency
}

// Submit writes the job as queued and, in the same transaction, binds the idempotency key, consumes the upload and takes one of the
// account's places in flight. Errors: *Replayed, ErrIdempotencyConflict, ErrIdempotencyBusy, ErrUpload..., ErrConcurrency,
// billing.ErrInsufficient.
func (s *Store) Submit(ctx context.Context, sub Submission) (Job, error) {
	var created Job
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		if err := s.bind(ctx, tx, sub.AccountID, sub.Idempotency); err != nil {
			return err
		}
		if sub.Source.Kind == SourceUpload {
			upload, err := consumeUpload(ctx, tx, sub.AccountID, sub.Source.UploadID, sub.ID)
			if err != nil {
				return err
			}
			sub.Source.Object, sub.Source.Size = upload.Object, upload.Size
		}
		var err error
		if created, err = insertJob(ctx, tx, sub); err != nil {
			return err
		}
		return takePlace(ctx, tx, sub)
	})
	if err != nil {
		return Job{}, err
	}
	return created, nil
}

func insertJob(ctx context.Context, tx *sql.Tx, sub Submission) (Job, error) {
	if sub.Metadata == nil {
		sub.Metadata = map[string]string{}
	}
	warnings := sub.Order.Warnings
	if warnings == nil {
		warnings = []string{}
	}
	texts := make([]string, 0, 3)
	for _, value := range []any{sub.Order.Hint, warnings, sub.Metadata} {
		text, err := json.Marshal(value)
		if err != nil {
			return Job{}, fmt.Errorf("encode job: %w", err)
		}
		texts = append(texts, string(text))
	}
	created, err := scan(tx.QueryRowContext(ctx, `INSERT INTO jobs (id, account_id, key_id, tool, media, config, format, hint, warnings, metadata, estimate,
			source_kind, source_url, source_object, source_ready, source_size, upload_id, results_prefix, status, run_at, dispatched_at, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, 'queued', now_micros(), now_micros(), $19) RETURNING `+columns,
		sub.ID, sub.AccountID, sub.KeyID, sub.Order.Tool.Name, sub.Order.Tool.Media, string(sub.Order.Canonical), sub.Order.Format,
		texts[0], texts[1], texts[2], sub.Estimate, sub.Source.Kind, sub.Source.URL, sub.Source.Object, sub.Source.Ready, sub.Source.Size,
		sub.Source.UploadID, sub.ResultsPrefix, db.Micros(sub.CreatedAt)))
	if err != nil {
		return Job{}, fmt.Errorf("insert job: %w", err)
	}
	return created, nil
}

// takePlace counts the job in flight and checks the balance: the UPDATE itself enforces the cap, so that parallel submits cannot
// pass it together.
func takePlace(ctx context.Context, tx *sql.Tx, sub Submission) error {
	column := activeColumn(sub.Order.Tool.Media)
	var available billing.Millicredits
	err := tx.QueryRowContext(ctx, `UPDATE accounts SET `+column+` = `+column+` + 1 WHERE id = $1 AND `+column+` < $2 RETURNING posted - frozen`,
		sub.AccountID, sub.MaxActive).Scan(&available)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrConcurrency
	}
	if err != nil {
		return fmt.Errorf("count job in flight: %w", err)
	}
	return affordable(sub.Estimate, available)
}

func affordable(estimate, available billing.Millicredits) error {
	if estimate > available || (estimate == 0 && available <= 0) {
		return billing.ErrInsufficient
	}
	return nil
}

func activeColumn(media engine.Media) string {
	if media == engine.Video {
		return "active_video"
	}
	return "active_image"
}

// Preflight says early, before a large body is read, whether Submit would refuse for the cap or the balance. Submit decides.
func (s *Store) Preflight(ctx context.Context, accountID string, media engine.Media, estimate billing.Millicredits, maxActive int) error {
	var active int
	var available billing.Millicredits
	err := s.db.QueryRowContext(ctx, `SELECT `+activeColumn(media)+`, posted - frozen FROM accounts WHERE id = $1`, accountID).Scan(&active, &available)
	if err != nil {
		return fmt.Errorf("read account: %w", err)
	}
	if active >= maxActive {
		return ErrConcurrency
	}
	return affordable(estimate, available)
}

// bind inserts the idempotency key. A twin in flight makes the INSERT wait for its transaction, on PostgreSQL up to
// idempotencyWait; SQLite has one writer at a time anyway.
func (s *Store) bind(ctx context.Context, tx *sql.Tx, accountID string, id Idempotency) error {
	if id.Key == "" {
		return nil
	}
	if s.db.Postgres() {
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("SET LOCAL lock_timeout = '%dms'", idempotencyWait.Milliseconds())); err != nil {
			return fmt.Errorf("bind idempotency key: %w", err)
		}
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM idempotency WHERE account_id = $1 AND key = $2 AND expires_at <= now_micros()`, accountID, id.Key); err != nil {
		return bindError(err)
	}
	result, err := tx.ExecContext(ctx, `INSERT INTO idempotency (account_id, key, fingerprint, status, body, expires_at)
		VALUES ($1, $2, $3, $4, $5, now_micros() + $6) ON CONFLICT (account_id, key) DO NOTHING`,
		accountID, id.Key, id.Fingerprint, id.Status, string(id.Body), idempotencyLife.Microseconds())
	if err != nil {
		return bindError(err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 1 {
		return err
	}
	err = replay(tx.QueryRowContext(ctx, `SELECT fingerprint, status, body FROM idempotency WHERE account_id = $1 AND key = $2`, accountID, id.Key), id.Fingerprint)
	if errors.Is(err, sql.ErrNoRows) {
		return ErrIdempotencyBusy // its day ended between the two statements: the next try binds it anew
	}
	return err
}

func bindError(err error) error {
	const lockNotAvailable = "55P03"
	if db.Code(err) == lockNotAvailable {
		return ErrIdempotencyBusy
	}
	return fmt.Errorf("bind idempotency key: %w", err)
}

func replay(row *sql.Row, fingerprint string) error {
	var bound, body string
	r := &Replayed{}
	if err := row.Scan(&bound, &r.Status, &body); err != nil {
		return fmt.Errorf("read idempotency key: %w", err)
	}
	if bound != fingerprint {
		return ErrIdempotencyConflict
	}
	r.Body = []byte(body)
	return r
}

// Replay looks a key up before any work is done: it returns *Replayed, ErrIdempotencyConflict, or nil when the key is free.
func (s *Store) Replay(ctx context.Context, accountID, key, fingerprint string) error {
	err := replay(s.db.QueryRowContext(ctx, `SELECT fingerprint, status, body FROM idempotency
		WHERE account_id = $1 AND key = $2 AND expires_at > now_micros()`, accountID, key), fingerprint)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	return err
}
