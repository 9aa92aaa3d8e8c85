package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"

	"enlarger/db"
	"enlarger/storage"
	"enlarger/testbed"
)

// storeCommand makes this program the object store of a fleet: `enlarger-bench store DIR`.
const storeCommand = "store"

func isStore(args []string) bool { return len(args) == 3 && args[1] == storeCommand }

const bucket = "enlarger-bench"

// storeReady is what the store says on its output once it serves.
type storeReady struct {
	Endpoint  string `json:"endpoint"`
	AccessKey string `json:"access_key"`
	SecretKey string `json:"secret_key"`
}

// serveStore serves the embedded S3-protocol store in dir until a signal ends it.
func serveStore(dir string, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	embedded, err := storage.OpenEmbedded(dir, storage.EmbeddedConfig{Bucket: bucket})
	if err != nil {
		return err
	}
	endpoint, err := embedded.Start("127.0.0.1:0")
	if err != nil {
		return errors.Join(err, embedded.Close())
	}
	access, secret := embedded.Credentials()
	//nolint:gosec // the one who started this process needs the key of its empty store
	if err := json.NewEncoder(out).Encode(storeReady{endpoint, access, secret}); err != nil {
		return errors.Join(err, embedded.Close())
	}
	<-ctx.Done()
	return embedded.Close()
}

// startStore runs the store in a process of its own, on the disk.
func startStore(b *bed) storeReady {
	program, err := os.Executable()
	b.must(err)
	process := testbed.StartProgram(b, "object store", program, nil, storeCommand, tempDir(b))
	var ready storeReady
	testbed.Until(b, 30*time.Second, "the object store", func() bool {
		return json.Unmarshal([]byte(process.Log()), &ready) == nil
	})
	return ready
}

func openStore(b *bed, at storeReady) *storage.Store {
	store, err := storage.Open(storage.Config{
		Endpoint: at.Endpoint, Bucket: bucket, AccessKey: at.AccessKey, SecretKey: at.SecretKey, PathStyle: true,
	})
	b.must(err)
	b.Cleanup(store.Close)
	b.must(store.EnsureBucket(b.ctx))
	return store
}

// startPostgres starts a server that keeps what it commits, as one in life does: testbed's own is faster because it does not. The statements
// of a connection that asks for it are counted.
func startPostgres(b *bed, noSync bool) *testbed.PostgresServer {
	settings := []string{
		"fsync=on", "full_page_writes=on", "shared_buffers=256MB", "max_wal_size=4GB",
		"shared_preload_libraries=pg_stat_statements", "pg_stat_statements.track=none", "track_wal_io_timing=on",
	}
	if noSync {
		settings[0] = "fsync=off"
	}
	return testbed.Postgres(b, settings...)
}

func openRedis(b *bed, server *testbed.RedisServer, conns int) redis.UniversalClient {
	options, err := redis.ParseURL(server.URL())
	b.must(err)
	options.PoolSize = conns
	client := redis.NewClient(options)
	b.closes(client)
	return client
}

// openMiniRedis starts the Redis of the embedded mode, as `enlarger serve` does.
func openMiniRedis(b *bed) redis.UniversalClient {
	server := miniredis.NewMiniRedis()
	client := redis.NewClient(&redis.Options{
		Dialer:      func(context.Context, string, string) (net.Conn, error) { return server.Dial() },
		ReadTimeout: 5 * time.Second, PoolSize: 64, DisableIdentity: true,
	})
	b.Cleanup(server.Close)
	b.closes(client)
	return client
}

func openDatabase(b *bed, url string, conns int) *db.DB {
	d, err := db.Open(b.ctx, db.Config{URL: url, MaxConns: conns})
	b.must(err)
	b.closes(d)
	b.must(d.Migrate(b.ctx))
	return d
}

// versions names the servers that were measured.
func versions(b *bed, d *db.DB, client redis.UniversalClient) string {
	var postgres, sync string
	b.must(d.QueryRowContext(b.ctx, `SELECT current_setting('server_version'), current_setting('fsync')`).Scan(&postgres, &sync))
	info, err := client.InfoMap(b.ctx, "server").Result()
	b.must(err)
	return fmt.Sprintf("PostgreSQL %s (fsync %s, synchronous_commit on), Redis %s (nothing on disk)", postgres, sync, info["Server"]["redis_version"])
}

func listen(b *bed) net.Listener {
	listener, err := (&net.ListenConfig{}).Listen(b.ctx, "tcp", "127.0.0.1:0")
	b.must(err)
	return listener
}

func tempDir(b *bed) string {
	dir, err := os.MkdirTemp("", "enlarger-bench-")
	b.must(err)
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var loopback = netip.MustParsePrefix("127.0.0.1/32")

// installation is a running enlarger, and its database for a look from outside.
type installation struct {
	base     string
	database string
}

// settings are the environment of every enlarger process here; what a scenario adds is stronger.
func settings(dir, listen string, more map[string]string) map[string]string {
	env := map[string]string{
		"ENLARGER_DATA": dir, "ENLARGER_LISTEN": listen, "ENLARGER_LOG_LEVEL": "warn", "ENLARGER_LOG_FORMAT": "json",
	}
	maps.Copy(env, more)
	return env
}

// startEmbedded runs `enlarger serve` with nothing beside it.
func startEmbedded(b *bed, more map[string]string) installation {
	dir, listen := tempDir(b), testbed.FreeAddr(b)
	testbed.Start(b, "enlarger serve", settings(dir, listen, more), "serve")
	testbed.WaitHTTP(b, "http://"+listen+"/readyz")
	return installation{base: "http://" + listen, database: "sqlite:" + filepath.Join(dir, "enlarger.db")}
}

// startFleet runs `enlarger api` and, unless idle, one `enlarger worker` on PostgreSQL, Redis and a store in a process of its own.
func startFleet(b *bed, o *options, idle bool) installation {
	store := startStore(b)
	database := startPostgres(b, o.noSync).Database(b)
	fleet := map[string]string{
		"ENLARGER_DATABASE": database, "ENLARGER_REDIS": testbed.Redis(b).URL(), "ENLARGER_S3_BUCKET": bucket,
		"ENLARGER_S3_ENDPOINT": store.Endpoint, "ENLARGER_S3_ACCESS_KEY": store.AccessKey, "ENLARGER_S3_SECRET_KEY": store.SecretKey,
	}
	listen := testbed.FreeAddr(b)
	migrate := testbed.Start(b, "enlarger migrate", settings(tempDir(b), listen, fleet), "migrate")
	if code := migrate.Wait(b, time.Minute); code != 0 {
		b.Fatalf("enlarger migrate ended with %d:\n%s", code, migrate.Log())
	}
	testbed.Start(b, "enlarger api", settings(tempDir(b), listen, fleet), "api")
	if !idle {
		testbed.Start(b, "enlarger worker", settings(tempDir(b), listen, fleet), "worker")
	}
	testbed.WaitHTTP(b, "http://"+listen+"/readyz")
	return installation{base: "http://" + listen, database: database}
}
