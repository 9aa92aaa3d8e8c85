package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"enlarger/account"
	"enlarger/api"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/image"
	"enlarger/engine/neural"
	"enlarger/engine/turbojpeg"
	"enlarger/engine/video"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/worker"
)

type serveCommand struct{}

// procsPerCPU is how many threads of the all-in-one process may run Go code for each processor. Those that compute have a low priority, so
// with some to spare the kernel gives the processor to one that answers a client at once, where Go's own scheduler would let it wait.
const procsPerCPU = 4

func (serveCommand) Run(a *app) error {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(procsPerCPU * runtime.NumCPU())
	}
	return a.serve("serve", (*settings).check, roles{api: true, worker: true, migrate: true})
}

type apiCommand struct{}

func (apiCommand) Run(a *app) error {
	return a.serve("api", func(s *settings) error { return s.fleet("api") }, roles{api: true})
}

type workerCommand struct{}

func (workerCommand) Run(a *app) error {
	return a.serve("worker", func(s *settings) error { return s.fleet("worker") }, roles{worker: true})
}

// roles say what a process does.
type roles struct{ api, worker, migrate bool }

// parts are what a process is built of.
type parts struct {
	log      *zap.Logger
	settings *settings
	public   string
	db       *db.DB
	jobs     *job.Store
	prices   *billing.Prices
	catalog  *engine.Catalog
	redis    redis.UniversalClient
	storage  *storage.Store
	fetcher  *storage.Fetcher
	// scratch holds the local files of this process's runs.
	scratch *worker.Scratch
	metrics *metrics
	// media serves the embedded store under its bucket's path; nil when the storage is elsewhere.
	media http.Handler
	// closers run last to first.
	closers []func()
}

func (p *parts) onClose(f func()) { p.closers = append(p.closers, f) }

func (p *parts) close() {
	for _, closer := range slices.Backward(p.closers) {
		closer()
	}
}

// serve builds the parts and runs the roles until a signal ends it. What a role needs and has not been given is embedded.
func (a *app) serve(name string, check func(*settings) error, do roles) error {
	if err := check(a.settings); err != nil {
		return err
	}
	p := &parts{log: a.log.Named(name), settings: a.settings}
	defer p.close()
	if err := p.build(a.base, do); err != nil {
		return err
	}
	// Services outlive the drain: a worker that gives its jobs back needs database, Redis and storage for it.
	running, stop := context.WithCancel(context.WithoutCancel(a.base))
	defer stop()
	group, failed := errgroup.WithContext(running)
	ending, end := context.WithCancel(failed)
	defer end()
	unlink := context.AfterFunc(a.base, end)
	defer unlink()

	sweeper := &worker.Sweeper{
		Jobs: p.jobs, Storage: p.storage, Dispatcher: worker.NewDispatcher(p.redis), Log: p.log.Named("sweeper"),
		Every: p.settings.Sweep, Budget: p.settings.RetryBudget, KeepSources: p.settings.KeepSources, Metrics: p.metrics.worker,
	}
	group.Go(func() error { return sweeper.Run(ending) })
	if p.settings.Metrics != "" {
		if err := p.metrics.serve(group, ending, p.settings.Metrics, p.log); err != nil {
			end()
			return errors.Join(err, group.Wait())
		}
	}
	if do.worker {
		w, err := p.newWorker()
		if err != nil {
			return err
		}
		group.Go(func() error { return w.Run(ending) })
		books := auditor{jobs: p.jobs, every: p.settings.AuditEvery, log: p.log.Named("audit")}
		group.Go(func() error { books.run(ending); return nil })
	}
	if do.api {
		if err := p.serveAPI(group, ending); err != nil {
			end()
			return errors.Join(err, group.Wait())
		}
	}
	return group.Wait()
}

func (p *parts) build(ctx context.Context, do roles) error {
	var err error
	s := p.settings
	if p.public, err = s.publicURL(); err != nil {
		return err
	}
	if err := p.lockData(); err != nil {
		return err
	}
	if p.scratch, err = worker.OpenScratch(filepath.Join(s.Data, "scratch")); err != nil {
		return err
	}
	p.onClose(p.scratch.Close)
	var models *neural.Runtime
	if do.worker {
		if models, err = p.openNeural(ctx); err != nil {
			return err
		}
	}
	if p.catalog, err = p.newCatalog(p.scratch.Dir, models); err != nil {
		return err
	}
	if p.prices, err = billing.ReadPrices(s.Pricing); err != nil {
		return err
	}
	names := []string{}
	for _, tool := range p.catalog.Tools() {
		names = append(names, tool.Name)
	}
	if err := p.prices.Covers(names); err != nil {
		return err
	}
	if err := p.openDatabase(ctx, do.migrate); err != nil {
		return err
	}
	p.jobs = job.NewStore(p.db)
	p.metrics = newMetrics(p.jobs, billing.NewLedger(p.db), p.log.Named("metrics"))
	if err := p.openRedis(ctx); err != nil {
		return err
	}
	if err := p.openStorage(ctx, do.migrate); err != nil {
		return err
	}
	return p.openFetcher()
}

// lockData keeps two processes from using one embedded data directory: each would take the other's runs for lost.
func (p *parts) lockData() error {
	s := p.settings
	if s.Database != "" && s.Redis != "" && s.S3Endpoint != "" {
		return nil
	}
	if err := os.MkdirAll(s.Data, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	unlock, err := lockFile(filepath.Join(s.Data, "lock"))
	if err != nil {
		return fmt.Errorf("data directory %s: %w", s.Data, err)
	}
	p.onClose(unlock)
	return nil
}

// openNeural loads the models, unless the operator does without them.
func (p *parts) openNeural(ctx context.Context) (*neural.Runtime, error) {
	s := p.settings
	if s.Neural == "off" {
		p.log.Info("no neural models: ENLARGER_NEURAL=off")
		return nil, nil //nolint:nilnil // a nil Runtime is one without models
	}
	library, err := neural.FindLibrary(s.ONNXRuntime)
	if err != nil {
		return nil, fmt.Errorf("%w: %w. Fetch it with `make deps` or scripts/onnxruntime.sh, or name it in ENLARGER_ONNXRUNTIME, or do without neural models by ENLARGER_NEURAL=off", errUsage, err)
	}
	models, err := neural.Open(ctx, neural.Config{Library: library, Threads: s.NeuralThreads, Models: s.Models, CUDA: s.Neural == "cuda", Thread: engine.LowPriority})
	if err != nil {
		return nil, fmt.Errorf("neural models: %w", err)
	}
	p.onClose(models.Close)
	names := []string{}
	for _, m := range models.Models() {
		names = append(names, m.Name())
	}
	p.log.Info("neural models", zap.String("library", library), zap.Int("threads", models.Threads()), zap.Strings("models", names))
	return models, nil
}

func (p *parts) newCatalog(scratch string, models *neural.Runtime) (*engine.Catalog, error) {
	s := p.settings
	runner, err := ffmpeg.Open(ffmpeg.Config{FFmpeg: s.FFmpeg, FFprobe: s.FFprobe, Scratch: scratch, Threads: s.Threads})
	if err != nil {
		return nil, err
	}
	limits := engine.DefaultLimits()
	limits.ImagePixels = int64(s.MaxMegapixels) * 1_000_000
	edit, err := editor(s)
	if err != nil {
		return nil, err
	}
	turbo, err := turbojpeg.Open()
	if err != nil {
		p.log.Warn("JPEG by Go alone, which takes three times as long: install libturbojpeg0, as `make deps` does", zap.Error(err))
	}
	tools := image.Tools(image.Options{FFmpeg: runner, Neural: models, Turbo: turbo, JPEGQuality: s.JPEGQuality, Edit: edit})
	return engine.NewCatalog(limits, append(tools, video.Tools(runner, video.Options{Neural: models, Segment: s.Segment, HDR: video.HDRMethod(s.HDR)})...)...), nil
}

func (p *parts) openDatabase(ctx context.Context, migrate bool) error {
	d, err := db.Open(ctx, db.Config{URL: p.settings.database(), MaxConns: p.settings.DBConns})
	if err != nil {
		return err
	}
	p.db = d
	p.onClose(func() { d.Close() })
	if migrate {
		return d.Migrate(ctx)
	}
	return d.Migrated(ctx)
}

// openRedis connects to the Redis of the settings, or starts one inside the process.
func (p *parts) openRedis(ctx context.Context) error {
	if p.settings.Redis == "" {
		client, stop := embeddedRedis()
		p.redis = client
		p.onClose(stop)
		return p.loseRuns(ctx)
	}
	options, err := redis.ParseURL(p.settings.Redis)
	if err != nil {
		return fmt.Errorf("%w: ENLARGER_REDIS: %w", errUsage, err)
	}
	options.ContextTimeoutEnabled = true // a request's own deadline counts, not go-redis' timeouts times its retries
	client := redis.NewClient(options)
	p.redis = client
	p.onClose(func() { client.Close() })
	ctx, stop := context.WithTimeout(ctx, 5*time.Second)
	defer stop()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("connect to Redis: %w", err)
	}
	return nil
}

// loseRuns ends the leases that a killed all-in-one process left: with everything in one process, nobody else can hold them.
func (p *parts) loseRuns(ctx context.Context) error {
	n, err := p.jobs.EndLeases(ctx)
	if n > 0 {
		p.log.Info("runs of the last process will be taken up again", zap.Int64("jobs", n))
	}
	return err
}

func openS3(s *settings) (*storage.Store, error) {
	return storage.Open(storage.Config{
		Endpoint: s.S3Endpoint, PublicEndpoint: s.S3PublicEndpoint, Region: s.S3Region, Bucket: s.S3Bucket,
		AccessKey: s.S3AccessKey, SecretKey: s.S3SecretKey, PathStyle: !s.S3VirtualHost,
	})
}

func (p *parts) openStorage(ctx context.Context, create bool) error {
	var err error
	if p.settings.S3Endpoint == "" {
		err = p.embedStorage()
	} else {
		p.storage, err = openS3(p.settings)
	}
	if err != nil || !create {
		return err
	}
	return p.storage.EnsureBucket(ctx)
}

// embedStorage opens the store on the local disk. The process itself reaches it over a loopback port of its own, clients over the API's.
func (p *parts) embedStorage() error {
	s := p.settings
	embedded, err := storage.OpenEmbedded(filepath.Join(s.Data, "objects"), storage.EmbeddedConfig{
		Bucket: s.S3Bucket, AccessKey: s.S3AccessKey, SecretKey: s.S3SecretKey, MaxPutBytes: s.MaxVideoBytes, Logger: p.log.Named("objects"),
	})
	if err != nil {
		return err
	}
	p.onClose(func() { embedded.Close() })
	p.media = embedded.Handler()
	endpoint, err := embedded.Start("127.0.0.1:0")
	if err != nil {
		return err
	}
	access, secret := embedded.Credentials()
	p.storage, err = storage.Open(storage.Config{
		Endpoint: endpoint, PublicEndpoint: p.public, Region: "us-east-1", Bucket: s.S3Bucket,
		AccessKey: access, SecretKey: secret, PathStyle: true,
	})
	return err
}

func (p *parts) openFetcher() error {
	cfg := storage.FetchConfig{MaxBytes: p.settings.MaxFetchBytes, UserAgent: "enlarger/" + version}
	var err error
	if cfg.AllowPrefixes, err = networks("ENLARGER_FETCH_ALLOW", p.settings.FetchPrivate); err != nil {
		return err
	}
	for _, port := range p.settings.FetchPorts {
		if port < 1 || port > 65535 {
			return fmt.Errorf("%w: ENLARGER_FETCH_PORTS: %d is no port", errUsage, port)
		}
		cfg.Ports = append(cfg.Ports, uint16(port))
	}
	p.fetcher = storage.NewFetcher(cfg)
	return nil
}

func networks(setting string, texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%w: %s: %q is no network such as 10.0.0.0/8", errUsage, setting, text)
		}
		list = append(list, prefix)
	}
	return list, nil
}

func (p *parts) newWorker() (*worker.Worker, error) {
	s := p.settings
	return worker.New(worker.Config{
		Name: s.workerName(), Jobs: p.jobs, Prices: p.prices, Catalog: p.catalog, Storage: p.storage, Fetcher: p.fetcher, Redis: p.redis,
		Log: p.log.Named("worker"), Metrics: p.metrics.worker, Scratch: p.scratch.Dir,
		ImageSlots: s.imageSlots(), VideoSlots: s.VideoSlots, Memory: s.Memory, Lease: s.Lease, Heartbeat: s.Heartbeat, Budget: s.RetryBudget,
		Grace: s.Grace, ImageTimeout: s.ImageTimeout, VideoTimeout: s.VideoTimeout, MaxUpload: s.MaxVideoBytes, MaxFetch: s.MaxFetchBytes,
	})
}

// withMedia serves the embedded store beside the API. Not by a ServeMux, which would answer a path such as //x with a page of its own.
func (p *parts) withMedia(handler http.Handler) http.Handler {
	if p.media == nil {
		return handler
	}
	bucket := "/" + p.settings.S3Bucket + "/"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, bucket) {
			p.media.ServeHTTP(w, r)
			return
		}
		handler.ServeHTTP(w, r)
	})
}

// serveAPI listens and serves until ending is done, then lets requests in flight end.
func (p *parts) serveAPI(group *errgroup.Group, ending context.Context) error {
	s := p.settings
	dispatcher := worker.NewDispatcher(p.redis)
	proxies, err := networks("ENLARGER_PROXIES", s.Proxies)
	if err != nil {
		return err
	}
	handler, err := api.New(api.Config{
		Accounts: account.NewStore(p.db), Jobs: p.jobs, Ledger: billing.NewLedger(p.db), Prices: p.prices, Catalog: p.catalog,
		Storage: p.storage, Fetcher: p.fetcher, Redis: p.redis, SniffImage: image.SniffPrefix,
		Dispatch: dispatcher.Dispatch,
		Stopped: func(ctx context.Context, id string) {
			if err := dispatcher.Stop(ctx, id); err != nil {
				p.log.Warn("workers not told that a job stopped", zap.Error(err))
			}
		},
		Limits: api.Limits{
			ImageUploadBytes: s.MaxImageBytes, VideoUploadBytes: s.MaxVideoBytes, RatePerMinute: s.RateLimit,
			MaxImage: s.MaxImageJobs, MaxVideo: s.MaxVideoJobs, ResultURLTTL: s.ResultURLLife, UploadTTL: s.UploadLife,
		},
		Geo: api.Geo{Header: s.GeoHeader, Countries: s.GeoBlocked}, Proxies: proxies,
		PublicURL: p.public, Now: time.Now, Log: p.log.Named("api"), Metrics: p.metrics.api, Version: version,
	})
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", s.Listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := api.NewHTTPServer(p.withMedia(handler), p.log)
	p.log.Info("serving", zap.String("url", p.public+"/api/v1"), zap.Stringer("address", listener.Addr()))
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ending.Done()
		ctx, stop := context.WithTimeout(context.WithoutCancel(ending), s.Grace)
		defer stop()
		if err := server.Shutdown(ctx); err != nil {
			server.Close()
		}
		return nil
	})
	return nil
}
