# syntax=docker/dockerfile:1

# The neural runtime: ONNX Runtime as its npm package carries it for Linux on x64 and arm64, held against its checksum.
FROM debian:12-slim AS onnxruntime
ARG TARGETARCH
ARG npm_config_registry=
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates curl && rm -rf /var/lib/apt/lists/*
COPY scripts/onnxruntime.sh /
RUN /onnxruntime.sh /lib-onnxruntime "${TARGETARCH:-}"

FROM golang:1.26-bookworm AS build
WORKDIR /src
ENV GOTOOLCHAIN=local
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
ARG VERSION=unknown
# The WebP codec is C, so the program is linked against the C library; build and run stages are the same Debian.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /enlarger ./cmd/enlarger

FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends 'ffmpeg=7:5.1.*' 'libturbojpeg0=1:2.1.*' ca-certificates curl \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin enlarger \
 && install -d -o enlarger -g enlarger -m 0750 /data
COPY --from=onnxruntime /lib-onnxruntime/ /usr/local/lib/
RUN ldconfig
COPY --from=build /enlarger /usr/local/bin/enlarger
# Where the neural tools look for their runtime.
ENV ENLARGER_ONNXRUNTIME=/usr/local/lib/libonnxruntime.so.1 \
    ENLARGER_DATA=/data
USER enlarger
WORKDIR /data
VOLUME /data
EXPOSE 8080
# For the processes that serve HTTP (serve, api). A worker's container switches it off; see deploy/compose.yaml.
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD curl -fsS http://127.0.0.1:8080/healthz || exit 1
STOPSIGNAL SIGTERM
ENTRYPOINT ["enlarger"]
CMD ["serve"]
