package testbed

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
)

// reaper ends this process's services and removes their folder when this process is gone, whatever ended it. It is a small shell
// that reads a pipe nobody else holds: the pipe's end is this process's end. (A parent-death signal would follow the thread that
// happened to start the service, not the process.)
type reaper struct {
	mu   sync.Mutex
	pipe *os.File
	// root holds every folder of the services of this process.
	root  string
	count atomic.Int64
}

// reaperScript keeps the list of "pid:signal" it is told, and at the end of its input resumes each, sends each its signal, gives
// them ten seconds, kills what is left and removes the folder. A process that nobody has collected yet counts as ended.
const reaperScript = `
list=
while read -r verb pid signal; do
	case $verb in
	watch) list="$list $pid:$signal" ;;
	forget)
		kept=
		for one in $list; do [ "${one%%:*}" = "$pid" ] || kept="$kept $one"; done
		list=$kept ;;
	esac
done
for one in $list; do kill -CONT "${one%%:*}"; kill -"${one##*:}" "${one%%:*}"; done
left=100
while [ $left -gt 0 ]; do
	alive=
	for one in $list; do
		state=
		read -r state <"/proc/${one%%:*}/stat"
		case $state in '' | *') Z '*) ;; *) alive=yes ;; esac
	done
	[ -n "$alive" ] || break
	sleep 0.1
	left=$((left - 1))
done
for one in $list; do kill -KILL "${one%%:*}"; done
rm -rf -- "$1"
`

// theReaper is this process's one reaper, started by the first service.
var theReaper = sync.OnceValues(startReaper)

func startReaper() (*reaper, error) {
	root, err := os.MkdirTemp("", "enlarger-testbed-")
	if err != nil {
		return nil, err
	}
	// A database run as root's unprivileged stand-in has to pass through here to its own folder.
	if err := os.Chmod(root, 0o711); err != nil {
		return nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = read.Close() }()
	cmd := exec.Command("/bin/sh", "-c", reaperScript, "enlarger-reaper", root)
	cmd.Dir = "/"
	cmd.Stdin = read
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	return &reaper{pipe: write, root: root}, nil
}

func (r *reaper) tell(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, _ = r.pipe.WriteString(line)
}

func (r *reaper) watch(pid int, stop syscall.Signal) {
	r.tell(fmt.Sprintf("watch %d %d\n", pid, int(stop)))
}
func (r *reaper) forget(pid int) { r.tell(fmt.Sprintf("forget %d -\n", pid)) }

// folder makes a fresh folder that goes away with this process at the latest.
func (r *reaper) folder(name string) (string, error) {
	dir := filepath.Join(r.root, name+"-"+strconv.FormatInt(r.count.Add(1), 10))
	return dir, os.Mkdir(dir, 0o700)
}
