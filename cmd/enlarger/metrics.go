package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"enlarger/api"
	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/worker"
)

// metrics is everything GET /metrics tells: what this process did, and what the database says of the whole fleet.
type metrics struct {
	worker   *worker.Metrics
	api      *api.Metrics
	registry *prometheus.Registry
}

func newMetrics(jobs *job.Store, ledger *billing.Ledger, log *zap.Logger) *metrics {
	m := &metrics{worker: worker.NewMetrics(), api: api.NewMetrics(), registry: prometheus.NewRegistry()}
	m.registry.MustRegister(m.worker, m.api, newFleetFigures(jobs, ledger, log),
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "enlarger_info", Help: "1; the version is a label.", ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }))
	return m
}

const (
	// scrapeFor bounds one answer; Prometheus gives up after 10 s by default.
	scrapeFor = 8 * time.Second
	// scrapesAtOnce bounds who may ask at the same time.
	scrapesAtOnce = 4
)

// serve answers GET /metrics at an operator's address until ending is done. No key is asked for there.
func (m *metrics) serve(group *errgroup.Group, ending context.Context, address string, log *zap.Logger) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeFor, ErrorHandling: promhttp.ContinueOnError,
	}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 2 * scrapeFor, MaxHeaderBytes: 32 << 10}
	log.Info("metrics", zap.Stringer("address", listener.Addr()))
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics: %w", err)
		}
		return nil
	})
	group.Go(func() error {
		<-ending.Done()
		server.Close()
		return nil
	})
	return nil
}

const (
	// figuresFor is how long figures from the database are given out again: several Prometheus servers cost as much as one.
	figuresFor = 5 * time.Second
	// figuresWithin bounds what reading them may take.
	figuresWithin = 4 * time.Second
)

// fleetFigures is a prometheus.Collector of what the database says. Every process of a fleet tells the same: take the maximum, not the sum.
type fleetFigures struct {
	jobs   *job.Store
	ledger *billing.Ledger
	log    *zap.Logger

	up, inFlight, oldest, credits, accounts, violations, audited, auditTook *prometheus.Desc

	// mu also keeps scrapes from asking the database side by side.
	mu    sync.Mutex
	read  time.Time
	known []prometheus.Metric
}

func newFleetFigures(jobs *job.Store, ledger *billing.Ledger, log *zap.Logger) *fleetFigures {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("enlarger_"+name, help, labels, nil)
	}
	return &fleetFigures{
		jobs: jobs, ledger: ledger, log: log,
		up:         desc("database_up", "Whether the database told what the other figures of the fleet say; without it they are left out."),
		inFlight:   desc("jobs", "Jobs of the fleet that have not ended. (Those that have are counted by enlarger_runs_ended_total.)", "media", "status"),
		oldest:     desc("queue_oldest_seconds", "How long the queued job that has waited longest has been due.", "media"),
		credits:    desc("credits", "Credits of all accounts together, by state.", "state"),
		accounts:   desc("accounts", "Accounts."),
		violations: desc("audit_violations", "Rows that break a rule of the books, as the fleet's last own audit found them, at most 100 a rule.", "rule"),
		audited:    desc("audit_last_timestamp_seconds", "When the fleet last audited itself; 0 is never."),
		auditTook:  desc("audit_last_duration_seconds", "How long that audit took."),
	}
}

// Describe is a prometheus.Collector's.
func (f *fleetFigures) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{f.up, f.inFlight, f.oldest, f.credits, f.accounts, f.violations, f.audited, f.auditTook} {
		to <- d
	}
}

// Collect is a prometheus.Collector's.
func (f *fleetFigures) Collect(to chan<- prometheus.Metric) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.read.IsZero() || time.Since(f.read) > figuresFor {
		ctx, stop := context.WithTimeout(context.Background(), figuresWithin)
		known, err := f.figures(ctx)
		stop()
		if err != nil {
			f.log.Warn("figures not read", zap.Error(err))
			known = []prometheus.Metric{gauge(f.up, 0)}
		}
		f.known, f.read = known, time.Now()
	}
	for _, m := range f.known {
		to <- m
	}
}

func gauge(d *prometheus.Desc, value float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
}

func (f *fleetFigures) figures(ctx context.Context) ([]prometheus.Metric, error) {
	counts, err := f.jobs.InFlight(ctx)
	if err != nil {
		return nil, err
	}
	totals, err := f.ledger.Totals(ctx)
	if err != nil {
		return nil, err
	}
	report, err := f.jobs.LastAudit(ctx)
	if err != nil {
		return nil, err
	}
	list := []prometheus.Metric{gauge(f.up, 1), gauge(f.accounts, float64(totals.Accounts))}
	for _, media := range []engine.Media{engine.Image, engine.Video} {
		c := counts[media]
		list = append(list, gauge(f.inFlight, float64(c.Queued), string(media), string(job.Queued)),
			gauge(f.inFlight, float64(c.Processing), string(media), string(job.Processing)), gauge(f.oldest, c.Oldest.Seconds(), string(media)))
	}
	for state, amount := range map[string]billing.Millicredits{"available": totals.Available, "frozen": totals.Frozen, "used": totals.Used} {
		list = append(list, gauge(f.credits, float64(amount)/float64(billing.Credit), state))
	}
	last := 0.0
	if !report.FinishedAt.IsZero() {
		last = float64(report.FinishedAt.Unix())
		list = append(list, gauge(f.auditTook, report.Took.Seconds()))
		for _, rule := range job.AuditRules() {
			list = append(list, gauge(f.violations, float64(report.Broken[rule]), rule))
		}
	}
	return append(list, gauge(f.audited, last)), nil
}
