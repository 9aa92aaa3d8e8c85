package faults_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"enlarger/faults"
	"enlarger/testbed"
)

// long runs the long profile: outages as long as the list of faults says, default leases, a thousand kills and cancels.
var long = flag.Bool("faults.long", false, "inject faults for as long, and as often, as docs/reliability.md says")

func TestMain(m *testing.M) {
	if done, err := faults.ServeStore(os.Args, os.Stdout); done {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	// These tests wait for leases far more than they compute.
	if !flagged("test.parallel") {
		if err := flag.Set("test.parallel", "4"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

func flagged(name string) (set bool) {
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == name })
	return set
}

// profile picks the short value, or the long one by -faults.long.
func profile[V any](short, longer V) V {
	if *long {
		return longer
	}
	return short
}

// shapes runs a test on a fleet of two API processes and on the all-in-one process. start adds a worker where there is need of one.
func shapes(t *testing.T, settings map[string]string, test func(t *testing.T, f *faults.Fleet, worker func() *faults.Node)) {
	t.Helper()
	t.Run("fleet", func(t *testing.T) {
		t.Parallel()
		f := faults.New(t, 2, settings)
		n := 0
		test(t, f, func() *faults.Node { n++; return f.Worker(fmt.Sprintf("worker%d", n)).Ready() })
	})
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		f := faults.NewEmbedded(t, settings)
		test(t, f, func() *faults.Node { return f.API(0) })
	})
}

// Statements by which a step of a job's life is known on the wire.
var (
	submits  = writes("INSERT INTO jobs")
	claims   = writes("fence = fence + 1")
	stores   = writes("source_ready = TRUE")
	reserves = writes("INSERT INTO holds")
	succeeds = writes("status = 'succeeded'")
	gives    = writes("failures = failures + 1")
)

// writes says whether a statement that writes names a text.
func writes(text string) func(string) bool {
	return func(sql string) bool {
		return strings.Contains(sql, text) && !strings.HasPrefix(strings.TrimSpace(sql), "SELECT")
	}
}

// enqueues says whether a Redis command puts a job's wake-up into a queue.
func enqueues(command []string) bool {
	return len(command) > 4 && strings.Contains(command[3], "}:t:job_") && strings.HasSuffix(command[4], "}:pending")
}

// acks says whether a Redis command takes a job's wake-up away, done.
func acks(command []string) bool {
	return len(command) > 5 && strings.HasSuffix(command[3], "}:active") && strings.HasSuffix(command[4], "}:lease") && strings.Contains(command[5], "}:t:job_")
}

// kill gives an action that kills a node in the middle of what it says, and the channel that is closed when it is dead.
func kill(n *faults.Node) (action func() testbed.Verdict, dead chan struct{}) {
	dead = make(chan struct{})
	return func() testbed.Verdict {
		n.Kill()
		close(dead)
		return testbed.Verdict{Cut: true}
	}, dead
}

// hold gives an action that keeps a piece from being passed on until release is called, and the channel that is closed when it waits.
func hold(t *testing.T) (action func() testbed.Verdict, held chan struct{}, release func()) {
	t.Helper()
	held = make(chan struct{})
	released := make(chan struct{})
	once := make(chan struct{}, 1)
	release = func() {
		select {
		case once <- struct{}{}:
			close(released)
		default:
		}
	}
	t.Cleanup(release)
	return func() testbed.Verdict {
		close(held)
		<-released
		return testbed.Verdict{}
	}, held, release
}

// happens waits for a channel to be closed.
func happens(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s did not happen within a minute", what)
	}
}

// lasts lets a fault last: nothing is waited for but the fault's own time.
func lasts(d time.Duration) { <-time.After(d) }
