package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// tick is the unit of the times in /proc/PID/stat: Linux shows a hundredth of a second to programs, whatever it counts in itself.
const tick = 10 * time.Millisecond

// treeCPU is the processor time that this process's servers have used so far, dead ones included, and with self this process too. Unlike a
// rate it hardly depends on what else the machine does.
func treeCPU(self bool) time.Duration {
	times, parents := map[int]time.Duration{}, map[int]int{}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0
	}
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		parents[pid], times[pid] = parseStat(text)
	}
	var sum time.Duration
	for pid, used := range times {
		if descends(pid, os.Getpid(), parents) && (self || pid != os.Getpid()) {
			sum += used
		}
	}
	return sum
}

// parseStat reads the parent of a process, and the time used by it and by the children it has collected.
func parseStat(text []byte) (parent int, used time.Duration) {
	// "pid (name) state ppid ...": the name may hold anything, so what counts starts after the last bracket.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const (
		fieldParent = 1
		fieldUser   = 11 // then system, children's user, children's system
		fieldsTimes = 4
	)
	if len(fields) < fieldUser+fieldsTimes {
		return 0, 0
	}
	parent, err := strconv.Atoi(fields[fieldParent])
	if err != nil {
		return 0, 0
	}
	for _, field := range fields[fieldUser : fieldUser+fieldsTimes] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, 0
		}
		used += time.Duration(n) * tick
	}
	return parent, used
}

// descends says whether pid is root or a descendant of it.
func descends(pid, root int, parents map[int]int) bool {
	for range len(parents) {
		if pid == root {
			return true
		}
		parent, ok := parents[pid]
		if !ok || parent == 0 {
			return false
		}
		pid = parent
	}
	return false
}
