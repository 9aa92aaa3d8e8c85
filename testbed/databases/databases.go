// Package databases gives a test both databases that enlarger runs on, real and freshly migrated.
package databases

import (
	"os"
	"path/filepath"
	"testing"

	"enlarger/db"
	"enlarger/testbed"
)

// Each runs a test on SQLite and on PostgreSQL, beside each other.
func Each(t *testing.T, test func(t *testing.T, d *db.DB)) {
	t.Helper()
	for name, open := range map[string]func(*testing.T) *db.DB{"sqlite": SQLite, "postgres": PostgreSQL} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// SQLite gives a new SQLite file.
func SQLite(t *testing.T) *db.DB {
	t.Helper()
	return Open(t, "sqlite:"+filepath.Join(memoryDir(t), "test.db"))
}

// PostgreSQL gives a new database of a server that all tests of the process share.
func PostgreSQL(t *testing.T) *db.DB {
	t.Helper()
	return Open(t, testbed.PostgreSQL(t))
}

// Open opens and migrates a database for as long as the test runs.
func Open(t *testing.T, url string) *db.DB {
	t.Helper()
	d, err := db.Open(t.Context(), db.Config{URL: url})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	if err := d.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return d
}

// memoryDir is a folder in memory where the system has one: tests commit thousands of times, and a commit waits for the disk.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "enlarger")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}
