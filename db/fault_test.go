package db_test

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"enlarger/db"
	"enlarger/testbed"
)

// through gives a DSN whose connections pass a proxy.
func through(t *testing.T, dsn string) (string, *testbed.Proxy) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy := testbed.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	return u.String(), proxy
}

func unavailable(t *testing.T, when string, err error) {
	t.Helper()
	if !db.Unavailable(err) {
		t.Errorf("%s: %v (code %q) does not say unavailable", when, err, db.Code(err))
	}
}

// select1 checks that the database serves again.
func select1(t *testing.T, d *db.DB) {
	t.Helper()
	testbed.Until(t, 30*time.Second, "the database to serve again", func() bool {
		var n int
		return d.QueryRowContext(t.Context(), "SELECT 1").Scan(&n) == nil
	})
}

func TestServerStopped(t *testing.T) {
	t.Parallel()
	server := testbed.Postgres(t)
	d := migrated(t, open(t, server.Database(t)))
	for _, stop := range []struct {
		name string
		end  func()
	}{{"stopped", server.Stop}, {"killed", server.Kill}} {
		// A statement under way, one on an idle connection, and one that must connect.
		asleep, down := make(chan error, 1), make(chan struct{})
		go func() {
			_, err := d.ExecContext(t.Context(), "SELECT pg_sleep(60) /* under way */")
			asleep <- err
		}()
		testbed.Until(t, 30*time.Second, "the statement to be under way", func() bool {
			return count(t, d, "SELECT COUNT(*) FROM pg_stat_activity WHERE query LIKE '%under way%' AND query NOT LIKE '%pg_stat%' AND state = 'active'") == 1
		})
		err := d.InTx(t.Context(), func(tx *sql.Tx) error {
			stop.end()
			close(down)
			_, err := tx.Exec("SELECT 1")
			return err
		})
		<-down
		unavailable(t, stop.name+", in a transaction", err)
		unavailable(t, stop.name+", under way", <-asleep)
		for range 4 {
			_, err := d.ExecContext(t.Context(), "SELECT 1")
			unavailable(t, stop.name+", new statement", err)
		}
		unavailable(t, stop.name+", Migrated", d.Migrated(t.Context()))
		if _, err := db.Open(t.Context(), db.Config{URL: "postgres://" + server.Addr() + "/x?sslmode=disable"}); !db.Unavailable(err) {
			t.Errorf("%s, open: %v", stop.name, err)
		}
		server.Start(t)
		select1(t, d)
	}
}

func TestServerCutOrSilent(t *testing.T) {
	t.Parallel()
	dsn, proxy := through(t, testbed.PostgreSQL(t))
	d := open(t, dsn)
	err := d.InTx(t.Context(), func(tx *sql.Tx) error {
		proxy.Cut()
		_, err := tx.Exec("SELECT 1")
		return err
	})
	unavailable(t, "cut in a transaction", err)
	if errors.Is(err, db.ErrUncertain) {
		t.Error("no COMMIT was sent, yet its outcome is called unknown")
	}
	for range 3 {
		_, err := d.ExecContext(t.Context(), "SELECT 1")
		unavailable(t, "cut", err)
	}
	proxy.Heal()
	select1(t, d)
	proxy.Stall()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = d.ExecContext(ctx, "SELECT 1")
	unavailable(t, "silent", err)
	proxy.Heal()
	select1(t, d)
}

// The answer to COMMIT is lost. Whether it happened is unknown to the caller, and InTx says exactly that: here once it has
// happened (the answer is cut) and once it has not (the COMMIT itself is cut).
func TestCommitUncertain(t *testing.T) {
	t.Parallel()
	commitUncertain(t, func(ctx context.Context, d *db.DB, tried func(), query string) error {
		return d.InTx(ctx, func(tx *sql.Tx) error {
			tried()
			_, err := tx.Exec(query)
			return err
		})
	})
}

func TestBatchCommitUncertain(t *testing.T) {
	t.Parallel()
	commitUncertain(t, func(ctx context.Context, d *db.DB, tried func(), query string) error {
		tried()
		return d.Batch(ctx, db.Step{What: "insert", SQL: query})
	})
}

func commitUncertain(t *testing.T, write func(ctx context.Context, d *db.DB, tried func(), query string) error) {
	direct := testbed.PostgreSQL(t)
	dsn, proxy := through(t, direct)
	d, watch := open(t, dsn), open(t, direct)
	exec(t, d, "CREATE TABLE notes (n BIGINT)")
	// A deferred trigger holds the COMMIT up while the advisory lock is taken.
	exec(t, d, `CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$`)
	exec(t, d, `CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON notes DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)

	lock, err := watch.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if _, err := lock.ExecContext(t.Context(), "SELECT pg_advisory_lock(1)"); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	tries := 0
	go func() {
		result <- write(t.Context(), d, func() { tries++ }, "INSERT INTO notes VALUES (1)")
	}()
	testbed.Until(t, 30*time.Second, "the COMMIT to be under way", func() bool {
		return count(t, watch, "SELECT COUNT(*) FROM pg_stat_activity WHERE query = 'commit' AND wait_event = 'advisory'") == 1
	})
	proxy.Cut()
	err = <-result
	if !errors.Is(err, db.ErrUncertain) || tries != 1 {
		t.Errorf("the answer is cut: %v after %d tries, want ErrUncertain and no second try", err, tries)
	}
	unavailable(t, "the answer is cut", err)
	if _, err := lock.ExecContext(t.Context(), "SELECT pg_advisory_unlock(1)"); err != nil {
		t.Fatal(err)
	}
	testbed.Until(t, 30*time.Second, "the COMMIT to happen after all", func() bool { return count(t, watch, "SELECT COUNT(*) FROM notes") == 1 })

	proxy.Heal()
	select1(t, d)
	err = d.InTx(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO notes VALUES (2)")
		proxy.CutAfter(0) // with the first byte of the COMMIT
		return err
	})
	if !errors.Is(err, db.ErrUncertain) {
		t.Errorf("the COMMIT is cut: %v, want ErrUncertain", err)
	}
	if n := count(t, watch, "SELECT COUNT(*) FROM notes"); n != 1 {
		t.Errorf("%d notes, want 1", n)
	}
}

// A SQLite file whose disk fails is unavailable, not a wrong statement.
func TestSQLiteUnavailable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "test.db")
	d := open(t, "sqlite:"+path)
	exec(t, d, "CREATE TABLE notes (n TEXT)")
	exec(t, d, "PRAGMA max_page_count = 4")
	var err error
	for i := 0; i < 100 && err == nil; i++ {
		err = d.InTx(t.Context(), func(tx *sql.Tx) error {
			if _, err := tx.Exec("PRAGMA max_page_count = 4"); err != nil {
				return err
			}
			_, err := tx.Exec("INSERT INTO notes VALUES ($1)", strings.Repeat("x", 4096))
			return err
		})
	}
	unavailable(t, "full", err)
	if errors.Is(err, db.ErrUncertain) {
		t.Error("a full disk answers for sure")
	}
	folder := filepath.Join(t.TempDir(), "a folder")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	_, err = db.Open(t.Context(), db.Config{URL: "sqlite:" + folder})
	unavailable(t, "no file", err)
}
