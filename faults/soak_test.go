package faults_test

import (
	"flag"
	"os"
	"testing"
	"time"

	"enlarger/faults"
)

var soakTime = flag.Duration("faults.soak", 0, "how long TestSoak injects faults at random; 0 skips it")

// TestSoak is `make soak`.
func TestSoak(t *testing.T) {
	if *soakTime <= 0 {
		t.Skip("make soak, or -faults.soak=30m")
	}
	report := faults.Soak(t, faults.SoakConfig{Time: *soakTime, Out: os.Stdout})
	if report.Violations > 0 {
		t.Errorf("%d violations", report.Violations)
	}
	// 500 kills in half an hour.
	if want := int64(*soakTime / (3600 * time.Millisecond)); report.Kills < want {
		t.Errorf("%d processes were killed in %v, fewer than %d", report.Kills, *soakTime, want)
	}
}
