package engine_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"enlarger/engine"
)

func TestLowPriorityIsTheGoroutinesAlone(t *testing.T) {
	t.Parallel()
	nice := func() int {
		// The system call gives 20 minus the niceness.
		v, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err != nil {
			t.Error(err)
		}
		return 20 - v
	}
	before := nice()
	inside := make(chan int)
	go func() {
		engine.LowPriority()
		inside <- nice()
	}()
	if got := <-inside; got != engine.Niceness && got < before {
		t.Errorf("niceness %d inside, want %d", got, engine.Niceness)
	}
	// Whatever thread comes next must be an ordinary one.
	for range 100 {
		after := make(chan int)
		go func() { after <- nice() }()
		if got := <-after; got != before {
			t.Fatalf("niceness %d of an unrelated goroutine, want %d", got, before)
		}
	}
}
