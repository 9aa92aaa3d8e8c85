package neural

/*
#include <stddef.h>

// Of glibc; other C libraries have none.
extern int malloc_trim(size_t) __attribute__((weak));

static void give_back(void) {
	if (malloc_trim) malloc_trim(0);
}
*/
import "C"

import (
	"bytes"
	"os"
	"runtime/debug"
	"strconv"
)

// settle gives the system back what Go and the C library keep for later, so that what is used next shows as growth.
func settle() {
	debug.FreeOSMemory()
	C.give_back()
}

// resident and peak are the bytes of memory this process has, and has had since resetPeak.
func resident() int64 { return statusBytes("VmRSS:") }
func peak() int64     { return statusBytes("VmHWM:") }

// resetPeak makes peak start anew. A kernel that refuses leaves it as it is, which can only make an estimate larger.
func resetPeak() { _ = os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

func statusBytes(name string) int64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte(name)); ok {
			kilobytes, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))), 10, 64)
			if err != nil {
				return 0
			}
			return kilobytes << 10
		}
	}
	return 0
}
