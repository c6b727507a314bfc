//! Affinity: which endpoint has seen the beginning of this conversation?
//!
//! A chat is a chain of prefixes, one for each message. The longest prefix that was sent anywhere names the endpoint
//! whose cache holds it; for a chain that nobody saw, rendezvous hashing of its first prefix chooses among the best.

use std::collections::HashMap;
use std::sync::Mutex;

/// Most prefixes of a request that are looked up and noted.
pub const LONGEST_CHAIN: usize = 16;
/// Independent parts of the memory, so that few requests wait for each other.
const SHARDS: usize = 16;

/// The beginnings of a request, hashed: the shortest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain(Vec<u64>);

impl Chain {
    /// A chain of these prefixes. Of a long one the first and the last stay.
    pub fn new(mut prefixes: Vec<u64>) -> Self {
        if prefixes.len() > LONGEST_CHAIN {
            prefixes.drain(1..=prefixes.len() - LONGEST_CHAIN);
        }
        Self(prefixes)
    }

    /// A key that callers gave.
    pub fn of_key(key: &str) -> Self {
        Self(vec![hash(&[key.as_bytes()])])
    }

    /// Whether there is nothing to be near to.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A hash that is the same on every replica and in every release.
pub fn hash(parts: &[&[u8]]) -> u64 {
    // FNV-1a by words, mixed at the end: prompts are long, and nobody gains by collisions but himself.
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        let mut words = part.chunks_exact(8);
        for word in &mut words {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            state = (state ^ word).wrapping_mul(PRIME).rotate_left(23);
        }
        let mut last = [0; 8];
        last[..words.remainder().len()].copy_from_slice(words.remainder());
        state = (state ^ u64::from_le_bytes(last) ^ (part.len() as u64) << 56).wrapping_mul(PRIME).rotate_left(23);
    }
    mix(state)
}

/// How much an endpoint is preferred for a prefix; the highest is.
pub fn rank(prefix: u64, endpoint: u64) -> u64 {
    mix(prefix ^ mix(endpoint))
}

fn mix(mut state: u64) -> u64 {
    // The finisher of SplitMix64.
    state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}

/// Which endpoint each prefix was sent to last. Bounded: each half of a shard is forgotten when the other is full.
#[derive(Debug)]
pub struct Memory {
    shards: Vec<Mutex<Shard>>,
    half: usize,
}

#[derive(Debug, Default)]
struct Shard {
    young: HashMap<u64, u64>,
    old: HashMap<u64, u64>,
}

impl Memory {
    /// A memory of at most about so many prefixes.
    pub fn new(most: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), half: (most / SHARDS / 2).max(1) }
    }

    /// The endpoint that has seen most of the chain, with the share of its prefixes that it has seen.
    pub fn find(&self, chain: &Chain) -> Option<(u64, f64)> {
        chain.0.iter().enumerate().rev().find_map(|(at, prefix)| {
            let shard = self.shard(*prefix);
            let seen = shard.young.get(prefix).or_else(|| shard.old.get(prefix)).copied();
            seen.map(|endpoint| (endpoint, (at + 1) as f64 / chain.0.len() as f64))
        })
    }

    /// Notes where a chain went.
    pub fn note(&self, chain: &Chain, endpoint: u64) {
        for prefix in &chain.0 {
            let mut shard = self.shard(*prefix);
            if shard.young.len() >= self.half {
                shard.old = std::mem::take(&mut shard.young);
            }
            shard.young.insert(*prefix, endpoint);
        }
    }

    /// Where a chain that nobody saw belongs.
    pub fn origin(chain: &Chain) -> Option<u64> {
        chain.0.first().copied()
    }

    fn shard(&self, prefix: u64) -> std::sync::MutexGuard<'_, Shard> {
        self.shards[prefix as usize % SHARDS].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_that_was_seen_decides() {
        let memory = Memory::new(1000);
        memory.note(&Chain::new(vec![1]), 7);
        memory.note(&Chain::new(vec![1, 2, 3]), 8);
        assert_eq!(memory.find(&Chain::new(vec![1, 2, 3, 4])), Some((8, 0.75)));
        assert_eq!(memory.find(&Chain::new(vec![5])), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_latest_stays() {
        let memory = Memory::new(320);
        for prefix in 0..100_000 {
            memory.note(&Chain::new(vec![hash(&[&u64::to_le_bytes(prefix)])]), prefix);
        }
        let held: usize = memory.shards.iter().map(|s| s.lock().unwrap()).map(|s| s.young.len() + s.old.len()).sum();
        assert!(held <= 320, "{held}");
        assert!(memory.find(&Chain::new(vec![hash(&[&u64::to_le_bytes(99_999)])])).is_some());
    }

    #[test]
    fn texts_differ_in_their_hashes_and_ranks_spread() {
        let texts = ["", "a", "aa", "aaaaaaaa", "aaaaaaaaa", "b", "aaaaaaab"];
        let hashes: std::collections::HashSet<u64> = texts.iter().map(|t| hash(&[t.as_bytes()])).collect();
        assert_eq!(hashes.len(), texts.len());
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        let mut won = [0; 4];
        for prefix in 0..4000 {
            let best = (0..4).max_by_key(|endpoint| rank(mix(prefix), *endpoint)).unwrap();
            won[best as usize] += 1;
        }
        assert!(won.iter().all(|n| (800..1200).contains(n)), "{won:?}");
    }

    #[test]
    fn a_long_chain_keeps_its_ends() {
        let chain = Chain::new((0..100).collect());
        assert_eq!((chain.0.len(), chain.0[0], chain.0[15]), (LONGEST_CHAIN, 0, 99));
    }
}
