package billing

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"enlarger/db"
)

func TestMain(m *testing.M) {
	// The flags on the command line win.
	if err := flag.Set("rapid.checks", checks); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

var accounts atomic.Int64

// newAccount makes an account with credits.
func newAccount(t interface{ Fatal(...any) }, ctx context.Context, d *db.DB, credits Millicredits) string {
	id := fmt.Sprintf("acc_%d", accounts.Add(1))
	if _, err := d.ExecContext(ctx, "INSERT INTO accounts (id, name, created_at) VALUES ($1, 'test', now_micros())", id); err != nil {
		t.Fatal(err)
	}
	if credits != 0 {
		if err := NewLedger(d).Grant(ctx, id, credits, "", "for the test"); err != nil {
			t.Fatal(err)
		}
	}
	return id
}

func reserve(ctx context.Context, d *db.DB, job, account string, amount Millicredits) (held Millicredits, err error) {
	err = d.Batch(ctx, Reserving(job, account, amount)...)
	if !errors.Is(err, ErrHeld) {
		return amount, err
	}
	err = d.InTx(ctx, func(tx *sql.Tx) error {
		held, err = Held(ctx, tx, job)
		return err
	})
	return held, err
}

// confirm charges a job's hold, and returns its amount.
func confirm(ctx context.Context, d *db.DB, job string) (moved Millicredits, err error) {
	if err := d.Batch(ctx, Confirming(job, "active_image = active_image")...); err != nil {
		return 0, err
	}
	err = d.QueryRowContext(ctx, "SELECT amount FROM holds WHERE job_id = $1", job).Scan(&moved)
	return moved, err
}

// release gives a job's hold back.
func release(ctx context.Context, d *db.DB, job string) (moved Millicredits, err error) {
	err = d.InTx(ctx, func(tx *sql.Tx) error {
		moved, err = Release(ctx, tx, job)
		return err
	})
	return moved, err
}
