package image

import (
	"context"
	"fmt"
	"math"
	"slices"

	"enlarger/engine/neural"
)

// FaceFinder finds faces in the frames of a video. It may be used by several goroutines at once.
type FaceFinder struct{ finder *faceFinder }

// NewFaceFinder makes one; the cascades are unpacked at the first use.
func NewFaceFinder() *FaceFinder { return &FaceFinder{newFaceFinder()} }

// Face is one face, in pixels of the picture it was found in, from the outer corner of the first.
type Face struct {
	// X and Y are the middle of the square from ear to ear and from the brows to the chin, and Size is its side.
	X, Y, Size float64
	// Roll is the angle in radians by which the face is turned clockwise.
	Roll float64
	// Quality is the classifier's confidence: 8 may be anything, 20 is a likely face, 100 a plain frontal one.
	Quality float64
}

// Find finds the faces in 8-bit luma, rows without gaps, that are upright or turned clockwise by about the tilt in degrees: by a tilt other
// than 0 in addition to the upright ones. Faces smaller than 22 pixels or 5 % of the short side are not found. The most certain comes first.
func (f *FaceFinder) Find(ctx context.Context, luma []byte, width, height int, tilt float64) ([]Face, error) {
	if width < 1 || height < 1 || len(luma) != width*height {
		return nil, fmt.Errorf("find faces: %d samples of %dx%d", len(luma), width, height)
	}
	trees, err := f.finder.load()
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// A tracker can do with less certainty than a still: it asks for more than one sight of a face.
	const least, turnedLeast = 8, 20
	grey := greyPicture{width, height, luma}
	found := trees.turned(grey, faceLook{degrees: 0, quality: least})
	if tilt != 0 {
		found = append(found, trees.turned(grey, faceLook{degrees: tilt, quality: turnedLeast})...)
	}
	var faces []Face
	for _, f := range alone(found) {
		faces = append(faces, Face{X: f.x, Y: f.y, Size: f.size, Roll: f.roll(), Quality: f.quality})
	}
	return faces, nil
}

// Oval is the ellipse that is restored of a face.
type Oval struct{ X, Y, RadiusX, RadiusY float64 }

// Oval is where the face is restored: the same as in a still.
func (f Face) Oval() Oval {
	sin, cos := math.Sincos(f.Roll)
	across, down := radiiOf(f.Size, sin, cos)
	return Oval{X: f.X, Y: f.Y - faceLift*f.Size, RadiusX: across, RadiusY: down}
}

// Cover is how much of a restored face shows at a pixel, 0 to 1: all within a part of the oval, then less, nothing at its rim.
func (o Oval) Cover(x, y int) float32 { return ovalCover(o.X, o.Y, o.RadiusX, o.RadiusY, x, y) }

// FaceMargin is how many pixels around an oval MeasureFace and RestoreFace should be given, where the picture has them.
const FaceMargin = faceMargin

// FaceTraits is what is measured of a face to choose how it is restored.
type FaceTraits struct {
	// Softness is 1 for a face whose finest features are blurred and 0 for a crisp one.
	Softness float64
	// Noise is the deviation of noise, as a part of white.
	Noise float64
}

// MeasureFace measures a luma of 0 to 1, rows without gaps, that shows a face with FaceMargin around it. What is beyond black and white counts as
// that.
func MeasureFace(luma []float32, width, height int) FaceTraits {
	luma = slices.Clone(luma)
	for i, v := range luma {
		luma[i] = min(max(v, 0), 1)
	}
	c := faceCrop{width: width, height: height, margin: min(FaceMargin, (width-1)/2, (height-1)/2), grey: true, planes: [3][]float32{luma, luma, luma}}
	opaque := make([]float32, len(luma))
	for i := range opaque {
		opaque[i] = 1
	}
	var sample noiseSample
	sample.window(&patch{width: width, height: height, planes: [4][]float32{luma, luma, luma, opaque}}, true)
	return FaceTraits{Softness: c.softness(), Noise: float64(sample.model(true).luma)}
}

// RestoreFace restores a face of a frame in place: a luma of 0 to 1 and somewhat beyond, rows without gaps. It takes slight noise and coding out of flat skin by a
// guided filter (He, Sun and Tang, 2010), which costs a hundredth of what a still is given and answers to alike frames alike, and gives soft
// features their detail back. No pixel leaves the range of the 5x5 around it by more than a small part, so that edges get no rim. strong does more of
// both, on crisp faces too.
func RestoreFace(luma []float32, width, height int, t FaceTraits, strong bool) {
	// Gains of the details up to 0.5, 1 and 2 pixels. The natural ones bring three faces that were made 2 times smaller and large again, and coded
	// as JPEG of quality 50 and 75, nearest to what they were; the strong ones are further from it, by 2 dB, and look crisper.
	gains, floor, noises, rim := [3]float32{0.5, 0.1, 0.1}, 0.0, 1.5, float32(1)
	if strong {
		gains, floor, noises, rim = [3]float32{0.8, 0.4, 0.25}, 0.5, 2.5, 1.25
	}
	const leastNoise, mostNoise = 1.0 / 255, 6.0 / 255
	deviation := noises * min(max(t.Noise, leastNoise), mostNoise)
	c := canvas{width, height}
	clean, varied := guided(luma, width, height, 2, float32(deviation*deviation))
	softness := float32(max(t.Softness, floor))
	more := make([]float32, len(luma))
	for i, sigma := range [3]float64{0.5, 1, 2} {
		for k, v := range c.smooth(clean, sigma) {
			more[k] += softness * gains[i] * (clean[k] - v)
		}
	}
	// Detail is given where there is some: elsewhere it would be noise, which differs from frame to frame.
	const doubt = 4 // times the variance of the noise has what is half believed
	for i, v := range varied {
		more[i] *= v / (v + doubt*(1-v))
	}
	low, high := make([]float32, len(luma)), make([]float32, len(luma))
	rangeOf(clean, low, high, width, height, 2)
	for i, v := range clean {
		across := high[i] - low[i]
		room := rim * min(overshoot*across, haloMost+haloPart*across)
		// What lies beyond black and white in a video stays there, and nothing joins it.
		luma[i] = min(max(v+more[i], max(low[i]-room, min(low[i], 0))), min(high[i]+room, max(high[i], 1)))
	}
}

// guided smooths a plane where it varies by less than a variance, guided by itself, and keeps its edges. It also gives the part of the variance
// around each pixel that is not smoothed away, 0 to 1.
func guided(plane []float32, width, height, radius int, variance float32) (smooth, kept []float32) {
	square := make([]float32, len(plane))
	for i, v := range plane {
		square[i] = v * v
	}
	share := boxed(onesOf(len(plane)), width, height, radius)
	mean, squares := boxed(plane, width, height, radius), boxed(square, width, height, radius)
	slope, offset := make([]float32, len(plane)), make([]float32, len(plane))
	for i, n := range share {
		m := mean[i] / n
		spread := max(squares[i]/n-m*m, 0)
		slope[i] = spread / (spread + variance)
		offset[i] = m - slope[i]*m
	}
	slope, offset = boxed(slope, width, height, radius), boxed(offset, width, height, radius)
	for i, v := range plane {
		slope[i] /= share[i]
		square[i] = slope[i]*v + offset[i]/share[i]
	}
	return square, slope
}

func onesOf(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = 1
	}
	return out
}

// FaceModel is an operator's model that restores faces.
type FaceModel struct{ model *neural.Model }

// FindFaceModel is the model for faces, or nil when the operator has none.
func FindFaceModel(r *neural.Runtime) *FaceModel {
	if m := r.Find(neural.Face, 1); m != nil {
		return &FaceModel{m}
	}
	return nil
}

// Name is the model's name.
func (m *FaceModel) Name() string { return m.model.Name() }

// Memory is what the model takes, in bytes.
func (m *FaceModel) Memory() int64 { return m.model.Memory() }

// Restore is what the model makes of red, green and blue of 0 to 1 (sRGB) that show a face with FaceMargin around it.
func (m *FaceModel) Restore(ctx context.Context, planes [3][]float32, width, height int) ([3][]float32, error) {
	c := faceCrop{width: width, height: height, planes: planes}
	err := c.throughModel(ctx, m.model)
	return c.planes, err
}
