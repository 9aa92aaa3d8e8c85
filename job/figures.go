package job

import (
	"context"
	"fmt"
	"time"

	"enlarger/engine"
)

// InFlight counts the jobs of one media that have not ended.
type InFlight struct {
	Queued, Processing int64
	// Oldest is how long the queued job that has waited longest has been due; 0 when none is.
	Oldest time.Duration
}

const inFlight = `SELECT media, COUNT(*), 0, COALESCE(MAX(now_micros() - run_at), 0) FROM jobs WHERE status = 'queued' GROUP BY media
	UNION ALL SELECT media, 0, COUNT(*), 0 FROM jobs WHERE status = 'processing' GROUP BY media`

// InFlight counts the jobs that have not ended, for every media. It reads the indexes of queued and of processing rows; jobs that have ended
// cost it nothing, however many.
func (s *Store) InFlight(ctx context.Context) (map[engine.Media]InFlight, error) {
	rows, err := s.db.QueryContext(ctx, inFlight)
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	defer rows.Close()
	counts := map[engine.Media]InFlight{engine.Image: {}, engine.Video: {}}
	for rows.Next() {
		var media engine.Media
		var queued, processing, oldest int64
		if err := rows.Scan(&media, &queued, &processing, &oldest); err != nil {
			return nil, fmt.Errorf("count jobs: %w", err)
		}
		c := counts[media]
		c.Queued += queued
		c.Processing += processing
		c.Oldest = max(c.Oldest, time.Duration(oldest)*time.Microsecond)
		counts[media] = c
	}
	return counts, rows.Err()
}
