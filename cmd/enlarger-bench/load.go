package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// load is an open loop: request i is due at start + i/rate whether or not the earlier ones have been answered, and its latency counts from
// that moment. So a server that stalls is charged for every request that came due meanwhile.
type load struct {
	client  *http.Client
	rate    int
	request func(ctx context.Context) (*http.Request, error)
	// want is the status of an answer that counts as good.
	want int
	// inFlight bounds the requests waiting for their answer; one that comes due beyond it is not sent, and is an error.
	inFlight int
}

// answers is what came of a load.
type answers struct {
	// sorted are the latencies of the good answers, from due to the last byte read.
	sorted []time.Duration
	// faults counts what else happened, by what it was.
	faults map[string]int
}

func (a answers) errors() int {
	sum := 0
	for _, n := range a.faults {
		sum += n
	}
	return sum
}

// run sends for the time given and waits for the last answers.
func (l *load) run(ctx context.Context, duration time.Duration) answers {
	var mu sync.Mutex
	result := answers{faults: map[string]int{}}
	count := func(took time.Duration, fault string) {
		mu.Lock()
		defer mu.Unlock()
		if fault != "" {
			result.faults[fault]++
			return
		}
		result.sorted = append(result.sorted, took)
	}
	places := make(chan struct{}, l.inFlight)
	var all sync.WaitGroup
	start := time.Now()
	for i := range int(duration.Seconds() * float64(l.rate)) {
		due := start.Add(time.Duration(i) * time.Second / time.Duration(l.rate))
		if !sleepUntil(ctx, due) {
			break
		}
		select {
		case places <- struct{}{}:
		default:
			count(0, fmt.Sprintf("not sent: %d unanswered", l.inFlight))
			continue
		}
		all.Go(func() {
			defer func() { <-places }()
			fault := l.send(ctx)
			count(time.Since(due), fault)
		})
	}
	all.Wait()
	slices.Sort(result.sorted)
	return result
}

// send returns what went wrong, "" for nothing.
func (l *load) send(ctx context.Context) string {
	request, err := l.request(ctx)
	if err != nil {
		return err.Error()
	}
	response, err := l.client.Do(request)
	if err != nil {
		return "no answer"
	}
	defer response.Body.Close()
	const maxAnswer = 64 << 10
	body, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err != nil:
		return "answer cut off"
	case response.StatusCode != l.want:
		return fmt.Sprintf("%s: %.200s", response.Status, body)
	}
	return ""
}

// sleepUntil waits for a moment, or returns false when ctx ends first.
func sleepUntil(ctx context.Context, due time.Time) bool {
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
