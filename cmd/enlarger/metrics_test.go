package main

import (
	"context"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sync/errgroup"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/job"
	"enlarger/testbed"
)

// books is a database with one account of 5 credits, on each kind of database.
func books(t *testing.T, test func(t *testing.T, d *db.DB, jobs *job.Store, accountID string)) {
	t.Helper()
	for kind, url := range map[string]string{"sqlite": "sqlite:" + filepath.Join(t.TempDir(), "test.db"), "postgres": testbed.PostgreSQL(t)} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			d, err := db.Open(t.Context(), db.Config{URL: url})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			if err := d.Migrate(t.Context()); err != nil {
				t.Fatal(err)
			}
			a, err := account.NewStore(d).Create(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			if err := billing.NewLedger(d).Grant(t.Context(), a.ID, 5*billing.Credit, "", ""); err != nil {
				t.Fatal(err)
			}
			test(t, d, job.NewStore(d), a.ID)
		})
	}
}

// An audit that comes by itself names the row that is broken in the log, and the figures of every process tell of it.
func TestAuditByItself(t *testing.T) {
	t.Parallel()
	books(t, func(t *testing.T, d *db.DB, jobs *job.Store, accountID string) {
		core, logged := observer.New(zapcore.InfoLevel)
		ctx, stop := context.WithCancel(t.Context())
		var group errgroup.Group
		for range 3 {
			a := auditor{jobs: jobs, every: 200 * time.Millisecond, log: zap.New(core)}
			group.Go(func() error { a.run(ctx); return nil })
		}
		defer func() { stop(); group.Wait() }()
		testbed.Until(t, 20*time.Second, "a clean audit", func() bool { return logged.FilterMessage("audited").FilterField(zap.Int("violations", 0)).Len() > 0 })
		if wrong := logged.FilterLevelExact(zapcore.ErrorLevel); wrong.Len() > 0 {
			t.Errorf("logged %v", wrong.All())
		}
		if _, err := d.ExecContext(ctx, "UPDATE accounts SET posted = posted + 1"); err != nil {
			t.Fatal(err)
		}
		const rule = "an account's credits are the sum of its entries"
		testbed.Until(t, 20*time.Second, "the broken row in the log", func() bool {
			return logged.FilterLevelExact(zapcore.ErrorLevel).FilterField(zap.String("rule", rule)).FilterField(zap.String("row", accountID)).Len() > 0
		})
		m := newMetrics(jobs, billing.NewLedger(d), zap.NewNop())
		testbed.Until(t, 20*time.Second, "the figure", func() bool {
			report, err := jobs.LastAudit(ctx)
			return err == nil && report.Broken[rule] == 1
		})
		text := scrape(t, m)
		for _, want := range []string{`enlarger_audit_violations{rule="` + rule + `"} 1`, `enlarger_audit_violations{rule="0 <= frozen <= posted"} 0`} {
			if !strings.Contains(text, want) {
				t.Errorf("%s is not in\n%s", want, text)
			}
		}
	})
}

func TestAuditIsOffAtZero(t *testing.T) {
	t.Parallel()
	auditor{}.run(t.Context()) // returns, and asks no store
}

// scrape asks GET /metrics once.
func scrape(t *testing.T, m *metrics) string {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var group errgroup.Group
	address := testbed.FreeAddr(t)
	if err := m.serve(&group, ctx, address, zap.NewNop()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stop()
		if err := group.Wait(); err != nil {
			t.Error(err)
		}
	}()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s %v", response.Status, err)
	}
	return string(text)
}

func TestFleetsFigures(t *testing.T) {
	t.Parallel()
	books(t, func(t *testing.T, d *db.DB, jobs *job.Store, accountID string) {
		exec := func(query string, args ...any) {
			t.Helper()
			if _, err := d.ExecContext(t.Context(), query, args...); err != nil {
				t.Fatal(err)
			}
		}
		m := newMetrics(jobs, billing.NewLedger(d), zap.NewNop())
		has := func(lines ...string) {
			t.Helper()
			text := scrape(t, m)
			for _, want := range lines {
				if !regexp.MustCompile(`(?m)^` + want + `$`).MatchString(text) {
					t.Errorf("%s is not in\n%s", want, text)
				}
			}
		}
		has(`enlarger_database_up 1`, `enlarger_accounts 1`, `enlarger_credits\{state="available"\} 5`, `enlarger_jobs\{media="image",status="queued"\} 0`,
			`enlarger_audit_last_timestamp_seconds 0`, `enlarger_leases_lost_total 0`, `enlarger_info\{version=".*"\} 1`, `go_goroutines .*`)
		exec(`INSERT INTO jobs (id, account_id, key_id, tool, media, config, format, source_kind, source_object, results_prefix, source_ready, status, run_at, created_at)
			VALUES ('job_1', $1, 'k', 'upscale', 'video', '{}', 'jpg', 'inline', 's', 'r', TRUE, 'queued', now_micros() - 100000000, 1)`, accountID)
		fleet := newFleetFigures(jobs, billing.NewLedger(d), zap.NewNop())
		count := func() int { return testutil.CollectAndCount(fleet, "enlarger_accounts") }
		if n := count(); n != 1 {
			t.Errorf("%d metrics of accounts", n)
		}
		if problems, err := testutil.CollectAndLint(fleet); err != nil || len(problems) > 0 {
			t.Errorf("names: %v %v", problems, err)
		}
		m = newMetrics(jobs, billing.NewLedger(d), zap.NewNop())
		has(`enlarger_jobs\{media="video",status="queued"\} 1`, `enlarger_queue_oldest_seconds\{media="video"\} 1\d\d\..*`, `enlarger_queue_oldest_seconds\{media="image"\} 0`)

		// Without the database: what was read just now is told for a while, then the truth.
		d.Close()
		fleet.read = time.Now().Add(time.Hour)
		if n := count(); n != 1 {
			t.Error("figures that are fresh were read again")
		}
		fleet.read = time.Now().Add(-time.Hour)
		if n := count(); n != 0 {
			t.Error("old figures are told for new ones")
		}
		if up := testutil.CollectAndCount(fleet, "enlarger_database_up"); up != 1 {
			t.Error("nothing says that the database is away")
		}
	})
}

// A negative time, and an address that is none, are told before anything starts.
func TestOperatorsSettingsAreChecked(t *testing.T) {
	t.Parallel()
	if code, _, faults := enlarger(t, t.TempDir(), "serve", "--audit-every=-1h"); code != 2 || !strings.Contains(faults, "ENLARGER_AUDIT_EVERY") {
		t.Errorf("%d: %s", code, faults)
	}
	var group errgroup.Group
	m := newMetrics(nil, nil, zap.NewNop())
	if err := m.serve(&group, t.Context(), "nowhere:none", zap.NewNop()); err == nil {
		t.Error("listens at no address")
	}
}
