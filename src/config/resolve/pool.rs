//! Pools: their names, models, endpoints, TLS and what is sent to them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use http::{HeaderName, HeaderValue, Uri};
use rustls::pki_types::ServerName;
use sha2::{Digest as _, Sha256};

use super::{MIB, Resolver, ms, pem};
use crate::admission::pace;
use crate::catalogue::Catalogue;
use crate::config::check::escaped;
use crate::config::file;
use crate::ids::PoolIndex;
use crate::proxy::settings::{
    CacheScope, CacheSettings, Endpoints, HedgeSettings, PaceSettings, PoolSettings, ProbeSettings, QueueSettings,
    RetrySettings, ScrapeSettings, ShadowSettings, SpillSettings, Timeouts, TlsSettings,
};
use crate::{balance, route, schema, transcript, upstream};

impl Resolver<'_> {
    pub(super) fn pools(&mut self, file: &file::File, catalogue: Option<&Catalogue>) -> Vec<PoolSettings> {
        let mut names: HashSet<&str> = HashSet::new();
        let mut defaults: HashSet<(&str, Option<&str>)> = HashSet::new();
        let mut resolved = Vec::new();
        for (at, pool) in file.pools.iter().enumerate() {
            let pointer = format!("/pools/{at}");
            if !names.insert(&pool.name) {
                self.mistake(&format!("{pointer}/name"), format!("another pool is named {} already", pool.name));
            }
            if pool.default && !defaults.insert((&pool.api, pool.domain.as_deref())) {
                let reason = format!("the API {} has a default pool already", pool.api);
                self.mistake(&format!("{pointer}/default"), reason);
            }
            self.pool_api(&pointer, pool, catalogue);
            self.cacheable(&pointer, pool, catalogue);
            let mut settings = self.pool(&pointer, pool, file);
            if catalogue.is_some_and(|catalogue| catalogue.is_grpc(&settings.api)) {
                self.grpc(&pointer, pool, &mut settings);
            }
            resolved.push(settings);
        }
        self.model_names(&file.pools, catalogue);
        resolved
    }

    /// A name means one model of one pool, as far as the pools' APIs have operations in common that name a model; pools
    /// that take each other's requests share it.
    fn model_names(&mut self, pools: &[file::Pool], catalogue: Option<&Catalogue>) {
        let mut served: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, pool) in pools.iter().enumerate() {
            for (i, model) in pool.models.iter().enumerate() {
                let aliases = model.aliases.iter().enumerate();
                let aliases = aliases.map(|(j, alias)| (alias, format!("/pools/{at}/models/{i}/aliases/{j}")));
                for (name, pointer) in std::iter::once((&model.id, format!("/pools/{at}/models/{i}/id"))).chain(aliases)
                {
                    if name.is_empty() {
                        self.mistake(&pointer, "expected text, found none");
                    }
                    let earlier = served.entry(name).or_default();
                    let is_rival = |e: &&usize| {
                        **e == at
                            || (compete(&pools[**e].api, &pool.api, catalogue) && !are_linked(pools, **e, at, name))
                    };
                    let rival = earlier.iter().find(is_rival).copied();
                    match rival {
                        Some(rival) if rival == at => self.mistake(&pointer, "this pool has that name already"),
                        Some(rival) => {
                            let reason = format!("the pool {} serves a model of that name already", pools[rival].name);
                            self.mistake(&pointer, reason);
                        }
                        None => {}
                    }
                    earlier.push(at);
                }
            }
        }
    }

    fn pool_api(&mut self, pointer: &str, pool: &file::Pool, catalogue: Option<&Catalogue>) {
        let Some(catalogue) = catalogue else { return };
        let Some(api) = catalogue.apis.get(pool.api.as_str()) else {
            let known: Vec<&str> = catalogue.apis.keys().map(|n| n.as_str()).collect();
            self.mistake(&format!("{pointer}/api"), format!("expected an API of the catalogue: {}", known.join(", ")));
            return;
        };
        let by_model = api.operations.iter().any(|o| catalogue.operation(*o).routes_by_model);
        let has =
            |domain: &String| api.operations.iter().any(|o| catalogue.operation(*o).domain.as_ref() == Some(domain));
        if pool.domain.as_ref().is_some_and(|domain| !has(domain)) {
            let reason = format!("no operation of the API {} is of this domain", pool.api);
            self.mistake(&format!("{pointer}/domain"), reason);
        }
        if by_model && pool.models.is_empty() {
            self.mistake(pointer, format!("requests of the API {} name a model; list the pool's models", pool.api));
        }
    }

    fn pool(&mut self, pointer: &str, pool: &file::Pool, file: &file::File) -> PoolSettings {
        let kind = self.kind(pointer, pool);
        let inject = self.inject(pointer, pool, &kind);
        let (endpoints, https) = self.endpoints(pointer, pool);
        let tls = self.tls(pointer, pool, https);
        PoolSettings {
            name: pool.name.as_str().into(),
            api: pool.api.as_str().into(),
            pace: paced(pool, &inject),
            kind,
            default: pool.default,
            models: self.models(pointer, pool),
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
                max_violations: file.client.max_violations,
            },
            body_limit: pool.max_body_mib.map(|mib| mib * MIB),
            probe: pool.health.enabled.unwrap_or(pool.kind == file::Kind::Nim).then(|| ProbeSettings {
                path: pool.health.path.clone(),
                interval: ms(pool.health.interval_ms),
                timeout: ms(pool.health.timeout_ms),
            }),
            timeouts: Timeouts {
                connect: ms(pool.timeouts.connect_ms),
                first_byte: ms(pool.timeouts.first_byte_ms),
                first_event: ms(pool.timeouts.first_event_ms),
                between_chunks: ms(pool.timeouts.between_chunks_ms),
                total: ms(pool.timeouts.total_ms),
            },
            tls,
            http2: pool.connection.http2,
            grpc: false,
            idle_timeout: ms(pool.connection.idle_timeout_ms),
            queue: QueueSettings {
                max: pool.queue.max,
                max_per_caller: pool.queue.max_per_caller,
                timeout: ms(pool.queue.timeout_ms),
                max_in_flight: pool.queue.max_in_flight,
                keepalive: (pool.queue.keepalive_ms > 0).then(|| ms(pool.queue.keepalive_ms)),
            },
            transcripts: self.transcripts(pointer, pool),
            stream_keepalive: (pool.stream.keepalive_ms > 0).then(|| ms(pool.stream.keepalive_ms)),
            retry: RetrySettings {
                attempts: pool.retry.attempts,
                budget: pool.retry.budget_percent as f32 / 100.0,
                per_second: pool.retry.budget_per_second,
            },
            spill: self.spill(pointer, pool, file),
            hedge: pool.hedge.enabled.then(|| HedgeSettings {
                after: pool.hedge.after_ms.map(ms),
                budget: pool.hedge.budget_percent as f32 / 100.0,
            }),
            shadow: self.shadow(pointer, pool, file),
            cache: pool.cache.enabled.then(|| cache(&pool.cache)),
            balance: tuning(pool),
            assets_above: self.assets_above(pointer, pool),
            domain: pool.domain.clone(),
            any_polls: pool.polls == file::Polls::Any,
            scrape: pool.metrics.enabled.unwrap_or(pool.kind == file::Kind::Nim).then(|| ScrapeSettings {
                path: pool.metrics.path.clone(),
                interval: ms(pool.metrics.interval_ms),
                timeout: ms(pool.metrics.timeout_ms),
                max_bytes: pool.metrics.max_kib * 1024,
                in_answers: pool.metrics.in_answers,
            }),
        }
    }

    fn transcripts(&mut self, pointer: &str, pool: &file::Pool) -> Option<Arc<transcript::Policy>> {
        let stated = pool.transcripts.as_ref()?;
        match transcript::Redactor::new(&stated.redact) {
            Ok(redactor) => Some(Arc::new(transcript::Policy { most: stated.max_bytes, redactor })),
            Err((at, transcript::Rejected(reason))) => {
                self.mistake(&format!("{pointer}/transcripts/redact/{at}"), reason);
                None
            }
        }
    }

    fn assets_above(&mut self, pointer: &str, pool: &file::Pool) -> Option<usize> {
        let assets = pool.assets.as_ref()?;
        if !pool.function.as_ref().is_some_and(|function| matches!(function.invocation, file::Invocation::Pexec)) {
            self.mistake(&format!("{pointer}/assets"), "only a function that is invoked by pexec takes assets");
        }
        Some(assets.above_kib * 1024)
    }

    /// A cache needs to know what vectors follow from.
    fn cacheable(&mut self, pointer: &str, pool: &file::Pool, catalogue: Option<&Catalogue>) {
        if !pool.cache.enabled {
            return;
        }
        let at = format!("{pointer}/cache/enabled");
        let api = catalogue.and_then(|c| Some((c, c.apis.get(pool.api.as_str())?)));
        if let Some((catalogue, api)) = api
            && !api.operations.iter().any(|o| catalogue.operation(*o).cacheable.is_some())
        {
            self.mistake(&at, format!("no operation of the API {} says how its answers may be kept", pool.api));
        }
        if pool.kind != file::Kind::Nim {
            self.mistake(&at, "only endpoints of kind nim tell which revision of a model they serve");
        }
    }

    fn models(&mut self, pointer: &str, pool: &file::Pool) -> Vec<(String, route::ModelEntry)> {
        let mut names = Vec::new();
        for (at, model) in pool.models.iter().enumerate() {
            let end = model.end_of_life.as_deref().map(|text| (moment(text), text));
            if let Some((None, _)) = end {
                let reason = "expected a date or a time, such as 2027-01-31 or 2027-01-31T12:00:00Z";
                self.mistake(&format!("{pointer}/models/{at}/end_of_life"), reason);
            }
            let life = route::Life {
                end: end.and_then(|(end, _)| end),
                offline: model.offline_message.as_deref().map(Into::into),
                rate_limited: model.rate_limit_message.as_deref().map(Into::into),
            };
            names.extend(model_names(model, &life));
        }
        names
    }

    fn spill(&mut self, pointer: &str, pool: &file::Pool, file: &file::File) -> SpillSettings {
        let mut to = Vec::new();
        for (at, name) in pool.spill.to.iter().enumerate() {
            let found = self.other_pool(&format!("{pointer}/spill/to/{at}"), name, pool, file);
            if found.is_some_and(|found| to.contains(&found)) {
                self.mistake(&format!("{pointer}/spill/to/{at}"), "this pool is listed twice");
            }
            to.extend(found);
        }
        let on = |reason| pool.spill.on.contains(&reason);
        SpillSettings {
            to,
            overload: on(file::SpillReason::Overload),
            outage: on(file::SpillReason::Outage),
            end_of_life: on(file::SpillReason::EndOfLife),
            after: ms(pool.spill.after_ms),
        }
    }

    fn shadow(&mut self, pointer: &str, pool: &file::Pool, file: &file::File) -> Option<ShadowSettings> {
        let shadow = pool.shadow.as_ref()?;
        Some(ShadowSettings {
            pool: self.other_pool(&format!("{pointer}/shadow/pool"), &shadow.pool, pool, file)?,
            share: shadow.percent / 100.0,
            max_in_flight: shadow.max_in_flight,
            max_body: shadow.max_body_kib * 1024,
        })
    }

    /// Another pool of the same API.
    fn other_pool(&mut self, pointer: &str, name: &str, pool: &file::Pool, file: &file::File) -> Option<PoolIndex> {
        let found = file.pools.iter().position(|other| other.name == name);
        match found {
            None => self.mistake(pointer, format!("there is no pool {name:?}")),
            Some(at) if file.pools[at].name == pool.name => self.mistake(pointer, "expected another pool"),
            Some(at) if file.pools[at].api != pool.api => {
                let reason = format!("the pool {name} serves the API {}, this one {}", file.pools[at].api, pool.api);
                self.mistake(pointer, reason);
            }
            Some(at) if file.pools[at].domain != pool.domain => {
                self.mistake(pointer, format!("the pool {name} serves another domain of the API"));
            }
            Some(_) => {}
        }
        found.map(PoolIndex)
    }

    fn kind(&mut self, pointer: &str, pool: &file::Pool) -> upstream::Kind {
        for (key, path) in [("health", &pool.health.path), ("metrics", &pool.metrics.path)] {
            if !path.starts_with('/') || path.parse::<Uri>().is_err() {
                self.mistake(&format!("{pointer}/{key}/path"), "expected a path that begins with /");
            }
        }
        if pool.function.is_some() && pool.kind != file::Kind::Nvcf {
            self.mistake(&format!("{pointer}/function"), "only a pool of kind nvcf has a function");
        } else if pool.function.is_some() && pool.api == "nvcf" {
            self.mistake(
                &format!("{pointer}/function"),
                "requests of the API nvcf name their function; leave this out",
            );
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
                wait: upstream::Wait {
                    hold: Duration::from_secs(f.wait.hold_s),
                    degraded: ms(f.wait.degraded_ms),
                    largest: f.wait.result_max_mib << 20,
                    is_private: f.wait.private_results,
                },
            })),
        }
    }

    fn inject(&mut self, pointer: &str, pool: &file::Pool, kind: &upstream::Kind) -> Vec<(HeaderName, HeaderValue)> {
        let mut inject = kind.headers().unwrap_or_default();
        for (name, value) in &pool.headers {
            let at = format!("{pointer}/headers/{}", escaped(name));
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), _) if is_credential(&name) => {
                    self.mistake(
                        &at,
                        "a credential belongs into the key credential, and its secret into a file or variable",
                    );
                }
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

    /// Where the endpoints are, and whether they are https.
    fn endpoints(&mut self, pointer: &str, pool: &file::Pool) -> (Endpoints, Option<bool>) {
        let thresholds = balance::Thresholds {
            unhealthy_after: pool.health.unhealthy_after,
            healthy_after: pool.health.healthy_after,
        };
        let nothing = (Endpoints::Listed(Vec::new()), None);
        match (&pool.endpoints, &pool.discovery) {
            (Some(listed), None) => self.listed(pointer, listed, thresholds),
            (None, Some(discovery)) => {
                let found = self.discovery(&format!("{pointer}/discovery"), discovery);
                let Some((source, how)) = found else { return nothing };
                let https = discovery.scheme == file::Scheme::Https;
                (Endpoints::Found { source, how: Box::new(how), thresholds }, Some(https))
            }
            (Some(_), Some(_)) => {
                let reason = "the pool lists its endpoints; leave this out, or the key endpoints";
                self.mistake(&format!("{pointer}/discovery"), reason);
                nothing
            }
            (None, None) => {
                self.mistake(pointer, "expected the key endpoints or the key discovery, found neither");
                nothing
            }
        }
    }

    fn listed(
        &mut self,
        pointer: &str,
        listed: &[file::Endpoint],
        thresholds: balance::Thresholds,
    ) -> (Endpoints, Option<bool>) {
        let mut https = None;
        let mut resolved: Vec<balance::Settings> = Vec::new();
        for (at, endpoint) in listed.iter().enumerate() {
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
        (Endpoints::Listed(resolved), https)
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
            let found: Vec<Vec<u8>> = pem::certificates(&path).into_iter().map(|c| c.to_vec()).collect();
            if found.is_empty() && path.exists() {
                self.mistake(&at, pem::ONE_CERTIFICATE);
            }
            found
        });
        // An empty or impossible name would leave the backend's certificate unverified, or fail every connection.
        if pool.tls.server_name.as_ref().is_some_and(|name| ServerName::try_from(name.as_str()).is_err()) {
            self.mistake(&format!("{pointer}/tls/server_name"), "expected a host name, such as nim.example.com");
        }
        if pool.tls.server_name.is_none() {
            for (at, _) in pool.endpoints.iter().flatten().enumerate().filter(|(_, e)| e.url.contains('[')) {
                let reason = "an https endpoint with an IPv6 address needs tls.server_name";
                self.mistake(&format!("{pointer}/endpoints/{at}/url"), reason);
            }
        }
        Some(TlsSettings { authorities, server_name: pool.tls.server_name.clone() })
    }
}

fn cache(cache: &file::Cache) -> CacheSettings {
    CacheSettings {
        ttl: Duration::from_secs(cache.ttl_s),
        jitter: f64::from(cache.jitter_percent) / 100.0,
        scope: match cache.scope {
            file::CacheScope::Org => CacheScope::Org,
            file::CacheScope::Global => CacheScope::Global,
            file::CacheScope::Key => CacheScope::Key,
        },
        most_bytes: cache.max_mib * MIB as u64,
        in_redis: cache.redis,
        budget: ms(cache.budget_ms),
        largest_value: cache.max_value_kib * 1024,
        keeps_media: cache.media,
        interval: ms(cache.revision_interval_ms),
    }
}

/// The pace of a pool, which it shares with those of the same credential and function.
fn paced(pool: &file::Pool, inject: &[(HeaderName, HeaderValue)]) -> Option<PaceSettings> {
    let learns = pool.pace.learn.unwrap_or(pool.function.is_some());
    if !learns && pool.pace.per_minute.is_none() {
        return None;
    }
    let mut shared = Sha256::new();
    for (_, credential) in inject.iter().filter(|(name, _)| is_credential(name)) {
        shared.update(credential.as_bytes());
    }
    shared.update([0]);
    shared.update(pool.function.as_ref().map_or(pool.name.as_bytes(), |function| function.id.as_bytes()));
    let settings = pace::Settings {
        most: pool.pace.per_minute,
        learns,
        least: pool.pace.least_per_minute,
        recovery: pool.pace.recovery_per_minute,
    };
    let shared = shared.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    Some(PaceSettings { shared, settings })
}

fn tuning(pool: &file::Pool) -> balance::Tuning {
    balance::Tuning {
        policy: match pool.balance.policy {
            file::Policy::Work => balance::Policy::Work,
            file::Policy::LeastInFlight => balance::Policy::LeastInFlight,
            file::Policy::RoundRobin => balance::Policy::RoundRobin,
            file::Policy::Random => balance::Policy::Random,
        },
        choices: pool.balance.choices,
        max_in_flight: pool.balance.max_in_flight,
        breaker: balance::BreakerSettings {
            failures: pool.breaker.failures,
            open: ms(pool.breaker.open_ms),
            longest: ms(pool.breaker.longest_ms),
            slow_start: ms(pool.breaker.slow_start_ms),
        },
        stale_after: ms(pool.metrics.stale_ms),
        affinity: pool.balance.affinity,
        try_sick: pool.health.try_unhealthy,
    }
}

fn model_names(model: &file::Model, life: &route::Life) -> Vec<(String, route::ModelEntry)> {
    let backend = model.backend_model.clone().unwrap_or_else(|| model.id.clone());
    let entry = |sent: &String| {
        let backend = (*sent != backend).then(|| backend.clone());
        let id = model.id.as_str().into();
        (sent.clone(), route::ModelEntry { id, backend, output_tokens: model.output_tokens, life: life.clone() })
    };
    std::iter::once(&model.id).chain(&model.aliases).map(entry).collect()
}

/// A time, or the midnight UTC at which a day begins.
fn moment(text: &str) -> Option<DateTime<Utc>> {
    let day = || text.parse::<NaiveDate>().ok().map(|day| day.and_time(chrono::NaiveTime::MIN).and_utc());
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()).or_else(day)
}

/// Whether one of two pools gives requests to the other, be it through more, or both get those of one that serves the
/// name.
fn are_linked(pools: &[file::Pool], one: usize, other: usize, name: &str) -> bool {
    let reaches = |from: usize, to: usize| {
        let mut seen = vec![from];
        let mut next = 0;
        while next < seen.len() {
            let pool = &pools[seen[next]];
            let names = pool.spill.to.iter().chain(pool.shadow.iter().map(|shadow| &shadow.pool));
            for name in names {
                if let Some(at) = pools.iter().position(|p| p.name == *name)
                    && !seen.contains(&at)
                {
                    seen.push(at);
                }
            }
            next += 1;
        }
        seen.contains(&to)
    };
    let serves = |pool: &file::Pool| {
        pool.models.iter().any(|model| model.id == name || model.aliases.iter().any(|alias| alias == name))
    };
    let mut fronts = (0..pools.len()).filter(|front| serves(&pools[*front]));
    fronts.any(|front| reaches(front, one) && reaches(front, other))
}

/// Whether a request could be meant for either API by the model that it names.
fn compete(one: &str, other: &str, catalogue: Option<&Catalogue>) -> bool {
    let operations = |name: &str| {
        let api = catalogue.and_then(|c| c.apis.get(name));
        let indices = api.into_iter().flat_map(|a| &a.operations);
        let operations = indices.filter_map(|i| Some(catalogue?.operation(*i)));
        operations.filter(|o| o.routes_by_model).map(|o| (&o.method, o.path.as_str())).collect::<HashSet<_>>()
    };
    one == other || !operations(one).is_disjoint(&operations(other))
}

/// Scheme, host and port of a URL without a path.
fn host_and_port(url: &str) -> Option<(bool, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let secure = match uri.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let plain = matches!(uri.path(), "" | "/") && uri.query().is_none() && !url.contains(['@', '#']);
    let host = uri.host().filter(|h| !h.is_empty())?;
    let port = match uri.authority()?.as_str().strip_prefix(host)? {
        "" if secure => 443,
        "" => 80,
        port => port.strip_prefix(':')?.parse().ok().filter(|port| *port != 0)?,
    };
    plain.then(|| (secure, host.to_ascii_lowercase(), port))
}

fn is_credential(name: &HeaderName) -> bool {
    matches!(name.as_str(), "authorization" | "proxy-authorization" | "cookie" | "api-key" | "x-api-key")
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "proxy-connection"
            | "keep-alive"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "content-length"
            | "host"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_host_and_a_port_and_nothing_else() {
        for (url, wanted) in [
            ("http://a", Some((false, "a", 80))),
            ("https://A.example/", Some((true, "a.example", 443))),
            ("http://[::1]:8000", Some((false, "[::1]", 8000))),
            ("http://a:65535", Some((false, "a", 65535))),
            ("http://a:65536", None),
            ("http://a:0", None),
            ("http://a:", None),
            ("http://a/v1", None),
            ("http://a?b", None),
            ("http://a#b", None),
            ("http://user:secret@a", None),
            ("a:80", None),
            ("ftp://a", None),
            ("", None),
        ] {
            assert_eq!(host_and_port(url), wanted.map(|(s, h, p)| (s, h.to_owned(), p)), "{url}");
        }
    }
}
