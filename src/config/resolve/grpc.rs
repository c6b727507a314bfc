//! Pools whose API is called by gRPC: what they have not, and what they always have.

use super::Resolver;
use crate::config::file;
use crate::proxy::settings::PoolSettings;

impl Resolver<'_> {
    /// Makes a pool one of gRPC.
    pub(super) fn grpc(&mut self, pointer: &str, pool: &file::Pool, settings: &mut PoolSettings) {
        let mut refuse = |is_wrong: bool, key: &str, reason: &str| {
            if is_wrong {
                self.mistake(&format!("{pointer}/{key}"), reason);
            }
        };
        let is_pexec = pool.function.as_ref().is_some_and(|f| matches!(f.invocation, file::Invocation::Pexec));
        refuse(is_pexec, "function/invocation", "gRPC functions are called directly; leave this out");
        refuse(pool.kind == file::Kind::Ngc, "kind", "expected nim or nvcf: no service of NGC speaks gRPC");
        refuse(!pool.models.is_empty(), "models", "calls of gRPC name no model that could be read; leave this out");
        let health = pool.health.enabled == Some(true);
        refuse(health, "health/enabled", "probes speak HTTP/1, which endpoints of gRPC do not");
        let metrics = pool.metrics.enabled == Some(true);
        refuse(metrics, "metrics/enabled", "metrics are asked for by HTTP/1, which endpoints of gRPC do not speak");
        let bound = "connections of gRPC are bound to one pool and endpoint; leave this out";
        refuse(!pool.spill.to.is_empty(), "spill/to", bound);
        refuse(pool.hedge.enabled, "hedge/enabled", bound);
        refuse(pool.shadow.is_some(), "shadow", bound);
        settings.probe = None;
        settings.scrape = None;
        settings.http2 = true;
        settings.grpc = true;
    }
}
