//! Continuous batching: which requests an engine computes in its next step, how long that takes, and what comes out.
//!
//! Plain state without a clock of its own: [`Batch::begin`] tells the time of a step, and whoever drives it calls
//! [`Batch::finish`] when that time is over.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::kv::{self, BLOCK_TOKENS, Held, Memory};
use super::seen::Run;

/// Prompt tokens computed in one step at most, as in chunked prefill.
const CHUNK: usize = 256;
/// Requests after which [`Batching::capacity`] begins to count, and which it counts.
const WARM_UP: usize = 200;
const COUNTED: usize = 1000;

/// How a simulated LLM batches: a step computes the next token of every running request, and a share of the prompts of
/// those that have none yet. Tokens are four bytes of prompt. A request leaves with its last token, whether that was sent
/// or not, or when its client leaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Batching {
    /// Prompt tokens per second, of all requests together; those found in the prefix cache cost nothing.
    pub prefill_rate: f64,
    /// Tokens per second that a request gets when it is alone.
    pub decode_rate: f64,
    /// Tokens per second of all requests together, which ever larger batches come close to.
    pub decode_limit: f64,
    /// Tokens that fit into the KV memory, prompts and answers; requests wait while there is no room.
    pub kv_tokens: usize,
    /// Whether prompts that begin alike share blocks of 16 tokens.
    pub prefix_cache: bool,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            prefill_rate: 20_000.0,
            decode_rate: 200.0,
            decode_limit: 2_000.0,
            kv_tokens: 16_384,
            prefix_cache: true,
        }
    }
}

/// A request as the engine sees it.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) run: Run,
    pub(super) keys: Vec<u64>,
    pub(super) prompt_tokens: usize,
    pub(super) output_tokens: usize,
}

/// The running requests, and those that wait, first come first served.
#[derive(Debug)]
pub(super) struct Batch {
    settings: Batching,
    slots: usize,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    memory: Memory,
    latest: u64,
    counts: Counts,
    /// Whether someone calls `begin` and `finish` in turn.
    pub(super) is_driven: bool,
}

/// What a batch did so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Prompt tokens looked for in the prefix cache, and found there.
    pub(super) queries: u64,
    pub(super) hits: u64,
    /// Time that slots were taken, in seconds.
    pub(super) slot_seconds: f64,
    finished: usize,
}

#[derive(Debug)]
struct Sequence {
    id: u64,
    work: Work,
    held: Held,
    /// Prompt tokens still to be computed, and those of this step.
    left: usize,
    chunk: usize,
    produced: usize,
    progress: watch::Sender<usize>,
}

impl Batching {
    /// Requests per second that never-ending demand would get answered, for the given pairs of prompt tokens to compute
    /// and tokens to answer with.
    pub fn capacity(&self, slots: usize, requests: &[(usize, usize)]) -> f64 {
        let mut batch = Batch::new(*self, slots);
        let mut demand = requests.iter().cycle().map(|(prompt_tokens, output_tokens)| Work {
            prompt_tokens: *prompt_tokens,
            output_tokens: *output_tokens,
            ..Work::default()
        });
        let (mut time, mut began) = (0.0, None);
        while batch.counts.finished < WARM_UP + COUNTED {
            while batch.waiting() < slots.max(1) {
                let Some(work) = demand.next() else { return 0.0 };
                batch.push(work);
            }
            let Some(step) = batch.begin() else { return 0.0 };
            time += step;
            batch.finish(step);
            if batch.counts.finished >= WARM_UP && began.is_none() {
                began = Some((time, batch.counts.finished));
            }
        }
        let (since, before) = began.unwrap_or_default();
        (batch.counts.finished - before) as f64 / (time - since).max(f64::MIN_POSITIVE)
    }

    /// Time of a step in seconds: reading the weights, one token of each request, and prompt tokens.
    fn step(&self, decoding: usize, prefilled: usize) -> f64 {
        let each = 1.0 / self.decode_limit;
        let weights = if decoding > 0 { (1.0 / self.decode_rate - each).max(0.0) } else { 0.0 };
        weights + each * decoding as f64 + prefilled as f64 / self.prefill_rate
    }
}

impl Batch {
    pub(super) fn new(settings: Batching, slots: usize) -> Self {
        Self {
            memory: Memory::new(settings.kv_tokens, settings.prefix_cache),
            settings,
            slots: slots.max(1),
            waiting: VecDeque::new(),
            running: Vec::new(),
            latest: 0,
            counts: Counts::default(),
            is_driven: false,
        }
    }

    /// Queues a request; what comes back tells it apart, and tells how many tokens it has got.
    pub(super) fn push(&mut self, work: Work) -> (u64, watch::Receiver<usize>) {
        let (progress, receiver) = watch::channel(0);
        self.latest += 1;
        let id = self.latest;
        let left = work.prompt_tokens;
        self.waiting.push_back(Sequence { id, work, held: Held::default(), left, chunk: 0, produced: 0, progress });
        (id, receiver)
    }

    /// Forgets a request, wherever it is.
    pub(super) fn remove(&mut self, id: u64) {
        self.waiting.retain(|sequence| sequence.id != id);
        if let Some(at) = self.running.iter().position(|sequence| sequence.id == id) {
            self.memory.give_back(&self.running.remove(at).held);
        }
    }

    /// Lets requests in and plans a step: its time in seconds, or none when there is nothing to compute.
    pub(super) fn begin(&mut self) -> Option<f64> {
        self.let_in();
        let mut room = CHUNK;
        for sequence in &mut self.running {
            sequence.chunk = sequence.left.min(room);
            room -= sequence.chunk;
        }
        let decoding = self.running.iter().filter(|sequence| sequence.left == 0).count();
        (!self.running.is_empty()).then(|| self.settings.step(decoding, CHUNK - room))
    }

    /// Hands out what the step computed. Requests that came or went meanwhile do not matter.
    pub(super) fn finish(&mut self, seconds: f64) {
        self.counts.slot_seconds += seconds * self.running.len() as f64;
        for sequence in &mut self.running {
            if sequence.advance() {
                self.memory.share(&mut sequence.held, &sequence.work.keys);
            }
        }
        let is_done = |sequence: &mut Sequence| sequence.produced >= sequence.work.output_tokens.max(1);
        for done in self.running.extract_if(.., is_done) {
            self.memory.give_back(&done.held);
            self.counts.finished += 1;
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    /// Use of the KV memory, 0 to 1.
    pub(super) fn usage(&self) -> f64 {
        self.memory.usage()
    }

    /// Blocks in the KV memory.
    pub(super) fn blocks(&self) -> usize {
        self.memory.capacity()
    }

    /// While the first that waits has no room, nobody behind it is let in either.
    fn let_in(&mut self) {
        while self.running.len() < self.slots
            && let Some(first) = self.waiting.front()
        {
            let work = &first.work;
            // The last token is always computed, since the first answer follows from it.
            let known = &work.keys[..work.keys.len().min(work.prompt_tokens.saturating_sub(1) / BLOCK_TOKENS)];
            let Some(held) = self.memory.take(known, work.prompt_tokens + work.output_tokens) else { return };
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            sequence.left = (sequence.work.prompt_tokens - held.known_tokens()).max(1);
            self.counts.queries += sequence.work.prompt_tokens as u64;
            self.counts.hits += held.known_tokens() as u64;
            sequence.held = held;
            sequence.work.run.begin();
            self.running.push(sequence);
        }
    }
}

impl Work {
    /// A request with this prompt, which counts `extra` tokens more than its text.
    pub(super) fn new(run: Run, prompt: &str, extra: usize, output_tokens: usize) -> Self {
        Self { run, keys: kv::keys(prompt), prompt_tokens: kv::tokens(prompt) + extra, output_tokens }
    }
}

impl Sequence {
    /// Whether this step ended its prompt.
    fn advance(&mut self) -> bool {
        let ended_prompt = self.left > 0 && self.left == self.chunk;
        if self.left == 0 || ended_prompt {
            self.produced += 1;
            self.progress.send_replace(self.produced);
        }
        self.left -= self.chunk;
        self.chunk = 0;
        ended_prompt
    }
}
