package storage

import (
	"context"
	"crypto/md5" //nolint:gosec // the protocol's ETag, not a protection
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/rclone/gofakes3"
)

// backend is the directory as the protocol library wants it. It knows one bucket.
type backend struct {
	disk    disk
	bucket  string
	maxSize int64
	uploads uploads
	// library keeps books of its own about multipart uploads.
	library *gofakes3.GoFakeS3
}

var (
	_ gofakes3.Backend          = (*backend)(nil)
	_ gofakes3.MultipartBackend = (*backend)(nil)
)

// fault is an error of this store in the protocol's words. status goes through the exchange, because the library
// derives it from the code alone and has none for these.
func fault(ctx context.Context, status int, code gofakes3.ErrorCode, message string) error {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		x.status = status
	}
	return gofakes3.ErrorMessage(code, message)
}

// explain turns an error of the disk or of the body into the protocol's words.
func explain(ctx context.Context, err error) error {
	var known gofakes3.Error
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known // bare: the library does not look inside wrapped errors
	case errors.Is(err, ErrTooLarge), errors.As(err, &tooLarge):
		return fault(ctx, http.StatusRequestEntityTooLarge, gofakes3.ErrEntityTooLarge, "The object is larger than this store accepts.")
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return fault(ctx, http.StatusInsufficientStorage, "InsufficientStorage", "The store's disk is full.")
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, context.Canceled):
		return gofakes3.ErrIncompleteBody
	case errors.Is(err, os.ErrDeadlineExceeded):
		return gofakes3.ErrorMessage(gofakes3.ErrIncompleteBody, "The body stopped arriving.")
	}
	return err
}

func (b *backend) checkBucket(name string) error {
	if name != b.bucket {
		return gofakes3.BucketNotFound(name)
	}
	return nil
}

// ListBuckets knows no creation time worth telling: the bucket is as old as its directory.
func (b *backend) ListBuckets(context.Context) ([]gofakes3.BucketInfo, error) {
	info, err := b.disk.root.Stat(objectsDir)
	if err != nil {
		return nil, err
	}
	return []gofakes3.BucketInfo{{Name: b.bucket, CreationDate: gofakes3.NewContentTime(info.ModTime())}}, nil
}

func (b *backend) BucketExists(_ context.Context, name string) (bool, error) {
	return name == b.bucket, nil
}

func (b *backend) CreateBucket(ctx context.Context, name string) error {
	if name == b.bucket {
		return gofakes3.ResourceError(gofakes3.ErrBucketAlreadyExists, name)
	}
	return fault(ctx, http.StatusForbidden, "AccessDenied", "This store holds one bucket.")
}

func (b *backend) DeleteBucket(ctx context.Context, _ string) error {
	return fault(ctx, http.StatusForbidden, "AccessDenied", "This store's bucket is permanent.")
}

// ListBucket has no delimiter support beyond grouping what one walk finds.
func (b *backend) ListBucket(ctx context.Context, name string, prefix *gofakes3.Prefix, page gofakes3.ListBucketPage) (*gofakes3.ObjectList, error) {
	if err := b.checkBucket(name); err != nil {
		return nil, err
	}
	if prefix == nil {
		prefix = &gofakes3.Prefix{}
	}
	limit := int(page.MaxKeys)
	if limit <= 0 || limit > pageMax {
		limit = pageMax
	}
	list := gofakes3.NewObjectList()
	var readErr error
	err := b.disk.walk(ctx, prefix.Prefix, page.Marker, limit+1, func(key, name string) bool {
		group := commonPrefix(key, *prefix)
		if group != "" && (group == lastPrefix(list) || strings.HasPrefix(page.Marker, group)) {
			return true
		}
		if len(list.Contents)+len(list.CommonPrefixes) == limit {
			list.IsTruncated = true
			return false
		}
		if group != "" {
			list.AddPrefix(group)
			// Nothing of the group is shown again after this marker.
			list.NextMarker = group + "\U0010FFFF"
			return true
		}
		content, err := b.content(key, name)
		if errors.Is(err, fs.ErrNotExist) {
			return true // deleted meanwhile
		}
		if err != nil {
			readErr = err
			return false
		}
		list.Add(content)
		list.NextMarker = key
		return true
	})
	if err = errors.Join(err, readErr); err != nil {
		return nil, explain(ctx, err)
	}
	if !list.IsTruncated {
		list.NextMarker = ""
	}
	return list, nil
}

func commonPrefix(key string, prefix gofakes3.Prefix) string {
	if prefix.Delimiter == "" {
		return ""
	}
	head, _, found := strings.Cut(key[len(prefix.Prefix):], prefix.Delimiter)
	if !found {
		return ""
	}
	return prefix.Prefix + head + prefix.Delimiter
}

func lastPrefix(list *gofakes3.ObjectList) string {
	if len(list.CommonPrefixes) == 0 {
		return ""
	}
	return list.CommonPrefixes[len(list.CommonPrefixes)-1].Prefix
}

// content describes one object. A damaged one is listed without an ETag, so that it can be found and deleted.
func (b *backend) content(key, name string) (*gofakes3.Content, error) {
	file, size, t, err := b.disk.openFile(name)
	if errors.Is(err, errBadObject) {
		return &gofakes3.Content{Key: key}, nil
	}
	if err != nil {
		return nil, err
	}
	_ = file.Close() // read only
	return &gofakes3.Content{
		Key: key, Size: size, ETag: `"` + t.ETag + `"`, LastModified: gofakes3.NewContentTime(t.Modified),
	}, nil
}

func (b *backend) HeadObject(ctx context.Context, bucket, key string) (*gofakes3.Object, error) {
	object, err := b.GetObject(ctx, bucket, key, nil)
	if err != nil {
		return nil, err
	}
	_ = object.Contents.Close() // read only
	object.Contents = http.NoBody
	return object, nil
}

func (b *backend) GetObject(ctx context.Context, bucket, key string, request *gofakes3.ObjectRangeRequest) (*gofakes3.Object, error) {
	if err := b.checkBucket(bucket); err != nil {
		return nil, err
	}
	file, size, t, err := b.disk.openObject(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, gofakes3.KeyNotFound(key)
	}
	if err != nil {
		return nil, explain(ctx, fmt.Errorf("open object: %w", err))
	}
	body := &fileBody{file: file, left: size}
	var span *gofakes3.ObjectRange
	if request != nil {
		if span, err = body.narrow(request); err != nil {
			_ = file.Close()
			return nil, err
		}
	}
	meta := map[string]string{
		"Last-Modified": t.Modified.UTC().Format(http.TimeFormat),
		// As S3 does. Without a type the HTTP server would guess one, and a guess of text/html is a page.
		"Content-Type": "binary/octet-stream",
	}
	maps.Copy(meta, t.Meta)
	return &gofakes3.Object{Name: key, Metadata: meta, Size: size, Hash: t.hash(), Range: span, Contents: body}, nil
}

// rangeOf follows RFC 9110: a suffix longer than the object is the whole object.
func rangeOf(request *gofakes3.ObjectRangeRequest, size int64) (*gofakes3.ObjectRange, error) {
	start, end := request.Start, request.End
	switch {
	case request.FromEnd && end <= 0:
		return nil, gofakes3.ErrInvalidRange
	case request.FromEnd:
		start, end = max(0, size-end), size-1
	case end == gofakes3.RangeNoEnd || end >= size:
		end = size - 1
	}
	if start >= size {
		return nil, gofakes3.ErrInvalidRange
	}
	return &gofakes3.ObjectRange{Start: start, Length: end - start + 1}, nil
}

// fileBody is the rest of an object's bytes. WriteTo lets the kernel move them from the file to the socket.
type fileBody struct {
	file *os.File
	left int64
}

// narrow cuts the body down to the range asked for.
func (f *fileBody) narrow(request *gofakes3.ObjectRangeRequest) (*gofakes3.ObjectRange, error) {
	span, err := rangeOf(request, f.left)
	if err != nil {
		return nil, err
	}
	if _, err := f.file.Seek(span.Start, io.SeekStart); err != nil {
		return nil, fmt.Errorf("seek object: %w", err)
	}
	f.left = span.Length
	return span, nil
}

func (f *fileBody) Read(p []byte) (int, error) {
	limited := io.LimitedReader{R: f.file, N: f.left}
	n, err := limited.Read(p)
	f.left = limited.N
	return n, err
}

func (f *fileBody) WriteTo(w io.Writer) (int64, error) {
	n, err := io.Copy(w, &io.LimitedReader{R: f.file, N: f.left})
	f.left -= n
	if err == nil && f.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (f *fileBody) Close() error { return f.file.Close() }

func (b *backend) PutObject(ctx context.Context, bucket, key string, meta map[string]string, input io.Reader, size int64) (gofakes3.PutObjectResult, error) {
	var none gofakes3.PutObjectResult
	if err := b.checkBucket(bucket); err != nil {
		return none, err
	}
	w, err := b.disk.newDraft(path.Join(tempDir, randomName()))
	if err != nil {
		return none, explain(ctx, err)
	}
	defer w.discard()
	if err := w.receive(ctx, input, b.maxSize); err != nil {
		return none, explain(ctx, fmt.Errorf("receive object: %w", err))
	}
	if size >= 0 && w.size != size {
		return none, gofakes3.ErrIncompleteBody
	}
	t := trailer{ETag: etagOf(input), Modified: time.Now(), Meta: keptMeta(meta)}
	if err := w.publish(key, t); err != nil {
		return none, explain(ctx, err)
	}
	return gofakes3.PutObjectResult{ETag: `"` + t.ETag + `"`}, nil
}

// etagOf is the MD5 that the protocol library has computed while the body passed through it. Where it has put another
// reader around its own (a request with a checksum header), any unique value serves: hashing 5 GB again would not.
func etagOf(input io.Reader) string {
	if summed, ok := input.(interface{ Sum([]byte) []byte }); ok {
		if sum := summed.Sum(nil); len(sum) == md5.Size {
			return hex.EncodeToString(sum)
		}
	}
	return randomName()
}

// keptMeta drops what the store itself knows better.
func keptMeta(meta map[string]string) map[string]string {
	kept := make(map[string]string, len(meta))
	for name, value := range meta {
		if name != "Last-Modified" {
			kept[name] = value
		}
	}
	return kept
}

func (b *backend) DeleteObject(ctx context.Context, bucket, key string) (gofakes3.ObjectDeleteResult, error) {
	if err := b.checkBucket(bucket); err != nil {
		return gofakes3.ObjectDeleteResult{}, err
	}
	return gofakes3.ObjectDeleteResult{}, explain(ctx, b.disk.remove(key))
}

func (b *backend) DeleteMulti(ctx context.Context, bucket string, keys ...string) (gofakes3.MultiDeleteResult, error) {
	var result gofakes3.MultiDeleteResult
	if err := b.checkBucket(bucket); err != nil {
		return result, err
	}
	for _, key := range keys {
		if err := ctx.Err(); err != nil {
			return result, err
		}
		if key == "" || len(key) > keySizeMax {
			result.Error = append(result.Error, gofakes3.ErrorResult{Key: key, Code: gofakes3.ErrKeyTooLong, Message: "Not a key."})
			continue
		}
		if err := b.disk.remove(key); err != nil {
			result.Error = append(result.Error, gofakes3.ErrorResult{Key: key, Code: gofakes3.ErrInternal, Message: "Not removed."})
			continue
		}
		result.Deleted = append(result.Deleted, gofakes3.ObjectID{Key: key})
	}
	return result, nil
}

func (b *backend) CopyObject(ctx context.Context, fromBucket, fromKey, toBucket, toKey string, meta map[string]string) (gofakes3.CopyObjectResult, error) {
	object, err := b.GetObject(ctx, fromBucket, fromKey, nil)
	if err != nil {
		return gofakes3.CopyObjectResult{}, err
	}
	defer func() { _ = object.Contents.Close() }() // read only
	put, err := b.PutObject(ctx, toBucket, toKey, meta, object.Contents, object.Size)
	if err != nil {
		return gofakes3.CopyObjectResult{}, err
	}
	return gofakes3.CopyObjectResult{ETag: put.ETag, LastModified: gofakes3.NewContentTime(time.Now())}, nil
}
