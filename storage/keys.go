package storage

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// keySizeMax is the protocol's limit of a key, in bytes.
const keySizeMax = 1024

// Prefixes start every key of ours. Whatever else lies in the bucket is somebody else's.
func Prefixes() []string { return []string{"sources/", "uploads/", "results/"} }

// SourceKey is where the worker keeps a job's input: sources/<job>. It has no extension, because the content decides.
func SourceKey(jobID string) string { return "sources/" + jobID }

// UploadKey is where a client's presigned PUT lands: uploads/<upload>.<ext>. An ext that is not 1-8 lower-case
// letters or digits is left out.
func UploadKey(uploadID, ext string) string { return "uploads/" + uploadID + suffix(ext) }

// ResultKey is where one run of a job puts its output: results/<job>/<fence>.<ext>. The fence keeps a run that lost
// its lease from touching the result of the run that replaced it.
func ResultKey(jobID string, fence int64, ext string) string {
	return fmt.Sprintf("%s%d%s", ResultPrefix(jobID), fence, suffix(ext))
}

// ResultPrefix is what all results of a job start with, whatever the fence.
func ResultPrefix(jobID string) string { return "results/" + jobID + "/" }

// SegmentKey is where one run of a part of a job puts it: results/<job>/segments/<number>.<fence>.<ext>, by the part's own fence.
func SegmentKey(jobID string, number int, fence int64, ext string) string {
	return fmt.Sprintf("%ssegments/%d.%d%s", ResultPrefix(jobID), number, fence, suffix(ext))
}

func suffix(ext string) string {
	ext = strings.ToLower(strings.TrimPrefix(ext, "."))
	if len(ext) < 1 || len(ext) > 8 {
		return ""
	}
	for _, c := range []byte(ext) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return ""
		}
	}
	return "." + ext
}

// checkKey refuses keys that some service or proxy on the way would rewrite, so that a key always means one object.
func checkKey(key string) error {
	if key == "" || len(key) > keySizeMax || !utf8.ValidString(key) {
		return fmt.Errorf("object key %q is not 1-%d bytes of UTF-8", key, keySizeMax)
	}
	for _, c := range []byte(key) {
		if c < 0x20 || c == 0x7f {
			return fmt.Errorf("object key %q holds a control character", key)
		}
	}
	for segment := range strings.SplitSeq(key, "/") {
		if segment == "" || segment == "." || segment == ".." {
			return fmt.Errorf("object key %q has an empty or dotted segment", key)
		}
	}
	return nil
}
