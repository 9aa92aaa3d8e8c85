package storage

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"
)

// An object is one file: its bytes, then a JSON trailer, then a fixed footer that finds the trailer. Content and
// description are therefore published by one rename, and the bytes start at offset 0 for sendfile.
const (
	// footerMagic ends with a version digit.
	footerMagic = "enlarger-object1"
	footerSize  = len(footerMagic) + 4
	// trailerMax bounds the description; request headers cannot carry that much.
	trailerMax = 64 << 10
	// syncEvery bounds the dirty pages of one upload, so that the last sync does not take a minute.
	syncEvery  = 64 << 20
	copyBuffer = 128 << 10
	// publishAttempts: a delete may remove an empty directory between its creation and the rename.
	publishAttempts = 20
)

// trailer describes an object on disk.
type trailer struct {
	// ETag is 16 bytes in hex.
	ETag     string    `json:"etag"`
	Modified time.Time `json:"modified"`
	// Meta holds response headers by canonical name, such as Content-Type and X-Amz-Meta-*.
	Meta map[string]string `json:"meta,omitempty"`
}

func (t trailer) hash() []byte {
	sum, err := hex.DecodeString(t.ETag)
	if err != nil {
		return nil
	}
	return sum
}

// disk is the directory behind an embedded store. All names are relative to root, which refuses to be left, be it by
// dots or by symbolic links.
type disk struct{ root *os.Root }

const (
	objectsDir = "objects"
	tempDir    = "tmp"
)

// draft is an object being written. It is invisible until publish and gone after discard.
type draft struct {
	disk     disk
	name     string
	file     *os.File
	size     int64
	unsynced int64
}

func randomName() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, by its contract
	return hex.EncodeToString(b[:])
}

func (d disk) newDraft(name string) (*draft, error) {
	file, err := d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create draft: %w", err)
	}
	return &draft{disk: d, name: name, file: file}, nil
}

// Write appends and keeps the amount of unsynced data bounded.
func (w *draft) Write(p []byte) (int, error) {
	n, err := w.file.Write(p)
	w.size += int64(n)
	w.unsynced += int64(n)
	if err == nil && w.unsynced >= syncEvery {
		w.unsynced = 0
		err = w.file.Sync()
	}
	return n, err
}

// receive appends body, which must end within limit bytes.
func (w *draft) receive(ctx context.Context, body io.Reader, limit int64) error {
	buffer := make([]byte, copyBuffer)
	n, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(untilDone(ctx, body), limit+1), buffer)
	if err != nil {
		return err
	}
	if n > limit {
		return ErrTooLarge
	}
	return nil
}

// publish makes the draft the object under key, whole and durable, or leaves everything as it was.
func (w *draft) publish(key string, t trailer) error {
	text, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode trailer: %w", err)
	}
	if len(text) > trailerMax {
		return fmt.Errorf("trailer of %d bytes: %w", len(text), ErrTooLarge)
	}
	text = append(text, footerMagic...)
	text = binary.BigEndian.AppendUint32(text, uint32(len(text)-len(footerMagic)))
	if _, err := w.file.Write(text); err != nil {
		return fmt.Errorf("write trailer: %w", err)
	}
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("sync draft: %w", err)
	}
	target := path.Join(objectsDir, keyPath(key))
	for attempt := 1; ; attempt++ {
		if err := w.disk.makeDirs(path.Dir(target)); err != nil {
			return err
		}
		err := w.disk.root.Rename(w.name, target)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || attempt == publishAttempts {
			return fmt.Errorf("publish: %w", err)
		}
	}
	w.name = ""
	return w.disk.syncDir(path.Dir(target))
}

// discard closes the draft and removes it unless it was published.
func (w *draft) discard() {
	_ = w.file.Close() // synced before it was published; of no interest otherwise
	if w.name != "" {
		_ = w.disk.root.Remove(w.name) // the next start clears what cannot be removed now
	}
}

// makeDirs creates the missing directories and makes each new one durable.
func (d disk) makeDirs(dir string) error {
	if _, err := d.root.Stat(dir); err == nil {
		return nil
	}
	parent := path.Dir(dir)
	if parent != "." {
		if err := d.makeDirs(parent); err != nil {
			return err
		}
	}
	err := d.root.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		// Somebody else made it, or removed its parent: the caller's rename finds out and comes back.
		return nil
	}
	if err != nil {
		return fmt.Errorf("create directory: %w", err)
	}
	if err := d.syncDir(parent); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// syncDir makes the names in dir durable.
func (d disk) syncDir(dir string) error {
	handle, err := d.root.Open(dir)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer func() { _ = handle.Close() }() // read only
	if err := handle.Sync(); err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

// openObject opens the object and reads its description. The file stays good for reading even when the object is
// replaced or deleted meanwhile.
func (d disk) openObject(key string) (file *os.File, size int64, t trailer, err error) {
	return d.openFile(path.Join(objectsDir, keyPath(key)))
}

func (d disk) openFile(name string) (file *os.File, size int64, t trailer, err error) {
	file, err = d.root.Open(name)
	if err != nil {
		return nil, 0, trailer{}, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errBadObject
	}
	if err == nil {
		size, t, err = readTrailer(file, info.Size())
	}
	if err != nil {
		_ = file.Close()
		return nil, 0, trailer{}, err
	}
	return file, size, t, nil
}

var errBadObject = errors.New("object file is damaged")

// readTrailer finds the object's own size and description in a file of fileSize bytes.
func readTrailer(file io.ReaderAt, fileSize int64) (size int64, t trailer, err error) {
	var footer [footerSize]byte
	at := fileSize - int64(footerSize)
	if at < 0 {
		return 0, t, errBadObject
	}
	if _, err := file.ReadAt(footer[:], at); err != nil {
		return 0, t, fmt.Errorf("read footer: %w", err)
	}
	length := int64(binary.BigEndian.Uint32(footer[len(footerMagic):]))
	if string(footer[:len(footerMagic)]) != footerMagic || length > trailerMax || length > at {
		return 0, t, errBadObject
	}
	text := make([]byte, length)
	if _, err := file.ReadAt(text, at-length); err != nil {
		return 0, t, fmt.Errorf("read trailer: %w", err)
	}
	if err := json.Unmarshal(text, &t); err != nil || len(t.hash()) == 0 {
		return 0, t, errBadObject
	}
	return at - length, t, nil
}

// remove deletes the object, if it is there, and the directories that it leaves empty.
func (d disk) remove(key string) error {
	name := path.Join(objectsDir, keyPath(key))
	err := d.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	dir := path.Dir(name)
	for dir != objectsDir && d.root.Remove(dir) == nil {
		dir = path.Dir(dir) // a directory that still holds something ends the climb
	}
	if err := d.syncDir(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// untilDone ends a copy between two reads once the request is over.
func untilDone(ctx context.Context, body io.Reader) io.Reader {
	return readerFunc(func(p []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return body.Read(p)
	})
}
