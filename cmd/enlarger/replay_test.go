package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"enlarger/faults"
	"enlarger/testbed"
)

// TestReplayAgainstEmbeddedServer starts the all-in-one server with nothing beside it and replays every recorded job against it.
func TestReplayAgainstEmbeddedServer(t *testing.T) {
	t.Parallel()
	data, address, sources := t.TempDir(), testbed.FreeAddr(t), testbed.FreeAddr(t)
	_, port, err := net.SplitHostPort(sources)
	if err != nil {
		t.Fatal(err)
	}
	server := testbed.Start(t, "serve", map[string]string{
		"ENLARGER_DATA": data, "ENLARGER_LISTEN": address, "ENLARGER_VIDEO_SLOTS": "2",
		"ENLARGER_FETCH_ALLOW": "127.0.0.0/8", "ENLARGER_FETCH_PORTS": port,
	}, "serve")
	testbed.WaitHTTP(t, "http://"+address+"/readyz")
	accounts := map[string]string{}
	client := func(name, credits string) string {
		var account struct{ ID string }
		decodeInto(t, succeed(t, data, "account", "create", "--name", name, "--credits", credits, "--json"), &account)
		accounts[name] = account.ID
		var key struct{ Key string }
		decodeInto(t, succeed(t, data, "key", "create", "--account", account.ID, "--name", "replay", "--json"), &key)
		return key.Key
	}
	args := []string{
		"replay", "--url", "http://" + address, "--private-fetch", sources, "--parallel", "12", "--timeout", "12m",
		"--key", client("main", "1000"), "--poor-key", client("poor", "0.5"), "--suspended-key", client("suspended", "10"),
		"--limited-key", client("limited", "10"), "--throttled-key", client("throttled", "10"),
	}
	succeed(t, data, "account", "suspend", "--account", accounts["suspended"])
	succeed(t, data, "account", "limit", "--account", accounts["limited"], "--max-video", "1")
	succeed(t, data, "account", "limit", "--account", accounts["throttled"], "--requests", "20")

	out := succeed(t, data, args...)
	// The five that are skipped need a server that is right for nothing else: see TestReplayAgainstArrangedServer.
	if !strings.Contains(out, fmt.Sprintf(" passed, 0 failed, %d skipped\n", len(arrangedCases()))) || strings.Contains(out, "FAIL") {
		t.Errorf("not all passed:\n%s", out)
	}
	for _, name := range arrangedCases() {
		if !strings.Contains(out, "skip  "+name+" ") {
			t.Errorf("%s was not skipped:\n%s", name, out)
		}
	}
	if code := server.Stop(t, time.Minute); code != 0 {
		t.Errorf("the server ended with exit status %d", code)
	}
	if out := succeed(t, data, "audit"); !strings.Contains(out, "clean") {
		t.Errorf("audit: %s", out)
	}
}

// arrangedCases are the recorded jobs that need an operator's hand.
func arrangedCases() []string {
	return []string{"geo-restricted", "internal-error", "processing-timeout", "service-unavailable", "upload-expired"}
}

// TestReplayAgainstArrangedServer replays the recorded jobs that no client can bring about alone, against a fleet on PostgreSQL: first
// with settings for them and a row that was damaged, then while the database is stopped.
func TestReplayAgainstArrangedServer(t *testing.T) {
	t.Parallel()
	postgres := testbed.Postgres(t)
	f := faults.New(t, 1, map[string]string{
		"ENLARGER_DATABASE": postgres.Database(t), "ENLARGER_GEO_HEADER": "X-Country", "ENLARGER_GEO_BLOCKED": "XX",
		"ENLARGER_UPLOAD_LIFE": "1s", "ENLARGER_IMAGE_TIMEOUT": "1ms", "ENLARGER_SWEEP": "1s",
	})
	worker := f.Worker("worker")
	broken, err := f.Photo(faults.Request{}, f.Media("astronaut.png"))
	check(t, err)
	testbed.Until(t, time.Minute, "the end of a job", func() bool { return f.Job(broken).Status.Terminal() })
	damage(t, f.Settings["ENLARGER_DATABASE"], broken)

	replay := func(passed string, args ...string) {
		t.Helper()
		args = append([]string{"replay", "--url", f.API(0).URL, "--key", f.Key(), "--timeout", "1m", "--broken-job", broken}, args...)
		if out := f.CLI(args...); !strings.HasSuffix(out, passed+"\n") {
			t.Errorf("%q:\n%s", args, out)
		}
	}
	// The last one of those that pass is the credits' sum.
	replay("5 passed, 0 failed, 0 skipped", "--needs", "geo,short-uploads,short-timeouts", "--case", "geo-restricted", "--case", "upload-expired",
		"--case", "processing-timeout", "--case", "internal-error")
	postgres.Stop()
	replay("1 passed, 0 failed, 1 skipped", "--needs", "outage", "--case", "service-unavailable")
	postgres.Start(t)
	testbed.WaitHTTP(t, f.API(0).URL+"/readyz")

	if balance, frozen, used := f.Credits(""); frozen != 0 || used != 0 {
		t.Errorf("balance %v, frozen %v, used %v; nothing was to be charged", balance, frozen, used)
	}
	if code := worker.Stop(t, time.Minute); code != 0 {
		t.Errorf("the worker ended with exit status %d", code)
	}
	if out := f.CLI("audit"); !strings.Contains(out, "clean") {
		t.Errorf("audit: %s", out)
	}
}

// damage makes a job's row unreadable to the server.
func damage(t *testing.T, database, id string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	check(t, err)
	defer conn.Close(t.Context()) //nolint:errcheck // nothing is left to lose
	tag, err := conn.Exec(t.Context(), "UPDATE jobs SET metadata = 'damaged' WHERE id = $1", id)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("damage %s: %v, %v", id, tag, err)
	}
}

func TestReplaySaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"a case that does not exist", []string{"--url", "http://127.0.0.1:1", "--key", "k", "--case", "no-such"}, 2, `"no-such"`},
		{"a folder without recorded jobs", []string{"--url", "http://127.0.0.1:1", "--key", "k", t.TempDir()}, 2, "no recorded jobs"},
		{"a URL that is none", []string{"--url", "localhost", "--key", "k"}, 1, "base URL"},
		{"an arrangement that is none", []string{"--url", "http://127.0.0.1:1", "--key", "k", "--needs", "luck"}, 2, "luck"},
		{"no key", []string{"--url", "http://127.0.0.1:1"}, 2, "--key"},
		{"nobody there", []string{"--url", "http://127.0.0.1:1", "--key", "k"}, 1, "credits before the replay"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var stdout, stderr bytes.Buffer
			code := run(context.Background(), append([]string{"replay"}, c.args...), &stdout, &stderr)
			if code != c.code || !strings.Contains(stderr.String(), c.want) {
				t.Errorf("exit status %d, %s; want %d and %q", code, stderr.String(), c.code, c.want)
			}
		})
	}
}
