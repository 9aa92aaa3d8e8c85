package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// reel is a tool whose work is cut: it doubles a text "WIDTHxHEIGHT PARTS" part by part.
type reel struct {
	mu sync.Mutex
	// begun and made count the work on each part.
	begun, made map[int]int
	joins       int
	// hold keeps the work on a part under way until it is closed or the context ends; nil lets it through.
	hold chan struct{}
	// means is what parts are made with.
	means string
	// spoil makes the work on a part, or the join (-1), fail.
	spoil func(part, times int) error
}

func (tool *reel) define() engine.Tool {
	measure := func(path string) (s engine.Source, parts int, err error) {
		text, err := os.ReadFile(path)
		if err == nil {
			_, err = fmt.Sscanf(string(text), "%dx%d %d", &s.Width, &s.Height, &parts)
		}
		s.Frames, s.FPS, s.Duration = int64(10*parts), 10, float64(parts)
		return s, parts, err
	}
	return engine.Define(engine.Spec[behavior]{
		Name: "reel", Media: engine.Video, Doc: "Doubles a text in parts.", Defaults: behavior{Do: "copy"},
		Size: func(_ behavior, s engine.Source) (int, int) { return 2 * s.Width, 2 * s.Height },
		Measure: func(_ context.Context, path string) (engine.Source, error) {
			s, _, err := measure(path)
			return s, err
		},
		Process: func(context.Context, behavior, engine.Task) (engine.Output, error) {
			return engine.Output{}, errors.New("the whole was asked for")
		},
		Parts: &engine.Parts[behavior]{
			Cut: func(_ context.Context, _ behavior, task engine.Task) (parts []engine.Part, err error) {
				_, n, err := measure(task.Input)
				for i := range n {
					parts = append(parts, engine.Part{Number: i, Frames: 10, Spec: json.RawMessage(fmt.Sprintf(`"%sframes of %d"`, tool.means, i))})
				}
				return parts, err
			},
			Fits: func(part engine.Part) bool { return strings.HasPrefix(string(part.Spec), `"`+tool.means+"frames") },
			Make: tool.make,
			Join: tool.join,
		},
	})
}

func (tool *reel) make(ctx context.Context, _ behavior, task engine.Task, part engine.Part) (json.RawMessage, error) {
	tool.mu.Lock()
	tool.begun[part.Number]++
	hold, times := tool.hold, tool.begun[part.Number]
	tool.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if tool.spoil != nil {
		if err := tool.spoil(part.Number, times); err != nil {
			return nil, err
		}
	}
	task.Progress(1)
	err := os.WriteFile(task.Output, fmt.Appendf(nil, "[%d of %s]", part.Number, part.Spec), 0o600)
	tool.mu.Lock()
	defer tool.mu.Unlock()
	tool.made[part.Number]++
	return json.RawMessage(fmt.Sprintf(`{"part":%d}`, part.Number)), err
}

func (tool *reel) join(_ context.Context, _ behavior, task engine.Task, pieces []engine.Piece) (engine.Output, error) {
	tool.mu.Lock()
	tool.joins++
	times := tool.joins
	tool.mu.Unlock()
	if tool.spoil != nil {
		if err := tool.spoil(-1, times); err != nil {
			return engine.Output{}, err
		}
	}
	var all strings.Builder
	for i, p := range pieces {
		text, err := os.ReadFile(p.Path)
		if err != nil || string(p.Facts) != fmt.Sprintf(`{"part":%d}`, i) || p.Part.Number != i {
			return engine.Output{}, fmt.Errorf("piece %d: %+v %w", i, p, err)
		}
		all.Write(text)
	}
	out := engine.Output{Width: task.Plan.Width, Height: task.Plan.Height, Size: int64(all.Len())}
	return out, os.WriteFile(task.Output, []byte(all.String()), 0o600)
}

func (tool *reel) counts() (begun, made, twice int) {
	tool.mu.Lock()
	defer tool.mu.Unlock()
	for part, n := range tool.begun {
		begun += n
		made += tool.made[part]
		if tool.made[part] > 1 {
			twice++
		}
	}
	return begun, made, twice
}

// cinema adds a reel to a rig.
func (r *rig) cinema() *reel {
	tool := &reel{begun: map[int]int{}, made: map[int]int{}}
	r.catalog = engine.NewCatalog(engine.DefaultLimits(), r.tool.define("double", engine.Image), r.tool.define("film", engine.Video), tool.define())
	r.prices.Weights["reel"] = 1
	return tool
}

// show submits a video of so many parts, or any other of the video tools.
func (r *rig) show(tool string, parts int) string {
	r.Helper()
	order, err := r.catalog.Order(tool, nil, "")
	must(r.T, err)
	text := fmt.Sprintf("4x4 %d", parts)
	id := job.NewID()
	object, err := r.storage.Put(r.ctx, storage.SourceKey(id), strings.NewReader(text), int64(len(text)), "text/plain")
	must(r.T, err)
	return r.submit(job.Submission{
		ID: id, AccountID: r.account, KeyID: "key", Order: order, ResultsPrefix: storage.ResultPrefix(id), Estimate: billing.Credit, MaxActive: 1000,
		CreatedAt: time.Now(), Source: job.Source{Kind: job.SourceInline, Object: object.Key, Ready: true, Size: object.Size},
	})
}

func (r *rig) until(what string, holds func() bool) {
	r.Helper()
	testbed.Until(r, 30*time.Second, what, holds)
}

// busy are the workers that have a part of a job under way.
func (r *rig) busy(id string) map[string]bool {
	segments, err := r.jobs.Segments(r.ctx, id)
	must(r.T, err)
	workers := map[string]bool{}
	for _, s := range segments {
		if s.Status == job.SegmentRunning {
			workers[s.Worker] = true
		}
	}
	return workers
}

// cleared demands that nothing is left of the parts of a job that has ended.
func (r *rig) cleared(id string) {
	r.Helper()
	segments, err := r.jobs.Segments(r.ctx, id)
	if err != nil || len(segments) > 0 {
		r.Errorf("%d rows of parts are left, %v", len(segments), err)
	}
	r.expireGarbage()
	r.sweeper().Sweep(r.ctx)
	left, err := r.storage.List(r.ctx, storage.ResultPrefix(id)+"segments/", "", 10)
	if err != nil || len(left) > 0 {
		r.Errorf("objects of parts are left: %v, %v", left, err)
	}
}

func TestFilmIsSharedByWorkers(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		tool.hold = make(chan struct{})
		for i := range 3 {
			r.start(r.config(fmt.Sprintf("worker%d", i)))
		}
		id := r.show("reel", 9)
		r.until("three workers on one film", func() bool { return len(r.busy(id)) == 3 })
		close(tool.hold)
		j := r.ends(id, job.Succeeded, "")
		if _, made, twice := tool.counts(); made != 9 || twice != 0 || j.Fence != 1 || tool.joins != 1 {
			t.Errorf("%d parts made, %d of them twice, %d joins, fence %d", made, twice, tool.joins, j.Fence)
		}
		if text := r.object(j.ResultObject); !strings.HasPrefix(text, `[0 of "frames of 0"][1 of`) || strings.Count(text, "[") != 9 {
			t.Errorf("the result is %s", text)
		}
		r.balance(100*billing.Credit-j.Charged, 0, j.Charged)
		r.cleared(id)
	})
}

// A canceled film stops on all workers at once, not with their next heartbeat.
func TestCanceledFilmStopsEverywhere(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		tool.hold = make(chan struct{})
		for i := range 2 {
			cfg := r.config(fmt.Sprintf("worker%d", i))
			cfg.Heartbeat, cfg.Lease = 20*time.Second, time.Minute
			r.start(cfg)
		}
		id := r.show("reel", 9)
		r.until("two workers on one film", func() bool { return len(r.busy(id)) == 2 })
		_, err := r.jobs.Cancel(r.ctx, r.account, id)
		must(t, err)
		canceled := time.Now()
		// A worker subscribes when it starts; until then a message is lost, as any may be.
		r.until("slots for another video", func() bool {
			must(t, NewDispatcher(r.redis).Stop(r.ctx, id))
			begun, _, _ := tool.counts()
			return begun == 2 && len(r.busy(id)) == 0
		})
		other := r.show("film", 1)
		r.ends(other, job.Succeeded, "")
		if waited := time.Since(canceled); waited > 15*time.Second {
			t.Errorf("the workers were free after %v", waited)
		}
		r.balance(100*billing.Credit-r.get(other).Charged, 0, r.get(other).Charged)
		r.cleared(id)
	})
}

// A part that fails on every worker is taken from those that help, and ends the job by the budget of its own run.
func TestBadPartEndsTheFilm(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		tool.spoil = func(part, _ int) error {
			if part == 4 {
				return errors.New("the disk is on fire")
			}
			return nil
		}
		for i := range 3 {
			r.start(r.config(fmt.Sprintf("worker%d", i)))
		}
		id := r.show("reel", 9)
		r.ends(id, job.Failed, engine.ProcessingFailed)
		const budget, patience = 3, 2
		tool.mu.Lock()
		n := tool.begun[4]
		tool.mu.Unlock()
		if n > budget+patience || n < budget {
			t.Errorf("the bad part was begun %d times", n)
		}
		if _, _, twice := tool.counts(); twice != 0 {
			t.Errorf("%d parts were made twice", twice)
		}
		r.balance(100*billing.Credit, 0, 0)
		r.cleared(id)
	})
}

// A worker that drains gives the film and its part back, at no cost; the next one begins with what is there.
func TestDrainedFilmGoesOn(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		reached, hold := make(chan struct{}), make(chan struct{})
		tool.spoil = func(part, times int) error {
			if part == 5 && times == 1 {
				tool.mu.Lock()
				tool.hold = hold
				tool.mu.Unlock()
				close(reached)
			}
			return nil
		}
		stop := r.start(r.config("first"))
		id := r.show("reel", 9)
		<-reached
		r.until("a part under way", func() bool { begun, made, _ := tool.counts(); return made == 6 && begun == 7 })
		stop()
		if j := r.get(id); j.Status != job.Queued || j.Failures != 0 {
			t.Errorf("after the drain: %s, %d failures", j.Status, j.Failures)
		}
		close(hold)
		r.start(r.config("second"))
		j := r.ends(id, job.Succeeded, "")
		if begun, made, twice := tool.counts(); begun != 10 || made != 9 || twice != 0 || j.Fence != 2 {
			t.Errorf("%d parts begun, %d made, %d of them twice, fence %d", begun, made, twice, j.Fence)
		}
		r.cleared(id)
	})
}

// What cannot be joined is made anew, once.
func TestFilmThatCannotBeJoinedIsMadeAnew(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		tool.spoil = func(part, times int) error {
			if part == -1 && times == 1 {
				return errors.New("a part is of another kind")
			}
			return nil
		}
		r.start(r.config("worker"))
		id := r.show("reel", 4)
		j := r.ends(id, job.Succeeded, "")
		if _, made, twice := tool.counts(); made != 8 || twice != 4 || j.Failures != 1 || tool.joins != 2 {
			t.Errorf("%d parts made, %d of them twice, %d failures, %d joins", made, twice, j.Failures, tool.joins)
		}
		r.cleared(id)
	})
}

// A video that waits gets the slot of one that helps.
func TestHelpersMakeRoom(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		gate := make(chan struct{})
		tool.hold = gate
		for i := range 2 {
			r.start(r.config(fmt.Sprintf("worker%d", i)))
		}
		long := r.show("reel", 40)
		r.until("two workers on one film", func() bool { return len(r.busy(long)) == 2 })
		short := r.show("film", 1)
		// Each part that begins from now on waits for the test.
		tool.mu.Lock()
		tool.hold = make(chan struct{})
		next := tool.hold
		tool.mu.Unlock()
		close(gate)
		r.ends(short, job.Succeeded, "")
		if j := r.get(long); j.Status.Terminal() {
			t.Errorf("the film had ended: %s", j.Status)
		}
		close(next)
		r.ends(long, job.Succeeded, "")
		if _, made, twice := tool.counts(); made != 40 || twice != 0 {
			t.Errorf("%d parts made, %d of them twice", made, twice)
		}
	})
}

// Workers that make parts with other means do not help; and when one of them gets the job's run, it makes all parts anew.
func TestPartsAreMadeAlike(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		tool := r.cinema()
		tool.spoil = func(part, _ int) error {
			if part == 1 { // the next one is under way when the worker stops
				tool.mu.Lock()
				defer tool.mu.Unlock()
				tool.hold = make(chan struct{})
			}
			return nil
		}
		stop := r.start(r.config("first"))
		id := r.show("reel", 4)
		r.until("two parts", func() bool { begun, made, _ := tool.counts(); return made == 2 && begun == 3 })
		stop()
		other := r.cinema()
		other.means = "other "
		r.start(r.config("second"))
		j := r.ends(id, job.Succeeded, "")
		if text := r.object(j.ResultObject); strings.Count(text, "other frames") != 4 {
			t.Errorf("the result is %s", text)
		}
		if _, made, _ := other.counts(); made != 4 {
			t.Errorf("%d parts were made anew", made)
		}
		r.cleared(id)
	})
}
