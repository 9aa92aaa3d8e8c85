//go:build race

package job

// checks is how many random stories a property test tells: the race detector makes SQLite ten times slower.
const checks = "3"

// races is how many times a cancel races a finish.
const races = 40
