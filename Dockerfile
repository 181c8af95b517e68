# The collector alone, static, on nothing: no shell, no libc, no package manager.
#
#   docker build -t reset-collector:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 -t reset-collector:0.1.0 .
#   buildah build --format docker -t reset-collector:0.1.0 .    # OCI's own format has no HEALTHCHECK
#
# The eBPF object is in the repository and fits both platforms: it is one of little-endian machines. What was tried: the
# commands of the first stage on Debian 12 for amd64, the second stage by buildah 1.28 (19.9 MB, 8.4 MB compressed), the program
# by runc (tests/tests/image.rs). For arm64 the program was cross-built and run in an emulated machine, see docs/kernels.md; this
# file was not. The first stage's base image was not to be had.

FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /source
COPY . .
# glibc linked in: its own resolver reads /etc/hosts and /etc/resolv.conf, and nothing is loaded at run time. With --target
# the flag is the program's alone: the compiler loads procedural macros, which cannot be static. No symbols: a panic still
# names its file and line.
RUN target=$(rustc --print host-tuple) \
 && export RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols \
 && cargo build --locked --release --package reset-collector --features kubernetes --target "$target" \
 && mkdir -p /image/etc/ssl/certs /image/etc/reset-collector /image/var/lib/reset-collector \
 && cp "target/$target/release/reset-collector" /image/reset-collector \
 && printf 'admin: { endpoint: "127.0.0.1:9464" }\n' >/image/etc/reset-collector/reset-collector.yaml \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
LABEL org.opencontainers.image.title="reset-collector" \
      org.opencontainers.image.description="Every TCP reset of a host: why, whose, and which request it broke; over OTLP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/reset-collector/reset-collector"
COPY --from=build /image/ /
# Root, because capabilities reach another user's program in a container only where the runtime sets ambient ones. It needs
# four of them and no more: see docs/security.md.
USER 0:0
# Asks the admin endpoint. The image's own file has it on 127.0.0.1:9464 and nothing else; mount yours over it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/reset-collector", "health"]
ENTRYPOINT ["/reset-collector"]
CMD ["run", "--config", "/etc/reset-collector/reset-collector.yaml"]
