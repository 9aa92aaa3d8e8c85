package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/rclone/gofakes3"
	"github.com/rclone/gofakes3/signature"
	"go.uber.org/zap"
)

// EmbeddedConfig describes the embedded store.
type EmbeddedConfig struct {
	// Bucket is the only bucket of the store.
	Bucket string
	// AccessKey and SecretKey are what requests must be signed with. Leave both empty to let the store make a pair and
	// keep it in its directory: see Credentials.
	AccessKey, SecretKey string
	// MaxPutBytes is the largest object accepted. Default 5261334937 (4.9 GiB), the API's max_bytes.
	MaxPutBytes int64
	// IdleTimeout ends a transfer that moves no byte for so long, in either direction. Default 60 s.
	IdleTimeout time.Duration
	// Logger gets the store's own faults, such as a broken disk. Default: nothing is logged.
	Logger *zap.Logger
}

// MaxPutBytes is the largest single upload that the API promises, 4.9 GiB.
const MaxPutBytes = 5261334937

// Embedded is an S3-protocol object store over a directory, for the process that wants no service beside it. It
// verifies every signature, publishes an object only when it is whole and on the disk, and may be mounted on a public
// port: a request without a valid signature or presigned URL gets nothing.
type Embedded struct {
	cfg     EmbeddedConfig
	backend *backend
	handler http.Handler
	server  *http.Server
	lock    *os.File
}

const (
	embeddedIdleTimeout = 60 * time.Second
	secretsFile         = "credentials.json"
	lockFile            = "lock"
)

// OpenEmbedded opens the store in dir, which it creates, and clears what an earlier process left unfinished. One
// process at a time may have it open.
func OpenEmbedded(dir string, cfg EmbeddedConfig) (*Embedded, error) {
	e, err := openEmbedded(dir, cfg)
	if err != nil {
		return nil, fmt.Errorf("open embedded store in %s: %w", dir, err)
	}
	return e, nil
}

func openEmbedded(dir string, cfg EmbeddedConfig) (*Embedded, error) {
	if !bucketName.MatchString(cfg.Bucket) {
		return nil, fmt.Errorf("the bucket %q is not 3-63 lower-case letters, digits and hyphens", cfg.Bucket)
	}
	if cfg.MaxPutBytes < 0 || cfg.IdleTimeout < 0 || (cfg.AccessKey == "") != (cfg.SecretKey == "") {
		return nil, errors.New("a limit is negative or only one of the two keys is given")
	}
	if cfg.MaxPutBytes == 0 {
		cfg.MaxPutBytes = MaxPutBytes
	}
	if cfg.IdleTimeout == 0 {
		cfg.IdleTimeout = embeddedIdleTimeout
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil { //nolint:gosec // the operator says where
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	e := &Embedded{cfg: cfg}
	if err := e.start(disk{root: root}); err != nil {
		return nil, errors.Join(err, root.Close(), closeFile(e.lock))
	}
	return e, nil
}

func (e *Embedded) start(d disk) error {
	var err error
	if e.lock, err = d.lock(); err != nil {
		return err
	}
	if e.cfg.AccessKey == "" {
		if e.cfg.AccessKey, e.cfg.SecretKey, err = d.credentials(); err != nil {
			return err
		}
	}
	if err := d.root.RemoveAll(tempDir); err != nil {
		return fmt.Errorf("clear unfinished uploads: %w", err)
	}
	for _, name := range []string{tempDir, objectsDir} {
		if err := d.makeDirs(name); err != nil {
			return err
		}
	}
	e.backend = &backend{
		disk: d, bucket: e.cfg.Bucket, maxSize: e.cfg.MaxPutBytes,
		uploads: uploads{byID: map[gofakes3.UploadID]*upload{}},
	}
	e.backend.library = gofakes3.New(e.backend, gofakes3.WithLogger(faultLog{e.cfg.Logger}))
	e.handler = e.backend.library.Server()
	return nil
}

// lock keeps a second process from clearing this one's uploads. The kernel frees it when the process dies.
func (d disk) lock() (*os.File, error) {
	file, err := d.root.OpenFile(lockFile, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("another process has the store open: %w", err)
	}
	return file, nil
}

// credentials reads the store's own key pair, or makes it: presigned URLs must outlive a restart.
func (d disk) credentials() (accessKey, secretKey string, err error) {
	var pair struct {
		AccessKey string `json:"access_key"`
		SecretKey string `json:"secret_key"`
	}
	text, err := d.root.ReadFile(secretsFile)
	if err == nil {
		if err := json.Unmarshal(text, &pair); err != nil || pair.AccessKey == "" || pair.SecretKey == "" {
			return "", "", fmt.Errorf("%s is damaged: remove it to make a new key pair", secretsFile)
		}
		return pair.AccessKey, pair.SecretKey, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("read key pair: %w", err)
	}
	pair.AccessKey, pair.SecretKey = randomName()[:20], randomName()+randomName()
	if text, err = json.Marshal(pair); err != nil { //nolint:gosec // kept in a file of mode 0600 on purpose
		return "", "", err
	}
	draft := secretsFile + ".new"
	if err := d.root.WriteFile(draft, text, 0o600); err != nil {
		return "", "", fmt.Errorf("write key pair: %w", err)
	}
	if err := d.root.Rename(draft, secretsFile); err != nil {
		return "", "", fmt.Errorf("write key pair: %w", err)
	}
	return pair.AccessKey, pair.SecretKey, d.syncDir(".")
}

// Credentials are the key pair that requests must be signed with.
func (e *Embedded) Credentials() (accessKey, secretKey string) {
	return e.cfg.AccessKey, e.cfg.SecretKey
}

// Bucket is the only bucket.
func (e *Embedded) Bucket() string { return e.cfg.Bucket }

// Start serves the store on address, for example 127.0.0.1:0, and returns its base URL. Close stops it.
func (e *Embedded) Start(address string) (endpoint string, err error) {
	if e.server != nil {
		return "", errors.New("the embedded store is already being served")
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return "", fmt.Errorf("serve embedded store: %w", err)
	}
	e.server = &http.Server{
		Handler:           e.Handler(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          zap.NewStdLog(e.cfg.Logger),
	}
	go func(server *http.Server) {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			e.cfg.Logger.Error("embedded store stopped serving", zap.Error(err))
		}
	}(e.server)
	return "http://" + listener.Addr().String(), nil
}

// Close stops what Start began, gives requests under way 5 s, and releases the directory. Unfinished uploads are
// cleared at the next start.
func (e *Embedded) Close() error {
	var faults []error
	if e.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := e.server.Shutdown(ctx); err != nil {
			faults = append(faults, e.server.Close())
		}
	}
	return errors.Join(append(faults, e.backend.disk.root.Close(), closeFile(e.lock))...)
}

func closeFile(file *os.File) error {
	if file == nil {
		return nil
	}
	return file.Close()
}

// Handler serves the bucket at /<bucket> and /<bucket>/<key>. It may be mounted beside other handlers, under both
// paths, as long as nothing rewrites the path or the Host header, which are signed. An Authorization header beside a
// presigned query is ignored: a client that follows a redirect on the same host carries one along. HEAD is answered on
// a URL presigned for GET, because download tools ask with HEAD first.
func (e *Embedded) Handler() http.Handler { return http.HandlerFunc(e.serve) }

type exchangeKey struct{}

func (e *Embedded) serve(w http.ResponseWriter, r *http.Request) {
	x := &exchange{ResponseWriter: w, control: http.NewResponseController(w), idle: e.cfg.IdleTimeout}
	defer x.finish()
	r = r.Clone(context.WithValue(r.Context(), exchangeKey{}, x))
	header := w.Header()
	// The store may share an origin with the account page: nothing it serves may run there.
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Content-Security-Policy", "sandbox; default-src 'none'; img-src 'self' data:; media-src 'self'; style-src 'unsafe-inline'")
	if r.URL.Query().Has("X-Amz-Signature") {
		r.Header.Del("Authorization")
	}
	if refusal := e.admit(r); refusal != nil {
		refusal.write(x, r.Method)
		return
	}
	if r.Body != nil && r.Body != http.NoBody {
		x.body = &receivedBody{
			whole: r.Body, limited: http.MaxBytesReader(w, r.Body, bodyMax(e.cfg.MaxPutBytes)), exchange: x,
		}
		r.Body = x.body
	}
	e.handler.ServeHTTP(x, r)
}

// bodyMax leaves room for the framing of aws-chunked bodies; the object itself is measured by the backend.
func bodyMax(objectMax int64) int64 { return objectMax + objectMax/64 + 64<<10 }

// refusal is an answer given before the protocol library sees the request.
type refusal struct {
	status        int
	code, message string
}

func (f *refusal) write(w http.ResponseWriter, method string) {
	w.Header().Set("Content-Type", "application/xml")
	if method == http.MethodPut || method == http.MethodPost {
		// The body stays unread: without this the server would read on in the hope of another request.
		w.Header().Set("Connection", "close")
	}
	w.WriteHeader(f.status)
	if method != http.MethodHead {
		_, _ = io.WriteString(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n<Error><Code>"+f.code+"</Code><Message>"+f.message+"</Message></Error>\n") //nolint:gosec // constants, no client text
	}
}

// queryKnown are the query parameters of the operations that this store offers. Everything else (ACLs, tags, policies,
// versions, browser forms) is refused rather than half done.
var queryKnown = map[string]bool{
	"list-type": true, "prefix": true, "delimiter": true, "start-after": true, "continuation-token": true,
	"max-keys": true, "encoding-type": true, "fetch-owner": true, "marker": true, "location": true,
	"uploads": true, "uploadId": true, "partNumber": true, "delete": true, "x-id": true,
	"max-uploads": true, "key-marker": true, "upload-id-marker": true, "max-parts": true, "part-number-marker": true,
	"response-content-type": true, "response-content-language": true, "response-expires": true,
	"response-cache-control": true, "response-content-disposition": true, "response-content-encoding": true,
	"X-Amz-Algorithm": true, "X-Amz-Credential": true, "X-Amz-Date": true, "X-Amz-Expires": true,
	"X-Amz-SignedHeaders": true, "X-Amz-Signature": true, "X-Amz-Content-Sha256": true, "X-Amz-Security-Token": true,
	"X-Amz-User-Agent": true, "x-amz-checksum-mode": true, "x-amz-checksum-crc32": true,
	"x-amz-sdk-checksum-algorithm": true,
}

// admit decides whether the request may go on: its path, its operation, its signature and its size, in this order.
func (e *Embedded) admit(r *http.Request) *refusal {
	bucket, key, _ := strings.Cut(strings.TrimLeft(r.URL.Path, "/"), "/")
	if r.Method == http.MethodOptions {
		return nil // a browser's preflight carries no signature and is answered without looking at anything
	}
	if bucket != "" && bucket != e.cfg.Bucket {
		return &refusal{http.StatusNotFound, "NoSuchBucket", "The bucket does not exist."}
	}
	if len(key) > keySizeMax {
		return &refusal{http.StatusBadRequest, "KeyTooLongError", "The key is longer than 1024 bytes."}
	}
	if !utf8.ValidString(key) || strings.ContainsFunc(key, func(c rune) bool { return c < 0x20 || c == 0x7f }) {
		return &refusal{http.StatusBadRequest, "InvalidURI", "The key is not UTF-8 or holds control characters."}
	}
	if r.Method == http.MethodPost && key == "" && !r.URL.Query().Has("delete") {
		return &refusal{http.StatusNotImplemented, "NotImplemented", "Browser form uploads are not offered."}
	}
	for name := range r.URL.Query() {
		if !queryKnown[name] {
			return &refusal{http.StatusNotImplemented, "NotImplemented", "The operation is not offered."}
		}
	}
	if refused := e.authenticate(r); refused != nil {
		return refused
	}
	return e.admitSize(r, key)
}

// authenticate verifies the signature. A HEAD is also good when the same URL is signed for GET: it tells less.
func (e *Embedded) authenticate(r *http.Request) *refusal {
	result := signature.V4SignVerifyWithLookup(r, e.secret)
	if result != signature.ErrNone && r.Method == http.MethodHead && r.URL.Query().Has("X-Amz-Signature") {
		asGet := r.Clone(r.Context())
		asGet.Method = http.MethodGet
		result = signature.V4SignVerifyWithLookup(asGet, e.secret)
	}
	if result == signature.ErrNone {
		return nil
	}
	answer := signature.GetAPIError(result)
	return &refusal{answer.HTTPStatusCode, answer.Code, "The request is not signed, or its signature is wrong or expired."}
}

func (e *Embedded) secret(accessKey string) (string, bool) {
	return e.cfg.SecretKey, accessKey == e.cfg.AccessKey
}

// admitSize refuses what is too large, or larger than the free disk, before a byte of the body is read.
func (e *Embedded) admitSize(r *http.Request, key string) *refusal {
	if r.Method != http.MethodPut || key == "" {
		return nil
	}
	size := r.ContentLength
	if decoded := r.Header.Get("X-Amz-Decoded-Content-Length"); decoded != "" {
		n, err := strconv.ParseInt(decoded, 10, 64)
		if err != nil || n < 0 {
			return &refusal{http.StatusBadRequest, "InvalidArgument", "X-Amz-Decoded-Content-Length is no size."}
		}
		size = n
	}
	if size > e.cfg.MaxPutBytes || r.ContentLength > bodyMax(e.cfg.MaxPutBytes) {
		return &refusal{http.StatusRequestEntityTooLarge, "EntityTooLarge", "The object is larger than this store accepts."}
	}
	if free, err := e.backend.disk.free(); err == nil && size > free {
		return &refusal{http.StatusInsufficientStorage, "InsufficientStorage", "The store's disk is full."}
	}
	return nil
}

// free is the number of bytes that may still be written, as far as the system tells.
func (d disk) free() (int64, error) {
	dir, err := d.root.Open(".")
	if err != nil {
		return 0, err
	}
	defer func() { _ = dir.Close() }() // read only
	var stat syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &stat); err != nil {
		return 0, err
	}
	return int64(stat.Bavail) * int64(stat.Bsize), nil //nolint:unconvert // the type differs between systems
}

// exchange is one answer. It carries the status that the backend wants for an error, and it fails a client that takes
// no bytes for too long.
type exchange struct {
	http.ResponseWriter
	control *http.ResponseController
	idle    time.Duration
	// status, when set, replaces the status of an error answer.
	status int
	failed bool
	body   *receivedBody
}

// lingerTimeout is how long the rest of a refused body is read and thrown away, so that the answer reaches a client
// that is still sending: closing a connection with unread data in it resets it, and a reset discards the answer.
const lingerTimeout = time.Second

// sendStep is how much may be sent under one deadline: with 60 s a client must take 17 KiB/s.
const sendStep = 1 << 20

func (x *exchange) Unwrap() http.ResponseWriter { return x.ResponseWriter }

func (x *exchange) WriteHeader(status int) {
	if status >= http.StatusBadRequest && x.status != 0 {
		status = x.status
	}
	x.failed = status >= http.StatusBadRequest
	x.begin()
	x.ResponseWriter.WriteHeader(status)
}

// begin comes before anything is sent. The library names another product as the server.
func (x *exchange) begin() { x.Header().Del("Server") }

func (x *exchange) Write(p []byte) (int, error) {
	x.begin()
	x.extend(x.control.SetWriteDeadline)
	return x.ResponseWriter.Write(p)
}

// ReadFrom sends a file in steps, each by sendfile and each under its own deadline. The system recognises a file behind
// one limit, not behind two, so the steps are cut from the file itself.
func (x *exchange) ReadFrom(body io.Reader) (sent int64, err error) {
	x.begin()
	whole, ok := body.(*io.LimitedReader)
	if !ok {
		whole = &io.LimitedReader{R: body, N: math.MaxInt64}
	}
	for whole.N > 0 {
		x.extend(x.control.SetWriteDeadline)
		step := min(whole.N, sendStep)
		n, err := io.Copy(x.ResponseWriter, &io.LimitedReader{R: whole.R, N: step})
		sent += n
		whole.N -= n
		if err != nil || n < step {
			return sent, err
		}
	}
	return sent, nil
}

// extend sets a new deadline. Not every writer has deadlines, a recorder in a test for one; those wait as they like.
func (x *exchange) extend(set func(time.Time) error) { _ = set(time.Now().Add(x.idle)) }

// finish lingers after a refusal and takes the deadlines off the connection, which may carry other requests.
func (x *exchange) finish() {
	x.begin() // an answer without a body has not been sent yet
	if x.failed && x.body != nil && x.body.started && !x.body.ended && x.control.Flush() == nil {
		_ = x.control.SetReadDeadline(time.Now().Add(lingerTimeout))
		_, _ = io.Copy(io.Discard, x.body.whole) // of no interest
	}
	_ = x.control.SetWriteDeadline(time.Time{})
	_ = x.control.SetReadDeadline(time.Time{})
}

// receivedBody fails a client that sends no bytes for too long. The server itself closes the body.
type receivedBody struct {
	whole, limited io.Reader
	exchange       *exchange
	started, ended bool
}

func (b *receivedBody) Read(p []byte) (int, error) {
	b.started = true
	b.exchange.extend(b.exchange.control.SetReadDeadline)
	n, err := b.limited.Read(p)
	b.ended = errors.Is(err, io.EOF)
	return n, err
}

func (b *receivedBody) Close() error { return nil }

// faultLog passes on what the library calls errors; everything else it says is the client's business.
type faultLog struct{ log *zap.Logger }

func (l faultLog) Print(level gofakes3.LogLevel, v ...any) {
	if level == gofakes3.LogErr {
		l.log.Error("embedded store fault", zap.String("detail", fmt.Sprintln(v...)))
	}
}
