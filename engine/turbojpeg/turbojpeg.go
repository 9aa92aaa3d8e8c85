// Package turbojpeg decodes and encodes JPEG by libjpeg-turbo, which is several times faster than what Go alone can do. It hides the
// library, which is loaded while the program runs and need not be there, and the C beneath. Of a JPEG it takes on only what it
// certainly gets right: a file at which the library so much as warns is an error here, and left to a decoder that knows what to say of it.
package turbojpeg

/*
#cgo linux LDFLAGS: -ldl
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

// The part of the TurboJPEG interface that is used, in our own words. It has been the same since version 2.1 of the library, whose
// soname libturbojpeg.so.0 promises that it stays.
typedef struct {
	void *(*init_decompress)(void);
	void *(*init_compress)(void);
	int (*destroy)(void *);
	int (*header)(void *, const unsigned char *, unsigned long, int *, int *, int *, int *);
	int (*decompress)(void *, const unsigned char *, unsigned long, unsigned char *, int, int, int, int, int);
	int (*decompress_planes)(void *, const unsigned char *, unsigned long, unsigned char **, int, int *, int, int);
	int (*compress)(void *, const unsigned char *, int, int, int, int, unsigned char **, unsigned long *, int, int, int);
	unsigned long (*bound)(int, int, int);
	char *(*message)(void *);
} turbo;

enum { PIXEL_RGBA = 7, FLAG_NO_REALLOC = 1024, FLAG_ACCURATE_DCT = 4096, FLAG_STOP_ON_WARNING = 8192, FLAG_LIMIT_SCANS = 32768 };

// turbo_open loads the library; it returns 0, or the name of what is missing in it, or what the loader says.
static const char *turbo_open(turbo *t, const char *name) {
	void *library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
	if (library == NULL) return dlerror();
	struct { const char *name; void **to; } all[] = {
		{"tjInitDecompress", (void **)&t->init_decompress}, {"tjInitCompress", (void **)&t->init_compress}, {"tjDestroy", (void **)&t->destroy},
		{"tjDecompressHeader3", (void **)&t->header}, {"tjDecompress2", (void **)&t->decompress}, {"tjDecompressToYUVPlanes", (void **)&t->decompress_planes},
		{"tjCompress2", (void **)&t->compress}, {"tjBufSize", (void **)&t->bound}, {"tjGetErrorStr2", (void **)&t->message},
	};
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		*all[i].to = dlsym(library, all[i].name);
		if (*all[i].to == NULL) return all[i].name;
	}
	return NULL;
}

static int turbo_fault(turbo *t, void *handle, char *message, size_t size) {
	strncpy(message, handle == NULL ? "out of memory" : t->message(handle), size - 1);
	message[size - 1] = 0;
	if (handle != NULL) t->destroy(handle);
	return -1;
}

static int turbo_header(turbo *t, const unsigned char *jpeg, unsigned long size, int *facts, char *message, size_t most) {
	void *handle = t->init_decompress();
	if (handle == NULL || t->header(handle, jpeg, size, &facts[0], &facts[1], &facts[2], &facts[3]) != 0) return turbo_fault(t, handle, message, most);
	return t->destroy(handle);
}

static int turbo_decode(turbo *t, const unsigned char *jpeg, unsigned long size, unsigned char *pixels, int width, int height, char *message, size_t most) {
	void *handle = t->init_decompress();
	int flags = FLAG_ACCURATE_DCT | FLAG_STOP_ON_WARNING | FLAG_LIMIT_SCANS;
	if (handle == NULL || t->decompress(handle, jpeg, size, pixels, width, 4 * width, height, PIXEL_RGBA, flags) != 0) return turbo_fault(t, handle, message, most);
	return t->destroy(handle);
}

static int turbo_decode_planes(turbo *t, const unsigned char *jpeg, unsigned long size, unsigned char *y, unsigned char *cb, unsigned char *cr,
                               int y_stride, int c_stride, int width, int height, char *message, size_t most) {
	void *handle = t->init_decompress();
	unsigned char *planes[3] = {y, cb, cr};
	int strides[3] = {y_stride, c_stride, c_stride};
	int flags = FLAG_ACCURATE_DCT | FLAG_STOP_ON_WARNING | FLAG_LIMIT_SCANS;
	if (handle == NULL || t->decompress_planes(handle, jpeg, size, planes, width, strides, height, flags) != 0) return turbo_fault(t, handle, message, most);
	return t->destroy(handle);
}

static int turbo_encode(turbo *t, const unsigned char *pixels, int width, int height, int sampling, int quality,
                        unsigned char *jpeg, unsigned long *size, char *message, size_t most) {
	void *handle = t->init_compress();
	if (handle == NULL || t->compress(handle, pixels, width, 4 * width, height, PIXEL_RGBA, &jpeg, size, sampling, quality,
	                                  FLAG_NO_REALLOC | FLAG_ACCURATE_DCT) != 0) return turbo_fault(t, handle, message, most);
	return t->destroy(handle);
}

static unsigned long turbo_bound(turbo *t, int width, int height, int sampling) { return t->bound(width, height, sampling); }
*/
import "C"

import (
	"errors"
	"fmt"
	"image"
	"unsafe"
)

// Name is the file name of the library, under which the system's loader finds it.
const Name = "libturbojpeg.so.0"

// Library is the loaded library. It is safe for concurrent use, and stays loaded.
type Library struct{ functions C.turbo }

// Open loads the library from where the system keeps its libraries. The error says what is missing.
func Open() (*Library, error) { return open(Name) }

func open(name string) (*Library, error) {
	l := &Library{}
	file := C.CString(name)
	defer C.free(unsafe.Pointer(file))
	problem := C.turbo_open(&l.functions, file)
	if problem != nil {
		return nil, fmt.Errorf("load libjpeg-turbo: %s", C.GoString(problem))
	}
	return l, nil
}

// ErrNotTaken is returned for a JPEG that is damaged or of a kind that is not taken on here: other colours than YCbCr and grey, an unusual
// subsampling, more than 8 bits, another size than asked for.
var ErrNotTaken = errors.New("jpeg not taken on")

// sideMost is the longest side of a JPEG in pixels; it keeps sizes in bytes within a C int.
const sideMost = 65535

// samplings are the library's numbers for the subsamplings that are taken on, grey apart.
var samplings = map[C.int]image.YCbCrSubsampleRatio{
	0: image.YCbCrSubsampleRatio444, 1: image.YCbCrSubsampleRatio422, 2: image.YCbCrSubsampleRatio420,
	4: image.YCbCrSubsampleRatio440, 5: image.YCbCrSubsampleRatio411,
}

// greySampling is the library's number for a JPEG of one component.
const greySampling = 3

const messageMost = 200

// accept reads the header and gives the subsampling.
func (l *Library) accept(jpeg []byte, width, height int) (C.int, error) {
	if len(jpeg) == 0 || width < 1 || height < 1 || width > sideMost || height > sideMost {
		return 0, fmt.Errorf("%w: %d bytes for %dx%d", ErrNotTaken, len(jpeg), width, height)
	}
	var facts [4]C.int // width, height, subsampling, colours
	var message [messageMost]C.char
	failed := C.turbo_header(&l.functions, bytesOf(jpeg), C.ulong(len(jpeg)), &facts[0], &message[0], messageMost)
	if failed != 0 {
		return 0, fmt.Errorf("%w: %s", ErrNotTaken, C.GoString(&message[0]))
	}
	const ycbcr, grey = 1, 2
	_, known := samplings[facts[2]]
	if int(facts[0]) != width || int(facts[1]) != height || (facts[3] != ycbcr || !known) && (facts[3] != grey || facts[2] != greySampling) {
		return 0, fmt.Errorf("%w: %v where %dx%d in YCbCr or grey is wanted", ErrNotTaken, facts, width, height)
	}
	return facts[2], nil
}

func bytesOf(b []byte) *C.uchar { return (*C.uchar)(unsafe.Pointer(unsafe.SliceData(b))) }

// Decode fills pixels with the picture: red, green, blue and 255, width times height times four bytes. Colour at half the resolution is
// interpolated. It cannot be stopped.
func (l *Library) Decode(jpeg, pixels []byte, width, height int) error {
	if _, err := l.accept(jpeg, width, height); err != nil {
		return err
	}
	if int64(len(pixels)) != 4*int64(width)*int64(height) {
		return fmt.Errorf("%d bytes for %dx%d pixels", len(pixels), width, height)
	}
	var message [messageMost]C.char
	failed := C.turbo_decode(&l.functions, bytesOf(jpeg), C.ulong(len(jpeg)), bytesOf(pixels), C.int(width), C.int(height), &message[0], messageMost)
	if failed != 0 {
		return fmt.Errorf("%w: %s", ErrNotTaken, C.GoString(&message[0]))
	}
	return nil
}

// DecodePlanes decodes without bringing colour to full resolution, which takes a half or less of the memory of pixels. The picture is an
// *image.YCbCr or an *image.Gray. It cannot be stopped.
func (l *Library) DecodePlanes(jpeg []byte, width, height int) (image.Image, error) {
	sampling, err := l.accept(jpeg, width, height)
	if err != nil {
		return nil, err
	}
	rect := image.Rect(0, 0, width, height)
	var y, cb, cr []byte
	var yStride, cStride int
	var made image.Image
	if sampling == greySampling {
		grey := image.NewGray(rect)
		y, yStride, made = grey.Pix, grey.Stride, grey
	} else {
		// The library rounds a plane up to whole samples of colour.
		ratio := samplings[sampling]
		across, down := perColour(ratio)
		columns, rows := (width+across-1)/across, (height+down-1)/down
		yStride, cStride = columns*across, columns
		luma, chroma := yStride*rows*down, columns*rows
		all := make([]byte, luma+2*chroma)
		y, cb, cr = all[:luma:luma], all[luma:luma+chroma:luma+chroma], all[luma+chroma:]
		made = &image.YCbCr{Y: y, Cb: cb, Cr: cr, YStride: yStride, CStride: cStride, SubsampleRatio: ratio, Rect: rect}
	}
	var message [messageMost]C.char
	if C.turbo_decode_planes(&l.functions, bytesOf(jpeg), C.ulong(len(jpeg)), bytesOf(y), bytesOf(cb), bytesOf(cr),
		C.int(yStride), C.int(cStride), C.int(width), C.int(height), &message[0], messageMost) != 0 {
		return nil, fmt.Errorf("%w: %s", ErrNotTaken, C.GoString(&message[0]))
	}
	return made, nil
}

// perColour is how many pixels across and down share a sample of colour.
func perColour(ratio image.YCbCrSubsampleRatio) (across, down int) {
	switch ratio {
	case image.YCbCrSubsampleRatio422:
		return 2, 1
	case image.YCbCrSubsampleRatio420:
		return 2, 2
	case image.YCbCrSubsampleRatio440:
		return 1, 2
	case image.YCbCrSubsampleRatio411:
		return 4, 1
	}
	return 1, 1
}

// Colour is how an encoded JPEG stores colour.
type Colour int

// The ways: at full resolution, at half of it both ways, not at all.
const (
	Full Colour = 0
	Half Colour = 2
	Grey Colour = greySampling
)

// Encode appends a whole baseline JPEG of the pixels, four bytes each of which the last is not looked at, to a buffer. Quality is 1 to 100.
func (l *Library) Encode(buffer, pixels []byte, width, height, quality int, colour Colour) ([]byte, error) {
	if width < 1 || height < 1 || width > sideMost || height > sideMost || quality < 1 || quality > 100 || int64(len(pixels)) != 4*int64(width)*int64(height) {
		return nil, fmt.Errorf("jpeg of %dx%d at quality %d from %d bytes", width, height, quality, len(pixels))
	}
	size := C.turbo_bound(&l.functions, C.int(width), C.int(height), C.int(colour))
	start := len(buffer)
	if cap(buffer)-start < int(size) {
		buffer = append(make([]byte, 0, start+int(size)), buffer...)
	}
	buffer = buffer[:start+int(size)]
	var message [messageMost]C.char
	if C.turbo_encode(&l.functions, bytesOf(pixels), C.int(width), C.int(height), C.int(colour), C.int(quality),
		bytesOf(buffer[start:]), &size, &message[0], messageMost) != 0 {
		return nil, fmt.Errorf("encode jpeg: %s", C.GoString(&message[0]))
	}
	return buffer[:start+int(size)], nil
}
