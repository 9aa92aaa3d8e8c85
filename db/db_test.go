package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"enlarger/db"
	"enlarger/testbed"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// eachDB runs a test on both databases, empty.
func eachDB(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	for name, url := range map[string]func(*testing.T) string{
		"sqlite":   func(t *testing.T) string { return "sqlite:" + filepath.Join(t.TempDir(), "test.db") },
		"postgres": func(t *testing.T) string { return testbed.PostgreSQL(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t, url(t)))
		})
	}
}

func open(t *testing.T, url string) *db.DB {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// migrated is open with the schema in place.
func migrated(t *testing.T, d *db.DB) *db.DB {
	t.Helper()
	if err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

func exec(t *testing.T, d *db.DB, query string, args ...any) {
	t.Helper()
	if _, err := d.ExecContext(t.Context(), query, args...); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, d *db.DB, query string, args ...any) (n int) {
	t.Helper()
	if err := d.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		err := d.Migrated(t.Context())
		if err == nil || !strings.Contains(err.Error(), "enlarger migrate") {
			t.Errorf("an empty database: %v, want the command that mends it", err)
		}
		for range 2 {
			migrated(t, d)
			if err := d.Migrated(t.Context()); err != nil {
				t.Error(err)
			}
		}
		if n := count(t, d, "SELECT COUNT(*) FROM accounts"); n != 0 {
			t.Errorf("%d accounts", n)
		}
		exec(t, d, "DELETE FROM goose_db_version WHERE version_id > 0")
		if err := d.Migrated(t.Context()); err == nil || !strings.Contains(err.Error(), "enlarger migrate") {
			t.Errorf("an old database: %v, want the command that mends it", err)
		}
	})
}

func TestMigrateInParallel(t *testing.T) {
	t.Parallel()
	for name, url := range map[string]string{
		"sqlite": "sqlite:" + filepath.Join(t.TempDir(), "a folder?with #odd %20 name.db"), "postgres": testbed.PostgreSQL(t),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var all sync.WaitGroup
			for range 6 {
				d := open(t, url) // each as another process would
				all.Go(func() {
					if err := d.Migrate(t.Context()); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if err := open(t, url).Migrated(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// A migration may take longer than a statement may: the processes that wait for it wait on.
func TestMigrateWaitsLongerThanAStatement(t *testing.T) {
	t.Parallel()
	dsn := testbed.PostgreSQL(t)
	other, err := open(t, dsn).Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.ExecContext(t.Context(), "SELECT pg_advisory_lock(7236155)"); err != nil {
		t.Fatal(err)
	}
	d, err := db.Open(t.Context(), db.Config{URL: dsn, StatementTimeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	done := make(chan error, 1)
	go func() { done <- d.Migrate(t.Context()) }()
	select {
	case err := <-done:
		t.Fatalf("migrated under another's lock: %v", err)
	case <-time.After(600 * time.Millisecond):
	}
	if _, err := other.ExecContext(t.Context(), "SELECT pg_advisory_unlock(7236155)"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	_, err = d.ExecContext(t.Context(), "SELECT pg_sleep(5)")
	if !db.Unavailable(err) || db.Code(err) != "57014" {
		t.Errorf("after Migrate a statement is bounded again: %v", err)
	}
	// The server frees it when it sees the session end; pg_locks shows other tests' databases too.
	testbed.Until(t, 20*time.Second, "the migration lock to be free", func() bool {
		return count(t, d, `SELECT COUNT(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7236155
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"", "mysql://x", "data.db", "sqlite", "postgres://[::1", "sqlite:/no/such/folder/x.db"} {
		if d, err := db.Open(t.Context(), db.Config{URL: url}); err == nil {
			d.Close()
			t.Errorf("opened %q", url)
		}
	}
}

func TestClock(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		migrated(t, d)
		var last int64
		for range 50 {
			var now int64
			if err := d.QueryRowContext(t.Context(), "SELECT now_micros()").Scan(&now); err != nil {
				t.Fatal(err)
			}
			if now < last {
				t.Errorf("the clock went back from %d to %d", last, now)
			}
			last = now
		}
		if away := time.Since(db.Time(last)).Abs(); away > time.Hour {
			t.Errorf("the clock is %v away: not microseconds since 1970", away)
		}
		// Within a transaction the clock goes on.
		err := d.InTx(t.Context(), func(tx *sql.Tx) error {
			var first, next int64
			if err := tx.QueryRow("SELECT now_micros()").Scan(&first); err != nil {
				return err
			}
			for next = first; next == first; {
				if err := tx.QueryRow("SELECT now_micros()").Scan(&next); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// What is due is found by an index on PostgreSQL too, where a VOLATILE clock would read the whole table.
func TestClockUsesIndex(t *testing.T) {
	t.Parallel()
	d := migrated(t, open(t, testbed.PostgreSQL(t)))
	err := d.InTx(t.Context(), func(tx *sql.Tx) error {
		if _, err := tx.Exec("SET LOCAL enable_seqscan = off"); err != nil {
			return err
		}
		rows, err := tx.Query("EXPLAIN SELECT * FROM idempotency WHERE expires_at <= now_micros()")
		if err != nil {
			return err
		}
		defer rows.Close()
		plan := ""
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return err
			}
			plan += line + "\n"
		}
		if !strings.Contains(plan, "Index Cond: (expires_at <=") {
			t.Errorf("plan:\n%s", plan)
		}
		return rows.Err()
	})
	if err != nil {
		t.Error(err)
	}
}

func TestCodes(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		migrated(t, d)
		exec(t, d, "INSERT INTO accounts (id, name, created_at) VALUES ('a', 'a', 1)")
		for _, c := range []struct {
			query, code string
		}{
			{"INSERT INTO accounts (id, name, created_at) VALUES ('a', 'again', 1)", "unique"},
			{"INSERT INTO accounts (id, name, created_at, posted) VALUES ('b', 'b', 1, -1)", "check"},
			{"UPDATE accounts SET frozen = 1", "check"},
			{"INSERT INTO api_keys (id, account_id, name, hash, prefix, created_at) VALUES ('k', 'nobody', 'k', 'h', 'p', 1)", "foreign_key"},
		} {
			_, err := d.ExecContext(t.Context(), c.query)
			wrapped := fmt.Errorf("wrapped: %w", err)
			if db.Code(wrapped) != c.code || db.Unavailable(wrapped) {
				t.Errorf("%s: %v has code %q, want %q", c.query, err, db.Code(wrapped), c.code)
			}
		}
		_, err := d.ExecContext(t.Context(), "SELECT * FROM no_such_table")
		if err == nil || db.Code(err) == "" || db.Unavailable(err) {
			t.Errorf("a wrong statement: %v has code %q, unavailable %v", err, db.Code(err), db.Unavailable(err))
		}
	})
	if db.Code(nil) != "" || db.Code(errors.New("x")) != "" || db.Unavailable(nil) || db.Unavailable(errors.New("x")) || db.Unavailable(sql.ErrNoRows) {
		t.Error("an error that is not the database's")
	}
}

func TestInTx(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		exec(t, d, "CREATE TABLE notes (n BIGINT)")
		add := func(tx *sql.Tx) error {
			_, err := tx.Exec("INSERT INTO notes VALUES (1)")
			return err
		}
		if err := d.InTx(t.Context(), add); err != nil {
			t.Fatal(err)
		}
		mine := errors.New("mine")
		if err := d.InTx(t.Context(), func(tx *sql.Tx) error { return errors.Join(add(tx), mine) }); !errors.Is(err, mine) {
			t.Errorf("f's own error: %v", err)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is lost")
				}
			}()
			_ = d.InTx(t.Context(), func(tx *sql.Tx) error {
				if err := add(tx); err != nil {
					return err
				}
				panic("mine")
			})
		}()
		// A caller that goes away in time for the COMMIT not to be sent knows that nothing happened.
		ctx, cancel := context.WithCancelCause(t.Context())
		err := d.InTx(ctx, func(tx *sql.Tx) error {
			defer cancel(mine)
			return add(tx)
		})
		if !errors.Is(err, mine) || errors.Is(err, db.ErrUncertain) || db.Unavailable(err) {
			t.Errorf("canceled before the commit: %v", err)
		}
		if err := d.InTx(ctx, add); err == nil || errors.Is(err, db.ErrUncertain) {
			t.Errorf("canceled before the beginning: %v", err)
		}
		if n := count(t, d, "SELECT COUNT(*) FROM notes"); n != 1 {
			t.Errorf("%d notes, want the committed one", n)
		}
	})
}

// A statement that failed leaves a PostgreSQL transaction that cannot commit; when f hides that, InTx still tells, and is sure.
func TestInTxHiddenFailure(t *testing.T) {
	t.Parallel()
	d := open(t, testbed.PostgreSQL(t))
	err := d.InTx(t.Context(), func(tx *sql.Tx) error {
		_, _ = tx.Exec("SELECT 1/0")
		return nil
	})
	if err == nil || errors.Is(err, db.ErrUncertain) {
		t.Errorf("got %v, want a plain error", err)
	}
}

// Two transactions that lock each other out: the database ends one, InTx runs it again, and both happen.
func TestInTxRetriesDeadlock(t *testing.T) {
	t.Parallel()
	d := open(t, testbed.PostgreSQL(t))
	exec(t, d, "CREATE TABLE pair (id BIGINT PRIMARY KEY, n BIGINT NOT NULL)")
	exec(t, d, "INSERT INTO pair VALUES (1, 0), (2, 0)")
	var first, both sync.WaitGroup
	var tries [2]int
	first.Add(2)
	for i, order := range [][2]int{{1, 2}, {2, 1}} {
		both.Go(func() {
			err := d.InTx(t.Context(), func(tx *sql.Tx) error {
				tries[i]++
				if _, err := tx.Exec("UPDATE pair SET n = n + 1 WHERE id = $1", order[0]); err != nil {
					return err
				}
				if tries[i] == 1 {
					first.Done()
					first.Wait()
				}
				_, err := tx.Exec("UPDATE pair SET n = n + 1 WHERE id = $1", order[1])
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	// One more try at least; a busy machine may let the one that tries again in before the other wakes up, and lock both out anew.
	if n := count(t, d, "SELECT SUM(n) FROM pair"); n != 4 || tries[0]+tries[1] < 3 {
		t.Errorf("sum %d after %v tries, want 4 after 3 or more", n, tries)
	}
}

func TestInTxGivesUp(t *testing.T) {
	t.Parallel()
	d := open(t, testbed.PostgreSQL(t))
	tries := 0
	err := d.InTx(t.Context(), func(tx *sql.Tx) error {
		tries++
		_, err := tx.Exec("DO $$ BEGIN RAISE EXCEPTION 'always' USING ERRCODE = '40001'; END $$")
		return err
	})
	if db.Code(err) != "40001" || !db.Unavailable(err) || tries != 5 {
		t.Errorf("%v after %d tries, want 40001 after 5", err, tries)
	}
}

// Sixteen writers, half in transactions and half outside, through two handles as two processes would: no write is refused.
func TestSQLiteParallelWriters(t *testing.T) {
	t.Parallel()
	url := "sqlite:" + filepath.Join(t.TempDir(), "test.db")
	handles := []*db.DB{open(t, url), open(t, url)}
	exec(t, handles[0], "CREATE TABLE counter (n BIGINT NOT NULL)")
	exec(t, handles[0], "INSERT INTO counter VALUES (0)")
	const writers, writes = 16, 25
	var all sync.WaitGroup
	for i := range writers {
		d := handles[i/2%2]
		all.Go(func() {
			for range writes {
				add := func(tx *sql.Tx) error {
					var n int
					return tx.QueryRow("UPDATE counter SET n = n + 1 RETURNING n").Scan(&n)
				}
				var err error
				if i%2 == 0 {
					err = d.InTx(t.Context(), add)
				} else {
					_, err = d.ExecContext(t.Context(), "UPDATE counter SET n = n + 1")
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	if n := count(t, handles[1], "SELECT n FROM counter"); n != writers*writes {
		t.Errorf("counted %d, want %d", n, writers*writes)
	}
}

// A writer that waits for its turn hears when its caller goes away.
func TestSQLiteWaitEnds(t *testing.T) {
	t.Parallel()
	const write = "CREATE TABLE never (n BIGINT)"
	for name, try := range map[string]func(context.Context, *db.DB) error{
		"transaction": func(ctx context.Context, d *db.DB) error { return d.InTx(ctx, func(*sql.Tx) error { return nil }) },
		"statement":   func(ctx context.Context, d *db.DB) error { _, err := d.ExecContext(ctx, write); return err },
		"row": func(ctx context.Context, d *db.DB) error {
			return d.WriteRow(ctx, func(row *sql.Row) error { return row.Err() }, write)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := open(t, "sqlite:"+filepath.Join(t.TempDir(), "test.db"))
			gone := errors.New("the caller is gone")
			err := d.InTx(t.Context(), func(*sql.Tx) error {
				ctx, cancel := context.WithCancelCause(t.Context())
				cancel(gone)
				return try(ctx, d)
			})
			if !errors.Is(err, gone) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestMicros(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 22, 10, 0, 0, 123456000, time.FixedZone("x", 3600))
	if back := db.Time(db.Micros(at)); !back.Equal(at) || back.Location() != time.UTC {
		t.Errorf("%v became %v", at, back)
	}
	if db.Micros(time.Time{}) != 0 || !db.Time(0).IsZero() {
		t.Error("no time is not 0")
	}
}
