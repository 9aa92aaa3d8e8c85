package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestContractEmbedded runs what every store must do against the embedded one, through real HTTP.
func TestContractEmbedded(t *testing.T) {
	t.Parallel()
	_, s := embeddedPair(t, EmbeddedConfig{})
	contract(t, s)
}

// TestContractService runs the same against a service named by the environment, for example MinIO:
// ENLARGER_TEST_S3=http://127.0.0.1:9000 with ENLARGER_TEST_S3_ACCESS_KEY and ENLARGER_TEST_S3_SECRET_KEY.
func TestContractService(t *testing.T) {
	t.Parallel()
	endpoint := os.Getenv("ENLARGER_TEST_S3")
	if endpoint == "" {
		t.Skip("ENLARGER_TEST_S3 names no service")
	}
	s, err := Open(Config{
		Endpoint: endpoint, Bucket: testBucket, PathStyle: true, Region: os.Getenv("ENLARGER_TEST_S3_REGION"),
		AccessKey: os.Getenv("ENLARGER_TEST_S3_ACCESS_KEY"), SecretKey: os.Getenv("ENLARGER_TEST_S3_SECRET_KEY"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	contract(t, s)
}

// contract is the storage contract. It uses keys under a prefix of its own and removes them.
func contract(t *testing.T, s *Store) {
	ctx := testContext(t)
	if err := s.EnsureBucket(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureBucket(ctx); err != nil {
		t.Fatalf("a second time: %v", err)
	}
	if err := s.Check(ctx); err != nil {
		t.Fatal(err)
	}
	prefix := "contract-" + randomName() + "/"
	// Subtests run in parallel inside this group, so that the clean-up comes after all of them.
	t.Run("group", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *Store, string){
			"sizes": contractSizes, "files": contractFiles, "missing": contractMissing, "replace": contractReplace,
			"broken bodies": contractBrokenBodies, "list": contractList, "delete": contractDelete,
			"odd keys": contractKeys, "presign": contractPresign, "concurrent": contractConcurrent,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, s, prefix+strings.ReplaceAll(name, " ", "-")+"/")
			})
		}
	})
	objects, err := s.List(ctx, prefix, "", listMax)
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, len(objects))
	for i, object := range objects {
		keys[i] = object.Key
	}
	if err := s.Delete(ctx, keys...); err != nil {
		t.Fatal(err)
	}
	if objects, err = s.List(ctx, prefix, "", 10); err != nil || len(objects) > 0 {
		t.Fatalf("left behind: %v, %v", objects, err)
	}
}

func contractSizes(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	for _, size := range []int{0, 1, inlineMax - 1, inlineMax, inlineMax + 1, 5 << 20, partSize - 1, partSize, partSize + 1, 2*partSize + 7} {
		content := randomBytes(t, size)
		for _, way := range []struct {
			name string
			body io.Reader
			size int64
		}{
			{"seekable", bytes.NewReader(content), int64(size)},
			{"stream", plainReader{bytes.NewReader(content)}, int64(size)},
			{"unknown", plainReader{bytes.NewReader(content)}, -1},
		} {
			key := fmt.Sprintf("%s%s-%d.bin", prefix, way.name, size)
			put, err := s.Put(ctx, key, way.body, way.size, "application/x-test")
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			if put.Key != key || put.Size != int64(size) || put.ETag == "" {
				t.Errorf("%s: put says %+v", key, put)
			}
			body, object, err := s.Get(ctx, key)
			if err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			got, err := io.ReadAll(body)
			if err := errors.Join(err, body.Close()); err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			if !bytes.Equal(got, content) {
				t.Fatalf("%s: %d bytes came back different", key, len(got))
			}
			if object.Size != int64(size) || object.ContentType != "application/x-test" || object.ETag != put.ETag ||
				time.Since(object.Modified).Abs() > time.Hour {
				t.Errorf("%s: get says %+v, put said %+v", key, object, put)
			}
		}
	}
}

func contractFiles(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	dir := t.TempDir()
	content := randomBytes(t, 3<<20)
	from, to := filepath.Join(dir, "from"), filepath.Join(dir, "to")
	if err := os.WriteFile(from, content, 0o600); err != nil {
		t.Fatal(err)
	}
	key := prefix + "file.mp4"
	if _, err := s.PutFile(ctx, key, from, "video/mp4"); err != nil {
		t.Fatal(err)
	}
	object, err := s.Download(ctx, key, to, int64(len(content)))
	if err != nil || object.Size != int64(len(content)) || object.ContentType != "video/mp4" {
		t.Fatalf("%+v, %v", object, err)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	other := filepath.Join(dir, "other")
	object, err = s.Download(ctx, key, other, int64(len(content))-1)
	if !errors.Is(err, ErrTooLarge) || object.Size != int64(len(content)) || Transient(err) {
		t.Errorf("over the limit: %+v, %v", object, err)
	}
	if _, err := os.Stat(other); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused download left a file: %v", err)
	}
	if _, err := s.PutFile(ctx, key, dir, ""); err == nil {
		t.Error("a directory was stored")
	}
	if _, err := s.PutFile(ctx, key, filepath.Join(dir, "none"), ""); !errors.Is(err, os.ErrNotExist) || Transient(err) {
		t.Errorf("a missing file: %v", err)
	}
}

func contractMissing(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	key := prefix + "none"
	_, headErr := s.Head(ctx, key)
	_, _, getErr := s.Get(ctx, key)
	path := filepath.Join(t.TempDir(), "none")
	_, downloadErr := s.Download(ctx, key, path, 0)
	for _, err := range []error{headErr, getErr, downloadErr} {
		if !errors.Is(err, ErrNotFound) || Transient(err) {
			t.Errorf("%v is not ErrNotFound", err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a failed download left a file: %v", err)
	}
	if err := s.Delete(ctx, key); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := s.Delete(ctx, key, key+"2"); err != nil {
		t.Errorf("delete two: %v", err)
	}
	if err := s.Delete(ctx); err != nil {
		t.Errorf("delete nothing: %v", err)
	}
}

func contractReplace(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	key := prefix + "key"
	for i, text := range []string{"first", "the second", ""} {
		if _, err := s.Put(ctx, key, strings.NewReader(text), int64(len(text)), ""); err != nil {
			t.Fatal(err)
		}
		if object, err := s.Head(ctx, key); err != nil || object.Size != int64(len(text)) {
			t.Errorf("%d: %+v, %v", i, object, err)
		}
	}
}

func contractBrokenBodies(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	key := prefix + "key"
	small, large := randomBytes(t, 1000), randomBytes(t, partSize+inlineMax)
	broken := errors.New("the client hung up")
	canceled, cancel := context.WithCancel(ctx)
	for name, test := range map[string]struct {
		body io.Reader
		size int64
		want error
	}{
		"small, unknown, fails":    {failingReader(small, broken), -1, broken},
		"medium, unknown, fails":   {failingReader(large[:partSize], broken), -1, broken},
		"large, unknown, fails":    {failingReader(large, broken), -1, broken},
		"small, unknown, cut off":  {failingReader(small, io.ErrUnexpectedEOF), -1, io.ErrUnexpectedEOF},
		"large, unknown, cut off":  {failingReader(large, io.ErrUnexpectedEOF), -1, io.ErrUnexpectedEOF},
		"large, unknown, canceled": {io.MultiReader(bytes.NewReader(large), cancelReader{cancel}, bytes.NewReader(large)), -1, context.Canceled},
		"known, fails":             {failingReader(small, broken), 2000, broken},
		"known, too short":         {plainReader{bytes.NewReader(small)}, 1001, errBodySize},
		"known, too long":          {plainReader{bytes.NewReader(small)}, 999, errBodySize},
		"seekable, too short":      {bytes.NewReader(small), 1001, errBodySize},
		"seekable, too long":       {bytes.NewReader(small), 999, errBodySize},
		"empty, too long":          {bytes.NewReader(small), 0, errBodySize},
	} {
		use := ctx
		if errors.Is(test.want, context.Canceled) {
			use = canceled
		}
		if _, err := s.Put(use, key, test.body, test.size, ""); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
		if object, err := s.Head(ctx, key); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: stored all the same: %+v, %v", name, object, err)
		}
	}
}

// cancelReader cancels the transfer in the middle.
type cancelReader struct{ cancel context.CancelFunc }

func (r cancelReader) Read([]byte) (int, error) { r.cancel(); return 0, io.EOF }

func contractList(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	// In byte order: a file beside the directory of the same name, and characters around the slash.
	keys := []string{"a", "a!b", "a-b", "a/b", "a/b/c", "a/c", "a0", "b", "b/1.jpg", "ä"}
	for _, key := range keys {
		if _, err := s.Put(ctx, prefix+key, strings.NewReader(key), int64(len(key)), ""); err != nil {
			t.Fatal(err)
		}
	}
	list := func(under, after string, limit int) string {
		t.Helper()
		objects, err := s.List(ctx, prefix+under, after, limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, object := range objects {
			key := strings.TrimPrefix(object.Key, prefix)
			if object.Size != int64(len(key)) || object.ETag == "" || object.Modified.IsZero() {
				t.Errorf("%+v", object)
			}
			got = append(got, key)
		}
		return strings.Join(got, " ")
	}
	for _, test := range []struct {
		under, after string
		limit        int
		want         string
	}{
		{"", "", 100, strings.Join(keys, " ")},
		{"", "", 3, "a a!b a-b"},
		{"", prefix + "a-b", 3, "a/b a/b/c a/c"},
		{"", prefix + "a/b/b", 2, "a/b/c a/c"},
		{"", prefix + "zzzz", 2, "ä"},
		{"", prefix + "\U0010FFFF", 2, ""},
		{"a/", "", 100, "a/b a/b/c a/c"},
		{"a/b", "", 100, "a/b a/b/c"},
		{"b", prefix + "b", 100, "b/1.jpg"},
		{"nothing", "", 100, ""},
	} {
		if got := list(test.under, test.after, test.limit); got != test.want {
			t.Errorf("under %q after %q: %q, want %q", test.under, test.after, got, test.want)
		}
	}
	if _, err := s.List(ctx, prefix, "", 0); err == nil {
		t.Error("a limit of 0 was taken")
	}
}

func contractDelete(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	const count = pageMax + 5 // two pages
	keys := make([]string, count)
	var wait sync.WaitGroup
	faults := make(chan error, count)
	slots := make(chan struct{}, 8)
	for i := range keys {
		keys[i] = fmt.Sprintf("%s%02d/%05d", prefix, i%7, i)
		slots <- struct{}{}
		wait.Go(func() {
			_, err := s.Put(ctx, keys[i], strings.NewReader("x"), 1, "")
			faults <- err
			<-slots
		})
	}
	wait.Wait()
	close(faults)
	for err := range faults {
		if err != nil {
			t.Fatal(err)
		}
	}
	objects, err := s.List(ctx, prefix, "", count+10)
	if err != nil || len(objects) != count {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	for i := 1; i < len(objects); i++ {
		if objects[i-1].Key >= objects[i].Key {
			t.Fatalf("%s before %s", objects[i-1].Key, objects[i].Key)
		}
	}
	kept := keys[17]
	if err := s.Delete(ctx, append(keys[:17:17], keys[18:]...)...); err != nil {
		t.Fatal(err)
	}
	if objects, err = s.List(ctx, prefix, "", 10); err != nil || len(objects) != 1 || objects[0].Key != kept {
		t.Errorf("%+v, %v", objects, err)
	}
	if err := s.Delete(ctx, kept); err != nil {
		t.Fatal(err)
	}
}

func contractKeys(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	for _, key := range []string{
		SourceKey("job_0123456789abcdef"), UploadKey("upl_1", "mp4"), ResultKey("job_1", 12, "jpg"),
		"with space", "plus+and&amp=;?#", "percent%2Fslash", "tilde~quote'\"<>", "ünï/ελ/😀", "-leading", ".hidden", "..dots/...",
		strings.Repeat("l", 300), strings.Repeat("m/", 100) + "n", strings.Repeat("%", 128),
		strings.Repeat("x", keySizeMax-len(prefix)),
	} {
		if _, err := s.Put(ctx, prefix+key, strings.NewReader(key), int64(len(key)), ""); err != nil {
			t.Errorf("put %q: %v", key, err)
			continue
		}
		body, _, err := s.Get(ctx, prefix+key)
		if err != nil {
			t.Errorf("get %q: %v", key, err)
			continue
		}
		got, err := io.ReadAll(body)
		if err := errors.Join(err, body.Close()); err != nil || string(got) != key {
			t.Errorf("%q: %q, %v", key, got, err)
		}
		objects, err := s.List(ctx, prefix+key, "", 1)
		if err != nil || len(objects) != 1 || objects[0].Key != prefix+key {
			t.Errorf("list %q: %+v, %v", key, objects, err)
		}
	}
	for _, key := range []string{"", "a//b", "/a", "a/", "../a", "a/../b", "./a", "a\nb", "a\x00b", "\xff", strings.Repeat("x", keySizeMax+1)} {
		if _, err := s.Put(ctx, key, strings.NewReader("x"), 1, ""); err == nil || Transient(err) {
			t.Errorf("put %q: %v", key, err)
		}
		if _, err := s.PresignGet(ctx, key, time.Hour, ""); err == nil {
			t.Errorf("presigned %q", key)
		}
	}
}

func contractPresign(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	key, text := prefix+"clip.mp4", "0123456789abcdef"
	put, err := s.PresignPut(ctx, key, time.Hour, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	answer, page := send(t, http.MethodPut, put, strings.NewReader(text), func(r *http.Request) {
		r.Header.Set("Content-Type", "video/mp4")
	})
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("put: %d %s", answer.StatusCode, page)
	}
	get, err := s.PresignGet(ctx, key, time.Hour, "mein \"Clip\" ä.mp4")
	if err != nil {
		t.Fatal(err)
	}
	answer, page = send(t, http.MethodGet, get, nil, nil)
	want := `inline; filename="mein _Clip_ _.mp4"; filename*=UTF-8''mein%20%22Clip%22%20%C3%A4.mp4`
	if answer.StatusCode != http.StatusOK || string(page) != text || answer.Header.Get("Content-Disposition") != want ||
		answer.Header.Get("Content-Type") != "video/mp4" {
		t.Errorf("get: %d %q %v", answer.StatusCode, page, answer.Header)
	}
	answer, page = send(t, http.MethodGet, get, nil, func(r *http.Request) { r.Header.Set("Range", "bytes=3-5") })
	if answer.StatusCode != http.StatusPartialContent || string(page) != "345" || answer.Header.Get("Content-Range") != "bytes 3-5/16" {
		t.Errorf("range: %d %q %v", answer.StatusCode, page, answer.Header)
	}
	for name, url := range map[string]string{"put with a get URL": get, "other key": strings.Replace(put, "clip.mp4", "clap.mp4", 1)} {
		if answer, _ := send(t, http.MethodPut, url, strings.NewReader(text), nil); answer.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %d", name, answer.StatusCode)
		}
	}
	sized, err := s.PresignPut(ctx, prefix+"sized", time.Hour, "", int64(len(text)))
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{text + "!", text[1:], ""} {
		if answer, _ := send(t, http.MethodPut, sized, strings.NewReader(body), nil); answer.StatusCode != http.StatusForbidden {
			t.Errorf("%d bytes instead of %d: %d", len(body), len(text), answer.StatusCode)
		}
	}
	if _, err := s.Head(ctx, prefix+"sized"); !errors.Is(err, ErrNotFound) {
		t.Errorf("a body of the wrong size was stored: %v", err)
	}
	if answer, page := send(t, http.MethodPut, sized, strings.NewReader(text), nil); answer.StatusCode != http.StatusOK {
		t.Errorf("the right size: %d %s", answer.StatusCode, page)
	}
	for _, ttl := range []time.Duration{0, -time.Second, 8 * 24 * time.Hour} {
		if _, err := s.PresignGet(ctx, key, ttl, ""); err == nil {
			t.Errorf("presigned for %v", ttl)
		}
	}
}

// contractConcurrent lets writers, readers and deleters fight over few keys: a reader sees one writer's whole text or
// nothing.
func contractConcurrent(t *testing.T, s *Store, prefix string) {
	ctx := testContext(t)
	var wait sync.WaitGroup
	for worker := range 6 {
		wait.Go(func() {
			for i := range 40 {
				key := fmt.Sprintf("%s%d/deep/key", prefix, i%3)
				switch worker % 3 {
				case 0:
					text := strings.Repeat(string(rune('a'+i%26)), 10_000+i)
					if _, err := s.Put(ctx, key, strings.NewReader(text), int64(len(text)), ""); err != nil {
						t.Errorf("put: %v", err)
					}
				case 1:
					body, object, err := s.Get(ctx, key)
					if errors.Is(err, ErrNotFound) {
						continue
					}
					if err != nil {
						t.Errorf("get: %v", err)
						continue
					}
					text, err := io.ReadAll(body)
					_ = body.Close()
					if err != nil || int64(len(text)) != object.Size || strings.Trim(string(text), string(text[:1])) != "" {
						t.Errorf("torn object: %d bytes of %d, %v", len(text), object.Size, err)
					}
				default:
					if err := s.Delete(ctx, key); err != nil {
						t.Errorf("delete: %v", err)
					}
				}
			}
		})
	}
	wait.Wait()
}
