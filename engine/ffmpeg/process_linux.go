package ffmpeg

import (
	"context"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolation is how far a child is cut off.
type isolation int

const (
	isolationNone isolation = iota
	// isolationNetwork is a network namespace of its own, which takes CAP_SYS_ADMIN.
	isolationNetwork
	// isolationUser is a user namespace around that, open to any user where the kernel allows it. It also takes away the
	// powers of root.
	isolationUser
)

func (i isolation) String() string {
	return [...]string{"none", "network namespace", "user and network namespace"}[i]
}

// detectIsolation tries, strongest first, what this kernel and this container allow. Each kind is tried by a real run that
// writes and reads nothing.
func (r *Runner) detectIsolation(ctx context.Context) (isolation, error) {
	var err error
	for _, kind := range []isolation{isolationUser, isolationNetwork, isolationNone} {
		trial := *r
		trial.isolation = kind
		if _, err = trial.ask(ctx, r.ffprobe, "-version"); err == nil {
			return kind, nil
		}
	}
	return isolationNone, err
}

// attributes put a child into a process group of its own that is killed when the thread that started it ends.
func (i isolation) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	switch i {
	case isolationNetwork:
		attr.Cloneflags = syscall.CLONE_NEWNET
	case isolationUser:
		attr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	return attr
}

// niceness of ffmpeg, in the kernel's steps of -20 to 19.
const niceness = 10

// limitProcess sets the limits that the kernel holds a child to. It is called right after the start: the little that the child
// does before is loading its libraries. A limit that cannot be set leaves the other guards.
func limitProcess(pid int, l Limits) {
	for resource, most := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_FSIZE: l.FileBytes, unix.RLIMIT_DATA: l.MemoryBytes} {
		_ = unix.Prlimit(pid, resource, &unix.Rlimit{Cur: most, Max: most}, nil)
	}
	// Clients and heartbeats go first. Set before ffmpeg starts its threads, which take it over.
	_ = unix.Setpriority(unix.PRIO_PROCESS, pid, niceness)
}

// widenPipe gives a pipe the most room that the kernel grants any user by default, in place of 64 KiB. Refused, it stays as it is.
func widenPipe(end *os.File) {
	const room = 1 << 20
	raw, err := end.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, room) })
}
