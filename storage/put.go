package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

const (
	// inlineMax is the largest body of unknown length that is sent straight from memory.
	inlineMax = 64 << 10
	// partSize is how much of a body of unknown length is spooled before it is sent: a body up to this size is one
	// request, a larger one a multipart upload of such parts. S3 demands at least 5 MiB; memory does not depend on
	// it, because the spool is an unlinked file, and 10,000 parts make 156 GiB.
	partSize = 16 << 20
	partsMax = 10_000
	// abortTimeout bounds the clean-up of a failed multipart upload, which outlives the caller's context.
	abortTimeout = 10 * time.Second
)

// Put stores size bytes of body under key, replacing what was there; a size of -1 reads body to its end. A body that
// fails, or has other than size bytes, stores nothing. Memory use is under 200 KiB whatever the size: a body of
// unknown length passes through a spool file of at most 16 MiB in Config.TempDir, so that slow senders hold disk and
// not memory, and every request can be repeated. A body of known length that cannot seek is sent in one attempt.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, size int64, contentType string) (Object, error) {
	if err := checkKey(key); err != nil {
		return Object{}, err
	}
	switch seeker, ok := body.(io.ReadSeeker); {
	case size < 0:
		return s.putUnknown(ctx, key, body, contentType)
	case size == 0:
		if err := expectEnd(body); err != nil {
			return Object{}, fmt.Errorf("put %s: %w", key, err)
		}
		return s.putSized(ctx, key, bytes.NewReader(nil), 0, contentType)
	case ok:
		if err := checkSeekSize(seeker, size); err != nil {
			return Object{}, fmt.Errorf("put %s: %w", key, err)
		}
		return s.putSized(ctx, key, seeker, size, contentType)
	default:
		return s.putSized(ctx, key, &exactReader{body: body, left: size}, size, contentType)
	}
}

// PutFile stores the file at path under key.
func (s *Store) PutFile(ctx context.Context, key, path, contentType string) (Object, error) {
	file, err := os.Open(path)
	if err != nil {
		return Object{}, fmt.Errorf("put %s: %w", key, err)
	}
	defer func() { _ = file.Close() }() // read only: nothing to lose
	info, err := file.Stat()
	if err != nil {
		return Object{}, fmt.Errorf("put %s: %w", key, err)
	}
	if !info.Mode().IsRegular() {
		return Object{}, fmt.Errorf("put %s: %s is not a regular file", key, path)
	}
	return s.Put(ctx, key, file, info.Size(), contentType)
}

func (s *Store) putSized(ctx context.Context, key string, body io.Reader, size int64, contentType string) (Object, error) {
	options := []func(*s3.Options){unsignedPayload}
	if _, ok := body.(io.Seeker); !ok {
		options = append(options, func(o *s3.Options) { o.Retryer = aws.NopRetryer{} }) // there is no way back
	}
	out, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: &s.cfg.Bucket, Key: &key, Body: body, ContentLength: &size, ContentType: optional(contentType),
	}, options...)
	if err != nil {
		return Object{}, s.fail("put", key, err)
	}
	return Object{Key: key, Size: size, ContentType: contentType, ETag: bareETag(out.ETag)}, nil
}

func (s *Store) putUnknown(ctx context.Context, key string, body io.Reader, contentType string) (Object, error) {
	var head bytes.Buffer
	n, err := io.CopyN(&head, body, inlineMax)
	if errors.Is(err, io.EOF) {
		return s.putSized(ctx, key, bytes.NewReader(head.Bytes()), n, contentType)
	}
	if err != nil {
		return Object{}, fmt.Errorf("put %s: read body: %w", key, err)
	}
	spool, err := newSpool(s.cfg.TempDir)
	if err != nil {
		return Object{}, fmt.Errorf("put %s: %w", key, err)
	}
	defer func() { _ = spool.Close() }() // unlinked: closing frees its space
	part, ended, err := fill(spool, io.MultiReader(&head, body))
	if err != nil {
		return Object{}, fmt.Errorf("put %s: %w", key, err)
	}
	if ended {
		return s.putSized(ctx, key, part, part.Size(), contentType)
	}
	return s.putParts(ctx, key, spool, part, body, contentType)
}

// putParts uploads first, which is full, and then what is left of body. On any failure it aborts the upload, so that
// no part stays behind. Only a completion whose answer got lost may leave the whole object in place.
func (s *Store) putParts(ctx context.Context, key string, spool *os.File, first *io.SectionReader, body io.Reader, contentType string) (Object, error) {
	created, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{
		Bucket: &s.cfg.Bucket, Key: &key, ContentType: optional(contentType),
	})
	if err != nil {
		return Object{}, s.fail("begin upload", key, err)
	}
	parts, size, err := s.sendParts(ctx, key, created.UploadId, spool, first, body)
	if err != nil {
		return Object{}, errors.Join(err, s.abort(ctx, key, created.UploadId))
	}
	out, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
		Bucket: &s.cfg.Bucket, Key: &key, UploadId: created.UploadId,
		MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
	})
	if err != nil {
		return Object{}, errors.Join(s.fail("complete upload", key, err), s.abort(ctx, key, created.UploadId))
	}
	return Object{Key: key, Size: size, ContentType: contentType, ETag: bareETag(out.ETag)}, nil
}

func (s *Store) sendParts(ctx context.Context, key string, uploadID *string, spool *os.File, part *io.SectionReader, body io.Reader) ([]types.CompletedPart, int64, error) {
	var parts []types.CompletedPart
	var size int64
	for ended := false; part.Size() > 0; {
		if len(parts) == partsMax {
			return nil, 0, fmt.Errorf("put %s: more than %d parts of %d bytes: %w", key, partsMax, partSize, ErrTooLarge)
		}
		number := aws.Int32(int32(len(parts) + 1))
		out, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: &s.cfg.Bucket, Key: &key, UploadId: uploadID, PartNumber: number,
			Body: part, ContentLength: aws.Int64(part.Size()),
		}, unsignedPayload)
		if err != nil {
			return nil, 0, s.fail(fmt.Sprintf("put part %d of", *number), key, err)
		}
		parts = append(parts, types.CompletedPart{ETag: out.ETag, PartNumber: number})
		size += part.Size()
		if ended {
			break
		}
		if part, ended, err = fill(spool, body); err != nil {
			return nil, 0, fmt.Errorf("put %s: %w", key, err)
		}
	}
	return parts, size, nil
}

// abort frees the parts of a failed upload even when the caller has already given up. An upload that is gone is fine.
func (s *Store) abort(ctx context.Context, key string, uploadID *string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{
		Bucket: &s.cfg.Bucket, Key: &key, UploadId: uploadID,
	})
	if err = s.fail("abort upload", key, err); errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// newSpool is a file without a name: it is gone when it is closed, or when the process dies.
func newSpool(dir string) (*os.File, error) {
	file, err := os.CreateTemp(dir, "enlarger-put-*")
	if err != nil {
		return nil, fmt.Errorf("create spool file: %w", err)
	}
	if err := os.Remove(file.Name()); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("unlink spool file: %w", err)
	}
	return file, nil
}

// fill overwrites the spool with up to one part of body and returns that part, and whether body has ended. Only a
// clean io.EOF ends a body: io.ErrUnexpectedEOF is a sender that was cut off, and must never be stored as a whole.
func fill(spool *os.File, body io.Reader) (part *io.SectionReader, ended bool, err error) {
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, false, fmt.Errorf("rewind spool file: %w", err)
	}
	n, err := io.CopyN(spool, body, partSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, fmt.Errorf("spool body: %w", err)
	}
	return io.NewSectionReader(spool, 0, n), err != nil, nil
}

// exactReader fails when body does not have exactly left more bytes. It hands out the last bytes only after it has
// seen the end behind them, so that a body that is too long never completes a request.
type exactReader struct {
	body io.Reader
	left int64
}

func (r *exactReader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	if errors.Is(err, io.EOF) && r.left > 0 {
		return n, fmt.Errorf("%w: %d bytes missing", errBodySize, r.left)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	if r.left == 0 && err == nil {
		if err := expectEnd(r.body); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// expectEnd reads on until the end, or an error, or a byte that should not be there.
func expectEnd(body io.Reader) error {
	var probe [1]byte
	_, err := io.ReadFull(body, probe[:])
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	return fmt.Errorf("%w: more bytes than declared", errBodySize)
}

func checkSeekSize(body io.Seeker, size int64) error {
	at, err := body.Seek(0, io.SeekCurrent)
	if err != nil {
		return fmt.Errorf("find the body's size: %w", err)
	}
	end, err := body.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("find the body's size: %w", err)
	}
	if _, err := body.Seek(at, io.SeekStart); err != nil {
		return fmt.Errorf("rewind the body: %w", err)
	}
	if end-at != size {
		return fmt.Errorf("%w: %d bytes, not %d", errBodySize, end-at, size)
	}
	return nil
}

func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}
