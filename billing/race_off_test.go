//go:build !race

package billing

// checks is how many random stories a property test tells: fewer than rapid's 100, for every step goes through a real database.
const checks = "12"
