package faults

import (
	"path/filepath"
	"time"

	"github.com/redis/go-redis/v9"
)

// Objects lists the bucket's keys under a prefix.
func (f *Fleet) Objects(prefix string) []string {
	f.Helper()
	found, err := f.store.store.List(f.Context(), prefix, "", 1000)
	f.check(err)
	keys := make([]string, 0, len(found))
	for _, object := range found {
		keys = append(keys, object.Key)
	}
	return keys
}

// Scratch lists the files of runs.
func (f *Fleet) Scratch() []string {
	var files []string
	for _, path := range filesUnder(filepath.Join(f.data, "scratch")) {
		if filepath.Base(path) != ".lock" {
			files = append(files, path)
		}
	}
	return files
}

// redis runs commands on the fleet's Redis, past every proxy.
func (f *Fleet) redis(do func(client *redis.Client) error) {
	f.Helper()
	client := redis.NewClient(&redis.Options{Addr: f.Redis.Addr()})
	defer client.Close()
	f.check(do(client))
}

// redisDo runs one command for the soak, which goes on when it fails.
func (f *Fleet) redisDo(command string) {
	client := redis.NewClient(&redis.Options{Addr: f.Redis.Addr()})
	defer client.Close()
	if err := client.Do(f.Context(), command).Err(); err != nil {
		f.Logf("%s: %v", command, err)
	}
}

// WakeUps lists the wake-ups of a job that Redis has, in whatever state.
func (f *Fleet) WakeUps(id string) (keys []string) {
	f.Helper()
	f.redis(func(client *redis.Client) (err error) {
		keys, err = client.Keys(f.Context(), "asynq:{*}:t:"+id+":*").Result()
		return err
	})
	return keys
}

// AgeDeliveries makes every wake-up that a worker has taken look as if nothing had been heard of that worker for an hour. asynq's own time-out is
// 30 s and cannot be set.
func (f *Fleet) AgeDeliveries() {
	f.Helper()
	f.redis(func(client *redis.Client) error {
		keys, err := client.Keys(f.Context(), "asynq:{*}:lease").Result()
		if err != nil {
			return err
		}
		for _, key := range keys {
			members, err := client.ZRange(f.Context(), key, 0, -1).Result()
			if err != nil {
				return err
			}
			for _, member := range members {
				past := float64(time.Now().Add(-time.Hour).Unix())
				if err := client.ZAdd(f.Context(), key, redis.Z{Score: past, Member: member}).Err(); err != nil {
					return err
				}
			}
		}
		return nil
	})
}
