//go:build !linux

package neural

// Only Linux tells a process what memory it has; elsewhere a manifest should say what its model needs.
func settle()         {}
func resident() int64 { return 0 }
func peak() int64     { return 0 }
func resetPeak()      {}
