//! The `nimgate` binary: arguments, logs, exit codes.

use std::process::ExitCode;

use clap::Parser as _;
use nimgate::cli::{self, Cli};
use nimgate::log;

// Gateways hold many short-lived buffers on many threads; glibc's allocator keeps them (docs/decisions/0003).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    log::init(std::env::var("NIMGATE_LOG").ok());
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
