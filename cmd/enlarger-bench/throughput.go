package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// peer is one way to carry no-op jobs from submit to success. A round submits with the workers stopped, then lets them drain the queue,
// then submits again with the workers running.
type peer struct {
	name string
	// factor multiplies the jobs of a round; 0 is 1.
	factor int
	// submit enqueues one job. It is called from many goroutines.
	submit func(ctx context.Context) error
	// start begins to carry jobs and returns how to stop.
	start func(b *bed) (stop func())
	// ended says whether all of n jobs, counted from the peer's first, have succeeded.
	ended func(ctx context.Context, n int64) (bool, error)
	// verify checks at the very end that n jobs left what they should have.
	verify func(b *bed, n int64)
}

// score is what a peer reached: one value a round.
type score struct {
	// submit, drain and through are in jobs a second.
	submit, drain, through []float64
	// cpu is the processor time of one job in milliseconds, from submit to success, of this process and all its servers.
	cpu []float64
}

// throughputPart runs all peers of one set of servers, by turns, and prints their medians.
func throughputPart(b *bed, o *options, out io.Writer) {
	if o.in(modeFleet) {
		b.scope(func(b *bed) {
			servers, peers := fleetPeers(b, o)
			compare(b, o, out, "fleet", servers+", object store on the disk, each in a process of its own", peers)
		})
	}
	if o.in(modeEmbedded) {
		b.scope(func(b *bed) {
			compare(b, o, out, "embedded", "SQLite (WAL, synchronous FULL), in-process Redis, object store on the disk", embeddedPeers(b, o))
		})
	}
}

func compare(b *bed, o *options, out io.Writer, title, servers string, peers []*peer) {
	scores := make([]score, len(peers))
	submitted := make([]int64, len(peers))
	for i, p := range peers {
		warmUp(b, o, p, &submitted[i])
	}
	for round := range o.rounds {
		for i := range peers {
			// The order turns with the rounds, so that a machine that slows down slows nobody in particular.
			i = (i + round) % len(peers)
			oneRound(b, o, peers[i], &scores[i], &submitted[i])
			b.Logf("throughput: %s, round %d of %d: submit %.0f/s, drain %.0f/s, submit to succeeded %.0f/s", peers[i].name, round+1, o.rounds,
				last(scores[i].submit), last(scores[i].drain), last(scores[i].through))
		}
	}
	for i, p := range peers {
		if p.verify != nil {
			p.verify(b, submitted[i])
		}
	}
	rows := [][]string{{"", "submit alone", "drain alone", "submit to succeeded", "of the first line", "processor time a job"}}
	base := median(scores[0].through)
	for i, p := range peers {
		through := median(scores[i].through)
		ratio := "1"
		if i > 0 {
			ratio = fmt.Sprintf("1/%.1f", base/through)
		}
		rows = append(rows, []string{
			p.name, perSecond(scores[i].submit), perSecond(scores[i].drain), perSecond(scores[i].through), ratio,
			fmt.Sprintf("%.2f ms", median(scores[i].cpu)),
		})
	}
	fmt.Fprintf(out, "\n### Throughput: %s\n\n%s. No-op jobs a second, medians of %d rounds of 2 x %d jobs (bare asynq: 2 x %d), lowest and highest round in brackets; "+
		"%d slots, %d parallel submitters, %d accounts; the peers take turns. Processor time is that of the third figure, all processes together. Load average afterwards: %s.\n\n%s",
		title, servers, o.rounds, o.jobs, o.jobs*peers[0].factor, o.slots, o.slots, o.accounts, loadAverage(), table(rows))
}

func last(values []float64) float64 { return values[len(values)-1] }

func perSecond(values []float64) string {
	low, high := values[0], values[0]
	for _, v := range values {
		low, high = min(low, v), max(high, v)
	}
	return fmt.Sprintf("%.0f (%.0f-%.0f)", median(values), low, high)
}

// roundTimeout bounds each third of a round: a peer that is stuck ends the run.
const roundTimeout = 3 * time.Minute

func oneRound(b *bed, o *options, p *peer, s *score, submitted *int64) {
	jobs := o.jobs * max(p.factor, 1)
	rate := func(did func()) float64 {
		start := time.Now()
		did()
		return float64(jobs) / time.Since(start).Seconds()
	}
	submit := func() {
		*submitted += int64(jobs)
		b.must(inParallel(b.ctx, o.slots, jobs, p.submit))
	}
	s.submit = append(s.submit, rate(submit))
	var stop func()
	s.drain = append(s.drain, rate(func() { stop = p.start(b); waitFor(b, p, *submitted) }))
	used := treeCPU(true)
	s.through = append(s.through, rate(func() { submit(); waitFor(b, p, *submitted) }))
	s.cpu = append(s.cpu, (treeCPU(true)-used).Seconds()*1000/float64(jobs))
	stop()
}

// warmUp makes every connection known to its server: PostgreSQL plans a statement anew for the first five times on each.
func warmUp(b *bed, o *options, p *peer, submitted *int64) {
	jobs := 10 * o.slots
	*submitted += int64(jobs)
	b.must(inParallel(b.ctx, o.slots, jobs, p.submit))
	stop := p.start(b)
	waitFor(b, p, *submitted)
	stop()
}

func waitFor(b *bed, p *peer, n int64) {
	ctx, cancel := context.WithTimeout(b.ctx, roundTimeout)
	defer cancel()
	for {
		ended, err := p.ended(ctx, n)
		b.must(err)
		if ended {
			return
		}
		if !sleepUntil(ctx, time.Now().Add(2*time.Millisecond)) {
			b.Fatalf("%s did not end %d jobs within %v", p.name, n, roundTimeout)
		}
	}
}

// inParallel calls do n times from a number of goroutines, and stops at the first error.
func inParallel(ctx context.Context, goroutines, n int, do func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next atomic.Int64
	var all sync.WaitGroup
	for range goroutines {
		all.Go(func() {
			for next.Add(1) <= int64(n) && ctx.Err() == nil {
				if err := do(ctx); err != nil {
					cancel(err)
				}
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}
