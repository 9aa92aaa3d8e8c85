package image

import (
	"context"
	"math"
)

// kuwahara paints a picture in dabs along its edges: the anisotropic Kuwahara filter (Kyprianidis, Kang and Döllner 2009) with the
// polynomial sector weights of Kyprianidis (2010). Around each pixel an ellipse that lies along the flow is cut into eight soft
// sectors, and the means of the sectors that vary least win. radius is that of the dabs in pixels; sharpness is how clearly the calmest
// sector wins, 8 being usual.
func (f *flow) kuwahara(ctx context.Context, colours [3][]float32, radius, sharpness float64) ([3][]float32, error) {
	table := sectorTable(radius)
	out := [3][]float32{f.newPlane(), f.newPlane(), f.newPlane()}
	squares := f.newPlane()
	power := float32(0.5 * sharpness)
	err := f.eachRow(ctx, func(y int) {
		for at := y * f.width; at < (y+1)*f.width; at++ {
			r, g, b := colours[0][at], colours[1][at], colours[2][at]
			squares[at] = r*r + g*g + b*b
		}
	})
	if err != nil {
		return out, err
	}
	err = f.eachRow(ctx, func(y int) {
		var s sectors
		for x := range f.width {
			at := y*f.width + x
			s.gather(f, x, y, colours, squares, float32(radius), table)
			out[0][at], out[1][at], out[2][at] = s.settle(power)
		}
	})
	return out, err
}

// sectors are the sums over the eight sectors around a pixel: weight, red, green, blue and their squares.
type sectors [8][5]float32

// sectorGrid is the number of cells of the sector table along an axis of the unit disc.
const sectorGrid = 64

// share is how much a place in the unit disc counts in the sectors that it lies in.
type share struct {
	n       int
	sector  [8]uint8
	weights [8]float32
}

// sectorTable has the shares of all places of the unit disc; what lies outside has none.
func sectorTable(radius float64) []share {
	const zeroCrossing = 0.58
	zeta := 2 / radius
	eta := (zeta + math.Cos(zeroCrossing)) / (math.Sin(zeroCrossing) * math.Sin(zeroCrossing))
	table := make([]share, sectorGrid*sectorGrid)
	for i := range table {
		u := (float64(i%sectorGrid)+0.5)/sectorGrid*2 - 1
		v := (float64(i/sectorGrid)+0.5)/sectorGrid*2 - 1
		if u*u+v*v > 1 {
			continue
		}
		weights, sum := [8]float64{}, 0.0
		for turn := range 2 {
			x, y := u, v
			if turn == 1 {
				x, y = math.Sqrt2/2*(u-v), math.Sqrt2/2*(u+v)
			}
			xx, yy := zeta-eta*x*x, zeta-eta*y*y
			for k, z := range [4]float64{y + xx, -x + yy, -y + xx, x + yy} {
				z = max(z, 0)
				weights[2*k+turn] = z * z
				sum += z * z
			}
		}
		if sum == 0 {
			continue
		}
		fall := math.Exp(-3.125*(u*u+v*v)) / sum
		for k, w := range weights {
			if w := w * fall; w > 1e-4 {
				table[i].sector[table[i].n] = uint8(k)
				table[i].weights[table[i].n] = float32(w)
				table[i].n++
			}
		}
	}
	return table
}

// gather sums up the sectors around a pixel.
func (s *sectors) gather(f *flow, x, y int, colours [3][]float32, squares []float32, radius float32, table []share) {
	*s = sectors{}
	at := y*f.width + x
	directed := f.directed[at]
	long, short := radius*(1+directed), radius/(1+directed)
	tx, ty := f.x[at], f.y[at]
	reachX := int(math.Sqrt(float64(long*long*tx*tx + short*short*ty*ty)))
	reachY := int(math.Sqrt(float64(long*long*ty*ty + short*short*tx*tx)))
	alongX, alongY, acrossX, acrossY := tx/long, ty/long, -ty/short, tx/short
	const half = sectorGrid / 2
	for dy := max(-reachY, -y); dy <= min(reachY, f.height-1-y); dy++ {
		for dx := max(-reachX, -x); dx <= min(reachX, f.width-1-x); dx++ {
			u := float32(dx)*alongX + float32(dy)*alongY
			v := float32(dx)*acrossX + float32(dy)*acrossY
			column, line := int(half+u*half), int(half+v*half)
			if uint(column) >= sectorGrid || uint(line) >= sectorGrid {
				continue
			}
			cell := &table[line*sectorGrid+column]
			if cell.n == 0 {
				continue
			}
			there := at + dy*f.width + dx
			r, g, b, q := colours[0][there], colours[1][there], colours[2][there], squares[there]
			for k := range cell.n {
				w, to := cell.weights[k], &s[cell.sector[k]&7]
				to[0] += w
				to[1] += w * r
				to[2] += w * g
				to[3] += w * b
				to[4] += w * q
			}
		}
	}
}

// settle weighs the sectors' means by how little they vary.
func (s *sectors) settle(power float32) (r, g, b float32) {
	const hardness = 1000
	sum := float32(0)
	for k := range s {
		w := s[k][0]
		if w <= 0 {
			continue
		}
		mr, mg, mb := s[k][1]/w, s[k][2]/w, s[k][3]/w
		variance := max(s[k][4]/w-mr*mr-mg*mg-mb*mb, 0)
		// The fourth power of the square root at the usual sharpness of 8, without math.Pow where it is whole.
		v := hardness * variance
		weight := 1 / (1 + v*v*v*v)
		if power != 4 {
			weight = 1 / (1 + float32(math.Pow(float64(v), float64(power))))
		}
		weight = max(weight, 1e-20)
		r, g, b, sum = r+mr*weight, g+mg*weight, b+mb*weight, sum+weight
	}
	return r / sum, g / sum, b / sum
}
