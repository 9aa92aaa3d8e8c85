// Package db opens the database, PostgreSQL or SQLite, and runs transactions on it.
//
// One SQL text serves both: placeholders are $1, $2 ..., times are microseconds since 1970 in BIGINT, money is millicredits in BIGINT, and
// now_micros() is the database's own clock, a function this package adds to either. Row locks are not used: every change is
// one conditional UPDATE. What differs between the two (error codes, the single writer of SQLite) is hidden here.
package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // registers "pgx"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

//go:embed migrations/*.sql
var migrations embed.FS

// DB is an open database.
type DB struct {
	*sql.DB
	postgres bool
	// writer admits one writer at a time on SQLite: waiting here is fair and free, while SQLite's own busy
	// handler sleeps and retries.
	writer chan struct{}
}

// Config says which database to open.
type Config struct {
	// URL is postgres://... or sqlite:PATH (a file path; created when missing).
	URL string
	// MaxConns bounds the connections; 0 means 16 for PostgreSQL and 8 for SQLite.
	MaxConns int
	// StatementTimeout bounds one statement on PostgreSQL; 0 means 15 s.
	StatementTimeout time.Duration
}

// now_micros is SQLite's copy of the function that Migrate adds to PostgreSQL. The driver keeps functions for the process,
// hence the once.
var registerClock = sync.OnceValue(func() error {
	return sqlite.RegisterScalarFunction("now_micros", 0, func(*sqlite.FunctionContext, []driver.Value) (driver.Value, error) {
		return time.Now().UnixMicro(), nil
	})
})

// Open connects. It does not migrate.
func Open(ctx context.Context, cfg Config) (*DB, error) {
	d, err := open(cfg)
	if err != nil {
		return nil, err
	}
	if err := d.PingContext(ctx); err != nil {
		d.Close()
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return d, nil
}

func open(cfg Config) (*DB, error) {
	if path, ok := strings.CutPrefix(cfg.URL, "sqlite:"); ok {
		return openSQLite(path, cfg)
	}
	if strings.HasPrefix(cfg.URL, "postgres://") || strings.HasPrefix(cfg.URL, "postgresql://") {
		return openPostgres(cfg)
	}
	return nil, fmt.Errorf("database URL must start with postgres:// or sqlite:, for example sqlite:data/enlarger.db")
}

func openSQLite(path string, cfg Config) (*DB, error) {
	if err := registerClock(); err != nil {
		return nil, fmt.Errorf("add now_micros to SQLite: %w", err)
	}
	// FULL: a confirmed charge must survive a power cut.
	options := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"journal_mode(WAL)", "synchronous(FULL)", "busy_timeout(10000)", "foreign_keys(ON)",
	}}
	handle, err := sql.Open("sqlite", "file:"+(&url.URL{Path: path}).EscapedPath()+"?"+options.Encode())
	if err != nil {
		return nil, fmt.Errorf("open SQLite: %w", err)
	}
	conns := orDefault(cfg.MaxConns, 8)
	handle.SetMaxOpenConns(conns)
	handle.SetMaxIdleConns(conns)
	return &DB{DB: handle, writer: make(chan struct{}, 1)}, nil
}

func openPostgres(cfg Config) (*DB, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("database URL: %w", err)
	}
	timeout := orDefault(cfg.StatementTimeout, 15*time.Second)
	q := u.Query()
	setDefault(q, "statement_timeout", fmt.Sprint(timeout.Milliseconds()))
	setDefault(q, "idle_in_transaction_session_timeout", fmt.Sprint(2*timeout.Milliseconds()))
	setDefault(q, "connect_timeout", "5")
	setDefault(q, "application_name", "enlarger")
	u.RawQuery = q.Encode()
	handle, err := sql.Open("pgx", u.String())
	if err != nil {
		return nil, fmt.Errorf("open PostgreSQL: %w", err)
	}
	conns := orDefault(cfg.MaxConns, 16)
	handle.SetMaxOpenConns(conns)
	handle.SetMaxIdleConns(conns)
	handle.SetConnMaxLifetime(30 * time.Minute)
	return &DB{DB: handle, postgres: true}, nil
}

func orDefault[T int | time.Duration](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

func setDefault(q url.Values, name, value string) {
	if !q.Has(name) {
		q.Set(name, value)
	}
}

// turn waits until this process may write to SQLite, and returns how to end it. On PostgreSQL nobody waits.
func (d *DB) turn(ctx context.Context) (end func(), err error) {
	if d.postgres {
		return func() {}, nil
	}
	select {
	case d.writer <- struct{}{}:
		return func() { <-d.writer }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// ExecContext runs one statement that writes. It takes its turn with the transactions: outside of it a lone UPDATE was seen to
// starve in SQLite's busy handler for seconds while others committed.
func (d *DB) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	end, err := d.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	return d.DB.ExecContext(ctx, query, args...)
}

// WriteRow is ExecContext for a statement with RETURNING; scan reads the row.
func (d *DB) WriteRow(ctx context.Context, scan func(row *sql.Row) error, query string, args ...any) error {
	end, err := d.turn(ctx)
	if err != nil {
		return err
	}
	defer end()
	return scan(d.QueryRowContext(ctx, query, args...))
}

// Postgres says whether this is PostgreSQL.
func (d *DB) Postgres() bool { return d.postgres }

// migrationLock is the advisory lock that makes parallel migrations of one database wait for each other.
const migrationLock = 7_236_155

// Migrate brings the schema up to date. Any number of processes may call it at the same time.
func (d *DB) Migrate(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	dialect := goose.DialectSQLite3
	if d.postgres {
		dialect = goose.DialectPostgres
		unlock, err := d.lockMigrations(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		// The time at which the statement arrived: STABLE, so that "due before now" can use an index.
		const clock = `CREATE OR REPLACE FUNCTION now_micros() RETURNS BIGINT LANGUAGE SQL STABLE PARALLEL SAFE AS
			$$ SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::BIGINT $$`
		if _, err := d.ExecContext(ctx, clock); err != nil {
			return fmt.Errorf("add now_micros to PostgreSQL: %w", err)
		}
	}
	provider, err := goose.NewProvider(dialect, d.DB, files)
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	var done []*goose.MigrationResult
	// SQLite has no lock to wait for. A process that loses the race for one step fails once that step is done, and goes on from there.
	for range len(provider.ListSources()) + 2 {
		if done, err = provider.Up(ctx); err == nil || d.postgres {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	if d.postgres && len(done) > 0 {
		// Room on a page for the next version of a row: rows of jobs change several times, and what changes no index stays on its page.
		if _, err := d.ExecContext(ctx, "ALTER TABLE jobs SET (fillfactor = 70)"); err != nil {
			return fmt.Errorf("migrate: %w", err)
		}
	}
	return nil
}

func (d *DB) lockMigrations(ctx context.Context) (unlock func(), err error) {
	conn, err := d.Conn(ctx)
	if err != nil {
		return nil, fmt.Errorf("migrate: %w", err)
	}
	// Another process's migration may take longer than a statement may.
	for _, query := range []string{"SET statement_timeout = 0", fmt.Sprintf("SELECT pg_advisory_lock(%d)", migrationLock)} {
		if _, err := conn.ExecContext(ctx, query); err != nil {
			conn.Close()
			return nil, fmt.Errorf("wait for other migrations: %w", err)
		}
	}
	return func() {
		//nolint:errcheck // the connection does not go back to the pool: ending its session undoes both statements above
		conn.Raw(func(any) error { return driver.ErrBadConn })
	}, nil
}

// Migrated says whether the schema is up to date; the error names the command that mends it.
func (d *DB) Migrated(ctx context.Context) error {
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return err
	}
	var done int
	err = d.QueryRowContext(ctx, "SELECT COUNT(DISTINCT version_id) FROM goose_db_version WHERE version_id > 0").Scan(&done)
	if err == nil && done >= len(names) {
		return nil
	}
	if err != nil && Unavailable(err) {
		return err
	}
	return errors.New("the database schema is missing or old: run `enlarger migrate` first")
}

// ErrUncertain wraps the error of a COMMIT whose answer was lost: the transaction may or may not have happened. Read the row to know.
var ErrUncertain = errors.New("commit outcome unknown")

// InTx runs f in one transaction and commits it when f returns nil. A serialization failure or deadlock is tried again, a few
// times, so f must not have effects outside the transaction.
func (d *DB) InTx(ctx context.Context, f func(tx *sql.Tx) error) error {
	return d.retrying(ctx, func() error { return d.inTx(ctx, f) })
}

// retrying runs a transaction again that lost against another one.
func (d *DB) retrying(ctx context.Context, transaction func() error) error {
	const tries = 5
	for try := 1; ; try++ {
		err := transaction()
		if err == nil || try == tries || !retryable(err) || ctx.Err() != nil {
			return err
		}
	}
}

func (d *DB) inTx(ctx context.Context, f func(tx *sql.Tx) error) error {
	end, err := d.turn(ctx)
	if err != nil {
		return err
	}
	defer end()
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // after a commit this is a no-op, after an error the connection says it
	if err := f(tx); err != nil {
		return err
	}
	if ctx.Err() != nil { // no COMMIT has been sent, so the outcome is sure
		return fmt.Errorf("commit: %w", context.Cause(ctx))
	}
	return commitError(tx.Commit())
}

// commitError tells the failures of COMMIT that surely undid the transaction from those that leave it open whether it happened: no answer,
// or a server that shut down around it. pgconn.SafeToRetry does not help: pgx 5.12 calls a COMMIT that it sent, and whose answer was cut, safe.
func commitError(err error) error {
	code := Code(err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return fmt.Errorf("commit: %w", err)
	case code == "", strings.HasPrefix(code, "57P"), strings.HasPrefix(code, "08"):
		return fmt.Errorf("%w: %w", ErrUncertain, err)
	}
	return fmt.Errorf("commit: %w", err)
}

// Code is the database's own code of an error: the SQLSTATE on PostgreSQL, the symbolic class on SQLite ("unique", "check", "busy", "foreign_key");
// "" when the server did not answer.
func Code(err error) string {
	if pg := (*pgconn.PgError)(nil); errors.As(err, &pg) {
		switch pg.Code {
		case "23505":
			return "unique"
		case "23514":
			return "check"
		case "23503":
			return "foreign_key"
		}
		return pg.Code
	}
	if lite := (*sqlite.Error)(nil); errors.As(err, &lite) {
		switch lite.Code() {
		case sqlite3.SQLITE_CONSTRAINT_UNIQUE, sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY:
			return "unique"
		case sqlite3.SQLITE_CONSTRAINT_CHECK:
			return "check"
		case sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
			return "foreign_key"
		}
		if lite.Code()&0xff == sqlite3.SQLITE_BUSY {
			return "busy"
		}
		return fmt.Sprintf("sqlite %d", lite.Code())
	}
	return ""
}

func retryable(err error) bool {
	switch Code(err) {
	case "40001", "40P01", "busy": // serialization failure, deadlock
		return true
	}
	return false
}

// Unavailable says whether err means that the database cannot be reached or cannot serve now, as against a wrong statement.
func Unavailable(err error) bool {
	if err == nil {
		return false
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return true
	}
	for _, gone := range []error{driver.ErrBadConn, sql.ErrConnDone, ErrUncertain, context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF} {
		if errors.Is(err, gone) {
			return true
		}
	}
	if connect := (*pgconn.ConnectError)(nil); errors.As(err, &connect) {
		return true
	}
	if lite := (*sqlite.Error)(nil); errors.As(err, &lite) {
		switch lite.Code() & 0xff { // the rest of an extended code narrows it down
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_INTERRUPT:
			return true
		}
		return false
	}
	code := Code(err)
	for _, class := range []string{"08", "53", "57P", "57014", "55P03", "40001", "40P01"} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return code == "" && pgconn.SafeToRetry(err)
}

// Micros is a time as the database keeps it: microseconds since 1970, 0 for none.
func Micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

// Time reads what Micros wrote.
func Time(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros).UTC()
}
