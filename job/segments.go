package job

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"enlarger/db"
	"enlarger/engine"
)

// Segment is a part of a long video that is made and stored on its own, by whichever worker takes it. Its fence is the right to write its
// row; the job's run that joins the parts has the job's fence for that.
type Segment struct {
	JobID string
	Part  engine.Part
	// Status is queued, running or done.
	Status SegmentStatus
	Worker string
	// Fence rises at every claim. Failures counts runs that ended by an error or with their worker.
	Fence, Failures int64
	// Progress is the part done in percent, of one that is running.
	Progress int
	// Object is where a part that is done lies in the bucket; Facts are what the tool said of it.
	Object string
	Facts  json.RawMessage
}

// SegmentStatus is where a part is in its life.
type SegmentStatus string

// The statuses of a part.
const (
	SegmentQueued  SegmentStatus = "queued"
	SegmentRunning SegmentStatus = "running"
	SegmentDone    SegmentStatus = "done"
)

// SegmentsMost is the most parts a job may have.
const SegmentsMost = 512

// ErrNoSegment says that nothing of the job is to be claimed now.
var ErrNoSegment = errors.New("no segment to claim")

// segmentPatience is how many failures of a part workers that help take upon themselves. After that only the job's own run takes it, whose
// failures count against the job.
const segmentPatience = 2

const segmentColumns = `job_id, number, part, status, worker, fence, failures, progress, object, facts`

func scanSegment(row scanner) (Segment, error) {
	var s Segment
	var number int
	var part, facts string
	if err := row.Scan(&s.JobID, &number, &part, &s.Status, &s.Worker, &s.Fence, &s.Failures, &s.Progress, &s.Object, &facts); err != nil {
		return Segment{}, err
	}
	s.Facts = json.RawMessage(facts)
	if err := json.Unmarshal([]byte(part), &s.Part); err != nil || s.Part.Number != number {
		return Segment{}, fmt.Errorf("read segment %d of %s: part %d: %w", number, s.JobID, s.Part.Number, err)
	}
	return s, nil
}

// AddSegments writes the parts of j, a claimed job, all or none. Those that an earlier run wrote stay as they are. ErrStale: not the caller's any more.
func (s *Store) AddSegments(ctx context.Context, j Job, parts []engine.Part) error {
	if len(parts) > SegmentsMost {
		return fmt.Errorf("add segments: %d are too many", len(parts))
	}
	steps := []db.Step{holdRun(j)}
	for _, p := range parts {
		step, err := insertSegment(j.ID, p, `DO NOTHING`)
		if err != nil {
			return err
		}
		steps = append(steps, step)
	}
	return certainly(func() error { return s.db.Batch(ctx, steps...) })
}

// Segments reads the parts of a job in their order; none when it was not cut, or has ended.
func (s *Store) Segments(ctx context.Context, id string) ([]Segment, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT `+segmentColumns+` FROM segments WHERE job_id = $1 ORDER BY number`, id)
	if err != nil {
		return nil, fmt.Errorf("read segments: %w", err)
	}
	defer rows.Close()
	var list []Segment
	for rows.Next() {
		segment, err := scanSegment(rows)
		if err != nil {
			return nil, err
		}
		list = append(list, segment)
	}
	return list, rows.Err()
}

// free is the condition of a part that can be claimed: it waits, or its worker has been silent for longer than its lease.
const free = `(status = 'queued' OR (status = 'running' AND lease_until < now_micros()))`

// ClaimSegment gives the caller the first part of the job that is free: status running, fence + 1, a lease by the database's clock. A part
// whose worker died counts a failure. own says that the caller has the job's run; any other gets no part that failed too often. ErrNoSegment:
// none is free, or the job is not being processed.
func (s *Store) ClaimSegment(ctx context.Context, id, worker string, own bool, lease time.Duration) (Segment, error) {
	most := int64(segmentPatience)
	if own {
		most = 1 << 62
	}
	numbers, err := s.freeSegments(ctx, id, most)
	if err != nil {
		return Segment{}, err
	}
	for _, number := range numbers {
		var claimed Segment
		err := s.db.WriteRow(ctx, func(row *sql.Row) (err error) {
			claimed, err = scanSegment(row)
			return err
		}, `UPDATE segments SET failures = failures + CASE WHEN status = 'running' THEN 1 ELSE 0 END, status = 'running', fence = fence + 1, worker = $3,
				lease_until = now_micros() + $4, progress = 0
			WHERE job_id = $1 AND number = $2 AND `+free+` AND EXISTS (SELECT 1 FROM jobs WHERE jobs.id = $1 AND jobs.status = 'processing')
			RETURNING `+segmentColumns, id, number, worker, lease.Microseconds())
		if errors.Is(err, sql.ErrNoRows) {
			continue // another was first
		}
		if err != nil {
			return Segment{}, fmt.Errorf("claim segment: %w", err)
		}
		return claimed, nil
	}
	return Segment{}, ErrNoSegment
}

// freeSegments reads the numbers of a few parts that are free, the first first: enough of them that workers who all want the first find another.
func (s *Store) freeSegments(ctx context.Context, id string, failures int64) ([]int, error) {
	rows, err := s.db.QueryContext(ctx, `SELECT number FROM segments WHERE job_id = $1 AND `+free+`
		AND failures + CASE WHEN status = 'running' THEN 1 ELSE 0 END < $2 ORDER BY number LIMIT 32`, id, failures)
	if err != nil {
		return nil, fmt.Errorf("find segments: %w", err)
	}
	defer rows.Close()
	var numbers []int
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			return nil, fmt.Errorf("find segments: %w", err)
		}
		numbers = append(numbers, n)
	}
	return numbers, rows.Err()
}

// inProgress is the condition of a part whose job has not ended. A job that lost its run may be queued for a moment, and whoever helps works on.
const inProgress = `EXISTS (SELECT 1 FROM jobs WHERE jobs.id = $1 AND jobs.status IN ('queued', 'processing'))`

// SegmentHeartbeat keeps a part and tells its progress in percent. ErrStale: it is not the caller's any more, or the job has ended.
func (s *Store) SegmentHeartbeat(ctx context.Context, g Segment, progress int, lease time.Duration) error {
	return s.db.Relaxed(ctx, db.Step{
		What: "segment heartbeat", None: ErrStale, Args: []any{g.JobID, g.Part.Number, g.Fence, lease.Microseconds(), min(max(progress, 0), 100)},
		SQL: `UPDATE segments SET lease_until = now_micros() + $4, progress = CASE WHEN progress < $5 THEN $5 ELSE progress END
			WHERE job_id = $1 AND number = $2 AND fence = $3 AND status = 'running' AND ` + inProgress,
	})
}

// SegmentDone notes that a part is in the bucket. It is safe to repeat. ErrStale: it is not the caller's any more, or the job has ended.
func (s *Store) SegmentDone(ctx context.Context, g Segment, object string, facts json.RawMessage) error {
	return changeOne(ctx, s.db, `UPDATE segments SET status = 'done', lease_until = 0, progress = 100, object = $4, facts = $5
		WHERE job_id = $1 AND number = $2 AND fence = $3 AND (status = 'running' OR (status = 'done' AND object = $4)) AND `+inProgress,
		g.JobID, g.Part.Number, g.Fence, object, string(facts))
}

// ReleaseSegment gives a part back that was not made; failed says that this counts, which a drain does not. ErrStale: it was not the caller's any more.
func (s *Store) ReleaseSegment(ctx context.Context, g Segment, failed bool) error {
	count := 0
	if failed {
		count = 1
	}
	return changeOne(ctx, s.db, `UPDATE segments SET status = 'queued', lease_until = 0, progress = 0, failures = failures + $4
		WHERE job_id = $1 AND number = $2 AND fence = $3 AND status = 'running'`, g.JobID, g.Part.Number, g.Fence, count)
}

// RestartSegments lets every part of j, a claimed job, be made anew, because what was made could not be joined: the objects go. Fences stay. parts, unless nil,
// take the place of those there were, however many. ErrStale: not the caller's any more.
func (s *Store) RestartSegments(ctx context.Context, j Job, parts []engine.Part) error {
	if len(parts) > SegmentsMost {
		return fmt.Errorf("restart segments: %d are too many", len(parts))
	}
	steps := []db.Step{
		holdRun(j),
		{
			What: "note segments' objects", Args: []any{j.ID, lostFenceGrace.Microseconds()},
			SQL: `INSERT INTO garbage (object, not_before) SELECT object, now_micros() + $2 FROM segments WHERE job_id = $1 AND object <> ''
				ON CONFLICT (object) DO UPDATE SET not_before = EXCLUDED.not_before`,
		},
		{
			What: "restart segments", Args: []any{j.ID},
			SQL: `UPDATE segments SET status = 'queued', lease_until = 0, progress = 0, object = '', facts = '' WHERE job_id = $1`,
		},
	}
	if parts != nil {
		steps = append(steps, db.Step{What: "forget segments", SQL: `DELETE FROM segments WHERE job_id = $1 AND number >= $2`, Args: []any{j.ID, len(parts)}})
	}
	for _, p := range parts {
		step, err := insertSegment(j.ID, p, `DO UPDATE SET part = EXCLUDED.part, frames = EXCLUDED.frames`)
		if err != nil {
			return err
		}
		steps = append(steps, step)
	}
	return certainly(func() error { return s.db.Batch(ctx, steps...) })
}

// holdRun is the step before the parts of a job are written: it writes the job's row, so that nothing slips past a cancel.
func holdRun(j Job) db.Step {
	return db.Step{
		What: "hold job", None: ErrStale, Args: []any{j.ID, j.Fence},
		SQL: `UPDATE jobs SET progress = progress WHERE id = $1 AND fence = $2 AND status = 'processing'`,
	}
}

func insertSegment(id string, p engine.Part, otherwise string) (db.Step, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return db.Step{}, fmt.Errorf("encode segment: %w", err)
	}
	return db.Step{
		What: "insert segment", Args: []any{id, p.Number, string(text), p.Frames},
		SQL: `INSERT INTO segments (job_id, number, part, frames) VALUES ($1, $2, $3, $4) ON CONFLICT (job_id, number) ` + otherwise,
	}, nil
}

// segmentFolder, behind a job's results prefix, starts the key of every object that holds a part.
const segmentFolder = "segments/"

// forgetting are the steps of a job's success that take its parts away, rows and objects. A job that ends otherwise gives up all its objects anyway.
func forgetting(id string, media engine.Media) []db.Step {
	if media != engine.Video {
		return nil
	}
	// Most videos have no parts, and then no object either: the folder is noted only where a row is.
	note := db.Step{
		What: "note segments' objects", Args: []any{id, lostFenceGrace.Microseconds(), segmentFolder},
		SQL: `INSERT INTO garbage (object, not_before) SELECT results_prefix || $3, now_micros() + $2 FROM jobs
			WHERE id = $1 AND EXISTS (SELECT 1 FROM segments WHERE job_id = $1)
			ON CONFLICT (object) DO UPDATE SET not_before = EXCLUDED.not_before`,
	}
	return []db.Step{note, forgetRows(id)}
}

func forgetRows(id string) db.Step {
	return db.Step{What: "forget segments", SQL: `DELETE FROM segments WHERE job_id = $1`, Args: []any{id}}
}

// Wanted reads a job whose parts are to be made: one that is being processed. ErrNotFound for any other.
func (s *Store) Wanted(ctx context.Context, id string) (Job, error) {
	return scan(s.db.QueryRowContext(ctx, `SELECT `+columns+` FROM jobs WHERE jobs.id = $1 AND jobs.status = 'processing'`, id))
}

// Waits says whether a job of this media waits for a worker: one that helps then makes room for it.
func (s *Store) Waits(ctx context.Context, media engine.Media) (bool, error) {
	var waits bool
	err := s.db.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM jobs WHERE status = 'queued' AND media = $1 AND run_at <= now_micros())`, media).Scan(&waits)
	if err != nil {
		return false, fmt.Errorf("look for waiting jobs: %w", err)
	}
	return waits, nil
}
