package account

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"enlarger/db"
	"enlarger/testbed/databases"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func create(t *testing.T, s *Store) Account {
	t.Helper()
	a, err := s.Create(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func createKey(t *testing.T, s *Store, a Account) (Key, string) {
	t.Helper()
	k, secret, err := s.CreateKey(t.Context(), a.ID, "laptop")
	if err != nil {
		t.Fatal(err)
	}
	return k, secret
}

var format = regexp.MustCompile(`^sk_live_[a-z0-9]{32}$`)

func TestSecrets(t *testing.T) {
	t.Parallel()
	seen := map[string]bool{}
	letters := map[rune]int{}
	const secrets = 2000
	for range secrets {
		s := newSecret()
		if !format.MatchString(s) || !wellFormed(s) || seen[s] {
			t.Fatalf("secret %q", s)
		}
		seen[s] = true
		for _, c := range s[len(keyPrefix) : len(keyPrefix)+randomChars] {
			letters[c]++
		}
	}
	// Each of the 36 letters is expected 1444 times with a deviation of 37.5: eight deviations are never seen.
	mean := secrets * randomChars / len(alphabet)
	for _, c := range alphabet {
		if n := letters[c]; n < mean-300 || n > mean+300 {
			t.Errorf("%c came %d times, want about %d", c, n, mean)
		}
	}
}

// Every secret with one character typed wrong is refused, and so are two neighbours swapped.
func TestChecksumCatchesTypos(t *testing.T) {
	t.Parallel()
	for range 20 {
		s := newSecret()
		for i := range len(s) {
			for c := byte(' '); c < 127; c++ {
				if typo := s[:i] + string(c) + s[i+1:]; typo != s && wellFormed(typo) {
					t.Errorf("%q passes for %q", typo, s)
				}
			}
			if i > 0 && s[i] != s[i-1] {
				if typo := s[:i-1] + string(s[i]) + string(s[i-1]) + s[i+1:]; wellFormed(typo) {
					t.Errorf("%q passes for %q", typo, s)
				}
			}
		}
	}
	good := newSecret()
	for _, bad := range []string{"", "sk_live_", good[1:], good[:len(good)-1], good + "a", " " + good, good + "\n", strings.ToUpper(good), "sk_test_" + good[len(keyPrefix):]} {
		if wellFormed(bad) {
			t.Errorf("%q passes", bad)
		}
	}
}

func FuzzWellFormed(f *testing.F) {
	good := keyPrefix + strings.Repeat("a1", randomChars/2) + checksum(strings.Repeat("a1", randomChars/2))
	for _, seed := range []string{good, "", keyPrefix, good[:20], good + "a", strings.ToUpper(good), strings.Repeat("\xff", secretChars)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if wellFormed(text) && (!format.MatchString(text) || checksum(text[len(keyPrefix):secretChars-checkChars]) != text[secretChars-checkChars:]) {
			t.Errorf("%q passes", text)
		}
	})
}

func TestAccounts(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, s := t.Context(), NewStore(d)
		a, b := create(t, s), create(t, s)
		if !regexp.MustCompile(`^acc_[0-9a-f]{32}$`).MatchString(a.ID) || a.ID == b.ID || a.Status != "active" || a.Name != "test" || time.Since(a.CreatedAt).Abs() > time.Hour {
			t.Errorf("account %+v", a)
		}
		if err := s.SetLimits(ctx, a.ID, 3, 2, 60); err != nil {
			t.Error(err)
		}
		a.MaxImage, a.MaxVideo, a.RateLimit = 3, 2, 60
		if got, err := s.Get(ctx, a.ID); err != nil || got != a {
			t.Errorf("%+v, %v; want %+v", got, err, a)
		}
		if list, err := s.List(ctx); err != nil || len(list) != 2 || list[0] != a || list[1] != b {
			t.Errorf("list %+v, %v", list, err)
		}
		for _, limits := range [][3]int{{-1, 0, 0}, {0, -1, 0}, {0, 0, -1}} {
			if s.SetLimits(ctx, a.ID, limits[0], limits[1], limits[2]) == nil {
				t.Errorf("limits %v", limits)
			}
		}
		if err := s.SetStatus(ctx, a.ID, "deleted"); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("status deleted: %v", err)
		}
		_, getErr := s.Get(ctx, "acc_none")
		_, _, keyErr := s.CreateKey(ctx, "acc_none", "x")
		_, revokeErr := s.RevokeKey(ctx, a.ID, "key_none")
		for what, err := range map[string]error{
			"get": getErr, "create key": keyErr, "revoke": revokeErr,
			"status": s.SetStatus(ctx, "acc_none", "active"), "limits": s.SetLimits(ctx, "acc_none", 1, 1, 1),
		} {
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("%s of nothing: %v", what, err)
			}
		}
		for _, name := range []string{"", strings.Repeat("x", 101), "line\nbreak", "nul\x00"} {
			_, err := s.Create(ctx, name)
			_, _, keyErr := s.CreateKey(ctx, a.ID, name)
			if err == nil || keyErr == nil {
				t.Errorf("name %q is taken", name)
			}
		}
		if _, err := s.Create(ctx, strings.Repeat("ü", 100)); err != nil {
			t.Error(err)
		}
	})
}

func TestNamesInAnyBytes(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		if a, err := NewStore(d).Create(t.Context(), "bad \xff bytes"); err == nil {
			t.Errorf("invalid UTF-8 is taken: %+v", a)
		} else if db.Code(err) != "" {
			t.Errorf("refused by the database only: %v", err)
		}
	})
}

// TestKeyLife: made, used, listed, revoked at once and for good; a suspended account's good key is told apart.
func TestKeyLife(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, s := t.Context(), NewStore(d)
		a, other := create(t, s), create(t, s)
		k, secret := createKey(t, s, a)
		second, secondSecret := createKey(t, s, a)
		if k.AccountID != a.ID || k.Status != "active" || k.Name != "laptop" || k.Prefix != secret[:12] || !k.LastUsed.IsZero() || !k.RevokedAt.IsZero() {
			t.Errorf("key %+v of %s", k, secret)
		}
		auth := func(secret string, want error) {
			t.Helper()
			gotAccount, gotKey, err := s.Authenticate(ctx, secret)
			if !errors.Is(err, want) || (err == nil && (gotAccount.ID != a.ID || gotKey.Prefix != secret[:12])) || (err != nil && (gotAccount != Account{} || gotKey != Key{})) {
				t.Errorf("authenticate: %+v %+v %v, want %v", gotAccount, gotKey, err, want)
			}
		}
		auth(secret, nil)
		auth(newSecret(), ErrInvalidKey)
		auth("", ErrInvalidKey)
		auth(secret[:12], ErrInvalidKey)
		if err := s.SetStatus(ctx, a.ID, "suspended"); err != nil {
			t.Fatal(err)
		}
		auth(secret, ErrSuspended)
		if err := s.SetStatus(ctx, a.ID, "active"); err != nil {
			t.Fatal(err)
		}
		auth(secret, nil)
		if _, err := s.RevokeKey(ctx, other.ID, k.ID); !errors.Is(err, ErrNotFound) {
			t.Errorf("another account revokes: %v", err)
		}
		auth(secret, nil)
		revoked, err := s.RevokeKey(ctx, a.ID, k.ID)
		if err != nil || revoked.Status != "revoked" || revoked.RevokedAt.IsZero() {
			t.Errorf("revoked %+v, %v", revoked, err)
		}
		auth(secret, ErrInvalidKey)
		auth(secondSecret, nil)
		if again, err := s.RevokeKey(ctx, a.ID, k.ID); err != nil || again != revoked {
			t.Errorf("revoked again %+v, %v; want %+v", again, err, revoked)
		}
		if err := s.SetStatus(ctx, a.ID, "suspended"); err != nil {
			t.Fatal(err)
		}
		auth(secret, ErrInvalidKey) // a revoked key tells nothing of its account
		keys, err := s.Keys(ctx, a.ID)
		if err != nil || len(keys) != 2 || keys[0] != revoked || keys[1].ID != second.ID || keys[1].LastUsed.IsZero() {
			t.Errorf("keys %+v, %v", keys, err)
		}
		if _, err := d.ExecContext(ctx, "UPDATE api_keys SET status = 'active' WHERE id = $1", k.ID); db.Code(err) != "check" {
			t.Errorf("a revoked key made active by hand: %v", err)
		}
	})
}

// last_used is written at most once a minute, however many requests come in.
func TestLastUsed(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, s := t.Context(), NewStore(d)
		k, secret := createKey(t, s, create(t, s))
		read := func() (used int64) {
			t.Helper()
			if err := d.QueryRowContext(ctx, "SELECT last_used FROM api_keys WHERE id = $1", k.ID).Scan(&used); err != nil {
				t.Fatal(err)
			}
			return used
		}
		burst := func() {
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					if _, _, err := s.Authenticate(ctx, secret); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
		age := func(d0 time.Duration) int64 {
			t.Helper()
			if _, err := d.ExecContext(ctx, "UPDATE api_keys SET last_used = now_micros() - $1", d0.Microseconds()); err != nil {
				t.Fatal(err)
			}
			return read()
		}
		countWrites(t, d)
		burst()
		if n := writes(t, d); n != 1 {
			t.Errorf("8 first requests wrote %d times, want once", n)
		}
		if before := age(usedEvery / 2); true {
			burst()
			if after := read(); after != before {
				t.Errorf("half a minute later it moved from %d to %d", before, after)
			}
		}
		before := age(usedEvery + time.Second)
		start := writes(t, d)
		burst()
		if after := read(); after-before < usedEvery.Microseconds() || writes(t, d) != start+1 {
			t.Errorf("a minute later it moved from %d to %d in %d writes", before, after, writes(t, d)-start)
		}
	})
}

// countWrites has the database count the changes of last_used.
func countWrites(t *testing.T, d *db.DB) {
	t.Helper()
	queries := []string{"CREATE TABLE writes (n BIGINT)"}
	if d.Postgres() {
		queries = append(queries, `CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO writes VALUES (1); RETURN NEW; END $$`,
			`CREATE TRIGGER note AFTER UPDATE OF last_used ON api_keys FOR EACH ROW EXECUTE FUNCTION note()`)
	} else {
		queries = append(queries, `CREATE TRIGGER note AFTER UPDATE OF last_used ON api_keys BEGIN INSERT INTO writes VALUES (1); END`)
	}
	for _, q := range queries {
		if _, err := d.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
}

func writes(t *testing.T, d *db.DB) (n int) {
	t.Helper()
	if err := d.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM writes").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The secret is in no column of any table.
func TestSecretIsNotStored(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, s := t.Context(), NewStore(d)
		_, secret := createKey(t, s, create(t, s))
		if _, _, err := s.Authenticate(ctx, secret); err != nil {
			t.Fatal(err)
		}
		list := "SELECT name FROM sqlite_master WHERE type = 'table'"
		if d.Postgres() {
			list = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
		}
		looked := 0
		for _, table := range column(t, d, list) {
			looked += lookFor(t, d, table, secret)
		}
		if looked < 10 {
			t.Errorf("only %d values were looked at", looked)
		}
	})
}

func column(t *testing.T, d *db.DB, query string) (values []string) {
	t.Helper()
	rows, err := d.QueryContext(t.Context(), query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var v string
		if err := rows.Scan(&v); err != nil {
			t.Fatal(err)
		}
		values = append(values, v)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return values
}

// lookFor reads a table and complains of every value that holds more of the secret than its shown prefix.
func lookFor(t *testing.T, d *db.DB, table, secret string) (looked int) {
	t.Helper()
	rows, err := d.QueryContext(t.Context(), "SELECT * FROM "+table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		t.Fatal(err)
	}
	for rows.Next() {
		values := make([]any, len(names))
		for i := range values {
			values[i] = new(sql.RawBytes)
		}
		if err := rows.Scan(values...); err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			looked++
			text := string(*v.(*sql.RawBytes))
			if strings.Contains(text, secret[:shownChars+1]) || strings.Contains(text, secret[shownChars:]) {
				t.Errorf("%s.%s holds the secret", table, names[i])
			}
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return looked
}

// The cap on active keys holds exactly under parallel creations, and a revoked key frees its place.
func TestParallelCreateKey(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		ctx, s := t.Context(), NewStore(d)
		a := create(t, s)
		made, secrets := atomic.Int64{}, sync.Map{}
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 14 {
					k, secret, err := s.CreateKey(ctx, a.ID, "parallel")
					if err != nil {
						if db.Code(err) != "" || !strings.Contains(err.Error(), "revoke one first") {
							t.Error(err)
						}
						continue
					}
					made.Add(1)
					secrets.Store(secret, k.ID)
				}
			})
		}
		all.Wait()
		keys, err := s.Keys(ctx, a.ID)
		if err != nil || made.Load() != maxKeys || len(keys) != maxKeys {
			t.Errorf("%d made and %d listed, %v; want %d", made.Load(), len(keys), err, maxKeys)
		}
		authenticateAll(t, ctx, s, &secrets)
		if _, err := s.RevokeKey(ctx, a.ID, keys[0].ID); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.CreateKey(ctx, a.ID, "after"); err != nil {
			t.Error(err)
		}
	})
}

func authenticateAll(t *testing.T, ctx context.Context, s *Store, secrets *sync.Map) {
	t.Helper()
	n := 0
	secrets.Range(func(secret, id any) bool {
		n++
		if _, k, err := s.Authenticate(ctx, fmt.Sprint(secret)); err != nil || k.ID != id {
			t.Errorf("key %v authenticates as %+v, %v", id, k, err)
		}
		return true
	})
	if n != maxKeys {
		t.Errorf("%d different secrets, want %d", n, maxKeys)
	}
}

func TestDatabaseGone(t *testing.T) {
	t.Parallel()
	d := databases.SQLite(t)
	s := NewStore(d)
	_, secret := createKey(t, s, create(t, s))
	d.Close()
	if _, _, err := s.Authenticate(t.Context(), secret); err == nil || errors.Is(err, ErrInvalidKey) || errors.Is(err, ErrSuspended) {
		t.Errorf("a database that is gone: %v", err)
	}
}
