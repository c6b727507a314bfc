//! Tree: callers in the order of a tag, with sums over all up to a tag.
//!
//! A treap whose nodes are numbered as the callers are, so that it needs no list of free nodes. The sums tell in
//! logarithmic time how much work stands before a point of virtual time.

use std::ops::{Add, Sub};

/// No node.
const NONE: usize = usize::MAX;

/// Tag, and what tells equal tags apart: the lower was there first.
pub(super) type Key = (u128, u64);

/// Sums over callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Their weights.
    pub(super) weight: u128,
    /// Weight times tag.
    pub(super) moment: u128,
    /// Costs of the first request of each.
    pub(super) heads: u128,
}

impl Add for Sums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { weight: self.weight + other.weight, moment: self.moment + other.moment, heads: self.heads + other.heads }
    }
}

impl Sub for Sums {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            weight: self.weight.saturating_sub(other.weight),
            moment: self.moment.saturating_sub(other.moment),
            heads: self.heads.saturating_sub(other.heads),
        }
    }
}

impl Sums {
    /// Weight times the distance from its tag to this later one, over all callers.
    pub(super) fn until(&self, tag: u128) -> u128 {
        (tag * self.weight).saturating_sub(self.moment)
    }
}

/// Ordered callers.
pub(super) struct Tree {
    nodes: Vec<Node>,
    root: usize,
    inserted: u64,
}

#[derive(Clone, Copy)]
struct Node {
    key: Key,
    own: Sums,
    /// Of the node and all below it.
    sums: Sums,
    priority: u64,
    left: usize,
    right: usize,
}

impl Default for Node {
    fn default() -> Self {
        Self { key: (0, 0), own: Sums::default(), sums: Sums::default(), priority: 0, left: NONE, right: NONE }
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: Vec::new(), root: NONE, inserted: 0 }
    }
}

impl Tree {
    /// Puts in a caller that is not in it. No other may have the same key.
    pub(super) fn insert(&mut self, caller: usize, key: Key, weight: u32, head: u64) {
        if self.nodes.len() <= caller {
            self.nodes.resize_with(caller + 1, Node::default);
        }
        let weight = u128::from(weight);
        let own = Sums { weight, moment: weight * key.0, heads: u128::from(head) };
        self.inserted += 1;
        self.nodes[caller] = Node { key, own, sums: own, priority: mixed(self.inserted), ..Node::default() };
        let (before, after) = self.split(self.root, key);
        let before = self.merge(before, caller);
        self.root = self.merge(before, after);
    }

    /// Takes out a caller that is in it.
    pub(super) fn remove(&mut self, caller: usize) {
        self.root = self.without(self.root, caller);
    }

    /// The caller with the lowest key.
    pub(super) fn first(&self) -> Option<usize> {
        let mut at = (self.root != NONE).then_some(self.root)?;
        while self.nodes[at].left != NONE {
            at = self.nodes[at].left;
        }
        Some(at)
    }

    /// Sums over all.
    pub(super) fn all(&self) -> Sums {
        self.sums(self.root)
    }

    /// Sums over those whose tag is this or lower.
    pub(super) fn up_to(&self, tag: u128) -> Sums {
        let (mut at, mut found) = (self.root, Sums::default());
        while at != NONE {
            let node = &self.nodes[at];
            if node.key.0 <= tag {
                found = found + self.sums(node.left) + node.own;
                at = node.right;
            } else {
                at = node.left;
            }
        }
        found
    }

    fn sums(&self, at: usize) -> Sums {
        if at == NONE { Sums::default() } else { self.nodes[at].sums }
    }

    fn sum_up(&mut self, at: usize) -> usize {
        let node = self.nodes[at];
        self.nodes[at].sums = node.own + self.sums(node.left) + self.sums(node.right);
        at
    }

    /// Those below the key, and the others.
    fn split(&mut self, at: usize, key: Key) -> (usize, usize) {
        if at == NONE {
            (NONE, NONE)
        } else if self.nodes[at].key < key {
            let (before, after) = self.split(self.nodes[at].right, key);
            self.nodes[at].right = before;
            (self.sum_up(at), after)
        } else {
            let (before, after) = self.split(self.nodes[at].left, key);
            self.nodes[at].left = after;
            (before, self.sum_up(at))
        }
    }

    /// One tree of two; all keys of the first are lower.
    fn merge(&mut self, first: usize, second: usize) -> usize {
        if first == NONE || second == NONE {
            first.min(second)
        } else if self.nodes[first].priority > self.nodes[second].priority {
            self.nodes[first].right = self.merge(self.nodes[first].right, second);
            self.sum_up(first)
        } else {
            self.nodes[second].left = self.merge(first, self.nodes[second].left);
            self.sum_up(second)
        }
    }

    fn without(&mut self, at: usize, caller: usize) -> usize {
        if at == NONE {
            return NONE;
        }
        let node = self.nodes[at];
        if at == caller {
            return self.merge(node.left, node.right);
        }
        if self.nodes[caller].key < node.key {
            self.nodes[at].left = self.without(node.left, caller);
        } else {
            self.nodes[at].right = self.without(node.right, caller);
        }
        self.sum_up(at)
    }
}

/// Spreads numbers evenly (splitmix64), so that the tree is shallow whatever the order of its keys.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
