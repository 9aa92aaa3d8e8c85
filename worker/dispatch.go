package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"enlarger/engine"
)

// Queues are separate so that a long video never delays an image.
const (
	queueImage = "image"
	queueVideo = "video"
	taskRun    = "run"
	// stopChannel carries the ids of jobs that were canceled or deleted.
	stopChannel = "enlarger:stop"
)

func queueOf(media engine.Media) string {
	if media == engine.Video {
		return queueVideo
	}
	return queueImage
}

// Dispatcher sends wake-ups. Redis holds nothing else: a wake-up that is lost is sent again by the sweeper, one that comes twice
// claims nothing.
type Dispatcher struct {
	client    *asynq.Client
	inspector *asynq.Inspector
	redis     redis.UniversalClient
}

// NewDispatcher makes a dispatcher on an open Redis client, which stays the caller's to close.
func NewDispatcher(client redis.UniversalClient) *Dispatcher {
	return &Dispatcher{
		client:    asynq.NewClientFromRedisClient(client),
		inspector: asynq.NewInspectorFromRedisClient(client),
		redis:     client,
	}
}

// noDeadline is longer than any job: asynq's own time-out (30 minutes when none is set) must never end a run.
const noDeadline = 365 * 24 * time.Hour

// Dispatch sends wake-up number n of a job.
func (d *Dispatcher) Dispatch(ctx context.Context, id string, media engine.Media, n int64) error {
	_, err := d.enqueue(ctx, id, media, n, 0)
	return err
}

// DispatchIn sends a wake-up that is due after a delay.
func (d *Dispatcher) DispatchIn(ctx context.Context, id string, media engine.Media, n int64, delay time.Duration) error {
	_, err := d.enqueue(ctx, id, media, n, delay)
	return err
}

// enqueue returns added = false when Redis has that wake-up already.
func (d *Dispatcher) enqueue(ctx context.Context, id string, media engine.Media, n int64, delay time.Duration) (added bool, err error) {
	options := []asynq.Option{
		asynq.TaskID(wakeUpID(id, n)), asynq.Queue(queueOf(media)), asynq.MaxRetry(100), asynq.Timeout(noDeadline),
	}
	if delay > 0 {
		options = append(options, asynq.ProcessIn(delay))
	}
	_, err = d.client.EnqueueContext(ctx, asynq.NewTask(taskRun, []byte(id)), options...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("dispatch job: %w", err)
	}
	return true, nil
}

func wakeUpID(id string, n int64) string { return fmt.Sprintf("%s:%d", id, n) }

// lost says whether a wake-up that is in Redis will never be delivered: it was dequeued, or gave up, while its job is still queued.
func (d *Dispatcher) lost(id string, media engine.Media, n int64) bool {
	info, err := d.inspector.GetTaskInfo(queueOf(media), wakeUpID(id, n))
	if err != nil {
		return false
	}
	return info.State != asynq.TaskStatePending && info.State != asynq.TaskStateScheduled
}

// Stop tells every worker that a job was canceled or deleted. It is a hint: the next heartbeat learns it too.
func (d *Dispatcher) Stop(ctx context.Context, id string) error {
	if err := d.redis.Publish(ctx, stopChannel, id).Err(); err != nil {
		return fmt.Errorf("publish stop: %w", err)
	}
	return nil
}
