package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"enlarger/engine"
	"enlarger/engine/ffmpeg"
	"enlarger/engine/neural"
	videotools "enlarger/engine/video"
)

// videoCommand is the first argument that asks for the video tools' speed and memory; videoChild and videoNet those of the processes that run
// one job, and a model alone.
const (
	videoCommand = "video"
	videoChild   = "video-run"
	videoNet     = "video-net"
)

// videoTime bounds one run of one program.
const videoTime = 30 * time.Minute

type videoOptions struct {
	sizes   []string
	seconds int
	rounds  int
	tools   []string
	photo   string
}

// benched are the tools that video measures.
var benched = []string{"video_upscale", "video_hdr"}

func parseVideo(args []string, stderr io.Writer) (*videoOptions, error) {
	o := &videoOptions{}
	flags := flag.NewFlagSet("enlarger-bench "+videoCommand, flag.ContinueOnError)
	flags.SetOutput(stderr)
	sizes := flags.String("sizes", "640x360,1280x720", "sizes of the source")
	flags.IntVar(&o.seconds, "seconds", 4, "length of the source, 25 frames a second, 1-600")
	flags.IntVar(&o.rounds, "rounds", 3, "runs of each command, in turn; the fastest counts, 1-20")
	tools := flags.String("tools", strings.Join(benched, ","), "tools to measure")
	flags.StringVar(&o.photo, "photo", "fixtures/media/astronaut.png", "the photo that the source wanders over")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	o.sizes = strings.Split(*sizes, ",")
	for _, size := range o.sizes {
		var width, height int
		if n, err := fmt.Sscanf(size, "%dx%d", &width, &height); n != 2 || err != nil || min(width, height) < 64 || max(width, height) > 2048 {
			return nil, fmt.Errorf("%w: -sizes: %q is no size of 64 to 2048", errUsage, size)
		}
	}
	o.tools = strings.Split(*tools, ",")
	for _, tool := range o.tools {
		if !slices.Contains(benched, tool) {
			return nil, fmt.Errorf("%w: -tools: %q is none of %s", errUsage, tool, strings.Join(benched, ", "))
		}
	}
	if o.seconds < 1 || o.seconds > 600 || o.rounds < 1 || o.rounds > 20 || flags.NArg() > 0 {
		return nil, fmt.Errorf("%w: -seconds must be 1 to 600, -rounds 1 to 20, and nothing may follow the flags", errUsage)
	}
	return o, nil
}

// videoJob is what a child process says of the job it ran.
type videoJob struct {
	Method   string `json:"method"`
	Frames   int64  `json:"frames"`
	Estimate int64  `json:"estimate"`
	// Wall and Processor are of the job from file to file, its ffmpeg included.
	Wall      time.Duration `json:"wall"`
	Processor time.Duration `json:"processor"`
}

// videoRun is one command, with its fastest run.
type videoRun struct {
	wall, processor time.Duration
	// peak is the most memory that the process and all under it held at once, in bytes.
	peak int64
	job  videoJob
}

// video prints how fast the video tools are beside the same ffmpeg command without us, and how much memory they take.
func video(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseVideo(args, stderr)
	if err != nil {
		return err
	}
	b := &videoBench{options: o, log: stderr}
	if b.self, err = os.Executable(); err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	if b.ffmpeg, err = exec.LookPath("ffmpeg"); err != nil {
		return fmt.Errorf("find ffmpeg: %w", err)
	}
	if b.scratch, err = os.MkdirTemp("", "video-*"); err != nil {
		return fmt.Errorf("scratch: %w", err)
	}
	defer os.RemoveAll(b.scratch)
	fmt.Fprint(stdout, machineFacts(append([]string{videoCommand}, args...), time.Now()))
	pipeline := [][]string{{"`video_upscale` x2 of", "bare ffmpeg, Lanczos", "the models alone", "the encoder alone", "ours", "bound / ours", "of processor time"}}
	hdr := [][]string{{"`video_hdr` of", "the same ffmpeg command, bare", "ours", "ours / bare", "of processor time"}}
	memory := [][]string{{"job", "most memory at once", "estimate"}}
	for _, size := range o.sizes {
		if err := b.source(ctx, size); err != nil {
			return err
		}
		for _, tool := range o.tools {
			switch tool {
			case "video_upscale":
				up, err := b.upscale(ctx, size)
				if err != nil {
					return err
				}
				pipeline, memory = append(pipeline, up.row), append(memory, up.memory...)
			case "video_hdr":
				wide, err := b.hdr(ctx, size)
				if err != nil {
					return err
				}
				hdr, memory = append(hdr, wide.row), append(memory, wide.memory...)
			}
		}
	}
	fmt.Fprint(stdout, "Frames a second; in brackets processor time a frame, all processes together.\n\n")
	if len(pipeline) > 1 {
		fmt.Fprintf(stdout, "The bound is the models and then the encoder, each alone with all %d processors: what is left when everything else costs nothing and the two never wait for each other.\n\n%s\n",
			runtime.NumCPU(), table(pipeline))
	}
	if len(hdr) > 1 {
		fmt.Fprintf(stdout, "%s\n", table(hdr))
	}
	fmt.Fprintf(stdout, "The memory of our process and all ffmpeg processes of the job, resident sets added up every 20 ms, and what the worker admits the job by.\n\n%s\n", table(memory))
	fmt.Fprintf(stdout, "Load average at the end: %s.\n", loadAverage())
	return nil
}

type videoBench struct {
	options                      *videoOptions
	self, ffmpeg, scratch, input string
	log                          io.Writer
}

// lines are what one tool and size add to the tables.
type lines struct {
	row    []string
	memory [][]string
}

// source makes a clip that wanders over the photo, with grain and sound.
func (b *videoBench) source(ctx context.Context, size string) error {
	b.input = filepath.Join(b.scratch, "source-"+size+".mp4")
	scale := strings.Replace(size, "x", ":", 1)
	_, err := b.once(ctx, []string{
		b.ffmpeg, "-v", "error", "-nostdin", "-y", "-loop", "1", "-framerate", "25", "-i", b.options.photo, "-f", "lavfi", "-i", "sine=440",
		"-vf", "crop=w=400:h=225:x='56+50*sin(n/20)':y='140+100*cos(n/25)',scale=" + scale + ":flags=bicubic,noise=alls=2:allf=t,format=yuv420p",
		"-t", strconv.Itoa(b.options.seconds), "-c:v", "libx264", "-crf", "18", "-preset", "fast", "-c:a", "aac", b.input,
	})
	return err
}

// upscale measures video_upscale and what it is made of.
func (b *videoBench) upscale(ctx context.Context, size string) (lines, error) {
	const config = `{"scale":2}`
	bare, err := b.recorded(ctx, "video_upscale", config)
	if err != nil {
		return lines{}, err
	}
	var width, height int
	if _, err := fmt.Sscanf(size, "%dx%d", &width, &height); err != nil {
		return lines{}, fmt.Errorf("size: %w", err)
	}
	raw := filepath.Join(b.scratch, "raw.nut")
	defer func() { _ = os.Remove(raw) }()
	if _, err := b.once(ctx, []string{b.ffmpeg, "-v", "error", "-nostdin", "-y", "-i", b.input, "-vf", fmt.Sprintf("zscale=w=%d:h=%d:filter=lanczos,format=yuv420p", 2*width, 2*height), "-an", "-c:v", "rawvideo", raw}); err != nil {
		return lines{}, err
	}
	encode := []string{b.ffmpeg, "-v", "error", "-nostdin", "-y", "-i", raw}
	encode = append(encode, encoderOptions(bare)...)
	runs, err := b.inTurn(ctx, [][]string{
		bare,
		{b.self, videoNet, strconv.Itoa(width), strconv.Itoa(height), strconv.Itoa(25 * b.options.seconds)},
		append(encode, "-f", "mp4", filepath.Join(b.scratch, "encoded.mp4")),
		b.job("video_upscale", config, "neural", b.ffmpeg),
	})
	if err != nil {
		return lines{}, err
	}
	lanczos, err := b.inTurn(ctx, [][]string{b.job("video_upscale", config, "off", b.ffmpeg)})
	if err != nil {
		return lines{}, err
	}
	frames := float64(runs[3].job.Frames)
	cell := func(r videoRun) string {
		return fmt.Sprintf("%.1f (%.0f ms)", frames/r.wall.Seconds(), r.processor.Seconds()*1000/frames)
	}
	ours, net, encoder := runs[3], runs[1], runs[2]
	return lines{
		row: []string{
			size, cell(runs[0]), cell(net), cell(encoder), cell(ours),
			fmt.Sprintf("%.0f %%", 100*(net.wall+encoder.wall).Seconds()/ours.wall.Seconds()), fmt.Sprintf("%.0f %%", 100*(net.processor+encoder.processor).Seconds()/ours.processor.Seconds()),
		},
		memory: [][]string{memoryRow("video_upscale, "+ours.job.Method+", "+size, ours), memoryRow("video_upscale, "+lanczos[0].job.Method+", "+size, lanczos[0])},
	}, nil
}

func memoryRow(name string, r videoRun) []string {
	return []string{name, fmt.Sprintf("%d MB", r.peak>>20), fmt.Sprintf("%d MB", r.job.Estimate>>20)}
}

// hdr measures video_hdr beside its own command.
func (b *videoBench) hdr(ctx context.Context, size string) (lines, error) {
	bare, err := b.recorded(ctx, "video_hdr", `{}`)
	if err != nil {
		return lines{}, err
	}
	runs, err := b.inTurn(ctx, [][]string{bare, b.job("video_hdr", `{}`, "off", b.ffmpeg)})
	if err != nil {
		return lines{}, err
	}
	frames := float64(runs[1].job.Frames)
	cell := func(r videoRun) string {
		return fmt.Sprintf("%.1f (%.0f ms)", frames/r.wall.Seconds(), r.processor.Seconds()*1000/frames)
	}
	return lines{
		row: []string{
			size, cell(runs[0]), cell(runs[1]), fmt.Sprintf("%.2f", runs[1].wall.Seconds()/runs[0].wall.Seconds()), fmt.Sprintf("%.2f", runs[1].processor.Seconds()/runs[0].processor.Seconds()),
		},
		memory: [][]string{memoryRow("video_hdr, "+size, runs[1])},
	}, nil
}

// job is the command of a process that runs one job.
func (b *videoBench) job(tool, config, models, program string) []string {
	return []string{b.self, videoChild, tool, config, models, program, b.input, filepath.Join(b.scratch, "out.mp4"), b.scratch}
}

// recorded runs a job without models, by a program in ffmpeg's place that notes its arguments, and gives the command that made the output, so
// that it can be run bare: without the safety, the progress and whatever the job measures on the way.
func (b *videoBench) recorded(ctx context.Context, tool, config string) ([]string, error) {
	notes, program := filepath.Join(b.scratch, "arguments"), filepath.Join(b.scratch, "ffmpeg")
	_ = os.Remove(notes)
	script := fmt.Sprintf("#!/bin/sh\nfor a in \"$@\"; do printf '%%s\\0' \"$a\" >> %[1]s; done\nprintf '\\n\\0' >> %[1]s\nexec %[2]s \"$@\"\n", notes, b.ffmpeg)
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil { //nolint:gosec // it is to be run
		return nil, fmt.Errorf("recorder: %w", err)
	}
	if _, err := b.once(ctx, b.job(tool, config, "off", program)); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(notes)
	if err != nil {
		return nil, fmt.Errorf("recorder: %w", err)
	}
	for run := range bytes.SplitSeq(text, []byte("\n\x00")) {
		args := strings.Split(strings.TrimSuffix(string(run), "\x00"), "\x00")
		if at := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "file:") && strings.HasSuffix(a, "out.mp4") }); at > 0 {
			return append([]string{b.ffmpeg, "-v", "error"}, bareArguments(args[:at+1])...), nil
		}
	}
	return nil, fmt.Errorf("%s ran no ffmpeg that writes its output", tool)
}

// bareArguments leaves out of the arguments of one output what serves us alone: the pipe for the progress, and the branch of the graph that
// measures light.
func bareArguments(args []string) []string {
	var bare []string
	for i := 0; i < len(args); i++ {
		switch args[i] {
		case "-progress", "-stats_period", "-loglevel":
			i++
			continue
		}
		if graph, _, found := strings.Cut(args[i], ";[measured]"); found {
			args[i] = strings.Replace(graph, ",split=2[wide][measured];[wide]", ",", 1)
		}
		bare = append(bare, args[i])
	}
	return bare
}

// encoderOptions are those of the video encoder among a command's arguments.
func encoderOptions(command []string) []string {
	var options []string
	for i := 0; i+1 < len(command); i++ {
		if slices.Contains([]string{"-c:v", "-preset:v", "-crf:v", "-profile:v", "-x265-params", "-tag:v"}, command[i]) {
			options = append(options, command[i], command[i+1])
		}
	}
	return append(options, "-threads", strconv.Itoa(runtime.NumCPU()))
}

// inTurn runs commands in turn, and gives the fastest run of each with the most memory of any.
func (b *videoBench) inTurn(ctx context.Context, commands [][]string) ([]videoRun, error) {
	best := make([]videoRun, len(commands))
	for round := range b.options.rounds {
		for i, command := range commands {
			run, err := b.once(ctx, command)
			if err != nil {
				return nil, err
			}
			peak := max(best[i].peak, run.peak)
			if round == 0 || run.wall < best[i].wall {
				best[i] = run
			}
			best[i].peak = peak
		}
	}
	return best, nil
}

// once runs a command to its end. What a child of ours says of its job replaces what was measured from outside.
func (b *videoBench) once(ctx context.Context, command []string) (videoRun, error) {
	ctx, stop := context.WithTimeout(ctx, videoTime)
	defer stop()
	fmt.Fprintf(b.log, "%.150s\n", strings.Join(command, " "))
	_ = os.Remove(filepath.Join(b.scratch, "out.mp4"))
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return videoRun{}, fmt.Errorf("%s: %w", command[0], err)
	}
	memory := watchMemory(cmd.Process.Pid)
	err := cmd.Wait()
	r := videoRun{wall: time.Since(start), peak: memory()}
	if err != nil {
		return r, fmt.Errorf("%s: %w: %.500s", strings.Join(command, " "), err, problems.String())
	}
	r.processor = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	if command[0] == b.self {
		if err := json.Unmarshal(out.Bytes(), &r.job); err != nil {
			return r, fmt.Errorf("%s: %w: %.200s", command[1], err, out.String())
		}
		r.wall, r.processor = r.job.Wall, r.job.Processor
	}
	return r, nil
}

// watchMemory adds up the resident sets of a process and all under it, until the function it gives is called, which says the most.
func watchMemory(pid int) func() int64 {
	var most int64
	var group sync.WaitGroup
	done := make(chan struct{})
	group.Go(func() {
		for tick := time.NewTicker(20 * time.Millisecond); ; {
			select {
			case <-done:
				tick.Stop()
				return
			case <-tick.C:
				most = max(most, residentTree(pid, 8))
			}
		}
	})
	return func() int64 {
		close(done)
		group.Wait()
		return most
	}
}

// residentTree is the resident set of a process and of its descendants, so many generations deep, in bytes.
func residentTree(pid, depth int) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil || depth == 0 {
		return 0
	}
	sum := int64(0)
	if fields := strings.Fields(string(text)); len(fields) > 1 {
		pages, _ := strconv.ParseInt(fields[1], 10, 64)
		sum = pages * int64(os.Getpagesize())
	}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, thread := range threads {
		children, _ := os.ReadFile(thread)
		for child := range strings.FieldsSeq(string(children)) {
			if id, err := strconv.Atoi(child); err == nil {
				sum += residentTree(id, depth-1)
			}
		}
	}
	return sum
}

// openModels is the runtime with our models.
func openModels(ctx context.Context) (*neural.Runtime, error) {
	library, err := neural.FindLibrary("")
	if err != nil {
		return nil, err
	}
	return neural.Open(ctx, neural.Config{Library: library, Thread: engine.LowPriority})
}

// serveVideo is the child process: it runs one job as a worker does and prints a videoJob.
func serveVideo(ctx context.Context, args []string) error {
	if len(args) != 7 {
		return fmt.Errorf("%w: %s takes a tool, a config, neural or off, ffmpeg, a source, a result and a folder", errUsage, videoChild)
	}
	runner, err := ffmpeg.Open(ffmpeg.Config{FFmpeg: args[3]})
	if err != nil {
		return err
	}
	options := videotools.Options{}
	if args[2] == "neural" {
		if options.Neural, err = openModels(ctx); err != nil {
			return err
		}
		defer options.Neural.Close()
	}
	order, err := engine.NewCatalog(engine.DefaultLimits(), videotools.Tools(runner, options)...).Order(args[0], []byte(args[1]), "")
	if err != nil {
		return err
	}
	source, err := order.Measure(ctx, args[4])
	if err != nil {
		return err
	}
	plan, err := order.Plan(source)
	if err != nil {
		return err
	}
	task := engine.Task{Plan: plan, Source: source, Input: args[4], Output: args[5], Scratch: args[6]}
	start, before := time.Now(), processorTime()
	out, err := order.Process(ctx, task)
	if err != nil {
		return err
	}
	method := fmt.Sprint(out.Facts["method"])
	if model, ok := out.Facts["model"]; ok {
		method = fmt.Sprintf("%v at %v", model, out.Facts["model_strength"])
	}
	return json.NewEncoder(os.Stdout).Encode(videoJob{Method: method, Frames: plan.Frames, Estimate: order.Memory(task), Wall: time.Since(start), Processor: processorTime() - before})
}

// serveNet is the child process that runs the model alone on so many frames, two at a time so that no thread waits.
func serveNet(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("%w: %s takes width, height and frames", errUsage, videoNet)
	}
	var n [3]int
	for i := range n {
		var err error
		if n[i], err = strconv.Atoi(args[i]); err != nil || n[i] < 1 {
			return fmt.Errorf("%w: %q is no number", errUsage, args[i])
		}
	}
	models, err := openModels(ctx)
	if err != nil {
		return err
	}
	defer models.Close()
	m := models.Find(neural.Upscale, 2, "fast")
	if m == nil {
		return errors.New("there is no model for x2")
	}
	plane := make([]float32, n[0]*n[1])
	for i := range plane {
		plane[i] = float32(i*7919%1000) / 1000
	}
	const window = 512 // as engine/video has it
	start, before := time.Now(), processorTime()
	failed := make([]error, 2)
	var group sync.WaitGroup
	for worker := range failed {
		group.Go(func() {
			var into [][]float32
			for i := worker; i < n[2] && failed[worker] == nil; i += len(failed) {
				out, err := m.Run(ctx, neural.Patch{Width: n[0], Height: n[1], Planes: [][]float32{plane}}, neural.How{Tile: window, Into: into})
				into, failed[worker] = out.Planes, err
			}
		})
	}
	group.Wait()
	if err := errors.Join(failed...); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(videoJob{Method: m.Name(), Frames: int64(n[2]), Wall: time.Since(start), Processor: processorTime() - before})
}
