package faults

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// Gate stands before a node's ffmpeg. While it is shut, every encode that starts waits at it: a job stays under way, with a child process,
// for as long as a test needs and at no cost.
type Gate struct {
	// Program is what the node runs as ffmpeg.
	Program string
	// Poison names a file; an ffmpeg whose arguments hold the text in it kills the process that started it.
	Poison string

	t    T
	pipe string
	mu   sync.Mutex
}

// gateScript takes the pipe, the poison and the real ffmpeg. Only an encode asks for its progress.
//
// What ffmpeg says of itself is asked at every start of a process, and takes it a second of a busy processor: it is told what ffmpeg said before.
const gateScript = `#!/bin/sh
case "$2" in -version | -filters | -encoders) exec cat '%[1]s'"$2" ;; esac
if [ "$1" = -progress ]; then
	if [ -f '%[2]s' ]; then
		read -r poison <'%[2]s'
		case "$*" in *"$poison"*) kill -KILL "$PPID" ;; esac
	fi
	[ -p '%[1]s' ] && read -r nothing <'%[1]s'
	if [ -f '%[4]s' ]; then
		read -r seconds <'%[4]s'
		sleep $((seconds + $$ %% 5))
	fi
fi
exec '%[3]s' "$@"
`

func newGate(t T) *Gate {
	t.Helper()
	dir := t.TempDir()
	ffmpeg, err := exec.LookPath("ffmpeg")
	if err != nil {
		t.Fatalf("%v; run `make deps`", err)
	}
	g := &Gate{t: t, Program: filepath.Join(dir, "ffmpeg"), Poison: filepath.Join(dir, "poison"), pipe: filepath.Join(dir, "gate")}
	script := fmt.Sprintf(gateScript, g.pipe, g.Poison, ffmpeg, g.nap())
	//nolint:gosec // it is a program
	if err := os.WriteFile(g.Program, []byte(script), 0o700); err != nil {
		t.Fatalf("%v", err)
	}
	said, err := described(ffmpeg)
	for question, text := range said {
		err = errors.Join(err, os.WriteFile(g.pipe+question, text, 0o600))
	}
	if err != nil {
		t.Fatalf("%v", err)
	}
	return g
}

// description is what an ffmpeg says of itself, by question.
type description map[string][]byte

// descriptions keeps what each ffmpeg has said.
var descriptions sync.Map

func described(ffmpeg string) (description, error) {
	if said, ok := descriptions.Load(ffmpeg); ok {
		return said.(description), nil //nolint:forcetypeassert // nothing else is kept there
	}
	said := description{}
	for _, question := range []string{"-version", "-filters", "-encoders"} {
		out, err := exec.Command(ffmpeg, "-hide_banner", question).Output()
		if err != nil {
			return nil, fmt.Errorf("ffmpeg %s: %w", question, err)
		}
		said[question] = out
	}
	descriptions.Store(ffmpeg, said)
	return said, nil
}

// Shut makes every encode that starts from now on wait.
func (g *Gate) Shut() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := syscall.Mkfifo(g.pipe, 0o600); err != nil {
		g.t.Fatalf("gate: %v", err)
	}
}

// Open lets those that wait go on, and all later ones pass.
func (g *Gate) Open() {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	// Opened for both, it waits for nobody; its end is the end of input for those that read.
	pipe, err := os.OpenFile(g.pipe, os.O_RDWR, 0)
	if err != nil {
		g.t.Fatalf("gate: %v", err)
	}
	if err := os.Remove(g.pipe); err != nil {
		g.t.Fatalf("gate: %v", err)
	}
	pipe.Close()
}

func (g *Gate) nap() string { return g.pipe + ".seconds" }

// Sleep makes every encode sleep for so many seconds, and up to four more, before it begins.
func (g *Gate) Sleep(seconds int) {
	g.t.Helper()
	if err := os.WriteFile(g.nap(), fmt.Appendln(nil, seconds), 0o600); err != nil {
		g.t.Fatalf("gate: %v", err)
	}
}

// process is one line of the process table.
type process struct {
	pid, parent int
	name        string
}

// processes reads the process table.
func processes() map[int]process {
	all := map[int]process{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		// pid (name) state ppid ...; the name may hold anything
		open, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
		var p process
		var state string
		if _, err := fmt.Sscanf(string(text[end+1:]), " %s %d", &state, &p.parent); err != nil || open < 0 || state == "Z" {
			continue
		}
		if _, err := fmt.Sscan(string(text[:open]), &p.pid); err != nil {
			continue
		}
		p.name = string(text[open+1 : end])
		all[p.pid] = p
	}
	return all
}

// FFmpegs lists the ffmpeg processes below the node's.
func (n *Node) FFmpegs() []int {
	all := processes()
	var found []int
	for pid, p := range all {
		if p.name != "ffmpeg" {
			continue
		}
		for up, depth := p.parent, 0; up > 1 && depth < 8; up, depth = all[up].parent, depth+1 {
			if up == n.PID() {
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

// Alive says which of the processes have not ended.
func Alive(pids []int) []int {
	all := processes()
	var left []int
	for _, pid := range pids {
		if _, ok := all[pid]; ok {
			left = append(left, pid)
		}
	}
	return left
}

// strays lists processes that work in, or were started with, something under the folder.
func strays(folder string) []string {
	var found []string
	for pid, p := range processes() {
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.HasPrefix(cwd, folder) || strings.Contains(string(line), folder) {
			found = append(found, fmt.Sprintf("%s (%d)", p.name, pid))
		}
	}
	return found
}
