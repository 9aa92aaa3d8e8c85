package testbed

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// Tap reads one connection of a Proxy. Each method sees a piece of a stream before it is passed on and decides about it; the two
// streams of a connection call from two goroutines. A method that blocks holds its stream up.
type Tap interface {
	ToServer(piece []byte) Verdict
	ToClient(piece []byte) Verdict
}

// Verdict says what becomes of a piece. The zero value lets it pass.
type Verdict struct {
	// Cut resets the connection instead.
	Cut bool
	// Answer goes back to where the piece came from, which is then not passed on.
	Answer []byte
}

// Proxy passes TCP connections on to a target and breaks them on request.
type Proxy struct {
	listener net.Listener
	target   string
	tap      func() Tap
	done     chan struct{}
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	cut   bool
	delay time.Duration
	// stalled is closed while bytes may flow, and open during a Stall.
	stalled chan struct{}
	// left is how many bytes may still pass before every connection is cut once; negative is no limit.
	left int64
}

// NewProxy listens on a loopback port and passes connections on to target (host:port).
func NewProxy(t T, target string) *Proxy {
	t.Helper()
	return NewTappedProxy(t, target, nil)
}

// NewTappedProxy is NewProxy with a Tap on each connection, made by tap.
func NewTappedProxy(t T, target string, tap func() Tap) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("proxy: %v", err)
	}
	flowing := make(chan struct{})
	close(flowing)
	p := &Proxy{listener: l, target: target, tap: tap, done: make(chan struct{}), conns: map[net.Conn]struct{}{}, stalled: flowing, left: -1}
	p.running.Add(1)
	go p.accept()
	t.Cleanup(func() {
		close(p.done)
		_ = l.Close()
		p.Cut()
		p.running.Wait()
	})
	return p
}

// Addr is the proxy's own host:port.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Cut resets every connection and every new one until Heal.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	p.reset()
}

// Stall keeps connections open and passes nothing until Heal, as a lost network does.
func (p *Proxy) Stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.stalled:
		p.stalled = make(chan struct{})
	default:
	}
}

// Delay makes every piece of data wait before it is passed on; 0 ends it.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// CutAfter resets every connection once, when n more bytes (both ways together) have passed.
func (p *Proxy) CutAfter(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = n
}

// Heal ends Cut, Stall, Delay and CutAfter. Connections that were reset stay so.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut, p.delay, p.left = false, 0, -1
	select {
	case <-p.stalled:
	default:
		close(p.stalled)
	}
}

func (p *Proxy) accept() {
	defer p.running.Done()
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.running.Add(1)
		go p.serve(client)
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer p.running.Done()
	defer abort(client)
	if !p.keep(client) {
		return
	}
	defer p.drop(client)
	server, err := net.DialTimeout("tcp", p.target, 10*time.Second)
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	if !p.keep(server) {
		return
	}
	defer p.drop(server)
	pass := func([]byte) Verdict { return Verdict{} }
	toServer, toClient := pass, pass
	if p.tap != nil {
		tap := p.tap()
		toServer, toClient = tap.ToServer, tap.ToClient
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(server, client, toServer) })
	both.Go(func() { p.pass(client, server, toClient) })
	both.Wait()
}

// pass copies one direction. Its end is passed on as a half-close, so that a protocol which relies on one keeps working.
func (p *Proxy) pass(to, from net.Conn, tap func([]byte) Verdict) {
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if !p.hold(int64(n)) {
				return
			}
			verdict := tap(buffer[:n])
			if verdict.Cut {
				abort(from)
				abort(to)
				return
			}
			onto, piece := to, buffer[:n]
			if verdict.Answer != nil {
				onto, piece = from, verdict.Answer
			}
			if _, err := onto.Write(piece); err != nil {
				abort(from)
				return
			}
		}
		if errors.Is(err, io.EOF) {
			_ = to.(*net.TCPConn).CloseWrite()
			return
		}
		if err != nil {
			abort(to)
			return
		}
	}
}

// hold waits as Stall and Delay ask, counts n bytes against CutAfter, and says whether they may pass.
func (p *Proxy) hold(n int64) bool {
	p.mu.Lock()
	stalled, delay := p.stalled, p.delay
	p.mu.Unlock()
	select {
	case <-stalled:
	case <-p.done:
		return false
	}
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-p.done:
			return false
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left < 0 {
		return !p.cut
	}
	if p.left -= n; p.left < 0 {
		p.reset()
		return false
	}
	return !p.cut
}

// reset ends every connection; the caller holds the lock.
func (p *Proxy) reset() {
	for conn := range p.conns {
		abort(conn)
	}
	clear(p.conns)
}

func (p *Proxy) keep(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		abort(conn)
		return false
	}
	p.conns[conn] = struct{}{}
	return true
}

func (p *Proxy) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, conn)
}

// abort closes a connection with a reset, so that the peer sees an error and not an end.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = conn.Close()
}
