// Package testbed starts the real services that tests run against: PostgreSQL, Redis, a TCP proxy that breaks connections on
// request, and enlarger itself. Each one lives on a private loopback port and in a private folder, waits until it answers, stops
// when its test ends, and dies with the test binary however that ends, SIGKILL included. It hides ports, folders, users and
// clean-up. A program that is not installed fails the test; nothing is ever skipped here. Only tests and the benchmark command
// may import it.
package testbed

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// T is what testbed needs of a test: *testing.T, *testing.B and *testing.F are all one, and a benchmark command can be.
// Fatalf must not return.
type T interface {
	Helper()
	Cleanup(func())
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
}

const (
	// startTimeout bounds how long a service may take until it answers: a cold start on two busy cores takes a few seconds.
	startTimeout = 60 * time.Second
	// stopTimeout bounds how long a service may take to stop before it is killed.
	stopTimeout = 20 * time.Second
	// pollInterval is how often a condition is looked at.
	pollInterval = 10 * time.Millisecond
	// portAttempts is how many free ports are tried: another process may take one between our look and the service's bind.
	portAttempts = 5
	// logTail is how many bytes of a process's log a failed test shows.
	logTail = 16 << 10
)

// Until polls a condition until it holds, and fails the test when it does not within the time given.
func Until(t T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	if !poll(within, holds) {
		t.Fatalf("waited %v for %s", within, what)
	}
}

func poll(within time.Duration, holds func() bool) bool {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if holds() {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
}

// WaitHTTP polls a URL until it answers 200, for at most a minute.
func WaitHTTP(t T, url string) {
	t.Helper()
	last := "no attempt"
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	if !poll(startTimeout, func() bool {
		resp, err := client.Get(url)
		if err != nil {
			last = err.Error()
			return false
		}
		last = resp.Status
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}) {
		t.Fatalf("waited %v for %s to answer 200; last: %s", startTimeout, url, last)
	}
}

// FreeAddr is a loopback address that nothing listens on right now. Another process may still take it before the caller does,
// so a caller that can should listen on port 0 instead.
func FreeAddr(t T) string {
	t.Helper()
	addr, err := freeAddr()
	if err != nil {
		t.Fatalf("find a free port: %v", err)
	}
	return addr
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	addr := l.Addr().String()
	return addr, l.Close()
}

// lookFor finds a program on PATH or in one of the folders that match the patterns, the last match first so that the newest
// version wins.
func lookFor(program string, folders ...string) (string, error) {
	if path, err := exec.LookPath(program); err == nil {
		return path, nil
	}
	for _, folder := range folders {
		found, err := filepath.Glob(filepath.Join(folder, program))
		if err == nil && len(found) > 0 {
			return found[len(found)-1], nil
		}
	}
	return "", fmt.Errorf("%s is not installed; run `make deps`", program)
}

// child is one running process. It needs no goroutine, so that a leak check in the test that started it stays meaningful.
type child struct {
	cmd *exec.Cmd
	log string
}

// startChild runs cmd with its output in the file log, registered with the reaper. stop is the signal that ends it for good.
func startChild(cmd *exec.Cmd, log string, stop syscall.Signal) (*child, error) {
	reap, err := theReaper()
	if err != nil {
		return nil, err
	}
	file, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	cmd.Stdout, cmd.Stderr = file, file
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// Its own group: a Ctrl-C meant for `go test` reaches the test binary, and the reaper then ends the services.
	cmd.SysProcAttr.Setpgid = true
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	reap.watch(cmd.Process.Pid, stop)
	return &child{cmd: cmd, log: log}, nil
}

// exited says whether the process has ended, without collecting it.
func (c *child) exited() bool {
	if c.cmd.ProcessState != nil {
		return true
	}
	var info unix.Siginfo
	err := unix.Waitid(unix.P_PID, c.cmd.Process.Pid, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
	return err != nil || info.Signo != 0
}

// signal sends one signal; a process that has ended already is no error.
func (c *child) signal(sig syscall.Signal) {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Signal(sig)
	}
}

// wait collects the process if it ends within the time given, and says whether it did.
func (c *child) wait(within time.Duration) bool {
	if c.cmd.ProcessState != nil {
		return true
	}
	if !poll(within, c.exited) {
		return false
	}
	if reap, err := theReaper(); err == nil {
		reap.forget(c.cmd.Process.Pid)
	}
	_ = c.cmd.Wait()
	return true
}

// stop sends sig, waits, and kills what is still there.
func (c *child) stop(sig syscall.Signal) {
	c.signal(syscall.SIGCONT)
	c.signal(sig)
	if !c.wait(stopTimeout) {
		c.signal(syscall.SIGKILL)
		c.wait(stopTimeout)
	}
}

// tail is the end of the process's log.
func (c *child) tail() string {
	file, err := os.Open(c.log)
	if err != nil {
		return err.Error()
	}
	defer func() { _ = file.Close() }()
	cut := ""
	if info, err := file.Stat(); err == nil && info.Size() > logTail {
		cut = "... "
		_, _ = file.Seek(-logTail, io.SeekEnd)
	}
	text, err := io.ReadAll(io.LimitReader(file, logTail))
	if err != nil {
		return err.Error()
	}
	return cut + string(text)
}

// ready polls answers until the service does, it exits, or the time is up.
func (c *child) ready(answers func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	var last error
	poll(startTimeout, func() bool {
		last = answers(ctx)
		return last == nil || c.exited()
	})
	if last != nil {
		return fmt.Errorf("%s does not answer: %w\n%s", filepath.Base(c.cmd.Path), last, c.tail())
	}
	return nil
}
