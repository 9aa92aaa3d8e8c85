package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"

	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
)

var (
	// ErrNotFound says that the object, or the bucket, does not exist.
	ErrNotFound = errors.New("not found in storage")
	// ErrTooLarge says that a body is larger than the limit given for it.
	ErrTooLarge = errors.New("larger than the limit")
	// ErrBadURL says that a client's URL is malformed: the client's mistake, visible without touching the network.
	ErrBadURL = errors.New("malformed URL")
	// ErrBlocked says that a client's URL leads to an address, port or scheme that must not be reached.
	ErrBlocked = errors.New("URL leads to a blocked address")
	// ErrFetch says that a client's URL could not be fetched; see ClientMessage for the words a client may read.
	ErrFetch = errors.New("URL could not be fetched")
	// errStalled says that a peer moved no bytes, or too few, for too long.
	errStalled = errors.New("transfer stalled")
	// errBodySize says that a body has fewer or more bytes than its sender declared.
	errBodySize = errors.New("body does not have the declared size")
)

// partialError is one key's refusal inside a batch that as a whole succeeded.
type partialError struct{ code, message string }

func (e *partialError) Error() string        { return e.code + ": " + e.message }
func (e *partialError) ErrorCode() string    { return e.code }
func (e *partialError) ErrorMessage() string { return e.message }
func (e *partialError) ErrorFault() smithy.ErrorFault {
	return smithy.FaultUnknown
}

// fail names the operation and the key, and turns the service's 404 into ErrNotFound. A nil error stays nil.
func (s *Store) fail(operation, key string, err error) error {
	if err == nil {
		return nil
	}
	if key != "" {
		operation += " " + key
	}
	if response, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		switch response.HTTPStatusCode() {
		case http.StatusNotFound:
			return fmt.Errorf("%s: %w", operation, errors.Join(ErrNotFound, err))
		case http.StatusRequestEntityTooLarge:
			return fmt.Errorf("%s: %w", operation, errors.Join(ErrTooLarge, err))
		}
	}
	var api smithy.APIError
	if errors.As(err, &api) && api.ErrorCode() == "EntityTooLarge" {
		return fmt.Errorf("%s: %w", operation, errors.Join(ErrTooLarge, err))
	}
	return fmt.Errorf("%s: %w", operation, err)
}

// Transient reports whether the same call may well succeed later: a 5xx or throttling answer, a timeout, a
// connection that failed or broke. A cancelled context is not transient: nobody waits for the answer any more.
func Transient(err error) bool {
	var fetch *fetchError
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case errors.As(err, &fetch):
		return fetch.transient
	case errors.Is(err, ErrNotFound), errors.Is(err, ErrTooLarge), errors.Is(err, ErrBlocked), errors.Is(err, ErrBadURL),
		errors.Is(err, errBodySize):
		return false
	case errors.Is(err, errStalled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return true
	}
	var response *awshttp.ResponseError
	if errors.As(err, &response) && response.HTTPStatusCode() >= http.StatusBadRequest {
		return transientStatus(response.HTTPStatusCode()) || transientCode(err)
	}
	return transientCode(err) || brokenConnection(err)
}

// transientCode reads the service's own words: some throttle with a 400, or inside a 200.
func transientCode(err error) bool {
	var api smithy.APIError
	if !errors.As(err, &api) {
		return false
	}
	switch code := api.ErrorCode(); code {
	case "RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "OperationAborted", "TooManyRequests":
		return true
	default:
		return strings.HasPrefix(code, "Throttl")
	}
}

func transientStatus(status int) bool {
	return status >= 500 && status != http.StatusNotImplemented ||
		status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

// brokenConnection tells the network's faults from those of the local disk, which share error numbers.
func brokenConnection(err error) bool {
	if _, local := errors.AsType[*fs.PathError](err); local {
		return false
	}
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed)
}
