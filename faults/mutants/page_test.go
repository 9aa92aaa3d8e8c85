package mutants

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestPageNamesTheTests: docs/reliability.md names tests that exist, and every fault's test.
func TestPageNamesTheTests(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join(root, "docs", "reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, folder := range []string{"faults", "faults/mutants", "job", "billing", "worker"} {
		tests, err := testsIn(filepath.Join(root, folder))
		if err != nil {
			t.Fatal(err)
		}
		for test := range tests {
			known[test] = true
		}
	}
	named := map[string]bool{}
	for _, match := range regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(page, -1) {
		named[string(match[1])] = true
	}
	for test := range named {
		if !known[test] {
			t.Errorf("the page names %s, which does not exist", test)
		}
	}
	numbered := regexp.MustCompile(`^TestF\d\d`)
	for test := range known {
		if numbered.MatchString(test) && !named[test] {
			t.Errorf("the page does not name %s", test)
		}
	}
}
