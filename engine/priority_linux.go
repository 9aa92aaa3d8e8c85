package engine

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Niceness is what pixel work yields to everything else by, in the kernel's steps of -20 to 19: an answer to a client or a heartbeat
// must not wait behind a picture.
const Niceness = 10

// LowPriority makes the rest of the calling goroutine run at Niceness. The goroutine keeps its thread, which ends with it, so
// nothing else ever runs on a thread whose priority was lowered. It is for a goroutine that computes and then ends.
func LowPriority() {
	runtime.LockOSThread()
	// On Linux this is the calling thread alone. A kernel that refuses leaves the priority as it was, and no harm is done.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, Niceness)
}
