package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"enlarger/fixtures"
)

// replayCommand runs recorded jobs against any server that speaks the API: over HTTP alone, as a client with a key.
type replayCommand struct {
	URL          string        `required:"" placeholder:"URL" help:"Base URL of the server, with or without /api/v1."`
	Key          string        `required:"" env:"ENLARGER_REPLAY_KEY" placeholder:"KEY" help:"API key of an account with at least 1000 credits that nothing else uses meanwhile."`
	PoorKey      string        `placeholder:"KEY" help:"Key of another account, with 0.5 credits."`
	SuspendedKey string        `placeholder:"KEY" help:"Key of a suspended account."`
	LimitedKey   string        `placeholder:"KEY" help:"Key of an account with credits that may have one video job in flight."`
	ThrottledKey string        `placeholder:"KEY" help:"Key of an account with at most 20 requests a minute."`
	PrivateFetch string        `placeholder:"HOST:PORT" help:"Address to serve URL sources on. The server must be allowed to fetch from it: ENLARGER_FETCH_ALLOW=127.0.0.0/8 and ENLARGER_FETCH_PORTS=PORT."`
	BrokenJob    string        `placeholder:"ID" help:"Id of a job of the key's account whose row you have made unreadable in the database."`
	Needs        []string      `enum:"geo,short-uploads,short-timeouts,outage" placeholder:"NEED" help:"What the server was arranged for: geo, short-uploads, short-timeouts, outage. Only the cases that need it are run. See fixtures/README.md."`
	Case         []string      `placeholder:"NAME" help:"Only these cases."`
	Parallel     int           `default:"4" help:"Cases at the same time, 1 to 32."`
	Timeout      time.Duration `default:"30m" help:"Longest time of the whole replay."`
	Keep         bool          `help:"Leave the jobs on the server instead of deleting them."`
	Dir          string        `arg:"" optional:"" placeholder:"DIR" help:"Folder with jobs/ and media/. Default: the recorded jobs of this build."`
}

// Run returns an error when anything differs, so that the exit status tells.
func (c replayCommand) Run(a *app) error {
	files := fixtures.Embedded()
	if c.Dir != "" {
		files = os.DirFS(c.Dir)
	}
	cases, err := c.choose(files)
	if err != nil {
		return errors.Join(errUsage, err)
	}
	ctx, stop := context.WithTimeout(a.base, c.Timeout)
	defer stop()
	var arranged []fixtures.Need
	for _, need := range c.Needs {
		arranged = append(arranged, fixtures.Need(need))
	}
	// One line for each case, and one for the sums at the end.
	lines := newReplayLines(a.stdout, len(cases)+1)
	summary, err := fixtures.Replay(ctx, fixtures.Target{
		BaseURL: c.URL, PrivateFetch: c.PrivateFetch, Media: files, Concurrency: c.Parallel, Keep: c.Keep,
		Arranged: arranged, BrokenJob: c.BrokenJob,
		Keys: map[fixtures.KeyKind]string{
			fixtures.KeyMain: c.Key, fixtures.KeyPoor: c.PoorKey, fixtures.KeySuspended: c.SuspendedKey,
			fixtures.KeyLimited: c.LimitedKey, fixtures.KeyThrottled: c.ThrottledKey,
		},
	}, cases, lines.add)
	lines.end()
	if err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, summary)
	if summary.Failed > 0 {
		return fmt.Errorf("%d of %d recorded jobs differ", summary.Failed, summary.Failed+summary.Passed)
	}
	return nil
}

func (c replayCommand) choose(files fs.FS) ([]fixtures.Case, error) {
	all, err := fixtures.Load(files)
	if err != nil || len(c.Case) == 0 {
		return all, err
	}
	var chosen []fixtures.Case
	for _, name := range c.Case {
		at := slices.IndexFunc(all, func(one fixtures.Case) bool { return one.Name == name })
		if at < 0 {
			return nil, fmt.Errorf("there is no recorded job %q", name)
		}
		chosen = append(chosen, all[at])
	}
	return chosen, nil
}

// replayLines prints a line for each case that is over and, on a terminal, a bar below them.
type replayLines struct {
	to  io.Writer
	bar *progressbar.ProgressBar
}

func newReplayLines(to io.Writer, cases int) *replayLines {
	l := &replayLines{to: to}
	if f, ok := to.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		l.bar = progressbar.NewOptions(cases, progressbar.OptionSetWriter(to), progressbar.OptionShowCount(),
			progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish())
	}
	return l
}

func (l *replayLines) add(o fixtures.Outcome) {
	if l.bar != nil {
		_ = l.bar.Clear() // only looks
	}
	switch {
	case o.Skipped != "":
		fmt.Fprintf(l.to, "skip  %-34s %s\n", o.Case, o.Skipped)
	case o.Passed():
		fmt.Fprintf(l.to, "ok    %-34s %6.1f s\n", o.Case, o.Took.Seconds())
	default:
		fmt.Fprintf(l.to, "FAIL  %-34s %6.1f s\n        %s\n", o.Case, o.Took.Seconds(), strings.Join(o.Diffs, "\n        "))
	}
	if l.bar != nil {
		_ = l.bar.Add(1) // only looks
	}
}

func (l *replayLines) end() {
	if l.bar != nil {
		_ = l.bar.Finish() // only looks
	}
}
