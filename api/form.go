package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"mime/multipart"
	"net/http"
	"sort"
	"strings"
	"time"
	"unicode/utf8"

	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

const (
	// maxPartOverhead is what a form may have besides its file: headers, boundaries and the text fields.
	maxPartOverhead = 1 << 20
	// sniffFirst is how much of a file is looked at, and sniffMost how much when its size does not stand there: a photograph may begin
	// with a large preview.
	sniffFirst = 64 << 10
	sniffMost  = 1 << 20
)

// fromForm creates a job of a multipart body. The fields come in any order and the file is streamed as it comes.
func (c *creation) fromForm(ctx context.Context, r *http.Request, boundary string) (*answer, error) {
	if boundary == "" {
		return nil, badParam("Content-Type", "has no boundary: let your HTTP library build the multipart/form-data body.")
	}
	if r.ContentLength > c.server.cfg.Limits.ImageUploadBytes+maxPartOverhead {
		return nil, c.fileTooLarge()
	}
	f := &form{creation: c, reader: multipart.NewReader(c.x.body, boundary), wish: &wish{}, seen: map[string]bool{}}
	if err := f.read(ctx); err != nil {
		if f.wish.file != nil && f.wish.file.stored {
			c.discard(ctx, f.wish.file.object)
		}
		return nil, c.asFormError(err)
	}
	return c.submit(ctx, f.wish)
}

func (c *creation) fileTooLarge() *Error {
	return refusef(FileTooLarge, "The file is larger than %d MiB, the limit of a direct upload. Send its address as source_url instead.",
		c.server.cfg.Limits.ImageUploadBytes>>20)
}

// asFormError blames the client for a body that cannot be read, and nobody else for what it did not do.
func (c *creation) asFormError(err error) error {
	if fault := c.x.body.fault("The fields of the form are too large: 1 MiB is the limit beside the file."); fault != nil {
		return fault
	}
	return err
}

// form reads the parts of one body.
type form struct {
	*creation
	reader *multipart.Reader
	wish   *wish
	seen   map[string]bool
}

func (f *form) read(ctx context.Context) error {
	for parts := 0; ; parts++ {
		f.x.body.allow(maxPartOverhead)
		part, err := f.reader.NextPart()
		if errors.Is(err, io.EOF) && parts > 0 {
			break
		}
		if err != nil || parts == maxFields {
			return &Error{Code: InvalidParameter, Message: fmt.Sprintf("The body is not a whole multipart/form-data body of 1 to %d fields.", maxFields), Err: err}
		}
		if err := f.take(ctx, part); err != nil {
			return err
		}
	}
	sort.Strings(f.wish.warnings)
	return nil
}

func (f *form) take(ctx context.Context, part *multipart.Part) error {
	name := part.FormName()
	if name == "" {
		return &Error{Code: InvalidParameter, Message: "Every part of the form needs a name: Content-Disposition: form-data; name=\"tool\"."}
	}
	if f.seen[name] {
		return badParam(shown(name), "is given twice.")
	}
	f.seen[name] = true
	if name == "image" || name == "file" {
		return f.takeFile(ctx, name, part)
	}
	most, known := textFields()[name]
	if name == "config" || name == "metadata" {
		most, known = maxConfigBytes, true
	}
	if !known {
		if err := f.wish.ignore(name); err != nil {
			return err
		}
		most = maxPartOverhead
	}
	text, err := io.ReadAll(io.LimitReader(part, int64(most)+1))
	switch {
	case err != nil:
		return f.broken(err)
	case !known:
		return nil
	case len(text) > most:
		return badParam(name, "must have at most %d bytes.", most)
	case !utf8.Valid(text):
		return badParam(name, "must be UTF-8.")
	case name == "config":
		f.wish.config = bytes.TrimSpace(text)
		return nil
	case name == "metadata":
		if len(bytes.TrimSpace(text)) == 0 {
			return nil
		}
		return f.wish.setMetadata(json.RawMessage(bytes.TrimSpace(text)))
	}
	f.wish.setText(name, string(text))
	return checkText(name, string(text), most)
}

func (f *form) broken(err error) error {
	return &Error{Code: InvalidParameter, Message: "The multipart/form-data body is broken.", Err: err}
}

// takeFile looks at the file's first bytes, and streams it into storage when nothing speaks against it yet.
func (f *form) takeFile(ctx context.Context, name string, part *multipart.Part) error {
	if f.wish.file != nil {
		return badParam(name, "must not be sent together with %s: a job has exactly one source.", f.wish.sources[0])
	}
	f.wish.sources = append(f.wish.sources, name)
	bound, err := f.early(ctx, name)
	if err != nil {
		return err
	}
	leave, err := f.server.uploads.take(ctx, f.x.account.ID)
	if err != nil {
		return err
	}
	defer leave()
	most := f.server.cfg.Limits.ImageUploadBytes
	f.x.body.allow(most + maxPartOverhead)
	head, source, err := f.sniff(name, part)
	if err != nil {
		return err
	}
	content := &hashedFile{from: io.MultiReader(bytes.NewReader(head), part), sum: sha256.New(), left: most, wait: f.server.cfg.Limits.CallTimeout}
	file := &inlineFile{object: storage.SourceKey(f.id), stored: !bound}
	if bound {
		err = f.compare(content)
	} else {
		err = f.put(ctx, file.object, content, "image/"+source.Format)
	}
	if err != nil {
		return err
	}
	file.sum, file.source = hex.EncodeToString(content.sum.Sum(nil)), source
	file.source.Size = content.size
	f.wish.file = file
	return nil
}

// compare only hashes the file.
func (f *form) compare(content *hashedFile) error {
	_, err := io.Copy(io.Discard, content)
	switch {
	case errors.Is(err, errFileTooLarge):
		return f.fileTooLarge()
	case err != nil:
		return f.broken(err)
	}
	return nil
}

// put streams the file into storage; its size is not known before the end, because a form does not tell it. The error is the client's when its
// body could not be read, else the storage's.
func (f *form) put(ctx context.Context, object string, content *hashedFile, kind string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	content.watch(cancel)
	defer content.timer.Stop()
	_, err := f.server.cfg.Storage.Put(ctx, object, content, -1, kind)
	switch {
	case err == nil:
		return nil
	case errors.Is(content.err, errFileTooLarge):
		return f.fileTooLarge()
	case content.err != nil:
		return f.broken(content.err)
	}
	// Its answer may be all that was lost, so the object may be there. Storage is not asked again now: the sweeper will.
	f.note(ctx, object)
	return unavailable(errors.Join(err, context.Cause(ctx)))
}

// early refuses, before the file is read, what the fields so far, the balance or the cap already rule out. bound says that the
// idempotency key is in use, so that the file need only be compared with the first one.
func (f *form) early(ctx context.Context, name string) (bound bool, err error) {
	ctx, cancel := f.server.within(ctx)
	defer cancel()
	jobs, account := f.server.cfg.Jobs, f.x.account
	if f.key != "" {
		err := jobs.Replay(ctx, account.ID, f.key, "")
		if errors.Is(err, job.ErrIdempotencyConflict) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
	least := job.Submission{MaxActive: orDefault(account.MaxImage, f.server.cfg.Limits.MaxImage)}
	if f.wish.tool != "" {
		order, err := f.order(f.wish)
		if err != nil {
			return false, err
		}
		if order.Tool.Media == engine.Video {
			return false, fileForVideo(name)
		}
		least.Estimate = f.estimate(order, engine.Source{})
	}
	return false, jobs.Preflight(ctx, account.ID, engine.Image, least.Estimate, least.MaxActive)
}

// sniff reads the first bytes of a file and what they say of it.
func (f *form) sniff(name string, part io.Reader) (head []byte, source engine.Source, err error) {
	for _, most := range []int{sniffFirst, sniffMost} {
		have := len(head)
		head = append(head, make([]byte, most-have)...)
		n, err := io.ReadFull(part, head[have:])
		head = head[:have+n]
		whole := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && (!whole || f.x.body.fault("") != nil) {
			return nil, engine.Source{}, f.broken(err)
		}
		if len(head) == 0 {
			return nil, engine.Source{}, refusef(UnsupportedFormat, "The file is empty. Send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file.")
		}
		source, err = f.server.cfg.SniffImage(head)
		if err != nil {
			return nil, engine.Source{}, f.noImage(name, head, part)
		}
		if whole || source.Known() {
			return head, source, nil
		}
	}
	return head, source, nil
}

// noImage refuses a file that is no image. A small one may be followed by the field that says what the client had in mind.
func (f *form) noImage(name string, head []byte, part io.Reader) error {
	if text := string(head[:min(len(head), 8)]); strings.HasPrefix(text, "http://") || strings.HasPrefix(text, "https://") {
		return badParam(name, "must be a file. Send an address as image_url.")
	}
	const look = 1 << 20
	if n, err := io.Copy(io.Discard, io.LimitReader(part, look)); err == nil && n < look && f.wish.tool == "" {
		f.peekTool()
	}
	if tool, ok := f.server.cfg.Catalog.Tool(f.wish.tool); ok && tool.Media == engine.Video {
		return fileForVideo(name)
	}
	return refuse(UnsupportedFormat)
}

// peekTool reads on until the field tool.
func (f *form) peekTool() {
	f.x.body.allow(maxPartOverhead)
	for range maxFields {
		part, err := f.reader.NextPart()
		if err != nil {
			return
		}
		if part.FormName() != "tool" {
			continue
		}
		if text, err := io.ReadAll(io.LimitReader(part, maxFieldBytes)); err == nil {
			f.wish.tool = string(text)
		}
		return
	}
}

var errFileTooLarge = errors.New("file is over the limit")

// hashedFile counts and hashes a file as it is read, remembers why it could not be read, and gives up on a reader that does not come back.
type hashedFile struct {
	from io.Reader
	sum  hash.Hash
	// left is how many more bytes are allowed.
	left, size int64
	err        error
	// wait is how long the reader may take for what it has read, and a second more for every 2 MiB of the whole.
	wait  time.Duration
	timer *time.Timer
}

var errStorageSlow = errors.New("storage takes too long")

// watch starts to watch the reader.
func (h *hashedFile) watch(giveUp context.CancelCauseFunc) {
	h.timer = time.AfterFunc(h.wait, func() { giveUp(errStorageSlow) })
}

// Read reads on.
func (h *hashedFile) Read(p []byte) (int, error) {
	if h.err != nil {
		return 0, h.err
	}
	if h.timer != nil {
		// While the client is waited for, storage is not.
		h.timer.Stop()
		defer func() { h.timer.Reset(h.wait + time.Duration(h.size>>21)*time.Second) }()
	}
	n, err := h.from.Read(p)
	h.size += int64(n)
	if h.left -= int64(n); h.left < 0 {
		h.err = errFileTooLarge
		return 0, h.err
	}
	h.sum.Write(p[:n]) // a hash never fails
	if err != nil && !errors.Is(err, io.EOF) {
		h.err = err
	}
	return n, err
}
