// Command enlarger is the whole service in one binary: the all-in-one server, the API and worker processes of a fleet, and the
// operator's commands. It is the only place that knows every room: it reads the settings once, builds, and runs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/alecthomas/kong"
	"go.uber.org/zap"
)

// version is set by the build.
var version = "dev"

// commands is the command line. Every setting is an environment variable too; docs/configuration.md is generated from here.
type commands struct {
	Serve   serveCommand   `cmd:"" help:"Run everything in one process: API, workers, and whatever of database, Redis and storage is not configured."`
	API     apiCommand     `cmd:"" name:"api" help:"Run an API process of a fleet."`
	Worker  workerCommand  `cmd:"" help:"Run a worker process of a fleet."`
	Migrate migrateCommand `cmd:"" help:"Bring the database schema up to date, and create the bucket when it is missing."`
	Account accountCommand `cmd:"" help:"Create, list, limit, suspend and resume accounts."`
	Key     keyCommand     `cmd:"" help:"Create, list and revoke API keys."`
	Credits creditsCommand `cmd:"" help:"Grant and show credits."`
	Audit   auditCommand   `cmd:"" help:"Check the books: recompute every balance, and hold jobs against the ledger."`
	Replay  replayCommand  `cmd:"" help:"Run recorded jobs against a server and compare what comes out."`
	Config  configCommand  `cmd:"" help:"Print the table of settings." hidden:""`
	Tools   toolsCommand   `cmd:"" help:"Print the page of tools." hidden:""`
	Version versionCommand `cmd:"" help:"Print the version."`

	Settings settings `embed:""`
}

// app is what a command gets to work with.
type app struct {
	settings *settings
	parser   *kong.Kong
	log      *zap.Logger
	stdout   io.Writer
	// base ends at the first SIGINT or SIGTERM.
	base context.Context
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// errUsage marks a faulty command line or setting: exit status 2 instead of 1.
var errUsage = errors.New("usage")

// run is main without the process: 0 is success, 1 a failure, 2 a faulty command line or setting.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var cli commands
	exited := -1
	parser, err := kong.New(&cli, kong.Name("enlarger"), kong.Writers(stdout, stderr), kong.Exit(func(code int) { exited = code }),
		kong.Description("A self-hosted image and video enhancement service that speaks the VanceAI Open API."),
		kong.UsageOnError(), kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		fmt.Fprintln(stderr, "enlarger:", err)
		return 2
	}
	parsed, err := parser.Parse(args)
	if exited >= 0 {
		return exited // --help
	}
	if err != nil {
		fmt.Fprintf(stderr, "enlarger: %v\nenlarger --help lists the commands.\n", err)
		return 2
	}
	a := &app{settings: &cli.Settings, parser: parser, stdout: stdout, base: ctx}
	if a.log, err = newLog(cli.Settings.LogLevel, cli.Settings.LogFormat, stderr); err == nil {
		err = parsed.Run(a)
	}
	if err == nil {
		return 0
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) && slices.Contains([]string{"serve", "api", "worker"}, parsed.Command()) {
		fmt.Fprintln(stderr, "enlarger: stopped while starting")
		return 0
	}
	fmt.Fprintln(stderr, "enlarger:", err)
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

type versionCommand struct{}

func (versionCommand) Run(a *app) error {
	_, err := fmt.Fprintln(a.stdout, "enlarger", version)
	return err
}
