//go:build race

package worker

import "time"

// The race detector makes SQLite and Lua ten times slower: less time passes in the bubbles.
const (
	// longRun is how long a run takes that is long.
	longRun = 10 * time.Minute
	// outage is how long Redis is away.
	outage = 4 * time.Minute
	// tries is how often a job is tried that always fails.
	tries = 5
	// someDays is how long the sweeper sweeps.
	someDays = 3
)
