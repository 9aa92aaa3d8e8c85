package main

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"

	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// fleetPeers are the peers on servers of their own.
func fleetPeers(b *bed, o *options) (servers string, peers []*peer) {
	postgres := startPostgres(b, o.noSync)
	client := openRedis(b, testbed.Redis(b), 4*o.slots)
	store := openStore(b, startStore(b))
	// The API and a worker process have their own connections; here one process is both.
	whole := newRig(b, o, openDatabase(b, postgres.Database(b), 2*o.slots), client, store, o.slots)
	rows := newRig(b, o, openDatabase(b, postgres.Database(b), 2*o.slots), client, store, o.slots)
	peers = append([]*peer{asynqPeer(client, o.slots, factorRedis), rowsPeer(rows), enlargerPeer(whole)}, riverPeers(b, o, postgres, store)...)
	return versions(b, whole.db, client), peers
}

// embeddedPeers are the peers inside this process, as in `enlarger serve`.
func embeddedPeers(b *bed, o *options) []*peer {
	embedded, err := storage.OpenEmbedded(tempDir(b), storage.EmbeddedConfig{Bucket: bucket})
	b.must(err)
	b.closes(embedded)
	endpoint, err := embedded.Start("127.0.0.1:0")
	b.must(err)
	access, secret := embedded.Credentials()
	store := openStore(b, storeReady{endpoint, access, secret})
	dir := tempDir(b)
	open := func(name string, client redis.UniversalClient) *rig {
		return newRig(b, o, openDatabase(b, "sqlite:"+filepath.Join(dir, name), 0), client, store, o.slots)
	}
	return []*peer{
		asynqPeer(openMiniRedis(b), o.slots, factorMiniRedis), rowsPeer(open("rows.db", openMiniRedis(b))), enlargerPeer(open("whole.db", openMiniRedis(b))),
	}
}

// asynqPeer is asynq and nothing else: the handler counts.
func asynqPeer(client redis.UniversalClient, slots, factor int) *peer {
	var ran atomic.Int64
	enqueue := asynq.NewClientFromRedisClient(client)
	return &peer{
		name: "bare asynq", factor: factor,
		submit: func(ctx context.Context) error {
			_, err := enqueue.EnqueueContext(ctx, asynq.NewTask("noop", []byte(content)), asynq.Queue(queueBare))
			return err
		},
		start: func(b *bed) func() {
			return startAsynq(b, client, queueBare, slots, func(context.Context, *asynq.Task) error { ran.Add(1); return nil })
		},
		ended: func(_ context.Context, n int64) (bool, error) { return ran.Load() >= n, nil },
	}
}

// How much more work bare asynq gets than the others, so that each is measured for a while: on a Redis of its own, and on the one in this process.
const (
	factorRedis     = 10
	factorMiniRedis = 4
)

// The queues of the peers that are not enlarger's own.
const (
	queueBare = "bare"
	queueRows = "rows"
)

func startAsynq(b *bed, client redis.UniversalClient, queue string, slots int, handler asynq.HandlerFunc) (stop func()) {
	server := asynq.NewServerFromRedisClient(client, asynq.Config{
		Concurrency: slots, Queues: map[string]int{queue: 1}, TaskCheckInterval: 100 * time.Millisecond,
		ShutdownTimeout: time.Second, LogLevel: asynq.ErrorLevel,
	})
	b.must(server.Start(handler))
	return server.Shutdown
}

// enlargerPeer is the whole of enlarger behind the HTTP layer.
func enlargerPeer(r *rig) *peer {
	return &peer{name: "enlarger", submit: r.submit, start: r.startWorker, ended: r.ended, verify: r.verify}
}

// rowsPeer is asynq with the same rows, holds and entries as enlarger, in the same transactions, and without files: what the books cost.
func rowsPeer(r *rig) *peer {
	enqueue := asynq.NewClientFromRedisClient(r.redis)
	return &peer{
		name: "enlarger's rows and ledger alone",
		submit: func(ctx context.Context) error {
			j, err := r.jobs.Submit(ctx, r.submission())
			if err != nil {
				return err
			}
			_, err = enqueue.EnqueueContext(ctx, asynq.NewTask("noop", []byte(j.ID)), asynq.Queue(queueRows))
			return err
		},
		start: func(b *bed) func() {
			return startAsynq(b, r.redis, queueRows, r.slots, func(ctx context.Context, task *asynq.Task) error { return r.carryRows(ctx, string(task.Payload())) })
		},
		ended: r.ended, verify: r.verify,
	}
}

// carryRows makes every change of a job's row that a worker makes.
func (r *rig) carryRows(ctx context.Context, id string) error {
	j, err := r.jobs.Claim(ctx, id, "bench", time.Minute)
	if err != nil {
		return err
	}
	plan, err := r.order.Plan(engine.Source{Width: 640, Height: 480})
	if err != nil {
		return err
	}
	if _, err := r.jobs.Reserve(ctx, j, job.Price(r.prices, plan)); err != nil {
		return err
	}
	output := engine.Output{Width: plan.Width, Height: plan.Height, Size: int64(len(content))}
	if err := r.jobs.Succeed(ctx, j, storage.ResultKey(id, j.Fence, plan.Format), output, nil); err != nil {
		return err
	}
	r.ran.Add(1)
	return nil
}
