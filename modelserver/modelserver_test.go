package modelserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var picture = []byte("\x89PNG not looked at here")

// stub is a model server of a test; it counts what it is asked.
func stub(t *testing.T, answer func(n int64, w http.ResponseWriter, r *http.Request)) (url string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(asked.Add(1), w, r) }))
	t.Cleanup(s.Close)
	return s.URL, asked
}

// edit asks the server with a short patience, and returns what it wrote.
func edit(ctx context.Context, t *testing.T, c Config) ([]byte, error) {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	c.Delay = time.Millisecond
	client, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "source.png")
	if err := os.WriteFile(source, picture, 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out")
	err = client.Edit(ctx, Request{Prompt: "a cat, \"twice\"\r\n", Image: source, Output: out, Width: 40, Height: 30})
	content, readErr := os.ReadFile(out)
	if (err == nil) != (readErr == nil) {
		t.Errorf("error %v, but the output file: %v", err, readErr)
	}
	return content, err
}

func TestRequest(t *testing.T) {
	t.Parallel()
	url, _ := stub(t, func(_ int64, w http.ResponseWriter, r *http.Request) {
		f, header, err := r.FormFile("image")
		if err != nil {
			t.Error(err)
			return
		}
		sent, _ := io.ReadAll(f)
		if r.Method != http.MethodPost || r.FormValue("prompt") != "a cat, \"twice\"\r\n" || r.FormValue("width") != "40" || r.FormValue("height") != "30" ||
			!bytes.Equal(sent, picture) || header.Header.Get("Content-Type") != "image/png" || r.ContentLength <= int64(len(picture)) {
			t.Errorf("%s %v %q", r.Method, r.Form, sent)
		}
		if r.Header.Get("Authorization") != "Bearer secret" || r.Header.Get("Idempotency-Key") == "" || !strings.Contains(r.Header.Get("Accept"), "image/png") {
			t.Errorf("%v", r.Header)
		}
		fmt.Fprint(w, "an image")
	})
	if got, err := edit(t.Context(), t, Config{URL: url, Token: "secret"}); err != nil || string(got) != "an image" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAttempts(t *testing.T) {
	t.Parallel()
	keys := make(chan string, 10)
	for _, c := range []struct {
		name   string
		answer func(n int64, w http.ResponseWriter)
		asked  int64
		good   bool
	}{
		{"twice down", func(n int64, w http.ResponseWriter) {
			if n < 3 {
				w.WriteHeader(http.StatusInternalServerError)
				return
			}
			fmt.Fprint(w, "an image")
		}, 3, true},
		{"always down", func(_ int64, w http.ResponseWriter) { w.WriteHeader(http.StatusBadGateway) }, 3, false},
		{"busy once", func(n int64, w http.ResponseWriter) {
			if n < 2 {
				w.WriteHeader(http.StatusTooManyRequests)
				return
			}
			fmt.Fprint(w, "an image")
		}, 2, true},
		{"breaks off once", func(n int64, w http.ResponseWriter) {
			if n < 2 {
				w.Header().Set("Content-Length", "1000")
			}
			fmt.Fprint(w, "an image")
		}, 2, true},
		{"empty", func(_ int64, w http.ResponseWriter) { w.WriteHeader(http.StatusOK) }, 3, false},
		{"wrong token", func(_ int64, w http.ResponseWriter) { w.WriteHeader(http.StatusUnauthorized) }, 1, false},
		{"elsewhere", func(_ int64, w http.ResponseWriter) {
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		}, 1, false},
		{"huge, declared", func(_ int64, w http.ResponseWriter) { w.Header().Set("Content-Length", "1001") }, 1, false},
		{"huge", func(_ int64, w http.ResponseWriter) {
			for range 100 {
				fmt.Fprint(w, strings.Repeat("x", 100))
				w.(http.Flusher).Flush()
			}
		}, 1, false},
	} {
		url, asked := stub(t, func(n int64, w http.ResponseWriter, r *http.Request) {
			if c.name == "twice down" {
				keys <- r.Header.Get("Idempotency-Key")
			}
			c.answer(n, w)
		})
		got, err := edit(t.Context(), t, Config{URL: url, MostBytes: 1000})
		if (err == nil) != c.good || asked.Load() != c.asked || (c.good && string(got) != "an image") {
			t.Errorf("%s: %.40q, %v after %d requests, want %d", c.name, got, err, asked.Load(), c.asked)
		}
		if refused := (*Refused)(nil); errors.As(err, &refused) {
			t.Errorf("%s: %v is no refusal", c.name, err)
		}
	}
	if first, second, third := <-keys, <-keys, <-keys; first != second || first != third {
		t.Error("an attempt has another idempotency key than the first")
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	for body, message := range map[string]string{
		`{"error": {"message": "No cats."}}`: "No cats.",
		`{"error": "No\ncats."}`:             "No cats.",
		`{"error": 5}`:                       "",
		`<html>`:                             "",
		``:                                   "",
		`{"error": "` + strings.Repeat("ü", 1000) + `"}`: strings.Repeat("ü", 300),
	} {
		url, asked := stub(t, func(_ int64, w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, body)
		})
		_, err := edit(t.Context(), t, Config{URL: url})
		if refused := (*Refused)(nil); !errors.As(err, &refused) || refused.Message != message || refused.Status != 422 || asked.Load() != 1 {
			t.Errorf("%.50q: %v after %d requests", body, err, asked.Load())
		}
	}
}

func TestTime(t *testing.T) {
	t.Parallel()
	url, asked := stub(t, func(_ int64, _ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	if _, err := edit(t.Context(), t, Config{URL: url, Timeout: 50 * time.Millisecond, Attempts: 2}); !errors.Is(err, context.DeadlineExceeded) || asked.Load() != 2 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
	// A cancel ends the wait at once, and nothing is tried again.
	ctx, cancel := context.WithCancel(t.Context())
	waiting, asked := stub(t, func(_ int64, _ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		<-r.Context().Done()
	})
	if _, err := edit(ctx, t, Config{URL: waiting}); !errors.Is(err, context.Canceled) || asked.Load() != 1 {
		t.Errorf("%v after %d requests", err, asked.Load())
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	if _, err := edit(t.Context(), t, Config{URL: gone.URL}); err == nil || !strings.Contains(err.Error(), "after 3 attempts") {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{
		{}, {URL: "model"}, {URL: "ftp://host/"}, {URL: "http://"}, {URL: "http://a b/"},
		{URL: "http://host/", Timeout: -1}, {URL: "http://host/", Timeout: 2 * time.Hour}, {URL: "http://host/", Attempts: 11}, {URL: "http://host/", MostBytes: -1},
	} {
		if _, err := Open(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}
