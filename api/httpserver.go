package api

import (
	"container/list"
	"net"
	"net/http"
	"sync"
	"time"

	"go.uber.org/zap"
)

const (
	// headerTimeout bounds the time from a connection's first byte, or its opening, to the end of the request's headers.
	headerTimeout = 10 * time.Second
	// idleTimeout is how long a connection is kept for the next request: longer than the common 60 s of load balancers, so that
	// they close first.
	idleTimeout = 75 * time.Second
	// maxHeaderBytes bounds the headers of a request; net/http adds 4 KiB of slop.
	maxHeaderBytes = 32 << 10
	// maxConnections bounds the connections of the process: beyond it the longest idle one makes room.
	maxConnections = 4096
)

// NewHTTPServer makes the server around a handler that holds New's. It has no timeouts over a whole request, because uploads
// may take hours: bodies and answers have their own, in the handlers. What it bounds is headers and idle connections.
func NewHTTPServer(handler http.Handler, log *zap.Logger) *http.Server {
	keeper := newConnKeeper(maxConnections)
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes, ConnState: keeper.state,
	}
	if std, err := zap.NewStdLogAt(log.Named("http"), zap.DebugLevel); err == nil {
		server.ErrorLog = std
	}
	return server
}

// connKeeper closes the connection that has waited longest for a request when there are too many. Connections with a request in flight
// are never closed, so it is a flood of idle connections that gives way, not the clients at work.
type connKeeper struct {
	most int

	mu sync.Mutex
	// waiting are the connections without a request in flight, the longest waiting first; place finds them.
	waiting *list.List
	place   map[net.Conn]*list.Element
	open    int
}

func newConnKeeper(most int) *connKeeper {
	return &connKeeper{most: most, waiting: list.New(), place: map[net.Conn]*list.Element{}}
}

func (k *connKeeper) state(conn net.Conn, state http.ConnState) {
	if drop := k.note(conn, state); drop != nil {
		_ = drop.Close() // its server goroutine notices and ends
	}
}

// note follows a connection's state, and returns one that has to go.
func (k *connKeeper) note(conn net.Conn, state http.ConnState) (drop net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if at := k.place[conn]; at != nil {
		k.waiting.Remove(at)
		delete(k.place, conn)
	}
	switch state {
	case http.StateNew:
		k.open++
		k.place[conn] = k.waiting.PushBack(conn)
		if k.open > k.most {
			// When all others are at work, the oldest is the new one itself.
			oldest := k.waiting.Remove(k.waiting.Front())
			drop, _ = oldest.(net.Conn) // nothing else is put in
			delete(k.place, drop)
		}
	case http.StateIdle:
		k.place[conn] = k.waiting.PushBack(conn)
	case http.StateClosed, http.StateHijacked:
		k.open--
	}
	return drop
}
