//go:build race

package testbed

// raced says whether this test binary has the race detector; the program it starts then has it too.
const raced = true
