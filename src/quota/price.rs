//! Price: what a request costs.

use super::limit::{NANO, Pattern};
use crate::ids::ModelId;

/// The price of the models that a pattern fits. All in nano-units of money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Price {
    /// The models.
    pub model: Pattern,
    /// For a million tokens of prompts.
    pub input_per_million: u64,
    /// For a million tokens of answers.
    pub output_per_million: u64,
    /// For each request that is answered well.
    pub per_request: u64,
    /// For each second of generated video.
    pub per_video_second: u64,
}

/// What a request used, and what of it a cache knew.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Tokens of the prompt.
    pub input: u64,
    /// Tokens of the answer.
    pub output: u64,
    /// Seconds of generated video.
    pub video_seconds: f64,
    /// Whether it was answered well, and costs what a request costs.
    pub answered: bool,
    /// Tokens of the prompt that no backend computed for this request.
    pub known: u64,
    /// Whether no backend was asked at all.
    pub is_known: bool,
}

impl Used {
    /// Without what a cache knew.
    pub fn asked(&self) -> Self {
        let input = if self.is_known { 0 } else { self.input.saturating_sub(self.known) };
        Self { input, answered: self.answered && !self.is_known, known: 0, ..*self }
    }
}

impl Price {
    /// The price of a model: the first that fits.
    pub fn of<'a>(prices: &'a [Self], model: Option<&ModelId>) -> Option<&'a Self> {
        let model = model.map_or("", ModelId::as_str);
        prices.iter().find(|price| price.model.fits(model))
    }

    /// What `used` costs, in nano-units, rounded once.
    pub fn cost(&self, used: &Used) -> u64 {
        let tokens = u128::from(used.input) * u128::from(self.input_per_million)
            + u128::from(used.output) * u128::from(self.output_per_million);
        let tokens = u64::try_from((tokens + 500_000) / 1_000_000).unwrap_or(u64::MAX);
        let video = (used.video_seconds.max(0.0) * self.per_video_second as f64).round() as u64;
        let request = if used.answered { self.per_request } else { 0 };
        tokens.saturating_add(video).saturating_add(request)
    }
}

/// Money as nano-units, from a number of units; `None` when it is negative, absurd, or not a number.
pub fn nano(units: f64) -> Option<u64> {
    let nano = (units * NANO as f64).round();
    (nano.is_finite() && (0.0..=super::limit::LARGEST as f64).contains(&nano)).then_some(nano as u64)
}

/// Nano-units as a decimal number of units, exactly.
pub fn units(nano: u64) -> String {
    let text = format!("{}.{:09}", nano / NANO, nano % NANO);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_costs_tokens_video_and_itself() {
        let price = Price {
            model: Pattern("meta/*".into()),
            input_per_million: nano(0.2).unwrap(),
            output_per_million: nano(0.6).unwrap(),
            per_request: nano(0.001).unwrap(),
            per_video_second: nano(0.05).unwrap(),
        };
        let used = Used { input: 1000, output: 500, answered: true, ..Used::default() };
        assert_eq!(units(price.cost(&used)), "0.0015");
        let video = Used { video_seconds: 5.0, answered: true, ..Used::default() };
        assert_eq!(units(price.cost(&video)), "0.251");
        assert_eq!(price.cost(&Used::default()), 0);
        let [part, whole] = [false, true].map(|is_known| Used { known: 600, is_known, ..used }.asked());
        assert_eq!((units(price.cost(&part)).as_str(), whole.answered), ("0.00138", false));
        assert_eq!((part.input, whole.input), (400, 0));
        assert!(Price::of(std::slice::from_ref(&price), Some(&"meta/x".into())).is_some());
        assert!(Price::of(&[price], None).is_none());
    }

    #[test]
    fn money_is_exact_and_bounded() {
        assert_eq!(nano(1.5), Some(1_500_000_000));
        for absurd in [-0.1, f64::NAN, f64::INFINITY, 1e12] {
            assert_eq!(nano(absurd), None, "{absurd}");
        }
        assert_eq!([units(0), units(1), units(2_500_000_000)], ["0", "0.000000001", "2.5"]);
    }
}
