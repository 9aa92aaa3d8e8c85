package api

import (
	"context"
	"net/http"

	"enlarger/billing"
)

// creditsView is an account's balance.
type creditsView struct {
	Balance credits `json:"balance" doc:"Credits available to spend right now; frozen ones are not in it."`
	Used    credits `json:"used" doc:"Credits consumed by completed jobs."`
	Frozen  credits `json:"frozen" doc:"Credits reserved by jobs in progress."`
}

// getCredits is GET /credits.
func (s *server) getCredits(ctx context.Context, x *exchange, _ *http.Request) (*answer, error) {
	b, err := s.cfg.Ledger.Balance(ctx, x.account.ID)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: creditsView{Balance: credits(b.Balance), Used: credits(b.Used), Frozen: credits(b.Frozen)}}, nil
}

// ledgerPage is one page of entries.
type ledgerPage struct {
	Entries    []ledgerEntry `json:"entries" nullable:"false" doc:"Newest first."`
	HasMore    bool          `json:"has_more" doc:"Whether there are older entries."`
	NextCursor *string       `json:"next_cursor" doc:"What to send as cursor for the next page; null on the last."`
}

// ledgerEntry is one step: what it added to balance, frozen and used.
type ledgerEntry struct {
	ID        string  `json:"id"`
	Type      string  `json:"type" enum:"grant,reserve,confirm,release" doc:"What happened: credits granted, frozen for a job, charged, given back."`
	JobID     *string `json:"job_id" doc:"The job; null for a grant."`
	Balance   credits `json:"balance" doc:"The change of the balance."`
	Frozen    credits `json:"frozen" doc:"The change of the frozen credits."`
	Used      credits `json:"used" doc:"The change of the used credits."`
	Note      string  `json:"note" doc:"A grant's note."`
	CreatedAt moment  `json:"created_at"`
}

// getLedger is GET /credits/ledger.
func (s *server) getLedger(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	q, err := query(r)
	if err != nil {
		return nil, err
	}
	limit, err := pageLimit(q)
	if err != nil {
		return nil, err
	}
	filter := billing.EntryFilter{Limit: limit + 1, Reference: q.Get("job_id")}
	if filter.Reference != "" && !jobIDForm.MatchString(filter.Reference) {
		return nil, badParam("job_id", "must be the id of a job.")
	}
	if text := q.Get("cursor"); text != "" {
		if filter.AfterTime, filter.AfterID, err = readCursor(text); err != nil {
			return nil, err
		}
	}
	entries, err := s.cfg.Ledger.Entries(ctx, x.account.ID, filter)
	if err != nil {
		return nil, err
	}
	page := ledgerPage{Entries: []ledgerEntry{}, HasMore: len(entries) > limit}
	if page.HasMore {
		entries = entries[:limit]
		last := entries[limit-1]
		cursor := newCursor(last.CreatedAt, last.ID)
		page.NextCursor = &cursor
	}
	for _, e := range entries {
		line := ledgerEntry{ID: e.ID, Type: e.Step, Balance: credits(e.Balance), Frozen: credits(e.Frozen), Used: credits(e.Used), Note: e.Note, CreatedAt: moment(e.CreatedAt)}
		if e.Step != "grant" {
			line.JobID = &e.Reference
		}
		page.Entries = append(page.Entries, line)
	}
	return &answer{status: http.StatusOK, body: page}, nil
}
