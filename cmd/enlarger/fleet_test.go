package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"enlarger/db"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// fleet is a running fleet: real PostgreSQL, real Redis, an S3-protocol store, and enlarger processes.
type fleet struct {
	*testing.T
	env     map[string]string
	urls    []string
	apis    []*testbed.Process
	keys    []string
	account string
	jobs    *job.Store
}

// startFleet starts the services and the API processes; workers are the test's own business.
func startFleet(t *testing.T, apis int, settings map[string]string) *fleet {
	t.Helper()
	embedded, err := storage.OpenEmbedded(t.TempDir(), storage.EmbeddedConfig{Bucket: "fleet"})
	check(t, err)
	t.Cleanup(func() { embedded.Close() })
	endpoint, err := embedded.Start("127.0.0.1:0")
	check(t, err)
	access, secret := embedded.Credentials()
	f := &fleet{T: t, env: map[string]string{
		"ENLARGER_REDIS":       testbed.Redis(t).URL(),
		"ENLARGER_S3_ENDPOINT": endpoint, "ENLARGER_S3_REGION": "us-east-1", "ENLARGER_S3_BUCKET": "fleet",
		"ENLARGER_S3_ACCESS_KEY": access, "ENLARGER_S3_SECRET_KEY": secret,
		"ENLARGER_RATE_LIMIT": "1000000", "ENLARGER_MAX_IMAGE_JOBS": "1000", "ENLARGER_MAX_VIDEO_JOBS": "1000",
		"ENLARGER_DATA": t.TempDir(),
	}}
	maps.Copy(f.env, settings)
	if f.env["ENLARGER_DATABASE"] == "" {
		f.env["ENLARGER_DATABASE"] = testbed.PostgreSQL(t)
	}
	f.cli("migrate")
	for i := range apis {
		address := testbed.FreeAddr(t)
		f.apis = append(f.apis, f.start(fmt.Sprintf("api%d", i), map[string]string{"ENLARGER_LISTEN": address}, "api"))
		url := "http://" + address
		testbed.WaitHTTP(t, url+"/healthz")
		f.urls = append(f.urls, url)
	}
	var account struct {
		ID string `json:"id"`
	}
	f.decode(f.cli("account", "create", "--name", "fleet", "--credits", "10000", "--json"), &account)
	f.account = account.ID
	for range apis {
		var key struct {
			Key string `json:"key"`
		}
		f.decode(f.cli("key", "create", "--account", account.ID, "--name", "test", "--json"), &key)
		f.keys = append(f.keys, key.Key)
	}
	d, err := db.Open(context.Background(), db.Config{URL: f.env["ENLARGER_DATABASE"], MaxConns: 4})
	check(t, err)
	t.Cleanup(func() { d.Close() })
	f.jobs = job.NewStore(d)
	return f
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (f *fleet) decode(text string, into any) {
	f.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		f.Fatalf("%v in %s", err, text)
	}
}

func (f *fleet) start(name string, more map[string]string, args ...string) *testbed.Process {
	f.Helper()
	env := map[string]string{}
	for _, part := range []map[string]string{f.env, more} {
		maps.Copy(env, part)
	}
	return testbed.Start(f.T, name, env, args...)
}

// cli runs an operator's command and returns what it printed.
func (f *fleet) cli(args ...string) string {
	f.Helper()
	p := f.start(args[0], map[string]string{"ENLARGER_LOG_LEVEL": "error"}, args...)
	if code := p.Wait(f.T, time.Minute); code != 0 {
		f.Fatalf("enlarger %v: exit status %d\n%s", args, code, p.Log())
	}
	return p.Log()
}

// do sends a request to API process n, with more headers as name and value, and decodes its JSON answer.
func (f *fleet) do(n int, method, path, contentType string, body io.Reader, more ...string) (int, map[string]any) {
	n %= len(f.urls)
	request, err := http.NewRequest(method, f.urls[n]+"/api/v1"+path, body)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}
	}
	request.Header.Set("Authorization", "Bearer "+f.keys[n])
	for i := 0; i+1 < len(more); i += 2 {
		request.Header.Set(more[i], more[i+1])
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}
	}
	defer response.Body.Close()
	answer := map[string]any{}
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&answer); err != nil {
		answer["error"] = err.Error()
	}
	return response.StatusCode, answer
}

// photo submits an image by multipart, file first.
func (f *fleet) photo(n int, picture []byte, scale int, more ...string) (string, error) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("image", "photo.jpg")
	if err == nil {
		_, err = part.Write(picture)
	}
	if err != nil {
		return "", err
	}
	form.WriteField("tool", "upscale")                            //nolint:errcheck // a buffer takes everything
	form.WriteField("config", fmt.Sprintf(`{"scale":%d}`, scale)) //nolint:errcheck // as above
	form.Close()
	return accepted(f.do(n, "POST", "/jobs", form.FormDataContentType(), &body, more...))
}

func accepted(status int, answer map[string]any) (string, error) {
	id, _ := answer["job_id"].(string)
	if status != http.StatusAccepted || id == "" {
		return "", fmt.Errorf("submit: %d %v", status, answer)
	}
	return id, nil
}

// clip submits a video by the two-step upload.
func (f *fleet) clip(n int, clip []byte, config string) (string, error) {
	status, upload := f.do(n, "POST", "/uploads", "application/json", strings.NewReader(fmt.Sprintf(`{"file_name":"clip.mp4","file_size":%d}`, len(clip))))
	address, _ := upload["put_url"].(string)
	if status != http.StatusCreated {
		return "", fmt.Errorf("upload: %d %v", status, upload)
	}
	request, err := http.NewRequest(http.MethodPut, address, bytes.NewReader(clip))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "video/mp4")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("put: %s", response.Status)
	}
	body := fmt.Sprintf(`{"upload_id":%q,"tool":"video_upscale","config":%s}`, upload["upload_id"], config)
	return accepted(f.do(n, "POST", "/jobs", "application/json", strings.NewReader(body)))
}

// result asks for a job's result the way the document says; curl -L carries the key along too.
func (f *fleet) result(id string) (*http.Response, error) {
	request, err := http.NewRequest(http.MethodGet, f.urls[0]+"/api/v1/jobs/"+id+"/result", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+f.keys[0])
	return http.DefaultClient.Do(request)
}

// download fetches a job's result and holds its size against the row.
func (f *fleet) download(id string) error {
	response, err := f.result(id)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return errors.Join(err, errors.New(response.Status))
	}
	j, err := f.jobs.Get(context.Background(), f.account, id)
	if err == nil && j.Result.Size != n {
		err = fmt.Errorf("%d bytes of %d", n, j.Result.Size)
	}
	return err
}

func (f *fleet) job(id string) job.Job {
	f.Helper()
	j, err := f.jobs.Get(context.Background(), f.account, id)
	check(f.T, err)
	return j
}

func (f *fleet) media(name string) []byte {
	f.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "fixtures", "media", name))
	check(f.T, err)
	return data
}

func (f *fleet) auditClean() {
	f.Helper()
	if out := f.cli("audit"); !strings.Contains(out, "clean") {
		f.Errorf("audit: %s", out)
	}
}

func (f *fleet) worker(i int, more map[string]string) *testbed.Process {
	f.Helper()
	env := map[string]string{"ENLARGER_WORKER_NAME": fmt.Sprintf("worker%d", i)}
	maps.Copy(env, more)
	return f.start(fmt.Sprintf("worker%d", i), env, "worker")
}

// TestFleetSurvivesKilledWorkers: three workers and two API processes, 300 mixed jobs submitted at once, workers killed with SIGKILL
// at random meanwhile. Every job ends, the audit is clean, nothing is charged twice, every result downloads.
func TestFleetSurvivesKilledWorkers(t *testing.T) {
	t.Parallel()
	const photos, clips, kills = 260, 40, 8
	f := startFleet(t, 2, map[string]string{
		// Shorter than the defaults so that the test is; a job may be hit several times, so the budget is larger.
		"ENLARGER_LEASE": "4s", "ENLARGER_HEARTBEAT": "1s", "ENLARGER_SWEEP": "1s", "ENLARGER_RETRY_BUDGET": "20",
	})
	workers := make([]*testbed.Process, 3)
	for i := range workers {
		workers[i] = f.worker(i, nil)
	}
	ids := f.submitMixed(photos, clips)

	random := rand.New(rand.NewPCG(7, 11))
	killed := 0
	left := map[string]bool{}
	for _, id := range ids {
		left[id] = true
	}
	nextKill := len(ids) - len(ids)/(kills+2)
	testbed.Until(t, 6*time.Minute, "the end of all jobs", func() bool {
		for id := range left {
			if f.job(id).Status.Terminal() {
				delete(left, id)
			}
		}
		// Kills are spread over the work and not over time, so that a fast machine gets as many as a slow one.
		if len(left) <= nextKill && killed < kills {
			i := random.IntN(len(workers))
			workers[i].Kill()
			workers[i] = f.worker(i, nil)
			killed++
			nextKill -= len(ids) / (kills + 2)
		}
		return len(left) == 0
	})

	runAgain := int64(0)
	for _, id := range ids {
		j := f.job(id)
		if j.Status != job.Succeeded {
			t.Errorf("%s ended %s: %s %s", id, j.Status, j.ErrorCode, j.ErrorMessage)
			continue
		}
		runAgain += j.Fence - 1
		if err := f.download(id); err != nil {
			t.Errorf("result of %s: %v", id, err)
		}
	}
	t.Logf("%d jobs, %d workers killed, %d runs repeated", len(ids), killed, runAgain)
	if killed < kills {
		t.Errorf("only %d workers were killed", killed)
	}
	f.auditClean()
}

// submitMixed submits photos and clips from many clients at once, over both API processes.
func (f *fleet) submitMixed(photos, clips int) []string {
	f.Helper()
	photo, clip := f.media("photo.jpg"), f.media("clip.mp4")
	ids := make([]string, photos+clips)
	var clients sync.WaitGroup
	places := make(chan struct{}, 32)
	for i := range ids {
		clients.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			var err error
			if i%((photos+clips)/clips) == 0 && i/((photos+clips)/clips) < clips {
				ids[i], err = f.clip(i, clip, `{"scale":2}`)
			} else {
				ids[i], err = f.photo(i, photo, 2)
			}
			if err != nil {
				f.Errorf("job %d: %v", i, err)
			}
		})
	}
	clients.Wait()
	if f.Failed() {
		f.FailNow()
	}
	return ids
}

// TestKilledWorkersVideoIsTakenUp: with the default settings, a video whose worker is killed runs again elsewhere within 30 s, and is charged once.
func TestKilledWorkersVideoIsTakenUp(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1, nil)
	first := f.worker(1, nil)
	id, err := f.clip(0, f.media("long.mp4"), `{"scale":4,"fps":60}`)
	check(t, err)
	f.processing(id)
	second := f.worker(2, nil)
	first.Kill()
	killed := time.Now()
	testbed.Until(t, 60*time.Second, "the second run", func() bool { j := f.job(id); return j.Fence == 2 && j.Phase == job.PhaseProcessing })
	took := time.Since(killed)
	t.Logf("running again after %v", took.Round(100*time.Millisecond))
	if took > 30*time.Second {
		t.Errorf("running again after %v, promised within 30 s", took)
	}
	testbed.Until(t, 4*time.Minute, "the end of the job", func() bool { return f.job(id).Status.Terminal() })
	j := f.job(id)
	if j.Status != job.Succeeded || j.Failures != 1 {
		t.Fatalf("job ended %s with %d failures: %s %s", j.Status, j.Failures, j.ErrorCode, j.ErrorMessage)
	}
	check(t, f.download(id))
	_, credits := f.do(0, "GET", "/credits", "", nil)
	if used := credits["used"].(float64); used != float64(j.Charged)/1000 || credits["frozen"].(float64) != 0 {
		t.Errorf("credits %v, the job was charged %v", credits, j.Charged)
	}
	second.Stop(t, time.Minute)
	f.auditClean()
}

func (f *fleet) processing(id string) {
	f.Helper()
	testbed.Until(f.T, time.Minute, "phase processing with progress", func() bool {
		j := f.job(id)
		if j.Status.Terminal() {
			f.Fatalf("job ended %s before the test could begin: %s %s", j.Status, j.ErrorCode, j.ErrorMessage)
		}
		return j.Phase == job.PhaseProcessing && j.Progress > 0
	})
}

// TestCancelOfARunningVideo: ffmpeg is gone within 5 s and the credits are back at once. The same for a worker that is stopped with SIGTERM:
// it gives the job back, and its ffmpeg is gone with it.
func TestCancelOfARunningVideo(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 1, map[string]string{"ENLARGER_GRACE": "200ms"})
	worker := f.worker(1, nil)
	submit := func() string {
		id, err := f.clip(0, f.media("long.mp4"), `{"scale":4,"fps":60}`)
		check(t, err)
		f.processing(id)
		if len(ffmpegsOf(worker.PID())) == 0 {
			t.Fatal("no ffmpeg runs under the worker: the test sees nothing")
		}
		return id
	}
	id := submit()
	before := time.Now()
	status, answer := f.do(0, "POST", "/jobs/"+id+"/cancel", "", nil)
	if status != http.StatusOK || answer["status"] != "canceled" {
		t.Fatalf("cancel: %d %v", status, answer)
	}
	_, credits := f.do(0, "GET", "/credits", "", nil)
	if credits["balance"].(float64) != 10000 || credits["frozen"].(float64) != 0 {
		t.Errorf("credits right after the cancel: %v", credits)
	}
	testbed.Until(t, 5*time.Second, "ffmpeg to be gone", func() bool { return len(ffmpegsOf(worker.PID())) == 0 })
	t.Logf("ffmpeg gone %v after the cancel", time.Since(before).Round(time.Millisecond))

	id = submit()
	children := ffmpegsOf(worker.PID())
	worker.Term()
	worker.Wait(t, 30*time.Second)
	for _, pid := range children {
		if _, err := os.Stat("/proc/" + pid); err == nil {
			t.Errorf("ffmpeg %s outlives its worker", pid)
		}
	}
	if j := f.job(id); j.Status != job.Queued || j.Failures != 0 {
		t.Errorf("after SIGTERM the job is %s with %d failures, want queued and 0", j.Status, j.Failures)
	}
	f.auditClean()
}

// ffmpegsOf lists the ffmpeg processes below a process.
func ffmpegsOf(pid int) []string {
	parents := map[string]string{}
	names := map[string]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state ppid ...
		open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
		if open < 0 || end < 0 {
			continue
		}
		child := strings.TrimSpace(string(text[:open]))
		rest := strings.Fields(string(text[end+1:]))
		names[child], parents[child] = string(text[open+1:end]), rest[1]
	}
	var found []string
	for child, name := range names {
		for up, depth := child, 0; up != "" && up != "0" && depth < 8; up, depth = parents[up], depth+1 {
			if parents[up] == strconv.Itoa(pid) {
				if name == "ffmpeg" {
					found = append(found, child)
				}
				break
			}
		}
	}
	return found
}
