package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"enlarger/engine/neural"
)

// settings is the whole configuration, from flags and environment. Every field has its default and its limit here.
type settings struct {
	Data      string `env:"ENLARGER_DATA" default:"data" placeholder:"DIR" help:"Directory for everything the all-in-one server keeps, and for workers' scratch files."`
	Listen    string `env:"ENLARGER_LISTEN" default:":8080" placeholder:"ADDR" help:"Address the API listens on."`
	PublicURL string `env:"ENLARGER_PUBLIC_URL" placeholder:"URL" help:"Base URL that clients reach the API by, without /api/v1. Default: http://localhost and the port of --listen."`

	Database string `env:"ENLARGER_DATABASE" placeholder:"URL" help:"postgres://... or sqlite:PATH. Default: an SQLite file in the data directory (serve only)."`
	DBConns  int    `env:"ENLARGER_DATABASE_CONNECTIONS" default:"0" help:"Most database connections of one process; 0 means 16 on PostgreSQL and 8 on SQLite."`
	Redis    string `env:"ENLARGER_REDIS" placeholder:"URL" help:"redis://, rediss:// or unix:// URL. Default: a Redis inside the process (serve only)."`

	S3Endpoint       string `env:"ENLARGER_S3_ENDPOINT" name:"s3-endpoint" placeholder:"URL" help:"Endpoint of the object storage (R2, MinIO, AWS ...). Default: a store on the local disk, at the API's own port (serve only)."`
	S3PublicEndpoint string `env:"ENLARGER_S3_PUBLIC_ENDPOINT" name:"s3-public-endpoint" placeholder:"URL" help:"Endpoint that presigned URLs carry, when clients reach the storage by another name than the servers."`
	S3Region         string `env:"ENLARGER_S3_REGION" name:"s3-region" default:"auto" help:"Region of the bucket."`
	S3Bucket         string `env:"ENLARGER_S3_BUCKET" name:"s3-bucket" default:"enlarger-media" help:"Bucket for sources and results."`
	S3AccessKey      string `env:"ENLARGER_S3_ACCESS_KEY" name:"s3-access-key" help:"Access key of the object storage."`
	S3SecretKey      string `env:"ENLARGER_S3_SECRET_KEY" name:"s3-secret-key" help:"Secret key of the object storage."`
	S3VirtualHost    bool   `env:"ENLARGER_S3_VIRTUAL_HOST" name:"s3-virtual-host" help:"Address the bucket as a host name instead of a path."`

	Pricing string `env:"ENLARGER_PRICING" placeholder:"FILE" help:"Price table (YAML). Default: the built-in one, billing/pricing.yaml."`

	RateLimit     int           `env:"ENLARGER_RATE_LIMIT" default:"600" help:"Requests a minute and API key."`
	MaxImageJobs  int           `env:"ENLARGER_MAX_IMAGE_JOBS" default:"50" help:"Image jobs an account may have in flight."`
	MaxVideoJobs  int           `env:"ENLARGER_MAX_VIDEO_JOBS" default:"10" help:"Video jobs an account may have in flight."`
	MaxImageBytes int64         `env:"ENLARGER_MAX_IMAGE_BYTES" default:"209715200" help:"Largest direct image upload in bytes."`
	MaxVideoBytes int64         `env:"ENLARGER_MAX_VIDEO_BYTES" default:"5261334937" help:"Largest video upload (single PUT) in bytes."`
	MaxFetchBytes int64         `env:"ENLARGER_MAX_FETCH_BYTES" default:"209715200" help:"Largest file fetched from a client's URL, in bytes."`
	MaxMegapixels int           `env:"ENLARGER_MAX_MEGAPIXELS" default:"200" help:"Largest image output in megapixels."`
	FetchPrivate  []string      `env:"ENLARGER_FETCH_ALLOW" placeholder:"CIDR" help:"Networks that client URLs may lead to although they are private (for intranets and tests)."`
	FetchPorts    []int         `env:"ENLARGER_FETCH_PORTS" placeholder:"PORT" help:"Ports that client URLs may name besides 80 and 443."`
	UploadLife    time.Duration `env:"ENLARGER_UPLOAD_LIFE" default:"24h" help:"How long an upload may be put and used, 1s to 168h."`
	KeepSources   time.Duration `env:"ENLARGER_KEEP_SOURCES" default:"24h" help:"How long a finished job's source is kept."`
	GeoHeader     string        `env:"ENLARGER_GEO_HEADER" help:"Trusted proxy header that holds the client's country code."`
	GeoBlocked    []string      `env:"ENLARGER_GEO_BLOCKED" help:"Country codes that are refused with geo_restricted."`
	Proxies       []string      `env:"ENLARGER_PROXIES" placeholder:"CIDR" help:"Networks of your reverse proxies: only their X-Forwarded-For and ENLARGER_GEO_HEADER are believed."`
	ResultURLLife time.Duration `env:"ENLARGER_RESULT_URL_LIFE" default:"24h" help:"How long a job's result_url is good for."`

	ImageSlots   int           `env:"ENLARGER_IMAGE_SLOTS" default:"0" help:"Image jobs a worker carries at the same time; 0 means the number of CPUs."`
	VideoSlots   int           `env:"ENLARGER_VIDEO_SLOTS" default:"1" help:"Video jobs a worker carries at the same time."`
	Memory       int64         `env:"ENLARGER_WORKER_MEMORY" default:"1073741824" help:"Bound on the estimated peak bytes of a worker's runs together."`
	WorkerName   string        `env:"ENLARGER_WORKER_NAME" help:"Name of this worker in job rows and logs. Default: host name and process id."`
	Lease        time.Duration `env:"ENLARGER_LEASE" default:"20s" help:"How long a silent worker keeps its job."`
	Heartbeat    time.Duration `env:"ENLARGER_HEARTBEAT" default:"5s" help:"How often a worker renews its lease."`
	Sweep        time.Duration `env:"ENLARGER_SWEEP" default:"5s" help:"How often lost jobs and wake-ups are looked for."`
	Grace        time.Duration `env:"ENLARGER_GRACE" default:"25s" help:"How long a stopping worker lets its jobs go on before it gives them back."`
	RetryBudget  int64         `env:"ENLARGER_RETRY_BUDGET" default:"3" help:"Failed runs after which a job fails for good."`
	ImageTimeout time.Duration `env:"ENLARGER_IMAGE_TIMEOUT" default:"15m" help:"Longest time an image may process."`
	VideoTimeout time.Duration `env:"ENLARGER_VIDEO_TIMEOUT" default:"24h" help:"Longest time a video may process; shorter videos have shorter limits."`

	Segment time.Duration `env:"ENLARGER_SEGMENT" default:"25s" help:"Long videos are cut into parts that take one processor core about this long, so that several workers share a video and a crash repeats one part; 0 carries every video whole."`
	HDR     string        `name:"hdr" env:"ENLARGER_HDR" default:"bt2446-c" enum:"bt2446-c,bt2446-a" help:"How video_hdr spreads light, by Report ITU-R BT.2446-1: bt2446-c leaves skin and mid-tones as bright as they were and takes white to 333 cd/m2; bt2446-a is vivid and takes white to 1000 cd/m2."`
	Threads int           `env:"ENLARGER_FFMPEG_THREADS" default:"0" help:"Threads that one run of ffmpeg may use; 0 means the number of CPUs."`

	FFmpeg      string `env:"ENLARGER_FFMPEG" default:"ffmpeg" placeholder:"PATH" help:"The ffmpeg program."`
	FFprobe     string `env:"ENLARGER_FFPROBE" default:"ffprobe" placeholder:"PATH" help:"The ffprobe program."`
	JPEGQuality int    `env:"ENLARGER_JPEG_QUALITY" default:"0" help:"Quality of jpg results, 1-100; 0 means the engine's default."`

	Neural        string `env:"ENLARGER_NEURAL" default:"auto" enum:"auto,cuda,off" help:"auto: workers run neural models on the CPU, and refuse to start without ONNX Runtime; cuda: on an NVIDIA GPU, with ONNX Runtime's GPU library; off: every tool uses its classical method."`
	ONNXRuntime   string `env:"ENLARGER_ONNXRUNTIME" name:"onnxruntime" placeholder:"PATH" help:"ONNX Runtime's library, libonnxruntime.so.1. Default: where make deps puts it, or /usr/local/lib or /usr/lib."`
	Models        string `env:"ENLARGER_MODELS" placeholder:"DIR" help:"Folder of your own models with their manifests, used before the shipped ones; see docs/models.md."`
	NeuralThreads int    `env:"ENLARGER_NEURAL_THREADS" default:"0" help:"Threads that neural models compute on, for all jobs of a worker together; 0 means the number of CPUs."`

	AuditEvery time.Duration `env:"ENLARGER_AUDIT_EVERY" default:"24h" help:"How often one process of the fleet checks the books by itself and logs rows that do not agree; 0 is never. The first time is after a random part of it."`
	Metrics    string        `env:"ENLARGER_METRICS_ADDRESS" name:"metrics-address" placeholder:"ADDR" help:"Address for Prometheus, such as 127.0.0.1:9100: GET /metrics. It asks nobody for a key, so keep it where only operators reach it. Default: off."`

	ModelServer        string        `env:"ENLARGER_MODEL_SERVER" placeholder:"URL" help:"Server of a generative model that edits images as a custom prompt says (docs/model-server.md). Default: none; prompts are carried out by the engine's own operations or fail."`
	ModelServerToken   string        `env:"ENLARGER_MODEL_SERVER_TOKEN" help:"Bearer token for the model server."`
	ModelServerTimeout time.Duration `env:"ENLARGER_MODEL_SERVER_TIMEOUT" default:"2m" help:"How long the model server may take for one image, 1s to 1h."`

	LogLevel  string `env:"ENLARGER_LOG_LEVEL" default:"info" enum:"debug,info,warn,error" help:"debug, info, warn or error."`
	LogFormat string `env:"ENLARGER_LOG_FORMAT" default:"auto" enum:"auto,json,text" help:"json, text, or auto: text on a terminal."`
}

// publicURL is the base URL that clients use.
func (s *settings) publicURL() (string, error) {
	if s.PublicURL != "" {
		u, err := url.Parse(s.PublicURL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return "", fmt.Errorf("%w: ENLARGER_PUBLIC_URL must be like https://api.example.com", errUsage)
		}
		return strings.TrimSuffix(s.PublicURL, "/"), nil
	}
	host, port, err := net.SplitHostPort(s.Listen)
	if err != nil {
		return "", fmt.Errorf("%w: ENLARGER_LISTEN must be like :8080 or 127.0.0.1:8080", errUsage)
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port), nil
}

// check refuses settings that cannot work, all at once.
func (s *settings) check() error {
	var faults []error
	positive := map[string]int64{
		"ENLARGER_RATE_LIMIT": int64(s.RateLimit), "ENLARGER_MAX_IMAGE_JOBS": int64(s.MaxImageJobs), "ENLARGER_MAX_VIDEO_JOBS": int64(s.MaxVideoJobs),
		"ENLARGER_MAX_IMAGE_BYTES": s.MaxImageBytes, "ENLARGER_MAX_VIDEO_BYTES": s.MaxVideoBytes, "ENLARGER_MAX_FETCH_BYTES": s.MaxFetchBytes,
		"ENLARGER_MAX_MEGAPIXELS": int64(s.MaxMegapixels), "ENLARGER_WORKER_MEMORY": s.Memory, "ENLARGER_RETRY_BUDGET": s.RetryBudget,
		"ENLARGER_LEASE": int64(s.Lease), "ENLARGER_HEARTBEAT": int64(s.Heartbeat), "ENLARGER_SWEEP": int64(s.Sweep), "ENLARGER_GRACE": int64(s.Grace),
		"ENLARGER_VIDEO_SLOTS": int64(s.VideoSlots),
	}
	for name, value := range positive {
		if value <= 0 {
			faults = append(faults, fmt.Errorf("%s must be greater than 0", name))
		}
	}
	if s.Lease < 2*s.Heartbeat {
		faults = append(faults, fmt.Errorf("ENLARGER_LEASE (%v) must be at least two heartbeats (ENLARGER_HEARTBEAT, %v)", s.Lease, s.Heartbeat))
	}
	if s.Segment != 0 && (s.Segment < 10*time.Millisecond || s.Segment > time.Hour) {
		faults = append(faults, errors.New("ENLARGER_SEGMENT must be 0, or 10ms to 1h"))
	}
	if s.Threads < 0 || s.Threads > 256 {
		faults = append(faults, errors.New("ENLARGER_FFMPEG_THREADS must be 0 to 256"))
	}
	if s.AuditEvery < 0 {
		faults = append(faults, errors.New("ENLARGER_AUDIT_EVERY must not be negative"))
	}
	const week = 7 * 24 * time.Hour // no signed URL lives longer
	if s.UploadLife < time.Second || s.UploadLife > week {
		faults = append(faults, fmt.Errorf("ENLARGER_UPLOAD_LIFE must be 1s to 168h"))
	}
	if s.ModelServerTimeout < time.Second || s.ModelServerTimeout > time.Hour {
		faults = append(faults, fmt.Errorf("ENLARGER_MODEL_SERVER_TIMEOUT must be 1s to 1h"))
	}
	if s.JPEGQuality < 0 || s.JPEGQuality > 100 {
		faults = append(faults, fmt.Errorf("ENLARGER_JPEG_QUALITY must be 1 to 100"))
	}
	if s.NeuralThreads < 0 || s.NeuralThreads > neural.ThreadsMost {
		faults = append(faults, fmt.Errorf("ENLARGER_NEURAL_THREADS must be 0 to %d", neural.ThreadsMost))
	}
	if len(faults) > 0 {
		return fmt.Errorf("%w: %w", errUsage, errors.Join(faults...))
	}
	return nil
}

// fleet demands the services that a fleet's processes share.
func (s *settings) fleet(command string) error {
	var missing []string
	for _, need := range []struct{ name, value, example string }{
		{"ENLARGER_DATABASE", s.Database, "postgres://user:password@host/enlarger"},
		{"ENLARGER_REDIS", s.Redis, "redis://host:6379/0"},
		{"ENLARGER_S3_ENDPOINT", s.S3Endpoint, "https://<account>.r2.cloudflarestorage.com"},
		{"ENLARGER_S3_ACCESS_KEY", s.S3AccessKey, "..."},
		{"ENLARGER_S3_SECRET_KEY", s.S3SecretKey, "..."},
	} {
		if need.value == "" {
			missing = append(missing, fmt.Sprintf("  %s, for example %s", need.name, need.example))
		}
	}
	if strings.HasPrefix(s.Database, "sqlite:") {
		missing = append(missing, "  ENLARGER_DATABASE must be PostgreSQL: an SQLite file cannot be shared by processes of a fleet")
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: `enlarger %s` is a process of a fleet and needs\n%s\nSee docs/running-a-fleet.md; `enlarger serve` needs none of these", errUsage, command, strings.Join(missing, "\n"))
	}
	return s.check()
}

func (s *settings) database() string {
	if s.Database != "" {
		return s.Database
	}
	return "sqlite:" + filepath.Join(s.Data, "enlarger.db")
}

func (s *settings) workerName() string {
	if s.WorkerName != "" {
		return s.WorkerName
	}
	host, err := os.Hostname()
	if err != nil {
		host = "worker"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

func (s *settings) imageSlots() int {
	if s.ImageSlots > 0 {
		return s.ImageSlots
	}
	return runtime.NumCPU()
}

func newLog(level, format string, to io.Writer) (*zap.Logger, error) {
	at, err := zapcore.ParseLevel(level)
	if err != nil {
		return nil, fmt.Errorf("%w: ENLARGER_LOG_LEVEL: %w", errUsage, err)
	}
	terminal := false
	if f, ok := to.(*os.File); ok {
		terminal = term.IsTerminal(int(f.Fd()))
	}
	encoding := zap.NewProductionEncoderConfig()
	encoding.EncodeTime = zapcore.RFC3339TimeEncoder
	encoding.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(encoding)
	if format == "text" || (format == "auto" && terminal) {
		encoder = zapcore.NewConsoleEncoder(encoding)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(to)), at)), nil
}
