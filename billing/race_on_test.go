//go:build race

package billing

// checks is how many random stories a property test tells: the race detector makes SQLite ten times slower.
const checks = "3"
