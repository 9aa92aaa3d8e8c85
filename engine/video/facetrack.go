package video

import (
	"cmp"
	"context"
	"math"
	"slices"

	"enlarger/engine/image"
)

// What tracking goes by, in seconds.
const (
	// detectionsPerSecond is how often faces are looked for, at fixed times from the beginning of the file.
	detectionsPerSecond = 7.0
	// fadeTime is how long a face takes to come in or go, except at a cut.
	fadeTime = 0.3
	// bridgeTime is how long a face that is not found is believed, as long as what is there moves as it did; forgetTime ends it.
	bridgeTime, forgetTime = 0.7, 2.0
	// settleTime is the deviation of the times over which a face's place is averaged.
	settleTime = 0.08
	// aheadTime is how far tracking runs ahead of the work, so that a face is known to be one when it first shows.
	aheadTime = 0.45
)

const (
	// trackLong is the long side of the reduced luma in which faces are found and followed.
	trackLong = 640
	// tracksAtOnce is the most faces restored in a frame.
	tracksAtOnce = 8
	// A face is begun by a find of birthQuality, and is one when it was found again with sureQuality in all (of image.Face.Quality).
	birthQuality, sureQuality = 12, 45
	// steady is the least correlation of a face with itself a frame before.
	steady = 0.5
)

// smallLuma is a frame's luma in 8 bits, reduced by a whole number.
type smallLuma struct {
	width, height, shrink int
	pix                   []byte
}

// reducedLuma averages squares of a plane so that its long side is at most trackLong. What is over at the right and below is left out.
func reducedLuma(p *plane) smallLuma {
	k := max(1, (max(p.width, p.height)+trackLong-1)/trackLong)
	s := smallLuma{width: max(p.width/k, 1), height: max(p.height/k, 1), shrink: k}
	k = min(k, p.width, p.height)
	s.pix = make([]byte, s.width*s.height)
	sums := make([]uint32, s.width)
	area := uint32(k * k)
	if p.deep {
		area *= 4 // ten bits to eight
	}
	for y := range s.height {
		clear(sums)
		for row := y * k; row < (y+1)*k; row++ {
			p.addRow(sums, row, k)
		}
		for x, v := range sums {
			s.pix[y*s.width+x] = byte(min((v+area/2)/area, 255))
		}
	}
	return s
}

// addRow adds the samples of a row to the sums of k each.
func (p *plane) addRow(sums []uint32, row, k int) {
	line := p.pixels[row*p.width*p.sampleBytes():]
	for x := range sums {
		var v uint32
		if p.deep {
			for i := 2 * x * k; i < 2*(x+1)*k; i += 2 {
				v += uint32(line[i]) | uint32(line[i+1])<<8
			}
		} else {
			for _, b := range line[x*k : (x+1)*k] {
				v += uint32(b)
			}
		}
		sums[x] += v
	}
}

// at interpolates between samples; beyond the edge it goes on.
func (s *smallLuma) at(x, y float64) float32 {
	x, y = min(max(x-0.5, 0), float64(s.width-1)), min(max(y-0.5, 0), float64(s.height-1))
	left, top := int(x), int(y)
	u, v := float32(x-float64(left)), float32(y-float64(top))
	right, below := min(left+1, s.width-1), min(top+1, s.height-1)
	a, b := float32(s.pix[top*s.width+left]), float32(s.pix[top*s.width+right])
	c, d := float32(s.pix[below*s.width+left]), float32(s.pix[below*s.width+right])
	return (a+u*(b-a))*(1-v) + (c+u*(d-c))*v
}

// faceState is where a track is in one frame, in pixels of the frame.
type faceState struct {
	index    int64
	at       float64
	face     image.Face
	strength float64
}

// faceTrack is one face over time.
type faceTrack struct {
	states []faceState
	// face is where it is in the newest frame, in pixels of the reduced luma.
	face image.Face
	// seen is the time of the last find; finds and quality are how many there were and the sum of their qualities.
	seen    float64
	finds   int
	quality float64
	sure    bool
	// abrupt says that it began at a cut, or with the clip: it does not fade in.
	abrupt bool
	steady bool
	ended  bool

	traits   image.FaceTraits
	measured int
}

// facePlace is where and how a face is restored in one frame, in pixels of the frame.
type facePlace struct {
	face     image.Face
	strength float64
	traits   image.FaceTraits
}

// faceNote is what tracking says of a frame. Until it is settled, there is a frame to come that may change it.
type faceNote struct {
	index   int64
	settled bool
	places  []facePlace
}

// faceTracker finds the faces of a clip, frame after frame, and follows each from find to find.
type faceTracker struct {
	finder *image.FaceFinder
	// origin is the time of the first frame from the beginning of the file, when only a window of it is seen.
	origin float64
	// ahead is how many frames the work is behind; spread is the deviation in frames by which places are averaged.
	ahead  int
	spread float64

	tracks []*faceTrack
	// notes are those of the frames that have not been given to the work.
	notes []*faceNote
	last  smallLuma
	// lastAt is the time of the last frame and slot its count of detectionsPerSecond; cutAt is the index of the first after a cut; looks is how
	// often the whole picture was searched.
	lastAt float64
	slot   int64
	cutAt  int64
	looks  int
	scenes sceneCuts

	// found is how many faces were sure.
	found int
}

// newFaceTracker makes a tracker for frames of a rate, of which so many are held until the work.
func newFaceTracker(fps, origin float64, ahead int) *faceTracker {
	return &faceTracker{finder: image.NewFaceFinder(), origin: origin, ahead: ahead, spread: max(settleTime*fps, 0.5)}
}

// look takes the next frame.
func (t *faceTracker) look(ctx context.Context, f *frame) error {
	small := reducedLuma(&f.planes[0])
	first := f.index == 0
	if cut := t.scenes.next(&small); first || cut {
		t.cutAt = f.index
		for _, track := range t.tracks {
			track.ended = true
		}
	}
	step := min(max(f.at-t.lastAt, 0), 0.5)
	live := t.live()
	for _, track := range live {
		track.follow(&t.last, &small)
	}
	const atCut = 2 // frames after a cut in which faces are looked for at once
	slot := int64(math.Floor((f.at + t.origin) * detectionsPerSecond))
	if fresh := f.index-t.cutAt < atCut; fresh || slot != t.slot {
		found, err := t.find(ctx, &small, fresh, slot)
		if err != nil {
			return err
		}
		t.assign(f, &small, found)
	}
	t.slot = slot
	for _, track := range t.live() {
		track.advance(f, step, small.shrink)
	}
	t.last, t.lastAt = small, f.at
	t.note(f)
	return nil
}

func (t *faceTracker) live() []*faceTrack {
	return slices.DeleteFunc(slices.Clone(t.tracks), func(k *faceTrack) bool { return k.ended })
}

// find looks for faces: in the whole picture now and then, and else around the tracks, which takes a tenth of the time.
func (t *faceTracker) find(ctx context.Context, small *smallLuma, fresh bool, slot int64) ([]image.Face, error) {
	live := t.live()
	if fresh || len(live) == 0 && slot%2 == 0 || slot%3 == 0 {
		tilt := [4]float64{0, 15, 0, -15}[t.looks%4]
		t.looks++
		return t.finder.Find(ctx, small.pix, small.width, small.height, tilt)
	}
	var all []image.Face
	for _, track := range live {
		const around = 1.2 // sides of the face to each side of its middle
		f := track.face
		x0, y0 := max(int(f.X-around*f.Size), 0), max(int(f.Y-around*f.Size), 0)
		x1, y1 := min(int(f.X+around*f.Size)+1, small.width), min(int(f.Y+around*f.Size)+1, small.height)
		if x1 <= x0 || y1 <= y0 {
			continue
		}
		part := make([]byte, 0, (x1-x0)*(y1-y0))
		for y := y0; y < y1; y++ {
			part = append(part, small.pix[y*small.width+x0:y*small.width+x1]...)
		}
		const turned = 0.12 // radians from which a face is looked for turned as well
		tilt := 0.0
		if math.Abs(f.Roll) > turned {
			tilt = math.Copysign(15, f.Roll)
		}
		found, err := t.finder.Find(ctx, part, x1-x0, y1-y0, tilt)
		if err != nil {
			return nil, err
		}
		for _, face := range found {
			face.X, face.Y = face.X+float64(x0), face.Y+float64(y0)
			again := func(k image.Face) bool { return math.Hypot(k.X-face.X, k.Y-face.Y) < 0.6*max(k.Size, face.Size) }
			if !slices.ContainsFunc(all, again) {
				all = append(all, face)
			}
		}
	}
	return all, nil
}

// assign gives what was found to the tracks.
func (t *faceTracker) assign(f *frame, small *smallLuma, found []image.Face) {
	live := t.live()
	taken := make(map[*faceTrack]bool)
	for _, face := range found {
		track := nearest(live, face, taken)
		if track == nil {
			if face.Quality < birthQuality || len(live) >= tracksAtOnce {
				continue
			}
			const soon = 2
			track = &faceTrack{face: face, abrupt: f.index-t.cutAt < soon, steady: true}
			t.tracks, live = append(t.tracks, track), append(live, track)
		}
		taken[track] = true
		t.seen(track, f, small, face)
	}
	for _, track := range live {
		// A find that nothing confirms soon was none.
		if patience := 2.5 / detectionsPerSecond; !track.sure && f.at-track.seen > patience {
			track.ended = true
		}
	}
}

// nearest is the track that a find belongs to.
func nearest(live []*faceTrack, face image.Face, taken map[*faceTrack]bool) *faceTrack {
	var best *faceTrack
	least := 0.5 // of the side
	for _, track := range live {
		side := max(track.face.Size, face.Size)
		d := math.Hypot(track.face.X-face.X, track.face.Y-face.Y)/side + math.Abs(math.Log(track.face.Size/face.Size))/2
		if d < least && !taken[track] {
			best, least = track, d
		}
	}
	return best
}

// seen tells a track of a find.
func (t *faceTracker) seen(track *faceTrack, f *frame, small *smallLuma, face image.Face) {
	track.finds++
	track.quality += face.Quality
	track.seen = f.at
	// A find is less exact than following, but does not drift.
	part := 0.35
	if math.Hypot(track.face.X-face.X, track.face.Y-face.Y) > 0.3*face.Size || track.finds == 1 {
		part = 1
	}
	was := &track.face
	was.X, was.Y = was.X+part*(face.X-was.X), was.Y+part*(face.Y-was.Y)
	was.Size, was.Roll = was.Size+part*(face.Size-was.Size), was.Roll+part*(face.Roll-was.Roll)
	was.Quality = face.Quality
	track.steady = true
	if !track.sure && track.finds > 1 && track.quality >= sureQuality {
		track.sure = true
		t.found++
		track.begin(f.index - int64(t.ahead))
	}
	// The measures of the first finds, and later now and then.
	const often, seldom = 4, 5
	if track.finds <= often || track.finds%seldom == 0 {
		track.measure(f, ofFrame(track.face, small.shrink))
	}
}

// begin gives the frames since the first find their strength, as far as they are not past.
func (k *faceTrack) begin(past int64) {
	from := math.Inf(1)
	abrupt := k.abrupt && len(k.states) > 0 && k.states[0].index >= past
	for i := range k.states {
		s := &k.states[i]
		if s.index < past {
			continue
		}
		from = min(from, s.at)
		s.strength = 1
		if !abrupt {
			s.strength = min((s.at-from)/fadeTime, 1)
		}
	}
}

// measure takes the traits of a face into the mean of its track, which changes slowly.
func (k *faceTrack) measure(f *frame, face image.Face) {
	crop, area := lumaAround(f, face.Oval(), workShrink(f))
	if area.width < 16 || area.height < 16 {
		return
	}
	k.measured++
	now, part := image.MeasureFace(crop, area.width, area.height), max(1/float64(k.measured), 0.1)
	k.traits.Softness += part * (now.Softness - k.traits.Softness)
	k.traits.Noise += part * (now.Noise - k.traits.Noise)
}

// advance notes where the track is in a frame that comes step seconds after the last.
func (k *faceTrack) advance(f *frame, step float64, shrink int) {
	s := faceState{index: f.index, at: f.at, face: ofFrame(k.face, shrink)}
	was := 0.0
	switch {
	case len(k.states) > 0:
		was = k.states[len(k.states)-1].strength
	case k.abrupt:
		was = 1
	}
	if k.sure {
		wanted := 0.0
		if k.steady && f.at-k.seen <= bridgeTime {
			wanted = 1
		}
		s.strength = was + min(max(wanted-was, -step/fadeTime), step/fadeTime)
	}
	k.states = append(k.states, s)
	if gone := f.at - k.seen; k.sure && (gone > forgetTime || gone > bridgeTime && s.strength == 0) {
		k.ended = true
	}
}

// ofFrame takes a face from the reduced luma to the frame.
func ofFrame(f image.Face, by int) image.Face {
	k := float64(by)
	f.X, f.Y, f.Size = f.X*k, f.Y*k, f.Size*k
	return f
}

// note keeps the frame's note and settles that of the frame which goes to the work.
func (t *faceTracker) note(f *frame) {
	n := &faceNote{index: f.index}
	f.note = n
	t.notes = append(t.notes, n)
	for len(t.notes) > 0 && t.notes[0].index <= f.index-int64(t.ahead) {
		t.settle(t.notes[0])
		t.notes = t.notes[1:]
	}
	oldest := f.index - int64(2*t.ahead) - 2
	t.tracks = slices.DeleteFunc(t.tracks, func(k *faceTrack) bool {
		past := 0
		for past < len(k.states) && k.states[past].index < oldest {
			past++
		}
		k.states = slices.Delete(k.states, 0, past)
		return k.ended && len(k.states) == 0
	})
}

// settle makes a note final. It is called in look's order, or by the work when look has seen the last frame.
func (t *faceTracker) settle(n *faceNote) {
	n.settled = true
	for _, k := range t.tracks {
		if place, ok := k.place(n.index, t.spread, n.index+int64(t.ahead)); ok {
			n.places = append(n.places, place)
		}
	}
	slices.SortFunc(n.places, func(a, b facePlace) int {
		return cmp.Or(cmp.Compare(b.face.Size, a.face.Size), cmp.Compare(a.face.X, b.face.X))
	})
}

// place averages where a track is around a frame.
func (k *faceTrack) place(index int64, spread float64, until int64) (facePlace, bool) {
	at, found := slices.BinarySearchFunc(k.states, index, func(s faceState, index int64) int { return cmp.Compare(s.index, index) })
	if !found || k.states[at].strength <= 0 {
		return facePlace{}, false
	}
	out := facePlace{strength: k.states[at].strength, traits: k.traits}
	// The same number of frames before and after, so that an even movement stays what it is.
	reach := min(at, len(k.states)-1-at, int(3*spread), int(until-index))
	sum := 0.0
	for i := at - reach; i <= at+reach; i++ {
		d := float64(i-at) / spread
		w := math.Exp(-d * d / 2)
		f := k.states[i].face
		sum += w
		out.face.X, out.face.Y = out.face.X+w*f.X, out.face.Y+w*f.Y
		out.face.Size, out.face.Roll = out.face.Size+w*f.Size, out.face.Roll+w*f.Roll
	}
	out.face.X, out.face.Y, out.face.Size, out.face.Roll = out.face.X/sum, out.face.Y/sum, out.face.Size/sum, out.face.Roll/sum
	return out, true
}

// sampled is the side of the grid by which a face is compared with itself.
const sampled = 16

// patchAt samples a square and takes its mean and its contrast away; false when it is flat.
func (s *smallLuma) patchAt(x, y, size float64, to *[sampled * sampled]float32) bool {
	step := size / sampled
	sum := float32(0)
	for j := range sampled {
		for i := range sampled {
			v := s.at(x+(float64(i)-(sampled-1)/2.0)*step, y+(float64(j)-(sampled-1)/2.0)*step)
			to[j*sampled+i] = v
			sum += v
		}
	}
	mean, square := sum/(sampled*sampled), float32(0)
	for i := range to {
		to[i] -= mean
		square += to[i] * to[i]
	}
	const flat = 1 // in squared codes a sample
	if square < flat*sampled*sampled {
		return false
	}
	k := 1 / float32(math.Sqrt(float64(square)))
	for i := range to {
		to[i] *= k
	}
	return true
}

// follow finds where a face went since the frame before, by the greatest correlation: first over coarse steps around, then over ever
// finer ones, and last in its size.
func (k *faceTrack) follow(before, now *smallLuma) {
	var was, is [sampled * sampled]float32
	k.steady = false
	if before.width != now.width || before.height != now.height || !before.patchAt(k.face.X, k.face.Y, k.face.Size, &was) {
		return
	}
	best, bestAt := float32(-1), k.face
	try := func(x, y, size float64) {
		if !now.patchAt(x, y, size, &is) {
			return
		}
		c := float32(0)
		for i, v := range was {
			c += v * is[i]
		}
		if c > best {
			best, bestAt.X, bestAt.Y, bestAt.Size = c, x, y, size
		}
	}
	const reach = 4 // steps of an eighth of the side
	try(k.face.X, k.face.Y, k.face.Size)
	if still := float32(0.98); best < still {
		step := k.face.Size / (2 * reach)
		for j := -reach; j <= reach; j++ {
			for i := -reach; i <= reach; i++ {
				try(k.face.X+float64(i)*step, k.face.Y+float64(j)*step, k.face.Size)
			}
		}
	}
	for _, part := range [4]float64{1. / 16, 1. / 32, 1. / 64, 1. / 128} {
		at, step := bestAt, k.face.Size*part
		for j := -1.0; j <= 1; j++ {
			for i := -1.0; i <= 1; i++ {
				try(at.X+i*step, at.Y+j*step, at.Size)
			}
		}
	}
	for _, scale := range [4]float64{0.96, 0.98, 1.02, 1.04} {
		try(bestAt.X, bestAt.Y, k.face.Size*scale)
	}
	if k.steady = best >= steady; k.steady {
		k.face.X, k.face.Y, k.face.Size = bestAt.X, bestAt.Y, bestAt.Size
	}
}

// sceneCuts tells cuts from movement.
type sceneCuts struct {
	thumb  [thumbWide * thumbHigh]float64
	shades [16]float64
	// mean is the brightness of the last frame, usual what frames differ by.
	mean, usual float64
	counted     int
}

const thumbWide, thumbHigh = 32, 18

// next compares a frame with the one before.
func (c *sceneCuts) next(s *smallLuma) bool {
	var thumb [thumbWide * thumbHigh]float64
	var shades [16]float64
	for j := range thumbHigh {
		for i := range thumbWide {
			thumb[j*thumbWide+i] = float64(s.at((float64(i)+0.5)*float64(s.width)/thumbWide, (float64(j)+0.5)*float64(s.height)/thumbHigh)) / 255
		}
	}
	for _, v := range s.pix {
		shades[v/16] += 1 / float64(len(s.pix))
	}
	moved, changed, mean := 0.0, 0.0, 0.0
	for i, v := range thumb {
		mean += v / float64(len(thumb))
		moved += math.Abs(v-c.thumb[i]) / float64(len(thumb))
	}
	for i, v := range shades {
		changed += math.Abs(v-c.shades[i]) / 2
	}
	// A cut changes the picture by a third of its brightness or more, and its shades too, far more than it changed before: three of a concert
	// filmed in the dark move 0.09 to 0.10 of white (0.42 to 0.51 of the brightness) and 0.19 to 0.40 of the shades, its hardest pan 0.047 and
	// 0.05. A cut that is missed costs little: what a face is compared with is gone.
	const dark, bright, part, shadesPart, sudden, least = 0.05, 0.3, 0.35, 0.15, 4, 0.005
	reference := part * min(dark+(mean+c.mean)/2, bright)
	cut := c.counted > 0 && moved > sudden*max(c.usual, least) && (moved > reference && changed > shadesPart || moved > 2*reference)
	c.mean = mean
	c.thumb, c.shades = thumb, shades
	c.counted++
	if !cut && c.counted > 1 {
		c.usual += 0.2 * (moved - c.usual)
	}
	return cut
}
