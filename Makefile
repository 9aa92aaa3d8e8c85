# Every command a person needs. `make` alone lists them.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GOLANGCI_LINT := 2.15.0
# A build uses the Go that is installed, or says that it is too old; it never downloads another one.
export GOTOOLCHAIN ?= local

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## install what is missing to build, run and test (ffmpeg, gcc, libjpeg-turbo, PostgreSQL, Redis by apt, root or sudo; ONNX Runtime by npm's registry)
	@scripts/deps.sh test

.PHONY: build
build: ## compile bin/enlarger
	@scripts/deps.sh run
	go build -trimpath -ldflags '-X main.version=$(VERSION)' -o bin/enlarger ./cmd/enlarger

.PHONY: run
run: build ## start the all-in-one server, show it work on a photo and a clip, serve until Ctrl-C (PORT=8080, DEMO=0 skips the show)
	@scripts/run.sh

# vet takes -race so that it and the tests share what they compile.
.PHONY: test
# The race detector makes work on pixels ten times slower and finds nothing in it: where that is most of the work, it watches only the tests of what runs
# side by side.
PIXELS = ./engine/image ./engine/video ./cmd/enlarger
test: ## format, vet, and every test, with the race detector where it pays, against real servers
	@scripts/deps.sh test
	@unformatted=$$(git ls-files -z '*.go' | xargs -0 -r gofmt -l); [ -z "$$unformatted" ] || { echo "not gofmt-formatted: $$unformatted" >&2; exit 1; }
	go vet -race ./...
	go test -race -timeout 14m $$(go list ./... | grep -v $(foreach package,$(PIXELS),-e '$(package:.%=%)$$'))
	go test -timeout 14m $(PIXELS)
	go test -race -timeout 14m -run 'Filter|Seams|Cancel|PipeGives|PipeEnds|Followed|Tables' ./engine/image ./engine/video

.PHONY: test-large
test-large: ## a 2 GB video and a 200 MiB picture through a fleet, with its memory bounds (10 GB of disk, minutes)
	@scripts/deps.sh test
	ENLARGER_LARGE=1 go test -count=1 -timeout 30m -run TestLargeFiles -v ./cmd/enlarger

.PHONY: test-clips
test-clips: ## every sample clip of shared/data through every video tool (minutes)
	@scripts/deps.sh test
	ENLARGER_CLIPS=1 go test -count=1 -timeout 30m -run Sample -v ./engine/video

.PHONY: mutants
mutants: ## take one safeguard out of the program after another, and demand that the tests fail each time (minutes)
	@scripts/deps.sh test
	ENLARGER_MUTANTS=1 go test -count=1 -timeout 60m -run TestMutants -v ./faults/mutants

.PHONY: faults
faults: build ## every fault of docs/reliability.md at its full length: default leases, outages of a minute, a thousand kills (half an hour)
	@scripts/deps.sh test
	ENLARGER_BINARY=$(CURDIR)/bin/enlarger go test -count=1 -timeout 2h ./faults -v -faults.long

FILM := 20m
.PHONY: film
film: build ## a film of FILM (20m) on three workers, one of them killed twice, and what a second worker gains (minutes)
	@scripts/deps.sh test
	ENLARGER_BINARY=$(CURDIR)/bin/enlarger go test -count=1 -timeout 2h ./faults -v -run 'F29|TestFilm' -faults.film $(FILM)

SOAK := 30m
.PHONY: soak
soak: build ## clients, and faults at random, for SOAK (30m); prints what was injected and every violation, and fails on one
	@scripts/deps.sh test
	@go test -c -o bin/faults.test ./faults
	@ENLARGER_BINARY=bin/enlarger bin/faults.test -test.run '^TestSoak$$' -test.timeout 0 -faults.soak $(SOAK)

.PHONY: lint
lint: .deps/golangci-lint-$(GOLANGCI_LINT) ## golangci-lint at its pinned version, compiled into .deps on first use
	@scripts/deps.sh run
	$< run ./...

.deps/golangci-lint-$(GOLANGCI_LINT):
	GOBIN=$(CURDIR)/.deps go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_LINT)
	mv .deps/golangci-lint $@

.PHONY: docs
docs: build ## write docs/configuration.md and docs/tools.md from the code
	bin/enlarger config > docs/configuration.md
	bin/enlarger tools docs/tools > docs/tools.md

.PHONY: docs-pictures
docs-pictures: ## make the before/after pictures of docs/tools.md anew, with the models that are installed
	@go build -trimpath -o bin/enlarger-bench ./cmd/enlarger-bench
	@bin/enlarger-bench pictures

.PHONY: fuzz
fuzz: ## fuzz every parser of foreign bytes, FUZZTIME (20s) each
	@scripts/fuzz.sh

.PHONY: bench
bench: build ## measure latency and throughput beside bare queues, and print the tables of docs/benchmarks.md (BENCH="-help" lists its flags)
	@scripts/deps.sh test
	@go build -trimpath -o bin/enlarger-bench ./cmd/enlarger-bench
	@ENLARGER_BINARY=bin/enlarger bin/enlarger-bench $(BENCH)

.PHONY: bench-quality
bench-quality: ## print the tables of docs/quality.md: PSNR and SSIM on the sets in DATA, with contact sheets in out/quality (QUALITY="-help" lists its flags)
	@go build -trimpath -o bin/enlarger-bench ./cmd/enlarger-bench
	@bin/enlarger-bench quality -data $(or $(DATA),../shared/data) -sheets out/quality $(QUALITY)

.PHONY: bench-speed
bench-speed: ## time and peak memory of every image tool at 1, 12 and 48 megapixels, beside ImageMagick and libvips where they are installed (SPEED="-help" lists its flags)
	@go build -trimpath -o bin/enlarger-bench ./cmd/enlarger-bench
	@bin/enlarger-bench speed $(SPEED)

.PHONY: bench-video
bench-video: ## speed of the video tools beside the same ffmpeg commands without us, and memory beside the estimate (VIDEO="-help" lists its flags)
	@scripts/deps.sh run
	@go build -trimpath -o bin/enlarger-bench ./cmd/enlarger-bench
	@bin/enlarger-bench video $(VIDEO)

.PHONY: bench-models
bench-models: ## what our own nets cost: milliseconds, GFLOP/s beside the most that ONNX Runtime reaches here, memory by size of tile
	@scripts/deps.sh run
	go test -run '^$$' -bench 'Shipped|Tile|Reach' ./engine/neural

.PHONY: fixtures
fixtures: ## make the recorded jobs' media anew (fixtures/media)
	@scripts/deps.sh run
	fixtures/make.sh

.PHONY: docker
docker: ## build the image enlarger:latest
	docker build --build-arg VERSION=$(VERSION) -t enlarger:latest .

.PHONY: clean
clean: ## remove what was built; ./data, the server's data, stays
	rm -rf bin out .deps

# Training needs PyTorch (Debian: python3-torch python3-numpy python3-pil python3-scipy), and nothing else here does.
# One thread a training, and none in BLAS beside it, is fastest: see training/README.md.
PYTHON ?= $(firstword $(foreach p,python3 /usr/bin/python3,$(shell $(p) -c 'import torch' 2>/dev/null && echo $(p))) python3)

.PHONY: train-smoke
train-smoke: ## does every training pipeline still learn? one to two minutes of CPU (needs PyTorch)
	OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(PYTHON) -m training.smoke

# train-NAME, for a NAME of training/recipes.py; resumes what was interrupted.
train-%:
	OPENBLAS_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE nice $(PYTHON) -m training.train $*
