package api

import (
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

// jobRequest describes the JSON body of POST /jobs. readWish decodes it.
type jobRequest struct {
	_            struct{}          `additionalProperties:"true"`
	Tool         string            `json:"tool" doc:"The operation, for example upscale or video_upscale. GET /api/v1/tools lists them."`
	ImageURL     string            `json:"image_url,omitempty" maxLength:"8192" doc:"A publicly reachable http(s) URL to fetch, image or video. Exactly one source is required."`
	SourceURL    string            `json:"source_url,omitempty" maxLength:"8192" doc:"An alias of image_url."`
	UploadID     string            `json:"upload_id,omitempty" doc:"Video only: the upload_id of POST /api/v1/uploads after the file was PUT."`
	Config       map[string]any    `json:"config,omitempty" doc:"Tool-specific options; GET /api/v1/tools has their schema. Keys that do not apply are ignored with a warning."`
	OutputFormat string            `json:"output_format,omitempty" enum:"jpg,jpeg,png,webp" doc:"Image only. Default jpg."`
	Metadata     map[string]string `json:"metadata,omitempty" maxProperties:"20" doc:"Your own labels: 20 at most, keys of 1 to 40 and values of at most 500 characters."`
}

// jobForm describes the multipart body of POST /jobs. form decodes it.
type jobForm struct {
	_            struct{} `additionalProperties:"true"`
	Tool         string   `json:"tool" doc:"The operation, for example upscale."`
	Image        string   `json:"image,omitempty" format:"binary" doc:"The image, up to 200 MiB. Its content decides, not its name."`
	File         string   `json:"file,omitempty" format:"binary" doc:"An alias of image."`
	ImageURL     string   `json:"image_url,omitempty" doc:"As in the JSON body."`
	SourceURL    string   `json:"source_url,omitempty" doc:"As in the JSON body."`
	UploadID     string   `json:"upload_id,omitempty" doc:"As in the JSON body."`
	Config       string   `json:"config,omitempty" doc:"A JSON object as text."`
	OutputFormat string   `json:"output_format,omitempty" enum:"jpg,jpeg,png,webp" doc:"As in the JSON body."`
	Metadata     string   `json:"metadata,omitempty" doc:"A JSON object of strings as text."`
}

// uploadRequest describes the body of POST /uploads. readUpload decodes it.
type uploadRequest struct {
	_           struct{} `additionalProperties:"true"`
	FileName    string   `json:"file_name" maxLength:"255" doc:"The file name with a video extension, for example clip.mp4."`
	FileSize    float64  `json:"file_size,omitempty" minimum:"1" doc:"The file's size in bytes. When given, put_url takes a file of exactly this size, and one over the limit is refused here."`
	ContentType string   `json:"content_type,omitempty" doc:"The MIME type, for example video/mp4. Taken from the extension when left out."`
}

const (
	exampleJob    = "job_3f2a9c5e8b7d4f60a1c2e3f405162738"
	exampleUpload = "upl_8f3b1c2a4d5e6f708192a3b4c5d6e7f8"
)

// operations are the endpoints of the API.
func (s *server) operations(registry huma.Registry) []operation {
	return []operation{
		s.opCreate(registry), s.opList(), s.opGet(), s.opDelete(), s.opResult(), s.opCancel(), s.opUpload(registry), s.opCredits(), s.opLedger(), s.opTools(),
	}
}

func jobIDParam() *huma.Param {
	return &huma.Param{Name: "job_id", In: "path", Required: true, Description: "The id that creating the job returned.", Example: exampleJob, Schema: &huma.Schema{Type: huma.TypeString}}
}

func idempotencyParam() *huma.Param {
	one, most := 1, maxIdempotencyKey
	return &huma.Param{
		Name: "Idempotency-Key", In: "header", Example: "8f3b1c2a-5d1e-4b7a-9c55-0a1b2c3d4e5f",
		Description: "Makes a retry safe for 24 hours: the same key with the same request returns the first answer with `Idempotent-Replayed: true`; " +
			"with another request it is refused with idempotency_conflict.",
		Schema: &huma.Schema{Type: huma.TypeString, MinLength: &one, MaxLength: &most},
	}
}

func queryParam(name, doc string, schema *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: doc, Schema: schema}
}

func pageParams() []*huma.Param {
	low, high := 1.0, float64(pageMax)
	return []*huma.Param{
		queryParam("limit", "How many to return.", &huma.Schema{Type: huma.TypeInteger, Minimum: &low, Maximum: &high, Default: pageDefault}),
		queryParam("cursor", "next_cursor of the page before.", &huma.Schema{Type: huma.TypeString}),
	}
}

const retryPoll = "Seconds to wait before the next poll; only while the job is in flight."

func (s *server) opCreate(registry huma.Registry) operation {
	return operation{
		id: "create-job", method: http.MethodPost, path: "/jobs", tag: "Jobs", summary: "Create a job", streams: true, handle: s.createJob,
		doc: "The tool selects media type and operation. Exactly one source: an image as multipart field `image` (or `file`), an `upload_id` for a video, " +
			"or a public `image_url` (or `source_url`) for either. Returns at once; nothing is charged yet.",
		params: []*huma.Param{idempotencyParam()},
		request: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: registry.Schema(reflect.TypeFor[jobRequest](), true, ""), Examples: map[string]*huma.Example{
				"image by URL":    {Value: sample(`{"image_url": "https://example.com/photo.jpg", "tool": "upscale", "config": {"scale": 4, "face_enhance": true}, "output_format": "jpg"}`)},
				"video by upload": {Value: sample(`{"upload_id": "` + exampleUpload + `", "tool": "video_upscale", "config": {"scale": 2, "codec": "h264"}}`)},
			}},
			"multipart/form-data": {Schema: registry.Schema(reflect.TypeFor[jobForm](), true, ""), Examples: map[string]*huma.Example{
				"image by upload": {Value: sample(`{"image": "(the bytes of photo.jpg)", "tool": "upscale", "config": "{\"scale\":4,\"face_enhance\":true}", "output_format": "jpg"}`)},
			}},
		}},
		replies: []reply{{
			status: http.StatusAccepted, doc: "The job is queued.", body: reflect.TypeFor[jobAccepted](),
			headers: map[string]string{"Location": "Where to poll.", "Retry-After": retryPoll, "Idempotent-Replayed": "true when this is the first answer of the same Idempotency-Key."},
			example: map[string]any{
				"image": sample(`{"job_id": "` + exampleJob + `", "status": "queued", "tool": "upscale", "media": "image", "credits_estimated": 1.0, "credits_charged": 0,
					"created_at": "2026-06-11T08:30:00Z", "warnings": [], "metadata": {}}`),
				"video": sample(`{"job_id": "` + exampleJob + `", "status": "queued", "tool": "video_upscale", "media": "video", "credits_estimated": 0, "credits_charged": 0,
					"created_at": "2026-06-11T08:30:00Z", "warnings": ["config.codec has no effect on video_upscale and was ignored."], "metadata": {}}`),
			},
		}},
		errors: []Code{
			InvalidParameter, UnsupportedTool, InsufficientCredits, FileTooLarge, UnsupportedFormat, UploadNotFound, UploadAlreadyConsumed, UploadExpired,
			IdempotencyConflict, ConcurrencyLimit, RequestTimeout,
		},
	}
}

func (s *server) opList() operation {
	text := &huma.Schema{Type: huma.TypeString}
	moment := &huma.Schema{Type: huma.TypeString, Format: "date-time"}
	return operation{
		id: "list-jobs", method: http.MethodGet, path: "/jobs", tag: "Jobs", summary: "List jobs", handle: s.listJobs,
		doc: "The account's jobs, newest first; deleted ones are not in it.",
		params: append(pageParams(),
			queryParam("status", "Only jobs with this status.", &huma.Schema{Type: huma.TypeString, Enum: []any{"queued", "processing", "succeeded", "failed", "canceled"}}),
			queryParam("tool", "Only jobs of this tool.", text),
			queryParam("media", "Only jobs of this media.", &huma.Schema{Type: huma.TypeString, Enum: []any{"image", "video"}}),
			queryParam("created_after", "Only jobs created at this time or later.", moment),
			queryParam("created_before", "Only jobs created before this time.", moment),
			&huma.Param{
				Name: "metadata", In: "query", Style: "deepObject", Description: "Only jobs with these labels: metadata[order]=1234.",
				Schema: &huma.Schema{Type: huma.TypeObject, AdditionalProperties: text},
			},
		),
		replies: []reply{{status: http.StatusOK, doc: "A page of jobs.", body: reflect.TypeFor[jobList](), example: map[string]any{
			"one page": map[string]any{"jobs": []any{exampleSucceeded()}, "has_more": false, "next_cursor": nil},
		}}},
		errors: []Code{InvalidParameter},
	}
}

func exampleSucceeded() any {
	return sample(`{"job_id": "` + exampleJob + `", "status": "succeeded", "phase": null, "progress": 100, "tool": "upscale", "media": "image",
		"result_url": "https://storage.example.com/results/photo.jpg?X-Amz-Signature=...", "result": {"width": 4000, "height": 3000, "size": 2451234}, "error": null,
		"credits_estimated": 1.0, "credits_charged": 1.0, "warnings": [], "metadata": {}, "output": {"format": "jpg", "content_type": "image/jpeg", "facts": {}},
		"created_at": "2026-06-11T08:30:00Z", "finished_at": "2026-06-11T08:30:42Z"}`)
}

func (s *server) opGet() operation {
	return operation{
		id: "get-job", method: http.MethodGet, path: "/jobs/{job_id}", tag: "Jobs", summary: "Retrieve a job", handle: s.getJob,
		doc:    "Poll this until the status is succeeded, failed or canceled; about every 2 s for images, every 5 to 10 s for videos.",
		params: []*huma.Param{jobIDParam()},
		replies: []reply{{
			status: http.StatusOK, doc: "The job. A failed job is a 200 too: its error is in `error`.", body: reflect.TypeFor[jobView](),
			headers: map[string]string{"Retry-After": retryPoll},
			example: map[string]any{
				"succeeded": exampleSucceeded(),
				"processing": sample(`{"job_id": "` + exampleJob + `", "status": "processing", "phase": "uploading", "progress": 0, "tool": "video_upscale", "media": "video",
					"result_url": null, "result": null, "error": null, "credits_estimated": 0, "credits_charged": 0, "warnings": [], "metadata": {}, "output": null,
					"created_at": "2026-06-11T08:30:00Z", "finished_at": null}`),
				"failed": sample(`{"job_id": "` + exampleJob + `", "status": "failed", "phase": null, "progress": 0, "tool": "video_upscale", "media": "video",
					"result_url": null, "result": null, "error": {"code": "resolution_limit_exceeded", "message": "The output would be 7680x4320; the limit is 4096 on the long side and 2160 on the short side. Use a smaller scale or a smaller source.", "type": "validation"},
					"credits_estimated": 0, "credits_charged": 0, "warnings": [], "metadata": {}, "output": null,
					"created_at": "2026-06-11T08:30:00Z", "finished_at": "2026-06-11T08:30:09Z"}`),
			},
		}},
		errors: []Code{JobNotFound},
	}
}

func (s *server) opDelete() operation {
	return operation{
		id: "delete-job", method: http.MethodDelete, path: "/jobs/{job_id}", tag: "Jobs", summary: "Delete a job", handle: s.deleteJob,
		doc:    "Deletes the record, the source and the result. A job in progress is canceled and refunded first. Deleting again is no error.",
		params: []*huma.Param{jobIDParam()},
		replies: []reply{{
			status: http.StatusOK, doc: "The job is gone.", body: reflect.TypeFor[jobDeleted](),
			example: map[string]any{"deleted": sample(`{"job_id": "` + exampleJob + `", "deleted": true}`)},
		}},
		errors: []Code{JobNotFound},
	}
}

func (s *server) opResult() operation {
	return operation{
		id: "get-result", method: http.MethodGet, path: "/jobs/{job_id}/result", tag: "Jobs", summary: "Get the result", handle: s.getResult,
		doc:     "Redirects to a freshly signed URL of the result, signed again on every call; it works for 15 minutes. Free of charge.",
		params:  []*huma.Param{jobIDParam()},
		replies: []reply{{status: http.StatusFound, doc: "The result is at Location.", headers: map[string]string{"Location": "The signed URL of the file."}}},
		errors:  []Code{ResultNotReady, JobNotFound, ResultUnavailable, ResultExpired},
	}
}

func (s *server) opCancel() operation {
	return operation{
		id: "cancel-job", method: http.MethodPost, path: "/jobs/{job_id}/cancel", tag: "Jobs", summary: "Cancel a job", handle: s.cancelJob,
		doc:    "Cancels a job that is queued or processing. Reserved credits are refunded in full, at once.",
		params: []*huma.Param{jobIDParam()},
		replies: []reply{{
			status: http.StatusOK, doc: "The job is canceled.", body: reflect.TypeFor[jobCanceled](),
			example: map[string]any{"canceled": sample(`{"job_id": "` + exampleJob + `", "status": "canceled"}`)},
		}},
		errors: []Code{JobNotFound, NotCancelable},
	}
}

func (s *server) opUpload(registry huma.Registry) operation {
	return operation{
		id: "create-upload", method: http.MethodPost, path: "/uploads", tag: "Uploads", summary: "Upload a video", streams: true, handle: s.createUpload,
		doc: "Returns a presigned URL. PUT the raw bytes to it, without an Authorization header, then create the job with the upload_id. " +
			"An upload is used once and expires after 24 hours.",
		params: []*huma.Param{idempotencyParam()},
		request: &huma.RequestBody{Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: registry.Schema(reflect.TypeFor[uploadRequest](), true, ""), Examples: map[string]*huma.Example{
				"clip": {Value: sample(`{"file_name": "clip.mp4", "file_size": 734003200, "content_type": "video/mp4"}`)},
			}},
		}},
		replies: []reply{{
			status: http.StatusCreated, doc: "Where to PUT the file.", body: reflect.TypeFor[uploadCreated](),
			headers: map[string]string{"Idempotent-Replayed": "true when this is the first answer of the same Idempotency-Key."},
			example: map[string]any{"clip": sample(`{"upload_id": "` + exampleUpload + `", "put_url": "https://storage.example.com/uploads/clip.mp4?X-Amz-Signature=...",
				"expires_at": "2026-06-13T08:30:00Z", "max_bytes": 5261334937}`)},
		}},
		errors: []Code{InvalidParameter, FileTooLarge, IdempotencyConflict, RequestTimeout},
	}
}

func (s *server) opCredits() operation {
	return operation{
		id: "get-credits", method: http.MethodGet, path: "/credits", tag: "Credits", summary: "Get your balance", handle: s.getCredits,
		doc: "Credit amounts are decimals. Granted credits are always balance + used + frozen.",
		replies: []reply{{
			status: http.StatusOK, doc: "The account's credits.", body: reflect.TypeFor[creditsView](),
			example: map[string]any{"balance": sample(`{"balance": 999.8, "used": 234.2, "frozen": 12.5}`)},
		}},
	}
}

func (s *server) opLedger() operation {
	return operation{
		id: "list-ledger", method: http.MethodGet, path: "/credits/ledger", tag: "Credits", summary: "List the changes of your balance", handle: s.getLedger,
		doc:    "Every grant, reservation, charge and refund, newest first. The entries add up to what GET /credits says.",
		params: append(pageParams(), queryParam("job_id", "Only entries of this job.", &huma.Schema{Type: huma.TypeString})),
		replies: []reply{{status: http.StatusOK, doc: "A page of entries.", body: reflect.TypeFor[ledgerPage](), example: map[string]any{
			"one page": sample(`{"entries": [{"id": "ent_0a1b2c3d4e5f60718293a4b5c6d7e8f9", "type": "reserve", "job_id": "` + exampleJob + `", "balance": -1.0, "frozen": 1.0, "used": 0,
				"note": "", "created_at": "2026-06-11T08:30:02Z"}], "has_more": false, "next_cursor": null}`),
		}}},
		errors: []Code{InvalidParameter},
	}
}

func (s *server) opTools() operation {
	return operation{
		id: "list-tools", method: http.MethodGet, path: "/tools", tag: "Tools", summary: "List the tools", handle: s.getTools,
		doc: "The tools of this server, the JSON Schema of their config, and the price rule.",
		replies: []reply{{status: http.StatusOK, doc: "The tools.", body: reflect.TypeFor[toolList](), example: map[string]any{
			"upscale": sample(`{"tools": [{"name": "upscale", "media": "image", "description": "Enlarges an image.", "config": {"type": "object", "properties": {"scale": {"type": "integer", "enum": [2, 4, 8], "default": 2}}},
				"examples": [{"scale": 4}], "output_formats": ["jpg", "png", "webp"], "weight": 1}],
				"pricing": {"image": "weight x ceil(output megapixels / image_block_megapixels)", "video": "weight x output frames x credits_per_frame of the first tier whose short_side the output's short side fits in",
					"image_block_megapixels": 24, "video_tiers": [{"short_side": 1080, "credits_per_frame": 0.002}]},
				"limits": {"image_upload_bytes": 209715200, "video_upload_bytes": 5261334937, "image_pixels": 200000000, "video_long_side": 4096, "video_short_side": 2160}}`),
		}}},
	}
}
