//go:build !race

package job

// checks is how many random stories a property test tells: fewer than rapid's 100, for every step goes through a real database.
const checks = "12"

// races is how many times a cancel races a finish.
const races = 200
