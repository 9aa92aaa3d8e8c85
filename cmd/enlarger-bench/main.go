// Command enlarger-bench measures enlarger and prints the tables of docs/benchmarks.md as Markdown: how fast POST /jobs answers while
// workers are busy, and how many jobs a second go from submit to succeeded beside bare queues on the same servers. It starts every
// server it needs, real ones, on private ports, and checks the books at the end: figures of a run whose audit is not clean are
// not printed. `enlarger-bench quality` prints the tables of docs/quality.md instead.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/pprof"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	parts, modes []string

	rate             int
	duration, warmUp time.Duration
	photo            string

	jobs, rounds int
	slots        int
	accounts     int
	noSync       bool
	profileJobs  int

	// queued and ended are the jobs in the table of the scale part.
	queued, ended int

	cpuProfile string
}

func main() {
	if isStore(os.Args) {
		exit(serveStore(os.Args[2], os.Stdout))
	}
	if isNoopWorker(os.Args) {
		exit(serveNoopWorker(os.Args[2]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	measure, args := run, os.Args[1:]
	if len(args) > 0 && args[0] == qualityCommand {
		measure, args = quality, args[1:]
	}
	switch {
	case len(args) > 0 && args[0] == speedCommand:
		measure, args = speed, args[1:]
	case len(args) > 0 && args[0] == speedSource:
		measure = func(_ context.Context, args []string, _, _ io.Writer) error { return serveSource(args[1:]) }
	case len(args) > 0 && args[0] == speedChild:
		measure = func(ctx context.Context, args []string, _, _ io.Writer) error { return serveSpeed(ctx, args[1:]) }
	case len(args) > 0 && args[0] == videoCommand:
		measure, args = video, args[1:]
	case len(args) > 0 && args[0] == videoChild:
		measure = func(ctx context.Context, args []string, _, _ io.Writer) error { return serveVideo(ctx, args[1:]) }
	case len(args) > 0 && args[0] == videoNet:
		measure = func(ctx context.Context, args []string, _, _ io.Writer) error { return serveNet(ctx, args[1:]) }
	case len(args) > 0 && args[0] == picturesCommand:
		measure, args = pictures, args[1:]
	}
	err := measure(ctx, args, os.Stdout, os.Stderr)
	stop()
	exit(err)
}

func exit(err error) {
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		os.Exit(0)
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, "enlarger-bench:", err)
		os.Exit(2)
	}
	fmt.Fprintln(os.Stderr, "enlarger-bench:", err)
	os.Exit(1)
}

// errUsage marks a faulty command line.
var errUsage = errors.New("usage")

// The parts of a run.
const (
	partLatency    = "latency"
	partThroughput = "throughput"
	partProfile    = "profile"
	partScale      = "scale"
)

// The modes that are measured.
const (
	modeEmbedded = "embedded"
	modeFleet    = "fleet"
)

func allParts() []string { return []string{partLatency, partThroughput, partProfile, partScale} }
func allModes() []string { return []string{modeEmbedded, modeFleet} }

func parse(args []string, stderr io.Writer) (*options, error) {
	o := &options{}
	flags := flag.NewFlagSet("enlarger-bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	parts := flags.String("parts", strings.Join(allParts(), ","), "what to measure")
	modes := flags.String("modes", strings.Join(allModes(), ","), "where to measure it; the profile is of the fleet alone")
	flags.IntVar(&o.rate, "rate", 50, "requests a second of the latency part, 1-1000")
	flags.DurationVar(&o.duration, "duration", 15*time.Second, "how long each line of the latency part is measured")
	flags.DurationVar(&o.warmUp, "warm-up", 3*time.Second, "how long each line of the latency part runs before it is measured")
	flags.StringVar(&o.photo, "photo", "fixtures/media/photo.jpg", "the image that the latency part sends")
	flags.IntVar(&o.jobs, "jobs", 500, "jobs of each round of the throughput part, submitted twice, 1-1000000")
	flags.IntVar(&o.rounds, "rounds", 3, "rounds of the throughput part; the table has their medians")
	flags.IntVar(&o.slots, "slots", 16, "jobs carried at the same time, and parallel submitters, 1-1000")
	flags.IntVar(&o.accounts, "accounts", 16, "accounts that the jobs of the throughput part belong to, 1-1000")
	flags.BoolVar(&o.noSync, "no-fsync", false, "run PostgreSQL with fsync=off")
	flags.IntVar(&o.profileJobs, "profile-jobs", 200, "jobs of the profile part, 1-1000000")
	flags.IntVar(&o.queued, "queued", 100_000, "waiting jobs of the scale part, 10000-10000000")
	flags.IntVar(&o.ended, "ended", 1_000_000, "ended jobs of the scale part, 1000-10000000")
	flags.StringVar(&o.cpuProfile, "cpuprofile", "", "write a CPU profile of this process to a file")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	o.parts, o.modes = strings.Split(*parts, ","), strings.Split(*modes, ",")
	return o, o.check(flags.Args())
}

func (o *options) check(rest []string) error {
	var faults []error
	if len(rest) > 0 {
		faults = append(faults, fmt.Errorf("%q is no flag", rest[0]))
	}
	for _, list := range []struct {
		name       string
		given, all []string
	}{{"parts", o.parts, allParts()}, {"modes", o.modes, allModes()}} {
		for _, word := range list.given {
			if !slices.Contains(list.all, word) {
				faults = append(faults, fmt.Errorf("-%s: %q is none of %s", list.name, word, strings.Join(list.all, ", ")))
			}
		}
	}
	for _, n := range []struct {
		name       string
		value, max int
	}{
		{"queued", o.queued, 10_000_000},
		{"ended", o.ended, 10_000_000},
		{"rate", o.rate, 1000},
		{"jobs", o.jobs, 1_000_000},
		{"rounds", o.rounds, 100},
		{"slots", o.slots, 1000},
		{"accounts", o.accounts, 1000},
		{"profile-jobs", o.profileJobs, 1_000_000},
	} {
		if n.value < 1 || n.value > n.max {
			faults = append(faults, fmt.Errorf("-%s must be 1 to %d", n.name, n.max))
		}
	}
	if o.duration < time.Second || o.warmUp < 0 || o.duration+o.warmUp > holdSlot {
		faults = append(faults, fmt.Errorf("-duration must be at least 1s, and with -warm-up at most %v", holdSlot))
	}
	if len(faults) > 0 {
		return fmt.Errorf("%w: %w", errUsage, errors.Join(faults...))
	}
	return nil
}

// in says whether a mode is to be measured.
func (o *options) in(mode string) bool { return slices.Contains(o.modes, mode) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	b := newBed(ctx, stderr)
	defer b.close(&err)
	if o.cpuProfile != "" {
		file, err := os.Create(o.cpuProfile)
		if err != nil {
			return fmt.Errorf("CPU profile: %w", err)
		}
		defer func() { _ = file.Close() }()
		if err := pprof.StartCPUProfile(file); err != nil {
			return fmt.Errorf("CPU profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	fmt.Fprint(stdout, machineFacts(args, time.Now()))
	for _, part := range o.parts {
		//nolint:contextcheck // testbed has a time limit of its own for each server it starts
		switch part {
		case partLatency:
			latencyPart(b, o, stdout)
		case partThroughput:
			throughputPart(b, o, stdout)
		case partProfile:
			profilePart(b, o, stdout)
		case partScale:
			scalePart(b, o, stdout)
		}
	}
	fmt.Fprintf(stdout, "\nThe run took %v; load average at its end %s.\n", time.Since(b.started).Round(time.Second), loadAverage())
	return nil
}
