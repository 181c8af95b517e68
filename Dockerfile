# The collector alone, static, on nothing: no shell, no libc, no package manager.
#
#   docker build -t reset-collector:0.1.0 .
#   docker buildx build --platform linux/amd64,linux/arm64 -t reset-collector:0.1.0 .
#
# Alpine's own target is musl, so that the program is static by default. The eBPF object is in the repository.

FROM docker.io/library/rust:1.95-alpine AS build
# A C compiler for ring and zstd; the authorities for https:// destinations.
RUN apk add --no-cache build-base ca-certificates
WORKDIR /source
COPY . .
RUN cargo build --locked --release --package reset-collector --features kubernetes \
 && mkdir -p /root-of-image/etc/ssl/certs /root-of-image/etc/reset-collector /root-of-image/var/lib/reset-collector \
 && cp target/release/reset-collector /root-of-image/reset-collector \
 && printf 'admin: { endpoint: "127.0.0.1:9464" }\n' >/root-of-image/etc/reset-collector/reset-collector.yaml \
 && cp /etc/ssl/certs/ca-certificates.crt /root-of-image/etc/ssl/certs/

FROM scratch
LABEL org.opencontainers.image.title="reset-collector" \
      org.opencontainers.image.description="Every TCP reset of a host: why, whose, and which request it broke; over OTLP" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/reset-collector/reset-collector"
COPY --from=build /root-of-image/ /
# Root, because capabilities reach another user's program in a container only where the runtime sets ambient ones. It needs
# four of them and no more: see docs/security.md.
USER 0:0
# Asks the admin endpoint. The image's own file has it on 127.0.0.1:9464 and nothing else; mount yours over it.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/reset-collector", "health"]
ENTRYPOINT ["/reset-collector"]
CMD ["run", "--config", "/etc/reset-collector/reset-collector.yaml"]
