//! Queries and cookies, split once for all who ask while a route is looked for.
//!
//! A client chooses how many parts they have, and a configuration how many conditions ask for one. Who reads them from
//! the start for every condition does work for the product of both: 2,000 conditions on 58 KB held a worker for half a
//! second. Here the first few look-ups of a request read a text from its start; the next one has it split and sorted by
//! name, and those after it search. A request that nobody asks for a part of pays nothing, and one of ordinary size
//! nothing but its scans.

#[cfg(test)]
mod tests;

use super::query::{parameter, raw_cookie};
use crate::headers::{self, Headers};
use crate::lookup;
use percent_encoding::percent_decode;
use std::borrow::Cow;
#[cfg(test)]
use std::cell::Cell;
use std::cell::RefCell;
use std::ops::Range;

/// Texts of up to so many bytes are read from their start however many ask.
const SHORT: usize = 128;
/// So many look-ups of a request read a longer one from its start.
const SCANS: u32 = 4;
/// Pairs that a thread keeps room for.
const KEPT: usize = 256;

thread_local! {
    static KNOWN: RefCell<Known> = const { RefCell::new(Known { query: Sorted::NEW, cookies: Sorted::NEW }) };
}

/// What is known of one request.
struct Known {
    query: Sorted,
    cookies: Sorted,
}

/// The pairs of a text.
struct Sorted {
    /// Where the text lies and how long it is: another one is not meant.
    of: Option<(usize, usize)>,
    /// How often it was read from its start.
    scans: u32,
    is_split: bool,
    /// Each name once, in ascending order.
    pairs: Vec<Pair>,
    /// Decoded names of the pairs whose names are encoded, in ascending order, each once; made when it is asked for.
    decoded: Option<Vec<(Vec<u8>, Pair)>>,
    /// Decoded values, by where they lie; a place for each pair.
    values: Vec<Option<Vec<u8>>>,
}

/// A name and its first value: places in the text.
#[derive(Clone, Copy, Debug)]
struct Pair {
    name: u32,
    name_len: u32,
    value: u32,
    value_len: u32,
    /// Which of the kept values is this one's.
    place: u32,
    /// The first pair of that name has no `=`.
    is_bare: bool,
    /// One of them has none.
    any_bare: bool,
}

/// The first value of a query's parameter, as [`parameter`] finds it.
pub(super) fn query_value<'a>(query: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    if !is_sorted(|known| &mut known.query, query, |take| split_query(query, take)) {
        return parameter(query, name);
    }
    let found = KNOWN.with_borrow(|known| known.query.find(query, name));
    query.get(found?.value())
}

/// The first value of a cookie, as [`raw_cookie`] finds it.
pub(crate) fn cookie_value<'a>(headers: &'a Headers, name: &[u8]) -> Option<&'a [u8]> {
    if !headers.contains(headers::Known::COOKIE) {
        return None;
    }
    let wire = headers.wire();
    if !is_sorted(|known| &mut known.cookies, wire, |take| split_cookies(headers, take)) {
        return raw_cookie(headers, name);
    }
    let found = KNOWN.with_borrow(|known| known.cookies.find(wire, name));
    wire.get(found?.value())
}

/// Has `look` look at the first value of a query's argument, as [`argument`] finds it.
pub(crate) fn with_argument<T>(query: &[u8], name: &[u8], look: impl FnOnce(Option<&[u8]>) -> T) -> T {
    if !is_sorted(|known| &mut known.query, query, |take| split_query(query, take)) {
        return look(argument(query, name).as_deref());
    }
    KNOWN.with_borrow_mut(|known| {
        let sorted = &mut known.query;
        let (pair, is_true) = match sorted.find(query, name) {
            Some(pair) => (pair, pair.any_bare && pair.value_len == 0),
            None => match sorted.find_decoded(query, name) {
                Some(pair) => (pair, pair.is_bare),
                None => return look(None),
            },
        };
        let value = query.get(pair.value()).unwrap_or_default();
        match sorted.values.get_mut(pair.place as usize) {
            _ if is_true => look(Some(b"true")),
            Some(kept) if is_encoded(value) => {
                look(Some(kept.get_or_insert_with(|| decode(value).into_owned())))
            }
            _ => look(Some(value)),
        }
    })
}

/// The first argument of a name in a query, decoded. One without `=` is `true`, as in APISIX.
pub(crate) fn argument<'a>(query: &'a [u8], name: &[u8]) -> Option<Cow<'a, [u8]>> {
    match parameter(query, name) {
        // No `=`: the bare name is among the arguments.
        Some(b"") if query.split(|b| *b == b'&').any(|pair| pair == name) => Some(Cow::Borrowed(b"true")),
        Some(value) => Some(decode(value)),
        None => query.split(|b| *b == b'&').find_map(|pair| {
            step();
            let mut halves = pair.splitn(2, |b| *b == b'=');
            let key = halves.next().filter(|key| is_encoded(key))?;
            let value = halves.next();
            (*decode(key) == *name).then(|| value.map_or(Cow::Borrowed(&b"true"[..]), decode))
        }),
    }
}

fn is_encoded(text: &[u8]) -> bool {
    memchr::memchr2(b'%', b'+', text).is_some()
}

/// Decodes `%XX` and `+` of forms and queries.
pub(crate) fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if !is_encoded(text) {
        return Cow::Borrowed(text);
    }
    let spaced: Vec<u8> = text.iter().map(|b| if *b == b'+' { b' ' } else { *b }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

/// Takes a part of a text and where in it the part lies.
type Take<'t> = dyn FnMut(usize, &[u8]) + 't;

/// Whether the pairs of `text` are sorted, or have just been; else it is to be read from its start.
fn is_sorted(
    of: impl FnOnce(&mut Known) -> &mut Sorted,
    text: &[u8],
    split: impl FnOnce(&mut Take<'_>),
) -> bool {
    if !lookup::is_open() || text.len() <= SHORT || u32::try_from(text.len()).is_err() {
        return false;
    }
    KNOWN.with(|known| {
        // Borrowed already: one who looks asks for another.
        let Ok(mut known) = known.try_borrow_mut() else { return false };
        let sorted = of(&mut known);
        if sorted.of.is_none() {
            lookup::forget_at_end(forget);
        }
        let place = (text.as_ptr().addr(), text.len());
        if sorted.of != Some(place) {
            sorted.clear();
            sorted.of = Some(place);
        }
        if sorted.scans < SCANS {
            sorted.scans += 1;
            return false;
        }
        if !sorted.is_split {
            split(&mut |at, part| sorted.push(at, part));
            sorted.sort(text);
        }
        true
    })
}

/// Nobody holds what is known here: it is borrowed while one looks.
fn forget() {
    KNOWN.with_borrow_mut(|known| {
        known.query.clear();
        known.cookies.clear();
    });
}

/// Hands out each part of a text between separators, and where it lies.
fn each(text: &[u8], separator: u8, mut take: impl FnMut(usize, &[u8])) {
    let mut start = 0;
    for end in memchr::memchr_iter(separator, text).chain([text.len()]) {
        take(start, text.get(start..end).unwrap_or_default());
        start = end + 1;
    }
}

fn split_query(query: &[u8], take: &mut Take<'_>) {
    each(query, b'&', take);
}

/// Places are those in [`Headers::wire`]. A part without `=` is no cookie.
fn split_cookies(headers: &Headers, take: &mut Take<'_>) {
    let wire = headers.wire().as_ptr().addr();
    for line in headers.get_all(headers::Known::COOKIE) {
        let line_at = line.as_ptr().addr().wrapping_sub(wire);
        each(line, b';', |at, part| {
            let cookie = part.trim_ascii_start();
            if part.contains(&b'=') {
                take(line_at + at + part.len() - cookie.len(), cookie.trim_ascii_end());
            }
        });
    }
}

impl Sorted {
    const NEW: Sorted =
        Sorted { of: None, scans: 0, is_split: false, pairs: Vec::new(), decoded: None, values: Vec::new() };

    /// Forgets everything; its memory stays, up to [`KEPT`] pairs.
    fn clear(&mut self) {
        let Sorted { of, scans, is_split, pairs, decoded, values } = self;
        *of = None;
        *scans = 0;
        *is_split = false;
        pairs.clear();
        pairs.shrink_to(KEPT);
        *decoded = None;
        values.clear();
        values.shrink_to(KEPT);
    }

    fn push(&mut self, at: usize, part: &[u8]) {
        step();
        let equals = memchr::memchr(b'=', part);
        let name_len = equals.unwrap_or(part.len());
        let value_len = part.len().saturating_sub(name_len + 1);
        // The text is no longer than its places can say.
        let pair = Pair {
            name: at as u32,
            name_len: name_len as u32,
            value: (at + part.len() - value_len) as u32,
            value_len: value_len as u32,
            place: 0,
            is_bare: equals.is_none(),
            any_bare: equals.is_none(),
        };
        self.pairs.push(pair);
    }

    /// Puts the pairs in order, and leaves the first of each name.
    fn sort(&mut self, text: &[u8]) {
        self.pairs.sort_unstable_by(|a, b| {
            step();
            a.name_in(text).cmp(b.name_in(text)).then(a.name.cmp(&b.name))
        });
        self.pairs.dedup_by(|later, first| {
            let is_same = later.name_in(text) == first.name_in(text);
            first.any_bare |= is_same && later.any_bare;
            is_same
        });
        for (place, pair) in self.pairs.iter_mut().enumerate() {
            pair.place = place as u32;
        }
        self.values.resize(self.pairs.len(), None);
        self.is_split = true;
    }

    fn find(&self, text: &[u8], name: &[u8]) -> Option<Pair> {
        let at = self.pairs.binary_search_by(|pair| {
            step();
            pair.name_in(text).cmp(name)
        });
        self.pairs.get(at.ok()?).copied()
    }

    /// The first pair whose name is encoded and means `name`.
    fn find_decoded(&mut self, text: &[u8], name: &[u8]) -> Option<Pair> {
        let pairs = &self.pairs;
        let decoded = self.decoded.get_or_insert_with(|| {
            let encoded = pairs.iter().filter(|pair| is_encoded(pair.name_in(text)));
            let mut all: Vec<_> =
                encoded.map(|pair| (decode(pair.name_in(text)).into_owned(), *pair)).collect();
            all.sort_unstable_by(|(a, x), (b, y)| {
                step();
                a.cmp(b).then(x.name.cmp(&y.name))
            });
            all.dedup_by(|(later, _), (first, _)| later == first);
            all
        });
        let at = decoded.binary_search_by(|(known, _)| {
            step();
            (**known).cmp(name)
        });
        decoded.get(at.ok()?).map(|(_, pair)| *pair)
    }
}

impl Pair {
    fn name_in<'a>(&self, text: &'a [u8]) -> &'a [u8] {
        let start = self.name as usize;
        text.get(start..start + self.name_len as usize).unwrap_or_default()
    }

    fn value(&self) -> Range<usize> {
        let start = self.value as usize;
        start..start + self.value_len as usize
    }
}

/// Counts a part that is looked at, or a comparison, for the tests.
#[inline]
pub(super) fn step() {
    #[cfg(test)]
    STEPS.set(STEPS.get() + 1);
}

#[cfg(test)]
thread_local! {
    /// How often this thread has looked at a part or compared two names.
    pub(crate) static STEPS: Cell<usize> = const { Cell::new(0) };
}
