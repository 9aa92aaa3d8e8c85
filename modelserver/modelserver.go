// Package modelserver asks an operator's generative model, over HTTP, to edit a picture as a prompt says. It hides the request's form, how long to wait,
// what to try again and how much to take; docs/model-server.md is its contract with whoever writes such a server. The address is the
// operator's own, so it may be a private one; redirects are not followed, so it stays that one.
package modelserver

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Config is where the server is and how patiently it is asked.
type Config struct {
	// URL takes the requests: http or https. Token, when not empty, is sent as a bearer token.
	URL, Token string
	// Timeout bounds one attempt, from connecting to the last byte; by default 2 minutes, at most 1 hour.
	Timeout time.Duration
	// Attempts is how often a request is sent when the server cannot be reached, answers 429 or 5xx, or breaks off; by default 3, at most 10.
	Attempts int
	// Delay is the pause before the second attempt; it doubles for each one after it; by default 1 second.
	Delay time.Duration
	// MostBytes bounds an answer; by default 64 MiB.
	MostBytes int64
}

// Client asks one server. It may be used by many goroutines at once.
type Client struct {
	config Config
	http   *http.Client
}

// Refused is an answer by which the server will not do what was asked, however often it is asked. Message is for the client.
type Refused struct {
	Status  int
	Message string
}

func (r *Refused) Error() string {
	return fmt.Sprintf("model server refused (%d): %s", r.Status, r.Message)
}

// Open checks the configuration. It connects to nothing.
func Open(c Config) (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, errors.New("the model server's URL must be like http://127.0.0.1:9000/edit")
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Minute
	}
	if c.Attempts == 0 {
		c.Attempts = 3
	}
	if c.Delay == 0 {
		c.Delay = time.Second
	}
	if c.MostBytes == 0 {
		c.MostBytes = 64 << 20
	}
	if c.Timeout < 0 || c.Timeout > time.Hour || c.Attempts < 1 || c.Attempts > 10 || c.Delay < 0 || c.MostBytes < 1 {
		return nil, errors.New("the model server's timeout must be 1ns to 1h, its attempts 1 to 10")
	}
	return &Client{config: c, http: &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Request is one edit.
type Request struct {
	Prompt string
	// Image is the path of a PNG of Width x Height pixels; Output, which must not exist, is where the answer is written.
	Image, Output string
	Width, Height int
}

// errAgain marks what is worth another attempt. after is how long the server asked to wait.
type errAgain struct {
	err   error
	after time.Duration
}

func (e *errAgain) Error() string { return e.err.Error() }
func (e *errAgain) Unwrap() error { return e.err }

// Edit sends the request until it is answered, and writes the answer's bytes, whatever they are. The error is a *Refused when the server says no.
func (c *Client) Edit(ctx context.Context, r Request) error {
	key := rand.Text() // the same for every attempt, so that a server need not do the work twice
	for attempt := 1; ; attempt++ {
		err := c.attempt(ctx, r, key)
		var again *errAgain
		if err == nil || !errors.As(err, &again) || ctx.Err() != nil {
			return err
		}
		if attempt == c.config.Attempts {
			return fmt.Errorf("model server, after %d attempts: %w", attempt, again.err)
		}
		const longest = 30 * time.Second
		wait := min(max(c.config.Delay<<(attempt-1), again.after), longest)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// attempt sends the request once.
func (c *Client) attempt(ctx context.Context, r Request, key string) error {
	ctx, stop := context.WithTimeout(ctx, c.config.Timeout)
	defer stop()
	image, err := os.Open(r.Image)
	if err != nil {
		return fmt.Errorf("model server: %w", err)
	}
	defer func() { _ = image.Close() }()
	req, err := c.request(ctx, r, image)
	if err != nil {
		return fmt.Errorf("model server: %w", err)
	}
	req.Header.Set("Idempotency-Key", key)
	resp, err := c.http.Do(req)
	if err != nil {
		return &errAgain{err: fmt.Errorf("ask: %w", err)}
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return refusal(resp)
	}
	if resp.ContentLength > c.config.MostBytes {
		return fmt.Errorf("model server: answer has %d bytes, the limit is %d", resp.ContentLength, c.config.MostBytes)
	}
	return c.store(resp.Body, r.Output)
}

// request builds the multipart form around the image, which is streamed.
func (c *Client) request(ctx context.Context, r Request, image *os.File) (*http.Request, error) {
	info, err := image.Stat()
	if err != nil {
		return nil, err
	}
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	for _, field := range [][2]string{{"prompt", r.Prompt}, {"width", strconv.Itoa(r.Width)}, {"height", strconv.Itoa(r.Height)}} {
		if err := w.WriteField(field[0], field[1]); err != nil {
			return nil, err
		}
	}
	header := textproto.MIMEHeader{}
	header.Set("Content-Disposition", `form-data; name="image"; filename="source.png"`)
	header.Set("Content-Type", "image/png")
	if _, err := w.CreatePart(header); err != nil {
		return nil, err
	}
	before := form.Len()
	if err := w.Close(); err != nil {
		return nil, err
	}
	body := io.MultiReader(bytes.NewReader(form.Bytes()[:before]), image, bytes.NewReader(form.Bytes()[before:]))
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.config.URL, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = int64(form.Len()) + info.Size()
	req.Header.Set("Content-Type", w.FormDataContentType())
	req.Header.Set("Accept", "image/png, image/jpeg, image/webp")
	req.Header.Set("User-Agent", "enlarger")
	if c.config.Token != "" {
		req.Header.Set("Authorization", "Bearer "+c.config.Token)
	}
	return req, nil
}

// store writes an answer of no more than the bytes allowed. What breaks off is removed, and worth another attempt.
func (c *Client) store(body io.Reader, path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("model server: %w", err)
	}
	n, err := io.Copy(f, io.LimitReader(body, c.config.MostBytes+1))
	err = errors.Join(err, f.Close())
	switch {
	case err != nil:
		err = &errAgain{err: fmt.Errorf("take answer: %w", err)}
	case n > c.config.MostBytes:
		err = fmt.Errorf("model server: answer is larger than %d bytes", c.config.MostBytes)
	case n == 0:
		err = &errAgain{err: errors.New("answer is empty")}
	}
	if err != nil {
		_ = os.Remove(path)
	}
	return err
}

// refusal says what an answer other than 200 means.
func refusal(resp *http.Response) error {
	const mostText = 4 << 10
	text, _ := io.ReadAll(io.LimitReader(resp.Body, mostText)) // without its text the status still says enough
	err := fmt.Errorf("model server answered %s: %.300q", resp.Status, text)
	switch {
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		const longest = 3600
		return &errAgain{err: err, after: time.Duration(min(max(seconds, 0), longest)) * time.Second}
	case resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusUnprocessableEntity || resp.StatusCode == http.StatusUnavailableForLegalReasons:
		return &Refused{Status: resp.StatusCode, Message: messageOf(text)}
	}
	return err // a redirect, a wrong token, a wrong path: for the operator
}

// messageOf finds the sentence for the client in {"error": {"message": "..."}} or {"error": "..."}; without one there is none.
func messageOf(text []byte) string {
	var wrapped struct {
		Error json.RawMessage `json:"error"`
	}
	if json.Unmarshal(text, &wrapped) != nil {
		return ""
	}
	var inner struct {
		Message string `json:"message"`
	}
	message := ""
	if json.Unmarshal(wrapped.Error, &inner) == nil {
		message = inner.Message
	} else if json.Unmarshal(wrapped.Error, &message) != nil {
		return ""
	}
	const most = 300
	clean := strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, message)
	return string([]rune(clean)[:min(len([]rune(clean)), most)])
}
