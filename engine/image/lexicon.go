package image

import (
	"strings"
	"sync"
)

// kind is what a phrase of a prompt can be.
type kind int

const (
	unknownWord kind = iota
	// filler has no effect: politeness, articles, "the picture".
	filler
	// breaker ends an instruction; joiner begins another one of the same clause ("with").
	breaker
	joiner
	negation
	// excess inverts an adjective: "too dark" asks for the opposite.
	excess
	// verb says what is to happen to what follows: up, down, remove, change.
	verb
	// degree makes more or less of an instruction.
	degree
	// quantity is a number with its unit; dimensions and proportion are two of them.
	quantity
	dimensions
	proportion
	colourName
	// property is a noun that goes up and down; adjective is one that has already gone.
	property
	adjective
	// operation is an instruction by itself.
	operation
	backgroundNoun
	// side is a unit word: how wide, how high.
	side
	// where are directions: left, clockwise, vertically.
	where
)

// unit is what a quantity counts.
type unit int

const (
	bare unit = iota
	percent
	times
	pixels
	degrees
)

// phrase is one or several words that mean something together.
type phrase struct {
	kind kind
	// words are as the client wrote them, but in lower case.
	words string
	// name is the operation, property, direction, verb or side.
	name string
	// value is a quantity, the sign of an adjective, or how much of a degree.
	value float64
	unit  unit
	// width and height are dimensions or a proportion.
	width, height float64
	colour        [3]uint8
}

// longestPhrase is the most words of an entry of the lexicon.
const longestPhrase = 5

// entry is a line of the lexicon: phrases, divided by bars, that mean the same.
type entry struct {
	words string
	means phrase
}

// The operations of a plan, as they stand in a job's output.
const (
	opBrightness  = "brightness"
	opExposure    = "exposure"
	opContrast    = "contrast"
	opSaturation  = "saturation"
	opTemperature = "temperature"
	opTint        = "tint"
	opGrayscale   = "grayscale"
	opSepia       = "sepia"
	opVintage     = "vintage"
	opInvert      = "invert"
	opBlur        = "blur"
	opSharpen     = "sharpen"
	opDenoise     = "denoise"
	opRestore     = "restore"
	opEnhance     = "enhance"
	opVignette    = "vignette"
	opGrain       = "grain"
	opRotate      = "rotate"
	opFlip        = "flip"
	opCrop        = "crop"
	opResize      = "resize"
	opFit         = "fit"
	opUpscale     = "upscale"
	opBorder      = "border"
	opBackground  = "background"
	opCartoonize  = "cartoonize"
)

// propertyNoise, propertySize and propertyColour are properties that become different operations by what is to happen to them.
const (
	propertyNoise  = "noise"
	propertySize   = "size"
	propertyColour = "colour"
)

// The verbs.
const (
	verbUp      = "up"
	verbDown    = "down"
	verbRemove  = "remove"
	verbChange  = "change"
	verbAdd     = "add"
	verbImprove = "improve"
	verbBare    = "make"
	verbShrink  = "shrink"
)

// lexicon is every phrase that is understood.
var lexicon = sync.OnceValue(func() map[string]phrase {
	all := map[string]phrase{}
	for _, e := range entries() {
		for words := range strings.SplitSeq(e.words, "|") {
			all[words] = e.means
		}
	}
	for words, code := range colourNames() {
		all[words] = phrase{kind: colourName, colour: code}
	}
	return all
})

func entries() []entry {
	all := []entry{
		{"please|pls|kindly|thanks|thank you|can you|could you|would you|will you|i want you to|i want|i would like|i'd like|i need|we need|need to be|needs to be|should be|has to be|" +
			"a|an|the|my|this|that|these|it|its|it's|is|are|be|of|at|on|as|for|me|you|us|so|all|whole|entire|there|some|any|just|only|now|let|let's|lets|to be|try to|have|has|get|give|do|does|want|wants|would|like to|" +
			"image|picture|photo|photograph|pic|img|snapshot|shot|photos|images|pictures|look|looks|looking|look like|effect|filter|style|version|mode|tone|tones|one|colored|coloured|hello|hi|hey|" +
			"in|into|to|by|from|around|about|its edges|edges|edge|details|result|output|overall|old|keep|keeping|focus on|stop|stops|ev|level|levels of|amount of|amount|in the style of|and make it|so it looks|so that it looks|more like|pixel art free|format|orientation", phrase{kind: filler}},
		{"and|then|also|plus|&|but|next|finally|afterwards|after that|and then|and also|as well as|first|firstly|secondly|lastly|too please|as well|or|nor", phrase{kind: breaker}},
		{"with|while|using|having", phrase{kind: joiner}},
		{"not|don't|dont|do not|never|without|no|avoid|except|doesn't|shouldn't|should not|must not|n't", phrase{kind: negation}},
		{"too|overly|so very", phrase{kind: excess}},
		{"increase|raise|boost|more|higher|up|stronger|turn up|bump up|intensify|strengthen|lift|push|bump", phrase{kind: verb, name: verbUp}},
		{"decrease|reduce|lower|less|down|weaker|tone down|turn down|drop|weaken|bring down|cut down|soften the|fewer|minimize|minimise", phrase{kind: verb, name: verbDown}},
		{"remove|delete|erase|get rid of|take out|take away|clear|clean|clean up|eliminate|strip|cut out|drop the|fix the|removing", phrase{kind: verb, name: verbRemove}},
		{"replace|change|swap|set|substitute|put", phrase{kind: verb, name: verbChange}},
		{"add|apply|insert|put on|adding|introduce|draw", phrase{kind: verb, name: verbAdd}},
		{"enhance|improve|fix|correct|adjust|optimize|optimise|auto|touch up|beautify|polish", phrase{kind: verb, name: verbImprove}},
		{"make|turn|convert|transform|turn it|render|create|keep going", phrase{kind: verb, name: verbBare}},
		{"slightly|slight|a bit|a little|a little bit|a touch|a tad|subtle|subtly|gently|gentle|somewhat|mildly|mild|light|lightly|faint|softly|bit|little|thin|fine", phrase{kind: degree, value: 0.5}},
		{"very|much|a lot|lots of|strongly|strong|super|really|heavily|heavy|significantly|dramatically|dramatic|extremely|way|far|intense|considerably|greatly|highly|lot|thick|bold", phrase{kind: degree, value: 1.8}},
		{"completely|fully|totally|maximum possible", phrase{kind: degree, value: 2.5}},
		{"quite|fairly|rather|pretty|moderately|medium", phrase{kind: degree, value: 1}},
	}
	all = append(all, quantityEntries()...)
	all = append(all, toneEntries()...)
	return append(all, shapeEntries()...)
}

func quantityEntries() []entry {
	return []entry{
		{"double|twice|two times|two fold|twofold", phrase{kind: quantity, value: 2, unit: times}},
		{"triple|three times|thrice", phrase{kind: quantity, value: 3, unit: times}},
		{"quadruple|four times|fourfold", phrase{kind: quantity, value: 4, unit: times}},
		{"eight times", phrase{kind: quantity, value: 8, unit: times}},
		{"half|a half|one half|halve", phrase{kind: quantity, value: 0.5, unit: times}},
		{"a third|one third", phrase{kind: quantity, value: 1.0 / 3, unit: times}},
		{"a quarter|one quarter|quarter", phrase{kind: quantity, value: 0.25, unit: times}},
		{"two", phrase{kind: quantity, value: 2}},
		{"three", phrase{kind: quantity, value: 3}},
		{"four", phrase{kind: quantity, value: 4}},
		{"five", phrase{kind: quantity, value: 5}},
		{"ten", phrase{kind: quantity, value: 10}},
		{"twenty", phrase{kind: quantity, value: 20}},
		{"thirty", phrase{kind: quantity, value: 30}},
		{"fifty", phrase{kind: quantity, value: 50}},
		{"ninety", phrase{kind: quantity, value: 90}},
		{"eight", phrase{kind: quantity, value: 8}},
		{"full hd|1080p", phrase{kind: dimensions, name: "screen", width: 1920, height: 1080}},
		{"720p|hd", phrase{kind: dimensions, name: "screen", width: 1280, height: 720}},
		{"4k|uhd|2160p", phrase{kind: dimensions, name: "screen", width: 3840, height: 2160}},
		{"square|squared|instagram square", phrase{kind: proportion, width: 1, height: 1}},
		{"widescreen|wide screen", phrase{kind: proportion, width: 16, height: 9}},
		{"portrait format|portrait orientation|instagram portrait|vertical format", phrase{kind: proportion, width: 4, height: 5}},
		{"landscape format|landscape orientation|horizontal format", phrase{kind: proportion, width: 3, height: 2}},
		{"story format|instagram story|phone wallpaper", phrase{kind: proportion, width: 9, height: 16}},
	}
}

func toneEntries() []entry {
	adjectiveOf := func(name string, sign float64) phrase { return phrase{kind: adjective, name: name, value: sign} }
	propertyOf := func(name string) phrase { return phrase{kind: property, name: name} }
	do := func(name string) phrase { return phrase{kind: operation, name: name} }
	return []entry{
		{"brighter|bright|brighten|brighten up|lighter|lighten|lighten up|lightened|brightened|luminous", adjectiveOf(opBrightness, 1)},
		{"darker|dark|darken|dim|dimmer|darkened|gloomy|gloomier", adjectiveOf(opBrightness, -1)},
		{"brightness|lightness|lighting|luminosity", propertyOf(opBrightness)},
		{"exposure", propertyOf(opExposure)},
		{"overexposed|over exposed|blown out", adjectiveOf(opExposure, 1)},
		{"underexposed|under exposed", adjectiveOf(opExposure, -1)},
		{"contrast|contrasts", propertyOf(opContrast)},
		{"contrasty|punchier|punchy|crisper contrast|higher contrast|high contrast", adjectiveOf(opContrast, 1)},
		{"flatter|flat|hazy|low contrast|lower contrast|softer contrast", adjectiveOf(opContrast, -1)},
		{"saturation|vibrance|vividness|colorfulness|colourfulness", propertyOf(opSaturation)},
		{"color|colour|colors|colours", propertyOf(propertyColour)},
		{"saturated|more saturated|saturate|vivid|vibrant|colorful|colourful|richer|vivider", adjectiveOf(opSaturation, 1)},
		{"desaturated|desaturate|muted|pale|paler|faded|dull|duller|washed out", adjectiveOf(opSaturation, -1)},
		{"warmth|temperature|color temperature|colour temperature", propertyOf(opTemperature)},
		{"warmer|warm|warm up|yellower|golden hour|orange tones", adjectiveOf(opTemperature, 1)},
		{"cooler|cool|cold|colder|cool down|bluer", adjectiveOf(opTemperature, -1)},
		{"tint", propertyOf(opTint)},
		{"greener|greenish", adjectiveOf(opTint, -1)},
		{"pinker|pinkish|more magenta", adjectiveOf(opTint, 1)},
		{"black and white|black & white|b&w|b & w|bw|grayscale|greyscale|gray scale|grey scale|monochrome|monochromatic|black white|noir|decolorize|decolourise", do(opGrayscale)},
		{"sepia|sepia toned|sepia tone|antique brown", do(opSepia)},
		{"vintage|retro|old fashioned|old look|old photo look|look old|look like an old photo|looks like an old photo|looking old|nostalgic|aged|analog|analogue|70s|80s", do(opVintage)},
		{"invert|inverted|negative|inverse|invert the colors|invert the colours|invert colors|invert colours|inverted colors", do(opInvert)},
		{"blur|blurred|blurrier|blurring|out of focus|gaussian blur|soft focus|soften|softer|defocus", do(opBlur)},
		{"blurry|fuzzy|unsharp", adjectiveOf(opBlur, 1)},
		{"sharpen|sharper|sharp|deblur|unblur|crisp|crisper|in focus|clearer|sharpened|crispy", do(opSharpen)},
		{"sharpness|clarity|detail|definition", propertyOf(opSharpen)},
		{"denoise|de noise|noise reduction|noise free|noise removal|degrain|smooth out the noise|smooth|smoother", do(opDenoise)},
		{"noise|iso noise|graininess|speckles|image noise", propertyOf(propertyNoise)},
		{"noisy|grainy", adjectiveOf(propertyNoise, 1)},
		{"grain|film grain", propertyOf(opGrain)},
		{"restore|restoration|repair|repaired|remaster|restored|jpeg artifacts|jpeg artefacts|compression artifacts|artifacts|artefacts|scratches|dust|scratches and dust|fading", do(opRestore)},
		{"auto enhance|auto levels|auto level|auto contrast|auto color|auto colour|auto tone|auto adjust|white balance|color balance|colour balance|better|nicer|pop|beautiful|professional|good|great|nice|stunning", do(opEnhance)},
		{"vignette|vignetting|dark corners|darken the corners|darkened corners", do(opVignette)},
		{"anime|manga|ghibli|cartoon|cartoonize|cartoonise|cartoonish|animated|toon", phrase{kind: operation, name: opCartoonize, words: "anime"}},
		{"comic|comic book|pop art|comic strip|graphic novel", phrase{kind: operation, name: opCartoonize, words: "comic"}},
		{"sketch|pencil sketch|pencil drawing|drawing|line drawing|pencil|hand drawn|hand drawn sketch", phrase{kind: operation, name: opCartoonize, words: "sketch"}},
		{"watercolor|watercolour|aquarelle|watercolor painting|watercolour painting|water color|water colour", phrase{kind: operation, name: opCartoonize, words: "watercolor"}},
		{"oil|oil painting|oil paint|painting|painted|impressionist|oil paints", phrase{kind: operation, name: opCartoonize, words: "oil"}},
	}
}

func shapeEntries() []entry {
	do := func(name string) phrase { return phrase{kind: operation, name: name} }
	to := func(name string) phrase { return phrase{kind: where, name: name} }
	return []entry{
		{"rotate|rotated|rotation|spin|rotating", do(opRotate)},
		{"turn left", phrase{kind: operation, name: opRotate, value: 270}},
		{"turn right", phrase{kind: operation, name: opRotate, value: 90}},
		{"upside down|turn upside down", phrase{kind: operation, name: opRotate, value: 180}},
		{"flip|mirror|mirrored|flipped|reflect|mirror image", do(opFlip)},
		{"horizontally|horizontal|left to right|left right|sideways", to("horizontal")},
		{"vertically|vertical|top to bottom|up down", to("vertical")},
		{"clockwise|right|to the right|cw", to("right")},
		{"counterclockwise|counter clockwise|anticlockwise|anti clockwise|left|to the left|ccw", to("left")},
		{"top|upper|top part|upper part", to("top")},
		{"bottom|lower part|bottom part", to("bottom")},
		{"center|centre|middle|centered|centred|center part", to("center")},
		{"crop|cropped|trim|crop out|cropping|aspect ratio|ratio|aspect", do(opCrop)},
		{"resize|resized|rescale|scale|resizing|downscale|downsize|resample|scale down|resolution|thumbnail", do(opResize)},
		{"shrink|scaled down", phrase{kind: adjective, name: propertySize, value: -1}},
		{"fit|fit within|fit inside|within|no larger than|not larger than|no bigger than|at most|max|maximum|max size|maximum size", do(opFit)},
		{"upscale|upscaled|enlarge|enlarged|upsize|scale up|super resolution|magnify|upscaling|increase the resolution|increase resolution|higher resolution", do(opUpscale)},
		{"size|dimensions", phrase{kind: property, name: propertySize}},
		{"bigger|larger|big|large", phrase{kind: adjective, name: propertySize, value: 1}},
		{"smaller|small|tiny", phrase{kind: adjective, name: propertySize, value: -1}},
		{"wide|width|in width|across", phrase{kind: side, name: "width"}},
		{"high|height|tall|in height", phrase{kind: side, name: "height"}},
		{"long side|longest side|longer side|long edge|longest edge|on the long side", phrase{kind: side, name: "long"}},
		{"border|frame|borders|framed|margin|padding|outline|polaroid", do(opBorder)},
		{"background|backdrop|bg|background color|background colour", phrase{kind: backgroundNoun}},
		{"bokeh|portrait mode|shallow depth of field|depth of field", phrase{kind: operation, name: opBackground, words: "blur"}},
		{"transparent|transparency|transparent background|cut out|cutout|isolate the subject|isolate|cut out the subject", phrase{kind: operation, name: opBackground, words: "remove"}},
	}
}

// colourNames are the basic colours of CSS and what people call others.
func colourNames() map[string][3]uint8 {
	return map[string][3]uint8{
		"white": {255, 255, 255}, "black": {0, 0, 0}, "gray": {128, 128, 128}, "grey": {128, 128, 128}, "light gray": {211, 211, 211},
		"light grey": {211, 211, 211}, "dark gray": {64, 64, 64}, "dark grey": {64, 64, 64}, "silver": {192, 192, 192}, "red": {255, 0, 0},
		"dark red": {139, 0, 0}, "maroon": {128, 0, 0}, "orange": {255, 165, 0}, "yellow": {255, 255, 0}, "gold": {255, 215, 0}, "beige": {245, 245, 220},
		"cream": {255, 253, 208}, "ivory": {255, 255, 240}, "brown": {139, 69, 19}, "tan": {210, 180, 140}, "green": {0, 128, 0}, "light green": {144, 238, 144},
		"dark green": {0, 100, 0}, "lime": {0, 255, 0}, "olive": {128, 128, 0}, "teal": {0, 128, 128}, "cyan": {0, 255, 255}, "turquoise": {64, 224, 208},
		"blue": {0, 0, 255}, "light blue": {173, 216, 230}, "sky blue": {135, 206, 235}, "dark blue": {0, 0, 139}, "navy": {0, 0, 128}, "navy blue": {0, 0, 128},
		"purple": {128, 0, 128}, "violet": {238, 130, 238}, "lavender": {230, 230, 250}, "magenta": {255, 0, 255}, "pink": {255, 192, 203}, "light pink": {255, 182, 193},
	}
}
