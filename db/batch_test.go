package db_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"enlarger/db"
)

var errNone = errors.New("no row")

func TestBatch(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		exec(t, d, "CREATE TABLE things (id BIGINT PRIMARY KEY, v BIGINT NOT NULL CHECK (v >= 0))")
		exec(t, d, "INSERT INTO things VALUES (1, 10)")
		insert := func(id, v int64) db.Step {
			return db.Step{What: "insert", SQL: "INSERT INTO things VALUES ($1, $2)", Args: []any{id, v}}
		}
		update := func(id, v int64) db.Step {
			return db.Step{What: "update", None: errNone, SQL: "UPDATE things SET v = v + $2 WHERE id = $1", Args: []any{id, v}}
		}
		refused := errors.New("refused by the caller")
		var got int64
		reading := func(id int64, err error) db.Step {
			return db.Step{What: "read", None: errNone, SQL: "UPDATE things SET v = v WHERE id = $1 RETURNING v", Args: []any{id}, Into: func(row db.Row) error {
				if scanErr := row.Scan(&got); scanErr != nil {
					return scanErr
				}
				return err
			}}
		}
		for i, c := range []struct {
			steps []db.Step
			check func(error) bool
			sum   int
		}{
			{nil, func(err error) bool { return err == nil }, 10},
			{[]db.Step{insert(2, 5), update(1, 7), reading(1, nil)}, func(err error) bool { return err == nil && got == 17 }, 22},
			{[]db.Step{insert(3, 5), update(9, 7)}, func(err error) bool { return errors.Is(err, errNone) }, 22},
			{[]db.Step{update(9, 7), insert(3, 5)}, func(err error) bool { return errors.Is(err, errNone) }, 22},
			{[]db.Step{insert(3, 5), reading(9, nil)}, func(err error) bool { return errors.Is(err, errNone) }, 22},
			{[]db.Step{insert(3, 5), reading(1, refused), insert(4, 5)}, func(err error) bool { return errors.Is(err, refused) }, 22},
			{[]db.Step{insert(3, 5), insert(1, 5), update(9, 1)}, func(err error) bool { return db.Code(err) == "unique" }, 22},
			{[]db.Step{insert(3, 5), update(1, -100)}, func(err error) bool { return db.Code(err) == "check" }, 22},
			{[]db.Step{insert(3, 5), {What: "nonsense", SQL: "UPDATE nothing SET x = 1"}}, func(err error) bool { return err != nil && !db.Unavailable(err) }, 22},
			{[]db.Step{insert(3, 1)}, func(err error) bool { return err == nil }, 23},
		} {
			// More often than there are connections: none may be left inside a transaction.
			for range 20 {
				if err := d.Batch(t.Context(), c.steps...); !c.check(err) {
					t.Fatalf("case %d: %v", i, err)
				}
				if c.steps != nil && i != 1 && i != 9 {
					continue
				}
				break
			}
			if sum := count(t, d, "SELECT CAST(SUM(v) AS BIGINT) FROM things"); sum != c.sum {
				t.Errorf("case %d: sum %d, want %d", i, sum, c.sum)
			}
		}
	})
}

// TestBatchEndsWithItsCaller: a batch that waits for a lock gives up when its context ends, and leaves nothing behind.
func TestBatchEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		exec(t, d, "CREATE TABLE things (id BIGINT PRIMARY KEY, v BIGINT NOT NULL)")
		exec(t, d, "INSERT INTO things VALUES (1, 10)")
		held, release := make(chan struct{}), make(chan struct{})
		var holder sync.WaitGroup
		holder.Go(func() {
			err := d.InTx(t.Context(), func(tx *sql.Tx) error {
				_, err := tx.Exec("UPDATE things SET v = 11 WHERE id = 1")
				close(held)
				<-release
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
		<-held
		ctx, stop := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer stop()
		err := d.Batch(ctx, db.Step{What: "insert", SQL: "INSERT INTO things VALUES (2, 1)"}, db.Step{What: "update", SQL: "UPDATE things SET v = 12 WHERE id = 1"})
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, db.ErrUncertain) {
			t.Errorf("%v", err)
		}
		close(release)
		holder.Wait()
		if sum := count(t, d, "SELECT CAST(SUM(v) AS BIGINT) FROM things"); sum != 11 {
			t.Errorf("sum %d, want 11", sum)
		}
	})
}

// TestBatchRetriesDeadlock has two batches that lock two rows in opposite orders: both must come through.
func TestBatchRetriesDeadlock(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		exec(t, d, "CREATE TABLE things (id BIGINT PRIMARY KEY, v BIGINT NOT NULL)")
		exec(t, d, "INSERT INTO things VALUES (1, 0), (2, 0)")
		add := func(id int) db.Step {
			return db.Step{What: "add", None: errNone, SQL: "UPDATE things SET v = v + 1 WHERE id = $1", Args: []any{id}}
		}
		const each = 40
		errs := make(chan error, 2*each)
		var all sync.WaitGroup
		for _, order := range [][]db.Step{{add(1), add(2)}, {add(2), add(1)}} {
			all.Go(func() {
				for range each {
					errs <- d.Batch(t.Context(), order...)
				}
			})
		}
		all.Wait()
		close(errs)
		for err := range errs {
			if err != nil {
				t.Error(fmt.Errorf("a batch: %w", err))
			}
		}
		if sum := count(t, d, "SELECT CAST(SUM(v) AS BIGINT) FROM things"); sum != 4*each {
			t.Errorf("sum %d, want %d", sum, 4*each)
		}
	})
}

func TestRelaxed(t *testing.T) {
	t.Parallel()
	eachDB(t, func(t *testing.T, d *db.DB) {
		exec(t, d, "CREATE TABLE things (id BIGINT PRIMARY KEY, v BIGINT NOT NULL CHECK (v >= 0))")
		exec(t, d, "INSERT INTO things VALUES (1, 10)")
		add := func(id, v int) error {
			return d.Relaxed(t.Context(), db.Step{What: "add", None: errNone, SQL: "UPDATE things SET v = v + $2 WHERE id = $1", Args: []any{id, v}})
		}
		for range 20 { // more often than there are connections
			if err := add(1, 1); err != nil {
				t.Fatal(err)
			}
			if err := add(2, 1); !errors.Is(err, errNone) {
				t.Fatalf("no row: %v", err)
			}
			if err := add(1, -100); db.Code(err) != "check" {
				t.Fatalf("a broken rule: %v", err)
			}
		}
		if n := count(t, d, "SELECT v FROM things"); n != 30 {
			t.Errorf("%d, want 30", n)
		}
		if !d.Postgres() {
			return
		}
		var mode string
		if err := d.QueryRowContext(t.Context(), "SHOW synchronous_commit").Scan(&mode); err != nil || mode != "on" {
			t.Errorf("afterwards synchronous_commit is %q, %v", mode, err)
		}
	})
}
