// Package job keeps the job row: its states, every transition between them, and the SQL of each. Uploads and idempotency keys are
// rows of the same story.
//
// The database is the truth. Every transition is one conditional UPDATE (id, status and fence in its WHERE); when it changes no row the
// caller is stale and must stop. Credits move in the same transaction as the state. docs/states.md draws the machine.
package job

import (
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
)

// Status is where a job is in its life.
type Status string

// The statuses of the API document.
const (
	Queued     Status = "queued"
	Processing Status = "processing"
	Succeeded  Status = "succeeded"
	Failed     Status = "failed"
	Canceled   Status = "canceled"
)

// Terminal says whether a job with this status will never change again.
func (s Status) Terminal() bool { return s == Succeeded || s == Failed || s == Canceled }

// Phase narrows Processing down; it is empty in every other status.
type Phase string

// The phases of the API document.
const (
	PhaseUploading  Phase = "uploading"
	PhaseSyncing    Phase = "syncing"
	PhaseProcessing Phase = "processing"
)

// SourceKind says how the client gave its source.
type SourceKind string

// The ways to give a source.
const (
	SourceInline SourceKind = "inline"
	SourceUpload SourceKind = "upload"
	SourceURL    SourceKind = "url"
)

// Source is where a job's source is.
type Source struct {
	Kind SourceKind
	// URL is set for SourceURL.
	URL string
	// Object is its key in the bucket: there already when Ready, else where the worker puts it.
	Object string
	Ready  bool
	// Size in bytes as declared or counted; 0 unknown.
	Size     int64
	UploadID string
}

// Job is one row.
type Job struct {
	ID, AccountID, KeyID string
	Tool                 string
	Media                engine.Media
	// Config is the canonical config; Format the output's file extension.
	Config   json.RawMessage
	Format   string
	Hint     engine.Source
	Warnings []string
	Metadata map[string]string
	Source   Source
	// ResultsPrefix starts the key of every result object of this job.
	ResultsPrefix string

	Status   Status
	Phase    Phase
	Progress int
	// Fence rises at every claim and never falls: it is the right to write. Failures counts against the retry budget.
	Fence, Failures int64
	// Dispatch numbers the wake-ups of a queued job; Lane is which of its media's queues they go to.
	Dispatch int64
	Lane     int

	Estimate billing.Millicredits
	// Charged is 0 while queued, the frozen amount while processing, the final amount on success, 0 after failed or canceled.
	Charged billing.Millicredits

	ResultObject string
	Result       engine.Output
	ErrorCode    engine.Code
	ErrorMessage string

	CreatedAt, StartedAt, FinishedAt, DeletedAt time.Time
}

// Lanes is the number of queues of a media. Lane 0 is served first: what an account with nothing else in flight submits, and
// what ran before; lane 2 last: what an account submits that has many jobs in flight.
const Lanes = 3

// WakeUp is a message to the workers that a job is queued.
type WakeUp struct {
	ID    string
	Media engine.Media
	Lane  int
	// Number tells the wake-ups of a job apart.
	Number int64
}

// WakeUp is the message that belongs to a queued job.
func (j Job) WakeUp() WakeUp {
	return WakeUp{ID: j.ID, Media: j.Media, Lane: j.Lane, Number: j.Dispatch}
}

// Errors that callers tell apart.
var (
	ErrNotFound       = errors.New("job not found")
	ErrNotCancelable  = errors.New("job has ended already")
	ErrConcurrency    = errors.New("too many jobs in flight")
	ErrUploadNotFound = errors.New("upload not found")
	ErrUploadConsumed = errors.New("upload was used by another job")
	ErrUploadExpired  = errors.New("upload has expired")
	// ErrIdempotencyConflict: the key is bound to a different request. ErrIdempotencyBusy: its first request is still under way.
	ErrIdempotencyConflict = errors.New("idempotency key is bound to another request")
	ErrIdempotencyBusy     = errors.New("a request with this idempotency key is under way")
	// ErrStale: the row has moved on (another fence, or a terminal state). The caller stops and writes nothing.
	ErrStale = errors.New("job has moved on")
)

// Replayed is returned instead of a new job or upload when the idempotency key has been used for the same request:
// Body is the first answer.
type Replayed struct {
	Status int
	Body   []byte
}

func (*Replayed) Error() string { return "replayed by idempotency key" }

// NewID makes a job id: nothing about order or volume leaks.
func NewID() string { return "job_" + randomHex() }

// NewUploadID makes an upload id.
func NewUploadID() string { return "upl_" + randomHex() }

func randomHex() string {
	b := make([]byte, 16)
	rand.Read(b)
	return hex.EncodeToString(b)
}

// Store reads and changes jobs, uploads and idempotency keys.
type Store struct {
	db *db.DB
}

// NewStore makes a store on the database.
func NewStore(d *db.DB) *Store { return &Store{db: d} }

const columns = `jobs.id, jobs.account_id, jobs.key_id, jobs.tool, jobs.media, jobs.config, jobs.format, jobs.hint, jobs.warnings, jobs.metadata,
	jobs.source_kind, jobs.source_url, jobs.source_object, jobs.source_ready, jobs.source_size, jobs.upload_id, jobs.results_prefix,
	jobs.status, jobs.phase, jobs.progress, jobs.fence, jobs.failures, jobs.dispatch, jobs.lane, jobs.estimate,
	COALESCE((SELECT h.amount FROM holds h WHERE h.job_id = jobs.id AND jobs.status IN ('processing', 'succeeded')), 0),
	jobs.result_object, jobs.result, jobs.error_code, jobs.error_message, jobs.created_at, jobs.started_at, jobs.finished_at, jobs.deleted_at`

type scanner interface{ Scan(...any) error }

func scan(row scanner) (Job, error) {
	var j Job
	var config, hint, warnings, metadata, result string
	var created, started, finished, deleted int64
	err := row.Scan(&j.ID, &j.AccountID, &j.KeyID, &j.Tool, &j.Media, &config, &j.Format, &hint, &warnings, &metadata,
		&j.Source.Kind, &j.Source.URL, &j.Source.Object, &j.Source.Ready, &j.Source.Size, &j.Source.UploadID, &j.ResultsPrefix,
		&j.Status, &j.Phase, &j.Progress, &j.Fence, &j.Failures, &j.Dispatch, &j.Lane, &j.Estimate, &j.Charged,
		&j.ResultObject, &result, &j.ErrorCode, &j.ErrorMessage, &created, &started, &finished, &deleted)
	if errors.Is(err, sql.ErrNoRows) {
		return Job{}, ErrNotFound
	}
	if err != nil {
		return Job{}, fmt.Errorf("read job: %w", err)
	}
	j.Config = json.RawMessage(config)
	j.CreatedAt, j.StartedAt, j.FinishedAt, j.DeletedAt = db.Time(created), db.Time(started), db.Time(finished), db.Time(deleted)
	if result == "" {
		result = "{}"
	}
	for _, part := range []struct {
		text string
		into any
	}{{hint, &j.Hint}, {warnings, &j.Warnings}, {metadata, &j.Metadata}, {result, &j.Result}} {
		if err := json.Unmarshal([]byte(part.text), part.into); err != nil {
			return Job{}, fmt.Errorf("read job %s: %w", j.ID, err)
		}
	}
	return j, nil
}

// Price is what a planned job costs.
func Price(prices *billing.Prices, plan engine.Plan) billing.Millicredits {
	return prices.Price(billing.Work{
		Tool: plan.Tool, Video: plan.Media == engine.Video, Width: plan.Width, Height: plan.Height, Frames: plan.Frames,
	})
}
