package image

import (
	"context"
	"math"
)

// collaborative denoises planes by collaborative filtering of groups of similar blocks, BM3D (Dabov, Foi, Katkovnik and Egiazarian,
// "Image Denoising by Sparse 3-D Transform-Domain Collaborative Filtering", 2007), colours with the groups that the luma has found
// (CBM3D). A first pass keeps the large coefficients of each group's spectrum; a second weighs every coefficient by how much the
// first result says is signal in it. Where a block lies decides which blocks it is compared with, so that any tiling of a picture
// gives the same result.
type collaborative struct {
	// planes is 1 or 3.
	planes int
	// step is the distance of the reference blocks, radius how far from one its group is searched, in pixels.
	step, radius int
	// group is the most blocks of a group in the first and the second pass: powers of two.
	group [2]int
	// noise is the variance of the noise in each coefficient of the transform of forwardDCT, so with its scale, for each plane.
	noise [3][blockArea]float32
	// similar is the mean squared difference of a pixel, in the first plane, up to which blocks are similar, for the two passes.
	similar [2]float32
}

const (
	blockSide = 8
	blockArea = blockSide * blockSide
	// groupMost is the most blocks a group can have.
	groupMost = 32
	// hardThreshold is in deviations of the noise; 2.7 is the paper's.
	hardThreshold = 2.7
)

// block is a square of pixels, or its spectrum.
type block [blockArea]float32

// margin is how far what decides a pixel lies from it.
func (d *collaborative) margin() int {
	const unit = 16
	reach := 2 * (2*d.radius + blockSide - 1)
	return (reach + unit - 1) / unit * unit
}

// white fills the noise of one plane with white noise of the given variance.
func (d *collaborative) white(plane int, variance float32) {
	for k := range blockArea {
		s := dctScale(k%blockSide) * dctScale(k/blockSide)
		d.noise[plane][k] = variance * s * s
	}
}

// coarsen makes the noise of the first plane weaker, by the factor part, where waves are shorter than four pixels.
func (d *collaborative) coarsen(part float32) {
	for k := range blockArea {
		if max(k%blockSide, k/blockSide) >= blockSide/2 {
			d.noise[0][k] *= part * part
		}
	}
}

// dctScale is what dct8 multiplies the k-th coefficient of the orthonormal transform by.
func dctScale(k int) float32 {
	if k == 0 {
		return float32(math.Sqrt(8))
	}
	return float32(4 * math.Cos(float64(k)*math.Pi/16))
}

// extent is a range of positions, from from to before to.
type extent struct{ from, to int }

func (e extent) grown(by int, within extent) extent {
	return extent{max(e.from-by, within.from), min(e.to+by, within.to)}
}

// references lists the positions of reference blocks that lie within where: multiples of step counted from origin, and the last
// that fits before end, where the picture ends.
func references(where extent, origin, step, end int) []int {
	var all []int
	for i := where.from; i+blockSide <= where.to; i++ {
		if (i-origin)%step == 0 || i+blockSide == end {
			all = append(all, i)
		}
	}
	return all
}

// denoiseScratch is one worker's memory.
type denoiseScratch struct {
	planes, basic, sum [3][]float32
	weight             [3][]float32
	first, second      [3][groupMost]block
	found              [groupMost]similarBlock
}

// collaborativeBytes is the memory of denoiseScratch for a pixel, for three planes.
const collaborativeBytes = 4 * 12

// similarBlock is a block found for a group.
type similarBlock struct {
	distance float32
	x, y     int
}

// frame says which part of a patch there is to denoise.
type frame struct {
	width, height int
	// across and down are the part of the patch that lies in the picture and is wide enough for blocks; inner is what is wanted.
	across, down           extent
	innerAcross, innerDown extent
	// originX and originY are where the picture begins; endX and endY where it ends.
	originX, originY, endX, endY int
}

// run denoises s.planes into itself.
func (d *collaborative) run(ctx context.Context, s *denoiseScratch, f frame) error {
	reach := 2*d.radius + blockSide - 1
	wantedX, wantedY := f.innerAcross.grown(reach, f.across), f.innerDown.grown(reach, f.down)
	if err := d.pass(ctx, s, f, 0, wantedX, wantedY); err != nil {
		return err
	}
	for c := range d.planes {
		s.basic[c], s.sum[c] = s.sum[c], s.basic[c]
	}
	if err := d.pass(ctx, s, f, 1, f.innerAcross, f.innerDown); err != nil {
		return err
	}
	for c := range d.planes {
		s.planes[c], s.sum[c] = s.sum[c], s.planes[c]
	}
	return nil
}

// pass filters every group that reaches the wanted part and leaves the result in s.sum.
func (d *collaborative) pass(ctx context.Context, s *denoiseScratch, f frame, number int, wantedX, wantedY extent) error {
	for c := range d.planes {
		n := f.width * f.height
		s.sum[c], s.weight[c] = grow(s.sum[c], n), grow(s.weight[c], n)
		clear(s.sum[c])
		clear(s.weight[c])
	}
	columns := references(wantedX.grown(d.radius+blockSide-1, f.across), f.originX, d.step, f.endX)
	rows := references(wantedY.grown(d.radius+blockSide-1, f.down), f.originY, d.step, f.endY)
	guide := s.planes[0]
	if number == 1 {
		guide = s.basic[0]
	}
	for _, y := range rows {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, x := range columns {
			found := d.search(guide, f, x, y, number, &s.found)
			if number == 0 {
				d.keepLarge(s, f.width, found)
			} else {
				d.weigh(s, f.width, found)
			}
		}
	}
	for c := range d.planes {
		from, sum := s.planes[c], s.sum[c]
		for i, w := range s.weight[c] {
			if w > 0 {
				sum[i] /= w
			} else {
				sum[i] = from[i]
			}
		}
	}
	return nil
}

// search finds the blocks most similar to the one at (x, y), which is the first of them, nearest first, their number a power of two.
func (d *collaborative) search(plane []float32, f frame, x, y, number int, found *[groupMost]similarBlock) []similarBlock {
	most := d.group[number]
	limit := d.similar[number] * blockArea
	var ref block
	loadBlock(plane, y*f.width+x, f.width, &ref)
	found[0] = similarBlock{0, x, y}
	n := 1
	left, right := max(x-d.radius, f.across.from), min(x+d.radius, f.across.to-blockSide)
	top, bottom := max(y-d.radius, f.down.from), min(y+d.radius, f.down.to-blockSide)
	for cy := top; cy <= bottom; cy++ {
		for cx := left; cx <= right; cx++ {
			distance := difference(&ref, plane[cy*f.width+cx:], f.width, limit)
			if distance >= limit || (cx == x && cy == y) {
				continue
			}
			at := min(n, most-1)
			for at > 1 && found[at-1].distance > distance {
				found[at] = found[at-1]
				at--
			}
			found[at] = similarBlock{distance, cx, cy}
			if n = min(n+1, most); n == most {
				limit = found[n-1].distance
			}
		}
	}
	for n&(n-1) != 0 {
		n &= n - 1
	}
	return found[:n]
}

// difference is the sum of squared differences of a block and the one at the beginning of plane, or something above limit.
func difference(ref *block, plane []float32, stride int, limit float32) float32 {
	sum := float32(0)
	for j := 0; j < blockArea; j += 2 * blockSide {
		a, b := (*[2 * blockSide]float32)(ref[j:]), (*[blockSide]float32)(plane)
		c := (*[blockSide]float32)(plane[stride:])
		d0, d1, d2, d3 := a[0]-b[0], a[1]-b[1], a[2]-b[2], a[3]-b[3]
		d4, d5, d6, d7 := a[4]-b[4], a[5]-b[5], a[6]-b[6], a[7]-b[7]
		e0, e1, e2, e3 := a[8]-c[0], a[9]-c[1], a[10]-c[2], a[11]-c[3]
		e4, e5, e6, e7 := a[12]-c[4], a[13]-c[5], a[14]-c[6], a[15]-c[7]
		sum += (d0*d0 + d1*d1) + (d2*d2 + d3*d3) + (d4*d4 + d5*d5) + (d6*d6 + d7*d7) +
			(e0*e0 + e1*e1) + (e2*e2 + e3*e3) + (e4*e4 + e5*e5) + (e6*e6 + e7*e7)
		if sum >= limit || j == blockArea-2*blockSide {
			break
		}
		plane = plane[2*stride:]
	}
	return sum
}

func loadBlock(plane []float32, at, stride int, b *block) {
	for j := 0; j < blockArea; j += blockSide {
		*(*[blockSide]float32)(b[j:]) = *(*[blockSide]float32)(plane[at:])
		at += stride
	}
}

// gatherGroup loads the found blocks of a plane and transforms them.
func gatherGroup(plane []float32, stride int, found []similarBlock, group *[groupMost]block) {
	for i, p := range found {
		loadBlock(plane, p.y*stride+p.x, stride, &group[i])
		forwardDCT((*[blockArea]float32)(&group[i]))
	}
	// Haar along the group, without its scale: the i-th detail of level h has 2h times the variance, the sum len(found) times.
	for h := 1; h < len(found); h *= 2 {
		for i := 0; i < len(found); i += 2 * h {
			a, b := &group[i], &group[i+h]
			for k := range blockArea {
				a[k], b[k] = a[k]+b[k], a[k]-b[k]
			}
		}
	}
}

// scatterGroup transforms back what gatherGroup made, with each spectrum already divided by its variance's factor and by 64, and adds the blocks.
func scatterGroup(s *denoiseScratch, c, stride int, found []similarBlock, group *[groupMost]block, weight float32) {
	for h := len(found) / 2; h > 0; h /= 2 {
		for i := 0; i < len(found); i += 2 * h {
			a, b := &group[i], &group[i+h]
			for k := range blockArea {
				a[k], b[k] = a[k]+b[k], a[k]-b[k]
			}
		}
	}
	var window block
	for k := range window {
		window[k] = weight * kaiserWindow[k]
	}
	for i, p := range found {
		b := &group[i]
		inverseDCT(b)
		at := p.y*stride + p.x
		for j := 0; j < blockArea; j += blockSide {
			v, w := (*[blockSide]float32)(b[j:]), (*[blockSide]float32)(window[j:])
			sum, total := (*[blockSide]float32)(s.sum[c][at:]), (*[blockSide]float32)(s.weight[c][at:])
			for k := range blockSide {
				sum[k] += w[k] * v[k]
				total[k] += w[k]
			}
			at += stride
		}
	}
}

// varianceFactor is that of the i-th spectrum of a transformed group of n.
func varianceFactor(i, n int) float32 {
	if i == 0 {
		return float32(n)
	}
	return float32(2 * (i & -i))
}

// keepLarge is the first pass for one group: coefficients that noise alone would hardly make stay, others become zero.
func (d *collaborative) keepLarge(s *denoiseScratch, stride int, found []similarBlock) {
	const inverse = 1.0 / 64
	for c := range d.planes {
		group := &s.first[c]
		gatherGroup(s.planes[c], stride, found, group)
		var least block
		for k, v := range d.noise[c] {
			least[k] = hardThreshold * hardThreshold * v
		}
		kept := 0
		for i := range found {
			factor := varianceFactor(i, len(found))
			scale := inverse / factor
			b := &group[i]
			first := 0
			if i == 0 {
				b[0] *= scale
				first, kept = 1, kept+1
			}
			for k := first; k < blockArea; k++ {
				v := b[k]
				if v*v < least[k]*factor {
					b[k] = 0
					continue
				}
				b[k] = v * scale
				kept++
			}
		}
		scatterGroup(s, c, stride, found, group, 1/float32(kept))
	}
}

// weigh is the second pass for one group: each coefficient is weighed as Wiener's filter does, with the first pass's result as the signal.
func (d *collaborative) weigh(s *denoiseScratch, stride int, found []similarBlock) {
	const inverse = 1.0 / 64
	for c := range d.planes {
		group, signal := &s.first[c], &s.second[c]
		gatherGroup(s.planes[c], stride, found, group)
		gatherGroup(s.basic[c], stride, found, signal)
		total := float32(0)
		for i := range found {
			factor := varianceFactor(i, len(found))
			scale := inverse / factor
			b, e := &group[i], &signal[i]
			for k, v := range d.noise[c] {
				power := e[k] * e[k]
				w := power / (power + v*factor)
				b[k] *= w * scale
				total += w * w
			}
		}
		scatterGroup(s, c, stride, found, group, 1/max(total, 1))
	}
}

// kaiserWindow makes blocks count less towards their edges: Kaiser's window with beta 2.
var kaiserWindow = func() (window block) {
	bessel := func(x float64) float64 {
		sum, term := 1.0, 1.0
		for k := 1.0; k < 30; k++ {
			term *= (x / 2 / k) * (x / 2 / k)
			sum += term
		}
		return sum
	}
	var line [blockSide]float64
	for i := range line {
		r := 2*float64(i)/(blockSide-1) - 1
		line[i] = bessel(2*math.Sqrt(1-r*r)) / bessel(2)
	}
	for k := range window {
		window[k] = float32(line[k/blockSide] * line[k%blockSide])
	}
	return window
}()

// inverseDCT undoes forwardDCT, and makes 64 times as much of it.
func inverseDCT(b *block) {
	for i := range blockSide {
		b[i], b[8+i], b[16+i], b[24+i], b[32+i], b[40+i], b[48+i], b[56+i] = idct8(b[i], b[8+i], b[16+i], b[24+i], b[32+i], b[40+i], b[48+i], b[56+i])
	}
	for i := 0; i < blockArea; i += blockSide {
		r := (*[8]float32)(b[i:])
		r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7] = idct8(r[0], r[1], r[2], r[3], r[4], r[5], r[6], r[7])
	}
}

// idct8 is dct8's inverse, times 8.
func idct8(y0, y1, y2, y3, y4, y5, y6, y7 float32) (x0, x1, x2, x3, x4, x5, x6, x7 float32) {
	a0, a1 := y0+y4, y0-y4
	a3 := y2 + y6
	a2 := (y2-y6)*1.414213562 - a3
	b0, b3 := a0+a3, a0-a3
	b1, b2 := a1+a2, a1-a2

	z13, z10 := y5+y3, y5-y3
	z11, z12 := y1+y7, y1-y7
	c7 := z11 + z13
	z5 := (z10 + z12) * 1.847759065
	c6 := z5 - z10*2.613125930 - c7
	c5 := (z11-z13)*1.414213562 - c6
	c4 := z5 - z12*1.082392200 - c5
	return b0 + c7, b1 + c6, b2 + c5, b3 + c4, b3 - c4, b2 - c5, b1 - c6, b0 - c7
}
