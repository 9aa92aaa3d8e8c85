package storage

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Some promises hold only if they hold in another process: the one that is killed, the one whose disk is full. The
// test binary starts itself as that process.
const (
	childEnv  = "ENLARGER_STORAGE_TEST_CHILD"
	childArg  = "ENLARGER_STORAGE_TEST_ARG"
	childFull = "full disk"
	childServ = "serve"
)

// startChild runs the test binary in the given role and returns its first line of output.
func startChild(t *testing.T, role, argument string) (child *exec.Cmd, line string) {
	t.Helper()
	child = exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+role, childArg+"="+argument)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = child.Wait()
	})
	line, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	return child, strings.TrimSpace(line)
}

func runChild() int {
	var err error
	switch dir := os.Getenv(childArg); os.Getenv(childEnv) {
	case childFull:
		err = childFullDisk(dir)
	case childServ:
		err = childServe(dir)
	default:
		err = errors.New("unknown role")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		return 1
	}
	return 0
}

// childServe serves a store until it is killed.
func childServe(dir string) error {
	e, err := OpenEmbedded(dir, EmbeddedConfig{Bucket: testBucket})
	if err != nil {
		return err
	}
	endpoint, err := e.Start("127.0.0.1:0")
	if err != nil {
		return err
	}
	access, secret := e.Credentials()
	fmt.Println(endpoint, access, secret)
	time.Sleep(5 * time.Minute) // the parent kills it long before
	return nil
}

// childFullDisk lets the kernel refuse to write beyond 4 MiB per file, as a full disk does, and prints the answers to
// one PUT that does not fit, one that does, and how many files are left in the store.
func childFullDisk(dir string) error {
	signal.Ignore(syscall.SIGXFSZ)
	limit := syscall.Rlimit{Cur: 4 << 20, Max: 4 << 20}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	e, err := OpenEmbedded(dir, EmbeddedConfig{Bucket: testBucket})
	if err != nil {
		return err
	}
	endpoint, err := e.Start("127.0.0.1:0")
	if err != nil {
		return err
	}
	access, secret := e.Credentials()
	s, err := Open(Config{Endpoint: endpoint, Bucket: testBucket, PathStyle: true, AccessKey: access, SecretKey: secret})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, tooMuch := s.Put(ctx, "too/much", io.LimitReader(rand.Reader, 5<<20), 5<<20, "")
	_, tight := s.Put(ctx, "no/room/for/the/trailer", io.LimitReader(rand.Reader, 4<<20), 4<<20, "")
	_, fits := s.Put(ctx, "fits", strings.NewReader("x"), 1, "")
	objects, err := s.List(ctx, "", "", 10)
	if err != nil {
		return err
	}
	drafts, err := os.ReadDir(dir + "/" + tempDir)
	if err != nil {
		return err
	}
	fmt.Println(strings.Contains(fmt.Sprint(tooMuch), "StatusCode: 507"), strings.Contains(fmt.Sprint(tight), "StatusCode: 507"),
		Transient(tooMuch), fits, len(objects), len(drafts))
	return nil
}

func TestEmbeddedFullDisk(t *testing.T) {
	t.Parallel()
	if _, line := startChild(t, childFull, t.TempDir()); line != "true true true <nil> 1 0" {
		t.Error(line)
	}
}

// TestEmbeddedKilled kills the process in the middle of a PUT and looks at what a new one finds.
func TestEmbeddedKilled(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	dir := t.TempDir()
	child, line := startChild(t, childServ, dir)
	words := strings.Fields(line)
	s, err := Open(Config{
		Endpoint: words[0], Bucket: testBucket, PathStyle: true, AccessKey: words[1], SecretKey: words[2], TempDir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Put(ctx, "kept", strings.NewReader("kept"), 4, "text/x-kept"); err != nil {
		t.Fatal(err)
	}
	kept, err := s.PresignGet(ctx, "kept", time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	url, err := s.PresignPut(ctx, "lost", time.Hour, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	body, feed := io.Pipe()
	done := make(chan error, 1)
	go func() {
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		request, err := http.NewRequestWithContext(ctx, http.MethodPut, url, body)
		if err == nil {
			request.ContentLength = 64 << 20
			var response *http.Response
			if response, err = transport.RoundTrip(request); err == nil {
				_ = response.Body.Close()
				err = errors.New("answered " + strconv.Itoa(response.StatusCode))
			}
		}
		_ = body.CloseWithError(err)
		done <- err
	}()
	if _, err := feed.Write(bytes.Repeat([]byte("x"), 8<<20)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the upload reaches the disk", func() bool {
		drafts, err := os.ReadDir(dir + "/" + tempDir)
		if err != nil || len(drafts) == 0 {
			return false
		}
		info, err := drafts[0].Info()
		return err == nil && info.Size() > 1<<20
	})
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // killed: of course it failed
	_ = feed.CloseWithError(io.ErrClosedPipe)
	if err := <-done; err == nil || strings.Contains(err.Error(), "answered") {
		t.Errorf("the upload ended with %v", err)
	}
	e, err := OpenEmbedded(dir, EmbeddedConfig{Bucket: testBucket})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	if drafts, err := os.ReadDir(dir + "/" + tempDir); err != nil || len(drafts) > 0 {
		t.Errorf("left behind: %v, %v", drafts, err)
	}
	if _, err := e.Start(strings.TrimPrefix(words[0], "http://")); err != nil {
		t.Skipf("the port was taken meanwhile: %v", err)
	}
	objects, err := s.List(ctx, "", "", 10)
	if err != nil || len(objects) != 1 || objects[0].Key != "kept" {
		t.Errorf("%+v, %v", objects, err)
	}
	// The key pair is the same, so a URL from before the crash still works.
	if answer, text := send(t, http.MethodGet, kept, nil, nil); string(text) != "kept" || answer.Header.Get("Content-Type") != "text/x-kept" {
		t.Errorf("%d %q", answer.StatusCode, text)
	}
}
