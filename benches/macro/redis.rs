//! A `redis-server` of the bench's own, on a free port of loopback, that keeps nothing and ends with the bench.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server.
pub struct RedisServer {
    child: Child,
    address: SocketAddr,
    _directory: tempfile::TempDir,
}

/// The shell ends the server when the pipe to it closes, however the bench ends.
const SCRIPT: &str = r#"redis-server --bind 127.0.0.1 --port "$1" --save "" --appendonly no --dir "$2" >"$2/output" 2>&1 &
    read -r line; kill $!; wait"#;
const PATIENCE: Duration = Duration::from_secs(10);

impl RedisServer {
    /// Whether it can be had on this machine.
    pub fn is_installed() -> bool {
        let version =
            Command::new("redis-server").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    }

    /// Starts one and waits until it takes connections.
    pub fn start() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("nimgate-bench-redis-").tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", &address.port().to_string()]).arg(directory.path());
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let server = Self { child, address, _directory: directory };
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("redis-server does not listen on {address}")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
