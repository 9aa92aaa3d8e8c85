package billing

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"enlarger/db"
	"enlarger/testbed"
)

func TestMain(m *testing.M) {
	// The flags on the command line win.
	if err := flag.Set("rapid.checks", checks); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

// eachDB runs a test on both databases, freshly migrated.
func eachDB(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) {
		t.Parallel()
		test(t, openDB(t, "sqlite:"+filepath.Join(t.TempDir(), "test.db")))
	})
	t.Run("postgres", func(t *testing.T) {
		t.Parallel()
		test(t, openDB(t, testbed.PostgreSQL(t)))
	})
}

func openDB(t *testing.T, url string) *db.DB {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
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
