package api

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path"
	"runtime/debug"
	"sort"
	"strings"
	"time"

	"go.uber.org/zap"
)

// routes finds the handler of a path and method. It is a ServeMux in which a wrong path or method gets the API's own envelope, and
// that never redirects.
type routes struct {
	server  *server
	mux     *http.ServeMux
	methods map[string]map[string]http.HandlerFunc
}

func newRoutes(s *server) *routes {
	rt := &routes{server: s, mux: http.NewServeMux(), methods: map[string]map[string]http.HandlerFunc{}}
	rt.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.sendError(exchangeOf(w), refuse(NotFound))
	})
	return rt
}

// HandleFunc adds a handler for "METHOD /path".
func (rt *routes) HandleFunc(pattern string, handler func(http.ResponseWriter, *http.Request)) {
	method, where, _ := strings.Cut(pattern, " ")
	if rt.methods[where] == nil {
		rt.methods[where] = map[string]http.HandlerFunc{}
		rt.mux.HandleFunc(where, func(w http.ResponseWriter, r *http.Request) { rt.choose(where, exchangeOf(w), r) })
	}
	rt.methods[where][method] = handler
}

func (rt *routes) choose(where string, x *exchange, r *http.Request) {
	x.route = where
	methods := rt.methods[where]
	handler := methods[r.Method]
	if handler == nil && r.Method == http.MethodHead {
		handler = methods[http.MethodGet]
	}
	if handler != nil {
		handler(x, r)
		return
	}
	allow := []string{http.MethodOptions}
	for method := range methods {
		allow = append(allow, method)
		if method == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	sort.Strings(allow)
	list := strings.Join(allow, ", ")
	if r.Method == http.MethodOptions {
		rt.server.send(x, &answer{status: http.StatusNoContent, header: map[string]string{"Allow": list}})
		return
	}
	rt.server.sendError(x, &Error{Code: MethodNotAllowed, Allow: list, Message: "This address takes " + list + "."})
}

// ServeHTTP hands the request to the handler of its path.
func (rt *routes) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// ServeMux redirects a path such as //api or /a/../b; here it is simply not an address.
	p := r.URL.Path
	clean := path.Clean("/" + p)
	if r.RequestURI == "*" || (clean != p && (clean == "/" || clean+"/" != p)) {
		rt.server.sendError(exchangeOf(w), refuse(NotFound))
		return
	}
	rt.mux.ServeHTTP(w, r)
}

// ServeHTTP serves one request: an id, a log line, a limit on its body, and an answer whatever happens.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	x := &exchange{
		ResponseWriter: w, control: control, id: newRequestID(), started: time.Now(), route: "none", address: s.clientAddress(r),
	}
	body := r.Body
	if body == nil {
		body = http.NoBody
	}
	// r.Body stays as it is: net/http looks at it to decide what to do with a body that was not read.
	x.body = &patientBody{body: body, control: control, patience: s.cfg.Limits.BodyPatience, left: maxJSONBytes}
	h := w.Header()
	h.Set("X-Request-Id", x.id)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	defer func() {
		if p := recover(); p != nil {
			s.panicked(x, p)
		}
		s.logExchange(x, r)
	}()
	s.routes.ServeHTTP(x, r)
}

// panicked answers a request whose handler panicked. The stack is for the log alone.
func (s *server) panicked(x *exchange, p any) {
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(p)
	}
	s.cfg.Log.Error("panic in a request", zap.String("request_id", x.id), zap.String("route", x.route), zap.Any("panic", p),
		zap.ByteString("stack", debug.Stack()))
	if x.status != 0 {
		// Part of an answer is out: breaking the connection is the only way to say that it is not whole.
		panic(http.ErrAbortHandler)
	}
	s.sendError(x, &Error{Code: InternalError, Err: fmt.Errorf("panic: %v", p)})
}

func newRequestID() string {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	return "req_" + hex.EncodeToString(b)
}
