#![allow(clippy::unwrap_used)]
use super::*;

#[test]
fn the_arena_agrees_with_a_list_of_fields() {
    crate::stable::run("header_arena", &["cookie", "accept", "x-own", "\u{0}"], fuzz::arena);
}

#[test]
fn set_replaces_in_place_and_drops_the_rest() {
    let mut h = Headers::new();
    h.push(b"A", b"1");
    h.push(b"Host", b"x");
    h.push(b"a", b"2");
    h.set("a", b"3");
    assert_eq!(h.iter().collect::<Vec<_>>(), [(&b"A"[..], &b"3"[..]), (b"Host", b"x")]);
    h.set(Known::HOST, b"longer than before");
    assert_eq!(h.get(Known::HOST), Some(&b"longer than before"[..]));
    assert_eq!((h.len(), h.wire_len()), (2, "A3Hostlonger than before".len() + 8));
}

#[test]
fn join_append_and_remove() {
    let mut h = Headers::new();
    h.join(Known::X_FORWARDED_FOR, b",", b"1.1.1.1");
    h.append("x-one", b"a");
    h.join(Known::X_FORWARDED_FOR, b",", b"2.2.2.2");
    h.join(Known::X_FORWARDED_FOR, b",", b"3.3.3.3");
    assert_eq!(h.get(Known::X_FORWARDED_FOR), Some(&b"1.1.1.1,2.2.2.2,3.3.3.3"[..]));
    h.append("x-one", b"b");
    assert_eq!(h.get_all("x-one").count(), 2);
    assert!(h.remove("X-One".to_ascii_lowercase().as_str()));
    assert!(!h.remove("x-one"));
    assert_eq!(h.wire_len(), "x-forwarded-for1.1.1.1,2.2.2.2,3.3.3.3".len() + 4);
}

#[test]
fn repeated_names_join_where_they_may() {
    let mut h = Headers::new();
    for (name, value) in [("Accept", "a"), ("x-own", "1"), ("Cookie", "c"), ("accept", "b"), ("x-own", "2")] {
        h.push(name.as_bytes(), value.as_bytes());
    }
    h.push(b"cookie", b"d");
    h.join_repeated(|known| known != Known::COOKIE);
    let lines: Vec<_> = h.iter().map(|(_, value)| value).collect();
    assert_eq!(lines, [&b"a,b"[..], b"1", b"c", b"2", b"d"]);
    h.join_repeated(|_| true);
    assert_eq!(h.get(Known::COOKIE), Some(&b"c; d"[..]));
}

/// `,admin` from an empty line and `admin` stepped round matchers that Envoy's `admin` meets.
#[test]
fn empty_lines_add_nothing_to_a_joined_value() {
    for (lines, joined) in [
        (&["", "admin"][..], "admin"),
        (&["admin", ""], "admin"),
        (&["", "a", "", "b", ""], "a,b"),
        (&["", ""], ""),
    ] {
        let (mut whole, mut stepwise) = (Headers::new(), Headers::new());
        for line in lines {
            whole.push(b"accept", line.as_bytes());
            stepwise.join(Known::ACCEPT, b",", line.as_bytes());
        }
        whole.join_repeated(Known::is_inline);
        for h in [whole, stepwise] {
            assert_eq!(h.iter().collect::<Vec<_>>(), [(&b"accept"[..], joined.as_bytes())]);
        }
    }
}

#[test]
fn names_with_bad_bytes_are_refused_and_spelling_is_kept_where_asked() {
    assert!(HeaderName::new("x y").is_err());
    assert!(HeaderName::new("").is_err());
    assert!(HeaderName::new(&"x".repeat(65_536)).is_err());
    let spelled = HeaderName::as_spelled("X-RateLimit-Limit").unwrap();
    let mut h = Headers::new();
    h.set(&spelled, b"1");
    assert_eq!(h.iter().next(), Some((&b"X-RateLimit-Limit"[..], &b"1"[..])));
    assert_eq!((h.get("x-ratelimit-limit"), spelled.as_str()), (Some(&b"1"[..]), "x-ratelimit-limit"));
    assert_eq!(HeaderName::new("X-Request-Id").map(|n| n.known()), Ok(Some(Known::X_REQUEST_ID)));
}

thread_local! {
    /// Bytes that blocks of this thread have written.
    pub(super) static COPIED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// What a peer or a plugin can do again and again, `n` times.
type Repeat = fn(&mut Headers, usize);

/// Joining copied the whole value each time and gave nothing back: 840 cookie crumbs of 30 bytes took 12.5 MB.
#[test]
fn whatever_is_repeated_the_arena_stays_below_twice_what_it_holds() {
    let cases: [(&str, Repeat); 7] = [
        ("one name", |h, n| (0..n).for_each(|_| h.join(Known::COOKIE, b"; ", &[b'c'; 30]))),
        ("two names in turn", |h, n| {
            (0..n).for_each(|i| h.join([Known::ACCEPT, Known::VIA][i % 2], b",", &[b'v'; 30]));
        }),
        ("lines of one name", |h, n| {
            (0..n).for_each(|_| h.push(b"cookie", &[b'c'; 30]));
            h.join_repeated(|_| true);
        }),
        ("lines of many names", |h, n| {
            let names: Vec<Known> = Known::all().collect();
            (0..n).for_each(|i| h.append(names[i % names.len()], &[b'v'; 30]));
            h.join_repeated(|_| true);
        }),
        ("a value that grows", |h, n| (0..n).for_each(|i| h.set(Known::VIA, &vec![b'v'; 30 + i]))),
        ("values that shrink and grow", |h, n| {
            (0..n).for_each(|i| h.set(["x-a", "x-b", "x-c"][i % 3], &vec![b'v'; 30 + i * 7 % 31]));
        }),
        ("fields that come and go", |h, n| {
            (0..n).for_each(|i| {
                h.append("x-kept", &[b'k'; 2]);
                h.append("x-gone", &vec![b'g'; i % 100]);
                h.remove("x-gone");
            });
        }),
    ];
    for (what, repeat) in cases {
        for n in [500, 1000, 2000, 4000] {
            let mut h = Headers::new();
            repeat(&mut h, n);
            let held = h.buf.capacity();
            assert!(held <= 2 * h.live() + FIRST, "{what}, {n}: {held} bytes for {}", h.live());
            assert_eq!(h.iter().map(|(n, v)| n.len() + v.len() + 4).sum::<usize>(), h.live(), "{what}");
        }
    }
}

/// Time, as bytes that are written: each of a peer's bytes is copied a bounded number of times.
#[test]
fn lines_of_a_peer_are_copied_a_bounded_number_of_times() {
    for n in [1000, 2000, 4000] {
        let mut h = Headers::new();
        let before = COPIED.get();
        for i in 0..n {
            h.push([&b"accept"[..], b"via", b"cookie", b"x-own"][i % 4], &[b'v'; 30]);
        }
        h.join_repeated(|_| true);
        let copied = COPIED.get() - before;
        assert!(copied <= 5 * h.wire_len(), "{n}: {copied} bytes for {}", h.wire_len());
        let before = COPIED.get();
        (0..n).for_each(|_| h.set("x-own", &[b'v'; 40]));
        let copied = COPIED.get() - before;
        assert!(copied <= 6 * h.wire_len() + n * 80, "{n}: {copied} bytes");
    }
}

#[test]
fn spellings_are_remembered_until_the_next_message() {
    let mut h = Headers::new();
    h.remember_spelling(Known::CONNECTION, b"CONNECTION");
    h.remember_spelling(Known::CONNECTION, b"connection");
    assert_eq!((h.spelling(Known::CONNECTION), h.len()), (Some(&b"CONNECTION"[..]), 0));
    h.clear();
    assert_eq!(h.spelling(Known::CONNECTION), None);
}

#[test]
fn a_cleared_block_gives_back_what_is_above_its_bound() {
    let mut h = Headers::new();
    for _ in 0..4000 {
        h.push(b"x", &[b'v'; 30]);
    }
    assert!(h.memory() > 100_000);
    h.clear();
    assert!(h.is_empty() && h.wire_len() == 0);
    assert!(4 * h.memory() <= 64 * 1024, "{}", h.memory());
    h.push(b"accept", b"a");
    let held = h.memory();
    h.clear();
    assert_eq!(h.memory(), held, "what is small is kept");
}
