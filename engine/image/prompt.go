package image

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// step is one operation of a plan. What a step does not need is zero.
type step struct {
	op string
	// amount is how strong, from -1 to 1 for what has a middle and from 0 to 1 for what has not; of a rotation, degrees clockwise.
	amount float64
	// width and height are pixels of an output, or a proportion; one of them may be 0. factor is the output's size in the source's.
	width, height, factor float64
	// way is a direction, a style, a side, or what happens to a background.
	way    string
	colour [3]uint8
	// words are what it was read from.
	words string
}

// stepsMost bounds a plan.
const stepsMost = 20

// misunderstood lists what in a prompt means nothing to the grammar.
type misunderstood []string

func (m misunderstood) Error() string { return "not understood: " + strings.Join(m, ", ") }

// readPrompt reads a prompt as a plan: instructions in English, divided by commas, full stops and words like "and" and "then", carried
// out in their order. Every word must be understood or known to mean nothing: half of what a customer asked for is not what was asked for.
func readPrompt(prompt string) ([]step, error) {
	p := &promptReader{}
	phrases := phrasesOf(prompt)
	for start := 0; start < len(phrases); {
		end := start
		for end < len(phrases) && phrases[end].kind != breaker {
			end++
		}
		p.segment(phrases[start:end])
		start = end + 1
	}
	if len(p.unknown) > 0 {
		return nil, p.unknown
	}
	steps := joined(p.steps)
	if len(steps) > stepsMost {
		return nil, misunderstood{fmt.Sprintf("more than %d instructions", stepsMost)}
	}
	if len(steps) == 0 {
		return nil, misunderstood{"no instruction"}
	}
	return steps, nil
}

// token finds what a prompt is made of: colours, sizes, proportions, numbers with units, words, marks.
var token = regexp.MustCompile(`#[0-9a-f]{6}\b|#[0-9a-f]{3}\b` +
	`|\d+(?:\.\d+)?\s*(?:px|pixels?)?\s*[x×*]\s*\d+(?:\.\d+)?(?:\s*(?:px|pixels?)\b)?` +
	`|\d+(?:\.\d+)?\s*:\s*\d+(?:\.\d+)?` +
	`|x\d+(?:\.\d+)?\b|(?:\d0s|\d+p|4k)\b` +
	`|[+-]?\d+(?:[.,]\d+)?\s*(?:%|percent\b|per cent\b|px\b|pixels?\b|°|deg\b|degrees?\b|x\b|×|times\b)?` +
	`|b&w|[\p{L}][\p{L}']*|[&,;.!?\n]|\S`)

// numbers finds the two numbers of a size or a proportion.
var numbers = regexp.MustCompile(`\d+(?:\.\d+)?`)

// phrasesOf cuts a prompt into phrases, the longest that the lexicon knows first.
func phrasesOf(prompt string) []phrase {
	text := strings.NewReplacer("’", "'", "‘", "'", "“", "", "”", "", "\"", "", "`", "").Replace(strings.ToLower(prompt))
	tokens := token.FindAllString(hyphens.ReplaceAllString(text, "$1 $2"), -1)
	words := lexicon()
	var all []phrase
	for i := 0; i < len(tokens); {
		if p, ok := measure(tokens[i]); ok {
			all = append(all, p)
			i++
			continue
		}
		n := min(longestPhrase, len(tokens)-i)
		for ; n > 0; n-- {
			text := strings.Join(tokens[i:i+n], " ")
			if p, ok := words[text]; ok {
				if p.name != opCartoonize && p.name != opBackground {
					p.words = text
				} else {
					p.words = p.words + "|" + text
				}
				all = append(all, p)
				break
			}
		}
		if n > 0 {
			i += n
			continue
		}
		p := phrase{words: tokens[i]}
		if strings.ContainsAny(tokens[i], ",;.!?\n") {
			p.kind = breaker
		}
		all = append(all, p)
		i++
	}
	return all
}

// hyphens between letters join words.
var hyphens = regexp.MustCompile(`(\p{L})-(\p{L})`)

// measure reads a token that begins with a digit, a sign, # or x and a digit.
func measure(text string) (phrase, bool) {
	p := phrase{words: text}
	if text[0] == '#' {
		code := text[1:]
		if len(code) == 3 {
			code = string([]byte{code[0], code[0], code[1], code[1], code[2], code[2]})
		}
		n, err := strconv.ParseUint(code, 16, 32)
		p.kind, p.colour = colourName, [3]uint8{uint8(n >> 16), uint8(n >> 8), uint8(n)}
		return p, err == nil && len(code) == 6
	}
	found := numbers.FindAllString(strings.ReplaceAll(text, ",", "."), 2)
	if len(found) == 0 || strings.HasSuffix(text, "0s") || strings.HasSuffix(text, "0p") || text == "4k" {
		return p, false
	}
	value := make([]float64, len(found))
	for i, f := range found {
		n, err := strconv.ParseFloat(f, 64)
		if err != nil || n > 1e6 {
			return p, false
		}
		value[i] = n
	}
	if len(value) == 2 && value[0] > 0 && value[1] > 0 {
		p.kind, p.width, p.height = dimensions, value[0], value[1]
		const largestRatio = 32 // "16x9" is no size
		if colon := strings.Contains(text, ":"); colon || max(value[0], value[1]) <= largestRatio {
			p.kind = proportion
			if !colon {
				p.name = "small size" // after "resize" it is one
			}
		}
		return p, true
	}
	p.kind, p.value = quantity, value[0]
	if text[0] == '-' {
		p.value = -p.value
	}
	switch last := strings.TrimLeft(text, "+-0123456789., "); {
	case last == "":
	case last[0] == '%' || strings.HasPrefix(last, "per"):
		p.unit = percent
	case strings.HasPrefix(last, "p"):
		p.unit = pixels
	case strings.HasPrefix(last, "d") || last == "°":
		p.unit = degrees
	default:
		p.unit = times
	}
	return p, true
}

// promptReader collects the steps of a prompt.
type promptReader struct {
	steps   []step
	unknown misunderstood
	// carried is the verb of the instruction before: in "more contrast and saturation" it counts for both.
	carried string
}

// item is one instruction: its head and all that was said of it.
type item struct {
	heads      []phrase
	verb       string
	degree     float64
	negated    bool
	excess     bool
	quantities []phrase
	size       phrase // dimensions or a proportion
	colour     *phrase
	sides      []string
	ways       []string
	words      []string
}

// isHead says whether an instruction can stand on the phrase.
func (p phrase) isHead() bool {
	return p.kind == property || p.kind == adjective || p.kind == operation || p.kind == backgroundNoun
}

// segment reads what stands between two breaks: one instruction, or several without a break between them.
func (p *promptReader) segment(phrases []phrase) {
	it := item{degree: 1}
	flush := func() {
		p.instruct(it)
		it = item{degree: 1}
	}
	for i, ph := range phrases {
		switch {
		case ph.kind == unknownWord:
			p.unknown = append(p.unknown, strconv.Quote(ph.words))
			continue
		case len(it.heads) > 0 && startsAnother(it, ph, phrases[i+1:]):
			flush()
		}
		if ph.kind != filler && ph.kind != joiner {
			it.words = append(it.words, spoken(ph))
		}
		it.take(ph)
	}
	flush()
}

// spoken is a phrase as the client wrote it.
func spoken(p phrase) string {
	if _, said, ok := strings.Cut(p.words, "|"); ok {
		return said
	}
	return p.words
}

// startsAnother says whether a phrase after a head begins the next instruction.
func startsAnother(it item, ph phrase, rest []phrase) bool {
	headAhead := slices.ContainsFunc(rest, phrase.isHead)
	last := it.heads[len(it.heads)-1]
	switch ph.kind {
	case joiner, verb, negation, degree, excess:
		return headAhead && (ph.kind != degree || len(rest) == 0 || rest[0].isHead())
	case colourName: // "add vignette white border"
		return headAhead && last.kind != backgroundNoun && last.name != opBorder && last.name != propertySize
	case property, adjective, operation, backgroundNoun:
		return !belongs(it, ph)
	}
	return false
}

// belongs says whether another head is part of the same instruction.
func belongs(it item, ph phrase) bool {
	for _, h := range it.heads {
		switch {
		case h.kind == backgroundNoun || ph.kind == backgroundNoun:
			return true
		case ph.name == propertySize || ph.name == opResize || ph.name == opFit:
			return h.name == opUpscale || h.name == opResize || h.name == opFit || h.name == opCrop || h.name == propertySize
		case h.name == propertySize && ph.name == opBorder: // "a big white border"
			return true
		case ph.name == propertyColour && (h.name == opInvert || h.name == opEnhance || h.kind == adjective):
			return true
		case h.name == opBlur && ph.name == opBlur, h.name == opCartoonize && ph.name == opCartoonize:
			return true
		}
	}
	return false
}

func (it *item) take(ph phrase) {
	switch ph.kind {
	case negation:
		it.negated = !it.negated
	case excess:
		it.excess = true
	case verb:
		// "make it stronger": the more telling verb stays.
		if it.verb == "" || ph.name != verbBare {
			it.verb = ph.name
		}
	case degree:
		it.degree *= ph.value
	case quantity:
		it.quantities = append(it.quantities, ph)
	case dimensions, proportion:
		it.size = ph
	case colourName:
		it.colour = &ph
	case side:
		it.sides = append(it.sides, ph.name)
	case where:
		it.ways = append(it.ways, ph.name)
	case property, adjective, operation, backgroundNoun:
		if ph.name == opBorder && len(it.heads) == 1 && it.heads[0].kind == adjective {
			it.degree *= 1 + 0.6*it.heads[0].value // a big one, a small one
			it.heads = nil
		}
		it.heads = append(it.heads, ph)
	}
}

// fail says that an instruction means nothing, and why.
func (p *promptReader) fail(it item, why string) {
	text := strconv.Quote(strings.Join(it.words, " "))
	if why != "" {
		text += " (" + why + ")"
	}
	p.unknown = append(p.unknown, text)
}

func (p *promptReader) add(it item, s step) {
	s.words = strings.Join(it.words, " ")
	p.steps = append(p.steps, s)
}

// instruct makes a step of an instruction.
func (p *promptReader) instruct(it item) {
	if len(it.words) == 0 {
		return
	}
	if len(it.heads) == 0 {
		p.headless(it)
		return
	}
	head := it.heads[0]
	if slices.ContainsFunc(it.heads, func(h phrase) bool { return h.kind == backgroundNoun }) {
		p.background(it)
		return
	}
	for _, h := range it.heads[1:] { // "resize to fit 800x600", "scale to half the size"
		if h.name == opFit {
			head = h
		}
	}
	if it.verb == "" && head.kind == property && !it.negated && len(it.quantities) == 0 {
		it.verb = p.carried
	}
	p.carried = it.verb
	switch head.kind {
	case property:
		p.property(it, head)
	case adjective:
		p.adjective(it, head)
	default:
		p.operation(it, head)
	}
}

// headless reads an instruction that is only a size, a proportion or a verb.
func (p *promptReader) headless(it item) {
	if n := len(p.steps); n > 0 && len(it.ways) > 0 && p.steps[n-1].op == opCrop { // "crop to a square, keep the top"
		p.steps[n-1].way = strings.Replace(p.steps[n-1].way, "center", it.ways[0], 1)
		return
	}
	switch {
	case it.negated && it.verb == "" && it.size.kind == unknownWord && len(it.quantities) == 0:
		p.fail(it, "say what not")
	case it.size.kind == proportion:
		p.add(it, step{op: opCrop, width: it.size.width, height: it.size.height, way: it.way("center")})
	case it.size.kind == dimensions, len(it.sides) > 0 && len(it.quantities) > 0:
		p.resize(it, opResize)
	case len(it.quantities) > 0 && it.quantities[0].unit == times && it.quantities[0].value > 1:
		p.enlarge(it)
	case len(it.quantities) > 0 && it.quantities[0].unit == degrees:
		p.rotate(it, 0)
	case it.verb == verbImprove && it.colour == nil && len(it.quantities) == 0 && !it.negated:
		p.add(it, step{op: opEnhance, amount: partly(it.degree)})
	default:
		p.fail(it, "")
	}
}

// way is the direction that was said, or the usual one.
func (it *item) way(usual string) string {
	if len(it.ways) > 0 {
		return it.ways[0]
	}
	return usual
}

// partly is a degree as a part of 1: usual is one half.
func partly(degree float64) float64 { return math.Min(0.5*degree, 1) }

// strength is how far a property is to go: what was said in per cent, or the usual amount by the degree.
func (it *item) strength(usual float64) float64 {
	for _, q := range it.quantities {
		const factors = 3 // "contrast 1.5" means times, "contrast 20" per cent
		signed := strings.HasPrefix(q.words, "+") || strings.HasPrefix(q.words, "-")
		switch {
		case q.unit == bare && !signed && q.value > 0 && q.value <= factors:
			return clampTo(q.value-1, -1, 1)
		case q.unit == percent || q.unit == bare:
			v := q.value / 100
			if it.verb == verbChange { // "set the contrast to 120%"
				v--
			}
			return clampTo(v, -1, 1)
		case q.unit == times && q.value > 0:
			return clampTo(q.value-1, -1, 1)
		}
	}
	return clampTo(usual*it.degree, -1, 1)
}

func clampTo(v, low, high float64) float64 { return math.Max(low, math.Min(high, v)) }

// usually is how far a property goes when nobody says how far.
var usually = map[string]float64{
	opBrightness: 0.25, opExposure: 0.3, opContrast: 0.25, opSaturation: 0.35, opTemperature: 0.35, opTint: 0.3,
}

// property reads "more contrast", "brightness +20%", "without noise".
func (p *promptReader) property(it item, head phrase) {
	down := it.verb == verbDown
	gone := it.verb == verbRemove || it.negated
	if it.excess {
		p.fail(it, "")
		return
	}
	switch head.name {
	case propertyNoise:
		if it.verb == verbAdd || (it.verb == verbUp && !it.negated) {
			p.add(it, step{op: opGrain, amount: partly(it.degree)})
			return
		}
		p.add(it, step{op: opDenoise, amount: partly(it.degree)})
	case opGrain:
		if gone || down {
			p.add(it, step{op: opDenoise, amount: partly(it.degree)})
			return
		}
		p.add(it, step{op: opGrain, amount: math.Abs(it.strength(0.5))})
	case propertySize:
		p.size(it, 0)
	case opSharpen:
		if gone || down {
			p.add(it, step{op: opBlur, amount: partly(it.degree) / 2})
			return
		}
		p.add(it, step{op: opSharpen, amount: math.Abs(it.strength(0.5))})
	case propertyColour:
		switch {
		case it.colour != nil || it.verb == verbChange:
			p.fail(it, "colours cannot be replaced")
		case gone:
			p.add(it, step{op: opGrayscale})
		case it.verb == verbImprove:
			p.add(it, step{op: opEnhance, amount: partly(it.degree)})
		default:
			p.shift(it, opSaturation, down)
		}
	default:
		if gone {
			p.fail(it, "say less instead")
			return
		}
		p.shift(it, head.name, down)
	}
}

// shift adds a step for a property that goes up or down.
func (p *promptReader) shift(it item, op string, down bool) {
	amount := it.strength(usually[op])
	const stops = 2 // of exposure, at an amount of 1
	if op == opExposure && len(it.quantities) > 0 && it.quantities[0].unit == bare {
		amount = clampTo(it.quantities[0].value/stops, -1, 1)
	}
	if down {
		amount = -math.Abs(amount)
	}
	p.add(it, step{op: op, amount: amount})
}

// adjective reads "brighter", "less saturated", "too dark", "not blurry".
func (p *promptReader) adjective(it item, head phrase) {
	sign := head.value
	if it.verb == verbDown {
		sign = -sign
	}
	against := it.excess || it.negated
	switch head.name {
	case propertySize:
		p.size(it, sign)
	case opBlur, propertyNoise:
		mended := map[string]string{opBlur: opSharpen, propertyNoise: opDenoise}[head.name]
		made := map[string]string{opBlur: opBlur, propertyNoise: opGrain}[head.name]
		if against || it.verb == verbDown || it.verb == verbImprove || it.verb == verbRemove {
			p.add(it, step{op: mended, amount: partly(it.degree)})
			return
		}
		p.add(it, step{op: made, amount: partly(it.degree)})
	default:
		if against { // too dark is to become brighter
			sign = -sign
		}
		amount := it.strength(usually[head.name])
		p.add(it, step{op: head.name, amount: sign * math.Abs(amount)})
	}
}

// size reads "twice as large", "half the size", "smaller".
func (p *promptReader) size(it item, sign float64) {
	if it.size.kind == dimensions || len(it.sides) > 0 {
		p.resize(it, opResize)
		return
	}
	down := sign < 0 || it.verb == verbDown
	factor := 2.0
	if down {
		factor = 0.5
	}
	if len(it.quantities) > 0 {
		q := it.quantities[0]
		switch q.unit {
		case percent:
			factor = q.value / 100
			switch {
			case down && it.verb == verbDown: // "reduce the size by 30%"
				factor = 1 - factor
			case it.verb == verbUp, sign > 0:
				factor = 1 + factor
			}
		case times, bare:
			factor = q.value
			if down && factor > 1 {
				factor = 1 / factor
			}
		default:
			p.resize(it, opResize)
			return
		}
	}
	if it.negated || (sign == 0 && it.verb == "" && len(it.quantities) == 0) {
		p.fail(it, "say which size")
		return
	}
	p.scale(it, factor)
}

// scale adds the step for a factor: enlarging is a tool of its own.
func (p *promptReader) scale(it item, factor float64) {
	switch {
	case factor < 0.01 || factor > 8:
		p.fail(it, "a size from 1% to 800% can be made")
	case factor > 1:
		p.add(it, step{op: opUpscale, factor: factor})
	default:
		p.add(it, step{op: opResize, factor: factor})
	}
}

func (p *promptReader) enlarge(it item) {
	factor := 2.0
	for _, q := range it.quantities {
		if q.unit == times || q.unit == bare {
			factor = q.value
		}
		if q.unit == percent {
			factor = q.value / 100
		}
	}
	if it.size.kind == dimensions || len(it.sides) > 0 {
		p.resize(it, opResize)
		return
	}
	if factor <= 1 {
		p.fail(it, "enlarging needs a factor above 1")
		return
	}
	p.scale(it, factor)
}

// resize reads "resize to 800x600", "1200 px wide", "fit within 1000x1000", "scale to 50%".
func (p *promptReader) resize(it item, op string) {
	s := step{op: op, width: it.size.width, height: it.size.height}
	if it.size.name == "small size" {
		it.size.kind = dimensions
	}
	if it.size.name == "screen" { // "4k" is as wide as high, if the picture is upright
		s.op, s.way = opFit, it.size.name
	}
	if it.size.kind != dimensions {
		if len(it.quantities) == 0 {
			p.fail(it, "say which size")
			return
		}
		q := it.quantities[0]
		if len(it.sides) == 0 && op == opResize && (q.unit == percent || q.unit == times) {
			factor := q.value
			if q.unit == percent {
				factor /= 100
			}
			p.scale(it, factor)
			return
		}
		if q.unit != pixels && q.unit != bare {
			p.fail(it, "say how many pixels")
			return
		}
		switch {
		case slices.Contains(it.sides, "height"):
			s.width, s.height = 0, q.value
		case slices.Contains(it.sides, "width"):
			s.width, s.height = q.value, 0
		case op == opFit:
			s.width, s.height = q.value, q.value
		case slices.Contains(it.sides, "long"):
			s.op, s.width, s.height, s.way = opFit, q.value, q.value, "long side"
		default:
			s.width, s.height = q.value, 0
		}
	}
	const longest = 1 << 18
	s.width, s.height = math.Round(s.width), math.Round(s.height)
	if max(s.width, s.height) < 1 || max(s.width, s.height) > longest {
		p.fail(it, "no such size")
		return
	}
	p.add(it, s)
}

func (p *promptReader) rotate(it item, fixed float64) {
	angle := fixed
	if angle == 0 {
		angle = 90
		if len(it.quantities) > 0 {
			angle = it.quantities[0].value
		}
		if it.way("right") == "left" {
			angle = -angle
		}
	}
	turned := math.Mod(angle, 360)
	if turned < 0 {
		turned += 360
	}
	if turned == 0 || math.Mod(turned, 90) != 0 {
		p.fail(it, "rotations are by 90, 180 or 270 degrees")
		return
	}
	p.add(it, step{op: opRotate, amount: turned})
}

// operation reads an instruction by its own name.
func (p *promptReader) operation(it item, head phrase) {
	gone := it.verb == verbRemove || it.verb == verbDown
	if it.negated && head.name != opBackground && head.name != opRestore {
		return // "do not crop": nothing is done, as was asked
	}
	switch head.name {
	case opRotate:
		p.rotate(it, head.value)
	case opFlip:
		way := it.way("horizontal")
		if way == "left" || way == "right" {
			way = "horizontal"
		}
		p.add(it, step{op: opFlip, way: way})
	case opCrop:
		p.crop(it)
	case opResize, opFit:
		p.resize(it, head.name)
	case opUpscale:
		p.enlarge(it)
	case opBorder:
		p.border(it, gone)
	case opBlur:
		if gone {
			p.add(it, step{op: opSharpen, amount: partly(it.degree)})
			return
		}
		p.add(it, step{op: opBlur, amount: math.Abs(it.strength(0.4))})
	case opCartoonize, opBackground:
		way, _, _ := strings.Cut(head.words, "|")
		p.add(it, step{op: head.name, way: way})
	case opSharpen, opDenoise, opRestore, opEnhance:
		p.add(it, step{op: head.name, amount: math.Abs(it.strength(0.5))})
	default: // grayscale, sepia, vintage, invert, vignette
		if gone {
			p.fail(it, "that cannot be taken away")
			return
		}
		amount := 1.0
		if it.degree < 1 || len(it.quantities) > 0 {
			amount = math.Abs(it.strength(1))
		}
		p.add(it, step{op: head.name, amount: amount})
	}
}

func (p *promptReader) crop(it item) {
	s := step{op: opCrop, way: it.way("center"), width: it.size.width, height: it.size.height}
	switch {
	case it.size.kind == dimensions:
		s.way += " pixels"
	case it.size.kind == proportion:
	case len(it.quantities) > 0 && it.quantities[0].unit == percent && it.quantities[0].value > 0 && it.quantities[0].value < 50:
		s.factor = it.quantities[0].value / 100 // off every side
	default:
		p.fail(it, "say which ratio or size, such as 16:9 or 800x600")
		return
	}
	p.add(it, s)
}

func (p *promptReader) border(it item, gone bool) {
	if gone {
		p.fail(it, "borders can be added only")
		return
	}
	s := step{op: opBorder, factor: 0.04 * it.degree, colour: [3]uint8{255, 255, 255}}
	if it.colour != nil {
		s.colour = it.colour.colour
	}
	if len(it.quantities) > 0 {
		q := it.quantities[0]
		switch {
		case q.unit == percent && q.value > 0 && q.value <= 50:
			s.factor = q.value / 100
		case (q.unit == pixels || q.unit == bare) && q.value >= 1 && q.value <= 2000:
			s.width, s.factor = math.Round(q.value), 0
		default:
			p.fail(it, "a border has 1 to 2000 pixels, or up to 50%")
			return
		}
	}
	p.add(it, s)
}

// background reads what is to happen to the background.
func (p *promptReader) background(it item) {
	p.carried = ""
	for _, h := range it.heads {
		if h.kind == backgroundNoun {
			continue
		}
		if h.name == opBlur && !it.negated {
			amount := 0.5
			if h.kind == operation {
				amount = math.Abs(it.strength(0.5))
			}
			p.add(it, step{op: opBackground, way: "blur", amount: amount})
			return
		}
		if way, _, _ := strings.Cut(h.words, "|"); h.name == opBackground && way == "remove" {
			p.add(it, step{op: opBackground, way: "remove"})
			return
		}
		p.fail(it, "a background can be removed, blurred or replaced by a colour")
		return
	}
	switch {
	case it.colour != nil && !it.negated:
		p.add(it, step{op: opBackground, way: "replace", colour: it.colour.colour})
	case it.verb == verbRemove || it.negated:
		p.add(it, step{op: opBackground, way: "remove"})
	default:
		p.fail(it, "a background can be removed, blurred or replaced by a colour")
	}
}

// joined merges steps that say one thing together: a width and a height.
func joined(steps []step) []step {
	var all []step
	for _, s := range steps {
		if n := len(all); n > 0 && s.op == opResize && all[n-1].op == opResize && s.factor == 0 && all[n-1].factor == 0 {
			last := &all[n-1]
			if (last.width == 0) != (s.width == 0) && (last.height == 0) != (s.height == 0) {
				last.width, last.height, last.words = last.width+s.width, last.height+s.height, last.words+", "+s.words
				continue
			}
		}
		all = append(all, s)
	}
	return all
}
