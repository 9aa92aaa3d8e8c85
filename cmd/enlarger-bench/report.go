package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// percentile is the smallest value that at least p (0 to 1) of the sorted values do not exceed; 0 of none.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(p * float64(len(sorted)))
	if float64(rank) < p*float64(len(sorted)) {
		rank++
	}
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median of an even number of values is the mean of the middle two; 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// table prints rows of cells as Markdown; the first row is the head.
func table(rows [][]string) string {
	var text strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&text, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(&text, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
	return text.String()
}

func millis(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

// machineFacts says when, where and how the figures were taken.
func machineFacts(args []string, now time.Time) string {
	command := "make bench"
	if len(args) > 0 {
		command = "bin/enlarger-bench " + strings.Join(args, " ")
	}
	rows := [][]string{
		{"fact", "value"},
		{"date", now.UTC().Format("2006-01-02 15:04 MST")},
		{"command", "`" + command + "`"},
		{"processor", fmt.Sprintf("%d cores, %s", runtime.NumCPU(), procField("/proc/cpuinfo", "model name"))},
		{"memory", procField("/proc/meminfo", "MemTotal")},
		{"system", fmt.Sprintf("%s/%s, Linux %s", runtime.GOOS, runtime.GOARCH, firstWords("/proc/sys/kernel/osrelease", 1))},
		{"Go", runtime.Version()},
		{"one 4 KiB write and fsync on " + os.TempDir(), fsyncTime()},
		{"load average before", loadAverage()},
	}
	return table(rows) + "\n"
}

// procField finds "name: value" in a file of /proc.
func procField(path, name string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

func firstWords(path string, n int) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "unknown"
	}
	words := strings.Fields(string(text))
	return strings.Join(words[:min(n, len(words))], " ")
}

// loadAverage is the number of processes that ran or wanted to, over 1, 5 and 15 minutes.
func loadAverage() string { return firstWords("/proc/loadavg", 3) }

// fsyncTime says what this disk makes a commit wait.
func fsyncTime() string {
	file, err := os.CreateTemp("", "enlarger-bench-")
	if err != nil {
		return "unknown"
	}
	defer func() { _ = os.Remove(file.Name()) }()
	defer func() { _ = file.Close() }()
	const writes = 100
	block := make([]byte, 4096)
	took := make([]time.Duration, 0, writes)
	for range writes {
		start := time.Now()
		if _, err := file.Write(block); err != nil {
			return "unknown"
		}
		if err := file.Sync(); err != nil {
			return "unknown"
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return fmt.Sprintf("p50 %.2f ms, p99 %.2f ms", percentile(took, 0.5).Seconds()*1000, percentile(took, 0.99).Seconds()*1000)
}
