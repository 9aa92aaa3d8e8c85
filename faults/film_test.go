package faults_test

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"enlarger/engine/ffmpeg"
	"enlarger/faults"
	"enlarger/job"
	"enlarger/testbed"
)

// length is how long the film of F29 is.
var length = flag.Duration("faults.film", 0, "length of the film of F29, and default leases; 0 is a film of 40 s and short leases")

// film is a test picture with sound, of small frames and a key frame a second.
func film(t *testing.T, size string, length time.Duration) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "film.mp4")
	seconds := strconv.FormatFloat(length.Seconds(), 'f', 3, 64)
	out, err := exec.Command("ffmpeg", "-v", "error", "-nostdin", "-y", "-f", "lavfi", "-i", "testsrc2=s="+size+":r=25:d="+seconds, "-f", "lavfi", "-i", "sine=d="+seconds,
		"-c:v", "libx264", "-preset", "ultrafast", "-crf", "30", "-g", "25", "-bf", "2", "-x264-params", "open-gop=1", "-c:a", "aac", "-b:a", "48k", path).CombinedOutput()
	if err != nil {
		t.Fatalf("film: %v\n%s", err, out)
	}
	return path
}

// partLine is a line of a worker's log about a part.
type partLine struct {
	Worker  string `json:"-"`
	Message string `json:"msg"`
	Part    int    `json:"part"`
	Fence   int64  `json:"part_fence"`
	Helps   bool   `json:"helps"`
}

// partLines reads what a worker's process has said of parts.
func partLines(t *testing.T, n *faults.Node) (lines []partLine) {
	t.Helper()
	file, err := os.Open(n.LogPath())
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	log := bufio.NewScanner(file)
	for log.Scan() {
		var line partLine
		if json.Unmarshal(log.Bytes(), &line) == nil && strings.HasPrefix(line.Message, "part ") {
			line.Worker = n.Name
			lines = append(lines, line)
		}
	}
	return lines
}

// crew is the workers of a film, with what killed ones have said.
type crew struct {
	*testing.T
	fleet *faults.Fleet
	id    string
	all   []*faults.Node
	dead  []partLine
	kills int
}

// kill kills a worker while it makes a part, and starts it again. It returns whether the worker had the job's run.
func (c *crew) kill(n *faults.Node) (owner bool) {
	c.Helper()
	c.until("work of "+n.Name, func() bool { return len(n.FFmpegs()) > 0 && len(c.running(n.Name)) > 0 })
	var worker string
	if err := c.fleet.DB.QueryRowContext(c.Context(), "SELECT worker FROM jobs WHERE id = $1", c.id).Scan(&worker); err != nil {
		c.Fatal(err)
	}
	n.Kill()
	c.kills++
	parts := c.running(n.Name)
	c.dead = append(c.dead, partLines(c.T, n)...)
	c.Logf("killed %s, which made part %v and had the job's run: %v", n.Name, parts, worker == n.Name)
	n.Again()
	return worker == n.Name
}

// running lists the parts under way, by all workers for "".
func (c *crew) running(worker string) (parts []int) {
	c.Helper()
	for _, s := range c.segments() {
		if s.Status == job.SegmentRunning && (worker == "" || s.Worker == worker) {
			parts = append(parts, s.Part.Number)
		}
	}
	return parts
}

func (c *crew) segments() []job.Segment {
	c.Helper()
	all, err := c.fleet.Jobs.Segments(c.Context(), c.id)
	if err != nil {
		c.Fatal(err)
	}
	return all
}

func (c *crew) done() (n int) {
	c.Helper()
	for _, s := range c.segments() {
		if s.Status == job.SegmentDone {
			n++
		}
	}
	return n
}

func (c *crew) until(what string, holds func() bool) {
	c.Helper()
	testbed.Until(c.T, 2*time.Hour, what, func() bool {
		if j := c.fleet.Job(c.id); j.Status.Terminal() && j.Status != job.Succeeded {
			c.Fatalf("%s ended %s while it waited for %s: %s", c.id, j.Status, what, j.ErrorMessage)
		}
		return holds()
	})
}

// runs counts, by part, how often a part was begun and how often it was made, over all processes.
func (c *crew) runs() (begun, made map[int]int, by map[string]int) {
	c.Helper()
	lines := slices.Clone(c.dead)
	for _, n := range c.all {
		lines = append(lines, partLines(c.T, n)...)
	}
	begun, made, by = map[int]int{}, map[int]int{}, map[string]int{}
	for _, l := range lines {
		switch l.Message {
		case "part begun":
			begun[l.Part]++
		case "part made":
			made[l.Part]++
			by[l.Worker]++
		default:
			c.Logf("%+v", l)
		}
	}
	return begun, made, by
}

// carry submits a film to a fleet of so many workers and waits for its end; kill is called when all of them are at work.
func carry(t *testing.T, f *faults.Fleet, path string, workers int, kill func(c *crew)) (c *crew, took time.Duration) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	c = &crew{T: t, fleet: f}
	for i := range workers {
		c.all = append(c.all, f.Worker(fmt.Sprintf("worker%d", i)))
	}
	for _, n := range c.all {
		n.Ready()
	}
	if c.id, err = f.Clip(faults.Request{}, data); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	kill(c)
	c.until("the film to end", func() bool { return f.Job(c.id).Status.Terminal() })
	return c, time.Since(began)
}

// F29: a film made by three workers, of which one that helps is killed twice, and the one that has the job's run: nothing but the parts that they
// were making is made twice, the film is charged once, and every frame of it is where it was.
func TestF29FilmOnThreeWorkers(t *testing.T) {
	t.Parallel()
	settings, size, duration := faults.With("ENLARGER_SEGMENT", "50ms", "ENLARGER_FFMPEG_THREADS", "1"), "192x128", 40*time.Second
	if *length > 0 {
		settings, size, duration = map[string]string{"ENLARGER_SEGMENT": "5s", "ENLARGER_FFMPEG_THREADS": "1"}, "320x180", *length
	}
	f := faults.New(t, 1, settings)
	path := film(t, size, duration)
	parts, owners := 0, 0
	c, took := carry(t, f, path, 3, func(c *crew) {
		c.until("all workers to be at work", func() bool { return len(c.running("")) == 3 })
		parts = len(c.segments())
		victim := c.all[0]
		if c.fleet.Job(c.id).Fence != 1 {
			t.Errorf("fence %d before anything was killed", c.fleet.Job(c.id).Fence)
		}
		for _, n := range c.all { // a helper first
			if !hasRun(t, c, n) {
				victim = n
			}
		}
		victim.Gate.Shut() // so that it is in the middle of a part
		for range 2 {
			if c.kill(victim) {
				owners++
			}
			if victim.Gate.Open(); c.kills < 2 {
				before := c.done()
				c.until("more parts to be done", func() bool { return c.done() >= min(before+parts/4, parts-4) })
				victim.Gate.Shut()
			}
		}
		if *length == 0 {
			// And the one that has the run.
			for _, n := range c.all {
				if hasRun(t, c, n) {
					n.Gate.Shut()
					if c.kill(n) {
						owners++
					}
					n.Gate.Open()
					break
				}
			}
		}
	})
	begun, made, by := c.runs()
	again := 0
	for part := range parts {
		if made[part] != 1 {
			t.Errorf("part %d was made %d times", part, made[part])
		}
		if begun[part] > 1 {
			t.Logf("part %d was begun %d times", part, begun[part])
		}
		again += begun[part] - 1
	}
	if parts < 8 || again > c.kills || len(made) != parts {
		t.Errorf("%d parts of %d were begun again after %d kills", again, parts, c.kills)
	}
	j := f.Succeeds(c.id, 1+int64(owners), int64(owners))
	if _, frozen, used := f.Credits(""); frozen != 0 || used != float64(j.Charged)/1000 || used == 0 {
		t.Errorf("frozen %v, used %v, the job costs %v", frozen, used, j.Charged)
	}
	sameFilm(t, f, c.id, path, parts)
	t.Logf("a film of %v in %d parts on 3 workers, %d kills (%d of the worker with the run): %v, %d parts begun again, made by %v", duration, parts, c.kills, owners, took.Round(time.Second), again, by)
	f.End()
}

func hasRun(t *testing.T, c *crew, n *faults.Node) bool {
	t.Helper()
	var worker string
	if err := c.fleet.DB.QueryRowContext(t.Context(), "SELECT worker FROM jobs WHERE id = $1", c.id).Scan(&worker); err != nil {
		t.Fatal(err)
	}
	return worker == n.Name
}

// TestFilmIsSharedFaster measures one worker, then two, each with one thread.
func TestFilmIsSharedFaster(t *testing.T) {
	if *length == 0 {
		t.Skip("measures minutes of work: make film, or -faults.film 20m")
	}
	var took [2]time.Duration
	path := film(t, "320x180", *length/5)
	for i := range took {
		f := faults.New(t, 1, map[string]string{"ENLARGER_SEGMENT": "2s", "ENLARGER_FFMPEG_THREADS": "1"})
		c, duration := carry(t, f, path, i+1, func(*crew) {})
		took[i] = duration
		_, _, by := c.runs()
		t.Logf("%d worker(s): %v for a film of %v, parts made by %v", i+1, duration.Round(100*time.Millisecond), *length/5, by)
		f.End()
	}
	t.Logf("two workers are %.2f times as fast as one", took[0].Seconds()/took[1].Seconds())
}

// sameFilm downloads a result and holds every frame against the source: there, once, at its time, and the same picture.
func sameFilm(t *testing.T, f *faults.Fleet, id, source string, parts int) {
	t.Helper()
	data, err := f.Download(id)
	if err != nil {
		t.Fatal(err)
	}
	result := filepath.Join(t.TempDir(), "result.mp4")
	if err := os.WriteFile(result, data, 0o600); err != nil {
		t.Fatal(err)
	}
	runner, err := ffmpeg.Open(ffmpeg.Config{})
	if err != nil {
		t.Fatal(err)
	}
	var times [2][]int64
	for i, path := range []string{source, result} {
		media, err := runner.Probe(t.Context(), path)
		if err != nil || media.Video == nil || len(media.Audio) != 1 {
			t.Fatalf("%s: %+v, %v", path, media, err)
		}
		line, err := runner.Timeline(t.Context(), path, media.Video.Index)
		if err != nil {
			t.Fatal(err)
		}
		unit := media.Video.Unit.Float()
		for _, at := range line.Times {
			times[i] = append(times[i], int64(math.Round(float64(at-line.Times[0])*unit*1e6)))
		}
	}
	if !slices.Equal(times[0], times[1]) {
		t.Errorf("the film has %d frames, the result %d, or they are shown at other times", len(times[0]), len(times[1]))
	}
	out, err := exec.Command("ffmpeg", "-v", "error", "-nostdin", "-i", source, "-i", result, "-lavfi",
		"[1:v]scale=iw/2:ih/2:flags=area,settb=1/25,setpts=N[r];[0:v]settb=1/25,setpts=N[s];[s][r]psnr=stats_file=-:eof_action=endall", "-f", "null", "-").Output()
	if err != nil {
		t.Fatal(err)
	}
	worst, frames := math.Inf(1), 0
	for line := range strings.Lines(string(out)) {
		if _, after, found := strings.Cut(line, "psnr_avg:"); found {
			text, _, _ := strings.Cut(after, " ")
			db, err := strconv.ParseFloat(text, 64)
			if err != nil {
				t.Fatal(err)
			}
			worst, frames = math.Min(worst, db), frames+1
		}
	}
	if frames != len(times[0]) || worst < 30 {
		t.Errorf("%d frames compared, the worst %.1f dB from the source's", frames, worst)
	}
	t.Logf("%d frames in %d parts, each at its time, the worst %.1f dB from the source's", frames, parts, worst)
}
