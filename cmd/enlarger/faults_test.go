package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"enlarger/db"
	"enlarger/job"
	"enlarger/testbed"
)

// TestF26KilledAllInOneLosesNothing kills the all-in-one process again and again while clients submit with idempotency keys and retry.
// Every job that was accepted ends, each key made one job, the books are clean.
func TestF26KilledAllInOneLosesNothing(t *testing.T) {
	t.Parallel()
	const photos, kills = 60, 5
	f := startEmbedded(t, map[string]string{"ENLARGER_RETRY_BUDGET": "20", "ENLARGER_SWEEP": "1s"})
	photo := f.media("photo.jpg")

	ids := make([]string, photos)
	var clients sync.WaitGroup
	places := make(chan struct{}, 4)
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Minute)
	defer stop()
	for i := range ids {
		clients.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			// A client that retries with its key until it has an answer.
			for ids[i] == "" && ctx.Err() == nil {
				ids[i], _ = f.photo(0, photo, 2, "Idempotency-Key", fmt.Sprintf("photo-%d", i))
			}
		})
	}
	random := rand.New(rand.NewPCG(3, 5))
	for range kills {
		// The fault comes at a random moment of a server that is up: nothing waits for this time to pass.
		pause := time.Duration(random.IntN(1500)) * time.Millisecond
		<-time.After(pause)
		f.apis[0].Kill()
		f.restart()
	}
	clients.Wait()

	distinct := map[string]bool{}
	for i, id := range ids {
		if id == "" {
			t.Fatalf("photo %d was never accepted", i)
		}
		distinct[id] = true
		testbed.Until(t, 2*time.Minute, "the end of job "+id, func() bool {
			_, answer := f.do(0, "GET", "/jobs/"+id, "", nil)
			status := job.Status(fmt.Sprint(answer["status"]))
			if status.Terminal() && status != job.Succeeded {
				t.Fatalf("%s ended %v", id, answer)
			}
			return status == job.Succeeded
		})
		if err := f.fetch(id); err != nil {
			t.Errorf("result of %s: %v", id, err)
		}
	}
	if len(distinct) != photos {
		t.Errorf("%d jobs of %d keys", len(distinct), photos)
	}
	_, credits := f.do(0, "GET", "/credits", "", nil)
	if credits["used"] != float64(photos) || credits["frozen"] != 0.0 {
		t.Errorf("credits %v after %d jobs of 1 credit each", credits, photos)
	}
	f.apis[0].Stop(t, time.Minute)
	f.auditClean()
}

// startEmbedded starts the all-in-one server as a fleet of one.
func startEmbedded(t *testing.T, settings map[string]string) *fleet {
	t.Helper()
	address := testbed.FreeAddr(t)
	f := &fleet{T: t, urls: []string{"http://" + address}, apis: make([]*testbed.Process, 1), env: map[string]string{
		"ENLARGER_DATA": t.TempDir(), "ENLARGER_LISTEN": address, "ENLARGER_RATE_LIMIT": "1000000", "ENLARGER_MAX_IMAGE_JOBS": "1000",
	}}
	maps.Copy(f.env, settings)
	f.restart()
	var account struct{ ID string }
	f.decode(f.cli("account", "create", "--name", "embedded", "--credits", "10000", "--json"), &account)
	f.account = account.ID
	var key struct{ Key string }
	f.decode(f.cli("key", "create", "--account", account.ID, "--name", "test", "--json"), &key)
	f.keys = []string{key.Key}
	return f
}

func (f *fleet) restart() {
	f.Helper()
	f.apis[0] = f.start("serve", nil, "serve")
	testbed.WaitHTTP(f.T, f.urls[0]+"/healthz")
}

// fetch downloads a result without a look at the database.
func (f *fleet) fetch(id string) error {
	response, err := f.result(id)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	head, err := io.ReadAll(io.LimitReader(response.Body, 3))
	if err != nil || response.StatusCode != http.StatusOK || string(head) != "\xff\xd8\xff" {
		return errors.Join(err, fmt.Errorf("%s beginning with %x", response.Status, head))
	}
	return nil
}

// TestF12FrozenWorkerWritesNothing stops a worker with SIGSTOP in the middle of a video for longer than its lease. Another takes the job over; the
// first, awake again, changes nothing.
func TestF12FrozenWorkerWritesNothing(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1, map[string]string{"ENLARGER_LEASE": "3s", "ENLARGER_HEARTBEAT": "1s", "ENLARGER_SWEEP": "500ms"})
	first := f.worker(1, nil)
	id, err := f.clip(0, f.media("long.mp4"), `{"scale":2}`)
	check(t, err)
	f.processing(id)
	first.Freeze()
	f.worker(2, nil)
	testbed.Until(t, time.Minute, "the second run", func() bool { return f.job(id).Fence == 2 })
	first.Resume()
	testbed.Until(t, 3*time.Minute, "the end of the job", func() bool { return f.job(id).Status.Terminal() })
	j := f.job(id)
	if j.Status != job.Succeeded || j.Fence != 2 || j.Failures != 1 || !strings.Contains(j.ResultObject, "/2.") {
		t.Errorf("job ended %s, fence %d, failures %d, result %s", j.Status, j.Fence, j.Failures, j.ResultObject)
	}
	check(t, f.download(id))
	testbed.Until(t, 30*time.Second, "the first worker's ffmpeg to be gone", func() bool { return len(ffmpegsOf(first.PID())) == 0 })
	f.auditClean()
}

// TestF14AndF16RedisFlushedAndDatabaseGone empties Redis with jobs queued and running, then stops PostgreSQL for some seconds. Meanwhile the API says
// 503 with Retry-After; afterwards every job ends.
func TestF14AndF16RedisFlushedAndDatabaseGone(t *testing.T) {
	t.Parallel()
	postgres := testbed.Postgres(t)
	redis := testbed.Redis(t)
	f := startFleet(t, 1, map[string]string{
		"ENLARGER_DATABASE": postgres.Database(t), "ENLARGER_REDIS": redis.URL(),
		"ENLARGER_LEASE": "5s", "ENLARGER_HEARTBEAT": "1s", "ENLARGER_SWEEP": "1s", "ENLARGER_RETRY_BUDGET": "10",
	})
	f.worker(1, nil)
	film, err := f.clip(0, f.media("long.mp4"), `{"scale":2}`)
	check(t, err)
	f.processing(film)
	ids := f.submitMixed(20, 4)
	redis.FlushAll(t)

	postgres.Stop()
	status, retryAfter := 0, ""
	testbed.Until(t, 30*time.Second, "an answer without a database", func() bool {
		request, err := http.NewRequest(http.MethodGet, f.urls[0]+"/api/v1/credits", nil)
		check(t, err)
		request.Header.Set("Authorization", "Bearer "+f.keys[0])
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return false
		}
		response.Body.Close()
		status, retryAfter = response.StatusCode, response.Header.Get("Retry-After")
		return true
	})
	if status != http.StatusServiceUnavailable || retryAfter == "" {
		t.Errorf("without a database: %d, Retry-After %q", status, retryAfter)
	}
	postgres.Start(t)
	for _, id := range append(ids, film) {
		testbed.Until(t, 3*time.Minute, "the end of job "+id, func() bool {
			j, err := f.jobs.Get(context.Background(), f.account, id)
			return (err == nil || db.Unavailable(err)) && j.Status.Terminal()
		})
		if j := f.job(id); j.Status != job.Succeeded {
			t.Errorf("%s ended %s: %s %s", id, j.Status, j.ErrorCode, j.ErrorMessage)
		}
		check(t, f.download(id))
	}
	f.auditClean()
}
