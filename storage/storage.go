// Package storage hides where bytes live. One S3 code path serves every mode: a fleet points it at R2, MinIO or AWS,
// and the all-in-one process points it at the embedded store in this package, which speaks the same protocol over a
// directory. Everything that moves a file between a client, a worker and the bucket is here (put, get, presign,
// delete, list and the names of the keys), and so is the guarded fetch of URLs that clients hand us. Bodies are
// streamed: no call holds more than a few hundred KiB of a file in memory, whatever its size.
package storage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/logging"
)

// Config says which bucket to use and how patient to be with it. Zero durations and counts mean the default given.
type Config struct {
	// Endpoint is the base URL of the S3 service, for example http://127.0.0.1:9000. Empty means AWS itself.
	Endpoint string
	// PublicEndpoint is the base URL that presigned URLs carry: the one clients can reach. Default: Endpoint.
	PublicEndpoint string
	// Region is signed into every request. Default us-east-1; R2 wants "auto".
	Region string
	Bucket string
	// AccessKey and SecretKey are the static credentials; both are required.
	AccessKey, SecretKey string
	// PathStyle puts the bucket into the path, not the host name: MinIO and the embedded store need it.
	PathStyle bool

	// DialTimeout bounds connecting, with TLS, to the service. Default 3 s.
	DialTimeout time.Duration
	// ResponseTimeout bounds the wait for response headers once a request is sent. Default 60 s: a server may sync
	// several GB to its disk before it answers.
	ResponseTimeout time.Duration
	// IdleTimeout bounds the time without a single byte moving inside a body, in either direction. Default 30 s.
	IdleTimeout time.Duration
	// Dial connects to the service. Default: TCP. A service in the same process can be reached by a pipe.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Attempts is how often a request is tried before its error is returned, 1-10. Default 3.
	Attempts int
	// TempDir is where bodies of unknown length are spooled, at most 16 MiB each. Default os.TempDir().
	TempDir string
}

// Store is one bucket. It is safe for concurrent use. Close frees its idle connections.
type Store struct {
	cfg     Config
	client  *s3.Client
	presign *s3.PresignClient
	http    *http.Transport
}

// Object describes one stored object.
type Object struct {
	Key string
	// Size is in bytes.
	Size int64
	// ContentType is empty in a List, which does not carry it.
	ContentType string
	// ETag is the service's own version mark, without quotes.
	ETag string
	// Modified is zero in the answer of a Put, which does not carry it.
	Modified time.Time
}

const (
	defaultRegion          = "us-east-1"
	defaultDialTimeout     = 3 * time.Second
	defaultResponseTimeout = 60 * time.Second
	defaultIdleTimeout     = 30 * time.Second
	defaultAttempts        = 3
	maxAttempts            = 10
	// retryBackoffMax keeps a dead endpoint from holding a caller for minutes.
	retryBackoffMax = 2 * time.Second
	// idleConnections is per host; a process moves a few dozen files at once at most.
	idleConnections = 32
)

// bucketName is the S3 rule without dots, which break TLS for virtual-hosted buckets.
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$`)

// Open checks the configuration and returns a store. It does not touch the network: see Check and EnsureBucket.
func Open(cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	transport := newTransport(cfg)
	options := s3.Options{
		Region:                     cfg.Region,
		Credentials:                aws.NewCredentialsCache(credentials.NewStaticCredentialsProvider(cfg.AccessKey, cfg.SecretKey, "")),
		UsePathStyle:               cfg.PathStyle,
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		Logger:                     logging.Nop{},
		HTTPClient: &http.Client{Transport: waitingTransport{transport}, CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		}},
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = cfg.Attempts
			o.MaxBackoff = retryBackoffMax
		}),
	}
	if cfg.Endpoint != "" {
		options.BaseEndpoint = aws.String(cfg.Endpoint)
	}
	public := options
	if cfg.PublicEndpoint != "" {
		public.BaseEndpoint = aws.String(cfg.PublicEndpoint)
	}
	return &Store{
		cfg:     cfg,
		client:  s3.New(options),
		presign: s3.NewPresignClient(s3.New(public)),
		http:    transport,
	}, nil
}

func (c Config) withDefaults() Config {
	c.Endpoint = strings.TrimRight(c.Endpoint, "/")
	c.PublicEndpoint = strings.TrimRight(c.PublicEndpoint, "/")
	if c.PublicEndpoint == "" {
		c.PublicEndpoint = c.Endpoint
	}
	if c.Region == "" {
		c.Region = defaultRegion
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = defaultDialTimeout
	}
	if c.ResponseTimeout == 0 {
		c.ResponseTimeout = defaultResponseTimeout
	}
	if c.IdleTimeout == 0 {
		c.IdleTimeout = defaultIdleTimeout
	}
	if c.Attempts == 0 {
		c.Attempts = defaultAttempts
	}
	if c.TempDir == "" {
		c.TempDir = os.TempDir()
	}
	return c
}

// validate reports every fault at once, so that an operator fixes them in one go.
func (c Config) validate() error {
	var faults []error
	for _, endpoint := range []struct{ name, value string }{
		{"endpoint", c.Endpoint}, {"public endpoint", c.PublicEndpoint},
	} {
		if endpoint.value == "" {
			continue
		}
		u, err := url.Parse(endpoint.value)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.User != nil || u.RawQuery != "" {
			faults = append(faults, fmt.Errorf("the %s %q is not a base URL like https://s3.example.com", endpoint.name, endpoint.value))
		}
	}
	if !bucketName.MatchString(c.Bucket) {
		faults = append(faults, fmt.Errorf("the bucket %q is not 3-63 lower-case letters, digits and hyphens", c.Bucket))
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		faults = append(faults, errors.New("the access key and the secret key are both required"))
	}
	if c.Attempts < 1 || c.Attempts > maxAttempts {
		faults = append(faults, fmt.Errorf("%d attempts are not within 1-%d", c.Attempts, maxAttempts))
	}
	if c.DialTimeout < 0 || c.ResponseTimeout < 0 || c.IdleTimeout < 0 {
		faults = append(faults, errors.New("a timeout is negative"))
	}
	if len(faults) > 0 {
		return fmt.Errorf("storage configuration: %w", errors.Join(faults...))
	}
	return nil
}

func newTransport(cfg Config) *http.Transport {
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: cfg.DialTimeout, KeepAlive: 30 * time.Second}).DialContext
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &writeDeadlineConn{Conn: conn, timeout: cfg.IdleTimeout}, nil
		},
		TLSHandshakeTimeout:   cfg.DialTimeout,
		ResponseHeaderTimeout: cfg.ResponseTimeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		MaxIdleConns:          4 * idleConnections,
		MaxIdleConnsPerHost:   idleConnections,
	}
}

// waitingTransport makes "Expect: 100-continue" work. The SDK sends it for large bodies but leaves the request's
// protocol version at 0.0, and net/http waits for the answer from 1.1 on only (measured with smithy-go 1.28.8): the
// body would be sent into a server that has already refused it, and the refusal be lost in a connection reset.
type waitingTransport struct{ *http.Transport }

func (t waitingTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	versioned := *request
	versioned.Proto, versioned.ProtoMajor, versioned.ProtoMinor = "HTTP/1.1", 1, 1
	return t.Transport.RoundTrip(&versioned)
}

// Close frees the idle connections. The store must not be used afterwards.
func (s *Store) Close() { s.http.CloseIdleConnections() }

// Bucket is the name of the bucket.
func (s *Store) Bucket() string { return s.cfg.Bucket }

// EnsureBucket creates the bucket when it is missing. Credentials that may not create buckets are fine as long as it exists.
func (s *Store) EnsureBucket(ctx context.Context) error {
	err := s.Check(ctx)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return err
	}
	input := &s3.CreateBucketInput{Bucket: &s.cfg.Bucket}
	if s.cfg.Endpoint == "" && s.cfg.Region != defaultRegion {
		// AWS refuses the constraint for us-east-1 and demands it everywhere else; the others ignore it.
		input.CreateBucketConfiguration = &types.CreateBucketConfiguration{
			LocationConstraint: types.BucketLocationConstraint(s.cfg.Region),
		}
	}
	_, err = s.client.CreateBucket(ctx, input)
	var owned *types.BucketAlreadyOwnedByYou
	var exists *types.BucketAlreadyExists
	if errors.As(err, &owned) || errors.As(err, &exists) {
		return nil
	}
	return s.fail("create bucket", "", err)
}

// Check asks the service for the bucket: one small request, no listing.
func (s *Store) Check(ctx context.Context) error {
	_, err := s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.cfg.Bucket})
	return s.fail("check bucket", "", err)
}

// Head describes the object, or returns ErrNotFound.
func (s *Store) Head(ctx context.Context, key string) (Object, error) {
	if err := checkKey(key); err != nil {
		return Object{}, err
	}
	out, err := s.client.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &s.cfg.Bucket, Key: &key})
	if err != nil {
		return Object{}, s.fail("head", key, err)
	}
	return Object{
		Key: key, Size: aws.ToInt64(out.ContentLength), ContentType: aws.ToString(out.ContentType),
		ETag: bareETag(out.ETag), Modified: aws.ToTime(out.LastModified),
	}, nil
}

// List returns up to limit objects whose keys start with prefix and come after startAfter, in byte order of the key.
// limit is 1-100,000. Fewer objects than limit means that there are no more.
func (s *Store) List(ctx context.Context, prefix, startAfter string, limit int) ([]Object, error) {
	if limit < 1 || limit > listMax {
		return nil, fmt.Errorf("list: a limit of %d is not within 1-%d", limit, listMax)
	}
	input := &s3.ListObjectsV2Input{Bucket: &s.cfg.Bucket, Prefix: &prefix}
	if startAfter != "" {
		input.StartAfter = &startAfter
	}
	objects := make([]Object, 0, min(limit, pageMax))
	for len(objects) < limit {
		input.MaxKeys = aws.Int32(int32(min(limit-len(objects), pageMax)))
		page, err := s.client.ListObjectsV2(ctx, input)
		if err != nil {
			return nil, s.fail("list", prefix, err)
		}
		for _, item := range page.Contents {
			objects = append(objects, Object{
				Key: aws.ToString(item.Key), Size: aws.ToInt64(item.Size),
				ETag: bareETag(item.ETag), Modified: aws.ToTime(item.LastModified),
			})
		}
		if !aws.ToBool(page.IsTruncated) || page.NextContinuationToken == nil {
			break
		}
		input.ContinuationToken = page.NextContinuationToken
	}
	return objects, nil
}

const (
	listMax = 100_000
	// pageMax is the protocol's own limit of keys in one list or delete request.
	pageMax = 1000
)

// Delete removes the objects, any number of them, in batches. A key that does not exist is no error. The first error
// does not stop the other batches; all errors are returned together.
func (s *Store) Delete(ctx context.Context, keys ...string) error {
	for _, key := range keys {
		if err := checkKey(key); err != nil {
			return err
		}
	}
	var faults []error
	for len(keys) > 0 && ctx.Err() == nil {
		batch := keys[:min(len(keys), pageMax)]
		keys = keys[len(batch):]
		faults = append(faults, s.deleteBatch(ctx, batch))
	}
	if err := ctx.Err(); err != nil && len(keys) > 0 {
		faults = append(faults, fmt.Errorf("delete %d more objects: %w", len(keys), err))
	}
	return errors.Join(faults...)
}

func (s *Store) deleteBatch(ctx context.Context, keys []string) error {
	if len(keys) == 1 {
		_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: &keys[0]})
		if err = s.fail("delete", keys[0], err); errors.Is(err, ErrNotFound) {
			return nil
		}
		return err
	}
	ids := make([]types.ObjectIdentifier, len(keys))
	for i := range keys {
		ids[i].Key = &keys[i]
	}
	out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{
		Bucket: &s.cfg.Bucket, Delete: &types.Delete{Objects: ids, Quiet: aws.Bool(true)},
	})
	if err != nil {
		return s.fail(fmt.Sprintf("delete %d objects", len(keys)), "", err)
	}
	var faults []error
	for _, fault := range out.Errors {
		if code := aws.ToString(fault.Code); code != "NoSuchKey" {
			faults = append(faults, fmt.Errorf("delete %s: %w", aws.ToString(fault.Key),
				&partialError{code: code, message: aws.ToString(fault.Message)}))
		}
	}
	return errors.Join(faults...)
}

// unsignedPayload spares hashing every body before sending it; TLS, or the loopback, protects the bytes.
func unsignedPayload(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func bareETag(tag *string) string { return strings.Trim(aws.ToString(tag), `"`) }
