package testbed_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"enlarger/testbed"
)

const soon = 30 * time.Second

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatalf("connect to %s: %v", dsn, err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// query runs a statement that gives one number.
func query(conn *pgx.Conn, within time.Duration, sql string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	var n int
	err := conn.QueryRow(ctx, sql).Scan(&n)
	return n, err
}

func TestPostgreSQLGivesFreshDatabases(t *testing.T) {
	t.Parallel()
	one, two := testbed.PostgreSQL(t), testbed.PostgreSQL(t)
	if one == two {
		t.Fatalf("both DSNs are %s", one)
	}
	ctx := t.Context()
	if _, err := connect(t, one).Exec(ctx, "CREATE TABLE things (n INT)"); err != nil {
		t.Fatal(err)
	}
	const tables = "SELECT count(*) FROM information_schema.tables WHERE table_name = 'things'"
	if n, err := query(connect(t, one), soon, tables); err != nil || n != 1 {
		t.Errorf("in the first database: %d tables, %v; want 1", n, err)
	}
	if n, err := query(connect(t, two), soon, tables); err != nil || n != 0 {
		t.Errorf("in the second database: %d tables, %v; want 0", n, err)
	}
}

func TestPostgresFaults(t *testing.T) {
	t.Parallel()
	server := testbed.Postgres(t)
	dsn := server.Database(t)
	if _, err := connect(t, dsn).Exec(t.Context(), "CREATE TABLE things AS SELECT 42 AS n"); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(){"stop": server.Stop, "kill": server.Kill} {
		open := connect(t, dsn)
		end()
		if _, err := query(open, soon, "SELECT 1"); err == nil {
			t.Errorf("after %s an open connection still answers", name)
		}
		if conn, err := net.Dial("tcp", server.Addr()); err == nil {
			_ = conn.Close()
			t.Errorf("after %s the address still accepts", name)
		}
		server.Start(t)
		if n, err := query(connect(t, dsn), soon, "SELECT n FROM things"); err != nil || n != 42 {
			t.Errorf("after %s and start: %d, %v; want 42", name, n, err)
		}
	}
	open := connect(t, dsn)
	server.Freeze()
	if _, err := query(open, 200*time.Millisecond, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a frozen server gave %v, want a deadline", err)
	}
	server.Resume()
	if n, err := query(connect(t, dsn), soon, "SELECT n FROM things"); err != nil || n != 42 {
		t.Errorf("after resume: %d, %v; want 42", n, err)
	}
}

// redisSay sends one inline command and returns the first line of the answer.
func redisSay(addr string, within time.Duration, command string) (string, error) {
	conn, err := net.DialTimeout("tcp", addr, within)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(conn, command+"\r\n"); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

func TestRedisFaults(t *testing.T) {
	t.Parallel()
	server := testbed.Redis(t)
	if !strings.Contains(server.URL(), server.Addr()) {
		t.Errorf("URL %s does not name %s", server.URL(), server.Addr())
	}
	expect := func(when, command, want string) {
		t.Helper()
		if got, err := redisSay(server.Addr(), soon, command); err != nil || got != want {
			t.Errorf("%s: %s gave %q, %v; want %q", when, command, got, err, want)
		}
	}
	expect("at first", "SET k v", "+OK")
	expect("after set", "EXISTS k", ":1")
	server.FlushAll(t)
	expect("after flush", "EXISTS k", ":0")
	expect("again", "SET k v", "+OK")
	server.Freeze()
	if got, err := redisSay(server.Addr(), 200*time.Millisecond, "PING"); err == nil {
		t.Errorf("a frozen server answered %q", got)
	}
	server.Resume()
	expect("after resume", "EXISTS k", ":1")
	server.Kill()
	if got, err := redisSay(server.Addr(), soon, "PING"); err == nil {
		t.Errorf("a killed server answered %q", got)
	}
	server.Restart(t)
	expect("after restart", "EXISTS k", ":0")
}

// echo is a server that returns what it gets.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func TestProxy(t *testing.T) {
	t.Parallel()
	proxy := testbed.NewProxy(t, echo(t))
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.DialTimeout("tcp", proxy.Addr(), soon)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	trip := func(conn net.Conn, within time.Duration, text string) (string, error) {
		_ = conn.SetDeadline(time.Now().Add(within))
		if _, err := io.WriteString(conn, text); err != nil {
			return "", err
		}
		back := make([]byte, len(text))
		n, err := io.ReadFull(conn, back)
		return string(back[:n]), err
	}
	passes := func(when string, conn net.Conn) {
		t.Helper()
		if got, err := trip(conn, soon, "hello"); err != nil || got != "hello" {
			t.Errorf("%s: got %q, %v", when, got, err)
		}
	}
	first := dial()
	passes("at first", first)

	proxy.Cut()
	if got, err := trip(first, soon, "hello"); err == nil {
		t.Errorf("a cut connection passed %q", got)
	}
	// The reset may come while the connection is still being made.
	if during, err := net.Dial("tcp", proxy.Addr()); err == nil {
		defer during.Close()
		if got, err := trip(during, soon, "hello"); err == nil {
			t.Errorf("a new connection during a cut passed %q", got)
		}
	}
	proxy.Heal()
	second := dial()
	passes("healed", second)

	proxy.Stall()
	if got, err := trip(second, 100*time.Millisecond, "hello"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stalled connection gave %q, %v; want a deadline", got, err)
	}
	proxy.Heal()
	passes("after a stall", dial())

	proxy.Delay(100 * time.Millisecond)
	start := time.Now()
	passes("delayed", dial())
	if took := time.Since(start); took < 200*time.Millisecond {
		t.Errorf("two delayed pieces took %v, want at least 200ms", took)
	}
	proxy.Heal()

	proxy.CutAfter(10)
	third := dial()
	passes("the last ten bytes", third)
	if got, err := trip(third, soon, "x"); err == nil {
		t.Errorf("byte 11 passed as %q", got)
	}

	// The end of one direction reaches the other side while the answer still flows back.
	proxy.Heal()
	fourth := dial()
	if _, err := io.WriteString(fourth, "bye"); err != nil {
		t.Fatal(err)
	}
	_ = fourth.(*net.TCPConn).CloseWrite()
	_ = fourth.SetDeadline(time.Now().Add(soon))
	if got, err := io.ReadAll(fourth); err != nil || string(got) != "bye" {
		t.Errorf("after a half-close: %q, %v", got, err)
	}
}

func TestProcess(t *testing.T) {
	t.Parallel()
	// A trap runs at once during wait, but only after a command in the foreground.
	script := `sleep 60 & trap "kill $!; exit 7" TERM; echo "$GREETING $ENLARGER_KEPT"; wait`
	p := testbed.StartProgram(t, "script", "/bin/sh", map[string]string{"GREETING": "good", "ENLARGER_KEPT": "day"}, "-c", script)
	testbed.Until(t, soon, "the greeting", func() bool { return p.Log() == "good day\n" })
	if !p.Running() {
		t.Fatal("the process does not run")
	}
	if code := p.Stop(t, soon); code != 7 {
		t.Errorf("exit code %d, want 7", code)
	}
	if p.Running() {
		t.Error("still running after Stop")
	}
	q := testbed.StartProgram(t, "script", "/bin/sh", nil, "-c", "exec sleep 60")
	q.Kill()
	if code := q.Wait(t, soon); code != -1 {
		t.Errorf("exit code %d after Kill, want -1", code)
	}
}

func TestWaitHTTP(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1) < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	testbed.WaitHTTP(t, server.URL)
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times, want 3", n)
	}
}

// TestServicesDieWithTheTest starts services in a second test binary, kills that with SIGKILL and looks for what is left.
func TestServicesDieWithTheTest(t *testing.T) {
	t.Parallel()
	const role = "TESTBED_TEST_ROLE"
	if os.Getenv(role) == "victim" {
		server := testbed.Postgres(t)
		server.Freeze()
		redis := testbed.Redis(t)
		redis.Freeze()
		p := testbed.StartProgram(t, "sleeper", "/bin/sleep", nil, "300")
		report := strings.Join([]string{"victim", server.Addr(), redis.Addr(), strconv.Itoa(p.PID())}, " ")
		_, _ = io.WriteString(os.Stdout, report+"\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServicesDieWithTheTest$", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), role+"=victim", "TMPDIR="+openTemp(t))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var fields []string
	for lines := bufio.NewScanner(out); len(fields) != 4 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "victim ") {
			fields = strings.Fields(lines.Text())
		}
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if len(fields) != 4 {
		t.Fatal("the second test binary started nothing")
	}
	for _, addr := range fields[1:3] {
		testbed.Until(t, soon, addr+" to be closed", func() bool {
			conn, err := net.DialTimeout("tcp", addr, time.Second)
			if err == nil {
				_ = conn.Close()
			}
			return errors.Is(err, syscall.ECONNREFUSED)
		})
	}
	sleeper, err := strconv.Atoi(fields[3])
	if err != nil {
		t.Fatal(err)
	}
	testbed.Until(t, soon, "the sleeper to be gone", func() bool { return gone(sleeper) })
	folder := cmd.Env[len(cmd.Env)-1][len("TMPDIR="):]
	testbed.Until(t, soon, "the folder to be empty", func() bool {
		left, err := os.ReadDir(folder)
		return err == nil && len(left) == 0
	})
}

// gone says whether a process has ended; one that nobody has collected yet counts as ended.
func gone(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// openTemp is a temporary folder that another user may pass through, as PostgreSQL's has to when the tests run as root.
func openTemp(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, each := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(each, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
