package api

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count requests and time them. The labels are bounded: a known method or "other", a route's template or "none", a status of the error
// table. A nil *Metrics counts nothing.
type Metrics struct {
	requests *prometheus.HistogramVec
}

// NewMetrics makes the counters; register them once in a process.
func NewMetrics() *Metrics {
	return &Metrics{prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "enlarger_http_request_seconds", Help: "Time from a request's headers to the end of its answer, the transfer of its body included.",
		// A status is read in milliseconds; a 200 MiB upload takes minutes.
		Buckets: []float64{.002, .01, .05, .25, 1, 5, 30, 300},
	}, []string{"method", "route", "status"})}
}

// Describe is a prometheus.Collector's.
func (m *Metrics) Describe(to chan<- *prometheus.Desc) { m.requests.Describe(to) }

// Collect is a prometheus.Collector's.
func (m *Metrics) Collect(to chan<- prometheus.Metric) { m.requests.Collect(to) }

// answered counts one request. status 0 is a client that went away before it had an answer.
func (m *Metrics) answered(method, route string, status int, took time.Duration) {
	if m != nil {
		m.requests.WithLabelValues(methodName(method), route, strconv.Itoa(status)).Observe(took.Seconds())
	}
}
