package billing

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"

	"enlarger/db"
)

// ErrInsufficient means that the account's available credits do not cover the amount.
var ErrInsufficient = errors.New("insufficient credits")

// ErrHoldEnded means that the job's hold was confirmed or released already: the caller lost a race it should have been fenced from.
var ErrHoldEnded = errors.New("the hold has ended")

// ErrHeld means that the job holds credits already, from an earlier run.
var ErrHeld = errors.New("the job holds credits already")

// Ledger reads and grants credits. The steps of a job (Reserving, Confirming, Release) run in the job's own transaction.
type Ledger struct {
	db *db.DB
}

// NewLedger makes a ledger on the database.
func NewLedger(d *db.DB) *Ledger { return &Ledger{db: d} }

// Balance is an account's credits. Granted = Balance + Frozen + Used, always.
type Balance struct {
	Balance Millicredits `json:"balance"`
	Used    Millicredits `json:"used"`
	Frozen  Millicredits `json:"frozen"`
}

// Balance reads an account's credits; sql.ErrNoRows when there is no such account.
func (l *Ledger) Balance(ctx context.Context, accountID string) (Balance, error) {
	var posted int64
	var b Balance
	err := l.db.QueryRowContext(ctx, `SELECT posted, frozen, used FROM accounts WHERE id = $1`, accountID).Scan(&posted, &b.Frozen, &b.Used)
	if err != nil {
		return Balance{}, fmt.Errorf("read balance: %w", err)
	}
	b.Balance = Millicredits(posted) - b.Frozen
	return b, nil
}

// ErrReference means that a grant's reference was used before for another account or amount.
var ErrReference = errors.New("the reference was used for a different grant")

// maxGranted bounds what an account is granted in its whole life, far from overflow.
const maxGranted = 1000 * maxAmount

// Grant adds credits to an account, or takes available ones away when the amount is negative. reference makes it safe to
// repeat: a second grant of the same amount with the same reference changes nothing; "" makes a new one. Errors:
// ErrInsufficient, ErrReference, sql.ErrNoRows when there is no such account.
func (l *Ledger) Grant(ctx context.Context, accountID string, amount Millicredits, reference, note string) error {
	if amount == 0 || amount > maxAmount || amount < -maxAmount {
		return fmt.Errorf("grant: amount must be between -%v and %v credits and not 0", maxAmount, maxAmount)
	}
	if reference == "" {
		reference = "grant_" + randomHex()
	}
	return l.db.InTx(ctx, func(tx *sql.Tx) error {
		added, err := addEntry(ctx, tx, entry{account: accountID, hold: reference, step: "grant", posted: amount, note: note})
		if db.Code(err) == "foreign_key" {
			return fmt.Errorf("grant: account %s: %w", accountID, sql.ErrNoRows)
		}
		if err != nil {
			return err
		}
		if !added {
			return sameGrant(ctx, tx, accountID, amount, reference)
		}
		none := ErrInsufficient
		if amount > 0 {
			none = fmt.Errorf("grant: an account takes at most %v credits in its life", maxGranted)
		}
		return changeOne(ctx, tx, none, `UPDATE accounts SET posted = posted + $2 WHERE id = $1 AND posted + $2 >= frozen AND posted + used + $2 <= $3`,
			accountID, amount, maxGranted)
	})
}

// sameGrant returns nil when the grant that has the reference is the one asked for.
func sameGrant(ctx context.Context, tx *sql.Tx, accountID string, amount Millicredits, reference string) error {
	var account string
	var posted Millicredits
	err := tx.QueryRowContext(ctx, `SELECT account_id, posted FROM entries WHERE hold_id = $1 AND step = 'grant'`, reference).Scan(&account, &posted)
	if err != nil {
		return fmt.Errorf("read grant: %w", err)
	}
	if account != accountID || posted != amount {
		return fmt.Errorf("grant %q: %w", reference, ErrReference)
	}
	return nil
}

// Reserving are the steps that freeze the amount for a job of the account, once its own row has been locked by an earlier step.
// Errors: ErrInsufficient, and ErrHeld when the job holds credits already.
func Reserving(jobID, accountID string, amount Millicredits) []db.Step {
	return []db.Step{
		{What: "insert hold", None: ErrHeld, Args: []any{jobID, accountID, amount}, SQL: `INSERT INTO holds (job_id, account_id, amount, state, created_at)
			VALUES ($1, $2, $3, 'held', now_micros()) ON CONFLICT (job_id) DO NOTHING`},
		entry{account: accountID, hold: jobID, step: "reserve", frozen: amount}.adding(ErrHoldEnded),
		{
			What: "freeze credits", None: ErrInsufficient, Args: []any{accountID, amount},
			SQL: `UPDATE accounts SET frozen = frozen + $2 WHERE id = $1 AND posted - frozen >= $2`,
		},
	}
}

// Held reads the amount of a job's open hold: a job that runs again keeps it, and its first measured price with it. ErrHoldEnded when it is
// open no more.
func Held(ctx context.Context, tx *sql.Tx, jobID string) (Millicredits, error) {
	amount, state, err := readHold(ctx, tx, jobID)
	if err == nil && state != "held" {
		err = ErrHoldEnded
	}
	return amount, err
}

func readHold(ctx context.Context, tx *sql.Tx, jobID string) (amount Millicredits, state string, err error) {
	err = tx.QueryRowContext(ctx, `SELECT amount, state FROM holds WHERE job_id = $1`, jobID).Scan(&amount, &state)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, "", nil
	}
	if err != nil {
		return 0, "", fmt.Errorf("read hold: %w", err)
	}
	return amount, state, nil
}

// Confirming are the steps that turn the job's hold into a charge: ErrHoldEnded when there is no open hold. also is one more assignment to the
// account's row, which is written anyway, such as "active_image = active_image - 1".
func Confirming(jobID, also string) []db.Step {
	return []db.Step{
		{
			What: "end hold", None: ErrHoldEnded, Args: []any{jobID},
			SQL: `UPDATE holds SET state = 'confirmed', ended_at = now_micros() WHERE job_id = $1 AND state = 'held'`,
		},
		{What: "insert confirm entry", None: ErrHoldEnded, Args: []any{newEntryID(), jobID}, SQL: `INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, created_at)
			SELECT $1, account_id, job_id, 'confirm', -amount, -amount, amount, now_micros() FROM holds WHERE job_id = $2 ON CONFLICT (hold_id, step) DO NOTHING`},
		{What: "charge account", None: ErrHoldEnded, Args: []any{jobID}, SQL: `UPDATE accounts
			SET posted = posted - h.amount, frozen = frozen - h.amount, used = used + h.amount, ` + also + ` FROM holds h WHERE h.job_id = $1 AND accounts.id = h.account_id`},
	}
}

// Release gives the job's frozen credits back. A job that holds nothing, or whose hold was released already, is no error:
// 0 is released.
func Release(ctx context.Context, tx *sql.Tx, jobID string) (Millicredits, error) {
	var account string
	var amount Millicredits
	err := tx.QueryRowContext(ctx, `UPDATE holds SET state = 'released', ended_at = now_micros() WHERE job_id = $1 AND state = 'held'
		RETURNING account_id, amount`, jobID).Scan(&account, &amount)
	if errors.Is(err, sql.ErrNoRows) {
		if _, state, err := readHold(ctx, tx, jobID); err != nil || state == "confirmed" {
			return 0, errors.Join(err, ErrHoldEnded)
		}
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("end hold: %w", err)
	}
	if _, err := addEntry(ctx, tx, entry{account: account, hold: jobID, step: "release", frozen: -amount}); err != nil {
		return 0, err
	}
	return amount, changeOne(ctx, tx, ErrHoldEnded, `UPDATE accounts SET frozen = frozen - $2 WHERE id = $1`, account, amount)
}

type entry struct {
	account, hold, step  string
	posted, frozen, used Millicredits
	note                 string
}

// adding is the step that writes one line of the ledger; none when the hold has that line already.
func (e entry) adding(none error) db.Step {
	return db.Step{
		What: "insert " + e.step + " entry", None: none, SQL: `INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, note, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, now_micros()) ON CONFLICT (hold_id, step) DO NOTHING`,
		Args: []any{newEntryID(), e.account, e.hold, e.step, e.posted, e.frozen, e.used, e.note},
	}
}

// addEntry writes one line of the ledger; false when the hold has that step already.
func addEntry(ctx context.Context, tx *sql.Tx, e entry) (added bool, err error) {
	err = e.adding(ErrHoldEnded).Run(ctx, tx)
	if errors.Is(err, ErrHoldEnded) && e.step == "grant" {
		return false, nil
	}
	return err == nil, err
}

func newEntryID() string { return "ent_" + randomHex() }

// changeOne runs an UPDATE that must change one row; otherwise it returns none.
func changeOne(ctx context.Context, tx *sql.Tx, none error, query string, args ...any) error {
	result, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return fmt.Errorf("update account: %w", err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return fmt.Errorf("update account: %w", err)
	}
	if n != 1 {
		return none
	}
	return nil
}

func randomHex() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}
