package billing

import (
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"enlarger/db"
	"enlarger/testbed/databases"
)

func TestGrant(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, l := t.Context(), NewLedger(d)
		a, b := newAccount(t, ctx, d, 0), newAccount(t, ctx, d, 0)
		for i, c := range []struct {
			account   string
			amount    Millicredits
			reference string
			want      error
			balance   Millicredits
		}{
			{a, 5000, "first", nil, 5000},
			{a, 5000, "first", nil, 5000},
			{a, 6000, "first", ErrReference, 5000},
			{b, 5000, "first", ErrReference, 5000},
			{a, 1, "", nil, 5001},
			{a, 1, "", nil, 5002},
			{a, -2, "back", nil, 5000},
			{a, -2, "back", nil, 5000},
			{a, -5001, "too much", ErrInsufficient, 5000},
			{a, -4000, "too much", nil, 1000}, // a refused grant leaves its reference free
			{"acc_none", 1, "", sql.ErrNoRows, 1000},
		} {
			if err := l.Grant(ctx, c.account, c.amount, c.reference, "note"); !errors.Is(err, c.want) {
				t.Errorf("%d: %v, want %v", i, err, c.want)
			}
			if got, err := l.Balance(ctx, a); err != nil || got != (Balance{Balance: c.balance}) {
				t.Errorf("%d: %+v, %v; want balance %v", i, got, err, c.balance)
			}
		}
		for _, amount := range []Millicredits{0, maxAmount + 1, -maxAmount - 1, math.MaxInt64, math.MinInt64} {
			if l.Grant(ctx, a, amount, "", "") == nil {
				t.Errorf("granted %v", amount)
			}
		}
		if _, err := l.Balance(ctx, "acc_none"); !errors.Is(err, sql.ErrNoRows) {
			t.Errorf("balance of no account: %v", err)
		}
		clean(t, l)
	})
}

// What an account is granted in its life is bounded, so that no sum overflows.
func TestGrantBound(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, l := t.Context(), NewLedger(d)
		a := newAccount(t, ctx, d, 0)
		if _, err := d.ExecContext(ctx, "UPDATE accounts SET posted = $1, used = $2 WHERE id = $3", maxGranted-maxAmount-7, 7, a); err != nil {
			t.Fatal(err)
		}
		if err := l.Grant(ctx, a, maxAmount, "", ""); err != nil {
			t.Error(err)
		}
		if err := l.Grant(ctx, a, 1, "", ""); err == nil || errors.Is(err, ErrInsufficient) {
			t.Errorf("one more: %v", err)
		}
	})
}

// F5: whatever runs in parallel, exactly floor(balance/price) reservations succeed.
func TestParallelReserves(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, l := t.Context(), NewLedger(d)
		for _, c := range []struct{ balance, price, want Millicredits }{{10_000, 3000, 3}, {9999, 1111, 9}, {500, 501, 0}, {0, 0, 24}} {
			a := newAccount(t, ctx, d, c.balance)
			var won atomic.Int64
			var all sync.WaitGroup
			for i := range 24 {
				all.Go(func() {
					_, err := reserve(ctx, d, fmt.Sprintf("job_%s_%d", a, i), a, c.price)
					switch {
					case err == nil:
						won.Add(1)
					case !errors.Is(err, ErrInsufficient):
						t.Error(err)
					}
				})
			}
			all.Wait()
			b, err := l.Balance(ctx, a)
			if err != nil || won.Load() != int64(c.want) || b.Frozen != c.want*c.price || b.Balance != c.balance-b.Frozen {
				t.Errorf("balance %v, price %v: %d reserved, %+v, %v; want %d", c.balance, c.price, won.Load(), b, err, c.want)
			}
		}
		clean(t, l)
	})
}

// One hold ends once, however many try.
func TestParallelEnds(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, l := t.Context(), NewLedger(d)
		a := newAccount(t, ctx, d, 10_000)
		for round := range 5 {
			job := fmt.Sprintf("job_%d", round)
			if _, err := reserve(ctx, d, job, a, 1000); err != nil {
				t.Fatal(err)
			}
			var confirmed, released atomic.Int64
			var all sync.WaitGroup
			for i := range 12 {
				how, moved := confirm, &confirmed
				if i%2 == 0 {
					how, moved = release, &released
				}
				all.Go(func() {
					amount, err := how(ctx, d, job)
					if err == nil {
						moved.Add(int64(amount))
					} else if !errors.Is(err, ErrHoldEnded) {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if confirmed.Load()+released.Load() != 1000 {
				t.Errorf("round %d: %d confirmed and %d released, want 1000 once", round, confirmed.Load(), released.Load())
			}
		}
		clean(t, l)
	})
}

type modelAccount struct{ granted, frozen, used Millicredits }

func (m modelAccount) available() Millicredits { return m.granted - m.frozen - m.used }

type modelHold struct {
	account string
	amount  Millicredits
	state   string
}

// bookModel is the ledger in a few lines of Go, with the database beside it.
type bookModel struct {
	*testing.T
	d        *db.DB
	accounts map[string]*modelAccount
	holds    map[string]*modelHold
	names    []string
	jobs     []string
}

// TestBooks draws random grants, reservations, confirmations and releases, and compares every answer, every balance and the audit
// with the model after each.
func TestBooks(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		round := 0
		rapid.Check(t, func(rt *rapid.T) {
			round++
			m := &bookModel{T: t, d: d, accounts: map[string]*modelAccount{}, holds: map[string]*modelHold{}}
			for range 3 {
				name := newAccount(t, t.Context(), d, 0)
				m.names, m.accounts[name] = append(m.names, name), &modelAccount{}
			}
			for i := range 6 {
				m.jobs = append(m.jobs, fmt.Sprintf("job_%d_%d", round, i))
			}
			rt.Repeat(map[string]func(*rapid.T){"grant": m.grant, "reserve": m.reserve, "confirm": m.confirm, "release": m.release, "": m.check})
		})
	})
}

func (m *bookModel) grant(rt *rapid.T) {
	name := rapid.SampledFrom(m.names).Draw(rt, "account")
	amount := Millicredits(rapid.Int64Range(-3000, 5000).Filter(func(n int64) bool { return n != 0 }).Draw(rt, "amount"))
	a := m.accounts[name]
	err := NewLedger(m.d).Grant(m.Context(), name, amount, "", "")
	if a.available()+amount < 0 {
		want(rt, err, ErrInsufficient)
		return
	}
	want(rt, err, nil)
	a.granted += amount
}

func (m *bookModel) reserve(rt *rapid.T) {
	name, job := rapid.SampledFrom(m.names).Draw(rt, "account"), rapid.SampledFrom(m.jobs).Draw(rt, "job")
	amount := Millicredits(rapid.Int64Range(0, 3000).Draw(rt, "amount"))
	a, h := m.accounts[name], m.holds[job]
	held, err := reserve(m.Context(), m.d, job, name, amount)
	switch {
	case h != nil && h.state == "held":
		want(rt, err, nil)
		if held != h.amount {
			rt.Fatalf("held %v, want the first %v", held, h.amount)
		}
	case h != nil:
		want(rt, err, ErrHoldEnded)
	case a.available() < amount:
		want(rt, err, ErrInsufficient)
	default:
		want(rt, err, nil)
		if held != amount {
			rt.Fatalf("held %v, want %v", held, amount)
		}
		a.frozen += amount
		m.holds[job] = &modelHold{name, amount, "held"}
	}
}

func (m *bookModel) confirm(rt *rapid.T) {
	job := rapid.SampledFrom(m.jobs).Draw(rt, "job")
	moved, err := confirm(m.Context(), m.d, job)
	h := m.holds[job]
	if h == nil || h.state != "held" {
		want(rt, err, ErrHoldEnded)
		return
	}
	want(rt, err, nil)
	if moved != h.amount {
		rt.Fatalf("confirmed %v, want %v", moved, h.amount)
	}
	h.state = "confirmed"
	m.accounts[h.account].frozen -= h.amount
	m.accounts[h.account].used += h.amount
}

func (m *bookModel) release(rt *rapid.T) {
	job := rapid.SampledFrom(m.jobs).Draw(rt, "job")
	moved, err := release(m.Context(), m.d, job)
	h := m.holds[job]
	switch {
	case h != nil && h.state == "confirmed":
		want(rt, err, ErrHoldEnded)
	case h == nil || h.state == "released":
		want(rt, err, nil)
		if moved != 0 {
			rt.Fatalf("released %v of nothing", moved)
		}
	default:
		want(rt, err, nil)
		if moved != h.amount {
			rt.Fatalf("released %v, want %v", moved, h.amount)
		}
		h.state = "released"
		m.accounts[h.account].frozen -= h.amount
	}
}

func (m *bookModel) check(rt *rapid.T) {
	l := NewLedger(m.d)
	for name, a := range m.accounts {
		b, err := l.Balance(m.Context(), name)
		if err != nil || b != (Balance{Balance: a.available(), Used: a.used, Frozen: a.frozen}) {
			rt.Fatalf("%s: %+v, %v; the model says %+v", name, b, err, a)
		}
		if b.Balance+b.Frozen+b.Used != a.granted {
			rt.Fatalf("%s: %+v does not add up to %v", name, b, a.granted)
		}
	}
	if broken, err := l.Audit(m.Context()); err != nil || len(broken) > 0 {
		rt.Fatalf("audit: %+v, %v", broken, err)
	}
}

func want(rt *rapid.T, err, want error) {
	if !errors.Is(err, want) {
		rt.Fatalf("got %v, want %v", err, want)
	}
}

func clean(t *testing.T, l *Ledger) {
	t.Helper()
	if broken, err := l.Audit(t.Context()); err != nil || len(broken) > 0 {
		t.Errorf("audit: %+v, %v", broken, err)
	}
}

// lawless gives a connection on which the schema's own guards are off, so that a test can store lies.
func lawless(t *testing.T, d *db.DB) *sql.Conn {
	t.Helper()
	conn, err := d.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	queries := []string{"PRAGMA ignore_check_constraints = ON", "PRAGMA foreign_keys = OFF", "DROP INDEX entries_one_end"}
	if d.Postgres() {
		queries = []string{`DO $$ DECLARE c RECORD; BEGIN
			FOR c IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint WHERE contype IN ('c', 'f') AND conrelid <> 0 LOOP
				EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.tab, c.conname);
			END LOOP; END $$`, "DROP INDEX entries_one_end"}
	}
	for _, q := range queries {
		if _, err := conn.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	return conn
}

// TestAuditFinds corrupts the books in every way the rules name and looks for the row in the audit.
func TestAuditFinds(t *testing.T) {
	t.Parallel()
	const sum, bounds, open = "an account's credits are the sum of its entries", "0 <= frozen <= posted", "frozen is the sum of the open holds"
	const story, orphan = "a hold's entries tell its state", "every entry but a grant belongs to a hold"
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, l := t.Context(), NewLedger(d)
		conn := lawless(t, d)
		for i, c := range []struct {
			// ACC is the account; HELD, CONF and RELE are jobs whose holds are in these states; CONFENTRY is the id of CONF's last entry.
			query string
			rules []string
			row   string
		}{
			{"UPDATE accounts SET posted = posted + 1 WHERE id = ACC", []string{sum}, "ACC"},
			{"UPDATE accounts SET used = used - 1 WHERE id = ACC", []string{sum}, "ACC"},
			{"UPDATE accounts SET frozen = frozen + 1 WHERE id = ACC", []string{sum, open}, "ACC"},
			{"UPDATE accounts SET frozen = posted + 1 WHERE id = ACC", []string{sum, bounds, open}, "ACC"},
			{"UPDATE accounts SET frozen = -1 WHERE id = ACC", []string{sum, bounds, open}, "ACC"},
			{"UPDATE accounts SET posted = 0 WHERE id = ACC", []string{sum, bounds}, "ACC"},
			{"DELETE FROM entries WHERE account_id = ACC AND step = 'grant'", []string{sum}, "ACC"},
			{"UPDATE entries SET posted = posted * 2 WHERE account_id = ACC AND step = 'grant'", []string{sum}, "ACC"},
			{"DELETE FROM entries WHERE hold_id = HELD AND step = 'reserve'", []string{story}, "HELD"},
			{"DELETE FROM entries WHERE hold_id = CONF AND step = 'confirm'", []string{story}, "CONF"},
			{"DELETE FROM entries WHERE hold_id = RELE AND step = 'release'", []string{story}, "RELE"},
			{"UPDATE holds SET amount = amount + 1 WHERE job_id = HELD", []string{story}, "HELD"},
			{"UPDATE holds SET amount = amount + 1 WHERE job_id = HELD", []string{open}, "ACC"},
			{"UPDATE holds SET amount = amount + 1 WHERE job_id = CONF", []string{story}, "CONF"},
			{"UPDATE holds SET amount = amount + 1 WHERE job_id = RELE", []string{story}, "RELE"},
			{"UPDATE holds SET state = 'confirmed', ended_at = 1 WHERE job_id = HELD", []string{story}, "HELD"},
			{"UPDATE holds SET state = 'released', ended_at = 1 WHERE job_id = HELD", []string{story}, "HELD"},
			{"UPDATE holds SET state = 'released' WHERE job_id = CONF", []string{story}, "CONF"},
			{"UPDATE holds SET state = 'held', ended_at = 0 WHERE job_id = RELE", []string{story}, "RELE"},
			{"UPDATE holds SET account_id = 'acc_other' WHERE job_id = CONF", []string{story}, "CONF"},
			{"UPDATE entries SET account_id = 'acc_other' WHERE hold_id = CONF AND step = 'confirm'", []string{story}, "CONF"},
			{"UPDATE entries SET account_id = 'acc_other' WHERE hold_id = RELE AND step = 'release'", []string{story}, "RELE"},
			{"UPDATE entries SET used = used + 1 WHERE hold_id = CONF AND step = 'confirm'", []string{story}, "CONF"},
			{
				"INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, created_at) VALUES ('ent_twice' || ACC, ACC, CONF, 'release', 0, -300, 0, 1)",
				[]string{story},
				"CONF",
			},
			{"DELETE FROM holds WHERE job_id = CONF", []string{orphan}, "CONFENTRY"},
		} {
			a := newAccount(t, ctx, d, 5000)
			names := map[string]string{"ACC": a, "HELD": "job_held_" + a, "CONF": "job_conf_" + a, "RELE": "job_rele_" + a}
			for _, kind := range []string{"HELD", "CONF", "RELE"} {
				if _, err := reserve(ctx, d, names[kind], a, 300); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := confirm(ctx, d, names["CONF"]); err != nil {
				t.Fatal(err)
			}
			if _, err := release(ctx, d, names["RELE"]); err != nil {
				t.Fatal(err)
			}
			var entry string
			if err := d.QueryRowContext(ctx, "SELECT id FROM entries WHERE hold_id = $1 AND step = 'confirm'", names["CONF"]).Scan(&entry); err != nil {
				t.Fatal(err)
			}
			names["CONFENTRY"] = entry
			if found := rulesOf(t, l, names); len(found) > 0 {
				t.Fatalf("before: %v", found)
			}
			query := c.query
			for _, kind := range []string{"ACC", "HELD", "CONF", "RELE"} {
				query = strings.ReplaceAll(query, kind, "'"+names[kind]+"'")
			}
			if result, err := conn.ExecContext(ctx, query); err != nil {
				t.Fatalf("%s: %v", query, err)
			} else if n, err := result.RowsAffected(); err != nil || n != 1 {
				t.Fatalf("%s changed %d rows, %v", query, n, err)
			}
			found := rulesOf(t, l, names)
			for _, rule := range c.rules {
				if !slices.Contains(found[names[c.row]], rule) {
					t.Errorf("%d: after %s the audit does not name %s for %q: %v", i, c.query, c.row, rule, found)
				}
			}
		}
	})
}

// rulesOf reads which rules the audit finds broken by the rows named.
func rulesOf(t *testing.T, l *Ledger, names map[string]string) map[string][]string {
	t.Helper()
	all, err := l.Audit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, v := range all {
		for _, name := range names {
			if v.Row == name {
				found[v.Row] = append(found[v.Row], v.Rule)
			}
		}
		if v.Detail == "" {
			t.Errorf("no detail: %+v", v)
		}
	}
	return found
}

// TestSchemaRefuses: what the audit would find, the schema refuses to store in the first place.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx := t.Context()
		a := newAccount(t, ctx, d, 5000)
		if _, err := reserve(ctx, d, "job_1", a, 300); err != nil {
			t.Fatal(err)
		}
		if _, err := confirm(ctx, d, "job_1"); err != nil {
			t.Fatal(err)
		}
		insert := "INSERT INTO entries (id, account_id, hold_id, step, posted, frozen, used, created_at) VALUES "
		for query, code := range map[string]string{
			"UPDATE accounts SET posted = -1":                              "check",
			"UPDATE accounts SET frozen = posted + 1":                      "check",
			"UPDATE accounts SET used = -1":                                "check",
			"UPDATE holds SET state = 'held'":                              "check",
			"UPDATE holds SET state = 'lost'":                              "check",
			insert + "('e1', '" + a + "', 'job_1', 'release', 0, 0, 0, 1)": "unique",
			insert + "('e2', '" + a + "', 'job_1', 'confirm', 0, 0, 0, 1)": "unique",
			insert + "('e3', '" + a + "', 'job_2', 'reserve', 1, 1, 0, 1)": "check",
			insert + "('e4', '" + a + "', 'job_2', 'grant', 0, 0, 0, 1)":   "check",
			insert + "('e5', 'nobody', 'job_2', 'grant', 1, 0, 0, 1)":      "foreign_key",
		} {
			if _, err := d.ExecContext(ctx, query); db.Code(err) != code {
				t.Errorf("%s: %v, want %s", query, err, code)
			}
		}
		if _, err := reserve(ctx, d, "job_3", a, -1); db.Code(err) != "check" {
			t.Errorf("a negative hold: %v", err)
		}
		clean(t, NewLedger(d))
	})
}
