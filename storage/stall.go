package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// writeDeadlineConn fails a write that the peer does not take within the timeout. Reads are bounded elsewhere: an
// idle pooled connection must be allowed to wait.
type writeDeadlineConn struct {
	net.Conn
	timeout time.Duration
}

func (c *writeDeadlineConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// guardedBody is a response body that gives up on a peer which stops sending, or sends too slowly. cancel must end the
// request behind body, because a blocked Read ends in no other way.
type guardedBody struct {
	body   io.ReadCloser
	cancel context.CancelCauseFunc
	idle   time.Duration
	timer  *time.Timer
	// floor is the lowest average rate in bytes per second once grace was spent waiting; 0 is no floor.
	floor   int64
	grace   time.Duration
	waited  time.Duration
	read    int64
	stalled error

	closing  sync.Once
	closeErr error
}

func guard(body io.ReadCloser, cancel context.CancelCauseFunc, idle time.Duration) *guardedBody {
	g := &guardedBody{body: body, cancel: cancel, idle: idle}
	g.timer = time.AfterFunc(idle, func() {
		cancel(fmt.Errorf("%w: no byte for %v", errStalled, idle))
	})
	// The clock runs only while somebody waits for bytes: a slow reader is not the peer's fault.
	g.timer.Stop()
	return g
}

func (g *guardedBody) Read(p []byte) (int, error) {
	if g.stalled != nil {
		return 0, g.stalled
	}
	started := time.Now()
	g.timer.Reset(g.idle)
	n, err := g.body.Read(p)
	fired := !g.timer.Stop()
	g.read += int64(n)
	g.waited += time.Since(started)
	if err != nil && !errors.Is(err, io.EOF) && fired {
		g.stalled = fmt.Errorf("%w: no byte for %v", errStalled, g.idle)
		return n, g.stalled
	}
	if err == nil && g.floor > 0 && g.waited > g.grace && float64(g.read)/g.waited.Seconds() < float64(g.floor) {
		g.stalled = fmt.Errorf("%w: %d bytes in %v", errStalled, g.read, g.waited.Round(time.Second))
		g.cancel(g.stalled)
		return n, g.stalled
	}
	return n, err
}

func (g *guardedBody) Close() error {
	g.closing.Do(func() {
		g.timer.Stop()
		g.cancel(nil)
		g.closeErr = g.body.Close()
	})
	return g.closeErr
}
