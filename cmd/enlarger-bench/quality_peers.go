package main

import (
	"bytes"
	"image"
	"image/jpeg"
	"math"
	"slices"
)

// The peers of the quality tables, written as their papers or everybody's programs have them, slow and plain. They are told how
// strong the damage is.

// nearest repeats pixels.
func nearest(p *picture, scale int) *picture {
	return newPicture(p.width*scale, p.height*scale).each(func(x, y int, to []float32) { copy(to, p.at(x/scale, y/scale)) })
}

func catmullRom(x float64) float64 {
	x = math.Abs(x)
	switch {
	case x < 1:
		return (1.5*x-2.5)*x*x + 1
	case x < 2:
		return ((-0.5*x+2.5)*x-4)*x + 2
	}
	return 0
}

func lanczos(x float64) float64 {
	const a = 3
	if x == 0 {
		return 1
	}
	if math.Abs(x) >= a {
		return 0
	}
	return a * math.Sin(math.Pi*x) * math.Sin(math.Pi*x/a) / (math.Pi * math.Pi * x * x)
}

// enlargeBy interpolates with a kernel of the given radius.
func enlargeBy(scale int, kernel func(float64) float64, radius int) func(*picture) *picture {
	taps := func(i int) (first int, weights []float32) {
		center := (float64(i)+0.5)/float64(scale) - 0.5
		first = int(math.Floor(center)) - radius + 1
		sum := 0.0
		for k := range 2 * radius {
			sum += kernel(center - float64(first+k))
		}
		for k := range 2 * radius {
			weights = append(weights, float32(kernel(center-float64(first+k))/sum))
		}
		return first, weights
	}
	return func(p *picture) *picture {
		wide := newPicture(p.width*scale, p.height).each(func(x, y int, to []float32) {
			first, weights := taps(x)
			for k, w := range weights {
				for c, v := range p.at(first+k, y) {
					to[c] += w * v
				}
			}
		})
		return newPicture(wide.width, p.height*scale).each(func(x, y int, to []float32) {
			first, weights := taps(y)
			for k, w := range weights {
				for c, v := range wide.at(x, first+k) {
					to[c] += w * v
				}
			}
		})
	}
}

// median3 is the median of 3x3 pixels, colour by colour.
func median3(p *picture) *picture {
	return p.each(func(x, y int, to []float32) {
		for c := range 3 {
			var around [9]float32
			for k := range around {
				around[k] = p.at(x+k%3-1, y+k/3-1)[c]
			}
			slices.Sort(around[:])
			to[c] = around[4]
		}
	})
}

// bilateral is the filter of Tomasi and Manduchi (1998), with deviations in pixels and in codes.
func bilateral(space, colour float64) func(*picture) *picture {
	radius := int(math.Ceil(2 * space))
	return func(p *picture) *picture {
		return p.each(func(x, y int, to []float32) {
			here, total := p.at(x, y), float32(0)
			for j := -radius; j <= radius; j++ {
				for i := -radius; i <= radius; i++ {
					v := p.at(x+i, y+j)
					apart := squared(here, v) / 3
					w := float32(math.Exp(-float64(i*i+j*j)/(2*space*space) - float64(apart)/(2*colour*colour)))
					total += w
					for c := range to {
						to[c] += w * v[c]
					}
				}
			}
			for c := range to {
				to[c] /= total
			}
		})
	}
}

func squared(a, b []float32) float32 {
	d, e, f := a[0]-b[0], a[1]-b[1], a[2]-b[2]
	return d*d + e*e + f*f
}

// nonLocalMeans is the filter of Buades, Coll and Morel with the parameters for colours that they give in "Non-Local Means Denoising" (2011).
func nonLocalMeans(deviation float64) func(*picture) *picture {
	patch, search, strength := 1, 10, 0.55*deviation
	switch {
	case deviation > 55:
		patch, search, strength = 3, 17, 0.35*deviation
	case deviation > 25:
		patch, search, strength = 2, 17, 0.40*deviation
	}
	return func(p *picture) *picture {
		w, h := p.width, p.height
		out, total := p.like(), make([]float32, w*h)
		apart, rows := make([]float32, w*h), make([]float32, w*h)
		area := float64(3 * (2*patch + 1) * (2*patch + 1))
		for j := -search; j <= search; j++ {
			for i := -search; i <= search; i++ {
				for y := range h {
					for x := range w {
						apart[y*w+x] = squared(p.at(x, y), p.at(x+i, y+j))
					}
				}
				boxSums(apart, rows, w, h, patch)
				for at, d := range apart {
					over := max(float64(d)/area-2*deviation*deviation, 0)
					weight := float32(math.Exp(-over / (strength * strength)))
					v := p.at(at%w+i, at/w+j)
					total[at] += weight
					out.pix[3*at] += weight * v[0]
					out.pix[3*at+1] += weight * v[1]
					out.pix[3*at+2] += weight * v[2]
				}
			}
		}
		for at, weight := range total {
			for c := range 3 {
				out.pix[3*at+c] /= weight
			}
		}
		return out
	}
}

// boxSums replaces every sample by the sum of those up to radius away; the edge goes on.
func boxSums(plane, rows []float32, width, height, radius int) {
	for y := range height {
		for x := range width {
			sum := float32(0)
			for k := -radius; k <= radius; k++ {
				sum += plane[y*width+min(max(x+k, 0), width-1)]
			}
			rows[y*width+x] = sum
		}
	}
	for y := range height {
		for x := range width {
			sum := float32(0)
			for k := -radius; k <= radius; k++ {
				sum += rows[min(max(y+k, 0), height-1)*width+x]
			}
			plane[y*width+x] = sum
		}
	}
}

// unsharp adds amount times the difference to the blurred picture.
func unsharp(deviation, amount float64) func(*picture) *picture {
	return func(p *picture) *picture {
		soft, out := gaussian(p, deviation), p.like()
		for i, v := range p.pix {
			out.pix[i] = min(max(v+float32(amount)*(v-soft.pix[i]), 0), 255)
		}
		return out
	}
}

// richardsonLucy deconvolves (Richardson 1972, Lucy 1974) for a Gaussian blur.
func richardsonLucy(deviation float64, rounds int) func(*picture) *picture {
	return func(p *picture) *picture {
		guess := p.crop(0, 0, p.width, p.height)
		for range rounds {
			again := gaussian(guess, deviation)
			for i, v := range p.pix {
				again.pix[i] = (v + 1) / (again.pix[i] + 1)
			}
			correction := gaussian(again, deviation)
			for i, v := range correction.pix {
				guess.pix[i] = min(max(guess.pix[i]*v, 0), 255)
			}
		}
		return guess
	}
}

// reapplied compresses the picture again at each of the 64 shifts of the blocks and takes the mean (Nosratinia, "Enhancement of
// JPEG-Compressed Images by Re-Application of JPEG", 2001).
func reapplied(quality int) func(*picture) *picture {
	return func(p *picture) *picture {
		out := p.like()
		for shift := range 64 {
			dx, dy := shift%8, shift/8
			moved := newPicture(p.width+8, p.height+8).each(func(x, y int, to []float32) { copy(to, p.at(x-dx, y-dy)) })
			var b bytes.Buffer
			if err := jpeg.Encode(&b, moved.image(), &jpeg.Options{Quality: quality}); err != nil {
				return p
			}
			img, _, err := image.Decode(&b)
			if err != nil {
				return p
			}
			for y := range p.height {
				for x := range p.width {
					red, green, blue, _ := img.At(x+dx, y+dy).RGBA()
					for c, v := range [3]uint32{red, green, blue} {
						out.pix[3*(y*p.width+x)+c] += float32(v) / 257 / 64
					}
				}
			}
		}
		return out
	}
}
