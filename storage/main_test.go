package storage

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"net/http"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(runChild())
	}
	// A server that refuses a body waits half a second before it closes the connection, and ends by itself.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

const (
	testBucket = "enlarger-test"
	testRegion = "us-east-1"
)

// embeddedPair is a running embedded store and a client of it. Both end with the test.
func embeddedPair(t *testing.T, cfg EmbeddedConfig) (*Embedded, *Store) {
	t.Helper()
	return embeddedIn(t, t.TempDir(), cfg)
}

func embeddedIn(t *testing.T, dir string, cfg EmbeddedConfig) (*Embedded, *Store) {
	t.Helper()
	cfg.Bucket = testBucket
	e, err := OpenEmbedded(dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	endpoint, err := e.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := clientOf(t, e, Config{Endpoint: endpoint})
	t.Cleanup(func() {
		s.Close()
		if err := e.Close(); err != nil && !isClosed(e) {
			t.Errorf("close: %v", err)
		}
	})
	return e, s
}

// isClosed is true for a store that the test itself has closed before.
func isClosed(e *Embedded) bool {
	_, err := e.backend.disk.root.Stat(".")
	return err != nil
}

func clientOf(t *testing.T, e *Embedded, cfg Config) *Store {
	t.Helper()
	cfg.Bucket, cfg.PathStyle = testBucket, true
	cfg.AccessKey, cfg.SecretKey = e.Credentials()
	cfg.TempDir = t.TempDir()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func randomBytes(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

// plainReader hides every other ability of a reader.
type plainReader struct{ io.Reader }

// failingReader sends data and then an error instead of the end.
func failingReader(data []byte, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(data), errorReader{err})
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// send does one HTTP request on a connection of its own and returns the answer with its body read.
func send(t *testing.T, method, url string, body io.Reader, change func(*http.Request)) (*http.Response, []byte) {
	t.Helper()
	request, err := http.NewRequestWithContext(testContext(t), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	request.Close = true
	if change != nil {
		change(request)
	}
	transport := &http.Transport{DisableCompression: true, ExpectContinueTimeout: 10 * time.Second}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s: read body: %v", method, err)
	}
	return response, text
}

// eventually polls until the condition holds, 20 s at most.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		<-tick.C
	}
}
