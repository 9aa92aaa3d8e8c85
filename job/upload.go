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
	return s.db.InTx(ctx, func(tx *sql.Tx) error {
		if err := s.bind(ctx, tx, u.AccountID, id); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO uploads (id, account_id, object, file_name, content_type, size, created_at, expires_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			u.ID, u.AccountID, u.Object, u.FileName, u.ContentType, u.Size, db.Micros(u.CreatedAt), db.Micros(u.ExpiresAt))
		if err != nil {
			return fmt.Errorf("insert upload: %w", err)
		}
		return nil
	})
}

// CheckUpload returns ErrUploadNotFound, ErrUploadConsumed or ErrUploadExpired for an upload that a job cannot use.
func (s *Store) CheckUpload(ctx context.Context, accountID, id string) error {
	return uploadState(s.db.QueryRowContext(ctx, uploadStateSQL, id, accountID))
}

const uploadStateSQL = `SELECT status, expires_at <= now_micros() FROM uploads WHERE id = $1 AND account_id = $2`

func uploadState(row *sql.Row) error {
	var status string
	var expired bool
	switch err := row.Scan(&status, &expired); {
	case errors.Is(err, sql.ErrNoRows):
		return ErrUploadNotFound
	case err != nil:
		return fmt.Errorf("read upload: %w", err)
	case status == "consumed":
		return ErrUploadConsumed
	case expired || status != "open":
		return ErrUploadExpired
	}
	return nil
}

func consumeUpload(ctx context.Context, tx *sql.Tx, accountID, id, jobID string) (Upload, error) {
	var u Upload
	err := tx.QueryRowContext(ctx, `UPDATE uploads SET status = 'consumed', job_id = $3
		WHERE id = $1 AND account_id = $2 AND status = 'open' AND expires_at > now_micros() RETURNING object, size`,
		id, accountID, jobID).Scan(&u.Object, &u.Size)
	if errors.Is(err, sql.ErrNoRows) {
		if err := uploadState(tx.QueryRowContext(ctx, uploadStateSQL, id, accountID)); err != nil {
			return Upload{}, err
		}
		return Upload{}, ErrUploadConsumed
	}
	if err != nil {
		return Upload{}, fmt.Errorf("consume upload: %w", err)
	}
	return u, nil
}
