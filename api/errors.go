package api

import (
	"errors"
	"fmt"

	"enlarger/billing"
	"enlarger/db"
	"enlarger/engine"
	"enlarger/job"
	"enlarger/storage"
)

// Code is a stable error code of a refused request. Job errors have their own list, engine.Code.
type Code string

// The request error codes of the API document, and below them the ones that this server adds.
const (
	InvalidAPIKey         Code = "invalid_api_key"
	Unauthorized          Code = "unauthorized"
	InsufficientCredits   Code = "insufficient_credits"
	InvalidParameter      Code = "invalid_parameter"
	UnsupportedTool       Code = "unsupported_tool"
	GeoRestricted         Code = "geo_restricted"
	JobNotFound           Code = "job_not_found"
	FileTooLarge          Code = "file_too_large"
	UnsupportedFormat     Code = "unsupported_format"
	NotCancelable         Code = "not_cancelable"
	IdempotencyConflict   Code = "idempotency_conflict"
	UploadNotFound        Code = "upload_not_found"
	UploadAlreadyConsumed Code = "upload_already_consumed"
	UploadExpired         Code = "upload_expired"
	ResultNotReady        Code = "result_not_ready"
	RateLimited           Code = "rate_limited"
	ConcurrencyLimit      Code = "concurrency_limit_exceeded"
	ServiceUnavailable    Code = "service_unavailable"
	InternalError         Code = "internal_error"

	NotFound          Code = "not_found"
	MethodNotAllowed  Code = "method_not_allowed"
	RequestTimeout    Code = "request_timeout"
	ResultUnavailable Code = "result_unavailable"
	ResultExpired     Code = "result_expired"
)

// kind is one line of the error table.
type kind struct {
	code   Code
	status int
	// category is the `type` of the error object.
	category string
	// when says in the reference when a client meets this code.
	when string
	// message is what a client reads when the place that refuses has nothing better to say.
	message string
}

// kinds is the one table of codes, HTTP statuses and types.
func kinds() []kind {
	return []kind{
		{InvalidAPIKey, 401, "auth", "API key is missing, invalid, or disabled.", "The API key provided is invalid or has been disabled."},
		{Unauthorized, 401, "auth", "Authentication failed: the key is good, its account is suspended.", "The account of this API key is suspended. Contact the operator of this server."},
		{InsufficientCredits, 402, "billing", "Pre-flight balance check failed at submit.", "Your account does not have enough credits for this operation."},
		{InvalidParameter, 400, "validation", "A parameter is missing or invalid; `param` names it.", "A parameter is missing or invalid."},
		{UnsupportedTool, 400, "validation", "The tool does not exist or is not available in v1.", "The tool does not exist. GET /api/v1/tools lists the tools of this server."},
		{GeoRestricted, 403, "auth", "Blocked in your region.", "This service is not available in your region."},
		{JobNotFound, 404, "validation", "No such job under your account.", "There is no such job under your account."},
		{FileTooLarge, 413, "validation", "Image direct upload over 200 MB, or a video upload over the single-PUT limit (~4.9 GB).", "The file is too large."},
		{UnsupportedFormat, 415, "validation", "Direct upload is an unsupported format.", "The file is not a supported image. Send a JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file."},
		{NotCancelable, 409, "validation", "Job is already in a terminal state.", "The job has already succeeded, failed or been canceled."},
		{IdempotencyConflict, 409, "validation", "Same idempotency key used with a different request.", "This Idempotency-Key was used with a different request. Send a fresh key for a new request."},
		{UploadNotFound, 404, "validation", "The upload_id does not exist or belongs to another account.", "There is no such upload under your account. Create one with POST /api/v1/uploads."},
		{UploadAlreadyConsumed, 409, "validation", "The upload_id was already used by another job (single-use).", "This upload_id was already used by another job. Create a new one with POST /api/v1/uploads."},
		{UploadExpired, 410, "validation", "The upload_id expired (24h) before being used: request a new one.", "This upload_id has expired. Create a new one with POST /api/v1/uploads."},
		{ResultNotReady, 202, "processing", "Result is not there yet; retry /result shortly.", "The result is not ready yet. Retry shortly."},
		{RateLimited, 429, "rate_limit", "Per-key request rate exceeded.", "Too many requests with this API key. Wait until the time in X-RateLimit-Reset."},
		{ConcurrencyLimit, 429, "rate_limit", "Too many in-flight jobs for the account.", "Your account has too many jobs in flight. Wait for some to finish, then retry."},
		{ServiceUnavailable, 503, "server", "A downstream dependency is temporarily unavailable; retry.", "The service is temporarily unavailable. Retry after the time in Retry-After."},
		{InternalError, 500, "server", "Unexpected server error.", "Something went wrong on our side. Quote the request_id when you report it."},
		{NotFound, 404, "validation", "No such route.", "There is nothing at this address. GET /api/v1/docs describes the API."},
		{MethodNotAllowed, 405, "validation", "The route exists, the method does not; `Allow` lists those that do.", "This address does not take this method."},
		{RequestTimeout, 408, "validation", "The request body arrived too slowly.", "The request body arrived too slowly."},
		{ResultUnavailable, 409, "validation", "The job failed or was canceled, so there is no result.", "The job has ended without a result."},
		{ResultExpired, 410, "validation", "The result was removed by the operator's retention rule.", "The result has been removed. Create the job again."},
	}
}

// Error is a refusal that a client sees.
type Error struct {
	Code    Code
	Message string
	// Param names the parameter at fault, such as config.scale; "" when there is none.
	Param string
	// RetryAfter is in seconds; 0 sends no header.
	RetryAfter int
	// Allow is the Allow header of a 405.
	Allow string
	// Err is for the operator's log only.
	Err error
}

func (e *Error) Error() string {
	text := string(e.Code)
	if e.Param != "" {
		text += " (" + e.Param + ")"
	}
	if e.Err != nil {
		return fmt.Sprintf("%s: %v", text, e.Err)
	}
	return text
}

func (e *Error) Unwrap() error { return e.Err }

// refuse makes an Error with the table's own message.
func refuse(code Code) *Error { return &Error{Code: code} }

// refusef makes an Error with a message for this case.
func refusef(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// badParam makes an invalid_parameter Error. The message starts with the parameter's name.
func badParam(param, format string, args ...any) *Error {
	return &Error{Code: InvalidParameter, Param: param, Message: param + " " + fmt.Sprintf(format, args...)}
}

// unavailable makes a service_unavailable Error of what a dependency said.
func unavailable(err error) *Error {
	return &Error{Code: ServiceUnavailable, RetryAfter: retryOutage, Err: err}
}

const (
	// retryOutage, retryPlace and retryTwin are the Retry-After hints in seconds of a 503, a full concurrency cap and a busy
	// idempotency key; retryImage and retryVideo are those of a poll.
	retryOutage = 5
	retryPlace  = 2
	retryTwin   = 1
	retryImage  = 2
	retryVideo  = 5
)

// asError turns any error of the packages below into what the client sees.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	if param, ok := errors.AsType[*engine.ParamError](err); ok {
		return badParam(param.Param, "%s", param.Message)
	}
	for _, known := range []struct {
		err   error
		code  Code
		retry int
	}{
		{engine.ErrUnsupportedTool, UnsupportedTool, 0},
		{job.ErrNotFound, JobNotFound, 0},
		{job.ErrNotCancelable, NotCancelable, 0},
		{job.ErrConcurrency, ConcurrencyLimit, retryPlace},
		{job.ErrUploadNotFound, UploadNotFound, 0},
		{job.ErrUploadConsumed, UploadAlreadyConsumed, 0},
		{job.ErrUploadExpired, UploadExpired, 0},
		{job.ErrIdempotencyConflict, IdempotencyConflict, 0},
		{billing.ErrInsufficient, InsufficientCredits, 0},
	} {
		if errors.Is(err, known.err) {
			return &Error{Code: known.code, RetryAfter: known.retry}
		}
	}
	switch {
	case errors.Is(err, job.ErrIdempotencyBusy):
		return &Error{
			Code: IdempotencyConflict, RetryAfter: retryTwin,
			Message: "The first request with this Idempotency-Key is still under way. Retry shortly.",
		}
	case db.Unavailable(err), storage.Transient(err):
		return unavailable(err)
	}
	return &Error{Code: InternalError, Err: err}
}

// errorBody is the envelope of every error.
type errorBody struct {
	Error errorObject `json:"error"`
}

type errorObject struct {
	Code      Code   `json:"code" doc:"A stable string to branch on."`
	Message   string `json:"message" doc:"Human-readable; may change."`
	Type      string `json:"type" enum:"auth,billing,validation,processing,rate_limit,server" doc:"The broad category."`
	Param     string `json:"param,omitempty" doc:"The parameter at fault, such as config.scale."`
	RequestID string `json:"request_id,omitempty" doc:"The X-Request-Id of the response."`
}

// errorTable finds a code's line.
type errorTable map[Code]kind

func newErrorTable() errorTable {
	table := errorTable{}
	for _, k := range kinds() {
		table[k.code] = k
	}
	return table
}

// body is the envelope of e and its HTTP status. An unknown code is an internal_error, which a test rules out.
func (t errorTable) body(e *Error, requestID string) (int, errorBody) {
	k, ok := t[e.Code]
	if !ok {
		k = t[InternalError]
	}
	message := e.Message
	if message == "" {
		message = k.message
	}
	return k.status, errorBody{errorObject{Code: k.code, Message: message, Type: k.category, Param: e.Param, RequestID: requestID}}
}

// jobErrorKind is one line of the list of job errors.
type jobErrorKind struct {
	code engine.Code
	when string
}

// jobErrorKinds are the codes in `error` of a failed job, for the reference.
func jobErrorKinds() []jobErrorKind {
	return []jobErrorKind{
		{engine.ProcessingFailed, "The processing engine could not complete the task."},
		{engine.ProcessingTimeout, "The job exceeded the maximum processing time. Credits are refunded."},
		{engine.FileTooLarge, "A fetched source_url exceeded the size limit."},
		{engine.UnsupportedFormat, "The source has a type that does not match the tool."},
		{engine.SSRFBlocked, "The source_url resolved to a disallowed (private or internal) address."},
		{engine.InsufficientCredits, "The balance was consumed before the authoritative reservation."},
		{engine.UploadIncomplete, "The uploaded object is missing or incomplete: the file was not fully PUT before the job was created."},
		{engine.ResolutionLimitExceeded, "The output resolution exceeds the limit. Not charged."},
	}
}
