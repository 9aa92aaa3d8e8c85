package faults

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ShiftDatabase moves the clock of the fleet's own database by so many seconds; the server, and every other database on it, keep theirs.
func (f *Fleet) ShiftDatabase(seconds int) {
	f.Helper()
	_, err := f.DB.ExecContext(f.Context(), fmt.Sprintf(`CREATE OR REPLACE FUNCTION now_micros() RETURNS BIGINT LANGUAGE SQL STABLE PARALLEL SAFE AS
		$$ SELECT (extract(epoch FROM statement_timestamp()) * 1000000)::BIGINT + %d $$`, int64(seconds)*1_000_000))
	f.check(err)
}

// shiftedNow is what the standard library's time.Now is replaced by in a test's build.
const (
	plainNow   = "	sec, nsec, mono := runtimeNow()\n	if mono == 0 {"
	shiftedNow = "	sec, nsec, mono := runtimeNow()\n	sec += testClock\n	if mono == 0 {"
	testClock  = `

// testClock is in seconds, from the environment.
var testClock = readTestClock()

func readTestClock() (seconds int64) {
	text, _ := syscall.Getenv("ENLARGER_TEST_CLOCK")
	for _, c := range []byte(text) {
		if c >= '0' && c <= '9' {
			seconds = 10*seconds + int64(c-'0')
		}
	}
	if len(text) > 0 && text[0] == '-' {
		return -seconds
	}
	return seconds
}
`
)

// BuildShifted compiles enlarger with a clock that is ENLARGER_TEST_CLOCK seconds off. Everything is compiled anew on top of it, which takes minutes
// the first time. The product's code is the same: only the standard library's time.Now is another.
func BuildShifted(t T) (program string) {
	t.Helper()
	dir := t.TempDir()
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	original := filepath.Join(run("env", "GOROOT"), "src", "time", "time.go")
	text, err := os.ReadFile(original)
	if err != nil {
		t.Fatalf("%v", err)
	}
	source := strings.Replace(string(text), "import (\n", "import (\n\t\"syscall\"\n", 1)
	if strings.Count(source, plainNow) != 1 || !strings.Contains(source, `"syscall"`) {
		t.Fatalf("%s is not as expected: the place of time.Now has to be found anew", original)
	}
	shifted := filepath.Join(dir, "time.go")
	overlay := filepath.Join(dir, "overlay.json")
	replace, err := json.Marshal(map[string]map[string]string{"Replace": {original: shifted}})
	if err != nil {
		t.Fatalf("%v", err)
	}
	for path, data := range map[string]string{shifted: strings.Replace(source, plainNow, shiftedNow, 1) + testClock, overlay: string(replace)} {
		if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
			t.Fatalf("%v", err)
		}
	}
	program = filepath.Join(dir, "enlarger")
	run("build", "-overlay", overlay, "-o", program, "enlarger/cmd/enlarger")
	return program
}
