// Package account keeps accounts and their API keys. A key's secret exists once, in the answer to its creation; the
// database has its SHA-256 only.
package account

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"enlarger/db"
)

// Errors that callers tell apart.
var (
	// ErrInvalidKey: missing, malformed, unknown or revoked.
	ErrInvalidKey = errors.New("invalid API key")
	// ErrSuspended: a good key on a suspended account.
	ErrSuspended = errors.New("account is suspended")
	// ErrNotFound: no such account or key.
	ErrNotFound = errors.New("not found")
)

// Account is one customer.
type Account struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
	// MaxImage and MaxVideo cap the jobs in flight, RateLimit the requests a minute and key; 0 means the server's default.
	MaxImage  int       `json:"max_image"`
	MaxVideo  int       `json:"max_video"`
	RateLimit int       `json:"rate_limit"`
	CreatedAt time.Time `json:"created_at"`
}

// Key is one API key, without its secret.
type Key struct {
	ID        string    `json:"id"`
	AccountID string    `json:"account_id"`
	Name      string    `json:"name"`
	Status    string    `json:"status"`
	Prefix    string    `json:"prefix"`
	LastUsed  time.Time `json:"last_used,omitzero"`
	CreatedAt time.Time `json:"created_at"`
	RevokedAt time.Time `json:"revoked_at,omitzero"`
}

// Store reads and writes accounts and keys.
type Store struct {
	db *db.DB
}

// NewStore makes a store on the database.
func NewStore(d *db.DB) *Store { return &Store{db: d} }

const maxNameRunes = 100

func checkName(name string) error {
	if n := utf8.RuneCountInString(name); n == 0 || n > maxNameRunes || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("name must be 1 to %d printable characters", maxNameRunes)
	}
	return nil
}

// Create makes an account without credits.
func (s *Store) Create(ctx context.Context, name string) (Account, error) {
	if err := checkName(name); err != nil {
		return Account{}, err
	}
	return scanAccount(s.db.QueryRowContext(ctx,
		`INSERT INTO accounts (id, name, created_at) VALUES ($1, $2, now_micros()) RETURNING `+accountColumns, "acc_"+randomHex(16), name))
}

const accountColumns = "id, name, status, max_image, max_video, rate_limit, created_at"

type scanner interface{ Scan(...any) error }

func scanAccount(row scanner) (Account, error) {
	var a Account
	var created int64
	err := row.Scan(&a.ID, &a.Name, &a.Status, &a.MaxImage, &a.MaxVideo, &a.RateLimit, &created)
	if errors.Is(err, sql.ErrNoRows) {
		return Account{}, fmt.Errorf("account: %w", ErrNotFound)
	}
	if err != nil {
		return Account{}, fmt.Errorf("read account: %w", err)
	}
	a.CreatedAt = db.Time(created)
	return a, nil
}

// Get reads one account.
func (s *Store) Get(ctx context.Context, id string) (Account, error) {
	return scanAccount(s.db.QueryRowContext(ctx, `SELECT `+accountColumns+` FROM accounts WHERE id = $1`, id))
}

// List reads up to 1,000 accounts, oldest first.
func (s *Store) List(ctx context.Context) ([]Account, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+accountColumns+` FROM accounts ORDER BY created_at, id LIMIT 1000`)
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	defer rows.Close()
	var list []Account
	for rows.Next() {
		a, err := scanAccount(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, rows.Err()
}

// SetStatus makes an account active or suspended.
func (s *Store) SetStatus(ctx context.Context, id, status string) error {
	if status != "active" && status != "suspended" {
		return fmt.Errorf("status must be active or suspended")
	}
	return changeOne(ctx, s.db, `UPDATE accounts SET status = $2 WHERE id = $1`, id, status)
}

// SetLimits sets the account's own caps; 0 is the server's default.
func (s *Store) SetLimits(ctx context.Context, id string, maxImage, maxVideo, rateLimit int) error {
	if min(maxImage, maxVideo, rateLimit) < 0 {
		return fmt.Errorf("limits must not be negative")
	}
	return changeOne(ctx, s.db, `UPDATE accounts SET max_image = $2, max_video = $3, rate_limit = $4 WHERE id = $1`, id, maxImage, maxVideo, rateLimit)
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// changeOne runs an UPDATE of one account; ErrNotFound when there is no such account.
func changeOne(ctx context.Context, on execer, query string, args ...any) error {
	result, err := on.ExecContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("update account: %w", err)
	}
	if n, err := result.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, ErrNotFound)
	}
	return nil
}

// A secret is sk_live_ and 32 characters of [a-z0-9]: 26 random ones (134 bits) and 6 of checksum, so that a typing
// error is refused without a look-up.
const (
	keyPrefix   = "sk_live_"
	alphabet    = "abcdefghijklmnopqrstuvwxyz0123456789"
	randomChars = 26
	checkChars  = 6
	secretChars = len(keyPrefix) + randomChars + checkChars
	// shownChars of a secret identify it in lists: sk_live_a1b2.
	shownChars = len(keyPrefix) + 4
)

func checksum(body string) string {
	sum := crc32.ChecksumIEEE([]byte(body))
	out := make([]byte, checkChars)
	for i := range out {
		out[i] = alphabet[sum%uint32(len(alphabet))]
		sum /= uint32(len(alphabet))
	}
	return string(out)
}

func newSecret() string {
	// Bytes past the last multiple of 36 are dropped, so that every character is equally likely.
	const fair = 256 - 256%len(alphabet)
	body := make([]byte, 0, randomChars)
	var b [64]byte
	for len(body) < randomChars {
		rand.Read(b[:])
		for _, c := range b {
			if int(c) < fair && len(body) < randomChars {
				body = append(body, alphabet[int(c)%len(alphabet)])
			}
		}
	}
	return keyPrefix + string(body) + checksum(string(body))
}

// wellFormed says whether a text can be a secret of ours.
func wellFormed(secret string) bool {
	body, ok := strings.CutPrefix(secret, keyPrefix)
	if !ok || len(secret) != secretChars || strings.Trim(body, alphabet) != "" {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(body[randomChars:]), []byte(checksum(body[:randomChars]))) == 1
}

func hashOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// maxKeys bounds the active keys of one account.
const maxKeys = 100

// CreateKey makes a key and returns its secret, which is never to be had again.
func (s *Store) CreateKey(ctx context.Context, accountID, name string) (Key, string, error) {
	if err := checkName(name); err != nil {
		return Key{}, "", err
	}
	secret := newSecret()
	var key Key
	err := s.db.InTx(ctx, func(tx *sql.Tx) error {
		// Writing the account's row makes parallel creations count one after the other.
		if err := changeOne(ctx, tx, `UPDATE accounts SET name = name WHERE id = $1`, accountID); err != nil {
			return err
		}
		var active int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM api_keys WHERE account_id = $1 AND status = 'active'`, accountID).Scan(&active); err != nil {
			return fmt.Errorf("count keys: %w", err)
		}
		if active >= maxKeys {
			return fmt.Errorf("the account has %d active keys already; revoke one first", active)
		}
		var err error
		key, err = scanKey(tx.QueryRowContext(ctx, `INSERT INTO api_keys (id, account_id, name, hash, prefix, created_at)
			VALUES ($1, $2, $3, $4, $5, now_micros()) RETURNING `+keyColumns,
			"key_"+randomHex(8), accountID, name, hashOf(secret), secret[:shownChars]))
		return err
	})
	if err != nil {
		return Key{}, "", err
	}
	return key, secret, nil
}

const keyColumns = "id, account_id, name, status, prefix, last_used, created_at, revoked_at"

func scanKey(row scanner) (Key, error) {
	var k Key
	var used, created, revoked int64
	err := row.Scan(&k.ID, &k.AccountID, &k.Name, &k.Status, &k.Prefix, &used, &created, &revoked)
	if errors.Is(err, sql.ErrNoRows) {
		return Key{}, fmt.Errorf("key: %w", ErrNotFound)
	}
	if err != nil {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	k.LastUsed, k.CreatedAt, k.RevokedAt = db.Time(used), db.Time(created), db.Time(revoked)
	return k, nil
}

// Keys lists an account's keys, oldest first, revoked ones too, up to 1,000.
func (s *Store) Keys(ctx context.Context, accountID string) ([]Key, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+keyColumns+` FROM api_keys WHERE account_id = $1 ORDER BY created_at, id LIMIT 1000`, accountID)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	defer rows.Close()
	var list []Key
	for rows.Next() {
		k, err := scanKey(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, k)
	}
	return list, rows.Err()
}

// RevokeKey ends a key of the account, at once and for good. Revoking it again changes nothing.
func (s *Store) RevokeKey(ctx context.Context, accountID, keyID string) (Key, error) {
	return scanKey(s.db.QueryRowContext(ctx, `UPDATE api_keys SET status = 'revoked',
		revoked_at = CASE WHEN revoked_at = 0 THEN now_micros() ELSE revoked_at END
		WHERE id = $1 AND account_id = $2 RETURNING `+keyColumns, keyID, accountID))
}

// usedEvery bounds how often last_used is written.
const usedEvery = time.Minute

// Authenticate finds the account and key of a secret. It returns ErrInvalidKey, ErrSuspended, or a database error.
func (s *Store) Authenticate(ctx context.Context, secret string) (Account, Key, error) {
	if !wellFormed(secret) {
		return Account{}, Key{}, ErrInvalidKey
	}
	var a Account
	var k Key
	var used, now int64
	// The look-up is by the hash of a 134-bit random secret, so its timing tells nothing that helps to guess one.
	err := s.db.QueryRowContext(ctx, `SELECT a.id, a.name, a.status, a.max_image, a.max_video, a.rate_limit,
		k.id, k.account_id, k.name, k.status, k.prefix, k.last_used, now_micros()
		FROM api_keys k JOIN accounts a ON a.id = k.account_id WHERE k.hash = $1`, hashOf(secret)).
		Scan(&a.ID, &a.Name, &a.Status, &a.MaxImage, &a.MaxVideo, &a.RateLimit, &k.ID, &k.AccountID, &k.Name, &k.Status, &k.Prefix, &used, &now)
	switch {
	case errors.Is(err, sql.ErrNoRows) || (err == nil && k.Status != "active"):
		return Account{}, Key{}, ErrInvalidKey
	case err != nil:
		return Account{}, Key{}, fmt.Errorf("look up key: %w", err)
	case a.Status != "active":
		return Account{}, Key{}, ErrSuspended
	}
	k.LastUsed = db.Time(used)
	if now-used >= usedEvery.Microseconds() {
		if _, err := s.db.ExecContext(ctx, `UPDATE api_keys SET last_used = $2 WHERE id = $1 AND last_used = $3`, k.ID, now, used); err != nil {
			return Account{}, Key{}, fmt.Errorf("note key use: %w", err)
		}
	}
	return a, k, nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return hex.EncodeToString(b)
}
