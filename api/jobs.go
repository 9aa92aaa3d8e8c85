package api

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"enlarger/engine"
	"enlarger/job"
)

// Ids that do not look like ours exist under no account; they never reach the database.
var (
	jobIDForm    = regexp.MustCompile(`^job_[0-9a-f]{32}$`)
	uploadIDForm = regexp.MustCompile(`^upl_[0-9a-f]{32}$`)
)

// find reads the job that the path names.
func (s *server) find(ctx context.Context, x *exchange, r *http.Request) (job.Job, error) {
	id := r.PathValue("job_id")
	if !jobIDForm.MatchString(id) {
		return job.Job{}, refuse(JobNotFound)
	}
	return s.cfg.Jobs.Get(ctx, x.account.ID, id)
}

// getJob is GET /jobs/{job_id}.
func (s *server) getJob(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	j, err := s.find(ctx, x, r)
	if err != nil {
		return nil, err
	}
	v, err := s.view(ctx, j)
	if err != nil {
		return nil, err
	}
	return &answer{status: http.StatusOK, body: v, retryAfter: pollAfter(j)}, nil
}

// getResult is GET /jobs/{job_id}/result.
func (s *server) getResult(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	j, err := s.find(ctx, x, r)
	if err != nil {
		return nil, err
	}
	switch {
	case !j.Status.Terminal():
		return nil, &Error{Code: ResultNotReady, RetryAfter: pollAfter(j), Message: "The job is " + string(j.Status) + ". Retry shortly."}
	case j.Status != job.Succeeded:
		return nil, refusef(ResultUnavailable, "The job has %s, so there is no result.", endedAs(j.Status))
	case j.ResultObject == "":
		return nil, refuse(ResultExpired)
	}
	sign := s.cfg.Storage.PresignGet
	if r.Method == http.MethodHead {
		sign = s.cfg.Storage.PresignHead // S3 signs the method, and who asks with HEAD follows with HEAD
	}
	link, err := sign(ctx, j.ResultObject, s.cfg.Limits.RedirectTTL, resultName(j))
	if err != nil {
		return nil, fmt.Errorf("sign result: %w", err)
	}
	return &answer{status: http.StatusFound, header: map[string]string{"Location": link}}, nil
}

func endedAs(status job.Status) string {
	if status == job.Canceled {
		return "been canceled"
	}
	return string(status)
}

// jobCanceled is the answer of a cancel.
type jobCanceled struct {
	JobID  string     `json:"job_id"`
	Status job.Status `json:"status" enum:"canceled"`
}

// cancelJob is POST /jobs/{job_id}/cancel.
func (s *server) cancelJob(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	id := r.PathValue("job_id")
	if !jobIDForm.MatchString(id) {
		return nil, refuse(JobNotFound)
	}
	wasProcessing, err := s.cfg.Jobs.Cancel(ctx, x.account.ID, id)
	if err != nil {
		return nil, err
	}
	s.stopped(ctx, id, wasProcessing)
	return &answer{status: http.StatusOK, body: jobCanceled{JobID: id, Status: job.Canceled}}, nil
}

// stopped tells the workers; one that does not hear it learns by its next heartbeat.
func (s *server) stopped(ctx context.Context, id string, wasProcessing bool) {
	if !wasProcessing {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wakeTimeout)
	defer cancel()
	s.cfg.Stopped(ctx, id)
}

// jobDeleted is the answer of a delete.
type jobDeleted struct {
	JobID   string `json:"job_id"`
	Deleted bool   `json:"deleted" doc:"Always true."`
}

// deleteJob is DELETE /jobs/{job_id}.
func (s *server) deleteJob(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	id := r.PathValue("job_id")
	if !jobIDForm.MatchString(id) {
		return nil, refuse(JobNotFound)
	}
	gone, err := s.cfg.Jobs.Delete(ctx, x.account.ID, id)
	if err != nil {
		return nil, err
	}
	s.stopped(ctx, id, gone.WasProcessing)
	s.removeObjects(ctx, x, gone.Objects)
	return &answer{status: http.StatusOK, body: jobDeleted{JobID: id, Deleted: true}}, nil
}

const (
	// removeTimeout bounds what a client waits for the removal of objects; the sweeper removes what is left.
	removeTimeout = 5 * time.Second
	// removeMax is the most objects of one prefix that are removed here: a job has one result a run.
	removeMax = 1000
)

// removeObjects takes content out of storage at once. The row names it as garbage already, so a failure costs only time.
func (s *server) removeObjects(ctx context.Context, x *exchange, objects []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
	defer cancel()
	keys := []string{}
	for _, object := range objects {
		if !strings.HasSuffix(object, "/") {
			keys = append(keys, object)
			continue
		}
		found, err := s.cfg.Storage.List(ctx, object, "", removeMax)
		if err != nil {
			s.cfg.Log.Warn("objects not listed; the sweeper will remove them", zap.String("request_id", x.id), zap.Error(err))
		}
		for _, o := range found {
			keys = append(keys, o.Key)
		}
	}
	keys = slices.DeleteFunc(keys, func(key string) bool { return key == "" })
	if len(keys) == 0 {
		return
	}
	if err := s.cfg.Storage.Delete(ctx, keys...); err != nil {
		s.cfg.Log.Warn("objects not removed; the sweeper will", zap.String("request_id", x.id), zap.Error(err))
	}
}

// jobList is one page of jobs.
type jobList struct {
	Jobs       []jobView `json:"jobs" nullable:"false" doc:"Newest first."`
	HasMore    bool      `json:"has_more" doc:"Whether there are older jobs that match."`
	NextCursor *string   `json:"next_cursor" doc:"What to send as cursor for the next page; null on the last."`
}

// listJobs is GET /jobs.
func (s *server) listJobs(ctx context.Context, x *exchange, r *http.Request) (*answer, error) {
	filter, err := s.jobFilter(r)
	if err != nil {
		return nil, err
	}
	limit := filter.Limit
	filter.Limit++ // one more tells whether there is another page
	jobs, err := s.cfg.Jobs.List(ctx, x.account.ID, filter)
	if err != nil {
		return nil, err
	}
	page := jobList{Jobs: []jobView{}, HasMore: len(jobs) > limit}
	if page.HasMore {
		jobs = jobs[:limit]
		last := jobs[limit-1]
		cursor := newCursor(last.CreatedAt, last.ID)
		page.NextCursor = &cursor
	}
	for _, j := range jobs {
		v, err := s.view(ctx, j)
		if err != nil {
			return nil, err
		}
		page.Jobs = append(page.Jobs, v)
	}
	return &answer{status: http.StatusOK, body: page}, nil
}

const (
	pageDefault = 20
	// pageMax leaves room for the one more that tells whether there is another page.
	pageMax = 99
)

func (s *server) jobFilter(r *http.Request) (job.Filter, error) {
	q, err := query(r)
	if err != nil {
		return job.Filter{}, err
	}
	f := job.Filter{Status: job.Status(q.Get("status")), Tool: q.Get("tool"), Media: engine.Media(q.Get("media"))}
	switch f.Status {
	case "", job.Queued, job.Processing, job.Succeeded, job.Failed, job.Canceled:
	default:
		return f, badParam("status", "must be queued, processing, succeeded, failed or canceled.")
	}
	switch f.Media {
	case "", engine.Image, engine.Video:
	default:
		return f, badParam("media", "must be image or video.")
	}
	if _, known := s.cfg.Catalog.Tool(f.Tool); f.Tool != "" && !known {
		return f, badParam("tool", "must be a tool of this server; GET /api/v1/tools lists them.")
	}
	for _, bound := range []struct {
		name string
		into *time.Time
	}{{"created_after", &f.CreatedAfter}, {"created_before", &f.CreatedBefore}} {
		if text := q.Get(bound.name); text != "" {
			if *bound.into, err = time.Parse(time.RFC3339, text); err != nil {
				return f, badParam(bound.name, "must be a time such as 2026-06-11T08:30:00Z.")
			}
		}
	}
	if f.Metadata, err = metadataFilter(q); err != nil {
		return f, err
	}
	if f.Limit, err = pageLimit(q); err != nil {
		return f, err
	}
	if text := q.Get("cursor"); text != "" {
		f.AfterTime, f.AfterID, err = readCursor(text)
	}
	return f, err
}

// metadataFilter reads metadata[key]=value.
func metadataFilter(q url.Values) (map[string]string, error) {
	wanted := map[string]string{}
	for name, values := range q {
		key, ok := strings.CutPrefix(name, "metadata[")
		if !ok || !strings.HasSuffix(key, "]") {
			continue
		}
		wanted[strings.TrimSuffix(key, "]")] = values[0]
	}
	return wanted, checkMetadata(wanted)
}

// query reads the query string; one that is no UTF-8 or broken is the client's mistake.
func query(r *http.Request) (url.Values, error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil || len(q) > 50 {
		return nil, &Error{Code: InvalidParameter, Message: "The query string is malformed or has more than 50 parameters."}
	}
	for name, values := range q {
		for _, v := range values {
			if !utf8.ValidString(name) || !utf8.ValidString(v) {
				return nil, &Error{Code: InvalidParameter, Message: "The query string must be UTF-8."}
			}
		}
	}
	return q, nil
}

func pageLimit(q url.Values) (int, error) {
	text := q.Get("limit")
	if text == "" {
		return pageDefault, nil
	}
	limit, err := strconv.Atoi(text)
	if err != nil || limit < 1 || limit > pageMax {
		return 0, badParam("limit", "must be a whole number of 1 to %d.", pageMax)
	}
	return limit, nil
}

// newCursor marks a place in a list: a time and an id. Clients pass it on as it is.
func newCursor(at time.Time, id string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(at.UnixMicro(), 10) + "." + id))
}

var cursorForm = regexp.MustCompile(`^(\d{1,18})\.((?:job|ent)_[0-9a-f]{32})$`)

func readCursor(text string) (time.Time, string, error) {
	wrong := badParam("cursor", "must be a next_cursor of an earlier page, unchanged.")
	plain, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return time.Time{}, "", wrong
	}
	parts := cursorForm.FindStringSubmatch(string(plain))
	if parts == nil {
		return time.Time{}, "", wrong
	}
	micros, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return time.Time{}, "", wrong
	}
	return time.UnixMicro(micros), parts[2], nil
}
