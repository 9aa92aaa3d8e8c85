package job

import (
	"errors"
	"testing"
	"time"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/testbed/databases"
)

var giveUp = engine.Failf(engine.ProcessingFailed, "It did not work.")

// TestStory runs every statement once, the way a few jobs' lives would.
func TestStory(t *testing.T) {
	t.Parallel()
	databases.Each(t, func(t *testing.T, d *db.DB) {
		w := newWorld(t, d, 100_000)
		accountStory(w)
		succeedStory(w)
		endStories(w)
		uploadStory(w)
		sweepStory(w)
		w.clean()
	})
}

func accountStory(w *world) {
	accounts := account.NewStore(w.db)
	w.ok(accounts.SetLimits(w.ctx, w.account, 3, 2, 60))
	a, err := accounts.Get(w.ctx, w.account)
	w.ok(err)
	if a.MaxImage != 3 || a.MaxVideo != 2 || a.RateLimit != 60 || a.Status != "active" || a.CreatedAt.IsZero() {
		w.Errorf("account: %+v", a)
	}
	if list, err := accounts.List(w.ctx); err != nil || len(list) != 1 || list[0] != a {
		w.Errorf("list: %+v, %v", list, err)
	}
	key, secret, err := accounts.CreateKey(w.ctx, w.account, "laptop")
	w.ok(err)
	gotAccount, gotKey, err := accounts.Authenticate(w.ctx, secret)
	if err != nil || gotAccount.ID != w.account || gotKey.ID != key.ID {
		w.Errorf("authenticate: %+v %+v %v", gotAccount, gotKey, err)
	}
	w.ok(accounts.SetStatus(w.ctx, w.account, "suspended"))
	if _, _, err := accounts.Authenticate(w.ctx, secret); !errors.Is(err, account.ErrSuspended) {
		w.Errorf("suspended: %v", err)
	}
	w.ok(accounts.SetStatus(w.ctx, w.account, "active"))
	revoked, err := accounts.RevokeKey(w.ctx, w.account, key.ID)
	if err != nil || revoked.Status != "revoked" || revoked.RevokedAt.IsZero() || revoked.LastUsed.IsZero() {
		w.Errorf("revoke: %+v %v", revoked, err)
	}
	if _, _, err := accounts.Authenticate(w.ctx, secret); !errors.Is(err, account.ErrInvalidKey) {
		w.Errorf("revoked: %v", err)
	}
	if keys, err := accounts.Keys(w.ctx, w.account); err != nil || len(keys) != 1 || keys[0] != revoked {
		w.Errorf("keys: %+v %v", keys, err)
	}
}

func succeedStory(w *world) {
	j := w.submit("upscale")
	if j.Status != Queued || j.Charged != 0 || j.Metadata["order"] != "42" || !j.Source.Ready {
		w.Errorf("submitted: %+v", j)
	}
	j, err := w.store.Claim(w.ctx, j.ID, "worker", time.Minute)
	w.ok(err)
	if j.Status != Processing || j.Phase != PhaseSyncing || j.Fence != 1 || j.StartedAt.IsZero() {
		w.Errorf("claimed: %+v", j)
	}
	w.ok(w.store.Heartbeat(w.ctx, j.ID, 1, PhaseUploading, 0, time.Minute))
	w.ok(w.store.SourceStored(w.ctx, j.ID, 1, 12))
	held, err := w.store.Reserve(w.ctx, j, 1500)
	w.ok(err)
	w.ok(w.store.Heartbeat(w.ctx, j.ID, 1, PhaseProcessing, 50, time.Minute))
	running, err := w.store.Get(w.ctx, w.account, j.ID)
	if err != nil || held != 1500 || running.Phase != PhaseProcessing || running.Progress != 50 || running.Charged != 1500 {
		w.Errorf("running: %+v %v, held %v", running, err, held)
	}
	counts, err := w.store.Active(w.ctx)
	if err != nil || counts.Processing != 1 || counts.Queued != 0 {
		w.Errorf("active: %+v %v", counts, err)
	}
	w.ok(w.store.Succeed(w.ctx, j, j.ResultsPrefix+"1.jpg", engine.Output{Width: 4, Height: 4, Size: 9}, []string{j.ResultsPrefix + "0.jpg"}))
	done, err := w.store.Get(w.ctx, w.account, j.ID)
	if err != nil || done.Status != Succeeded || done.Progress != 100 || done.Charged != 1500 || done.Result.Width != 4 || done.FinishedAt.IsZero() {
		w.Errorf("done: %+v %v", done, err)
	}
	b, err := w.ledger.Balance(w.ctx, w.account)
	if err != nil || b != (billing.Balance{Balance: 98_500, Used: 1500}) {
		w.Errorf("balance: %+v %v", b, err)
	}
	w.clean()
	deleted, err := w.store.Delete(w.ctx, w.account, j.ID)
	if err != nil || deleted.WasProcessing || len(deleted.Objects) != 2 {
		w.Errorf("delete: %+v %v", deleted, err)
	}
	if _, err := w.store.Get(w.ctx, w.account, j.ID); !errors.Is(err, ErrNotFound) {
		w.Errorf("get after delete: %v", err)
	}
	w.clean()
}

// endStories ends jobs in every other way.
func endStories(w *world) {
	reserved := func() Job {
		j := w.submit("video_upscale")
		j, err := w.store.Claim(w.ctx, j.ID, "worker", time.Minute)
		w.ok(err)
		_, err = w.store.Reserve(w.ctx, j, 500)
		w.ok(err)
		return j
	}
	j := reserved()
	w.ok(w.store.Fail(w.ctx, j.ID, 1, giveUp))
	j = reserved()
	dispatch, final, err := w.store.Retry(w.ctx, j.ID, 1, 0, 2, giveUp)
	if err != nil || final || dispatch != 2 {
		w.Errorf("retry: %v %v %v", dispatch, final, err)
	}
	w.clean()
	_, err = w.store.Claim(w.ctx, j.ID, "worker", time.Minute)
	w.ok(err)
	dispatch, err = w.store.Yield(w.ctx, j.ID, 2)
	if err != nil || dispatch != 3 {
		w.Errorf("yield: %v %v", dispatch, err)
	}
	_, err = w.store.Claim(w.ctx, j.ID, "worker", -time.Second)
	w.ok(err)
	lost, err := w.store.LostRuns(w.ctx, 10)
	if err != nil || len(lost) != 1 || lost[0] != (Lost{ID: j.ID, Media: engine.Video, Fence: 3, Worker: "worker"}) {
		w.Errorf("lost: %+v %v", lost, err)
	}
	if _, final, err := w.store.Expire(w.ctx, j.ID, 3, 2, giveUp); err != nil || !final {
		w.Errorf("expire: %v %v", final, err)
	}
	j = reserved()
	if was, err := w.store.Cancel(w.ctx, w.account, j.ID); err != nil || !was {
		w.Errorf("cancel: %v %v", was, err)
	}
	j = w.submit("upscale")
	if was, err := w.store.Cancel(w.ctx, w.account, j.ID); err != nil || was {
		w.Errorf("cancel queued: %v %v", was, err)
	}
	list, err := w.store.List(w.ctx, w.account, Filter{Status: Canceled, Tool: "upscale", Media: engine.Image, CreatedAfter: time.Unix(1, 0),
		CreatedBefore: time.Now().Add(time.Hour), AfterTime: time.Now().Add(time.Hour), AfterID: "job_", Limit: 10})
	if err != nil || len(list) != 1 || list[0].ID != j.ID {
		w.Errorf("list: %+v %v", list, err)
	}
	w.ok(w.store.Preflight(w.ctx, w.account, engine.Image, 1000, 1))
}

func uploadStory(w *world) {
	u := Upload{ID: NewUploadID(), AccountID: w.account, Object: "uploads/a", FileName: "a.mp4", ContentType: "video/mp4", Size: 5,
		CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
	bound := Idempotency{Key: "k", Fingerprint: "f", Status: 201, Body: []byte(`{"a":1}`)}
	w.ok(w.store.CreateUpload(w.ctx, u, bound))
	var again *Replayed
	if err := w.store.CreateUpload(w.ctx, u, bound); !errors.As(err, &again) || string(again.Body) != `{"a":1}` || again.Status != 201 {
		w.Errorf("replayed: %v", err)
	}
	if err := w.store.Replay(w.ctx, w.account, "k", "f"); !errors.As(err, &again) {
		w.Errorf("replay: %v", err)
	}
	if err := w.store.Replay(w.ctx, w.account, "k", "g"); !errors.Is(err, ErrIdempotencyConflict) {
		w.Errorf("replay: %v", err)
	}
	w.ok(w.store.Replay(w.ctx, w.account, "other", "f"))
	w.ok(w.store.CheckUpload(w.ctx, w.account, u.ID))
	sub := w.submission("video_upscale")
	sub.Source = Source{Kind: SourceUpload, UploadID: u.ID}
	j, err := w.store.Submit(w.ctx, sub)
	if err != nil || j.Source.Object != "uploads/a" || j.Source.Size != 5 || j.Source.Ready {
		w.Errorf("submit: %+v %v", j, err)
	}
	if err := w.store.CheckUpload(w.ctx, w.account, u.ID); !errors.Is(err, ErrUploadConsumed) {
		w.Errorf("check: %v", err)
	}
}

func sweepStory(w *world) {
	w.ok(w.store.Discard(w.ctx, 0, "old/1", "old/2"))
	due, err := w.store.Garbage(w.ctx, 10)
	if err != nil || len(due) != 2 {
		w.Errorf("garbage: %v %v", due, err)
	}
	if found, err := w.store.Referenced(w.ctx, "old/1"); err != nil || !found {
		w.Errorf("referenced: %v %v", found, err)
	}
	w.ok(w.store.Removed(w.ctx, due))
	if found, err := w.store.Referenced(w.ctx, "old/1"); err != nil || found {
		w.Errorf("referenced: %v %v", found, err)
	}
	waiting, err := w.store.WaitingJobs(w.ctx, -time.Hour, 10)
	if err != nil || len(waiting) != 1 {
		w.Fatalf("waiting: %+v %v", waiting, err)
	}
	w.ok(w.store.Seen(w.ctx, waiting))
	if n, err := w.store.Redispatch(w.ctx, waiting[0]); err != nil || n.Number != waiting[0].Number+1 {
		w.Errorf("redispatch: %v %v", n, err)
	}
	if _, err := w.store.Redispatch(w.ctx, waiting[0]); !errors.Is(err, ErrStale) {
		w.Errorf("redispatch twice: %v", err)
	}
	if n, err := w.store.ExpireSources(w.ctx, -time.Hour, 10); err != nil || n == 0 {
		w.Errorf("expire sources: %v %v", n, err)
	}
	_, err = w.store.ExpireUploads(w.ctx, 10)
	w.ok(err)
	w.ok(w.store.ExpireKeys(w.ctx, 10))
}
