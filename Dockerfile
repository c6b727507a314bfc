# Built where the C linker and compiler of the Rust image suffice; cmake is not needed (docs/decisions/0002).
FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin nimgate && strip target/release/nimgate

FROM debian:bookworm-slim
# Certificate authorities for https backends.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /src/target/release/nimgate /usr/local/bin/nimgate
COPY LICENSE /usr/share/doc/nimgate/LICENSE
USER 65532:65532
ENV NIMGATE_CONFIG=/etc/nimgate/nimgate.yaml
EXPOSE 8080
# SIGTERM stops without cutting requests; give it as long as shutdown.grace_ms.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/nimgate"]
CMD ["serve"]
