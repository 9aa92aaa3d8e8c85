package testbed

import (
	"bytes"
	wire "encoding/binary"
	"sync"
)

// Moment is a point in the life of a statement on its way through a SQLProxy.
type Moment int

const (
	// Sent is before the statement reaches the server.
	Sent Moment = iota
	// Committing is before what makes the statement's work durable reaches the server: its COMMIT, or the statement itself when it is in no
	// transaction.
	Committing
	// Committed is when the work is durable, before the server's word about it reaches the client.
	Committed
)

// SQLProxy is a Proxy before PostgreSQL that knows which statement passes. It follows the protocol: a statement that was prepared once is known by
// its name afterwards, so that clients need no special setting to be watched.
type SQLProxy struct {
	*Proxy

	mu      sync.Mutex
	watches []*sqlWatch
}

type sqlWatch struct {
	match func(sql string) bool
	at    Moment
	do    func() Verdict
}

// NewSQLProxy is NewProxy for a PostgreSQL server.
func NewSQLProxy(t T, target string) *SQLProxy {
	t.Helper()
	p := &SQLProxy{}
	p.Proxy = NewTappedProxy(t, target, func() Tap { return &sqlTap{proxy: p, prepared: map[string]string{}, status: 'I'} })
	return p
}

// Once calls do the first time that a statement that matches has come to the moment. What passes on that connection waits meanwhile.
func (p *SQLProxy) Once(match func(sql string) bool, at Moment, do func() Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watches = append(p.watches, &sqlWatch{match, at, do})
}

// take removes a watch; false when someone else has.
func (p *SQLProxy) take(w *sqlWatch) bool {
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

func (p *SQLProxy) matching(sql string) []*sqlWatch {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []*sqlWatch
	for _, w := range p.watches {
		if w.match(sql) {
			found = append(found, w)
		}
	}
	return found
}

// sqlTap follows one connection.
type sqlTap struct {
	proxy *SQLProxy

	mu sync.Mutex
	// front and back are the unfinished messages of either side.
	front, back []byte
	started     bool
	prepared    map[string]string
	// status is the server's last word about the transaction: I none, T open, E failed.
	status byte
	// inTx holds the watches whose statement passed in the open transaction, and committing those whose commit has passed.
	inTx, committing []*sqlWatch
}

// messageMax bounds what is kept of one unfinished message; a longer one is data, and holds no statement of ours.
const messageMax = 1 << 20

// ToServer reads what the client says.
func (c *sqlTap) ToServer(piece []byte) Verdict {
	c.mu.Lock()
	due := c.read(piece)
	c.mu.Unlock()
	return c.run(due)
}

func (c *sqlTap) run(due []*sqlWatch) Verdict {
	for _, w := range due {
		if c.proxy.take(w) {
			if v := w.do(); v.Cut || v.Answer != nil {
				return v
			}
		}
	}
	return Verdict{}
}

func (c *sqlTap) read(piece []byte) (due []*sqlWatch) {
	c.front = append(c.front, piece...)
	for {
		header := 1
		if !c.started {
			header = 0 // the first message has no type
		}
		if len(c.front) < header+4 {
			return due
		}
		size := header + int(wire.BigEndian.Uint32(c.front[header:]))
		if len(c.front) < size {
			if len(c.front) > messageMax {
				c.front = nil
			}
			return due
		}
		message := c.front[:size]
		c.front = c.front[size:]
		if !c.started {
			c.started = true
			continue
		}
		due = append(due, c.said(message[0], message[5:])...)
	}
}

// said follows one message of the client.
func (c *sqlTap) said(kind byte, body []byte) []*sqlWatch {
	switch kind {
	case 'P': // Parse: name, statement
		name, rest, _ := bytes.Cut(body, []byte{0})
		sql, _, _ := bytes.Cut(rest, []byte{0})
		c.prepared[string(name)] = string(sql)
	case 'B': // Bind: portal, name
		_, rest, _ := bytes.Cut(body, []byte{0})
		name, _, _ := bytes.Cut(rest, []byte{0})
		return c.statement(c.prepared[string(name)])
	case 'Q': // a simple query
		sql, _, _ := bytes.Cut(body, []byte{0})
		return c.statement(string(sql))
	}
	return nil
}

func (c *sqlTap) statement(sql string) (due []*sqlWatch) {
	switch word := firstWord(sql); word {
	case "begin":
		c.status = 'T' // until the server says otherwise: more may come before its answer
		return nil
	case "commit":
		for _, w := range c.inTx {
			if w.at == Committing {
				due = append(due, w)
			} else {
				c.committing = append(c.committing, w)
			}
		}
		c.inTx = nil
		return due
	case "rollback":
		c.inTx = nil
		return nil
	}
	for _, w := range c.proxy.matching(sql) {
		switch {
		case w.at == Sent, w.at == Committing && c.status == 'I':
			due = append(due, w)
		case c.status == 'I':
			c.committing = append(c.committing, w)
		default:
			c.inTx = append(c.inTx, w)
		}
	}
	return due
}

func firstWord(sql string) string {
	text := bytes.ToLower(bytes.TrimSpace([]byte(sql[:min(len(sql), 64)])))
	word, _, _ := bytes.Cut(text, []byte(" "))
	return string(bytes.TrimRight(word, ";"))
}

// ToClient reads what the server says: ReadyForQuery carries the state of the transaction.
func (c *sqlTap) ToClient(piece []byte) Verdict {
	c.mu.Lock()
	var due []*sqlWatch
	c.back = append(c.back, piece...)
	for len(c.back) >= 5 {
		size := 1 + int(wire.BigEndian.Uint32(c.back[1:]))
		if c.back[0] == 'N' && size < 5 { // the answer to a request for TLS
			c.back = c.back[1:]
			continue
		}
		if len(c.back) < size {
			break
		}
		if c.back[0] == 'Z' && size == 6 {
			c.status = c.back[5]
			if c.status == 'I' {
				due, c.committing, c.inTx = append(due, c.committing...), nil, nil
			}
		}
		c.back = c.back[size:]
	}
	c.mu.Unlock()
	return c.run(due)
}
