package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/jpeg"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"strings"
	"sync"
	"time"

	"enlarger/testbed"
)

// requestTime bounds one request of a test's client: a fault may leave it without an answer.
const requestTime = 20 * time.Second

// Request is one request to the API; the zero value of a field means nothing special.
type Request struct {
	// API is the number of the API process, modulo their number.
	API          int
	Method, Path string
	ContentType  string
	Body         io.Reader
	// Account sends it; default the fleet's.
	Account string
	// Key is the Idempotency-Key.
	Key string
	// Patient lets the request take as long as it needs.
	Patient bool
}

// Do sends a request and decodes its JSON answer. Status 0 means that there was none; the answer then says why.
func (f *Fleet) Do(r Request) (status int, answer map[string]any, header http.Header) {
	node := f.apis[r.API%len(f.apis)]
	request, err := http.NewRequestWithContext(f.Context(), r.Method, node.URL+"/api/v1"+r.Path, r.Body)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}, nil
	}
	request.Header.Set("Authorization", "Bearer "+f.secret(r.Account))
	if r.Key != "" {
		request.Header.Set("Idempotency-Key", r.Key)
	}
	if r.ContentType != "" {
		request.Header.Set("Content-Type", r.ContentType)
	}
	client := http.Client{Timeout: requestTime}
	if r.Patient {
		client.Timeout = 0
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, map[string]any{"error": err.Error()}, nil
	}
	defer response.Body.Close()
	answer = map[string]any{}
	if err := json.NewDecoder(io.LimitReader(response.Body, 1<<20)).Decode(&answer); err != nil {
		answer["error"] = err.Error()
	}
	return response.StatusCode, answer, response.Header
}

// API is API process n.
func (f *Fleet) API(n int) *Node { return f.apis[n] }

// Key is the API key of the fleet's account.
func (f *Fleet) Key() string { return f.secret("") }

func (f *Fleet) secret(account string) string {
	if account == "" {
		account = f.Account
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.secrets[account]
}

// Photo submits an image by multipart.
func (f *Fleet) Photo(r Request, picture []byte) (id string, err error) {
	var body bytes.Buffer
	form := multipart.NewWriter(&body)
	part, err := form.CreateFormFile("image", "photo.jpg")
	if err == nil {
		_, err = part.Write(picture)
	}
	if err != nil {
		return "", err
	}
	err = errors.Join(form.WriteField("tool", "upscale"), form.WriteField("config", `{"scale":2}`), form.Close())
	if err != nil {
		return "", err
	}
	r.ContentType, r.Body = form.FormDataContentType(), &body
	return f.Submit(r)
}

// Upload puts a clip and gives its upload_id.
func (f *Fleet) Upload(r Request, clip []byte) (id string, err error) {
	id, address, err := f.OpenUpload(r, len(clip))
	if err != nil {
		return "", err
	}
	return id, put(f, address, clip)
}

// OpenUpload asks for an upload of a size and puts nothing.
func (f *Fleet) OpenUpload(r Request, size int) (id, address string, err error) {
	r.Method, r.Path, r.ContentType = http.MethodPost, "/uploads", "application/json"
	r.Body = strings.NewReader(fmt.Sprintf(`{"file_name":"clip.mp4","file_size":%d}`, size))
	if r.Key != "" {
		r.Key += "-upload"
	}
	status, answer, _ := f.Do(r)
	id, _ = answer["upload_id"].(string)
	address, _ = answer["put_url"].(string)
	if status != http.StatusCreated || id == "" {
		return "", "", fmt.Errorf("upload: %d %v", status, answer)
	}
	return id, address, nil
}

func put(f *Fleet, address string, clip []byte) error {
	request, err := http.NewRequestWithContext(f.Context(), http.MethodPut, address, bytes.NewReader(clip))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "video/mp4")
	client := http.Client{Timeout: requestTime}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("put: %s", response.Status)
	}
	return nil
}

// Clip submits a video by the two-step upload, to be doubled.
func (f *Fleet) Clip(r Request, clip []byte) (id string, err error) {
	upload, err := f.Upload(r, clip)
	if err != nil {
		return "", err
	}
	return f.Uploaded(r, upload)
}

// Uploaded submits a video that was uploaded.
func (f *Fleet) Uploaded(r Request, upload string) (id string, err error) {
	r.ContentType = "application/json"
	r.Body = strings.NewReader(fmt.Sprintf(`{"upload_id":%q,"tool":"video_upscale","config":{"scale":2}}`, upload))
	return f.Submit(r)
}

// Submit sends a prepared request for a job. An accepted job is looked after until the End.
func (f *Fleet) Submit(r Request) (id string, err error) {
	r.Method, r.Path = http.MethodPost, "/jobs"
	status, answer, _ := f.Do(r)
	id, _ = answer["job_id"].(string)
	if status != http.StatusAccepted || id == "" {
		return "", fmt.Errorf("submit: %d %v", status, answer)
	}
	if r.Account == "" {
		r.Account = f.Account
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accepted[id] = r.Account
	return id, nil
}

// MustPhoto and MustClip submit a small picture and a clip of two seconds.
func (f *Fleet) MustPhoto() string {
	f.Helper()
	id, err := f.Photo(Request{}, Picture(64, 48))
	f.check(err)
	return id
}

// MustClip submits a clip of two seconds.
func (f *Fleet) MustClip() string {
	f.Helper()
	id, err := f.Clip(Request{}, f.Media("clip.mp4"))
	f.check(err)
	return id
}

// Retry repeats a submission with its idempotency key until it is accepted, as a client does that wants its job.
func (f *Fleet) Retry(submit func() (string, error)) string {
	f.Helper()
	var id string
	var err error
	testbed.Until(f.T, time.Minute, "a submission to be accepted", func() bool {
		id, err = submit()
		return err == nil
	})
	return id
}

// Cancel cancels a job and gives the status of the answer.
func (f *Fleet) Cancel(id string) (int, map[string]any) {
	status, answer, _ := f.Do(Request{Method: http.MethodPost, Path: "/jobs/" + id + "/cancel", Account: f.owner(id)})
	return status, answer
}

func (f *Fleet) owner(id string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.accepted[id]
}

// Credits asks for an account's credits.
func (f *Fleet) Credits(account string) (balance, frozen, used float64) {
	f.Helper()
	status, answer, _ := f.Do(Request{Method: http.MethodGet, Path: "/credits", Account: account})
	if status != http.StatusOK {
		f.Fatalf("credits: %d %v", status, answer)
	}
	number := func(name string) float64 { n, _ := answer[name].(float64); return n }
	return number("balance"), number("frozen"), number("used")
}

// Download fetches a job's result the way the document says.
func (f *Fleet) Download(id string) ([]byte, error) {
	request, err := http.NewRequestWithContext(f.Context(), http.MethodGet, f.apis[0].URL+"/api/v1/jobs/"+id+"/result", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+f.secret(f.owner(id)))
	client := http.Client{Timeout: requestTime}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, 1<<30))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return data, err
}

// Picture makes a JPEG of a size.
func Picture(width, height int) []byte {
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for y := range height {
		for x := range width {
			img.SetRGBA(x, y, color.RGBA{R: uint8(255 * x / width), G: uint8(255 * y / height), B: uint8(x ^ y), A: 255})
		}
	}
	var out bytes.Buffer
	_ = jpeg.Encode(&out, img, nil) // a buffer takes everything
	return out.Bytes()
}

// Noise makes a JPEG of a size that does not become small.
func Noise(width, height int) []byte {
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	random := rand.New(rand.NewPCG(1, 2))
	for i := range img.Pix {
		img.Pix[i] = uint8(random.Uint32())
	}
	var out bytes.Buffer
	_ = jpeg.Encode(&out, img, &jpeg.Options{Quality: 60}) // as above
	return out.Bytes()
}

// Crowd runs do n times, up to 16 at a time, and waits for all.
func Crowd(n int, do func(i int)) {
	const together = 16
	var all sync.WaitGroup
	places := make(chan struct{}, together)
	for i := range n {
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			do(i)
		})
	}
	all.Wait()
}

// Accept looks after a job whose acceptance the test saw itself.
func (f *Fleet) Accept(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.accepted[id] = f.Account
}

// PutHalf puts half of a clip and then breaks the connection.
func (f *Fleet) PutHalf(address string, clip []byte) {
	f.Helper()
	body, pipe := io.Pipe()
	request, err := http.NewRequestWithContext(f.Context(), http.MethodPut, address, body)
	f.check(err)
	request.ContentLength = int64(len(clip))
	request.Header.Set("Content-Type", "video/mp4")
	go func() {
		_, err := pipe.Write(clip[:len(clip)/2])
		pipe.CloseWithError(errors.Join(err, io.ErrUnexpectedEOF))
	}()
	client := http.Client{Timeout: requestTime}
	if response, err := client.Do(request); err == nil {
		response.Body.Close()
		f.Errorf("half an upload was answered %s", response.Status)
	}
}
