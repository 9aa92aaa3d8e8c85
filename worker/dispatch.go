package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"enlarger/engine"
	"enlarger/job"
)

// Queues are separate so that a long video never delays an image. Each media has one a lane: the first by its plain name.
const (
	queueImage = "image"
	queueVideo = "video"
	taskRun    = "run"
	// queueHelp holds calls for help with a video that is under way. It is served after all queues of whole videos.
	queueHelp = queueVideo + ".help"
	taskHelp  = "help"
	// stopChannel carries the ids of jobs that were canceled or deleted.
	stopChannel = "enlarger:stop"
)

func queueOf(w job.WakeUp) string {
	queue := queueImage
	if w.Media == engine.Video {
		queue = queueVideo
	}
	return laneQueue(queue, w.Lane)
}

func laneQueue(queue string, lane int) string {
	if lane == 0 {
		return queue
	}
	return fmt.Sprintf("%s.%d", queue, lane)
}

// lanes are the queues of a media with asynq's priorities: the higher first.
func lanes(queue string) map[string]int {
	queues := map[string]int{}
	for lane := range job.Lanes {
		queues[laneQueue(queue, lane)] = 1 + job.Lanes - lane
	}
	if queue == queueVideo {
		queues[queueHelp] = 1
	}
	return queues
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

// Dispatch sends a job's wake-up.
func (d *Dispatcher) Dispatch(ctx context.Context, w job.WakeUp) error {
	_, err := d.enqueue(ctx, w, 0)
	return err
}

// DispatchIn sends a wake-up that is due after a delay.
func (d *Dispatcher) DispatchIn(ctx context.Context, w job.WakeUp, delay time.Duration) error {
	_, err := d.enqueue(ctx, w, delay)
	return err
}

// enqueue returns added = false when Redis has that wake-up already.
func (d *Dispatcher) enqueue(ctx context.Context, w job.WakeUp, delay time.Duration) (added bool, err error) {
	options := []asynq.Option{
		asynq.TaskID(wakeUpID(w)), asynq.Queue(queueOf(w)), asynq.MaxRetry(100), asynq.Timeout(noDeadline),
	}
	if delay > 0 {
		// asynq 0.26 keeps the time in whole seconds and cuts the rest off. A wake-up that comes before its job is due claims nothing, and would be
		// missing when it is.
		options = append(options, asynq.ProcessIn(delay+time.Second))
	}
	_, err = d.client.EnqueueContext(ctx, asynq.NewTask(taskRun, []byte(w.ID)), options...)
	if errors.Is(err, asynq.ErrTaskIDConflict) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("dispatch job: %w", err)
	}
	return true, nil
}

// callForHelp makes sure that so many wake-ups for the parts of a job are in Redis. A wake-up whose worker has died stays there for a minute or two;
// the others still call.
func (d *Dispatcher) callForHelp(ctx context.Context, id string, helpers int, patience time.Duration) error {
	ctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	for i := range helpers {
		_, err := d.client.EnqueueContext(ctx, asynq.NewTask(taskHelp, []byte(id)), asynq.TaskID(fmt.Sprintf("%s:help:%d", id, i)), asynq.Queue(queueHelp),
			asynq.MaxRetry(1), asynq.Timeout(noDeadline))
		if err != nil && !errors.Is(err, asynq.ErrTaskIDConflict) {
			return fmt.Errorf("call for help: %w", err)
		}
	}
	return nil
}

func wakeUpID(w job.WakeUp) string { return fmt.Sprintf("%s:%d", w.ID, w.Number) }

// lost says whether a wake-up that is in Redis will never be delivered: it was dequeued, or gave up, while its job is still queued.
func (d *Dispatcher) lost(w job.WakeUp) bool {
	info, err := d.inspector.GetTaskInfo(queueOf(w), wakeUpID(w))
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
