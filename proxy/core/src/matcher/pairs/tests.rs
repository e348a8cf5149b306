//! The sorted pairs answer as the scans do, and cost no more than the conditions and the parts together.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::lookup::Lookup;
use proptest::prelude::*;

/// What `look` costs.
fn steps<T>(look: impl FnOnce() -> T) -> (usize, T) {
    let before = STEPS.get();
    let found = look();
    (STEPS.get() - before, found)
}

/// Parts and names that meet often, encoded and not.
fn part() -> impl Strategy<Value = String> {
    "(a|b|%61|%62|\\+|c)?(=(x|%79|\\+|\"q\"|=)?)?"
}

fn name() -> impl Strategy<Value = String> {
    "(a|b|%61| |c|d)?"
}

proptest! {
    #[test]
    fn queries_answer_as_a_scan_does(parts in proptest::collection::vec(part(), 0..80), names in proptest::collection::vec(name(), 0..40)) {
        let query = parts.join("&").into_bytes();
        let _scope = Lookup::begin();
        for name in &names {
            let name = name.as_bytes();
            prop_assert_eq!(query_value(&query, name), parameter(&query, name));
            let found = with_argument(&query, name, |value| value.map(<[u8]>::to_vec));
            let scanned = argument(&query, name);
            prop_assert_eq!(found.as_deref(), scanned.as_deref());
        }
    }

    #[test]
    fn cookies_answer_as_a_scan_does(lines in proptest::collection::vec(proptest::collection::vec(part(), 0..40), 0..4), names in proptest::collection::vec(name(), 0..40)) {
        let mut headers = Headers::new();
        for line in &lines {
            headers.push(b"x-other", b"a=no");
            headers.push(b"Cookie", line.join("; ").as_bytes());
        }
        let _scope = Lookup::begin();
        for name in &names {
            let name = name.as_bytes();
            prop_assert_eq!(cookie_value(&headers, name), raw_cookie(&headers, name));
        }
    }

    /// 2,000 conditions on 58,000 parts took 116 million looks.
    #[test]
    fn conditions_and_parts_add_up(conditions in 0..3_000_usize, parts in 1..3_000_usize, kind in 0..4) {
        let of = |i: usize| match kind {
            0 => String::new(),
            1 => format!("a{}=b", i % 7),
            2 => format!("p{i}=b"),
            _ => format!("%61{i}=%62"),
        };
        let text: Vec<String> = (0..parts).map(of).collect();
        let (query, mut headers) = (text.join("&").into_bytes(), Headers::new());
        headers.push(b"cookie", text.join(";").as_bytes());
        let names: Vec<String> = (0..conditions).map(|i| format!("q{i}")).collect();
        let bound = SCANS as usize * 2 * parts + 2 * (conditions + 2 * parts) * (parts.ilog2() as usize + 3) + 2 * (SHORT + 1) * conditions;
        let _scope = Lookup::begin();
        let (cost, _) = steps(|| for n in &names { query_value(&query, n.as_bytes()); });
        prop_assert!(cost <= bound, "query: {cost} of {bound}");
        let (cost, _) = steps(|| for n in &names { with_argument(&query, n.as_bytes(), |_| ()); });
        prop_assert!(cost <= bound, "argument: {cost} of {bound}");
        let (cost, _) = steps(|| for n in &names { cookie_value(&headers, n.as_bytes()); });
        prop_assert!(cost <= bound, "cookie: {cost} of {bound}");
    }
}

/// A value that many conditions look at was decoded for each.
#[test]
fn a_value_is_decoded_once() {
    let query = format!("q={}", "%41".repeat(200));
    let _scope = Lookup::begin();
    let place = || with_argument(query.as_bytes(), b"q", |value| value.unwrap().as_ptr().addr());
    (0..SCANS).for_each(|_| assert_ne!(place(), 0));
    assert_eq!(place(), place());
}

/// What is known of one request must not answer for the next, which lies where the first one lay.
#[test]
fn nothing_is_known_of_the_next_request() {
    let mut query = vec![b'&'; 300];
    let find = |query: &[u8]| (0..10).filter_map(|_| query_value(query, b"a")).count();
    {
        let _scope = Lookup::begin();
        assert_eq!(find(&query), 0);
        let _inner = Lookup::begin();
    }
    query[10] = b'a';
    assert_eq!(find(&query), 10);
    let _scope = Lookup::begin();
    assert_eq!(find(&query), 10);
}

/// Memory that one large request took is given back.
#[test]
fn room_is_kept_for_ordinary_requests_only() {
    let query: Vec<u8> = (0..20_000).flat_map(|i| format!("{i}&").into_bytes()).collect();
    {
        let _scope = Lookup::begin();
        (0..10).for_each(|_| assert_eq!(query_value(&query, b"a"), None));
        KNOWN.with_borrow(|known| assert!(known.query.pairs.len() > 10_000));
    }
    KNOWN.with_borrow(|known| {
        assert!(known.query.pairs.capacity() <= KEPT && known.query.values.capacity() <= KEPT);
    });
}
