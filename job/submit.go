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
	if sub.Source.Kind == SourceUpload {
		upload, err := s.openUpload(ctx, sub.AccountID, sub.Source.UploadID)
		if err != nil {
			return Job{}, s.replayed(ctx, sub.AccountID, sub.Idempotency, err)
		}
		sub.Source.Object, sub.Source.Size = upload.Object, upload.Size
	}
	var created Job
	insert, err := insertion(sub, &created)
	if err != nil {
		return Job{}, err
	}
	steps := s.binding(sub.AccountID, sub.Idempotency)
	if sub.Source.Kind == SourceUpload {
		steps = append(steps, consumption(sub))
	}
	err = s.db.Batch(ctx, append(steps, placing(sub), insert)...)
	switch {
	case errors.Is(err, errBound):
		return Job{}, s.replayed(ctx, sub.AccountID, sub.Idempotency, ErrIdempotencyBusy)
	case errors.Is(err, errConsumed):
		if _, err := s.openUpload(ctx, sub.AccountID, sub.Source.UploadID); err != nil {
			return Job{}, err
		}
		return Job{}, ErrUploadConsumed
	case err != nil:
		return Job{}, bindError(err)
	}
	return created, nil
}

// insertion is the step that writes the row. Its lane follows from how many jobs its account has in flight: one that has few is served before
// one that floods.
func insertion(sub Submission, created *Job) (db.Step, error) {
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
			return db.Step{}, fmt.Errorf("encode job: %w", err)
		}
		texts = append(texts, string(text))
	}
	return db.Step{
		What: "insert job",
		SQL: `INSERT INTO jobs (id, account_id, key_id, tool, media, config, format, hint, warnings, metadata, estimate,
			source_kind, source_url, source_object, source_ready, source_size, upload_id, results_prefix, status, run_at, dispatched_at, created_at, lane)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, 'queued', now_micros(), now_micros(), $19,
			(SELECT CASE WHEN ` + activeColumn(sub.Order.Tool.Media) + fmt.Sprintf(` <= %d THEN 0 WHEN `, laneFew) + activeColumn(sub.Order.Tool.Media) + fmt.Sprintf(` <= %d THEN 1 ELSE 2 END
			FROM accounts WHERE id = $2)) RETURNING `, laneSome) + columns,
		Args: []any{
			sub.ID, sub.AccountID, sub.KeyID, sub.Order.Tool.Name, sub.Order.Tool.Media, string(sub.Order.Canonical), sub.Order.Format,
			texts[0], texts[1], texts[2], sub.Estimate, sub.Source.Kind, sub.Source.URL, sub.Source.Object, sub.Source.Ready, sub.Source.Size,
			sub.Source.UploadID, sub.ResultsPrefix, db.Micros(sub.CreatedAt),
		},
		Into: func(row db.Row) (err error) {
			*created, err = scan(row)
			return err
		},
	}, nil
}

// An account's jobs in flight up to which a new one goes to lane 0, and to lane 1.
const (
	laneFew  = 1
	laneSome = 8
)

// placing is the step that counts the job in flight and checks the balance: the UPDATE itself enforces the cap, so that parallel submits cannot
// pass it together.
func placing(sub Submission) db.Step {
	column := activeColumn(sub.Order.Tool.Media)
	return db.Step{
		What: "count job in flight", None: ErrConcurrency, Args: []any{sub.AccountID, sub.MaxActive},
		SQL: `UPDATE accounts SET ` + column + ` = ` + column + ` + 1 WHERE id = $1 AND ` + column + ` < $2 RETURNING posted - frozen`,
		Into: func(row db.Row) error {
			var available billing.Millicredits
			if err := row.Scan(&available); err != nil {
				return err
			}
			return affordable(sub.Estimate, available)
		},
	}
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

// Why a submission must look again at what it found taken.
var (
	errBound    = errors.New("idempotency key is bound")
	errConsumed = errors.New("upload is not open")
)

// binding are the steps that insert the idempotency key. A twin in flight makes the INSERT wait for its transaction, on PostgreSQL up to
// idempotencyWait; SQLite has one writer at a time anyway.
func (s *Store) binding(accountID string, id Idempotency) (steps []db.Step) {
	if id.Key == "" {
		return nil
	}
	const what = "bind idempotency key"
	patience := func(value string) {
		if s.db.Postgres() {
			steps = append(steps, db.Step{What: what, SQL: "SET LOCAL lock_timeout = " + value})
		}
	}
	patience(fmt.Sprintf("'%dms'", idempotencyWait.Milliseconds()))
	steps = append(steps,
		db.Step{What: what, SQL: `DELETE FROM idempotency WHERE account_id = $1 AND key = $2 AND expires_at <= now_micros()`, Args: []any{accountID, id.Key}},
		db.Step{What: what, None: errBound, Args: []any{accountID, id.Key, id.Fingerprint, id.Status, string(id.Body), idempotencyLife.Microseconds()},
			SQL: `INSERT INTO idempotency (account_id, key, fingerprint, status, body, expires_at)
			VALUES ($1, $2, $3, $4, $5, now_micros() + $6) ON CONFLICT (account_id, key) DO NOTHING`})
	patience("DEFAULT")
	return steps
}

// replayed is the answer to a request whose key is bound: what Replay says, or otherwise when the key turns out to be free.
func (s *Store) replayed(ctx context.Context, accountID string, id Idempotency, otherwise error) error {
	if id.Key == "" {
		return otherwise
	}
	if err := s.Replay(ctx, accountID, id.Key, id.Fingerprint); err != nil {
		return err
	}
	return otherwise
}

func bindError(err error) error {
	const lockNotAvailable = "55P03"
	if db.Code(err) == lockNotAvailable {
		return ErrIdempotencyBusy
	}
	return err
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
