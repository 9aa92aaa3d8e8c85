package ffmpeg

// Media is what a file was found to hold. Empty strings and zeros are unknown.
type Media struct {
	// Format is the container: mp4 (with its kin mov, m4v, 3gp), matroska (with webm), avi, mpegts, mpeg, flv, asf, ogg, mxf.
	Format string
	// Size is in bytes.
	Size int64
	// Start is the earliest time of any track in seconds, as the container says; 0 unknown.
	Start float64
	Title string
	// Chapters is how many chapters there are.
	Chapters int
	// Video is the track that a viewer would see: the first that is no cover picture and holds frames. Nil when there is none.
	Video     *Video
	Audio     []Audio
	Subtitles []Subtitle
}

// Ratio is a fraction; Den 0 is unknown.
type Ratio struct{ Num, Den int64 }

// Known says whether the ratio is a positive number.
func (r Ratio) Known() bool { return r.Num > 0 && r.Den > 0 }

// Float is the ratio's value, 0 when unknown.
func (r Ratio) Float() float64 {
	if !r.Known() {
		return 0
	}
	return float64(r.Num) / float64(r.Den)
}

// Video is one video track.
type Video struct {
	// Index is the track's number in the file.
	Index int
	// Codec is ffmpeg's codec name, such as h264 or hevc.
	Codec string
	// Width and Height are in pixels as displayed, after the rotation that the file asks for.
	Width, Height int
	// Rotation is how many degrees the picture is turned for display, clockwise: 0, 90, 180, 270, or another angle of a strange
	// file. Mirrored says that it is flipped besides.
	Rotation int
	Mirrored bool
	// SAR is the shape of one pixel as stored, before rotation; unknown is square.
	SAR         Ratio
	PixelFormat string
	// BitDepth is the bits of one sample, 8 when the pixel format does not say.
	BitDepth int
	// Alpha says that the pixel format has transparency.
	Alpha bool
	// The colour tags by ffmpeg's names. Range is tv or pc.
	Primaries, Transfer, Matrix, Range string
	// ChromaLocation is where a sample of chroma lies among those of luma that share it, such as left or center.
	ChromaLocation string
	// Unit is what times are counted in, in seconds; unknown when the container does not say.
	Unit Ratio
	// Interlaced says that the first frames are flagged so.
	Interlaced bool
	// Mastering and Light are the static metadata of HDR10, or nil.
	Mastering *Mastering
	Light     *Light
	// DolbyVision is the Dolby Vision profile plus 1, 0 when there is none. DynamicHDR says that frames carry HDR10+ metadata.
	DolbyVision int
	DynamicHDR  bool

	// The rest is counted from the packets, and nothing in it is what the container claims.

	// Frames is the number of frames that are shown.
	Frames int64
	// Duration is from the first frame shown to the end of the last, in seconds.
	Duration float64
	// LastHold is how long the last frame is shown, in seconds.
	LastHold float64
	// FPS is the frame rate: the nominal one when the frames keep to it, else the average.
	FPS float64
	// VariableRate says that the frames do not come at equal steps.
	VariableRate bool
	// Setup is a hash of the decoder's parameters: pieces can be joined without encoding them anew when theirs are the same.
	Setup string
	// Claimed is how many frames the container says there are, less those that its edit list hides; 0 when it does not say.
	Claimed int64
}

// HDR says whether the transfer curve is one of the two of HDR video, PQ or HLG.
func (v *Video) HDR() bool { return v.Transfer == "smpte2084" || v.Transfer == "arib-std-b67" }

// Mastering is SMPTE ST 2086 metadata in its own units: chromaticities in 0.00002, luminances in 0.0001 cd/m2.
type Mastering struct {
	RedX, RedY, GreenX, GreenY, BlueX, BlueY, WhiteX, WhiteY int64
	MaxLuminance, MinLuminance                               int64
}

// Light is the content light level in cd/m2.
type Light struct{ MaxContent, MaxAverage int64 }

// Audio is one audio track.
type Audio struct {
	Index      int
	Codec      string
	Channels   int
	SampleRate int
}

// Subtitle is one subtitle track.
type Subtitle struct {
	Index int
	Codec string
	// Text says that it is text and not pictures.
	Text bool
}
