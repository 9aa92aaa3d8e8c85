package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"enlarger/account"
)

// admit finds out who is asking and whether they may: region, key, rate.
func (s *server) admit(ctx context.Context, x *exchange, r *http.Request) error {
	if s.blocked[s.country(r)] {
		return refuse(GeoRestricted)
	}
	if err := s.authenticate(ctx, x, r); err != nil {
		return err
	}
	limit := s.cfg.Limits.RatePerMinute
	if x.account.RateLimit > 0 {
		limit = x.account.RateLimit
	}
	w, err := s.rate.take(ctx, x.key.ID, limit)
	if err != nil {
		return unavailable(err)
	}
	w.describe(x.Header())
	if !w.admitted {
		return &Error{Code: RateLimited, RetryAfter: w.wait()}
	}
	return nil
}

func (s *server) authenticate(ctx context.Context, x *exchange, r *http.Request) error {
	secret := bearer(r)
	mark := sha256.Sum256([]byte(secret))
	now := s.cfg.Now()
	if !s.failures.admits(x.address, mark, now) {
		return &Error{
			Code: RateLimited, RetryAfter: int(failureWindow.Seconds()),
			Message: "Too many requests with a bad API key from this address. Wait a minute.",
		}
	}
	a, k, err := s.cfg.Accounts.Authenticate(ctx, secret)
	switch {
	case errors.Is(err, account.ErrInvalidKey):
		s.failures.failed(x.address, now)
		return refuse(InvalidAPIKey)
	case errors.Is(err, account.ErrSuspended):
		return refuse(Unauthorized)
	case err != nil:
		return err
	}
	s.failures.succeeded(mark, now)
	x.account, x.key = a, k
	return nil
}

// bearer is the key of the one Authorization header; "" when there is none, several, or another scheme.
func bearer(r *http.Request) string {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, secret, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(secret)
}

// country is the request's country by the operator's header, in upper case; "" when it is not known.
func (s *server) country(r *http.Request) string {
	if len(s.blocked) == 0 || (len(s.cfg.Proxies) > 0 && !s.proxied(r)) {
		return ""
	}
	return strings.ToUpper(strings.TrimSpace(r.Header.Get(s.cfg.Geo.Header)))
}

// proxied says whether the request comes from a trusted proxy.
func (s *server) proxied(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && s.trusted(peer.Addr())
}

func (s *server) trusted(addr netip.Addr) bool {
	addr = addr.Unmap()
	for _, network := range s.cfg.Proxies {
		if network.Contains(addr) {
			return true
		}
	}
	return false
}

// clientAddress is the address that failed requests are counted by: the peer's, or behind trusted proxies the last address in
// X-Forwarded-For that is not one of them. An IPv6 client counts as its /64, which is what one customer gets.
func (s *server) clientAddress(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	addr := peer.Addr().Unmap()
	if s.trusted(addr) {
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		for _, text := range slices.Backward(hops) {
			hop, err := netip.ParseAddr(strings.TrimSpace(text))
			if err != nil {
				break
			}
			if addr = hop.Unmap(); !s.trusted(addr) {
				break
			}
		}
	}
	if addr.Is6() {
		if network, err := addr.Prefix(64); err == nil {
			return network.String()
		}
	}
	return addr.String()
}

const (
	// failureWindow is the time over which failed authentications of an address are counted.
	failureWindow = time.Minute
	// failureAddresses and failureKeys bound the memory of the counters: a few MB.
	failureAddresses = 20_000
	failureKeys      = 10_000
	// goodFor is how long a key that worked passes although its address is over the limit: other clients behind the same
	// address must not suffer for one that floods. The key itself is looked up every time.
	goodFor = 10 * time.Minute
)

// failureLimiter slows addresses down that keep sending bad keys, in memory and for this process only.
type failureLimiter struct {
	limit int

	mu    sync.Mutex
	since time.Time
	count map[string]int
	good  map[[sha256.Size]byte]time.Time
}

func newFailureLimiter(limit int) *failureLimiter {
	return &failureLimiter{limit: limit, count: map[string]int{}, good: map[[sha256.Size]byte]time.Time{}}
}

func (f *failureLimiter) admits(address string, mark [sha256.Size]byte, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn(now)
	return f.count[address] < f.limit || now.Sub(f.good[mark]) < goodFor
}

func (f *failureLimiter) failed(address string, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn(now)
	// At the bound new addresses go uncounted until the window turns, which is soon.
	if _, known := f.count[address]; known || len(f.count) < failureAddresses {
		f.count[address]++
	}
}

func (f *failureLimiter) succeeded(mark [sha256.Size]byte, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.good[mark]; !known && len(f.good) >= failureKeys {
		clear(f.good)
	}
	f.good[mark] = now
}

func (f *failureLimiter) turn(now time.Time) {
	if now.Sub(f.since) >= failureWindow {
		f.since = now
		clear(f.count)
	}
}

// describe writes the window into the documented headers and the IETF ones.
func (w rateWindow) describe(h http.Header) {
	limit, left := strconv.Itoa(w.limit), strconv.Itoa(w.remaining)
	h.Set("X-RateLimit-Limit", limit)
	h.Set("X-RateLimit-Remaining", left)
	h.Set("X-RateLimit-Reset", strconv.FormatInt(w.reset, 10))
	h.Set("RateLimit-Policy", `"key";q=`+limit+`;w=`+strconv.Itoa(rateSeconds))
	h.Set("RateLimit", `"key";r=`+left+`;t=`+strconv.Itoa(w.wait()))
}
