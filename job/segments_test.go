package job

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// film is a claimed video that was cut into n parts, as the worker of its run knows it.
func (w *world) film(n int) Job {
	w.Helper()
	j := w.submit("video_upscale")
	j, err := w.store.Claim(w.ctx, j.ID, "owner", time.Minute)
	w.ok(err)
	_, err = w.store.Reserve(w.ctx, j, 700)
	w.ok(err)
	w.ok(w.store.AddSegments(w.ctx, j, cutInto(n)))
	return j
}

func cutInto(n int) (parts []engine.Part) {
	for i := range n {
		parts = append(parts, engine.Part{Number: i, Frames: 100 + int64(i), Spec: json.RawMessage(fmt.Sprintf(`{"from":%d}`, i))})
	}
	return parts
}

func (w *world) part(id string, number int) Segment {
	w.Helper()
	all, err := w.store.Segments(w.ctx, id)
	w.ok(err)
	if number >= len(all) {
		return Segment{}
	}
	return all[number]
}

// partState is the state of a part in a word: "gone" when its row is.
func (w *world) partState(id string) string {
	w.Helper()
	s := w.part(id, 0)
	switch {
	case s.JobID == "":
		return "gone"
	case s.Status == SegmentRunning && w.count("SELECT COUNT(*) FROM segments WHERE job_id = $1 AND lease_until < now_micros()", id) == 1:
		return "lapsed"
	}
	return string(s.Status)
}

// segmentMachine is every operation on a part in each of its states, with its job in each of the states that matter.
func segmentMachine() map[string]map[string]string {
	table := `
	state             | own claim | help claim | beat    | done  | release | fail
	processing queued | running   | running    | stale   | stale | stale   | stale
	processing running| none      | none       | =       | done  | queued  | queued
	processing lapsed | running   | running    | running | done  | queued  | queued
	processing done   | none      | none       | stale   | =     | stale   | stale
	processing failed | running   | none       | stale   | stale | stale   | stale
	queued queued     | none      | none       | stale   | stale | stale   | stale
	queued running    | none      | none       | =       | done  | queued  | queued
	queued lapsed     | none      | none       | running | done  | queued  | queued
	queued done       | none      | none       | stale   | =     | stale   | stale
	succeeded gone    | none      | none       | stale   | stale | stale   | stale
	failed gone       | none      | none       | stale   | stale | stale   | stale
	canceled gone     | none      | none       | stale   | stale | stale   | stale
	deleted gone      | none      | none       | stale   | stale | stale   | stale`
	return cellsOf(table)
}

func TestSegmentStates(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000_000)
		for state, row := range segmentMachine() {
			for op, outcome := range row {
				w.segmentStep(state, op, outcome, 0)
				if !strings.HasSuffix(op, "claim") {
					w.segmentStep(state, op, "stale", -1)
					w.segmentStep(state, op, "stale", +1)
				}
			}
			w.clean()
		}
	})
}

func (w *world) segmentStep(state, op, outcome string, wrong int64) {
	w.Helper()
	j, s := w.bringPart(state)
	name := fmt.Sprintf("%s on %s with fence %+d", op, state, wrong)
	before, word := w.part(j.ID, 0), w.partState(j.ID)
	if want := strings.TrimPrefix(state[strings.Index(state, " ")+1:], ""); word != want && (want != "failed" || word != "queued") {
		w.Fatalf("brought the part into %q for %s", word, name)
	}
	s.Fence += wrong
	err := w.doPart(op, s)
	after := w.part(j.ID, 0)
	switch outcome {
	case "stale", "none":
		want := map[string]error{"stale": ErrStale, "none": ErrNoSegment}[outcome]
		if !errors.Is(err, want) || fmt.Sprint(after) != fmt.Sprint(before) {
			w.Errorf("%s: %v, and the part was %+v and is %+v", name, err, before, after)
		}
	default:
		if outcome == "=" {
			outcome = word
		}
		if got := w.partState(j.ID); err != nil || got != outcome {
			w.Errorf("%s leads to %q, %v; want %q", name, got, err, outcome)
		}
		raised, counted := after.Fence-before.Fence, after.Failures-before.Failures
		claimed := strings.HasSuffix(op, "claim")
		if (raised == 1) != claimed || (counted == 1) != (op == "fail" || claimed && word == "lapsed") {
			w.Errorf("%s: fence %+d, failures %+d", name, raised, counted)
		}
	}
}

// bringPart makes a video of one part and leads both into a state.
func (w *world) bringPart(state string) (Job, Segment) {
	w.Helper()
	j := w.film(1)
	of, word, _ := strings.Cut(state, " ")
	s := Segment{JobID: j.ID, Part: engine.Part{Number: 0}}
	claim := func() {
		var err error
		s, err = w.store.ClaimSegment(w.ctx, j.ID, "helper", true, time.Minute)
		w.ok(err)
	}
	switch word {
	case "running":
		claim()
	case "lapsed":
		claim()
		w.exec("UPDATE segments SET lease_until = 1 WHERE job_id = $1", j.ID)
	case "done":
		claim()
		w.ok(w.store.SegmentDone(w.ctx, s, "parts/0", json.RawMessage(`{}`)))
	case "failed":
		for range segmentPatience {
			claim()
			w.ok(w.store.ReleaseSegment(w.ctx, s, true))
		}
	}
	switch of {
	case "queued":
		_, _, err := w.store.Retry(w.ctx, j.ID, j.Fence, 0, 10, giveUp)
		w.ok(err)
	case "succeeded":
		w.ok(w.store.Succeed(w.ctx, j, j.ResultsPrefix+"1.mp4", engine.Output{Width: 1}, nil))
	case "failed":
		w.ok(w.store.Fail(w.ctx, j.ID, j.Fence, giveUp))
	case "canceled":
		_, err := w.store.Cancel(w.ctx, w.account, j.ID)
		w.ok(err)
	case "deleted":
		_, err := w.store.Delete(w.ctx, w.account, j.ID)
		w.ok(err)
	}
	return j, s
}

func (w *world) doPart(op string, s Segment) error {
	switch op {
	case "own claim", "help claim":
		_, err := w.store.ClaimSegment(w.ctx, s.JobID, "worker", op == "own claim", time.Minute)
		return err
	case "beat":
		return w.store.SegmentHeartbeat(w.ctx, s, 50, time.Minute)
	case "done":
		return w.store.SegmentDone(w.ctx, s, "parts/0", json.RawMessage(`{}`))
	case "release":
		return w.store.ReleaseSegment(w.ctx, s, false)
	}
	return w.store.ReleaseSegment(w.ctx, s, true)
}

// Parts are written by the job's run alone, all of them, once.
func TestSegmentsAreWrittenOnce(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		j := w.film(SegmentsMost)
		s, err := w.store.ClaimSegment(w.ctx, j.ID, "worker", true, time.Minute)
		w.ok(err)
		w.ok(w.store.SegmentDone(w.ctx, s, "parts/0", json.RawMessage(`{"frames":7}`)))
		w.ok(w.store.AddSegments(w.ctx, j, cutInto(SegmentsMost)))
		all, err := w.store.Segments(w.ctx, j.ID)
		if err != nil || len(all) != SegmentsMost || all[0].Status != SegmentDone || string(all[0].Facts) != `{"frames":7}` || string(all[9].Part.Spec) != `{"from":9}` || all[9].Part.Frames != 109 {
			t.Errorf("%d parts, %v: %+v", len(all), err, all[:10])
		}
		if err := w.store.AddSegments(w.ctx, j, cutInto(SegmentsMost+1)); err == nil {
			t.Error("too many parts were taken")
		}
		old := j
		old.Fence--
		if err := w.store.AddSegments(w.ctx, old, cutInto(2)); !errors.Is(err, ErrStale) {
			t.Errorf("an old run cuts: %v", err)
		}
		if err := w.store.RestartSegments(w.ctx, old, nil); !errors.Is(err, ErrStale) {
			t.Errorf("an old run begins anew: %v", err)
		}
		if found, err := w.store.Referenced(w.ctx, "parts/0"); err != nil || !found {
			t.Errorf("a part's object is not named: %v", err)
		}
		w.ok(w.store.RestartSegments(w.ctx, j, nil))
		if s := w.part(j.ID, 0); s.Status != SegmentQueued || s.Fence != 1 || s.Object != "" {
			t.Errorf("begun anew: %+v", s)
		}
		if n := w.count("SELECT COUNT(*) FROM garbage WHERE object = 'parts/0'"); n != 1 {
			t.Errorf("the object is noted %d times", n)
		}
		other := []engine.Part{{Number: 0, Frames: 1, Spec: json.RawMessage(`"x"`)}, {Number: 1, Frames: 2}}
		w.ok(w.store.RestartSegments(w.ctx, j, other))
		all, err = w.store.Segments(w.ctx, j.ID)
		if err != nil || len(all) != 2 || string(all[0].Part.Spec) != `"x"` || all[0].Fence != 1 || all[1].Part.Frames != 2 {
			t.Errorf("cut anew: %+v, %v", all, err)
		}
		_, err = w.store.Cancel(w.ctx, w.account, j.ID)
		w.ok(err)
		if err := w.store.AddSegments(w.ctx, j, cutInto(2)); !errors.Is(err, ErrStale) || w.partState(j.ID) != "gone" {
			t.Errorf("a canceled job is cut: %v, %s", err, w.partState(j.ID))
		}
		w.clean()
	})
}

// A success takes the rows and the objects of the parts away in its own transaction, and only where there are any.
func TestSuccessForgetsSegments(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for _, parts := range []int{0, 3} {
			j := w.film(parts)
			w.ok(w.store.Succeed(w.ctx, j, j.ResultsPrefix+"1.mp4", engine.Output{Width: 1}, nil))
			want := min(parts, 1)
			if n := w.count("SELECT COUNT(*) FROM garbage WHERE object = $1 AND not_before > now_micros()", j.ResultsPrefix+"segments/"); n != want {
				t.Errorf("with %d parts their folder is noted %d times", parts, n)
			}
			if n := w.count("SELECT COUNT(*) FROM segments WHERE job_id = $1", j.ID); n != 0 {
				t.Errorf("%d rows are left", n)
			}
		}
		j := w.film(2)
		s, err := w.store.ClaimSegment(w.ctx, j.ID, "worker", true, time.Minute)
		w.ok(err)
		if n, err := w.store.EndLeases(w.ctx); err != nil || n != 1 {
			t.Errorf("%d leases of jobs ended, %v", n, err)
		}
		again, err := w.store.ClaimSegment(w.ctx, j.ID, "next", true, time.Minute)
		if err != nil || again.Part.Number != s.Part.Number || again.Fence != s.Fence+1 || again.Failures != 1 {
			t.Errorf("after the leases ended: %+v, %v", again, err)
		}
	})
}

// Many workers want parts at the same moment: each gets another, each part is made once, and nobody goes away while there are free ones.
func TestParallelSegmentClaims(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		const parts, workers = 60, 12
		j := w.film(parts)
		var mu sync.Mutex
		taken := map[int]int{}
		together(workers, func(i int) {
			for {
				s, err := w.store.ClaimSegment(w.ctx, j.ID, fmt.Sprint(i), i == 0, time.Minute)
				if errors.Is(err, ErrNoSegment) {
					return
				}
				if err != nil || s.Fence != 1 {
					t.Errorf("%+v, %v", s, err)
					return
				}
				mu.Lock()
				taken[s.Part.Number]++
				mu.Unlock()
				if err := w.store.SegmentDone(w.ctx, s, fmt.Sprintf("parts/%d", s.Part.Number), json.RawMessage(`{}`)); err != nil {
					t.Error(err)
				}
			}
		})
		for i := range parts {
			if s := w.part(j.ID, i); taken[i] != 1 || s.Status != SegmentDone {
				t.Errorf("part %d was taken %d times and is %s", i, taken[i], s.Status)
			}
		}
		w.clean()
	})
}

// Cancels and claims at the same moment: however they meet, no part is left of a job that has ended.
func TestCancelWhileSegmentsAreCut(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000)
		for range 15 {
			j := w.film(0)
			together(3, func(i int) {
				var err error
				switch i {
				case 0:
					_, err = w.store.Cancel(w.ctx, w.account, j.ID)
				case 1:
					err = w.store.AddSegments(w.ctx, j, cutInto(5))
				default:
					_, err = w.store.ClaimSegment(w.ctx, j.ID, "helper", false, time.Minute)
				}
				if err != nil && !errors.Is(err, ErrStale) && !errors.Is(err, ErrNoSegment) {
					t.Error(err)
				}
			})
			if n := w.count("SELECT COUNT(*) FROM segments WHERE job_id = $1", j.ID); n != 0 {
				t.Fatalf("%d parts of a canceled job", n)
			}
		}
		w.clean()
	})
}

// modelPart is a part in a few fields.
type modelPart struct {
	status          SegmentStatus
	lapsed          bool
	fence, failures int64
}

// partModel is a film in plain Go, with the database beside it.
type partModel struct {
	*world
	job   Job
	alive bool // the job is being processed
	parts []modelPart
}

// TestSegmentModel draws random operations of random workers and compares every answer and every row with the model.
func TestSegmentModel(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 1_000_000_000)
		rapid.Check(t, func(rt *rapid.T) {
			m := &partModel{world: w, job: w.film(3), alive: true, parts: make([]modelPart, 3)}
			for i := range m.parts {
				m.parts[i].status = SegmentQueued
			}
			rt.Repeat(map[string]func(*rapid.T){
				"": m.check, "claim": m.claim, "a claim": m.claim, "beat": m.beat, "done": m.done, "release": m.release, "lapse": m.lapse, "lose the run": m.lose,
			})
			_, err := w.store.Cancel(w.ctx, w.account, m.job.ID)
			w.ok(err)
		})
		w.clean()
	})
}

func (m *partModel) check(rt *rapid.T) {
	for i, want := range m.parts {
		s := m.part(m.job.ID, i)
		if s.Status != want.status || s.Fence != want.fence || s.Failures != want.failures || (s.Object != "") != (want.status == SegmentDone) {
			rt.Fatalf("part %d is %+v, want %+v", i, s, want)
		}
	}
}

func (m *partModel) claim(rt *rapid.T) {
	own := rapid.Bool().Draw(rt, "own")
	want := slices.IndexFunc(m.parts, func(p modelPart) bool {
		failures := p.failures
		if p.lapsed {
			failures++
		}
		return (p.status == SegmentQueued || p.lapsed) && (own || failures < segmentPatience)
	})
	s, err := m.store.ClaimSegment(m.ctx, m.job.ID, "worker", own, time.Hour)
	if !m.alive || want < 0 {
		if !errors.Is(err, ErrNoSegment) {
			rt.Fatalf("claimed %+v, %v; want none", s, err)
		}
		return
	}
	p := &m.parts[want]
	if p.lapsed {
		p.failures++
	}
	p.status, p.lapsed, p.fence = SegmentRunning, false, p.fence+1
	if err != nil || s.Part.Number != want || s.Fence != p.fence {
		rt.Fatalf("claimed %+v, %v; want part %d", s, err, want)
	}
}

// pick draws a part, and its claim with mostly the right fence.
func (m *partModel) pick(rt *rapid.T) (p *modelPart, s Segment, mine bool) {
	i := rapid.IntRange(0, len(m.parts)-1).Draw(rt, "part")
	p = &m.parts[i]
	fence := p.fence + rapid.SampledFrom([]int64{0, 0, 0, -1, 1}).Draw(rt, "fence off by")
	return p, Segment{JobID: m.job.ID, Part: engine.Part{Number: i}, Fence: fence}, fence == p.fence && p.status == SegmentRunning
}

func (m *partModel) answer(rt *rapid.T, err error, ok bool) {
	if ok && err != nil || !ok && !errors.Is(err, ErrStale) {
		rt.Fatalf("%v; want success: %v", err, ok)
	}
}

func (m *partModel) beat(rt *rapid.T) {
	p, s, mine := m.pick(rt)
	m.answer(rt, m.store.SegmentHeartbeat(m.ctx, s, 10, time.Hour), mine)
	if mine {
		p.lapsed = false
	}
}

func (m *partModel) done(rt *rapid.T) {
	p, s, mine := m.pick(rt)
	again := p.status == SegmentDone && s.Fence == p.fence
	m.answer(rt, m.store.SegmentDone(m.ctx, s, "parts/"+fmt.Sprint(s.Part.Number), json.RawMessage(`{}`)), mine || again)
	if mine {
		p.status, p.lapsed = SegmentDone, false
	}
}

func (m *partModel) release(rt *rapid.T) {
	failed := rapid.Bool().Draw(rt, "failed")
	p, s, mine := m.pick(rt)
	m.answer(rt, m.store.ReleaseSegment(m.ctx, s, failed), mine)
	if mine {
		p.status, p.lapsed = SegmentQueued, false
		if failed {
			p.failures++
		}
	}
}

func (m *partModel) lapse(rt *rapid.T) {
	p, s, _ := m.pick(rt)
	if p.status != SegmentRunning {
		rt.Skip("not running")
	}
	m.exec("UPDATE segments SET lease_until = 1 WHERE job_id = $1 AND number = $2", m.job.ID, s.Part.Number)
	p.lapsed = true
}

// lose gives the job back to the queue, or claims it again.
func (m *partModel) lose(rt *rapid.T) {
	if m.alive {
		_, err := m.store.Yield(m.ctx, m.job.ID, m.job.Fence)
		m.ok(err)
	} else {
		var err error
		m.job, err = m.store.Claim(m.ctx, m.job.ID, "owner", time.Hour)
		m.ok(err)
		_, err = m.store.Reserve(m.ctx, m.job, 700)
		m.ok(err)
	}
	m.alive = !m.alive
}
