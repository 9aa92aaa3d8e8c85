package image

import (
	"context"
	"encoding/binary"
	"os"
	"slices"
	"strings"

	"enlarger/engine"
	"enlarger/engine/neural"
)

// net is the model for a task, or nil when this server has none. Scale is 1 for all but upscale. Among several, the first of the
// wanted variants that is there is taken.
func (o Options) net(task neural.Task, scale int, variants ...string) *neural.Model {
	return o.Neural.Find(task, scale, variants...)
}

// Weights of BT.601 luma.
const lumaRed, lumaGreen, lumaBlue = 0.299, 0.587, 0.114

// luma fills to with the BT.601 luma of full range of three planes.
func luma(to, red, green, blue []float32) {
	green, blue = green[:len(red)], blue[:len(red)]
	for i, r := range red {
		to[i] = lumaRed*r + lumaGreen*green[i] + lumaBlue*blue[i]
	}
}

// netColours is what a model that keeps the size (denoise, restore, deblur, face) makes of red, green and blue of 0 to 1, not
// premultiplied, width x height each. Where the picture ends it is mirrored, except for the margins of how, which are left off the
// result. A luma model changes the luma and leaves the colour. A grey picture comes out grey: its three planes are one.
func netColours(ctx context.Context, m *neural.Model, colours [3][]float32, width, height int, grey bool, how neural.How) ([3][]float32, error) {
	in := neural.Patch{Width: width, Height: height, Planes: colours[:]}
	bright := colours[0]
	if m.Planes() == 1 {
		if !grey {
			bright = make([]float32, width*height)
			luma(bright, colours[0], colours[1], colours[2])
		}
		in.Planes = [][]float32{bright}
	}
	out, err := m.Run(ctx, in, how)
	if err != nil {
		return [3][]float32{}, err
	}
	if len(out.Planes) == 3 && !grey {
		return [3][]float32(out.Planes), nil
	}
	if grey {
		only := out.Planes[0]
		if len(out.Planes) == 3 {
			luma(only, only, out.Planes[1], out.Planes[2])
		}
		return [3][]float32{only, only, only}, nil
	}
	var result [3][]float32
	for c, plane := range colours {
		result[c] = make([]float32, out.Width*out.Height)
		for y := range out.Height {
			at := (y+how.Top)*width + how.Left
			was, old, now := bright[at:][:out.Width], plane[at:][:out.Width], out.Planes[0][y*out.Width:][:out.Width]
			to := result[c][y*out.Width:][:out.Width]
			for x, v := range now {
				to[x] = old[x] + v - was[x]
			}
		}
	}
	return result, nil
}

// netPatch changes the colours of a patch in place, as filter.apply does, to what a model that keeps the size makes of them; the
// outermost margin pixels are seen only and must be at least m.Overlap() for there to be no seams. level is for models that have one.
// Where the picture is transparent, the model sees the colours around go on.
func netPatch(ctx context.Context, m *neural.Model, p *patch, margin int, grey bool, level float32) error {
	colours := straight(p)
	how := neural.How{Left: margin, Top: margin, Right: margin, Bottom: margin, X: p.x, Y: p.y, Level: level}
	out, err := netColours(ctx, m, colours, p.width, p.height, grey, how)
	if err != nil {
		return err
	}
	width, height := p.width-2*margin, p.height-2*margin
	for c, plane := range out {
		for y := range height {
			at := (y+margin)*p.width + margin
			alpha, to := p.planes[3][at:][:width], p.planes[c][at:][:width]
			for x, v := range plane[y*width:][:width] {
				to[x] = min(max(v, 0), 1) * alpha[x]
			}
		}
	}
	return nil
}

// netMask is where a matting model sees the subject in a patch: 1 on it, 0 beside it. m.Whole tells the size at which it looks at a
// picture; a patch reduced to about that size loses nothing.
func netMask(ctx context.Context, m *neural.Model, p *patch) ([]float32, error) {
	colours := straight(p)
	in := neural.Patch{Width: p.width, Height: p.height, Planes: colours[:]}
	if m.Planes() == 1 {
		bright := make([]float32, p.width*p.height)
		luma(bright, colours[0], colours[1], colours[2])
		in.Planes = [][]float32{bright}
	}
	out, err := m.Run(ctx, in, neural.How{})
	if err != nil {
		return nil, err
	}
	mask := out.Planes[0]
	for i, v := range mask {
		mask[i] = min(max(v, 0), 1)
	}
	return mask, nil
}

// straight gives the colours of a patch without the premultiplied alpha. What is more or less transparent takes on, as far as it is,
// the mean colour of what is seen around it, so that a net meets no edge that is not in the picture. An opaque patch's own
// planes are returned.
func straight(p *patch) [3][]float32 {
	colours := [3][]float32{p.planes[0], p.planes[1], p.planes[2]}
	alpha := p.planes[3]
	opaque := true
	for _, a := range alpha {
		opaque = opaque && a >= 1
	}
	if opaque {
		return colours
	}
	// Twice the mean of a 7x7 box reaches 6 pixels beyond the edge; a net's answer near the edge hardly depends on more.
	const radius = 3
	covered := boxed(boxed(alpha, p.width, p.height, radius), p.width, p.height, radius)
	for c, plane := range colours {
		mean := boxed(boxed(plane, p.width, p.height, radius), p.width, p.height, radius)
		filled := make([]float32, len(plane))
		for i, a := range alpha {
			around := float32(0)
			if covered[i] > 1e-4 {
				around = mean[i] / covered[i]
			}
			filled[i] = plane[i] + (1-a)*around
		}
		colours[c] = filled
	}
	return colours
}

// boxed is the sum of the samples up to radius columns and rows away, over their number in the middle of the plane. Sums run along, in 64 bits so
// that what was added is taken away again exactly enough: the radius costs nothing.
func boxed(plane []float32, width, height, radius int) []float32 {
	wide, out := make([]float32, len(plane)), make([]float32, len(plane))
	share := 1 / float64(2*radius+1)
	for y := range height {
		row, to := plane[y*width:][:width], wide[y*width:][:width]
		sum := 0.0
		for _, v := range row[:min(radius, width)] {
			sum += float64(v)
		}
		for x := range to {
			if x+radius < width {
				sum += float64(row[x+radius])
			}
			if x > radius {
				sum -= float64(row[x-radius-1])
			}
			to[x] = float32(sum * share)
		}
	}
	sums := make([]float64, width)
	for y := range min(radius, height) {
		for x, v := range wide[y*width:][:width] {
			sums[x] += float64(v)
		}
	}
	for y := range height {
		if y+radius < height {
			for x, v := range wide[(y+radius)*width:][:width] {
				sums[x] += float64(v)
			}
		}
		if y > radius {
			for x, v := range wide[(y-radius-1)*width:][:width] {
				sums[x] -= float64(v)
			}
		}
		for x, sum := range sums {
			out[y*width+x] = float32(sum * share)
		}
	}
	return out
}

// netUpscaler enlarges by models, one after the other where no single one has the scale. A luma model makes the luma, and the classical
// upscaler the colour, which the eye sees less sharply, and the alpha; an RGB model makes all but the alpha.
type netUpscaler struct {
	models  []*neural.Model
	scale   int
	classic *upscaler
	// strength is how much of the models' luma is taken, 0 to 1; the rest is the classical one.
	strength float32
	tiles    []tile
	// deep is a band of the classical picture in 16 bits, kept between bands.
	deep []byte
}

// netUpscaler finds models for a scale: one that has it, or several that make it together. It is nil when there are none. All must take
// the same planes.
func (o Options) netUpscaler(scale int, variants ...string) *netUpscaler {
	for _, steps := range map[int][][]int{2: {{2}}, 4: {{4}, {2, 2}}, 8: {{8}, {4, 2}, {2, 4}, {2, 2, 2}}}[scale] {
		var models []*neural.Model
		for _, step := range steps {
			if m := o.net(neural.Upscale, step, variants...); m != nil && (len(models) == 0 || models[0].Planes() == m.Planes()) {
				models = append(models, m)
			}
		}
		if len(models) == len(steps) {
			return &netUpscaler{models: models, scale: scale, strength: 1, classic: newUpscaler(scale), tiles: make([]tile, processors())}
		}
	}
	return nil
}

// netUpscalerFor finds models for a picture. Of ours, the one for photos is for sources with traces of noise or JPEG; those that were
// trained on clean sources take such traces for detail, and the less of them is taken the more there are. Every second picture of Set14 at x2, PSNR
// of luma:
//
//	source         clean  JPEG 90  70     40     noise 6
//	clean variant  32.57  30.81    28.37  26.82  29.93
//	for photos     30.74  30.41    29.31  28.05  30.18
//	classical      30.42  29.68    28.18  26.91  29.17
//
// An operator's model is taken as it is.
func (o Options) netUpscalerFor(ctx context.Context, scale int, input string, source *picture) (*netUpscaler, error) {
	n := o.netUpscaler(scale, "quality", "fast")
	if n == nil || !slices.ContainsFunc(n.models, (*neural.Model).Shipped) {
		return n, nil
	}
	clean, err := cleanness(ctx, input, source)
	if err != nil {
		return nil, err
	}
	const rough = 0.8
	if photo := o.photoUpscaler(scale); photo != nil && clean < rough {
		return photo, nil
	}
	if n.strength = clean; clean < 0.05 && !n.colours() {
		return nil, nil //nolint:nilnil // there is no model for such a picture
	}
	return n, nil
}

// photo is the variant of models for rough sources.
const photo = "photo"

// photoUpscaler finds models for rough sources. What the one for photos leaves is clean, so where it does not make the whole scale, those
// for clean pictures go on. It is nil when there is no such model.
func (o Options) photoUpscaler(scale int) *netUpscaler {
	for step := scale; step >= 2; step /= 2 {
		m := o.net(neural.Upscale, step, photo)
		if m == nil || m.Variant() != photo {
			continue
		}
		models := []*neural.Model{m}
		if step < scale {
			rest := o.netUpscaler(scale/step, "quality", "fast")
			if rest == nil || rest.models[0].Planes() != m.Planes() {
				continue
			}
			models = append(models, rest.models...)
		}
		return &netUpscaler{models: models, scale: scale, strength: 1, classic: newUpscaler(scale), tiles: make([]tile, processors())}
	}
	return nil
}

// cleanness is how free a source is of noise and JPEG's traces, 0 to 1.
func cleanness(ctx context.Context, input string, source *picture) (float32, error) {
	noise, err := measureNoise(ctx, source.raster)
	if err != nil {
		return 0, err
	}
	const code, little, much = 1. / 255, 2, 14 // standard deviations of the noise in 8-bit codes
	clean := min(max((much-noise.luma/code)/(much-little), 0), 1)
	const good, bad = 92, 40 // qualities
	return clean * min(max((source.codingQuality(input)-bad)/(good-bad), 0), 1), nil
}

// codingQuality is the quality of a picture that came as a JPEG, and 100 of any other. input is its file.
func (p *picture) codingQuality(input string) float32 {
	if p.header.format != "jpeg" {
		return 100
	}
	return jpegQuality(input)
}

// jpegQuality is the quality, 1 to 100, whose luma quantisers are those of a JPEG file, by the usual scaling of the standard's own
// (Independent JPEG Group); 100 where the file does not say.
func jpegQuality(path string) float32 {
	f, err := os.Open(path)
	if err != nil {
		return 100
	}
	defer quietly(f.Close)
	info, err := f.Stat()
	if err != nil {
		return 100
	}
	quality := float32(100)
	in := &headerReader{r: f, size: info.Size()}
	_ = jpegSegments(in, func(marker byte, offset int64, length int) (bool, error) {
		const tables = 0xDB
		if marker != tables {
			return true, nil
		}
		b, err := in.at(offset, length)
		for err == nil && len(b) >= 65 {
			wide, table := int(b[0]>>4), b[0]&15
			size := 1 + 64*(1+min(wide, 1))
			if len(b) < size {
				break
			}
			if table == 0 {
				quality = quantQuality(b[1:size], wide > 0)
			}
			b = b[size:]
		}
		return true, err
	})
	return quality
}

// quantQuality is the quality of a luma table, of bytes or of pairs of them.
func quantQuality(table []byte, wide bool) float32 {
	sum, usual := 0, 0
	for i, q := range jpegLumaQuant {
		usual += int(q)
		if wide {
			sum += int(binary.BigEndian.Uint16(table[2*i:]))
			continue
		}
		sum += int(table[i])
	}
	percent := 100 * float32(sum) / float32(usual)
	if percent <= 100 {
		return 100 - percent/2
	}
	return 5000 / percent
}

// name is what the job's output says of the models.
func (n *netUpscaler) name() string {
	names := make([]string, len(n.models))
	for i, m := range n.models {
		names[i] = m.Name()
	}
	return strings.Join(names, ", ")
}

func (n *netUpscaler) colours() bool { return n.models[0].Planes() == 3 }

// bandBytes is what a band takes for each source pixel: the planes in and out of every model, the classical band, the pixels.
func (n *netUpscaler) bandBytes() int64 {
	planes, side := int64(n.models[0].Planes()), int64(1)
	bytes := 4 * 4 * side // red, green, blue and alpha of the source
	for _, m := range n.models {
		side *= int64(m.Scale())
		bytes += 4 * planes * side * side
	}
	return bytes + 2*int64(bytesPerPixel(true))*side*side
}

// rows is how many source rows are enlarged at a time: as many as fit, for every band sees the overlap twice, in steps that the blocks
// of a JPEG divide.
func (n *netUpscaler) rows(width, height int) int {
	const budget, least, unit = 48 << 20, 16, 8
	fitting := int(min(budget/(n.bandBytes()*int64(width)), int64(height)))
	most := max(n.models[0].Core(), least) // more would not make the overlap smaller
	return min(max(min(fitting, most)/unit*unit, least), height)
}

// memory estimates the bytes that enlarging takes beside decoding and encoding.
func (n *netUpscaler) memory(width, height int) int64 {
	bytes := int64(n.rows(width, height)+2*n.models[0].Overlap()) * int64(width) * n.bandBytes()
	models := int64(0)
	for _, m := range n.models {
		models = max(models, m.Memory()) // one runs at a time
	}
	return bytes + models
}

// netUpscaleMemory estimates the bytes that the models for a scale take beside decoding and encoding, whichever of them the source will need.
func (o Options) netUpscaleMemory(scale int, source engine.Source) int64 {
	most := int64(0)
	for _, n := range []*netUpscaler{o.netUpscaler(scale, "quality", "fast"), o.photoUpscaler(scale)} {
		if n != nil && source.Known() {
			most = max(most, n.memory(source.Width, source.Height))
		}
	}
	return most
}

// band makes the output rows from y, a multiple of the scale, as far as out reaches.
func (n *netUpscaler) band(ctx context.Context, src *raster, y int, out []byte, deep bool) error {
	width := src.width * n.scale
	rows := len(out) / (width * bytesPerPixel(deep))
	made, err := n.enlarged(ctx, src, len(n.models), y, y+rows)
	if err != nil {
		return err
	}
	var classic []byte
	if src.alpha || (!src.grey && !n.colours()) || n.strength < 1 {
		if size := rows * width * bytesPerPixel(true); cap(n.deep) < size {
			n.deep = make([]byte, size)
		} else {
			n.deep = n.deep[:size]
		}
		classic = n.deep
		if err := n.classic.band(ctx, src, y, classic, true, n.tiles); err != nil {
			return err
		}
	}
	const chunk = 16
	return parallel(ctx, (rows+chunk-1)/chunk, func(_, i int) error {
		for row := i * chunk; row < min((i+1)*chunk, rows); row++ {
			var line [3][]float32
			for c := range line {
				line[c] = made.Planes[c%len(made.Planes)][row*width:][:width]
			}
			to := out[row*width*bytesPerPixel(deep):][:width*bytesPerPixel(deep)]
			var from []byte
			if classic != nil {
				from = classic[row*width*8:][:width*8]
			}
			n.join(to, line, from, src, deep)
		}
		return nil
	})
}

// join writes one row of pixels from what the models made and, where it is given, the same row of the classical picture in 16 bits. Only
// that has an alpha, and the colour beside a luma.
func (n *netUpscaler) join(to []byte, line [3][]float32, classic []byte, src *raster, deep bool) {
	for x, v := range line[0] {
		r, g, b, alpha := v, line[1][x], line[2][x], uint64(0xFFFF)
		if classic != nil {
			pixel := binary.BigEndian.Uint64(classic[8*x:])
			alpha = pixel & 0xFFFF
			red, green, blue := float32(pixel>>48)*(1./65535), float32(pixel>>32&0xFFFF)*(1./65535), float32(pixel>>16&0xFFFF)*(1./65535)
			switch {
			case n.colours():
			case src.grey:
				r = red + n.strength*(v-red)
				g, b = r, r
			default:
				more := n.strength * (v - (lumaRed*red + lumaGreen*green + lumaBlue*blue))
				r, g, b = red+more, green+more, blue+more
			}
		}
		if deep {
			all := uint64(code16(r))<<48 | uint64(code16(g))<<32 | uint64(code16(b))<<16 | alpha
			if alpha == 0 {
				all = 0
			}
			binary.BigEndian.PutUint64(to[8*x:], all)
			continue
		}
		p := (*[4]byte)(to[4*x:])
		p[0], p[1], p[2], p[3] = code8(r), code8(g), code8(b), byte((alpha+128)/257)
		if p[3] == 0 {
			p[0], p[1], p[2] = 0, 0, 0
		}
	}
}

// enlarged gives rows [from, to) of what the first models make of the picture. Each asks the one before it for the rows it needs, and so
// many around them as it sees.
func (n *netUpscaler) enlarged(ctx context.Context, src *raster, models, from, to int) (neural.Patch, error) {
	if models == 0 {
		return n.source(src, from, to)
	}
	m, height := n.models[models-1], src.height
	for _, before := range n.models[:models-1] {
		height *= before.Scale()
	}
	scale := m.Scale()
	first, last := from/scale, (to+scale-1)/scale
	top, bottom := max(first-m.Overlap(), 0), min(last+m.Overlap(), height)
	in, err := n.enlarged(ctx, src, models-1, top, bottom)
	if err != nil {
		return neural.Patch{}, err
	}
	out, err := m.Run(ctx, in, neural.How{Top: first - top, Bottom: bottom - last, Y: top})
	if err != nil {
		return neural.Patch{}, err
	}
	if len(out.Planes) == 1 {
		err = parallel(ctx, last-first, func(_, row int) error {
			near(out.Planes[0][row*scale*out.Width:][:scale*out.Width], in.Planes[0], in.Width, in.Height, first-top+row, scale)
			return nil
		})
		if err != nil {
			return neural.Patch{}, err
		}
	} else if src.grey {
		luma(out.Planes[0], out.Planes[0], out.Planes[1], out.Planes[2])
		out.Planes = [][]float32{out.Planes[0], out.Planes[0], out.Planes[0]}
	}
	out.Height = to - from
	for c, plane := range out.Planes {
		out.Planes[c] = plane[(from-first*scale)*out.Width:][:out.Height*out.Width]
	}
	return out, nil
}

// near keeps the enlarged pixels of one source row near the 3x3 source pixels around each: no further beyond their range than it is wide. An
// edge may become as sharp as it likes, and what is flat stays exactly flat.
func near(lines, plane []float32, width, height, row, scale int) {
	above := plane[max(row-1, 0)*width:][:width]
	here := plane[row*width:][:width]
	below := plane[min(row+1, height-1)*width:][:width]
	low0, high0 := span(above[0], here[0], below[0])
	low1, high1 := low0, high0
	for x := range width {
		low2, high2 := low1, high1
		if x+1 < width {
			low2, high2 = span(above[x+1], here[x+1], below[x+1])
		}
		least, most := min(low0, low1, low2), max(high0, high1, high2)
		least, most = least-(most-least), most+(most-least)
		for sub := range scale {
			part := lines[sub*width*scale+x*scale:][:scale]
			for i, v := range part {
				part[i] = min(max(v, least), most)
			}
		}
		low0, high0, low1, high1 = low1, high1, low2, high2
	}
}

// source reads rows [from, to) of the picture as the models take it.
func (n *netUpscaler) source(src *raster, from, to int) (neural.Patch, error) {
	const reach = 6 // of what straight looks at
	top, bottom := from, to
	if src.alpha {
		top, bottom = max(from-reach, 0), min(to+reach, src.height)
	}
	p, err := patchOf(src, 0, top, src.width, bottom-top)
	if err != nil {
		return neural.Patch{}, err
	}
	colours := straight(p)
	out := neural.Patch{Width: src.width, Height: to - from, Planes: colours[:]}
	if !n.colours() {
		if !src.grey {
			luma(colours[0], colours[0], colours[1], colours[2])
		}
		out.Planes = out.Planes[:1]
	}
	for c, plane := range out.Planes {
		out.Planes[c] = plane[(from-top)*src.width:][:out.Height*src.width]
	}
	return out, nil
}
