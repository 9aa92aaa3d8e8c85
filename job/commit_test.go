package job

import (
	"errors"
	"net/url"
	"testing"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed"
	"enlarger/testbed/databases"
)

// behind gives a world whose store reaches PostgreSQL through a proxy, and a second one beside it that does not.
func behind(t *testing.T) (far, near *world, proxy *testbed.Proxy) {
	t.Helper()
	dsn := testbed.PostgreSQL(t)
	near = newWorld(t, databases.Open(t, dsn), 10_000_000)
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	proxy = testbed.NewProxy(t, u.Host)
	u.Host = proxy.Addr()
	// One connection: a fresh one prepares its statements anew, and a cut then falls on any of them.
	d, err := db.Open(t.Context(), db.Config{URL: u.String(), MaxConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	far = &world{T: t, ctx: t.Context(), db: d, store: NewStore(d), account: near.account, catalog: near.catalog}
	return far, near, proxy
}

// F10: the COMMIT has happened and its answer is lost. Succeed reads the row again and knows.
func TestLostCommitAnswer(t *testing.T) {
	t.Parallel()
	far, near, proxy := behind(t)
	// A deferred trigger holds the COMMIT of a finished job up while the advisory lock is taken.
	near.exec(`CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$`)
	near.exec(`CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON jobs DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.finished_at > 0) EXECUTE FUNCTION wait()`)
	for _, op := range []string{"succeed", "fail"} {
		id := near.bring("processing+held")
		lock, err := near.db.Conn(near.ctx)
		near.ok(err)
		_, err = lock.ExecContext(near.ctx, "SELECT pg_advisory_lock(1)")
		near.ok(err)
		result := make(chan error, 1)
		go func() { result <- far.do(op, id, 1) }()
		testbed.Until(t, 30*time.Second, "the COMMIT to be under way", func() bool {
			return near.count("SELECT COUNT(*) FROM pg_stat_activity WHERE query = 'commit' AND wait_event = 'advisory'") == 1
		})
		proxy.CutAfter(0) // the answer, when it comes
		_, err = lock.ExecContext(near.ctx, "SELECT pg_advisory_unlock(1)")
		near.ok(err)
		near.ok(lock.Close())
		if err := <-result; err != nil {
			t.Errorf("%s: %v, want nil: it happened", op, err)
		}
		want := map[string]string{"succeed": "succeeded+confirmed", "fail": "failed+released"}[op]
		if got := near.state(id); got != want {
			t.Errorf("%s led to %s, want %s", op, got, want)
		}
		near.clean()
	}
}

// The connection is cut after any number of bytes of a run's last two transactions. Whatever the worker is told, trying again
// gets it there; it is never told that it was fenced off, and the job is charged once.
func TestCutAnywhere(t *testing.T) {
	t.Parallel()
	far, near, proxy := behind(t)
	cuts := 0
	until := func(what string, try func() error) {
		for range 4 {
			err := try()
			if err == nil {
				return
			}
			cuts++
			if !db.Unavailable(err) {
				t.Fatalf("%s: %v does not say unavailable", what, err)
			}
		}
		t.Fatalf("%s: still cut off", what)
	}
	var used billing.Millicredits
	for after := int64(0); after < 5000; after += 173 {
		id := near.bring("syncing")
		proxy.CutAfter(after)
		until("reserve", func() error {
			got, err := far.store.Reserve(far.ctx, near.claimed(id, 1), 700)
			if err == nil && got != 700 {
				t.Errorf("held %v", got)
			}
			return err
		})
		proxy.CutAfter(after)
		until("succeed", func() error {
			return far.store.Succeed(far.ctx, near.claimed(id, 1), "results/x", engine.Output{Width: 1}, nil)
		})
		used += 700
		if got := near.state(id); got != "succeeded+confirmed" {
			t.Fatalf("cut after %d bytes: %s", after, got)
		}
		proxy.Heal()
	}
	b, err := near.ledger.Balance(near.ctx, near.account)
	if err != nil || b != (billing.Balance{Balance: 10_000_000 - used, Used: used}) {
		t.Errorf("%+v, %v; want %v used", b, err, used)
	}
	t.Logf("%d answers were errors", cuts)
	near.clean()
}

// A database that stays away: the outcome is called unknown or unavailable, never stale, and is resolved when it is back.
func TestCommitUnresolved(t *testing.T) {
	t.Parallel()
	far, near, proxy := behind(t)
	id := near.bring("processing+held")
	proxy.Cut()
	if err := far.do("succeed", id, 1); !db.Unavailable(err) || errors.Is(err, ErrStale) {
		t.Errorf("cut off: %v", err)
	}
	proxy.Heal()
	testbed.Until(t, 30*time.Second, "the run to end", func() bool { return far.do("succeed", id, 1) == nil })
	if err := far.do("succeed", id, 1); err != nil {
		t.Errorf("told twice: %v", err)
	}
	if got := near.state(id); got != "succeeded+confirmed" {
		t.Error(got)
	}
	near.clean()
}
