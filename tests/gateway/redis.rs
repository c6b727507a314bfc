//! Redis for tests: real servers, clusters and sentinels, and a line to them that can break.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::*;

pub use cluster::RedisCluster;
pub use line::Line;
pub use resp::Connection;
pub use sentinel::RedisSentinel;

mod cluster;
mod line;
mod resp;
mod sentinel;
mod tests;

/// How long a server may take to answer one command.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server is started with.
#[derive(Default)]
pub struct RedisSetup {
    lines: String,
    password: Option<String>,
    tls: bool,
    sentinel: bool,
}

/// A running `redis-server`; killed when dropped.
pub struct RedisServer {
    child: Child,
    directory: TempDir,
    port: u16,
    setup: RedisSetup,
}

impl RedisSetup {
    /// Adds a line of its configuration.
    pub fn option(mut self, name: &str, value: &str) -> Self {
        self.lines += &format!("{name} {value}\n");
        self
    }

    /// Every write is on disk before it is answered.
    pub fn persistent(self) -> Self {
        self.option("appendonly", "yes").option("appendfsync", "always")
    }

    /// The default user's password.
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.option("requirepass", password)
    }

    /// Adds a user with rules such as `~key:* +@all`.
    pub fn acl_user(self, name: &str, password: &str, rules: &str) -> Self {
        self.option("user", &format!("{name} on >{password} {rules}"))
    }

    /// Serves TLS alone, with a certificate for 127.0.0.1 that [`RedisServer::ca_file`] vouches for.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// A node of a cluster that knows no other node and holds no slots yet.
    pub fn cluster(self) -> Self {
        self.option("cluster-enabled", "yes")
            .option("cluster-port", &free_address().port().to_string())
            .option("cluster-announce-ip", "127.0.0.1")
            .option("cluster-node-timeout", "2000")
    }

    /// Starts it as a sentinel instead of a store.
    fn sentinel(mut self) -> Self {
        self.sentinel = true;
        self
    }

    pub async fn start(self) -> RedisServer {
        let directory = tempfile::tempdir().unwrap();
        let port = free_address().port();
        std::fs::write(directory.path().join("redis.conf"), self.configuration(directory.path(), port)).unwrap();
        let child = spawn(directory.path(), self.sentinel);
        let mut server = RedisServer { child, directory, port, setup: self };
        server.until_serving().await;
        server
    }

    fn configuration(&self, directory: &Path, port: u16) -> String {
        let ports = if self.tls {
            crate::tls::certificate(directory, "redis", "127.0.0.1");
            format!(
                "port 0\ntls-port {port}\ntls-cert-file redis.crt\ntls-key-file redis.key\n\
                 tls-ca-cert-file redis.ca\ntls-auth-clients no\n"
            )
        } else {
            format!("port {port}\n")
        };
        let rest = &self.lines;
        format!("bind 127.0.0.1\n{ports}unixsocket redis.sock\nsave \"\"\nrepl-diskless-sync-delay 0\n{rest}")
    }
}

impl RedisServer {
    pub fn setup() -> RedisSetup {
        RedisSetup::default()
    }

    /// Starts one that keeps nothing and asks nobody for a password.
    pub async fn start() -> Self {
        Self::setup().start().await
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Its URL, without credentials.
    pub fn url(&self) -> String {
        let scheme = if self.setup.tls { "rediss" } else { "redis" };
        format!("{scheme}://{}", self.address())
    }

    /// The PEM file of the authority that signed its certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("redis.ca")
    }

    /// Kills it, as a crash would.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it anew at the same port, with what it keeps on disk.
    pub async fn restart(&mut self) {
        self.stop();
        self.child = spawn(self.directory.path(), self.setup.sentinel);
        self.until_serving().await;
    }

    /// Freezes it: its connections stay open and nothing is answered.
    pub async fn pause(&self) {
        self.signal("STOP");
        let stat = format!("/proc/{}/stat", self.child.id());
        until("redis-server is frozen", async || std::fs::read_to_string(&stat).unwrap().contains(") T ")).await;
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    /// The answer to a command of the default user: arrays as lines, nothing as empty text. Panics when refused.
    pub fn command(&self, words: &[&str]) -> String {
        self.try_command(words).unwrap_or_else(|e| panic!("{words:?}: {e}"))
    }

    /// As [`command`](Self::command); an error when it is refused or the server is away.
    pub fn try_command(&self, words: &[&str]) -> io::Result<String> {
        // Not by TCP: these neither need TLS nor wait behind a full backlog.
        let mut stream = UnixStream::connect(self.directory.path().join("redis.sock"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if let Some(password) = &self.setup.password {
            resp::ask(&mut stream, &["AUTH", password])?;
        }
        resp::ask(&mut stream, words)
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    async fn until_serving(&mut self) {
        until("redis-server serves", async || {
            let ended = self.child.try_wait().unwrap();
            let output = || std::fs::read_to_string(self.directory.path().join("output")).unwrap_or_default();
            assert!(ended.is_none(), "redis-server did not start: {ended:?}\n{}", output());
            self.try_command(&["PING"]).is_ok()
        })
        .await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path, sentinel: bool) -> Child {
    let output = File::options().create(true).append(true).open(directory.join("output")).unwrap();
    let mut command = Command::new("redis-server");
    command.current_dir(directory).arg("redis.conf").args(sentinel.then_some("--sentinel"));
    command.stdout(output.try_clone().unwrap()).stderr(output).stdin(Stdio::null());
    command.spawn().unwrap_or_else(|e| panic!("redis-server: {e}; tests/setup.sh installs it"))
}
