# The image: one glibc binary, CA certificates, no shell, no root. How to run it: docs/how-to/container.md.
#
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg VERSION=… --build-arg GIT_COMMIT=… .
#   docker buildx build --target prebuilt --file Dockerfile DIR    around DIR/tailbone-amd64 and DIR/tailbone-arm64
#
# The build runs on the builder's own architecture and compiles across, since Rust and Go under emulation take an hour.
# Every base image is an argument, so that a mirror or a local image can stand in, and is named by its
# digest, since a tag can be moved. No musl image can: Go's static archive does not work there. Builder
# and runtime belong to one Debian release, since glibc only works forwards.

ARG RUST_IMAGE=docker.io/library/rust:1.95.0-bookworm@sha256:6258907abe69656e41cd992e0b705cdcfabcbbe3db374f92ed2d47121282d4a1
ARG GO_IMAGE=docker.io/library/golang:1.26.8-bookworm@sha256:f4191582e1522dfc5980a6bdc0309a756f9697f3e7d0f199c7e26fc82ab324fd
ARG DEBIAN_IMAGE=docker.io/library/debian:bookworm-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241
ARG RUNTIME_IMAGE=gcr.io/distroless/cc-debian12:nonroot@sha256:9dac0a79194e45a7da0158a9c6da57b217585af0786db3845d1f0ec1a0dd182f

# ---------------------------------------------------------------------------------------------------------------------
# Directories and links, made where there is a shell; the runtime image has none.
FROM --platform=$BUILDPLATFORM ${DEBIAN_IMAGE} AS layout
# The home of keys and state is open to every uid, sticky like /tmp: the image must run as whatever uid it is given, also on
# a fresh volume, which takes over this mode. What tailbone makes in it, it makes 0700.
#
# /app is where the original image had everything (/app/tailbone, /app/keys, /app/.tsnet). As a link to our own place it
# serves old volumes and new ones alike: runtimes resolve a mount's destination inside the image, as they do each time
# somebody mounts /var/run/docker.sock, so a volume mounted at /app/keys is the `keys` of the working directory.
RUN mkdir -p /layout/var/lib/tailbone \
 && chmod 1777 /layout/var/lib/tailbone \
 && ln -s var/lib/tailbone /layout/app \
 && ln -s /usr/local/bin/tailbone /layout/var/lib/tailbone/tailbone

# ---------------------------------------------------------------------------------------------------------------------
# Everything about the image but the binary.
FROM ${RUNTIME_IMAGE} AS runtime
ARG VERSION=dev
ARG GIT_COMMIT=unknown
ARG RUNTIME_IMAGE
LABEL org.opencontainers.image.title="tailbone" \
      org.opencontainers.image.description="Identity services on a Tailscale network, from a node inside the process" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${GIT_COMMIT}" \
      org.opencontainers.image.base.name="${RUNTIME_IMAGE}"
COPY --from=layout /layout/ /
# Keys and state are relative by default (`keys`, `.tsnet`), so the working directory decides where they live. Not by ENV:
# a variable wins over the config file, and an image that sets one would silently win over an operator's file.
# No VOLUME either: it would be mounted over a volume that somebody has at /app/keys.
WORKDIR /var/lib/tailbone
# By number: Kubernetes' runAsNonRoot can not judge a name.
USER 65532:65532
# Quick after the start, so that `depends_on: service_healthy` does not wait half a minute for a server that is up.
HEALTHCHECK --interval=15s --timeout=5s --start-period=90s --retries=3 CMD ["/usr/local/bin/tailbone", "status", "--check"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/tailbone"]
CMD ["server", "start"]

# ---------------------------------------------------------------------------------------------------------------------
# The image around a binary that was built before: by the release workflow, by scripts/container-test.
FROM runtime AS prebuilt
ARG TARGETARCH
COPY --chmod=0755 tailbone-${TARGETARCH} /usr/local/bin/tailbone

# ---------------------------------------------------------------------------------------------------------------------
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS go

FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS build
COPY --from=go /usr/local/go /usr/local/go
ENV PATH=/usr/local/go/bin:$PATH GOTOOLCHAIN=local GOFLAGS=-buildvcs=false CARGO_TERM_COLOR=never
WORKDIR /src
ARG BUILDARCH
ARG TARGETARCH
# A C compiler and Rust's library for the other architecture, where there is another.
RUN set -eu; \
    case "$TARGETARCH" in \
      amd64) triple=x86_64-unknown-linux-gnu gnu=x86-64-linux-gnu prefix=x86_64-linux-gnu ;; \
      arm64) triple=aarch64-unknown-linux-gnu gnu=aarch64-linux-gnu prefix=aarch64-linux-gnu ;; \
      *) echo "no build for $TARGETARCH: amd64 and arm64 are what tailbone is built and tested for" >&2; exit 1 ;; \
    esac; \
    printf 'triple=%s\n' "$triple" >/target.env; \
    if [ "$TARGETARCH" != "$BUILDARCH" ]; then \
      apt-get update -qq; \
      apt-get install -y -qq --no-install-recommends "gcc-$gnu" "g++-$gnu" "libc6-dev-$TARGETARCH-cross"; \
      rm -rf /var/lib/apt/lists/*; \
      rustup target add "$triple"; \
      name=$(echo "$triple" | tr a-z- A-Z_); \
      lower=$(echo "$triple" | tr - _); \
      printf 'export CARGO_TARGET_%s_LINKER=%s-gcc CC_%s=%s-gcc CXX_%s=%s-g++ AR_%s=%s-ar\n' \
        "$name" "$prefix" "$lower" "$prefix" "$lower" "$prefix" "$lower" "$prefix" >>/target.env; \
    fi
COPY . .
ARG VERSION=dev
ARG GIT_COMMIT=unknown
# build.rs stamps these two; .git is not in the context.
RUN --mount=type=cache,id=tailbone-cargo,target=/usr/local/cargo/registry \
    --mount=type=cache,id=tailbone-go-mod,target=/root/go/pkg/mod \
    --mount=type=cache,id=tailbone-go-build,target=/root/.cache/go-build \
    --mount=type=cache,id=tailbone-target-${TARGETARCH},target=/src/target,sharing=locked \
    set -eu; . /target.env; \
    TAILBONE_VERSION="$VERSION" TAILBONE_COMMIT="$GIT_COMMIT" \
      cargo build --locked --release --bin tailbone --target "$triple"; \
    install -D -m 0755 "target/$triple/release/tailbone" /out/tailbone

# ---------------------------------------------------------------------------------------------------------------------
FROM runtime
COPY --from=build /out/tailbone /usr/local/bin/tailbone
