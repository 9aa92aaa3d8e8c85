// Package engine is the core of enlarger: what a tool is, what a client asked of it, what will come out and why it may fail.
//
// It hides how a config is checked and described (one Go struct per tool becomes the parser, the JSON Schema and the docs) and
// how the size, length and work of an output follow from a source. It knows no SQL, no Redis, no object storage and no HTTP;
// the pixel work itself lives in engine/image and engine/video.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
)

// Media is the kind of thing a tool takes and gives.
type Media string

// The two media of the API.
const (
	Image Media = "image"
	Video Media = "video"
)

// Source is what is known of a source. Zero fields are unknown, so that one type serves a client's claim, a header seen at
// submit and a full measurement.
type Source struct {
	// Width and Height are in pixels as displayed, after any rotation the file asks for.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	// Frames is the number of video frames counted, not the number the container claims.
	Frames int64 `json:"frames,omitempty"`
	// FPS is the average frame rate in frames a second.
	FPS float64 `json:"fps,omitempty"`
	// Duration is in seconds.
	Duration float64 `json:"duration,omitempty"`
	// Size is in bytes.
	Size int64 `json:"size,omitempty"`
	// Format is the file format found in the content: jpeg, png, webp, gif, bmp, tiff, mp4, webm ...
	Format string `json:"format,omitempty"`
	Codec  string `json:"codec,omitempty"`
	Alpha  bool   `json:"alpha,omitempty"`
	Audio  bool   `json:"audio,omitempty"`
}

// Known says whether the pixel size is known.
func (s Source) Known() bool { return s.Width > 0 && s.Height > 0 }

// Plan is what will come out of a job: a pure function of the checked request and of what is known of the source, used
// both for the estimate at submit and for the truth in the worker.
type Plan struct {
	Tool  string `json:"tool"`
	Media Media  `json:"media"`
	// Width and Height of the output in pixels; 0 when the source is unknown.
	Width  int `json:"width,omitempty"`
	Height int `json:"height,omitempty"`
	// Frames, FPS and Duration (seconds) of a video output; 0 when unknown.
	Frames   int64   `json:"frames,omitempty"`
	FPS      float64 `json:"fps,omitempty"`
	Duration float64 `json:"duration,omitempty"`
	// Format is the output's file extension without the dot: jpg, png, webp, mp4.
	Format string `json:"format"`
}

// Known says whether the plan has an output size.
func (p Plan) Known() bool { return p.Width > 0 && p.Height > 0 }

// Pixels is the number of pixels of one output frame, at most 2^63-1: a header can claim sides whose product is more.
func (p Plan) Pixels() int64 {
	if p.Width > 0 && int64(p.Height) > math.MaxInt64/int64(p.Width) {
		return math.MaxInt64
	}
	return int64(p.Width) * int64(p.Height)
}

// ContentType is the MIME type of an output in this plan's format.
func (p Plan) ContentType() string {
	switch p.Format {
	case "jpg":
		return "image/jpeg"
	case "png":
		return "image/png"
	case "webp":
		return "image/webp"
	case "mp4":
		return "video/mp4"
	}
	return "application/octet-stream"
}

// Task is one run of a tool on local files.
type Task struct {
	Plan   Plan
	Source Source
	// Input is read only. Output does not exist yet. Scratch is a private directory that the caller removes.
	Input, Output, Scratch string
	// Progress takes the part done, 0 to 1. It is cheap, may be called from any goroutine, and ignores a step back.
	Progress func(done float64)
}

// Output is what a run produced, measured on the written file.
type Output struct {
	Width  int `json:"width"`
	Height int `json:"height"`
	// Duration is in seconds; video only.
	Duration float64 `json:"duration,omitempty"`
	// Size is in bytes.
	Size  int64  `json:"size"`
	Codec string `json:"codec,omitempty"`
	// Facts are extra facts for the job's `output`, such as the method or model used.
	Facts    map[string]any `json:"facts,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

// Limits bound what the engine accepts to make.
type Limits struct {
	// ImagePixels is the most pixels an image output may have.
	ImagePixels int64
	// VideoLong and VideoShort are the most pixels of a video output's long and short side.
	VideoLong, VideoShort int
	// VideoFrames is the most frames a video output may have.
	VideoFrames int64
}

// DefaultLimits are 200 megapixels for images and the documented 4096x2160 for video, in any orientation. The frame limit is
// ten hours at 60 frames a second: a guard against files that lie, not a product limit.
func DefaultLimits() Limits {
	return Limits{ImagePixels: 200_000_000, VideoLong: 4096, VideoShort: 2160, VideoFrames: 10 * 3600 * 60}
}

// Check returns a resolution_limit_exceeded Failure when the plan's known output is over the limits.
func (l Limits) Check(p Plan) error {
	if !p.Known() {
		return nil
	}
	if p.Media == Image {
		if p.Pixels() > l.ImagePixels {
			return Failf(ResolutionLimitExceeded, "The output would be %dx%d (%.0f megapixels); the limit is %.0f megapixels. Use a smaller scale or a smaller source.",
				p.Width, p.Height, float64(p.Pixels())/1e6, float64(l.ImagePixels)/1e6)
		}
		return nil
	}
	long, short := max(p.Width, p.Height), min(p.Width, p.Height)
	if long > l.VideoLong || short > l.VideoShort {
		return Failf(ResolutionLimitExceeded, "The output would be %dx%d; the limit is %d on the long side and %d on the short side. Use a smaller scale or a smaller source.",
			p.Width, p.Height, l.VideoLong, l.VideoShort)
	}
	if p.Frames > l.VideoFrames {
		return Failf(ResolutionLimitExceeded, "The output would have %d frames; the limit is %d.", p.Frames, l.VideoFrames)
	}
	return nil
}

// Tool is one operation of the API. Make one with Define.
type Tool struct {
	Name  string
	Media Media
	// Doc says in one or two sentences what the tool does, for clients.
	Doc string
	// Fields describe the config, in the order of the struct.
	Fields []Field
	// Examples are valid configs; Bad are configs that must be refused.
	Examples, Bad []json.RawMessage

	parse   func(raw map[string]json.RawMessage) (any, error)
	plan    func(config any, src Source, format string) (Plan, error)
	measure func(ctx context.Context, path string) (Source, error)
	process func(ctx context.Context, config any, task Task) (Output, error)
	format  func(asked string) string
	memory  func(config any, task Task) int64
	parts   *parting
}

// Spec is a tool as its file writes it, with C the config struct: exported fields with tags `json`, `doc`, and optionally
// `enum` ("2,4,8"), `min`, `max` (value, or length of a string) and `required`. The value of Defaults fills what a client leaves out.
type Spec[C any] struct {
	Name     string
	Media    Media
	Doc      string
	Defaults C
	// Examples are valid configs; Bad are JSON texts that must be refused.
	Examples []C
	Bad      []string
	// Check refuses what the tags cannot say; it returns a *ParamError. May be nil.
	Check func(C) error
	// Size is the output rule: the output's pixels from the source's. FPS is the output frame rate and may be nil (the source's).
	Size func(C, Source) (width, height int)
	FPS  func(C, Source) float64
	// Format chooses the output format from what the client asked ("" when it asked nothing). Nil: jpg for images, mp4 for videos.
	Format func(asked string) string
	// Fits refuses a plan with a known output size that its format cannot hold, with a Failure. May be nil.
	Fits func(Plan) error
	// Measure reads the facts of a source file; what is no source for this tool is an unsupported_format Failure.
	Measure func(ctx context.Context, path string) (Source, error)
	// Memory estimates the peak bytes this process needs for a run; nil when it is small.
	Memory  func(C, Task) int64
	Process func(ctx context.Context, config C, task Task) (Output, error)
	// Parts is how a long task is cut, so that several workers can share it; nil when it is always done whole.
	Parts *Parts[C]
}

// Define makes a Tool of a Spec. It panics on a Spec that cannot work, which a test over the catalog finds.
func Define[C any](s Spec[C]) Tool {
	fields, err := fieldsOf[C](s.Defaults)
	if err == nil && (s.Name == "" || s.Size == nil || (s.Media != Image && s.Media != Video)) {
		err = errors.New("a name, a media and an output rule are required")
	}
	if err != nil {
		panic(fmt.Sprintf("tool %s: %v", s.Name, err))
	}
	t := Tool{Name: s.Name, Media: s.Media, Doc: s.Doc, Fields: fields, measure: s.Measure, parts: partingOf(s.Parts)}
	for _, example := range s.Examples {
		text, err := json.Marshal(example)
		if err != nil {
			panic(fmt.Sprintf("tool %s: example: %v", s.Name, err))
		}
		t.Examples = append(t.Examples, text)
	}
	for _, bad := range s.Bad {
		t.Bad = append(t.Bad, json.RawMessage(bad))
	}
	t.parse = func(raw map[string]json.RawMessage) (any, error) {
		config := s.Defaults
		if err := decodeFields(fields, raw, &config); err != nil {
			return nil, err
		}
		if s.Check != nil {
			if err := s.Check(config); err != nil {
				return nil, err
			}
		}
		return config, nil
	}
	t.format = s.Format
	if t.format == nil {
		t.format = defaultFormat(s.Media)
	}
	t.plan = func(config any, src Source, format string) (Plan, error) {
		return planOf(s, config.(C), src, format)
	}
	t.process = func(ctx context.Context, config any, task Task) (Output, error) {
		return s.Process(ctx, config.(C), task)
	}
	t.memory = func(config any, task Task) int64 {
		if s.Memory == nil {
			return 0
		}
		return s.Memory(config.(C), task)
	}
	return t
}

func defaultFormat(media Media) func(string) string {
	return func(asked string) string {
		switch {
		case media == Video:
			return "mp4"
		case asked == "":
			return "jpg"
		}
		return asked
	}
}

func planOf[C any](s Spec[C], config C, src Source, format string) (Plan, error) {
	p := Plan{Tool: s.Name, Media: s.Media, Format: format}
	if src.Known() {
		p.Width, p.Height = s.Size(config, src)
	}
	if s.Media == Video {
		p.FPS, p.Duration, p.Frames = src.FPS, src.Duration, src.Frames
		if p.Duration == 0 && p.FPS > 0 {
			p.Duration = float64(p.Frames) / p.FPS
		}
		if s.FPS != nil {
			if fps := s.FPS(config, src); fps > 0 && fps != src.FPS {
				p.FPS = fps
				if p.Duration > 0 {
					p.Frames = 0
				}
			}
		}
		if p.Frames == 0 && p.FPS > 0 && p.Duration > 0 {
			p.Frames = max(1, int64(p.Duration*p.FPS+0.5))
		}
	}
	if s.Fits != nil && p.Known() {
		return p, s.Fits(p)
	}
	return p, nil
}

// Catalog is the list of tools this server offers, with its limits.
type Catalog struct {
	tools  []Tool
	limits Limits
}

// NewCatalog makes a catalog. It panics when two tools share a name.
func NewCatalog(limits Limits, tools ...Tool) *Catalog {
	for i, t := range tools {
		if slices.ContainsFunc(tools[:i], func(other Tool) bool { return other.Name == t.Name }) {
			panic("two tools are named " + t.Name)
		}
	}
	return &Catalog{tools: slices.Clone(tools), limits: limits}
}

// Tools are the catalog's tools in their order.
func (c *Catalog) Tools() []Tool { return slices.Clone(c.tools) }

// Limits are the catalog's limits.
func (c *Catalog) Limits() Limits { return c.limits }

// Tool finds a tool by name.
func (c *Catalog) Tool(name string) (*Tool, bool) {
	for i := range c.tools {
		if c.tools[i].Name == name {
			return &c.tools[i], true
		}
	}
	return nil, false
}

// ErrUnsupportedTool is returned for a tool that the catalog does not have.
var ErrUnsupportedTool = errors.New("unsupported tool")

// ParamError names the parameter of a request that is wrong and how to mend it.
type ParamError struct {
	// Param is a path such as "config.scale".
	Param   string
	Message string
}

func (e *ParamError) Error() string { return e.Param + ": " + e.Message }

// Order is a checked request: a tool, its config and the output format.
type Order struct {
	Tool *Tool
	// Canonical is the config with defaults filled in and keys in a fixed order: what the job row stores and what an
	// idempotency key is bound to.
	Canonical json.RawMessage
	// Format is the output's file extension without the dot.
	Format string
	// Hint is what the client claims of its source: good for an estimate, never trusted.
	Hint Source
	// Warnings name what was ignored.
	Warnings []string

	config any
	limits Limits
}

// Formats are the values of output_format; jpeg is also taken for jpg.
var Formats = []string{"jpg", "png", "webp"}

// Order checks a request. config may be empty. It returns ErrUnsupportedTool or a *ParamError.
func (c *Catalog) Order(tool string, config json.RawMessage, outputFormat string) (*Order, error) {
	t, ok := c.Tool(tool)
	if !ok {
		return nil, ErrUnsupportedTool
	}
	raw, err := configObject(config)
	if err != nil {
		return nil, err
	}
	o := &Order{Tool: t, limits: c.limits}
	if o.Format, err = t.outputFormat(outputFormat); err != nil {
		return nil, err
	}
	if t.Media == Video {
		if o.Hint, err = takeHint(raw); err != nil {
			return nil, err
		}
	}
	if o.config, err = t.parse(raw); err != nil {
		return nil, err
	}
	if o.Canonical, err = json.Marshal(o.config); err != nil {
		return nil, fmt.Errorf("encode config: %w", err)
	}
	for name := range raw {
		if !slices.ContainsFunc(t.Fields, func(f Field) bool { return f.Name == name }) {
			o.Warnings = append(o.Warnings, fmt.Sprintf("config.%s has no effect on %s and was ignored.", printable(name), t.Name))
		}
	}
	sort.Strings(o.Warnings)
	if len(o.Warnings) > maxWarnings {
		o.Warnings = append(o.Warnings[:maxWarnings], "More config keys were ignored.")
	}
	if t.Media == Video && outputFormat != "" {
		o.Warnings = append(o.Warnings, "output_format applies to images only and was ignored.")
	}
	return o, nil
}

const maxWarnings = 20

func (t *Tool) outputFormat(asked string) (string, error) {
	if t.Media == Video {
		return t.format(""), nil
	}
	if asked == "jpeg" {
		asked = "jpg"
	}
	if asked != "" && !slices.Contains(Formats, asked) {
		return "", &ParamError{Param: "output_format", Message: "must be jpg, png or webp."}
	}
	return t.format(asked), nil
}

// Restore makes an Order of what a job row stored. The row was checked when it was written, so an error means that the
// tool has gone or its config has changed since.
func (c *Catalog) Restore(tool string, canonical json.RawMessage, format string) (*Order, error) {
	o, err := c.Order(tool, canonical, "")
	if err != nil {
		return nil, fmt.Errorf("restore order for %s: %w", tool, err)
	}
	o.Format = format
	return o, nil
}

// Plan says what will come out for what is known of the source. An output over the limits is a resolution_limit_exceeded Failure.
func (o *Order) Plan(src Source) (Plan, error) {
	p, err := o.Tool.plan(o.config, src, o.Format)
	if err != nil {
		return Plan{}, err
	}
	return p, o.limits.Check(p)
}

// Measure reads the facts of a source file for this tool.
func (o *Order) Measure(ctx context.Context, path string) (Source, error) {
	return o.Tool.measure(ctx, path)
}

// Memory estimates the peak bytes this process needs for the task.
func (o *Order) Memory(task Task) int64 {
	return o.Tool.memory(o.config, task)
}

// Process runs the tool. The error is a *Failure when the client is to hear of it; anything else is internal. It returns
// soon after ctx is done, with ctx's error in the chain.
func (o *Order) Process(ctx context.Context, task Task) (Output, error) {
	return o.Tool.process(ctx, o.config, task)
}
