package api_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"enlarger/api"
	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// promise is one sentence of the API document and the proof that it is kept. With a status code the proof is the response.
type promise struct {
	quote string
	prove func(r *rig)
}

// TestDocument walks the API document section by section.
func TestDocument(t *testing.T) {
	t.Parallel()
	sections := []struct {
		name     string
		promises []promise
	}{
		{"introduction", introduction()},
		{"authentication", authentication()},
		{"quickstart", quickstart()},
		{"lifecycle", lifecycle()},
		{"upload a video", uploadVideo()},
		{"create a job", createJob()},
		{"retrieve a job", retrieveJob()},
		{"get the result", getResult()},
		{"cancel and delete", cancelAndDelete()},
		{"tools", toolPromises()},
		{"credits", creditPromises()},
		{"limits", limitPromises()},
		{"errors", errorPromises()},
		{"keys", keyPromises()},
	}
	text := theDocument(t)
	each(t, func(r *rig) {
		for _, section := range sections {
			for i, p := range section.promises {
				t, ok := r.TB.(*testing.T)
				if !ok {
					r.Fatal("not a test")
				}
				t.Run(fmt.Sprintf("%s/%d", section.name, i), func(t *testing.T) {
					t.Log(p.quote)
					if text != "" && !strings.Contains(text, squeeze(p.quote)) {
						t.Errorf("the document does not say %q", p.quote)
					}
					defer r.clock(0)
					client := r.at(t).fresh(1000)
					p.prove(client)
				})
			}
		}
	})
}

// theDocument is the API document without its white space, which its text form has lost in places, so that quotes can be checked
// against it; "" where it is not at hand.
func theDocument(t *testing.T) string {
	dir, err := os.Getwd()
	must(t, err)
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if text, err := os.ReadFile(filepath.Join(dir, "shared", "spec", "vanceai-open-api.txt")); err == nil {
			return squeeze(string(text))
		}
	}
	t.Log("shared/spec/vanceai-open-api.txt is not beside the checkout: the quotes are not compared with it")
	return ""
}

func squeeze(text string) string { return strings.Join(strings.Fields(text), "") }

func (r *rig) status(resp response, want int) response {
	r.Helper()
	if resp.StatusCode != want {
		r.Fatalf("got %d %s, want %d", resp.StatusCode, resp.text, want)
	}
	return resp
}

// has checks fields of a JSON object; a nil value must be there as null.
func (r *rig) has(got map[string]any, want map[string]any) {
	r.Helper()
	for name, value := range want {
		found, ok := got[name]
		if !ok || fmt.Sprint(found) != fmt.Sprint(value) {
			r.Errorf("%s is %v (there: %v), want %v", name, found, ok, value)
		}
	}
}

func keysOf(m map[string]any) string {
	keys := []string{}
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return strings.Join(keys, " ")
}

// endpoints are all endpoints of the document and ours, with a body that passes the parser.
func endpoints() [][3]string {
	const id = "job_00000000000000000000000000000000"
	return [][3]string{
		{"POST", "/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a.jpg"}`},
		{"GET", "/api/v1/jobs", ""},
		{"GET", "/api/v1/jobs/" + id, ""},
		{"GET", "/api/v1/jobs/" + id + "/result", ""},
		{"POST", "/api/v1/jobs/" + id + "/cancel", ""},
		{"DELETE", "/api/v1/jobs/" + id, ""},
		{"POST", "/api/v1/uploads", `{"file_name":"clip.mp4"}`},
		{"GET", "/api/v1/credits", ""},
		{"GET", "/api/v1/credits/ledger", ""},
		{"GET", "/api/v1/tools", ""},
	}
}

func introduction() []promise {
	return []promise{
		{"Every response is application/json.", func(r *rig) {
			for _, e := range append(endpoints(), [3]string{"GET", "/api/v1/nothing", ""}, [3]string{"PATCH", "/api/v1/jobs", ""}, [3]string{"GET", "/healthz", ""}) {
				resp := r.send(e[0], e[1], strings.NewReader(e[2]))
				if kind := resp.Header.Get("Content-Type"); kind != "application/json" || resp.json == nil {
					r.Errorf("%s %s: %q %s", e[0], e[1], kind, resp.text)
				}
			}
		}},
		{"All requests must be authenticated with an API key.", func(r *rig) {
			for _, e := range endpoints() {
				r.refused(r.send(e[0], e[1], strings.NewReader(e[2]), "Authorization", ""), 401, "invalid_api_key", "auth", "")
			}
		}},
		{"POST /v1/jobs → returns a job_id immediately (status: \"queued\")", func(r *rig) {
			resp := r.status(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a.jpg"}`), 202)
			r.has(resp.json, map[string]any{"status": "queued"})
			id := resp.json["job_id"].(string)
			if !regexp.MustCompile(`^job_[0-9a-f]{32}$`).MatchString(id) {
				r.Errorf("job_id %q", id)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if !slices.Contains(r.dispatched, id+" image 1") {
				r.Errorf("dispatched %v, want %s", r.dispatched, id)
			}
		}},
		{"A POST never blocks while uploading or processing.", func(r *rig) {
			r.dispatchFn = func() error { return fmt.Errorf("Redis is away") }
			defer func() { r.dispatchFn = nil }()
			r.status(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/never-fetched-here.jpg"}`), 202)
		}},
		{"Webhook callbacks are planned for v1.1.", func(r *rig) {
			resp := r.status(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a.jpg","callback":"x"}`), 202)
			if w := fmt.Sprint(resp.json["warnings"]); !strings.Contains(w, "callback") {
				r.Errorf("warnings %s do not name the parameter that was ignored", w)
			}
		}},
	}
}

func authentication() []promise {
	return []promise{
		{"Keys look like this and always start with the sk_live_ prefix:", func(r *rig) {
			if !regexp.MustCompile(`^sk_live_[a-z0-9]{32}$`).MatchString(r.secret) {
				r.Errorf("secret of %d characters", len(r.secret))
			}
		}},
		{"Send your key in the Authorization header as a bearer token on every request:", func(r *rig) {
			for _, form := range []string{"Bearer " + r.secret, "bearer " + r.secret, "BEARER  " + r.secret} {
				r.status(r.send("GET", "/api/v1/credits", nil, "Authorization", form), 200)
			}
		}},
		{"A missing, malformed, or revoked key returns 401 with a stable error code:", func(r *rig) {
			gone, secret, err := r.accounts.CreateKey(r.ctx, r.account.ID, "old")
			must(r, err)
			r.status(r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer "+secret), 200)
			_, err = r.accounts.RevokeKey(r.ctx, r.account.ID, gone.ID)
			must(r, err)
			typo := r.secret[:len(r.secret)-1] + string("ab"[btoi(r.secret[len(r.secret)-1] == 'a')])
			for _, header := range []string{
				"", "Bearer", "Bearer ", "Basic " + r.secret, r.secret, "Bearer " + r.secret + "x", "Bearer " + typo, "Bearer " + secret, "Bearer sk_live_", "Bearer \x7f",
				"Bearer " + strings.Repeat("a", 8000), "Bearer sk_test_" + r.secret[8:], "Bearer " + r.secret + " " + r.secret,
			} {
				resp, err := r.try("GET", "/api/v1/credits", nil, "Authorization", header)
				if err != nil {
					continue // refused by this end's own HTTP client
				}
				r.refused(resp, 401, "invalid_api_key", "auth", "")
				if m := resp.json["error"].(map[string]any)["message"]; m != "The API key provided is invalid or has been disabled." {
					r.Errorf("message %q", m)
				}
				if resp.Header.Get("WWW-Authenticate") == "" {
					r.Error("no WWW-Authenticate")
				}
			}
		}},
		{"If you lose it, revoke the key and create a new one.", func(r *rig) {
			req, err := http.NewRequest(http.MethodGet, r.base+"/api/v1/credits", nil)
			must(r, err)
			req.Header["Authorization"] = []string{"Bearer " + r.secret, "Bearer " + r.secret}
			resp, err := r.client.Do(req)
			must(r, err)
			resp.Body.Close()
			if resp.StatusCode != http.StatusUnauthorized {
				r.Errorf("two Authorization headers: %d", resp.StatusCode)
			}
		}},
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func quickstart() []promise {
	accepted := func(r *rig, resp response) {
		r.Helper()
		r.status(resp, 202)
		r.has(resp.json, map[string]any{"status": "queued", "tool": "upscale", "media": "image", "credits_charged": 0})
		if !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`).MatchString(fmt.Sprint(resp.json["created_at"])) {
			r.Errorf("created_at %v", resp.json["created_at"])
		}
	}
	return []promise{
		{"Send the image as multipart form data, along with the tool and its config.", func(r *rig) {
			resp := r.postForm("/api/v1/jobs", file("image", png(1000, 750)), text("tool", "upscale"), text("config", `{"scale":4,"face_enhance":true}`), text("output_format", "jpg"))
			accepted(r, resp)
			if !bytes.Contains(resp.text, []byte(`"credits_estimated":1.0,`)) {
				r.Errorf("credits_estimated: %s", resp.text)
			}
		}},
		{"You can upload a file directly (up to 200 MB) or pass a public image_url instead.", func(r *rig) {
			accepted(r, r.postJSON("/api/v1/jobs", `{
				"image_url": "https://example.com/photo.jpg",
				"tool": "upscale",
				"config": { "scale": 4, "face_enhance": true },
				"output_format": "jpg"
			}`))
		}},
		{"The response returns immediately with a job_id and a queued status:", func(r *rig) {
			resp := r.postForm("/api/v1/jobs", file("image", png(1000, 750)), text("tool", "upscale"))
			if got := keysOf(resp.json); got != "created_at credits_charged credits_estimated job_id media metadata status tool warnings" {
				r.Errorf("keys %s", got)
			}
		}},
		{"Poll GET /v1/jobs/{job_id} until status becomes succeeded (or failed). For images, polling every ~2 seconds is plenty.", func(r *rig) {
			id := r.queued("upscale")
			if after := r.get("/api/v1/jobs/" + id).Header.Get("Retry-After"); after != "2" {
				r.Errorf("Retry-After %q while queued", after)
			}
			r.succeeded(id, "a result", engine.Output{Width: 4000, Height: 3000, Size: 2451234})
			resp := r.status(r.get("/api/v1/jobs/"+id), 200)
			r.has(resp.json, map[string]any{"job_id": id, "status": "succeeded", "progress": 100, "tool": "upscale", "error": nil, "phase": nil})
			r.has(resp.json["result"].(map[string]any), map[string]any{"width": 4000, "height": 3000, "size": 2451234.0})
			if resp.Header.Get("Retry-After") != "" {
				r.Error("Retry-After on a terminal job")
			}
		}},
		{"The result_url from step 2 is a signed link that eventually expires.", func(r *rig) {
			id := r.queued("upscale")
			r.succeeded(id, "a result", engine.Output{Width: 4, Height: 3, Size: 8})
			link := mustParse(r, r.get("/api/v1/jobs/" + id).json["result_url"].(string))
			if link.Query().Get("X-Amz-Expires") != "86400" {
				r.Errorf("expires in %s s", link.Query().Get("X-Amz-Expires"))
			}
			got := r.status(r.send("GET", link.String(), nil, "Authorization", ""), 200)
			if string(got.text) != "a result" {
				r.Errorf("result %q", got.text)
			}
		}},
		{"For a link that never expires, call the result endpoint, which re-signs on demand:", func(r *rig) {
			id := r.queued("upscale")
			r.succeeded(id, "a result", engine.Output{Width: 4, Height: 3, Size: 8})
			follow := &http.Client{Transport: carrying{r.client.Transport, "Bearer " + r.secret}}
			resp, err := follow.Get(r.base + "/api/v1/jobs/" + id + "/result")
			must(r, err)
			defer resp.Body.Close()
			content, err := io.ReadAll(resp.Body)
			must(r, err)
			if resp.StatusCode != http.StatusOK || string(content) != "a result" {
				r.Errorf("curl -L gets %d %q", resp.StatusCode, content)
			}
		}},
	}
}

// carrying sends the key with every request, redirects included, as curl -L does on the same host.
type carrying struct {
	http.RoundTripper
	authorization string
}

func (c carrying) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", c.authorization)
	return c.RoundTripper.RoundTrip(req)
}

func lifecycle() []promise {
	return []promise{
		{"Accepted and waiting for a worker.", func(r *rig) {
			id := r.queued("upscale")
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"status": "queued", "phase": nil, "progress": 0, "finished_at": nil, "result": nil, "result_url": nil, "error": nil})
		}},
		{"While processing, the phase field narrows it down: uploading → syncing → processing.", func(r *rig) {
			id := r.queued("video_upscale")
			j := r.claimed(id)
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"status": "processing", "phase": "uploading", "progress": 0})
			must(r, r.jobs.SourceStored(r.ctx, id, j.Fence, 99))
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"status": "processing", "phase": "syncing", "progress": 0})
			_, err := r.jobs.Reserve(r.ctx, j, 5000)
			must(r, err)
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"status": "processing", "phase": "processing", "progress": 0})
			must(r, r.jobs.Heartbeat(r.ctx, id, j.Fence, job.PhaseProcessing, 42, lease))
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"status": "processing", "phase": "processing", "progress": 42})
		}},
		{"The numeric progress (0–100) is only meaningful once phase is processing; during upload/sync it stays 0.", func(r *rig) {
			id := r.queued("upscale")
			j := r.claimed(id)
			must(r, r.jobs.Heartbeat(r.ctx, id, j.Fence, job.PhaseUploading, 70, lease))
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"phase": "uploading", "progress": 0})
		}},
		{"Failed. error contains a stable code.", func(r *rig) {
			for _, c := range []engine.Code{
				engine.ProcessingFailed, engine.ProcessingTimeout, engine.FileTooLarge, engine.UnsupportedFormat, engine.SSRFBlocked, engine.InsufficientCredits,
				engine.UploadIncomplete, engine.ResolutionLimitExceeded,
			} {
				id := r.queued("upscale")
				r.failed(id, c)
				resp := r.status(r.get("/api/v1/jobs/"+id), 200)
				r.has(resp.json, map[string]any{"status": "failed", "phase": nil, "result": nil, "result_url": nil, "credits_charged": 0})
				e := resp.json["error"].(map[string]any)
				r.has(e, map[string]any{"code": c, "message": "What went wrong, in words."})
				if keysOf(e) != "code message type" || resp.json["finished_at"] == nil {
					r.Errorf("failed job: %s", resp.text)
				}
			}
		}},
		{"Canceled by you. Reserved credits are refunded.", func(r *rig) {
			id := r.queued("upscale")
			r.reserved(id, 7500)
			if b := r.balance(); b.Frozen != 7500 {
				r.Errorf("frozen %v", b.Frozen)
			}
			r.status(r.send("POST", "/api/v1/jobs/"+id+"/cancel", nil), 200)
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"status": "canceled", "phase": nil, "error": nil, "credits_charged": 0})
			if b := r.balance(); b.Frozen != 0 || b.Balance != 1000*billing.Credit {
				r.Errorf("after cancel: %+v", b)
			}
		}},
	}
}

func uploadVideo() []promise {
	create := func(r *rig, id string) response {
		r.Helper()
		return r.postJSON("/api/v1/jobs", `{"upload_id": "`+id+`", "tool": "video_upscale", "config": { "scale": 2, "codec": "h264" }}`)
	}
	upload := func(r *rig, body string) response {
		r.Helper()
		return r.status(r.postJSON("/api/v1/uploads", body), 201)
	}
	return []promise{
		{"Direct video multipart upload is not supported; source_url is still accepted as an alternative.", func(r *rig) {
			mp4 := []byte("\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2" + strings.Repeat("x", 500))
			for name, fields := range map[string][]field{
				"an image, tool first": {text("tool", "video_upscale"), file("image", png(10, 10))},
				"an image, file first": {file("image", png(10, 10)), text("tool", "video_upscale")},
				"a video, tool first":  {text("tool", "video_upscale"), file("image", mp4)},
				"a video, file first":  {file("image", mp4), text("config", "{}"), text("tool", "video_upscale")},
			} {
				resp := r.postForm("/api/v1/jobs", fields...)
				r.refused(resp, 400, "invalid_parameter", "validation", "image")
				if !bytes.Contains(resp.text, []byte("upload_id")) || !bytes.Contains(resp.text, []byte("source_url")) {
					r.Errorf("%s: %s does not name the right way", name, resp.text)
				}
			}
			r.status(r.postJSON("/api/v1/jobs", `{"source_url": "https://example.com/clip.mp4", "tool": "video_upscale"}`), 202)
		}},
		{"The file name, including a video extension (e.g. clip.mp4). Used to derive the storage key and content type.", func(r *rig) {
			for _, name := range []string{"clip.mp4", "CLIP.MOV", "a b.c.mkv", "клип.webm", "x.m2ts", `\u540d\u524d.avi`, strings.Repeat("a", 251) + ".mp4"} {
				upload(r, `{"file_name": "`+name+`"}`)
			}
			for _, body := range []string{
				`{}`, `{"file_name": ""}`, `{"file_name": null}`, `{"file_name": 5}`, `{"file_name": "clip"}`, `{"file_name": "photo.jpg"}`, `{"file_name": ".mp4"}`,
				`{"file_name": "../clip.mp4"}`, `{"file_name": "a\\b.mp4"}`, `{"file_name": "a\u0000.mp4"}`, `{"file_name": "a\n.mp4"}`, `{"file_name": "clip.mp4/"}`,
				`{"file_name": "` + strings.Repeat("a", 252) + `.mp4"}`, `{"file_name": ["clip.mp4"]}`, `{"file_name": "clip.mp4 "}`,
			} {
				r.refused(r.postJSON("/api/v1/uploads", body), 400, "invalid_parameter", "validation", "file_name")
			}
		}},
		{"When provided, the request fails fast if it exceeds the single-upload limit (max_bytes in the response, ~4.9 GB); the limit is enforced at upload time regardless.", func(r *rig) {
			r.refused(r.postJSON("/api/v1/uploads", `{"file_name": "clip.mp4", "file_size": 5261334938}`), 413, "file_too_large", "validation", "")
			r.refused(r.postJSON("/api/v1/uploads", `{"file_name": "clip.mp4", "file_size": 1e300}`), 413, "file_too_large", "validation", "")
			upload(r, `{"file_name": "clip.mp4", "file_size": 5261334937}`)
			upload(r, `{"file_name": "clip.mp4", "file_size": 734003200.0}`)
			upload(r, `{"file_name": "clip.mp4", "file_size": null}`)
			for _, size := range []string{"0", "-1", "1.5", `"734003200"`, "true", "[]", "{}", "1e400", "-0"} {
				r.refused(r.postJSON("/api/v1/uploads", `{"file_name": "clip.mp4", "file_size": `+size+`}`), 400, "invalid_parameter", "validation", "file_size")
			}
		}},
		{"Optional MIME type (e.g. video/mp4). Inferred from the extension when omitted.", func(r *rig) {
			upload(r, `{"file_name": "clip.mp4", "content_type": "video/mp4"}`)
			upload(r, `{"file_name": "clip.mp4", "content_type": "application/octet-stream"}`)
			for _, kind := range []string{`"image/png"`, `"video"`, `"video/"`, `5`, `"video/mp4; a"`, `"video/mp4\r\nX-Evil: 1"`, `"` + strings.Repeat("v", 300) + `"`} {
				r.refused(r.postJSON("/api/v1/uploads", `{"file_name": "clip.mp4", "content_type": `+kind+`}`), 400, "invalid_parameter", "validation", "content_type")
			}
		}},
		{"Response — 201 Created", func(r *rig) {
			resp := upload(r, `{"file_name": "clip.mp4", "file_size": 734003200, "content_type": "video/mp4"}`)
			if keysOf(resp.json) != "expires_at max_bytes put_url upload_id" || !bytes.Contains(resp.text, []byte(`"max_bytes":5261334937`)) {
				r.Errorf("%s", resp.text)
			}
			if !regexp.MustCompile(`^upl_[0-9a-f]{32}$`).MatchString(resp.json["upload_id"].(string)) {
				r.Errorf("upload_id %v", resp.json["upload_id"])
			}
		}},
		{"put_url is a presigned URL valid for 24 hours.", func(r *rig) {
			resp := upload(r, `{"file_name": "clip.mp4"}`)
			at, err := time.Parse("2006-01-02T15:04:05Z", resp.json["expires_at"].(string))
			must(r, err)
			if left := time.Until(at); left < 24*time.Hour-time.Minute || left > 24*time.Hour {
				r.Errorf("expires in %v", left)
			}
			if got := mustParse(r, resp.json["put_url"].(string)).Query().Get("X-Amz-Expires"); got != "86400" {
				r.Errorf("X-Amz-Expires %s", got)
			}
		}},
		{"Upload the raw bytes to it with a single PUT — no auth header, just the file:", func(r *rig) {
			clip := strings.Repeat("clip", 1000)
			for _, headers := range [][]string{{"Content-Type", "video/mp4"}, {}, {"Content-Type", "application/x-www-form-urlencoded"}} {
				resp := upload(r, fmt.Sprintf(`{"file_name": "clip.mp4", "file_size": %d, "content_type": "video/mp4"}`, len(clip)))
				link := resp.json["put_url"].(string)
				r.status(r.send("PUT", link, strings.NewReader(clip), append([]string{"Authorization", ""}, headers...)...), 200)
				o, err := r.storage.Head(r.ctx, storage.UploadKey(resp.json["upload_id"].(string), "mp4"))
				if err != nil || o.Size != int64(len(clip)) {
					r.Errorf("stored: %+v %v", o, err)
				}
			}
			resp := upload(r, `{"file_name": "clip.mp4", "file_size": 10}`)
			if wrong := r.send("PUT", resp.json["put_url"].(string), strings.NewReader(clip), "Authorization", ""); wrong.StatusCode < 400 {
				r.Errorf("a PUT of another size than declared: %d", wrong.StatusCode)
			}
		}},
		{"Once the PUT succeeds, create the job by passing the upload_id instead of a file", func(r *rig) {
			resp := create(r, upload(r, `{"file_name": "clip.mp4"}`).json["upload_id"].(string))
			r.status(resp, 202)
			r.has(resp.json, map[string]any{"status": "queued", "tool": "video_upscale", "media": "video", "credits_charged": 0})
			if !bytes.Contains(resp.text, []byte(`"credits_estimated":0,`)) {
				r.Errorf("estimate of a video of unknown size: %s", resp.text)
			}
		}},
		{"Each upload_id is single-use.", func(r *rig) {
			id := upload(r, `{"file_name": "clip.mp4"}`).json["upload_id"].(string)
			r.status(create(r, id), 202)
			r.refused(create(r, id), 409, "upload_already_consumed", "validation", "")
		}},
		{"Requesting an upload for a larger file returns 413 file_too_large.", func(r *rig) {
			r.refused(r.postJSON("/api/v1/uploads", `{"file_name": "clip.mp4", "file_size": 6000000000}`), 413, "file_too_large", "validation", "")
		}},
		{"The presigned URL expires after 24 hours; an unused upload_id then becomes upload_expired and you must request a new one.", func(r *rig) {
			r.clock(-24*time.Hour - time.Minute)
			id := upload(r, `{"file_name": "clip.mp4"}`).json["upload_id"].(string)
			r.clock(0)
			r.refused(create(r, id), 410, "upload_expired", "validation", "")
		}},
	}
}

func createJob() []promise {
	return []promise{
		{"Image only: binary upload (multipart). file is an accepted alias.", func(r *rig) {
			for _, name := range []string{"image", "file"} {
				for _, fields := range [][]field{
					{file(name, png(10, 10)), text("tool", "upscale"), text("config", `{"scale": 8}`)},
					{text("tool", "upscale"), file(name, png(10, 10)), text("config", `{"scale": 8}`)},
					{text("config", `{"scale": 8}`), text("tool", "upscale"), file(name, png(10, 10))},
				} {
					resp := r.status(r.postForm("/api/v1/jobs", fields...), 202)
					j, err := r.jobs.Get(r.ctx, r.account.ID, resp.json["job_id"].(string))
					must(r, err)
					if string(j.Config) != `{"scale":8,"face_enhance":false}` || j.Source.Kind != job.SourceInline || !j.Source.Ready || j.Source.Size != int64(len(png(10, 10))) {
						r.Errorf("job %+v", j)
					}
					content, _, err := r.storage.Get(r.ctx, j.Source.Object)
					must(r, err)
					got, err := io.ReadAll(content)
					content.Close()
					if err != nil || !bytes.Equal(got, png(10, 10)) {
						r.Errorf("stored %d bytes: %v", len(got), err)
					}
				}
			}
		}},
		{"Video only: the upload_id returned by POST /v1/uploads after you upload the file. Single-use.", func(r *rig) {
			r.refused(r.postJSON("/api/v1/jobs", `{"upload_id": "upl_00000000000000000000000000000000", "tool": "upscale"}`), 400, "invalid_parameter", "validation", "upload_id")
		}},
		{"A publicly reachable URL to fetch (image or video). Use instead of a file / upload_id. source_url is an accepted alias.", func(r *rig) {
			for _, name := range []string{"image_url", "source_url"} {
				for _, tool := range []string{"upscale", "video_upscale"} {
					resp := r.status(r.postJSON("/api/v1/jobs", `{"`+name+`": "https://example.com/x?a=1&b=2#c", "tool": "`+tool+`"}`), 202)
					j, err := r.jobs.Get(r.ctx, r.account.ID, resp.json["job_id"].(string))
					must(r, err)
					if j.Source.Kind != job.SourceURL || j.Source.URL != "https://example.com/x?a=1&b=2#c" || j.Source.Ready {
						r.Errorf("source %+v", j.Source)
					}
				}
				r.status(r.postForm("/api/v1/jobs", text("tool", "upscale"), text(name, "https://example.com/a.jpg")), 202)
			}
			const both = `"image_url": "https://example.com/a", "source_url": "https://example.com/a"`
			r.refused(r.postJSON("/api/v1/jobs", `{`+both+`, "tool": "upscale"}`), 400, "invalid_parameter", "validation", "source_url")
			r.refused(r.postForm("/api/v1/jobs", file("image", png(9, 9)), text("tool", "upscale"), text("image_url", "https://example.com/a")), 400, "invalid_parameter", "validation", "image_url")
			r.refused(r.postForm("/api/v1/jobs", file("image", png(9, 9)), file("file", png(9, 9)), text("tool", "upscale")), 400, "invalid_parameter", "validation", "file")
			r.refused(r.postJSON("/api/v1/jobs", `{"tool": "upscale"}`), 400, "invalid_parameter", "validation", "source")
			r.refused(r.postJSON("/api/v1/jobs", `{"tool": "video_upscale", "image_url": "", "upload_id": null}`), 400, "invalid_parameter", "validation", "source")
			if left := r.objects(); slices.ContainsFunc(left, func(key string) bool { return r.orphan(key) }) {
				r.Errorf("refused files were left behind: %v", left)
			}
		}},
		{"The operation, e.g. upscale or video_upscale. See Tools.", func(r *rig) {
			for _, body := range []string{`{"image_url": "https://example.com/a"}`, `{"tool": "", "image_url": "https://example.com/a"}`, `{"tool": null, "image_url": "https://example.com/a"}`, `{"tool": 5, "image_url": "https://example.com/a"}`} {
				r.refused(r.postJSON("/api/v1/jobs", body), 400, "invalid_parameter", "validation", "tool")
			}
			r.refused(r.postForm("/api/v1/jobs", file("image", png(9, 9))), 400, "invalid_parameter", "validation", "tool")
		}},
		{"Tool-specific options (image and video options differ). See Tools.", func(r *rig) {
			ok := func(config string) {
				r.status(r.postJSON("/api/v1/jobs", `{"image_url":"https://example.com/a","tool":"upscale","config":`+config+`}`), 202)
			}
			for _, config := range []string{`{}`, `null`, `{"scale":2}`, `{"scale":2.0}`, `{"scale":null}`, `"{\"scale\":8}"`, `""`} {
				ok(config)
			}
			for config, param := range map[string]string{
				`[]`: "config", `5`: "config", `"x"`: "config", `true`: "config", `"[1]"`: "config", `{"scale":"4"}`: "config.scale", `{"face_enhance":1}`: "config.face_enhance",
				`{"scale":1e999}`: "config.scale", `{"scale":[4]}`: "config.scale",
			} {
				r.refused(r.postJSON("/api/v1/jobs", `{"image_url":"https://example.com/a","tool":"upscale","config":`+config+`}`), 400, "invalid_parameter", "validation", param)
			}
			r.refused(r.postForm("/api/v1/jobs", file("image", png(9, 9)), text("tool", "upscale"), text("config", `{"scale":`)), 400, "invalid_parameter", "validation", "config")
		}},
		{"Image only: jpg (default), png, or webp. Ignored for video (use config.codec).", func(r *rig) {
			for asked, want := range map[string]string{`"jpg"`: "jpg", `"jpeg"`: "jpg", `"png"`: "png", `"webp"`: "webp", `null`: "jpg", `""`: "jpg"} {
				resp := r.status(r.postJSON("/api/v1/jobs", `{"image_url":"https://example.com/a","tool":"upscale","output_format":`+asked+`}`), 202)
				j, err := r.jobs.Get(r.ctx, r.account.ID, resp.json["job_id"].(string))
				must(r, err)
				if j.Format != want {
					r.Errorf("%s gives %s", asked, j.Format)
				}
			}
			for _, asked := range []string{`"gif"`, `"JPG"`, `"jpg "`, `5`, `["jpg"]`} {
				r.refused(r.postJSON("/api/v1/jobs", `{"image_url":"https://example.com/a","tool":"upscale","output_format":`+asked+`}`), 400, "invalid_parameter", "validation", "output_format")
			}
			resp := r.status(r.postJSON("/api/v1/jobs", `{"source_url":"https://example.com/a","tool":"video_upscale","output_format":"gif"}`), 202)
			if !strings.Contains(fmt.Sprint(resp.json["warnings"]), "output_format") {
				r.Errorf("warnings %v", resp.json["warnings"])
			}
		}},
		{"The response returns before any credits are charged (credits_charged is 0). credits_estimated is a pre-flight estimate; the authoritative charge appears once the job reaches processing.", func(r *rig) {
			resp := r.status(r.postForm("/api/v1/jobs", file("image", png(2000, 1500)), text("tool", "upscale"), text("config", `{"scale":4}`)), 202)
			r.has(resp.json, map[string]any{"credits_charged": 0, "credits_estimated": 2})
			id := resp.json["job_id"].(string)
			r.reserved(id, 2500)
			if resp := r.get("/api/v1/jobs/" + id); !bytes.Contains(resp.text, []byte(`"credits_charged":2.5,`)) {
				r.Errorf("while processing: %s", resp.text)
			}
		}},
		{"413 file_too_large — switch to source_url.", func(r *rig) {
			// Announced: refused without reading it. Not announced, it is refused when the limit is passed: TestFileLimit.
			kind, _, _ := formAround("image")
			for _, expect := range []string{"100-continue", ""} {
				req, err := http.NewRequestWithContext(r.ctx, http.MethodPost, r.base+"/api/v1/jobs", io.NopCloser(io.LimitReader(zeros{}, 300<<20)))
				must(r, err)
				req.ContentLength = 300 << 20
				req.Header = http.Header{"Content-Type": {kind}, "Authorization": {"Bearer " + r.secret}}
				if expect != "" {
					req.Header.Set("Expect", expect)
				}
				answer, err := r.client.Do(req)
				must(r, err)
				text, err := io.ReadAll(answer.Body)
				must(r, err)
				answer.Body.Close()
				resp := response{Response: answer, text: text}
				must(r, json.Unmarshal(text, &resp.json))
				r.refused(resp, 413, "file_too_large", "validation", "")
			}
		}},
		{"only http/https are allowed and private / internal network targets are rejected.", func(r *rig) {
			for _, bad := range []string{
				"ftp://example.com/a", "file:///etc/passwd", "example.com/a.jpg", "//example.com/a", "http://", "https://user:pw@example.com/", "javascript:alert(1)",
				"data:image/png;base64,AAAA", "http://exa mple.com/", "gopher://example.com/", "http://example.com:99999/", "http:example.com", "http://2130706433/", "http://127.1/",
			} {
				body, err := json.Marshal(map[string]string{"image_url": bad, "tool": "upscale"})
				must(r, err)
				r.refused(r.postJSON("/api/v1/jobs", string(body)), 400, "invalid_parameter", "validation", "image_url")
			}
			// A private address is found when the worker connects, and fails the job with ssrf_blocked.
			r.status(r.postJSON("/api/v1/jobs", `{"image_url":"http://169.254.169.254/latest/","tool":"upscale"}`), 202)
		}},
	}
}

// TestFileLimit counts files whose size is not announced.
func TestFileLimit(t *testing.T) {
	t.Parallel()
	const most = 3 << 20
	r := embedded(t, func(cfg *api.Config) { cfg.Limits.ImageUploadBytes = most })
	send := func(size int) response {
		t.Helper()
		kind, head, tail := formAround("image", text("tool", "upscale"))
		body := io.MultiReader(bytes.NewReader(head), bytes.NewReader(png(9, 9)), io.LimitReader(zeros{}, int64(size-len(png(9, 9)))), bytes.NewReader(tail))
		return r.send("POST", "/api/v1/jobs", body, "Content-Type", kind)
	}
	r.status(send(most), 202)
	for _, size := range []int{most + 1, most + 5<<20} {
		resp := send(size)
		r.refused(resp, 413, "file_too_large", "validation", "")
		if !bytes.Contains(resp.text, []byte("source_url")) {
			t.Errorf("%s does not name the right way", resp.text)
		}
	}
	if left := r.objects(); len(left) != 1 || r.orphan(left[0]) {
		t.Errorf("left in storage: %v", left)
	}
	// Text fields have their own limits.
	for _, fields := range [][]field{
		{text("tool", "upscale"), text("pad", strings.Repeat("x", 2<<20))},
		{text("tool", strings.Repeat("x", 5000))},
		{text("config", strings.Repeat(" ", 70<<10)), text("tool", "upscale")},
		slices.Repeat([]field{text("", "x")}, 3),
	} {
		if resp := r.postForm("/api/v1/jobs", fields...); resp.StatusCode != http.StatusBadRequest && resp.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("%d %s", resp.StatusCode, resp.text)
		}
	}
}

// orphan says that no job names the object.
func (r *rig) orphan(key string) bool {
	found, err := r.jobs.Referenced(r.ctx, key)
	must(r, err)
	return !found
}

// formAround is a form's bytes before and after the content of a file.
func formAround(name string, fields ...field) (kind string, head, tail []byte) {
	const mark = "CONTENT-GOES-HERE"
	kind, body := formBody(append(fields, file(name, []byte(mark)))...)
	head, tail, _ = bytes.Cut(body, []byte(mark))
	return kind, slices.Clip(head), tail
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func retrieveJob() []promise {
	const all = "created_at credits_charged credits_estimated error finished_at job_id media metadata output phase progress result result_url status tool warnings"
	return []promise{
		{"Returns the current status of a job.", func(r *rig) {
			id := r.queued("upscale")
			for _, step := range []func(){func() {}, func() { r.succeeded(id, "x", engine.Output{Width: 1, Height: 1, Size: 1}) }} {
				step()
				resp := r.status(r.get("/api/v1/jobs/"+id), 200)
				if got := keysOf(resp.json); got != all {
					r.Errorf("keys %s", got)
				}
			}
		}},
		{"The result shape is { width, height, size } for images and { width, height, duration, size, codec } for video.", func(r *rig) {
			id := r.queued("upscale")
			r.succeeded(id, "x", engine.Output{Width: 1, Height: 2, Size: 3, Codec: "none", Duration: 1})
			if got := keysOf(r.get("/api/v1/jobs/" + id).json["result"].(map[string]any)); got != "height size width" {
				r.Errorf("image: %s", got)
			}
			id = r.queued("video_upscale")
			r.succeeded(id, "x", engine.Output{Width: 1, Height: 2, Size: 3, Codec: "h264", Duration: 12.5, Facts: map[string]any{"method": "lanczos"}, Warnings: []string{"Subtitles were dropped."}})
			v := r.get("/api/v1/jobs/" + id).json
			if got := keysOf(v["result"].(map[string]any)); got != "codec duration height size width" {
				r.Errorf("video: %s", got)
			}
			r.has(v["result"].(map[string]any), map[string]any{"duration": 12.5, "codec": "h264"})
			r.has(v["output"].(map[string]any), map[string]any{"format": "mp4", "content_type": "video/mp4"})
			if !strings.Contains(fmt.Sprint(v["output"], v["warnings"]), "lanczos") || !strings.Contains(fmt.Sprint(v["warnings"]), "Subtitles") {
				r.Errorf("output %v warnings %v", v["output"], v["warnings"])
			}
		}},
	}
}

func getResult() []promise {
	return []promise{
		{"Redirects (302) to a freshly signed result URL, re-signed on every call, so the link never goes stale.", func(r *rig) {
			id := r.queued("upscale")
			r.succeeded(id, "0123456789", engine.Output{Width: 1, Height: 1, Size: 10})
			for _, method := range []string{"GET", "HEAD", "GET"} {
				resp := r.status(r.send(method, "/api/v1/jobs/"+id+"/result", nil), 302)
				link := resp.Header.Get("Location")
				if mustParse(r, link).Query().Get("X-Amz-Expires") != "900" || resp.Header.Get("Cache-Control") != "no-store" {
					r.Errorf("headers %v", resp.Header)
				}
				got := r.status(r.send(method, link, nil), 200) // with the key's header, as curl carries it
				if name := got.Header.Get("Content-Disposition"); !strings.Contains(name, id+".jpg") || got.Header.Get("Content-Type") != "image/jpeg" {
					r.Errorf("%q %q", name, got.Header.Get("Content-Type"))
				}
				if method == "HEAD" {
					continue
				}
				part := r.status(r.send("GET", link, nil, "Range", "bytes=2-4", "Authorization", ""), 206)
				if string(part.text) != "234" {
					r.Errorf("range: %q", part.text)
				}
			}
		}},
		{"202 result_not_ready. Just retry shortly. Downloading the result never costs extra credits.", func(r *rig) {
			for tool, after := range map[string]string{"upscale": "2", "video_upscale": "5"} {
				id := r.queued(tool)
				for range 2 {
					resp := r.get("/api/v1/jobs/" + id + "/result")
					r.refused(resp, 202, "result_not_ready", "processing", "")
					if got := resp.Header.Get("Retry-After"); got != after {
						r.Errorf("Retry-After %q, want %q", got, after)
					}
					if j, err := r.jobs.Get(r.ctx, r.account.ID, id); err == nil && j.Status == job.Queued {
						r.claimed(id)
					}
				}
				must(r, r.jobs.Fail(r.ctx, id, 1, engine.Failf(engine.ProcessingFailed, "no")))
				r.refused(r.get("/api/v1/jobs/"+id+"/result"), 409, "result_unavailable", "validation", "")
			}
			id := r.queued("upscale")
			r.status(r.send("POST", "/api/v1/jobs/"+id+"/cancel", nil), 200)
			r.refused(r.get("/api/v1/jobs/"+id+"/result"), 409, "result_unavailable", "validation", "")
			before := r.balance()
			id = r.queued("upscale")
			r.succeeded(id, "x", engine.Output{Width: 1, Height: 1, Size: 1})
			for range 3 {
				r.get("/api/v1/jobs/" + id + "/result")
			}
			if b := r.balance(); b.Balance != before.Balance-1000 {
				r.Errorf("balance %v after one job of 1.0 and three downloads, before %v", b.Balance, before.Balance)
			}
		}},
	}
}

func cancelAndDelete() []promise {
	cancel := func(r *rig, id string) response { r.Helper(); return r.send("POST", "/api/v1/jobs/"+id+"/cancel", nil) }
	remove := func(r *rig, id string) response { r.Helper(); return r.send("DELETE", "/api/v1/jobs/"+id, nil) }
	return []promise{
		{"Cancels a job that is still queued or processing.", func(r *rig) {
			id := r.queued("video_upscale")
			resp := r.status(cancel(r, id), 200)
			if string(resp.text) != `{"job_id":"`+id+`","status":"canceled"}`+"\n" {
				r.Errorf("%s", resp.text)
			}
			id = r.queued("video_upscale")
			r.claimed(id)
			r.status(cancel(r, id), 200)
			r.mu.Lock()
			defer r.mu.Unlock()
			if !slices.Contains(r.stopped, id) {
				r.Error("the worker was not told")
			}
		}},
		{"A job that has already succeeded, failed, or been canceled returns 409 not_cancelable.", func(r *rig) {
			done, broken, canceled := r.queued("upscale"), r.queued("upscale"), r.queued("upscale")
			r.succeeded(done, "x", engine.Output{Width: 1, Height: 1, Size: 1})
			r.failed(broken, engine.ProcessingFailed)
			r.status(cancel(r, canceled), 200)
			for _, id := range []string{done, broken, canceled} {
				r.refused(cancel(r, id), 409, "not_cancelable", "validation", "")
			}
		}},
		{"Deletes a job record and its associated result: useful for cleaning up processed assets for privacy or compliance. If the job is still in progress, it is canceled (and credits refunded) first.", func(r *rig) {
			id := r.status(r.postForm("/api/v1/jobs", file("image", png(10, 10)), text("tool", "upscale")), 202).json["job_id"].(string)
			r.reserved(id, 3000)
			resp := r.status(remove(r, id), 200)
			if string(resp.text) != `{"job_id":"`+id+`","deleted":true}`+"\n" {
				r.Errorf("%s", resp.text)
			}
			if b := r.balance(); b.Frozen != 0 || b.Balance != 1000*billing.Credit {
				r.Errorf("after delete: %+v", b)
			}
			done := r.status(r.postForm("/api/v1/jobs", file("image", png(10, 10)), text("tool", "upscale")), 202).json["job_id"].(string)
			r.succeeded(done, "secret", engine.Output{Width: 1, Height: 1, Size: 6})
			r.status(remove(r, done), 200)
			for _, key := range r.objects() {
				if strings.Contains(key, id) || strings.Contains(key, done) {
					r.Errorf("%s is still in storage", key)
				}
			}
			for _, gone := range []string{id, done} {
				r.refused(r.get("/api/v1/jobs/"+gone), 404, "job_not_found", "validation", "")
				r.refused(r.get("/api/v1/jobs/"+gone+"/result"), 404, "job_not_found", "validation", "")
				r.refused(cancel(r, gone), 404, "job_not_found", "validation", "")
			}
			if n := r.jobCount(); n != 0 {
				r.Errorf("%d jobs are still listed", n)
			}
		}},
		{"Deleting an already-deleted job still returns 200 { \"deleted\": true } (idempotent).", func(r *rig) {
			id := r.queued("upscale")
			for range 3 {
				r.has(r.status(remove(r, id), 200).json, map[string]any{"deleted": true, "job_id": id})
			}
		}},
		{"You can only delete jobs that belong to your own account; others return 404 job_not_found.", func(r *rig) {
			id := r.queued("upscale")
			other := r.fresh(10)
			for _, bad := range []string{id, "job_00000000000000000000000000000000", "job_1", "x", "job_%00", strings.Repeat("a", 5000), "%e2%98%83", "job_0000000000000000000000000000000G"} {
				other.refused(remove(other, bad), 404, "job_not_found", "validation", "")
				other.refused(other.get("/api/v1/jobs/"+bad), 404, "job_not_found", "validation", "")
				other.refused(other.get("/api/v1/jobs/"+bad+"/result"), 404, "job_not_found", "validation", "")
				other.refused(cancel(other, bad), 404, "job_not_found", "validation", "")
			}
			r.status(r.get("/api/v1/jobs/"+id), 200)
		}},
	}
}

func toolPromises() []promise {
	create := func(r *rig, tool, config string) response {
		r.Helper()
		return r.postJSON("/api/v1/jobs", `{"source_url":"https://example.com/a","tool":"`+tool+`","config":`+config+`}`)
	}
	return []promise{
		{"The tool you pass to POST /v1/jobs selects both the media type and the operation. Image tools use plain names; video tools are prefixed with video_.", func(r *rig) {
			for _, tool := range r.catalog.Tools() {
				config := `{}`
				if tool.Name == "custom" {
					config = `{"prompt":"brighter"}`
				}
				resp := r.status(create(r, tool.Name, config), 202)
				media := "image"
				if strings.HasPrefix(tool.Name, "video_") {
					media = "video"
				}
				r.has(resp.json, map[string]any{"media": media, "tool": tool.Name})
			}
		}},
		{"upscale.scale must be 2, 4, or 8; custom requires a non-empty prompt. Invalid values return 400 invalid_parameter.", func(r *rig) {
			for _, scale := range []string{"1", "3", "16", "0", "-2", "2.5", `"4"`, "true", "1e308"} {
				r.refused(create(r, "upscale", `{"scale":`+scale+`}`), 400, "invalid_parameter", "validation", "config.scale")
			}
			r.refused(create(r, "video_upscale", `{"scale":8}`), 400, "invalid_parameter", "validation", "config.scale")
			for _, config := range []string{`{}`, `{"prompt":""}`, `{"prompt":"   "}`, `{"prompt":null}`, `{"prompt":5}`} {
				r.refused(create(r, "custom", config), 400, "invalid_parameter", "validation", "config.prompt")
			}
		}},
		{"For video_upscale the output encoding is determined by the upscaler engine, so quality / codec are not used (sending them has no effect).", func(r *rig) {
			resp := r.status(create(r, "video_upscale", `{"scale":2,"quality":"high","codec":"h264"}`), 202)
			warnings := fmt.Sprint(resp.json["warnings"])
			if !strings.Contains(warnings, "codec") || !strings.Contains(warnings, "quality") {
				r.Errorf("warnings %s", warnings)
			}
		}},
		{"You may optionally include source_width / source_height / duration in config to get a pre-flight credit estimate, but the authoritative charge is always based on the measured values.", func(r *rig) {
			resp := r.status(create(r, "video_upscale", `{"scale":2,"source_width":640,"source_height":360,"duration":10}`), 202)
			if !bytes.Contains(resp.text, []byte(`"credits_estimated":0.6,`)) { // 300 frames up to 1080p
				r.Errorf("%s", resp.text)
			}
			for _, config := range []string{`{"source_width":"640"}`, `{"source_width":0}`, `{"source_width":-5}`} {
				r.refused(create(r, "video_upscale", config), 400, "invalid_parameter", "validation", "config.source_width")
			}
			// Over the cap by its own claim: the worker measures, and decides.
			r.status(create(r, "video_upscale", `{"scale":4,"source_width":3840,"source_height":2160,"duration":10}`), 202)
		}},
		{"Requesting a tool that doesn't exist, or one that isn't available yet (the video translate, colorize, and subtitle operations are not in v1), returns 400 unsupported_tool.", func(r *rig) {
			for _, tool := range []string{"video_translate", "video_colorize", "video_subtitle", "Upscale", "upscale ", "nothing", "'; DROP TABLE jobs"} {
				r.refused(create(r, tool, `{}`), 400, "unsupported_tool", "validation", "tool")
			}
			r.refused(r.postForm("/api/v1/jobs", text("tool", "nothing"), file("image", png(9, 9))), 400, "unsupported_tool", "validation", "tool")
			r.refused(r.postForm("/api/v1/jobs", file("image", png(9, 9)), text("tool", "nothing")), 400, "unsupported_tool", "validation", "tool")
		}},
	}
}

func creditPromises() []promise {
	return []promise{
		{"Nothing charged yet. credits_charged is 0.", func(r *rig) {
			id := r.queued("upscale")
			r.has(r.get("/api/v1/jobs/"+id).json, map[string]any{"credits_charged": 0})
			if b := r.balance(); b.Balance != 1000*billing.Credit {
				r.Errorf("%+v", b)
			}
		}},
		{"The reservation is confirmed: credits are deducted.", func(r *rig) {
			id := r.queued("upscale")
			r.succeeded(id, "x", engine.Output{Width: 1, Height: 1, Size: 1})
			if resp := r.get("/api/v1/jobs/" + id); !bytes.Contains(resp.text, []byte(`"credits_charged":1.0,`)) {
				r.Errorf("%s", resp.text)
			}
			if resp := r.get("/api/v1/credits"); string(resp.text) != `{"balance":999.0,"used":1.0,"frozen":0}`+"\n" {
				r.Errorf("%s", resp.text)
			}
		}},
		{"If the estimated cost already exceeds your available balance, you get 402 insufficient_credits immediately, so a large upload isn't wasted.", func(r *rig) {
			poor := r.fresh(0)
			for _, fields := range [][]field{
				{text("tool", "upscale"), file("image", png(9, 9))},
				{file("image", png(9, 9)), text("tool", "upscale")},
				{text("tool", "upscale"), text("image_url", "https://example.com/a")},
				{text("tool", "video_upscale"), text("source_url", "https://example.com/a")},
			} {
				poor.refused(poor.postForm("/api/v1/jobs", fields...), 402, "insufficient_credits", "billing", "")
			}
			must(r, r.ledger.Grant(r.ctx, poor.account.ID, 1999, "", ""))
			poor.refused(poor.postForm("/api/v1/jobs", file("image", png(2000, 1500)), text("tool", "upscale"), text("config", `{"scale":4}`)), 402, "insufficient_credits", "billing", "")
			must(r, r.ledger.Grant(r.ctx, poor.account.ID, 1, "", ""))
			poor.status(poor.postForm("/api/v1/jobs", file("image", png(2000, 1500)), text("tool", "upscale"), text("config", `{"scale":4}`)), 202)
			// The body need not even be sent.
			broke := r.fresh(0)
			kind, head, _ := formAround("image", text("tool", "upscale"))
			reader, writer := io.Pipe()
			go writer.Write(append(head, png(10, 10)...))
			resp, err := broke.try("POST", "/api/v1/jobs", reader, "Content-Type", kind)
			writer.Close()
			must(r, err)
			broke.refused(resp, 402, "insufficient_credits", "billing", "")
		}},
		{"Credits available to spend right now (already excludes anything frozen).", func(r *rig) {
			must(r, r.ledger.Grant(r.ctx, r.account.ID, 234, "", ""))
			id := r.queued("upscale")
			r.reserved(id, 12_500)
			if resp := r.get("/api/v1/credits"); string(resp.text) != `{"balance":987.734,"used":0,"frozen":12.5}`+"\n" {
				r.Errorf("%s", resp.text)
			}
		}},
		{"Credit amounts are decimals (some operations cost a fraction of a credit).", func(r *rig) {
			id := r.queued("upscale")
			r.reserved(id, 1)
			if resp := r.get("/api/v1/jobs/" + id); !bytes.Contains(resp.text, []byte(`"credits_charged":0.001,`)) {
				r.Errorf("%s", resp.text)
			}
		}},
	}
}

func limitPromises() []promise {
	return []promise{
		{"Submitting beyond the cap returns 429 concurrency_limit_exceeded.", func(r *rig) {
			must(r, r.accounts.SetLimits(r.ctx, r.account.ID, 2, 1, 0))
			first := r.queued("upscale")
			r.queued("upscale")
			resp := r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a"}`)
			r.refused(resp, 429, "concurrency_limit_exceeded", "rate_limit", "")
			if resp.Header.Get("Retry-After") == "" {
				r.Error("no Retry-After")
			}
			r.refused(r.postForm("/api/v1/jobs", file("image", png(9, 9)), text("tool", "upscale")), 429, "concurrency_limit_exceeded", "rate_limit", "")
			r.queued("video_upscale")
			r.refused(r.postJSON("/api/v1/jobs", `{"tool":"video_upscale","source_url":"https://example.com/a"}`), 429, "concurrency_limit_exceeded", "rate_limit", "")
			r.failed(first, engine.ProcessingFailed)
			r.queued("upscale")
		}},
		{"The count is aggregated per account, so spreading work across multiple keys does not bypass it.", func(r *rig) {
			must(r, r.accounts.SetLimits(r.ctx, r.account.ID, 1, 1, 0))
			r.queued("upscale")
			_, secret, err := r.accounts.CreateKey(r.ctx, r.account.ID, "second")
			must(r, err)
			resp := r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a"}`, "Authorization", "Bearer "+secret)
			r.refused(resp, 429, "concurrency_limit_exceeded", "rate_limit", "")
		}},
		{"Suggested interval: about 2s for images, 5–10s for video.", func(r *rig) {
			if after := r.get("/api/v1/jobs/" + r.queued("video_upscale")).Header.Get("Retry-After"); after != "5" {
				r.Errorf("video: %q", after)
			}
		}},
		{"Replaying the same key returns the original job: no duplicate job, no double charge.", func(r *rig) {
			fields := []field{file("image", png(10, 10)), text("tool", "upscale"), text("config", `{"scale":4}`)}
			key := []string{"Idempotency-Key", "8f3b1c2a-" + r.account.ID}
			first := r.status(r.postFormWith("/api/v1/jobs", key, fields...), 202)
			id := first.json["job_id"].(string)
			objects := len(r.objects())
			for _, step := range []func(){func() {}, func() { r.succeeded(id, "x", engine.Output{Width: 1, Height: 1, Size: 1}) }, func() { r.send("DELETE", "/api/v1/jobs/"+id, nil) }} {
				step()
				// Order of the fields and of the config's keys, and defaults written out, make no other request.
				again := r.status(r.postFormWith("/api/v1/jobs", key, text("config", ` { "face_enhance" : false, "scale" : 4 } `), text("tool", "upscale"), text("output_format", "jpg"), file("file", png(10, 10))), 202)
				if !bytes.Equal(again.text, first.text) || again.Header.Get("Idempotent-Replayed") != "true" {
					r.Errorf("replay: %s %v, first %s", again.text, again.Header, first.text)
				}
			}
			if first.Header.Get("Idempotent-Replayed") != "" || len(r.objects()) > objects {
				r.Errorf("objects %d, were %d", len(r.objects()), objects)
			}
			// The key belongs to the account: another key of it replays, another account does not.
			other := r.fresh(10)
			resp := other.status(other.postFormWith("/api/v1/jobs", key, fields...), 202)
			if resp.json["job_id"] == id {
				r.Error("a replay across accounts")
			}
			_, secret, err := r.accounts.CreateKey(r.ctx, r.account.ID, "rotated")
			must(r, err)
			resp = r.status(r.postFormWith("/api/v1/jobs", append(key, "Authorization", "Bearer "+secret), fields...), 202)
			if resp.json["job_id"] != id {
				r.Error("a rotated key lost the idempotency key")
			}
		}},
		{"Reusing a key with a different tool or config returns 409 idempotency_conflict.", func(r *rig) {
			key := []string{"Idempotency-Key", "one"}
			const body = `{"tool":"upscale","image_url":"https://example.com/a","config":{"scale":4}}`
			r.status(r.postJSON("/api/v1/jobs", body, key...), 202)
			again := r.status(r.postJSON("/api/v1/jobs", body, key...), 202)
			if again.Header.Get("Idempotent-Replayed") != "true" {
				r.Errorf("%v", again.Header)
			}
			for _, other := range []string{
				`{"tool":"sharpen","image_url":"https://example.com/a"}`, `{"tool":"upscale","image_url":"https://example.com/a","config":{"scale":2}}`,
				`{"tool":"upscale","image_url":"https://example.com/b","config":{"scale":4}}`, `{"tool":"upscale","image_url":"https://example.com/a","config":{"scale":4},"output_format":"png"}`,
				`{"tool":"nothing"}`, `{"tool":"upscale"}`,
			} {
				r.refused(r.postJSON("/api/v1/jobs", other, key...), 409, "idempotency_conflict", "validation", "")
			}
			r.refused(r.postFormWith("/api/v1/jobs", key, file("image", png(9, 9)), text("tool", "upscale")), 409, "idempotency_conflict", "validation", "")
			r.refused(r.postJSON("/api/v1/uploads", `{"file_name":"clip.mp4"}`, key...), 409, "idempotency_conflict", "validation", "")
			// The bytes of a file are part of the request.
			key[1] = "two"
			r.status(r.postFormWith("/api/v1/jobs", key, file("image", png(9, 9)), text("tool", "upscale")), 202)
			r.refused(r.postFormWith("/api/v1/jobs", key, file("image", append(png(9, 9), 0)), text("tool", "upscale")), 409, "idempotency_conflict", "validation", "")
			if n := r.jobCount(); n != 2 {
				r.Errorf("%d jobs", n)
			}
		}},
		{"Pass an Idempotency-Key header to safely retry a create request without duplicating the job.", func(r *rig) {
			for _, bad := range []string{strings.Repeat("a", 256), "é", "a\tb"} {
				r.refused(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a"}`, "Idempotency-Key", bad), 400, "invalid_parameter", "validation", "Idempotency-Key")
			}
			// Only accepted requests bind the key.
			key := []string{"Idempotency-Key", strings.Repeat("k", 255)}
			r.refused(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a","config":{"scale":3}}`, key...), 400, "invalid_parameter", "validation", "config.scale")
			r.status(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a","config":{"scale":4}}`, key...), 202)
			// Uploads take one too.
			key[1] = "upload"
			first := r.status(r.postJSON("/api/v1/uploads", `{"file_name":"clip.mp4"}`, key...), 201)
			again := r.status(r.postJSON("/api/v1/uploads", `{"file_name":"clip.mp4"}`, key...), 201)
			if !bytes.Equal(first.text, again.text) {
				r.Errorf("%s then %s", first.text, again.text)
			}
			r.refused(r.postJSON("/api/v1/uploads", `{"file_name":"other.mp4"}`, key...), 409, "idempotency_conflict", "validation", "")
			r.refused(r.postJSON("/api/v1/uploads", `{"file_name":"other.jpg"}`, key...), 409, "idempotency_conflict", "validation", "")
		}},
	}
}

func errorPromises() []promise {
	return []promise{
		{"Errors come in a consistent JSON shape with a stable code you can branch on.", func(r *rig) {
			r.refused(r.get("/api/v1/nothing"), 404, "not_found", "validation", "")
			for _, path := range []string{"/", "/api/v1", "/api/v1/", "/api/v1/jobs/", "/api/v1//jobs", "/api/v1/jobs/../jobs", "/api/v1/jobs/x/y/z", "/api/v2/jobs", "/%00"} {
				r.refused(r.get(path), 404, "not_found", "validation", "")
			}
			for path, allow := range map[string]string{
				"/api/v1/jobs": "GET, HEAD, OPTIONS, POST", "/api/v1/jobs/x": "DELETE, GET, HEAD, OPTIONS", "/api/v1/jobs/x/cancel": "OPTIONS, POST", "/api/v1/credits": "GET, HEAD, OPTIONS",
				"/api/v1/uploads": "OPTIONS, POST",
			} {
				for _, method := range []string{"PUT", "PATCH", "BREW"} {
					resp := r.send(method, path, nil)
					r.refused(resp, 405, "method_not_allowed", "validation", "")
					if got := resp.Header.Get("Allow"); got != allow {
						r.Errorf("Allow %q, want %q", got, allow)
					}
				}
				if resp := r.send("OPTIONS", path, nil, "Authorization", ""); resp.StatusCode != http.StatusNoContent || resp.Header.Get("Allow") != allow {
					r.Errorf("OPTIONS %s: %d %v", path, resp.StatusCode, resp.Header)
				}
			}
			if resp := r.send("HEAD", "/api/v1/credits", nil); resp.StatusCode != http.StatusOK || len(resp.text) != 0 || resp.Header.Get("Content-Length") == "" {
				r.Errorf("HEAD: %d %q %v", resp.StatusCode, resp.text, resp.Header)
			}
		}},
		{"A parameter is missing or invalid.", func(r *rig) {
			for _, body := range []string{
				``, `null`, `[]`, `"x"`, `5`, `{`, `{"tool"`, `{"tool":"upscale",}`, `{"tool":"upscale"}{}`, `{"tool":"upscale"} x`, "\xff\xfe", `{"tool":"up\`, strings.Repeat("[", 20000),
				`{"config":` + strings.Repeat(`{"a":`, 20000), `{"a":1` + strings.Repeat(`,"b":1`, 3),
			} {
				resp := r.postJSON("/api/v1/jobs", body)
				if resp.StatusCode != http.StatusBadRequest {
					r.Errorf("%.40q: %d %s", body, resp.StatusCode, resp.text)
				}
			}
			r.refused(r.postJSON("/api/v1/jobs", `{"tool":"upscale","tool":"sharpen","image_url":"https://example.com/a"}`), 400, "invalid_parameter", "validation", "tool")
			r.refused(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image":"iVBORw0KGgo="}`), 400, "invalid_parameter", "validation", "image")
			r.refused(r.postForm("/api/v1/jobs", text("tool", "upscale"), text("image", "https://example.com/a.jpg")), 400, "invalid_parameter", "validation", "image")
			for _, kind := range []string{"application/x-www-form-urlencoded", "text/plain", "image/png", "multipart/mixed; boundary=x", "nonsense; ;", "multipart/form-data"} {
				r.refused(r.send("POST", "/api/v1/jobs", strings.NewReader(`{"tool":"upscale"}`), "Content-Type", kind), 400, "invalid_parameter", "validation", "Content-Type")
			}
			for _, metadata := range []string{`5`, `[]`, `{"a":1}`, `{"a":null}`, `{"a":{}}`, `{"":"x"}`, `{"` + strings.Repeat("k", 41) + `":"x"}`, `{"k":"` + strings.Repeat("v", 501) + `"}`, `{"a":"\u0000"}`, `{"a":"x","a":"y"}`} {
				r.refused(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a","metadata":`+metadata+`}`), 400, "invalid_parameter", "validation", "metadata")
			}
		}},
		{"Image direct upload over 200 MB, or a video upload over the single-PUT limit (~4.9 GB).", func(r *rig) {
			r.refused(r.postJSON("/api/v1/jobs", `{"tool":"upscale","pad":"`+strings.Repeat("x", 1<<20)+`"}`), 413, "file_too_large", "validation", "")
		}},
		{"Direct upload is an unsupported format.", func(r *rig) {
			for _, content := range []string{"", "hello", "<html></html>", "%PDF-1.7\n", "\xff\xd8", "\x89PNG\r\n", "MZ\x90", strings.Repeat("\x00", 100_000), "RIFF\x00\x00\x00\x00WAVE"} {
				r.refused(r.postForm("/api/v1/jobs", file("image", []byte(content)), text("tool", "upscale")), 415, "unsupported_format", "validation", "")
				r.refused(r.postForm("/api/v1/jobs", text("tool", "upscale"), file("file", []byte(content))), 415, "unsupported_format", "validation", "")
			}
			if n := r.jobCount(); n != 0 {
				r.Errorf("%d jobs", n)
			}
		}},
		{"The upload_id does not exist or belongs to another account.", func(r *rig) {
			mine := r.status(r.postJSON("/api/v1/uploads", `{"file_name":"clip.mp4"}`), 201).json["upload_id"].(string)
			other := r.fresh(10)
			for _, id := range []string{mine, "upl_00000000000000000000000000000000", "upl_x", "x", "job_00000000000000000000000000000000", strings.Repeat("u", 4000)} {
				other.refused(other.postJSON("/api/v1/jobs", `{"tool":"video_upscale","upload_id":"`+id+`"}`), 404, "upload_not_found", "validation", "")
			}
		}},
		{"Don't expect a 5xx for a failed job: the query itself succeeded.", func(r *rig) {
			id := r.queued("upscale")
			r.failed(id, engine.ProcessingFailed)
			r.status(r.get("/api/v1/jobs/"+id), 200)
		}},
		{"Authentication failed.", func(r *rig) {
			must(r, r.accounts.SetStatus(r.ctx, r.account.ID, "suspended"))
			r.refused(r.get("/api/v1/credits"), 401, "unauthorized", "auth", "")
			must(r, r.accounts.SetStatus(r.ctx, r.account.ID, "active"))
			r.status(r.get("/api/v1/credits"), 200)
		}},
	}
}

func keyPromises() []promise {
	return []promise{
		{"Disabling a key takes effect immediately: any further request with it returns 401 invalid_api_key.", func(r *rig) {
			r.status(r.get("/api/v1/credits"), 200)
			_, err := r.accounts.RevokeKey(r.ctx, r.account.ID, r.key.ID)
			must(r, err)
			for _, e := range endpoints() {
				r.refused(r.send(e[0], e[1], strings.NewReader(e[2])), 401, "invalid_api_key", "auth", "")
			}
		}},
		{"Multiple active keys can coexist, which makes rotation seamless: create a new key, switch your application to it, confirm traffic has moved over, then revoke the old key.", func(r *rig) {
			_, secret, err := r.accounts.CreateKey(r.ctx, r.account.ID, "new")
			must(r, err)
			r.status(r.get("/api/v1/credits"), 200)
			r.status(r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer "+secret), 200)
			_, err = r.accounts.RevokeKey(r.ctx, r.account.ID, r.key.ID)
			must(r, err)
			r.refused(r.get("/api/v1/credits"), 401, "invalid_api_key", "auth", "")
			r.status(r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer "+secret), 200)
		}},
		{"and the time each key was last used.", func(r *rig) {
			r.status(r.get("/api/v1/credits"), 200)
			keys, err := r.accounts.Keys(r.ctx, r.account.ID)
			must(r, err)
			if len(keys) != 1 || time.Since(keys[0].LastUsed) > time.Minute {
				r.Errorf("keys %+v", keys)
			}
		}},
	}
}

// TestRequestRate proves the section on the request rate, which needs a limit that can be reached.
func TestRequestRate(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		must(r, r.accounts.SetLimits(r.ctx, r.account.ID, 0, 0, 3))
		reset := int64(0)
		for left := 2; left >= 0; left-- {
			resp := r.status(r.get("/api/v1/credits"), 200)
			if resp.Header.Get("X-RateLimit-Limit") != "3" || resp.Header.Get("X-RateLimit-Remaining") != fmt.Sprint(left) || resp.Header.Get("RateLimit-Policy") != `"key";q=3;w=60` {
				r.Errorf("headers %v", resp.Header)
			}
			if !strings.HasPrefix(resp.Header.Get("RateLimit"), fmt.Sprintf(`"key";r=%d;t=`, left)) {
				r.Errorf("RateLimit %q", resp.Header.Get("RateLimit"))
			}
			fmt.Sscan(resp.Header.Get("X-RateLimit-Reset"), &reset)
			if wait := reset - time.Now().Unix(); wait < 50 || wait > 61 {
				r.Errorf("X-RateLimit-Reset is %d s ahead", wait)
			}
		}
		for _, e := range endpoints() {
			resp := r.send(e[0], e[1], strings.NewReader(e[2]))
			r.refused(resp, 429, "rate_limited", "rate_limit", "")
			wait := int64(0)
			fmt.Sscan(resp.Header.Get("Retry-After"), &wait)
			if resp.Header.Get("X-RateLimit-Remaining") != "0" || wait < 1 || wait > 60 || resp.Header.Get("X-RateLimit-Reset") != fmt.Sprint(reset) {
				r.Errorf("headers %v", resp.Header)
			}
		}
		// The limit is the key's: another key of the account has its own.
		_, secret, err := r.accounts.CreateKey(r.ctx, r.account.ID, "second")
		must(r, err)
		r.status(r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer "+secret), 200)
		if r.mini == nil {
			return
		}
		// A second before Reset nothing has changed; at Reset one more request passes.
		r.mini.SetTime(time.Unix(reset-1, 999_000_000))
		r.refused(r.get("/api/v1/credits"), 429, "rate_limited", "rate_limit", "")
		r.mini.SetTime(time.Unix(reset, 0))
		r.status(r.get("/api/v1/credits"), 200)
		r.mini.SetTime(time.Unix(reset+120, 0))
		if resp := r.status(r.get("/api/v1/credits"), 200); resp.Header.Get("X-RateLimit-Remaining") != "2" {
			r.Errorf("after a pause: %v", resp.Header)
		}
	})
}

// TestRegion proves geo_restricted.
func TestRegion(t *testing.T) {
	t.Parallel()
	r := embedded(t, func(cfg *api.Config) { cfg.Geo = api.Geo{Header: "CF-IPCountry", Countries: []string{"xx", "YY"}} })
	for _, country := range []string{"XX", "yy", " XX", "DE", "", "XXX"} {
		resp := r.send("GET", "/api/v1/credits", nil, "CF-IPCountry", country)
		if strings.TrimSpace(country) == "XX" || country == "yy" {
			r.refused(resp, 403, "geo_restricted", "auth", "")
		} else {
			r.status(resp, 200)
		}
	}
	r.status(r.send("GET", "/healthz", nil, "CF-IPCountry", "XX"), 200)
}

// TestInternalError proves that a bug shows a request id and nothing of its inside.
func TestInternalError(t *testing.T) {
	t.Parallel()
	r := embedded(t, func(cfg *api.Config) {
		cfg.SniffImage = func([]byte) (engine.Source, error) { panic("the inside of a bug") }
	})
	resp := r.postForm("/api/v1/jobs", text("tool", "upscale"), file("image", png(9, 9)))
	r.refused(resp, 500, "internal_error", "server", "")
	if bytes.Contains(resp.text, []byte("bug")) || bytes.Contains(resp.text, []byte("goroutine")) {
		r.Errorf("%s", resp.text)
	}
	id := resp.Header.Get("X-Request-Id")
	if !slices.ContainsFunc(r.log.all(), func(line string) bool {
		return strings.Contains(line, id) && strings.Contains(line, "the inside of a bug")
	}) {
		r.Error("the bug is not in the log under the request's id")
	}
	r.status(r.get("/api/v1/credits"), 200)
	if left := r.objects(); len(left) != 0 {
		r.Errorf("left in storage: %v", left)
	}
}

// TestSecretsStayOut looks through everything that was logged.
func TestSecretsStayOut(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		up := r.status(r.postJSON("/api/v1/uploads", `{"file_name":"private-name.mp4"}`), 201)
		r.status(r.postJSON("/api/v1/jobs", `{"tool":"upscale","image_url":"https://example.com/a?signature=hunter2"}`), 202)
		r.postJSON("/api/v1/jobs?token=hunter2", `{"tool":"upscale","image_url":"ftp://hunter2"}`)
		id := r.queued("upscale")
		r.succeeded(id, "x", engine.Output{Width: 1, Height: 1, Size: 1})
		r.get("/api/v1/jobs/" + id + "/result")
		r.send("GET", "/api/v1/hunter2", nil, "Authorization", "Bearer hunter2")
		lines := strings.Join(r.log.all(), "\n")
		for _, secret := range []string{r.secret, "hunter2", "X-Amz", up.json["put_url"].(string), "private-name"} {
			if strings.Contains(lines, secret) {
				r.Errorf("%q is in the log:\n%s", secret, lines)
			}
		}
		if !strings.Contains(lines, `"account_id":"`+r.account.ID) || !strings.Contains(lines, `"route":"/api/v1/jobs/{job_id}/result"`) {
			r.Errorf("the access log lacks fields:\n%s", lines)
		}
	})
}

func TestListJobs(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		ids := []string{}
		for i := range 5 {
			tool := []string{"upscale", "video_upscale"}[i%2]
			resp := r.status(r.postJSON("/api/v1/jobs", fmt.Sprintf(`{"image_url":"https://example.com/a","tool":%q,"metadata":{"n":"%d","both, \"}":"<&>"}}`, tool, i)), 202)
			r.has(resp.json["metadata"].(map[string]any), map[string]any{"n": i})
			ids = append(ids, resp.json["job_id"].(string))
		}
		r.fresh(10).queued("upscale")
		slices.Reverse(ids)
		all := func(query string) (found []string) {
			r.Helper()
			cursor := ""
			for range 10 {
				resp := r.status(r.get("/api/v1/jobs?limit=2"+query+cursor), 200)
				for _, j := range resp.json["jobs"].([]any) {
					found = append(found, j.(map[string]any)["job_id"].(string))
				}
				if resp.json["has_more"] != (resp.json["next_cursor"] != nil) {
					r.Errorf("%v %v", resp.json["has_more"], resp.json["next_cursor"])
				}
				if resp.json["next_cursor"] == nil {
					break
				}
				cursor = "&cursor=" + resp.json["next_cursor"].(string)
			}
			return found
		}
		same := func(query string, want ...string) {
			r.Helper()
			if got := all(query); !slices.Equal(got, want) {
				r.Errorf("%s: %v, want %v", query, got, want)
			}
		}
		same("", ids...)
		same("&media=video", ids[1], ids[3])
		same("&tool=upscale", ids[0], ids[2], ids[4])
		same("&metadata[n]=3", ids[1])
		same("&metadata[n]=3&metadata%5Bboth,%20%22%7D%5D=%3C%26%3E", ids[1])
		same("&metadata[n]=33")
		same("&metadata[both,+%22%7D]=%3C%26%3E", ids...)
		same("&created_after=2020-01-01T00:00:00Z", ids...)
		same("&created_before=2020-01-01T00:00:00Z")
		r.failed(ids[0], engine.ProcessingFailed)
		same("&status=failed", ids[0])
		same("&status=queued", ids[1:]...)
		r.send("DELETE", "/api/v1/jobs/"+ids[0], nil)
		same("", ids[1:]...)
		for query, param := range map[string]string{
			"limit=0": "limit", "limit=100": "limit", "limit=x": "limit", "limit=-1": "limit", "limit=1.5": "limit", "status=done": "status", "media=audio": "media", "tool=nothing": "tool",
			"cursor=x": "cursor", "cursor=%00": "cursor", "created_after=yesterday": "created_after", "created_before=1": "created_before", "metadata[]=x": "metadata", "metadata[a]=%00": "metadata",
		} {
			r.refused(r.get("/api/v1/jobs?"+query), 400, "invalid_parameter", "validation", param)
		}
		r.refused(r.get("/api/v1/jobs?a=%ff"), 400, "invalid_parameter", "validation", "")
		r.refused(r.get("/api/v1/jobs?a=%zz"), 400, "invalid_parameter", "validation", "")
	})
}

func TestLedger(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		done, broken := r.queued("upscale"), r.queued("upscale")
		r.succeeded(done, "x", engine.Output{Width: 1, Height: 1, Size: 1})
		j := r.reserved(broken, 2500)
		must(r, r.jobs.Fail(r.ctx, broken, j.Fence, engine.Failf(engine.ProcessingFailed, "no")))
		lines, cursor := []string{}, ""
		sum := map[string]float64{}
		for range 10 {
			resp := r.status(r.get("/api/v1/credits/ledger?limit=2"+cursor), 200)
			for _, e := range resp.json["entries"].([]any) {
				entry := e.(map[string]any)
				lines = append(lines, fmt.Sprint(entry["type"], " ", entry["balance"], " ", entry["frozen"], " ", entry["used"], " ", entry["note"]))
				if (entry["job_id"] == nil) != (entry["type"] == "grant") {
					r.Errorf("%v", entry)
				}
				for _, part := range []string{"balance", "frozen", "used"} {
					sum[part] += entry[part].(float64)
				}
			}
			if resp.json["next_cursor"] == nil {
				break
			}
			cursor = "&cursor=" + resp.json["next_cursor"].(string)
		}
		want := []string{"release 2.5 -2.5 0 ", "reserve -2.5 2.5 0 ", "confirm 0 -1 1 ", "reserve -1 1 0 ", "grant 1000 0 0 welcome"}
		if !slices.Equal(lines, want) {
			r.Errorf("%q\nwant %q", lines, want)
		}
		r.has(r.get("/api/v1/credits").json, map[string]any{"balance": sum["balance"], "frozen": sum["frozen"], "used": sum["used"]})
		if n := len(r.get("/api/v1/credits/ledger?job_id=" + done).json["entries"].([]any)); n != 2 {
			r.Errorf("%d entries of one job", n)
		}
		r.refused(r.get("/api/v1/credits/ledger?job_id=x"), 400, "invalid_parameter", "validation", "job_id")
		r.refused(r.get("/api/v1/credits/ledger?cursor=x"), 400, "invalid_parameter", "validation", "cursor")
		other := r.fresh(0)
		if n := len(other.get("/api/v1/credits/ledger").json["entries"].([]any)); n != 0 {
			r.Errorf("%d entries of a fresh account", n)
		}
	})
}

func TestTools(t *testing.T) {
	t.Parallel()
	r := embedded(t, nil)
	resp := r.status(r.get("/api/v1/tools"), 200)
	tools := resp.json["tools"].([]any)
	if len(tools) != len(r.catalog.Tools()) {
		r.Fatalf("%d tools", len(tools))
	}
	first := tools[0].(map[string]any)
	r.has(first, map[string]any{"name": "upscale", "media": "image", "weight": 1})
	scale := first["config"].(map[string]any)["properties"].(map[string]any)["scale"].(map[string]any)
	r.has(scale, map[string]any{"type": "integer", "default": 2, "enum": []any{2, 4, 8}})
	r.has(resp.json["pricing"].(map[string]any), map[string]any{"image_block_megapixels": 24})
	r.has(resp.json["limits"].(map[string]any), map[string]any{"video_long_side": 4096, "video_short_side": 2160, "image_upload_bytes": float64(200 << 20)})
}

func TestFloodOfBadKeys(t *testing.T) {
	t.Parallel()
	r := embedded(t, func(cfg *api.Config) { cfg.Limits.FailedPerMinute = 5 })
	r.status(r.get("/api/v1/credits"), 200)
	for range 5 {
		r.refused(r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer x"), 401, "invalid_api_key", "auth", "")
	}
	resp := r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer x")
	r.refused(resp, 429, "rate_limited", "rate_limit", "")
	if resp.Header.Get("Retry-After") == "" {
		r.Error("no Retry-After")
	}
	// A client behind the same address whose key is known to work goes on.
	r.status(r.get("/api/v1/credits"), 200)
	r.clock(2 * time.Minute)
	r.refused(r.send("GET", "/api/v1/credits", nil, "Authorization", "Bearer x"), 401, "invalid_api_key", "auth", "")
}

func TestConfigurationIsChecked(t *testing.T) {
	t.Parallel()
	_, err := api.New(api.Config{})
	if err == nil || !strings.Contains(err.Error(), "Accounts") || !strings.Contains(err.Error(), "Log") {
		t.Errorf("%v", err)
	}
}
