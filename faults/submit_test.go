package faults_test

import (
	"fmt"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"enlarger/engine"
	"enlarger/faults"
	"enlarger/job"
	"enlarger/testbed"
)

// rows counts what a query counts.
func rows(t *testing.T, f *faults.Fleet, query string, args ...any) (n int) {
	t.Helper()
	if err := f.DB.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// F1: the API dies before the submit commits. There is no job and nothing is frozen; the client's retry with its key makes one.
func TestF01KilledBeforeTheSubmitCommits(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	for _, at := range []testbed.Moment{testbed.Sent, testbed.Committing} {
		before := rows(t, f, `SELECT COUNT(*) FROM jobs`)
		action, dead := kill(f.API(0))
		f.API(0).DB.Once(submits, at, action)
		submit := func() (string, error) {
			return f.Photo(faults.Request{Key: fmt.Sprintf("key-%d", at)}, faults.Picture(64, 48))
		}
		if id, err := submit(); err == nil {
			t.Errorf("accepted %s without a commit", id)
		}
		happens(t, "the kill", dead)
		if n := rows(t, f, `SELECT COUNT(*) FROM jobs`); n != before {
			t.Errorf("%d jobs after the kill, %d before", n, before)
		}
		if n := rows(t, f, `SELECT COUNT(*) FROM idempotency`); n != before {
			t.Errorf("%d keys after the kill, %d before", n, before)
		}
		f.API(0).Again()
		f.API(0).Ready()
		if _, frozen, used := f.Credits(""); frozen != 0 || used != 0 {
			t.Errorf("frozen %v, used %v", frozen, used)
		}
		id := f.Retry(submit)
		if again := f.Retry(submit); again != id {
			t.Errorf("the key made %s and %s", id, again)
		}
		if n := rows(t, f, `SELECT COUNT(*) FROM jobs`); n != before+1 {
			t.Errorf("%d jobs after the retry, %d before", n, before)
		}
	}
	f.Worker("worker")
	f.End()
}

// F2: the API dies after the commit, before the enqueue. The sweeper of another process sends the wake-up.
func TestF02KilledBeforeTheEnqueue(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 1, faults.Quick())
	f.Worker("worker").Ready()
	action, dead := kill(f.API(0))
	f.API(0).Redis.Once(enqueues, false, action)
	submit := func() (string, error) { return f.Photo(faults.Request{Key: "key"}, faults.Picture(64, 48)) }
	if id, err := submit(); err == nil {
		t.Errorf("%s was accepted by a process that was killed", id)
	}
	happens(t, "the kill", dead)
	f.Until("the job to be carried with no API process alive", func() bool {
		return rows(t, f, `SELECT COUNT(*) FROM jobs WHERE status = 'succeeded'`) == 1
	})
	f.API(0).Again()
	f.API(0).Ready()
	f.Succeeds(f.Retry(submit), 1, 0)
	if n := rows(t, f, `SELECT COUNT(*) FROM jobs`); n != 1 {
		t.Errorf("%d jobs of one key", n)
	}
	f.End()
}

// F3: the API dies after the enqueue, before anybody hears of it; and a wake-up comes a second time, because its first delivery was given up
// while it was on its way to the claim. The late claim takes nothing.
func TestF03SecondDeliveryTakesNothing(t *testing.T) {
	t.Parallel()
	f := faults.New(t, 2, faults.Quick())
	first := f.Worker("first").Ready()
	action, dead := kill(f.API(0))
	f.API(0).Redis.Once(enqueues, true, action)
	slow, held, release := hold(t)
	first.DB.Once(claims, testbed.Sent, slow)
	submit := func(api int) func() (string, error) {
		return func() (string, error) { return f.Photo(faults.Request{Key: "key", API: api}, faults.Picture(64, 48)) }
	}
	if id, err := submit(0)(); err == nil {
		t.Errorf("%s was accepted by a process that was killed", id)
	}
	happens(t, "the kill", dead)
	happens(t, "the first delivery", held)
	second := f.Worker("second")
	id := f.Retry(submit(1))
	f.Succeeds(id, 1, 0)
	release()
	second.Stop(t, time.Minute)
	// The next job passes through the first worker: it has heard the answer to its late claim by then.
	f.Succeeds(f.Retry(func() (string, error) { return f.Photo(faults.Request{API: 1}, faults.Picture(64, 48)) }), 1, 0)
	if j := f.Job(id); j.Fence != 1 || j.Dispatch < 2 {
		t.Errorf("fence %d after %d wake-ups", j.Fence, j.Dispatch)
	}
	f.API(0).Again()
	f.API(0).Ready()
	f.End()
}

// F4: one key, 50 times at once: one job, one answer. With another body: 409.
func TestF04OneKeyManyTimes(t *testing.T) {
	t.Parallel()
	shapes(t, faults.Quick(), func(t *testing.T, f *faults.Fleet, worker func() *faults.Node) {
		const times = 50
		upload, err := f.Upload(faults.Request{}, f.Media("clip.mp4"))
		if err != nil {
			t.Fatal(err)
		}
		send := func(api int, config string) (int, map[string]any) {
			status, answer, _ := f.Do(faults.Request{
				API: api, Method: http.MethodPost, Path: "/jobs", ContentType: "application/json", Key: "one",
				Body: strings.NewReader(fmt.Sprintf(`{"upload_id":%q,"tool":"video_upscale","config":%s}`, upload, config)),
			})
			return status, answer
		}
		answers := make([]map[string]any, times)
		faults.Crowd(times, func(i int) {
			var status int
			if status, answers[i] = send(i, `{"scale":2}`); status != http.StatusAccepted {
				t.Errorf("request %d: %d %v", i, status, answers[i])
			}
		})
		for _, answer := range answers[1:] {
			if !reflect.DeepEqual(answer, answers[0]) {
				t.Errorf("answers differ: %v and %v", answers[0], answer)
			}
		}
		if status, answer := send(0, `{"scale":4}`); status != http.StatusConflict {
			t.Errorf("another body with the same key: %d %v", status, answer)
		}
		if n := rows(t, f, `SELECT COUNT(*) FROM jobs`); n != 1 {
			t.Errorf("%d jobs of one key", n)
		}
		id, _ := answers[0]["job_id"].(string)
		f.Accept(id)
		worker()
		f.Succeeds(id, 1, 0)
		f.End()
	})
}

// F5: credits for seven, twenty jobs that reserve at once: exactly seven are carried.
func TestF05CreditsForSomeOfMany(t *testing.T) {
	t.Parallel()
	const balance, jobs = 7, 20
	f := faults.New(t, 2, faults.Quick())
	account := f.NewAccount("poor", balance)
	ids := make([]string, jobs)
	faults.Crowd(jobs, func(i int) {
		var err error
		if ids[i], err = f.Photo(faults.Request{API: i, Account: account}, faults.Picture(64, 48)); err != nil {
			t.Error(err)
		}
	})
	for i := range 2 {
		f.Worker(fmt.Sprintf("worker%d", i), "ENLARGER_IMAGE_SLOTS", "8")
	}
	ends := map[job.Status]int{}
	for _, id := range ids {
		j := f.Ended(id)
		ends[j.Status]++
		if j.Status == job.Failed && j.ErrorCode != engine.InsufficientCredits {
			t.Errorf("%s failed with %s", id, j.ErrorCode)
		}
	}
	if ends[job.Succeeded] != balance || ends[job.Failed] != jobs-balance {
		t.Errorf("%v, want %d succeeded", ends, balance)
	}
	if left, frozen, used := f.Credits(account); left != 0 || frozen != 0 || used != balance {
		t.Errorf("balance %v, frozen %v, used %v", left, frozen, used)
	}
	f.End()
}

// F25: an upload that never completes is upload_incomplete when it is used, and goes when its time is over.
func TestF25UploadNeverCompleted(t *testing.T) {
	t.Parallel()
	shapes(t, faults.Quick(), func(t *testing.T, f *faults.Fleet, worker func() *faults.Node) {
		worker()
		clip := f.Media("clip.mp4")
		for _, c := range []struct {
			name string
			put  int // bytes, of which the connection is cut after half when they are all
		}{{"nothing put", 0}, {"cut half way", len(clip)}} {
			upload, address, err := f.OpenUpload(faults.Request{}, len(clip))
			if err != nil {
				t.Fatal(err)
			}
			if c.put > 0 {
				f.PutHalf(address, clip)
			}
			id, err := f.Uploaded(faults.Request{}, upload)
			if err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			if j := f.Ended(id); j.ErrorCode != engine.UploadIncomplete {
				t.Errorf("%s: %s %s", c.name, j.Status, j.ErrorCode)
			}
		}
		// One that is complete and never used, and one of which nobody put anything.
		if _, err := f.Upload(faults.Request{}, clip); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.OpenUpload(faults.Request{}, len(clip)); err != nil {
			t.Fatal(err)
		}
		// An upload lives for a day, and is kept for an hour longer. Here both are over.
		if _, err := f.DB.ExecContext(t.Context(), `UPDATE uploads SET expires_at = 1`); err != nil {
			t.Fatal(err)
		}
		f.Until("the uploads to expire", func() bool { return rows(t, f, `SELECT COUNT(*) FROM uploads WHERE status = 'open'`) == 0 })
		if _, frozen, used := f.Credits(""); frozen != 0 || used != 0 {
			t.Errorf("frozen %v, used %v", frozen, used)
		}
		f.End() // demands an empty bucket
	})
}

// F27: one account floods the fleet; another's only job starts as soon as a slot has turned over.
func TestF27FloodLetsOthersThrough(t *testing.T) {
	t.Parallel()
	const slots = 2
	flood := profile(80, 200)
	f := faults.New(t, 2, faults.Quick())
	other := f.NewAccount("other", 100)
	picture := faults.Picture(64, 48)
	faults.Crowd(flood, func(i int) {
		if _, err := f.Photo(faults.Request{API: i}, picture); err != nil {
			t.Error(err)
		}
	})
	f.Worker("worker", "ENLARGER_IMAGE_SLOTS", strconv.Itoa(slots))
	f.Until("the flood to be under way", func() bool { return rows(t, f, `SELECT COUNT(*) FROM jobs WHERE started_at > 0`) > slots })
	id, err := f.Photo(faults.Request{Account: other}, picture)
	if err != nil {
		t.Fatal(err)
	}
	accepted := rows(t, f, `SELECT now_micros()`)
	started := f.Succeeds(id, 1, 0).StartedAt.UnixMicro()
	// A slot may have been on its way to one more of the flood.
	if ahead := rows(t, f, `SELECT COUNT(*) FROM jobs WHERE started_at > $1 AND started_at < $2`, accepted, started); ahead > slots {
		t.Errorf("%d jobs of the flood started ahead of the other's, with %d slots", ahead, slots)
	}
	if behind := rows(t, f, `SELECT COUNT(*) FROM jobs WHERE started_at = 0 OR started_at > $1`, started); behind < slots {
		t.Errorf("only %d jobs of the flood were left: the test sees nothing", behind)
	}
	f.End()
}
