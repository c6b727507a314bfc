//! Limits: how they are held, what models cost, and how usage is found out.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::{Resolver, beside, ms};
use crate::config::{Known, file};
use crate::proxy::settings::MeterSettings;
use crate::quota::limit::Pattern;
use crate::quota::price::{Price, nano};
use crate::quota::{Estimate, OnOutage, shared, state};

impl Resolver<'_> {
    /// How replicas share limits.
    pub(super) fn sharing(&mut self, file: &file::File) -> shared::Settings {
        let quotas = &file.quotas;
        if quotas.replicas > 1 && file.redis.is_none() {
            self.mistake("/quotas/replicas", "replicas share limits through Redis; add the section redis");
        }
        shared::Settings {
            on_outage: match quotas.on_outage {
                file::OnOutage::LocalShare => OnOutage::LocalShare,
                file::OnOutage::Allow => OnOutage::Allow,
                file::OnOutage::Deny => OnOutage::Deny,
            },
            // Without Redis, nobody waits for it.
            budget: ms(file.redis.as_ref().map_or(0, |redis| redis.timeout_ms)),
            replicas: quotas.replicas.into(),
            hold: ms(quotas.hold_ms),
            flush: ms(quotas.write_every_ms),
            usage_days: quotas.usage_days,
        }
    }

    /// What the only replica keeps.
    pub(super) fn counts(&mut self, file: &file::File) -> state::Settings {
        let path = file.quotas.state_file.as_ref().map(|named| self.state_file(named, file.redis.is_some()));
        state::Settings { file: path, every: ms(file.quotas.write_every_ms), usage_days: file.quotas.usage_days }
    }

    fn state_file(&mut self, named: &Path, is_shared: bool) -> PathBuf {
        const POINTER: &str = "/quotas/state_file";
        let path = beside(self.path, named);
        let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if is_shared {
            self.mistake(POINTER, "Redis keeps the counts; leave this out, or the section redis");
        } else if path.is_dir() || path.file_name().is_none() {
            self.mistake(POINTER, "expected the path of a file, found a directory");
        } else if !directory.is_dir() {
            self.mistake(POINTER, format!("there is no directory {}", directory.display()));
        }
        path
    }

    pub(super) fn prices(&mut self, prices: &[file::Price], known: &Known) -> Vec<Price> {
        let mut seen = HashSet::new();
        let mut resolved = Vec::with_capacity(prices.len());
        for (at, price) in prices.iter().enumerate() {
            let pointer = format!("/prices/{at}/model");
            let model = Pattern(price.model.clone());
            if !seen.insert(&price.model) {
                self.mistake(&pointer, "an earlier price is for the same models, so this one never counts");
            } else if !known.has_model(&model) {
                self.mistake(&pointer, format!("no pool lists a model that fits {}", price.model));
            }
            // The schema bounds all of them.
            let money = |units: f64| nano(units).unwrap_or_default();
            resolved.push(Price {
                model,
                input_per_million: money(price.input_per_million),
                output_per_million: money(price.output_per_million),
                per_request: money(price.per_request),
                per_video_second: money(price.per_video_second),
            });
        }
        resolved
    }
}

pub(super) fn estimate(estimate: &file::Estimate) -> Estimate {
    Estimate {
        bytes_per_token: estimate.bytes_per_token,
        tokens_per_media: estimate.tokens_per_media,
        output_tokens: estimate.output_tokens,
    }
}

pub(super) fn meter(quotas: &file::Quotas) -> MeterSettings {
    let (drain, currency) = (ms(quotas.drain_ms), quotas.currency.clone());
    MeterSettings { stream_usage: quotas.stream_usage, drain, currency }
}
