package testbed

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// RedisServer is a Redis server of one test's own. It keeps nothing on disk but what Snapshot says: a restart empties it.
type RedisServer struct {
	program, dir, addr string

	mu    sync.Mutex
	child *child
}

// Redis starts an empty Redis server.
func Redis(t T) *RedisServer {
	t.Helper()
	s, err := newRedis()
	if err != nil {
		t.Fatalf("Redis for tests: %v", err)
	}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(s.dir)
	})
	return s
}

// Addr is host:port, the same for the server's whole life.
func (s *RedisServer) Addr() string { return s.addr }

// URL is the server's address as redis://host:port/0.
func (s *RedisServer) URL() string { return "redis://" + s.addr + "/0" }

// Freeze stops the server where it is: connections stay open and nothing answers.
func (s *RedisServer) Freeze() { s.signal(syscall.SIGSTOP) }

// Resume undoes Freeze.
func (s *RedisServer) Resume() { s.signal(syscall.SIGCONT) }

func (s *RedisServer) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.child.signal(sig)
}

// Kill ends the server at once; its address then refuses connections.
func (s *RedisServer) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child != nil {
		s.child.stop(syscall.SIGKILL)
	}
}

// snapshotName is the file that Redis reads when it starts.
const snapshotName = "dump.rdb"

// Snapshot gives everything that the server holds now, for Restore.
func (s *RedisServer) Snapshot(t T) []byte {
	t.Helper()
	path := filepath.Join(s.dir, snapshotName)
	defer func() { _ = os.Remove(path) }()
	if err := s.say(context.Background(), "SAVE", "+OK"); err != nil {
		t.Fatalf("snapshot of Redis: %v", err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("snapshot of Redis: %v", err)
	}
	return data
}

// Restore kills the server and starts it again with what a Snapshot held.
func (s *RedisServer) Restore(t T, snapshot []byte) {
	t.Helper()
	s.Kill()
	path := filepath.Join(s.dir, snapshotName)
	if err := os.WriteFile(path, snapshot, 0o600); err != nil {
		t.Fatalf("restore Redis: %v", err)
	}
	defer func() { _ = os.Remove(path) }()
	if err := s.start(); err != nil {
		t.Fatalf("restore Redis: %v", err)
	}
}

// Restart kills the server if it runs and starts it again, empty, on the same address.
func (s *RedisServer) Restart(t T) {
	t.Helper()
	s.Kill()
	if err := s.start(); err != nil {
		t.Fatalf("start Redis again: %v", err)
	}
}

// FlushAll removes every key.
func (s *RedisServer) FlushAll(t T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := s.say(ctx, "FLUSHALL", "+OK"); err != nil {
		t.Fatalf("flush Redis: %v", err)
	}
}

func newRedis() (*RedisServer, error) {
	program, err := lookFor("redis-server", "/usr/bin", "/usr/local/bin")
	if err != nil {
		return nil, err
	}
	reap, err := theReaper()
	if err != nil {
		return nil, err
	}
	s := &RedisServer{program: program}
	if s.dir, err = reap.folder("redis"); err != nil {
		return nil, err
	}
	for range portAttempts {
		if s.addr, err = freeAddr(); err != nil {
			return nil, err
		}
		if err = s.start(); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func (s *RedisServer) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	cmd := exec.Command(s.program, "--bind", "127.0.0.1", "--port", port, "--dir", s.dir, "--save", "", "--appendonly", "no",
		"--daemonize", "no")
	cmd.Dir = s.dir
	c, err := startChild(cmd, filepath.Join(s.dir, "log"), syscall.SIGKILL)
	if err != nil {
		return err
	}
	s.child = c
	err = c.ready(func(ctx context.Context) error { return s.say(ctx, "PING", "+PONG") })
	if err == nil && c.exited() {
		err = fmt.Errorf("redis-server ended:\n%s", c.tail())
	}
	if err != nil {
		c.stop(syscall.SIGKILL)
	}
	return err
}

// say sends one inline command on a connection of its own and checks the one-line answer.
func (s *RedisServer) say(ctx context.Context, command, want string) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", s.addr)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(command + "\r\n")); err != nil {
		return err
	}
	answer, err := bufio.NewReaderSize(conn, 512).ReadSlice('\n')
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(answer)); got != want {
		return fmt.Errorf("%s answered %q", command, got)
	}
	return nil
}
