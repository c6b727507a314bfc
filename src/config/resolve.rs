//! Turns the file's text into types, collecting every mistake on the way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::check::dotted;
use super::yaml::{self, Located};
use super::{Admin, Callers, Config, KeysFile, Known, Mistake, Mistakes, SecretText, WrongKeys, callers, file};
use crate::catalogue::Catalogue;
use crate::proxy::settings::{ClientSettings, CorsSettings, ListenerSettings, ListenerTls, Settings};
use crate::quota;
use crate::telemetry::Bounds;
use crate::trace::Sampling;

mod discovery;
mod grpc;
mod limits;
mod pem;
mod pool;
mod store;
mod telemetry;

/// A path that a file names, relative to that file.
pub(super) fn beside(file: &Path, named: &Path) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(named)
}

pub(super) struct Resolver<'a> {
    path: &'a Path,
    located: Located,
    mistakes: Vec<Mistake>,
    files: Vec<PathBuf>,
}

const MIB: usize = 1024 * 1024;

impl<'a> Resolver<'a> {
    pub(super) fn new(path: &'a Path, located: Located) -> Self {
        Self { path, located, mistakes: Vec::new(), files: vec![path.to_owned()] }
    }

    pub(super) fn config(mut self, file: file::File, keys: Option<KeysFile>) -> Result<Config, Mistakes> {
        let listeners = self.listeners(&file.listeners);
        let admin = self.admin(&file.admin);
        self.origins(&file.cors);
        self.log_target(&file.access_log);
        let catalogue = self.catalogue(&file);
        let pools = self.pools(&file, catalogue.as_ref());
        let redis = file.redis.as_ref().map(|redis| self.store(redis));
        let otlp = self.otlp(&file.telemetry);
        let log = self.log(&file.log);
        let sharing = self.sharing(&file);
        let counts = self.counts(&file);
        let known = catalogue.as_ref().map(|catalogue| Known::new(catalogue, &pools)).unwrap_or_default();
        let prices = self.prices(&file.prices, &known);
        let known = known.priced(&prices);
        self.caller_store(&file);
        let keys_file = keys.as_ref().map(|(_, path)| path.clone());
        let Callers { keys, quota, .. } = self.callers(keys, &known, catalogue.is_some());
        let (Some(catalogue), true) = (catalogue, self.mistakes.is_empty()) else {
            // This file first, each file from its head.
            self.mistakes.sort_by_key(|m| (m.file != self.path, m.place));
            return Err(Mistakes(self.mistakes));
        };
        let client = client(&file.client);
        let cors = cors(&file.cors);
        let quota =
            quota::Settings { prices: prices.into(), estimate: limits::estimate(&file.quotas.estimate), ..quota };
        let meter = limits::meter(&file.quotas);
        let traces = &file.telemetry.traces;
        let sampling = Sampling {
            share: traces.sample,
            follows: traces.follow_parent,
            failed: traces.keep_failed,
            slower: traces.keep_slower_ms.map(ms),
            validation: ms(traces.slow_validation_ms),
        };
        let threads = match file.runtime.threads {
            0 => std::thread::available_parallelism().map_or(2, usize::from),
            threads => threads,
        };
        Ok(Config {
            listeners,
            admin,
            max_connections: file.client.max_connections as usize,
            access_log: match file.access_log.target {
                file::LogTarget::File(named) => file::LogTarget::File(beside(self.path, &named)),
                other => other,
            },
            access_log_queue: file.access_log.queue,
            metric_bounds: Bounds {
                counts: file.telemetry.metrics.enabled,
                callers: file.telemetry.metrics.max_callers,
                models: file.telemetry.metrics.max_models,
                endpoints: file.telemetry.metrics.max_endpoints,
            },
            access_log_sample: file.access_log.sample,
            access_log_slow: ms(file.access_log.slow_ms),
            log,
            otlp,
            watch: file.reload.watch.then(|| ms(file.reload.interval_ms)),
            settle: ms(file.shutdown.settle_ms),
            grace: ms(file.shutdown.grace_ms),
            threads,
            redis,
            sharing,
            counts,
            callers: file.callers.store,
            keys_file,
            proxy: Settings { keys, catalogue, pools, client, cors, quota, meter, sampling },
            files: self.files,
        })
    }

    fn caller_store(&mut self, file: &file::File) {
        match file.callers.store {
            file::CallerStore::File if file.callers.keys_file.is_none() => {
                self.mistake("/callers", "store: file needs the key keys_file");
            }
            file::CallerStore::Redis if file.redis.is_none() => {
                self.mistake("/callers/store", "store: redis needs the section redis");
            }
            _ => {}
        }
    }

    /// The records of the keys file. Without a catalogue nobody can tell what is missing.
    fn callers(&mut self, keys: Option<KeysFile>, known: &Known, has_catalogue: bool) -> Callers {
        let Some((keys, path)) = keys else { return Callers::default() };
        self.files.push(path.clone());
        match keys {
            Ok((records, located)) => {
                let callers = callers(records, known);
                for finding in callers.findings.iter().filter(|f| has_catalogue || !f.is_dangling) {
                    let place = Some(located.place(&finding.pointer));
                    let (key, reason) = (finding.key(), finding.reason.clone());
                    self.mistakes.push(Mistake { file: path.clone(), place, key, reason });
                }
                callers
            }
            Err(WrongKeys::Content(Mistakes(found))) => {
                self.mistakes.extend(found);
                Callers::default()
            }
            Err(WrongKeys::Unreadable(e)) => {
                self.mistake("/callers/keys_file", format!("{} can not be read: {e}", path.display()));
                Callers::default()
            }
        }
    }

    fn mistake(&mut self, pointer: &str, reason: impl Into<String>) {
        let place = Some(self.located.place(pointer));
        let mistake = Mistake { file: self.path.to_owned(), place, key: dotted(pointer), reason: reason.into() };
        self.mistakes.push(mistake);
    }

    fn address(&mut self, pointer: &str, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.mistake(pointer, "expected an IP address and port, such as 0.0.0.0:8080 or [::]:8080");
            ([127, 0, 0, 1], 0).into()
        })
    }

    fn listeners(&mut self, listeners: &[file::Listener]) -> Vec<ListenerSettings> {
        if listeners.is_empty() {
            self.mistake("/listeners", "expected at least one listener");
        }
        let mut resolved: Vec<ListenerSettings> = Vec::new();
        for (at, listener) in listeners.iter().enumerate() {
            let pointer = format!("/listeners/{at}");
            let tls = listener.tls.as_ref().map(|tls| self.listener_tls(&pointer, tls));
            if tls.is_some() && listener.http2_cleartext {
                self.mistake(
                    &format!("{pointer}/http2_cleartext"),
                    "a TLS listener has HTTP/2 by ALPN; leave this out",
                );
            }
            let address = self.address(&format!("{pointer}/address"), &listener.address);
            if resolved.iter().any(|r| r.address == address) {
                self.mistake(&format!("{pointer}/address"), "another listener has this address already");
            }
            resolved.push(ListenerSettings { address, tls, http2_cleartext: listener.http2_cleartext });
        }
        resolved
    }

    fn listener_tls(&mut self, pointer: &str, tls: &file::ListenerTls) -> ListenerTls {
        let certificate_file = self.readable(&format!("{pointer}/tls/certificate_file"), &tls.certificate_file);
        let key_file = self.readable(&format!("{pointer}/tls/key_file"), &tls.key_file);
        let client_ca_file =
            tls.client_ca_file.as_ref().map(|ca| self.readable(&format!("{pointer}/tls/client_ca_file"), ca));
        if let Err(reason) = pem::certified(&certificate_file, &key_file) {
            self.mistake(&format!("{pointer}/tls"), reason);
        }
        if client_ca_file.as_ref().is_some_and(|path| path.exists() && pem::certificates(path).is_empty()) {
            self.mistake(&format!("{pointer}/tls/client_ca_file"), pem::ONE_CERTIFICATE);
        }
        ListenerTls { certificate_file, key_file, client_ca_file }
    }

    /// A file that must exist, and whose changes are followed.
    fn readable(&mut self, pointer: &str, named: &Path) -> PathBuf {
        let path = beside(self.path, named);
        if let Err(e) = std::fs::File::open(&path) {
            self.mistake(pointer, format!("{} can not be read: {e}", path.display()));
        }
        self.files.push(path.clone());
        path
    }

    fn admin(&mut self, admin: &file::Admin) -> Admin {
        let address = self.address("/admin/address", &admin.address);
        let token = admin.token.as_ref().and_then(|secret| self.secret("/admin/token", secret));
        if admin.token.is_none() && !address.ip().is_loopback() {
            self.mistake("/admin/address", "an admin address beyond loopback needs admin.token");
        }
        Admin { address, token, recent: admin.recent as usize }
    }

    fn origins(&mut self, cors: &file::Cors) {
        for (at, origin) in cors.allow_origins.iter().enumerate() {
            let bare = |rest: &str| !rest.is_empty() && !rest.contains(['/', '?', '#', '@']);
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if origin != "*" && !rest.is_some_and(bare) {
                let reason = "expected * or an origin such as https://app.example.com, without a path";
                self.mistake(&format!("/cors/allow_origins/{at}"), reason);
            }
        }
    }

    fn log_target(&mut self, log: &file::AccessLog) {
        let file::LogTarget::File(named) = &log.target else { return };
        let path = beside(self.path, named);
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !directory.is_dir() {
            self.mistake("/access_log/target/file", format!("there is no directory {}", directory.display()));
        }
    }

    /// What stands here may be the secret itself, put in the wrong place: it is never quoted.
    fn secret(&mut self, pointer: &str, secret: &file::Secret) -> Option<SecretText> {
        let found = match secret {
            file::Secret::Env(name) if !is_variable(name) => {
                Err("expected the name of an environment variable: letters, digits and _".into())
            }
            file::Secret::Env(name) => {
                std::env::var(name).map_err(|_| format!("the environment variable {name} is not set or not text"))
            }
            file::Secret::File(named) => {
                let path = beside(self.path, named);
                self.files.push(path.clone());
                std::fs::read_to_string(&path)
                    .map_err(|e| format!("expected the path of a file that holds the secret; it can not be read: {e}"))
            }
        };
        match found.map(|text| text.trim().to_owned()) {
            Ok(text) if !text.is_empty() => return Some(SecretText(text)),
            Ok(_) => self.mistake(pointer, "the secret is empty"),
            Err(reason) => self.mistake(pointer, reason),
        }
        None
    }

    fn catalogue(&mut self, file: &file::File) -> Option<Catalogue> {
        let directory = file.catalogue.directory.as_ref().map(|d| beside(self.path, d));
        if let Some(directory) = &directory {
            self.files.push(directory.clone());
            let documents = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
            self.files.extend(documents.map(|entry| entry.path()).filter(|path| path.is_file()));
        }
        let limit = file.client.max_body_mib * MIB;
        let loaded = Catalogue::load(directory.as_deref(), yaml::parse_value, limit);
        loaded.map_err(|bad| self.mistake("/catalogue/directory", bad.to_string())).ok()
    }
}

fn ms(value: u64) -> Duration {
    Duration::from_millis(value)
}

fn client(client: &file::Client) -> ClientSettings {
    ClientSettings {
        body_timeout: ms(client.body_timeout_ms),
        body_idle_timeout: ms(client.body_idle_timeout_ms),
        keepalive_timeout: ms(client.keepalive_timeout_ms),
        write_timeout: ms(client.write_timeout_ms),
        max_header_bytes: client.max_header_bytes,
        max_headers: client.max_headers,
        header_timeout: ms(client.header_timeout_ms),
    }
}

fn cors(cors: &file::Cors) -> CorsSettings {
    CorsSettings {
        any_origin: cors.allow_origins.iter().any(|o| o == "*"),
        origins: cors.allow_origins.clone(),
        max_age_s: cors.max_age_s,
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
