package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Row is one row to read, of either database.
type Row interface{ Scan(dest ...any) error }

// Step is one statement of a Batch. It depends on nothing that an earlier step returned to this process: what it needs of other
// rows it reads itself.
type Step struct {
	// What says what the statement does, for its errors.
	What string
	SQL  string
	Args []any
	// None is the error when the statement changes no row; nil when that is no error.
	None error
	// Into reads the row that RETURNING gives; nil for a statement without it.
	Into func(Row) error
}

// Batch runs the steps in one transaction and commits it when none of them fails. On PostgreSQL all of them travel together
// and the commit follows: two round trips, however many steps. An error undoes all; it is the first step's that failed, or ErrUncertain.
// A serialization failure or deadlock is tried again, a few times.
func (d *DB) Batch(ctx context.Context, steps ...Step) error {
	if !d.postgres {
		return d.InTx(ctx, func(tx *sql.Tx) error {
			for _, s := range steps {
				if err := s.Run(ctx, tx); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return d.retrying(ctx, func() error {
		return d.onConnection(ctx, func(pg *pgx.Conn) error { return transact(ctx, pg, steps) })
	})
}

// Relaxed runs one step that may be forgotten should PostgreSQL crash within the next second, such as a lease that was extended: nobody waits for the disk,
// and it takes one round trip. SQLite does it as ever.
func (d *DB) Relaxed(ctx context.Context, s Step) error {
	if !d.postgres {
		return d.Batch(ctx, s)
	}
	return d.onConnection(ctx, func(pg *pgx.Conn) error {
		err := exchange(ctx, pg, []Step{s}, "set local synchronous_commit = off", "commit")
		if err != nil {
			undo(ctx, pg) // the commit is there already, unless the step failed
		}
		return err
	})
}

// Run runs one step in a transaction.
func (s Step) Run(ctx context.Context, tx *sql.Tx) error {
	if s.Into != nil {
		return s.outcome(1, s.Into(tx.QueryRowContext(ctx, s.SQL, s.Args...)))
	}
	result, err := tx.ExecContext(ctx, s.SQL, s.Args...)
	if err != nil {
		return s.outcome(0, err)
	}
	n, err := result.RowsAffected()
	return s.outcome(n, err)
}

// outcome is a step's error, from what the database said.
func (s Step) outcome(changed int64, err error) error {
	switch {
	case s.None != nil && (errors.Is(err, sql.ErrNoRows) || (err == nil && changed == 0)):
		return s.None
	case err != nil:
		return fmt.Errorf("%s: %w", s.What, err)
	}
	return nil
}

// onConnection runs a transaction on one PostgreSQL connection, which is given up when it does not come back idle.
func (d *DB) onConnection(ctx context.Context, transaction func(pg *pgx.Conn) error) error {
	conn, err := d.Conn(ctx)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer conn.Close()
	var outcome error
	err = conn.Raw(func(raw any) error {
		driverConn, ok := raw.(*stdlib.Conn)
		if !ok {
			return fmt.Errorf("a connection of %T", raw)
		}
		pg := driverConn.Conn()
		outcome = transaction(pg)
		const idle = 'I'
		if pg.IsClosed() || pg.PgConn().TxStatus() != idle {
			return driver.ErrBadConn // takes it out of the pool
		}
		return nil
	})
	if outcome == nil && err != nil && !errors.Is(err, driver.ErrBadConn) {
		return fmt.Errorf("begin: %w", err)
	}
	return outcome
}

// undoFor is how long a transaction's undoing may take before its connection is given up, which undoes it too.
const undoFor = 5 * time.Second

func transact(ctx context.Context, pg *pgx.Conn, steps []Step) error {
	err := exchange(ctx, pg, steps, "", "")
	if err == nil && ctx.Err() != nil { // no COMMIT has been sent, so the outcome is sure
		err = fmt.Errorf("commit: %w", context.Cause(ctx))
	}
	if err != nil {
		undo(ctx, pg)
		return err
	}
	tag, err := pg.Exec(ctx, "commit")
	if err == nil && tag.String() == "ROLLBACK" {
		err = pgx.ErrTxCommitRollback
	}
	return commitError(err)
}

// undo rolls back. A connection on which that fails is not idle, and so is given up.
func undo(ctx context.Context, pg *pgx.Conn) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), undoFor)
	defer stop()
	_, _ = pg.Exec(ctx, "rollback")
}

// exchange begins a transaction and runs its steps in one round trip, with a statement before and one after them, if any. It takes the answers in their order, up
// to the first that is an error.
func exchange(ctx context.Context, pg *pgx.Conn, steps []Step, before, after string) error {
	batch := &pgx.Batch{}
	batch.Queue("begin")
	if before != "" {
		batch.Queue(before)
	}
	for _, s := range steps {
		batch.Queue(s.SQL, s.Args...)
	}
	if after != "" {
		batch.Queue(after)
	}
	results := pg.SendBatch(ctx, batch)
	err := answers(results, steps, before != "", after != "")
	if closeErr := results.Close(); err == nil && closeErr != nil {
		err = fmt.Errorf("begin: %w", closeErr)
	}
	return err
}

func answers(results pgx.BatchResults, steps []Step, before, after bool) error {
	control := func(there bool) error {
		if !there {
			return nil
		}
		if _, err := results.Exec(); err != nil {
			return fmt.Errorf("begin: %w", err)
		}
		return nil
	}
	if err := errors.Join(control(true), control(before)); err != nil {
		return err
	}
	for _, s := range steps {
		var err error
		if s.Into != nil {
			err = s.outcome(1, s.Into(results.QueryRow()))
		} else {
			tag, execErr := results.Exec()
			err = s.outcome(tag.RowsAffected(), execErr)
		}
		if err != nil {
			return err
		}
	}
	return control(after)
}
