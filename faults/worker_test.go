package faults_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/faults"
	"enlarger/job"
	"enlarger/testbed"
)

// F6: between dequeue and claim. The wake-up died with the worker; the row has not moved, and nothing counts against the job.
func TestF06WorkerKilledBeforeTheClaim(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	first := f.Worker("first").Ready()
	action, dead := kill(first)
	first.DB.Once(claims, testbed.Sent, action)
	id := f.MustPhoto()
	happens(t, "the claim", dead)
	if j := f.Job(id); j.Status != job.Queued || j.Fence != 0 {
		t.Errorf("after the kill: %s, fence %d", j.Status, j.Fence)
	}
	f.Worker("second")
	f.Succeeds(id, 1, 0)
	f.End()
}

// F7: one job whose worker is killed in every phase, one after the other. Each time it runs again with the next fence, and the failure counts.
func TestF07WorkerKilledInEachPhase(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker")
	phases := []struct {
		name  string
		match func(string) bool
		at    testbed.Moment
	}{
		{"claimed", claims, testbed.Committed},
		{"source stored", stores, testbed.Committed},
		{"reserving", reserves, testbed.Committing},
		{"reserved", reserves, testbed.Committed},
		{"finishing", succeeds, testbed.Sent},
	}
	id := ""
	for i, phase := range phases {
		action, dead := kill(w)
		w.DB.Once(phase.match, phase.at, action)
		if id == "" {
			id = f.MustClip()
		} else {
			w.Again()
		}
		happens(t, phase.name, dead)
		if j := f.Job(id); j.Fence != int64(i+1) || j.Failures != int64(i) {
			t.Fatalf("killed at %s: fence %d, %d failures", phase.name, j.Fence, j.Failures)
		}
	}
	// And once while ffmpeg is at work.
	w.Again()
	w.Ready().Gate.Shut()
	f.Running(id, int64(len(phases)+1))
	var children []int
	f.Until("ffmpeg to run", func() bool { children = w.FFmpegs(); return len(children) > 0 })
	w.Kill()
	f.Until("ffmpeg to be gone with its worker", func() bool { return len(faults.Alive(children)) == 0 })
	w.Gate.Open()
	w.Again()
	if j := f.Succeeds(id, int64(len(phases)+2), int64(len(phases)+1)); !strings.Contains(j.ResultObject, fmt.Sprintf("/%d.", j.Fence)) {
		t.Errorf("the result is %s", j.ResultObject)
	}
	if _, _, used := f.Credits(""); used != float64(f.Job(id).Charged)/1000 {
		t.Errorf("%v used", used)
	}
	f.End()
}

// F7 with the settings that operators have: running again within 30 s.
func TestF07WithDefaultSettings(t *testing.T) {
	t.Parallel()
	if !*long {
		t.Skip("waits for a lease of 20 s: make faults, or -faults.long")
	}
	f := faults.New(t, 1, nil)
	first := f.Worker("first").Ready()
	first.Gate.Shut()
	id := f.MustClip()
	f.Running(id, 1)
	f.Worker("second").Ready()
	first.Kill()
	killed := time.Now()
	f.Running(id, 2)
	took := time.Since(killed)
	t.Logf("running again after %v", took.Round(100*time.Millisecond))
	// The soak holds the promise of 30 s; here a busy machine may be late, but not as late as a lease of asynq's own would be.
	if took > 60*time.Second {
		t.Errorf("running again after %v, promised within 30 s", took)
	}
	f.Succeeds(id, 2, 1)
	f.End()
}

// F7 in one process: the start ends the leases that the killed one had.
func TestF07AllInOneKilledWhileItWorks(t *testing.T) {
	t.Parallel()
	f := faults.NewEmbedded(t, map[string]string{"ENLARGER_SWEEP": "300ms"}) // and the default lease of 20 s
	server := f.API(0)
	server.Gate.Shut()
	id := f.MustClip()
	var children []int
	f.Until("ffmpeg to run", func() bool { children = server.FFmpegs(); return len(children) > 0 })
	server.Kill()
	f.Until("ffmpeg to be gone with its server", func() bool { return len(faults.Alive(children)) == 0 })
	server.Gate.Open()
	server.Again()
	server.Ready()
	f.Succeeds(id, 2, 1)
	f.End()
}

// F8: the result is in the bucket and the worker dies before the commit. The next fence wins, the orphan goes, the charge is one.
func TestF08WorkerKilledBeforeTheFinishCommits(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	first := f.Worker("first").Ready()
	action, dead := kill(first)
	first.DB.Once(succeeds, testbed.Committing, action)
	id := f.MustPhoto()
	happens(t, "the finish", dead)
	if keys := f.Objects("results/" + id + "/"); len(keys) != 1 {
		t.Fatalf("%v in the bucket at the kill, want one result", keys)
	}
	f.Worker("second")
	if j := f.Succeeds(id, 2, 1); !strings.Contains(j.ResultObject, "/2.") {
		t.Errorf("the result is %s", j.ResultObject)
	}
	if _, _, used := f.Credits(""); used != 1 {
		t.Errorf("%v used", used)
	}
	f.End() // demands that results/.../1.jpg is gone
}

// F9: killed between commit and ack. The wake-up comes again, claims nothing, and is acknowledged.
func TestF09WorkerKilledBeforeTheAck(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	first := f.Worker("first").Ready()
	action, dead := kill(first)
	first.Redis.Once(acks, false, action)
	id := f.MustPhoto()
	happens(t, "the ack", dead)
	f.Succeeds(id, 1, 0)
	if wakeUps := f.WakeUps(id); len(wakeUps) != 1 {
		t.Fatalf("wake-ups in Redis: %v", wakeUps)
	}
	// asynq gives up on a worker after 30 s without a word. Here they are over at once.
	f.AgeDeliveries()
	f.Worker("second")
	f.Until("the second delivery to be acknowledged", func() bool { return len(f.WakeUps(id)) == 0 })
	if j := f.Job(id); j.Fence != 1 || j.Dispatch != 1 {
		t.Errorf("fence %d, dispatch %d", j.Fence, j.Dispatch)
	}
	if _, _, used := f.Credits(""); used != 1 {
		t.Errorf("%v used", used)
	}
	f.End()
}

// F12: stopped for three leases, then resumed with its work done meanwhile. The new fence owns the job; the zombie writes nothing that counts.
func TestF12FrozenWorkerWritesNothing(t *testing.T) {
	t.Parallel()
	lease := profile(2*time.Second, 20*time.Second)
	settings := faults.Quick()
	if *long {
		settings = nil
	}
	f := faults.New(t, 1, settings)
	first := f.Worker("first").Ready()
	first.Gate.Shut()
	id := f.MustClip()
	f.Until("ffmpeg to run", func() bool { return len(first.FFmpegs()) > 0 })
	first.Freeze()
	frozen := time.Now()
	first.Gate.Open() // its ffmpeg goes on and writes its result
	f.Until("the zombie's ffmpeg to end", func() bool { return len(first.FFmpegs()) == 0 })
	f.Worker("second")
	j := f.Succeeds(id, 2, 1)
	lasts(3*lease - time.Since(frozen))
	first.Resume()
	first.Stop(t, time.Minute) // whatever it wanted to write, it has
	if after := f.Job(id); after.Fence != 2 || after.ResultObject != j.ResultObject || after.FinishedAt != j.FinishedAt || after.Charged != j.Charged {
		t.Errorf("the zombie changed %+v to %+v", j, after)
	}
	f.End()
}

// F17: jobs canceled at random moments: canceled and released, or succeeded and confirmed.
func TestF17CancelAtRandomMoments(t *testing.T) {
	t.Parallel()
	shapes(t, faults.Quick(), func(t *testing.T, f *faults.Fleet, worker func() *faults.Node) {
		worker()
		jobs := profile(30, 1000)
		picture, clip := faults.Picture(64, 48), f.Media("clip.mp4")
		random := rand.New(rand.NewPCG(17, 17))
		pauses := make([]time.Duration, jobs)
		for i := range pauses {
			pauses[i] = time.Duration(random.IntN(400)) * time.Millisecond
		}
		var canceled, late atomic.Int64
		used := atomic.Int64{}
		faults.Crowd(jobs, func(i int) {
			var id string
			var err error
			if i%5 == 0 {
				id, err = f.Clip(faults.Request{API: i}, clip)
			} else {
				id, err = f.Photo(faults.Request{API: i}, picture)
			}
			if err != nil {
				t.Error(err)
				return
			}
			lasts(pauses[i])
			switch status, answer := f.Cancel(id); status {
			case http.StatusOK:
				canceled.Add(1)
				if j := f.Job(id); j.Status != job.Canceled || j.Charged != 0 {
					t.Errorf("%s canceled is %s, charged %v", id, j.Status, j.Charged)
				}
			case http.StatusConflict:
				late.Add(1)
				j := f.Job(id)
				if j.Status != job.Succeeded {
					t.Errorf("%s could not be canceled and is %s", id, j.Status)
				}
				used.Add(int64(j.Charged))
			default:
				t.Errorf("cancel %s: %d %v", id, status, answer)
			}
		})
		t.Logf("%d canceled, %d had ended", canceled.Load(), late.Load())
		if _, frozen, charged := f.Credits(""); frozen != 0 || charged != float64(used.Load())/1000 {
			t.Errorf("frozen %v, used %v of %v", frozen, charged, used.Load())
		}
		f.End()
	})
}

// F18: a cancel whose message to the workers is lost. The next heartbeat learns it.
func TestF18CancelWithoutPubSub(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	w := f.Worker("worker").Ready()
	for _, cut := range []bool{false, true} {
		w.Gate.Shut()
		id := f.MustClip()
		var children []int
		f.Until("ffmpeg to run", func() bool { children = w.FFmpegs(); return len(children) > 0 })
		if cut {
			w.Redis.Cut()
		}
		if status, answer := f.Cancel(id); status != http.StatusOK {
			t.Fatalf("cancel: %d %v", status, answer)
		}
		told := time.Now()
		f.Until("the work to stop", func() bool { return len(faults.Alive(children)) == 0 })
		t.Logf("Redis cut off %v: the work stopped after %v, with a heartbeat each 500ms", cut, time.Since(told).Round(10*time.Millisecond))
		w.Redis.Heal()
		w.Gate.Open()
	}
	f.Succeeds(f.MustPhoto(), 1, 0)
	f.End()
}

// F19: canceled, and the worker dies before it hears of it. Canceled and released at once; its files go at the next start.
func TestF19CancelThenKill(t *testing.T) {
	t.Parallel()
	shapes(t, faults.Quick(), func(t *testing.T, f *faults.Fleet, worker func() *faults.Node) {
		w := worker()
		w.Gate.Shut()
		id := f.MustClip()
		f.Until("ffmpeg to run", func() bool { return len(w.FFmpegs()) > 0 })
		if !f.Embedded { // one that stands still cannot clean up after itself
			w.Freeze()
		}
		if status, answer := f.Cancel(id); status != http.StatusOK || answer["status"] != "canceled" {
			t.Fatalf("cancel: %d %v", status, answer)
		}
		if j := f.Job(id); j.Status != job.Canceled || j.Charged != 0 {
			t.Errorf("%s, charged %v", j.Status, j.Charged)
		}
		if _, frozen, used := f.Credits(""); frozen != 0 || used != 0 {
			t.Errorf("frozen %v, used %v right after the cancel", frozen, used)
		}
		w.Kill()
		left := f.Scratch()
		if len(left) == 0 && !f.Embedded { // a server that hears itself may have cleaned up already
			t.Error("the killed worker left no file: the test sees nothing")
		}
		w.Gate.Open()
		w.Again()
		w.Ready()
		f.Until("the dead worker's files to be gone", func() bool {
			for _, path := range left {
				if _, err := os.Stat(path); err == nil {
					return false
				}
			}
			return true
		})
		f.Succeeds(f.MustPhoto(), 1, 0)
		f.End()
	})
}

// F20: SIGTERM with a grace shorter than the work. The job is given back, another worker starts it, nothing counts as a failure, and the first has
// stopped working on it before the second begins.
func TestF20DrainGivesTheJobBack(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.With("ENLARGER_GRACE", "200ms"))
	first := f.Worker("first").Ready()
	first.Gate.Shut()
	id := f.MustClip()
	f.Until("ffmpeg to run", func() bool { return len(first.FFmpegs()) > 0 })
	second := f.Worker("second").Ready()
	overlap := make(chan int, 1)
	second.DB.Once(claims, testbed.Sent, func() testbed.Verdict {
		overlap <- len(first.FFmpegs())
		return testbed.Verdict{}
	})
	first.Term()
	asked := time.Now()
	f.Until("the second worker to start", func() bool { return f.Job(id).Fence == 2 })
	t.Logf("started again %v after SIGTERM, %v after the grace", time.Since(asked).Round(10*time.Millisecond), (time.Since(asked) - 200*time.Millisecond).Round(10*time.Millisecond))
	if n := <-overlap; n > 0 {
		t.Errorf("%d ffmpeg of the first worker were alive when the second claimed", n)
	}
	if code := first.Wait(t, time.Minute); code != 0 {
		t.Errorf("the first worker ended with exit status %d", code)
	}
	if j := f.Succeeds(id, 2, 0); !strings.Contains(j.ResultObject, "/2.") {
		t.Errorf("the result is %s", j.ResultObject)
	}
	f.End()
}

// F20 in one process: a stop and a start cost a running job nothing but time.
func TestF20AllInOneStopped(t *testing.T) {
	t.Parallel()
	f := faults.NewEmbedded(t, faults.With("ENLARGER_GRACE", "200ms"))
	server := f.API(0)
	server.Gate.Shut()
	id := f.MustClip()
	f.Until("ffmpeg to run", func() bool { return len(server.FFmpegs()) > 0 })
	if code := server.Stop(t, time.Minute); code != 0 {
		t.Errorf("the server ended with exit status %d", code)
	}
	if j := f.Job(id); j.Status != job.Queued || j.Failures != 0 {
		t.Errorf("after SIGTERM: %s, %d failures", j.Status, j.Failures)
	}
	server.Gate.Open()
	server.Again()
	server.Ready()
	f.Succeeds(id, 2, 0)
	f.End()
}

// F21: a job that kills its worker every time, as one does that makes the kernel run out of memory. It fails and is refunded after the budget; what else
// those workers carry is carried.
func TestF21JobThatKillsItsWorkers(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.With("ENLARGER_RETRY_BUDGET", "3"))
	poison := f.MustClip()
	var others []string
	for range 6 {
		others = append(others, f.MustPhoto())
	}
	others = append(others, f.MustClip())
	workers := []*faults.Node{f.Worker("first"), f.Worker("second")}
	for _, w := range workers {
		if err := os.WriteFile(w.Gate.Poison, []byte(poison+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	deaths := 0
	f.Until("the job to be given up", func() bool {
		for _, w := range workers { // a supervisor starts them again
			if !w.Running() {
				w.Kill()
				w.Again()
				deaths++
			}
		}
		return f.Job(poison).Status.Terminal()
	})
	j := f.Job(poison)
	if j.Status != job.Failed || j.ErrorCode != engine.ProcessingFailed || j.Fence != 3 || deaths < 3 {
		t.Errorf("%s %s with fence %d, %d workers died", j.Status, j.ErrorCode, j.Fence, deaths)
	}
	used := 0.0
	for _, id := range others {
		used += float64(f.Succeeds(id, -1, -1).Charged) / 1000
	}
	if _, frozen, charged := f.Credits(""); frozen != 0 || charged != used {
		t.Errorf("frozen %v, used %v of %v", frozen, charged, used)
	}
	f.End()
}

// F22: a sweeper that is killed in the middle of giving a lost run back. Nothing is half done; the other sweeper does it, once.
func TestF22SweeperKilledMidWay(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]testbed.Moment{"before the commit": testbed.Committing, "before the wake-up": testbed.Committed} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := faults.New(t, 2, faults.Quick())
			f.API(1).Freeze()
			sweeping, swept := kill(f.API(0))
			f.API(0).DB.Once(gives, at, sweeping)
			first := f.Worker("first").Ready()
			working, dead := kill(first)
			first.DB.Once(claims, testbed.Committed, working)
			id := f.MustPhoto()
			happens(t, "the worker's death", dead)
			happens(t, "the sweeper's death", swept)
			f.API(1).Resume()
			f.Until("the run to be given back, with a wake-up", func() bool { return f.Job(id).Failures == 1 && len(f.WakeUps(id)) == 2 })
			if j := f.Job(id); j.Dispatch != 2 || j.Status != job.Queued {
				t.Errorf("%s with wake-up %d, want queued and 2", j.Status, j.Dispatch)
			}
			f.Worker("second")
			f.Succeeds(id, 2, 1)
			f.API(0).Again()
			f.API(0).Ready()
			f.End()
		})
	}
}

// F22: many sweepers at once give a lost run back once.
func TestF22ManySweepers(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 3, faults.With("ENLARGER_SWEEP", "20ms"))
	first := f.Worker("first").Ready()
	working, dead := kill(first)
	first.DB.Once(claims, testbed.Committed, working)
	id := f.MustPhoto()
	happens(t, "the worker's death", dead)
	f.Until("the run to be given back", func() bool { return f.Job(id).Failures == 1 })
	// Sweeping this often may find the first wake-up between its delivery and the claim, and send another. From here on nothing may move.
	back := f.Job(id)
	lasts(500 * time.Millisecond) // many sweeps of each
	if j := f.Job(id); j.Dispatch != back.Dispatch || j.Dispatch > 3 || j.Failures != 1 {
		t.Errorf("wake-up %d after %d failures, want %d after 1", j.Dispatch, j.Failures, back.Dispatch)
	}
	f.Worker("second")
	f.Succeeds(id, 2, 1)
	f.End()
}

// F26: the all-in-one process is killed again and again while clients submit with keys and retry.
func TestF26AllInOneKilledAtRandom(t *testing.T) {
	t.Parallel()
	kills := profile(12, 1000)
	f := faults.NewEmbedded(t, map[string]string{"ENLARGER_RETRY_BUDGET": "1000", "ENLARGER_SWEEP": "300ms"})
	server := f.API(0)
	picture, clip := faults.Picture(64, 48), f.Media("clip.mp4")
	random := rand.New(rand.NewPCG(26, 26))
	var over atomic.Bool
	var jobs atomic.Int64
	clients := make(chan struct{})
	go func() {
		defer close(clients)
		faults.Crowd(4, func(client int) {
			for i := 0; !over.Load(); i++ {
				key := fmt.Sprintf("client-%d-%d", client, i)
				// A client that retries with its key until it has an answer.
				for {
					var err error
					if i%8 == 7 {
						_, err = f.Clip(faults.Request{Key: key}, clip)
					} else {
						_, err = f.Photo(faults.Request{Key: key}, picture)
					}
					if err == nil {
						jobs.Add(1)
						break
					}
					if t.Context().Err() != nil {
						return
					}
					lasts(20 * time.Millisecond)
				}
				// A bounded backlog.
				f.Until("the backlog to shrink", func() bool {
					counts, err := f.Jobs.Active(t.Context())
					return over.Load() || (err == nil && counts.Queued < 20)
				})
			}
		})
	}()
	for range kills {
		// The fault comes at a random moment of a server that is up, at times right after its start.
		server.Ready()
		lasts(time.Duration(random.IntN(500)) * time.Millisecond)
		server.Restart()
	}
	over.Store(true)
	server.Ready()
	happens(t, "the end of the clients", clients)
	again := 0
	for _, id := range f.Accepted() {
		again += int(f.Succeeds(id, -1, -1).Fence) - 1
	}
	if n := rows(t, f, `SELECT COUNT(*) FROM jobs`); int64(n) != jobs.Load() {
		t.Errorf("%d jobs of %d keys", n, jobs.Load())
	}
	t.Logf("%d kills, %d jobs, %d runs repeated", kills, jobs.Load(), again)
	f.End()
}
