package engine

import (
	"errors"
	"fmt"
)

// Code is a stable job error code of the API document.
type Code string

// The job error codes.
const (
	ProcessingFailed        Code = "processing_failed"
	ProcessingTimeout       Code = "processing_timeout"
	FileTooLarge            Code = "file_too_large"
	UnsupportedFormat       Code = "unsupported_format"
	SSRFBlocked             Code = "ssrf_blocked"
	InsufficientCredits     Code = "insufficient_credits"
	UploadIncomplete        Code = "upload_incomplete"
	ResolutionLimitExceeded Code = "resolution_limit_exceeded"
)

// Type is the broad category of a job error code in the API's error object.
func (c Code) Type() string {
	switch c {
	case InsufficientCredits:
		return "billing"
	case ProcessingFailed, ProcessingTimeout:
		return "processing"
	}
	return "validation"
}

// Failure is the only error of a job that a client ever sees. Message is for the client: it names no path, no command and no
// inner error. Err is for the operator's log and may be nil.
type Failure struct {
	Code    Code
	Message string
	Err     error
}

func (f *Failure) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %s: %v", f.Code, f.Message, f.Err)
	}
	return fmt.Sprintf("%s: %s", f.Code, f.Message)
}

func (f *Failure) Unwrap() error { return f.Err }

// Failf makes a Failure with a message for the client.
func Failf(code Code, format string, args ...any) *Failure {
	return &Failure{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Because adds the inner cause, for the log only.
func (f *Failure) Because(err error) *Failure {
	return &Failure{Code: f.Code, Message: f.Message, Err: err}
}

// AsFailure finds the Failure in an error's chain.
func AsFailure(err error) (*Failure, bool) {
	var f *Failure
	ok := errors.As(err, &f)
	return f, ok
}
