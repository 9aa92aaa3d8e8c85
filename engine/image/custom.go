package image

import (
	"context"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"strings"

	"enlarger/engine"
	"enlarger/engine/neural"
)

type customConfig struct {
	Prompt      string `json:"prompt" doc:"What to do, in English: \"brighter, black and white, crop to 16:9\". The operations that are understood are listed in docs/tools.md." required:"true" min:"1" max:"1000"`
	FaceEnhance bool   `json:"face_enhance" doc:"Restore faces as well."`
}

func customTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[customConfig]{
		Name:  "custom",
		Media: engine.Image,
		Doc: "Carries out what a prompt asks for: light and colours, blur, noise and sharpness, sizes and crops, borders, the background, painted looks. " +
			"The plan that the prompt became is part of the job's output; a prompt that is not understood fails and says what is.",
		Examples: []customConfig{{Prompt: "make it brighter and more vivid"}, {Prompt: "Black and white, crop to 16:9"}, {Prompt: "rotate left, then 30% more contrast", FaceEnhance: true}},
		Bad:      []string{`{}`, `{"prompt": ""}`, `{"prompt": "   "}`, `{"prompt": 5}`, `{"prompt": "` + strings.Repeat("x", 1001) + `"}`, `{"prompt": "brighter", "face_enhance": 1}`},
		Size:     customSize,
		Fits:     fits,
		Measure:  o.Measure,
		Memory:   o.customMemory,
		Process:  o.custom,
	})
}

// customSize is the output rule: what the plan makes of the source's size. A prompt without a plan keeps it: the job fails, or the model
// server's answer is given that size.
func customSize(c customConfig, src engine.Source) (width, height int) {
	width, height = src.Width, src.Height
	steps, err := readPrompt(c.Prompt)
	if _, marked := generative(c.Prompt); err != nil || marked {
		return width, height
	}
	for _, s := range steps {
		width, height = s.size(width, height)
	}
	return width, height
}

// understood is what a client reads when a prompt means nothing.
const understood = "Understood are, in English and in any order: brighter, darker, exposure, contrast, saturation, warmer, cooler, tint, black and white, sepia, vintage, invert, " +
	"enhance, blur, sharpen, denoise, grain, vignette, rotate, flip, crop to a ratio or size, resize, fit, upscale, border, remove, blur or colour the background, " +
	"and anime, comic, sketch, watercolor or oil painting."

// generative says whether a prompt is meant for the model server alone, and gives it without its mark.
func generative(prompt string) (string, bool) {
	trimmed := strings.TrimSpace(prompt)
	for _, mark := range []string{"ai:", "generate:"} {
		if len(trimmed) > len(mark) && strings.EqualFold(trimmed[:len(mark)], mark) {
			rest := strings.TrimSpace(trimmed[len(mark):])
			return rest, rest != ""
		}
	}
	return prompt, false
}

func (o Options) custom(ctx context.Context, c customConfig, task engine.Task) (engine.Output, error) {
	if err := fits(task.Plan); err != nil {
		return engine.Output{}, err
	}
	text, marked := generative(c.Prompt)
	steps, unknown := readPrompt(c.Prompt)
	if marked || unknown != nil {
		if o.Edit != nil {
			return o.generate(ctx, text, task)
		}
		if marked {
			return engine.Output{}, engine.Failf(engine.ProcessingFailed, "This server has no model server for generative edits. %s", understood)
		}
		return engine.Output{}, engine.Failf(engine.ProcessingFailed, "The prompt was %s. %s", clipped(unknown.Error()), understood)
	}
	if err := o.feasible(steps, task.Source); err != nil {
		return engine.Output{}, err
	}
	done := &progress{report: task.Progress}
	source, err := o.open(ctx, task.Input, task.Scratch)
	if err != nil {
		return engine.Output{}, err
	}
	done.reach(decodedPart)
	w := &workbench{options: o, scratch: task.Scratch, picture: source, path: task.Input}
	defer func() { w.picture.Close() }()
	var faces faceResult
	if c.FaceEnhance {
		if faces, err = o.enhanceFaces(ctx, source.raster); err != nil {
			return engine.Output{}, wrapRun(ctx, "custom", err)
		}
	}
	result, err := w.run(ctx, steps, task, done)
	if err != nil {
		return engine.Output{}, wrapRun(ctx, "custom", err)
	}
	if c.FaceEnhance {
		result.Facts = withFacts(result.Facts, faces)
	}
	done.reach(1)
	return result, nil
}

// clipped bounds what is repeated of a client's words.
func clipped(text string) string {
	const most = 200
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "..."
	}
	return text
}

// feasible refuses a plan in which any step makes a picture over the limit, or one without pixels.
func (o Options) feasible(steps []step, src engine.Source) error {
	width, height := src.Width, src.Height
	for _, s := range steps {
		if !src.Known() {
			return nil
		}
		width, height = s.size(width, height)
		if int64(width)*int64(height) > o.SourcePixels || max(width, height) > 1<<18 {
			return engine.Failf(engine.ResolutionLimitExceeded, "%q would make an image of %dx%d; the limit is %.0f megapixels.", s.words, width, height, float64(o.SourcePixels)/1e6)
		}
	}
	return nil
}

// size is what a step makes of a size.
func (s step) size(width, height int) (w, h int) {
	fw, fh := float64(width), float64(height)
	switch s.op {
	case opRotate:
		if s.amount == 90 || s.amount == 270 {
			return height, width
		}
	case opCrop:
		_, _, w, h := s.box(width, height)
		return w, h
	case opUpscale, opResize:
		switch {
		case s.factor > 0:
			return rounded(fw * s.factor), rounded(fh * s.factor)
		case s.height == 0:
			return rounded(s.width), rounded(fh * s.width / fw)
		case s.width == 0:
			return rounded(fw * s.height / fh), rounded(s.height)
		}
		return rounded(s.width), rounded(s.height)
	case opFit:
		scale := math.Min(s.width/fw, s.height/fh)
		if s.way == "screen" && height > width {
			scale = math.Min(s.height/fw, s.width/fh)
		}
		if scale >= 1 && s.way == "" { // what fits stays
			return width, height
		}
		return rounded(fw * scale), rounded(fh * scale)
	case opBorder:
		edge := s.edge(width, height)
		return width + 2*edge, height + 2*edge
	}
	return width, height
}

func rounded(v float64) int { return int(math.Max(1, math.Min(math.Round(v), 1<<30))) }

// edge is the width of a border in pixels.
func (s step) edge(width, height int) int {
	if s.width > 0 {
		return int(s.width)
	}
	return max(1, int(math.Round(s.factor*math.Sqrt(float64(width)*float64(height)))))
}

// box is what a crop keeps of a picture.
func (s step) box(width, height int) (x, y, w, h int) {
	fw, fh := float64(width), float64(height)
	way, exact := strings.CutSuffix(s.way, " pixels")
	switch {
	case s.factor > 0:
		w, h = rounded(fw*(1-2*s.factor)), rounded(fh*(1-2*s.factor))
	case exact && s.width <= fw && s.height <= fh:
		w, h = int(s.width), int(s.height)
	default:
		scale := math.Min(fw/s.width, fh/s.height)
		w, h = min(rounded(s.width*scale), width), min(rounded(s.height*scale), height)
	}
	x, y = (width-w)/2, (height-h)/2
	switch way {
	case "left":
		x = 0
	case "right":
		x = width - w
	case "top":
		y = 0
	case "bottom":
		y = height - h
	}
	return x, y, w, h
}

// report is a step as the job's output tells it.
func (s step) report() map[string]any {
	args := map[string]any{}
	number := func(name string, v float64) { args[name] = math.Round(v*1000) / 1000 }
	switch s.op {
	case opGrayscale, opInvert:
	case opRotate:
		number("degrees", s.amount)
	case opFlip:
		args["axis"] = s.way
	case opCrop:
		way, exact := strings.CutSuffix(s.way, " pixels")
		switch {
		case s.factor > 0:
			number("off_each_side_percent", 100*s.factor)
		case exact:
			number("width", s.width)
			number("height", s.height)
		default:
			args["ratio"] = fmt.Sprintf("%g:%g", s.width, s.height)
		}
		args["keep"] = way
	case opResize, opFit, opUpscale:
		for name, v := range map[string]float64{"width": s.width, "height": s.height, "factor": s.factor} {
			if v > 0 {
				number(name, v)
			}
		}
	case opBorder:
		args["colour"] = hexOf(s.colour)
		if s.width > 0 {
			number("pixels", s.width)
		} else {
			number("percent", 100*s.factor)
		}
	case opBackground:
		args["action"] = s.way
		if s.way == "replace" {
			args["colour"] = hexOf(s.colour)
		}
	case opCartoonize:
		args["style"] = s.way
	default:
		number("amount", s.amount)
	}
	return map[string]any{"op": s.op, "args": args, "from": s.words}
}

func hexOf(c [3]uint8) string { return fmt.Sprintf("#%02x%02x%02x", c[0], c[1], c[2]) }

// planFacts tells a client what its prompt became.
func planFacts(steps []step) []map[string]any {
	all := make([]map[string]any, len(steps))
	for i, s := range steps {
		all[i] = s.report()
	}
	return all
}

// customMemory estimates the peak bytes of a plan.
func (o Options) customMemory(c customConfig, task engine.Task) int64 {
	need := o.filterMemory(task, filter{margin: workMargin, scratchBytes: 2 * 16}) + o.facesMemory(c.FaceEnhance)
	steps, err := readPrompt(c.Prompt)
	if err != nil {
		return need + 2*heapMost // the model server's answer
	}
	if !task.Source.Known() {
		return need + 4*heapMost
	}
	width, height := task.Source.Width, task.Source.Height
	most, extra := int64(width)*int64(height), int64(0)
	for _, s := range steps {
		width, height = s.size(width, height)
		most = max(most, int64(width)*int64(height))
		switch s.op {
		case opCartoonize:
			extra = max(extra, cartoonMemory)
		case opBackground:
			extra = max(extra, matteMemory)
		case opDenoise:
			extra = max(extra, o.cleanerFilter(neural.Denoise).memory()+o.netMemory(neural.Denoise))
		case opSharpen:
			extra = max(extra, filter{margin: deconvolutionRadiusMost, scratchBytes: deconvolutionBytes}.memory()+o.netMemory(neural.Deblur))
		case opRestore:
			extra = max(extra, o.restoreMemory()+o.netMemory(neural.Restore))
		case opResize, opFit, opUpscale:
			extra = max(extra, resizeMemory())
		}
	}
	// The picture before a step and after it, in 16 bits, unless they lie in files.
	return need + extra + 2*min(int64(bytesPerPixel(true))*most, heapMost)
}

// Edit is a request to a generative model: what to do with a picture, and where its answer goes.
type Edit struct {
	Prompt string
	// Input is an upright sRGB PNG of Width x Height pixels. Output does not exist yet.
	Input, Output string
	Width, Height int
}

// editPixels is the most pixels that a model server is sent: generative models work on about one megapixel.
const editPixels = 4_000_000

// generate has the operator's model server edit the picture, and brings its answer to the planned size.
func (o Options) generate(ctx context.Context, prompt string, task engine.Task) (engine.Output, error) {
	done := &progress{report: task.Progress}
	source, err := o.open(ctx, task.Input, task.Scratch)
	if err != nil {
		return engine.Output{}, err
	}
	defer func() { source.Close() }()
	done.reach(decodedPart)
	width, height := workSize(source.width, source.height, editPixels)
	small, err := source.resized(ctx, width, height, task.Scratch, false)
	if err != nil {
		return engine.Output{}, wrapRun(ctx, "custom", err)
	}
	edit := Edit{
		Prompt: prompt, Width: width, Height: height,
		Input: filepath.Join(task.Scratch, "edit.png"), Output: filepath.Join(task.Scratch, "edited"),
	}
	err = o.encode(ctx, small, edit.Input, "png", small.deep)
	small.Close()
	if err == nil {
		err = o.Edit(ctx, edit)
	}
	if err != nil {
		return engine.Output{}, wrapRun(ctx, "custom", err)
	}
	done.reach(0.8)
	answer, err := o.open(ctx, edit.Output, task.Scratch)
	if err != nil {
		return engine.Output{}, wrapRun(ctx, "custom", answerFailure(ctx, err))
	}
	defer func() { answer.Close() }()
	facts := map[string]any{"method": "model server", "answer_width": answer.width, "answer_height": answer.height}
	if !alike(answer.width, answer.height, width, height) {
		return engine.Output{}, engine.Failf(engine.ProcessingFailed, "The model server answered with an image of other proportions.").
			Because(fmt.Errorf("answer is %dx%d, sent %dx%d", answer.width, answer.height, width, height))
	}
	w := &workbench{options: o, scratch: task.Scratch, picture: answer}
	defer func() { answer = w.picture }()
	if answer.width != task.Plan.Width || answer.height != task.Plan.Height {
		if err := w.resize(ctx, task.Plan.Width, task.Plan.Height); err != nil {
			return engine.Output{}, wrapRun(ctx, "custom", err)
		}
	}
	result, err := w.finish(ctx, task, func(part float64) { done.reach(0.8 + 0.2*part) })
	if err != nil {
		return engine.Output{}, wrapRun(ctx, "custom", err)
	}
	maps.Copy(result.Facts, facts)
	return result, nil
}

// alike says whether two sizes have the same proportions, but for what rounding to multiples of 16 or 64 does.
func alike(w1, h1, w2, h2 int) bool {
	const most = 64
	scale := math.Sqrt(float64(w1) * float64(h1) / (float64(w2) * float64(h2)))
	return math.Abs(float64(w1)-scale*float64(w2)) <= most && math.Abs(float64(h1)-scale*float64(h2)) <= most &&
		math.Abs(math.Log(float64(w1)*float64(h2)/(float64(h1)*float64(w2)))) < 0.1
}

// answerFailure blames the model server for an answer that is no image, not the client.
func answerFailure(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return err
	}
	if _, ok := engine.AsFailure(err); ok {
		return engine.Failf(engine.ProcessingFailed, "The model server's answer is not an image that can be read.").Because(err)
	}
	return err
}
