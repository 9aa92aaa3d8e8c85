package api

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// placeWait is how long a client waits for a place to send its file.
const placeWait = 10 * time.Second

// places bounds how many files are received at the same time, in all and for one account, so that memory, spool files and
// connections to storage stay bounded and one account cannot take them all.
type places struct {
	all        *semaphore.Weighted
	perAccount int64

	mu       sync.Mutex
	accounts map[string]*accountPlaces
}

type accountPlaces struct {
	places *semaphore.Weighted
	users  int
}

func newPlaces(all, perAccount int) *places {
	return &places{all: semaphore.NewWeighted(int64(all)), perAccount: int64(perAccount), accounts: map[string]*accountPlaces{}}
}

// take waits for a place. The caller calls release when it is done.
func (p *places) take(ctx context.Context, account string) (release func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, placeWait)
	defer cancel()
	own := p.enter(account)
	if err := own.places.Acquire(waiting, 1); err != nil {
		p.leave(account, own)
		return nil, &Error{Code: ConcurrencyLimit, RetryAfter: retryPlace, Message: "Your account is sending too many files at the same time. Wait for some to finish, then retry."}
	}
	if err := p.all.Acquire(waiting, 1); err != nil {
		own.places.Release(1)
		p.leave(account, own)
		return nil, unavailable(errors.New("too many files are being received"))
	}
	return func() {
		p.all.Release(1)
		own.places.Release(1)
		p.leave(account, own)
	}, nil
}

func (p *places) enter(account string) *accountPlaces {
	p.mu.Lock()
	defer p.mu.Unlock()
	own := p.accounts[account]
	if own == nil {
		own = &accountPlaces{places: semaphore.NewWeighted(p.perAccount)}
		p.accounts[account] = own
	}
	own.users++
	return own
}

func (p *places) leave(account string, own *accountPlaces) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if own.users--; own.users == 0 {
		delete(p.accounts, account)
	}
}
