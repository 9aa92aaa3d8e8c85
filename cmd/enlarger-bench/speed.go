package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/disintegration/imaging"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	imagetools "enlarger/engine/image"
	"enlarger/engine/neural"
	"enlarger/engine/turbojpeg"
)

// speedCommand is the first argument that asks for the image tools' time and memory; speedChild that of the process that runs one tool once, speedSource
// that of the one that makes a source.
const (
	speedCommand = "speed"
	speedChild   = "speed-run"
	speedSource  = "speed-source"
)

// speedTrial is one line of the table: a tool, and what other programs do that comes nearest.
type speedTrial struct {
	tool, config, what string
	// growth is the output's pixels in those of the source; fixed says that the output's size does not follow the source.
	growth float64
	fixed  bool
	format string
	// noise is that of the source, in 8-bit codes; quality is that of the source as a JPEG, 92 when it is 0.
	noise   float64
	quality int
	// magick are the arguments of ImageMagick between source and result; vips is a command of libvips with IN and OUT.
	magick, vips string
}

func speedTrials() []speedTrial {
	return []speedTrial{
		{tool: "custom", config: `{"prompt":"resize to 50%"}`, what: "halve: decode, resize, encode", growth: 0.25, magick: "-filter Lanczos -resize 50% -quality 92", vips: "resize IN OUT[Q=92] 0.5"},
		{tool: "custom", config: `{"prompt":"brighter, more contrast, sepia"}`, what: "three corrections of colour", growth: 1, magick: "-gamma 1.3 -sigmoidal-contrast 3x50% -sepia-tone 80% -quality 92", vips: "gamma IN OUT[Q=92] --exponent 1.3"},
		{tool: "custom", config: `{"prompt":"blur by 10%"}`, what: "blur", growth: 1, magick: "-gaussian-blur 0x3 -quality 92", vips: "gaussblur IN OUT[Q=92] 3"},
		{tool: "upscale", config: `{"scale":2}`, what: "x2", growth: 4, magick: "-filter Lanczos -resize 200% -quality 92", vips: "resize IN OUT[Q=92] 2"},
		{tool: "upscale", config: `{"scale":4}`, what: "x4", growth: 16, magick: "-filter Lanczos -resize 400% -quality 92", vips: "resize IN OUT[Q=92] 4"},
		{tool: "sharpen", config: `{}`, growth: 1, magick: "-unsharp 0x1.2 -quality 92", vips: "sharpen IN OUT[Q=92]"},
		{tool: "denoise", config: `{}`, growth: 1, noise: 20, magick: "-statistic median 3x3 -quality 92", vips: "rank IN OUT[Q=92] 3 3 4"},
		{tool: "remove_bg", config: `{}`, growth: 1, format: "png", magick: "-fuzz 10% -transparent white"},
		{tool: "restore", config: `{}`, growth: 1, noise: 2, quality: 25, magick: "-despeckle -contrast-stretch 0.5% -unsharp 0x1 -quality 92"},
		{tool: "cartoonize", config: `{"style":"anime"}`, what: "anime", growth: 1, magick: "-paint 3 -quality 92"},
		{tool: "cartoonize", config: `{"style":"comic"}`, what: "comic", growth: 1},
		{tool: "cartoonize", config: `{"style":"sketch"}`, what: "sketch", growth: 1, magick: "-colorspace gray -sketch 0x10+135 -quality 92"},
		{tool: "cartoonize", config: `{"style":"watercolor"}`, what: "watercolor", growth: 1},
		{tool: "cartoonize", config: `{"style":"oil"}`, what: "oil", growth: 1, magick: "-paint 6 -quality 92"},
		{tool: "passport_photo", config: `{}`, growth: 1, fixed: true, magick: "-resize 826x1062^ -gravity center -extent 826x1062 -density 600 -quality 92", vips: "thumbnail IN OUT[Q=92] 826 --height 1062 --crop centre"},
	}
}

type speedOptions struct {
	sizes  []float64
	tools  []string
	rounds int
	photo  string
	peers  bool
	slow   time.Duration
	// limit bounds one run of one program, and total the whole: what is left then is not run.
	limit, total time.Duration
}

func parseSpeed(args []string, stderr io.Writer) (*speedOptions, error) {
	o := &speedOptions{}
	flags := flag.NewFlagSet("enlarger-bench "+speedCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	sizes := flags.String("megapixels", "1,12,48", "output sizes")
	tools := flags.String("tools", "", "tools to measure; all by default")
	flags.IntVar(&o.rounds, "rounds", 3, "runs of each line; the fastest counts, 1-20")
	flags.StringVar(&o.photo, "photo", "fixtures/media/astronaut.png", "the photo that sources of all sizes are made of")
	flags.BoolVar(&o.peers, "peers", true, "run ImageMagick and libvips beside ours")
	flags.DurationVar(&o.slow, "slow", 20*time.Second, "what takes longer is run once only")
	flags.DurationVar(&o.limit, "limit", 5*time.Minute, "what takes longer, or by its time at a smaller size would, is not run or ended, and its row says so")
	flags.DurationVar(&o.total, "total", 45*time.Minute, "what is left after this is not run, and its row says so")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	for word := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.ParseFloat(word, 64)
		if err != nil || n < 0.01 || n > 200 {
			return nil, fmt.Errorf("%w: -megapixels: %q is none of 0.01 to 200", errUsage, word)
		}
		o.sizes = append(o.sizes, n)
	}
	if *tools != "" {
		o.tools = strings.Split(*tools, ",")
	}
	if o.rounds < 1 || o.rounds > 20 || flags.NArg() > 0 {
		return nil, fmt.Errorf("%w: -rounds must be 1 to 20, and nothing may follow the flags", errUsage)
	}
	return o, nil
}

// spent is what one run of a program took.
type spent struct {
	wall time.Duration
	// processor is the time on all processors.
	processor time.Duration
	// peak is the most memory it held, in bytes: the resident set, page cache not counted.
	peak int64
	// note is what it did, or why it did nothing.
	note string
	ok   bool
	// estimate and base are ours alone: the bytes that the tool says a run will take, and what the process held before it.
	estimate, base int64
}

// speed prints how long the image tools take and how much memory they hold, each run a process of its own, beside other programs on the same file.
func speed(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseSpeed(args, stderr)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	scratch, err := os.MkdirTemp("", "speed-*")
	if err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	defer os.RemoveAll(scratch)
	fmt.Fprint(stdout, machineFacts(append([]string{speedCommand}, args...), time.Now()))
	magick, vips := "", ""
	if o.peers {
		magick, vips = findMagick(ctx), findVips(ctx)
	}
	fmt.Fprintf(stdout, "ImageMagick: %s. libvips: %s.\n\n", orMissing(magick), orMissing(vips))
	known := imagetools.Tools(imagetools.Options{})
	rows := [][]string{{"tool", "output", "method", "time (processor)", "processor a megapixel", "peak memory", "of it the job's, estimated", "ImageMagick", "libvips"}}
	end := time.Now().Add(o.total)
	b := speedBench{options: o, self: self, scratch: scratch, magick: magick, vips: vips, log: stderr}
	for _, t := range speedTrials() {
		offered := slices.ContainsFunc(known, func(k engine.Tool) bool { return k.Name == t.tool })
		if !offered || (len(o.tools) > 0 && !slices.Contains(o.tools, t.tool)) {
			continue
		}
		pace := 0.0 // seconds a megapixel at the size before
		for i, size := range o.sizes {
			if t.fixed && i > 0 {
				continue
			}
			row := []string{t.label(), fmt.Sprintf("%g MP", size)}
			switch expected := time.Duration(pace * size * float64(time.Second)); {
			case ctx.Err() != nil:
				row = append(row, "not run: stopped")
			case time.Now().After(end):
				row = append(row, fmt.Sprintf("not run: the whole has taken %s", o.total))
			case expected > o.limit:
				row = append(row, fmt.Sprintf("not run: it would take about %s", expected.Round(time.Second)))
			default:
				row, pace = b.line(ctx, t, size)
			}
			rows = append(rows, append(row, make([]string, len(rows[0])-len(row))...))
		}
	}
	fmt.Fprint(stdout, table(rows))
	fmt.Fprintf(stdout, "\nOurs is timed from file to file inside a process of its own, the others from start to end of theirs, which adds some hundredths of a second. "+
		"Our computing yields to everything else (niceness 10): compare times on a quiet machine, processor times on any. Memory is the peak resident set of the process; the job's part of it is what came "+
		"after the models were loaded. An exclamation mark says that it was more than the tool's own estimate, by which jobs are admitted.\n")
	fmt.Fprintf(stdout, "\nLoad average at the end: %s.\n", loadAverage())
	return context.Cause(ctx)
}

func orMissing(program string) string {
	if program == "" {
		return "not here, not measured"
	}
	return program
}

// findMagick is the first ImageMagick among the programs of its usual names, or "".
func findMagick(ctx context.Context) string {
	for _, name := range []string{"magick", "/usr/bin/convert", "convert"} {
		out, err := exec.CommandContext(ctx, name, "-version").Output()
		if err == nil && bytes.Contains(out, []byte("Version: ImageMagick")) {
			return name + " (" + strings.Join(strings.Fields(string(out))[1:3], " ") + ")"
		}
	}
	return ""
}

func findVips(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "vips", "--version").Output()
	if err != nil {
		return ""
	}
	return "vips (" + strings.TrimSpace(string(out)) + ")"
}

type speedBench struct {
	options       *speedOptions
	self, scratch string
	magick, vips  string
	log           io.Writer
}

func (t speedTrial) label() string { return strings.TrimSpace("`" + t.tool + "` " + t.what) }

// line measures one tool at one output size; a run that fails has its reason in the row. pace is our seconds a megapixel, 0 where there are none.
func (b *speedBench) line(ctx context.Context, t speedTrial, megapixels float64) (row []string, pace float64) {
	output := fmt.Sprintf("%g MP", megapixels)
	if t.fixed {
		output = "826x1062"
	}
	row = []string{t.label(), output}
	source, err := b.source(ctx, megapixels/t.growth, t.noise, t.quality)
	if err != nil {
		return append(row, "failed: "+err.Error()), 0
	}
	format := t.format
	if format == "" {
		format = "jpg"
	}
	fmt.Fprintf(b.log, "%s %s %g MP\n", t.tool, t.what, megapixels)
	ours := b.best(ctx, func(out string) []string { return []string{b.self, speedChild, t.tool, t.config, format, source, out} }, format)
	if !ours.ok {
		return append(row, "failed: "+ours.note), 0
	}
	pace = ours.wall.Seconds() / megapixels
	im := b.peer(ctx, b.magick, format, ours, func(name, out string) []string {
		if t.magick == "" {
			return nil
		}
		return append(append([]string{name, source}, strings.Fields(t.magick)...), out)
	})
	vips := b.peer(ctx, b.vips, format, ours, func(name, out string) []string {
		if t.vips == "" {
			return nil
		}
		return append([]string{name}, strings.Fields(strings.NewReplacer("IN", source, "OUT", out).Replace(t.vips))...)
	})
	if t.fixed {
		megapixels = 826 * 1062 / 1e6
	}
	own, mark := ours.peak-ours.base, ""
	if own > ours.estimate {
		mark = " !"
	}
	return append(row,
		ours.note, fmt.Sprintf("%s (%s)", seconds(ours.wall), seconds(ours.processor)), fmt.Sprintf("%.3f s", ours.processor.Seconds()/megapixels),
		fmt.Sprintf("%d MB", ours.peak>>20), fmt.Sprintf("%d MB, %d MB%s", own>>20, ours.estimate>>20, mark), im, vips), pace
}

// peer runs another program and says how it compares, or why it does not.
func (b *speedBench) peer(ctx context.Context, program, format string, ours spent, args func(name, out string) []string) string {
	name, _, _ := strings.Cut(program, " (")
	if name == "" || args(name, "") == nil {
		return ""
	}
	s := b.best(ctx, func(out string) []string { return args(name, out) }, format)
	if !s.ok {
		return "failed: " + s.note
	}
	return fmt.Sprintf("%s (%s), %d MB; ours %.1fx", seconds(s.wall), seconds(s.processor), s.peak>>20, ours.wall.Seconds()/s.wall.Seconds())
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// best is the fastest of the runs, with the most memory of any.
func (b *speedBench) best(ctx context.Context, command func(out string) []string, format string) spent {
	all := spent{}
	for range b.options.rounds {
		out := filepath.Join(b.scratch, "out."+format)
		_ = os.Remove(out)
		s := measureCommand(ctx, b.options.limit, command(out))
		if !s.ok {
			return s
		}
		// A worker does not start a program for a job, so ours counts from the file to the file; the child says how long that took.
		var method string
		var took, used, estimate, base int64
		if n, _ := fmt.Sscan(s.note, &method, &took, &used, &estimate, &base); n == 5 {
			s.note, s.wall, s.processor = method, time.Duration(took), time.Duration(used)
			all.estimate, all.base = estimate, base
		}
		if !all.ok || s.wall < all.wall {
			all.wall, all.processor, all.note = s.wall, s.processor, s.note
		}
		all.ok, all.peak = true, max(all.peak, s.peak)
		if s.wall > b.options.slow {
			break
		}
	}
	return all
}

// measureCommand runs a program to its end. The memory is the most that it or a child it waited for held.
func measureCommand(ctx context.Context, limit time.Duration, command []string) spent {
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return spent{note: fmt.Sprintf("ended after %s", limit)}
	}
	if err != nil {
		return spent{note: fmt.Sprintf("%v: %.200s", err, strings.Join(strings.Fields(problems.String()), " "))}
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return spent{note: "no resource usage on this system"}
	}
	return spent{wall: wall, processor: cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), peak: usage.Maxrss << 10, note: strings.TrimSpace(out.String()), ok: true}
}

// source makes a JPEG of so many megapixels of the photo, with a little grain where it shall not be noisy, so that it is not smoother than photos are.
func (b *speedBench) source(ctx context.Context, megapixels, noise float64, quality int) (string, error) {
	path := filepath.Join(b.scratch, fmt.Sprintf("source-%g-%g-%d.jpg", megapixels, noise, quality))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	side := strconv.Itoa(int(math.Round(math.Sqrt(megapixels * 1e6))))
	// In a process of its own: what this one ever held would count as the memory of those it starts.
	command := []string{b.self, speedSource, b.options.photo, side, strconv.FormatFloat(max(noise, 1.5), 'g', -1, 64), strconv.Itoa(cmp.Or(quality, 92)), path}
	if made := measureCommand(ctx, b.options.limit, command); !made.ok {
		return "", fmt.Errorf("make a source of %g MP: %s", megapixels, made.note)
	}
	return path, nil
}

// serveSource is the child process that makes a source: the photo as a square of so many pixels a side, with noise, as a JPEG.
func serveSource(args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("%w: %s takes a photo, a side, noise, a quality and a result", errUsage, speedSource)
	}
	photo, err := imaging.Open(args[0])
	if err != nil {
		return err
	}
	side, err1 := strconv.Atoi(args[1])
	noise, err2 := strconv.ParseFloat(args[2], 64)
	quality, err3 := strconv.Atoi(args[3])
	if err := errors.Join(err1, err2, err3); err != nil {
		return fmt.Errorf("%w: %s: %w", errUsage, speedSource, err)
	}
	if side < 1 || side > 20000 {
		return fmt.Errorf("%w: %s of side %d", errUsage, speedSource, side)
	}
	return saveSource(args[4], grainy(imaging.Resize(photo, side, side, imaging.CatmullRom), noise), quality)
}

// serveSpeed is the child process: it runs one tool once, with what this machine has, and prints the method.
func serveSpeed(ctx context.Context, args []string) error {
	if len(args) != 5 {
		return fmt.Errorf("%w: %s takes a tool, a config, a format, a source and a result", errUsage, speedChild)
	}
	options := imagetools.Options{}
	if library, err := neural.FindLibrary(""); err == nil {
		runtime, err := neural.Open(ctx, neural.Config{Library: library})
		if err != nil {
			return err
		}
		defer runtime.Close()
		options.Neural = runtime
	}
	if library, err := turbojpeg.Open(); err == nil {
		options.Turbo = library
	}
	if runner, err := ffmpeg.Open(ffmpeg.Config{}); err == nil {
		options.FFmpeg = runner
	}
	base := peakMemory()
	start, before := time.Now(), processorTime()
	out, estimate, err := runTool(ctx, options, args[0], []byte(args[1]), args[2], args[3], args[4])
	if err != nil {
		return err
	}
	took, used := time.Since(start), processorTime()-before
	method := out.Facts["method"]
	if model, ok := out.Facts["model"]; ok {
		method = model
	}
	_, err = fmt.Printf("%s %d %d %d %d\n", strings.ReplaceAll(fmt.Sprint(method), " ", ""), took.Nanoseconds(), used.Nanoseconds(), estimate, base)
	return err
}

// peakMemory is the most that this process has held, in bytes.
func peakMemory() int64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return u.Maxrss << 10
}

// processorTime is what this process and the children that it waited for have used.
func processorTime() time.Duration {
	sum := time.Duration(0)
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if syscall.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// runTool runs a tool on a file as a worker does. The estimate is the memory that a worker would admit it by.
func runTool(ctx context.Context, options imagetools.Options, tool string, config []byte, format, in, out string) (result engine.Output, estimate int64, err error) {
	order, err := engine.NewCatalog(engine.DefaultLimits(), imagetools.Tools(options)...).Order(tool, config, format)
	if err != nil {
		return engine.Output{}, 0, err
	}
	source, err := order.Measure(ctx, in)
	if err != nil {
		return engine.Output{}, 0, err
	}
	plan, err := order.Plan(source)
	if err != nil {
		return engine.Output{}, 0, err
	}
	scratch, err := os.MkdirTemp(filepath.Dir(out), "job-*")
	if err != nil {
		return engine.Output{}, 0, err
	}
	defer os.RemoveAll(scratch)
	task := engine.Task{Plan: plan, Source: source, Input: in, Output: out, Scratch: scratch}
	result, err = order.Process(ctx, task)
	return result, order.Memory(task), err
}
