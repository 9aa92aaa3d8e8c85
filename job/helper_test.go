package job

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"enlarger/account"
	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
)

func TestMain(m *testing.M) {
	// The flags on the command line win.
	if err := flag.Set("rapid.checks", checks); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

type testConfig struct {
	Scale int `json:"scale" doc:"How many times larger." enum:"2,4,8"`
}

// catalog has one tool of each media, which no test here runs.
func catalog() *engine.Catalog {
	size := func(c testConfig, s engine.Source) (int, int) { return s.Width * c.Scale, s.Height * c.Scale }
	return engine.NewCatalog(engine.DefaultLimits(),
		engine.Define(engine.Spec[testConfig]{Name: "upscale", Media: engine.Image, Doc: "Enlarges.", Defaults: testConfig{2}, Size: size}),
		engine.Define(engine.Spec[testConfig]{Name: "video_upscale", Media: engine.Video, Doc: "Enlarges.", Defaults: testConfig{2}, Size: size}))
}

// world is a store with one account on one database.
type world struct {
	*testing.T
	ctx     context.Context
	db      *db.DB
	store   *Store
	ledger  *billing.Ledger
	account string
	catalog *engine.Catalog
}

func newWorld(t *testing.T, d *db.DB, credits billing.Millicredits) *world {
	t.Helper()
	w := &world{T: t, ctx: t.Context(), db: d, store: NewStore(d), ledger: billing.NewLedger(d), catalog: catalog()}
	w.account = w.newAccount(credits)
	return w
}

func (w *world) newAccount(credits billing.Millicredits) string {
	w.Helper()
	a, err := account.NewStore(w.db).Create(w.ctx, "test")
	w.ok(err)
	if credits > 0 {
		w.ok(w.ledger.Grant(w.ctx, a.ID, credits, "", "for the test"))
	}
	return a.ID
}

func (w *world) ok(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

// submission is a request that every check accepts: an image given inline, stored already.
func (w *world) submission(tool string) Submission {
	w.Helper()
	order, err := w.catalog.Order(tool, nil, "")
	w.ok(err)
	id := NewID()
	return Submission{
		ID: id, AccountID: w.account, KeyID: "key_1", Order: order, MaxActive: 1_000_000, CreatedAt: time.Now(),
		Source:        Source{Kind: SourceInline, Object: "sources/" + id, Ready: true, Size: 10},
		ResultsPrefix: "results/" + id + "/", Estimate: 1000, Metadata: map[string]string{"order": "42"},
	}
}

func (w *world) submit(tool string) Job {
	w.Helper()
	j, err := w.store.Submit(w.ctx, w.submission(tool))
	w.ok(err)
	return j
}

// submitUnstored is a job whose source a worker must bring into the bucket first.
func (w *world) submitUnstored(tool string) Job {
	w.Helper()
	sub := w.submission(tool)
	sub.Source.Kind, sub.Source.URL, sub.Source.Ready = SourceURL, "https://example.com/photo.jpg", false
	j, err := w.store.Submit(w.ctx, sub)
	w.ok(err)
	return j
}

// claimed is what a worker knows of the image that it claimed with this fence.
func (w *world) claimed(id string, fence int64) Job {
	return Job{ID: id, AccountID: w.account, Media: engine.Image, Fence: fence}
}

func (w *world) exec(query string, args ...any) {
	w.Helper()
	_, err := w.db.ExecContext(w.ctx, query, args...)
	w.ok(err)
}

func (w *world) clean() {
	w.Helper()
	broken, err := w.store.Audit(w.ctx)
	w.ok(err)
	if len(broken) > 0 {
		w.Fatalf("audit: %+v", broken)
	}
}

// cellsOf reads a table of lines and columns by their heads.
func cellsOf(table string) map[string]map[string]string {
	rows := map[string]map[string]string{}
	var head []string
	for line := range strings.SplitSeq(strings.TrimSpace(table), "\n") {
		cells := strings.Split(line, "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if head == nil {
			head = cells
			continue
		}
		rows[cells[0]] = map[string]string{}
		for i, cell := range cells[1:] {
			rows[cells[0]][head[i+1]] = cell
		}
	}
	return rows
}
