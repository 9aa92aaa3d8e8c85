// Package ffmpeg runs ffmpeg and ffprobe on foreign media and is the only package of the engine that starts a process. It
// hides what makes that safe: whitelists of protocols, containers and codecs in front of every input, limits on pixels, memory,
// file size and time, no network, no inherited environment, a private working directory, a process group that dies with its
// context and with its parent, a watchdog for a run that stands still, and bounded output. Callers see typed facts of a file
// (Probe), arguments as a pure function (Args) and one call that runs them (Run).
package ffmpeg

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config says which programs to run and within which bounds. The zero value works where ffmpeg is installed.
type Config struct {
	// FFmpeg and FFprobe are paths, or names looked up in PATH; by default "ffmpeg" and "ffprobe".
	FFmpeg, FFprobe string
	// Threads is how many threads one run may use for decoding, filtering and encoding each; by default the number of CPUs.
	Threads int
	// Scratch is the folder in which each run gets its private working directory (ffmpeg-*, removed when the run ends); by default
	// the system's. A process that is killed leaves its directories behind, so a service names a folder that it sweeps.
	Scratch string
	// Limits bound one run; zero fields take their default.
	Limits Limits
}

// Limits bound what one run may take.
type Limits struct {
	// Pixels is the most pixels of a decoded frame; by default 8192x4352, so that an 8K file can still be measured.
	Pixels int64
	// MemoryBytes is the most private memory of one process (RLIMIT_DATA); by default 8 GiB. The largest permitted output,
	// 4096x2160 in 10 bit, stays under it.
	MemoryBytes uint64
	// FileBytes is the largest file a process may write (RLIMIT_FSIZE); by default 64 GiB.
	FileBytes uint64
	// Packets is the most video packets that Probe counts; by default 5 million, 11 hours at 120 frames a second.
	Packets int64
	// ProbeTime is the longest one step of a probe may take before the time that reading the file itself needs; by default 30 s.
	ProbeTime time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Pixels == 0 {
		l.Pixels = 8192 * 4352
	}
	if l.MemoryBytes == 0 {
		l.MemoryBytes = 8 << 30
	}
	if l.FileBytes == 0 {
		l.FileBytes = 64 << 30
	}
	if l.Packets == 0 {
		l.Packets = 5_000_000
	}
	if l.ProbeTime == 0 {
		l.ProbeTime = 30 * time.Second
	}
	return l
}

// Runner runs one ffmpeg installation. It is safe for concurrent use and holds nothing that needs closing.
type Runner struct {
	ffmpeg, ffprobe string
	version         string
	threads         int
	scratch         string
	limits          Limits
	isolation       isolation
}

// oldestMajor is the first release with every option used here (-fps_mode).
const oldestMajor = 5

// What every run relies on.
var (
	neededFilters = []string{
		"zscale", "scale", "minterpolate", "framerate", "fps", "tpad", "trim", "bwdif", "setparams", "lut3d", "split", "extractplanes", "blend", "pad",
		"fillborders",
	}
	neededEncoders = []string{"libx264", "libx265", "aac", "mov_text"}
)

// openTime bounds each of the few short runs that Open makes.
const openTime = 20 * time.Second

// Open finds the two programs and checks that they can do what the engine asks of them. The error says what is missing and
// how to mend it.
func Open(c Config) (*Runner, error) {
	r := &Runner{threads: c.Threads, scratch: c.Scratch, limits: c.Limits.withDefaults()}
	if r.threads <= 0 {
		r.threads = runtime.NumCPU()
	}
	var err error
	if r.ffmpeg, err = resolve(c.FFmpeg, "ffmpeg"); err != nil {
		return nil, err
	}
	if r.ffprobe, err = resolve(c.FFprobe, "ffprobe"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*openTime)
	defer cancel()
	if r.isolation, err = r.detectIsolation(ctx); err != nil {
		return nil, err
	}
	banner, err := r.ask(ctx, r.ffmpeg, "-version")
	if err != nil {
		return nil, err
	}
	if r.version, err = version(banner); err != nil {
		return nil, fmt.Errorf("%s: %w; %s", r.ffmpeg, err, remedy)
	}
	for _, need := range []struct {
		flag  string
		names []string
	}{{"-filters", neededFilters}, {"-encoders", neededEncoders}} {
		list, err := r.ask(ctx, r.ffmpeg, need.flag)
		if err != nil {
			return nil, err
		}
		if missing := missingNames(list, need.names); len(missing) > 0 {
			return nil, fmt.Errorf("%s has no %s (%s); %s", r.ffmpeg, strings.Join(missing, ", "), strings.TrimPrefix(need.flag, "-"), remedy)
		}
	}
	return r, nil
}

const remedy = "run `make deps`, or install an ffmpeg of version 5.1 or later built with libx264, libx265 and libzimg"

func resolve(name, fallback string) (string, error) {
	if name == "" {
		name = fallback
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s: %w; %s", fallback, err, remedy)
	}
	// A run has its own working directory, so a relative path would no longer be found.
	if path, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("find %s: %w", fallback, err)
	}
	return path, nil
}

// ask runs a program for its own description, which is a few tens of kilobytes.
func (r *Runner) ask(ctx context.Context, program string, args ...string) (string, error) {
	const most = 1 << 20
	var out bounded
	out.most = most
	err := r.start(ctx, process{program: program, args: append([]string{"-hide_banner"}, args...), stdout: &out, timeout: openTime})
	if err != nil {
		return "", fmt.Errorf("%s %s: %w; %s", program, strings.Join(args, " "), err, remedy)
	}
	return out.String(), nil
}

var versionLine = regexp.MustCompile(`^(?:ffmpeg|ffprobe) version (\S+)`)

// version reads the release from the first line of -version. Builds from source name a commit (N-12345-g...) and are taken as new.
func version(banner string) (string, error) {
	found := versionLine.FindStringSubmatch(banner)
	if found == nil {
		return "", errors.New("it does not say its version")
	}
	number, _, _ := strings.Cut(strings.TrimPrefix(found[1], "n"), ".")
	if major, err := strconv.Atoi(number); err == nil && major < oldestMajor {
		return "", fmt.Errorf("version %s is too old", found[1])
	}
	return found[1], nil
}

// missingNames says which names are not the second column of ffmpeg's -filters or -encoders.
func missingNames(list string, names []string) []string {
	have := map[string]bool{}
	for line := range strings.Lines(list) {
		if columns := strings.Fields(line); len(columns) > 1 {
			have[columns[1]] = true
		}
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return have[name] })
}

// Version is the release of the ffmpeg in use, as it names itself.
func (r *Runner) Version() string { return r.version }

// Threads is how many threads one run may use.
func (r *Runner) Threads() int { return r.threads }

// NoNetwork says whether runs have no network at all. It is false where the kernel or a container's rules refuse new
// namespaces; the protocol whitelist is then the only guard.
func (r *Runner) NoNetwork() bool { return r.isolation != isolationNone }

// Isolation names how runs are cut off from the network, for the operator's log.
func (r *Runner) Isolation() string { return r.isolation.String() }
