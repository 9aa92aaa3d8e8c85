package image

import (
	"errors"
	"io"
)

// readProfile finds the ICC profile of a JPEG, WebP or TIFF file; PNG's is read with its pixels. What is broken or too long
// is taken as no profile. The error is that of reading the file.
func readProfile(r io.ReaderAt, size int64, format string) ([]byte, error) {
	in := &headerReader{r: r, size: size}
	var profile []byte
	var err error
	switch format {
	case "jpeg":
		profile, err = jpegProfile(in)
	case "webp":
		profile, err = webpProfile(in)
	case "tiff":
		profile, err = tiffProfileOf(in)
	}
	if errors.Is(err, errShort) || errors.Is(err, errNotImage) {
		return nil, nil
	}
	return profile, err
}

// jpegProfile joins the APP2 segments, which carry their number and how many there are (ICC.1:2022, annex B.4).
func jpegProfile(in *headerReader) ([]byte, error) {
	const name = "ICC_PROFILE\x00"
	var parts [256][]byte
	count, total := 0, 0
	err := jpegSegments(in, func(marker byte, offset int64, length int) (bool, error) {
		if marker != 0xE2 || length < len(name)+2 {
			return true, nil
		}
		b, err := in.at(offset, length)
		if err != nil {
			return false, err
		}
		if string(b[:len(name)]) != name {
			return true, nil
		}
		number := int(b[len(name)])
		count = int(b[len(name)+1])
		total += length
		if total > maxProfileBytes {
			return false, errNotImage
		}
		parts[number] = b[len(name)+2:]
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	var profile []byte
	for i := 1; i <= count; i++ {
		if parts[i] == nil {
			return nil, nil
		}
		profile = append(profile, parts[i]...)
	}
	return profile, nil
}

func tiffProfileOf(in *headerReader) ([]byte, error) {
	fields, err := tiffFields(in)
	if err != nil {
		return nil, err
	}
	entry, ok := fields[tiffProfile]
	if !ok || entry.count > maxProfileBytes {
		return nil, nil
	}
	return in.at(entry.offset, int(entry.count))
}
