package api

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"

	"enlarger/account"
)

const (
	// readyTimeout bounds one look at the dependencies, readyFor how long its outcome is used again: the address is open to
	// everyone and must not become a way to load them.
	readyTimeout = 2 * time.Second
	readyFor     = time.Second
)

// health looks at what the API depends on.
type health struct {
	checks []healthCheck
	log    *zap.Logger

	mu    sync.Mutex
	until time.Time
	last  readiness
}

type healthCheck struct {
	name  string
	check func(ctx context.Context) error
}

// readiness is the answer of /readyz.
type readiness struct {
	Ready bool `json:"ready"`
	// Checks are "ok" or "unavailable" by dependency.
	Checks map[string]string `json:"checks"`
}

func newHealth(cfg Config) *health {
	return &health{log: cfg.Log, checks: []healthCheck{
		{"database", func(ctx context.Context) error {
			if _, err := cfg.Accounts.Get(ctx, ""); !errors.Is(err, account.ErrNotFound) {
				return err
			}
			return nil
		}},
		{"redis", func(ctx context.Context) error { return cfg.Redis.Ping(ctx).Err() }},
		{"storage", cfg.Storage.Check},
	}}
}

func (h *health) look(ctx context.Context) readiness {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Now().Before(h.until) {
		return h.last
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
	defer cancel()
	errs := make([]error, len(h.checks))
	var all sync.WaitGroup
	for i, c := range h.checks {
		all.Go(func() { errs[i] = c.check(ctx) })
	}
	all.Wait()
	h.last = readiness{Ready: true, Checks: map[string]string{}}
	for i, c := range h.checks {
		h.last.Checks[c.name] = "ok"
		if errs[i] != nil {
			h.last.Ready, h.last.Checks[c.name] = false, "unavailable"
			h.log.Warn("not ready", zap.String("dependency", c.name), zap.Error(errs[i]))
		}
	}
	h.until = time.Now().Add(readyFor)
	return h.last
}

// healthz says that the process serves requests.
func (s *server) healthz(w http.ResponseWriter, _ *http.Request) {
	s.send(exchangeOf(w), &answer{status: http.StatusOK, body: map[string]string{"status": "ok"}})
}

// readyz says whether a job could be taken now.
func (s *server) readyz(w http.ResponseWriter, r *http.Request) {
	ready := s.health.look(r.Context())
	a := &answer{status: http.StatusOK, body: ready}
	if !ready.Ready {
		a.status, a.retryAfter = http.StatusServiceUnavailable, retryOutage
	}
	s.send(exchangeOf(w), a)
}
