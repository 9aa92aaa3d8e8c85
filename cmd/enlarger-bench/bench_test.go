package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain makes this program the object store too, as main does.
func TestMain(m *testing.M) {
	if isStore(os.Args) {
		exit(serveStore(os.Args[2], os.Stdout))
	}
	// A server that refuses a body waits half a second before it closes the connection, and ends by itself.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, test := range []struct {
		sorted []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 0.5, 0},
		{hundred[:1], 0.5, 1},
		{hundred[:1], 0.99, 1},
		{hundred[:2], 0.5, 1},
		{hundred[:3], 0.5, 2},
		{hundred, 0.5, 50},
		{hundred, 0.9, 90},
		{hundred, 0.99, 99},
		{hundred, 1, 100},
		{hundred, 0, 1},
	} {
		if got := percentile(test.sorted, test.p); got != test.want {
			t.Errorf("percentile of %d values at %v is %d, want %d", len(test.sorted), test.p, got, test.want)
		}
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{7}, 7}, {[]float64{9, 1}, 5}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		given := slices.Clone(test.values)
		if got := median(test.values); got != test.want {
			t.Errorf("median of %v is %v, want %v", test.values, got, test.want)
		}
		if !slices.Equal(given, test.values) {
			t.Errorf("median changed its input to %v", test.values)
		}
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	got := table([][]string{{"a", "b"}, {"1", "2"}})
	if want := "| a | b |\n|---|---|\n| 1 | 2 |\n"; got != want {
		t.Errorf("got\n%s", got)
	}
}

func loadOf(server *httptest.Server) *load {
	return &load{client: server.Client(), rate: 100, want: http.StatusAccepted, inFlight: 1000, request: func(ctx context.Context) (*http.Request, error) {
		return http.NewRequestWithContext(ctx, http.MethodPost, server.URL, http.NoBody)
	}}
}

// A server that stands still must be charged for every request that came due meanwhile, not for the one it holds.
func TestLoadIsOpen(t *testing.T) {
	t.Parallel()
	const stall = 400 * time.Millisecond
	var first sync.Once
	stalled := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		first.Do(func() { time.AfterFunc(stall, func() { close(stalled) }) })
		<-stalled
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	got := loadOf(server).run(t.Context(), 500*time.Millisecond)
	if len(got.sorted)+got.errors() != 50 || got.errors() != 0 {
		t.Fatalf("%d answers and %v, want 50", len(got.sorted), got.faults)
	}
	// Requests came due every 10 ms while the server stood still: those of its first half each waited half of it or more.
	slow := 0
	for _, latency := range got.sorted {
		if latency >= stall/2 {
			slow++
		}
	}
	if slow < 20 {
		t.Errorf("%d requests waited at least %v, want at least 20", slow, stall/2)
	}
}

func TestLoadCountsFaults(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		switch n.Add(1) % 3 {
		case 0:
			w.WriteHeader(http.StatusAccepted)
		case 1:
			http.Error(w, "no", http.StatusTooManyRequests)
		case 2:
			panic(http.ErrAbortHandler)
		}
	}))
	defer server.Close()
	got := loadOf(server).run(t.Context(), 300*time.Millisecond)
	if len(got.sorted) != 10 || got.faults["429 Too Many Requests: no\n"] != 10 || got.faults["no answer"] != 10 {
		t.Errorf("%d answers and %v", len(got.sorted), got.faults)
	}
}

// Requests beyond the bound are not sent, and not forgotten.
func TestLoadIsBounded(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		<-release
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	l := loadOf(server)
	l.inFlight = 5
	timer := time.AfterFunc(400*time.Millisecond, func() { close(release) })
	defer timer.Stop()
	got := l.run(t.Context(), 300*time.Millisecond)
	if len(got.sorted) != 5 || got.faults["not sent: 5 unanswered"] != 25 {
		t.Errorf("%d answers and %v", len(got.sorted), got.faults)
	}
}

func TestForm(t *testing.T) {
	t.Parallel()
	photo := []byte("\xff\xd8\xff\xe0 a photo")
	body, contentType, err := form(photo, "photo.jpg")
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		t.Fatal(err)
	}
	reader := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	var got []string
	for {
		part, err := reader.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		value, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %q", part.FormName(), part.FileName(), value))
	}
	want := []string{fmt.Sprintf("image photo.jpg %q", photo), `tool  "upscale"`, `config  "{\"scale\":2}"`, `output_format  "jpg"`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestInParallel(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	if err := inParallel(t.Context(), 4, 100, func(context.Context) error { n.Add(1); return nil }); err != nil || n.Load() != 100 {
		t.Errorf("%d calls, %v", n.Load(), err)
	}
	broken := errors.New("broken")
	n.Store(0)
	err := inParallel(t.Context(), 4, 100, func(ctx context.Context) error {
		switch i := n.Add(1); {
		case i == 10:
			return broken
		case i > 10:
			<-ctx.Done() // the others hear of it
		}
		return nil
	})
	if !errors.Is(err, broken) || n.Load() > 13 {
		t.Errorf("%d calls, %v", n.Load(), err)
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	if _, err := parse(nil, io.Discard); err != nil {
		t.Errorf("the defaults are refused: %v", err)
	}
	for _, args := range []string{"-rate 0", "-jobs -1", "-parts nothing", "-modes cloud", "-duration 1ms", "-duration 60s", "more", "-unknown"} {
		if _, err := parse(strings.Fields(args), io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%s: %v", args, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text   string
		parent int
		used   time.Duration
	}{
		{"12 (a) b) (c) S 7 1 1 0 -1 4194304 1 2 3 4 100 20 3 4 20 0 1 0 5", 7, 1270 * time.Millisecond},
		{"12 (short) S 7", 0, 0},
		{"", 0, 0},
		{"12 (x) S y 1 1 0 -1 4194304 1 2 3 4 100 20 3 4", 0, 0},
	} {
		if parent, used := parseStat([]byte(test.text)); parent != test.parent || used != test.used {
			t.Errorf("%q: parent %d, %v", test.text, parent, used)
		}
	}
}

func TestTreeCPU(t *testing.T) {
	t.Parallel()
	before := treeCPU(true)
	for deadline := time.Now().Add(30 * time.Second); treeCPU(true) <= before; {
		if time.Now().After(deadline) {
			t.Fatal("no processor time is counted")
		}
	}
	if parents := map[int]int{9: 5, 5: 1, 1: 0}; !descends(9, 5, parents) || !descends(9, 9, parents) || descends(5, 9, parents) || descends(4, 1, parents) {
		t.Error("descent is wrong")
	}
}

func TestBed(t *testing.T) {
	t.Parallel()
	var order []string
	err := func() (err error) {
		b := newBed(t.Context(), io.Discard)
		defer b.close(&err)
		b.Cleanup(func() { order = append(order, "outer") })
		b.scope(func(b *bed) {
			b.Cleanup(func() { order = append(order, "first") })
			b.Cleanup(func() { order = append(order, "last") })
			b.must(os.ErrNotExist)
		})
		t.Error("the work went on")
		return nil
	}()
	if !errors.Is(err, os.ErrNotExist) || !slices.Equal(order, []string{"last", "first", "outer"}) {
		t.Errorf("%v, clean-ups %v", err, order)
	}
}

// The smallest run that has everything in it: all peers, both modes, real servers, and the audit at its end.
func TestThroughput(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	args := strings.Fields("-parts throughput,profile -jobs 20 -rounds 2 -slots 4 -accounts 2 -profile-jobs 5 -no-fsync")
	if err := run(t.Context(), args, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"### Throughput: fleet", "### Throughput: embedded", "| bare asynq | ", "| enlarger | ", "| River with the same ledger and files | ", "### Where the time goes", "INSERT INTO entries", "`PUT`", "`evalsha`"} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no %q in\n%s", line, out.String())
		}
	}
}
