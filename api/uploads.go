package api

import (
	"context"
	"encoding/json"
	"math"
	"mime"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"enlarger/job"
	"enlarger/storage"
)

// uploadCreated is the answer of POST /uploads.
type uploadCreated struct {
	UploadID  string `json:"upload_id" doc:"What to create the job with. Single use."`
	PutURL    string `json:"put_url" format:"uri" doc:"A presigned URL: send the file there with one PUT and no Authorization header."`
	ExpiresAt moment `json:"expires_at" doc:"24 hours from now."`
	MaxBytes  int64  `json:"max_bytes" doc:"The largest file in bytes that put_url takes."`
}

// uploadWish is the body of POST /uploads.
type uploadWish struct {
	fileName, contentType, extension string
	// size is in bytes; 0 is not given.
	size int64
}

// videoTypes are the file extensions of videos with their MIME type.
func videoTypes() map[string]string {
	return map[string]string{
		"mp4": "video/mp4", "m4v": "video/x-m4v", "mov": "video/quicktime", "qt": "video/quicktime", "mkv": "video/x-matroska", "webm": "video/webm",
		"avi": "video/x-msvideo", "3gp": "video/3gpp", "3g2": "video/3gpp2", "ts": "video/mp2t", "mts": "video/mp2t", "m2ts": "video/mp2t",
		"mpg": "video/mpeg", "mpeg": "video/mpeg", "ogv": "video/ogg", "flv": "video/x-flv", "wmv": "video/x-ms-wmv", "mxf": "application/mxf",
	}
}

// createUpload is POST /uploads.
func (s *server) createUpload(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	key, err := idempotencyKey(r)
	if err != nil {
		return nil, err
	}
	if kind, _, err := contentType(r); err != nil || kind != "application/json" {
		return nil, badParam("Content-Type", "must be application/json. The file itself goes to put_url afterwards.")
	}
	c := &creation{server: s, x: x, key: key}
	ctx, cancel := s.outliving(ctx)
	defer cancel()
	w, err := s.readUpload(x.body)
	if err != nil {
		return nil, c.boundFirst(ctx, err)
	}
	mark := fingerprint("upload", w.fileName, w.size, w.contentType)
	if done, a, err := c.replay(ctx, mark); done {
		return a, err
	}
	now := s.cfg.Now()
	upload := job.Upload{
		ID: job.NewUploadID(), AccountID: x.account.ID, FileName: w.fileName, ContentType: w.contentType, Size: w.size,
		CreatedAt: now, ExpiresAt: now.Add(s.cfg.Limits.UploadTTL).Truncate(time.Second),
	}
	upload.Object = storage.UploadKey(upload.ID, w.extension)
	// The content type is not signed: clients send the one they like, and the content decides anyway.
	link, err := s.cfg.Storage.PresignPut(ctx, upload.Object, s.cfg.Limits.UploadTTL, "", w.size)
	if err != nil {
		return nil, err
	}
	body, err := encode(uploadCreated{UploadID: upload.ID, PutURL: link, ExpiresAt: moment(upload.ExpiresAt), MaxBytes: s.cfg.Limits.VideoUploadBytes})
	if err != nil {
		return nil, err
	}
	err = s.cfg.Jobs.CreateUpload(ctx, upload, job.Idempotency{Key: key, Fingerprint: mark, Status: http.StatusCreated, Body: body})
	if err != nil {
		return replayed(err)
	}
	return &answer{status: http.StatusCreated, body: body}, nil
}

func (s *server) readUpload(body *patientBody) (uploadWish, error) {
	text, err := readBody(body)
	if err != nil {
		return uploadWish{}, err
	}
	fields, err := readObject(text, "The body")
	if err != nil {
		return uploadWish{}, err
	}
	w := uploadWish{}
	if w.fileName, err = fields.text("file_name", maxFieldBytes); err != nil {
		return w, err
	}
	if w.extension, err = videoExtension(w.fileName); err != nil {
		return w, err
	}
	if w.size, err = fileSize(fields.take("file_size")); err != nil {
		return w, err
	}
	if w.size > s.cfg.Limits.VideoUploadBytes {
		return w, refusef(FileTooLarge, "file_size is over the limit of a single upload, %d bytes. Send the video's address as source_url instead.", s.cfg.Limits.VideoUploadBytes)
	}
	if w.contentType, err = fields.text("content_type", 255); err != nil {
		return w, err
	}
	if w.contentType == "" {
		w.contentType = videoTypes()[w.extension]
	}
	if kind, _, err := mime.ParseMediaType(w.contentType); err != nil || !isVideoType(kind) {
		return w, badParam("content_type", "must be a video's MIME type such as video/mp4.")
	}
	return w, nil
}

func isVideoType(kind string) bool {
	return strings.HasPrefix(kind, "video/") || kind == "application/mxf" || kind == "application/octet-stream"
}

const maxFileName = 255

// videoExtension finds the extension of a file name, and refuses names that are none.
func videoExtension(name string) (string, error) {
	if name == "" {
		return "", badParam("file_name", "is required, for example clip.mp4.")
	}
	if utf8.RuneCountInString(name) > maxFileName || strings.ContainsAny(name, `/\`) {
		return "", badParam("file_name", "must be a plain file name of at most %d characters, without / and \\.", maxFileName)
	}
	extension := strings.ToLower(strings.TrimPrefix(path.Ext(name), "."))
	if _, ok := videoTypes()[extension]; !ok || len(name) == len(extension)+1 {
		known := []string{}
		for e := range videoTypes() {
			known = append(known, e)
		}
		slices.Sort(known)
		return "", badParam("file_name", "must end in a video extension: %s. Images are sent inline with POST /api/v1/jobs.", strings.Join(known, ", "))
	}
	return extension, nil
}

// fileSize reads a whole number of bytes; 734003200.0 is one too.
func fileSize(raw json.RawMessage) (int64, error) {
	if raw == nil {
		return 0, nil
	}
	var size float64
	if raw[0] == '"' || json.Unmarshal(raw, &size) != nil || size < 1 || size != math.Trunc(size) {
		return 0, badParam("file_size", "must be a whole number of bytes, 1 or more.")
	}
	// Larger numbers lose digits, and are over any limit.
	return int64(min(size, 1<<53)), nil
}
