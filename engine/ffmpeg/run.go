package ffmpeg

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command is one run of ffmpeg.
type Command struct {
	// Args come from Runner.Args.
	Args []string
	// Stdin and Stdout may be nil. A reader or writer that can block for longer than a second must be an *os.File, such as
	// one end of os.Pipe: the run does not wait for it after the process has ended.
	Stdin  io.Reader
	Stdout io.Writer
	// Extra are further pipes for the child to write into: the ends to be written, from Pipe. The child knows the first as
	// FirstExtra. The caller closes its own copies when the run has ended.
	Extra []*os.File
	// Progress takes the frames written and the time reached in the output, about twice a second. It must be quick.
	Progress func(frames int64, outTime time.Duration)
	// Timeout bounds the whole run, and StallTimeout the time in which neither frames nor time nor bytes rise; 0 is no bound.
	Timeout, StallTimeout time.Duration
}

// Why a run was ended by its guards.
var (
	ErrTimeout = errors.New("time limit reached")
	ErrStalled = errors.New("no progress")
)

// Error is a run that failed. Reason is ErrTimeout, ErrStalled, the context's error, or an *exec.ExitError; errors.Is and
// errors.As look through it.
type Error struct {
	Program string
	Reason  error
	// Tail is the end of what the program wrote to standard error, at most 4 KB, for the operator's log alone.
	Tail string
}

func (e *Error) Error() string {
	if e.Tail == "" {
		return fmt.Sprintf("%s: %v", e.Program, e.Reason)
	}
	return fmt.Sprintf("%s: %v: %s", e.Program, e.Reason, e.Tail)
}

func (e *Error) Unwrap() error { return e.Reason }

// Run runs ffmpeg until it ends, ctx is done or a bound is reached, and returns nil only when ffmpeg ended with status 0.
// When it returns, the process and its group are gone. Any other error is an *Error, or a fault of this machine.
func (r *Runner) Run(ctx context.Context, c Command) error {
	if err := checkInputs(c.Args); err != nil {
		return err
	}
	return r.start(ctx, process{
		program: r.ffmpeg, args: c.Args, stdin: c.Stdin, stdout: c.Stdout, extra: c.Extra,
		progress: true, report: c.Progress, timeout: c.Timeout, stall: c.StallTimeout,
	})
}

// checkInputs refuses arguments that name an input without its guard: a second lock for what Args already does.
func checkInputs(args []string) error {
	guarded := false
	for i, arg := range args {
		switch arg {
		case "-protocol_whitelist":
			guarded = true
		case "-i":
			name := ""
			if i+1 < len(args) {
				name = args[i+1]
			}
			if name != "pipe:0" && (!guarded || !strings.HasPrefix(name, "file:/")) {
				return fmt.Errorf("ffmpeg input %q is not guarded", name)
			}
			guarded = false
		}
	}
	return nil
}

// process is one child process.
type process struct {
	program string
	args    []string
	stdin   io.Reader
	stdout  io.Writer
	extra   []*os.File
	// progress asks ffmpeg for its progress on a pipe of its own.
	progress bool
	report   func(frames int64, outTime time.Duration)
	timeout  time.Duration
	stall    time.Duration
}

const (
	// tailBytes is how much of standard error is kept.
	tailBytes = 4 << 10
	// drainTime is how long pipes may stay busy after the process has ended or has been killed.
	drainTime = time.Second
	// progressFD is the child's number of the progress pipe: the first after stdin, stdout and stderr.
	progressFD = 3
	// FirstExtra is the child's number of the first of Command.Extra.
	FirstExtra = progressFD + 1
)

// start runs a child to its end. The calling goroutine keeps its thread all the while, because the kernel sends the
// parent-death signal when the thread that started the child ends, and the runtime ends threads of its own accord.
func (r *Runner) start(ctx context.Context, p process) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	dir, err := os.MkdirTemp(r.scratch, "ffmpeg-")
	if err != nil {
		return fmt.Errorf("make a working directory for ffmpeg: %w", err)
	}
	defer os.RemoveAll(dir)

	parent := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if p.timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeoutCause(ctx, p.timeout, ErrTimeout)
		defer stop()
	}

	args := p.args
	if p.progress {
		args = append([]string{"-progress", "pipe:" + strconv.Itoa(progressFD), "-stats_period", "0.5"}, args...)
	}
	cmd := exec.CommandContext(ctx, p.program, args...)
	cmd.Dir, cmd.Env = dir, environment(dir)
	cmd.Stdin, cmd.Stdout = p.stdin, p.stdout
	tail := &tail{}
	cmd.Stderr = tail
	cmd.SysProcAttr = r.isolation.attributes()
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = drainTime

	watch := &watch{stall: p.stall, report: p.report, stalled: func() { cancel(ErrStalled) }}
	if p.progress {
		if err := watch.attach(cmd); err != nil {
			return err
		}
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, p.extra...)
	if err := cmd.Start(); err != nil {
		watch.abandon()
		if ctx.Err() != nil {
			return outcome(filepath.Base(p.program), parent, ctx, err, "")
		}
		return fmt.Errorf("start %s: %w", p.program, err)
	}
	limitProcess(cmd.Process.Pid, r.limits)
	watch.begin()
	err = cmd.Wait()
	watch.end()
	return outcome(filepath.Base(p.program), parent, ctx, err, tail.String())
}

// Pipe makes a pipe with room for much of a picture, so that the two ends take turns seldom.
func Pipe() (read, write *os.File, err error) {
	if read, write, err = os.Pipe(); err != nil {
		return nil, nil, fmt.Errorf("make a pipe: %w", err)
	}
	widenPipe(write)
	return read, write, nil
}

// outcome turns the end of a process into an error that says who ended it.
func outcome(program string, parent, ctx context.Context, err error, tail string) error {
	if err == nil {
		return nil
	}
	reason := err
	switch cause := context.Cause(ctx); {
	case parent.Err() != nil:
		reason = parent.Err()
		if own := context.Cause(parent); own != nil && !errors.Is(own, reason) {
			reason = fmt.Errorf("%w: %w", reason, own)
		}
	case cause != nil:
		reason = cause
	}
	return &Error{Program: program, Reason: reason, Tail: tail}
}

// environment is all that a child sees of ours: where libraries lie, and a home that is its own.
func environment(dir string) []string {
	env := []string{"PATH=/usr/bin:/bin", "HOME=" + dir, "TMPDIR=" + dir, "LC_ALL=C", "AV_LOG_FORCE_NOCOLOR=1"}
	if libraries, ok := os.LookupEnv("LD_LIBRARY_PATH"); ok {
		env = append(env, "LD_LIBRARY_PATH="+libraries)
	}
	return env
}

func killGroup(pid int) error {
	err := syscall.Kill(-pid, syscall.SIGKILL)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// watch reads ffmpeg's progress, passes it on and cries when it stands still.
type watch struct {
	stall   time.Duration
	report  func(frames int64, outTime time.Duration)
	stalled func()

	read, write *os.File
	timer       *time.Timer
	done        sync.WaitGroup
}

func (w *watch) attach(cmd *exec.Cmd) error {
	var err error
	if w.read, w.write, err = os.Pipe(); err != nil {
		return fmt.Errorf("make a progress pipe: %w", err)
	}
	cmd.ExtraFiles = []*os.File{w.write}
	return nil
}

func (w *watch) abandon() {
	if w.read != nil {
		w.read.Close()
		w.write.Close()
	}
}

func (w *watch) begin() {
	if w.read == nil {
		return
	}
	w.write.Close()
	w.arm()
	w.done.Go(func() { w.follow(w.read) })
}

func (w *watch) arm() {
	if w.stall > 0 {
		w.timer = time.AfterFunc(w.stall, w.stalled)
	}
}

func (w *watch) end() {
	if w.read == nil {
		return
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	// The child is gone, so the pipe is at its end unless something else holds it.
	_ = w.read.SetReadDeadline(time.Now().Add(drainTime))
	w.done.Wait()
	w.read.Close()
}

// follow reads key=value lines until the pipe ends. ffmpeg closes each report with a line progress=continue or progress=end.
func (w *watch) follow(progress io.Reader) {
	var now, last state
	lines := bufio.NewScanner(progress)
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if key != "progress" {
			now.take(key, strings.TrimSpace(value))
			continue
		}
		if now != last {
			if w.timer != nil {
				w.timer.Reset(w.stall)
			}
			last = now
		}
		if w.report != nil {
			w.report(now.frames, now.time)
		}
	}
	// A line too long for the scanner is none of ffmpeg's; the pipe must still be emptied.
	_, _ = io.Copy(io.Discard, progress)
}

// state is where a run stands.
type state struct {
	frames int64
	time   time.Duration
	bytes  int64
}

// take reads one line of a report. A value that is no number ("N/A" before the first frame) changes nothing.
func (s *state) take(key, value string) {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < 0 {
		return
	}
	switch key {
	case "frame":
		s.frames = n
	case "out_time_us":
		s.time = time.Duration(min(n, int64(1)<<52)) * time.Microsecond
	case "total_size":
		s.bytes = n
	}
}

// tail keeps the end of a stream.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) >= tailBytes {
		t.text = append(t.text[:0], p[len(p)-tailBytes:]...)
		return len(p), nil
	}
	if over := len(t.text) + len(p) - tailBytes; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
	t.text = append(t.text, p...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.text), "?"))
}

// errTooMuch ends a program that writes more than was expected of it.
var errTooMuch = errors.New("output is too large")

// bounded keeps a stream of limited size and refuses more.
type bounded struct {
	strings.Builder
	most int
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > b.most {
		return 0, errTooMuch
	}
	return b.Builder.Write(p)
}
