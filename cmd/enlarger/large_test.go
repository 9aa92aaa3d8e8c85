package main

import (
	"bufio"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"enlarger/faults"
	"enlarger/job"
	"enlarger/testbed"
)

// fleet is a fleet with files too large to be held in memory.
type fleet struct{ *faults.Fleet }

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestLargeFiles moves a 2 GB video and a 200 MiB picture through a fleet and holds its processes to their memory bounds. It writes
// some 10 GB to the disk and takes minutes, so it runs by `make test-large` only.
func TestLargeFiles(t *testing.T) {
	if os.Getenv("ENLARGER_LARGE") == "" {
		t.Skip("large files are tested by `make test-large`")
	}
	const mb = 1 << 20
	f := fleet{faults.New(t, 1, nil)}
	api := f.API(0)
	worker := f.Worker("worker")

	t.Run("over the limit", func(t *testing.T) {
		sent := &counter{limit: 1 << 30}
		request, err := http.NewRequest(http.MethodPost, api.URL+"/api/v1/jobs", sent)
		check(t, err)
		request.ContentLength = sent.limit
		request.Header.Set("Authorization", "Bearer "+f.Key())
		request.Header.Set("Content-Type", "multipart/form-data; boundary=x")
		request.Header.Set("Expect", "100-continue")
		response, err := (&http.Transport{ExpectContinueTimeout: 5 * time.Second}).RoundTrip(request)
		check(t, err)
		defer response.Body.Close()
		if response.StatusCode != http.StatusRequestEntityTooLarge || sent.n > 16*mb {
			t.Errorf("%s after %d MiB of %d", response.Status, sent.n/mb, sent.limit/mb)
		}
	})
	t.Run("200 MiB picture", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "noise.png")
		noisePicture(t, path, 5900, 5900)
		id := f.upload(t, path)
		j := f.waitFor(t, id)
		if j.Result.Width != 11800 || j.Result.Height != 11800 {
			t.Errorf("result %+v", j.Result)
		}
		t.Logf("after the picture: API peak %d MiB, worker peak %d MiB", peak(t, api.Process)/mb, peak(t, worker.Process)/mb)
	})
	t.Run("2 GB video", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "padded.mp4")
		paddedClip(t, path, f.Media("clip.mp4"), 2_000_000_000)
		id := f.putClip(t, path)
		if j := f.waitFor(t, id); j.Source.Size < 2_000_000_000 {
			t.Errorf("source of %d bytes", j.Source.Size)
		}
		t.Logf("after the video: API peak %d MiB, worker peak %d MiB", peak(t, api.Process)/mb, peak(t, worker.Process)/mb)
	})
	if rss := peak(t, api.Process); rss > 100*1000*1000 {
		t.Errorf("the API process took %d MB at its peak, promised below 100", rss/1000/1000)
	}
	if rss := peak(t, worker.Process); rss > 300*1000*1000 {
		t.Errorf("the worker process took %d MB at its peak, promised below 300", rss/1000/1000)
	}
	f.End()
}

// counter is an endless body that counts what is taken of it.
type counter struct{ n, limit int64 }

func (c *counter) Read(p []byte) (int, error) {
	if c.n >= c.limit {
		return 0, io.EOF
	}
	c.n += int64(len(p))
	return len(p), nil
}

// peak is the largest resident size that a process ever had, in bytes.
func peak(t *testing.T, p *testbed.Process) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	check(t, err)
	for line := range strings.SplitSeq(string(text), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			check(t, err)
			return kb * 1024
		}
	}
	t.Fatal("no VmHWM")
	return 0
}

// noisePicture writes a 16-bit RGB PNG that cannot be compressed.
func noisePicture(t *testing.T, path string, width, height int) {
	t.Helper()
	file, err := os.Create(path)
	check(t, err)
	defer file.Close()
	out := bufio.NewWriterSize(file, 1<<20)
	chunk := func(kind string, data []byte) {
		body := append([]byte(kind), data...)
		binary.Write(out, binary.BigEndian, uint32(len(data)))        //nolint:errcheck // Flush tells
		out.Write(body)                                               //nolint:errcheck // as above
		binary.Write(out, binary.BigEndian, crc32.ChecksumIEEE(body)) //nolint:errcheck // as above
	}
	out.WriteString("\x89PNG\r\n\x1a\n") //nolint:errcheck // as above
	header := binary.BigEndian.AppendUint32(nil, uint32(width))
	header = binary.BigEndian.AppendUint32(header, uint32(height))
	chunk("IHDR", append(header, 16, 2, 0, 0, 0))
	deflate, err := zlib.NewWriterLevel(writer(func(p []byte) { chunk("IDAT", p) }), zlib.NoCompression)
	check(t, err)
	noise := rand.NewChaCha8([32]byte{1})
	row := make([]byte, 1+6*width)
	for range height {
		noise.Read(row[1:]) //nolint:errcheck // never fails
		_, err := deflate.Write(row)
		check(t, err)
	}
	check(t, deflate.Close())
	chunk("IEND", nil)
	check(t, out.Flush())
}

type writer func([]byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

// paddedClip writes a clip followed by a `free` box that fills it up to size: a valid MP4 file, as sparse as the disk allows.
func paddedClip(t *testing.T, path string, clip []byte, size int64) {
	t.Helper()
	file, err := os.Create(path)
	check(t, err)
	defer file.Close()
	padding := uint32(size - int64(len(clip)))
	_, err = file.Write(append(binary.BigEndian.AppendUint32(clip, padding), "free"...))
	check(t, err)
	check(t, file.Truncate(size))
}

// upload submits a picture from a file by multipart, streamed.
func (f fleet) upload(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	check(t, err)
	defer file.Close()
	body, pipe := io.Pipe()
	form := multipart.NewWriter(pipe)
	go func() {
		part, err := form.CreateFormFile("image", "noise.png")
		if err == nil {
			_, err = io.Copy(part, file)
		}
		if err == nil {
			form.WriteField("tool", "upscale") //nolint:errcheck // the pipe's reader tells
			err = form.Close()
		}
		pipe.CloseWithError(err)
	}()
	id, err := f.Submit(faults.Request{ContentType: form.FormDataContentType(), Body: body, Patient: true})
	check(t, err)
	return id
}

// putClip submits a video from a file by the two-step upload, streamed.
func (f fleet) putClip(t *testing.T, path string) string {
	t.Helper()
	info, err := os.Stat(path)
	check(t, err)
	upload, address, err := f.OpenUpload(faults.Request{}, int(info.Size()))
	check(t, err)
	file, err := os.Open(path)
	check(t, err)
	defer file.Close()
	request, err := http.NewRequest(http.MethodPut, address, file)
	check(t, err)
	request.ContentLength = info.Size()
	request.Header.Set("Content-Type", "video/mp4")
	response, err := http.DefaultClient.Do(request)
	check(t, err)
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("put: %s", response.Status)
	}
	id, err := f.Submit(faults.Request{
		ContentType: "application/json", Body: strings.NewReader(fmt.Sprintf(`{"upload_id":%q,"tool":"video_upscale"}`, upload)),
	})
	check(t, err)
	return id
}

func (f fleet) waitFor(t *testing.T, id string) job.Job {
	t.Helper()
	testbed.Until(t, 10*time.Minute, "the end of the job", func() bool { return f.Job(id).Status.Terminal() })
	j := f.Job(id)
	if j.Status != job.Succeeded {
		t.Fatalf("job ended %s: %s %s", j.Status, j.ErrorCode, j.ErrorMessage)
	}
	return j
}
