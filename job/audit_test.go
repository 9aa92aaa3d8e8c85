package job

import (
	"slices"
	"strings"
	"testing"
	"time"

	"enlarger/db"
	"enlarger/testbed/databases"
)

// lawless drops what the schema guards by itself, so that a test can store lies.
func (w *world) lawless() (exec func(query string)) {
	w.Helper()
	conn, err := w.db.Conn(w.ctx)
	w.ok(err)
	w.Cleanup(func() { conn.Close() })
	exec = func(query string) {
		w.Helper()
		result, err := conn.ExecContext(w.ctx, query)
		if err != nil {
			w.Fatalf("%s: %v", query, err)
		}
		if n, err := result.RowsAffected(); err != nil || (strings.HasPrefix(query, "UPDATE") || strings.HasPrefix(query, "DELETE")) && n != 1 {
			w.Fatalf("%s changed %d rows, %v; want one", query, n, err)
		}
	}
	if !w.db.Postgres() {
		exec("PRAGMA ignore_check_constraints = ON")
		exec("PRAGMA foreign_keys = OFF")
		return exec
	}
	exec(`DO $$ DECLARE c RECORD; BEGIN
		FOR c IN SELECT conrelid::regclass AS tab, conname FROM pg_constraint WHERE contype IN ('c', 'f') AND conrelid <> 0 LOOP
			EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', c.tab, c.conname);
		END LOOP; END $$`)
	return exec
}

// facts is what the audit finds now, one "ROW rule" each.
func (w *world) facts() map[string]bool {
	w.Helper()
	found, err := w.store.Audit(w.ctx)
	w.ok(err)
	all := map[string]bool{}
	for _, v := range found {
		all[v.Row+" "+v.Rule] = true
		if v.Detail == "" {
			w.Errorf("no detail: %+v", v)
		}
	}
	return all
}

// usedUpload makes an upload that a job of its own has taken.
func (w *world) usedUpload() (id string) {
	w.Helper()
	u := Upload{ID: NewUploadID(), AccountID: w.account, CreatedAt: time.Now(), ExpiresAt: time.Now().Add(time.Hour)}
	u.Object = "uploads/" + u.ID
	w.ok(w.store.CreateUpload(w.ctx, u, Idempotency{}))
	sub := w.submission("video_upscale")
	sub.Source = Source{Kind: SourceUpload, UploadID: u.ID}
	_, err := w.store.Submit(w.ctx, sub)
	w.ok(err)
	return u.ID
}

// TestAuditNamesTheRow breaks one row in each way the rules name, beside sound jobs, and demands that the audit then names that row
// for that rule, and no other row.
func TestAuditNamesTheRow(t *testing.T) {
	t.Parallel()
	const (
		succeeded = "a succeeded job is confirmed once"
		ended     = "a failed or canceled job holds nothing"
		going     = "a job in progress is not settled"
		early     = "a job is not worked on before its credits are reserved"
		owner     = "a hold belongs to a job of the same account"
		fence     = "a job ended with its last fence"
		places    = "the places in flight are counted right"
		cut       = "only a job in progress has segments"
		consumed  = "an upload is consumed by one job of its account"
		story     = "a hold's entries tell its state"
		open      = "frozen is the sum of the open holds"
		sum       = "an account's credits are the sum of its entries"
		orphan    = "every entry but a grant belongs to a hold"
	)
	hold := func(state string) string {
		return "UPDATE holds SET state = '" + state + "', ended_at = CASE WHEN '" + state + "' = 'held' THEN 0 ELSE 1 END WHERE job_id = JOB"
	}
	const status = "UPDATE jobs SET status = "
	databases.Each(t, func(t *testing.T, d *db.DB) {
		exec := newWorld(t, d, 0).lawless()
		for _, c := range []struct {
			// state is what the job is in before query breaks it. JOB is the job, ACC its account, UPL its upload.
			state, query string
			// want is "ROW rule" of all that the audit must then say; ENTRIES are both entries of the hold.
			want []string
		}{
			{"succeeded+confirmed", hold("released"), []string{"JOB " + succeeded, "JOB " + story}},
			{"succeeded+confirmed", hold("held"), []string{"JOB " + succeeded, "JOB " + story, "ACC " + open}},
			{"succeeded+confirmed", "DELETE FROM holds WHERE job_id = JOB", []string{"JOB " + succeeded, "ENTRIES " + orphan}},
			{"succeeded+confirmed", status + "'failed', error_code = 'x' WHERE id = JOB", []string{"JOB " + ended}},
			{"succeeded+confirmed", status + "'canceled' WHERE id = JOB", []string{"JOB " + ended}},
			{"succeeded+confirmed", status + "'queued', finished_at = 0 WHERE id = JOB", []string{"JOB " + going, "ACC " + places}},
			{"failed+released", status + "'succeeded' WHERE id = JOB", []string{"JOB " + succeeded}},
			{"failed", status + "'succeeded' WHERE id = JOB", []string{"JOB " + succeeded}},
			{"failed+released", hold("confirmed"), []string{"JOB " + ended, "JOB " + story}},
			{"canceled+released", hold("confirmed"), []string{"JOB " + ended, "JOB " + story}},
			{"canceled+released", hold("held"), []string{"JOB " + ended, "JOB " + story, "ACC " + open}},
			{"processing+held", hold("released"), []string{"JOB " + going, "JOB " + story, "ACC " + open}},
			{"processing+held", hold("confirmed"), []string{"JOB " + going, "JOB " + story, "ACC " + open}},
			{"queued+held", hold("confirmed"), []string{"JOB " + going, "JOB " + story, "ACC " + open}},
			{"syncing", "UPDATE jobs SET phase = 'processing' WHERE id = JOB", []string{"JOB " + early}},
			{"processing+held", "DELETE FROM jobs WHERE id = JOB", []string{"JOB " + owner, "ACC " + places}},
			{"failed+released", "UPDATE jobs SET account_id = 'acc_other' WHERE id = JOB", []string{"JOB " + owner}},
			{"succeeded+confirmed", "UPDATE jobs SET finished_fence = fence - 1 WHERE id = JOB", []string{"JOB " + fence}},
			{"failed", "UPDATE jobs SET fence = fence + 1 WHERE id = JOB", []string{"JOB " + fence}},
			{"canceled+released", "UPDATE jobs SET finished_fence = fence + 1 WHERE id = JOB", []string{"JOB " + fence}},
			{"queued", "UPDATE accounts SET active_image = active_image + 1 WHERE id = ACC", []string{"ACC " + places}},
			{"queued", "UPDATE accounts SET active_image = 0 WHERE id = ACC", []string{"ACC " + places}},
			{"queued", "UPDATE accounts SET active_video = active_video - 1 WHERE id = ACC", []string{"ACC " + places}},
			{"queued", "UPDATE uploads SET job_id = 'job_none' WHERE id = UPL", []string{"UPL " + consumed}},
			{"queued", "UPDATE uploads SET account_id = 'acc_other' WHERE id = UPL", []string{"UPL " + consumed}},
			{"queued", "UPDATE uploads SET status = 'consumed', job_id = JOB WHERE id = UPL", []string{"UPL " + consumed}},
			{"succeeded+confirmed", "INSERT INTO segments (job_id, number, part, frames) VALUES (JOB, 0, '{}', 1)", []string{"JOB " + cut}},
			{"succeeded+confirmed", "UPDATE accounts SET posted = posted - 1, used = used + 1 WHERE id = ACC", []string{"ACC " + sum}},
		} {
			t.Run(c.state+" "+c.query, func(t *testing.T) {
				w := newWorld(t, d, 1_000_000)
				for _, sound := range []string{"processing+held", "succeeded+confirmed", "canceled+released"} {
					w.bring(sound)
				}
				names := map[string]string{"JOB": w.bring(c.state), "ACC": w.account, "UPL": w.usedUpload()}
				before := w.facts() // of the cases before: their rows stay broken
				query := c.query
				for name, id := range names {
					query = strings.ReplaceAll(query, name, "'"+id+"'")
				}
				exec(query)
				var want, got []string
				for _, line := range c.want {
					name, rule, _ := strings.Cut(line, " ")
					rows := []string{names[name]}
					if name == "ENTRIES" {
						var err error
						rows, err = w.store.strings(w.ctx, "SELECT id FROM entries WHERE hold_id = $1", names["JOB"])
						w.ok(err)
					}
					for _, row := range rows {
						want = append(want, row+" "+rule)
					}
				}
				for fact := range w.facts() {
					if !before[fact] {
						got = append(got, fact)
					}
				}
				slices.Sort(want)
				slices.Sort(got)
				if !slices.Equal(got, want) {
					t.Errorf("the audit says\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
			})
		}
	})
}
