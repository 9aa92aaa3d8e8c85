package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/testbed"
)

// maxInFlight bounds the unanswered requests of the latency part: 20 s worth at the default rate.
const maxInFlight = 1000

// latencyPart measures POST /jobs as a client sees it, with the real binary.
func latencyPart(b *bed, o *options, out io.Writer) {
	photo, err := os.ReadFile(o.photo)
	b.must(err)
	rows := [][]string{{"mode", "workers", "sent", "p50", "p90", "p99", "max", "errors", "jobs done meanwhile", "processor time a request", "load average"}}
	measure := func(mode, workers string, start func(b *bed) installation) {
		b.scope(func(b *bed) {
			b.Logf("latency: %s, workers %s", mode, workers)
			at := start(b)
			row := measureLatency(b, o, at, photo)
			rows = append(rows, append([]string{mode, workers}, row...))
		})
	}
	if o.in(modeEmbedded) {
		measure(modeEmbedded, "busy", func(b *bed) installation { return startEmbedded(b, nil) })
		measure(modeEmbedded, "idle", startHeld)
	}
	if o.in(modeFleet) {
		measure(modeFleet, "busy", func(b *bed) installation { return startFleet(b, o, false) })
		measure(modeFleet, "none", func(b *bed) installation { return startFleet(b, o, true) })
	}
	fmt.Fprintf(out, "\n### POST /jobs\n\n%d requests/s, open loop, %v a line after %v of warm-up; multipart, %s (%d bytes), `upscale` x2. "+
		"Latency counts from the moment a request was due to the last byte of its answer. "+
		"Processor time is that of all server processes: without busy workers it is what a request costs.\n\n%s",
		o.rate, o.duration, o.warmUp, filepath.Base(o.photo), len(photo), table(rows))
}

// measureLatency loads an installation and gives a row's cells from "sent" on.
func measureLatency(b *bed, o *options, at installation, photo []byte) []string {
	d, err := db.Open(b.ctx, db.Config{URL: at.database, MaxConns: 2})
	b.must(err)
	b.closes(d)
	_, key := newAccount(b, d)
	body, kind, err := form(photo, filepath.Base(o.photo))
	b.must(err)
	client := &http.Client{
		Timeout:   time.Minute,
		Transport: &http.Transport{MaxIdleConns: maxInFlight, MaxIdleConnsPerHost: maxInFlight},
	}
	b.Cleanup(client.CloseIdleConnections)
	l := &load{client: client, rate: o.rate, want: http.StatusAccepted, inFlight: maxInFlight, request: func(ctx context.Context) (*http.Request, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, at.base+"/api/v1/jobs", bytes.NewReader(body))
		if err != nil {
			return nil, fmt.Errorf("make request: %w", err)
		}
		r.Header.Set("Authorization", "Bearer "+key)
		r.Header.Set("Content-Type", kind)
		return r, nil
	}}
	l.run(b.ctx, o.warmUp)
	before, used := finished(b, d), treeCPU(false)
	got := l.run(b.ctx, o.duration)
	b.must(b.ctx.Err())
	used = treeCPU(false) - used
	done := finished(b, d) - before
	for fault, n := range got.faults {
		b.Logf("%d requests failed: %s", n, fault)
	}
	if len(got.sorted) == 0 {
		b.Fatalf("no request succeeded")
	}
	return []string{
		strconv.Itoa(len(got.sorted) + got.errors()), millis(percentile(got.sorted, 0.5)), millis(percentile(got.sorted, 0.9)),
		millis(percentile(got.sorted, 0.99)), millis(got.sorted[len(got.sorted)-1]), strconv.Itoa(got.errors()), strconv.Itoa(done),
		millis(used / time.Duration(len(got.sorted)+got.errors())), loadAverage(),
	}
}

// startHeld runs `enlarger serve` with one image slot and gives it a job whose source is a URL that does not answer: until that gives up, the worker
// is there and has nothing to compute.
func startHeld(b *bed) installation {
	listener := listen(b)
	asked, ended := make(chan struct{}, 1), make(chan struct{})
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-ended:
		case <-r.Context().Done():
		}
	})}
	go server.Serve(listener) //nolint:errcheck // it ends with Close
	b.closes(server)
	b.Cleanup(func() { close(ended) })
	_, port, err := net.SplitHostPort(listener.Addr().String())
	b.must(err)
	at := startEmbedded(b, map[string]string{
		"ENLARGER_IMAGE_SLOTS": "1", "ENLARGER_FETCH_ALLOW": loopback.String(), "ENLARGER_FETCH_PORTS": port,
	})
	b.scope(func(b *bed) {
		d, err := db.Open(b.ctx, db.Config{URL: at.database, MaxConns: 2})
		b.must(err)
		b.closes(d)
		_, key := newAccount(b, d)
		postURL(b, at, key, "http://"+listener.Addr().String()+"/photo.jpg")
	})
	testbed.Until(b, 10*time.Second, "the worker to fetch", func() bool {
		select {
		case <-asked:
			return true
		default:
			return false
		}
	})
	return at
}

// holdSlot is how long the fetch of startHeld surely waits for headers: a little less than the 30 s that enlarger gives a server.
const holdSlot = 28 * time.Second

func postURL(b *bed, at installation, key, source string) {
	body := fmt.Sprintf(`{"tool":"upscale","image_url":%q}`, source)
	r, err := http.NewRequestWithContext(b.ctx, http.MethodPost, at.base+"/api/v1/jobs", bytes.NewReader([]byte(body)))
	b.must(err)
	r.Header.Set("Authorization", "Bearer "+key)
	r.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(r)
	b.must(err)
	defer response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096)) // for the message only
		b.Fatalf("POST /jobs with a URL answered %s: %s", response.Status, text)
	}
}

// newAccount makes an account with credits and limits that the load does not reach, as `enlarger account create` and `limit` would.
func newAccount(b *bed, d *db.DB) (id, key string) {
	const unlimited = 1_000_000
	accounts := account.NewStore(d)
	a, err := accounts.Create(b.ctx, "bench")
	b.must(err)
	b.must(accounts.SetLimits(b.ctx, a.ID, unlimited, unlimited, unlimited))
	b.must(billing.NewLedger(d).Grant(b.ctx, a.ID, unlimited*billing.Credit, "", "for the benchmark"))
	_, key, err = accounts.CreateKey(b.ctx, a.ID, "bench")
	b.must(err)
	return a.ID, key
}

// finished counts the jobs that have succeeded, and ends the run when one failed.
func finished(b *bed, d *db.DB) int {
	var succeeded, failed int
	b.must(d.QueryRowContext(b.ctx, `SELECT COALESCE(SUM(CASE WHEN status = 'succeeded' THEN 1 ELSE 0 END), 0),
		COALESCE(SUM(CASE WHEN status = 'failed' THEN 1 ELSE 0 END), 0) FROM jobs`).Scan(&succeeded, &failed))
	if failed > 0 {
		b.Fatalf("%d jobs failed", failed)
	}
	return succeeded
}

// form is the body of the documented curl: the file first, then the fields.
func form(photo []byte, name string) (body []byte, contentType string, err error) {
	var buffer bytes.Buffer
	w := multipart.NewWriter(&buffer)
	header := textproto.MIMEHeader{}
	header.Set("Content-Disposition", fmt.Sprintf(`form-data; name="image"; filename=%q`, name))
	header.Set("Content-Type", http.DetectContentType(photo))
	part, err := w.CreatePart(header)
	if err == nil {
		_, err = part.Write(photo)
	}
	for _, field := range [][2]string{{"tool", "upscale"}, {"config", `{"scale":2}`}, {"output_format", "jpg"}} {
		if err == nil {
			err = w.WriteField(field[0], field[1])
		}
	}
	if err == nil {
		err = w.Close()
	}
	return buffer.Bytes(), w.FormDataContentType(), err
}
