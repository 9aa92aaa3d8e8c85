package ffmpeg

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Piece is one file of a join: a part of a picture, written by us.
type Piece struct {
	// Name is a file in the folder of the list, of letters, digits, dots and dashes.
	Name string
	// Microseconds is how long after its own beginning the next piece begins; the last one's is not needed and 0.
	Microseconds int64
}

// WriteList writes the list of pieces that JoinArgs names: a script of ffmpeg's concat demuxer. Nothing of a client's is in it: it names
// files of ours, beside itself.
func WriteList(path string, pieces []Piece) error {
	var script strings.Builder
	script.WriteString("ffconcat version 1.0\n")
	for _, p := range pieces {
		if p.Name == "" || strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz0123456789.-") != "" || p.Name[0] == '.' {
			return fmt.Errorf("list of pieces: %q is no name of ours", p.Name)
		}
		// From time 0 of the piece on, even where its first frame is missing: the others keep their places.
		fmt.Fprintf(&script, "file %s\ninpoint 0us\n", p.Name)
		if p.Microseconds > 0 {
			fmt.Fprintf(&script, "duration %dus\n", p.Microseconds)
		}
	}
	if err := os.WriteFile(path, []byte(script.String()), 0o600); err != nil {
		return fmt.Errorf("list of pieces: %w", err)
	}
	return nil
}

// JoinArgs are the arguments of one run over two inputs: 0 is a foreign file, guarded as ever, and 1 are the pieces of a list that
// WriteList wrote, which must be MP4. The foreign file cannot be a list: what opens one is allowed for the second input alone.
func (r *Runner) JoinArgs(in Input, list Input, out Output) []string {
	args := []string{"-hide_banner", "-nostdin", "-y", "-loglevel", "level+warning"}
	args = append(args, r.guard()...)
	args = appendOptions(args, in.Options)
	args = append(args, "-i", "file:"+in.Path)
	args = append(args, "-protocol_whitelist", "file", "-format_whitelist", "concat,mov", "-codec_whitelist", "h264,hevc",
		"-max_pixels", strconv.FormatInt(r.limits.Pixels, 10), "-threads", strconv.Itoa(r.threads), "-f", "concat", "-safe", "1")
	args = appendOptions(args, list.Options)
	args = append(args, "-i", "file:"+list.Path, "-threads", strconv.Itoa(r.threads))
	args = appendOptions(args, out.Options)
	return append(args, "-f", out.Format, "file:"+out.Path)
}
