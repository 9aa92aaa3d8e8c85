package storage

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/rclone/gofakes3"
)

// presigned signs any request for the store as of a given time.
func presigned(t *testing.T, e *Embedded, method, rawURL string, signed time.Time, ttl string) string {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), method, rawURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	query := request.URL.Query()
	query.Set("X-Amz-Expires", ttl)
	request.URL.RawQuery = query.Encode()
	access, secret := e.Credentials()
	uri, _, err := v4.NewSigner().PresignHTTP(t.Context(), aws.Credentials{AccessKeyID: access, SecretAccessKey: secret},
		request, "UNSIGNED-PAYLOAD", "s3", testRegion, signed)
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

func filesIn(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestEmbeddedRefusals(t *testing.T) {
	t.Parallel()
	e, s := embeddedPair(t, EmbeddedConfig{})
	ctx := testContext(t)
	if _, err := s.Put(ctx, "dir/key.jpg", strings.NewReader("0123456789"), 10, "image/jpeg"); err != nil {
		t.Fatal(err)
	}
	base := s.cfg.Endpoint + "/" + testBucket
	object := base + "/dir/key.jpg"
	now := time.Now()
	good := presigned(t, e, "GET", object, now, "600")
	other, err := url.Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		method, url string
		header      string
		want        int
	}{
		"good":                     {"GET", good, "", 200},
		"unsigned get":             {"GET", object, "", 403},
		"unsigned head":            {"HEAD", object, "", 403},
		"unsigned put":             {"PUT", object, "", 403},
		"unsigned delete":          {"DELETE", object, "", 403},
		"unsigned list":            {"GET", base + "?list-type=2", "", 403},
		"unsigned buckets":         {"GET", s.cfg.Endpoint + "/", "", 403},
		"unsigned form":            {"POST", base, "", 501},
		"bearer only":              {"GET", object, "Authorization: Bearer sk_live_x", 400},
		"bearer beside":            {"GET", good, "Authorization: Bearer sk_live_x", 200},
		"expired":                  {"GET", presigned(t, e, "GET", object, now.Add(-2*time.Minute), "60"), "", 403},
		"signed a minute ago":      {"GET", presigned(t, e, "GET", object, now.Add(-time.Minute), "3600"), "", 200},
		"from the future":          {"GET", presigned(t, e, "GET", object, now.Add(time.Hour), "60"), "", 403},
		"for eight days":           {"GET", presigned(t, e, "GET", object, now, "691200"), "", 403},
		"signature bent":           {"GET", strings.Replace(good, "X-Amz-Signature=", "X-Amz-Signature=0", 1), "", 403},
		"expiry bent":              {"GET", strings.Replace(good, "X-Amz-Expires=600", "X-Amz-Expires=6000", 1), "", 403},
		"key bent":                 {"GET", strings.Replace(good, "key.jpg", "kex.jpg", 1), "", 403},
		"method bent":              {"DELETE", good, "", 403},
		"put with get":             {"PUT", good, "", 403},
		"query added":              {"GET", good + "&response-content-type=text/html", "", 403},
		"host bent":                {"GET", good, "Host: example.com", 403},
		"header added":             {"GET", good, "X-Amz-Meta-A: b", 403},
		"head with get":            {"HEAD", good, "", 200},
		"head with head":           {"HEAD", presigned(t, e, "HEAD", object, now, "600"), "", 200},
		"get with head":            {"GET", presigned(t, e, "HEAD", object, now, "600"), "", 403},
		"head with put":            {"HEAD", presigned(t, e, "PUT", object, now, "600"), "", 403},
		"head expired":             {"HEAD", presigned(t, e, "GET", object, now.Add(-2*time.Minute), "60"), "", 403},
		"wrong key pair":           {"GET", strings.Replace(good, e.cfg.AccessKey, "AKIAWRONG", 1), "", 403},
		"other bucket":             {"GET", presigned(t, e, "GET", s.cfg.Endpoint+"/other-bucket/key", now, "600"), "", 404},
		"signed missing":           {"GET", presigned(t, e, "GET", base+"/none", now, "600"), "", 404},
		"signed acl":               {"GET", presigned(t, e, "GET", object+"?acl", now, "600"), "", 501},
		"signed tagging":           {"PUT", presigned(t, e, "PUT", object+"?tagging", now, "600"), "", 501},
		"signed bucket delete":     {"DELETE", presigned(t, e, "DELETE", base, now, "600"), "", 403},
		"signed control character": {"PUT", presigned(t, e, "PUT", base+"/a%0Ab", now, "600"), "", 400},
		"signed NUL":               {"PUT", presigned(t, e, "PUT", base+"/a%00b", now, "600"), "", 400},
		"signed not UTF-8":         {"PUT", presigned(t, e, "PUT", base+"/a%FFb", now, "600"), "", 400},
		"signed long key":          {"PUT", presigned(t, e, "PUT", base+"/"+strings.Repeat("x", 1025), now, "600"), "", 400},
		"range":                    {"GET", good, "Range: bytes=2-4", 206},
		"range open":               {"GET", good, "Range: bytes=9-", 206},
		"range suffix":             {"GET", good, "Range: bytes=-3", 206},
		"range suffix too long":    {"GET", good, "Range: bytes=-300", 206},
		"range past the end":       {"GET", good, "Range: bytes=10-", 416},
		"range suffix of nothing":  {"GET", good, "Range: bytes=-0", 416},
		"not modified":             {"GET", good, `If-None-Match: "781e5e245d69b566979b86e28d23f2c7"`, 304},
		"precondition":             {"GET", good, `If-Match: "x"`, 412},
		"preflight":                {"OPTIONS", other.Scheme + "://" + other.Host + other.Path, "Origin: http://example.com", 200},
	} {
		answer, page := send(t, test.method, test.url, nil, func(r *http.Request) {
			name, value, found := strings.Cut(test.header, ": ")
			if name == "Host" {
				r.Host = value
			} else if found {
				r.Header.Set(name, value)
			}
			if r.Method == http.MethodOptions {
				r.Header.Set("Access-Control-Request-Method", "PUT")
			}
		})
		if answer.StatusCode != test.want {
			t.Errorf("%s: %d, want %d: %s", name, answer.StatusCode, test.want, page)
		}
		if answer.StatusCode >= 400 && bytes.Contains(page, []byte("0123")) {
			t.Errorf("%s: a refusal shows the object", name)
		}
		if answer.Header.Get("Server") != "" {
			t.Errorf("%s: Server: %s", name, answer.Header.Get("Server"))
		}
		if answer.Header.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(answer.Header.Get("Content-Security-Policy"), "sandbox") {
			t.Errorf("%s: headers %v", name, answer.Header)
		}
	}
	if objects, err := s.List(ctx, "", "", 10); err != nil || len(objects) != 1 {
		t.Errorf("after all that: %v, %v", objects, err)
	}
}

func TestEmbeddedRangeBodies(t *testing.T) {
	t.Parallel()
	_, s := embeddedPair(t, EmbeddedConfig{})
	ctx := testContext(t)
	content := randomBytes(t, 3*sendStep+17)
	if _, err := s.Put(ctx, "key", bytes.NewReader(content), int64(len(content)), ""); err != nil {
		t.Fatal(err)
	}
	url, err := s.PresignGet(ctx, "key", time.Hour, "")
	if err != nil {
		t.Fatal(err)
	}
	size := len(content)
	for span, want := range map[string][]byte{
		"": content, "bytes=0-0": content[:1], "bytes=0-": content, fmt.Sprintf("bytes=%d-", size-1): content[size-1:],
		"bytes=-1": content[size-1:], fmt.Sprintf("bytes=5-%d", size+100): content[5:],
		fmt.Sprintf("bytes=%d-%d", sendStep-3, 2*sendStep+3): content[sendStep-3 : 2*sendStep+4],
		fmt.Sprintf("bytes=-%d", size+5):                     content,
	} {
		answer, got := send(t, http.MethodGet, url, nil, func(r *http.Request) {
			if span != "" {
				r.Header.Set("Range", span)
			}
		})
		if !bytes.Equal(got, want) || answer.ContentLength != int64(len(want)) {
			t.Errorf("%q: %d bytes, want %d; %v", span, len(got), len(want), answer.Header)
		}
	}
	answer, _ := send(t, http.MethodHead, url, nil, nil)
	if answer.ContentLength != int64(size) || answer.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("head: %v", answer.Header)
	}
}

// TestEmbeddedTruncated cuts connections in the middle of bodies of every kind.
func TestEmbeddedTruncated(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, s := embeddedIn(t, dir, EmbeddedConfig{})
	ctx := testContext(t)
	host := strings.TrimPrefix(s.cfg.Endpoint, "http://")
	created, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(testBucket), Key: aws.String("parts")})
	if err != nil {
		t.Fatal(err)
	}
	base := s.cfg.Endpoint + "/" + testBucket
	put := presigned(t, e, "PUT", base+"/key", time.Now(), "600")
	for name, test := range map[string]struct{ url, headers, body string }{
		"length":         {put, "Content-Length: 1000\r\n", strings.Repeat("x", 999)},
		"no body at all": {put, "Content-Length: 1000\r\n", ""},
		"chunked":        {put, "Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"},
		"chunk cut":      {put, "Transfer-Encoding: chunked\r\n", "50\r\nhello"},
		"part":           {presigned(t, e, "PUT", base+"/parts?partNumber=1&uploadId="+*created.UploadId, time.Now(), "600"), "Content-Length: 1000\r\n", "hello"},
	} {
		conn, err := net.Dial("tcp", host)
		if err != nil {
			t.Fatal(err)
		}
		target := strings.TrimPrefix(test.url, s.cfg.Endpoint)
		if _, err := io.WriteString(conn, "PUT "+target+" HTTP/1.1\r\nHost: "+host+"\r\n"+test.headers+"\r\n"+test.body); err != nil {
			t.Fatal(err)
		}
		// Half closed, so that the answer can be read: the server sees the end of the body at once.
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if answer, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil && answer.StatusCode < 400 {
			t.Errorf("%s: %d", name, answer.StatusCode)
		}
		_ = conn.Close()
	}
	if _, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: aws.String(testBucket), Key: aws.String("parts"), UploadId: created.UploadId}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nothing is left", func() bool {
		return len(filesIn(t, filepath.Join(dir, tempDir))) == 0
	})
	if files := filesIn(t, filepath.Join(dir, objectsDir)); len(files) > 0 {
		t.Errorf("published: %v", files)
	}
}

func TestEmbeddedLimits(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, s := embeddedIn(t, dir, EmbeddedConfig{MaxPutBytes: 1000})
	ctx := testContext(t)
	url := presigned(t, e, "PUT", s.cfg.Endpoint+"/"+testBucket+"/key", time.Now(), "600")
	for name, test := range map[string]struct {
		size    int
		chunked bool
		want    int
	}{
		"at the limit": {1000, false, 200}, "over": {1001, false, 413}, "far over": {1 << 20, false, 413},
		"chunked at the limit": {1000, true, 200}, "chunked over": {1001, true, 413}, "chunked far over": {200_000, true, 413},
	} {
		answer, page := send(t, http.MethodPut, url, bytes.NewReader(make([]byte, test.size)), func(r *http.Request) {
			if test.chunked {
				r.ContentLength = -1
			} else {
				r.Header.Set("Expect", "100-continue")
			}
		})
		if answer.StatusCode != test.want || test.want == 413 && !bytes.Contains(page, []byte("EntityTooLarge")) {
			t.Errorf("%s: %d %s", name, answer.StatusCode, page)
		}
	}
	// A declared size is refused before a single byte of the body is sent.
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.cfg.Endpoint, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	target := strings.TrimPrefix(url, s.cfg.Endpoint)
	if _, err := fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 5000000000\r\n\r\n", target, strings.TrimPrefix(s.cfg.Endpoint, "http://")); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("%v, %v", answer, err)
	}
	if _, err := s.Put(ctx, "key", bytes.NewReader(make([]byte, 1001)), 1001, ""); !errors.Is(err, ErrTooLarge) || Transient(err) {
		t.Errorf("through the client: %v", err)
	}
	if files := filesIn(t, filepath.Join(dir, tempDir)); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestEmbeddedSpace asks for more than any disk has.
func TestEmbeddedSpace(t *testing.T) {
	t.Parallel()
	_, s := embeddedPair(t, EmbeddedConfig{MaxPutBytes: 1 << 60})
	_, err := s.Put(testContext(t), "key", plainReader{rand0{}}, 1<<59, "")
	if err == nil || !strings.Contains(err.Error(), "StatusCode: 507") || !Transient(err) {
		t.Errorf("%v", err)
	}
}

// rand0 never ends.
type rand0 struct{}

func (rand0) Read(p []byte) (int, error) { return len(p), nil }

func TestEmbeddedRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, s := embeddedIn(t, dir, EmbeddedConfig{})
	ctx := testContext(t)
	_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(testBucket), Key: aws.String("a/b"), Body: strings.NewReader("text"), ContentType: aws.String("image/png"),
		ContentDisposition: aws.String(`attachment; filename="x.png"`), CacheControl: aws.String("no-store"),
		Metadata: map[string]string{"job": "job_1", "umlaut": "x y"},
	})
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.Head(ctx, "a/b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenEmbedded(dir, EmbeddedConfig{Bucket: testBucket}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	access, secret := e.Credentials()
	s.Close()
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	stray := filepath.Join(dir, tempDir, "stray")
	if err := os.WriteFile(stray, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	e2, s2 := embeddedIn(t, dir, EmbeddedConfig{})
	if a, b := e2.Credentials(); a != access || b != secret {
		t.Error("the key pair changed")
	}
	out, err := s2.client.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(testBucket), Key: aws.String("a/b")})
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(out.Body)
	_ = out.Body.Close()
	if err != nil || string(text) != "text" || aws.ToString(out.ContentType) != "image/png" || aws.ToString(out.CacheControl) != "no-store" ||
		aws.ToString(out.ContentDisposition) != `attachment; filename="x.png"` || out.Metadata["job"] != "job_1" || out.Metadata["umlaut"] != "x y" ||
		bareETag(out.ETag) != before.ETag || !aws.ToTime(out.LastModified).Equal(before.Modified) {
		t.Errorf("%q %+v, %v", text, out, err)
	}
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the draft of the earlier process is still there: %v", err)
	}
	put := presigned(t, e2, "PUT", s2.cfg.Endpoint+"/"+testBucket+"/a/typeless", time.Now(), "600")
	if answer, text := send(t, http.MethodPut, put, strings.NewReader("<html><script>"), nil); answer.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", answer.StatusCode, text)
	}
	if object, err := s2.Head(ctx, "a/typeless"); err != nil || object.ContentType != "binary/octet-stream" {
		t.Errorf("an object without a type: %+v, %v", object, err)
	}
	if err := s2.Delete(ctx, "a/typeless"); err != nil {
		t.Fatal(err)
	}
	// Removing the last object removes the directories above it.
	if err := s2.Delete(ctx, "a/b"); err != nil {
		t.Fatal(err)
	}
	if rest, err := os.ReadDir(filepath.Join(dir, objectsDir)); err != nil || len(rest) > 0 {
		t.Errorf("%v, %v", rest, err)
	}
}

func TestEmbeddedDamaged(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, patient := embeddedIn(t, dir, EmbeddedConfig{})
	s := clientOf(t, e, Config{Endpoint: patient.cfg.Endpoint, Attempts: 1})
	t.Cleanup(s.Close)
	ctx := testContext(t)
	for name, damage := range map[string]func(path string) error{
		"emptied":   func(path string) error { return os.Truncate(path, 0) },
		"shortened": func(path string) error { return os.Truncate(path, 100) },
		"overwritten": func(path string) error {
			return os.WriteFile(path, bytes.Repeat([]byte("x"), 200), 0o600)
		},
		"trailer too long": func(path string) error {
			return os.WriteFile(path, []byte(footerMagic+"\xff\xff\xff\xff"), 0o600)
		},
	} {
		if _, err := s.Put(ctx, name, strings.NewReader(strings.Repeat("x", 150)), 150, ""); err != nil {
			t.Fatal(err)
		}
		if err := damage(filepath.Join(dir, objectsDir, keyPath(name))); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Head(ctx, name); err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
		objects, err := s.List(ctx, name, "", 10)
		if err != nil || len(objects) != 1 || objects[0].ETag != "" {
			t.Errorf("%s: a damaged object must be listed, so that it can be deleted: %+v, %v", name, objects, err)
		}
		if err := s.Delete(ctx, name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if objects, err := s.List(ctx, "", "", 10); err != nil || len(objects) > 0 {
		t.Errorf("%+v, %v", objects, err)
	}
}

// TestEmbeddedMount serves the store beside other handlers, as the API does.
func TestEmbeddedMount(t *testing.T) {
	t.Parallel()
	e, err := OpenEmbedded(t.TempDir(), EmbeddedConfig{Bucket: testBucket})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	local, err := e.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/"+testBucket+"/", e.Handler())
	mux.HandleFunc("GET /result", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, r.URL.Query().Get("to"), http.StatusFound)
	})
	public := httptest.NewServer(mux)
	t.Cleanup(public.Close)
	s := clientOf(t, e, Config{Endpoint: local, PublicEndpoint: public.URL})
	t.Cleanup(s.Close)
	ctx := testContext(t)
	if err := s.Check(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Put(ctx, "results/job_1/1.jpg", strings.NewReader("0123456789"), 10, "image/jpeg"); err != nil {
		t.Fatal(err)
	}
	get, err := s.PresignGet(ctx, "results/job_1/1.jpg", time.Minute, "a.jpg")
	if err != nil || !strings.HasPrefix(get, public.URL+"/"+testBucket+"/results/") {
		t.Fatalf("%s, %v", get, err)
	}
	// As curl -L does: the header goes along to the same host.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, public.URL+"/result?to="+url.QueryEscape(get), nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer sk_live_x")
	request.Header.Set("Range", "bytes=0-3")
	answer, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(answer.Body)
	_ = answer.Body.Close()
	if err != nil || answer.StatusCode != http.StatusPartialContent || string(text) != "0123" {
		t.Errorf("%d %q, %v", answer.StatusCode, text, err)
	}
}

func TestEmbeddedMultipart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, s := embeddedIn(t, dir, EmbeddedConfig{MaxPutBytes: 100})
	ctx := testContext(t)
	begin := func(key string) *string {
		t.Helper()
		out, err := s.client.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: aws.String(testBucket), Key: &key})
		if err != nil {
			t.Fatal(err)
		}
		return out.UploadId
	}
	put := func(key string, id *string, number int32, text string) (*string, error) {
		out, err := s.client.UploadPart(ctx, &s3.UploadPartInput{
			Bucket: aws.String(testBucket), Key: &key, UploadId: id, PartNumber: &number, Body: strings.NewReader(text),
		})
		if err != nil {
			return nil, err
		}
		return out.ETag, nil
	}
	complete := func(key string, id *string, parts ...types.CompletedPart) error {
		_, err := s.client.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{
			Bucket: aws.String(testBucket), Key: &key, UploadId: id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
		})
		return err
	}
	id := begin("key")
	if _, err := put("key", id, 3, "third"); err != nil {
		t.Fatal(err)
	}
	first, err := put("key", id, 1, "replaced")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("key", id, 1, strings.Repeat("x", 101)); err == nil {
		t.Error("a part over the limit was taken")
	}
	if _, err := put("key", id, 2, strings.Repeat("x", 95)); err == nil {
		t.Error("parts over the limit together were taken")
	}
	again, err := put("key", id, 1, "first ")
	if err != nil {
		t.Fatal(err)
	}
	third, err := put("key", id, 3, "third")
	if err != nil {
		t.Fatal(err)
	}
	one, three := types.CompletedPart{ETag: again, PartNumber: aws.Int32(1)}, types.CompletedPart{ETag: third, PartNumber: aws.Int32(3)}
	for name, parts := range map[string][]types.CompletedPart{
		"wrong order": {three, one}, "twice the same": {one, one}, "unknown part": {one, {ETag: third, PartNumber: aws.Int32(2)}},
		"old etag": {{ETag: first, PartNumber: aws.Int32(1)}, three}, "none": nil,
	} {
		if err := complete("key", id, parts...); err == nil {
			t.Errorf("%s: completed", name)
		}
		if _, err := s.Head(ctx, "key"); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := complete("key", id, one, three); err != nil {
		t.Fatal(err)
	}
	if err := complete("key", id, one, three); err != nil {
		t.Errorf("completing again, as after a lost answer: %v", err)
	}
	body, _, err := s.Get(ctx, "key")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(body)
	_ = body.Close()
	if err != nil || string(text) != "first third" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := put("key", id, 4, "late"); err == nil {
		t.Error("a part was taken after the end")
	}
	// An upload that nobody touches for a day is dropped.
	id = begin("old")
	if _, err := put("old", id, 1, "x"); err != nil {
		t.Fatal(err)
	}
	e.backend.dropStale(ctx, time.Now().Add(uploadAgeMax-time.Minute))
	if _, err := put("old", id, 2, "x"); err != nil {
		t.Errorf("dropped too early: %v", err)
	}
	e.backend.dropStale(ctx, time.Now().Add(uploadAgeMax+time.Minute))
	if _, err := put("old", id, 3, "x"); err == nil {
		t.Error("a stale upload still takes parts")
	}
	if files := filesIn(t, filepath.Join(dir, tempDir)); len(files) > 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestPutLeavesNothing breaks a large body of unknown length in several ways and looks at the disk.
func TestPutLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, s := embeddedIn(t, dir, EmbeddedConfig{})
	broken := errors.New("the client hung up")
	canceled, cancel := context.WithCancel(testContext(t))
	content := randomBytes(t, 2*partSize+100)
	if _, err := s.Put(testContext(t), "a", failingReader(content, broken), -1, ""); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	if _, err := s.Put(canceled, "b", io.MultiReader(bytes.NewReader(content), cancelReader{cancel}, bytes.NewReader(content)), -1, ""); !errors.Is(err, context.Canceled) || Transient(err) {
		t.Errorf("%v", err)
	}
	for _, sub := range []string{tempDir, objectsDir} {
		if files := filesIn(t, filepath.Join(dir, sub)); len(files) > 0 {
			t.Errorf("left behind: %v", files)
		}
	}
	if spools := filesIn(t, s.cfg.TempDir); len(spools) > 0 {
		t.Errorf("left behind: %v", spools)
	}
}

// TestEmbeddedPutChecksums sends what other clients send: chunked framing with a trailing checksum, or a checksum in
// a header, right and wrong.
func TestEmbeddedPutChecksums(t *testing.T) {
	t.Parallel()
	_, s := embeddedPair(t, EmbeddedConfig{})
	ctx := testContext(t)
	for _, algorithm := range []types.ChecksumAlgorithm{types.ChecksumAlgorithmCrc32, types.ChecksumAlgorithmSha256, types.ChecksumAlgorithmCrc64nvme} {
		_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
			Bucket: aws.String(testBucket), Key: aws.String("key"), Body: strings.NewReader("hello"), ChecksumAlgorithm: algorithm,
		})
		if err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
		if object, err := s.Head(ctx, "key"); err != nil || object.Size != 5 || len(object.ETag) != 32 {
			t.Errorf("%s: %+v, %v", algorithm, object, err)
		}
	}
	_, err := s.client.PutObject(ctx, &s3.PutObjectInput{
		Bucket: aws.String(testBucket), Key: aws.String("bad"), Body: strings.NewReader("hello"), ContentMD5: aws.String("1B2M2Y8AsgTpgAmY7PhCfg=="),
	})
	if err == nil || !strings.Contains(err.Error(), "BadDigest") {
		t.Errorf("wrong MD5: %v", err)
	}
	if _, err := s.Head(ctx, "bad"); !errors.Is(err, ErrNotFound) {
		t.Errorf("wrong MD5, stored: %v", err)
	}
	_, err = s.client.CopyObject(ctx, &s3.CopyObjectInput{
		Bucket: aws.String(testBucket), Key: aws.String("copy"), CopySource: aws.String(testBucket + "/key"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if object, err := s.Head(ctx, "copy"); err != nil || object.Size != 5 {
		t.Errorf("copy: %+v, %v", object, err)
	}
}

// TestEmbeddedStalledClient opens an upload and a download and lets both starve.
func TestEmbeddedStalledClient(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, s := embeddedIn(t, dir, EmbeddedConfig{IdleTimeout: 200 * time.Millisecond})
	put := presigned(t, e, "PUT", s.cfg.Endpoint+"/"+testBucket+"/key", time.Now(), "600")
	host := strings.TrimPrefix(s.cfg.Endpoint, "http://")
	conn, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "PUT %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 100\r\n\r\nhello", strings.TrimPrefix(put, s.cfg.Endpoint), host); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && answer.StatusCode != http.StatusBadRequest || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, %v", answer, err)
	}
	eventually(t, "the draft is removed", func() bool { return len(filesIn(t, filepath.Join(dir, tempDir))) == 0 })

	content := make([]byte, 32<<20) // more than the socket buffers hold
	// Not through HTTP, where a busy machine might starve this one too.
	if _, err := e.backend.PutObject(testContext(t), testBucket, "big", nil, bytes.NewReader(content), int64(len(content))); err != nil {
		t.Fatal(err)
	}
	get := presigned(t, e, "GET", s.cfg.Endpoint+"/"+testBucket+"/big", time.Now(), "600")
	slow, err := net.Dial("tcp", host)
	if err != nil {
		t.Fatal(err)
	}
	defer slow.Close()
	if _, err := fmt.Fprintf(slow, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", strings.TrimPrefix(get, s.cfg.Endpoint), host); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the object is closed again", func() bool { return openObjects(t, dir) == 0 })
	// A connection that was used before works on: no old deadline may strike it.
	for range 3 {
		if _, err := s.Head(testContext(t), "big"); err != nil {
			t.Fatal(err)
		}
	}
}

// openObjects counts this process's open files in the store's objects.
func openObjects(t *testing.T, dir string) (count int) {
	t.Helper()
	links, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	for _, link := range links {
		if target, err := os.Readlink("/proc/self/fd/" + link.Name()); err == nil && strings.HasPrefix(target, filepath.Join(dir, objectsDir)) {
			count++
		}
	}
	return count
}

func TestOpenEmbeddedRefuses(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		dir string
		cfg EmbeddedConfig
	}{
		"a file":        {file, EmbeddedConfig{Bucket: testBucket}},
		"no bucket":     {t.TempDir(), EmbeddedConfig{}},
		"bad bucket":    {t.TempDir(), EmbeddedConfig{Bucket: "../x"}},
		"half a pair":   {t.TempDir(), EmbeddedConfig{Bucket: testBucket, AccessKey: "x"}},
		"negative size": {t.TempDir(), EmbeddedConfig{Bucket: testBucket, MaxPutBytes: -1}},
	} {
		if e, err := OpenEmbedded(test.dir, test.cfg); err == nil {
			t.Errorf("%s: opened", name)
			_ = e.Close()
		}
	}
}

// TestWalkPages lists a directory larger than any page, and than one batch of names.
func TestWalkPages(t *testing.T) {
	t.Parallel()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	d := disk{root: root}
	const count = 3*scanBatch + 11
	for i := range count {
		key := fmt.Sprintf("flat/%05d", (i*7919)%count)
		if i%3 == 0 {
			key += "/leaf"
		}
		name := filepath.Join(objectsDir, keyPath(key))
		if err := root.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := root.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, page := range []int{1, 50, 5000} {
		seen, last := 0, ""
		err := d.walk(t.Context(), "", "", page, func(key, _ string) bool {
			if key <= last {
				t.Fatalf("page %d: %s after %s", page, key, last)
			}
			seen, last = seen+1, key
			return page > 1 || seen < 20 // one by one is slow by nature
		})
		if want := map[bool]int{true: 20, false: count}[page == 1]; err != nil || seen != want {
			t.Errorf("page %d: %d of %d, %v", page, seen, want, err)
		}
	}
}

// FuzzKeyPath holds the mapping of keys to what it promises: it never leaves the directory, never collides, can be
// read back, and fits every file system.
func FuzzKeyPath(f *testing.F) {
	for _, key := range []string{
		"a", "a/b", "/", "//", ".", "..", "../..", "a/../b", "a/./b", "/etc/passwd", "a/", "a.o", "a.d/b", "a.c",
		strings.Repeat("x", 63), strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("%", 200), strings.Repeat("/", 1024),
		"ä", "\x00", "\xff", "con", "%2e%2e", "a\\b", strings.Repeat("x", 64) + "/y", strings.Repeat("x", 64) + "y",
	} {
		f.Add(key)
	}
	f.Fuzz(func(t *testing.T, key string) {
		if key == "" || len(key) > keySizeMax {
			return
		}
		path := keyPath(key)
		if !filepath.IsLocal(path) || filepath.Clean(path) != path {
			t.Fatalf("%q becomes %q", key, path)
		}
		if len(path) > 3600 {
			t.Fatalf("%q becomes %d bytes", key, len(path))
		}
		back := entry{name: objectsDir}
		for name := range strings.SplitSeq(path, "/") {
			if len(name) > 200 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.%") != "" {
				t.Fatalf("%q has the name %q", key, name)
			}
			if back.object {
				t.Fatalf("%q goes on below an object", key)
			}
			var ok bool
			if back, ok = back.child(name); !ok {
				t.Fatalf("%q: the name %q is not read back", key, name)
			}
		}
		if !back.object || back.prefix != key {
			t.Fatalf("%q comes back as %q", key, back.prefix)
		}
	})
}

// FuzzTrailer reads arbitrary files as objects.
func FuzzTrailer(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte("x" + `{"etag":"00","modified":"2026-01-01T00:00:00Z"}` + footerMagic + "\x00\x00\x00\x2f"))
	f.Add([]byte(footerMagic + "\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if size, trailer, err := readTrailer(bytes.NewReader(content), int64(len(content))); err == nil && (size < 0 || size > int64(len(content)) || len(trailer.hash()) == 0) {
			t.Fatalf("%d, %+v", size, trailer)
		}
	})
}

func TestRangeOf(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		start, end int64
		fromEnd    bool
		size       int64
		want       string
	}{
		{0, 0, false, 10, "0+1"},
		{2, 5, false, 10, "2+4"},
		{2, gofakes3.RangeNoEnd, false, 10, "2+8"},
		{2, 100, false, 10, "2+8"},
		{10, 12, false, 10, "bad"},
		{0, 0, false, 0, "bad"},
		{0, 3, true, 10, "7+3"},
		{0, 30, true, 10, "0+10"},
		{0, 0, true, 10, "bad"},
		{0, 3, true, 0, "bad"},
		{0, -5, true, 10, "bad"},
	} {
		got := "bad"
		if span, err := rangeOf(&gofakes3.ObjectRangeRequest{Start: test.start, End: test.end, FromEnd: test.fromEnd}, test.size); err == nil {
			got = fmt.Sprintf("%d+%d", span.Start, span.Length)
		}
		if got != test.want {
			t.Errorf("%+v: %s", test, got)
		}
	}
}
