package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Scratch is this process's private directory for the local files of runs. A lock on it tells the living from the dead, so that a
// worker that starts removes what killed ones left, and nothing else.
type Scratch struct {
	// Dir is the directory, locked for as long as the process lives.
	Dir  string
	lock *os.File
}

const lockName = ".lock"

// OpenScratch removes what dead processes left under root and makes a directory of its own there.
func OpenScratch(root string) (*Scratch, error) {
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	if err := removeDead(root); err != nil {
		return nil, err
	}
	// Between making and locking it a directory looks dead to a process that starts at the same moment, and may be taken away.
	const tries = 10
	var err error
	for range tries {
		var s *Scratch
		if s, err = newScratch(root); err == nil {
			return s, nil
		}
	}
	return nil, err
}

func newScratch(root string) (*Scratch, error) {
	dir, err := os.MkdirTemp(root, "worker-")
	if err != nil {
		return nil, fmt.Errorf("scratch directory: %w", err)
	}
	path := filepath.Join(dir, lockName)
	lock, held, err := tryLock(path)
	if err != nil || held {
		return nil, errors.Join(fmt.Errorf("lock scratch directory %s", dir), err)
	}
	locked, err1 := lock.Stat()
	there, err2 := os.Stat(path)
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(locked, there) {
		return nil, errors.Join(fmt.Errorf("scratch directory %s was taken away", dir), err, lock.Close())
	}
	return &Scratch{Dir: dir, lock: lock}, nil
}

func removeDead(root string) error {
	dirs, err := filepath.Glob(filepath.Join(root, "worker-*"))
	if err != nil {
		return fmt.Errorf("scratch directory: %w", err)
	}
	for _, dir := range dirs {
		lock, held, err := tryLock(filepath.Join(dir, lockName))
		if err != nil || held {
			continue // alive, or being made or removed by another process just now
		}
		removeErr := os.RemoveAll(dir)
		lock.Close()
		// Another process that starts just now may put its own lock file there, and then removes the rest itself.
		if removeErr != nil && !errors.Is(removeErr, unix.ENOTEMPTY) {
			return fmt.Errorf("remove a dead worker's files: %w", removeErr)
		}
	}
	return nil
}

// tryLock takes the lock file; held tells that another process has it.
func tryLock(path string) (lock *os.File, held bool, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, false, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, true, nil
	}
	if err != nil {
		f.Close()
		return nil, false, err
	}
	return f, false, nil
}

// make creates the directory of one run.
func (s *Scratch) make(jobID string, fence int64) (string, error) {
	dir := filepath.Join(s.Dir, fmt.Sprintf("%s-%d", jobID, fence))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("scratch directory: %w", err)
	}
	return dir, nil
}

// Close removes the directory.
func (s *Scratch) Close() {
	os.RemoveAll(s.Dir)
	s.lock.Close()
}
