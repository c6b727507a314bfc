//! Envelope: encoded records as one export. Spans, metrics and logs have the same frame: what sent them, what made them,
//! and the records, each field under the same tag.

use std::collections::BTreeMap;

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use prost::encoding::{self, WireType};

use super::value;

/// The tag of the outer parts within requests, and of resource and scope within theirs.
const HEAD: u32 = 1;
/// The tag of scopes within their resource, and of records within their scope.
const BELOW: u32 = 2;

/// Encodes a span, metric or log record as the field that it is of its scope.
pub(super) fn record(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(encoding::message::encoded_len(BELOW, message));
    encoding::message::encode(BELOW, message, &mut bytes);
    bytes
}

/// What stands around records.
pub(super) struct Envelope {
    resource: Vec<u8>,
    scope: Vec<u8>,
}

impl Envelope {
    /// Of the process that this says it is.
    pub(super) fn new(said: BTreeMap<String, String>) -> Self {
        let mut attributes = BTreeMap::from([
            ("service.name".to_owned(), "nimgate".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id".to_owned(), instance()),
        ]);
        attributes.extend(host().map(|host| ("host.name".to_owned(), host)));
        attributes.extend(said);
        let attributes = attributes.into_iter().map(|(key, text)| value::text(&key, text)).collect();
        let resource = Resource { attributes, ..Resource::default() };
        let scope = InstrumentationScope {
            name: "nimgate".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        };
        Self { resource: field(&resource), scope: field(&scope) }
    }

    /// An export of these records.
    pub(super) fn seal(&self, records: &[Vec<u8>]) -> Bytes {
        let scope = self.scope.len() + records.iter().map(Vec::len).sum::<usize>();
        let key = encoding::key_len(BELOW);
        let resource = self.resource.len() + key + encoding::encoded_len_varint(scope as u64) + scope;
        let mut sealed = Vec::with_capacity(key + encoding::encoded_len_varint(resource as u64) + resource);
        encoding::encode_key(HEAD, WireType::LengthDelimited, &mut sealed);
        encoding::encode_varint(resource as u64, &mut sealed);
        sealed.extend_from_slice(&self.resource);
        encoding::encode_key(BELOW, WireType::LengthDelimited, &mut sealed);
        encoding::encode_varint(scope as u64, &mut sealed);
        sealed.extend_from_slice(&self.scope);
        records.iter().for_each(|record| sealed.extend_from_slice(record));
        sealed.into()
    }
}

fn field(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    encoding::message::encode(HEAD, message, &mut bytes);
    bytes
}

/// A random UUID: no two processes have the same, not even one before and after a restart.
fn instance() -> String {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        bytes = fastrand::u128(..).to_be_bytes();
    }
    let random = u128::from_be_bytes(bytes);
    let random = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
    let digits = format!("{random:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

fn host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?.trim().to_owned();
    (!name.is_empty()).then_some(name)
}
