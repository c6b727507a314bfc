//! Child processes: started here, read in /proc, and ended with whatever they started themselves.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::net::TcpStream;
use tokio::time::sleep;

/// A child that ends when this is dropped.
pub struct Process {
    name: &'static str,
    child: Child,
    output: PathBuf,
}

/// Time between the request to end and the end.
const GRACE: Duration = Duration::from_secs(3);

impl Process {
    /// Starts it, its output into a file of `directory`.
    pub fn start(name: &'static str, command: &mut Command, directory: &Path) -> Result<Self> {
        let output = directory.join(format!("{name}.out"));
        let file = File::create(&output)?;
        // The pipe is never written to: its end tells our own children that we are gone.
        command.stdin(Stdio::piped()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        Ok(Self { name, child, output })
    }

    /// Fails when it has ended, with the last of what it had to say.
    pub fn require_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(self.ended(status)),
        }
    }

    fn ended(&self, status: ExitStatus) -> anyhow::Error {
        let said = fs::read(&self.output).unwrap_or_default();
        let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(2000)..]).into_owned();
        anyhow!("{} ended with {status}; it said: {tail}", self.name)
    }

    /// Time on a CPU of all its threads and of the processes that it started.
    pub fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for pid in self.family() {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                let stat = fs::read_to_string(task?.path().join("schedstat"))?;
                let on_cpu = stat.split(' ').next().unwrap_or_default();
                nanos += on_cpu.parse::<u64>().with_context(|| format!("schedstat of {}: {stat}", self.name))?;
            }
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// The most memory that it ever had, in bytes.
    pub fn peak_memory(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// A figure of its memory by the kernel's name, in bytes.
    pub fn memory(&self, name: &str) -> u64 {
        let of = |pid: u32| -> Option<u64> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok().map(|kib| kib * 1024)
        };
        self.family().into_iter().filter_map(of).sum()
    }

    /// The child and its children, which is where nginx has its workers.
    fn family(&self) -> Vec<u32> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        std::iter::once(pid).chain(children.split_whitespace().filter_map(|c| c.parse().ok())).collect()
    }

    fn stop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        let family = self.family();
        signal("TERM", &family[..1]);
        let begun = Instant::now();
        while begun.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The child is not reaped yet and its children were its own a moment ago: the numbers are still theirs.
        signal("KILL", &family);
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// So many addresses that nobody listens on; all are held until the last is found, so that they differ.
pub fn free_addresses(count: usize) -> Result<Vec<SocketAddr>> {
    let held: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    Ok(held.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

/// Waits until the process takes connections.
pub async fn await_listener(process: &mut Process, address: SocketAddr) -> Result<()> {
    let begun = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        process.require_running()?;
        if begun.elapsed() > Duration::from_secs(20) {
            bail!("nobody listens on {address}");
        }
        sleep(Duration::from_millis(20)).await;
    }
    process.require_running()
}

/// Std knows no signal but the last one, and the shell is at hand everywhere.
fn signal(name: &str, pids: &[u32]) {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let command = format!("kill -s {name} {}", pids.join(" "));
    let _ = Command::new("sh").args(["-c", &command]).stderr(Stdio::null()).status();
}
