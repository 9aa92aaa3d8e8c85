package ffmpeg

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrUnreadable is a file that is no media file of a kind accepted here, or too broken to open.
var ErrUnreadable = errors.New("unreadable media file")

// ErrCodec is a file with a picture or a sound track whose codec is not accepted here.
var ErrCodec = errors.New("codec not accepted")

// ErrTooManyFrames is a file with more video packets than Limits.Packets.
var ErrTooManyFrames = errors.New("too many frames")

const (
	// describeBytes bounds the JSON of a file's header, and of its first frames.
	describeBytes = 4 << 20
	// firstPackets is how much of a file is decoded to read what only frames say.
	firstPackets = "%+#24"
	frameEntries = "frame=stream_index,pix_fmt,interlaced_frame,color_range,color_space,color_primaries,color_transfer:frame_side_data"
	// readRate is the slowest rate, in bytes a second, at which a file is expected to be read through.
	readRate = 20 << 20
)

// Probe measures a local file: its header, its first frames, and a count of all video packets, which decodes nothing. The error
// is ErrUnreadable, ErrCodec or ErrTooManyFrames when the file is to blame, with the *Error in the chain. A file without video is no error.
//
// ffprobe is started here and not by go-ffprobe, whose models describe its answer: that library starts it with no process
// group, no limits, an unbounded buffer and a program path shared by the whole process.
func (r *Runner) Probe(ctx context.Context, path string) (*Media, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("probe: %w: not a regular file", ErrUnreadable)
	}
	// The packets are counted while the header is read: most of the time of either goes into the start of ffprobe.
	ctx, stop := context.WithCancel(ctx)
	var tracks map[int]*timeline
	var counted error
	var counting sync.WaitGroup
	counting.Go(func() { tracks, counted = r.countPackets(ctx, path, info.Size(), "v", false) })
	defer counting.Wait()
	defer stop()
	text, err := r.describe(ctx, path, "-show_format", "-show_streams", "-show_data_hash", "sha256", "-show_chapters", "-read_intervals", firstPackets, "-show_entries", frameEntries)
	if err != nil {
		return nil, err
	}
	h, err := headerFacts(text)
	if err != nil {
		return nil, fmt.Errorf("probe: %w: %w", ErrUnreadable, err)
	}
	media := &h.media
	media.Size = info.Size()
	if len(h.videos) == 0 {
		return media, nil
	}
	counting.Wait()
	if counted != nil {
		return nil, counted
	}
	v := h.choose(tracks)
	if v == nil {
		return media, nil
	}
	media.Video = v
	if err := r.takeOffHidden(ctx, path, media); err != nil {
		return nil, err
	}
	seen, err := v.frameFacts(text)
	if err == nil && !seen {
		// The first packets of the file were all of other tracks.
		text, err = r.describe(ctx, path, "-select_streams", strconv.Itoa(v.Index), "-read_intervals", firstPackets, "-show_entries", frameEntries)
		if err == nil {
			_, err = v.frameFacts(text)
		}
	}
	if err != nil {
		return nil, err
	}
	return media, nil
}

// takeOffHidden lowers Claimed by the frames that an edit list keeps from being shown: in a video that was trimmed without being
// encoded anew, say, whose container still announces all that it holds.
func (r *Runner) takeOffHidden(ctx context.Context, path string, media *Media) error {
	v := media.Video
	if media.Format != "mp4" || v.Claimed <= v.Frames {
		return nil
	}
	tracks, err := r.countPackets(ctx, path, media.Size, strconv.Itoa(v.Index), false, "-ignore_editlist", "1")
	if err != nil {
		return err
	}
	if all := tracks[v.Index]; all != nil {
		v.Claimed -= max(0, int64(len(all.times))+all.missing-v.Frames)
	}
	return nil
}

// choose counts the tracks that have packets and returns the first.
func (h *header) choose(tracks map[int]*timeline) *Video {
	for i, v := range h.videos {
		if track := tracks[v.Index]; track != nil {
			v.measure(track, h.rates[i])
			if v.Frames > 0 {
				return v
			}
		}
	}
	return nil
}

// describe runs ffprobe for JSON of bounded size.
func (r *Runner) describe(ctx context.Context, path string, what ...string) ([]byte, error) {
	out := &bounded{most: describeBytes}
	args := append([]string{"-print_format", "json=compact=1"}, what...)
	err := r.probe(ctx, path, args, process{stdout: out, timeout: r.limits.ProbeTime})
	if err != nil {
		return nil, err
	}
	return []byte(out.String()), nil
}

// Timeline is when the frames of a track are shown, in units of Video.Unit.
type Timeline struct {
	// Times are those of the frames that are shown, sorted; Keys are those of them at which a decoder can begin.
	Times, Keys []int64
	// Missing counts frames without a time.
	Missing int64
}

// Timeline reads a file through and gives the times of one of its video tracks, by its index. Errors as Probe.
func (r *Runner) Timeline(ctx context.Context, path string, index int) (Timeline, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return Timeline{}, fmt.Errorf("timeline: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return Timeline{}, fmt.Errorf("timeline: %w", err)
	}
	tracks, err := r.countPackets(ctx, path, info.Size(), strconv.Itoa(index), true)
	if err != nil {
		return Timeline{}, err
	}
	track := tracks[index]
	if track == nil {
		return Timeline{}, nil
	}
	slices.Sort(track.times)
	slices.Sort(track.keys)
	return Timeline{Times: track.times, Keys: track.keys, Missing: track.missing}, nil
}

// countPackets reads the whole file and keeps the times of the video packets of the streams chosen, and which are key frames.
func (r *Runner) countPackets(ctx context.Context, path string, size int64, streams string, keys bool, demuxer ...string) (map[int]*timeline, error) {
	out := &timelines{most: r.limits.Packets, tracks: map[int]*timeline{}, keep: keys}
	reading := time.Duration(math.Ceil(float64(size)/readRate)) * time.Second
	args := []string{"-select_streams", streams, "-show_entries", "packet=stream_index,pts,dts,duration,flags", "-print_format", "compact=nokey=1:print_section=0"}
	err := r.probe(ctx, path, append(args, demuxer...), process{stdout: out, timeout: r.limits.ProbeTime + reading})
	if out.over {
		return nil, fmt.Errorf("probe: %w: over %d", ErrTooManyFrames, r.limits.Packets)
	}
	if err != nil {
		return nil, err
	}
	return out.tracks, nil
}

// probe runs ffprobe over a guarded file. However it ends, short of the caller's context, is the file's doing: a
// crash, a limit reached, too much output.
func (r *Runner) probe(ctx context.Context, path string, args []string, p process) error {
	p.program = r.ffprobe
	p.args = append([]string{"-hide_banner", "-loglevel", "level+error"}, args...)
	p.args = append(p.args, r.probeGuard()...)
	p.args = append(p.args, "-i", "file:"+path)
	err := r.start(ctx, p)
	var failed *Error
	if err == nil || ctx.Err() != nil || !errors.As(err, &failed) {
		return err
	}
	if strings.Contains(failed.Tail, "Codec (") && strings.Contains(failed.Tail, "not on whitelist") {
		return fmt.Errorf("probe: %w: %w", ErrCodec, err)
	}
	return fmt.Errorf("probe: %w: %w", ErrUnreadable, err)
}
