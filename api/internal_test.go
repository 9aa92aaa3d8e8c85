package api

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
)

// TestErrorTable holds the table against the rule that decides the type of a code.
func TestErrorTable(t *testing.T) {
	t.Parallel()
	seen := map[Code]bool{}
	for _, k := range kinds() {
		want := "validation"
		switch {
		case k.status == 401, k.status == 403:
			want = "auth"
		case k.status == 402:
			want = "billing"
		case k.status == 429:
			want = "rate_limit"
		case k.status >= 500:
			want = "server"
		case k.status == 202:
			want = "processing"
		}
		if k.category != want || seen[k.code] || k.when == "" || !strings.HasSuffix(k.message, ".") {
			t.Errorf("%+v, want type %s", k, want)
		}
		seen[k.code] = true
	}
	if status, body := newErrorTable().body(&Error{Code: "nonsense", Message: "m"}, "r"); status != 500 || body.Error.Code != InternalError {
		t.Errorf("an unknown code: %d %+v", status, body)
	}
}

func TestAsError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err   error
		code  Code
		param string
		retry bool
	}{
		{fmt.Errorf("x: %w", job.ErrNotFound), JobNotFound, "", false},
		{job.ErrConcurrency, ConcurrencyLimit, "", true},
		{job.ErrUploadExpired, UploadExpired, "", false},
		{job.ErrIdempotencyBusy, IdempotencyConflict, "", true},
		{billing.ErrInsufficient, InsufficientCredits, "", false},
		{engine.ErrUnsupportedTool, UnsupportedTool, "", false},
		{&engine.ParamError{Param: "config.scale", Message: "must be 2."}, InvalidParameter, "config.scale", false},
		{errors.New("a bug"), InternalError, "", false},
		{fmt.Errorf("%w: %w", db.ErrUncertain, io.ErrUnexpectedEOF), ServiceUnavailable, "", true},
		{&net.OpError{Op: "dial", Err: errors.New("refused")}, ServiceUnavailable, "", true},
		{fmt.Errorf("x: %w", badParam("tool", "is bad.")), InvalidParameter, "tool", false},
	} {
		e := asError(c.err)
		if e.Code != c.code || e.Param != c.param || (e.RetryAfter > 0) != c.retry {
			t.Errorf("%v: %+v", c.err, e)
		}
		if _, body := newErrorTable().body(e, "r"); strings.Contains(body.Error.Message, "bug") || strings.Contains(body.Error.Message, "refused") {
			t.Errorf("%v shows its inside: %s", c.err, body.Error.Message)
		}
	}
}

func TestClientAddress(t *testing.T) {
	t.Parallel()
	s := &server{cfg: Config{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}}
	for _, c := range []struct {
		peer, forwarded, want string
	}{
		{"203.0.113.7:1234", "", "203.0.113.7"},
		{"203.0.113.7:1234", "198.51.100.1", "203.0.113.7"},
		{"10.0.0.1:1", "198.51.100.1", "198.51.100.1"},
		{"10.0.0.1:1", "198.51.100.1, 10.2.3.4", "198.51.100.1"},
		{"10.0.0.1:1", "6.6.6.6, 198.51.100.1,10.2.3.4", "198.51.100.1"},
		{"10.0.0.1:1", "", "10.0.0.1"},
		{"10.0.0.1:1", "nonsense", "10.0.0.1"},
		{"10.0.0.1:1", "nonsense, 10.0.0.9", "10.0.0.9"},
		{"[2001:db8:1:2:3:4:5:6]:1", "", "2001:db8:1:2::/64"},
		{"[::ffff:203.0.113.7]:1", "", "203.0.113.7"},
		{"[fd00::1]:1", "2001:db8:1:2::9", "2001:db8:1:2::/64"},
		{"pipe", "", "pipe"},
	} {
		r := &http.Request{RemoteAddr: c.peer, Header: http.Header{}}
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := s.clientAddress(r); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestCountryNeedsATrustedProxy(t *testing.T) {
	t.Parallel()
	s := &server{cfg: Config{Proxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Geo: Geo{Header: "X-Country"}}, blocked: map[string]bool{"XX": true}}
	for peer, want := range map[string]string{"10.1.1.1:1": "XX", "203.0.113.7:1": ""} {
		r := &http.Request{RemoteAddr: peer, Header: http.Header{"X-Country": {"xx"}}}
		if got := s.country(r); got != want {
			t.Errorf("%s: %q", peer, got)
		}
	}
}

func TestFailureLimiterIsBounded(t *testing.T) {
	t.Parallel()
	f, now := newFailureLimiter(1), time.Unix(1000, 0)
	for i := range 3 * failureAddresses {
		f.failed(fmt.Sprint(i), now)
		f.succeeded(sha256.Sum256(fmt.Append(nil, i)), now)
	}
	if len(f.count) > failureAddresses || len(f.good) > failureKeys {
		t.Errorf("%d addresses and %d keys", len(f.count), len(f.good))
	}
	mark := sha256.Sum256([]byte("a key"))
	if f.admits("0", mark, now) || !f.admits("new", mark, now) {
		t.Error("the limit of an address")
	}
	f.succeeded(mark, now)
	if !f.admits("0", mark, now) || !f.admits("0", sha256.Sum256(nil), now.Add(failureWindow)) {
		t.Error("a known key, or a new window, is not admitted")
	}
}

// TestConnKeeper drops the connection that has waited longest, and never one at work.
func TestConnKeeper(t *testing.T) {
	t.Parallel()
	k := newConnKeeper(2)
	conns := make([]net.Conn, 5)
	for i := range conns {
		a, b := net.Pipe()
		defer a.Close()
		defer b.Close()
		conns[i] = a
	}
	step := func(i int, state http.ConnState, want int) {
		t.Helper()
		got := k.note(conns[i], state)
		if (want < 0) != (got == nil) || (want >= 0 && got != conns[want]) {
			t.Errorf("connection %d %v: dropped %v, want %d", i, state, slices.Index(conns, got), want)
		}
	}
	step(0, http.StateNew, -1)
	step(1, http.StateNew, -1)
	step(0, http.StateActive, -1)
	step(2, http.StateNew, 1) // 0 is at work, 1 has waited longest
	step(1, http.StateClosed, -1)
	step(2, http.StateActive, -1)
	step(3, http.StateNew, 3) // all others are at work
	step(3, http.StateClosed, -1)
	step(0, http.StateIdle, -1)
	step(4, http.StateNew, 0)
	step(0, http.StateClosed, -1)
	for _, i := range []int{2, 4} {
		step(i, http.StateClosed, -1)
	}
	if k.open != 0 || k.waiting.Len() != 0 || len(k.place) != 0 {
		t.Errorf("left: %d open, %d waiting, %d placed", k.open, k.waiting.Len(), len(k.place))
	}
}

func TestPatientBodyLimit(t *testing.T) {
	t.Parallel()
	for size, over := range map[int]bool{0: false, 9: false, 10: false, 11: true, 1000: true} {
		b := &patientBody{
			body: io.NopCloser(iotest.OneByteReader(strings.NewReader(strings.Repeat("x", size)))), control: http.NewResponseController(httptest.NewRecorder()),
			patience: time.Minute, left: 10,
		}
		got, err := io.ReadAll(b)
		if errors.Is(err, errBodyTooLarge) != over || len(got) != min(size, 10) {
			t.Errorf("%d bytes: %d read, %v", size, len(got), err)
		}
		if _, again := b.Read(make([]byte, 1)); again == nil || (over && !errors.Is(again, errBodyTooLarge)) {
			t.Errorf("%d bytes, read again: %v", size, again)
		}
	}
}

func TestCursor(t *testing.T) {
	t.Parallel()
	at, id := time.UnixMicro(1_749_630_600_123_456), job.NewID()
	gotAt, gotID, err := readCursor(newCursor(at, id))
	if err != nil || !gotAt.Equal(at) || gotID != id {
		t.Errorf("%v %v %v", gotAt, gotID, err)
	}
	if !regexp.MustCompile(`^[A-Za-z0-9_-]+$`).MatchString(newCursor(at, id)) {
		t.Error("a cursor has to be escaped in a URL")
	}
}
