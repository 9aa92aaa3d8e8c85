package ffmpeg

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/vansante/go-ffprobe.v2"
)

// probeData is ffprobe's JSON. The models are go-ffprobe's, but for the side data of a stream: go-ffprobe 2.2.1 reads HDR
// mastering values as whole numbers while ffprobe writes fractions ("34000/50000"), and then loses every stream.
type probeData struct {
	Streams  []probeStream      `json:"streams"`
	Format   *ffprobe.Format    `json:"format"`
	Chapters []*ffprobe.Chapter `json:"chapters"`
}

type probeStream struct {
	ffprobe.Stream
	ChromaLocation string     `json:"chroma_location"`
	SideData       []sideData `json:"side_data_list"`
	Setup          string     `json:"extradata_hash"`
}

// probeFrames is the JSON of the first frames of a file.
type probeFrames struct {
	Frames []struct {
		Stream      int        `json:"stream_index"`
		PixelFormat string     `json:"pix_fmt"`
		Interlaced  int        `json:"interlaced_frame"`
		Range       string     `json:"color_range"`
		Matrix      string     `json:"color_space"`
		Primaries   string     `json:"color_primaries"`
		Transfer    string     `json:"color_transfer"`
		SideData    []sideData `json:"side_data_list"`
	} `json:"frames"`
}

type sideData struct {
	Type     string `json:"side_data_type"`
	Matrix   string `json:"displaymatrix"`
	Rotation number `json:"rotation"`

	RedX         ratio `json:"red_x"`
	RedY         ratio `json:"red_y"`
	GreenX       ratio `json:"green_x"`
	GreenY       ratio `json:"green_y"`
	BlueX        ratio `json:"blue_x"`
	BlueY        ratio `json:"blue_y"`
	WhiteX       ratio `json:"white_point_x"`
	WhiteY       ratio `json:"white_point_y"`
	MinLuminance ratio `json:"min_luminance"`
	MaxLuminance ratio `json:"max_luminance"`

	MaxContent number `json:"max_content"`
	MaxAverage number `json:"max_average"`
	Profile    number `json:"dv_profile"`
}

// number is a JSON number that may be quoted, missing or nonsense (then 0).
type number float64

func (n *number) UnmarshalJSON(text []byte) error {
	f, err := strconv.ParseFloat(strings.Trim(string(text), `"`), 64)
	if err == nil && !math.IsNaN(f) && math.Abs(f) < 1<<31 {
		*n = number(f)
	}
	return nil
}

// ratio is a quoted fraction, or nonsense (then unknown).
type ratio Ratio

func (r *ratio) UnmarshalJSON(text []byte) error {
	*r = ratio(parseRatio(strings.Trim(string(text), `"`)))
	return nil
}

// in is the fraction in units of 1/per, rounded.
func (r ratio) in(per int64) int64 {
	f := Ratio(r).Float() * float64(per)
	if f > math.MaxUint32 {
		return 0
	}
	return int64(math.Round(f))
}

// parseRatio reads "a/b" or "a:b"; what is no positive fraction is unknown.
func parseRatio(text string) Ratio {
	i := strings.IndexAny(text, "/:")
	if i < 0 {
		return Ratio{}
	}
	a, errA := strconv.ParseInt(text[:i], 10, 32)
	b, errB := strconv.ParseInt(text[i+1:], 10, 32)
	if r := (Ratio{a, b}); errA == nil && errB == nil && r.Known() {
		return r
	}
	return Ratio{}
}

// decode reads JSON and forgives a value of the wrong type in a file that means harm or is merely odd: that field stays empty.
func decode(text []byte, into any) error {
	var wrongType *json.UnmarshalTypeError
	err := json.Unmarshal(text, into)
	if err != nil && !errors.As(err, &wrongType) {
		return fmt.Errorf("read ffprobe's JSON: %w", err)
	}
	return nil
}

// header is what a file's header says, before anything is counted. videos are the candidates, best first.
type header struct {
	media  Media
	videos []*Video
	// rates belong to videos.
	rates []rates
}

// rates are what a track says of its times: the length of a unit, and the frame rate as guessed and as averaged by ffprobe.
type rates struct{ unit, nominal, average Ratio }

// headerFacts maps ffprobe's description of a file to facts.
func headerFacts(text []byte) (header, error) {
	var data probeData
	if err := decode(text, &data); err != nil {
		return header{}, err
	}
	if data.Format == nil {
		return header{}, fmt.Errorf("read ffprobe's JSON: it names no format")
	}
	h := header{media: Media{Format: formatName(data.Format.FormatName), Chapters: len(data.Chapters)}}
	if brand, err := data.Format.TagList.GetString("major_brand"); err == nil && slices.Contains(pictureBrands, strings.TrimSpace(brand)) {
		h.media.Format = "picture"
	}
	if title, err := data.Format.TagList.GetString("title"); err == nil {
		h.media.Title = clean(title)
	}
	if size, err := strconv.ParseInt(data.Format.Size, 10, 64); err == nil {
		h.media.Size = max(0, size)
	}
	// Beyond a hundred years either way it is nonsense.
	if start := data.Format.StartTimeSeconds; math.Abs(start) < 100*365*24*3600 {
		h.media.Start = start
	}
	for i := range data.Streams {
		s := &data.Streams[i]
		switch ffprobe.StreamType(s.CodecType) {
		case ffprobe.StreamVideo:
			if s.Disposition.AttachedPic == 0 && s.Width > 0 && s.Height > 0 {
				h.videos = append(h.videos, videoFacts(s))
				h.rates = append(h.rates, rates{parseRatio(s.TimeBase), parseRatio(s.RFrameRate), parseRatio(s.AvgFrameRate)})
			}
		case ffprobe.StreamAudio:
			rate, _ := strconv.Atoi(s.SampleRate)
			h.media.Audio = append(h.media.Audio, Audio{Index: s.Index, Codec: s.CodecName, Channels: s.Channels, SampleRate: rate})
		case ffprobe.StreamSubtitle:
			h.media.Subtitles = append(h.media.Subtitles, Subtitle{Index: s.Index, Codec: s.CodecName, Text: slices.Contains(textSubtitles, s.CodecName)})
		}
	}
	return h, nil
}

var (
	// pictureBrands are the ftyp brands of still pictures in the container of MP4: AVIF and HEIF.
	pictureBrands = []string{"avif", "avis", "heic", "heix", "heim", "heis", "hevc", "hevx", "mif1", "msf1"}
	textSubtitles = []string{"subrip", "srt", "ass", "ssa", "mov_text", "webvtt", "text"}
)

// formatName makes one word of ffprobe's list of a demuxer's names.
func formatName(names string) string {
	first, _, _ := strings.Cut(names, ",")
	if first == "mov" {
		return "mp4"
	}
	return first
}

// clean makes a title of a foreign file safe to hand on: one line of at most 200 characters.
func clean(title string) string {
	const most = 200
	title = strings.Map(func(c rune) rune {
		if !unicode.IsPrint(c) {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(title, ""))
	if runes := []rune(title); len(runes) > most {
		title = string(runes[:most])
	}
	return strings.TrimSpace(title)
}

func videoFacts(s *probeStream) *Video {
	v := &Video{
		Index: s.Index, Codec: s.CodecName, Width: s.Width, Height: s.Height,
		SAR: parseRatio(s.SampleAspectRatio), PixelFormat: known(s.PixFmt), Setup: s.Setup,
		Primaries: known(s.ColorPrimaries), Transfer: known(s.ColorTransfer), Matrix: known(s.ColorSpace), Range: known(s.ColorRange),
		ChromaLocation: known(s.ChromaLocation),
		Interlaced:     slices.Contains([]string{"tt", "bb", "tb", "bt"}, s.FieldOrder),
	}
	v.BitDepth, v.Alpha = pixelFacts(v.PixelFormat)
	if claimed, err := strconv.ParseInt(s.NbFrames, 10, 64); err == nil {
		v.Claimed = max(0, claimed)
	}
	v.takeSideData(s.SideData)
	if side := v.Rotation % 180; side == 90 {
		v.Width, v.Height = v.Height, v.Width
	}
	return v
}

// known drops the words that ffprobe has for what it does not know.
func known(name string) string {
	if name == "unknown" || name == "reserved" || name == "N/A" {
		return ""
	}
	return name
}

// takeSideData reads the side data of a stream or of a frame; the first of its kind wins.
func (v *Video) takeSideData(list []sideData) {
	for _, sd := range list {
		switch {
		case sd.Type == ffprobe.SideDataTypeDisplayMatrix:
			v.Rotation = clockwise(float64(sd.Rotation))
			v.Mirrored = mirrored(sd.Matrix)
		case sd.Type == ffprobe.SideDataTypeMasteringDisplayMetadata && v.Mastering == nil:
			v.Mastering = sd.mastering()
		case sd.Type == ffprobe.SideDataTypeContentLightLevel && v.Light == nil && sd.MaxContent > 0:
			v.Light = &Light{MaxContent: int64(sd.MaxContent), MaxAverage: int64(max(0, sd.MaxAverage))}
		case strings.HasPrefix(sd.Type, "DOVI") && v.DolbyVision == 0:
			v.DolbyVision = int(max(0, sd.Profile)) + 1
		case strings.Contains(sd.Type, "SMPTE2094-40"):
			v.DynamicHDR = true
		}
	}
}

// clockwise turns ffprobe's counter-clockwise angle into 0-359 clockwise. ffmpeg takes what is within a degree of a right
// angle for one.
func clockwise(angle float64) int {
	turn := math.Mod(-angle, 360)
	if turn < 0 {
		turn += 360
	}
	if right := math.Round(turn/90) * 90; math.Abs(turn-right) <= 1 {
		turn = right
	}
	return int(math.Round(turn)) % 360
}

// mirrored says whether a display matrix, as ffprobe prints it (rows of an address and three numbers), flips the picture: its
// upper left 2x2 part has a negative determinant.
func mirrored(matrix string) bool {
	var rows [][]float64
	for line := range strings.Lines(matrix) {
		_, numbers, found := strings.Cut(line, ":")
		if !found {
			continue
		}
		var row []float64
		for word := range strings.FieldsSeq(numbers) {
			n, err := strconv.ParseFloat(word, 64)
			if err != nil {
				return false
			}
			row = append(row, n)
		}
		rows = append(rows, row)
	}
	if len(rows) < 2 || len(rows[0]) < 2 || len(rows[1]) < 2 {
		return false
	}
	return rows[0][0]*rows[1][1]-rows[0][1]*rows[1][0] < 0
}

// mastering is nil when a value that must be there is not.
func (sd sideData) mastering() *Mastering {
	const chromaticity, luminance = 50_000, 10_000
	m := &Mastering{
		RedX: sd.RedX.in(chromaticity), RedY: sd.RedY.in(chromaticity), GreenX: sd.GreenX.in(chromaticity), GreenY: sd.GreenY.in(chromaticity),
		BlueX: sd.BlueX.in(chromaticity), BlueY: sd.BlueY.in(chromaticity), WhiteX: sd.WhiteX.in(chromaticity), WhiteY: sd.WhiteY.in(chromaticity),
		MaxLuminance: sd.MaxLuminance.in(luminance), MinLuminance: sd.MinLuminance.in(luminance),
	}
	if m.WhiteX == 0 || m.WhiteY == 0 || m.MaxLuminance == 0 {
		return nil
	}
	return m
}

// frameFacts adds what the first frames say and the header did not: tags and metadata that live in the codec's own stream. seen
// says whether there were frames of this track.
func (v *Video) frameFacts(text []byte) (seen bool, err error) {
	var data probeFrames
	if err := decode(text, &data); err != nil {
		return false, err
	}
	for _, f := range data.Frames {
		if f.Stream != v.Index {
			continue
		}
		seen = true
		if v.PixelFormat == "" {
			v.PixelFormat = known(f.PixelFormat)
			v.BitDepth, v.Alpha = pixelFacts(v.PixelFormat)
		}
		v.Interlaced = v.Interlaced || f.Interlaced == 1
		for _, tag := range []struct {
			have *string
			seen string
		}{{&v.Primaries, f.Primaries}, {&v.Transfer, f.Transfer}, {&v.Matrix, f.Matrix}, {&v.Range, f.Range}} {
			if *tag.have == "" {
				*tag.have = known(tag.seen)
			}
		}
		// A frame repeats the rotation of its stream, which has been applied to the size already.
		v.takeSideData(slices.DeleteFunc(f.SideData, func(sd sideData) bool { return sd.Type == ffprobe.SideDataTypeDisplayMatrix }))
	}
	return seen, nil
}

// pixelFacts reads bits and transparency off the name of a pixel format (yuv420p10le, gbrap12le, p010le, rgb48le, ya16be ...).
func pixelFacts(name string) (bits int, alpha bool) {
	bits = 8
	base := strings.TrimSuffix(strings.TrimSuffix(name, "le"), "be")
	alpha = strings.HasPrefix(name, "yuva") || strings.HasPrefix(name, "gbrap") || strings.HasPrefix(name, "ya") ||
		slices.Contains([]string{"rgba", "bgra", "argb", "abgr", "rgba64", "bgra64"}, base)
	switch base {
	case "rgb48", "bgr48", "rgba64", "bgra64", "ayuv64":
		return 16, alpha || base == "ayuv64"
	case "p010", "p210", "p410", "x2rgb10", "x2bgr10", "y210":
		return 10, alpha
	case "p012", "y212", "xv36", "xyz12":
		return 12, alpha
	case "p016", "p216", "p416", "y216":
		return 16, alpha
	}
	for _, depth := range []int{9, 10, 12, 14, 16, 32} {
		digits := strconv.Itoa(depth)
		// The digit before tells 10 from the end of yuv410: planar names end in p and the depth, grey ones in gray and the depth.
		if strings.HasSuffix(base, "p"+digits) || strings.HasSuffix(base, "gray"+digits) || strings.HasSuffix(base, "ya"+digits) ||
			strings.HasSuffix(base, "f"+digits) {
			return depth, alpha
		}
	}
	return bits, alpha
}
