//! Turns the file's text into types, collecting every mistake on the way.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use http::{HeaderName, HeaderValue, Uri};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::check::dotted;
use super::yaml::{self, Located};
use super::{Admin, Config, Mistake, Mistakes, SecretText, file};
use crate::catalogue::Catalogue;
use crate::proxy::settings::{
    ClientSettings, CorsSettings, ListenerSettings, ListenerTls, PoolSettings, ProbeSettings, Settings, Timeouts,
    TlsSettings,
};
use crate::{auth, balance, route, schema, upstream};

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

    pub(super) fn config(
        mut self,
        file: file::File,
        keys_path: &Path,
        keys: Result<(file::Keys, Located), Mistakes>,
    ) -> Result<Config, Mistakes> {
        let listeners = self.listeners(&file.listeners);
        let admin = self.admin(&file.admin);
        let catalogue = self.catalogue(&file);
        let pools = self.pools(&file, catalogue.as_ref());
        self.files.push(keys_path.to_owned());
        let keys = match keys {
            Ok((keys, located)) => self.keys(keys_path, keys, &located, &file.pools),
            Err(Mistakes(found)) => {
                self.mistakes.extend(found);
                Vec::new()
            }
        };
        let (Some(catalogue), true) = (catalogue, self.mistakes.is_empty()) else {
            return Err(Mistakes(self.mistakes));
        };
        let client = client(&file.client);
        let cors = cors(&file.cors);
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
            watch: file.reload.watch.then(|| ms(file.reload.interval_ms)),
            settle: ms(file.shutdown.settle_ms),
            grace: ms(file.shutdown.grace_ms),
            threads,
            proxy: Settings { keys, catalogue, pools, client, cors },
            files: self.files,
        })
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
        let mut resolved = Vec::new();
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
            resolved.push(ListenerSettings { address, tls, http2_cleartext: listener.http2_cleartext });
        }
        resolved
    }

    fn listener_tls(&mut self, pointer: &str, tls: &file::ListenerTls) -> ListenerTls {
        let certificate_file = self.readable(&format!("{pointer}/tls/certificate_file"), &tls.certificate_file);
        let key_file = self.readable(&format!("{pointer}/tls/key_file"), &tls.key_file);
        let client_ca_file =
            tls.client_ca_file.as_ref().map(|ca| self.readable(&format!("{pointer}/tls/client_ca_file"), ca));
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
        Admin { address, token }
    }

    fn secret(&mut self, pointer: &str, secret: &file::Secret) -> Option<SecretText> {
        let found = match secret {
            file::Secret::Env(name) => {
                std::env::var(name).map_err(|_| format!("the environment variable {name} is not set or not text"))
            }
            file::Secret::File(named) => {
                let path = beside(self.path, named);
                self.files.push(path.clone());
                std::fs::read_to_string(&path).map_err(|e| format!("{} can not be read: {e}", path.display()))
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
        let limit = file.client.max_body_mib * MIB;
        let loaded = Catalogue::load(directory.as_deref(), yaml::parse_value, limit);
        loaded.map_err(|bad| self.mistake("/catalogue/directory", bad.to_string())).ok()
    }

    fn pools(&mut self, file: &file::File, catalogue: Option<&Catalogue>) -> Vec<PoolSettings> {
        let mut names: HashSet<&str> = HashSet::new();
        let mut served: HashMap<(String, String), usize> = HashMap::new();
        let mut resolved = Vec::new();
        for (at, pool) in file.pools.iter().enumerate() {
            let pointer = format!("/pools/{at}");
            if !names.insert(&pool.name) {
                self.mistake(&format!("{pointer}/name"), format!("another pool is named {} already", pool.name));
            }
            self.pool_api(&pointer, pool, catalogue);
            for (i, model) in pool.models.iter().enumerate() {
                for name in std::iter::once(&model.id).chain(&model.aliases) {
                    let earlier = served.insert((pool.api.clone(), name.clone()), at);
                    if let Some(earlier) = earlier {
                        let other = &file.pools[earlier].name;
                        let reason = format!("the pool {other} serves `{name}` for this API already");
                        self.mistake(&format!("{pointer}/models/{i}"), reason);
                    }
                }
            }
            resolved.push(self.pool(&pointer, pool, file.client.max_violations));
        }
        for api in file.pools.iter().map(|p| &p.api).collect::<HashSet<_>>() {
            let defaults: Vec<usize> =
                (0..file.pools.len()).filter(|i| file.pools[*i].api == *api && file.pools[*i].default).collect();
            if let [_, second, ..] = defaults[..] {
                self.mistake(&format!("/pools/{second}/default"), format!("the API {api} has a default pool already"));
            }
        }
        resolved
    }

    fn pool_api(&mut self, pointer: &str, pool: &file::Pool, catalogue: Option<&Catalogue>) {
        let Some(catalogue) = catalogue else { return };
        let Some(api) = catalogue.apis.get(pool.api.as_str()) else {
            let known: Vec<&str> = catalogue.apis.keys().map(|n| n.as_str()).collect();
            self.mistake(&format!("{pointer}/api"), format!("expected an API of the catalogue: {}", known.join(", ")));
            return;
        };
        let by_model = api.operations.iter().any(|o| catalogue.operation(*o).routes_by_model);
        if by_model && pool.models.is_empty() {
            self.mistake(pointer, format!("requests of the API {} name a model; list the pool's models", pool.api));
        }
    }

    fn pool(&mut self, pointer: &str, pool: &file::Pool, max_violations: usize) -> PoolSettings {
        let kind = self.kind(pointer, pool);
        let inject = self.inject(pointer, pool, &kind);
        let (endpoints, https) = self.endpoints(pointer, pool);
        let tls = self.tls(pointer, pool, https);
        PoolSettings {
            name: pool.name.as_str().into(),
            api: pool.api.as_str().into(),
            kind,
            default: pool.default,
            models: pool.models.iter().flat_map(model_names).collect(),
            endpoints,
            inject,
            schema: schema::Settings {
                validation: match pool.validation {
                    file::Validation::Lenient => schema::Validation::Lenient,
                    file::Validation::Strict => schema::Validation::Strict,
                    file::Validation::Off => schema::Validation::Off,
                },
                url_input: match pool.url_input {
                    file::UrlInput::Any => schema::UrlInput::Any,
                    file::UrlInput::Off => schema::UrlInput::Off,
                },
                max_violations,
            },
            body_limit: pool.max_body_mib.map(|mib| mib * MIB),
            probe: pool.health.enabled.then(|| ProbeSettings {
                path: pool.health.path.clone(),
                interval: ms(pool.health.interval_ms),
                timeout: ms(pool.health.timeout_ms),
            }),
            timeouts: Timeouts {
                connect: ms(pool.timeouts.connect_ms),
                first_byte: ms(pool.timeouts.first_byte_ms),
                between_chunks: ms(pool.timeouts.between_chunks_ms),
                total: ms(pool.timeouts.total_ms),
            },
            tls,
            http2: pool.connection.http2,
            idle_timeout: ms(pool.connection.idle_timeout_ms),
            connect_retries: pool.connection.connect_retries,
        }
    }

    fn kind(&mut self, pointer: &str, pool: &file::Pool) -> upstream::Kind {
        if !pool.health.path.starts_with('/') || pool.health.path.parse::<Uri>().is_err() {
            self.mistake(&format!("{pointer}/health/path"), "expected a path that begins with /");
        }
        if pool.function.is_some() && pool.kind != file::Kind::Nvcf {
            self.mistake(&format!("{pointer}/function"), "only a pool of kind nvcf has a function");
        }
        match pool.kind {
            file::Kind::Nim => upstream::Kind::Nim,
            file::Kind::Ngc => upstream::Kind::Ngc,
            file::Kind::Nvcf => upstream::Kind::Nvcf(pool.function.as_ref().map(|f| upstream::Function {
                id: f.id.clone(),
                version: f.version.clone(),
                invocation: match f.invocation {
                    file::Invocation::Direct => upstream::Invocation::Direct,
                    file::Invocation::Pexec => upstream::Invocation::Pexec,
                },
            })),
        }
    }

    fn inject(&mut self, pointer: &str, pool: &file::Pool, kind: &upstream::Kind) -> Vec<(HeaderName, HeaderValue)> {
        let mut inject = kind.headers().unwrap_or_default();
        for (name, value) in &pool.headers {
            let at = format!("{pointer}/headers/{name}");
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) if !is_hop_by_hop(&name) => inject.push((name, value)),
                (Ok(_), Ok(_)) => self.mistake(&at, "this header belongs to the connection and can not be set"),
                (Err(_), _) => self.mistake(&at, "not a header name"),
                (_, Err(_)) => self.mistake(&at, "not a header value"),
            }
        }
        let Some(credential) = &pool.credential else { return inject };
        let secret = self.secret(&format!("{pointer}/credential/secret"), &credential.secret);
        let Some(secret) = secret else { return inject };
        let value = if credential.scheme.is_empty() {
            secret.reveal().to_owned()
        } else {
            format!("{} {}", credential.scheme, secret.reveal())
        };
        match (HeaderName::from_bytes(credential.header.as_bytes()), HeaderValue::from_str(&value)) {
            (Ok(name), Ok(mut value)) if !is_hop_by_hop(&name) => {
                value.set_sensitive(true);
                inject.push((name, value));
            }
            (_, Err(_)) => self.mistake(&format!("{pointer}/credential/secret"), "the secret is no header value"),
            _ => self.mistake(&format!("{pointer}/credential/header"), "not a header name that can be set"),
        }
        inject
    }

    fn endpoints(&mut self, pointer: &str, pool: &file::Pool) -> (Vec<balance::Settings>, Option<bool>) {
        let thresholds = balance::Thresholds {
            unhealthy_after: pool.health.unhealthy_after,
            healthy_after: pool.health.healthy_after,
        };
        let mut https = None;
        let mut resolved: Vec<balance::Settings> = Vec::new();
        for (at, endpoint) in pool.endpoints.iter().enumerate() {
            let at = format!("{pointer}/endpoints/{at}/url");
            let Some((secure, host, port)) = host_and_port(&endpoint.url) else {
                self.mistake(&at, "expected http://host[:port] or https://host[:port], without a path");
                continue;
            };
            if https.is_some_and(|https| https != secure) {
                self.mistake(&at, "the endpoints of a pool are all http or all https");
            }
            https = Some(secure);
            let name = format!("{host}:{port}");
            if resolved.iter().any(|e| e.name == name) {
                self.mistake(&at, "this endpoint is listed twice");
            }
            resolved.push(balance::Settings { name, host, port, thresholds });
        }
        (resolved, https)
    }

    fn tls(&mut self, pointer: &str, pool: &file::Pool, https: Option<bool>) -> Option<TlsSettings> {
        if https != Some(true) {
            if pool.tls.ca_file.is_some() || pool.tls.server_name.is_some() {
                self.mistake(&format!("{pointer}/tls"), "the pool's endpoints are not https");
            }
            return None;
        }
        let authorities = pool.tls.ca_file.as_ref().map(|named| {
            let at = format!("{pointer}/tls/ca_file");
            let path = self.readable(&at, named);
            let found: Vec<Vec<u8>> = CertificateDer::pem_file_iter(&path)
                .map(|all| all.filter_map(Result::ok).map(|c| c.to_vec()).collect())
                .unwrap_or_default();
            if found.is_empty() {
                self.mistake(&at, "expected a PEM file with at least one certificate");
            }
            found
        });
        Some(TlsSettings { authorities, server_name: pool.tls.server_name.clone() })
    }

    fn keys(&mut self, path: &Path, keys: file::Keys, located: &Located, pools: &[file::Pool]) -> Vec<auth::Settings> {
        let models: HashSet<&str> = pools.iter().flat_map(|p| p.models.iter().map(|m| m.id.as_str())).collect();
        let names: HashSet<&str> = pools.iter().map(|p| p.name.as_str()).collect();
        let mut ids = HashSet::new();
        let mut resolved = Vec::new();
        for (at, key) in keys.keys.into_iter().enumerate() {
            let mut wrong = |below: &str, reason: String| {
                let pointer = format!("/keys/{at}{below}");
                let place = Some(located.place(&pointer));
                self.mistakes.push(Mistake { file: path.to_owned(), place, key: dotted(&pointer), reason });
            };
            if !ids.insert(key.id.clone()) {
                wrong("/id", format!("another key has the id {} already", key.id));
            }
            for (i, model) in key.models.iter().enumerate().filter(|(_, m)| !models.contains(m.as_str())) {
                wrong(&format!("/models/{i}"), format!("no pool lists a model with the id {model}"));
            }
            for (i, pool) in key.pools.iter().enumerate().filter(|(_, p)| !names.contains(p.as_str())) {
                wrong(&format!("/pools/{i}"), format!("there is no pool {pool}"));
            }
            let expires = key.expires.as_deref().map(DateTime::parse_from_rfc3339).transpose();
            let expires = expires.unwrap_or_else(|e| {
                wrong("/expires", format!("expected a time such as 2027-01-31T00:00:00Z: {e}"));
                None
            });
            resolved.push(auth::Settings {
                id: key.id.into(),
                secret_hash: hash(&key.sha256),
                org: key.org,
                team: key.team,
                name: key.name,
                scopes: key.scopes,
                models: key.models.into_iter().map(Into::into).collect(),
                pools: key.pools.into_iter().map(Into::into).collect(),
                expires: expires.map(|t| t.with_timezone(&Utc)),
                disabled: key.disabled,
            });
        }
        resolved
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

fn model_names(model: &file::Model) -> Vec<(String, route::ModelEntry)> {
    let backend = model.backend_model.clone().unwrap_or_else(|| model.id.clone());
    let entry = |sent: &String| {
        let backend = (*sent != backend).then(|| backend.clone());
        (sent.clone(), route::ModelEntry { id: model.id.as_str().into(), backend })
    };
    std::iter::once(&model.id).chain(&model.aliases).map(entry).collect()
}

fn host_and_port(url: &str) -> Option<(bool, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let secure = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none() && !url.contains('@');
    let host = uri.host().filter(|h| !h.is_empty())?;
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    plain.then(|| (secure, host.to_owned(), port))
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection" | "keep-alive" | "te" | "trailer" | "transfer-encoding" | "upgrade" | "content-length" | "host"
    )
}

/// 64 hexadecimal digits, which the schema has checked.
fn hash(hex: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(pair).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    bytes
}
