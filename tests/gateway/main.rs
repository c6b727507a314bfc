//! Tests of the real executable over real sockets, with the simulators as backends. One file per stage.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod support;

mod admin;
mod asset;
mod balance;
mod blame;
mod body;
mod cache;
mod callers;
mod chaos;
mod collector;
mod console;
mod discovery;
mod endings;
mod failure;
mod grpc;
mod hedge;
mod held;
mod http2;
mod input;
mod life;
mod log;
mod native;
mod otlp;
mod pace;
mod path;
mod prometheus;
mod queue;
mod quota;
mod record;
mod redis;
mod reload;
mod retry;
mod sdk;
mod shared;
mod spill;
mod stream;
mod tls;
mod traces;
mod transcripts;
mod unwell;
mod vectors;
