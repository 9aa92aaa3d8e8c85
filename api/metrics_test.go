package api_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"enlarger/api"
	"enlarger/testbed"
)

// What clients make up does not become a label.
func TestMetricsCountRequestsByRoute(t *testing.T) {
	t.Parallel()
	m := api.NewMetrics()
	r := embedded(t, func(cfg *api.Config) { cfg.Metrics = m })
	for i := range 20 {
		r.get(fmt.Sprintf("/api/v1/jobs/job_%032d", i))
		r.get(fmt.Sprintf("/no/such/place/%d", i))
		r.send(fmt.Sprintf("ODD%d", i), "/api/v1/credits", nil)
	}
	r.get("/api/v1/credits")
	r.get("/healthz")
	want := map[string]uint64{
		"GET /api/v1/jobs/{job_id} 404": 20,
		"GET none 404":                  20,
		"other /api/v1/credits 405":     20,
		"GET /api/v1/credits 200":       1,
		"GET /healthz 200":              1,
	}
	var got map[string]uint64
	testbed.Until(t, 10*time.Second, "all requests to be counted", func() bool { // an answer is counted once it is out
		got = counted(t, m)
		return len(got) >= len(want) && got["GET /healthz 200"] == 1 && got["other /api/v1/credits 405"] == 20
	})
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counted %v, want %v", got, want)
	}
	if problems, err := testutil.CollectAndLint(m); err != nil || len(problems) > 0 {
		t.Errorf("names: %v %v", problems, err)
	}
}

func counted(t *testing.T, m prometheus.Collector) map[string]uint64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(m)
	families, err := registry.Gather()
	must(t, err)
	counts := map[string]uint64{}
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, l := range metric.GetLabel() {
				labels[l.GetName()] = l.GetValue()
			}
			counts[labels["method"]+" "+labels["route"]+" "+labels["status"]] = metric.GetHistogram().GetSampleCount()
		}
	}
	return counts
}
