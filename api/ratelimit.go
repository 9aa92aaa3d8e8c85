package api

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// rateSeconds is the length of the sliding window.
	rateSeconds = 60
	// rateTimeout bounds what a request waits for Redis.
	rateTimeout = 2 * time.Second
)

// rateLimiter counts the requests of a key in a sliding window in Redis.
type rateLimiter struct {
	redis  redis.UniversalClient
	script *redis.Script
}

// rateWindow is a key's window after a request.
type rateWindow struct {
	limit, remaining int
	// reset is the epoch second at which the oldest request leaves the window, so that one more may be sent than now.
	reset int64
	// now is the epoch second by Redis' clock, which all processes share.
	now      int64
	admitted bool
}

// wait is the number of seconds until reset, at least 1.
func (w rateWindow) wait() int { return int(max(1, w.reset-w.now)) }

// rateScript keeps one counter for each second of the window, so that a key costs at most 60 small fields whatever its limit.
// A refused request is not counted: a client that retries too early does not push its own window on.
const rateScript = `
local limit, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local now = tonumber(redis.call('TIME')[1])
local used, oldest, gone = 0, now, {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local second = tonumber(fields[i])
  if second <= now - window then
    gone[#gone + 1] = fields[i]
  else
    used = used + tonumber(fields[i + 1])
    if second < oldest then oldest = second end
  end
end
if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
local admitted = 0
if used < limit then
  admitted = 1
  used = used + 1
  redis.call('HINCRBY', KEYS[1], now, 1)
  redis.call('EXPIRE', KEYS[1], window + 1)
end
return {admitted, used, oldest + window, now}`

func newRateLimiter(client redis.UniversalClient) *rateLimiter {
	return &rateLimiter{redis: client, script: redis.NewScript(rateScript)}
}

// take counts a request of the key, unless the limit is reached.
func (l *rateLimiter) take(ctx context.Context, keyID string, limit int) (rateWindow, error) {
	ctx, cancel := context.WithTimeout(ctx, rateTimeout)
	defer cancel()
	found, err := l.script.Run(ctx, l.redis, []string{"enlarger:rate:" + keyID}, limit, rateSeconds).Int64Slice()
	if err == nil && len(found) != 4 {
		err = fmt.Errorf("%d values", len(found))
	}
	if err != nil {
		return rateWindow{}, fmt.Errorf("count request: %w", err)
	}
	return rateWindow{
		admitted: found[0] == 1, limit: limit, remaining: max(0, limit-int(found[1])), reset: found[2], now: found[3],
	}, nil
}
