package worker

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Processes that start at the same moment on one data folder each get a directory of their own, and none takes another's away.
func TestScratchesOpenedTogether(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	dead := filepath.Join(root, "worker-dead", "job_1-1")
	if err := os.MkdirAll(dead, 0o700); err != nil {
		t.Fatal(err)
	}
	const each, rounds = 8, 20
	for range rounds {
		opened := make([]*Scratch, each)
		var all sync.WaitGroup
		for i := range opened {
			all.Go(func() {
				var err error
				if opened[i], err = OpenScratch(root); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		seen := map[string]bool{}
		for _, s := range opened {
			if s == nil {
				continue
			}
			if _, err := os.Stat(filepath.Join(s.Dir, lockName)); err != nil || seen[s.Dir] {
				t.Errorf("%s is shared or gone: %v", s.Dir, err)
			}
			seen[s.Dir] = true
		}
		for _, s := range opened {
			if s != nil {
				s.Close()
			}
		}
	}
	if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
		t.Errorf("left: %v %v", left, err)
	}
}
