package api_test

import (
	"net/http"
	"strings"
	"testing"

	"enlarger/engine"
)

func TestSmoke(t *testing.T) {
	t.Parallel()
	each(t, func(r *rig) {
		resp := r.postForm("/api/v1/jobs", file("image", png(1000, 750)), text("tool", "upscale"), text("config", `{"scale":4,"face_enhance":true}`), text("output_format", "jpg"))
		r.Logf("%d %v %s", resp.StatusCode, resp.Header, resp.text)
		id := resp.json["job_id"].(string)
		r.succeeded(id, "content", engine.Output{Width: 4000, Height: 3000, Size: 7})
		resp = r.get("/api/v1/jobs/" + id)
		r.Logf("%d %s", resp.StatusCode, resp.text)
		resp = r.get("/api/v1/jobs/" + id + "/result")
		r.Logf("%d %s", resp.StatusCode, resp.Header)
		got, err := http.Get(resp.Header.Get("Location"))
		must(r, err)
		got.Body.Close()
		if got.StatusCode != 200 {
			r.Errorf("result: %d", got.StatusCode)
		}
		for _, p := range []string{"/api/v1/tools", "/api/v1/credits", "/api/v1/credits/ledger", "/api/v1/jobs", "/readyz", "/healthz", "/api/v1/openapi.json", "/nothing", "/api//v1"} {
			resp := r.get(p)
			r.Logf("%s: %d %.300s", p, resp.StatusCode, resp.text)
		}
		for _, line := range r.log.all() {
			r.Log(line)
		}
		_ = strings.Join
	})
}
