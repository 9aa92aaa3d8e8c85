package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// bed is what testbed needs of a test: it runs clean-ups, last first, and ends the work at the first fault. Everything but logging is for
// the goroutine that made it.
type bed struct {
	ctx     context.Context //nolint:containedctx // a bed stands for one run, as a testing.T does
	started time.Time

	mu       sync.Mutex
	log      io.Writer
	failed   bool
	cleanups []func()
}

// fatal is what Fatalf panics with.
type fatal struct{ err error }

func newBed(ctx context.Context, log io.Writer) *bed {
	return &bed{ctx: ctx, started: time.Now(), log: log}
}

func (b *bed) Helper() {}

func (b *bed) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

// closes closes c at the end; what that says comes too late to matter.
func (b *bed) closes(c io.Closer) { b.Cleanup(func() { _ = c.Close() }) }

func (b *bed) Failed() bool { return b.failed }

func (b *bed) Fatalf(format string, args ...any) {
	b.failed = true
	panic(fatal{fmt.Errorf(format, args...)})
}

// Logf tells the person who waits what is going on.
func (b *bed) Logf(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fmt.Fprintf(b.log, "%6.1fs  %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

// must ends the work when err is not nil.
func (b *bed) must(err error) {
	if b.ctx.Err() != nil {
		err = errors.New("interrupted")
	}
	if err != nil {
		b.Fatalf("%w", err)
	}
}

// scope runs f with a bed of its own, whose servers end with it.
func (b *bed) scope(f func(b *bed)) {
	inner := &bed{ctx: b.ctx, started: b.started, log: b.log}
	var err error
	func() {
		defer inner.close(&err)
		f(inner)
	}()
	b.must(err)
}

// close runs the clean-ups and turns a Fatalf into an error. It is to be deferred.
func (b *bed) close(err *error) {
	if p := recover(); p != nil {
		f, ok := p.(fatal)
		if !ok {
			panic(p)
		}
		*err = f.err
	}
	for len(b.cleanups) > 0 {
		last := b.cleanups[len(b.cleanups)-1]
		b.cleanups = b.cleanups[:len(b.cleanups)-1]
		last()
	}
}
