package testbed

import (
	"bytes"
	"strconv"
	"sync"
)

// RedisProxy is a Proxy before Redis that knows which command passes.
type RedisProxy struct {
	*Proxy

	mu      sync.Mutex
	watches []*redisWatch
}

type redisWatch struct {
	match    func(command []string) bool
	answered bool
	do       func() Verdict
}

// NewRedisProxy is NewProxy for a Redis server.
func NewRedisProxy(t T, target string) *RedisProxy {
	t.Helper()
	p := &RedisProxy{}
	p.Proxy = NewTappedProxy(t, target, func() Tap { return &redisTap{proxy: p} })
	return p
}

// Once calls do the first time that a command that matches passes: before it reaches the server, or, when answered is set, before the
// server's answer reaches the client.
func (p *RedisProxy) Once(match func(command []string) bool, answered bool, do func() Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watches = append(p.watches, &redisWatch{match, answered, do})
}

func (p *RedisProxy) take(w *redisWatch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, each := range p.watches {
		if each == w {
			p.watches = append(p.watches[:i:i], p.watches[i+1:]...)
			return true
		}
	}
	return false
}

// redisTap follows one connection. A client waits for the answer to a command, or to a batch of them, before it sends the next.
type redisTap struct {
	proxy *RedisProxy

	mu      sync.Mutex
	front   []byte
	waiting []*redisWatch
}

// ToServer reads commands.
func (c *redisTap) ToServer(piece []byte) Verdict {
	c.mu.Lock()
	c.front = append(c.front, piece...)
	var due []*redisWatch
	for {
		command, rest, ok := cutCommand(c.front)
		if !ok {
			break
		}
		c.front = rest
		c.proxy.mu.Lock()
		for _, w := range c.proxy.watches {
			if !w.match(command) {
				continue
			}
			if w.answered {
				c.waiting = append(c.waiting, w)
			} else {
				due = append(due, w)
			}
		}
		c.proxy.mu.Unlock()
	}
	if len(c.front) > messageMax {
		c.front = nil
	}
	c.mu.Unlock()
	return c.run(due)
}

// ToClient sees answers. One that only says that a script is not known yet is none: the client sends the script next.
func (c *redisTap) ToClient(piece []byte) Verdict {
	c.mu.Lock()
	due := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	if bytes.HasPrefix(piece, []byte("-NOSCRIPT")) {
		return Verdict{}
	}
	return c.run(due)
}

func (c *redisTap) run(due []*redisWatch) Verdict {
	for _, w := range due {
		if c.proxy.take(w) {
			if v := w.do(); v.Cut || v.Answer != nil {
				return v
			}
		}
	}
	return Verdict{}
}

// cutCommand takes one command, an array of bulk strings, off the front of a stream; false when it is not whole yet.
func cutCommand(data []byte) (command []string, rest []byte, ok bool) {
	n, data, ok := cutCount(data, '*')
	for ok && len(command) < n {
		var size int
		if size, data, ok = cutCount(data, '$'); !ok || len(data) < size+2 {
			return nil, nil, false
		}
		command, data = append(command, string(data[:size])), data[size+2:]
	}
	return command, data, ok
}

// cutCount takes a line such as *3 off.
func cutCount(data []byte, mark byte) (n int, rest []byte, ok bool) {
	line, rest, found := bytes.Cut(data, []byte("\r\n"))
	if !found || len(line) < 2 || line[0] != mark {
		return 0, nil, false
	}
	n, err := strconv.Atoi(string(line[1:]))
	return n, rest, err == nil && n >= 0 && n <= messageMax
}
