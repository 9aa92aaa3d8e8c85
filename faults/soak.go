package faults

import (
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"enlarger/db"
	"enlarger/job"
	"enlarger/testbed"
)

// SoakConfig says how a soak goes.
type SoakConfig struct {
	// Time is how long faults are injected; the drain and the checks come after.
	Time time.Duration
	// Out gets a line every ten seconds, every violation, and the report.
	Out io.Writer
}

// SoakReport is what a soak counts.
type SoakReport struct {
	Kills, Violations int64
}

// The shape of a soak: what two cores can carry, and faults close enough to each other to meet.
const (
	soakAPIs, soakWorkers            = 2, 4
	soakVideoClients, soakPhotoUsers = 6, 2
	// soakSlots are enough that a run that was lost waits for its lease and not for a place.
	soakSlots = "3"
	// soakPause is the mean time between two kills, of one process or of several.
	soakPause = 2700 * time.Millisecond
	// soakEncode is how long an encode sleeps before it begins, so that kills find work under way that costs little: from this to four seconds more.
	soakEncode = 3
	soakSay    = 10 * time.Second
	// soakDrain is how long the system has to bring everything to an end once nothing is broken any more.
	soakDrain = 5 * time.Minute
)

// soak is one soak under way.
type soak struct {
	*Fleet
	cfg     SoakConfig
	workers []*Node
	started time.Time
	lives   atomic.Int64
	random  *rand.Rand

	kills, killedAPIs, freezes, cuts, flushes, stalls atomic.Int64
	submitted, canceled                               atomic.Int64
	violations                                        atomic.Int64
	repaired                                          atomic.Int64

	mu      sync.Mutex
	waiting []lostRun
	again   []time.Duration
	hit     int64 // runs that a kill ended
	// answers counts what clients were told other than yes.
	answers map[string]int
}

// lostRun is a run whose worker was killed.
type lostRun struct {
	id    string
	fence int64
	at    time.Time
}

// Soak lets clients submit without pause to a fleet with default settings, kills, freezes and cuts its parts at random, and holds what comes
// out against the books. It ends the test's processes itself.
func Soak(t T, cfg SoakConfig) SoakReport {
	t.Helper()
	postgres := testbed.Postgres(t)
	f := New(t, soakAPIs, map[string]string{"ENLARGER_DATABASE": postgres.Database(t)})
	s := &soak{Fleet: f, cfg: cfg, started: time.Now(), random: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)), answers: map[string]int{}}
	s.sayf("settings: all defaults (lease 20s, heartbeat 5s, sweep 5s, retry budget 3), but %s video slots a worker, no neural models, no rate limit and no cap of jobs in flight", soakSlots)
	s.sayf("%d API and %d worker processes; %d clients with clips that take 4-9 s, %d with photos, each with one job at a time", soakAPIs, soakWorkers, soakVideoClients, soakPhotoUsers)
	for i := range soakWorkers {
		w := f.Start(fmt.Sprintf("worker%d", i), "worker", "ENLARGER_VIDEO_SLOTS", soakSlots)
		w.Gate.Sleep(soakEncode)
		s.workers = append(s.workers, w.Ready())
	}
	ctx, stop := context.WithTimeout(t.Context(), cfg.Time)
	defer stop()
	var clients, others sync.WaitGroup
	for i := range soakVideoClients + soakPhotoUsers {
		clients.Go(func() { s.client(ctx, i) })
	}
	watching, done := context.WithCancel(t.Context())
	others.Go(func() { s.watchReruns(watching) })
	others.Go(func() { s.audits(watching) })
	var breakers sync.WaitGroup
	breakers.Go(func() { s.breakThings(ctx) })
	breakers.Go(func() { s.breakServices(ctx) })
	breakers.Go(func() { s.freezeWorkers(ctx) })
	for ctx.Err() == nil {
		pause(ctx, soakSay)
		s.line()
	}
	breakers.Wait()
	s.sayf("no more faults; waiting for the clients' last jobs")
	s.heal()
	s.supervise()
	clients.Wait()
	s.drain()
	done()
	others.Wait()
	s.look()
	return s.report()
}

func (s *soak) sayf(format string, args ...any) {
	elapsed := time.Since(s.started).Round(time.Second)
	fmt.Fprintf(s.cfg.Out, "%8s  %s\n", elapsed, fmt.Sprintf(format, args...))
}

func (s *soak) violatef(format string, args ...any) {
	s.violations.Add(1)
	s.sayf("VIOLATION: "+format, args...)
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// client submits one job after the other, each with a key, and asks again until it is answered. Now and then it cancels one.
func (s *soak) client(ctx context.Context, number int) {
	random := rand.New(rand.NewPCG(uint64(number), 2))
	picture, clip := Picture(160, 120), s.Media("clip.mp4")
	for i := 0; ctx.Err() == nil; i++ {
		request := Request{API: random.IntN(soakAPIs), Key: fmt.Sprintf("client-%d-%d", number, i)}
		send := func() (string, error) { return s.Photo(request, picture) }
		if number < soakVideoClients {
			send = func() (string, error) { return s.Clip(request, clip) }
		}
		id := s.insist(send, &request)
		if id == "" {
			return
		}
		if random.IntN(20) == 0 {
			pause(ctx, time.Duration(random.IntN(5000))*time.Millisecond)
			s.cancelIt(id, request.API)
		}
		for !s.ended(id) && s.Context().Err() == nil {
			pause(s.Context(), 200*time.Millisecond)
		}
	}
}

// insist repeats a submission until it is accepted, on the one API process or the other.
func (s *soak) insist(send func() (string, error), request *Request) string {
	for s.Context().Err() == nil {
		id, err := send()
		if err == nil {
			s.submitted.Add(1)
			return id
		}
		s.answered(err.Error())
		request.API++
		pause(s.Context(), 200*time.Millisecond)
	}
	return ""
}

// answered keeps count of what clients are told while things are broken. That a process is gone, or that it cannot serve now, is expected.
func (s *soak) answered(what string) {
	kind := what
	for _, known := range []string{"connection refused", "connection reset", "EOF", "deadline exceeded", "Client.Timeout", "503", "429", "idempotency"} {
		if strings.Contains(what, known) {
			kind = known
			break
		}
	}
	s.mu.Lock()
	s.answers[kind]++
	s.mu.Unlock()
	if kind == what {
		s.violatef("a client was answered: %s", what)
	}
}

func (s *soak) cancelIt(id string, api int) {
	status, answer, _ := s.Do(Request{API: api, Method: http.MethodPost, Path: "/jobs/" + id + "/cancel", Account: s.owner(id)})
	switch status {
	case http.StatusOK:
		s.canceled.Add(1)
	case 0, http.StatusConflict, http.StatusServiceUnavailable: // the process was killed, the job has ended, or the database was cut off
	default:
		s.violatef("cancel %s: %d %v", id, status, answer)
	}
}

func (s *soak) ended(id string) bool {
	j, err := s.Look(id)
	return err == nil && j.Status.Terminal()
}

// between is a random time around a mean.
func (s *soak) between(mean time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return mean/2 + time.Duration(s.random.Int64N(int64(mean)))
}

func (s *soak) pick(n int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.random.IntN(n)
}

// breakThings kills: mostly a worker that is at work, sometimes an idle one, sometimes all but one at once, sometimes an API process.
func (s *soak) breakThings(ctx context.Context) {
	for {
		pause(ctx, s.between(soakPause))
		if ctx.Err() != nil {
			return
		}
		s.supervise()
		switch dice := s.pick(20); {
		case dice < 3:
			s.killAPI(s.apis[s.pick(len(s.apis))])
		case dice == 3:
			spared := s.pick(len(s.workers))
			for i, w := range s.workers {
				if i != spared {
					s.killWorker(w)
				}
			}
		case dice < 16:
			s.killWorker(s.busyWorker())
		default:
			s.killWorker(s.workers[s.pick(len(s.workers))])
		}
	}
}

// supervise starts a process again that ended by itself, as one does that finds no database when it starts.
func (s *soak) supervise() {
	for _, n := range slices.Concat(s.workers, s.apis) {
		if n.busy.TryLock() {
			if !n.Running() {
				s.sayf("%s had ended: %s", n.Name, strings.TrimSpace(n.Log()))
				n.Kill()
				s.revive(n)
			}
			n.busy.Unlock()
		}
	}
}

// busyWorker is one that has a job, if there is one.
func (s *soak) busyWorker() *Node {
	var name string
	err := s.DB.QueryRowContext(s.Context(), `SELECT worker FROM jobs WHERE status = 'processing' AND lease_until > now_micros() ORDER BY random() LIMIT 1`).Scan(&name)
	if err == nil {
		for _, w := range s.workers {
			if w.env["ENLARGER_WORKER_NAME"] == name {
				return w
			}
		}
	}
	return s.workers[s.pick(len(s.workers))]
}

// revive starts a killed node under a name of its own: rows then tell one life from the next.
func (s *soak) revive(n *Node) {
	s.harvest(n)
	n.env["ENLARGER_WORKER_NAME"] = fmt.Sprintf("%s-%d", n.Name, s.lives.Add(1))
	n.Again()
}

func (s *soak) killAPI(n *Node) {
	n.busy.Lock()
	defer n.busy.Unlock()
	n.Kill()
	s.kills.Add(1)
	s.killedAPIs.Add(1)
	s.revive(n)
}

// killWorker kills a worker that is not frozen and notes the runs that died with it.
func (s *soak) killWorker(n *Node) {
	if !n.busy.TryLock() {
		return
	}
	defer n.busy.Unlock()
	name := n.env["ENLARGER_WORKER_NAME"]
	n.Kill()
	at := time.Now()
	s.kills.Add(1)
	rows, err := s.DB.QueryContext(s.Context(), `SELECT id, fence FROM jobs WHERE status = 'processing' AND worker = $1`, name)
	if err == nil {
		s.mu.Lock()
		for rows.Next() {
			lost := lostRun{at: at}
			if err := rows.Scan(&lost.id, &lost.fence); err == nil {
				s.waiting = append(s.waiting, lost)
				s.hit++
			}
		}
		s.mu.Unlock()
		rows.Close()
	}
	s.revive(n)
}

// freezeWorkers stops a worker for longer than its lease, now and then.
func (s *soak) freezeWorkers(ctx context.Context) {
	for {
		pause(ctx, s.between(75*time.Second))
		if ctx.Err() != nil {
			return
		}
		w := s.busyWorker()
		w.busy.Lock()
		w.Freeze()
		s.freezes.Add(1)
		pause(ctx, s.between(35*time.Second))
		w.Resume()
		w.busy.Unlock()
	}
}

// breakServices flushes and freezes Redis, and breaks connections.
func (s *soak) breakServices(ctx context.Context) {
	for {
		pause(ctx, s.between(15*time.Second))
		if ctx.Err() != nil {
			return
		}
		n := slices.Concat(s.workers, s.apis)[s.pick(soakAPIs+soakWorkers)]
		switch dice := s.pick(10); {
		case dice < 2:
			s.burstAndFlush(ctx)
		case dice == 2:
			s.Redis.Freeze()
			s.stalls.Add(1)
			pause(ctx, s.between(3*time.Second))
			s.Redis.Resume()
		case dice < 6:
			n.DB.Cut()
			pause(ctx, s.between(time.Second))
			n.DB.Heal()
			s.cuts.Add(1)
		case dice < 8:
			n.Redis.Cut()
			pause(ctx, s.between(time.Second))
			n.Redis.Heal()
			s.cuts.Add(1)
		default:
			n.S3.Break(func(*http.Request) testbed.HTTPFault { return testbed.HTTPFault{Status: http.StatusServiceUnavailable} })
			pause(ctx, s.between(time.Second))
			n.S3.Break(nil)
			s.cuts.Add(1)
		}
	}
}

// burstAndFlush submits photos faster than they are carried, and takes their wake-ups away.
func (s *soak) burstAndFlush(ctx context.Context) {
	const burst = 16
	flush := s.flushes.Add(1)
	picture := Picture(160, 120)
	var clients sync.WaitGroup
	for i := range burst {
		clients.Go(func() {
			request := Request{API: i, Key: fmt.Sprintf("burst-%d-%d", flush, i)}
			s.insist(func() (string, error) { return s.Photo(request, picture) }, &request)
		})
	}
	pause(ctx, s.between(200*time.Millisecond))
	s.redisDo("FLUSHALL")
	clients.Wait()
}

// heal ends whatever is still broken.
func (s *soak) heal() {
	s.Redis.Resume()
	for _, n := range slices.Concat(s.workers, s.apis) {
		n.Resume()
		n.DB.Heal()
		n.Redis.Heal()
		n.S3.Break(nil)
	}
}

// watchReruns sees when a run that was lost is taken up again.
func (s *soak) watchReruns(ctx context.Context) {
	for ctx.Err() == nil {
		pause(ctx, 50*time.Millisecond)
		s.mu.Lock()
		waiting := slices.Clone(s.waiting)
		s.mu.Unlock()
		for _, lost := range waiting {
			j, err := s.Look(lost.id)
			if err != nil || (j.Fence == lost.fence && !j.Status.Terminal()) {
				continue
			}
			s.mu.Lock()
			s.waiting = slices.DeleteFunc(s.waiting, func(l lostRun) bool { return l == lost })
			if j.Fence > lost.fence {
				s.again = append(s.again, time.Since(lost.at))
			}
			s.mu.Unlock()
		}
	}
}

// audits holds the books against the jobs while everything goes on.
func (s *soak) audits(ctx context.Context) {
	for {
		pause(ctx, 30*time.Second)
		if ctx.Err() != nil {
			return
		}
		found, err := s.Jobs.Audit(ctx)
		if err != nil && !db.Unavailable(err) && ctx.Err() == nil {
			s.violatef("audit: %v", err)
		}
		for _, v := range found {
			s.violatef("audit: %s: %s %s", v.Rule, v.Row, v.Detail)
		}
	}
}

var sentAgain = regexp.MustCompile(`"wake-ups sent again","jobs":(\d+)`)

// harvest counts the wake-ups that a process that has ended says it repaired.
func (s *soak) harvest(n *Node) {
	text, err := os.ReadFile(n.LogPath())
	if err != nil {
		return
	}
	for _, match := range sentAgain.FindAllSubmatch(text, -1) {
		if jobs, err := strconv.ParseInt(string(match[1]), 10, 64); err == nil {
			s.repaired.Add(jobs)
		}
	}
	_ = os.Truncate(n.LogPath(), 0) // it has been read, and there are hundreds
}

// percentiles of the times until lost runs ran again.
func (s *soak) percentiles() (n int, p50, p99, most time.Duration) {
	s.mu.Lock()
	times := slices.Sorted(slices.Values(s.again))
	s.mu.Unlock()
	if n = len(times); n == 0 {
		return 0, 0, 0, 0
	}
	round := func(d time.Duration) time.Duration { return d.Round(100 * time.Millisecond) }
	return n, round(times[n/2]), round(times[min(n-1, n*99/100)]), round(times[n-1])
}

// line says how it goes.
func (s *soak) line() {
	n, p50, p99, most := s.percentiles()
	counts, _ := s.Jobs.Active(s.Context())
	s.sayf("jobs %d (in flight %d+%d)  kills %d (API %d)  freezes %d  cuts %d  flushes %d  Redis frozen %d  run again %d: p50 %v p99 %v max %v  violations %d",
		s.submitted.Load(), counts.Queued, counts.Processing, s.kills.Load(), s.killedAPIs.Load(), s.freezes.Load(), s.cuts.Load(), s.flushes.Load(), s.stalls.Load(),
		n, p50, p99, most, s.violations.Load())
}

// drain waits for the end of everything.
func (s *soak) drain() {
	deadline := time.Now().Add(soakDrain)
	for {
		counts, err := s.Jobs.Active(s.Context())
		if err == nil && counts == (job.Counts{}) {
			break
		}
		if time.Now().After(deadline) {
			s.violatef("%d queued and %d processing %v after the last fault", counts.Queued, counts.Processing, soakDrain)
			break
		}
		pause(s.Context(), 200*time.Millisecond)
	}
}

// look holds what is left against what was promised.
func (s *soak) look() {
	var jobs int64
	if err := s.DB.QueryRowContext(s.Context(), `SELECT COUNT(*) FROM jobs`).Scan(&jobs); err != nil || jobs != s.submitted.Load() {
		s.violatef("%d jobs of %d keys, %v", jobs, s.submitted.Load(), err)
	}
	s.sayf("looking at every job, every result, every file")
	before := s.violations.Load()
	s.T = &complaints{T: s.T, soak: s}
	s.End()
	if s.violations.Load() == before {
		s.sayf("every job has one end, the books are clean, every result is whole, nothing is left behind")
	}
	for _, n := range slices.Concat(s.workers, s.apis) {
		s.harvest(n)
	}
}

// complaints turns what End finds into violations.
type complaints struct {
	T
	soak *soak
}

func (c *complaints) Errorf(format string, args ...any) { c.soak.violatef(format, args...) }

// report says what there was.
func (s *soak) report() SoakReport {
	ends := map[string]int64{}
	var repeated, redispatched int64
	rows, err := s.DB.QueryContext(s.Context(), `SELECT status, COUNT(*), CAST(SUM(CASE WHEN fence > 1 THEN fence - 1 ELSE 0 END) AS BIGINT),
		CAST(SUM(dispatch - 1 - failures) AS BIGINT) FROM jobs GROUP BY status`)
	if err != nil {
		s.violatef("report: %v", err)
		return SoakReport{s.kills.Load(), s.violations.Load()}
	}
	defer rows.Close()
	for rows.Next() {
		var status string
		var count, runs, again int64
		if err := rows.Scan(&status, &count, &runs, &again); err != nil {
			s.violatef("report: %v", err)
		}
		ends[status] = count
		repeated += runs
		redispatched += again
	}
	n, p50, p99, most := s.percentiles()
	say := func(format string, args ...any) { fmt.Fprintf(s.cfg.Out, format+"\n", args...) }
	say("")
	say("soak of %v", s.cfg.Time)
	say("jobs                  %d: %d succeeded, %d canceled by their clients, %d failed and refunded when their retry budget of 3 was used up", s.submitted.Load(), ends["succeeded"], ends["canceled"], ends["failed"])
	say("kills                 %d processes by SIGKILL: %d workers, %d API; %d of a worker's runs died with it", s.kills.Load(), s.kills.Load()-s.killedAPIs.Load(), s.killedAPIs.Load(), s.hit)
	say("freezes               %d workers by SIGSTOP, 18 to 53 s each; Redis %d times, 1.5 to 4.5 s", s.freezes.Load(), s.stalls.Load())
	say("cuts                  %d of a process from its database, Redis or storage, 0.5 to 1.5 s", s.cuts.Load())
	say("flushes of Redis      %d", s.flushes.Load())
	say("running again         %d times after SIGKILL: p50 %v, p99 %v, max %v", n, p50, p99, most)
	say("duplicate runs        %d of %d repeated ones: their first worker was alive, frozen or cut off, and wrote nothing that counted", max(0, repeated-int64(n)), repeated)
	say("wake-ups repaired     %d sent again by the sweeper, %d of them under a new number", max(s.repaired.Load(), redispatched), redispatched)
	s.mu.Lock()
	kinds := slices.Sorted(maps.Keys(s.answers))
	for i, kind := range kinds {
		kinds[i] = fmt.Sprintf("%s %d", kind, s.answers[kind])
	}
	s.mu.Unlock()
	say("clients had to retry  %s", strings.Join(kinds, ", "))
	say("violations            %d", s.violations.Load())
	return SoakReport{s.kills.Load(), s.violations.Load()}
}
