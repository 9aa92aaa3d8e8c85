package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"image/jpeg"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"enlarger/engine"
	imagetools "enlarger/engine/image"
	"enlarger/engine/neural"
)

// qualityCommand is the first argument that asks for tables of quality instead of speed.
const qualityCommand = "quality"

// qualityOptions are its flags.
type qualityOptions struct {
	data, sheets string
	models       string
	tools        []string
	quick        bool
	peers        bool
	neural       bool
	every        int
	zoom, crops  int
}

// trial is one line of a table: a set, what is done to its pictures, and who is to mend it.
type trial struct {
	tool, config string
	// set is a folder below the data, only one of its files with this suffix are the originals.
	set, suffix string
	damage      string
	// spoil makes the file that the tools get.
	spoil func(path string, original *picture, number int) ([]byte, error)
	// peers are other methods. They are told the damage's strength, which enlarger has to find out.
	peers []rival
	// luma measures BT.601 luma alone, border leaves pixels at the edge out.
	luma      bool
	border    int
	published string
}

type rival struct {
	name string
	mend func(spoilt *picture) *picture
}

// fidelity is a mean over the pictures of a trial.
type fidelity struct{ psnr, ssim float64 }

func (s fidelity) String() string { return fmt.Sprintf("%.2f / %.3f", s.psnr, s.ssim) }

func parseQuality(args []string, stderr io.Writer) (*qualityOptions, error) {
	o := &qualityOptions{}
	flags := flag.NewFlagSet("enlarger-bench quality", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.data, "data", "", "the folder that holds bench/Set5, bench/Set14, bench/CBSD68 and bench/classic5")
	flags.StringVar(&o.sheets, "sheets", "", "a folder for contact sheets, one PNG for each tool; none by default")
	tools := flags.String("tools", "upscale,denoise,sharpen,restore", "the tools to measure")
	flags.BoolVar(&o.quick, "quick", false, "two pictures of each set and no slow peers")
	flags.BoolVar(&o.peers, "peers", true, "measure the peers too")
	flags.BoolVar(&o.neural, "neural", true, "use models where ONNX Runtime is installed and there are some")
	flags.StringVar(&o.models, "models", "", "a folder of models that go before enlarger's own, as ENLARGER_MODELS names one")
	flags.IntVar(&o.every, "every", 1, "take only every n-th picture of a set, 1-100")
	flags.IntVar(&o.zoom, "zoom", 3, "how often a pixel is repeated each way on a sheet, 1-8")
	flags.IntVar(&o.crops, "crops", 3, "how many pictures of a set are on a sheet, 1-100")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	o.tools = strings.Split(*tools, ",")
	if o.data == "" || o.every < 1 || o.every > 100 || o.zoom < 1 || o.zoom > 8 || o.crops < 1 || o.crops > 100 || flags.NArg() > 0 {
		return nil, fmt.Errorf("%w: quality needs -data, -every and -crops must be 1 to 100, -zoom 1 to 8", errUsage)
	}
	return o, nil
}

// trials are the tables' lines.
func trials() []trial {
	var all []trial
	for _, scale := range []int{2, 4} {
		for i, set := range []string{"Set5", "Set14"} {
			published := [2]map[int]string{
				{2: "FSRCNN 37.0, SESR-M5 37.39", 4: "FSRCNN 30.7, SESR-M5 30.99"},
				{2: "FSRCNN 32.6, SESR-M5 32.84", 4: "FSRCNN 27.6, SESR-M5 27.81"},
			}[i][scale]
			all = append(all, enlarging(set, scale, "", smaller, published))
		}
		// What sources are in real life: with noise, and mostly JPEG.
		all = append(all,
			enlarging("Set14", scale, ", JPEG 90", smallerAnd(compressed(90)), ""),
			enlarging("Set14", scale, ", JPEG 70", smallerAnd(compressed(70)), ""),
			enlarging("Set14", scale, ", JPEG 40", smallerAnd(compressed(40)), ""),
			enlarging("Set14", scale, ", noise 6", smallerAnd(noisy(6)), ""))
	}
	for _, noise := range []struct {
		deviation float64
		published string
	}{{0, ""}, {5, ""}, {15, "CBM3D 33.52, DnCNN 33.90"}, {25, "CBM3D 30.71, DnCNN 31.24"}, {50, "CBM3D 27.38, DnCNN 27.95"}} {
		all = append(all, trial{
			tool: "denoise", set: "CBSD68", suffix: ".png", damage: fmt.Sprintf("noise %.0f", noise.deviation), spoil: noisy(noise.deviation), published: noise.published,
			peers: []rival{{"median 3x3", median3}, {"bilateral", bilateral(1.8, 2.2*max(noise.deviation, 1))}, {"NLM", nonLocalMeans(max(noise.deviation, 1))}},
		})
	}
	const blur = 1.2
	all = append(all, trial{
		tool: "sharpen", set: "CBSD68", suffix: ".png", damage: "Gaussian blur 1.2", spoil: blurred(blur), published: "",
		peers: []rival{{"unsharp mask", unsharp(blur, 1)}, {"Richardson-Lucy", richardsonLucy(blur, 12)}},
	})
	for _, quality := range []struct {
		level     int
		published string
	}{{10, "SA-DCT 28.88, ARCNN 29.03, DnCNN-3 29.40"}, {20, "SA-DCT 30.92, ARCNN 31.15, DnCNN-3 31.63"}, {30, "SA-DCT 32.14, ARCNN 32.51, DnCNN-3 32.91"}} {
		all = append(all, trial{
			tool: "restore", set: "classic5", suffix: ".bmp", damage: fmt.Sprintf("JPEG %d", quality.level), spoil: compressed(quality.level), published: quality.published,
			peers: []rival{{"median 3x3", median3}, {"bilateral", bilateral(1.8, 40-float64(quality.level))}, {"re-applied JPEG", reapplied(quality.level)}},
		})
	}
	return all
}

// enlarging is a trial of a set whose pictures were made smaller.
func enlarging(set string, scale int, further string, spoil func(string, *picture, int) ([]byte, error), published string) trial {
	return trial{
		tool: "upscale", config: fmt.Sprintf(`{"scale":%d}`, scale), set: fmt.Sprintf("%s/x%d", set, scale), suffix: fmt.Sprintf("SRF_%d_HR.png", scale),
		damage: fmt.Sprintf("made %dx smaller%s", scale, further), spoil: spoil, luma: true, border: scale, published: published,
		peers: []rival{{"bicubic", enlargeBy(scale, catmullRom, 2)}, {"Lanczos-3", enlargeBy(scale, lanczos, 3)}},
	}
}

// smallerAnd spoils the smaller picture further.
func smallerAnd(spoil func(string, *picture, int) ([]byte, error)) func(string, *picture, int) ([]byte, error) {
	return func(path string, _ *picture, number int) ([]byte, error) {
		p, err := readPicture(strings.Replace(path, "_HR.", "_LR.", 1))
		if err != nil {
			return nil, err
		}
		return spoil(path, p, number)
	}
}

func smaller(path string, _ *picture, _ int) ([]byte, error) {
	return os.ReadFile(strings.Replace(path, "_HR.", "_LR.", 1))
}

// noisy adds normal noise, the same at every run, cut off and rounded as any 8-bit file cuts it: published figures are often of noise
// that is neither, which is easier at high deviations.
func noisy(deviation float64) func(string, *picture, int) ([]byte, error) {
	return func(_ string, original *picture, number int) ([]byte, error) {
		random := rand.New(rand.NewPCG(uint64(number), uint64(deviation)))
		p := original.like()
		for i, v := range original.pix {
			p.pix[i] = v + float32(deviation*random.NormFloat64())
		}
		return p.png()
	}
}

func blurred(deviation float64) func(string, *picture, int) ([]byte, error) {
	return func(_ string, original *picture, _ int) ([]byte, error) { return gaussian(original, deviation).png() }
}

func compressed(quality int) func(string, *picture, int) ([]byte, error) {
	return func(_ string, original *picture, _ int) ([]byte, error) {
		var b bytes.Buffer
		err := jpeg.Encode(&b, original.image(), &jpeg.Options{Quality: quality})
		return b.Bytes(), err
	}
}

// measuring is one run of the quality command.
type measuring struct {
	*qualityOptions
	catalog *engine.Catalog
	scratch string
	log     io.Writer
	started time.Time
}

func quality(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseQuality(args, stderr)
	if err != nil {
		return err
	}
	m := &measuring{qualityOptions: o, log: stderr, started: time.Now()}
	var runtime *neural.Runtime
	if o.neural {
		if library, err := neural.FindLibrary(""); err == nil {
			if runtime, err = neural.Open(ctx, neural.Config{Library: library, Models: o.models}); err != nil {
				return err
			}
			defer runtime.Close()
		}
	}
	m.catalog = engine.NewCatalog(engine.DefaultLimits(), imagetools.Tools(imagetools.Options{Neural: runtime})...)
	if m.scratch, err = os.MkdirTemp("", "quality-*"); err != nil {
		return err
	}
	defer os.RemoveAll(m.scratch)
	fmt.Fprint(stdout, machineFacts(append([]string{qualityCommand}, args...), time.Now()))
	for _, tool := range o.tools {
		if err := m.tool(ctx, tool, stdout); err != nil {
			return fmt.Errorf("%s: %w", tool, err)
		}
	}
	return nil
}

// tool prints the table of a tool and writes its sheet.
func (m *measuring) tool(ctx context.Context, tool string, stdout io.Writer) error {
	var rows [][]string
	var sheet sheet
	for _, t := range trials() {
		if t.tool != tool {
			continue
		}
		line, strips, err := m.trial(ctx, t)
		if err != nil {
			return fmt.Errorf("%s %s: %w", t.set, t.damage, err)
		}
		if rows == nil {
			rows = append(rows, line.head())
		}
		rows = append(rows, line.cells())
		sheet = append(sheet, strips...)
	}
	if rows == nil {
		return fmt.Errorf("%w: there is no such tool to measure", errUsage)
	}
	fmt.Fprintf(stdout, "\n### %s\n\n%s", tool, table(rows))
	if m.sheets == "" {
		return nil
	}
	return sheet.write(filepath.Join(m.sheets, tool+".png"), m.zoom)
}

// result is a line of a table.
type result struct {
	trial    trial
	pictures int
	names    []string
	scores   []fidelity
	// seconds are of processor time, all cores together, for a megapixel of output: a rate that other work hardly changes.
	seconds float64
	methods []string
}

func (r *result) head() []string {
	cells := []string{"set", "damage", "source"}
	cells = append(cells, r.names...)
	return append(cells, "enlarger", "CPU s/MP", "method", "published PSNR")
}

func (r *result) cells() []string {
	cells := []string{fmt.Sprintf("%s (%d)", r.trial.set, r.pictures), r.trial.damage}
	for _, s := range r.scores {
		cells = append(cells, s.String())
	}
	return append(cells, fmt.Sprintf("%.1f", r.seconds), strings.Join(r.methods, ", "), r.trial.published)
}

// trial measures one line.
func (m *measuring) trial(ctx context.Context, t trial) (*result, []strip, error) {
	paths, err := m.originals(t)
	if err != nil {
		return nil, nil, err
	}
	r := &result{trial: t, pictures: len(paths)}
	if !m.peers || m.quick {
		t.peers = slices.DeleteFunc(slices.Clone(t.peers), func(p rival) bool { return !m.peers || p.name == "NLM" })
	}
	for _, p := range t.peers {
		r.names = append(r.names, p.name)
	}
	r.scores = make([]fidelity, len(t.peers)+2)
	var strips []strip
	pixels := 0
	for i, path := range paths {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		original, err := m.original(t, path)
		if err != nil {
			return nil, nil, err
		}
		content, err := t.spoil(path, original, i)
		if err != nil {
			return nil, nil, err
		}
		spoilt, ours, method, seconds, err := m.mend(ctx, t, content)
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", filepath.Base(path), err)
		}
		if !slices.Contains(r.methods, method) {
			r.methods = append(r.methods, method)
		}
		r.seconds += seconds
		pixels += ours.width * ours.height
		shown := spoilt
		if t.tool == "upscale" {
			shown = nearest(spoilt, ours.width/spoilt.width)
		}
		outcomes := []*picture{shown}
		for _, p := range t.peers {
			outcomes = append(outcomes, p.mend(spoilt))
		}
		outcomes = append(outcomes, ours)
		for k, outcome := range outcomes {
			s := t.measure(original, outcome)
			r.scores[k].psnr += s.psnr / float64(len(paths))
			r.scores[k].ssim += s.ssim / float64(len(paths))
		}
		if i%max(1, len(paths)/m.crops) == 0 && len(strips) < m.crops {
			strips = append(strips, newStrip(t, original, outcomes, r.names))
		}
		fmt.Fprintf(m.log, "%6.1fs  %s %s %s: %.2f dB\n", time.Since(m.started).Seconds(), t.tool, t.damage, filepath.Base(path), t.measure(original, ours).psnr)
	}
	r.seconds /= float64(pixels) / 1e6
	return r, strips, nil
}

// original reads one, of which a quick run takes a corner. What was made smaller beforehand cannot be cut.
func (m *measuring) original(t trial, path string) (*picture, error) {
	p, err := readPicture(path)
	if err != nil || !m.quick || t.tool == "upscale" {
		return p, err
	}
	const most, unit = 192, 8
	return p.crop(0, 0, min(p.width, most)/unit*unit, min(p.height, most)/unit*unit), nil
}

// originals lists a trial's pictures.
func (m *measuring) originals(t trial) ([]string, error) {
	folder := filepath.Join(m.data, "bench", filepath.FromSlash(t.set))
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), t.suffix) {
			paths = append(paths, filepath.Join(folder, e.Name()))
		}
	}
	var kept []string
	for i := 0; i < len(paths); i += m.every {
		kept = append(kept, paths[i])
	}
	if m.quick {
		kept = kept[:min(2, len(kept))]
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("no %s in %s", t.suffix, folder)
	}
	return kept, nil
}

// mend runs the tool through the engine, from a file to a PNG, as a job does.
func (m *measuring) mend(ctx context.Context, t trial, content []byte) (spoilt, ours *picture, method string, seconds float64, err error) {
	dir, err := os.MkdirTemp(m.scratch, "job-*")
	if err != nil {
		return nil, nil, "", 0, err
	}
	defer os.RemoveAll(dir)
	input := filepath.Join(dir, "source")
	if err := os.WriteFile(input, content, 0o600); err != nil {
		return nil, nil, "", 0, err
	}
	if spoilt, err = readPicture(input); err != nil {
		return nil, nil, "", 0, err
	}
	order, err := m.catalog.Order(t.tool, []byte(t.config), "png")
	if err != nil {
		return nil, nil, "", 0, err
	}
	source, err := order.Measure(ctx, input)
	if err != nil {
		return nil, nil, "", 0, err
	}
	plan, err := order.Plan(source)
	if err != nil {
		return nil, nil, "", 0, err
	}
	task := engine.Task{Plan: plan, Source: source, Input: input, Output: filepath.Join(dir, "out"), Scratch: dir}
	start := treeCPU(true)
	output, err := order.Process(ctx, task)
	if err != nil {
		return nil, nil, "", 0, err
	}
	seconds = (treeCPU(true) - start).Seconds()
	method = fmt.Sprint(output.Facts["method"])
	if model, ok := output.Facts["model"]; ok {
		method = fmt.Sprint(model)
	}
	ours, err = readPicture(task.Output)
	return spoilt, ours, method, seconds, err
}

// measure compares an outcome with the original, leaving the border out.
func (t trial) measure(original, outcome *picture) fidelity {
	w, h := min(original.width, outcome.width), min(original.height, outcome.height)
	a := original.crop(t.border, t.border, w-2*t.border, h-2*t.border)
	b := outcome.crop(t.border, t.border, w-2*t.border, h-2*t.border)
	bright := func(p *picture) []float64 {
		y := make([]float64, p.width*p.height)
		for i := range y {
			// BT.601 luma in video range, as everybody measures upscaling.
			y[i] = 16 + (65.481*float64(p.pix[3*i])+128.553*float64(p.pix[3*i+1])+24.966*float64(p.pix[3*i+2]))/255
		}
		return y
	}
	ya, yb := bright(a), bright(b)
	sum, n := 0.0, len(ya)
	if t.luma {
		for i, v := range ya {
			sum += (v - yb[i]) * (v - yb[i])
		}
	} else {
		n = len(a.pix)
		for i, v := range a.pix {
			d := float64(v - b.pix[i])
			sum += d * d
		}
	}
	// What comes out untouched counts for 60 dB, so that a mean says something.
	return fidelity{min(10*math.Log10(255*255*float64(n)/(sum+1e-9)), 60), ssim(ya, yb, a.width, a.height)}
}

// ssim is that of Wang, Bovik, Sheikh and Simoncelli (2004): a Gaussian window of 11x11 and deviation 1.5, where it fits.
func ssim(a, b []float64, width, height int) float64 {
	const radius = 5
	if width <= 2*radius || height <= 2*radius {
		return math.NaN()
	}
	kernel := gaussianKernel(1.5, radius)
	smooth := func(f func(i int) float64) []float64 {
		w, h := width-2*radius, height-2*radius
		across, out := make([]float64, w*height), make([]float64, w*h)
		for y := range height {
			for x := range w {
				for k, weight := range kernel {
					across[y*w+x] += weight * f(y*width+x+k)
				}
			}
		}
		for y := range h {
			for x := range w {
				for k, weight := range kernel {
					out[y*w+x] += weight * across[(y+k)*w+x]
				}
			}
		}
		return out
	}
	ma, mb := smooth(func(i int) float64 { return a[i] }), smooth(func(i int) float64 { return b[i] })
	aa, bb := smooth(func(i int) float64 { return a[i] * a[i] }), smooth(func(i int) float64 { return b[i] * b[i] })
	ab := smooth(func(i int) float64 { return a[i] * b[i] })
	const c1, c2 = 0.01 * 255 * 0.01 * 255, 0.03 * 255 * 0.03 * 255
	sum := 0.0
	for i := range ma {
		va, vb, cov := aa[i]-ma[i]*ma[i], bb[i]-mb[i]*mb[i], ab[i]-ma[i]*mb[i]
		sum += (2*ma[i]*mb[i] + c1) * (2*cov + c2) / ((ma[i]*ma[i] + mb[i]*mb[i] + c1) * (va + vb + c2))
	}
	return sum / float64(len(ma))
}
