package job

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"enlarger/db"
)

// Upload is a client's permission to put one file into storage, once.
type Upload struct {
	ID, AccountID string
	// Object is the file's key in the bucket.
	Object                string
	FileName, ContentType string
	// Size is what the client declared in bytes; 0 is nothing.
	Size                 int64
	Consumed             bool
	CreatedAt, ExpiresAt time.Time
}

// CreateUpload writes a new upload and binds its idempotency key. Errors as Submit.
func (s *Store) CreateUpload(ctx context.Context, u Upload, id Idempotency) error {
	err := s.db.Batch(ctx, append(s.binding(u.AccountID, id), db.Step{
		What: "insert upload",
		SQL:  `INSERT INTO uploads (id, account_id, object, file_name, content_type, size, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		Args: []any{u.ID, u.AccountID, u.Object, u.FileName, u.ContentType, u.Size, db.Micros(u.CreatedAt), db.Micros(u.ExpiresAt)},
	})...)
	if errors.Is(err, errBound) {
		return s.replayed(ctx, u.AccountID, id, ErrIdempotencyBusy)
	}
	return bindError(err)
}

// CheckUpload returns ErrUploadNotFound, ErrUploadConsumed or ErrUploadExpired for an upload that a job cannot use.
func (s *Store) CheckUpload(ctx context.Context, accountID, id string) error {
	_, err := s.openUpload(ctx, accountID, id)
	return err
}

// openUpload reads where an upload that a job may use lies, and how large it was declared to be. Errors as CheckUpload.
func (s *Store) openUpload(ctx context.Context, accountID, id string) (u Upload, err error) {
	var status string
	var expired bool
	err = s.db.QueryRowContext(ctx, `SELECT status, expires_at <= now_micros(), object, size FROM uploads WHERE id = $1 AND account_id = $2`, id, accountID).
		Scan(&status, &expired, &u.Object, &u.Size)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return u, ErrUploadNotFound
	case err != nil:
		return u, fmt.Errorf("read upload: %w", err)
	case status == "consumed":
		return u, ErrUploadConsumed
	case expired || status != "open":
		return u, ErrUploadExpired
	}
	return u, nil
}

// consumption is the step that binds the upload to its one job.
func consumption(sub Submission) db.Step {
	return db.Step{What: "consume upload", None: errConsumed, Args: []any{sub.Source.UploadID, sub.AccountID, sub.ID},
		SQL: `UPDATE uploads SET status = 'consumed', job_id = $3 WHERE id = $1 AND account_id = $2 AND status = 'open' AND expires_at > now_micros()`}
}
