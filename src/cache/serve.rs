//! Serve: what a request goes through, whoever the backend is.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::answer::{Answer, Frame, Sum};
use super::flight::{Awaited, Claim, Follow, Landed, Lead};
use super::key::Key;
use super::question::Question;
use super::remote::{Away, Remote};
use super::value::{Facts, Value};
use super::{Cache, add, seconds};

/// An answer above this many bytes is read by a thread of its own. One to the whole request is passed on meanwhile.
const WORTH_A_THREAD: usize = 48 * 1024;

/// Whoever asks the backend.
pub trait Backend: Send {
    /// An answer that can be passed on as it came.
    type Passed: Send;
    /// Why there is none.
    type Error: Send;

    /// Asks with this body: the request as it came, or a part of it. Goes on for those who wait, whoever left.
    fn ask(
        &mut self,
        body: Bytes,
        is_whole: bool,
        awaited: Awaited,
    ) -> impl Future<Output = Result<Asked<Self::Passed>, Self::Error>> + Send;

    /// Waits for what another request asks.
    fn wait<T: Send>(
        &mut self,
        other: impl Future<Output = T> + Send,
    ) -> impl Future<Output = Result<T, Self::Error>> + Send;
}

/// What came back.
pub enum Asked<P> {
    /// An answer that may be kept: its body, and itself.
    Good(Bytes, P),
    /// Anything else.
    Other(P),
}

/// What the caller wants of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Whether what is known may be used.
    pub reads: bool,
    /// Whether nothing else may be.
    pub only_known: bool,
}

/// How it ended.
pub enum Outcome<P> {
    /// With an answer that was put together here.
    Made(Made),
    /// With the backend's own answer to the whole request.
    Passed(P, Tally),
    /// With nothing: not all was known, and the backend was not to be asked.
    Unknown(Tally),
}

/// How many items were known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Items that were known, or that another request was asking for.
    pub hits: usize,
    /// Items that were asked for.
    pub misses: usize,
    /// Why Redis was passed over.
    pub away: Option<Away>,
}

/// An answer that was put together here.
#[derive(Debug)]
pub struct Made {
    /// Its body.
    pub body: Bytes,
    /// How many items were known.
    pub tally: Tally,
    /// Whether its usage is what the backend would have stated.
    pub is_exact: bool,
    /// Tokens in its usage that no backend computed for this request.
    pub free: u64,
}

struct Run {
    cache: Arc<Cache>,
    remote: Option<Arc<Remote>>,
    question: Question,
    /// By position.
    values: Vec<Option<Value>>,
    /// Positions that were asked for.
    asked: Vec<bool>,
    frame: Option<(Value, Frame)>,
    /// Tokens and videos of what was asked for.
    paid: Sum,
    tally: Tally,
}

/// What is to be done about the items that are not known.
struct Plan {
    chosen: Vec<usize>,
    leads: Vec<Lead>,
    follows: Vec<(Key, Follow)>,
}

/// Answers a request. `id` names the answer where the backend's have names.
pub async fn serve<B: Backend>(
    cache: &Arc<Cache>,
    remote: Option<&Arc<Remote>>,
    question: Question,
    manner: Manner,
    id: &str,
    backend: &mut B,
) -> Result<Outcome<B::Passed>, B::Error> {
    let count = question.items.len();
    let mut run = Run {
        cache: Arc::clone(cache),
        remote: remote.cloned(),
        question,
        values: vec![None; count],
        asked: vec![false; count],
        frame: None,
        paid: Sum::default(),
        tally: Tally::default(),
    };
    // Nobody knows whether a backend takes more items than any request had so far.
    let is_usual = count <= cache.batch.load(Ordering::Relaxed);
    if manner.reads && is_usual {
        run.look_up().await;
    }
    run.tally.misses = run.values.iter().filter(|value| value.is_none()).count();
    run.tally.hits = count - run.tally.misses;
    if run.tally.misses > 0 && manner.only_known {
        return Ok(Outcome::Unknown(run.tally));
    }
    let mut follows = manner.reads && is_usual;
    loop {
        let Plan { chosen, leads, follows: others } = run.plan(follows);
        if chosen.is_empty() && others.is_empty() {
            break;
        }
        if !chosen.is_empty() {
            let is_whole = chosen.len() == count;
            let body = if is_whole { Some(run.question.body.clone()) } else { run.question.part(&chosen) };
            let Some(body) = body else { return run.ask_whole(backend).await };
            let begun = Instant::now();
            match backend.ask(body, is_whole, Awaited::of(&leads)).await? {
                Asked::Good(bytes, passed) => {
                    cache.note(begun.elapsed());
                    if is_whole {
                        return Ok(Outcome::Passed(passed, run.keep(bytes, chosen, leads).await));
                    }
                    let answer = run.read(bytes, &chosen).await;
                    if !run.take(answer, &chosen, leads, false) {
                        return run.ask_whole(backend).await;
                    }
                }
                Asked::Other(passed) if is_whole => return Ok(Outcome::Passed(passed, run.tally)),
                Asked::Other(_) => {
                    drop(leads);
                    return run.ask_whole(backend).await;
                }
            }
        }
        for (key, other) in others {
            match backend.wait(other.end()).await? {
                Some(landed) => run.land(key, landed),
                // Whatever became of it: this request asks for itself now.
                None => follows = false,
            }
        }
    }
    match run.made(id) {
        Some(made) => Ok(Outcome::Made(made)),
        None => run.ask_whole(backend).await,
    }
}

impl Run {
    async fn look_up(&mut self) {
        let mut seen = HashSet::new();
        let keys = self.question.items.iter().filter_map(|item| item.key).filter(|key| seen.insert(*key));
        let keys: Vec<Key> = std::iter::once(self.question.frame).chain(keys).collect();
        let mut found = self.cache.look_up(self.remote.as_deref(), &keys).await;
        self.tally.away = found.away;
        let frame = found.values[0].take().and_then(|value| Some((Frame::read(value.data())?, value)));
        let Some((frame, value)) = frame else { return };
        let (dimensions, usual) = (value.dimensions(), self.cache.usual());
        self.frame = Some((value, frame));
        let values: std::collections::HashMap<Key, Value> = keys
            .into_iter()
            .zip(found.values)
            .filter_map(|(key, value)| Some((key, value?)))
            .filter(|(_, value)| value.dimensions() == dimensions && value.is_writable(self.question.encoding, usual))
            .collect();
        for (at, item) in self.question.items.iter().enumerate() {
            self.values[at] = item.key.and_then(|key| values.get(&key).cloned());
        }
    }

    /// What to ask, and what to wait for.
    fn plan(&mut self, may_follow: bool) -> Plan {
        let mut plan = Plan { chosen: Vec::new(), leads: Vec::new(), follows: Vec::new() };
        let mut seen = HashSet::new();
        for at in 0..self.values.len() {
            if self.values[at].is_some() {
                continue;
            }
            let Some(key) = self.question.items[at].key else {
                plan.chosen.push(at);
                continue;
            };
            if !seen.insert(key) {
                continue;
            }
            match self.cache.flights.claim(key) {
                Claim::Lead(lead) => match self.kept_since(&key).filter(|_| may_follow) {
                    Some(landed) => self.land(key, landed),
                    None => {
                        plan.leads.push(lead);
                        plan.chosen.push(at);
                    }
                },
                Claim::Follow(follow) if may_follow => plan.follows.push((key, follow)),
                Claim::Follow(_) => plan.chosen.push(at),
            }
        }
        plan
    }

    /// What another request brought after this one looked, and before it could follow.
    fn kept_since(&self, key: &Key) -> Option<Landed> {
        let now = seconds();
        let value = self.cache.local.get(key, now)?;
        let frame = match &self.frame {
            Some((frame, _)) => frame.clone(),
            None => self.cache.local.get(&self.question.frame, now)?,
        };
        let is_writable = value.is_writable(self.question.encoding, self.cache.usual());
        (is_writable && value.dimensions() == frame.dimensions()).then_some(Landed { value, frame })
    }

    /// Keeps an answer to the whole request: at once, or while it is passed on. Those who wait for items, and those who
    /// ask for them meanwhile, get them then.
    async fn keep(mut self, body: Bytes, chosen: Vec<usize>, leads: Vec<Lead>) -> Tally {
        let tally = self.tally;
        // Whatever it reads as, a backend took so many items.
        self.cache.batch.fetch_max(chosen.len(), Ordering::Relaxed);
        let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let room = match body.len() {
            ..WORTH_A_THREAD => None,
            _ => Arc::clone(&self.cache.unread).try_acquire_many_owned(size).ok(),
        };
        let Some(room) = room else {
            let answer = self.read(body, &chosen).await;
            self.take(answer, &chosen, leads, true);
            return tally;
        };
        tokio::task::spawn_blocking(move || {
            let answer = Answer::read(&body, chosen.len(), self.question.encoding);
            self.take(answer, &chosen, leads, true);
            drop(room);
        });
        tally
    }

    /// Reads an answer to the chosen items.
    async fn read(&self, body: Bytes, chosen: &[usize]) -> Option<Answer> {
        let (count, encoding) = (chosen.len(), self.question.encoding);
        if body.len() < WORTH_A_THREAD {
            return Answer::read(&body, count, encoding);
        }
        tokio::task::spawn_blocking(move || Answer::read(&body, count, encoding)).await.ok().flatten()
    }

    /// Takes an answer to the chosen items: keeps it, and tells those who wait. False when it can not be used.
    fn take(&mut self, answer: Option<Answer>, chosen: &[usize], leads: Vec<Lead>, is_whole: bool) -> bool {
        let count = chosen.len();
        let taken = answer.and_then(|answer| Some((self.media(&answer, chosen)?, answer)));
        let Some((media, answer)) = taken else {
            add(&self.cache.stats.unkept, 1);
            return false;
        };
        let dimensions = answer.vectors[0].dimensions;
        if self.known_dimensions().is_some_and(|known| known != dimensions) {
            // Nobody can tell which of two answers is wrong. This one is not kept, and the next is held against it.
            add(&self.cache.stats.unkept, 1);
            let frame = (self.question.frame, self.frame_value(&answer));
            self.cache.insert(self.remote.as_deref(), vec![frame]);
            return false;
        }
        let is_same = |(value, frame): &(Value, Frame)| *frame == answer.frame && value.dimensions() == dimensions;
        let is_known = self.frame.as_ref().is_some_and(is_same);
        if self.frame.is_some() && !is_known && !is_whole {
            add(&self.cache.stats.unkept, 1);
            return false;
        }
        self.cache.usual.fetch_max(answer.form() as u8, Ordering::Relaxed);
        self.cache.batch.fetch_max(count, Ordering::Relaxed);
        add(&self.cache.stats.misses, count);
        let mut kept = Vec::with_capacity(count + 1);
        let frame = match self.frame.take().filter(|_| is_known) {
            Some((frame, _)) => frame,
            None => {
                let frame = self.frame_value(&answer);
                kept.push((self.question.frame, frame.clone()));
                frame
            }
        };
        let shares = shares(&answer, chosen.iter().map(|at| self.question.items[*at].length));
        let mut leads: std::collections::HashMap<Key, Lead> = leads.into_iter().map(|l| (l.key(), l)).collect();
        let mut landed = Vec::new();
        for (((at, vector), tokens), media) in chosen.iter().zip(&answer.vectors).zip(shares).zip(media) {
            let key = self.question.items[*at].key;
            let is_exact = count == 1 && answer.tokens.is_some();
            let facts = Facts { tokens, is_exact, media, expires: self.cache.expiry() };
            // What has no key is not kept, only written.
            let value = Value::of(&key.unwrap_or(self.question.frame), vector, facts);
            self.asked[*at] = true;
            self.values[*at] = Some(value.clone());
            let Some(key) = key else { continue };
            self.spread(key, &value);
            landed.extend(leads.remove(&key).map(|lead| (lead, value.clone())));
            kept.push((key, value));
        }
        self.paid.tokens += answer.tokens.unwrap_or_default();
        self.paid.media += answer.media.unwrap_or_default();
        self.cache.insert(self.remote.as_deref(), kept);
        for (lead, value) in landed {
            lead.land(Landed { value, frame: frame.clone() });
        }
        self.frame = Some((frame, answer.frame));
        true
    }

    /// How many numbers the vectors of the space have, as far as is known here.
    fn known_dimensions(&self) -> Option<u16> {
        let known = self.frame.as_ref().map(|(value, _)| value.dimensions());
        known.or_else(|| Some(self.cache.local.get(&self.question.frame, seconds())?.dimensions()))
    }

    /// What an answer has in common with others, as it is kept. It outlives the vectors that it is for.
    fn frame_value(&self, answer: &Answer) -> Value {
        let expires = self.cache.expiry().saturating_add(self.cache.settings.ttl.as_secs() as u32);
        Value::of_frame(&self.question.frame, &answer.frame.to_bytes(), answer.vectors[0].dimensions, expires)
    }

    /// Videos of each chosen item; nothing when that can not be known.
    fn media(&self, answer: &Answer, chosen: &[usize]) -> Option<Vec<u8>> {
        let is_media = |at: &usize| self.question.items[*at].is_media;
        let stated = answer.media.unwrap_or_default();
        match chosen.len() {
            _ if stated == 0 => Some(vec![0; chosen.len()]),
            1 => Some(vec![u8::try_from(stated).ok()?]),
            _ if stated == chosen.iter().filter(|at| is_media(at)).count() as u64 => {
                Some(chosen.iter().map(|at| u8::from(is_media(at))).collect())
            }
            _ => None,
        }
    }

    /// Takes what another request brought.
    fn land(&mut self, key: Key, landed: Landed) {
        if self.frame.is_none() {
            self.frame = Frame::read(landed.frame.data()).map(|frame| (landed.frame, frame));
        }
        let count = self.spread(key, &landed.value);
        add(&self.cache.stats.shared, 1);
        self.tally.misses -= count;
        self.tally.hits += count;
    }

    /// Puts a vector wherever it belongs.
    fn spread(&mut self, key: Key, value: &Value) -> usize {
        let mut count = 0;
        for (at, item) in self.question.items.iter().enumerate() {
            if item.key == Some(key) && self.values[at].is_none() {
                self.values[at] = Some(value.clone());
                count += 1;
            }
        }
        count
    }

    fn made(&self, id: &str) -> Option<Made> {
        let (frame_value, frame) = self.frame.as_ref()?;
        let values = self.values.iter().map(Option::as_ref).collect::<Option<Vec<_>>>()?;
        if values.iter().any(|value| value.dimensions() != frame_value.dimensions()) {
            return None;
        }
        let (mut sum, mut is_exact, mut free) = (self.paid, true, 0);
        for (value, _) in values.iter().zip(&self.asked).filter(|(_, asked)| !**asked) {
            let facts = value.facts();
            free += u64::from(facts.tokens);
            sum.media += u64::from(facts.media);
            is_exact &= facts.is_exact;
        }
        sum.tokens += free;
        let body = frame.answer(&values, self.question.encoding, self.cache.usual(), sum, id)?;
        if self.tally.misses == 0 {
            self.cache.stats.saved.fetch_add(self.cache.pace.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        Some(Made { body, tally: self.tally, is_exact, free })
    }

    /// Asks for everything, as if there were no cache: what came of a part can not be put together.
    async fn ask_whole<B: Backend>(mut self, backend: &mut B) -> Result<Outcome<B::Passed>, B::Error> {
        let count = self.question.items.len();
        self.tally = Tally { hits: 0, misses: count, away: self.tally.away };
        let tally = self.tally;
        let passed = match backend.ask(self.question.body.clone(), true, Awaited::default()).await? {
            Asked::Good(bytes, passed) => {
                self.keep(bytes, (0..count).collect(), Vec::new()).await;
                passed
            }
            Asked::Other(passed) => passed,
        };
        Ok(Outcome::Passed(passed, tally))
    }
}

/// The tokens of an answer, shared among its items by their lengths.
fn shares(answer: &Answer, lengths: impl Iterator<Item = usize>) -> Vec<u32> {
    let lengths: Vec<u64> = lengths.map(|length| length as u64 + 1).collect();
    let (tokens, sum) = (answer.tokens.unwrap_or_default(), lengths.iter().sum::<u64>().max(1));
    // Each is given what its end has beyond its beginning, so that all together are what was stated.
    let mut end = 0;
    let upto = |length: u64| (u128::from(tokens) * u128::from(length) / u128::from(sum)) as u64;
    let share = |length: &u64| {
        let begin = end;
        end += length;
        u32::try_from(upto(end) - upto(begin)).unwrap_or(u32::MAX)
    };
    lengths.iter().map(share).collect()
}
