package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"enlarger/engine"
	enlarge "enlarger/engine/image"
)

// TestModelServerEditsImages runs the custom tool against a server that speaks the protocol of docs/model-server.md: it paints what it gets red.
func TestModelServerEditsImages(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f, _, err := r.FormFile("image")
		if err != nil {
			t.Error(err)
			return
		}
		content, _ := io.ReadAll(f)
		got, err := png.DecodeConfig(bytes.NewReader(content))
		if err != nil || fmt.Sprint(got.Width) != r.FormValue("width") || fmt.Sprint(got.Height) != r.FormValue("height") {
			t.Errorf("%+v, %v, %v", got, r.Form, err)
		}
		if strings.Contains(r.FormValue("prompt"), "forbidden") {
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"error": {"message": "Not that."}}`)
			return
		}
		red := image.NewNRGBA(image.Rect(0, 0, got.Width, got.Height))
		for i := range red.Pix {
			red.Pix[i] = []uint8{255, 0, 0, 255}[i%4]
		}
		_ = png.Encode(w, red)
	}))
	defer server.Close()
	edit, err := editor(&settings{ModelServer: server.URL, ModelServerTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	catalog := engine.NewCatalog(engine.DefaultLimits(), enlarge.Tools(enlarge.Options{Edit: edit})...)
	source := filepath.Join("..", "..", "fixtures", "media", "alpha.png")
	run := func(prompt string) (string, error) {
		config, _ := json.Marshal(map[string]string{"prompt": prompt})
		order, err := catalog.Order("custom", config, "png")
		if err != nil {
			t.Fatal(err)
		}
		facts, err := order.Measure(t.Context(), source)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := order.Plan(facts)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		task := engine.Task{Plan: plan, Source: facts, Input: source, Output: filepath.Join(dir, "out.png"), Scratch: dir}
		_, err = order.Process(t.Context(), task)
		return task.Output, err
	}
	path, err := run("paint the town red")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	img, err := png.Decode(f)
	if err != nil || color.NRGBAModel.Convert(img.At(3, 3)) != (color.NRGBA{255, 0, 0, 255}) {
		t.Errorf("%v, %v", img.At(3, 3), err)
	}
	_, err = run("something forbidden")
	if failure, ok := engine.AsFailure(err); !ok || failure.Code != engine.ProcessingFailed || !strings.Contains(failure.Message, "Not that.") {
		t.Error(err)
	}
	if _, err := editor(&settings{ModelServer: "nonsense"}); err == nil || !strings.Contains(err.Error(), "ENLARGER_MODEL_SERVER") {
		t.Error(err)
	}
}
