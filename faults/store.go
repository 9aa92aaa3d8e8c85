package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"enlarger/storage"
	"enlarger/testbed"
)

// objects is the S3-protocol store of a fleet, reached past every proxy.
type objects struct {
	endpoint, access, secret string
	// dir is where the store keeps its files, as this process sees it.
	dir   string
	store *storage.Store
}

const bucket = "faults"

// startStore serves the embedded store from this process.
func startStore(t T) *objects {
	t.Helper()
	o := &objects{dir: t.TempDir()}
	embedded, err := storage.OpenEmbedded(o.dir, storage.EmbeddedConfig{Bucket: bucket})
	if err == nil {
		t.Cleanup(func() { embedded.Close() })
		o.endpoint, err = embedded.Start("127.0.0.1:0")
	}
	if err != nil {
		t.Fatalf("object store: %v", err)
	}
	o.access, o.secret = embedded.Credentials()
	o.open(t)
	return o
}

// open connects to the store and makes the bucket.
func (o *objects) open(t T) {
	t.Helper()
	var err error
	o.store, err = storage.Open(storage.Config{Endpoint: o.endpoint, Bucket: bucket, AccessKey: o.access, SecretKey: o.secret, PathStyle: true})
	if err == nil {
		t.Cleanup(o.store.Close)
		err = o.store.EnsureBucket(t.Context())
	}
	if err != nil {
		t.Fatalf("object store: %v", err)
	}
}

// storeCommand makes a test binary a store: `faults.test -store DIR`.
const storeCommand = "-faults-store"

// ServeStore serves a store until a signal ends it when the arguments say so, and returns done = false otherwise. A test binary calls it first:
// the store with a small disk is a process of its own, because only that can have a disk of its own.
func ServeStore(args []string, out io.Writer) (done bool, err error) {
	if len(args) != 3 || args[1] != storeCommand {
		return false, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	embedded, err := storage.OpenEmbedded(args[2], storage.EmbeddedConfig{Bucket: bucket})
	if err != nil {
		return true, err
	}
	endpoint, err := embedded.Start("127.0.0.1:0")
	if err == nil {
		access, secret := embedded.Credentials()
		err = json.NewEncoder(out).Encode([]string{endpoint, access, secret})
	}
	if err == nil {
		<-ctx.Done()
	}
	return true, errors.Join(err, embedded.Close())
}

// onSmallDisk gives a command line that runs a program with a folder on a disk of so many KiB, in namespaces of its own: nobody else sees the disk,
// and it goes with the process.
func onSmallDisk(kib int, folder, program string, args ...string) []string {
	script := fmt.Sprintf(`mount -t tmpfs -o size=%dk,mode=700 small "$1" && shift && exec "$@"`, kib)
	return append([]string{"-Urm", "sh", "-c", script, "sh", folder, program}, args...)
}

// SmallDisks says why this system gives no process a disk of its own; "" when it does.
func SmallDisks(t T) string {
	t.Helper()
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return err.Error()
	}
	ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
	defer stop()
	out, err := exec.CommandContext(ctx, unshare, onSmallDisk(64, t.TempDir(), "true")...).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("no mounts in a user namespace: %v %s", err, strings.TrimSpace(string(out)))
	}
	return ""
}

// startSmallStore serves a store from a process of its own, whose disk has so many KiB.
func startSmallStore(t T, kib int) *objects {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatalf("object store: %v", err)
	}
	dir := t.TempDir()
	p := testbed.StartProgram(t, "store", "unshare", nil, onSmallDisk(kib, dir, self, storeCommand, dir)...)
	var ready []string
	testbed.Until(t, time.Minute, "the store", func() bool { return json.Unmarshal([]byte(p.Log()), &ready) == nil && len(ready) == 3 })
	o := &objects{endpoint: ready[0], access: ready[1], secret: ready[2], dir: filepath.Join("/proc", strconv.Itoa(p.PID()), "root", dir)}
	o.open(t)
	return o
}

// OnSmallDisk makes the node's process, from its next start on, see its scratch and temporary files on a disk of so many KiB.
func (n *Node) OnSmallDisk(kib int) {
	n.fleet.Helper()
	dir := n.fleet.TempDir()
	n.env["ENLARGER_DATA"], n.env["TMPDIR"] = dir, dir
	n.program, n.args = "unshare", onSmallDisk(kib, dir, testbed.Build(n.fleet.T), n.command)
}
