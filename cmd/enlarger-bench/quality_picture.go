package main

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	_ "image/jpeg" // what the pictures are read with
	"image/png"
	"math"
	"os"
	"path/filepath"

	_ "golang.org/x/image/bmp" // as above
	"golang.org/x/image/font"
	"golang.org/x/image/font/basicfont"
	"golang.org/x/image/math/fixed"
)

// picture is red, green and blue of 0 to 255, not rounded, pixel after pixel.
type picture struct {
	width, height int
	pix           []float32
}

func newPicture(width, height int) *picture {
	return &picture{width, height, make([]float32, 3*width*height)}
}

func (p *picture) like() *picture { return newPicture(p.width, p.height) }

func readPicture(path string) (*picture, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	img, _, err := image.Decode(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	b := img.Bounds()
	p := newPicture(b.Dx(), b.Dy())
	for y := range p.height {
		for x := range p.width {
			red, green, blue, _ := img.At(b.Min.X+x, b.Min.Y+y).RGBA()
			at := 3 * (y*p.width + x)
			p.pix[at], p.pix[at+1], p.pix[at+2] = float32(red)/257, float32(green)/257, float32(blue)/257
		}
	}
	return p, nil
}

// image is the picture rounded to 8 bits: grey when it is.
func (p *picture) image() image.Image {
	out := image.NewNRGBA(image.Rect(0, 0, p.width, p.height))
	grey := true
	for i := range p.width * p.height {
		for c := range 3 {
			out.Pix[4*i+c] = uint8(min(max(p.pix[3*i+c]+0.5, 0), 255))
		}
		out.Pix[4*i+3] = 255
		grey = grey && out.Pix[4*i] == out.Pix[4*i+1] && out.Pix[4*i] == out.Pix[4*i+2]
	}
	if !grey {
		return out
	}
	plain := image.NewGray(out.Rect)
	for i := range plain.Pix {
		plain.Pix[i] = out.Pix[4*i]
	}
	return plain
}

func (p *picture) png() ([]byte, error) {
	var b bytes.Buffer
	err := png.Encode(&b, p.image())
	return b.Bytes(), err
}

// at is a pixel; beyond the picture its edge goes on.
func (p *picture) at(x, y int) []float32 {
	x, y = min(max(x, 0), p.width-1), min(max(y, 0), p.height-1)
	return p.pix[3*(y*p.width+x):][:3]
}

func (p *picture) crop(x, y, width, height int) *picture {
	out := newPicture(width, height)
	for j := range height {
		copy(out.pix[3*j*width:][:3*width], p.pix[3*((y+j)*p.width+x):])
	}
	return out
}

// each makes a picture pixel by pixel.
func (p *picture) each(f func(x, y int, to []float32)) *picture {
	out := p.like()
	for y := range p.height {
		for x := range p.width {
			f(x, y, out.pix[3*(y*p.width+x):][:3])
		}
	}
	return out
}

func gaussianKernel(deviation float64, radius int) []float64 {
	kernel, sum := make([]float64, 2*radius+1), 0.0
	for i := range kernel {
		d := float64(i - radius)
		kernel[i] = math.Exp(-d * d / (2 * deviation * deviation))
		sum += kernel[i]
	}
	for i := range kernel {
		kernel[i] /= sum
	}
	return kernel
}

// gaussian blurs.
func gaussian(p *picture, deviation float64) *picture {
	radius := int(math.Ceil(4 * deviation))
	kernel := gaussianKernel(deviation, radius)
	across := p.each(func(x, y int, to []float32) {
		for k, w := range kernel {
			v := p.at(x+k-radius, y)
			to[0], to[1], to[2] = to[0]+float32(w)*v[0], to[1]+float32(w)*v[1], to[2]+float32(w)*v[2]
		}
	})
	return across.each(func(x, y int, to []float32) {
		for k, w := range kernel {
			v := across.at(x, y+k-radius)
			to[0], to[1], to[2] = to[0]+float32(w)*v[0], to[1]+float32(w)*v[1], to[2]+float32(w)*v[2]
		}
	})
}

// strip is one row of a contact sheet: the same piece of every outcome, and of the original at the end.
type strip struct {
	names  []string
	pieces []*picture
}

// sheet is a contact sheet.
type sheet []strip

// pieceSide is the side of a piece in pixels.
const pieceSide = 88

// newStrip cuts the piece with the most detail around the middle.
func newStrip(t trial, original *picture, outcomes []*picture, peers []string) strip {
	side := min(pieceSide, original.width, original.height)
	bestX, bestY, most := 0, 0, -1.0
	for y := 0; y+side <= original.height; y += side / 2 {
		for x := 0; x+side <= original.width; x += side / 2 {
			sum := 0.0
			for j := 1; j < side; j++ {
				for i := 1; i < side; i++ {
					v := original.at(x+i, y+j)[1]
					sum += math.Abs(float64(v-original.at(x+i-1, y+j)[1])) + math.Abs(float64(v-original.at(x+i, y+j-1)[1]))
				}
			}
			if sum > most {
				bestX, bestY, most = x, y, sum
			}
		}
	}
	s := strip{names: append(append([]string{t.damage}, peers...), "enlarger", "original")}
	for _, p := range append(outcomes, original) {
		s.pieces = append(s.pieces, p.crop(bestX, bestY, side, side))
	}
	return s
}

func (s sheet) write(path string, zoom int) error {
	const gap, label = 4, 16
	cell := pieceSide*zoom + gap
	columns := 0
	for _, row := range s {
		columns = max(columns, len(row.pieces))
	}
	canvas := image.NewNRGBA(image.Rect(0, 0, columns*cell, len(s)*(cell+label)))
	draw.Draw(canvas, canvas.Rect, image.White, image.Point{}, draw.Src)
	for j, row := range s {
		for i, piece := range row.pieces {
			x0, y0 := i*cell, j*(cell+label)
			pen := font.Drawer{Dst: canvas, Src: image.NewUniform(color.Black), Face: basicfont.Face7x13, Dot: fixed.P(x0+2, y0+12)}
			pen.DrawString(row.names[i])
			large := nearest(piece, zoom).image()
			draw.Draw(canvas, large.Bounds().Add(image.Pt(x0, y0+label)), large, image.Point{}, draw.Src)
		}
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return firstError(png.Encode(f, canvas), f.Close())
}

func firstError(all ...error) error {
	for _, err := range all {
		if err != nil {
			return err
		}
	}
	return nil
}
