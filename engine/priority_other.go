//go:build !linux

package engine

// Niceness is what pixel work yields to everything else by; only Linux has threads with a niceness of their own.
const Niceness = 10

// LowPriority does nothing here.
func LowPriority() {}
