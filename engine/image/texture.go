package image

import "math"

// Textures are made from hashed whole coordinates: the same place of a picture always has the same grain, whichever square it is
// computed in, on every machine and in every run.

// hashAt is a number of 0 to 1 for a place.
func hashAt(x, y int32, seed uint32) float32 {
	h := uint32(x)*0x8DA6B343 ^ uint32(y)*0xD8163841 ^ seed*0xCB1AB31F
	h ^= h >> 15
	h *= 0x2C1B3C6D
	h ^= h >> 12
	h *= 0x297A2D39
	h ^= h >> 15
	return float32(h>>8) * (1.0 / (1 << 24))
}

// cloud is smooth noise of 0 to 1 with features about one unit large.
func cloud(x, y float32, seed uint32) float32 {
	fx, fy := float32(math.Floor(float64(x))), float32(math.Floor(float64(y)))
	ix, iy := int32(fx), int32(fy)
	tx, ty := x-fx, y-fy
	tx, ty = tx*tx*(3-2*tx), ty*ty*(3-2*ty)
	a, b := hashAt(ix, iy, seed), hashAt(ix+1, iy, seed)
	c, d := hashAt(ix, iy+1, seed), hashAt(ix+1, iy+1, seed)
	top, bottom := a+(b-a)*tx, c+(d-c)*tx
	return top + (bottom-top)*ty
}

// clouds adds octaves of cloud, each half as large and half as strong; the result is of 0 to 1 around 0.5.
func clouds(x, y float32, octaves int, seed uint32) float32 {
	sum, norm, strength := float32(0), float32(0), float32(1)
	for i := range octaves {
		sum += strength * cloud(x, y, seed+uint32(i))
		norm += strength
		x, y, strength = x*2+17.3, y*2+5.7, strength/2
	}
	return sum / norm
}

// smooth goes from 0 at low to 1 at high without a corner.
func smooth(low, high, v float32) float32 {
	t := hem((v-low)/(high-low), 1)
	return t * t * (3 - 2*t)
}

// between mixes two values.
func between(a, b, t float32) float32 { return a + (b-a)*t }
