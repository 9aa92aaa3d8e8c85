package api_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"enlarger/api"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/testbed"
)

// dial opens a raw connection to the API.
func (r *rig) dial() net.Conn {
	r.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.base, "http://"))
	must(r, err)
	r.Cleanup(func() { conn.Close() })
	return conn
}

// uploadHead starts a multipart upload that announces size bytes of content after what it returns.
func (r *rig) uploadHead(size int) (head []byte, kind string) {
	kind, before, after := formAround("image", text("tool", "upscale"))
	length := len(before) + size + len(after)
	return fmt.Appendf(nil, "POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", r.secret, kind, length, before), kind
}

// quickly says that another client is served meanwhile.
func (r *rig) quickly() {
	r.Helper()
	other := r.fresh(10)
	ctx, cancel := context.WithTimeout(r.ctx, 20*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.base+"/api/v1/credits", nil)
	must(r, err)
	req.Header.Set("Authorization", "Bearer "+other.secret)
	resp, err := r.client.Do(req)
	must(r, err)
	resp.Body.Close()
	other.status(other.postForm("/api/v1/jobs", file("image", png(9, 9)), text("tool", "upscale")), 202)
}

// TestSlowClient has clients that send a byte now and then: they are cut off with 408, leave nothing, and others are served meanwhile.
func TestSlowClient(t *testing.T) {
	t.Parallel()
	r := embedded(t, func(cfg *api.Config) { cfg.Limits.BodyPatience = 2 * time.Second })
	slow := r.fresh(10)
	var all sync.WaitGroup
	for _, send := range [][]byte{
		func() []byte { head, _ := slow.uploadHead(1 << 20); return append(head, png(9, 9)...) }(),
		fmt.Appendf(nil, "POST /api/v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", slow.secret),
	} {
		conn := r.dial()
		_, err := conn.Write(send)
		must(r, err)
		stop := make(chan struct{})
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(200 * time.Millisecond):
					conn.Write([]byte(" "))
				}
			}
		})
		all.Go(func() {
			defer close(stop)
			must(t, conn.SetReadDeadline(time.Now().Add(30*time.Second)))
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Errorf("no answer to a slow client: %v %s", err, r.log.all())
				return
			}
			defer resp.Body.Close()
			if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusRequestTimeout || !bytes.Contains(text, []byte(`"request_timeout"`)) {
				t.Errorf("slow client: %d %s", resp.StatusCode, text)
			}
		})
	}
	r.quickly()
	all.Wait()
	if n := slow.jobCount(); n != 0 {
		t.Errorf("%d jobs", n)
	}
	if left := r.objects(); slices.ContainsFunc(left, r.orphan) {
		t.Errorf("left in storage: %v", left)
	}
}

// TestPatientClient sends slowly, with pauses, but enough: it is served.
func TestPatientClient(t *testing.T) {
	t.Parallel()
	r := embedded(t, func(cfg *api.Config) { cfg.Limits.BodyPatience = 3 * time.Second })
	content := append(png(9, 9), bytes.Repeat([]byte{0}, 5*20<<10)...)
	kind, head, tail := formAround("image", text("tool", "upscale"))
	reader, writer := io.Pipe()
	go func() {
		writer.Write(append(head, content[:100]...))
		for rest := content[100:]; len(rest) > 0; rest = rest[min(20<<10, len(rest)):] {
			time.Sleep(time.Second) // the slowness is what is tested; the whole takes twice the patience
			writer.Write(rest[:min(20<<10, len(rest))])
		}
		writer.Write(tail)
		writer.Close()
	}()
	r.status(r.send("POST", "/api/v1/jobs", reader, "Content-Type", kind), 202)
}

// TestVanishingClient has clients that go away in the middle of a body.
func TestVanishingClient(t *testing.T) {
	t.Parallel()
	r := embedded(t, nil)
	gone := r.fresh(10)
	for _, size := range []int{0, 100, 100_000, 20 << 20} {
		conn := r.dial()
		head, _ := gone.uploadHead(30 << 20)
		_, err := conn.Write(append(append(head, png(9, 9)...), make([]byte, size)...))
		must(r, err)
		conn.(*net.TCPConn).SetLinger(0)
		conn.Close()
	}
	r.quickly()
	testbed.Until(t, 20*time.Second, "the log lines of four broken uploads", func() bool {
		n := 0
		for _, line := range r.log.all() {
			if strings.Contains(line, gone.key.ID) {
				n++
			}
			if strings.HasPrefix(line, "error") {
				t.Errorf("a client that goes away is no error of ours: %s", line)
			}
		}
		return n == 4
	})
	if n := gone.jobCount(); n != 0 {
		t.Errorf("%d jobs", n)
	}
	if left := r.objects(); slices.ContainsFunc(left, r.orphan) {
		t.Errorf("left in storage: %v", left)
	}
}

// TestIdleConnections holds 500 connections that send nothing, half a request, or nothing after a request.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	r := embedded(t, nil)
	before := heap()
	for i := range 500 {
		conn := r.dial()
		switch i % 3 {
		case 1:
			fmt.Fprintf(conn, "GET /api/v1/credits HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		case 2:
			fmt.Fprintf(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			must(r, err)
			resp.Body.Close()
		}
	}
	for range 5 {
		r.quickly()
	}
	if grown := heap() - before; grown > 30<<20 {
		t.Errorf("500 idle connections hold %d MiB", grown>>20)
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestLargeUploadKeepsMemoryFlat streams images of 200 MiB, the largest there is, and watches the heap of the process, which holds the API, the
// object store and the client.
func TestLargeUploadKeepsMemoryFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("moves 400 MiB")
	}
	r := embedded(t, nil)
	const most = 200 << 20
	kind, head, tail := formAround("image", text("tool", "upscale"))
	previous := debug.SetGCPercent(20)
	defer debug.SetGCPercent(previous)
	base, peak := heap(), int64(0)
	done := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				peak = max(peak, int64(m.HeapAlloc))
			}
		}
	})
	var senders sync.WaitGroup
	for _, announced := range []bool{true, false} {
		senders.Go(func() {
			image := png(9, 9)
			body := io.MultiReader(bytes.NewReader(head), bytes.NewReader(image), io.LimitReader(zeros{}, int64(most-len(image))), bytes.NewReader(tail))
			req, err := http.NewRequest(http.MethodPost, r.base+"/api/v1/jobs", body)
			must(t, err)
			if announced {
				req.ContentLength = int64(len(head) + most + len(tail))
			}
			req.Header = http.Header{"Content-Type": {kind}, "Authorization": {"Bearer " + r.secret}}
			client := &http.Client{Transport: r.client.Transport}
			resp, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusAccepted {
				t.Errorf("%d %s", resp.StatusCode, text)
			}
		})
	}
	senders.Wait()
	close(done)
	watch.Wait()
	t.Logf("heap %d MiB before, at most %d MiB during two uploads of 200 MiB", base>>20, peak>>20)
	if peak-base > 24<<20 {
		t.Errorf("the heap grew by %d MiB", (peak-base)>>20)
	}
	for _, key := range r.objects() {
		o, err := r.storage.Head(r.ctx, key)
		if err != nil || o.Size != most {
			t.Errorf("%s: %d bytes, %v", key, o.Size, err)
		}
	}
	// One byte more is refused, and nothing stays.
	before := len(r.objects())
	body := io.MultiReader(bytes.NewReader(head), bytes.NewReader(png(9, 9)), io.LimitReader(zeros{}, int64(most-len(png(9, 9))+1)), bytes.NewReader(tail))
	r.refused(r.send("POST", "/api/v1/jobs", body, "Content-Type", kind), 413, "file_too_large", "validation", "")
	if after := len(r.objects()); after != before {
		t.Errorf("%d objects, were %d", after, before)
	}
}

// TestTwins sends 50 requests with one idempotency key at the same time: one job, 49 replays, one object.
func TestTwins(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		for name, send := range map[string]func() (response, error){
			"json": func() (response, error) {
				return r.try("POST", "/api/v1/jobs", strings.NewReader(`{"tool":"upscale","image_url":"https://example.com/a"}`), "Content-Type", "application/json", "Idempotency-Key", "json-"+r.account.ID)
			},
			"form": func() (response, error) {
				kind, body := formBody(file("image", png(9, 9)), text("tool", "upscale"))
				return r.try("POST", "/api/v1/jobs", bytes.NewReader(body), "Content-Type", kind, "Idempotency-Key", "form-"+r.account.ID)
			},
			"upload": func() (response, error) {
				return r.try("POST", "/api/v1/uploads", strings.NewReader(`{"file_name":"a.mp4"}`), "Idempotency-Key", "upload-"+r.account.ID)
			},
		} {
			answers := make([]string, 50)
			var all sync.WaitGroup
			var mu sync.Mutex
			fresh := 0
			for i := range answers {
				all.Go(func() {
					resp, err := send()
					if err != nil || (resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusCreated) {
						r.Errorf("%s: %v %d %s", name, err, resp.StatusCode, resp.text)
						return
					}
					answers[i] = string(resp.text)
					if resp.Header.Get("Idempotent-Replayed") == "" {
						mu.Lock()
						defer mu.Unlock()
						fresh++
					}
				})
			}
			all.Wait()
			slices.Sort(answers)
			if len(slices.Compact(answers)) != 1 || fresh != 1 {
				r.Errorf("%s: %d fresh answers", name, fresh)
			}
		}
		if n := r.jobCount(); n != 2 {
			r.Errorf("%d jobs, want 2", n)
		}
		if left := r.objects(); len(left) != 1 || r.orphan(left[0]) {
			r.Errorf("objects %v", left)
		}
	})
}

// TestCapIsExact submits in parallel far beyond the cap.
func TestCapIsExact(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		must(r, r.accounts.SetLimits(r.ctx, r.account.ID, 7, 3, 0))
		_, second, err := r.accounts.CreateKey(r.ctx, r.account.ID, "second")
		must(r, err)
		var all sync.WaitGroup
		var mu sync.Mutex
		got := map[string]int{}
		for i := range 60 {
			tool, secret := []string{"upscale", "video_upscale"}[i%2], []string{r.secret, second}[i/2%2]
			all.Go(func() {
				var resp response
				var err error
				if i%3 == 0 && tool == "upscale" {
					kind, body := formBody(file("image", png(9, 9)), text("tool", tool))
					resp, err = r.try("POST", "/api/v1/jobs", bytes.NewReader(body), "Content-Type", kind, "Authorization", "Bearer "+secret)
				} else {
					resp, err = r.try("POST", "/api/v1/jobs", strings.NewReader(`{"tool":"`+tool+`","image_url":"https://example.com/a"}`), "Authorization", "Bearer "+secret)
				}
				if err != nil {
					r.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got[fmt.Sprint(tool, " ", resp.StatusCode)]++
			})
		}
		all.Wait()
		want := map[string]int{"upscale 202": 7, "upscale 429": 23, "video_upscale 202": 3, "video_upscale 429": 27}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			r.Errorf("%v, want %v", got, want)
		}
		if left := r.objects(); slices.ContainsFunc(left, r.orphan) {
			r.Errorf("left in storage: %v", left)
		}
	})
}

// TestUploadIsUsedOnce races for one upload.
func TestUploadIsUsedOnce(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		id := r.status(r.postJSON("/api/v1/uploads", `{"file_name":"a.mp4"}`), 201).json["upload_id"].(string)
		var all sync.WaitGroup
		var mu sync.Mutex
		got := map[int]int{}
		for range 20 {
			all.Go(func() {
				resp, err := r.try("POST", "/api/v1/jobs", strings.NewReader(`{"tool":"video_upscale","upload_id":"`+id+`"}`))
				if err != nil {
					r.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				got[resp.StatusCode]++
			})
		}
		all.Wait()
		if fmt.Sprint(got) != fmt.Sprint(map[int]int{202: 1, 409: 19}) {
			r.Errorf("%v", got)
		}
	})
}

// TestCancelAgainstFinish lets a cancel race with the worker's last step: one of them wins, and the books agree (the rig audits them).
func TestCancelAgainstFinish(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		for range 10 {
			id := r.queued("upscale")
			j := r.reserved(id, 1000)
			var both sync.WaitGroup
			var canceled int
			var finished error
			both.Go(func() {
				if resp, err := r.try("POST", "/api/v1/jobs/"+id+"/cancel", nil); err == nil {
					canceled = resp.StatusCode
				}
			})
			both.Go(func() {
				finished = r.jobs.Succeed(r.ctx, j, "results/x", engine.Output{Width: 1, Height: 1, Size: 1}, nil)
			})
			both.Wait()
			status := r.get("/api/v1/jobs/" + id).json["status"]
			switch {
			case canceled == 200 && errors.Is(finished, job.ErrStale) && status == "canceled":
			case canceled == 409 && finished == nil && status == "succeeded":
			default:
				r.Errorf("cancel %d, finish %v, status %v", canceled, finished, status)
			}
		}
	})
}

// TestOutages takes the services away one at a time, cut off and hanging: 503 with Retry-After, in bounded time, and back to work after.
func TestOutages(t *testing.T) {
	t.Parallel()
	const patience = 12 * time.Second
	proxies := map[string]*testbed.Proxy{}
	postgres := mustParse(t, testbed.PostgreSQL(t))
	proxies["database"] = testbed.NewProxy(t, postgres.Host)
	postgres.Host = proxies["database"].Addr()
	proxies["redis"] = testbed.NewProxy(t, testbed.Redis(t).Addr())
	r := newRig(t, services{
		database: postgres.String(), redis: &redis.Options{Addr: proxies["redis"].Addr()},
		storageVia: func(endpoint string) string {
			proxies["storage"] = testbed.NewProxy(t, strings.TrimPrefix(endpoint, "http://"))
			return "http://" + proxies["storage"].Addr()
		},
		change: func(cfg *api.Config) { cfg.Limits.CallTimeout = 4 * time.Second },
	})
	id := r.queued("upscale")
	r.succeeded(id, "x", engine.Output{Width: 1, Height: 1, Size: 1})
	requests := map[string]func() (response, error){
		"get": func() (response, error) { return r.try("GET", "/api/v1/jobs/"+id, nil) },
		"create": func() (response, error) {
			return r.try("POST", "/api/v1/jobs", strings.NewReader(`{"tool":"upscale","image_url":"https://example.com/a"}`))
		},
		"file": func() (response, error) {
			kind, body := formBody(text("tool", "upscale"), file("image", append(png(9, 9), make([]byte, 100_000)...)))
			return r.try("POST", "/api/v1/jobs", bytes.NewReader(body), "Content-Type", kind)
		},
		"upload": func() (response, error) {
			return r.try("POST", "/api/v1/uploads", strings.NewReader(`{"file_name":"a.mp4"}`))
		},
		"cancel": func() (response, error) { return r.try("POST", "/api/v1/jobs/"+id+"/cancel", nil) },
		"ready":  func() (response, error) { return r.try("GET", "/readyz", nil) },
		"live":   func() (response, error) { return r.try("GET", "/healthz", nil) },
	}
	// What does not need the service goes on; the rest must say 503.
	goesOn := map[string][]string{"database": {"live"}, "redis": {"live"}, "storage": {"live", "get", "create", "upload", "cancel"}}
	for _, service := range []string{"database", "redis", "storage"} {
		for _, how := range []string{"cut", "stall"} {
			t.Logf("%s: %s", service, how)
			if how == "cut" {
				proxies[service].Cut()
			} else {
				proxies[service].Stall()
			}
			testbed.Until(t, 20*time.Second, "/readyz says that "+service+" is away", func() bool {
				resp, err := requests["ready"]()
				return err == nil && resp.StatusCode == http.StatusServiceUnavailable && bytes.Contains(resp.text, []byte(`"`+service+`":"unavailable"`)) && bytes.Count(resp.text, []byte("unavailable")) == 1
			})
			var all sync.WaitGroup
			for name, send := range requests {
				all.Go(func() {
					started := time.Now()
					resp, err := send()
					if err != nil {
						t.Errorf("%s %s, %s: %v", service, how, name, err)
						return
					}
					if took := time.Since(started); took > patience {
						t.Errorf("%s %s, %s took %v", service, how, name, took)
					}
					if slices.Contains(goesOn[service], name) {
						if resp.StatusCode >= 500 {
							t.Errorf("%s %s, %s: %d %s", service, how, name, resp.StatusCode, resp.text)
						}
						return
					}
					if name == "ready" {
						return
					}
					r.refused(resp, 503, "service_unavailable", "server", "")
					if resp.Header.Get("Retry-After") == "" {
						t.Errorf("%s %s, %s: no Retry-After", service, how, name)
					}
				})
			}
			all.Wait()
			proxies[service].Heal()
			testbed.Until(t, 30*time.Second, service+" is back", func() bool {
				resp, err := r.try("GET", "/readyz", nil)
				if err != nil || resp.StatusCode != http.StatusOK {
					return false
				}
				resp, err = requests["get"]()
				return err == nil && resp.StatusCode == http.StatusOK
			})
		}
	}
	// A job that was written, although its answer was a 503, may be there; a stored file without a job may not.
	testbed.Until(t, 20*time.Second, "no file is left without a job", func() bool { return !slices.ContainsFunc(r.objects(), r.orphan) })
}

// TestPeak sends many files at the same time on few places: all are served, none twice.
func TestManyFilesAtOnce(t *testing.T) {
	t.Parallel()
	r := embedded(t, func(cfg *api.Config) { cfg.Limits.Uploads, cfg.Limits.UploadsPerAccount = 3, 2 })
	other := r.fresh(1000)
	var all sync.WaitGroup
	for i := range 40 {
		client := []*rig{r, other}[i%2]
		all.Go(func() {
			kind, body := formBody(file("image", append(png(9, 9), make([]byte, 50_000)...)), text("tool", "upscale"))
			resp, err := client.try("POST", "/api/v1/jobs", bytes.NewReader(body), "Content-Type", kind)
			if err != nil || resp.StatusCode != http.StatusAccepted {
				t.Errorf("%v %d %s", err, resp.StatusCode, resp.text)
			}
		})
	}
	all.Wait()
	if n := len(r.objects()); n != 40 {
		t.Errorf("%d objects", n)
	}
}

// TestMain ends with a look at what is left running.
// What would change what a job costs or does is refused and not ignored, wherever it stands.
func TestUnbuiltPromisesAreRefused(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		const body = `{"tool":"upscale","image_url":"https://example.com/a.jpg"%s}`
		for _, name := range []string{"dry_run", "max_credits", "wait", "webhook_url"} {
			r.refused(r.postJSON("/api/v1/jobs?"+name+"=1", fmt.Sprintf(body, "")), 400, "invalid_parameter", "validation", name)
			r.refused(r.postJSON("/api/v1/jobs", fmt.Sprintf(body, `,"`+name+`":1`)), 400, "invalid_parameter", "validation", name)
			form := "--x\r\nContent-Disposition: form-data; name=" + name + "\r\n\r\n1\r\n--x--\r\n"
			r.refused(r.send("POST", "/api/v1/jobs", strings.NewReader(form), "Content-Type", "multipart/form-data; boundary=x"), 400, "invalid_parameter", "validation", name)
		}
	})
}

func TestMain(m *testing.M) {
	// A server that refuses a body waits half a second before it closes the connection, and ends by itself.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("net/http.(*conn).closeWriteAndWait"))
}
