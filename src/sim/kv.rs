//! The KV memory of an engine: blocks held by running requests, and blocks of prompts kept for whoever begins alike.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Tokens in a block, and the bytes of prompt that stand for them.
pub(super) const BLOCK_TOKENS: usize = 16;
const BLOCK_BYTES: usize = 64;

/// Blocks of 16 tokens. Those that nobody holds stay until the room is needed, the longest unused going first.
#[derive(Debug)]
pub(super) struct Memory {
    capacity: usize,
    /// Whether prompts are shared at all.
    shares: bool,
    shared: HashMap<u64, Block>,
    /// Shared blocks without a holder, by the time of their last use.
    idle: BTreeMap<u64, u64>,
    private: usize,
    clock: u64,
}

#[derive(Debug)]
struct Block {
    holders: usize,
    used: u64,
}

/// What one request holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Blocks that others may hold too, in the order of the prompt.
    shared: Vec<u64>,
    private: usize,
}

/// Tokens of a text, at four bytes each.
pub(super) fn tokens(text: &str) -> usize {
    text.len().div_ceil(BLOCK_BYTES / BLOCK_TOKENS)
}

/// One key for each full block of a prompt, which follows from all text up to its end.
pub(super) fn keys(prompt: &str) -> Vec<u64> {
    let mut hasher = DefaultHasher::new();
    let key = |block: &[u8]| {
        block.hash(&mut hasher);
        hasher.finish()
    };
    prompt.as_bytes().chunks_exact(BLOCK_BYTES).map(key).collect()
}

impl Memory {
    pub(super) fn new(tokens: usize, shares: bool) -> Self {
        let capacity = (tokens / BLOCK_TOKENS).max(1);
        Self { capacity, shares, shared: HashMap::new(), idle: BTreeMap::new(), private: 0, clock: 0 }
    }

    /// Room for a request of so many tokens in all, or none now. What would fill more than everything gets everything.
    pub(super) fn take(&mut self, keys: &[u64], tokens: usize) -> Option<Held> {
        let known = keys.iter().take_while(|key| self.shares && self.shared.contains_key(key)).count();
        let total = tokens.div_ceil(BLOCK_TOKENS).clamp(1, self.capacity);
        let known = &keys[..known.min(total)];
        let private = total - known.len();
        let woken = known.iter().filter(|key| self.shared.get(key).is_some_and(|block| block.holders == 0)).count();
        if self.held() + woken + private > self.capacity {
            return None;
        }
        for key in known {
            self.hold(*key);
        }
        while self.shared.len() + self.private + private > self.capacity {
            let (_, key) = self.idle.pop_first()?;
            self.shared.remove(&key);
        }
        self.private += private;
        Some(Held { shared: known.to_vec(), private })
    }

    /// The prompt is computed: from now on others may share its blocks, save those that were computed twice.
    pub(super) fn share(&mut self, held: &mut Held, keys: &[u64]) {
        for key in keys.iter().skip(held.shared.len()) {
            if !self.shares || held.private == 0 || self.shared.contains_key(key) {
                return;
            }
            self.shared.insert(*key, Block { holders: 1, used: 0 });
            held.shared.push(*key);
            held.private -= 1;
            self.private -= 1;
        }
    }

    pub(super) fn give_back(&mut self, held: &Held) {
        self.private -= held.private;
        // Ends of prompts are older than their beginnings, which more requests share.
        for key in held.shared.iter().rev() {
            let Some(block) = self.shared.get_mut(key) else { continue };
            block.holders -= 1;
            if block.holders == 0 {
                self.clock += 1;
                block.used = self.clock;
                self.idle.insert(block.used, *key);
            }
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The part that running requests hold, 0 to 1; blocks that are only kept count as free, as in vLLM.
    pub(super) fn usage(&self) -> f64 {
        self.held() as f64 / self.capacity as f64
    }

    fn held(&self) -> usize {
        self.shared.len() - self.idle.len() + self.private
    }

    fn hold(&mut self, key: u64) {
        let Some(block) = self.shared.get_mut(&key) else { return };
        if block.holders == 0 {
            self.idle.remove(&block.used);
        }
        block.holders += 1;
    }
}

impl Held {
    /// Tokens of the prompt that need no computing.
    pub(super) fn known_tokens(&self) -> usize {
        self.shared.len() * BLOCK_TOKENS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_block_follows_from_all_text_before_it() {
        let (first, second) = ("a".repeat(64), "b".repeat(64));
        let both = keys(&format!("{first}{second}tail"));
        assert_eq!(both.len(), 2);
        assert_eq!(both[0], keys(&first)[0]);
        assert_ne!(both[1], keys(&second)[0]);
    }

    #[test]
    fn what_nobody_holds_is_kept_until_the_room_is_needed() {
        let mut memory = Memory::new(4 * BLOCK_TOKENS, true);
        let mut held = memory.take(&[1, 2], 3 * BLOCK_TOKENS).unwrap();
        memory.share(&mut held, &[1, 2]);
        memory.give_back(&held);
        assert_eq!(memory.usage(), 0.0);
        let again = memory.take(&[1, 2, 3], 4 * BLOCK_TOKENS).unwrap();
        assert_eq!(again.known_tokens(), 2 * BLOCK_TOKENS);
        assert_eq!(memory.usage(), 1.0);
        assert!(memory.take(&[1], BLOCK_TOKENS * 2).is_none());
        memory.give_back(&again);
        // Three blocks push out the end of the kept prompt first.
        let other = memory.take(&[], 3 * BLOCK_TOKENS).unwrap();
        assert_eq!(memory.take(&[1, 2], BLOCK_TOKENS).unwrap().known_tokens(), BLOCK_TOKENS);
        memory.give_back(&other);
    }

    #[test]
    fn a_request_larger_than_everything_runs_alone() {
        let mut memory = Memory::new(2 * BLOCK_TOKENS, true);
        let mut held = memory.take(&[1, 2, 3], 100 * BLOCK_TOKENS).unwrap();
        memory.share(&mut held, &[1, 2, 3]);
        assert!(memory.take(&[9], 1).is_none());
        memory.give_back(&held);
        assert!(memory.take(&[9], 1).is_some());
    }

    #[test]
    fn nothing_is_shared_without_a_prefix_cache() {
        let mut memory = Memory::new(8 * BLOCK_TOKENS, false);
        let mut held = memory.take(&[1], BLOCK_TOKENS).unwrap();
        memory.share(&mut held, &[1]);
        memory.give_back(&held);
        assert_eq!(memory.take(&[1], BLOCK_TOKENS).unwrap().known_tokens(), 0);
    }
}
