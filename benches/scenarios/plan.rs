//! The traffic of a scenario: every request and its time, drawn by chance once and the same for each policy.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use serde_json::json;

use crate::scenario::{CALLERS, Scenario, Size};

/// The model that all endpoints serve.
pub const MODEL: &str = "meta/llama-3.1-8b-instruct";
/// Traffic before that which counts.
pub const WARM_UP: Duration = Duration::from_millis(1500);
/// Bytes that the simulators take for a token.
const TOKEN: usize = 4;
/// Tokens in a block of their prefix cache.
const BLOCK: usize = 16;

/// All requests, in the order of their times.
pub struct Plan {
    pub requests: Vec<Planned>,
    /// When what counts begins and ends.
    pub counted: (Duration, Duration),
    /// What one endpoint with room for all would find in its prefix cache, of all prompt tokens.
    pub ideal_hits: f64,
}

/// One request.
pub struct Planned {
    /// When it is sent, from the beginning.
    pub at: Duration,
    /// Whose key it has.
    pub caller: usize,
    pub body: Bytes,
}

impl Plan {
    pub fn draw(scenario: &Scenario, capacity: f64, seconds: Duration, seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let end = WARM_UP + seconds;
        let quiet = if scenario.has_noise() { 1..CALLERS } else { 0..CALLERS };
        let mut turns = Turns { callers: quiet.collect(), left: Vec::new() };
        let mut drawn: Vec<(Duration, usize)> = arrivals(scenario, capacity * scenario.load, end, &mut random)
            .into_iter()
            .map(|at| (at, turns.next(&mut random)))
            .collect();
        if scenario.has_noise() {
            let noise = arrivals(scenario, capacity * scenario.noise, end, &mut random);
            drawn.extend(noise.into_iter().map(|at| (at, 0)));
        }
        drawn.sort_unstable();
        let sizes: Vec<Size> = drawn.iter().map(|_| scenario.mix.draw(&mut random)).collect();
        let requests = drawn.iter().zip(&sizes).enumerate();
        let requests =
            requests.map(|(at, ((time, caller), size))| Planned { at: *time, caller: *caller, body: body(at, *size) });
        Self { requests: requests.collect(), counted: (WARM_UP, end), ideal_hits: ideal_hits(&sizes) }
    }

    /// Whether a request counts.
    pub fn counts(&self, request: &Planned) -> bool {
        (self.counted.0..self.counted.1).contains(&request.at)
    }
}

/// Gives each caller as many requests as the others, in an order by chance.
struct Turns {
    callers: Vec<usize>,
    left: Vec<usize>,
}

impl Turns {
    fn next(&mut self, random: &mut Rng) -> usize {
        if self.left.is_empty() {
            self.left.clone_from(&self.callers);
            random.shuffle(&mut self.left);
        }
        self.left.pop().unwrap_or_default()
    }
}

/// A Poisson process of this mean rate, thinned to the shape of the scenario.
fn arrivals(scenario: &Scenario, rate: f64, end: Duration, random: &mut Rng) -> Vec<Duration> {
    let peak = scenario.shape.peak();
    let (mut time, mut all) = (0.0, Vec::new());
    loop {
        time -= (1.0 - random.f64()).ln() / (rate * peak);
        let at = Duration::from_secs_f64(time);
        if at >= end {
            return all;
        }
        if random.f64() * peak < scenario.shape.at(at) {
            all.push(at);
        }
    }
}

fn ideal_hits(sizes: &[Size]) -> f64 {
    let mut known = HashSet::new();
    let (mut hits, mut all) = (0, 0);
    for size in sizes {
        all += size.shared + size.prompt;
        if !known.insert(size.group) {
            hits += size.shared / BLOCK * BLOCK;
        }
    }
    hits as f64 / all.max(1) as f64
}

/// Each message ends with a line break of its own, which is part of its tokens.
fn body(number: usize, size: Size) -> Bytes {
    let mut messages = Vec::new();
    if size.shared > 0 {
        let text = text(&format!("Instructions of group {}:", size.group), size.shared * TOKEN - 1);
        messages.push(json!({"role": "system", "content": text}));
    }
    let text = text(&format!("Request {number}:"), size.prompt * TOKEN - 1);
    messages.push(json!({"role": "user", "content": text}));
    let body = json!({"model": MODEL, "messages": messages, "stream": true, "max_tokens": size.output,
                      "ignore_eos": true});
    Bytes::from(body.to_string())
}

fn text(head: &str, length: usize) -> String {
    let words = " so that the robot moves along the quiet road and comes home before night".chars().cycle();
    head.chars().chain(words).take(length).collect()
}
