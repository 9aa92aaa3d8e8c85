package api_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"enlarger/engine"
)

// fuzzRig is one API for all inputs of a fuzz target, with an account that may do anything.
func fuzzRig(f *testing.F) *rig {
	r := embedded(f, nil)
	must(f, r.ledger.Grant(r.ctx, r.account.ID, 1_000_000_000, "", ""))
	return r
}

// answerTime is far above what any small request needs, and far below a hang.
const answerTime = 20 * time.Second

var statusWithoutBody = regexp.MustCompile(`^(204|302|304)$`)

// sound checks what must hold for every answer whatever was asked: no 5xx, in time, and the envelope around every refusal.
func sound(t *testing.T, method string, resp response, took time.Duration) {
	t.Helper()
	if resp.StatusCode >= 500 || took > answerTime {
		t.Fatalf("%d after %v: %s", resp.StatusCode, took, resp.text)
	}
	id := resp.Header.Get("X-Request-Id")
	if !strings.HasPrefix(id, "req_") {
		t.Errorf("%d without a request id: %v %s", resp.StatusCode, resp.Header, resp.text)
	}
	if method == http.MethodHead || statusWithoutBody.MatchString(fmt.Sprint(resp.StatusCode)) {
		return
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") && resp.StatusCode == http.StatusOK {
		return // the reference page
	}
	if !json.Valid(resp.text) || resp.json == nil {
		t.Fatalf("%d: no JSON object: %q", resp.StatusCode, resp.text)
	}
	if resp.StatusCode < 400 {
		return
	}
	var envelope struct {
		Error struct {
			Code      string `json:"code"`
			Message   string `json:"message"`
			Type      string `json:"type"`
			Param     string `json:"param"`
			RequestID string `json:"request_id"`
		} `json:"error"`
	}
	decoder := json.NewDecoder(bytes.NewReader(resp.text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&envelope); err != nil || envelope.Error.Code == "" || envelope.Error.Message == "" || envelope.Error.RequestID != id {
		t.Fatalf("%d: %v in %s", resp.StatusCode, err, resp.text)
	}
}

// ask sends one input and checks the answer.
func (r *rig) ask(t *testing.T, method, path string, body []byte, headers ...string) {
	t.Helper()
	started := time.Now()
	resp, err := r.try(method, path, bytes.NewReader(body), headers...)
	if err != nil {
		if strings.Contains(err.Error(), "invalid") || strings.Contains(err.Error(), "parse") {
			t.Skip("this end's own HTTP client refuses it")
		}
		t.Fatal(err)
	}
	sound(t, method, resp, time.Since(started))
}

func FuzzCreateJSON(f *testing.F) {
	r := fuzzRig(f)
	for _, seed := range []string{
		`{"tool":"upscale","image_url":"https://example.com/a.jpg","config":{"scale":4,"face_enhance":true},"output_format":"jpg"}`,
		`{"tool":"video_upscale","source_url":"https://example.com/a","config":{"scale":2,"fps":29.97,"source_width":1920,"source_height":1080,"duration":12.5},"metadata":{"k":"v"}}`,
		`{"tool":"video_upscale","upload_id":"upl_00000000000000000000000000000000"}`, `{"tool":"custom","image_url":"http://[::1]/","config":"{\"prompt\":\"x\"}"}`,
		`{"tool":"cartoonize","image_url":"http://127.0.0.1:80/","config":{"style":"oil"}}`, `{"tool":5}`, `{"tool":null}`, `{}`, ``, `null`, `[]`, `"`, `{"tool":"upscale","tool":"x"}`,
		`{"tool":"upscale","image_url":"https://example.com/","config":{"scale":1e309}}`, `{"tool":"upscale","config":{"scale":99999999999999999999999999}}`,
		`{"metadata":{"a":{"b":{"c":[]}}}}`, `{"tool":"\u0000\ud800\uffff"}`, "{\"tool\":\"\xff\xfe\"}", strings.Repeat(`{"config":`, 500), strings.Repeat("[", 12000), `{"tool":"upscale","image_url":"https://é.example/\u202e"}`,
		`{"tool":"upscale","image_url":"https://example.com/","metadata":{"\u0001":"x"}}`, `{"config":"\"\\\"\""}`, `{"image":"x"}`, "\xef\xbb\xbf{}", `{"tool":"upscale"}{}`,
	} {
		f.Add([]byte(seed), "application/json", "")
	}
	f.Add([]byte(`{}`), "application/json; charset=utf-16", "key")
	f.Add([]byte(`a=b`), "application/x-www-form-urlencoded", strings.Repeat("k", 300))
	f.Add([]byte(`{}`), "multipart/form-data; boundary=", "\u00e9")
	f.Fuzz(func(t *testing.T, body []byte, kind, key string) {
		r.ask(t, "POST", "/api/v1/jobs", body, "Content-Type", kind, "Idempotency-Key", key)
	})
}

func FuzzCreateForm(f *testing.F) {
	r := fuzzRig(f)
	seed := func(fields ...field) {
		kind, body := formBody(fields...)
		_, params, _ := strings.Cut(kind, "boundary=")
		f.Add(body, params)
	}
	seed(file("image", png(100, 100)), text("tool", "upscale"), text("config", `{"scale":4}`), text("output_format", "png"))
	seed(text("tool", "video_upscale"), file("file", png(1, 1)))
	seed(file("image", png(1<<31, 1<<31)), text("tool", "upscale"), text("metadata", `{"a":"b"}`))
	seed(file("image", nil), text("tool", "upscale"))
	seed(file("image", []byte("\xff\xd8\xff\xe0\x00\x10JFIF")), text("tool", "upscale"))
	seed(file("image", []byte("GIF89a\xff\xff\xff\xff")), text("tool", "sharpen"))
	seed(file("image", []byte("RIFF\xff\xff\xff\xffWEBPVP8X")), text("tool", "sharpen"))
	seed(text("image_url", "https://example.com/"), text("tool", "upscale"), text("tool", "upscale"))
	seed(text("", ""), text("\"; filename=\"x", "y"))
	seed()
	f.Add([]byte("--x\r\n\r\n\r\n--x--"), "x")
	f.Add([]byte("--x\r\nContent-Disposition: form-data; name=\"image\"; filename=\"\\\"\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=89PNG=0D\r\n--x--"), "x")
	f.Add([]byte("--x\r\n"+strings.Repeat("A: b\r\n", 2000)+"\r\n\r\n--x--"), "x")
	f.Add([]byte("preamble"), "x")
	f.Add([]byte{}, "")
	f.Fuzz(func(t *testing.T, body []byte, boundary string) {
		r.ask(t, "POST", "/api/v1/jobs", body, "Content-Type", "multipart/form-data; boundary="+boundary)
	})
}

// FuzzFile sends any bytes as a well-formed form's image.
func FuzzFile(f *testing.F) {
	r := fuzzRig(f)
	for _, seed := range [][]byte{
		png(10, 10), png(0, 0), nil, []byte("\xff\xd8\xff\xdb"), []byte("II*\x00\x08\x00\x00\x00\xff\xff"), []byte("MM\x00*\x00\x00\x00\x08"), []byte("BM\x00\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28"),
		[]byte("\x00\x00\x00\x20ftypavif"), []byte("RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f"), []byte("GIF87a"), []byte("https://example.com/a.jpg"),
	} {
		f.Add(seed, "upscale", `{"scale":2}`, true)
		f.Add(seed, "video_hdr", `{}`, false)
	}
	f.Fuzz(func(t *testing.T, content []byte, tool, config string, fileFirst bool) {
		fields := []field{text("tool", tool), text("config", config), file("image", content)}
		if fileFirst {
			fields[0], fields[2] = fields[2], fields[0]
		}
		kind, body := formBody(fields...)
		r.ask(t, "POST", "/api/v1/jobs", body, "Content-Type", kind)
	})
}

func FuzzUpload(f *testing.F) {
	r := fuzzRig(f)
	for _, seed := range []string{
		`{"file_name":"clip.mp4","file_size":734003200,"content_type":"video/mp4"}`, `{"file_name":"../../etc/passwd.mp4"}`, `{"file_name":"\u0000.mp4","file_size":-1}`, `{"file_size":1e999}`,
		`{"file_name":"a.mp4","file_size":5261334938}`, `{"file_name":"a.mp4","content_type":"video/\u0000"}`, `{"file_name":".mp4"}`, `{"file_name":"a.mp4","file_size":0.1}`, `[]`, ``, `{"file_name":"\u202e4pm.a.mp4"}`,
	} {
		f.Add([]byte(seed), "")
	}
	f.Fuzz(func(t *testing.T, body []byte, key string) {
		r.ask(t, "POST", "/api/v1/uploads", body, "Content-Type", "application/json", "Idempotency-Key", key)
	})
}

// FuzzAddress asks for any method, path and query, on an account with jobs in every state.
func FuzzAddress(f *testing.F) {
	r := fuzzRig(f)
	queued, done, broken := r.queued("upscale"), r.queued("video_upscale"), r.queued("upscale")
	r.succeeded(done, "x", engine.Output{Width: 1, Height: 1, Size: 1})
	r.failed(broken, engine.SSRFBlocked)
	for _, id := range []string{queued, done, broken, "job_00000000000000000000000000000000", "job_%00", "..", "%2e%2e", "%ff", "job_" + strings.Repeat("0", 32) + "%0a"} {
		f.Add("GET", "/api/v1/jobs/"+id, "")
		f.Add("HEAD", "/api/v1/jobs/"+id+"/result", "x=%zz")
		f.Add("POST", "/api/v1/jobs/"+id+"/cancel", "a;b")
		f.Add("DELETE", "/api/v1/jobs/"+id, "a=b")
	}
	for _, query := range []string{
		"limit=99&status=queued", "cursor=MTIzLmpvYl8wMDAw", "metadata[a]=b&metadata[\"]=\\", "created_after=0000-01-01T00:00:00Z", "created_after=9999-12-31T23:59:59Z", "tool=%00", "limit=99999999999999999999",
		"metadata[k]=%F0%9F%92%A9", strings.Repeat("a=b&", 100), "created_before=292277026596-12-04T15:30:07Z", "%=%&=&;",
	} {
		f.Add("GET", "/api/v1/jobs", query)
		f.Add("GET", "/api/v1/credits/ledger", query)
	}
	for _, path := range []string{"/", "//", "/api/v1/openapi.json", "/api/v1/docs", "/api/v1/tools", "/readyz", "/healthz", "/api/v1/../v1/jobs", "/api/v1/jobs/", "*"} {
		f.Add("OPTIONS", path, "")
		f.Add("TRACE", path, "")
	}
	f.Fuzz(func(t *testing.T, method, path, query string) {
		if !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "/media/") || strings.ContainsFunc(path+query, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
			t.Skip("another handler's, or no HTTP")
		}
		r.ask(t, method, path+"?"+query, nil)
	})
}

// FuzzHeaders writes a request's headers byte by byte, past what an HTTP client would send. What net/http itself refuses as no HTTP at all is
// answered by it, in plain text.
func FuzzHeaders(f *testing.F) {
	r := fuzzRig(f)
	for _, seed := range []string{
		"Authorization: Bearer x", "Authorization: " + "Bearer \x00", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: -1", "Content-Length: 99999999999999999999", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip",
		"Transfer-Encoding: chunked\r\nContent-Length: 3", "Expect: 100-continue\r\nContent-Length: 10", "Expect: nonsense", "X-Forwarded-For: ,,,", "Idempotency-Key:  ", "Idempotency-Key: \xff", "Content-Type: ;;;", "Content-Type: multipart/form-data; boundary=\"\"",
		"Range: bytes=0-", "Accept: application/xml", "Accept-Encoding: gzip;q=0", "Connection: upgrade\r\nUpgrade: h2c", "Host: other", "A: " + strings.Repeat("x", 40_000), "\r\n", ": empty", "Bad Name: x", "Cookie: " + strings.Repeat("a=b;", 500),
	} {
		f.Add("GET", "/api/v1/credits", []byte(seed), []byte(""))
		f.Add("POST", "/api/v1/jobs", []byte(seed), []byte(`{"tool":"upscale","image_url":"https://example.com/a"}`))
	}
	address := strings.TrimPrefix(r.base, "http://")
	f.Fuzz(func(t *testing.T, method, path string, headers, body []byte) {
		if strings.ContainsAny(method+path, " \r\n") || path == "" || method == "" || method == "CONNECT" || strings.HasPrefix(path, "/media/") {
			t.Skip("another request line")
		}
		conn, err := net.Dial("tcp", address)
		must(t, err)
		defer conn.Close()
		started := time.Now()
		must(t, conn.SetDeadline(started.Add(answerTime+10*time.Second)))
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n%s", method, path, r.secret, headers, body)
		conn.(*net.TCPConn).CloseWrite()
		answer, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatalf("no answer after %v", time.Since(started))
		}
		if err != nil {
			return // a closed connection is an answer to what is no HTTP
		}
		defer answer.Body.Close()
		if answer.StatusCode == http.StatusContinue {
			return
		}
		text, _ := io.ReadAll(answer.Body)
		resp := response{Response: answer, text: text}
		json.Unmarshal(text, &resp.json)
		if strings.HasPrefix(answer.Header.Get("Content-Type"), "text/plain") && answer.Header.Get("X-Request-Id") == "" {
			if answer.StatusCode >= 500 && answer.StatusCode != http.StatusNotImplemented && answer.StatusCode != http.StatusHTTPVersionNotSupported {
				t.Fatalf("%d %s", answer.StatusCode, text)
			}
			return
		}
		if answer.StatusCode == http.StatusExpectationFailed {
			return // net/http's own
		}
		sound(t, method, resp, time.Since(started))
	})
}
