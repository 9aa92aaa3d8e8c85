// Package api is the HTTP face of enlarger: the whole VanceAI Open API under /api/v1, with its OpenAPI document and a
// reference page made from the same code, and the two health addresses.
//
// It decodes, calls and encodes. What it hides: the one table of error codes and statuses, the envelope around everything that can go
// wrong, request ids and the access log, authentication, rate limits, slow and vanished clients, and multipart bodies that
// stream into object storage without ever being held in memory.
package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// Config is what the API is made of. Everything without a default below is required.
type Config struct {
	Accounts *account.Store
	Jobs     *job.Store
	Ledger   *billing.Ledger
	Prices   *billing.Prices
	Catalog  *engine.Catalog
	Storage  *storage.Store
	// Redis counts requests for the rate limit. It should be made with ContextTimeoutEnabled, else a Redis that hangs costs a request
	// the client's own timeouts and retries.
	Redis redis.UniversalClient
	// Fetcher refuses source URLs that are malformed or not http(s); the fetch itself is the worker's.
	Fetcher *storage.Fetcher
	// SniffImage reads what the first bytes of a file say of it. An error means that it is certainly no supported image; a Source whose
	// size is not Known means that the size does not stand in these bytes.
	SniffImage func(prefix []byte) (engine.Source, error)
	// Dispatch wakes a worker for a queued job. A failure is only logged: the sweeper dispatches again.
	Dispatch func(ctx context.Context, w job.WakeUp) error
	// Stopped tells the workers that a job was canceled or deleted; best effort. Nil tells nobody.
	Stopped func(ctx context.Context, id string)

	Limits Limits
	// Geo is off when it names no countries.
	Geo Geo
	// Proxies are the networks whose X-Forwarded-For and Geo.Header are believed. None: the peer's own address counts, and the header of
	// Geo is believed from everyone.
	Proxies []netip.Prefix
	// PublicURL is this server's base URL as clients see it, without /api/v1; the OpenAPI document names it. "" names the path alone.
	PublicURL string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
	Log *zap.Logger
	// Metrics may be nil.
	Metrics *Metrics
	// Version is the program's version, for the OpenAPI document.
	Version string
}

// Geo says which countries are refused, and how a request's country is known.
type Geo struct {
	// Header carries the ISO 3166 alpha-2 country, set by a proxy: CF-IPCountry for example.
	Header string
	// Countries are refused.
	Countries []string
}

// Limits bound what a client may ask for. A zero field means its default.
type Limits struct {
	// ImageUploadBytes is the largest image sent inline. Default 200 MiB.
	ImageUploadBytes int64
	// VideoUploadBytes is the largest single PUT, the documented max_bytes. Default 5261334937 (4.9 GiB).
	VideoUploadBytes int64
	// RatePerMinute is the requests a minute and key, unless the account has its own. Default 60.
	RatePerMinute int
	// MaxImage and MaxVideo cap an account's jobs in flight, unless the account has its own. Defaults 20 and 4.
	MaxImage, MaxVideo int
	// ResultURLTTL is how long result_url works. Default 24 h.
	ResultURLTTL time.Duration
	// RedirectTTL is how long the target of /result works. Default 15 min.
	RedirectTTL time.Duration
	// UploadTTL is how long an upload may be used. Default 24 h.
	UploadTTL time.Duration
	// BodyPatience is how long a client may take for each 16 KiB of a body. Default 30 s.
	BodyPatience time.Duration
	// Uploads is how many image files are received at the same time, and UploadsPerAccount by one account. Defaults 64 and 16.
	Uploads, UploadsPerAccount int
	// CallTimeout bounds what one request waits for the database, Redis and storage together, the transfer of a body aside. Default 15 s.
	CallTimeout time.Duration
	// FailedPerMinute is how many requests with a bad key one address may send a minute. Default 120.
	FailedPerMinute int
}

func (l Limits) withDefaults() Limits {
	for _, d := range []struct {
		field *int64
		value int64
	}{{&l.ImageUploadBytes, 200 << 20}, {&l.VideoUploadBytes, 5_261_334_937}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *int
		value int
	}{{&l.RatePerMinute, 60}, {&l.MaxImage, 20}, {&l.MaxVideo, 4}, {&l.Uploads, 64}, {&l.UploadsPerAccount, 16}, {&l.FailedPerMinute, 120}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&l.ResultURLTTL, 24 * time.Hour},
		{&l.RedirectTTL, 15 * time.Minute},
		{&l.UploadTTL, 24 * time.Hour},
		{&l.BodyPatience, 30 * time.Second},
		{&l.CallTimeout, 15 * time.Second},
	} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	return l
}

// base is the path that all endpoints of the API document are under.
const base = "/api/v1"

type server struct {
	cfg      Config
	errors   errorTable
	routes   *routes
	rate     *rateLimiter
	failures *failureLimiter
	uploads  *places
	health   *health
	// blocked are the refused countries.
	blocked map[string]bool
}

// New makes the handler of /api/v1, /healthz and /readyz. The error says what is missing in the configuration.
func New(cfg Config) (http.Handler, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Limits = cfg.Limits.withDefaults()
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Stopped == nil {
		cfg.Stopped = func(context.Context, string) {}
	}
	s := &server{
		cfg: cfg, errors: newErrorTable(), rate: newRateLimiter(cfg.Redis), failures: newFailureLimiter(cfg.Limits.FailedPerMinute),
		uploads: newPlaces(cfg.Limits.Uploads, cfg.Limits.UploadsPerAccount), health: newHealth(cfg), blocked: map[string]bool{},
	}
	for _, country := range cfg.Geo.Countries {
		s.blocked[strings.ToUpper(country)] = true
	}
	s.routes = newRoutes(s)
	document := humago.New(s.routes, huma.Config{OpenAPI: newDocument(cfg)})
	for _, op := range s.operations(document.OpenAPI().Components.Schemas) {
		s.register(document, op)
	}
	if err := s.serveReference(document.OpenAPI()); err != nil {
		return nil, err
	}
	s.routes.HandleFunc("GET /healthz", s.healthz)
	s.routes.HandleFunc("GET /readyz", s.readyz)
	return s, nil
}

func (c Config) check() error {
	missing := []string{}
	for _, part := range []struct {
		name string
		none bool
	}{
		{"Accounts", c.Accounts == nil},
		{"Jobs", c.Jobs == nil},
		{"Ledger", c.Ledger == nil},
		{"Prices", c.Prices == nil},
		{"Catalog", c.Catalog == nil},
		{"Storage", c.Storage == nil},
		{"Redis", c.Redis == nil},
		{"Fetcher", c.Fetcher == nil},
		{"SniffImage", c.SniffImage == nil},
		{"Dispatch", c.Dispatch == nil},
		{"Log", c.Log == nil},
	} {
		if part.none {
			missing = append(missing, part.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("api: configuration without %s", strings.Join(missing, ", "))
	}
	if len(c.Geo.Countries) > 0 && c.Geo.Header == "" {
		return errors.New("api: countries are to be refused, but no header carries a request's country")
	}
	names := []string{}
	for _, tool := range c.Catalog.Tools() {
		names = append(names, tool.Name)
	}
	return c.Prices.Covers(names)
}

// register adds an operation to the OpenAPI document and to the routes.
func (s *server) register(document huma.API, op operation) {
	described := op.describe(document.OpenAPI().Components.Schemas, s.errors)
	document.OpenAPI().AddOperation(described)
	document.Adapter().Handle(described, func(ctx huma.Context) {
		r, w := humago.Unwrap(ctx)
		s.run(op, exchangeOf(w), r)
	})
}

// run carries one request of an operation: who is asking, may they, and then the operation itself.
func (s *server) run(op operation, x *exchange, r *http.Request) {
	result, err := s.call(op, x, r)
	if err != nil {
		s.sendError(x, asError(err))
		return
	}
	s.send(x, result)
}

func (s *server) call(op operation, x *exchange, r *http.Request) (*answer, error) {
	// A client that closes its sending side looks to net/http like one that has gone away, so its going ends nothing here: a body that breaks
	// off does, and everything else is short. When a body is to be streamed there is no deadline over all; each step takes its own.
	ctx := context.WithoutCancel(r.Context())
	if !op.streams {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Limits.CallTimeout)
		defer cancel()
	}
	if !op.public {
		asking, cancel := s.within(ctx)
		defer cancel()
		if err := s.admit(asking, x, r); err != nil {
			return nil, err
		}
	}
	return op.handle(ctx, x, r)
}

// within gives one step of a streaming operation its own deadline.
func (s *server) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.cfg.Limits.CallTimeout)
}

// outliving is a context for what must be done although the client has gone or the request has failed.
func (s *server) outliving(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Limits.CallTimeout)
}
