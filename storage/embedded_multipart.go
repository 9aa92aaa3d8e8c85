package storage

import (
	"context"
	"crypto/md5" //nolint:gosec // the protocol's ETag, not a protection
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rclone/gofakes3"
)

const (
	// uploadsMax bounds the multipart uploads under way at once.
	uploadsMax = 1000
	// uploadAgeMax is when an upload that nobody touches is dropped, to make room and free its disk.
	uploadAgeMax = 24 * time.Hour
)

// uploads are the multipart uploads under way. They live as long as the process: parts left by an earlier one are
// cleared at start, because the client's retry begins a new upload.
//
// Lock order: an upload's own mu first, then this one; nobody takes an upload's mu while holding this one.
type uploads struct {
	mu   sync.Mutex
	byID map[gofakes3.UploadID]*upload
}

type upload struct {
	bucket, key string
	meta        map[string]string
	dir         string

	mu      sync.Mutex
	touched time.Time
	parts   map[int]part
	size    int64
	// over is set once the upload was completed or aborted; no part is taken after that.
	over bool
}

type part struct {
	name string
	etag string // MD5 in hex
	size int64
}

func (b *backend) CreateMultipartUpload(ctx context.Context, bucket, key string, meta map[string]string) (gofakes3.UploadID, error) {
	if err := b.checkBucket(bucket); err != nil {
		return "", err
	}
	b.dropStale(ctx, time.Now())
	id := gofakes3.UploadID(randomName())
	u := &upload{
		bucket: bucket, key: key, meta: keptMeta(meta), dir: path.Join(tempDir, "upload-"+string(id)),
		touched: time.Now(), parts: map[int]part{},
	}
	b.uploads.mu.Lock()
	defer b.uploads.mu.Unlock()
	if len(b.uploads.byID) >= uploadsMax {
		return "", gofakes3.ErrSlowDown
	}
	if err := b.disk.root.Mkdir(u.dir, 0o700); err != nil {
		return "", explain(ctx, fmt.Errorf("create upload: %w", err))
	}
	b.uploads.byID[id] = u
	return id, nil
}

// dropStale keeps abandoned uploads from filling the disk. A client that still uses one is told NoSuchUpload.
func (b *backend) dropStale(ctx context.Context, now time.Time) {
	b.uploads.mu.Lock()
	all := maps.Clone(b.uploads.byID)
	b.uploads.mu.Unlock()
	for id, u := range all {
		if !u.mu.TryLock() {
			continue // in use, hence not stale
		}
		if now.Sub(u.touched) > uploadAgeMax {
			u.over = true
			_ = b.disk.root.RemoveAll(u.dir) // the next start clears what cannot be removed now
			b.forgetUpload(id)
			_ = b.library.ForgetMultipartUpload(ctx, u.bucket, u.key, id) // unknown there is fine
		}
		u.mu.Unlock()
	}
}

func (b *backend) findUpload(bucket, key string, id gofakes3.UploadID) (*upload, error) {
	b.uploads.mu.Lock()
	defer b.uploads.mu.Unlock()
	u := b.uploads.byID[id]
	if u == nil || u.bucket != bucket || u.key != key {
		return nil, gofakes3.ErrNoSuchUpload
	}
	return u, nil
}

func (b *backend) forgetUpload(id gofakes3.UploadID) {
	b.uploads.mu.Lock()
	defer b.uploads.mu.Unlock()
	delete(b.uploads.byID, id)
}

// UploadPart receives the part beside the others without a lock and then swaps it in.
func (b *backend) UploadPart(ctx context.Context, bucket, key string, id gofakes3.UploadID, number int, length int64, body io.Reader) (string, error) {
	u, err := b.findUpload(bucket, key, id)
	if err != nil {
		return "", err
	}
	w, err := b.disk.newDraft(path.Join(u.dir, strconv.Itoa(number)+"-"+randomName()))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return "", gofakes3.ErrNoSuchUpload
		}
		return "", explain(ctx, err)
	}
	defer w.discard()
	sum := md5.New() //nolint:gosec // the protocol's ETag, not a protection
	if err := w.receive(ctx, io.TeeReader(body, sum), b.maxSize); err != nil {
		return "", explain(ctx, fmt.Errorf("receive part: %w", err))
	}
	if w.size != length {
		return "", gofakes3.ErrIncompleteBody
	}
	p := part{name: w.name, etag: hex.EncodeToString(sum.Sum(nil)), size: w.size}
	replaced, err := u.add(number, p, b.maxSize)
	if err != nil {
		return "", explain(ctx, err)
	}
	w.name = "" // the upload owns the file now
	if replaced != "" {
		_ = b.disk.root.Remove(replaced) // goes with the upload at the latest
	}
	return `"` + p.etag + `"`, nil
}

func (u *upload) add(number int, p part, maxSize int64) (replaced string, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	old := u.parts[number]
	size := u.size - old.size + p.size
	if u.over {
		return "", gofakes3.ErrNoSuchUpload
	}
	if size > maxSize {
		return "", ErrTooLarge
	}
	u.parts[number], u.size, u.touched = p, size, time.Now()
	return old.name, nil
}

// CompleteMultipartUpload joins the parts into one object. Until it succeeds the upload stays as it was.
func (b *backend) CompleteMultipartUpload(ctx context.Context, bucket, key string, id gofakes3.UploadID, input *gofakes3.CompleteMultipartUploadRequest) (gofakes3.VersionID, string, error) {
	u, err := b.findUpload(bucket, key, id)
	if err != nil {
		return "", "", err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return "", "", gofakes3.ErrNoSuchUpload
	}
	parts, err := u.chosen(input)
	if err != nil {
		return "", "", err
	}
	w, err := b.disk.newDraft(path.Join(tempDir, randomName()))
	if err != nil {
		return "", "", explain(ctx, err)
	}
	defer w.discard()
	sum := md5.New() //nolint:gosec // the protocol's ETag, not a protection
	for _, p := range parts {
		if err := b.join(ctx, w, p); err != nil {
			return "", "", explain(ctx, err)
		}
		tag, _ := hex.DecodeString(p.etag) // written by us
		_, _ = sum.Write(tag)              // a hash never fails
	}
	t := trailer{ETag: hex.EncodeToString(sum.Sum(nil)), Modified: time.Now(), Meta: u.meta}
	if err := w.publish(key, t); err != nil {
		return "", "", explain(ctx, err)
	}
	u.over = true
	b.forgetUpload(id)
	_ = b.disk.root.RemoveAll(u.dir) // the next start clears what cannot be removed now
	return "", `"` + t.ETag + `"`, nil
}

// chosen are the parts that the client names, in its order, which must be rising.
func (u *upload) chosen(input *gofakes3.CompleteMultipartUploadRequest) ([]part, error) {
	if len(input.Parts) == 0 {
		return nil, gofakes3.ErrorMessage(gofakes3.ErrMalformedXML, "No parts are named.")
	}
	parts := make([]part, 0, len(input.Parts))
	last := 0
	for _, named := range input.Parts {
		if named.PartNumber <= last {
			return nil, gofakes3.ErrInvalidPartOrder
		}
		last = named.PartNumber
		p, ok := u.parts[named.PartNumber]
		if !ok || strings.Trim(named.ETag, `"`) != p.etag {
			return nil, gofakes3.ErrorMessagef(gofakes3.ErrInvalidPart, "Part %d was not uploaded with that ETag.", named.PartNumber)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// join appends a part; file to file, the kernel copies.
func (b *backend) join(ctx context.Context, w *draft, p part) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := b.disk.root.Open(p.name)
	if err != nil {
		return fmt.Errorf("open part: %w", err)
	}
	defer func() { _ = file.Close() }() // read only
	n, err := io.Copy(w.file, file)
	w.size += n
	if err == nil && n != p.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("join part: %w", err)
	}
	return nil
}

func (b *backend) AbortMultipartUpload(ctx context.Context, bucket, key string, id gofakes3.UploadID) error {
	u, err := b.findUpload(bucket, key, id)
	if err != nil {
		return nil // completed or aborted by another request: nothing is left to free
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
	if err := b.disk.root.RemoveAll(u.dir); err != nil {
		return explain(ctx, fmt.Errorf("abort upload: %w", err))
	}
	b.forgetUpload(id)
	return nil
}
