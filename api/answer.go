package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"enlarger/account"
)

// answer is what an operation gives back.
type answer struct {
	status int
	// body is encoded as JSON, or written as it is when it is []byte; nil sends none.
	body any
	// retryAfter is in seconds; 0 sends no header.
	retryAfter int
	header     map[string]string
}

// exchange is one request and its response, with what the log says of it. It is the http.ResponseWriter that handlers see.
type exchange struct {
	http.ResponseWriter
	control *http.ResponseController
	body    *patientBody
	id      string
	started time.Time
	address string
	route   string
	account account.Account
	key     account.Key

	status int
	code   Code
	err    error
}

// exchangeOf finds the exchange behind the writer that a handler was given; ServeHTTP gave it.
func exchangeOf(w http.ResponseWriter) *exchange {
	x, ok := w.(*exchange)
	if !ok {
		panic("a handler of this package was called by another server")
	}
	return x
}

// writeTimeout bounds how long a client may take to read an answer; the largest is under 1 MiB.
const writeTimeout = 30 * time.Second

// Unwrap lets http.ResponseController reach the connection.
func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

// WriteHeader starts the response.
func (x *exchange) WriteHeader(status int) {
	if x.status != 0 {
		return
	}
	x.status = status
	if x.body.finish() {
		x.Header().Set("Connection", "close")
	}
	_ = x.control.SetWriteDeadline(time.Now().Add(writeTimeout)) // on the connection, so on the real clock; net/http clears it
	x.ResponseWriter.WriteHeader(status)
}

// Write writes to the response.
func (x *exchange) Write(p []byte) (int, error) {
	x.WriteHeader(http.StatusOK)
	return x.ResponseWriter.Write(p)
}

// send writes an answer.
func (s *server) send(x *exchange, a *answer) {
	for name, value := range a.header {
		x.Header().Set(name, value)
	}
	if a.retryAfter > 0 {
		x.Header().Set("Retry-After", strconv.Itoa(a.retryAfter))
	}
	text, raw := a.body.([]byte)
	if !raw && a.body != nil {
		var err error
		if text, err = encode(a.body); err != nil {
			s.sendError(x, &Error{Code: InternalError, Err: err})
			return
		}
	}
	if text != nil {
		x.Header().Set("Content-Length", strconv.Itoa(len(text)))
		if x.Header().Get("Content-Type") == "" {
			x.Header().Set("Content-Type", "application/json")
		}
	}
	x.WriteHeader(a.status)
	if _, err := x.Write(text); err != nil && x.err == nil {
		x.err = fmt.Errorf("write answer: %w", err)
	}
}

// encode is JSON that leaves & in URLs as it is.
func encode(v any) ([]byte, error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, fmt.Errorf("encode answer: %w", err)
	}
	return text.Bytes(), nil
}

// sendError writes the envelope of an error.
func (s *server) sendError(x *exchange, e *Error) {
	x.code, x.err = e.Code, e.Err
	if x.status != 0 {
		return
	}
	if e.Allow != "" {
		x.Header().Set("Allow", e.Allow)
	}
	if s.errors[e.Code].status == http.StatusUnauthorized {
		x.Header().Set("WWW-Authenticate", `Bearer realm="enlarger"`)
	}
	status, body := s.errors.body(e, x.id)
	s.send(x, &answer{status: status, body: body, retryAfter: e.RetryAfter})
}

// logExchange writes the access line. Neither URLs nor headers are in it: they can hold secrets.
func (s *server) logExchange(x *exchange, r *http.Request) {
	took := time.Since(x.started)
	s.cfg.Metrics.answered(r.Method, x.route, x.status, took)
	fields := []zap.Field{
		zap.String("method", methodName(r.Method)), zap.String("route", x.route), zap.Int("status", x.status),
		zap.Duration("duration", took), zap.String("request_id", x.id),
	}
	if x.key.ID != "" {
		fields = append(fields, zap.String("account_id", x.account.ID), zap.String("key_id", x.key.ID))
	}
	if x.code != "" {
		fields = append(fields, zap.String("code", string(x.code)))
	}
	if x.err != nil {
		fields = append(fields, zap.Error(x.err))
	}
	if x.status >= 500 {
		s.cfg.Log.Error("request failed", fields...)
		return
	}
	s.cfg.Log.Info("request", fields...)
}

// methodName keeps a client's own words out of the log.
func methodName(method string) string {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions,
		http.MethodConnect, http.MethodTrace:
		return method
	}
	return "other"
}
