//! Names in DNS, each asked again as its TTL ends.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use tokio::time::Instant;

use super::pace::{Backoff, Failure, Trouble, Why};
use super::{Found, Output, Record, Settings};

/// How many targets of an SRV record are looked up at a time.
const AT_A_TIME: usize = 16;

/// Follows the record for ever.
pub(super) async fn run<F: Fn(Vec<Found>)>(record: Record, settings: Settings, mut output: Output<F>) {
    let (Record::Addresses { name: subject, .. } | Record::Srv { name: subject }) = &record;
    let mut trouble = Trouble::new(&output.pool, subject.clone());
    let (mut backoff, mut known, mut good, mut resolver) = (Backoff::default(), Vec::new(), Instant::now(), None);
    loop {
        let is_over = settings.keep.is_some_and(|keep| good.elapsed() >= keep);
        if is_over {
            known.clear();
        }
        let answer = ask(&record, &mut resolver, &settings, &known).await;
        let failure = match answer {
            Ok(Answer { found, ttl, missing }) => {
                known = found;
                if missing.is_none() {
                    good = Instant::now();
                    backoff.reset();
                    trouble.ends();
                    output.put(known.clone());
                    tokio::time::sleep(before(ttl.clamp(settings.min_ttl, settings.max_ttl))).await;
                    continue;
                }
                missing
            }
            Err(failure) => Some(failure),
        };
        failure.iter().for_each(|f| trouble.begins(f));
        if settings.name_servers.is_empty() {
            resolver = None; // The system's configuration may have changed.
        }
        // Nothing at all is news only after there was something.
        if output.last.is_some() || !known.is_empty() {
            output.put(known.clone());
        }
        let left = settings.keep.filter(|_| !is_over).map(|keep| keep.saturating_sub(good.elapsed()));
        tokio::time::sleep(left.unwrap_or(Duration::MAX).min(backoff.next())).await;
    }
}

/// Up to a tenth before the time, so that many gateways do not ask in step.
fn before(ttl: Duration) -> Duration {
    ttl.mul_f64(0.9 + 0.1 * fastrand::f64())
}

/// What the record brought. Where a part is `missing`, what was known of it stands in.
struct Answer {
    found: Vec<Found>,
    ttl: Duration,
    missing: Option<Failure>,
}

async fn ask(
    record: &Record,
    resolver: &mut Option<TokioResolver>,
    settings: &Settings,
    known: &[Found],
) -> Result<Answer, Failure> {
    let resolver = match resolver {
        Some(resolver) => resolver,
        None => resolver.insert(build(settings).map_err(|e| Failure::new(Why::Misconfigured, e))?),
    };
    let names = Names { resolver, timeout: settings.timeout, known };
    match record {
        Record::Addresses { name, port } => names.endpoints(name, *port).await,
        Record::Srv { name } => names.services(name, settings.max_endpoints).await,
    }
}

fn build(settings: &Settings) -> Result<TokioResolver, NetError> {
    let mut builder = if settings.name_servers.is_empty() {
        Resolver::builder_tokio()?
    } else {
        let server = |address: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = address.port();
                connection
            });
            NameServerConfig::new(address.ip(), true, connections.into())
        };
        let servers = settings.name_servers.iter().map(server).collect();
        Resolver::builder_with_config(ResolverConfig::from_name_servers(servers), TokioRuntimeProvider::default())
    };
    // Each answer is held here for its TTL already; a cache would only count it twice.
    builder.options_mut().cache_size = 0;
    builder.build()
}

struct Names<'a> {
    resolver: &'a TokioResolver,
    timeout: Duration,
    known: &'a [Found],
}

impl Names<'_> {
    /// The addresses of a host. Of a family that fails, those known before count on.
    async fn endpoints(&self, host: &str, port: u16) -> Result<Answer, Failure> {
        let (four, six) = tokio::join!(self.query(host, RecordType::A), self.query(host, RecordType::AAAA));
        let shown = host.trim_end_matches('.');
        let (mut found, mut ttl, mut missing, mut nothing) = (Vec::new(), Duration::MAX, None, None);
        for (is_four, answer) in [(true, four), (false, six)] {
            match answer {
                Ok(lookup) => {
                    ttl = ttl.min(ttl_of(&lookup));
                    let ips = lookup.answers().iter().filter_map(|record| ip(&record.data)).filter(is_usable);
                    let addresses = ips.map(|ip| SocketAddr::from((ip, port)));
                    found.extend(addresses.map(|address| Found { address, host: shown.to_owned() }));
                }
                Err(failure) if failure.is_nothing() => nothing = Some(failure),
                Err(failure) => {
                    let same =
                        |f: &&Found| f.host == shown && f.address.is_ipv4() == is_four && f.address.port() == port;
                    found.extend(self.known.iter().filter(same).cloned());
                    missing = Some(failure);
                }
            }
        }
        if found.is_empty() {
            return Err(missing.or(nothing).unwrap_or_else(|| Failure::new(Why::NoRecords, "no usable address")));
        }
        Ok(Answer { found, ttl, missing })
    }

    /// The endpoints of the lowest priority that has any.
    async fn services(&self, name: &str, max: usize) -> Result<Answer, Failure> {
        let lookup = self.query(name, RecordType::SRV).await?;
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) if !srv.target.is_root() && srv.port != 0 => Some(srv),
            _ => None,
        });
        let mut records: Vec<_> = records.collect();
        records.sort_by_key(|srv| (srv.priority, srv.target.clone(), srv.port));
        records.truncate(max);
        let mut failed = Failure::new(Why::NoRecords, "no usable target");
        for group in records.chunk_by(|a, b| a.priority == b.priority) {
            let mut answer = Answer { found: Vec::new(), ttl: ttl_of(&lookup), missing: None };
            for some in group.chunks(AT_A_TIME) {
                let targets = some.iter().map(|srv| async {
                    let target = srv.target.to_ascii();
                    self.endpoints(&target, srv.port).await
                });
                for target in join_all(targets).await {
                    match target {
                        Ok(target) => answer.add(target),
                        Err(failure) if failure.is_nothing() => failed = failure,
                        Err(failure) => answer.missing = Some(failure),
                    }
                }
            }
            if !answer.found.is_empty() {
                return Ok(answer);
            }
            failed = answer.missing.unwrap_or(failed);
        }
        Err(failed)
    }

    async fn query(&self, name: &str, kind: RecordType) -> Result<Lookup, Failure> {
        match tokio::time::timeout(self.timeout, self.resolver.lookup(name, kind)).await {
            Ok(answer) => answer.map_err(|e| Failure::new(why(&e), e)),
            Err(_) => Err(Failure::new(Why::TimedOut, "no answer in time")),
        }
    }
}

impl Answer {
    fn add(&mut self, target: Answer) {
        self.found.extend(target.found);
        self.ttl = self.ttl.min(target.ttl);
        self.missing = self.missing.take().or(target.missing);
    }
}

fn why(error: &NetError) -> Why {
    match error {
        _ if error.is_nx_domain() => Why::NoSuchName,
        NetError::Dns(DnsError::NoRecordsFound(nothing)) if nothing.response_code == ResponseCode::NoError => {
            Why::NoRecords
        }
        NetError::Dns(_) => Why::Refused,
        NetError::Timeout => Why::TimedOut,
        _ => Why::Unreachable,
    }
}

fn ttl_of(lookup: &Lookup) -> Duration {
    let shortest = lookup.answers().iter().map(|record| record.ttl).min();
    Duration::from_secs(shortest.unwrap_or(0).into())
}

fn ip(data: &RData) -> Option<IpAddr> {
    match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    }
}

/// Whether one machine can have it: 0.0.0.0 would be the gateway itself.
pub(super) fn is_usable(ip: &IpAddr) -> bool {
    !ip.is_unspecified() && !ip.is_multicast() && !matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}
