package storage

import (
	"encoding/hex"
	"errors"
	"path"
	"strings"
)

// How a key becomes a path. Every segment of the key becomes a directory, the last one a file, so that an operator
// finds results/job_x/1.jpg where it is expected. Three suffixes keep all names apart and away from "." and "..":
//
//	<segment>.d  a directory for the segment and its slash
//	<segment>.o  the object itself
//	<64 bytes>.c a directory for the first 64 bytes of a segment that long; the rest follows inside
//
// Bytes other than letters, digits, '-', '_' and '.' are written as %XX, so a name is at most 194 bytes long.
const (
	dirSuffix   = ".d"
	fileSuffix  = ".o"
	chunkSuffix = ".c"
	chunkSize   = 64
)

var errBadPath = errors.New("not the path of an object")

// keyPath maps any non-empty key to a relative path below the objects directory. Different keys have different paths.
func keyPath(key string) string {
	var names []string
	for {
		segment, rest, more := strings.Cut(key, "/")
		for len(segment) >= chunkSize {
			names = append(names, escapeName(segment[:chunkSize])+chunkSuffix)
			segment = segment[chunkSize:]
		}
		if !more {
			return path.Join(append(names, escapeName(segment)+fileSuffix)...)
		}
		names = append(names, escapeName(segment)+dirSuffix)
		key = rest
	}
}

// nameKey is the part of the key that one directory entry stands for: a directory ends in a slash, a chunk does not.
func nameKey(name string) (part string, isObject bool, err error) {
	stem, suffix := name[:max(0, len(name)-2)], name[max(0, len(name)-2):]
	part, err = unescapeName(stem)
	if err != nil {
		return "", false, err
	}
	switch suffix {
	case fileSuffix:
		return part, true, nil
	case dirSuffix:
		return part + "/", false, nil
	case chunkSuffix:
		return part, false, nil
	}
	return "", false, errBadPath
}

func plainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

func escapeName(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if plainByte(c) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteString(strings.ToUpper(hex.EncodeToString([]byte{c})))
	}
	return b.String()
}

// unescapeName accepts only what escapeName writes, so that no second path stands for a key.
func unescapeName(s string) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+3 > len(s) {
			return "", errBadPath
		}
		c, err := hex.DecodeString(s[i+1 : i+3])
		if err != nil {
			return "", errBadPath
		}
		b.WriteByte(c[0])
		i += 2
	}
	if escapeName(b.String()) != s {
		return "", errBadPath
	}
	return b.String(), nil
}
