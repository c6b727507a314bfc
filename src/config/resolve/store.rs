//! Redis: where it is and how to speak to it.

use super::{Resolver, ms, pem};
use crate::config::file::{self, RedisMode};
use crate::store;

impl Resolver<'_> {
    pub(super) fn store(&mut self, redis: &file::Redis) -> store::Settings {
        self.redis_fits(redis);
        let reveal = |secret: super::SecretText| secret.reveal().to_owned();
        store::Settings {
            mode: match redis.mode {
                RedisMode::Standalone => store::Mode::Standalone,
                RedisMode::Sentinel => store::Mode::Sentinel(redis.master.clone().unwrap_or_default()),
                RedisMode::Cluster => store::Mode::Cluster,
            },
            addresses: self.redis_addresses(&redis.addresses),
            tls: redis.tls.as_ref().map(|tls| self.redis_tls(tls)),
            username: redis.username.clone(),
            password: redis.password.as_ref().and_then(|s| self.secret("/redis/password", s)).map(reveal),
            sentinel_password: redis
                .sentinel_password
                .as_ref()
                .and_then(|s| self.secret("/redis/sentinel_password", s))
                .map(reveal),
            database: redis.database,
            prefix: redis.prefix.clone(),
            connect_timeout: ms(redis.connect_timeout_ms),
            reply_timeout: ms(redis.reply_timeout_ms),
        }
    }

    /// What one key says must fit the others.
    fn redis_fits(&mut self, redis: &file::Redis) {
        let is_sentinel = redis.mode == RedisMode::Sentinel;
        if redis.mode == RedisMode::Standalone && redis.addresses.len() > 1 {
            self.mistake("/redis/addresses", "one server has one address; expected one, or another mode");
        }
        match (&redis.master, is_sentinel) {
            (None, true) => self.mistake("/redis", "mode sentinel needs the key master"),
            (Some(_), false) => self.mistake("/redis/master", "only mode sentinel has it; leave this out"),
            _ => {}
        }
        if redis.sentinel_password.is_some() && !is_sentinel {
            self.mistake("/redis/sentinel_password", "only mode sentinel has it; leave this out");
        }
        if redis.mode == RedisMode::Cluster && redis.database != 0 {
            self.mistake("/redis/database", "a cluster has only database 0");
        }
        if redis.username.is_some() && redis.password.is_none() {
            self.mistake("/redis/username", "a user needs the key password");
        }
    }

    fn redis_addresses(&mut self, addresses: &[String]) -> Vec<(String, u16)> {
        let mut resolved = Vec::new();
        for (at, text) in addresses.iter().enumerate() {
            let pointer = format!("/redis/addresses/{at}");
            match host_and_port(text) {
                Some(address) if resolved.contains(&address) => {
                    self.mistake(&pointer, "this address is listed twice");
                }
                Some(address) => resolved.push(address),
                None => self.mistake(&pointer, "expected host:port, such as redis.example.com:6379 or [::1]:6379"),
            }
        }
        resolved
    }

    fn redis_tls(&mut self, tls: &file::RedisTls) -> store::Tls {
        let authorities = tls.ca_file.as_ref().and_then(|named| {
            let pointer = "/redis/tls/ca_file";
            let path = self.readable(pointer, named);
            if path.exists() && pem::certificates(&path).is_empty() {
                self.mistake(pointer, pem::ONE_CERTIFICATE);
            }
            std::fs::read(&path).ok()
        });
        store::Tls { authorities }
    }
}

/// A host name or address and a port; brackets around IPv6 go.
fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let port = port.parse().ok().filter(|port| digits && *port != 0)?;
    if let Some(inner) = host.strip_prefix('[') {
        let address: std::net::Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
        return Some((address.to_string(), port));
    }
    let is_name = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(is_name)).then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for (text, wanted) in [
            ("redis:6379", Some(("redis", 6379))),
            ("Redis-0.example.com:1", Some(("redis-0.example.com", 1))),
            ("10.0.0.1:65535", Some(("10.0.0.1", 65535))),
            ("[::1]:6379", Some(("::1", 6379))),
            ("::1:6379", None),
            ("[redis]:6379", None),
            ("redis", None),
            ("redis:", None),
            ("redis:0", None),
            ("redis:+1", None),
            ("redis:65536", None),
            (":6379", None),
            ("redis://redis:6379", None),
            ("user:secret@redis:6379", None),
            ("", None),
        ] {
            assert_eq!(host_and_port(text), wanted.map(|(host, port)| (host.to_owned(), port)), "{text}");
        }
    }
}
