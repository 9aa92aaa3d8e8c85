// Package neural runs neural nets on pictures. It hides ONNX Runtime and everything about a single net that its manifest tells:
// how samples become tensors and tensors samples, how large a piece it takes at a time, and how pieces are cut and joined so that
// memory is bounded and no seam shows. Nets are ours, shipped in this package, or an operator's, in a folder; both are
// loaded and tried when the runtime is opened, so that a broken one is found before the first job.
package neural

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	ort "github.com/yalue/onnxruntime_go"
)

// Version is the version of ONNX Runtime that this package is measured with.
const Version = "1.30.0"

// libraryName is what the library's file is called on Linux.
const libraryName = "libonnxruntime.so.1"

// shipped holds our own models: NAME.json, NAME.onnx, and a card for people.
//
//go:embed models
var shipped embed.FS

// environment guards ONNX Runtime's environment, of which there can be one in a process. It is made once and stays: a library
// that has started threads cannot be unloaded safely.
var environment struct {
	sync.Mutex
	library string
}

// Config is what a Runtime is made of.
type Config struct {
	// Library is the path of ONNX Runtime's shared library; see FindLibrary.
	Library string
	// Threads is how many threads compute at the same time, for all pictures together; by default the number of processors.
	Threads int
	// Models is a folder of manifests and models of the operator's; empty for none.
	Models string
	// CUDA runs the models on the first NVIDIA GPU, which needs ONNX Runtime's library for GPUs; Open fails where that is not so.
	CUDA bool
	// Thread is called at the start of every goroutine and before every thread that computes, and may lower its priority: on
	// Linux the threads of ONNX Runtime inherit it. May be nil.
	Thread func()

	// shipped replaces our own models in tests.
	shipped fs.FS
}

// Limits of a models folder.
const (
	modelsMost    = 64      // manifests
	modelSizeMost = 2 << 30 // bytes of one model; ONNX itself ends there
)

// ThreadsMost is the most threads a Runtime can have.
const ThreadsMost = 256

// ErrClosed is returned by runs on a closed Runtime.
var ErrClosed = errors.New("the neural runtime is closed")

// Runtime holds the loaded models and the threads they run on. It is safe for concurrent use.
type Runtime struct {
	threads int
	models  []*Model

	// work is taken by the threads; a sender that waits is served in turn, so that pictures share the threads fairly.
	work    chan func(*scratch)
	closing chan struct{}
	close   sync.Once
	group   sync.WaitGroup
}

// FindLibrary gives the path of ONNX Runtime's library: the configured one, or else the first of where `make deps` and packages
// of the system put it. The error names the places.
func FindLibrary(configured string) (string, error) {
	places := []string{configured}
	if configured == "" {
		places = []string{"/usr/local/lib/" + libraryName, "/usr/lib/" + libraryName}
		if program, err := os.Executable(); err == nil {
			if program, err = filepath.EvalSymlinks(program); err == nil {
				beside := filepath.Join(filepath.Dir(program), "..", ".deps", "onnxruntime-"+Version, libraryName)
				places = append([]string{beside}, places...)
			}
		}
	}
	for _, path := range places {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("ONNX Runtime is not there: no file %s", strings.Join(places, ", none "))
}

// Open loads the library and all models and tries each. An error says which file is at fault and why. Close the Runtime.
func Open(ctx context.Context, c Config) (*Runtime, error) {
	if c.Threads == 0 {
		c.Threads = runtime.NumCPU()
	}
	if c.Threads < 1 || c.Threads > ThreadsMost {
		return nil, fmt.Errorf("neural threads must be 1 to %d, not %d", ThreadsMost, c.Threads)
	}
	if c.Thread == nil {
		c.Thread = func() {}
	}
	if c.shipped == nil {
		var err error
		if c.shipped, err = fs.Sub(shipped, "models"); err != nil {
			return nil, fmt.Errorf("shipped models: %w", err)
		}
	}
	if err := openEnvironment(c.Library); err != nil {
		return nil, err
	}
	r := &Runtime{threads: c.Threads, work: make(chan func(*scratch)), closing: make(chan struct{})}
	for range c.Threads {
		r.group.Go(func() {
			c.Thread()
			r.compute()
		})
	}
	if err := r.load(ctx, c); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

func openEnvironment(library string) error {
	environment.Lock()
	defer environment.Unlock()
	if environment.library != "" {
		return nil // a second library would be a second environment, which there cannot be
	}
	ort.SetSharedLibraryPath(library)
	// Its warnings are about graphs, for those who make them; what fails, or is cancelled, comes back as an error and need not be logged.
	if err := ort.InitializeEnvironment(ort.WithLogLevelFatal()); err != nil {
		return fmt.Errorf("load ONNX Runtime from %s: %w", library, err)
	}
	environment.library = library
	return nil
}

// compute runs pieces of work until the Runtime is closed.
func (r *Runtime) compute() {
	var memory scratch
	for {
		select {
		case <-r.closing:
			return
		case piece := <-r.work:
			piece(&memory)
		}
	}
}

// Close ends the threads and frees the models. Runs must have ended.
func (r *Runtime) Close() {
	r.close.Do(func() {
		close(r.closing)
		r.group.Wait()
		for _, m := range r.models {
			m.destroy()
		}
	})
}

// Threads is how many threads compute at the same time.
func (r *Runtime) Threads() int { return r.threads }

// Models are all loaded models, the operator's first. A nil Runtime has none.
func (r *Runtime) Models() []*Model {
	if r == nil {
		return nil
	}
	return slices.Clone(r.models)
}

// Find gives the model for a task and scale, or nil when there is none. An operator's model goes before ours. Where there are
// several, the first of the wanted variants that is there is taken, or else the first by name. A nil Runtime has none.
func (r *Runtime) Find(task Task, scale int, variants ...string) *Model {
	if r == nil {
		return nil
	}
	var fitting []*Model
	for _, m := range r.models {
		if m.manifest.Task == task && m.manifest.Scale == scale && (len(fitting) == 0 || fitting[0].shipped == m.shipped) {
			fitting = append(fitting, m)
		}
	}
	for _, variant := range variants {
		for _, m := range fitting {
			if m.manifest.Variant == variant {
				return m
			}
		}
	}
	if len(fitting) == 0 {
		return nil
	}
	return fitting[0]
}

// load reads the operator's models and ours, and tries each.
func (r *Runtime) load(ctx context.Context, c Config) error {
	if c.Models != "" {
		info, err := os.Stat(c.Models)
		if err != nil {
			return fmt.Errorf("models folder: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("models folder: %s is a file", c.Models)
		}
		if err := r.loadFolder(ctx, c, os.DirFS(c.Models), c.Models); err != nil {
			return err
		}
	}
	return r.loadFolder(ctx, c, c.shipped, "")
}

// loadFolder loads the models of one folder. path is the folder's on disk, or "" for our own.
func (r *Runtime) loadFolder(ctx context.Context, c Config, folder fs.FS, path string) error {
	names, err := fs.Glob(folder, "*.json")
	if err != nil {
		return fmt.Errorf("list models: %w", err)
	}
	if len(names) > modelsMost {
		return fmt.Errorf("models folder %s: %d manifests; at most %d are loaded", path, len(names), modelsMost)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("load models: %w", context.Cause(ctx))
		}
		at := filepath.Join(path, name)
		text, err := readSmall(folder, name)
		if err != nil {
			return fmt.Errorf("model manifest %s: %w", at, err)
		}
		manifest, err := ParseManifest(text)
		if err != nil {
			return fmt.Errorf("model manifest %s: %w", at, err)
		}
		for _, m := range r.models {
			other := m.manifest
			if m.shipped == (path == "") && other.Task == manifest.Task && other.Scale == manifest.Scale && other.Variant == manifest.Variant {
				return fmt.Errorf("model manifest %s: variant: %s is for the same task, scale and variant; tell them apart or remove one", at, m.Name())
			}
		}
		m, err := r.newModel(ctx, c, folder, path, strings.TrimSuffix(name, ".json"), manifest)
		if err != nil {
			return fmt.Errorf("model %s: %w", at, err)
		}
		r.models = append(r.models, m)
	}
	return nil
}

// readSmall reads a manifest, and not more of it than one may have.
func readSmall(folder fs.FS, name string) ([]byte, error) {
	info, err := fs.Stat(folder, name)
	if err != nil {
		return nil, err
	}
	if info.Size() > manifestMost {
		return nil, fmt.Errorf("%d bytes; at most %d are read", info.Size(), manifestMost)
	}
	return fs.ReadFile(folder, name)
}
