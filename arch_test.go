// Package enlarger_test holds the tests of the house as a whole: which package may know which.
package enlarger_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	pathpkg "path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "enlarger"

// rooms lists, for each room, the rooms it may import, and why it may import no other. A package belongs to the longest room
// that is a prefix of its path; packages of one room know each other. docs/architecture.md draws the same picture.
var rooms = map[string]struct {
	may []string
	why string
}{
	"cmd/enlarger":       {[]string{"*"}, ""},
	"cmd/enlarger-bench": {[]string{"*"}, ""},
	"api":                {[]string{"job", "account", "billing", "storage", "engine"}, "the API decodes, calls and encodes; what a tool does with pixels, and how a job is carried, is not its business"},
	"dashboard":          {[]string{"job", "account", "billing", "storage", "engine"}, "the page calls the same code as the API and nothing beside it"},
	"worker":             {[]string{"job", "storage", "engine", "webhook"}, "a worker carries a job; money moves only inside the job's own transactions"},
	"job":                {[]string{"billing", "db", "engine"}, "the job row is the story everything else hangs on; it knows only money, the database and plans"},
	"billing":            {[]string{"db"}, "money rules stand on the database alone, so that they can be audited alone"},
	"account":            {[]string{"db"}, "keys and limits stand on the database alone"},
	"webhook":            {[]string{"db"}, "delivery reads its own rows; who wrote them is not its business"},
	"engine":             {nil, "the core is what every tool, the API and the worker share; an import here would tie them all to it"},
	"engine/image":       {[]string{"engine", "engine/neural", "engine/ffmpeg", "engine/turbojpeg"}, "an image tool is pixels, models and processes"},
	"engine/video":       {[]string{"engine", "engine/image", "engine/neural", "engine/ffmpeg"}, "a video tool is frames, models and processes, and restores faces as an image tool does"},
	"engine/neural":      {nil, "a leaf: it can be measured and replaced alone"},
	"engine/turbojpeg":   {nil, "a leaf: a C library behind four functions"},
	"engine/ffmpeg":      {nil, "a leaf: the one place that starts processes must be small enough to be read whole"},
	"storage":            {nil, "a leaf: objects and fetches, whoever asks"},
	"modelserver":        {nil, "a leaf: one request and its answer, whoever asks"},
	"db":                 {nil, "a leaf: connections, transactions and migrations, whoever asks"},
	"fixtures":           {nil, "the replayer is a client: it knows the API by its URL only"},
	"faults":             {[]string{"*"}, ""},
	"testbed":            {nil, "tests of every room use it, so it may know none of them"},
	"testbed/databases":  {[]string{"db", "testbed"}, "it opens databases for tests and knows nothing of what lies in them"},
}

// narrow lists arrows that exist for a few names only; the names are the whole of what the package may use.
var narrow = []struct {
	from, to string
	names    []string
	why      string
}{
	{"api", "enlarger/db", []string{"Unavailable", "ErrUncertain"}, "the API has to tell a database that is away from a fault; it runs no SQL"},
	{"worker", "enlarger/db", []string{"Unavailable"}, "a worker waits for a database that is away; it runs no SQL"},
	{"worker", "enlarger/billing", []string{"Prices", "ErrInsufficient"}, "a worker carries the price table to the reserve and tells why that failed; credits move in job's transactions"},
	{"engine/video", "os/exec", []string{"ExitError"}, "a tool reads how ffmpeg ended; it starts no process"},
}

// outside lists packages of other modules that only some rooms may import. The benchmarks measure those modules bare, so they may
// import all.
var outside = []struct {
	prefix string
	only   []string
	why    string
}{
	{"os/exec", []string{"engine/ffmpeg", "testbed", "faults"}, "every process is started where its limits, its group and its death are looked after"},
	{"database/sql", []string{"job", "billing", "account", "webhook", "db", "cmd/enlarger"}, "SQL lives beside the rule it protects"},
	{"github.com/jackc/pgx", []string{"db", "testbed", "cmd/enlarger"}, "one room knows which database it is"},
	{"modernc.org/sqlite", []string{"db"}, "one room knows which database it is"},
	{"github.com/hibiken/asynq", []string{"worker", "cmd/enlarger"}, "the queue is a wake-up of the worker's; nothing else may come to rely on it"},
	{"github.com/aws/aws-sdk-go-v2", []string{"storage", "cmd/enlarger"}, "object storage has one room"},
}

// pkg is one package as `go list` tells it; Imports are those of its code, without its tests.
type pkg struct {
	ImportPath string   `json:"ImportPath"`
	Imports    []string `json:"Imports"`
	Dir        string   `json:"Dir"`
	GoFiles    []string `json:"GoFiles"`
}

func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,Dir,GoFiles", "./...")
	var problems strings.Builder
	cmd.Stderr = &problems
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, problems.String())
	}
	var all []pkg
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// roomOf is the room a package of the module belongs to, or "" for none.
func roomOf(path string) string {
	for path = strings.TrimPrefix(path, module+"/"); path != "."; {
		if _, ok := rooms[path]; ok {
			return path
		}
		cut := strings.LastIndexByte(path, '/')
		if cut < 0 {
			return ""
		}
		path = path[:cut]
	}
	return ""
}

// broken gives one sentence for each arrow of the package that points the wrong way.
func broken(p pkg) []string {
	room := roomOf(p.ImportPath)
	if room == "" {
		if p.ImportPath == module {
			return nil
		}
		return []string{fmt.Sprintf("%s is in no room: add the room to this test and to docs/architecture.md, or put it where it belongs", p.ImportPath)}
	}
	var all []string
	for _, path := range p.Imports {
		if strings.HasPrefix(path, module+"/") {
			to, rule := roomOf(path), rooms[room]
			switch {
			case to == "testbed" && !strings.HasPrefix(room, "testbed") && room != "cmd/enlarger-bench" && room != "faults":
				all = append(all, fmt.Sprintf("%s imports testbed outside its tests: only tests and the benchmarks start private servers", p.ImportPath))
			case to == "faults":
				all = append(all, fmt.Sprintf("%s imports faults outside its tests: a fleet to be broken is for tests", p.ImportPath))
			case to == room || slices.Contains(rule.may, to) || isNarrow(room, path):
			case !slices.Contains(rule.may, "*"):
				all = append(all, fmt.Sprintf("%s imports %s: %s", p.ImportPath, path, rule.why))
			}
			continue
		}
		for _, o := range outside {
			if (path == o.prefix || strings.HasPrefix(path, o.prefix+"/")) && room != "cmd/enlarger-bench" && !slices.Contains(o.only, room) && !isNarrow(room, path) {
				all = append(all, fmt.Sprintf("%s imports %s: %s", p.ImportPath, path, o.why))
			}
		}
	}
	return all
}

func isNarrow(room, path string) bool {
	for _, n := range narrow {
		if n.from == room && n.to == path {
			return true
		}
	}
	return false
}

// strayNames gives one sentence for each name of a narrowly imported package that a file uses beyond what is allowed.
func strayNames(room, name string, source any) ([]string, error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	local := map[string]int{}
	for _, spec := range file.Imports {
		for i, n := range narrow {
			if n.from == room && spec.Path.Value == `"`+n.to+`"` {
				as := pathpkg.Base(n.to)
				if spec.Name != nil {
					as = spec.Name.Name
				}
				local[as] = i
			}
		}
	}
	var all []string
	ast.Inspect(file, func(node ast.Node) bool {
		if selector, ok := node.(*ast.SelectorExpr); ok {
			if base, ok := selector.X.(*ast.Ident); ok {
				if i, ok := local[base.Name]; ok && !slices.Contains(narrow[i].names, selector.Sel.Name) {
					all = append(all, fmt.Sprintf("%s uses %s.%s, beyond %v: %s",
						files.Position(selector.Pos()), base.Name, selector.Sel.Name, narrow[i].names, narrow[i].why))
				}
			}
		}
		return true
	})
	return all, nil
}

func TestNarrowArrows(t *testing.T) {
	t.Parallel()
	for _, p := range listPackages(t) {
		for _, name := range p.GoFiles {
			stray, err := strayNames(roomOf(p.ImportPath), filepath.Join(p.Dir, name), nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, sentence := range stray {
				t.Error(sentence)
			}
		}
	}
}

func TestNarrowArrowsCatch(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, source string
		want         int
	}{
		{"allowed", `package api; import "enlarger/db"; var _ = db.Unavailable`, 0},
		{"stray", `package api; import "enlarger/db"; var a, b = db.Open, db.ErrUncertain`, 1},
		{"renamed", `package api; import d "enlarger/db"; var _ = d.Open`, 1},
		{"another package of that name", `package api; import "other/db"; var _ = db.Open`, 0},
	} {
		got, err := strayNames("api", test.name+".go", test.source)
		if err != nil || len(got) != test.want {
			t.Errorf("%s: %q, %v; want %d sentences", test.name, got, err, test.want)
		}
	}
}

func TestArrows(t *testing.T) {
	t.Parallel()
	packages := listPackages(t)
	if len(packages) == 0 {
		t.Fatal("go list names no package")
	}
	for _, p := range packages {
		for _, sentence := range broken(p) {
			t.Error(sentence)
		}
	}
}

func TestArrowRulesCatch(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		from, to string
		bad      bool
	}{
		{"enlarger/cmd/enlarger", "enlarger/worker", false},
		{"enlarger/cmd/enlarger", "enlarger/testbed", true},
		{"enlarger/cmd/enlarger-bench", "enlarger/testbed", false},
		{"enlarger/faults", "enlarger/testbed", false},
		{"enlarger/cmd/enlarger", "enlarger/faults", true},
		{"enlarger/api", "enlarger/job", false},
		{"enlarger/api/page", "enlarger/api", false},
		{"enlarger/api", "enlarger/worker", true},
		{"enlarger/api", "enlarger/engine/image", true},
		{"enlarger/api", "database/sql", true},
		{"enlarger/worker", "enlarger/api", true},
		{"enlarger/worker", "enlarger/account", true},
		{"enlarger/worker", "enlarger/billing", false},
		{"enlarger/worker", "github.com/hibiken/asynq", false},
		{"enlarger/job", "github.com/hibiken/asynq", true},
		{"enlarger/job", "database/sql", false},
		{"enlarger/engine", "enlarger/job", true},
		{"enlarger/engine", "enlarger/engine/image", true},
		{"enlarger/engine/image", "enlarger/engine", false},
		{"enlarger/engine/image", "enlarger/engine/video", true},
		{"enlarger/engine/video", "enlarger/engine/image", false},
		{"enlarger/engine/image", "os/exec", true},
		{"enlarger/engine/video", "os/exec", false}, // narrow, see below
		{"enlarger/engine/ffmpeg", "os/exec", false},
		{"enlarger/engine/ffmpeg", "enlarger/engine", true},
		{"enlarger/storage", "enlarger/db", true},
		{"enlarger/storage", "github.com/aws/aws-sdk-go-v2/service/s3", false},
		{"enlarger/worker", "enlarger/testbed", true},
		{"enlarger/util", "fmt", true},
	} {
		if got := broken(pkg{ImportPath: test.from, Imports: []string{test.to}}); (len(got) > 0) != test.bad {
			t.Errorf("%s imports %s: broken = %q, want bad = %v", test.from, test.to, got, test.bad)
		}
	}
}
