// Package faults is a fleet to be broken: PostgreSQL, Redis, an S3-protocol store and enlarger processes, all real, on private ports and
// folders, with a proxy of ours before each service of each process. Its tests inject one fault each, at an exact point of the protocol
// where that matters, and hold what is left against the books; its soak injects them all at random for as long as it is told. Nothing in the
// product knows that it is being tested. Only tests may import it.
package faults

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/job"
	"enlarger/testbed"
)

// T is what the harness needs of a test.
type T interface {
	testbed.T
	Context() context.Context
	TempDir() string
	Errorf(format string, args ...any)
}

// Fleet is a running installation: a fleet of processes on PostgreSQL, Redis and S3, or the all-in-one process.
type Fleet struct {
	T
	// Settings are the environment of every process.
	Settings map[string]string
	Account  string
	// Embedded says that one process is everything.
	Embedded bool

	DB     *db.DB
	Jobs   *job.Store
	Ledger *billing.Ledger
	// Redis is nil when embedded.
	Redis *testbed.RedisServer

	database string // host:port of PostgreSQL
	store    *objects
	apis     []*Node
	nodes    []*Node
	secrets  map[string]string // account id -> API key
	data     string

	mu       sync.Mutex
	accepted map[string]string // job id -> account id
}

// Node is one enlarger process and what stands between it and its services.
type Node struct {
	*testbed.Process
	Name  string
	Gate  *Gate
	DB    *testbed.SQLProxy
	Redis *testbed.RedisProxy
	S3    *testbed.HTTPProxy
	// URL is where it serves the API; "" for a worker.
	URL string

	// busy is held while something happens to the process that must not be mixed with something else.
	busy sync.Mutex
	// starting is held until a process that was started is the node's: it may speak, and be killed for it, before that.
	starting sync.Mutex

	fleet   *Fleet
	command string
	env     map[string]string
	// program and args are set when the process is started in some other way than by its command.
	program string
	args    []string
}

// credits that a fleet's account starts with.
const credits = 100_000

// Quick are settings with which a lost run is found in a second or two. A run may be lost several times in one test, so its budget is larger.
func Quick() map[string]string {
	return map[string]string{
		"ENLARGER_LEASE": "2s", "ENLARGER_HEARTBEAT": "500ms", "ENLARGER_SWEEP": "300ms", "ENLARGER_RETRY_BUDGET": "10", "ENLARGER_GRACE": "10s",
	}
}

// With is Quick with more settings, given as name and value.
func With(more ...string) map[string]string {
	settings := Quick()
	for i := 0; i+1 < len(more); i += 2 {
		settings[more[i]] = more[i+1]
	}
	return settings
}

// New starts the services and the API processes of a fleet; workers are the test's own business. The settings may name another database.
func New(t T, apis int, settings map[string]string) *Fleet {
	t.Helper()
	return newServices(t, apis, settings, startStore(t))
}

// NewWithSmallStore is New with a store whose disk has so many KiB.
func NewWithSmallStore(t T, apis, kib int, settings map[string]string) *Fleet {
	t.Helper()
	return newServices(t, apis, settings, startSmallStore(t, kib))
}

func newServices(t T, apis int, settings map[string]string, store *objects) *Fleet {
	t.Helper()
	redis := testbed.Redis(t)
	f := newFleet(t, settings)
	f.Redis, f.store = redis, store
	maps.Copy(f.Settings, map[string]string{
		"ENLARGER_REDIS": redis.URL(), "ENLARGER_S3_ENDPOINT": f.store.endpoint, "ENLARGER_S3_PUBLIC_ENDPOINT": f.store.endpoint,
		"ENLARGER_S3_REGION": "us-east-1", "ENLARGER_S3_BUCKET": bucket,
		"ENLARGER_S3_ACCESS_KEY": f.store.access, "ENLARGER_S3_SECRET_KEY": f.store.secret,
	})
	if f.Settings["ENLARGER_DATABASE"] == "" {
		f.Settings["ENLARGER_DATABASE"] = testbed.PostgreSQL(t)
	}
	f.database = hostOf(t, f.Settings["ENLARGER_DATABASE"])
	f.openDatabase(f.Settings["ENLARGER_DATABASE"])
	f.check(f.DB.Migrate(t.Context()))
	f.Account = f.NewAccount("fleet", credits)
	for i := range apis {
		f.apis = append(f.apis, f.Start(fmt.Sprintf("api%d", i), "api", "ENLARGER_LISTEN", testbed.FreeAddr(t)))
	}
	for _, api := range f.apis {
		api.Ready()
	}
	return f
}

// NewEmbedded starts the all-in-one process.
func NewEmbedded(t T, settings map[string]string) *Fleet {
	t.Helper()
	f := newFleet(t, settings)
	f.Embedded = true
	f.apis = []*Node{f.Start("serve", "serve", "ENLARGER_LISTEN", testbed.FreeAddr(t))}
	f.apis[0].Ready()
	f.openDatabase("sqlite:" + filepath.Join(f.data, "enlarger.db"))
	f.Account = f.NewAccount("embedded", credits)
	return f
}

func newFleet(t T, settings map[string]string) *Fleet {
	t.Helper()
	f := &Fleet{T: t, data: t.TempDir(), accepted: map[string]string{}, secrets: map[string]string{}}
	f.Settings = map[string]string{
		"ENLARGER_RATE_LIMIT": "1000000", "ENLARGER_MAX_IMAGE_JOBS": "100000", "ENLARGER_MAX_VIDEO_JOBS": "100000", "ENLARGER_DATA": f.data,
		"ENLARGER_NEURAL": "off", // what fills the time of a run does not matter here
	}
	maps.Copy(f.Settings, settings)
	f.check(os.Mkdir(f.temp(), 0o700))
	return f
}

func (f *Fleet) openDatabase(url string) {
	f.Helper()
	d, err := db.Open(f.Context(), db.Config{URL: url, MaxConns: 4})
	f.check(err)
	f.Cleanup(func() { d.Close() })
	f.DB, f.Jobs, f.Ledger = d, job.NewStore(d), billing.NewLedger(d)
}

// NewAccount makes an account with credits and a key, and gives its id.
func (f *Fleet) NewAccount(name string, credits int64) string {
	f.Helper()
	accounts := account.NewStore(f.DB)
	made, err := accounts.Create(f.Context(), name)
	f.check(err)
	if credits > 0 {
		f.check(f.Ledger.Grant(f.Context(), made.ID, billing.Millicredits(credits)*billing.Credit, "", ""))
	}
	_, secret, err := accounts.CreateKey(f.Context(), made.ID, "test")
	f.check(err)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets[made.ID] = secret
	return made.ID
}

func (f *Fleet) check(err error) {
	f.Helper()
	if err != nil {
		f.Fatalf("%v", err)
	}
}

// Worker starts a worker, with more settings given as name and value.
func (f *Fleet) Worker(name string, more ...string) *Node {
	f.Helper()
	return f.Start(name, "worker", more...)
}

// Start starts an enlarger process behind proxies of its own.
func (f *Fleet) Start(name, command string, more ...string) *Node {
	f.Helper()
	n := &Node{Name: name, fleet: f, command: command, env: maps.Clone(f.Settings), Gate: newGate(f.T)}
	n.env["ENLARGER_WORKER_NAME"] = name
	n.env["ENLARGER_FFMPEG"] = n.Gate.Program
	n.env["TMPDIR"] = f.temp()
	if f.Redis != nil {
		n.DB = testbed.NewSQLProxy(f.T, f.database)
		n.Redis = testbed.NewRedisProxy(f.T, f.Redis.Addr())
		n.S3 = testbed.NewHTTPProxy(f.T, f.store.endpoint)
		n.env["ENLARGER_DATABASE"] = strings.Replace(n.env["ENLARGER_DATABASE"], f.database, n.DB.Addr(), 1)
		n.env["ENLARGER_REDIS"] = "redis://" + n.Redis.Addr() + "/0"
		n.env["ENLARGER_S3_ENDPOINT"] = n.S3.URL()
	}
	for i := 0; i+1 < len(more); i += 2 {
		n.env[more[i]] = more[i+1]
	}
	if listen := n.env["ENLARGER_LISTEN"]; command != "worker" && listen != "" {
		n.URL = "http://" + listen
	}
	n.Again()
	f.mu.Lock()
	f.nodes = append(f.nodes, n)
	f.mu.Unlock()
	return n
}

// Again starts the node's process anew, behind the same proxies; an earlier one must have ended.
func (n *Node) Again() {
	n.fleet.Helper()
	n.starting.Lock()
	defer n.starting.Unlock()
	if n.program != "" {
		n.Process = testbed.StartProgram(n.fleet.T, n.Name, n.program, n.env, n.args...)
		return
	}
	n.Process = testbed.Start(n.fleet.T, n.Name, n.env, n.command)
}

// Kill ends the node's process at once and waits until it is gone.
func (n *Node) Kill() {
	n.starting.Lock()
	process := n.Process
	n.starting.Unlock()
	process.Kill()
}

// Run starts another build of the program as this node, with more environment given as name and value.
func (n *Node) Run(program string, more ...string) {
	n.fleet.Helper()
	n.program, n.args = program, []string{n.command}
	for i := 0; i+1 < len(more); i += 2 {
		n.env[more[i]] = more[i+1]
	}
	n.Again()
}

// Ready waits until the node answers.
func (n *Node) Ready() *Node {
	n.fleet.Helper()
	if n.URL != "" {
		testbed.WaitHTTP(n.fleet.T, n.URL+"/healthz")
		return n
	}
	testbed.Until(n.fleet.T, time.Minute, n.Name+" to start", func() bool { return n.said("worker started") })
	return n
}

// said looks for a text at the beginning of the node's log.
func (n *Node) said(text string) bool {
	file, err := os.Open(n.LogPath())
	if err != nil {
		return false
	}
	defer file.Close()
	head, err := io.ReadAll(io.LimitReader(file, 64<<10))
	return err == nil && strings.Contains(string(head), text)
}

// Restart kills the node and starts it again.
func (n *Node) Restart() {
	n.fleet.Helper()
	n.Kill()
	n.Again()
}

// CLI runs an operator's command and returns what it printed.
func (f *Fleet) CLI(args ...string) string {
	f.Helper()
	env := maps.Clone(f.Settings)
	env["ENLARGER_LOG_LEVEL"] = "error"
	p := testbed.Start(f.T, args[0], env, args...)
	if code := p.Wait(f.T, time.Minute); code != 0 {
		f.Fatalf("enlarger %v: exit status %d\n%s", args, code, p.Log())
	}
	return p.Log()
}

// Job reads a job's row.
func (f *Fleet) Job(id string) job.Job {
	f.Helper()
	j, err := f.Look(id)
	f.check(err)
	return j
}

// Look is Job where the database may be away.
func (f *Fleet) Look(id string) (job.Job, error) {
	f.mu.Lock()
	owner := f.accepted[id]
	f.mu.Unlock()
	return f.Jobs.Get(f.Context(), owner, id)
}

// Ended waits for a job's end and gives its row.
func (f *Fleet) Ended(id string) job.Job {
	f.Helper()
	var j job.Job
	testbed.Until(f.T, 2*time.Minute, "the end of job "+id, func() bool {
		var err error
		j, err = f.Look(id)
		if err != nil && !db.Unavailable(err) {
			f.Fatalf("%v", err)
		}
		return err == nil && j.Status.Terminal()
	})
	return j
}

// Succeeds waits for a job's end and demands success, with this fence and this many failures; -1 is any.
func (f *Fleet) Succeeds(id string, fence, failures int64) job.Job {
	f.Helper()
	j := f.Ended(id)
	if j.Status != job.Succeeded || (fence >= 0 && j.Fence != fence) || (failures >= 0 && j.Failures != failures) {
		f.Errorf("%s ended %s with fence %d and %d failures (%s), want succeeded, %d, %d", id, j.Status, j.Fence, j.Failures, j.ErrorMessage, fence, failures)
	}
	return j
}

// Running waits until a job is in phase processing with a fence of at least this.
func (f *Fleet) Running(id string, fence int64) {
	f.Helper()
	testbed.Until(f.T, time.Minute, fmt.Sprintf("run %d of %s", fence, id), func() bool {
		j := f.Job(id)
		if j.Status.Terminal() {
			f.Fatalf("%s ended %s before the fault: %s", id, j.Status, j.ErrorMessage)
		}
		return j.Phase == job.PhaseProcessing && j.Fence >= fence
	})
}

// Media reads a recorded job's file.
func (f *Fleet) Media(name string) []byte {
	f.Helper()
	root, err := os.Getwd()
	f.check(err)
	for range 4 {
		if data, err := os.ReadFile(filepath.Join(root, "fixtures", "media", name)); err == nil {
			return data
		}
		root = filepath.Dir(root)
	}
	f.Fatalf("no fixtures/media/%s above the test", name)
	return nil
}
