package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"enlarger/engine"
)

// openAPI is the served document, read back: nothing in this file uses the Go values it was made of.
type openAPI struct {
	testing.TB
	schemas map[string]map[string]any
	paths   map[string]map[string]any
	root    map[string]any
}

func (r *rig) openAPI() *openAPI {
	r.Helper()
	resp := r.status(r.send("GET", "/api/v1/openapi.json", nil, "Authorization", ""), 200)
	d := &openAPI{TB: r.TB, root: resp.json, schemas: map[string]map[string]any{}, paths: map[string]map[string]any{}}
	for name, s := range resp.json["components"].(map[string]any)["schemas"].(map[string]any) {
		d.schemas[name] = s.(map[string]any)
	}
	for path, item := range resp.json["paths"].(map[string]any) {
		d.paths[path] = item.(map[string]any)
	}
	return d
}

// check validates a JSON value against a JSON Schema (the keywords that the document uses), and returns what is wrong.
func (d *openAPI) check(at string, schema map[string]any, v any) (wrong []string) {
	for keyword := range schema {
		if !slices.Contains([]string{
			"$ref", "type", "properties", "required", "additionalProperties", "items", "enum", "minimum", "maximum", "minLength", "maxLength", "maxProperties",
			"format", "description", "default", "contentMediaType", "examples",
		}, keyword) {
			wrong = append(wrong, at+": the test does not know the keyword "+keyword)
		}
	}
	if ref, ok := schema["$ref"].(string); ok {
		name := strings.TrimPrefix(ref, "#/components/schemas/")
		if d.schemas[name] == nil {
			return append(wrong, at+": no schema "+name)
		}
		return append(wrong, d.check(at, d.schemas[name], v)...)
	}
	if types := typesOf(schema["type"]); len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return isType(t, v) }) {
		return append(wrong, fmt.Sprintf("%s: %v is no %v", at, v, types))
	}
	if enum, ok := schema["enum"].([]any); ok && v != nil && !slices.Contains(enum, v) {
		wrong = append(wrong, fmt.Sprintf("%s: %v is not one of %v", at, v, enum))
	}
	switch value := v.(type) {
	case map[string]any:
		return append(wrong, d.checkObject(at, schema, value)...)
	case []any:
		for i, item := range value {
			if items, ok := schema["items"].(map[string]any); ok {
				wrong = append(wrong, d.check(fmt.Sprintf("%s[%d]", at, i), items, item)...)
			}
		}
	case float64:
		if low, ok := schema["minimum"].(float64); ok && value < low {
			wrong = append(wrong, fmt.Sprintf("%s: %v is under %v", at, value, low))
		}
		if high, ok := schema["maximum"].(float64); ok && value > high {
			wrong = append(wrong, fmt.Sprintf("%s: %v is over %v", at, value, high))
		}
	case string:
		if most, ok := schema["maxLength"].(float64); ok && float64(len(value)) > most {
			wrong = append(wrong, at+": too long")
		}
	}
	return wrong
}

func (d *openAPI) checkObject(at string, schema, value map[string]any) (wrong []string) {
	properties, _ := schema["properties"].(map[string]any)
	required, _ := schema["required"].([]any)
	for _, name := range required {
		if _, ok := value[name.(string)]; !ok {
			wrong = append(wrong, fmt.Sprintf("%s: %v is missing", at, name))
		}
	}
	for name, item := range value {
		if property, ok := properties[name].(map[string]any); ok {
			wrong = append(wrong, d.check(at+"."+name, property, item)...)
			continue
		}
		switch more := schema["additionalProperties"].(type) {
		case bool:
			if !more {
				wrong = append(wrong, fmt.Sprintf("%s: %s is not in the schema", at, name))
			}
		case map[string]any:
			wrong = append(wrong, d.check(at+"."+name, more, item)...)
		}
	}
	return wrong
}

func typesOf(v any) []string {
	switch t := v.(type) {
	case string:
		return []string{t}
	case []any:
		names := []string{}
		for _, name := range t {
			names = append(names, name.(string))
		}
		return names
	}
	return nil
}

func isType(name string, v any) bool {
	switch name {
	case "null":
		return v == nil
	case "integer":
		n, ok := v.(float64)
		return ok && n == float64(int64(n))
	case "number":
		_, ok := v.(float64)
		return ok
	case "string":
		_, ok := v.(string)
		return ok
	case "boolean":
		_, ok := v.(bool)
		return ok
	case "object":
		_, ok := v.(map[string]any)
		return ok
	case "array":
		_, ok := v.([]any)
		return ok
	}
	return false
}

// media is the JSON content of a response or request body of an operation.
func (d *openAPI) media(method, path, status string) map[string]any {
	d.Helper()
	op, ok := d.paths[path][strings.ToLower(method)].(map[string]any)
	if !ok {
		d.Fatalf("no operation %s %s", method, path)
	}
	part, ok := op["requestBody"].(map[string]any)
	if status != "" {
		part, ok = op["responses"].(map[string]any)[status].(map[string]any)
	}
	if !ok {
		d.Errorf("%s %s has no %q", method, path, status)
		return map[string]any{"schema": map[string]any{}}
	}
	content, ok := part["content"].(map[string]any)
	if !ok {
		return nil
	}
	return content["application/json"].(map[string]any)
}

func (d *openAPI) valid(method, path, status, text string) {
	d.Helper()
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		d.Errorf("%s: %v", text, err)
		return
	}
	for _, wrong := range d.check("body", d.media(method, path, status)["schema"].(map[string]any), v) {
		d.Errorf("%s %s %s: %s in %s", method, path, status, wrong, text)
	}
}

func (d *openAPI) invalid(method, path, status, text string) {
	d.Helper()
	var v any
	must(d, json.Unmarshal([]byte(text), &v))
	if len(d.check("body", d.media(method, path, status)["schema"].(map[string]any), v)) == 0 {
		d.Errorf("%s %s %s takes %s", method, path, status, text)
	}
}

// TestDocumentedExamplesValidate checks every example request and response of the API document against the OpenAPI document.
func TestDocumentedExamplesValidate(t *testing.T) {
	t.Parallel()
	d := embedded(t, nil).openAPI()
	for _, e := range []struct{ method, path, status, text string }{
		{"POST", "/api/v1/jobs", "", `{"image_url": "https://example.com/photo.jpg", "tool": "upscale", "config": { "scale": 4, "face_enhance": true }, "output_format": "jpg"}`},
		{"POST", "/api/v1/jobs", "", `{"upload_id": "upl_8f3b1c2a...", "tool": "video_upscale", "config": { "scale": 2, "codec": "h264" }}`},
		{"POST", "/api/v1/uploads", "", `{"file_name": "clip.mp4", "file_size": 734003200, "content_type": "video/mp4"}`},
		{"POST", "/api/v1/uploads", "201", `{"upload_id": "upl_8f3b1c2a...", "put_url": "https://<bucket>.r2.cloudflarestorage.com/...&X-Amz-Signature=...", "expires_at": "2026-06-13T08:30:00Z", "max_bytes": 5261334937}`},
		{"POST", "/api/v1/jobs", "202", `{"job_id": "job_3f2a9c...", "status": "queued", "tool": "upscale", "media": "image", "credits_estimated": 1.0, "credits_charged": 0, "created_at": "2026-06-11T08:30:00Z"}`},
		{"POST", "/api/v1/jobs", "202", `{"job_id": "job_3f2a9c...", "status": "queued", "tool": "video_upscale", "media": "video", "credits_estimated": 0, "credits_charged": 0, "created_at": "2026-06-11T08:30:00Z"}`},
		{"GET", "/api/v1/jobs/{job_id}", "200", `{"job_id": "job_3f2a9c...", "status": "processing", "phase": "uploading", "progress": 0, "tool": "video_upscale", "media": "video", "result_url": null, "result": null, "error": null,
			"created_at": "2026-06-11T08:30:00Z", "finished_at": null}`},
		{"GET", "/api/v1/jobs/{job_id}", "200", `{"job_id": "job_3f2a9c...", "status": "succeeded", "progress": 100, "tool": "upscale", "result_url": "https://.../preview?sign=...",
			"result": { "width": 4000, "height": 3000, "size": 2451234 }, "error": null, "created_at": "2026-06-11T08:30:00Z", "finished_at": "2026-06-11T08:30:42Z"}`},
		{"POST", "/api/v1/jobs/{job_id}/cancel", "200", `{ "job_id": "job_3f2a9c...", "status": "canceled" }`},
		{"DELETE", "/api/v1/jobs/{job_id}", "200", `{ "job_id": "job_3f2a9c...", "deleted": true }`},
		{"GET", "/api/v1/credits", "200", `{ "balance": 999.8, "used": 234.2, "frozen": 12.5 }`},
		{"GET", "/api/v1/credits", "401", `{"error": {"code": "invalid_api_key", "message": "The API key provided is invalid or has been disabled.", "type": "auth"}}`},
		{"POST", "/api/v1/jobs", "402", `{"error": {"code": "insufficient_credits", "message": "Your account does not have enough credits for this operation.", "type": "billing"}}`},
	} {
		d.valid(e.method, e.path, e.status, e.text)
	}
	// The schemas do refuse.
	for _, e := range []struct{ method, path, status, text string }{
		{"POST", "/api/v1/jobs", "", `{"image_url": "https://example.com/photo.jpg"}`},
		{"POST", "/api/v1/jobs", "", `{"tool": "upscale", "output_format": "gif"}`},
		{"POST", "/api/v1/uploads", "", `{"file_name": "clip.mp4", "file_size": "1"}`},
		{"POST", "/api/v1/jobs", "202", `{"status": "queued"}`},
		{"GET", "/api/v1/credits", "200", `{"balance": "999.8", "used": 234.2, "frozen": 12.5}`},
		{"GET", "/api/v1/credits", "200", `{"balance": 999.8, "used": 234.2, "frozen": 12.5, "more": 1}`},
		{"GET", "/api/v1/jobs/{job_id}", "200", `{"job_id": "job_3f2a9c...", "status": "done", "progress": 100, "tool": "upscale", "result_url": null, "result": null, "error": null, "created_at": "x", "finished_at": null}`},
	} {
		d.invalid(e.method, e.path, e.status, e.text)
	}
}

// TestOpenAPIIsWhole checks the document itself: every operation has an example of each JSON answer, every error code has one somewhere, and
// the examples are valid.
func TestOpenAPIIsWhole(t *testing.T) {
	t.Parallel()
	r := embedded(t, nil)
	d := r.openAPI()
	if d.root["openapi"] != "3.1.0" {
		t.Errorf("openapi %v", d.root["openapi"])
	}
	codes := map[string]string{}
	ids := map[string]bool{}
	for path, item := range d.paths {
		for method, op := range item {
			operation := op.(map[string]any)
			id, _ := operation["operationId"].(string)
			if id == "" || ids[id] || operation["summary"] == "" || operation["description"] == "" {
				t.Errorf("%s %s: operationId %q, summary and description", method, path, id)
			}
			ids[id] = true
			for status, answer := range operation["responses"].(map[string]any) {
				headers := answer.(map[string]any)["headers"].(map[string]any)
				if headers["X-Request-Id"] == nil || headers["X-RateLimit-Remaining"] == nil {
					t.Errorf("%s %s %s: headers %v", method, path, status, headers)
				}
				media := d.media(method, path, status)
				if status == "302" {
					continue
				}
				examples, _ := media["examples"].(map[string]any)
				if len(examples) == 0 {
					t.Errorf("%s %s %s has no example", method, path, status)
				}
				for name, example := range examples {
					value := example.(map[string]any)["value"]
					for _, wrong := range d.check("example "+name, media["schema"].(map[string]any), value) {
						t.Errorf("%s %s %s: %s", method, path, status, wrong)
					}
					if e, ok := value.(map[string]any)["error"].(map[string]any); ok && e["message"] != nil && e["request_id"] != nil {
						codes[e["code"].(string)] = status
					}
				}
			}
			if operation["requestBody"] != nil {
				media := d.media(method, path, "")
				for name, example := range media["examples"].(map[string]any) {
					for _, wrong := range d.check("request "+name, media["schema"].(map[string]any), example.(map[string]any)["value"]) {
						t.Errorf("%s %s: %s", method, path, wrong)
					}
				}
			}
		}
	}
	for code, status := range documentedErrors() {
		if codes[code] != status {
			t.Errorf("%s has an example under %q, want %s", code, codes[code], status)
		}
	}
	for _, e := range endpoints() {
		path := strings.ReplaceAll(e[1], "job_00000000000000000000000000000000", "{job_id}")
		if d.paths[path][strings.ToLower(e[0])] == nil {
			t.Errorf("%s %s is not in the document", e[0], path)
		}
	}
}

// documentedErrors is the table of request errors of the API document.
func documentedErrors() map[string]string {
	return map[string]string{
		"invalid_api_key": "401", "unauthorized": "401", "insufficient_credits": "402", "invalid_parameter": "400", "unsupported_tool": "400", "geo_restricted": "403",
		"job_not_found": "404", "file_too_large": "413", "unsupported_format": "415", "not_cancelable": "409", "idempotency_conflict": "409", "upload_not_found": "404",
		"upload_already_consumed": "409", "upload_expired": "410", "result_not_ready": "202", "rate_limited": "429", "concurrency_limit_exceeded": "429",
		"service_unavailable": "503", "internal_error": "500",
	}
}

// TestLiveResponsesValidate checks real answers against the OpenAPI document.
func TestLiveResponsesValidate(t *testing.T) {
	t.Parallel()
	r := embedded(t, nil)
	d := r.openAPI()
	live := func(method, path, pattern string, resp response) {
		t.Helper()
		if resp.json == nil {
			t.Errorf("%s %s: %s", method, path, resp.text)
		}
		d.valid(method, pattern, fmt.Sprint(resp.StatusCode), string(resp.text))
		for _, name := range []string{"X-Request-Id", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset", "RateLimit", "RateLimit-Policy"} {
			if resp.Header.Get(name) == "" {
				t.Errorf("%s %s: no %s", method, path, name)
			}
		}
	}
	const jobPath = "/api/v1/jobs/{job_id}"
	image := r.postForm("/api/v1/jobs", file("image", png(10, 10)), text("tool", "upscale"), text("metadata", `{"a":"b"}`), text("more", "x"))
	live("POST", "/api/v1/jobs", "/api/v1/jobs", image)
	video := r.postJSON("/api/v1/jobs", `{"tool":"video_hdr","source_url":"https://example.com/a","config":{"x":1}}`)
	live("POST", "/api/v1/jobs", "/api/v1/jobs", video)
	look := func(id string) {
		t.Helper()
		live("GET", id, jobPath, r.get("/api/v1/jobs/"+id))
		live("GET", "list", "/api/v1/jobs", r.get("/api/v1/jobs?limit=1"))
	}
	first, second, third := image.json["job_id"].(string), video.json["job_id"].(string), r.queued("upscale")
	look(first)
	live("GET", first, jobPath+"/result", r.get("/api/v1/jobs/"+first+"/result"))
	r.succeeded(first, "x", engine.Output{Width: 20, Height: 20, Size: 1, Facts: map[string]any{"model": "m", "confidence": 0.5}})
	look(first)
	r.succeeded(second, "x", engine.Output{Width: 20, Height: 20, Size: 1, Duration: 1.5, Codec: "h265"})
	look(second)
	r.reserved(third, 1)
	look(third)
	live("POST", third, jobPath+"/cancel", r.send("POST", "/api/v1/jobs/"+third+"/cancel", nil))
	live("POST", third, jobPath+"/cancel", r.send("POST", "/api/v1/jobs/"+third+"/cancel", nil))
	live("GET", third, jobPath+"/result", r.get("/api/v1/jobs/"+third+"/result"))
	look(third)
	for _, code := range []engine.Code{engine.ProcessingFailed, engine.ProcessingTimeout, engine.SSRFBlocked, engine.UploadIncomplete, engine.InsufficientCredits, engine.ResolutionLimitExceeded} {
		id := r.queued("upscale")
		r.failed(id, code)
		look(id)
	}
	live("DELETE", first, jobPath, r.send("DELETE", "/api/v1/jobs/"+first, nil))
	live("GET", first, jobPath, r.get("/api/v1/jobs/"+first))
	live("POST", "uploads", "/api/v1/uploads", r.postJSON("/api/v1/uploads", `{"file_name":"a.mp4"}`))
	live("POST", "uploads", "/api/v1/uploads", r.postJSON("/api/v1/uploads", `{}`))
	live("GET", "credits", "/api/v1/credits", r.get("/api/v1/credits"))
	live("GET", "ledger", "/api/v1/credits/ledger", r.get("/api/v1/credits/ledger"))
	live("GET", "tools", "/api/v1/tools", r.get("/api/v1/tools"))
	for _, body := range []string{`{}`, `{"tool":"x"}`, `{"tool":"video_upscale","upload_id":"upl_00000000000000000000000000000000"}`} {
		live("POST", "jobs", "/api/v1/jobs", r.postJSON("/api/v1/jobs", body))
	}
}

// TestReferencePage looks at the page: whole, and self-contained.
func TestReferencePage(t *testing.T) {
	t.Parallel()
	r := embedded(t, nil)
	resp := r.status(r.send("GET", "/api/v1/docs", nil, "Authorization", ""), 200)
	page := string(resp.text)
	if kind := resp.Header.Get("Content-Type"); !strings.HasPrefix(kind, "text/html") {
		t.Errorf("Content-Type %q", kind)
	}
	if policy := resp.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'") || strings.Contains(policy, "http") {
		t.Errorf("Content-Security-Policy %q", policy)
	}
	for code := range documentedErrors() {
		if !strings.Contains(page, code) {
			t.Errorf("%s is not on the page", code)
		}
	}
	for path := range r.openAPI().paths {
		if !strings.Contains(page, path) {
			t.Errorf("%s is not on the page", path)
		}
	}
	for _, foreign := range []string{"<script", "src=", "<link", "@import", "url("} {
		if strings.Contains(page, foreign) {
			t.Errorf("the page has %q", foreign)
		}
	}
	if strings.Contains(page, "ZgotmplZ") || strings.Contains(page, "&lt;nil&gt;") {
		t.Error("the template met a value it cannot show")
	}
	if resp := r.send("POST", "/api/v1/docs", nil); resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
}
