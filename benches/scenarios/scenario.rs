//! The scenarios: which endpoints there are, what is asked of them, and what happens to them meanwhile.

use std::time::Duration;

use fastrand::Rng;
use nimgate::sim::Batching;

/// What every endpoint is at speed 1: alone a request gets 200 tokens a second, among 16 it gets 80.
pub const ENGINE: Batching = Batching {
    prefill_rate: 20_000.0,
    decode_rate: 200.0,
    decode_limit: 2_000.0,
    kv_tokens: 12_288,
    prefix_cache: true,
};
/// Batch slots of an endpoint.
pub const SLOTS: usize = 16;
/// After so long a caller gives up.
pub const DEADLINE: Duration = Duration::from_secs(3);
/// All callers; the first is the noisy one where there is one.
pub const CALLERS: usize = 20;

/// One scenario.
pub struct Scenario {
    /// Its name in the table and for `--scenario`.
    pub name: &'static str,
    /// Endpoints by their speed.
    pub speeds: &'static [f64],
    /// What is asked for, as a share of what the endpoints could answer at best.
    pub load: f64,
    /// What the noisy caller asks for besides, by the same measure.
    pub noise: f64,
    /// How the load is spread over time.
    pub shape: Shape,
    /// What the requests are like.
    pub mix: Mix,
    /// What happens while traffic is counted.
    pub event: Event,
    /// Run only when it is named.
    pub is_extra: bool,
}

/// How load is spread over time.
pub enum Shape {
    /// Evenly.
    Steady,
    /// The first part of each period gets so many times the load, the rest what is left.
    Bursts {
        /// Length of a period.
        period: Duration,
        /// The part of it that is the burst, 0 to 1.
        part: f64,
        /// The load of a burst by the mean load.
        times: f64,
    },
}

/// What requests are like.
pub enum Mix {
    /// All of one size, no two alike.
    Alike,
    /// Small, middling and large ones, no two alike.
    Sizes,
    /// Long prompts that differ in their ends only, within so many groups of equal weight.
    Prefixes(usize),
}

/// What happens to endpoints.
pub enum Event {
    /// Nothing.
    None,
    /// Halfway, the first endpoint's speed is multiplied.
    Slow(f64),
    /// From the start, the first endpoint says that none wait, the second that 10 000 do.
    Lies,
    /// After a third, no endpoint's metrics page changes any more.
    Frozen,
}

/// What one request costs.
#[derive(Clone, Copy)]
pub struct Size {
    /// Tokens that begin the prompts of the group.
    pub shared: usize,
    /// The group.
    pub group: usize,
    /// Further tokens of the prompt.
    pub prompt: usize,
    /// Tokens of the answer.
    pub output: usize,
}

const EVEN: &[f64] = &[1.0; 6];
/// Tokens in common within a group.
const SHARED: usize = 1024;

const USUAL: Scenario = Scenario {
    name: "uniform",
    speeds: EVEN,
    load: 0.7,
    noise: 0.0,
    shape: Shape::Steady,
    mix: Mix::Alike,
    event: Event::None,
    is_extra: false,
};

impl Scenario {
    /// All, in the order of the table.
    pub const ALL: &[Self] = &[
        USUAL,
        Self { name: "heterogeneous", speeds: &[1.0, 1.0, 0.25, 0.25, 0.25, 0.25], ..USUAL },
        Self { name: "degrading", load: 0.6, event: Event::Slow(0.1), ..USUAL },
        Self {
            name: "bursty",
            load: 0.6,
            shape: Shape::Bursts { period: Duration::from_secs(3), part: 0.3, times: 2.5 },
            ..USUAL
        },
        Self { name: "overload", load: 1.5, ..USUAL },
        Self { name: "shared-prefixes", mix: Mix::Prefixes(24), ..USUAL },
        Self { name: "noisy", load: 0.5, noise: 1.0, ..USUAL },
        Self { name: "noisy-absent", load: 0.5, is_extra: true, ..USUAL },
        Self { name: "mixed-sizes", mix: Mix::Sizes, ..USUAL },
        Self { name: "lying-metrics", load: 0.8, event: Event::Lies, ..USUAL },
        // Sizes make queues that come and go, so that what stands still is wrong soon.
        Self { name: "stale-metrics", load: 0.8, mix: Mix::Sizes, event: Event::Frozen, ..USUAL },
    ];

    /// Requests per second that the endpoints could answer together if each always had enough to do, at the speed that
    /// they begin with and with every shared prefix in their caches.
    pub fn capacity(&self) -> f64 {
        let mut random = Rng::with_seed(0);
        let sizes: Vec<(usize, usize)> =
            (0..1000).map(|_| self.mix.draw(&mut random)).map(|size| (size.prompt, size.output)).collect();
        ENGINE.capacity(SLOTS, &sizes) * self.speeds.iter().sum::<f64>()
    }

    /// Whether the callers are not all alike.
    pub fn has_noise(&self) -> bool {
        self.noise > 0.0
    }
}

impl Shape {
    /// The load at a time by the mean load.
    pub fn at(&self, time: Duration) -> f64 {
        match self {
            Self::Steady => 1.0,
            Self::Bursts { period, part, times } => {
                let phase = time.as_secs_f64() / period.as_secs_f64();
                if phase.fract() < *part { *times } else { ((1.0 - part * times) / (1.0 - part)).max(0.0) }
            }
        }
    }

    /// The most that [`Shape::at`] gives.
    pub fn peak(&self) -> f64 {
        match self {
            Self::Steady => 1.0,
            Self::Bursts { times, .. } => times.max(1.0),
        }
    }
}

impl Mix {
    /// A request by chance.
    pub fn draw(&self, random: &mut Rng) -> Size {
        let (shared, group, prompt, output) = match self {
            Self::Alike => (0, 0, 128, 24),
            Self::Sizes => match random.f64() {
                small if small < 0.6 => (0, 0, 64, 8),
                middling if middling < 0.9 => (0, 0, 256, 32),
                _ => (0, 0, 2048, 96),
            },
            Self::Prefixes(groups) => (SHARED, random.usize(..*groups), 64, 24),
        };
        Size { shared, group, prompt, output }
    }
}
