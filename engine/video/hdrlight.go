package video

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"enlarger/engine/ffmpeg"
)

// contentLight is the content light level of CTA-861.3 in cd/m2: of all pixels that of the brightest component, and of all frames the
// largest mean of what is brightest in each pixel. Of two parts of a video it is the larger of each.
type contentLight struct {
	Most    float64 `json:"most"`
	Average float64 `json:"average"`
}

func (l contentLight) with(o contentLight) contentLight {
	return contentLight{Most: max(l.Most, o.Most), Average: max(l.Average, o.Average)}
}

// metadata rounds up to whole cd/m2, so that no pixel is brighter than is said; a black video has 1, for 0 stands for unknown. The few
// levels that would need an escape inside a stream (two bytes of zero and one below four, as 256 and 2 have) are raised by one.
func (l contentLight) metadata() ffmpeg.Light {
	whole := func(v float64) int64 { return int64(min(max(math.Ceil(v), 1), pqMost)) }
	light := ffmpeg.Light{MaxContent: whole(l.Most), MaxAverage: whole(l.Average)}
	if light.MaxContent&0xff == 0 && light.MaxAverage < 4 {
		light.MaxContent++
	}
	return light
}

// lightMeter measures pictures of the largest component of each pixel, in PQ of 16 bits.
type lightMeter struct {
	light  contentLight
	frames int64
	nits   []float32 // of each signal
	frame  []byte
}

func newLightMeter(width, height int) *lightMeter {
	m := &lightMeter{nits: make([]float32, 1<<16), frame: make([]byte, 2*width*height)}
	for i := range m.nits {
		m.nits[i] = float32(pqLight(float64(i) / math.MaxUint16))
	}
	return m
}

// read measures frame after frame until the stream ends. It reads to the end in any case, because a writer waits for it.
func (m *lightMeter) read(from io.Reader) error {
	for {
		n, err := io.ReadFull(from, m.frame)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("measure light: the last frame has %d of %d bytes", n, len(m.frame))
		case err != nil:
			return fmt.Errorf("measure light: %w", err)
		}
		m.measure()
	}
}

// measure takes one frame into account.
func (m *lightMeter) measure() {
	// Sums of few thousand terms stay exact enough in 32 bits, and are what a processor adds fastest.
	const chunk = 8192
	most, sum := uint16(0), 0.0
	for rest := m.frame; len(rest) > 0; {
		part := rest[:min(chunk, len(rest))]
		rest = rest[len(part):]
		var light float32
		for ; len(part) >= 2; part = part[2:] {
			v := binary.LittleEndian.Uint16(part)
			most = max(most, v)
			light += m.nits[v]
		}
		sum += float64(light)
	}
	m.frames++
	m.light = m.light.with(contentLight{Most: float64(m.nits[most]), Average: 2 * sum / float64(len(m.frame))})
}
