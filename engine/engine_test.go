package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// everything has a field of every type and bound.
type everything struct {
	Scale    int     `json:"scale" doc:"Integer with enum." enum:"2,4,8"`
	Count    int     `json:"count" doc:"Integer with bounds." min:"-3" max:"10"`
	Free     int     `json:"free" doc:"Integer without bounds."`
	FPS      float64 `json:"fps,omitempty" doc:"Number that may be nothing." min:"1" max:"120"`
	Strength float64 `json:"strength" doc:"Number with a lower bound." min:"0.5"`
	Faces    bool    `json:"faces" doc:"Boolean."`
	Style    string  `json:"style" doc:"String with enum." enum:"anime,comic"`
	Prompt   string  `json:"prompt" doc:"Required string." required:"true" min:"1" max:"10"`
	Note     string  `json:"note,omitempty" doc:"Optional string." max:"5"`
}

var defaults = everything{Scale: 2, Strength: 1, Style: "anime"}

func double(c everything, s Source) (int, int) { return s.Width * c.Scale, s.Height * c.Scale }

// bench is a catalog with one image and one video tool that take every kind of field, and one image tool that takes nothing.
func bench(limits Limits) *Catalog {
	return NewCatalog(limits,
		Define(Spec[everything]{Name: "all", Media: Image, Doc: "Everything.", Defaults: defaults, Size: double, Check: func(c everything) error {
			if c.Count == 7 {
				return &ParamError{Param: "config.count", Message: "must not be 7."}
			}
			return nil
		}}),
		Define(Spec[everything]{
			Name: "video", Media: Video, Doc: "Everything.", Defaults: defaults, Size: double,
			FPS: func(c everything, s Source) float64 { return c.FPS },
		}),
		Define(Spec[struct{}]{
			Name: "plain", Media: Image, Doc: "Nothing.", Size: func(_ struct{}, s Source) (int, int) { return s.Width, s.Height },
			Format: func(asked string) string { return map[string]string{"": "png"}[asked] + asked },
		}),
	)
}

func TestOrder(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	for _, good := range []struct {
		config string
		want   everything
	}{
		{`{"prompt":"a"}`, everything{Scale: 2, Strength: 1, Style: "anime", Prompt: "a"}},
		{` { "prompt" : "a" , "scale" : 4 } `, everything{Scale: 4, Strength: 1, Style: "anime", Prompt: "a"}},
		{`{"prompt":"a","scale":4.0,"count":-3e0,"free":1e3}`, everything{Scale: 4, Count: -3, Free: 1000, Strength: 1, Style: "anime", Prompt: "a"}},
		{`{"prompt":"a","free":9007199254740992}`, everything{Scale: 2, Free: 1 << 53, Strength: 1, Style: "anime", Prompt: "a"}},
		{`{"prompt":"a","fps":29.97,"strength":0.5}`, everything{Scale: 2, FPS: 29.97, Strength: 0.5, Style: "anime", Prompt: "a"}},
		{`{"prompt":"a","fps":60,"strength":1e300}`, everything{Scale: 2, FPS: 60, Strength: 1e300, Style: "anime", Prompt: "a"}},
		{`{"prompt":"a","faces":true,"style":"comic","note":"12345"}`, everything{Scale: 2, Strength: 1, Faces: true, Style: "comic", Prompt: "a", Note: "12345"}},
		{`{"prompt":"a","scale":null,"count":null,"fps":null,"faces":null,"style":null,"note":null}`, everything{Scale: 2, Strength: 1, Style: "anime", Prompt: "a"}},
		{`{"prompt":"日本語日本語日本語日"}`, everything{Scale: 2, Strength: 1, Style: "anime", Prompt: "日本語日本語日本語日"}},
		{`{"prompt":"a","prompt":"b"}`, everything{Scale: 2, Strength: 1, Style: "anime", Prompt: "b"}},
	} {
		o, err := c.Order("all", json.RawMessage(good.config), "")
		if err != nil {
			t.Errorf("%s: %v", good.config, err)
			continue
		}
		canonical, err := json.Marshal(good.want)
		if err != nil || o.config != good.want || string(o.Canonical) != string(canonical) || len(o.Warnings) > 0 || o.Format != "jpg" || o.Tool.Name != "all" {
			t.Errorf("%s: %+v, %s", good.config, o, o.Canonical)
		}
	}
	for _, empty := range []string{"", " \n", "null", "{}", " { } "} {
		if o, err := c.Order("plain", json.RawMessage(empty), ""); err != nil || string(o.Canonical) != "{}" || o.Format != "png" {
			t.Errorf("%q: %+v, %v", empty, o, err)
		}
	}
}

func TestOrderRefuses(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	for _, bad := range []struct{ config, param, says string }{
		{`{}`, "config.prompt", "is required: a string of 1 to 10 characters."},
		{``, "config.prompt", "is required"},
		{`{"prompt":null}`, "config.prompt", "is required"},
		{`{"prompt":""}`, "config.prompt", "a string of 1 to 10 characters."},
		{`{"prompt":"  "}`, "config.prompt", ""},
		{`{"prompt":"12345678901"}`, "config.prompt", ""},
		{`{"prompt":1}`, "config.prompt", ""},
		{`{"prompt":["a"]}`, "config.prompt", ""},
		{`{"prompt":"a","scale":"4"}`, "config.scale", "must be 2, 4 or 8."},
		{`{"prompt":"a","scale":3}`, "config.scale", ""},
		{`{"prompt":"a","scale":4.5}`, "config.scale", ""},
		{`{"prompt":"a","scale":true}`, "config.scale", ""},
		{`{"prompt":"a","scale":[4]}`, "config.scale", ""},
		{`{"prompt":"a","scale":{}}`, "config.scale", ""},
		{`{"prompt":"a","scale":4e400}`, "config.scale", ""},
		{`{"prompt":"a","count":11}`, "config.count", "an integer of -3 to 10."},
		{`{"prompt":"a","count":-4}`, "config.count", ""},
		{`{"prompt":"a","count":7}`, "config.count", "must not be 7."},
		{`{"prompt":"a","free":9007199254740994}`, "config.free", "an integer."},
		{`{"prompt":"a","free":-1e30}`, "config.free", ""},
		{`{"prompt":"a","fps":0}`, "config.fps", "a number of 1 to 120."},
		{`{"prompt":"a","fps":120.01}`, "config.fps", ""},
		{`{"prompt":"a","fps":"60"}`, "config.fps", ""},
		{`{"prompt":"a","strength":0.49}`, "config.strength", "a number of at least 0.5."},
		{`{"prompt":"a","faces":1}`, "config.faces", "a boolean."},
		{`{"prompt":"a","faces":"true"}`, "config.faces", ""},
		{`{"prompt":"a","style":"Anime"}`, "config.style", "must be anime or comic."},
		{`{"prompt":"a","style":""}`, "config.style", ""},
		{`{"prompt":"a","style":1}`, "config.style", ""},
		{`{"prompt":"a","note":"123456"}`, "config.note", "a string of at most 5 characters."},
		{`[]`, "config", "must be a JSON object"},
		{`"{}"`, "config", ""},
		{`4`, "config", ""},
		{`{`, "config", ""},
		{`{} {}`, "config", ""},
		{`{"a":1,}`, "config", ""},
		{strings.Repeat(`{"a":`, 5000) + "1" + strings.Repeat("}", 5000), "config.prompt", "is required"},
		{strings.Repeat(`{"a":`, 10001) + "1" + strings.Repeat("}", 10001), "config", ""},
		{`{"prompt":"a","x":"` + strings.Repeat("x", maxConfigBytes) + `"}`, "config", "64 KiB"},
	} {
		o, err := c.Order("all", json.RawMessage(bad.config), "")
		p := (*ParamError)(nil)
		if !errors.As(err, &p) || p.Param != bad.param || !strings.Contains(p.Message, bad.says) || o != nil {
			t.Errorf("%.80s: %v, want %s: %s", bad.config, err, bad.param, bad.says)
		}
	}
	if _, err := c.Order("none", nil, ""); !errors.Is(err, ErrUnsupportedTool) {
		t.Error(err)
	}
}

func TestOutputFormat(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	for _, f := range []struct{ tool, asked, want string }{
		{"all", "", "jpg"},
		{"all", "jpg", "jpg"},
		{"all", "jpeg", "jpg"},
		{"all", "png", "png"},
		{"all", "webp", "webp"},
		{"plain", "", "png"},
		{"plain", "jpeg", "jpg"},
		{"video", "", "mp4"},
		{"video", "png", "mp4"},
		{"video", "nonsense", "mp4"},
	} {
		o, err := c.Order(f.tool, json.RawMessage(`{"prompt":"a"}`), f.asked)
		if err != nil || o.Format != f.want {
			t.Errorf("%+v: %+v, %v", f, o, err)
		}
		if warned := err == nil && slices.ContainsFunc(o.Warnings, func(w string) bool { return strings.Contains(w, "output_format") }); warned != (f.tool == "video" && f.asked != "") {
			t.Errorf("%+v: warnings %v", f, o.Warnings)
		}
	}
	for _, bad := range []string{"gif", "JPG", "mp4", "jpg ", "tiff"} {
		_, err := c.Order("all", json.RawMessage(`{"prompt":"a"}`), bad)
		if p := (*ParamError)(nil); !errors.As(err, &p) || p.Param != "output_format" {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for format, want := range map[string]string{"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "mp4": "video/mp4", "": "application/octet-stream"} {
		if got := (Plan{Format: format}).ContentType(); got != want {
			t.Errorf("%q is %s, want %s", format, got, want)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	o, err := c.Order("plain", json.RawMessage(`{"zoom":1,"Scale":2,"a\u0000\u001b[31mb":3,"":4,"`+strings.Repeat("ü", 60)+`":5,"source_width":6}`), "")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"config. has no effect on plain and was ignored.",
		"config.Scale has no effect on plain and was ignored.",
		"config.a[31mb has no effect on plain and was ignored.",
		"config.source_width has no effect on plain and was ignored.",
		"config.zoom has no effect on plain and was ignored.",
		"config." + strings.Repeat("ü", 40) + "... has no effect on plain and was ignored.",
	}
	if !slices.Equal(o.Warnings, want) || string(o.Canonical) != "{}" {
		t.Errorf("%q, want %q", o.Warnings, want)
	}
	many := []string{}
	for i := range 500 {
		many = append(many, fmt.Sprintf(`"k%d":0`, i))
	}
	o, err = c.Order("plain", json.RawMessage("{"+strings.Join(many, ",")+"}"), "")
	if err != nil || len(o.Warnings) != 21 || o.Warnings[20] != "More config keys were ignored." {
		t.Errorf("%d warnings, %v", len(o.Warnings), err)
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	for _, h := range []struct {
		config string
		want   Source
		frames int64
	}{
		{``, Source{}, 0},
		{`"source_width":640,"source_height":360`, Source{Width: 640, Height: 360}, 0},
		{`"source_width":640,"source_height":360,"duration":2.5`, Source{Width: 640, Height: 360, Duration: 2.5, FPS: 30}, 75},
		{`"source_width":null,"duration":0`, Source{}, 0},
		{`"duration":10,"fps":60`, Source{Duration: 10, FPS: 30}, 600},
	} {
		o, err := c.Order("video", json.RawMessage(strings.TrimSuffix(`{"prompt":"a",`+h.config, ",")+"}"), "")
		if err != nil || o.Hint != h.want || len(o.Warnings) > 0 || strings.Contains(string(o.Canonical), "source_") || strings.Contains(string(o.Canonical), "duration") {
			t.Errorf("%s: %+v, %v", h.config, o, err)
			continue
		}
		if p, err := o.Plan(o.Hint); err != nil || p.Frames != h.frames {
			t.Errorf("%s: %+v, %v; want %d frames", h.config, p, err, h.frames)
		}
	}
	for _, bad := range []struct{ config, param, says string }{
		{`"source_width":0`, "config.source_width", "must be an integer of 1 to 1000000."},
		{`"source_height":"360"`, "config.source_height", ""},
		{`"source_height":1000001`, "config.source_height", ""},
		{`"source_width":1.5`, "config.source_width", ""},
		{`"duration":-1`, "config.duration", "must be a number of 0 to 1000000."},
		{`"duration":"1"`, "config.duration", ""},
	} {
		_, err := c.Order("video", json.RawMessage(`{"prompt":"a",`+bad.config+`}`), "")
		if p := (*ParamError)(nil); !errors.As(err, &p) || p.Param != bad.param || !strings.Contains(p.Message, bad.says) {
			t.Errorf("%s: %v", bad.config, err)
		}
	}
}

func TestPlan(t *testing.T) {
	t.Parallel()
	c := bench(Limits{ImagePixels: 1_000_000, VideoLong: 4096, VideoShort: 2160, VideoFrames: 1000})
	for _, p := range []struct {
		tool, config  string
		src           Source
		width, height int
		frames        int64
		fps           float64
		over          bool
	}{
		{"all", `"scale":2`, Source{}, 0, 0, 0, 0, false},
		{"all", `"scale":2`, Source{Width: 500, Height: 0}, 0, 0, 0, 0, false},
		{"all", `"scale":2`, Source{Width: 500, Height: 500}, 1000, 1000, 0, 0, false},
		{"all", `"scale":2`, Source{Width: 501, Height: 500}, 1002, 1000, 0, 0, true},
		{"all", `"scale":4`, Source{Width: 500, Height: 500}, 2000, 2000, 0, 0, true},
		{"all", `"scale":8`, Source{Width: 1 << 30, Height: 1 << 30}, 1 << 33, 1 << 33, 0, 0, true}, // pixels pass 2^63
		{"video", `"scale":2`, Source{Width: 2048, Height: 1080}, 4096, 2160, 0, 0, false},
		{"video", `"scale":2`, Source{Width: 1080, Height: 2048}, 2160, 4096, 0, 0, false},
		{"video", `"scale":2`, Source{Width: 2049, Height: 100}, 4098, 200, 0, 0, true},
		{"video", `"scale":2`, Source{Width: 100, Height: 2049}, 200, 4098, 0, 0, true},
		{"video", `"scale":2`, Source{Width: 2048, Height: 1081}, 4096, 2162, 0, 0, true},
		{"video", `"scale":2`, Source{Width: 1081, Height: 2048}, 2162, 4096, 0, 0, true},
		{"video", `"scale":2`, Source{Width: 1081, Height: 1081}, 2162, 2162, 0, 0, true},
		{"video", `"scale":2`, Source{Width: 100, Height: 100, Frames: 1000, FPS: 25, Duration: 40}, 200, 200, 1000, 25, false},
		{"video", `"scale":2`, Source{Width: 100, Height: 100, Frames: 1001, FPS: 25, Duration: 40.04}, 200, 200, 1001, 25, true},
		{"video", `"fps":50`, Source{Width: 100, Height: 100, Frames: 250, FPS: 25, Duration: 10}, 200, 200, 500, 50, false},
		{"video", `"fps":25`, Source{Width: 100, Height: 100, Frames: 249, FPS: 25, Duration: 10}, 200, 200, 249, 25, false}, // counted frames win
		{"video", `"fps":12.5`, Source{Width: 100, Height: 100, Frames: 250, FPS: 25, Duration: 10}, 200, 200, 125, 12.5, false},
		{"video", `"fps":1`, Source{Width: 100, Height: 100, Frames: 1, FPS: 25, Duration: 0.04}, 200, 200, 1, 1, false},
		{"video", `"fps":50`, Source{Width: 100, Height: 100, Frames: 250, FPS: 25}, 200, 200, 500, 50, false},
		{"video", `"fps":50`, Source{Width: 100, Height: 100, Frames: 250}, 200, 200, 250, 50, false},
		{"video", `"fps":120`, Source{Width: 100, Height: 100, Frames: 250, FPS: 25, Duration: 10}, 200, 200, 1200, 120, true},
		{"video", `"fps":50`, Source{Width: 100, Height: 100}, 200, 200, 0, 50, false},
		{"video", `"scale":2`, Source{Duration: 10, FPS: 30}, 0, 0, 300, 30, false},
	} {
		o, err := c.Order(p.tool, json.RawMessage(`{"prompt":"a",`+p.config+`}`), "")
		if err != nil {
			t.Fatal(err)
		}
		got, err := o.Plan(p.src)
		failure, isFailure := AsFailure(err)
		if got.Width != p.width || got.Height != p.height || got.Frames != p.frames || got.FPS != p.fps || got.Known() != (p.width > 0) || got.Tool != p.tool || got.Format != o.Format {
			t.Errorf("%s of %+v: %+v", p.config, p.src, got)
		}
		if isFailure != p.over || (err != nil) != p.over || (p.over && failure.Code != ResolutionLimitExceeded) {
			t.Errorf("%s of %+v: %v, want a refusal: %v", p.config, p.src, err, p.over)
		}
	}
}

func TestRestore(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	for _, config := range []string{`{"prompt":"a"}`, `{"prompt":"<&>\u2028\u0000\ud800","fps":0.1e1,"count":-3,"strength":0.5,"faces":true}`, `{"prompt":"x","note":"","free":-0.0}`} {
		for _, tool := range []string{"all", "video"} {
			o, err := c.Order(tool, json.RawMessage(config), "webp")
			if err != nil {
				t.Fatal(err)
			}
			r, err := c.Restore(tool, o.Canonical, o.Format)
			if err != nil || r.Format != o.Format || string(r.Canonical) != string(o.Canonical) || r.config != o.config || r.Tool != o.Tool || len(r.Warnings) > 0 {
				t.Errorf("%s: %+v, %v; want %+v", config, r, err, o)
			}
		}
	}
	if _, err := c.Restore("gone", nil, "jpg"); !errors.Is(err, ErrUnsupportedTool) {
		t.Error(err)
	}
	if _, err := c.Restore("all", json.RawMessage(`{"prompt":"a","scale":3}`), "jpg"); err == nil {
		t.Error("a config that is no longer good is restored")
	}
}

func TestDefineRefuses(t *testing.T) {
	t.Parallel()
	refuses := func(name string, define func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s is taken", name)
			}
		}()
		define()
	}
	refuses("no name", func() { Define(Spec[struct{}]{Media: Image, Size: func(struct{}, Source) (int, int) { return 1, 1 }}) })
	refuses("no media", func() { Define(Spec[struct{}]{Name: "x", Size: func(struct{}, Source) (int, int) { return 1, 1 }}) })
	refuses("no output rule", func() { Define(Spec[struct{}]{Name: "x", Media: Image}) })
	refuses("two tools of one name", func() {
		a := Define(Spec[struct{}]{Name: "x", Media: Image, Size: func(struct{}, Source) (int, int) { return 1, 1 }})
		NewCatalog(DefaultLimits(), a, a)
	})
	refuses("no struct", func() { fields(t, 1) })
	refuses("no json tag", func() {
		fields(t, struct {
			A int `doc:"x"`
		}{})
	})
	refuses("no doc tag", func() {
		fields(t, struct {
			A int `json:"a"`
		}{})
	})
	refuses("a hidden field", func() {
		fields(t, structOf(reflect.StructField{Name: "a", PkgPath: "x", Tag: `json:"a" doc:"x"`}))
	})
	refuses("a slice", func() {
		fields(t, struct {
			A []int `json:"a" doc:"x"`
		}{})
	})
	refuses("a bound in words", func() {
		fields(t, struct {
			A int `json:"a" doc:"x" min:"one"`
		}{})
	})
	refuses("an enum of words for an integer", func() {
		fields(t, struct {
			A int `json:"a" doc:"x" enum:"one"`
		}{})
	})
	refuses("an enum of numbers", func() {
		fields(t, struct {
			A float64 `json:"a" doc:"x" enum:"1,2"`
		}{1})
	})
	refuses("two fields of one name", func() {
		fields(t, structOf(reflect.StructField{Name: "A", Tag: `json:"a" doc:"x"`}, reflect.StructField{Name: "B", Tag: `json:"a" doc:"x"`}))
	})
	refuses("a default below its bound", func() {
		fields(t, struct {
			A int `json:"a" doc:"x" min:"1"`
		}{})
	})
	refuses("a default outside its enum", func() {
		fields(t, struct {
			A string `json:"a" doc:"x" enum:"b,c"`
		}{})
	})
	refuses("a default that is omitted", func() {
		fields(t, struct {
			A int `json:"a,omitempty" doc:"x"`
		}{1})
	})
}

// structOf makes a struct of integers that go vet would not let anyone write.
func structOf(fields ...reflect.StructField) any {
	for i := range fields {
		fields[i].Type = reflect.TypeFor[int]()
	}
	return reflect.Zero(reflect.StructOf(fields)).Interface()
}

func fields[C any](t *testing.T, c C) {
	t.Helper()
	if _, err := fieldsOf(c); err != nil {
		panic(err)
	}
}

// valid checks a value against the part of JSON Schema that Schema writes.
func valid(schema map[string]any, value any) bool {
	number, isNumber := value.(float64)
	text, isText := value.(string)
	size := number
	switch schema["type"] {
	case "object":
		object, ok := value.(map[string]any)
		if !ok {
			return false
		}
		for _, name := range schema["required"].([]any) {
			if _, ok := object[name.(string)]; !ok {
				return false
			}
		}
		for name, property := range schema["properties"].(map[string]any) {
			if v, ok := object[name]; ok && !valid(property.(map[string]any), v) {
				return false
			}
		}
		return true
	case "integer":
		if !isNumber || number != float64(int64(number)) {
			return false
		}
	case "number":
		if !isNumber {
			return false
		}
	case "boolean":
		_, ok := value.(bool)
		return ok
	case "string":
		if !isText {
			return false
		}
		size = float64(utf8.RuneCountInString(text))
		if pattern, ok := schema["pattern"].(string); ok && !regexp.MustCompile(pattern).MatchString(text) {
			return false
		}
	default:
		return false
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, value) {
		return false
	}
	for _, bound := range []string{"minimum", "minLength"} {
		if low, ok := schema[bound].(float64); ok && size < low {
			return false
		}
	}
	for _, bound := range []string{"maximum", "maxLength"} {
		if high, ok := schema[bound].(float64); ok && size > high {
			return false
		}
	}
	return true
}

// published is a schema as a client reads it.
func published(t *testing.T, tool *Tool) map[string]any {
	t.Helper()
	text, err := json.Marshal(tool.Schema())
	if err != nil {
		t.Fatal(err)
	}
	var schema map[string]any
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	return schema
}

// TestSchemaIsTheParser: a random config passes the published schema exactly when the parser takes it.
func TestSchemaIsTheParser(t *testing.T) {
	t.Parallel()
	c := bench(DefaultLimits())
	tool, _ := c.Tool("video") // it has no check beside the tags
	schema := published(t, tool)
	value := rapid.OneOf(
		rapid.Custom(func(rt *rapid.T) any {
			return rapid.SampledFrom([]any{
				2., 3., 4., 8., -3., -4., 10., 11., 0., 0.5, 0.49, 1., 120., 120.5, 4.5, true, false, "", " ", "anime", "comic", "a", "12345", "123456", "4",
				"1234567890", "12345678901", "日本語",
				[]any{},
				map[string]any{},
			}).Draw(rt, "value")
		}),
		rapid.Map(rapid.Float64Range(-200, 200), func(f float64) any { return f }),
		rapid.Map(rapid.StringN(0, 12, -1), func(s string) any { return s }),
	)
	names := []string{"unknown"}
	for _, f := range tool.Fields {
		names = append(names, f.Name)
	}
	rapid.Check(t, func(rt *rapid.T) {
		config := rapid.MapOfN(rapid.SampledFrom(names), value, 0, 4).Draw(rt, "config")
		if rapid.IntRange(0, 3).Draw(rt, "prompted") > 0 {
			config["prompt"] = "a"
		}
		text, err := json.Marshal(config)
		if err != nil {
			rt.Fatal(err)
		}
		_, err = c.Order("video", text, "")
		if ok := valid(schema, config); ok != (err == nil) {
			rt.Fatalf("%s: the schema says %v, the parser %v", text, ok, err)
		}
	})
	if want := []any{"prompt"}; !slices.Equal(schema["required"].([]any), want) {
		t.Errorf("required %v", schema["required"])
	}
	for _, f := range tool.Fields {
		property := schema["properties"].(map[string]any)[f.Name].(map[string]any)
		if property["description"] != f.Doc || (f.Default != nil) != (property["default"] != nil) {
			t.Errorf("%s: %v", f.Name, property)
		}
	}
}

func FuzzOrder(f *testing.F) {
	c := bench(DefaultLimits())
	for _, config := range []string{
		``, `null`, `{}`, `{"prompt":"a"}`, `{"prompt":"a","scale":4.0,"count":-3,"free":1e3,"fps":29.97,"strength":0.5,"faces":true,"style":"comic","note":"x"}`,
		`{"prompt":"\ud800\u0000<>&","source_width":640,"source_height":360,"duration":2.5}`, `{"prompt":"a","free":-0.0}`, `{"fps":1e999}`, "{\"prompt\":\"\xff\"}", `[[[[`,
	} {
		f.Add(uint8(0), []byte(config), "")
		f.Add(uint8(1), []byte(config), "jpeg")
		f.Add(uint8(2), []byte(config), "webp")
	}
	f.Fuzz(func(t *testing.T, which uint8, config []byte, format string) {
		tool := c.tools[int(which)%len(c.tools)].Name
		o, err := c.Order(tool, config, format)
		if err != nil {
			if p := (*ParamError)(nil); !errors.As(err, &p) || p.Param == "" || p.Message == "" || !utf8.ValidString(p.Message) {
				t.Fatalf("%v is not for a client", err)
			}
			return
		}
		again, err := c.Order(tool, o.Canonical, "")
		if err != nil || string(again.Canonical) != string(o.Canonical) || again.config != o.config || len(again.Warnings) > 0 {
			t.Fatalf("%q is %s, which is %+v, %v", config, o.Canonical, again, err)
		}
		restored, err := c.Restore(tool, o.Canonical, o.Format)
		if err != nil || restored.Format != o.Format {
			t.Fatalf("restored %+v, %v", restored, err)
		}
		if len(o.Warnings) > maxWarnings+2 || !slices.Equal(o.Warnings, slices.DeleteFunc(slices.Clone(o.Warnings), func(w string) bool { return len(w) > 400 })) {
			t.Fatalf("warnings %q", o.Warnings)
		}
		if p, err := o.Plan(o.Hint); err != nil {
			if failure, ok := AsFailure(err); !ok || failure.Code != ResolutionLimitExceeded {
				t.Fatalf("plan %+v: %v", p, err)
			}
		}
	})
}

func TestFailure(t *testing.T) {
	t.Parallel()
	inner := errors.New("exit status 1: /tmp/secret")
	f := Failf(UnsupportedFormat, "The file is %s.", "no image").Because(inner)
	wrapped := fmt.Errorf("sync: %w", f)
	got, ok := AsFailure(wrapped)
	if !ok || got != f || !errors.Is(wrapped, inner) || got.Message != "The file is no image." || !strings.Contains(f.Error(), "exit status 1") {
		t.Errorf("%+v", got)
	}
	if _, ok := AsFailure(inner); ok {
		t.Error("an inner error is no failure")
	}
	if _, ok := AsFailure(nil); ok {
		t.Error("nil is no failure")
	}
	for code, want := range map[Code]string{
		ProcessingFailed: "processing", ProcessingTimeout: "processing", InsufficientCredits: "billing", FileTooLarge: "validation", UnsupportedFormat: "validation",
		SSRFBlocked: "validation", UploadIncomplete: "validation", ResolutionLimitExceeded: "validation",
	} {
		if code.Type() != want {
			t.Errorf("%s is of type %s, want %s", code, code.Type(), want)
		}
	}
}

// A tool's own functions get the checked config.
func TestToolFunctions(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	c := NewCatalog(DefaultLimits(), Define(Spec[everything]{
		Name: "all", Media: Image, Doc: "Everything.", Defaults: defaults, Size: double,
		Examples: []everything{{Scale: 4, Strength: 1, Style: "anime", Prompt: "a"}}, Bad: []string{`{"scale":3}`},
		Fits: func(p Plan) error {
			return map[bool]error{true: Failf(ResolutionLimitExceeded, "Too wide.")}[p.Width > 100]
		},
		Measure: func(_ context.Context, path string) (Source, error) { return Source{Width: len(path)}, nil },
		Memory:  func(c everything, task Task) int64 { return int64(c.Scale) * task.Plan.Pixels() },
		Process: func(_ context.Context, c everything, task Task) (Output, error) {
			return Output{Width: c.Scale, Warnings: []string{c.Prompt + task.Input}}, broken
		},
	}))
	o, err := c.Order("all", json.RawMessage(`{"prompt":"p","scale":8}`), "")
	if err != nil {
		t.Fatal(err)
	}
	if src, err := o.Measure(t.Context(), "12345"); err != nil || src.Width != 5 {
		t.Errorf("%+v, %v", src, err)
	}
	if n := o.Memory(Task{Plan: Plan{Width: 3, Height: 5}}); n != 120 {
		t.Errorf("memory %d", n)
	}
	if out, err := o.Process(t.Context(), Task{Input: "/in"}); !errors.Is(err, broken) || out.Width != 8 || out.Warnings[0] != "p/in" {
		t.Errorf("%+v, %v", out, err)
	}
	for _, s := range []struct {
		width int
		fits  bool
	}{{12, true}, {13, false}, {0, true}} {
		if _, err := o.Plan(Source{Width: s.width, Height: 1}); (err == nil) != s.fits {
			t.Errorf("width %d: %v", s.width, err)
		}
	}
	tool := c.Tools()[0]
	for _, example := range tool.Examples {
		if _, err := c.Order("all", example, ""); err != nil || !valid(published(t, &tool), decoded(t, example)) {
			t.Errorf("%s: %v", example, err)
		}
	}
	for _, bad := range tool.Bad {
		if _, err := c.Order("all", bad, ""); err == nil || valid(published(t, &tool), decoded(t, bad)) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if c.Limits() != DefaultLimits() {
		t.Errorf("limits %+v", c.Limits())
	}
}

func decoded(t *testing.T, text json.RawMessage) (value any) {
	t.Helper()
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatal(err)
	}
	return value
}
