//go:build unix && !linux

package ffmpeg

import (
	"context"
	"os"
	"syscall"
)

// isolation is how far a child is cut off: not at all outside Linux, where enlarger is only developed.
type isolation int

const isolationNone isolation = 0

func (isolation) String() string { return "none" }

func (r *Runner) detectIsolation(context.Context) (isolation, error) { return isolationNone, nil }

func (isolation) attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func limitProcess(int, Limits) {}

func widenPipe(*os.File) {}
