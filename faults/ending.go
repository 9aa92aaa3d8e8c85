package faults

import (
	"bytes"
	"context"
	"fmt"
	"image"
	_ "image/jpeg" // results are JPEG
	"io/fs"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
	"enlarger/worker"
)

// stopTime bounds how long a process may take to end when it is asked to and nothing is under way.
const stopTime = time.Minute

// End is what every test ends with. It lets the system drain and demands that every accepted job is in exactly one terminal state, that the
// books are clean, that every result downloads whole, and that no child process, temporary file or unreferenced object is left.
func (f *Fleet) End() {
	f.Helper()
	for _, id := range f.Accepted() {
		j := f.Ended(id)
		if j.Status == job.Succeeded {
			if err := f.whole(j); err != nil {
				f.Errorf("result of %s: %v", id, err)
			}
		}
	}
	f.StopAll()
	f.Drained()
	if out := f.CLI("audit"); !strings.Contains(out, "clean") {
		f.Errorf("audit: %s", out)
	}
	f.noStrays()
	f.noFiles()
	f.noObjects()
}

// Accepted lists the ids of the jobs that clients were promised.
func (f *Fleet) Accepted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.accepted))
}

// Forget takes a job out of what End looks after: for a test that deletes it.
func (f *Fleet) Forget(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.accepted, id)
}

// StopAll asks every process to end; those that still run must end well. One that is asked before it has started may say that it could not.
func (f *Fleet) StopAll() {
	f.Helper()
	var running []*Node
	for _, n := range f.nodes {
		if n.Running() {
			n.Signal(syscall.SIGCONT)
			running = append(running, n.Ready())
		}
	}
	for _, n := range running {
		n.Term()
	}
	for _, n := range running {
		if code := n.Wait(f.T, stopTime); code != 0 {
			f.Errorf("%s ended with exit status %d", n.Name, code)
		}
	}
}

// Drained demands that no row is in flight: a job that was written and whose client never heard of it has its end too.
func (f *Fleet) Drained() {
	f.Helper()
	counts, err := f.Jobs.Active(f.Context())
	f.check(err)
	if counts != (job.Counts{}) {
		f.Errorf("after all accepted jobs have ended there are %d queued and %d processing", counts.Queued, counts.Processing)
	}
}

// whole downloads a result and holds it against the row.
func (f *Fleet) whole(j job.Job) error {
	data, err := f.Download(j.ID)
	if err != nil {
		return err
	}
	if int64(len(data)) != j.Result.Size {
		return fmt.Errorf("%d bytes of %d", len(data), j.Result.Size)
	}
	if j.Format == "jpg" {
		picture, _, err := image.Decode(bytes.NewReader(data))
		if err != nil {
			return err
		}
		if size := picture.Bounds().Size(); size != image.Pt(j.Result.Width, j.Result.Height) {
			return fmt.Errorf("picture of %v, the row says %dx%d", size, j.Result.Width, j.Result.Height)
		}
	}
	return nil
}

// noStrays demands that every process of the fleet, and every child of theirs, is gone. The kernel may still be ending one.
func (f *Fleet) noStrays() {
	f.Helper()
	var left []string
	deadline := time.Now().Add(5 * time.Second)
	for left = strays(f.data); len(left) > 0 && time.Now().Before(deadline); left = strays(f.data) {
		<-time.After(20 * time.Millisecond)
	}
	if len(left) > 0 {
		f.Errorf("processes are left: %v", left)
	}
}

// noFiles demands that no scratch or temporary file is left, once a process has started after the last one that was killed.
func (f *Fleet) noFiles() {
	f.Helper()
	next, err := worker.OpenScratch(filepath.Join(f.data, "scratch"))
	f.check(err)
	next.Close()
	for _, folder := range []string{filepath.Join(f.data, "scratch"), f.temp()} {
		if files := filesUnder(folder); len(files) > 0 {
			f.Errorf("files are left: %v", files)
		}
	}
}

func (f *Fleet) temp() string { return filepath.Join(f.data, "temp") }

func filesUnder(folder string) []string {
	var files []string
	_ = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			files = append(files, path)
		}
		return nil
	})
	return files
}

// noObjects lets hours pass for the sweeper, in no time, and demands that the bucket then holds the results of succeeded jobs and nothing else.
func (f *Fleet) noObjects() {
	f.Helper()
	store := f.store
	if f.Embedded {
		store = f.openObjects()
	}
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"}) // nothing is left to be woken
	defer client.Close()
	log := zap.NewNop()
	sweeper := &worker.Sweeper{
		Jobs: f.Jobs, Storage: store.store, Dispatcher: worker.NewDispatcher(client), Log: log,
		Every: time.Second, Budget: 1, KeepSources: time.Nanosecond, OrphansEvery: time.Nanosecond,
	}
	want, err := f.results()
	f.check(err)
	var have []string
	for before := -1; len(have) != before; { // what one finds is garbage for the next
		before = len(have)
		_, err := f.DB.ExecContext(f.Context(), `UPDATE garbage SET not_before = 0`)
		f.check(err)
		sweeper.Sweep(f.Context())
		if have, err = store.keys(f.Context()); err == nil && slices.Equal(have, want) {
			break
		}
	}
	if err != nil || !slices.Equal(have, want) {
		f.Errorf("the bucket holds %d objects, %v, want the %d results; too many: %v, missing: %v", len(have), err, len(want), without(have, want), without(want, have))
	}
	// The server of the store may still be taking a draft away whose writer was killed.
	temp := filepath.Join(store.dir, "tmp")
	deadline := time.Now().Add(5 * time.Second)
	for len(filesUnder(temp)) > 0 && time.Now().Before(deadline) {
		<-time.After(20 * time.Millisecond)
	}
	if files := filesUnder(temp); len(files) > 0 {
		f.Errorf("drafts are left in the store: %v", files)
	}
}

// results lists the objects that succeeded jobs name.
func (f *Fleet) results() ([]string, error) {
	rows, err := f.DB.QueryContext(f.Context(), `SELECT result_object FROM jobs WHERE status = 'succeeded' AND deleted_at = 0 ORDER BY result_object`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []string{}
	for rows.Next() {
		var key string
		if err := rows.Scan(&key); err != nil {
			return nil, err
		}
		list = append(list, key)
	}
	slices.Sort(list)
	return list, rows.Err()
}

// keys lists the bucket.
func (o *objects) keys(ctx context.Context) ([]string, error) {
	list := []string{}
	for after := ""; ; {
		page, err := o.store.List(ctx, "", after, 1000)
		if err != nil || len(page) == 0 {
			slices.Sort(list)
			return list, err
		}
		for _, object := range page {
			list = append(list, object.Key)
		}
		after = page[len(page)-1].Key
	}
}

func without(list, others []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(others, s) })
}

// openObjects opens the store that an all-in-one process has left.
func (f *Fleet) openObjects() *objects {
	f.Helper()
	o := &objects{dir: filepath.Join(f.data, "objects")}
	embedded, err := storage.OpenEmbedded(o.dir, storage.EmbeddedConfig{Bucket: "enlarger-media"})
	f.check(err)
	f.Cleanup(func() { embedded.Close() })
	o.endpoint, err = embedded.Start("127.0.0.1:0")
	f.check(err)
	access, secret := embedded.Credentials()
	o.store, err = storage.Open(storage.Config{Endpoint: o.endpoint, Bucket: "enlarger-media", AccessKey: access, SecretKey: secret, PathStyle: true})
	f.check(err)
	f.Cleanup(o.store.Close)
	return o
}

// hostOf is the host:port of a URL.
func hostOf(t T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return net.JoinHostPort(u.Hostname(), u.Port())
}

// Until is testbed.Until with the fleet's test and a minute.
func (f *Fleet) Until(what string, holds func() bool) {
	f.Helper()
	testbed.Until(f.T, time.Minute, what, holds)
}
