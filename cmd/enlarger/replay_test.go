package main

import (
	"bytes"
	"context"
	"net"
	"strings"
	"testing"
	"time"

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
	if !strings.Contains(out, " passed, 0 failed, 0 skipped\n") || strings.Contains(out, "FAIL") {
		t.Errorf("not all passed:\n%s", out)
	}
	if code := server.Stop(t, time.Minute); code != 0 {
		t.Errorf("the server ended with exit status %d", code)
	}
	if out := succeed(t, data, "audit"); !strings.Contains(out, "clean") {
		t.Errorf("audit: %s", out)
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
