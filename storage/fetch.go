package storage

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"code.dny.dev/ssrf"
)

// FetchConfig says what may be fetched on behalf of a client. Zero values mean the defaults given.
type FetchConfig struct {
	// MaxBytes is the largest body, in bytes. Default 200 MiB.
	MaxBytes int64
	// MaxRedirects is how many redirects are followed, 1-10. Default 5.
	MaxRedirects int

	// DialTimeout bounds resolving and connecting, per hop; TLSTimeout the handshake; HeaderTimeout the wait for the
	// answer. Defaults 10 s, 10 s, 30 s.
	DialTimeout, TLSTimeout, HeaderTimeout time.Duration
	// IdleTimeout ends a body that sends no byte for so long. Default 30 s.
	IdleTimeout time.Duration
	// MinRate is the lowest average rate of a body, in bytes per second, once 30 s were spent waiting for it.
	// Default 8 KiB/s; -1 is none.
	MinRate int64

	// Ports may be connected to besides 80 and 443.
	Ports []uint16
	// AnyPort drops the port check: for tests and trusted networks.
	AnyPort bool
	// AllowPrivate drops the address check: for tests and installations that fetch from their own network only.
	AllowPrivate bool
	// AllowPrefixes may be connected to although they are private: the operator's own network.
	AllowPrefixes []netip.Prefix
	// AllowHosts are names, or name:port, that may be connected to wherever they lead and, with a port given, on that
	// port.
	AllowHosts []string
	// DenyPrefixes may not be connected to although they are public: the operator's own public addresses, say.
	DenyPrefixes []netip.Prefix

	// UserAgent is sent with every request. Default enlarger.
	UserAgent string
	// Resolver looks up names. Default net.DefaultResolver.
	Resolver *net.Resolver
	// TLS is the client side of https. Default: verify against the certificates of the system.
	TLS *tls.Config
}

const (
	defaultFetchMax     = 200 << 20
	defaultRedirects    = 5
	redirectsMax        = 10
	fetchPhaseTimeout   = 10 * time.Second
	fetchAnswerTimeout  = 30 * time.Second
	defaultMinRate      = 8 << 10
	minRateGrace        = 30 * time.Second
	fetchHeaderBytesMax = 64 << 10
)

// Fetcher fetches clients' URLs and nothing inside the operator's network: every address is checked at the moment of
// connecting, after resolution, on every hop, so that neither a redirect nor a name that changes its address gets
// around it. It is safe for concurrent use and keeps no connection.
type Fetcher struct {
	cfg      FetchConfig
	guardian *ssrf.Guardian
	client   *http.Client
}

// NewFetcher fills in the defaults. A limit out of range is set to the nearest good value.
func NewFetcher(cfg FetchConfig) *Fetcher {
	f := &Fetcher{cfg: cfg.withDefaults()}
	f.guardian = newGuardian(f.cfg)
	f.client = &http.Client{
		CheckRedirect: f.checkRedirect,
		Transport: &http.Transport{
			Proxy:                  nil, // a proxy would connect for us, past the check
			DialContext:            f.dial,
			TLSClientConfig:        f.cfg.TLS,
			TLSHandshakeTimeout:    f.cfg.TLSTimeout,
			ResponseHeaderTimeout:  f.cfg.HeaderTimeout,
			MaxResponseHeaderBytes: fetchHeaderBytesMax,
			DisableCompression:     true, // a small body must not become a large one
			DisableKeepAlives:      true, // every request resolves, connects and is checked anew
		},
	}
	return f
}

func (c FetchConfig) withDefaults() FetchConfig {
	if c.MaxBytes <= 0 {
		c.MaxBytes = defaultFetchMax
	}
	if c.MaxRedirects <= 0 {
		c.MaxRedirects = defaultRedirects
	}
	c.MaxRedirects = min(c.MaxRedirects, redirectsMax)
	for _, timeout := range []struct {
		value    *time.Duration
		standard time.Duration
	}{
		{&c.DialTimeout, fetchPhaseTimeout},
		{&c.TLSTimeout, fetchPhaseTimeout},
		{&c.HeaderTimeout, fetchAnswerTimeout},
		{&c.IdleTimeout, fetchAnswerTimeout},
	} {
		if *timeout.value <= 0 {
			*timeout.value = timeout.standard
		}
	}
	if c.MinRate == 0 {
		c.MinRate = defaultMinRate
	}
	if c.UserAgent == "" {
		c.UserAgent = "enlarger"
	}
	return c
}

// metadataAddresses are in public ranges and yet belong to the machine's own cloud.
var metadataAddresses = [...]string{"168.63.129.16/32"} // Azure's wire server

func newGuardian(cfg FetchConfig) *ssrf.Guardian {
	allowed4, allowed6 := splitPrefixes(cfg.AllowPrefixes)
	denied := slices.Clone(cfg.DenyPrefixes)
	for _, prefix := range metadataAddresses {
		denied = append(denied, netip.MustParsePrefix(prefix))
	}
	denied4, denied6 := splitPrefixes(denied)
	return ssrf.New(
		ssrf.WithAnyPort(), // checkPort decides, and knows which host the port is for
		ssrf.WithAllowedV4Prefixes(allowed4...), ssrf.WithAllowedV6Prefixes(allowed6...),
		ssrf.WithDeniedV4Prefixes(denied4...), ssrf.WithDeniedV6Prefixes(denied6...),
	)
}

func splitPrefixes(prefixes []netip.Prefix) (v4, v6 []netip.Prefix) {
	for _, prefix := range prefixes {
		if prefix.Addr().Is4() {
			v4 = append(v4, prefix)
		} else {
			v6 = append(v6, prefix)
		}
	}
	return v4, v6
}

// Body is what a URL holds. Reading more than FetchConfig.MaxBytes of it fails with ErrTooLarge. Close it.
type Body struct {
	io.ReadCloser
	// Size is in bytes, as announced; -1 is unknown.
	Size int64
	// ContentType is what the server claims, not what it is.
	ContentType string
}

// Fetch opens a client's URL for reading. Its errors are ErrBadURL, ErrBlocked, ErrTooLarge and ErrFetch, as are those
// of reading the body; ClientMessage has words for the client, and Transient tells whether to try again. The URL itself
// is in none of them, because it may carry the client's signature. ctx bounds the whole transfer, body included.
func (f *Fetcher) Fetch(ctx context.Context, raw string) (*Body, error) {
	u, err := f.CheckURL(raw)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		cancel(nil)
		return nil, badURL("cannot be read")
	}
	request.Header.Set("User-Agent", f.cfg.UserAgent)
	request.Header.Set("Accept", "*/*")
	request.Header.Set("Accept-Encoding", "identity")
	response, err := f.client.Do(request)
	if err != nil {
		cancel(nil)
		return nil, explainFetch(err)
	}
	if err := f.checkResponse(response); err != nil {
		cancel(nil)
		_ = response.Body.Close() // not read
		return nil, err
	}
	guarded := guard(response.Body, cancel, f.cfg.IdleTimeout)
	guarded.floor, guarded.grace = f.cfg.MinRate, minRateGrace
	return &Body{
		ReadCloser:  &fetchedBody{guardedBody: guarded, left: f.cfg.MaxBytes, max: f.cfg.MaxBytes},
		Size:        response.ContentLength,
		ContentType: response.Header.Get("Content-Type"),
	}, nil
}

func (f *Fetcher) checkResponse(response *http.Response) error {
	if status := response.StatusCode; status != http.StatusOK {
		text := strconv.Itoa(status)
		if name := http.StatusText(status); name != "" {
			text += " " + name
		}
		return &fetchError{
			kind: ErrFetch, message: "The server of the URL answered " + text + ".",
			transient: transientStatus(status), err: fmt.Errorf("status %d", status),
		}
	}
	switch encoding := strings.ToLower(strings.TrimSpace(response.Header.Get("Content-Encoding"))); encoding {
	case "", "identity", "aws-chunked": // the last is left behind by some uploaders and means nothing
	default:
		return &fetchError{
			kind: ErrFetch, message: "The server of the URL sent a compressed body although none was asked for.",
			err: fmt.Errorf("content encoding %q", encoding),
		}
	}
	if response.ContentLength > f.cfg.MaxBytes {
		return tooLarge(f.cfg.MaxBytes)
	}
	return nil
}

func tooLarge(limit int64) error {
	return &fetchError{
		kind: ErrTooLarge, message: fmt.Sprintf("The file behind the URL is larger than %d bytes.", limit),
		err: fmt.Errorf("limit %d bytes", limit),
	}
}

// fetchedBody counts, and speaks of its faults as Fetch does.
type fetchedBody struct {
	*guardedBody
	left, max int64
}

func (b *fetchedBody) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	// One byte more than allowed, to tell a body of exactly the limit from a larger one.
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.guardedBody.Read(p)
	if int64(n) > b.left {
		n, b.left = int(b.left), 0
		return n, tooLarge(b.max)
	}
	b.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		err = explainFetch(err)
	}
	return n, err
}

func (f *Fetcher) checkRedirect(request *http.Request, via []*http.Request) error {
	if len(via) > f.cfg.MaxRedirects {
		return &fetchError{
			kind: ErrFetch, message: fmt.Sprintf("The URL redirects more than %d times.", f.cfg.MaxRedirects),
			err: errors.New("too many redirects"),
		}
	}
	// The address before may carry the client's signature; the next host has no business with it.
	request.Header.Del("Referer")
	if _, err := f.CheckURL(request.URL.String()); err != nil {
		return &fetchError{kind: ErrBlocked, message: "The URL redirects to an address that is not allowed.", err: err}
	}
	return nil
}

// dial resolves and connects. The guardian sees each address just before it is connected to.
func (f *Fetcher) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, err
	}
	trusted := f.trusts(host, portText)
	if !f.cfg.AnyPort && !trusted && port != 80 && port != 443 && !slices.Contains(f.cfg.Ports, uint16(port)) {
		return nil, blocked(fmt.Errorf("port %d", port))
	}
	if name := strings.TrimSuffix(strings.ToLower(host), "."); !f.cfg.AllowPrivate && !trusted &&
		(name == "localhost" || strings.HasSuffix(name, ".localhost")) {
		// RFC 6761: always this machine, whether or not the resolver at hand knows.
		return nil, blocked(errors.New("localhost by name"))
	}
	dialer := &net.Dialer{Timeout: f.cfg.DialTimeout, Resolver: f.cfg.Resolver}
	var refused error // set by one attempt at a time: FallbackDelay < 0 tries addresses in turn
	dialer.FallbackDelay = -1
	if !f.cfg.AllowPrivate && !trusted {
		dialer.Control = func(network, address string, conn syscall.RawConn) error {
			if err := f.checkAddress(network, address, conn); err != nil {
				refused = err
				return err
			}
			return nil
		}
	}
	conn, err := dialer.DialContext(ctx, network, address)
	if err != nil && refused != nil {
		// A name with a good address that does not answer and a bad one is blocked, not unreachable.
		return nil, blocked(refused)
	}
	return conn, err
}

// trusts is whether the operator named the host. A port in the entry must match; without one only the usual ports pass.
func (f *Fetcher) trusts(host, port string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	for _, entry := range f.cfg.AllowHosts {
		entry = strings.ToLower(entry)
		if entry == net.JoinHostPort(host, port) {
			return true
		}
		if entry == host && (f.cfg.AnyPort || port == "80" || port == "443") {
			return true
		}
	}
	return false
}

func (f *Fetcher) checkAddress(network, address string, conn syscall.RawConn) error {
	if err := f.guardian.Safe(network, address, conn); err != nil {
		return err
	}
	target, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if ssrf.IPv6NAT64Prefix.Contains(target.Addr()) {
		// Only reached where the operator allows the prefix; the IPv4 address inside is still a client's choice.
		bytes := target.Addr().As16()
		return f.guardian.SafeAddr(netip.AddrFrom4([4]byte(bytes[12:])))
	}
	return nil
}

func blocked(err error) error {
	return &fetchError{kind: ErrBlocked, message: "The URL leads to an address that is not allowed.", err: err}
}

// fetchError is any failure of a fetch, with the words that a client may read.
type fetchError struct {
	kind      error
	message   string
	transient bool
	err       error
}

func (e *fetchError) Error() string   { return e.kind.Error() + ": " + e.err.Error() }
func (e *fetchError) Unwrap() []error { return []error{e.kind, e.err} }

// ClientMessage is one sentence about a failed CheckURL or Fetch that is fit for the client, and "" for other errors.
func ClientMessage(err error) string {
	var fetch *fetchError
	if !errors.As(err, &fetch) {
		return ""
	}
	return fetch.message
}

// explainFetch sorts what the HTTP client says, and strips the URL off it.
func explainFetch(err error) error {
	if known, ok := errors.AsType[*fetchError](err); ok {
		return known
	}
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		err = wrapped.Err
	}
	if errors.Is(err, context.Canceled) {
		return &fetchError{kind: ErrFetch, message: "The fetch was canceled.", err: err}
	}
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &dns):
		return &fetchError{
			kind: ErrFetch, message: "The host name of the URL could not be resolved.",
			transient: !dns.IsNotFound, err: err,
		}
	case isTLS(err):
		return &fetchError{kind: ErrFetch, message: "The server of the URL has no valid TLS certificate.", err: err}
	case errors.Is(err, errStalled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return &fetchError{kind: ErrFetch, message: "The server of the URL was too slow.", transient: true, err: err}
	}
	return &fetchError{
		kind: ErrFetch, message: "The connection to the server of the URL failed.",
		transient: brokenConnection(err), err: err,
	}
}

func isTLS(err error) bool {
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	return errors.As(err, &certificate) || errors.As(err, &record) || errors.As(err, &alert)
}
