package api

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// wish is what a client asked for in POST /jobs, as decoded from either kind of body.
type wish struct {
	tool     string
	config   json.RawMessage
	format   string
	url      string
	uploadID string
	metadata map[string]string
	// file is an inline image that lies in storage already.
	file *inlineFile
	// sources are the names of the fields that give a source.
	sources  []string
	warnings []string
}

// inlineFile is an image sent in the request.
type inlineFile struct {
	object string
	// sum is the SHA-256 of its bytes, hex.
	sum    string
	source engine.Source
	// stored is false when the bytes were only hashed, because the idempotency key is bound already.
	stored bool
}

// createJob is POST /jobs.
func (s *server) createJob(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	key, err := idempotencyKey(r)
	if err != nil {
		return nil, err
	}
	for name := range r.URL.Query() {
		if err := promise(name); err != nil {
			return nil, err
		}
	}
	c := &creation{server: s, x: x, id: job.NewID(), key: key}
	kind, params, err := contentType(r)
	switch {
	case err != nil:
		return nil, err
	case kind == "multipart/form-data":
		return c.fromForm(ctx, r, params["boundary"])
	case kind == "application/json":
		return c.fromJSON(ctx)
	}
	return nil, badParam("Content-Type", "must be application/json or multipart/form-data.")
}

// contentType reads the request's media type; none means JSON.
func contentType(r *http.Request) (string, map[string]string, error) {
	text := r.Header.Get("Content-Type")
	if text == "" {
		return "application/json", nil, nil
	}
	kind, params, err := mime.ParseMediaType(text)
	if err != nil {
		return "", nil, badParam("Content-Type", "is malformed: send application/json or multipart/form-data.")
	}
	return kind, params, nil
}

// creation carries one POST /jobs.
type creation struct {
	server *server
	x      *exchange
	id     string
	key    string
}

// fromJSON creates a job of a JSON body.
func (c *creation) fromJSON(ctx context.Context) (*answer, error) {
	w, err := readWish(c.x.body)
	if err != nil {
		return nil, err
	}
	return c.submit(ctx, w)
}

// submit checks the wish and makes a job of it. An inline file that does not become a job's source is removed.
func (c *creation) submit(ctx context.Context, w *wish) (a *answer, err error) {
	kept := false
	defer func() {
		if w.file != nil && w.file.stored && !kept {
			c.discard(ctx, w.file.object)
		}
	}()
	// From here on the outcome must be known even when the client goes away: the file is in storage, the key may be bound.
	ctx, cancel := c.server.outliving(ctx)
	defer cancel()
	order, source, err := c.check(w)
	if err != nil {
		return nil, c.boundFirst(ctx, err)
	}
	fingerprint := fingerprintOf(order, w)
	if done, a, err := c.replay(ctx, fingerprint); done {
		return a, err
	}
	if w.uploadID != "" {
		if err := c.server.cfg.Jobs.CheckUpload(ctx, c.x.account.ID, w.uploadID); err != nil {
			// It may have been consumed just now, by a twin with the same key.
			if done, a, err := c.replay(ctx, fingerprint); done {
				return a, err
			}
			return nil, err
		}
	}
	submission := c.submission(order, source, w)
	body, err := encode(acceptedView(submission))
	if err != nil {
		return nil, err
	}
	submission.Idempotency = job.Idempotency{Key: c.key, Fingerprint: fingerprint, Status: http.StatusAccepted, Body: body}
	created, err := c.write(ctx, submission)
	if err != nil {
		kept = errors.Is(err, db.ErrUncertain)
		return replayed(err)
	}
	kept = true
	c.dispatch(ctx, created)
	return &answer{status: http.StatusAccepted, body: body, retryAfter: pollAfter(created), header: location(created.ID)}, nil
}

// wakeTimeout bounds what a client waits for the workers to be told.
const wakeTimeout = 2 * time.Second

// dispatch wakes a worker. The row is written already, so a failure only delays the job until the sweeper sees it.
func (c *creation) dispatch(ctx context.Context, j job.Job) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
	defer cancel()
	if err := c.server.cfg.Dispatch(ctx, j.WakeUp()); err != nil {
		c.server.cfg.Log.Warn("job not dispatched; the sweeper will", zap.String("job_id", j.ID), zap.String("request_id", c.x.id), zap.Error(err))
	}
}

// location is where to poll.
func location(id string) map[string]string {
	return map[string]string{"Location": base + "/jobs/" + id}
}

// write submits the job. When the answer to the commit is lost, the row tells whether it happened.
func (c *creation) write(ctx context.Context, submission job.Submission) (job.Job, error) {
	created, err := c.server.cfg.Jobs.Submit(ctx, submission)
	if !errors.Is(err, db.ErrUncertain) {
		return created, err
	}
	ctx, cancel := c.server.outliving(ctx)
	defer cancel()
	found, readErr := c.server.cfg.Jobs.Get(ctx, c.x.account.ID, submission.ID)
	switch {
	case readErr == nil:
		return found, nil
	case errors.Is(readErr, job.ErrNotFound):
		return job.Job{}, unavailable(errors.New("the commit did not happen"))
	}
	return job.Job{}, err
}

// boundFirst puts the idempotency key before validation: a key that is bound cannot be bound to a request that is invalid.
func (c *creation) boundFirst(ctx context.Context, invalid error) error {
	if c.key == "" {
		return invalid
	}
	if err := c.server.cfg.Jobs.Replay(ctx, c.x.account.ID, c.key, ""); errors.Is(err, job.ErrIdempotencyConflict) {
		return err
	}
	return invalid
}

// replay answers a request whose idempotency key is bound: done says that there is an answer, or an error.
func (c *creation) replay(ctx context.Context, fingerprint string) (done bool, a *answer, err error) {
	if c.key == "" {
		return false, nil, nil
	}
	if err := c.server.cfg.Jobs.Replay(ctx, c.x.account.ID, c.key, fingerprint); err != nil {
		a, err = replayed(err)
		return true, a, err
	}
	return false, nil, nil
}

// replayed turns a *job.Replayed into the first answer.
func replayed(err error) (*answer, error) {
	first, ok := errors.AsType[*job.Replayed](err)
	if !ok {
		return nil, err
	}
	return &answer{status: first.Status, body: first.Body, header: map[string]string{"Idempotent-Replayed": "true"}}, nil
}

// check makes an order of the wish, and says where its source is.
func (c *creation) check(w *wish) (*engine.Order, job.Source, error) {
	order, err := c.order(w)
	if err != nil {
		return nil, job.Source{}, err
	}
	switch {
	case len(w.sources) == 0:
		return nil, job.Source{}, missingSource(order.Tool.Media)
	case len(w.sources) > 1:
		return nil, job.Source{}, badParam(w.sources[1], "must not be sent together with %s: a job has exactly one source.", w.sources[0])
	}
	name := w.sources[0]
	switch {
	case w.file != nil && order.Tool.Media == engine.Video:
		return nil, job.Source{}, fileForVideo(name)
	case w.file != nil:
		return order, job.Source{Kind: job.SourceInline, Object: w.file.object, Ready: true, Size: w.file.source.Size}, nil
	case w.uploadID != "" && order.Tool.Media == engine.Image:
		return nil, job.Source{}, badParam("upload_id", "is for video tools only. Send an image as the multipart field image, or its address as image_url.")
	case w.uploadID != "":
		if !uploadIDForm.MatchString(w.uploadID) {
			return nil, job.Source{}, refuse(UploadNotFound)
		}
		return order, job.Source{Kind: job.SourceUpload, UploadID: w.uploadID}, nil
	}
	if _, err := c.server.cfg.Fetcher.CheckURL(w.url); err != nil {
		return nil, job.Source{}, badURL(name, err)
	}
	return order, job.Source{Kind: job.SourceURL, URL: w.url, Object: storage.SourceKey(c.id)}, nil
}

func (c *creation) order(w *wish) (*engine.Order, error) {
	if w.tool == "" {
		return nil, badParam("tool", "is required, for example upscale. GET /api/v1/tools lists the tools.")
	}
	order, err := c.server.cfg.Catalog.Order(w.tool, w.config, w.format)
	if errors.Is(err, engine.ErrUnsupportedTool) {
		return nil, &Error{Code: UnsupportedTool, Param: "tool"}
	}
	if err != nil {
		return nil, err
	}
	order.Warnings = append(w.warnings, order.Warnings...)
	return order, nil
}

func missingSource(media engine.Media) *Error {
	if media == engine.Video {
		return badParam("source", "is missing: send the upload_id of POST /api/v1/uploads, or the video's address as source_url.")
	}
	return badParam("source", "is missing: send the image as the multipart field image, or its address as image_url.")
}

func fileForVideo(name string) *Error {
	return badParam(name, "takes images only. Upload a video with POST /api/v1/uploads and send its upload_id, or send its address as source_url.")
}

func badURL(name string, err error) *Error {
	why := strings.TrimPrefix(orText(storage.ClientMessage(err), "The URL cannot be used."), "The URL ")
	return badParam(name, "%s Send an absolute http or https URL of a public host.", why)
}

// submission is the job to write.
func (c *creation) submission(order *engine.Order, source job.Source, w *wish) job.Submission {
	a, limits := c.x.account, c.server.cfg.Limits
	most := orDefault(a.MaxImage, limits.MaxImage)
	if order.Tool.Media == engine.Video {
		most = orDefault(a.MaxVideo, limits.MaxVideo)
	}
	measured := order.Hint
	if w.file != nil {
		measured = w.file.source
	}
	return job.Submission{
		ID: c.id, AccountID: a.ID, KeyID: c.x.key.ID, Order: order, Source: source, ResultsPrefix: storage.ResultPrefix(c.id),
		Estimate: c.estimate(order, measured), Metadata: w.metadata, MaxActive: most, CreatedAt: c.server.cfg.Now(),
	}
}

func orDefault(own, otherwise int) int {
	if own > 0 {
		return own
	}
	return otherwise
}

// estimate is the price of what is known. A plan over a cap is not refused here but by the worker, which measures: until then it is
// priced as unknown.
func (c *creation) estimate(order *engine.Order, measured engine.Source) billing.Millicredits {
	plan, err := order.Plan(measured)
	if err != nil {
		if plan, err = order.Plan(engine.Source{}); err != nil {
			return 0
		}
	}
	return job.Price(c.server.cfg.Prices, plan)
}

func acceptedView(sub job.Submission) jobAccepted {
	v := jobAccepted{
		JobID: sub.ID, Status: job.Queued, Tool: sub.Order.Tool.Name, Media: sub.Order.Tool.Media, CreditsEstimated: credits(sub.Estimate),
		CreatedAt: moment(sub.CreatedAt), Warnings: sub.Order.Warnings, Metadata: sub.Metadata,
	}
	if v.Warnings == nil {
		v.Warnings = []string{}
	}
	if v.Metadata == nil {
		v.Metadata = map[string]string{}
	}
	return v
}

// fingerprintOf tells one request from another: tool, config, output format and source.
func fingerprintOf(order *engine.Order, w *wish) string {
	source := []string{"url", w.url}
	switch {
	case w.file != nil:
		source = []string{"file", w.file.sum}
	case w.uploadID != "":
		source = []string{"upload", w.uploadID}
	}
	return fingerprint("job", order.Tool.Name, string(order.Canonical), order.Hint, order.Format, source)
}

// fingerprint is a digest of values that encode as JSON.
func fingerprint(values ...any) string {
	text, err := json.Marshal(values)
	if err != nil {
		// Strings and numbers always encode; a NaN would not, and no request can hold one.
		text = fmt.Append(nil, values...)
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

const maxIdempotencyKey = 255

// idempotencyKey reads the header; "" when there is none.
func idempotencyKey(r *http.Request) (string, error) {
	values := r.Header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	wrong := badParam("Idempotency-Key", "must be one value of 1 to %d printable ASCII characters.", maxIdempotencyKey)
	if len(values) > 1 || len(key) < 1 || len(key) > maxIdempotencyKey {
		return "", wrong
	}
	for i := range len(key) {
		if key[i] < 0x20 || key[i] > 0x7e {
			return "", wrong
		}
	}
	return key, nil
}

// discard removes an inline file that no job needs.
func (c *creation) discard(ctx context.Context, object string) {
	removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := c.server.cfg.Storage.Delete(removing, object); err != nil {
		c.server.cfg.Log.Warn("refused file not removed; the sweeper will", zap.String("request_id", c.x.id), zap.Error(err))
		c.note(ctx, object)
	}
}

// note puts an object that no job needs on the list of what the sweeper removes. When the database is away as well, the sweeper's look for
// orphans finds it in the end.
func (c *creation) note(ctx context.Context, object string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	if err := c.server.cfg.Jobs.Discard(ctx, 0, object); err != nil {
		c.server.cfg.Log.Warn("object of a refused request not noted for removal", zap.String("request_id", c.x.id), zap.Error(err))
	}
}
