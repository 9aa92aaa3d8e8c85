package testbed

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// HTTPFault is what becomes of one request to an HTTPProxy. The zero value passes it on.
type HTTPFault struct {
	// Before is called first, while the request waits.
	Before func()
	// Delay is waited for first, or until the client gives up.
	Delay time.Duration
	// Status answers the request without passing it on.
	Status int
	// Cut resets the connection instead of answering; with After set, when the server has done what was asked.
	Cut, After bool
}

// HTTPProxy passes HTTP requests on, untouched down to the Host header that signatures cover, and breaks those that its rule names.
type HTTPProxy struct {
	url    string
	rule   atomic.Pointer[func(*http.Request) HTTPFault]
	broken atomic.Int64
}

// NewHTTPProxy listens on a loopback port and passes requests on to target, a URL of scheme http.
func NewHTTPProxy(t T, target string) *HTTPProxy {
	t.Helper()
	to, err := url.Parse(target)
	if err != nil {
		t.Fatalf("HTTP proxy: %v", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("HTTP proxy: %v", err)
	}
	p := &HTTPProxy{url: "http://" + listener.Addr().String()}
	transport := &http.Transport{MaxIdleConnsPerHost: 16, DisableCompression: true}
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
			r.Out.Host = r.In.Host
		},
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	server := &http.Server{Handler: p.handler(pass), ReadHeaderTimeout: startTimeout, ErrorLog: pass.ErrorLog}
	var running sync.WaitGroup
	running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Logf("HTTP proxy: %v", err)
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		running.Wait()
		transport.CloseIdleConnections()
	})
	return p
}

// URL is the proxy's own http://host:port.
func (p *HTTPProxy) URL() string { return p.url }

// Break sets the rule that each request is asked about; nil passes everything.
func (p *HTTPProxy) Break(rule func(r *http.Request) HTTPFault) {
	if rule == nil {
		p.rule.Store(nil)
		return
	}
	p.rule.Store(&rule)
}

// Broken counts the requests that a rule answered or cut.
func (p *HTTPProxy) Broken() int64 { return p.broken.Load() }

func (p *HTTPProxy) handler(pass http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var fault HTTPFault
		if rule := p.rule.Load(); rule != nil {
			fault = (*rule)(r)
		}
		if fault.Before != nil {
			fault.Before()
		}
		if !wait(r.Context(), fault.Delay) {
			panic(http.ErrAbortHandler)
		}
		if fault.Status == 0 && !fault.Cut {
			pass.ServeHTTP(w, r)
			return
		}
		p.broken.Add(1)
		if fault.After {
			pass.ServeHTTP(&nowhere{http.Header{}}, r)
		}
		if fault.Cut {
			panic(http.ErrAbortHandler)
		}
		// A client that is still sending would see a reset instead of the status.
		_, _ = io.Copy(io.Discard, io.LimitReader(r.Body, messageMax))
		w.WriteHeader(fault.Status)
	})
}

// nowhere takes an answer that nobody gets.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}

func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
