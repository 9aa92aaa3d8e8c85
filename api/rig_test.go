package api_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"enlarger/account"
	"enlarger/api"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/engine/image"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// rig is a client's view of a whole API on a port of its own, real in every part: one account with 1000 credits and one key.
type rig struct {
	testing.TB
	*world
	account account.Account
	key     account.Key
	secret  string
}

// world is what the clients of one API share.
type world struct {
	ctx      context.Context
	base     string
	client   *http.Client
	db       *db.DB
	accounts *account.Store
	jobs     *job.Store
	ledger   *billing.Ledger
	storage  *storage.Store
	redis    redis.UniversalClient
	catalog  *engine.Catalog
	prices   *billing.Prices
	log      *logSink
	mini     *miniredis.Miniredis

	mu         sync.Mutex
	dispatched []string
	stopped    []string
	dispatchFn func() error
	// ahead is added to the API's clock.
	ahead time.Duration
}

// fresh is another client of the same API, with an account of its own.
func (r *rig) fresh(credits int64) *rig {
	r.Helper()
	a, k, secret := r.newAccount("another", credits)
	return &rig{TB: r.TB, world: r.world, account: a, key: k, secret: secret}
}

// at is the same client reporting to a subtest.
func (r *rig) at(t testing.TB) *rig {
	other := *r
	other.TB = t
	return &other
}

// clock moves the API's clock.
func (r *rig) clock(ahead time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead = ahead
}

// services are the addresses of what a rig stands on.
type services struct {
	database string
	redis    *redis.Options
	mini     *miniredis.Miniredis
	// storageVia stands between the API and the object store when not nil.
	storageVia func(target string) string
	change     func(cfg *api.Config)
}

// each runs a test on SQLite with the in-process Redis, and on PostgreSQL with a real one.
func each(t *testing.T, test func(r *rig)) {
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(embedded(t, nil))
	})
	t.Run("fleet", func(t *testing.T) {
		t.Parallel()
		test(fleet(t, nil))
	})
}

func embedded(t testing.TB, change func(cfg *api.Config)) *rig {
	mini := miniredis.NewMiniRedis()
	t.Cleanup(mini.Close)
	return newRig(t, services{
		database: "sqlite:" + t.TempDir() + "/test.db", mini: mini, change: change,
		redis: &redis.Options{Dialer: func(context.Context, string, string) (net.Conn, error) { return mini.Dial() }},
	})
}

func fleet(t testing.TB, change func(cfg *api.Config)) *rig {
	options, err := redis.ParseURL(testbed.Redis(t).URL())
	must(t, err)
	return newRig(t, services{database: testbed.PostgreSQL(t), redis: options, change: change})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newRig(t testing.TB, on services) *rig {
	t.Helper()
	ctx := context.Background()
	r := &rig{TB: t, world: &world{ctx: ctx, log: &logSink{}, mini: on.mini}}
	r.client = &http.Client{Timeout: 10 * time.Minute, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	transport := &http.Transport{MaxIdleConnsPerHost: 100, ExpectContinueTimeout: 5 * time.Second}
	r.client.Transport = transport
	t.Cleanup(transport.CloseIdleConnections)
	var err error
	r.db, err = db.Open(ctx, db.Config{URL: on.database})
	must(t, err)
	t.Cleanup(func() { r.db.Close() })
	must(t, r.db.Migrate(ctx))
	on.redis.ContextTimeoutEnabled = true
	client := redis.NewClient(on.redis)
	t.Cleanup(func() { client.Close() })
	r.redis = client
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r.base = "http://" + listener.Addr().String()
	media := r.openStorage(on)
	r.accounts, r.jobs, r.ledger = account.NewStore(r.db), job.NewStore(r.db), billing.NewLedger(r.db)
	r.prices, err = billing.DefaultPrices()
	must(t, err)
	r.catalog = documentedTools()
	cfg := api.Config{
		Accounts: r.accounts, Jobs: r.jobs, Ledger: r.ledger, Prices: r.prices, Catalog: r.catalog, Storage: r.storage,
		Fetcher: storage.NewFetcher(storage.FetchConfig{}), Redis: client, SniffImage: image.SniffPrefix,
		Dispatch: func(_ context.Context, w job.WakeUp) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.dispatched = append(r.dispatched, fmt.Sprintf("%s %s %d", w.ID, w.Media, w.Number))
			if r.dispatchFn != nil {
				return r.dispatchFn()
			}
			return nil
		},
		Stopped: func(_ context.Context, id string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.stopped = append(r.stopped, id)
		},
		Limits:    api.Limits{RatePerMinute: 1_000_000, FailedPerMinute: 1_000_000, MaxImage: 1_000_000, MaxVideo: 1_000_000},
		PublicURL: r.base, Log: zap.New(r.log), Version: "test",
		Now: func() time.Time {
			r.mu.Lock()
			defer r.mu.Unlock()
			return time.Now().Add(r.ahead)
		},
	}
	if on.change != nil {
		on.change(&cfg)
	}
	handler, err := api.New(cfg)
	must(t, err)
	server := api.NewHTTPServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if strings.HasPrefix(req.URL.Path, "/media/") {
			media.ServeHTTP(w, req)
			return
		}
		handler.ServeHTTP(w, req)
	}), zap.NewNop())
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(listener)
	}()
	t.Cleanup(func() { server.Close(); <-done })
	r.account, r.key, r.secret = r.newAccount("first", 1000)
	t.Cleanup(r.audit)
	return r
}

// openStorage opens an embedded store, served to the API on a port of its own and to clients on the API's.
func (r *rig) openStorage(on services) http.Handler {
	store, err := storage.OpenEmbedded(r.TempDir(), storage.EmbeddedConfig{Bucket: "media"})
	must(r, err)
	r.Cleanup(func() { store.Close() })
	endpoint, err := store.Start("127.0.0.1:0")
	must(r, err)
	if on.storageVia != nil {
		endpoint = on.storageVia(endpoint)
	}
	access, secret := store.Credentials()
	r.storage, err = storage.Open(storage.Config{
		Endpoint: endpoint, PublicEndpoint: r.base, Bucket: "media", AccessKey: access, SecretKey: secret, PathStyle: true,
		TempDir: r.TempDir(),
	})
	must(r, err)
	r.Cleanup(r.storage.Close)
	must(r, r.storage.EnsureBucket(r.ctx))
	return store.Handler()
}

// audit checks that the books and the jobs tell the same story when a test ends.
func (r *rig) audit() {
	found, err := r.jobs.Audit(r.ctx)
	if err != nil || len(found) > 0 {
		r.Errorf("audit: %v %v", found, err)
	}
}

func (r *rig) newAccount(name string, credits int64) (account.Account, account.Key, string) {
	a, err := r.accounts.Create(r.ctx, name)
	must(r, err)
	if credits > 0 {
		must(r, r.ledger.Grant(r.ctx, a.ID, billing.Millicredits(credits)*billing.Credit, "", "welcome"))
	}
	k, secret, err := r.accounts.CreateKey(r.ctx, a.ID, "test")
	must(r, err)
	return a, k, secret
}

// tool configs of the API document.
type (
	noConfig   struct{}
	faceConfig struct {
		FaceEnhance bool `json:"face_enhance" doc:"Restore faces as well."`
	}
	upscaleConfig struct {
		Scale       int  `json:"scale" doc:"How many times larger." enum:"2,4,8"`
		FaceEnhance bool `json:"face_enhance" doc:"Restore faces as well."`
	}
	cartoonConfig struct {
		Style       string `json:"style" doc:"The style." enum:"anime,comic,sketch,watercolor,oil"`
		FaceEnhance bool   `json:"face_enhance" doc:"Restore faces as well."`
	}
	customConfig struct {
		Prompt      string `json:"prompt" doc:"What to do." required:"true" min:"1" max:"1000"`
		FaceEnhance bool   `json:"face_enhance" doc:"Restore faces as well."`
	}
	videoConfig struct {
		Scale int     `json:"scale" doc:"How many times larger." enum:"2,4"`
		FPS   float64 `json:"fps,omitempty" doc:"Frames a second." min:"1" max:"120"`
	}
	hdrConfig struct {
		Quality string `json:"quality" doc:"Quality." enum:"high,medium,low"`
		Codec   string `json:"codec" doc:"Codec." enum:"h264,h265"`
		Gamut   string `json:"hdr_color_gamut" doc:"Gamut." enum:"bt2020,p3"`
	}
	videoFaceConfig struct {
		Mode    string `json:"face_enhanced_mode" doc:"Mode." enum:"natural,strong"`
		Quality string `json:"quality" doc:"Quality." enum:"high,medium,low"`
		Codec   string `json:"codec" doc:"Codec." enum:"h264,h265"`
	}
)

// documentedTools are the tools of the API document with their configs and output sizes. Nothing here is ever processed.
func documentedTools() *engine.Catalog {
	const image, video = engine.Image, engine.Video
	return engine.NewCatalog(engine.DefaultLimits(),
		tool("upscale", image, upscaleConfig{Scale: 2}, func(c upscaleConfig) int { return c.Scale }),
		tool("sharpen", image, faceConfig{}, nil), tool("denoise", image, faceConfig{}, nil), tool("remove_bg", image, noConfig{}, nil),
		tool("restore", image, faceConfig{}, nil), tool("cartoonize", image, cartoonConfig{Style: "anime"}, nil),
		tool("passport_photo", image, noConfig{}, nil), tool("custom", image, customConfig{}, nil),
		tool("video_upscale", video, videoConfig{Scale: 2}, func(c videoConfig) int { return c.Scale }),
		tool("video_hdr", video, hdrConfig{Quality: "medium", Codec: "h265", Gamut: "bt2020"}, nil),
		tool("video_face_enhance", video, videoFaceConfig{Mode: "natural", Quality: "medium", Codec: "h264"}, nil),
	)
}

func tool[C any](name string, media engine.Media, defaults C, scale func(C) int) engine.Tool {
	return engine.Define(engine.Spec[C]{
		Name: name, Media: media, Doc: "A tool of the API document.", Defaults: defaults,
		Size: func(c C, s engine.Source) (int, int) {
			by := 1
			if scale != nil {
				by = scale(c)
			}
			return s.Width * by, s.Height * by
		},
		Measure: func(context.Context, string) (engine.Source, error) { panic("never measured") },
		Process: func(context.Context, C, engine.Task) (engine.Output, error) { panic("never processed") },
	})
}

// response is an answer, read whole.
type response struct {
	*http.Response
	text []byte
	json map[string]any
}

func (r *rig) send(method, path string, body io.Reader, headers ...string) response {
	r.Helper()
	resp, err := r.try(method, path, body, headers...)
	must(r, err)
	return resp
}

// try sends a request with the rig's key unless an Authorization header is given ("" leaves it out).
func (r *rig) try(method, path string, body io.Reader, headers ...string) (response, error) {
	if !strings.HasPrefix(path, "http") {
		path = r.base + path
	}
	req, err := http.NewRequestWithContext(r.ctx, method, path, body)
	if err != nil {
		return response{}, err
	}
	req.Header.Set("Authorization", "Bearer "+r.secret)
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i+1] == "" {
			req.Header.Del(headers[i])
			continue
		}
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{}, err
	}
	out := response{Response: resp, text: text}
	json.Unmarshal(text, &out.json)
	return out, nil
}

func (r *rig) get(path string) response {
	r.Helper()
	return r.send("GET", path, nil)
}

func (r *rig) postJSON(path, body string, headers ...string) response {
	r.Helper()
	return r.send("POST", path, strings.NewReader(body), append([]string{"Content-Type", "application/json"}, headers...)...)
}

// field is one part of a form. A file has a name.
type field struct{ name, file, value string }

func text(name, value string) field { return field{name: name, value: value} }

func file(name string, content []byte) field {
	return field{name: name, file: "photo.jpg", value: string(content)}
}

func formBody(fields ...field) (contentType string, body []byte) {
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	for _, f := range fields {
		h := textproto.MIMEHeader{}
		if f.file == "" {
			h.Set("Content-Disposition", fmt.Sprintf(`form-data; name=%q`, f.name))
		} else {
			h.Set("Content-Disposition", fmt.Sprintf(`form-data; name=%q; filename=%q`, f.name, f.file))
			h.Set("Content-Type", "image/jpeg")
		}
		part, err := w.CreatePart(h)
		if err != nil {
			panic(err)
		}
		io.WriteString(part, f.value)
	}
	w.Close()
	return w.FormDataContentType(), out.Bytes()
}

func (r *rig) postForm(path string, fields ...field) response {
	r.Helper()
	return r.postFormWith(path, nil, fields...)
}

func (r *rig) postFormWith(path string, headers []string, fields ...field) response {
	r.Helper()
	kind, body := formBody(fields...)
	return r.send("POST", path, bytes.NewReader(body), append([]string{"Content-Type", kind}, headers...)...)
}

// png is a PNG file that says it has this size; only its header is real, which is all that the API looks at.
func png(width, height uint32) []byte {
	out := []byte("\x89PNG\r\n\x1a\n")
	header := binary.BigEndian.AppendUint32(nil, width)
	header = binary.BigEndian.AppendUint32(header, height)
	header = append(header, 8, 2, 0, 0, 0)
	for _, c := range []struct {
		name string
		data []byte
	}{{"IHDR", header}, {"IDAT", []byte{0x78, 0x9c, 0x03, 0, 0, 0, 0, 1}}, {"IEND", nil}} {
		out = binary.BigEndian.AppendUint32(out, uint32(len(c.data)))
		sum := crc32.NewIEEE()
		sum.Write([]byte(c.name))
		sum.Write(c.data)
		out = append(append(out, c.name...), c.data...)
		out = binary.BigEndian.AppendUint32(out, sum.Sum32())
	}
	return out
}

// queued makes a job by the API and returns its id.
func (r *rig) queued(tool string) string {
	r.Helper()
	resp := r.postJSON("/api/v1/jobs", `{"image_url": "https://example.com/a", "tool": "`+tool+`"}`)
	if resp.StatusCode != http.StatusAccepted {
		r.Fatalf("create: %d %s", resp.StatusCode, resp.text)
	}
	return resp.json["job_id"].(string)
}

const lease = 10 * time.Minute

// claimed brings a job to phase uploading, as a worker does.
func (r *rig) claimed(id string) job.Job {
	r.Helper()
	j, err := r.jobs.Claim(r.ctx, id, "test worker", lease)
	must(r, err)
	return j
}

// reserved brings a job to phase processing, with credits frozen.
func (r *rig) reserved(id string, price billing.Millicredits) job.Job {
	r.Helper()
	j := r.claimed(id)
	must(r, r.jobs.SourceStored(r.ctx, id, j.Fence, 1234))
	_, err := r.jobs.Reserve(r.ctx, j, price)
	must(r, err)
	return j
}

// succeeded brings a job to its end, with an object of this content as the result.
func (r *rig) succeeded(id string, content string, out engine.Output) job.Job {
	r.Helper()
	j := r.reserved(id, 1000)
	object := storage.ResultKey(id, j.Fence, j.Format)
	_, err := r.storage.Put(r.ctx, object, strings.NewReader(content), int64(len(content)), engine.Plan{Format: j.Format}.ContentType())
	must(r, err)
	must(r, r.jobs.Succeed(r.ctx, j, object, out, nil))
	return j
}

// failed ends a job with a failure.
func (r *rig) failed(id string, code engine.Code) {
	r.Helper()
	j := r.claimed(id)
	must(r, r.jobs.Fail(r.ctx, id, j.Fence, engine.Failf(code, "What went wrong, in words.")))
}

// objects lists what is in storage.
func (r *rig) objects() []string {
	r.Helper()
	found, err := r.storage.List(r.ctx, "", "", 1000)
	must(r, err)
	keys := []string{}
	for _, o := range found {
		keys = append(keys, o.Key)
	}
	sort.Strings(keys)
	return keys
}

func (r *rig) balance() billing.Balance {
	r.Helper()
	b, err := r.ledger.Balance(r.ctx, r.account.ID)
	must(r, err)
	return b
}

func (r *rig) jobCount() int {
	r.Helper()
	jobs, err := r.jobs.List(r.ctx, r.account.ID, job.Filter{Limit: 100})
	must(r, err)
	return len(jobs)
}

// refused checks the whole envelope of an error.
func (r *rig) refused(resp response, status int, code, kind, param string) {
	r.Helper()
	e, _ := resp.json["error"].(map[string]any)
	if resp.StatusCode != status || e == nil || len(resp.json) != 1 {
		r.Fatalf("got %d %s, want %d %s", resp.StatusCode, resp.text, status, code)
	}
	if e["code"] != code || e["type"] != kind || e["request_id"] != resp.Header.Get("X-Request-Id") || e["request_id"] == "" {
		r.Errorf("got %s with X-Request-Id %q, want code %s and type %s", resp.text, resp.Header.Get("X-Request-Id"), code, kind)
	}
	if got, _ := e["param"].(string); got != param {
		r.Errorf("param %q in %s, want %q", got, resp.text, param)
	}
	if message, _ := e["message"].(string); message == "" || (param != "" && !strings.Contains(message, strings.TrimPrefix(param, "config."))) {
		r.Errorf("message %q does not name %q", message, param)
	}
	for name := range e {
		if name != "code" && name != "message" && name != "type" && name != "param" && name != "request_id" {
			r.Errorf("error has %q: %s", name, resp.text)
		}
	}
	if kind := resp.Header.Get("Content-Type"); kind != "application/json" {
		r.Errorf("Content-Type %q", kind)
	}
}

// logSink keeps what was logged, whole, so that tests can look for what must not be in it.
type logSink struct {
	mu    sync.Mutex
	lines []string
}

func (s *logSink) Enabled(zapcore.Level) bool { return true }

func (s *logSink) With([]zapcore.Field) zapcore.Core { return s }

func (s *logSink) Check(e zapcore.Entry, c *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return c.AddCore(e, s)
}

func (s *logSink) Write(e zapcore.Entry, fields []zapcore.Field) error {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(encoder)
	}
	text, err := json.Marshal(encoder.Fields)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, e.Level.String()+" "+e.Message+" "+string(text))
	return err
}

func (s *logSink) Sync() error { return nil }

func (s *logSink) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

func mustParse(t testing.TB, raw string) *url.URL {
	t.Helper()
	u, err := url.Parse(raw)
	must(t, err)
	return u
}
