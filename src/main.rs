//! The `nimgate` binary: arguments, logs, exit codes.

use std::process::ExitCode;

use clap::Parser as _;
use nimgate::cli::{self, Cli};
use tracing_subscriber::EnvFilter;

// Gateways hold many short-lived buffers on many threads; glibc's allocator keeps them (docs/decisions/0003).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("NIMGATE_LOG").unwrap_or_else(|_| {
        EnvFilter::new("info,pingora=error,pingora_core=error,pingora_proxy=off,hickory_net=error,redis=error")
    });
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a crypto provider was installed already");
    }
    match cli::run(cli, std::io::stdout()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("nimgate: {error:#}\n").as_bytes());
            ExitCode::FAILURE
        }
    }
}
