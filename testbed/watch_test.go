package testbed_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"enlarger/testbed"
)

// names says whether a statement names a text.
func names(text string) func(string) bool {
	return func(sql string) bool { return strings.Contains(sql, text) }
}

func TestSQLProxySeesEachMoment(t *testing.T) {
	t.Parallel()
	dsn := testbed.PostgreSQL(t)
	near := connect(t, dsn)
	if _, err := near.Exec(t.Context(), "CREATE TABLE things (n INT)"); err != nil {
		t.Fatal(err)
	}
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	server := fmt.Sprintf("%s:%d", config.Host, config.Port)
	proxy := testbed.NewSQLProxy(t, server)
	far := func() *pgx.Conn { return connect(t, strings.Replace(dsn, server, proxy.Addr(), 1)) }
	var looking sync.Mutex
	count := func() int {
		looking.Lock()
		defer looking.Unlock()
		n, err := query(near, soon, "SELECT count(*) FROM things")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	insert := func(conn *pgx.Conn, inTx bool) error {
		if !inTx {
			_, err := conn.Exec(t.Context(), "INSERT INTO things VALUES ($1)", 1)
			return err
		}
		tx, err := conn.Begin(t.Context())
		if err != nil {
			return err
		}
		if _, err := tx.Exec(t.Context(), "INSERT INTO things VALUES ($1)", 1); err != nil {
			return err
		}
		return tx.Commit(t.Context())
	}
	for _, inTx := range []bool{false, true} {
		conn := far()
		for range 3 { // the second and third time the statement goes by its name
			if err := insert(conn, inTx); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			at            testbed.Moment
			during, after int
		}{{testbed.Sent, 0, 0}, {testbed.Committing, 0, 0}, {testbed.Committed, 1, 1}} {
			conn := far()
			if err := insert(conn, inTx); err != nil {
				t.Fatal(err)
			}
			before := count()
			var during, calls atomic.Int64
			proxy.Once(names("INSERT INTO things"), c.at, func() testbed.Verdict {
				calls.Add(1)
				during.Store(int64(count() - before))
				return testbed.Verdict{Cut: true}
			})
			if err := insert(conn, inTx); err == nil {
				t.Errorf("in a transaction %v, moment %d: the insert went through", inTx, c.at)
			}
			if after := count() - before; calls.Load() != 1 || during.Load() != int64(c.during) || after != c.after {
				t.Errorf("in a transaction %v, moment %d: %d calls, %d rows then, %d rows after; want 1, %d, %d", inTx, c.at, calls.Load(), during.Load(), after, c.during, c.after)
			}
			if err := insert(far(), inTx); err != nil {
				t.Errorf("the watch lives on: %v", err)
			}
		}
	}
}

func TestRedisProxySeesCommands(t *testing.T) {
	t.Parallel()
	server := testbed.Redis(t)
	proxy := testbed.NewRedisProxy(t, server.Addr())
	conn, err := net.DialTimeout("tcp", proxy.Addr(), soon)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(soon))
	lines := bufio.NewReader(conn)
	say := func(pieces ...string) string {
		t.Helper()
		for _, piece := range pieces {
			if _, err := io.WriteString(conn, piece); err != nil {
				return err.Error()
			}
		}
		line, err := lines.ReadString('\n')
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(line)
	}
	set := func(command []string) bool { return len(command) == 3 && command[0] == "SET" && command[1] == "key" }
	const text = "*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$5\r\nvalue\r\n"
	proxy.Once(set, false, func() testbed.Verdict { return testbed.Verdict{Answer: []byte("-ERR not today\r\n")} })
	if got := say(text[:9], text[9:20], text[20:]); got != "-ERR not today" {
		t.Errorf("answered %q", got)
	}
	if got, err := redisSay(server.Addr(), soon, "EXISTS key"); err != nil || got != ":0" {
		t.Errorf("the server got it: %s, %v", got, err)
	}
	var stored atomic.Value
	proxy.Once(set, true, func() testbed.Verdict {
		answer, _ := redisSay(server.Addr(), soon, "EXISTS key")
		stored.Store(answer)
		return testbed.Verdict{}
	})
	if got := say(text); got != "+OK" || stored.Load() != ":1" {
		t.Errorf("answered %q, and %v before that", got, stored.Load())
	}
	proxy.Once(set, true, func() testbed.Verdict { return testbed.Verdict{Cut: true} })
	if got := say(text); strings.HasPrefix(got, "+") {
		t.Errorf("a cut answer came: %q", got)
	}
}

func TestRedisSnapshot(t *testing.T) {
	t.Parallel()
	server := testbed.Redis(t)
	expect := func(command, want string) {
		t.Helper()
		if got, err := redisSay(server.Addr(), soon, command); err != nil || got != want {
			t.Errorf("%s gave %q, %v; want %q", command, got, err, want)
		}
	}
	expect("SET k v", "+OK")
	snapshot := server.Snapshot(t)
	expect("SET later v", "+OK")
	server.Restore(t, snapshot)
	expect("EXISTS k", ":1")
	expect("EXISTS later", ":0")
	server.Restart(t)
	expect("EXISTS k", ":0")
}

func TestHTTPProxy(t *testing.T) {
	t.Parallel()
	var served atomic.Int32
	var host atomic.Value
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		host.Store(r.Host)
		_, _ = io.Copy(w, r.Body)
	}))
	defer behind.Close()
	proxy := testbed.NewHTTPProxy(t, behind.URL)
	client := &http.Client{Timeout: soon}
	defer client.CloseIdleConnections()
	put := func() (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPut, proxy.URL()+"/x", bytes.NewReader([]byte("hello")))
		if err != nil {
			t.Fatal(err)
		}
		response, err := client.Do(request)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		_, _ = io.Copy(io.Discard, response.Body)
		return response.StatusCode, nil
	}
	if status, err := put(); status != http.StatusOK || "http://"+host.Load().(string) != proxy.URL() {
		t.Errorf("%d, %v, host %v; want the host as the client said it", status, err, host.Load())
	}
	for _, c := range []struct {
		fault  testbed.HTTPFault
		status int
		served int32
	}{
		{testbed.HTTPFault{Status: http.StatusServiceUnavailable}, http.StatusServiceUnavailable, 0},
		{testbed.HTTPFault{Cut: true}, 0, 0},
		{testbed.HTTPFault{Cut: true, After: true}, 0, 1},
		{testbed.HTTPFault{Delay: time.Millisecond}, http.StatusOK, 1},
	} {
		before := served.Load()
		var once atomic.Bool
		proxy.Break(func(*http.Request) testbed.HTTPFault {
			if once.Swap(true) && c.fault.Cut { // the client repeats a PUT that was cut, once
				return testbed.HTTPFault{Cut: true}
			}
			return c.fault
		})
		status, err := put()
		if status != c.status || served.Load()-before != c.served {
			t.Errorf("%+v: %d, %v, served %d times; want %d and %d", c.fault, status, err, served.Load()-before, c.status, c.served)
		}
	}
	proxy.Break(nil)
	if status, err := put(); status != http.StatusOK {
		t.Errorf("without a rule: %d, %v", status, err)
	}
}
