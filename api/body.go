package api

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// Errors of a request body; they are the client's doing.
var (
	errBodyTooLarge = errors.New("request body is over the limit")
	errBodySlow     = errors.New("request body arrives too slowly")
	errBodyCut      = errors.New("request body ends early")
)

// bodyQuantum is how many bytes must arrive within every Limits.BodyPatience of waiting: 16 KiB in 30 s is slower than any
// network that can be used at all, and a sender of a byte a second is cut off after one patience.
const bodyQuantum = 16 << 10

// drainTimeout bounds how long the server reads what is left of a body after the answer.
const drainTimeout = 3 * time.Second

// patientBody reads a request body under a limit of bytes and of slowness. Only the time spent waiting for the client counts, so that
// a slow storage is never blamed on the client. It remembers its error, so that a failed copy can tell whose fault it was.
type patientBody struct {
	body     io.ReadCloser
	control  *http.ResponseController
	patience time.Duration
	// left is how many more bytes may come.
	left  int64
	moved int64
	// waited is how long this quantum has been waited for.
	waited time.Duration
	err    error
}

// Read is not for concurrent use.
func (b *patientBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	// The deadline is the connection's, so it is on the real clock.
	started := time.Now()
	b.deadline(started.Add(b.patience - b.waited))
	n, err := b.body.Read(p)
	b.waited += time.Since(started)
	b.moved += int64(n)
	if b.moved >= bodyQuantum {
		b.moved, b.waited = 0, 0
	}
	if int64(n) > b.left {
		n, err = int(b.left), errBodyTooLarge
	}
	b.left -= int64(n)
	if err == nil {
		return n, nil
	}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, errBodyTooLarge):
		b.err = err
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.err = errBodySlow
	default:
		b.err = errors.Join(errBodyCut, err)
	}
	// Left in place, the deadline would end the connection's watch for a client that goes away, and with it the request's context.
	b.deadline(time.Time{})
	return n, b.err
}

func (b *patientBody) deadline(t time.Time) {
	_ = b.control.SetReadDeadline(t) // not supported by in-memory connections, which cannot be slow either
}

// allow lets n more bytes come from here on.
func (b *patientBody) allow(n int64) { b.left = n }

// finish is for when the answer is about to be written. It bounds what net/http then still reads of the body: before the answer, so that the
// connection can be used again, or after it, so that a client that is still sending gets to see it. broken says that the connection is of no
// more use.
func (b *patientBody) finish() (broken bool) {
	if b.body == http.NoBody || errors.Is(b.err, io.EOF) {
		return false
	}
	b.deadline(time.Now().Add(drainTimeout))
	return b.err != nil
}

// fault is what to tell the client when reading its body failed: nil when it did not.
func (b *patientBody) fault(limit string) *Error {
	switch {
	case b.err == nil, errors.Is(b.err, io.EOF):
		return nil
	case errors.Is(b.err, errBodyTooLarge):
		return refusef(FileTooLarge, "%s", limit)
	case errors.Is(b.err, errBodySlow):
		return refuse(RequestTimeout)
	}
	return &Error{Code: InvalidParameter, Message: "The request body ends early.", Err: b.err}
}
