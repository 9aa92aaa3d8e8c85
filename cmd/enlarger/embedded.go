package main

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"
)

// embeddedRedis starts a Redis inside the process, reached over in-memory pipes. It keeps nothing: the first sweep sends every
// wake-up again from the database.
func embeddedRedis() (client redis.UniversalClient, stop func()) {
	server := miniredis.NewMiniRedis()
	// Its clock stands still by itself: keys expire only as it is moved on.
	done := make(chan struct{})
	var clock sync.WaitGroup
	clock.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				server.FastForward(time.Second)
			case <-done:
				return
			}
		}
	})
	client = redis.NewClient(&redis.Options{
		Dialer: func(context.Context, string, string) (net.Conn, error) { return server.Dial() },
		// What a Redis in the same process takes longer for than this is a fault.
		ReadTimeout: 5 * time.Second, PoolSize: 64, DisableIdentity: true,
	})
	return client, func() {
		close(done)
		clock.Wait()
		client.Close()
		server.Close()
	}
}

var errLocked = errors.New("another enlarger process is using it; stop that one first, or set ENLARGER_DATA to another directory")

// lockFile takes a lock that ends with the process.
func lockFile(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
