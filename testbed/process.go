package testbed

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Process is one running enlarger process.
type Process struct {
	name  string
	child *child
	mu    sync.Mutex
}

// binary builds the program once per process.
var binary = sync.OnceValues(build)

// Build gives the path of the enlarger program: ENLARGER_BINARY when that is set, otherwise cmd/enlarger built once per test
// process, with the race detector if the tests have it.
func Build(t T) string {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatalf("build enlarger: %v", err)
	}
	return path
}

func build() (string, error) {
	if path := os.Getenv("ENLARGER_BINARY"); path != "" {
		path, err := filepath.Abs(path)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("ENLARGER_BINARY: %w", err)
		}
		return path, nil
	}
	reap, err := theReaper()
	if err != nil {
		return "", err
	}
	dir, err := reap.folder("bin")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "enlarger")
	args := []string{"build", "-o", path}
	if raced {
		args = append(args, "-race")
	}
	out, err := exec.Command("go", append(args, "enlarger/cmd/enlarger")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
}

// Start runs enlarger with the given arguments. Its environment is this process's without any ENLARGER_ variable, plus env. Its
// output goes to a file whose end is shown when the test fails; its working directory is a private folder. It is killed, and its
// folder removed, when the test ends. It finds ONNX Runtime where `make deps` puts it, unless env says otherwise.
func Start(t T, name string, env map[string]string, args ...string) *Process {
	t.Helper()
	const setting = "ENLARGER_ONNXRUNTIME"
	if _, set := env[setting]; !set {
		env = maps.Clone(env)
		if env == nil {
			env = map[string]string{}
		}
		env[setting] = ONNXRuntime()
	}
	return StartProgram(t, name, Build(t), env, args...)
}

// ONNXRuntime is the path of ONNX Runtime's library: ENLARGER_ONNXRUNTIME, or where `make deps` puts it. It may not be there, which
// those who need it tell better.
func ONNXRuntime() string {
	if path := os.Getenv("ENLARGER_ONNXRUNTIME"); path != "" {
		return path
	}
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			found, err := filepath.Glob(filepath.Join(dir, ".deps", "onnxruntime-*", "libonnxruntime.so.1"))
			if err != nil || len(found) == 0 {
				return ""
			}
			return found[len(found)-1]
		}
	}
	return ""
}

// StartProgram is Start for any program.
func StartProgram(t T, name, program string, env map[string]string, args ...string) *Process {
	t.Helper()
	reap, err := theReaper()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	dir, err := reap.folder("process")
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "ENLARGER_") {
			cmd.Env = append(cmd.Env, entry)
		}
	}
	for key, value := range env {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	c, err := startChild(cmd, filepath.Join(dir, "log"), syscall.SIGKILL)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	p := &Process{name: name, child: c}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("the end of the log of %s (%v):\n%s", name, c.cmd.ProcessState, c.tail())
		}
		_ = os.RemoveAll(dir)
	})
	return p
}

// PID is the process id.
func (p *Process) PID() int { return p.child.cmd.Process.Pid }

// Log is the end of what the process has written, at most 16 KiB.
func (p *Process) Log() string { return p.child.tail() }

// LogPath is the file that the process writes to.
func (p *Process) LogPath() string { return p.child.log }

// Running says whether the process has not ended yet.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.child.exited()
}

// Signal sends one signal; a process that has ended is no error.
func (p *Process) Signal(sig syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.child.signal(sig)
}

// Freeze stops the process where it is, and Resume lets it go on.
func (p *Process) Freeze() { p.Signal(syscall.SIGSTOP) }

// Resume undoes Freeze.
func (p *Process) Resume() { p.Signal(syscall.SIGCONT) }

// Term asks the process to end and does not wait.
func (p *Process) Term() { p.Signal(syscall.SIGTERM) }

// Stop asks the process to end and waits until it has, at most the time given; it fails the test when it has not, and returns
// the exit code.
func (p *Process) Stop(t T, within time.Duration) int {
	t.Helper()
	p.Term()
	return p.Wait(t, within)
}

// Wait waits for the process to end by itself and returns its exit code, or -1 when a signal ended it.
func (p *Process) Wait(t T, within time.Duration) int {
	t.Helper()
	// The lock is not held while waiting, so that another goroutine can signal the process meanwhile.
	Until(t, within, p.name+" to end", func() bool { return !p.Running() })
	p.mu.Lock()
	defer p.mu.Unlock()
	p.child.wait(stopTimeout)
	return p.child.cmd.ProcessState.ExitCode()
}

// Kill ends the process with SIGKILL and waits until it is gone.
func (p *Process) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.child.signal(syscall.SIGKILL)
	p.child.wait(stopTimeout)
}
