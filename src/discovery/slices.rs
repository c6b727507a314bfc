//! The EndpointSlices of one service, merged.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};

use super::dns::is_usable;
use super::{Found, Port};

/// More slices than any pool needs: each may hold a thousand endpoints.
const MAX: usize = 1024;

/// What the slices say, by their names.
#[derive(Debug, Default)]
pub(super) struct Slices {
    by_name: BTreeMap<String, Vec<Ready>>,
}

/// One endpoint that takes new requests.
#[derive(Debug)]
struct Ready {
    address: SocketAddr,
    pod: Option<String>,
}

impl Slices {
    /// Takes a slice in, in place of the last one of its name.
    pub(super) fn put(&mut self, slice: &EndpointSlice, port: &Port) {
        let name = slice.metadata.name.clone().unwrap_or_default();
        if self.by_name.len() < MAX || self.by_name.contains_key(&name) {
            self.by_name.insert(name, ready(slice, port));
        }
    }

    /// Takes a slice out.
    pub(super) fn remove(&mut self, slice: &EndpointSlice) {
        self.by_name.remove(slice.metadata.name.as_deref().unwrap_or_default());
    }

    /// All endpoints. A pod with addresses of both families is one endpoint, by its IPv4 address.
    pub(super) fn found(&self, host: &str) -> Vec<Found> {
        let mut all: Vec<&Ready> = self.by_name.values().flatten().collect();
        all.sort_by_key(|ready| ready.address);
        let mut pods = BTreeSet::new();
        all.retain(|ready| ready.pod.as_ref().is_none_or(|pod| pods.insert(pod)));
        all.iter().map(|ready| Found { address: ready.address, host: host.to_owned() }).collect()
    }
}

fn ready(slice: &EndpointSlice, port: &Port) -> Vec<Ready> {
    let number = match port {
        Port::Number(number) => Some(*number),
        Port::Name(name) => slice.ports.iter().flatten().find(|p| is_named(p, name)).and_then(number),
    };
    let Some(number) = number else { return Vec::new() };
    let ready = |endpoint: &Endpoint| {
        let ip = ip(endpoint, &slice.address_type)?;
        takes_requests(endpoint).then(|| Ready { address: (ip, number).into(), pod: pod(endpoint) })
    };
    slice.endpoints.iter().filter_map(ready).collect()
}

fn is_named(port: &EndpointPort, name: &str) -> bool {
    port.name.as_deref().unwrap_or_default() == name && port.protocol.as_deref().is_none_or(|p| p == "TCP")
}

fn number(port: &EndpointPort) -> Option<u16> {
    port.port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)
}

/// Ready, which is what an unknown state counts as, and not terminating: one that still serves while it terminates has
/// its old requests only.
fn takes_requests(endpoint: &Endpoint) -> bool {
    let Some(conditions) = &endpoint.conditions else { return true };
    conditions.ready.unwrap_or(true) && !conditions.terminating.unwrap_or(false)
}

/// Its first address: no meaning is defined for more of them.
fn ip(endpoint: &Endpoint, family: &str) -> Option<IpAddr> {
    let ip: IpAddr = endpoint.addresses.first()?.parse().ok()?;
    (family == if ip.is_ipv4() { "IPv4" } else { "IPv6" } && is_usable(&ip)).then_some(ip)
}

fn pod(endpoint: &Endpoint) -> Option<String> {
    endpoint.target_ref.as_ref().and_then(|target| target.uid.clone())
}
