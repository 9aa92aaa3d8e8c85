package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"enlarger/job"
)

// Metrics count what this process's worker and sweeper do. The labels are bounded: tools are those of the catalog, the rest are the constants
// below. A nil *Metrics counts nothing.
type Metrics struct {
	claims, failures, ends               *prometheus.CounterVec
	again, stale, silent, lost, repaired prometheus.Counter
	orphans                              prometheus.Counter
	segments                             *prometheus.CounterVec
	running                              *prometheus.GaugeVec
	steps, runs                          *prometheus.HistogramVec
}

// How a run ends, the label outcome.
const (
	endSucceeded  = "succeeded"
	endFailed     = "failed"     // for the client's reasons, or the tool's
	endRetried    = "retried"    // for ours, and will run again
	endGaveUp     = "given_up"   // for ours, with no failures left
	endYielded    = "yielded"    // the worker drained
	endLost       = "lost"       // canceled, deleted, or another worker's by now
	endUnrecorded = "unrecorded" // the database did not hear of it: its lease ends by itself
)

// How the work on a part of a video ends, the label outcome.
const (
	segmentMade      = "made"
	segmentFailed    = "failed"
	segmentGivenBack = "given_back" // the worker drained, or the run it belongs to ended
	segmentLost      = "lost"       // another worker's by now, or its job has ended
)

// NewMetrics makes the counters; register them once in a process.
func NewMetrics() *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "enlarger_" + name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "enlarger_" + name, Help: help}, labels)
	}
	// From a small picture's milliseconds to a film's hours.
	buckets := []float64{.01, .05, .25, 1, 5, 15, 60, 300, 1800, 7200, 36000}
	histogram := func(name, help string, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "enlarger_" + name, Help: help, Buckets: buckets}, labels)
	}
	return &Metrics{
		claims:   counters("claims_total", "Runs begun.", "tool"),
		again:    counter("reruns_total", "Runs begun of jobs that had run before."),
		stale:    counter("duplicate_wakeups_total", "Wake-ups that found nothing to claim: the job ran elsewhere already, was over, or not due yet."),
		ends:     counters("runs_ended_total", "Runs ended, by how.", "tool", "outcome"),
		failures: counters("job_failures_total", "Runs that counted against their job's budget, by why: an error, or a lease that ran out.", "why"),
		silent:   counter("heartbeats_failed_total", "Heartbeats that did not reach the database."),
		lost:     counter("leases_lost_total", "Leases that this process's sweeper found ended."),
		repaired: counter("wakeups_repaired_total", "Wake-ups that this process's sweeper found missing and sent again."),
		segments: counters("segments_total", "Parts of long videos that this process worked on, by how that ended.", "outcome"),
		orphans:  counter("orphans_removed_total", "Stored objects that no row named."),
		running: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "enlarger_running", Help: "Runs under way in this process.",
		}, []string{"media"}),
		steps: histogram("step_seconds", "Time a run spends in one step that it completes.", "tool", "step"),
		runs:  histogram("run_seconds", "Time from a claim to the run's end.", "tool"),
	}
}

func (m *Metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.claims, m.again, m.stale, m.ends, m.failures, m.silent, m.lost, m.repaired, m.orphans, m.segments, m.running, m.steps, m.runs}
}

// Describe is a prometheus.Collector's.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) {
	for _, c := range m.all() {
		c.Describe(to)
	}
}

// Collect is a prometheus.Collector's.
func (m *Metrics) Collect(to chan<- prometheus.Metric) {
	for _, c := range m.all() {
		c.Collect(to)
	}
}

func (m *Metrics) segment(outcome string) {
	if m != nil {
		m.segments.WithLabelValues(outcome).Inc()
	}
}

func (m *Metrics) duplicate() {
	if m != nil {
		m.stale.Inc()
	}
}

// claimed counts a run in; the function returned counts it out.
func (m *Metrics) claimed(j job.Job) (ended func(outcome string)) {
	if m == nil {
		return func(string) {}
	}
	m.claims.WithLabelValues(j.Tool).Inc()
	if j.Fence > 1 {
		m.again.Inc()
	}
	under := m.running.WithLabelValues(string(j.Media))
	under.Inc()
	began := time.Now()
	return func(outcome string) {
		under.Dec()
		m.runs.WithLabelValues(j.Tool).Observe(time.Since(began).Seconds())
		m.ends.WithLabelValues(j.Tool, outcome).Inc()
		if outcome == endRetried || outcome == endGaveUp {
			m.failures.WithLabelValues("error").Inc()
		}
	}
}

func (m *Metrics) step(tool, name string, took time.Duration) {
	if m != nil {
		m.steps.WithLabelValues(tool, name).Observe(took.Seconds())
	}
}

func (m *Metrics) heartbeatFailed() {
	if m != nil {
		m.silent.Inc()
	}
}

func (m *Metrics) leaseLost() {
	if m != nil {
		m.lost.Inc()
		m.failures.WithLabelValues("lease").Inc()
	}
}

func (m *Metrics) wakeUpsRepaired(n int) {
	if m != nil {
		m.repaired.Add(float64(n))
	}
}

func (m *Metrics) orphanRemoved() {
	if m != nil {
		m.orphans.Inc()
	}
}
