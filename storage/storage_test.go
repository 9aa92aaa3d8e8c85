package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"
)

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	good := Config{Endpoint: "http://127.0.0.1:9000", Bucket: "bucket", AccessKey: "a", SecretKey: "b"}
	if s, err := Open(good); err != nil {
		t.Fatal(err)
	} else {
		s.Close()
	}
	for name, change := range map[string]func(*Config){
		"no bucket":            func(c *Config) { c.Bucket = "" },
		"upper-case bucket":    func(c *Config) { c.Bucket = "Bucket" },
		"bucket with a path":   func(c *Config) { c.Bucket = "a/../b" },
		"no access key":        func(c *Config) { c.AccessKey = "" },
		"no secret key":        func(c *Config) { c.SecretKey = "" },
		"endpoint scheme":      func(c *Config) { c.Endpoint = "127.0.0.1:9000" },
		"endpoint host":        func(c *Config) { c.Endpoint = "http://" },
		"endpoint user":        func(c *Config) { c.Endpoint = "http://u:p@host" },
		"endpoint query":       func(c *Config) { c.Endpoint = "http://host/?a" },
		"public endpoint":      func(c *Config) { c.PublicEndpoint = "ftp://host" },
		"negative attempts":    func(c *Config) { c.Attempts = -1 },
		"too many attempts":    func(c *Config) { c.Attempts = 11 },
		"negative dial time":   func(c *Config) { c.DialTimeout = -1 },
		"negative answer time": func(c *Config) { c.ResponseTimeout = -1 },
		"negative idle time":   func(c *Config) { c.IdleTimeout = -1 },
	} {
		cfg := good
		change(&cfg)
		if _, err := Open(cfg); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	_, err := Open(Config{})
	if err == nil || !strings.Contains(err.Error(), "bucket") || !strings.Contains(err.Error(), "secret key") {
		t.Errorf("all faults at once: %v", err)
	}
}

// brokenStore is a client of whatever handler does, without patience.
func brokenStore(t *testing.T, cfg Config, handler http.HandlerFunc) *Store {
	t.Helper()
	if handler != nil {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		cfg.Endpoint = server.URL
	}
	cfg.Bucket, cfg.AccessKey, cfg.SecretKey, cfg.PathStyle, cfg.TempDir = testBucket, "access", "secret", true, t.TempDir()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// closedPort is an address where nothing listens.
func closedPort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// every runs each operation that a dead service must fail in, and returns the errors.
func every(ctx context.Context, t *testing.T, s *Store) map[string]error {
	t.Helper()
	faults := map[string]error{"check": s.Check(ctx), "ensure": s.EnsureBucket(ctx), "delete": s.Delete(ctx, "key"), "delete two": s.Delete(ctx, "a", "b")}
	_, faults["head"] = s.Head(ctx, "key")
	_, _, faults["get"] = s.Get(ctx, "key")
	_, faults["download"] = s.Download(ctx, "key", filepath.Join(t.TempDir(), "x"), 0)
	_, faults["put"] = s.Put(ctx, "key", bytes.NewReader([]byte("x")), 1, "")
	_, faults["put stream"] = s.Put(ctx, "key", plainReader{bytes.NewReader([]byte("x"))}, 1, "")
	_, faults["put unknown"] = s.Put(ctx, "key", plainReader{bytes.NewReader(make([]byte, inlineMax+1))}, -1, "")
	_, faults["put parts"] = s.Put(ctx, "key", plainReader{bytes.NewReader(make([]byte, partSize+1))}, -1, "")
	_, faults["list"] = s.List(ctx, "", "", 1)
	return faults
}

func TestDeadEndpoint(t *testing.T) {
	t.Parallel()
	s := brokenStore(t, Config{Endpoint: "http://" + closedPort(t), Attempts: 2}, nil)
	for operation, err := range every(testContext(t), t, s) {
		if err == nil || !Transient(err) || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v: transient %t", operation, err, Transient(err))
		}
	}
}

// TestSilentEndpoint takes connections and says nothing: the caller sets no deadline and must get an error all the same.
func TestSilentEndpoint(t *testing.T) {
	t.Parallel()
	s := brokenStore(t, Config{Attempts: 1, ResponseTimeout: 100 * time.Millisecond}, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	for operation, err := range every(context.WithoutCancel(t.Context()), t, s) {
		if err == nil || !Transient(err) {
			t.Errorf("%s: %v: transient %t", operation, err, Transient(err))
		}
	}
}

// TestDeafEndpoint takes connections and reads nothing: a body larger than the socket's buffer must not block forever.
func TestDeafEndpoint(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan net.Conn, 16)
	go func() {
		defer close(held)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			held <- conn
		}
	}()
	t.Cleanup(func() {
		_ = listener.Close()
		for conn := range held {
			_ = conn.Close()
		}
	})
	s := brokenStore(t, Config{Endpoint: "http://" + listener.Addr().String(), Attempts: 1, IdleTimeout: 200 * time.Millisecond}, nil)
	content := bytes.NewReader(make([]byte, 64<<20))
	if _, err := s.Put(context.WithoutCancel(t.Context()), "key", content, content.Size(), ""); err == nil || !Transient(err) {
		t.Errorf("%v: transient %t", err, Transient(err))
	}
}

// TestStallingBody sends half an object and falls silent.
func TestStallingBody(t *testing.T) {
	t.Parallel()
	s := brokenStore(t, Config{Attempts: 1, IdleTimeout: 100 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "hello")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	body, _, err := s.Get(context.WithoutCancel(t.Context()), "key")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	if len(text) > 5 || string(text) != "hello"[:len(text)] || !errors.Is(err, errStalled) || !Transient(err) {
		t.Errorf("%q, %v", text, err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}

// TestDownloadResumes breaks the connection several times; every attempt goes on where the one before broke.
func TestDownloadResumes(t *testing.T) {
	t.Parallel()
	content := randomBytes(t, 1000)
	for name, test := range map[string]struct {
		breaks int64
		change bool
		good   bool
	}{
		"never": {0, false, true}, "once": {1, false, true}, "as often as allowed": {resumesMax, false, true},
		"too often": {resumesMax + 1, false, false}, "replaced meanwhile": {1, true, false},
	} {
		var requests atomic.Int64
		s := brokenStore(t, Config{Attempts: 1}, func(w http.ResponseWriter, r *http.Request) {
			n := requests.Add(1)
			start, status := 0, http.StatusOK
			if span := r.Header.Get("Range"); span != "" {
				start, _ = strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(span, "bytes="), "-"))
				status = http.StatusPartialContent
			}
			if test.change && n > 1 && r.Header.Get("If-Match") == `"tag"` {
				w.WriteHeader(http.StatusPreconditionFailed)
				return
			}
			w.Header().Set("ETag", `"tag"`)
			w.Header().Set("Content-Length", strconv.Itoa(len(content)-start))
			w.WriteHeader(status)
			end := len(content)
			if n <= test.breaks {
				end = min(end, start+150)
			}
			_, _ = w.Write(content[start:end])
			if n <= test.breaks {
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			}
		})
		path := filepath.Join(t.TempDir(), "file")
		object, err := s.Download(testContext(t), "key", path, 0)
		got, readErr := os.ReadFile(path)
		if test.good && (err != nil || !bytes.Equal(got, content) || object.Size != int64(len(content))) {
			t.Errorf("%s: %d bytes, %+v, %v", name, len(got), object, err)
		}
		if !test.good && (err == nil || !errors.Is(readErr, fs.ErrNotExist)) {
			t.Errorf("%s: %v, %v", name, err, readErr)
		}
	}
}

func TestTransient(t *testing.T) {
	t.Parallel()
	answer := func(status int, code string) error {
		s := brokenStore(t, Config{Attempts: 1}, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
		})
		_, _, err := s.Get(testContext(t), "key")
		return err
	}
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"nothing":               {nil, false},
		"500":                   {answer(500, "InternalError"), true},
		"501":                   {answer(501, "NotImplemented"), false},
		"502":                   {answer(502, ""), true},
		"503":                   {answer(503, "SlowDown"), true},
		"507":                   {answer(507, "InsufficientStorage"), true},
		"429":                   {answer(429, "TooManyRequests"), true},
		"400 timeout":           {answer(400, "RequestTimeout"), true},
		"400":                   {answer(400, "InvalidArgument"), false},
		"403":                   {answer(403, "AccessDenied"), false},
		"404":                   {answer(404, "NoSuchKey"), false},
		"412":                   {answer(412, "PreconditionFailed"), false},
		"canceled":              {fmt.Errorf("x: %w", context.Canceled), false},
		"deadline":              {fmt.Errorf("x: %w", context.DeadlineExceeded), true},
		"cut off":               {fmt.Errorf("x: %w", io.ErrUnexpectedEOF), true},
		"refused":               {&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, true},
		"reset inside":          {&url.Error{Op: "Put", Err: &net.OpError{Op: "write", Err: syscall.ECONNRESET}}, true},
		"local disk":            {&fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}, false},
		"local disk, timed out": {fmt.Errorf("x: %w", os.ErrDeadlineExceeded), true},
		"body size":             {&url.Error{Op: "Put", Err: errBodySize}, false},
		"not found":             {ErrNotFound, false},
		"too large":             {ErrTooLarge, false},
		"other":                 {errors.New("other"), false},
		"a key that failed":     {&partialError{code: "InternalError"}, true},
		"a key that is denied":  {&partialError{code: "AccessDenied"}, false},
	} {
		if got := Transient(test.err); got != test.want {
			t.Errorf("%s: %v: %t", name, test.err, got)
		}
	}
}

// TestRetries lets a service fail now and then; the client's own attempts hide it.
func TestRetries(t *testing.T) {
	t.Parallel()
	e, err := OpenEmbedded(t.TempDir(), EmbeddedConfig{Bucket: testBucket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requests.Add(1)%2 == 1 {
			_, _ = io.Copy(io.Discard, r.Body)
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		e.Handler().ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s := clientOf(t, e, Config{Endpoint: server.URL})
	t.Cleanup(s.Close)
	ctx := testContext(t)
	content := randomBytes(t, partSize+100)
	if _, err := s.Put(ctx, "key", plainReader{bytes.NewReader(content)}, -1, ""); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "file")
	if _, err := s.Download(ctx, "key", path, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"sources/job_1":                  SourceKey("job_1"),
		"uploads/upl_1.mp4":              UploadKey("upl_1", "mp4"),
		"uploads/upl_2.mov":              UploadKey("upl_2", ".MOV"),
		"uploads/upl_3":                  UploadKey("upl_3", ""),
		"uploads/upl_4":                  UploadKey("upl_4", "../x"),
		"uploads/upl_5":                  UploadKey("upl_5", "averylongone"),
		"results/job_1/12.jpg":           ResultKey("job_1", 12, "jpg"),
		"results/job_1/":                 ResultPrefix("job_1"),
		"results/job_1/segments/7.2.mp4": SegmentKey("job_1", 7, 2, "mp4"),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func FuzzDisposition(f *testing.F) {
	for _, name := range []string{"a.jpg", `a"b.jpg`, "ä b.mp4", "a\r\nX: y", "../../etc/passwd", "a;b=c", strings.Repeat("ü", 300), "\xff", "%41", "\\"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		value := disposition(name)
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' }) || !utf8.ValidString(value) {
			t.Fatalf("%q becomes %q", name, value)
		}
		if quotes := strings.Count(value, `"`); quotes != 2 || len(value) > 1000 || strings.ContainsAny(value, `/\`) {
			t.Fatalf("%q becomes %q", name, value)
		}
	})
}
