package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"enlarger/db"
	"enlarger/job"
	"enlarger/storage"
	"enlarger/testbed"
)

// profilePart carries no-op jobs one after the other and counts what each asks of database, Redis and store.
func profilePart(b *bed, o *options, out io.Writer) {
	b.scope(func(b *bed) {
		b.Logf("profile: %d jobs on one slot", o.profileJobs)
		postgres := startPostgres(b, o.noSync)
		client := openRedis(b, testbed.Redis(b), 16)
		store, requests := countedStore(b)
		database := postgres.Database(b)
		watch := openDatabase(b, database, 2) // its own statements are not counted
		_, err := watch.ExecContext(b.ctx, `CREATE EXTENSION pg_stat_statements`)
		b.must(err)
		r := newRig(b, o, openDatabase(b, counted(b, database), 8), client, store, 1)
		stop := r.startWorker(b)
		b.must(inParallel(b.ctx, 1, 20, r.submit)) // fills caches and connections
		untilIdle(b, watch)
		stop()

		commands := redisCommands(b, client)
		requests.reset()
		_, err = watch.ExecContext(b.ctx, `SELECT pg_stat_statements_reset(), pg_stat_reset_shared('wal')`)
		b.must(err)
		submitting := time.Now()
		b.must(inParallel(b.ctx, 1, o.profileJobs, r.submit))
		start := time.Now()
		stop = r.startWorker(b)
		untilIdle(b, watch)
		took := time.Since(start)
		statements, syncs := sqlStatements(b, watch), walSyncs(b, watch)
		spent := requests.read()
		commands = since(redisCommands(b, client), commands)
		stop()
		r.verify(b, r.ran.Load())
		printProfile(out, o.profileJobs, start.Sub(submitting), took, []section{{"SQL statements", statements}, {"syncs of PostgreSQL's log", syncs}, {"object store", spent}, {"Redis", commands}})
	})
}

// untilIdle waits until all jobs have ended.
func untilIdle(b *bed, watch *db.DB) {
	jobs := job.NewStore(watch)
	testbed.Until(b, roundTimeout, "the jobs to end", func() bool {
		counts, err := jobs.Active(b.ctx)
		return err == nil && counts.Queued+counts.Processing == 0
	})
}

// use is how often something was asked for, and how long the server took for all of it.
type use struct {
	what  string
	calls int64
	took  time.Duration
}

type section struct {
	name string
	uses []use
}

func printProfile(out io.Writer, jobs int, submits, took time.Duration, sections []section) {
	perJob := func(d time.Duration) string { return fmt.Sprintf("%.2f ms", d.Seconds()*1000/float64(jobs)) }
	rows := [][]string{{"what", "calls a job", "server time a job"}}
	rest := submits + took
	for _, s := range sections {
		var sum use
		for _, u := range s.uses {
			sum.calls += u.calls
			sum.took += u.took
		}
		rest -= sum.took
		rows = append(rows, []string{"**" + s.name + "**", fmt.Sprintf("**%.1f**", float64(sum.calls)/float64(jobs)), "**" + perJob(sum.took) + "**"})
		for _, u := range s.uses {
			// What happens less than once in ten jobs is the sweeper's, or the look for the end.
			if u.what != "" && float64(u.calls) >= 0.1*float64(jobs) {
				rows = append(rows, []string{"`" + u.what + "`", fmt.Sprintf("%.1f", float64(u.calls)/float64(jobs)), perJob(u.took)})
			}
		}
	}
	rows = append(rows, []string{"**this process, and waiting**", "", "**" + perJob(rest) + "**"},
		[]string{"**a job's submit**", "", "**" + perJob(submits) + "**"}, []string{"**a job, from claim to succeeded**", "", "**" + perJob(took) + "**"})
	fmt.Fprintf(out, "\n### Where the time goes\n\n%d no-op jobs submitted, then carried, one after the other, on PostgreSQL, Redis and the store (in this process). "+
		"The lines of the servers add up what they say of themselves. Load average afterwards: %s.\n\n%s",
		jobs, loadAverage(), table(rows))
}

// counted makes the server count the statements of a connection.
func counted(b *bed, database string) string {
	u, err := url.Parse(database)
	b.must(err)
	q := u.Query()
	q.Set("pg_stat_statements.track", "top")
	u.RawQuery = q.Encode()
	return u.String()
}

func sqlStatements(b *bed, watch *db.DB) []use {
	rows, err := watch.QueryContext(b.ctx, `SELECT query, calls, total_exec_time FROM pg_stat_statements ORDER BY total_exec_time DESC LIMIT 100`)
	b.must(err)
	defer rows.Close()
	var all []use
	for rows.Next() {
		var u use
		var ms float64
		b.must(rows.Scan(&u.what, &u.calls, &ms))
		u.what, u.took = shortSQL(u.what), time.Duration(ms*float64(time.Millisecond))
		all = append(all, u)
	}
	b.must(rows.Err())
	return all
}

// walSyncs is what COMMIT waits for: pg_stat_statements does not count it.
func walSyncs(b *bed, watch *db.DB) []use {
	var u use
	var ms float64
	b.must(watch.QueryRowContext(b.ctx, `SELECT wal_sync, wal_sync_time FROM pg_stat_wal`).Scan(&u.calls, &ms))
	u.took = time.Duration(ms * float64(time.Millisecond))
	return []use{u}
}

// shortSQL keeps the beginning of a statement, enough to tell it from the others.
func shortSQL(text string) string {
	text = strings.ReplaceAll(strings.Join(strings.Fields(text), " "), "|", "/")
	const most = 90
	if len(text) > most {
		text = text[:most] + " ..."
	}
	return text
}

// redisCommands reads the server's own count, by command.
func redisCommands(b *bed, client redis.UniversalClient) []use {
	info, err := client.InfoMap(b.ctx, "commandstats").Result()
	b.must(err)
	var all []use
	for _, commands := range info {
		for name, stats := range commands {
			u := use{what: strings.TrimPrefix(name, "cmdstat_")}
			for pair := range strings.SplitSeq(stats, ",") {
				key, value, _ := strings.Cut(pair, "=")
				n, err := strconv.ParseInt(value, 10, 64)
				switch {
				case err != nil: // a mean, which has a point
				case key == "calls":
					u.calls = n
				case key == "usec":
					u.took = time.Duration(n) * time.Microsecond
				}
			}
			all = append(all, u)
		}
	}
	return all
}

// since takes what was before from what is now.
func since(now, before []use) []use {
	var all []use
	for _, u := range now {
		for _, old := range before {
			if old.what == u.what {
				u.calls -= old.calls
				u.took -= old.took
			}
		}
		// What a script calls is counted as the script too; the script is what took a round trip.
		if u.calls > 0 && slices.Contains([]string{"evalsha", "eval", "publish", "subscribe", "sadd", "ping"}, u.what) {
			all = append(all, u)
		}
	}
	slices.SortFunc(all, func(x, y use) int { return int(y.took - x.took) })
	return all
}

// requestCount counts requests to the store by method.
type requestCount struct {
	mu   sync.Mutex
	uses map[string]use
}

func (c *requestCount) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.uses = map[string]use{}
}

func (c *requestCount) read() []use {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []use
	for _, u := range c.uses {
		all = append(all, u)
	}
	slices.SortFunc(all, func(x, y use) int { return int(y.took - x.took) })
	return all
}

func (c *requestCount) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		next.ServeHTTP(w, r)
		took := time.Since(start)
		c.mu.Lock()
		defer c.mu.Unlock()
		u := c.uses[r.Method]
		c.uses[r.Method] = use{what: r.Method, calls: u.calls + 1, took: u.took + took}
	})
}

// countedStore is the embedded store in this process, so that its requests can be counted.
func countedStore(b *bed) (*storage.Store, *requestCount) {
	embedded, err := storage.OpenEmbedded(tempDir(b), storage.EmbeddedConfig{Bucket: bucket})
	b.must(err)
	b.closes(embedded)
	requests := &requestCount{uses: map[string]use{}}
	listener := listen(b)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, Handler: requests.wrap(embedded.Handler())}
	go server.Serve(listener) //nolint:errcheck // it ends with Close
	b.closes(server)
	access, secret := embedded.Credentials()
	return openStore(b, storeReady{"http://" + listener.Addr().String(), access, secret}), requests
}
