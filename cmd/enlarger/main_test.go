package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"enlarger/engine/image"
)

// enlarger runs a command line in this process against an SQLite file and returns its exit status and outputs.
func enlarger(t *testing.T, data string, args ...string) (int, string, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(context.Background(), append(args, "--data", data, "--log-level", "error"), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func succeed(t *testing.T, data string, args ...string) string {
	t.Helper()
	code, out, faults := enlarger(t, data, args...)
	if code != 0 {
		t.Fatalf("enlarger %v: exit status %d: %s", args, code, faults)
	}
	return out
}

func TestOperatorsDay(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if code, _, faults := enlarger(t, data, "account", "list"); code != 1 || !strings.Contains(faults, "enlarger migrate") {
		t.Errorf("without a schema: %d %q", code, faults)
	}
	succeed(t, data, "migrate")
	succeed(t, data, "migrate")
	var account struct{ ID string }
	decodeInto(t, succeed(t, data, "account", "create", "--name", "Ada", "--credits", "12.5", "--json"), &account)
	succeed(t, data, "credits", "grant", "--account", account.ID, "--amount", "7.5", "--reference", "invoice-1", "--note", "paid")
	succeed(t, data, "credits", "grant", "--account", account.ID, "--amount", "7.5", "--reference", "invoice-1")
	if out := succeed(t, data, "credits", "show", "--account", account.ID); !strings.Contains(out, "20.0") {
		t.Errorf("a repeated grant counted twice: %s", out)
	}
	if code, _, _ := enlarger(t, data, "credits", "grant", "--account", account.ID, "--amount=-20.001"); code != 1 {
		t.Errorf("took more credits than there are: exit status %d", code)
	}
	var key struct{ ID, Key, Prefix string }
	decodeInto(t, succeed(t, data, "key", "create", "--account", account.ID, "--name", "prod", "--json"), &key)
	if !strings.HasPrefix(key.Key, "sk_live_") || len(key.Key) != 40 {
		t.Errorf("key %q", key.Key)
	}
	out := succeed(t, data, "key", "list", "--account", account.ID)
	if !strings.Contains(out, key.Prefix) || strings.Contains(out, key.Key) || !strings.Contains(out, "never") {
		t.Errorf("key list: %s", out)
	}
	succeed(t, data, "key", "revoke", "--account", account.ID, "--key", key.ID)
	if out := succeed(t, data, "key", "list", "--account", account.ID); !strings.Contains(out, "revoked") {
		t.Errorf("after revoking: %s", out)
	}
	succeed(t, data, "account", "limit", "--account", account.ID, "--max-image", "5", "--max-video", "1", "--requests", "30")
	succeed(t, data, "account", "suspend", "--account", account.ID)
	if out := succeed(t, data, "account", "list"); !strings.Contains(out, "suspended") || !strings.Contains(out, "Ada") {
		t.Errorf("account list: %s", out)
	}
	succeed(t, data, "account", "resume", "--account", account.ID)
	if out := succeed(t, data, "audit"); !strings.Contains(out, "clean") {
		t.Errorf("audit: %s", out)
	}
}

func decodeInto(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

func TestFaultySettingsSayWhatToDo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		args []string
		want []string
	}{
		{"a worker without services names all of them", []string{"worker"}, []string{"ENLARGER_DATABASE", "ENLARGER_REDIS", "ENLARGER_S3_ENDPOINT", "enlarger serve"}},
		{"a fleet on SQLite", []string{"api", "--database", "sqlite:x.db", "--redis", "redis://h", "--s3-endpoint", "http://h", "--s3-access-key", "a", "--s3-secret-key", "b"}, []string{"PostgreSQL"}},
		{"all faults at once", []string{"serve", "--lease", "1s", "--heartbeat", "1s", "--rate-limit", "0"}, []string{"ENLARGER_LEASE", "ENLARGER_RATE_LIMIT"}},
		{"a public URL that is none", []string{"serve", "--public-url", "example.com"}, []string{"ENLARGER_PUBLIC_URL"}},
		{"an unknown command", []string{"dance"}, []string{"dance", "--help"}},
		{"no command", nil, []string{"--help"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			code, _, faults := enlarger(t, t.TempDir(), c.args...)
			if code != 2 {
				t.Errorf("exit status %d, want 2", code)
			}
			for _, want := range c.want {
				if !strings.Contains(faults, want) {
					t.Errorf("%q is not in: %s", want, faults)
				}
			}
		})
	}
}

func TestDataDirectoryTakesOneServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	unlock, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatal(err)
	}
	if code, _, faults := enlarger(t, dir, "serve", "--listen", "127.0.0.1:0"); code != 1 || !strings.Contains(faults, "another enlarger process") {
		t.Errorf("exit status %d: %s", code, faults)
	}
	unlock()
	again, err := lockFile(filepath.Join(dir, "lock"))
	if err != nil {
		t.Fatalf("after unlocking: %v", err)
	}
	again()
}

func TestConfigurationPageIsFresh(t *testing.T) {
	t.Parallel()
	var stdout, stderr bytes.Buffer
	if code := run(context.Background(), []string{"config"}, &stdout, &stderr); code != 0 {
		t.Fatal(stderr.String())
	}
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "configuration.md"))
	if err != nil {
		t.Fatal(err)
	}
	if stdout.String() != string(page) {
		t.Error("docs/configuration.md is stale: run `make docs`")
	}
}

// TestToolsPage holds docs/tools.md to the catalog, and its pictures to their bounds.
func TestToolsPage(t *testing.T) {
	t.Parallel()
	docs := filepath.Join("..", "..", "docs")
	page, err := os.ReadFile(filepath.Join(docs, "tools.md"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := toolsPage(filepath.Join(docs, "tools"))
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != want {
		t.Error("docs/tools.md is stale: run `make docs`")
	}
	sum := int64(0)
	for _, tool := range image.Tools(image.Options{}) {
		info, err := os.Stat(filepath.Join(docs, "tools", tool.Name+".jpg"))
		if err != nil {
			t.Errorf("%s has no picture: run `make docs-pictures`", tool.Name)
			continue
		}
		if sum += info.Size(); info.Size() > 150<<10 {
			t.Errorf("the picture of %s has %d bytes", tool.Name, info.Size())
		}
		if _, err := os.Stat(filepath.Join(docs, "tools", tool.Name+".md")); err != nil {
			t.Errorf("%s has no note on how it works and where it is weak: %v", tool.Name, err)
		}
	}
	if sum > 1200<<10 {
		t.Errorf("the pictures have %d bytes together", sum)
	}
}

func TestEmbeddedRedisExpiresKeys(t *testing.T) {
	t.Parallel()
	client, stop := embeddedRedis()
	defer stop()
	ctx := context.Background()
	if err := client.Set(ctx, "key", "value", time.Second).Err(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for client.Exists(ctx, "key").Val() != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the key never expired: the clock stands still")
		}
	}
}

// A server that is told to stop while it starts has done as it was told; a command that is interrupted has not.
func TestStoppedWhileStarting(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	for command, want := range map[string]int{"serve": 0, "migrate": 1} {
		var out, faults bytes.Buffer
		if code := run(ctx, []string{command, "--data", t.TempDir(), "--neural", "off"}, &out, &faults); code != want {
			t.Errorf("%s: exit status %d, want %d: %s", command, code, want, faults.String())
		}
	}
}
