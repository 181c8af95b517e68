# The collector as a static program on `scratch`: no shell, no libc, no package manager.
#
#   docker build -t reset-collector:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 -t reset-collector:0.1.0 .
#   buildah build --format docker -t reset-collector:0.1.0 .    # the OCI format has no HEALTHCHECK
#
# The eBPF objects in the repository fit both platforms, which are little-endian. Tested: the commands of the first stage on
# Debian 12 for amd64, the second stage by buildah 1.28 (19.9 MB, 8.4 MB compressed), and the program by runc
# (tests/tests/image.rs). Not tested: the first stage's base image, and this file for arm64, for which the program was
# cross-built and run in an emulated machine (docs/kernels.md).

FROM docker.io/library/rust:1.95-slim-bookworm AS build
WORKDIR /source
COPY . .
# glibc is linked in: its resolver reads /etc/hosts and /etc/resolv.conf, and nothing is loaded at run time. With --target the
# flag applies to the program only: the compiler loads procedural macros, which cannot be static. Without symbols a panic
# still names its file and line.
RUN target=$(rustc --print host-tuple) \
 && export RUSTFLAGS="-C target-feature=+crt-static" CARGO_PROFILE_RELEASE_STRIP=symbols \
 && cargo build --locked --release --package reset-collector --features kubernetes --target "$target" \
 && mkdir -p /image/etc/ssl/certs /image/etc/reset-collector /image/var/lib/reset-collector \
 && cp "target/$target/release/reset-collector" /image/reset-collector \
 && printf 'admin: { endpoint: "127.0.0.1:9464" }\n' >/image/etc/reset-collector/reset-collector.yaml \
 && cp /etc/ssl/certs/ca-certificates.crt /image/etc/ssl/certs/

FROM scratch
LABEL org.opencontainers.image.title="reset-collector" \
      org.opencontainers.image.description="Captures every TCP reset of a host: cause, owner and the request that it broke; exports OTLP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/reset-collector/reset-collector"
COPY --from=build /image/ /
# Root, because a container runtime that sets no ambient capabilities gives none to other users. It needs four capabilities and
# no more: see docs/security.md.
USER 0:0
# The image's own configuration has nothing but the admin endpoint, on 127.0.0.1:9464; mount yours over it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/reset-collector", "health"]
ENTRYPOINT ["/reset-collector"]
CMD ["run", "--config", "/etc/reset-collector/reset-collector.yaml"]
