package api

import (
	"context"
	"fmt"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"enlarger/billing"
	"enlarger/engine"
	"enlarger/job"
)

// credits is an amount in the API: a decimal number.
type credits billing.Millicredits

// MarshalJSON writes 1.0, 12.5 or 0.
func (c credits) MarshalJSON() ([]byte, error) { return billing.Millicredits(c).MarshalJSON() }

// Schema describes it for the OpenAPI document.
func (credits) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeNumber, Description: "Credits: a decimal with at most three places."}
}

// moment is a time in the API: RFC 3339, UTC, whole seconds.
type moment time.Time

// MarshalJSON writes 2026-06-11T08:30:00Z.
func (m moment) MarshalJSON() ([]byte, error) {
	return []byte(time.Time(m).UTC().Format(`"2006-01-02T15:04:05Z"`)), nil
}

// Schema describes it for the OpenAPI document.
func (moment) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Format: "date-time", Description: "RFC 3339, UTC, whole seconds."}
}

// optionalMoment is a moment or null.
type optionalMoment struct{ time.Time }

// MarshalJSON writes null for the zero time.
func (m optionalMoment) MarshalJSON() ([]byte, error) {
	if m.IsZero() {
		return []byte("null"), nil
	}
	return moment(m.Time).MarshalJSON()
}

// Schema describes it for the OpenAPI document.
func (optionalMoment) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Nullable: true, Format: "date-time", Description: "RFC 3339, UTC, whole seconds; null before it happens."}
}

// jobAccepted is the answer to a new job.
type jobAccepted struct {
	JobID            string            `json:"job_id" doc:"The id to poll with."`
	Status           job.Status        `json:"status" enum:"queued" doc:"Always queued."`
	Tool             string            `json:"tool" doc:"The operation."`
	Media            engine.Media      `json:"media" enum:"image,video" doc:"What the tool works on."`
	CreditsEstimated credits           `json:"credits_estimated" doc:"A pre-flight estimate; 0 when a video's size and length are not known yet."`
	CreditsCharged   credits           `json:"credits_charged" doc:"Always 0: nothing is charged at submit."`
	CreatedAt        moment            `json:"created_at"`
	Warnings         []string          `json:"warnings" required:"false" nullable:"false" doc:"What of the request was ignored."`
	Metadata         map[string]string `json:"metadata" required:"false" doc:"As given."`
}

// jobView is a job as its account sees it.
type jobView struct {
	JobID            string            `json:"job_id"`
	Status           job.Status        `json:"status" enum:"queued,processing,succeeded,failed,canceled" doc:"Where the job is in its life."`
	Phase            *job.Phase        `json:"phase" required:"false" doc:"uploading, syncing or processing while the status is processing, else null."`
	Progress         int               `json:"progress" minimum:"0" maximum:"100" doc:"0 until phase is processing; 100 when the job has succeeded."`
	Tool             string            `json:"tool"`
	Media            engine.Media      `json:"media" required:"false" enum:"image,video"`
	ResultURL        *string           `json:"result_url" doc:"A signed link to the result that works for a day; null until the job has succeeded."`
	Result           *resultView       `json:"result" doc:"The facts of the result; null until the job has succeeded."`
	Error            *jobError         `json:"error" doc:"Why the job failed; null unless it did."`
	CreditsEstimated credits           `json:"credits_estimated" required:"false" doc:"The estimate made at submit."`
	CreditsCharged   credits           `json:"credits_charged" required:"false" doc:"0 while queued, the frozen amount while processing, the final amount on success, 0 after failed or canceled."`
	Warnings         []string          `json:"warnings" required:"false" nullable:"false" doc:"What was ignored or could not be kept."`
	Metadata         map[string]string `json:"metadata" required:"false" doc:"As given when the job was created."`
	Output           *outputView       `json:"output" required:"false" doc:"More facts of the result; null until the job has succeeded."`
	CreatedAt        moment            `json:"created_at"`
	FinishedAt       optionalMoment    `json:"finished_at"`
}

// resultView has exactly the documented keys.
type resultView struct {
	_        struct{} `nullable:"true"`
	Width    int      `json:"width" doc:"Pixels."`
	Height   int      `json:"height" doc:"Pixels."`
	Duration *float64 `json:"duration,omitempty" doc:"Seconds; video only."`
	Size     int64    `json:"size" doc:"Bytes."`
	Codec    string   `json:"codec,omitempty" doc:"Video only: h264 or h265."`
}

// jobError is why a job failed.
type jobError struct {
	_       struct{}    `nullable:"true"`
	Code    engine.Code `json:"code" enum:"processing_failed,processing_timeout,file_too_large,unsupported_format,ssrf_blocked,insufficient_credits,upload_incomplete,resolution_limit_exceeded" doc:"A stable string to branch on."`
	Message string      `json:"message" doc:"Human-readable; may change."`
	Type    string      `json:"type" enum:"processing,validation,billing" doc:"The broad category."`
}

// outputView is what there is to say of a result beyond the documented keys.
type outputView struct {
	_           struct{}       `nullable:"true"`
	Format      string         `json:"format" doc:"The file's extension."`
	ContentType string         `json:"content_type" doc:"The file's MIME type."`
	Facts       map[string]any `json:"facts" doc:"What the engine says of its work, such as the method used."`
}

// view shows a job. It signs a fresh result_url.
func (s *server) view(ctx context.Context, j job.Job) (jobView, error) {
	v := jobView{
		JobID: j.ID, Status: j.Status, Progress: j.Progress, Tool: j.Tool, Media: j.Media,
		CreditsEstimated: credits(j.Estimate), CreditsCharged: credits(j.Charged),
		Warnings: []string{}, Metadata: j.Metadata, CreatedAt: moment(j.CreatedAt), FinishedAt: optionalMoment{j.FinishedAt},
	}
	v.Warnings = append(append(v.Warnings, j.Warnings...), j.Result.Warnings...)
	if v.Metadata == nil {
		v.Metadata = map[string]string{}
	}
	if j.Phase != "" {
		v.Phase = &j.Phase
	}
	if j.Phase != job.PhaseProcessing && j.Status != job.Succeeded {
		v.Progress = 0
	}
	switch j.Status {
	case job.Failed:
		v.Error = &jobError{Code: j.ErrorCode, Message: j.ErrorMessage, Type: j.ErrorCode.Type()}
	case job.Succeeded:
		v.Result = &resultView{Width: j.Result.Width, Height: j.Result.Height, Size: j.Result.Size}
		if j.Media == engine.Video {
			v.Result.Duration, v.Result.Codec = &j.Result.Duration, j.Result.Codec
		}
		plan := engine.Plan{Format: j.Format}
		v.Output = &outputView{Format: j.Format, ContentType: plan.ContentType(), Facts: j.Result.Facts}
		if v.Output.Facts == nil {
			v.Output.Facts = map[string]any{}
		}
		if j.ResultObject != "" {
			link, err := s.cfg.Storage.PresignGet(ctx, j.ResultObject, s.cfg.Limits.ResultURLTTL, resultName(j))
			if err != nil {
				return jobView{}, fmt.Errorf("sign result: %w", err)
			}
			v.ResultURL = &link
		}
	}
	return v, nil
}

// resultName is what a browser saves the result as.
func resultName(j job.Job) string { return j.ID + "." + j.Format }

// pollAfter is the Retry-After hint of a job that will change, in seconds; 0 for one that will not.
func pollAfter(j job.Job) int {
	switch {
	case j.Status.Terminal():
		return 0
	case j.Media == engine.Video:
		return retryVideo
	}
	return retryImage
}
