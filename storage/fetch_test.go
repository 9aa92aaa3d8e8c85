package storage

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// canary is a server on the loopback that a fetch must never reach.
func canary(t *testing.T) (port string, hits *atomic.Int64) {
	t.Helper()
	hits = &atomic.Int64{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hits.Add(1)
		_, _ = io.WriteString(w, "secret")
	}))
	t.Cleanup(server.Close)
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port, hits
}

// dnsServer answers every query for an A record with what answer says, and no AAAA.
func dnsServer(t *testing.T, answer func(name string) []string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		packet := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(packet)
			if err != nil {
				return
			}
			if reply := dnsReply(packet[:n], answer); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	}()
	t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// dnsReply answers one question (RFC 1035): the header, the question, and one record per address.
func dnsReply(query []byte, answer func(name string) []string) []byte {
	const header, typeA = 12, 1
	var labels []string
	at := header
	for at < len(query) && query[at] != 0 {
		length := int(query[at])
		if at+1+length >= len(query) {
			return nil
		}
		labels = append(labels, string(query[at+1:at+1+length]))
		at += 1 + length
	}
	at++
	if at+4 > len(query) {
		return nil
	}
	var records [][]byte
	if binary.BigEndian.Uint16(query[at:]) == typeA {
		for _, text := range answer(strings.Join(labels, ".")) {
			ip := netip.MustParseAddr(text).As4()
			// A pointer to the question's name, type A, class IN, no time to live, 4 bytes.
			records = append(records, append([]byte{0xc0, header, 0, typeA, 0, 1, 0, 0, 0, 0, 0, 4}, ip[:]...))
		}
	}
	reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, byte(len(records)), 0, 0, 0, 0}, query[header:at+4]...)
	return append(reply, bytes.Join(records, nil)...)
}

// TestFetchBlocked is the table of addresses and tricks. %s is the canary's port.
func TestFetchBlocked(t *testing.T) {
	t.Parallel()
	port, hits := canary(t)
	resolver := dnsServer(t, func(name string) []string {
		switch name {
		case "loopback.test":
			return []string{"127.0.0.1"}
		case "private.test":
			return []string{"10.1.2.3"}
		case "several.test":
			return []string{"10.0.0.1", "127.0.0.1"}
		case "metadata.test":
			return []string{"169.254.169.254"}
		}
		return nil
	})
	f := NewFetcher(FetchConfig{AnyPort: true, Resolver: resolver, DialTimeout: 5 * time.Second})
	for _, test := range []struct {
		url  string
		want error
	}{
		// Loopback in all its notations.
		{"http://127.0.0.1:%s/", ErrBlocked},
		{"http://127.0.0.2:%s/", ErrBlocked},
		{"http://127.255.255.254:%s/", ErrBlocked},
		{"http://0.0.0.0:%s/", ErrBlocked},
		{"http://0.1.2.3:%s/", ErrBlocked},
		{"http://localhost:%s/", ErrBlocked},
		{"http://LOCALHOST:%s/", ErrBlocked},
		{"http://localhost.:%s/", ErrBlocked},
		{"http://a.localhost:%s/", ErrBlocked},
		{"http://[::1]:%s/", ErrBlocked},
		{"http://[0:0:0:0:0:0:0:1]:%s/", ErrBlocked},
		{"http://[::]:%s/", ErrBlocked},
		{"http://[::ffff:127.0.0.1]:%s/", ErrBlocked},
		{"http://[::ffff:7f00:1]:%s/", ErrBlocked},
		{"http://[::127.0.0.1]:%s/", ErrBlocked},
		{"http://[::ffff:0:127.0.0.1]:%s/", ErrBlocked},
		{"http://127.1:%s/", ErrBadURL},
		{"http://127.0.1:%s/", ErrBadURL},
		{"http://2130706433:%s/", ErrBadURL},
		{"http://0x7f000001:%s/", ErrBadURL},
		{"http://0x7f.0.0.1:%s/", ErrBadURL},
		{"http://0177.0.0.1:%s/", ErrBadURL},
		{"http://017700000001:%s/", ErrBadURL},
		{"http://127.0.0.01:%s/", ErrBadURL},
		{"http://127.0.0.0x1:%s/", ErrBadURL},
		{"http://127.0.0.1.:%s/", ErrBadURL},
		{"http://1:%s/", ErrBadURL},
		{"http://256.256.256.256:%s/", ErrBadURL},
		{"http://①②⑦.⓪.⓪.①:%s/", ErrBlocked},
		{"http://127。0。0。1:%s/", ErrBlocked},
		{"http://127.0.0.1%%00:%s/", ErrBadURL},
		{"http://127.0.0.1%%2f:%s/", ErrBadURL},
		// Private, shared, link-local, reserved.
		{"http://10.0.0.1:%s/", ErrBlocked},
		{"http://10.255.255.255:%s/", ErrBlocked},
		{"http://172.16.0.1:%s/", ErrBlocked},
		{"http://172.31.255.255:%s/", ErrBlocked},
		{"http://192.168.0.1:%s/", ErrBlocked},
		{"http://100.64.0.1:%s/", ErrBlocked},
		{"http://100.127.255.255:%s/", ErrBlocked},
		{"http://169.254.0.1:%s/", ErrBlocked},
		{"http://192.0.0.8:%s/", ErrBlocked},
		{"http://192.0.2.1:%s/", ErrBlocked},
		{"http://192.88.99.1:%s/", ErrBlocked},
		{"http://198.18.0.1:%s/", ErrBlocked},
		{"http://198.51.100.1:%s/", ErrBlocked},
		{"http://203.0.113.1:%s/", ErrBlocked},
		{"http://224.0.0.1:%s/", ErrBlocked},
		{"http://240.0.0.1:%s/", ErrBlocked},
		{"http://255.255.255.255:%s/", ErrBlocked},
		{"http://[fe80::1]:%s/", ErrBlocked},
		{"http://[fe80::1%%25lo]:%s/", ErrBadURL},
		{"http://[::1%%25lo]:%s/", ErrBadURL},
		{"http://[fc00::1]:%s/", ErrBlocked},
		{"http://[fd12:3456:789a::1]:%s/", ErrBlocked},
		{"http://[fec0::1]:%s/", ErrBlocked},
		{"http://[ff02::1]:%s/", ErrBlocked},
		{"http://[2001:db8::1]:%s/", ErrBlocked},
		{"http://[100::1]:%s/", ErrBlocked},
		{"http://[::ffff:10.0.0.1]:%s/", ErrBlocked},
		{"http://[::ffff:169.254.169.254]:%s/", ErrBlocked},
		// IPv4 inside IPv6: NAT64, 6to4, Teredo.
		{"http://[64:ff9b::7f00:1]:%s/", ErrBlocked},
		{"http://[64:ff9b::127.0.0.1]:%s/", ErrBlocked},
		{"http://[64:ff9b:1::7f00:1]:%s/", ErrBlocked},
		{"http://[2002:7f00:1::]:%s/", ErrBlocked},
		{"http://[2001:0:7f00:1::]:%s/", ErrBlocked},
		// The clouds' own machines.
		{"http://169.254.169.254/latest/meta-data/", ErrBlocked},
		{"http://169.254.170.2:%s/", ErrBlocked},
		{"http://168.63.129.16:%s/", ErrBlocked},
		{"http://100.100.100.200:%s/", ErrBlocked},
		{"http://192.0.0.192:%s/", ErrBlocked},
		{"http://[fd00:ec2::254]:%s/", ErrBlocked},
		{"http://[fd20:ce::254]:%s/", ErrBlocked},
		{"http://2852039166/", ErrBadURL},
		// Names that lead there.
		{"http://loopback.test:%s/", ErrBlocked},
		{"https://loopback.test:%s/", ErrBlocked},
		{"http://private.test:%s/", ErrBlocked},
		{"http://several.test:%s/", ErrBlocked},
		{"http://metadata.test:%s/", ErrBlocked},
		// Shapes of the URL itself.
		{"", ErrBadURL},
		{"127.0.0.1:%s", ErrBadURL},
		{"//127.0.0.1:%s/", ErrBadURL},
		{"http:127.0.0.1:%s/", ErrBadURL},
		{"http:///127.0.0.1:%s/", ErrBadURL},
		{"http://:%s/", ErrBadURL},
		{"http://127.0.0.1:%s@loopback.test/", ErrBadURL},
		{"http://loopback.test@127.0.0.1:%s/", ErrBadURL},
		{"http://user:password@127.0.0.1:%s/", ErrBadURL},
		{"http://127.0.0.1:%s\\@loopback.test/", ErrBadURL},
		{"http://127.0.0.1:%s /", ErrBadURL},
		{"http://127.0.0.1:%s/\r\nX: y", ErrBadURL},
		{"http://127.0.0.1\t:%s/", ErrBadURL},
		{"http://127.0.0.1:0/", ErrBadURL},
		{"http://127.0.0.1:65536/", ErrBadURL},
		{"http://127.0.0.1:http/", ErrBadURL},
		{"http://127.0.0.1:-1/", ErrBadURL},
		{"http://127.0.0.1:/", ErrBadURL},
		{"http://a..b:%s/", ErrBadURL},
		{"file:///etc/passwd", ErrBadURL},
		{"ftp://127.0.0.1:%s/", ErrBadURL},
		{"gopher://127.0.0.1:%s/", ErrBadURL},
		{"data:text/plain,hello", ErrBadURL},
		{"javascript:alert(1)", ErrBadURL},
		{"unix:///run/docker.sock", ErrBadURL},
		{"http+unix://%%2Frun%%2Fdocker.sock/", ErrBadURL},
		{"http://" + strings.Repeat("a", 254) + ":%s/", ErrBadURL},
		{"http://loopback.test:%s/" + strings.Repeat("a", urlSizeMax), ErrBadURL},
	} {
		raw := test.url
		if strings.Contains(raw, "%s") {
			raw = fmt.Sprintf(raw, port)
		} else {
			raw = strings.ReplaceAll(raw, "%%", "%")
		}
		body, err := f.Fetch(testContext(t), raw)
		if err == nil {
			_ = body.Close()
			t.Errorf("%s: fetched", raw)
			continue
		}
		if !errors.Is(err, test.want) || Transient(err) || ClientMessage(err) == "" {
			t.Errorf("%s: %v (%q), want %v", raw, err, ClientMessage(err), test.want)
		}
	}
	if n := hits.Load(); n > 0 {
		t.Errorf("the canary was reached %d times", n)
	}
}

func TestFetchPorts(t *testing.T) {
	t.Parallel()
	port, hits := canary(t)
	f := NewFetcher(FetchConfig{AllowPrivate: true, Ports: []uint16{8443}, DialTimeout: 2 * time.Second})
	for _, raw := range []string{"http://127.0.0.1:" + port, "http://127.0.0.1:22/", "http://127.0.0.1:6379/", "https://127.0.0.1:25/"} {
		if _, err := f.Fetch(testContext(t), raw); !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: %v", raw, err)
		}
	}
	if hits.Load() > 0 {
		t.Error("the canary was reached")
	}
	// Nothing listens on these here, so that the fetch goes past the check and fails later.
	for _, raw := range []string{"http://127.0.0.9:8443/"} {
		if _, err := f.Fetch(testContext(t), raw); !errors.Is(err, ErrFetch) || !Transient(err) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// TestFetchAllowed gives the operator's exceptions one by one.
func TestFetchAllowed(t *testing.T) {
	t.Parallel()
	port, hits := canary(t)
	number := netip.MustParseAddrPort("127.0.0.1:" + port).Port()
	resolver := dnsServer(t, func(string) []string { return []string{"127.0.0.1"} })
	loopback := netip.MustParsePrefix("127.0.0.0/8")
	for name, test := range map[string]struct {
		cfg  FetchConfig
		host string
		good bool
	}{
		"prefix":                     {FetchConfig{AllowPrefixes: []netip.Prefix{loopback}, Ports: []uint16{number}}, "127.0.0.1", true},
		"prefix, other port":         {FetchConfig{AllowPrefixes: []netip.Prefix{loopback}}, "127.0.0.1", false},
		"prefix, other address":      {FetchConfig{AllowPrefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, AnyPort: true}, "127.0.0.1", false},
		"host and port":              {FetchConfig{AllowHosts: []string{"Files.test:" + port}}, "files.test", true},
		"host and port, other host":  {FetchConfig{AllowHosts: []string{"files.test:" + port}}, "other.test", false},
		"host and port, by address":  {FetchConfig{AllowHosts: []string{"files.test:" + port}, AnyPort: true}, "127.0.0.1", false},
		"host without port":          {FetchConfig{AllowHosts: []string{"files.test"}}, "files.test", false},
		"host without port, any":     {FetchConfig{AllowHosts: []string{"files.test"}, AnyPort: true}, "files.test", true},
		"all private":                {FetchConfig{AllowPrivate: true, AnyPort: true}, "127.0.0.1", true},
		"mapped NAT64 stays blocked": {FetchConfig{AllowPrefixes: []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96")}, AnyPort: true}, "[64:ff9b::127.0.0.1]", false},
	} {
		hits.Store(0)
		test.cfg.Resolver = resolver
		body, err := NewFetcher(test.cfg).Fetch(testContext(t), "http://"+test.host+":"+port+"/")
		if err == nil {
			_ = body.Close()
		}
		if test.good != (err == nil) || !test.good && !errors.Is(err, ErrBlocked) || test.good != (hits.Load() == 1) {
			t.Errorf("%s: %v, %d hits", name, err, hits.Load())
		}
	}
	denied := NewFetcher(FetchConfig{AnyPort: true, DenyPrefixes: []netip.Prefix{netip.MustParsePrefix("8.8.8.0/24")}})
	if _, err := denied.Fetch(testContext(t), "http://8.8.8.8/"); !errors.Is(err, ErrBlocked) {
		t.Errorf("denied: %v", err)
	}
}

// TestFetchRebinding changes the address of a name between look-ups: whatever is resolved for the connection itself
// is what gets checked, on the first request and behind a redirect.
func TestFetchRebinding(t *testing.T) {
	t.Parallel()
	port, hits := canary(t)
	var allowed atomic.Int64
	hop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		allowed.Add(1)
		http.Redirect(w, r, "http://flips.test:"+port+"/", http.StatusFound)
	}))
	t.Cleanup(hop.Close)
	var lookups atomic.Int64
	resolver := dnsServer(t, func(name string) []string {
		if name == "hop.test" {
			return []string{"127.0.0.1"}
		}
		if lookups.Add(1)%2 == 1 {
			return []string{"203.0.113.7"} // not private, and yet nobody's
		}
		return []string{"127.0.0.1"}
	})
	_, hopPort, err := net.SplitHostPort(hop.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	f := NewFetcher(FetchConfig{AnyPort: true, Resolver: resolver, AllowHosts: []string{"hop.test:" + hopPort}})
	for i := range 6 {
		if _, err := f.Fetch(testContext(t), "http://flips.test:"+port+"/"); !errors.Is(err, ErrBlocked) {
			t.Errorf("%d: %v", i, err)
		}
		if _, err := f.Fetch(testContext(t), "http://hop.test:"+hopPort+"/"); !errors.Is(err, ErrBlocked) {
			t.Errorf("%d, redirected: %v", i, err)
		}
	}
	if allowed.Load() != 6 || lookups.Load() < 12 || hits.Load() > 0 {
		t.Errorf("%d hops, %d look-ups, %d hits", allowed.Load(), lookups.Load(), hits.Load())
	}
}

func TestFetchRedirects(t *testing.T) {
	t.Parallel()
	port, hits := canary(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/to", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("u"))
		w.WriteHeader(http.StatusFound)
	})
	mux.HandleFunc("/down/{n}", func(w http.ResponseWriter, r *http.Request) {
		var n int
		if _, err := fmt.Sscan(r.PathValue("n"), &n); err != nil || n == 0 {
			_, _ = io.WriteString(w, "end "+r.Header.Get("Referer")+r.Header.Get("Cookie"))
			return
		}
		w.Header().Set("Set-Cookie", "a=b")
		http.Redirect(w, r, fmt.Sprintf("/down/%d?secret", n-1), http.StatusTemporaryRedirect)
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	f := NewFetcher(FetchConfig{AllowHosts: []string{host}, AnyPort: true})
	for n, good := range map[int]bool{0: true, 1: true, 5: true, 6: false, 20: false} {
		body, err := f.Fetch(testContext(t), fmt.Sprintf("%s/down/%d", server.URL, n))
		if good != (err == nil) || !good && (!errors.Is(err, ErrFetch) || Transient(err)) {
			t.Errorf("%d redirects: %v", n, err)
		}
		if err == nil {
			text, err := io.ReadAll(body)
			_ = body.Close()
			if err != nil || string(text) != "end " {
				t.Errorf("%d redirects: %q, %v", n, text, err)
			}
		}
	}
	for _, to := range []string{
		"http://127.0.0.1:" + port + "/", "//127.0.0.1:" + port + "/", "http://[::1]:" + port, "http://169.254.169.254/",
		"http://user:password@" + host + "/down/0", "file:///etc/passwd", "gopher://127.0.0.1:" + port + "/x", "http://2130706433:" + port,
		"ftp://" + host, "javascript:1",
	} {
		if _, err := f.Fetch(testContext(t), server.URL+"/to?u="+url.QueryEscape(to)); !errors.Is(err, ErrBlocked) || Transient(err) {
			t.Errorf("to %s: %v", to, err)
		}
	}
	if hits.Load() > 0 {
		t.Error("the canary was reached")
	}
}

// fetchServer answers by path. Its fetcher may reach it and nothing else.
func fetchServer(t *testing.T, cfg FetchConfig, routes map[string]http.HandlerFunc) (*Fetcher, string) {
	t.Helper()
	mux := http.NewServeMux()
	for path, handler := range routes {
		mux.HandleFunc(path, handler)
	}
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	cfg.AllowHosts = []string{strings.TrimPrefix(server.URL, "http://")}
	return NewFetcher(cfg), server.URL
}

func TestFetchBodies(t *testing.T) {
	t.Parallel()
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	_, _ = z.Write(make([]byte, 1<<20))
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	const limit = 1000
	serve := func(n int, announce bool) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "image/jpeg")
			if announce {
				w.Header().Set("Content-Length", fmt.Sprint(n))
			} else {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
			}
			_, _ = w.Write(make([]byte, n))
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	f, base := fetchServer(t, FetchConfig{MaxBytes: limit}, map[string]http.HandlerFunc{
		"/exact": serve(limit, true), "/over": serve(limit+1, true), "/empty": serve(0, true),
		"/exact-chunked": serve(limit, false), "/over-chunked": serve(limit+1, false), "/far-chunked": serve(1<<20, false),
		"/404": status(404), "/403": status(403), "/500": status(500), "/503": status(503), "/429": status(429), "/204": status(204), "/206": status(206),
		"/zipped": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(zipped.Bytes())
		},
		"/cut": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "900")
			_, _ = w.Write(make([]byte, 100))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
		"/dropped": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"/headers": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, r.Header.Get("User-Agent")+r.Header.Get("Accept-Encoding")+r.Header.Get("Authorization"))
		},
		"/endless-header": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 2*fetchHeaderBytesMax))
		},
	})
	for path, test := range map[string]struct {
		size      int64
		read      int
		openErr   error
		readErr   error
		transient bool
		message   string
	}{
		"/exact": {size: limit, read: limit}, "/empty": {size: 0}, "/exact-chunked": {size: -1, read: limit},
		"/over":           {openErr: ErrTooLarge, message: "The file behind the URL is larger than 1000 bytes."},
		"/over-chunked":   {size: -1, read: limit, readErr: ErrTooLarge},
		"/far-chunked":    {size: -1, read: limit, readErr: ErrTooLarge},
		"/404":            {openErr: ErrFetch, message: "The server of the URL answered 404 Not Found."},
		"/403":            {openErr: ErrFetch, message: "The server of the URL answered 403 Forbidden."},
		"/204":            {openErr: ErrFetch},
		"/206":            {openErr: ErrFetch},
		"/500":            {openErr: ErrFetch, transient: true},
		"/503":            {openErr: ErrFetch, transient: true},
		"/429":            {openErr: ErrFetch, transient: true},
		"/zipped":         {openErr: ErrFetch},
		"/cut":            {size: 900, read: 100, readErr: ErrFetch, transient: true},
		"/dropped":        {openErr: ErrFetch, transient: true},
		"/headers":        {size: 16, read: 16},
		"/endless-header": {openErr: ErrFetch},
	} {
		body, err := f.Fetch(testContext(t), base+path+"?X-Amz-Signature=secret")
		if !errors.Is(err, test.openErr) {
			t.Errorf("%s: %v, want %v", path, err, test.openErr)
		}
		if err == nil {
			var text []byte
			text, err = io.ReadAll(body)
			if body.Size != test.size || len(text) != test.read || !errors.Is(err, test.readErr) {
				t.Errorf("%s: %d of %d bytes, %v", path, len(text), body.Size, err)
			}
			_ = body.Close()
			_ = body.Close() // twice is fine
		}
		if Transient(err) != test.transient || test.message != "" && ClientMessage(err) != test.message {
			t.Errorf("%s: %v: transient %t, %q", path, err, Transient(err), ClientMessage(err))
		}
		if err != nil && (strings.Contains(err.Error(), "secret") || ClientMessage(err) == "") {
			t.Errorf("%s: %q for the log, %q for the client", path, err, ClientMessage(err))
		}
	}
}

func TestFetchSlow(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hold := func(r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	f, base := fetchServer(t, FetchConfig{IdleTimeout: 100 * time.Millisecond}, map[string]http.HandlerFunc{
		"/silent": func(_ http.ResponseWriter, r *http.Request) { hold(r) },
		"/stalls": func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "begin")
			w.(http.Flusher).Flush()
			hold(r)
		},
	})
	t.Cleanup(func() { close(release) })
	hasty := f.cfg
	hasty.HeaderTimeout = 100 * time.Millisecond
	if _, err := NewFetcher(hasty).Fetch(testContext(t), base+"/silent"); !errors.Is(err, ErrFetch) || !Transient(err) {
		t.Errorf("silent: %v", err)
	}
	body, err := f.Fetch(testContext(t), base+"/stalls")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	if len(text) > 5 || string(text) != "begin"[:len(text)] || !errors.Is(err, ErrFetch) || !Transient(err) || ClientMessage(err) != "The server of the URL was too slow." {
		t.Errorf("stalls: %q, %v", text, err)
	}
	_ = body.Close()
	// A canceled job is not worth a retry.
	ctx, cancel := context.WithCancel(testContext(t))
	if body, err = f.Fetch(ctx, base+"/stalls"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err = io.ReadAll(body); err == nil || Transient(err) {
		t.Errorf("canceled: %v", err)
	}
	_ = body.Close()
}

// TestGuardFloor feeds a guard with a clock of its own making: the time spent waiting is set, not lived through.
func TestGuardFloor(t *testing.T) {
	t.Parallel()
	g := guard(io.NopCloser(strings.NewReader("0123456789")), func(error) {}, time.Hour)
	g.floor, g.grace, g.waited = 1000, time.Minute, 59*time.Second
	if _, err := g.Read(make([]byte, 3)); err != nil {
		t.Errorf("within the grace: %v", err)
	}
	g.waited = 61 * time.Second
	if _, err := g.Read(make([]byte, 3)); !errors.Is(err, errStalled) {
		t.Errorf("after the grace: %v", err)
	}
	if _, err := g.Read(make([]byte, 3)); !errors.Is(err, errStalled) {
		t.Errorf("afterwards: %v", err)
	}
	_ = g.Close()
}

func TestFetchTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // failed handshakes are what this is about
	server.StartTLS()
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "https://")
	if _, err := NewFetcher(FetchConfig{AllowHosts: []string{host}}).Fetch(testContext(t), server.URL); !errors.Is(err, ErrFetch) || Transient(err) || !strings.Contains(ClientMessage(err), "TLS") {
		t.Errorf("unknown authority: %v", err)
	}
	trusting := NewFetcher(FetchConfig{AllowHosts: []string{host}, TLS: server.Client().Transport.(*http.Transport).TLSClientConfig})
	body, err := trusting.Fetch(testContext(t), server.URL)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	_ = body.Close()
	if err != nil || string(text) != "hello" {
		t.Errorf("%q, %v", text, err)
	}
	// Plain HTTP where TLS was announced.
	plain, _ := canary(t)
	f := NewFetcher(FetchConfig{AllowHosts: []string{"127.0.0.1:" + plain}})
	if _, err := f.Fetch(testContext(t), "https://127.0.0.1:"+plain); !errors.Is(err, ErrFetch) || Transient(err) {
		t.Errorf("no TLS: %v", err)
	}
}

func TestFetchNames(t *testing.T) {
	t.Parallel()
	f := NewFetcher(FetchConfig{Resolver: dnsServer(t, func(string) []string { return nil })})
	if _, err := f.Fetch(testContext(t), "http://nowhere.test/"); !errors.Is(err, ErrFetch) || Transient(err) {
		t.Errorf("no such name: %v", err)
	}
	dead := NewFetcher(FetchConfig{DialTimeout: time.Second, Resolver: &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("no route to the name server")}
	}}})
	if _, err := dead.Fetch(testContext(t), "http://nowhere.test/"); !errors.Is(err, ErrFetch) || !Transient(err) {
		t.Errorf("no name server: %v", err)
	}
}

func TestCheckURLGood(t *testing.T) {
	t.Parallel()
	f := NewFetcher(FetchConfig{})
	for _, raw := range []string{
		"http://example.com", "https://example.com/a.jpg", "HTTPS://EXAMPLE.COM/", "http://example.com:8080/", "http://8.8.8.8/",
		"http://[2606:4700::1111]/", "http://sub.example.co.uk/a%20b?c=d&e=%2F#f", "http://xn--bcher-kva.example/", "http://bücher.example/ä",
		"http://3com.com/", "http://a-b_c.example/", "http://example.com./", "http://1.example/", "http://example.com/http://other/@x",
		"https://bucket.s3.amazonaws.com/k?X-Amz-Credential=a%2F20260101%2Fx&X-Amz-Signature=0",
	} {
		if u, err := f.CheckURL(raw); err != nil || u.Host == "" {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

// FuzzCheckURL holds what passes the check to what the rest relies on.
func FuzzCheckURL(f *testing.F) {
	for _, seed := range []string{
		"http://example.com", "https://[::1]:80/", "http://1.2.3.4", "http://0x7f.1/", "http://a@b/", "http://a:0/", "HTTP://A", "http://①.com",
		"http://a\\b", "//a", "http:a", "http://%41/", "http://[::1%25a]/", "http://a:99999", "http://ex\x00ample",
	} {
		f.Add(seed)
	}
	fetcher := NewFetcher(FetchConfig{})
	f.Fuzz(func(t *testing.T, raw string) {
		u, err := fetcher.CheckURL(raw)
		if err != nil {
			if !errors.Is(err, ErrBadURL) || ClientMessage(err) == "" || Transient(err) {
				t.Fatalf("%q: %v", raw, err)
			}
			return
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || len(raw) > urlSizeMax {
			t.Fatalf("%q passes as %+v", raw, u)
		}
		// What is sent is read the same way again: no second reader sees another host.
		again, err := fetcher.CheckURL(u.String())
		if err != nil && len(u.String()) <= urlSizeMax || err == nil && (again.Host != u.Host || again.Scheme != u.Scheme) {
			t.Fatalf("%q is read as %q and then as %+v, %v", raw, u.String(), again, err)
		}
		if _, err := http.NewRequest(http.MethodGet, u.String(), nil); err != nil {
			t.Fatalf("%q: %v", raw, err)
		}
		labels := strings.Split(strings.TrimSuffix(u.Hostname(), "."), ".")
		if _, err := netip.ParseAddr(u.Hostname()); err != nil && numeric(labels[len(labels)-1]) {
			t.Fatalf("%q: an address in disguise", raw)
		}
	})
}
