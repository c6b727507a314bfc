//! Discovery: where the endpoints of a pool are found.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use http::Uri;

use super::{Resolver, beside, ms};
use crate::config::file;
use crate::discovery::{Cluster, Port, Record, Settings, Source};

const ONE: &str = "expected one of dns, srv and kubernetes";

impl Resolver<'_> {
    /// The source of a pool's endpoints, and how it is followed.
    pub(super) fn discovery(&mut self, pointer: &str, found: &file::Discovery) -> Option<(Source, Settings)> {
        let source = self.source(pointer, found);
        if found.min_ttl_ms > found.max_ttl_ms {
            self.mistake(&format!("{pointer}/min_ttl_ms"), "expected no more than max_ttl_ms");
        }
        if found.kubernetes.is_some() && !found.name_servers.is_empty() {
            self.mistake(&format!("{pointer}/name_servers"), "only dns and srv ask name servers");
        }
        if found.kubernetes.is_none() && found.cluster.is_some() {
            self.mistake(&format!("{pointer}/cluster"), "only kubernetes asks an API server");
        }
        let settings = Settings {
            min_ttl: ms(found.min_ttl_ms),
            max_ttl: ms(found.max_ttl_ms),
            timeout: ms(found.timeout_ms),
            keep: found.keep_ms.map(ms),
            max_endpoints: found.max_endpoints,
            name_servers: self.name_servers(pointer, &found.name_servers),
            cluster: found.cluster.as_ref().map(|c| self.cluster(&format!("{pointer}/cluster"), c)).unwrap_or_default(),
        };
        source.map(|source| (source, settings))
    }

    fn source(&mut self, pointer: &str, found: &file::Discovery) -> Option<Source> {
        match (&found.dns, &found.srv, &found.kubernetes) {
            (Some(dns), None, None) => {
                self.dns_name(&format!("{pointer}/dns/name"), &dns.name);
                Some(Source::Dns(Record::Addresses { name: dns.name.clone(), port: dns.port }))
            }
            (None, Some(srv), None) => {
                self.dns_name(&format!("{pointer}/srv/name"), &srv.name);
                Some(Source::Dns(Record::Srv { name: srv.name.clone() }))
            }
            (None, None, Some(service)) => Some(Source::Kubernetes {
                namespace: service.namespace.clone(),
                service: service.service.clone(),
                port: match &service.port {
                    file::PodPort::Name(name) => Port::Name(name.clone()),
                    file::PodPort::Number(number) => Port::Number(*number),
                },
            }),
            (None, None, None) => {
                self.mistake(pointer, format!("{ONE}, found none"));
                None
            }
            _ => {
                self.mistake(pointer, format!("{ONE}, found more"));
                None
            }
        }
    }

    fn dns_name(&mut self, pointer: &str, name: &str) {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        };
        if name.parse::<IpAddr>().is_ok() {
            self.mistake(pointer, "expected a name in DNS; an address belongs into endpoints");
        } else if !name.strip_suffix('.').unwrap_or(name).split('.').all(label) {
            self.mistake(pointer, "expected a name in DNS, such as nim.example.com");
        }
    }

    fn name_servers(&mut self, pointer: &str, named: &[String]) -> Vec<SocketAddr> {
        let mut servers = Vec::new();
        for (at, text) in named.iter().enumerate() {
            let address = text.parse().or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)));
            match address {
                Ok(address) if address.port() != 0 => servers.push(address),
                _ => {
                    let at = format!("{pointer}/name_servers/{at}");
                    self.mistake(&at, "expected an IP address, or one with a port, such as 10.0.0.10:53");
                }
            }
        }
        servers
    }

    fn cluster(&mut self, pointer: &str, cluster: &file::Cluster) -> Cluster {
        let file::Cluster { kubeconfig_file, context, url, token_file, ca_file } = cluster;
        match (kubeconfig_file, url) {
            (Some(_), Some(_)) => {
                self.mistake(pointer, "expected url or kubeconfig_file, found both");
                Cluster::Own
            }
            (None, None) => {
                self.mistake(pointer, "expected url or kubeconfig_file; leave this out for the gateway's own cluster");
                Cluster::Own
            }
            (Some(named), None) => {
                for (key, _) in [("token_file", token_file), ("ca_file", ca_file)].iter().filter(|(_, f)| f.is_some()) {
                    self.mistake(&format!("{pointer}/{key}"), "this goes with url; a kubeconfig file has its own");
                }
                let path = self.there(&format!("{pointer}/kubeconfig_file"), named);
                Cluster::Kubeconfig { path, context: context.clone() }
            }
            (None, Some(url)) => {
                if context.is_some() {
                    self.mistake(&format!("{pointer}/context"), "this goes with kubeconfig_file");
                }
                let url = self.api_server(&format!("{pointer}/url"), url);
                let mut file = |key: &str, named: &Option<PathBuf>| {
                    named.as_ref().map(|named| self.there(&format!("{pointer}/{key}"), named))
                };
                Cluster::Url { url, token_file: file("token_file", token_file), ca_file: file("ca_file", ca_file) }
            }
        }
    }

    fn api_server(&mut self, pointer: &str, text: &str) -> Uri {
        let uri = text.parse::<Uri>().unwrap_or_default();
        let is_plain = matches!(uri.path(), "" | "/") && uri.query().is_none() && !text.contains(['@', '#']);
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) || !is_plain {
            self.mistake(pointer, "expected http://host[:port] or https://host[:port], without a path");
        }
        uri
    }

    /// A file that is read as it changes by whoever uses it, so that no reload is needed for it.
    fn there(&mut self, pointer: &str, named: &Path) -> PathBuf {
        let path = beside(self.path, named);
        if !path.is_file() {
            self.mistake(pointer, "expected the path of a file");
        }
        path
    }
}
