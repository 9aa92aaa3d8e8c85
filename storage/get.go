package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// resumesMax is how often a broken download is taken up again where it broke.
const resumesMax = 3

// Get opens the object for reading. The caller closes the body. A read fails when the service sends nothing for
// Config.IdleTimeout, and with io.ErrUnexpectedEOF when the connection ends early.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, Object, error) {
	if err := checkKey(key); err != nil {
		return nil, Object{}, err
	}
	return s.open(ctx, key, 0, "")
}

// open reads the object from offset on; a non-empty etag demands that it is still the same object.
func (s *Store) open(ctx context.Context, key string, offset int64, etag string) (io.ReadCloser, Object, error) {
	input := &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: &key}
	if offset > 0 {
		input.Range = aws.String(fmt.Sprintf("bytes=%d-", offset))
	}
	if etag != "" {
		input.IfMatch = aws.String(`"` + etag + `"`)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	out, err := s.client.GetObject(ctx, input)
	if err != nil {
		cancel(nil)
		return nil, Object{}, s.fail("get", key, err)
	}
	object := Object{
		Key: key, Size: offset + aws.ToInt64(out.ContentLength), ContentType: aws.ToString(out.ContentType),
		ETag: bareETag(out.ETag), Modified: aws.ToTime(out.LastModified),
	}
	return guard(out.Body, cancel, s.cfg.IdleTimeout), object, nil
}

// Download copies the object into a new file at path, mode 0600, and verifies its length. A limit above 0 is the
// largest size in bytes to accept, else ErrTooLarge before anything is read. A connection that breaks is resumed up to
// three times. On an error no file is left.
func (s *Store) Download(ctx context.Context, key, path string, limit int64) (Object, error) {
	if err := checkKey(key); err != nil {
		return Object{}, err
	}
	body, object, err := s.open(ctx, key, 0, "")
	if err != nil {
		return Object{}, err
	}
	defer func() { _ = body.Close() }() // the length is checked, nothing else can be lost
	if limit > 0 && object.Size > limit {
		return object, fmt.Errorf("download %s: %d bytes: %w", key, object.Size, ErrTooLarge)
	}
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return Object{}, fmt.Errorf("download %s: %w", key, err)
	}
	err = s.copyObject(ctx, file, body, object)
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return Object{}, errors.Join(fmt.Errorf("download %s: %w", key, err), os.Remove(path))
	}
	return object, nil
}

// copyObject writes all of the object to file. It closes every body but the first.
func (s *Store) copyObject(ctx context.Context, file *os.File, body io.Reader, object Object) error {
	var done int64
	for resumes := 0; ; resumes++ {
		n, err := io.Copy(file, body)
		done += n
		switch {
		case err == nil && done == object.Size:
			return nil
		case done > object.Size:
			return fmt.Errorf("%w: %d bytes of %d", errBodySize, done, object.Size)
		case err == nil:
			err = fmt.Errorf("%d bytes of %d: %w", done, object.Size, io.ErrUnexpectedEOF)
		}
		if resumes == resumesMax || object.ETag == "" || !Transient(err) || ctx.Err() != nil {
			return err
		}
		rest, _, openErr := s.open(ctx, object.Key, done, object.ETag)
		if openErr != nil {
			return errors.Join(err, openErr)
		}
		defer func() { _ = rest.Close() }()
		body = rest
	}
}

const (
	presignMin = time.Second
	// presignMax is the protocol's limit.
	presignMax = 7 * 24 * time.Hour
)

// PresignGet returns a URL at Config.PublicEndpoint that reads the object without credentials for ttl, 1 s to 7 days.
// Range requests work. S3 signs the method, so HEAD on it works with the embedded store only. A filename, when not
// empty, is what a browser saves it as. No network is used and the object need not exist.
func (s *Store) PresignGet(ctx context.Context, key string, ttl time.Duration, filename string) (string, error) {
	if err := checkPresign(key, ttl); err != nil {
		return "", err
	}
	input := &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: &key}
	if filename != "" {
		input.ResponseContentDisposition = aws.String(disposition(filename))
	}
	out, err := s.presign.PresignGetObject(ctx, input, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", s.fail("presign get of", key, err)
	}
	return out.URL, nil
}

// PresignHead returns a URL as PresignGet does that describes the object and answers HEAD only, with what GET would say.
func (s *Store) PresignHead(ctx context.Context, key string, ttl time.Duration, filename string) (string, error) {
	if err := checkPresign(key, ttl); err != nil {
		return "", err
	}
	input := &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &key}
	if filename != "" {
		input.ResponseContentDisposition = aws.String(disposition(filename))
	}
	out, err := s.presign.PresignHeadObject(ctx, input, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", s.fail("presign head of", key, err)
	}
	return out.URL, nil
}

// PresignPut returns a URL at Config.PublicEndpoint that stores one body under key without credentials for ttl, 1 s to
// 7 days. A size above 0 is signed: a PUT of any other length is refused. A contentType, when not empty, is signed
// too: the client must then send exactly that header, so leave it empty for clients that may not.
func (s *Store) PresignPut(ctx context.Context, key string, ttl time.Duration, contentType string, size int64) (string, error) {
	if err := checkPresign(key, ttl); err != nil {
		return "", err
	}
	input := &s3.PutObjectInput{Bucket: &s.cfg.Bucket, Key: &key, ContentType: optional(contentType)}
	if size > 0 {
		input.ContentLength = &size
	}
	out, err := s.presign.PresignPutObject(ctx, input, s3.WithPresignExpires(ttl))
	if err != nil {
		return "", s.fail("presign put of", key, err)
	}
	return out.URL, nil
}

func checkPresign(key string, ttl time.Duration) error {
	if ttl < presignMin || ttl > presignMax {
		return fmt.Errorf("presign %s: %v is not within %v-%v", key, ttl, presignMin, presignMax)
	}
	return checkKey(key)
}

// disposition names the file for a browser that shows it: RFC 6266, with an ASCII name for old clients.
func disposition(filename string) string {
	const nameMax = 200
	filename = strings.Map(func(r rune) rune {
		if r == '/' || r == '\\' || unicode.IsControl(r) || r == unicode.ReplacementChar {
			return '_'
		}
		return r
	}, filename)
	if len(filename) > nameMax {
		// Cut, and cut off what is left of a character that the cut went through.
		filename = strings.ToValidUTF8(filename[:nameMax], "")
	}
	plain := strings.Map(func(r rune) rune {
		if r > unicode.MaxASCII || r == '"' || r == '%' {
			return '_'
		}
		return r
	}, filename)
	if plain == filename {
		return fmt.Sprintf(`inline; filename="%s"`, plain)
	}
	return fmt.Sprintf(`inline; filename="%s"; filename*=UTF-8''%s`, plain, percentEncode(filename))
}

// percentEncode leaves only the characters that RFC 8187 allows everywhere.
func percentEncode(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' {
			b.WriteByte(c)
			continue
		}
		b.Write([]byte{'%', hex[c>>4], hex[c&15]})
	}
	return b.String()
}
