package job

import (
	"errors"
	"fmt"
	"testing"

	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

// TestLanes: where a job waits follows from what its account has in flight of the same media at that moment.
func TestLanes(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000_000)
		flood := []string{}
		for i := range 12 {
			want := 0
			switch {
			case i >= laneSome:
				want = 2
			case i >= laneFew:
				want = 1
			}
			j := w.submit("upscale")
			flood = append(flood, j.ID)
			if j.Lane != want || j.WakeUp() != (WakeUp{ID: j.ID, Media: engine.Image, Lane: want, Number: 1}) {
				t.Errorf("image %d waits in lane %d, want %d", i+1, j.Lane, want)
			}
		}
		if j := w.submit("video_upscale"); j.Lane != 0 {
			t.Errorf("the first video waits in lane %d behind images", j.Lane)
		}
		other := w.newAccount(10_000)
		sub := w.submission("upscale")
		sub.AccountID = other
		if j, err := w.store.Submit(w.ctx, sub); err != nil || j.Lane != 0 {
			t.Errorf("another account's first image waits in lane %d, %v", j.Lane, err)
		}
		// What ends makes room.
		for _, id := range flood[:11] {
			_, err := w.store.Cancel(w.ctx, w.account, id)
			w.ok(err)
		}
		if j := w.submit("upscale"); j.Lane != 1 {
			t.Errorf("with one image in flight the next waits in lane %d", j.Lane)
		}
		// What comes back goes to the front.
		last := flood[11]
		w.ok(w.do("claim", last, 0))
		w.ok(w.do("yield", last, 1))
		if j, err := w.store.Get(w.ctx, w.account, last); err != nil || j.Lane != 0 {
			t.Errorf("a job that was given back waits in lane %d, %v", j.Lane, err)
		}
	})
}

// TestPromote: the longest waiting job of an account goes first when nothing of the account is running, and otherwise stays where it is.
func TestPromote(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 10_000_000)
		ids := []string{}
		for range 4 {
			ids = append(ids, w.submit("upscale").ID)
		}
		film := w.submit("video_upscale")
		w.ok(w.do("claim", ids[0], 0))
		waiting := Waiting{AccountID: w.account, WakeUp: WakeUp{ID: ids[1], Media: engine.Image, Lane: 1, Number: 1}}
		if _, err := w.store.Promote(w.ctx, waiting); !errors.Is(err, ErrStale) {
			t.Errorf("promoted while another image of the account is running: %v", err)
		}
		w.ok(w.do("reserve", ids[0], 1))
		w.ok(w.do("succeed", ids[0], 1))
		w.ok(w.do("claim", film.ID, 0)) // a video is no image
		next, err := w.store.Promote(w.ctx, waiting)
		if want := (WakeUp{ID: ids[1], Media: engine.Image, Number: 2}); err != nil || next != want {
			t.Errorf("promoted as %+v, %v; want %+v", next, err, want)
		}
		for name, stale := range map[string]Waiting{
			"an older wake-up": waiting,
			"a running job":    {AccountID: w.account, WakeUp: WakeUp{ID: film.ID, Media: engine.Video, Number: 1}},
			"no job":           {AccountID: w.account, WakeUp: WakeUp{ID: "job_none", Media: engine.Image, Number: 1}},
		} {
			if _, err := w.store.Promote(w.ctx, stale); !errors.Is(err, ErrStale) {
				t.Errorf("%s: %v", name, err)
			}
		}
		lanes := ""
		for _, id := range ids[1:] {
			j, err := w.store.Get(w.ctx, w.account, id)
			w.ok(err)
			lanes += fmt.Sprint(j.Lane, "/", j.Dispatch, " ")
		}
		if lanes != "0/2 1/1 1/1 " {
			t.Errorf("lanes and wake-ups %q", lanes)
		}
	})
}
