package image

import (
	"context"
	"fmt"
	"math"
	"slices"

	"enlarger/engine"
)

// A passport photo is 35 x 45 mm at 600 dots an inch. ICAO Doc 9303 (part 3) and ISO/IEC 19794-5 ask that the head, from crown to chin, takes 70
// to 80 % of the height, that the eyes lie 50 to 70 % of the height above the bottom and in the middle of the width to within 5 %, and that the
// background is plain and light.
const (
	passportWidth, passportHeight, passportDPI = 826, 1062, 600

	headPart, headPartMost = 0.74, 0.79
	eyeLine, eyeLineLeast  = 0.575, 0.515
	// headLeast is the least height of a head in source pixels: below it there is no likeness to enlarge. headSharp is the height from which
	// nothing has to be said.
	headLeast, headSharp = 80, 400
	// passportGround is the background: white.
	passportGround = 1.0
)

// Proportions of a head, in distances between the pupils, which are about 63 mm (ISO/IEC 19794-5, annex). A crown that the mask puts elsewhere than
// between the bounds is not believed: above is high hair.
const (
	eyesToChin                             = 1.78
	eyesToCrown, crownLowest, crownHighest = 1.95, 1.5, 2.25
)

type passportConfig struct{}

func passportTool(o Options) engine.Tool {
	return engine.Define(engine.Spec[passportConfig]{
		Name:  "passport_photo",
		Media: engine.Image,
		Doc: "Makes a passport photo of a portrait: 35 x 45 mm at 600 dpi (826 x 1062 pixels), the head upright, centred and of the size that ICAO asks for, before plain white. " +
			"The source must show exactly one face.",
		Examples: []passportConfig{{}},
		Size:     func(passportConfig, engine.Source) (width, height int) { return passportWidth, passportHeight },
		Fits:     fits,
		Measure:  o.Measure,
		Memory: func(_ passportConfig, task engine.Task) int64 {
			return o.memory(task) + matteMemory + uprightMemory
		},
		Process: o.passport,
	})
}

func (o Options) passport(ctx context.Context, _ passportConfig, task engine.Task) (engine.Output, error) {
	done := &progress{report: task.Progress}
	source, err := o.open(ctx, task.Input, task.Scratch)
	if err != nil {
		return engine.Output{}, err
	}
	defer source.Close()
	done.reach(decodedPart)
	result, err := o.portrait(ctx, source, task, done)
	if err != nil {
		return engine.Output{}, wrapRun(ctx, "passport_photo", err)
	}
	done.reach(1)
	return result, nil
}

// portrait makes the photo of a decoded source.
func (o Options) portrait(ctx context.Context, source *picture, task engine.Task, done *progress) (engine.Output, error) {
	found, err := o.faces.find(ctx, source.raster)
	if err != nil {
		return engine.Output{}, err
	}
	f, err := onlyFace(found)
	if err != nil {
		return engine.Output{}, err
	}
	done.reach(0.3)
	u, err := o.uprightOf(ctx, source, task.Input, f, portraitView())
	if err != nil {
		return engine.Output{}, err
	}
	done.reach(0.5)
	cut, m, err := o.cutPortrait(ctx, source, task.Input, f, u)
	if err != nil {
		return engine.Output{}, err
	}
	done.reach(0.9)
	l, err := u.layout(cut)
	if err != nil {
		return engine.Output{}, err
	}
	if m.confidence < portraitLeast {
		return engine.Output{}, engine.Failf(engine.ProcessingFailed,
			"The person could not be told from the background well enough for a passport photo. Take the photo before a plain, evenly lit background whose colour differs from hair and clothes.")
	}
	out, err := o.create(ctx, task.Output, task.Plan.Format, look{width: passportWidth, height: passportHeight, grey: source.grey, dpi: passportDPI})
	if err != nil {
		return engine.Output{}, err
	}
	result, err := l.write(ctx, cut, out)
	if err != nil {
		out.abort()
		return engine.Output{}, err
	}
	result.Warnings = slices.Concat(source.warnings, u.warnings(m, l, task.Plan.Format))
	result.Facts = map[string]any{
		"method": m.method, "confidence": hundredths(float32(m.confidence)), "dpi": passportDPI, "bits": 8,
		"head_height": hundredths(float32(l.head)), "eye_line": hundredths(float32(l.eyes)), "roll_corrected": math.Round(10*f.roll()*180/math.Pi) / 10,
		"enlarged": hundredths(float32(u.scale * l.zoom)), "source_format": source.header.format, "source_width": source.width, "source_height": source.height,
	}
	return result, nil
}

// cutPortrait takes the background out of an upright portrait: as that means does, model or classical, whose outline agrees best with the picture.
// The confidence of the matte is then that of the outline, so that it falls when the cut is not to be trusted.
func (o Options) cutPortrait(ctx context.Context, source *picture, input string, f face, u *upright) (*patch, *matte, error) {
	wide, err := o.uprightOf(ctx, source, input, f, wideView())
	if err != nil {
		return nil, nil, err
	}
	mattes, err := o.portraitMattes(ctx, wide.raster, wide.face)
	if err != nil {
		return nil, nil, err
	}
	whole, err := patchOf(u.raster, 0, 0, u.width, u.height)
	if err != nil {
		return nil, nil, err
	}
	colours := labOf(whole)
	larger := u.apart / wide.apart // a whole number
	var best *patch
	var m *matte
	for _, candidate := range mattes {
		// Its places are in the wide view's pixels, made as small as the portrait's.
		candidate.pictureWidth, candidate.pictureHeight = int(larger*float64(wide.width)), int(larger*float64(wide.height))
		cut := whole.clone()
		cut.x = int(math.Round(larger*wide.face.eyes[0].x - u.face.eyes[0].x))
		cut.y = int(math.Round(larger*wide.face.eyes[0].y - u.face.eyes[0].y))
		if err := candidate.cut(ctx, 0, cut); err != nil {
			return nil, nil, err
		}
		cut.x, cut.y = 0, 0
		candidate.confidence = outlineOf(u, colours, cut).trust(candidate)
		if m == nil || candidate.confidence > m.confidence {
			best, m = cut, candidate
		}
	}
	return best, m, nil
}

// clone copies a patch with its planes.
func (p *patch) clone() *patch {
	q := *p
	for c := range q.planes {
		q.planes[c] = slices.Clone(p.planes[c])
	}
	return &q
}

// onlyFace is the one face of a portrait. A doubtful find much smaller than the face is taken for none.
func onlyFace(found []face) (face, error) {
	if len(found) == 0 {
		return face{}, engine.Failf(engine.ProcessingFailed, "No face was found. A passport photo needs one face, seen from the front, upright and well lit.")
	}
	largest := found[0]
	for _, f := range found {
		if f.size > largest.size {
			largest = f
		}
	}
	people := 0
	for _, f := range found {
		if f.size > 0.35*largest.size || f.quality > 0.5*largest.quality {
			people++
		}
	}
	if people > 1 {
		return face{}, engine.Failf(engine.ProcessingFailed, "%d faces were found. A passport photo needs exactly one.", people)
	}
	if !largest.seen {
		return face{}, engine.Failf(engine.ProcessingFailed, "The eyes could not be found. A passport photo needs a face seen from the front with both eyes open.")
	}
	return largest, nil
}

// upright is a portrait turned so that its eyes are level, at about the size of the photo, with all around it that the photo may show.
type upright struct {
	*raster
	// face is the face in it; apart is the distance of its pupils in pixels.
	face  face
	apart float64
	// scale is its pixels for one of the source.
	scale float64
}

// view is how large an upright picture is and what it shows.
type view struct {
	// apart is the distance of the pupils in pixels; side, top and bottom are what lies around the middle of the eyes, in such distances.
	apart, side, top, bottom float64
	// endless has the edge of the source go on beyond it, where else is nothing.
	endless bool
}

func (v view) size() (width, height int) {
	return int(2 * v.side * v.apart), int((v.top + v.bottom) * v.apart)
}

// portraitView is all that the photo may show, a little larger than in it. wideView shows more around, smaller: what a person is told from the background
// by. Its sizes are a whole part of the portrait's.
func portraitView() view { return view{apart: 240, side: 2.6, top: 3, bottom: 4.4} }
func wideView() view     { return view{apart: 80, side: 3.4, top: 3.6, bottom: 5, endless: true} }

// uprightMemory is for the two upright pictures, the larger as pixels and as planes, and for what one of them is sampled from: a part of the
// source at twice its scale, turned by any angle.
const uprightMemory = 1248*1776*(4+16) + 4*4*1248*1776*2

// uprightOf cuts the portrait out of its source at a size, given by the distance of the pupils in pixels, and as far around as given in
// such distances.
func (o Options) uprightOf(ctx context.Context, source *picture, input string, f face, v view) (*upright, error) {
	apart := math.Hypot(f.eyes[1].x-f.eyes[0].x, f.eyes[1].y-f.eyes[0].y)
	if head := apart * (eyesToCrown + eyesToChin); head < headLeast {
		return nil, engine.Failf(engine.ProcessingFailed, "The face is too small: the head is about %.0f pixels high, and %d are needed.", head, headLeast)
	}
	middle := point{(f.eyes[0].x + f.eyes[1].x) / 2, (f.eyes[0].y + f.eyes[1].y) / 2}
	u := &upright{apart: v.apart, scale: v.apart / apart}
	width, height := v.size()
	eyes := point{v.side * v.apart, v.top * v.apart}
	sin, cos := math.Sincos(f.roll())
	// back finds the place in the source of one in the upright picture.
	back := func(x, y float64) point {
		x, y = (x-eyes.x)/u.scale, (y-eyes.y)/u.scale
		return point{middle.x + cos*x - sin*y, middle.y + sin*x + cos*y}
	}
	part, err := o.partOf(ctx, source, input, u.scale, back, width, height)
	if err != nil {
		return nil, err
	}
	if u.raster, err = newRaster("", width, height, false, false); err != nil {
		return nil, err
	}
	u.alpha, u.grey = true, source.grey
	err = parallel(ctx, height, func(_, y int) error {
		for x := range width {
			part.sample(back(float64(x)+0.5, float64(y)+0.5), v.endless, u.pix[4*(y*width+x):][:4])
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	u.face = face{quality: f.quality, seen: true, size: f.size * u.scale, eyes: [2]point{{eyes.x - v.apart/2, eyes.y}, {eyes.x + v.apart/2, eyes.y}}}
	dx, dy := (f.x-middle.x)*u.scale, (f.y-middle.y)*u.scale
	u.face.x, u.face.y = eyes.x+cos*dx+sin*dy, eyes.y-sin*dx+cos*dy
	return u, nil
}

// part is a rectangle of a picture, enlarged or reduced by a whole factor.
type part struct {
	*raster
	// x and y are where it begins in the picture, and scale is its pixels for one of the picture.
	x, y  int
	scale float64
}

// partOf takes out of the source what an upright picture shows, at no less than two thirds of its scale.
func (o Options) partOf(ctx context.Context, source *picture, input string, scale float64, back func(x, y float64) point, width, height int) (*part, error) {
	least, most := point{math.Inf(1), math.Inf(1)}, point{math.Inf(-1), math.Inf(-1)}
	for _, corner := range [4]point{{0, 0}, {float64(width), 0}, {0, float64(height)}, {float64(width), float64(height)}} {
		p := back(corner.x, corner.y)
		least, most = point{min(least.x, p.x), min(least.y, p.y)}, point{max(most.x, p.x), max(most.y, p.y)}
	}
	const rim = 3 // what sampling looks at
	left, top := max(0, int(least.x)-rim), max(0, int(least.y)-rim)
	right, bottom := min(source.width, int(most.x)+rim+1), min(source.height, int(most.y)+rim+1)
	if right <= left || bottom <= top {
		return nil, fmt.Errorf("a face at %v of %dx%d", least, source.width, source.height)
	}
	shrink := max(1, int(1/scale))
	p := &part{x: left, y: top, scale: 1 / float64(shrink)}
	var err error
	if p.raster, err = source.shrunkPart(ctx, left, top, (right-left)/shrink, (bottom-top)/shrink, shrink); err != nil {
		return nil, err
	}
	enlarge := 1
	for _, k := range [3]int{2, 4, 8} {
		if scale > 1.25 && float64(enlarge) < 0.8*scale {
			enlarge = k
		}
	}
	if enlarge == 1 {
		return p, nil
	}
	how, err := o.enlarger(ctx, enlarge, input, source)
	if err != nil {
		return nil, err
	}
	large := &raster{width: p.width * enlarge, height: p.height * enlarge, alpha: p.alpha, grey: p.grey}
	large.pix = make([]byte, large.bytes())
	if err := how.band(ctx, p.raster, 0, large.pix, false); err != nil {
		return nil, err
	}
	p.raster, p.scale = large, float64(enlarge)
	return p, nil
}

// shrunkPart is a rectangle of a picture as 8-bit pixels, reduced by a whole factor by taking means. width and height are those of the result.
func (r *raster) shrunkPart(ctx context.Context, x, y, width, height, shrink int) (*raster, error) {
	width, height = max(width, 1), max(height, 1)
	out, err := newRaster("", width, height, false, false)
	if err != nil {
		return nil, err
	}
	out.alpha, out.grey = r.alpha, r.grey
	tiles, lines := make([]tile, processors()), make([]patch, processors())
	err = parallel(ctx, height, func(worker, row int) error {
		p, line := &patch{}, &lines[worker]
		if err := p.load(r, &tiles[worker], x, y+row*shrink, width*shrink, shrink); err != nil {
			return err
		}
		line.width, line.height = width, 1
		for c, plane := range p.planes {
			line.planes[c] = grow(line.planes[c], width)
			clear(line.planes[c])
			for i, v := range plane {
				line.planes[c][i%(width*shrink)/shrink] += v
			}
			for i := range line.planes[c] {
				line.planes[c][i] /= float32(shrink * shrink)
			}
		}
		line.store(out.pix[4*row*width:][:4*width], 0, 0, false)
		return nil
	})
	return out, err
}

// sample writes the pixel at a place of the picture, by cubic convolution; beyond the picture it is transparent, unless the picture is endless.
func (p *part) sample(at point, endless bool, out []byte) {
	x, y := (at.x-float64(p.x))*p.scale-0.5, (at.y-float64(p.y))*p.scale-0.5
	left, top := int(math.Floor(x)), int(math.Floor(y))
	if !endless && (x < -0.5 || y < -0.5 || x > float64(p.width)-0.5 || y > float64(p.height)-0.5) {
		return
	}
	var sum [4]float64
	for j := -1; j <= 2; j++ {
		down := catmullRom(y - float64(top+j))
		row := min(max(top+j, 0), p.height-1) * p.width
		for i := -1; i <= 2; i++ {
			w := down * catmullRom(x-float64(left+i))
			pixel := p.pix[4*(row+min(max(left+i, 0), p.width-1)):][:4]
			a := w * float64(pixel[3]) / 255
			sum[0] += a * float64(pixel[0])
			sum[1] += a * float64(pixel[1])
			sum[2] += a * float64(pixel[2])
			sum[3] += a
		}
	}
	if sum[3] < 0.5/255 {
		return
	}
	for c := range 3 {
		out[c] = code8(float32(sum[c] / sum[3] / 255))
	}
	out[3] = code8(float32(sum[3]))
}

// layout is where the photo lies in an upright picture.
type layout struct {
	// x and y are the photo's corner in the upright picture; zoom is its pixels for one of that.
	x, y, zoom float64
	// head is the part of the height that the head takes, and eyes how far up the eyes are.
	head, eyes float64
	// open is the part of the photo's height along which a side of the source cuts through the person.
	open float64
}

// layout chooses the photo's place by the head's size and the eyes. When the source ends below too soon, the head may be as large and the eyes as low
// as allowed.
func (u *upright) layout(cut *patch) (layout, error) {
	crown, ok := u.crown(cut)
	if !ok {
		return layout{}, engine.Failf(engine.ProcessingFailed, "The head is cut off at the top of the photo. A passport photo needs the whole head with some space above it.")
	}
	eyes := u.face.eyes[0].y
	chin := (eyes + eyesToChin*u.apart + u.face.y + 0.53*u.face.size) / 2
	var l layout
	for step := range 5 {
		part := float64(step) / 4
		l = layout{head: headPart + part*(headPartMost-headPart), eyes: eyeLine + part*(eyeLineLeast-eyeLine)}
		l.zoom = l.head * passportHeight / (chin - crown)
		l.x = (u.face.eyes[0].x+u.face.eyes[1].x)/2 - passportWidth/2/l.zoom
		l.y = eyes - (1-l.eyes)*passportHeight/l.zoom
		if u.reaches(l.y + passportHeight/l.zoom) {
			l.open = u.openSides(cut, l)
			return l, nil
		}
	}
	return layout{}, engine.Failf(engine.ProcessingFailed, "The photo ends too close below the head. A passport photo needs the shoulders as well.")
}

// crown is the row of the top of the head by the mask, and false when the source ends before it.
func (u *upright) crown(cut *patch) (row float64, ok bool) {
	eyes := u.face.eyes[0]
	half := int(0.45 * u.apart)
	row = eyes.y - eyesToCrown*u.apart
	for y := 0; y < int(eyes.y); y++ {
		covered := 0.0
		for x := int(eyes.x) - half; x < int(eyes.x)+half; x++ {
			covered += float64(cut.planes[3][y*cut.width+x])
		}
		if covered > 0.5*float64(half) {
			row = float64(y)
			break
		}
	}
	up := (eyes.y - row) / u.apart
	up = min(max(up, crownLowest), crownHighest)
	row = eyes.y - up*u.apart
	// The source must go on above the head, if only by a few hairs.
	const little = 0.1
	at := max(int(row+little*u.apart), 0)
	return row, u.pix[4*(at*u.width+int(eyes.x))+3] > 0 || cut.planes[3][at*cut.width+int(eyes.x)] > 0
}

// reaches says whether the source goes on down to a row, below the middle of the face.
func (u *upright) reaches(row float64) bool {
	const slack = 4 // pixels, which the edge of the mask takes anyway
	y := int(row) - slack
	if y >= u.height {
		return false
	}
	x := int(u.face.eyes[0].x+u.face.eyes[1].x) / 2
	return u.pix[4*(y*u.width+x)+3] > 0
}

// openSides is the part of the photo's height along which the person is cut off by an upright edge of the source within the photo.
func (u *upright) openSides(cut *patch, l layout) float64 {
	open := 0
	top, bottom := max(0, int(l.y)), min(u.height, int(l.y+passportHeight/l.zoom))
	left, right := max(0, int(l.x)), min(u.width, int(l.x+passportWidth/l.zoom))
	for y := top; y < bottom; y++ {
		for x := left + 4; x < right-4; x++ {
			i := y*u.width + x
			inside := cut.planes[3][i] > 0.5
			if inside && (u.pix[4*(i-3)+3] == 0 || u.pix[4*(i+3)+3] == 0) {
				open++
				break
			}
		}
	}
	return float64(open) / float64(max(bottom-top, 1))
}

// write resamples the cut-out portrait before its background and writes it.
func (l layout) write(ctx context.Context, cut *patch, out *encoder) (engine.Output, error) {
	pixels := make([]byte, 4*passportWidth*passportHeight)
	err := parallel(ctx, passportHeight, func(_, y int) error {
		for x := range passportWidth {
			v := cut.cubic(l.x+(float64(x)+0.5)/l.zoom-0.5, l.y+(float64(y)+0.5)/l.zoom-0.5)
			rest := passportGround * (1 - min(max(v[3], 0), 1))
			p := pixels[4*(y*passportWidth+x):][:4]
			p[0], p[1], p[2], p[3] = code8(v[0]+rest), code8(v[1]+rest), code8(v[2]+rest), 0xFF
		}
		return nil
	})
	if err != nil {
		return engine.Output{}, err
	}
	if err := out.write(ctx, pixels); err != nil {
		return engine.Output{}, err
	}
	return out.finish()
}

// cubic is the patch's premultiplied pixel at a place by cubic convolution; beyond the patch it is transparent.
func (p *patch) cubic(x, y float64) (v [4]float32) {
	left, top := int(math.Floor(x)), int(math.Floor(y))
	for j := -1; j <= 2; j++ {
		row := top + j
		if row < 0 || row >= p.height {
			continue
		}
		down := catmullRom(y - float64(row))
		for i := -1; i <= 2; i++ {
			column := left + i
			if column < 0 || column >= p.width {
				continue
			}
			w := float32(down * catmullRom(x-float64(column)))
			for c := range v {
				v[c] += w * p.planes[c][row*p.width+column]
			}
		}
	}
	return v
}

// warnings are what a client should look at.
func (u *upright) warnings(m *matte, l layout, format string) (warnings []string) {
	const sure, muchOpen = 0.65, 0.02
	if m.confidence < sure {
		warnings = append(warnings, "The person could not be told from the background with confidence; look at the result before you use it.")
	}
	if head := l.head * passportHeight / (u.scale * l.zoom); head < headSharp {
		warnings = append(warnings, fmt.Sprintf("The head is only %.0f pixels high in the source and was enlarged; an office may refuse the photo as not sharp enough.", head))
	}
	if l.open > muchOpen {
		warnings = append(warnings, "The source ends at a side within the photo, so that a shoulder is cut off.")
	}
	if format == "webp" {
		warnings = append(warnings, "A webp holds no print size; print it 35 x 45 mm large. Use jpg or png to have it in the file.")
	}
	return warnings
}
