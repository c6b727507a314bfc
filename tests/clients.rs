//! Real clients against `nimgate demo`: every curl command, bash workflow and Python snippet of NVIDIA's documents, kept
//! as printed in `clients/seeds`, and more SDK scripts in `clients/more`. `tests/setup.sh` installs what they need.
//!
//! A snippet `NNN-name.sh` or `NNN-name.py` is word for word the document's, save for what a comment at its head admits;
//! an `own_` one is ours, where the document states a fact without a snippet. Beside it may stand, run in one process
//! with it: `.before`, what it takes for granted; `.after`, checks on what it left behind. `.expect` judges standard
//! output, one rule a line: `has TEXT`, `lacks TEXT`, `jq FILTER` (`jq -s FILTER` over all of several documents).
//! A status other than zero always fails. Hosts, keys and placeholders are replaced as [`adapt`] tells, nothing else is.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Failed, Trial};
use port::free_address;
use tempfile::TempDir;

#[path = "gateway/port.rs"]
mod port;

const GATEWAY: &str = env!("CARGO_BIN_EXE_nimgate");
const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const KEY: &str = "ngk_demo_c2VjcmV0LW9mLXRoZS1jbGllbnQtdGVzdHM";
/// The demo's second key: the same secret, and 2 requests a second.
const LIMITED: &str = "ngk_demo-limited_c2VjcmV0LW9mLXRoZS1jbGllbnQtdGVzdHM";
/// Clients are many and cores few.
const MOST_THREADS: usize = 2;
const TIME_TO_START: Duration = Duration::from_secs(30);
const TIME_TO_STOP: Duration = Duration::from_secs(15);
const TIME_PER_CLIENT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// How much of each output a failure shows.
const SHOWN: usize = 4000;

fn main() -> Result<ExitCode, Failed> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.map_or(MOST_THREADS, |asked| asked.min(MOST_THREADS)));
    let demo = Arc::new(OnceLock::new());
    let trials = cases()?.into_iter().map(|case| case.into_trial(&demo)).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Trials that a filter left out may still hold the demo, so it is stopped here and not when it is dropped.
    if let Some(Ok(demo)) = demo.get() {
        demo.stop()?;
    }
    Ok(conclusion.exit_code())
}

/// The gateway over its simulators; started by the first trial that wants it.
struct Demo {
    url: String,
    process: Running,
    /// Holds the log, the clients' working directories, and what the demo writes.
    directory: TempDir,
}

/// One client.
struct Case {
    name: String,
    /// The file without its extension.
    stem: PathBuf,
    python: bool,
}

/// A child whose end can be waited for with a limit.
struct Running {
    pid: u32,
    ended: Mutex<Receiver<io::Result<ExitStatus>>>,
}

impl Demo {
    fn start() -> Result<Self, String> {
        Self::try_start().map_err(|error| format!("the demo did not start: {error}"))
    }

    fn try_start() -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let [listen, admin] = [(); 2].map(|()| free_address());
        let log = File::create(directory.path().join("demo.log"))?;
        let mut command = Command::new(GATEWAY);
        command.args(["demo", "--key", KEY, "--listen", &listen.to_string(), "--admin", &admin.to_string()]);
        command.env("TMPDIR", directory.path()).stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        let demo = Self { url: format!("http://{listen}"), process: Running::start(&mut command)?, directory };
        let deadline = Instant::now() + TIME_TO_START;
        while !is_ready(listen).unwrap_or(false) {
            let ended = demo.process.wait(POLL)?;
            if ended.is_some() || Instant::now() > deadline {
                demo.process.signal("KILL", "")?;
                return Err(io::Error::other(format!("ended: {ended:?}; {}", demo.log())));
            }
        }
        Ok(demo)
    }

    fn log(&self) -> String {
        tail(&self.directory.path().join("demo.log"), SHOWN)
    }

    /// What the gateway wrote about the latest requests, this client's or its neighbour's.
    fn records(&self) -> String {
        let files = self.directory.path().join(format!("nimgate-demo-{}", self.process.pid));
        tail(&files.join("access.log"), SHOWN / 2)
    }

    /// Asks it to end as an operator would.
    fn stop(&self) -> Result<(), Failed> {
        self.process.signal("TERM", "")?;
        let ended = self.process.wait(TIME_TO_STOP)?;
        if ended.is_none() {
            self.process.signal("KILL", "")?;
            self.process.wait(TIME_TO_STOP)?;
        }
        fs::remove_dir_all(self.directory.path())?;
        match ended {
            Some(status) if status.success() => Ok(()),
            other => Err(format!("the demo did not stop cleanly: {other:?}").into()),
        }
    }
}

fn is_ready(address: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /v1/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(&status == b"HTTP/1.1 200")
}

fn cases() -> io::Result<Vec<Case>> {
    let clients = clients();
    let mut cases = Vec::new();
    for folder in ["seeds", "more"] {
        for entry in fs::read_dir(clients.join(folder))? {
            cases.extend(Case::of(&entry?.path()));
        }
    }
    cases.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(cases)
}

fn clients() -> PathBuf {
    Path::new(REPOSITORY).join("tests/clients")
}

impl Case {
    /// Nothing for the files that only accompany one.
    fn of(path: &Path) -> Option<Self> {
        let python = match path.extension()?.to_str()? {
            "py" => true,
            "sh" => false,
            _ => return None,
        };
        let file = path.file_stem()?.to_str()?;
        let name =
            file.split_once('-').map_or_else(|| format!("more::{file}"), |(seed, rest)| format!("seed_{seed}::{rest}"));
        Some(Self { name, stem: path.with_extension(""), python })
    }

    fn into_trial(self, demo: &Arc<OnceLock<Result<Demo, String>>>) -> Trial {
        let demo = Arc::clone(demo);
        Trial::test(self.name.clone(), move || self.run(demo.get_or_init(Demo::start).as_ref()?))
    }

    fn run(&self, demo: &Demo) -> Result<(), Failed> {
        let interpreter = self.interpreter()?;
        let directory = tempfile::tempdir_in(demo.directory.path())?;
        let (home, snippet) = (directory.path(), fs::read_to_string(self.beside(self.extension()))?);
        fs::write(home.join("script"), adapt(&self.script(&snippet)?, &demo.url))?;
        fs::write(home.join(".curlrc"), curlrc(&snippet))?;
        let mut command = Command::new(interpreter);
        command.arg("script").current_dir(home).process_group(0).stdin(Stdio::null());
        command.stdout(File::create(home.join("stdout"))?).stderr(File::create(home.join("stderr"))?);
        command.env_clear().envs(environment(demo, home));
        let process = Running::start(&mut command)?;
        let ended = process.wait(TIME_PER_CLIENT)?;
        if ended.is_none() {
            process.signal("KILL", "-")?;
        }
        let problems = self.problems(ended, &home.join("stdout"))?;
        if problems.is_empty() {
            return Ok(());
        }
        let (stdout, stderr) = (tail(&home.join("stdout"), SHOWN), tail(&home.join("stderr"), SHOWN));
        let (problems, records) = (problems.join("\n"), demo.records());
        Err(format!("{problems}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- access log\n{records}").into())
    }

    fn interpreter(&self) -> Result<PathBuf, Failed> {
        let python = venv().join("bin/python");
        match (self.python, python.exists()) {
            (false, _) => Ok("bash".into()),
            (true, true) => Ok(python),
            (true, false) => Err(format!("there is no {}: run tests/setup.sh", python.display()).into()),
        }
    }

    fn extension(&self) -> &'static str {
        if self.python { "py" } else { "sh" }
    }

    fn beside(&self, extension: &str) -> PathBuf {
        self.stem.with_extension(extension)
    }

    fn optional(&self, extension: &str) -> io::Result<String> {
        match fs::read_to_string(self.beside(extension)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
            text => text,
        }
    }

    /// The snippet between what goes before and after it. Bash would forget the snippet's own status, Python does not.
    fn script(&self, snippet: &str) -> io::Result<String> {
        let (before, mut after) = (self.optional("before")?, self.optional("after")?);
        if !self.python && !after.is_empty() {
            after.insert_str(0, "[ $? -eq 0 ] || exit 1\n");
        }
        Ok([&before, snippet, &after].join("\n"))
    }

    /// What is wrong with the client's end and its output.
    fn problems(&self, ended: Option<ExitStatus>, stdout: &Path) -> Result<Vec<String>, Failed> {
        let mut problems = match ended {
            None => vec![format!("it was still running after {TIME_PER_CLIENT:?}")],
            Some(status) if !status.success() => vec![format!("it ended with {status}")],
            Some(_) => Vec::new(),
        };
        let output = String::from_utf8_lossy(&fs::read(stdout)?).into_owned();
        for rule in self.optional("expect")?.lines() {
            let holds = match rule.split_once(' ') {
                Some(("has", text)) => output.contains(text),
                Some(("lacks", text)) => !output.contains(text),
                Some(("jq", filter)) => jq(filter, stdout)?,
                _ => return Err(format!("{}: no such rule: {rule}", self.beside("expect").display()).into()),
            };
            if !holds {
                problems.push(format!("does not hold: {rule}"));
            }
        }
        Ok(problems)
    }
}

/// Puts the gateway where the snippet names NVIDIA's hosts or a local NIM, the demo's key where it has a stand-in, and a
/// dataset and an ETag of the demo's where it has those of an account that we do not know.
fn adapt(script: &str, url: &str) -> String {
    let hosts =
        ["http://0.0.0.0:8000", "http://<host>:8000", "https://api.ngc.nvidia.com", "https://api.nvcf.nvidia.com"];
    let keys = ["your-api-key", "not-used", "not-needed"];
    let objects = [("50b48bee-ecb1-4a22-afe9-ae90bd4864ae", "${DATASET_ID}"), ("abc123", "${ETAG}")];
    let hosts = hosts.map(|host| (host, url));
    let replaced = hosts.into_iter().chain(keys.map(|key| (key, KEY))).chain(objects);
    replaced.fold(script.to_owned(), |script, (printed, meant)| script.replace(printed, meant))
}

/// Curl reports an HTTP error in its status, and sends the key where the snippet was written for a NIM without keys.
fn curlrc(snippet: &str) -> String {
    let authorization = format!("header = \"Authorization: Bearer {KEY}\"\n");
    ["fail-with-body\n", if snippet.contains("Authorization") { "" } else { &authorization }].concat()
}

/// All that a client sees of the surroundings: no proxies, no keys, no settings of whoever runs the tests.
fn environment(demo: &Demo, home: &Path) -> Vec<(&'static str, String)> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let path = std::env::var("PATH").unwrap_or_default();
    vec![
        ("PATH", format!("{}:{path}", text(&venv().join("bin")))),
        ("HOME", text(home)),
        ("TMPDIR", text(home)),
        ("CURL_HOME", text(home)),
        ("LC_ALL", "C.UTF-8".into()),
        ("CLIENTS", text(&clients())),
        ("JOBS_LOCK", text(&demo.directory.path().join("jobs.lock"))),
        ("NIMGATE_URL", demo.url.clone()),
        ("NIMGATE_KEY", KEY.into()),
        ("NIMGATE_LIMITED_KEY", LIMITED.into()),
        ("COSMOS_KEY", KEY.into()),
        ("API_KEY", KEY.into()),
    ]
}

fn venv() -> PathBuf {
    Path::new(REPOSITORY).join("target/client-venv")
}

/// Whether the filter's last value over the output is neither false nor null.
fn jq(filter: &str, input: &Path) -> io::Result<bool> {
    let (slurp, filter) = filter.strip_prefix("-s ").map_or((None, filter), |filter| (Some("--slurp"), filter));
    let mut command = Command::new("jq");
    command.arg("--exit-status").args(slurp).arg(filter).stdin(File::open(input)?);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}

impl Running {
    fn start(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let (pid, (sender, ended)) = (child.id(), mpsc::channel());
        // Nobody hears it once the tests are over.
        thread::spawn(move || sender.send(child.wait()).ok());
        Ok(Self { pid, ended: Mutex::new(ended) })
    }

    /// Its status, or nothing if it still runs after the limit. Tells the status only once.
    fn wait(&self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        match self.ended.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(limit) {
            Ok(status) => status.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(io::Error::other("its end was already told")),
        }
    }

    /// Sends a signal; `-` as prefix means its whole process group.
    fn signal(&self, name: &str, prefix: &str) -> io::Result<()> {
        let target = format!("{prefix}{}", self.pid);
        // Bash is needed anyway, a program `kill` is not everywhere.
        let mut command = Command::new("bash");
        command.args(["-c", r#"kill -s "$1" -- "$2""#, "kill", name, &target]);
        command.stderr(Stdio::null()).status().map(drop)
    }
}

fn tail(path: &Path, most: usize) -> String {
    let text = fs::read(path).unwrap_or_else(|error| error.to_string().into_bytes());
    String::from_utf8_lossy(&text[text.len().saturating_sub(most)..]).into_owned()
}
