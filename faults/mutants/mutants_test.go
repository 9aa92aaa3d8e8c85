// Package mutants asks whether the tests would notice. Each mutant is the program with one safeguard taken out: a fence not checked, a
// refund forgotten. It is compiled in place of the real file (go's overlay: nothing is copied or written to the tree), the tests that
// guard it run, and they must fail. `make mutants` does it; in `make test` only the table itself is checked, so that it follows the code.
package mutants

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
)

// mutant is one safeguard taken out.
type mutant struct {
	name string
	// file is relative to the root; in is the function whose text holds fragment once, with its receiver as in "Store.Claim"; "" is the
	// whole file.
	file, in              string
	fragment, replacement string
	// tests are the functions that must fail, of the package in the folder of: all of them are named, so that a run takes seconds.
	of    string
	tests []string
}

// root is the module's folder as seen from this one.
const root = "../.."

// mutated is the file's path and its text with the mutant's change.
func (m mutant) mutated() (path string, text []byte, err error) {
	path, err = filepath.Abs(filepath.Join(root, m.file))
	if err != nil {
		return "", nil, err
	}
	source, err := os.ReadFile(path)
	if err != nil {
		return "", nil, err
	}
	from, to := 0, len(source)
	if m.in != "" {
		if from, to, err = extent(source, m.in); err != nil {
			return "", nil, fmt.Errorf("%s: %w", m.file, err)
		}
	}
	if n := bytes.Count(source[from:to], []byte(m.fragment)); n != 1 {
		return "", nil, fmt.Errorf("%s: the fragment %q stands %d times in %q, want once: the code has moved on, move the mutant with it", m.file, m.fragment, n, m.in)
	}
	changed := bytes.Replace(source[from:to], []byte(m.fragment), []byte(m.replacement), 1)
	text = slices.Concat(source[:from], changed, source[to:])
	if _, err := parser.ParseFile(token.NewFileSet(), path, text, parser.SkipObjectResolution); err != nil {
		return "", nil, fmt.Errorf("the mutant is no Go: %w", err)
	}
	return path, text, nil
}

// extent finds where a function's text begins and ends.
func extent(source []byte, name string) (from, to int, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "", source, parser.SkipObjectResolution)
	if err != nil {
		return 0, 0, err
	}
	for _, declaration := range file.Decls {
		f, ok := declaration.(*ast.FuncDecl)
		if ok && fullName(f) == name {
			return files.Position(f.Pos()).Offset, files.Position(f.End()).Offset, nil
		}
	}
	return 0, 0, fmt.Errorf("there is no function %s any more", name)
}

func fullName(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	receiver := f.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	if named, ok := receiver.(*ast.Ident); ok {
		return named.Name + "." + f.Name.Name
	}
	return f.Name.Name
}

// TestTableFollowsTheCode: every mutant still finds its place, changes it to valid Go, and names tests that exist.
func TestTableFollowsTheCode(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, m := range table() {
		if names[m.name] {
			t.Errorf("two mutants are named %q", m.name)
		}
		names[m.name] = true
		if _, _, err := m.mutated(); err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		known, err := testsIn(filepath.Join(root, m.of))
		if err != nil {
			t.Fatal(err)
		}
		if len(m.tests) == 0 {
			t.Errorf("%s: no test is to catch it", m.name)
		}
		for _, test := range m.tests {
			if !known[test] {
				t.Errorf("%s: there is no %s in %s", m.name, test, m.of)
			}
		}
	}
}

// testsIn names the test functions of a folder.
func testsIn(folder string) (map[string]bool, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*_test.go"))
	if err != nil {
		return nil, err
	}
	declared := regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	known := map[string]bool{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		for _, match := range declared.FindAllSubmatch(text, -1) {
			known[string(match[1])] = true
		}
	}
	return known, nil
}

// Outcomes of a mutant.
const (
	red      = "red"
	survived = "SURVIVED"
	unfit    = "UNFIT" // it does not compile, or no test ran: nothing is known
)

// limit bounds one run of the tests: a mutant may well hang them.
const limit = 4 * time.Minute

// TestMutants lets every mutant run against its tests. It is slow, and so only done by `make mutants`; one mutant alone:
// ENLARGER_MUTANTS=1 go test -v -run 'TestMutants/the_part_of_a_name' ./faults/mutants.
func TestMutants(t *testing.T) {
	if os.Getenv("ENLARGER_MUTANTS") == "" {
		t.Skip("ENLARGER_MUTANTS is not set: `make mutants` sets it")
	}
	var report strings.Builder
	w := tabwriter.NewWriter(&report, 2, 4, 2, ' ', 0)
	fmt.Fprintln(w, "MUTANT\tOUTCOME\tCAUGHT BY\tSECONDS")
	healthy := map[string]bool{}
	for _, m := range table() {
		t.Run(m.name, func(t *testing.T) {
			// What fails without the mutant too proves nothing.
			if key := fmt.Sprint(m.of, m.tests); !healthy[key] {
				if outcome, _, output := m.run(t, ""); outcome != survived {
					t.Fatalf("the tests fail without the mutant:\n%s", output)
				}
				healthy[key] = true
			}
			path, text, err := m.mutated()
			if err != nil {
				t.Fatal(err)
			}
			started := time.Now()
			outcome, by, output := m.run(t, overlay(t, path, text))
			fmt.Fprintf(w, "%s\t%s\t%s\t%.0f\n", m.name, outcome, by, time.Since(started).Seconds())
			if outcome != red {
				t.Errorf("%s: %s\n%s", outcome, m.name, output)
			}
		})
	}
	w.Flush()
	t.Logf("\n%s", report.String())
}

// overlay writes the mutated text beside the tree and the file that tells go to read it in place of the real one.
func overlay(t *testing.T, path string, text []byte) string {
	t.Helper()
	folder := t.TempDir()
	instead := filepath.Join(folder, "mutant.go")
	list, err := json.Marshal(map[string]any{"Replace": map[string]string{path: instead}})
	if err != nil {
		t.Fatal(err)
	}
	listing := filepath.Join(folder, "overlay.json")
	for name, content := range map[string][]byte{instead: text, listing: list} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return listing
}

// unusable are outputs of runs that say nothing of the mutant: it did not compile, nothing ran, or a server of the tests did not start.
var unusable = regexp.MustCompile(`\[(build|setup) failed\]|no tests to run|(PostgreSQL|Redis) for tests:`)

var failedTest = regexp.MustCompile(`(?m)^\s*--- FAIL: (\S+)`)

// run runs the mutant's tests, through an overlay unless it is "", and says how that ended and which test it was.
func (m mutant) run(t *testing.T, overlay string) (outcome, by, output string) {
	t.Helper()
	args := []string{"test", "-count=1", "-vet=off", "-failfast", "-timeout", limit.String(), "-run", "^(" + strings.Join(m.tests, "|") + ")$"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	if m.of == "job" || m.of == "billing" { // the packages with drawn tests: what they fail with is not looked for further, nor kept
		args = append(args, "-rapid.shrinktime=1ms", "-rapid.nofailfile")
	}
	ctx, stop := context.WithTimeout(t.Context(), limit+time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, "go", slices.Insert(args, 1, "./"+m.of)...)
	cmd.Dir = root
	text, err := cmd.CombinedOutput()
	output = string(text)
	if ended := (*exec.ExitError)(nil); err != nil && !errors.As(err, &ended) {
		t.Fatal(err)
	}
	switch failed := failedTest.FindAllStringSubmatch(output, -1); {
	case unusable.MatchString(output):
		return unfit, "", output
	case err == nil:
		return survived, "", output
	case len(failed) > 0:
		return red, failed[len(failed)-1][1], output // the innermost is told last
	case strings.Contains(output, "panic: "):
		return red, "a panic", output
	}
	return unfit, "", output
}
