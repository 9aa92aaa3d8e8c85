package ffmpeg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// orphanEnv makes the test binary a program that runs ffmpeg over the file it names until it is killed.
const orphanEnv = "ENLARGER_TEST_ORPHAN"

func TestMain(m *testing.M) {
	if path := os.Getenv(orphanEnv); path != "" {
		r, err := Open(Config{Threads: 1})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_ = r.Run(context.Background(), endless(r, path))
		return
	}
	goleak.VerifyTestMain(m)
}

var openRunner = sync.OnceValues(func() (*Runner, error) { return Open(Config{Threads: 1}) })

func runner(t testing.TB) *Runner {
	t.Helper()
	r, err := openRunner()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// generate makes a file with ffmpeg itself; args hold all but the output.
func generate(t testing.TB, name string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	out, err := exec.Command("ffmpeg", append(append([]string{"-v", "error", "-nostdin", "-y"}, args...), path)...).CombinedOutput()
	if err != nil {
		t.Fatalf("make %s: %v\n%s", name, err, out)
	}
	return path
}

func small(t testing.TB) string {
	t.Helper()
	return generate(t, "small.mp4", "-f", "lavfi", "-i", "testsrc2=s=64x48:r=25:d=0.4", "-c:v", "libx264", "-preset", "ultrafast")
}

// endless reads a file over and over at its own speed.
func endless(r *Runner, path string) Command {
	return Command{Args: r.Args(Input{Path: path, Options: []Option{Int("stream_loop", -1), Flag("re")}}, Output{Path: "/dev/null", Format: "null"})}
}

// script is a stand-in for ffmpeg, for what the real one cannot be made to do.
func script(t *testing.T, text string) *Runner {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ffmpeg")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o700); err != nil {
		t.Fatal(err)
	}
	r := *runner(t)
	r.ffmpeg, r.ffprobe = path, path
	return &r
}

// until polls a condition.
func until(t *testing.T, within time.Duration, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", within, what)
		}
	}
}

// running lists the processes, zombies included, whose command line holds a word.
func running(t *testing.T, word string) []int {
	t.Helper()
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, name := range names {
		text, _ := os.ReadFile(name)
		if pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name))); bytes.Contains(text, []byte(word)) && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestOpen(t *testing.T) {
	t.Parallel()
	r := runner(t)
	if r.Version() == "" || r.Threads() != 1 || r.Isolation() == "" || r.NoNetwork() != (r.isolation != isolationNone) {
		t.Errorf("version %q, %d threads, isolation %q", r.Version(), r.Threads(), r.Isolation())
	}
	fake := func(banner, list string) string {
		path := filepath.Join(t.TempDir(), "ffmpeg")
		text := fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *-version*) echo '%s';; *) echo '%s';; esac\n", banner, list)
		if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct{ name, ffmpeg, want string }{
		{"missing", "/nonexistent/ffmpeg", "make deps"},
		{"old", fake("ffmpeg version 4.4.2-0ubuntu0 Copyright", ""), "version 4.4.2-0ubuntu0 is too old; run `make deps`"},
		{"nameless", fake("hello", ""), "does not say its version"},
		{"bare", fake("ffmpeg version 7.1 Copyright", " ... scale V->V x"), "has no zscale, minterpolate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			_, err := Open(Config{FFmpeg: c.ffmpeg})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	for banner, want := range map[string]string{
		"ffmpeg version 5.1.9-0+deb12u1 Copyright (c)": "5.1.9-0+deb12u1", "ffmpeg version n7.1 Copyright": "n7.1",
		"ffmpeg version N-118193-g5f38c82536 Copyright": "N-118193-g5f38c82536", "ffmpeg version 4.4 Copyright": "", "": "", "ffmpeg version": "",
	} {
		got, err := version(banner)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", banner, got, err)
		}
	}
}

func TestArgs(t *testing.T) {
	t.Parallel()
	r := &Runner{threads: 3, limits: Limits{Pixels: 1000}}
	got := r.Args(Input{Path: "/in/-weird %d.mp4", Options: []Option{Opt("ss", "1")}},
		Output{Path: "/out.mp4", Format: "mp4", Options: []Option{Int("crf:v", 0), Flag("dn")}})
	want := []string{
		"-hide_banner", "-nostdin", "-y", "-loglevel", "level+warning", "-filter_threads", "3",
		"-protocol_whitelist", "file", "-format_whitelist", strings.Join(inputFormats, ","), "-max_pixels", "1000", "-threads", "3",
		"-codec_whitelist", strings.Join(slices.Concat(videoCodecs, audioCodecs, subtitleCodecs), ","), "-ss", "1", "-i", "file:/in/-weird %d.mp4",
		"-threads", "3", "-crf:v", "0", "-dn", "-f", "mp4", "file:/out.mp4",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	for _, format := range []string{"hls", "dash", "concat", "image2", "lavfi", "sdp", "tty"} {
		if slices.Contains(inputFormats, format) {
			t.Errorf("%s can open other files", format)
		}
	}
}

func TestRunRefusesUnguardedInputs(t *testing.T) {
	t.Parallel()
	r := runner(t)
	for _, args := range [][]string{
		{"-i", "file:/etc/passwd", "-f", "null", "-"},
		{"-protocol_whitelist", "file", "-i", "http://127.0.0.1/", "-f", "null", "-"},
		{"-protocol_whitelist", "file", "-i", "relative.mp4"},
		{"-protocol_whitelist", "file", "-i", "file:/a", "-i", "file:/b"},
		{"-i"},
	} {
		if err := r.Run(t.Context(), Command{Args: args}); err == nil || !strings.Contains(err.Error(), "not guarded") {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestRunReportsProgress(t *testing.T) {
	t.Parallel()
	r := runner(t)
	var frames []int64
	var at time.Duration
	out := filepath.Join(t.TempDir(), "out.mp4")
	err := r.Run(t.Context(), Command{
		Args:     r.Args(Input{Path: small(t)}, Output{Path: out, Format: "mp4", Options: []Option{Opt("c:v", "libx264")}}),
		Progress: func(n int64, outTime time.Duration) { frames, at = append(frames, n), outTime },
		Timeout:  time.Minute, StallTimeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(frames) == 0 || frames[len(frames)-1] != 10 || !slices.IsSorted(frames) || at <= 0 || at > 500*time.Millisecond {
		t.Errorf("frames %v, time %v", frames, at)
	}
}

// TestRunPipes sends raw frames through ffmpeg on standard input and output.
func TestRunPipes(t *testing.T) {
	t.Parallel()
	r := runner(t)
	frames := bytes.Repeat([]byte{0, 50, 100, 150}, 4*100)
	var out bytes.Buffer
	err := r.Run(t.Context(), Command{
		Args:  []string{"-f", "rawvideo", "-pixel_format", "gray", "-video_size", "4x4", "-i", "pipe:0", "-vf", "negate", "-f", "rawvideo", "pipe:1"},
		Stdin: bytes.NewReader(frames), Stdout: &out, Timeout: time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Repeat([]byte{255, 205, 155, 105}, 4*100); !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%d bytes came back of %d, or others", out.Len(), len(want))
	}
}

func TestRunFailureCarriesTail(t *testing.T) {
	t.Parallel()
	r := runner(t)
	err := r.Run(t.Context(), Command{Args: r.Args(Input{Path: "/nonexistent.mp4"}, Output{Path: "/dev/null", Format: "null"})})
	var failed *Error
	var exit *exec.ExitError
	if !errors.As(err, &failed) || !errors.As(err, &exit) || exit.ExitCode() == 0 || !strings.Contains(failed.Tail, "No such file") {
		t.Errorf("error %v", err)
	}
}

func TestRunBoundsStandardError(t *testing.T) {
	t.Parallel()
	r := script(t, `i=0; while [ $i -lt 3000 ]; do echo "line $i: ffffffffffffffffffffffffffffffffffffffffffffffff" >&2; i=$((i+1)); done; exit 3`)
	err := r.Run(t.Context(), Command{})
	var failed *Error
	if !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if len(failed.Tail) > tailBytes || len(failed.Tail) < tailBytes/2 || !strings.HasSuffix(failed.Tail, "line 2999: "+strings.Repeat("f", 48)) {
		t.Errorf("tail of %d bytes ends with %q", len(failed.Tail), failed.Tail[max(0, len(failed.Tail)-80):])
	}
}

// TestRunEnds ends a run in each way that is not its own, and looks for what is left of it.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	cause := errors.New("the lease is lost")
	for _, c := range []struct {
		name   string
		change func(*Command)
		cancel bool
		want   error
	}{
		{"context", func(*Command) {}, true, context.Canceled},
		{"time limit", func(c *Command) { c.Timeout = 300 * time.Millisecond }, false, ErrTimeout},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := runner(t)
			path := small(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			command := endless(r, path)
			c.change(&command)
			done := make(chan error, 1)
			go func() { done <- r.Run(ctx, command) }()
			var canceled time.Time
			if c.cancel {
				until(t, 20*time.Second, "ffmpeg to start", func() bool { return len(running(t, path)) == 1 })
				canceled = time.Now()
				cancel(cause)
			}
			err := <-done
			if took := time.Since(canceled); c.cancel && took > 5*time.Second {
				t.Errorf("the run took %v to end", took)
			}
			if !errors.Is(err, c.want) || (c.cancel && !errors.Is(err, cause)) {
				t.Errorf("error %v", err)
			}
			if left := running(t, path); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

// TestRunStalls reads a pipe into which nobody writes.
func TestRunStalls(t *testing.T) {
	t.Parallel()
	r := runner(t)
	path := filepath.Join(t.TempDir(), "silent.mp4")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	// Opened for both, the pipe has a writer, and ffmpeg waits for bytes.
	hold, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	err = r.Run(t.Context(), Command{
		Args:         r.Args(Input{Path: path}, Output{Path: "/dev/null", Format: "null"}),
		StallTimeout: 300 * time.Millisecond, Timeout: time.Minute,
	})
	if !errors.Is(err, ErrStalled) {
		t.Errorf("error %v", err)
	}
	if left := running(t, path); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestWatch moves slowly, each time just before the watchdog would cry, and then reports without moving.
func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const stall = time.Minute
		cried := make(chan struct{})
		w := &watch{stall: stall, stalled: func() { close(cried) }}
		read, write := io.Pipe()
		w.arm()
		go w.follow(read)
		say := func(frame int) {
			fmt.Fprintf(write, "frame=%d\nout_time_us=N/A\ntotal_size=48\nprogress=continue\n", frame)
		}
		began := time.Now()
		for frame := range 20 {
			time.Sleep(stall - time.Second)
			say(frame + 1)
		}
		synctest.Wait()
		select {
		case <-cried:
			t.Fatalf("cried after %v", time.Since(began))
		default:
		}
		moved := time.Now()
		for range 3 {
			time.Sleep(stall / 4)
			say(20)
		}
		<-cried
		if stood := time.Since(moved); stood != stall {
			t.Errorf("cried %v after the last frame, want %v", stood, stall)
		}
		write.Close()
	})
}

// TestRunKillsTheGroup has a child that starts another and hides from gentler signals.
func TestRunKillsTheGroup(t *testing.T) {
	t.Parallel()
	mark := filepath.Join(t.TempDir(), "mark")
	r := script(t, fmt.Sprintf("trap '' TERM INT HUP\nsh -c 'trap \"\" TERM; : > %[1]s; while :; do sleep 0.1; done' %[1]s &\nwait", mark))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx, Command{}) }()
	until(t, 20*time.Second, "the grandchild", func() bool { _, err := os.Stat(mark); return err == nil })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	// The grandchild's parent is gone too; init reaps it in its own time.
	until(t, 5*time.Second, "the grandchild's end", func() bool { return len(running(t, mark)) == 0 })
}

// TestRunDiesWithItsParent kills the parent as nothing can be caught.
func TestRunDiesWithItsParent(t *testing.T) {
	t.Parallel()
	path := small(t)
	parent := exec.Command(os.Args[0])
	// Killed, the parent cannot remove its working directory.
	parent.Env = append(os.Environ(), orphanEnv+"="+path, "TMPDIR="+t.TempDir())
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = parent.Process.Kill(); _ = parent.Wait() }()
	until(t, 30*time.Second, "the child's ffmpeg", func() bool { return len(running(t, path)) == 1 })
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, 5*time.Second, "ffmpeg to die with its parent", func() bool { return len(running(t, path)) == 0 })
}

// TestRunIsolation looks out from inside a run.
func TestRunIsolation(t *testing.T) {
	t.Parallel()
	r := script(t, `n=0; while [ "$(ulimit -c)" != 0 -o "$(ulimit -f)" = unlimited ] && [ $n -lt 200 ]; do sleep 0.02; n=$((n+1)); done
pwd; env; echo "core $(ulimit -c) file $(ulimit -f) data $(ulimit -d)"; cat /proc/net/dev`)
	var out bounded
	out.most = 1 << 16
	if err := r.Run(t.Context(), Command{Stdout: &out, Timeout: time.Minute}); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	dir, _, _ := strings.Cut(text, "\n")
	if !strings.Contains(dir, "ffmpeg-") {
		t.Errorf("working directory %q", dir)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if home := os.Getenv("HOME"); home != "" && strings.Contains(text, "HOME="+home+"\n") || strings.Contains(text, "GOPATH") || !strings.Contains(text, "HOME="+dir+"\n") {
		t.Errorf("environment in %q", text)
	}
	// dash counts files in blocks of 512 bytes and data in kilobytes.
	if want := fmt.Sprintf("core 0 file %d data %d", r.limits.FileBytes/512, r.limits.MemoryBytes/1024); !strings.Contains(text, want) {
		t.Errorf("limits in %q, want %q", text, want)
	}
	devices := strings.Count(text, ":") - strings.Count(strings.Split(text, "Inter-|")[0], ":")
	if r.NoNetwork() && (devices != 1 || !strings.Contains(text, "lo:")) {
		t.Errorf("network devices in %q", text)
	}
}

// TestRunFileLimit writes beyond RLIMIT_FSIZE.
func TestRunFileLimit(t *testing.T) {
	t.Parallel()
	r := *runner(t)
	r.limits.FileBytes = 64 << 10
	path, out := small(t), filepath.Join(t.TempDir(), "out.mkv")
	command := endless(&r, path)
	command.Args = r.Args(Input{Path: path, Options: []Option{Int("stream_loop", -1)}}, Output{Path: out, Format: "matroska", Options: []Option{Opt("c:v", "rawvideo")}})
	command.Timeout = time.Minute
	if err := r.Run(t.Context(), command); err == nil || errors.Is(err, ErrTimeout) {
		t.Errorf("error %v", err)
	}
	if info, err := os.Stat(out); err != nil || info.Size() > 64<<10 {
		t.Errorf("file %v, %v", info, err)
	}
}

func TestTail(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	tail := &tail{}
	for i := range 2000 {
		text := strings.Repeat(strconv.Itoa(i%10), 1+i*7%(2*tailBytes/10))
		all.WriteString(text)
		if n, err := tail.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
		if want := all.String()[max(0, all.Len()-tailBytes):]; tail.String() != want {
			t.Fatalf("after %d writes the tail is wrong", i+1)
		}
	}
}

func FuzzProgress(f *testing.F) {
	f.Add("frame=10\nfps=0.0\nout_time_us=400000\ntotal_size=N/A\nprogress=continue\nframe=12\nprogress=end\n")
	f.Add("frame=-1\nout_time_us=99999999999999999999\nprogress=\n=\nprogress")
	f.Fuzz(func(t *testing.T, text string) {
		read, write, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = write.WriteString(text)
			write.Close()
		}()
		w := &watch{report: func(frames int64, at time.Duration) {
			if frames < 0 || at < 0 {
				t.Errorf("%d frames at %v", frames, at)
			}
		}}
		w.follow(read)
		read.Close()
	})
}
