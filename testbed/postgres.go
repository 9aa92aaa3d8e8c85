package testbed

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// PostgresServer is a PostgreSQL server of one test's own, to be stopped, killed or frozen at will.
type PostgresServer struct {
	bin, dir, addr string
	// settings are "name=value", stronger than our own.
	settings  []string
	as        *syscall.Credential
	databases atomic.Int64

	mu    sync.Mutex
	child *child
}

// sharedPostgres is one server for all tests of this process that only need a database; the reaper ends it.
var sharedPostgres = sync.OnceValues(func() (*PostgresServer, error) { return newPostgres(nil) })

// PostgreSQL gives the DSN of a fresh, empty database on a server that this process's tests share. The database is dropped when
// the test ends.
func PostgreSQL(t T) string {
	t.Helper()
	server, err := sharedPostgres()
	if err != nil {
		t.Fatalf("PostgreSQL for tests: %v", err)
	}
	dsn := server.Database(t)
	t.Cleanup(func() {
		name := dsn[strings.LastIndex(dsn, "/")+1:]
		name, _, _ = strings.Cut(name, "?")
		if err := server.exec("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Logf("drop the test's database: %v", err)
		}
	})
	return dsn
}

// Postgres starts a server that only this test uses. settings are "name=value" and stronger than the fast ones that tests get by
// default, such as fsync=off.
func Postgres(t T, settings ...string) *PostgresServer {
	t.Helper()
	server, err := newPostgres(settings)
	if err != nil {
		t.Fatalf("PostgreSQL for tests: %v", err)
	}
	t.Cleanup(func() {
		server.Resume()
		server.Kill()
		_ = os.RemoveAll(server.dir)
	})
	return server
}

// Addr is host:port, the same for the server's whole life; a Proxy can stand before it.
func (s *PostgresServer) Addr() string { return s.addr }

// Database gives the DSN of a fresh, empty database.
func (s *PostgresServer) Database(t T) string {
	t.Helper()
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	if err := s.exec("CREATE DATABASE " + name); err != nil {
		t.Fatalf("create the test's database: %v", err)
	}
	return s.dsn(name)
}

// Stop shuts the server down in order: clients are disconnected, nothing is lost.
func (s *PostgresServer) Stop() { s.end(syscall.SIGINT) }

// Kill ends the server at once, as a crash would: what was committed is recovered at the next Start.
func (s *PostgresServer) Kill() { s.end(syscall.SIGQUIT) }

func (s *PostgresServer) end(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child != nil {
		s.child.stop(sig)
	}
}

// Start starts a stopped or killed server again on its data and address, and waits until it answers.
func (s *PostgresServer) Start(t T) {
	t.Helper()
	if err := s.start(); err != nil {
		t.Fatalf("start PostgreSQL again: %v", err)
	}
}

// Freeze stops the server's processes where they are: connections stay open and nothing answers.
func (s *PostgresServer) Freeze() { s.signalAll(syscall.SIGSTOP) }

// Resume undoes Freeze.
func (s *PostgresServer) Resume() { s.signalAll(syscall.SIGCONT) }

// signalAll signals the server and its backends, each of which is in a session of its own. The server goes first: it can then
// start no backend unseen.
func (s *PostgresServer) signalAll(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child == nil || s.child.exited() {
		return
	}
	parent := s.child.cmd.Process.Pid
	s.child.signal(sig)
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// "pid (name) state ppid ...": the name may hold anything, so what counts starts after the last bracket.
		_, rest, _ := strings.Cut(string(text[bytes.LastIndexByte(text, ')')+1:]), " ")
		fields := strings.Fields(rest)
		if len(fields) < 2 || fields[1] != strconv.Itoa(parent) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			_ = syscall.Kill(pid, sig)
		}
	}
}

func (s *PostgresServer) dsn(database string) string {
	return fmt.Sprintf("postgres://enlarger@%s/%s?sslmode=disable", s.addr, database)
}

func (s *PostgresServer) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.dsn("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

func newPostgres(settings []string) (*PostgresServer, error) {
	const folders = "/usr/lib/postgresql/*/bin"
	initdb, err := lookFor("initdb", folders)
	if err != nil {
		return nil, err
	}
	reap, err := theReaper()
	if err != nil {
		return nil, err
	}
	dir, err := reap.folder("postgres")
	if err != nil {
		return nil, err
	}
	s := &PostgresServer{bin: filepath.Dir(initdb), dir: dir, settings: settings}
	if os.Geteuid() == 0 {
		// PostgreSQL refuses to run as root.
		if s.as, err = unprivileged(); err != nil {
			return nil, err
		}
		if err := os.Chown(dir, int(s.as.Uid), int(s.as.Gid)); err != nil {
			return nil, err
		}
	}
	cmd := s.command("initdb", "-D", filepath.Join(dir, "data"), "-U", "enlarger", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8",
		"--no-sync", "--no-instructions")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
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

func (s *PostgresServer) start() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, port, err := net.SplitHostPort(s.addr)
	if err != nil {
		return err
	}
	args := []string{"-D", filepath.Join(s.dir, "data")}
	for _, setting := range append([]string{
		"listen_addresses=127.0.0.1", "port=" + port, "unix_socket_directories=", "max_connections=200", "shared_buffers=32MB",
		// The machine outlives every test, so nothing has to reach the disk. Commits still reach the kernel before they are
		// answered (synchronous_commit stays on), so that Kill loses none.
		"fsync=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "jit=off",
		"log_min_messages=warning",
	}, s.settings...) {
		args = append(args, "-c", setting)
	}
	c, err := startChild(s.command("postgres", args...), filepath.Join(s.dir, "log"), syscall.SIGQUIT)
	if err != nil {
		return err
	}
	s.child = c
	err = c.ready(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		conn, err := pgx.Connect(ctx, s.dsn("postgres"))
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
	if err == nil && c.exited() {
		// Someone else's server answered on the port.
		err = fmt.Errorf("PostgreSQL ended:\n%s", c.tail())
	}
	if err != nil {
		c.stop(syscall.SIGQUIT)
	}
	return err
}

func (s *PostgresServer) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C.UTF-8", "TZ=UTC", "HOME=" + s.dir}
	if s.as != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as}
	}
	return cmd
}

// unprivileged is the user that runs the server when the tests run as root.
func unprivileged() (*syscall.Credential, error) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, fmt.Errorf("PostgreSQL does not run as root, and there is no user postgres or nobody")
}
