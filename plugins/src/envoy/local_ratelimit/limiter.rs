//! The buckets of one configuration, and what they say of a request.

use crate::shared::counters::{Counter, Counters, Key};
use crate::shared::token_bucket::{Rate, TokenBucket};
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::fast_hash::FastMap;
use sixfold_core::rate_limit::Descriptor;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use sixfold_xds_api::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use sixfold_xds_api::pb::envoy::r#type::v3::TokenBucket as ProtoBucket;
use sixfold_xds_api::values::required;
use smallvec::SmallVec;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The buckets.
pub(super) struct Buckets {
    fallback: Fallback,
    /// What matches a descriptor takes a token of the fallback too.
    consume_default: bool,
    listed: Box<[Listed]>,
    /// Places among those listed without wildcards, by the hash of their entries.
    index: FastMap<u64, SmallVec<[usize; 1]>>,
    hasher: RandomState,
    counters: Arc<Counters>,
    /// Tells the counters of these buckets from those of others.
    id: u64,
}

/// What is for requests that no descriptor matches.
enum Fallback {
    /// Nothing limits them.
    Unlimited,
    /// A bucket without room.
    Never,
    Bucket(Rate, Arc<TokenBucket>),
}

/// A descriptor that requests are compared with.
struct Listed {
    /// Keys and values; an empty value is any.
    entries: Box<[(Box<str>, Box<str>)]>,
    rate: Rate,
    /// It only counts what it would limit.
    shadow: bool,
    /// `None` with wildcards: each value has its own.
    bucket: Option<Arc<TokenBucket>>,
}

/// Places of descriptors, the descriptors, and what of a request matches them.
type Matched<'a, 'd, 'e> = SmallVec<[(usize, &'a Listed, &'d Descriptor<'e>); 4]>;

/// What the buckets say.
pub(super) struct Verdict<'b> {
    pub(super) allowed: bool,
    /// The bucket that decided.
    pub(super) told: Option<Told<'b>>,
    /// It only counts.
    pub(super) shadow: bool,
    /// What the descriptor says of headers about the limit.
    pub(super) x_ratelimit: Option<bool>,
}

/// What the response may tell of a bucket.
pub(super) enum Told<'b> {
    Bucket(&'b Arc<TokenBucket>),
    /// Of one value of a wildcard, when the request came.
    Value {
        max: u64,
        left: u64,
        next_token: Duration,
    },
}

/// The same until the response comes.
pub(super) enum Kept {
    Bucket(Arc<TokenBucket>),
    Value { max: u64, left: u64, next_token: Duration },
}

impl Told<'_> {
    /// How long it takes until there is a token.
    pub(super) fn next_token(&self, now: Instant) -> Duration {
        match self {
            Told::Bucket(bucket) => bucket.next_token(now),
            Told::Value { next_token, .. } => *next_token,
        }
    }

    /// Keeps it for the response.
    pub(super) fn keep(self) -> Kept {
        match self {
            Told::Bucket(bucket) => Kept::Bucket(bucket.clone()),
            Told::Value { max, left, next_token } => Kept::Value { max, left, next_token },
        }
    }
}

impl Kept {
    /// The most tokens, those left, and how long it takes until there is one.
    pub(super) fn numbers(&self, now: Instant) -> (u64, u64, Duration) {
        match self {
            Kept::Bucket(bucket) => (bucket.max() as u64, bucket.left(now) as u64, bucket.next_token(now)),
            Kept::Value { max, left, next_token } => (*max, *left, *next_token),
        }
    }
}

/// Takes tokens of the bucket that a counter stands for: it keeps when the bucket was empty.
fn take_of(rate: Rate, counter: &mut Counter, tokens: f64, now: u64) -> (bool, Told<'static>) {
    let (now, full, token) = (now as f64, f64::from(rate.max), rate.token());
    let empty_at = if counter.until == 0 { now - full * token } else { f64::from_bits(counter.before) };
    let there = ((now - empty_at) / token).clamp(0.0, full);
    let allowed = there >= tokens - 1e-6;
    let left = if allowed { (there - tokens).clamp(0.0, full) } else { there };
    let empty_at = now - left * token;
    counter.before = empty_at.to_bits();
    counter.until = (empty_at + full * token).max(now + 1.0) as u64;
    counter.count += u64::from(allowed);
    let missing = (1.0 - left).max(0.0) * token;
    let next_token = Duration::from_nanos(missing as u64);
    (allowed, Told::Value { max: u64::from(rate.max), left: left as u64, next_token })
}

impl Listed {
    fn new(value: &LocalRateLimitDescriptor, now: Instant) -> Result<Listed, ConfigError> {
        let LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = value;
        let rate = required(token_bucket, "token_bucket")
            .and_then(|bucket| Rate::of_message(bucket).in_key("token_bucket"))?;
        if entries.is_empty() {
            return Err(ConfigError::field("entries", "must not be empty"));
        }
        let entry = |Entry { key, value }: &Entry| (key.as_str().into(), value.as_str().into());
        let entries: Box<[(Box<str>, Box<str>)]> = entries.iter().map(entry).collect();
        let is_fixed = entries.iter().all(|(_, value)| !value.is_empty());
        Ok(Listed { entries, rate, shadow: *shadow_mode, bucket: is_fixed.then(|| rate.bucket(now).into()) })
    }

    fn matches(&self, descriptor: &Descriptor<'_>) -> bool {
        self.entries.len() == descriptor.entries.len()
            && self
                .entries
                .iter()
                .zip(&descriptor.entries)
                .all(|((key, value), (found, of))| **key == **found && (value.is_empty() || **value == **of))
    }

    fn fill_rate(&self) -> f64 {
        1.0 / self.rate.token()
    }
}

impl Buckets {
    /// From `token_bucket`, which may be missing, and `descriptors`.
    pub(super) fn new(
        default: &Option<ProtoBucket>,
        consume_default: bool,
        descriptors: &[LocalRateLimitDescriptor],
        counters: Arc<Counters>,
    ) -> Result<Buckets, ConfigError> {
        let now = Instant::now();
        let fallback = match default.as_ref().map(Rate::of_message).transpose().in_key("token_bucket")? {
            None => Fallback::Unlimited,
            Some(Rate { max: 0, .. }) => Fallback::Never,
            Some(rate) => Fallback::Bucket(rate, rate.bucket(now).into()),
        };
        let listed =
            descriptors.iter().enumerate().map(|(index, value)| Listed::new(value, now).in_index(index));
        let listed: Box<[Listed]> = listed.collect::<Result<_, _>>().in_key("descriptors")?;
        for (index, one) in listed.iter().enumerate() {
            if listed.iter().take(index).any(|other| other.entries == one.entries) {
                let error = ConfigError::new("is there already: two with the same entries");
                return Err(error.in_index(index).in_key("descriptors"));
            }
        }
        Ok(Buckets::of(fallback, consume_default, listed, counters))
    }

    fn of(
        fallback: Fallback,
        consume_default: bool,
        listed: Box<[Listed]>,
        counters: Arc<Counters>,
    ) -> Buckets {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (hasher, mut index) = (RandomState::new(), FastMap::<_, SmallVec<[usize; 1]>>::default());
        for (place, one) in listed.iter().enumerate().filter(|(_, one)| one.bucket.is_some()) {
            let entries = one.entries.iter().map(|(key, value)| (&**key, &**value));
            index.entry(hash(&hasher, entries)).or_default().push(place);
        }
        let id = NEXT.fetch_add(1, Relaxed);
        Buckets { fallback, consume_default, listed, index, hasher, counters, id }
    }

    /// The same, all full.
    pub(super) fn anew(&self, now: Instant) -> Buckets {
        let fallback = match &self.fallback {
            Fallback::Unlimited => Fallback::Unlimited,
            Fallback::Never => Fallback::Never,
            Fallback::Bucket(rate, _) => Fallback::Bucket(*rate, rate.bucket(now).into()),
        };
        let again = |one: &Listed| Listed {
            entries: one.entries.clone(),
            bucket: one.bucket.as_ref().map(|_| one.rate.bucket(now).into()),
            ..*one
        };
        let listed = self.listed.iter().map(again).collect();
        Buckets::of(fallback, self.consume_default, listed, self.counters.clone())
    }

    /// Whether requests are compared with descriptors at all.
    pub(super) fn has_descriptors(&self) -> bool {
        !self.listed.is_empty()
    }

    /// The place of a descriptor: that of its own values, else of the first with wildcards.
    fn find(&self, descriptor: &Descriptor<'_>) -> Option<usize> {
        let entries = descriptor.entries.iter().map(|(key, value)| (*key, &**value));
        let known = self.index.get(&hash(&self.hasher, entries)).into_iter().flatten();
        let fits = |place: &&usize| self.listed.get(**place).is_some_and(|one| one.matches(descriptor));
        known
            .copied()
            .find(|place| fits(&place))
            .or_else(|| self.listed.iter().position(|one| one.bucket.is_none() && one.matches(descriptor)))
    }

    /// The descriptors that a request's match, the strictest first, so that what it refuses costs the others nothing.
    fn matched<'a, 'd, 'e>(&'a self, descriptors: &'d [Descriptor<'e>]) -> Matched<'a, 'd, 'e> {
        let mut matched: Matched<'_, '_, '_> = descriptors
            .iter()
            .filter_map(|descriptor| {
                let place = self.find(descriptor)?;
                Some((place, self.listed.get(place)?, descriptor))
            })
            .collect();
        matched.sort_by(|(_, one, _), (_, other, _)| one.fill_rate().total_cmp(&other.fill_rate()));
        matched
    }

    /// Takes tokens for a request, of which this process has a `share`. An empty bucket that only counts leaves the word to
    /// the others: who tries out a stricter limit keeps the one in force.
    pub(super) fn judge(&self, descriptors: &[Descriptor<'_>], share: f64, now: Instant) -> Verdict<'_> {
        let (mut first, mut counted) = (None, None);
        for (place, one, descriptor) in self.matched(descriptors) {
            let (allowed, told) = self.take(place, one, descriptor, share, now);
            let (told, shadow, x_ratelimit) = (Some(told), one.shadow, descriptor.x_ratelimit);
            let verdict = Verdict { allowed, told, shadow, x_ratelimit };
            let kept = match (allowed, shadow) {
                (true, _) => &mut first,
                (false, true) => &mut counted,
                (false, false) => return verdict,
            };
            kept.get_or_insert(verdict);
        }
        let found = counted.or(first);
        if found.is_some() && !self.consume_default {
            return found.unwrap_or(ALLOWED);
        }
        match &self.fallback {
            Fallback::Unlimited => found.unwrap_or(ALLOWED),
            Fallback::Never => Verdict { allowed: false, ..ALLOWED },
            Fallback::Bucket(_, bucket) => {
                let allowed = bucket.take(1.0 / share, now);
                let own = Verdict { allowed, told: Some(Told::Bucket(bucket)), ..ALLOWED };
                if allowed { found.unwrap_or(own) } else { own }
            }
        }
    }

    /// The buckets that a request takes from, up to the first that limits: the most tokens of each, and whether it only
    /// counts.
    pub(super) fn foretell(&self, descriptors: &[Descriptor<'_>]) -> Vec<(u64, bool)> {
        let mut asked = Vec::new();
        for (_, one, _) in self.matched(descriptors) {
            asked.push((u64::from(one.rate.max), one.shadow));
            if !one.shadow {
                return asked;
            }
        }
        if asked.is_empty() || self.consume_default {
            match &self.fallback {
                Fallback::Unlimited => {}
                Fallback::Never => asked.push((0, false)),
                Fallback::Bucket(rate, _) => asked.push((u64::from(rate.max), false)),
            }
        }
        asked
    }

    fn take<'b>(
        &self,
        place: usize,
        one: &'b Listed,
        descriptor: &Descriptor<'_>,
        share: f64,
        now: Instant,
    ) -> (bool, Told<'b>) {
        let hits = descriptor.hits.unwrap_or(1) as f64;
        // What is given back costs less than nothing.
        let tokens = if descriptor.is_negative { -hits } else { hits / share };
        match &one.bucket {
            Some(bucket) => (bucket.take(tokens, now), Told::Bucket(bucket)),
            None => {
                let key = self.key(place, descriptor);
                let time = self.counters.time(now);
                self.counters.change(key, time, |counter| take_of(one.rate, counter, tokens, time))
            }
        }
    }

    fn key(&self, place: usize, descriptor: &Descriptor<'_>) -> Key {
        self.counters.key((self.id, place, &descriptor.entries))
    }
}

/// Nothing decided.
const ALLOWED: Verdict<'static> = Verdict { allowed: true, told: None, shadow: false, x_ratelimit: None };

fn hash<'a>(hasher: &RandomState, entries: impl Iterator<Item = (&'a str, &'a str)>) -> u64 {
    let mut state = hasher.build_hasher();
    for entry in entries {
        entry.hash(&mut state);
    }
    state.finish()
}
