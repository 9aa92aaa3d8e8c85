//go:build !race

package worker

import "time"

// How much time passes in the bubbles of hours_test.go.
const (
	// longRun is how long a run takes that is long.
	longRun = 5 * time.Hour
	// outage is how long Redis is away.
	outage = 30 * time.Minute
	// tries is how often a job is tried that always fails.
	tries = 9
	// someDays is how long the sweeper sweeps.
	someDays = 30
)
