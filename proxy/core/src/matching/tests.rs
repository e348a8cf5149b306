#![allow(clippy::unwrap_used)]
use super::*;
use crate::cel::Program;
use crate::connection::{Certificate, TlsInfo};
use crate::listener::MatchInput;
use crate::matcher::{HeaderTarget, StringMatcher, ValueMatcher};
use crate::stream::{Stream, fixture};
use proptest::prelude::*;
use std::sync::Arc;

fn header(name: &str) -> Input {
    Input::Header(HeaderTarget::of_request(name))
}

fn is(input: Input, text: &str) -> Predicate {
    Predicate::Single(input, Test::Text(StringMatcher::exact(text)))
}

fn begins(input: Input, text: &str) -> Predicate {
    Predicate::Single(input, Test::Text(StringMatcher::Prefix(text.as_bytes().into(), false)))
}

fn act(action: u32) -> Then<u32> {
    Then::Act(action)
}

fn choose(tree: Tree<u32>) -> Then<u32> {
    Then::Choose(Box::new(tree))
}

fn found(tree: &Tree<u32>, stream: &Stream) -> Option<u32> {
    tree.find(Subject::Stream(stream)).copied()
}

/// A choice that nothing fits, for whoever comes there.
fn dead_end() -> Then<u32> {
    choose(Tree::list(vec![(is(header("x-none"), "1"), act(99))], None))
}

#[test]
fn every_input_is_read() {
    let certificate = Certificate {
        uri_sans: vec!["spiffe://a".into(), "spiffe://b".into()],
        dns_sans: vec!["a.test".into()],
        subject: "CN=a".into(),
        ..Certificate::default()
    };
    let tls = TlsInfo { peer: Some(Arc::new(certificate)), ..TlsInfo::default() };
    let headers = [("x", "1"), ("x", "2"), ("x", "3"), ("y", "")];
    let mut stream = fixture::with_tls("/p?a=1&b%20c=d+e&a=2&f", &headers, Some(tls));
    stream.metadata.push(("n".into(), "k".into(), serde_json::json!({"l": "v"})));
    let read = |input: Input| {
        input.with(Subject::Stream(&stream), |text| {
            text.map_or("-".to_owned(), |text| String::from_utf8(text.to_vec()).unwrap())
        })
    };
    for (input, wanted) in [
        (header("x"), "1,2,3"),
        (header("X"), "1,2,3"),
        (header("y"), ""),
        (header("z"), "-"),
        (header(":path"), "/p?a=1&b%20c=d+e&a=2&f"),
        (Input::DestinationIp, "127.0.0.1"),
        (Input::DestinationPort, "9080"),
        (Input::SourceIp, "10.1.2.3"),
        (Input::SourcePort, "4000"),
        (Input::DirectSourceIp, "10.1.2.3"),
        (Input::SourceType, "-"),
        (Input::ServerName, "-"),
        (Input::UriSan, "spiffe://a,spiffe://b"),
        (Input::DnsSan, "a.test"),
        (Input::Subject, "CN=a"),
        (Input::Metadata("n".into(), "k".into(), ["l".into()].into()), "-"),
        (Input::FilterState("o".into()), "-"),
        (Input::Constant(Some("c".into())), "c"),
        (Input::ApplicationProtocol, "-"),
    ] {
        assert_eq!(read(input.clone()), wanted, "{input:?}");
    }
    let protocols = [b"h2"[..].into(), b"http/1.1"[..].into()];
    let socket = MatchInput {
        destination: Some("10.0.0.1:80".parse().unwrap()),
        server_name: Some("a.test"),
        tls: true,
        application_protocols: &protocols,
        direct_source: Some("10.9.9.9:2".parse().unwrap()),
        source: Some("10.0.0.1:1".parse().unwrap()),
    };
    let read = |input: Input| {
        input.with(Subject::Socket(&socket), |text| {
            text.map_or("-".to_owned(), |text| String::from_utf8(text.to_vec()).unwrap())
        })
    };
    for (input, wanted) in [
        (Input::DestinationIp, "10.0.0.1"),
        (Input::SourceType, "local"),
        (Input::DirectSourceIp, "10.9.9.9"),
        (Input::ServerName, "a.test"),
        (Input::Transport, "tls"),
        (Input::ApplicationProtocol, "'h2','http/1.1'"),
        (header("x"), "-"),
        (Input::UriSan, "-"),
    ] {
        assert_eq!(read(input.clone()), wanted, "{input:?}");
    }
}

#[test]
fn tests_pass_what_they_are_for() {
    let stream = fixture::stream("/p", &[("x", "10.1.0.1"), ("y", "no address")]);
    let passes = |input: Input, test: Test| Predicate::Single(input, test).holds(Subject::Stream(&stream));
    let within = |range: &str| Test::Ip([range.parse().unwrap()].into());
    assert!(passes(Input::SourceIp, within("10.0.0.0/8")) && !passes(Input::SourceIp, within("11.0.0.0/8")));
    assert!(passes(header("x"), within("10.1.0.0/16")) && !passes(header("y"), within("0.0.0.0/0")));
    assert!(!passes(header("z"), Test::Text(StringMatcher::exact(""))), "what is not there passes nothing");
    let hash = |threshold| Test::Hash { modulo: 10, threshold, seed: 0 };
    let least = (0..=10).take_while(|threshold| passes(header("x"), hash(*threshold))).count();
    assert!((1..=10).contains(&least));
    assert!(
        !passes(header("z"), hash(0))
            && !passes(header("x"), Test::Hash { modulo: 0, threshold: 0, seed: 0 })
    );
    let cel = |text| Test::Cel(Program::parse(text, Default::default()).unwrap());
    assert!(passes(Input::Attributes, cel("request.method == 'GET'")));
    assert!(!passes(Input::Attributes, cel("request.method == 'PUT'")));
    let place = || Input::Metadata("n".into(), "k".into(), Box::default());
    assert!(!passes(place(), Test::Value(ValueMatcher::Bool(true), false)));
    assert!(passes(place(), Test::Value(ValueMatcher::Bool(true), true)));
    let (yes, no) = (|| is(header("x"), "10.1.0.1"), || is(header("x"), "2"));
    let holds = |predicate: Predicate| predicate.holds(Subject::Stream(&stream));
    assert!(holds(Predicate::Any([no(), yes()].into())) && !holds(Predicate::All([no(), yes()].into())));
    assert!(holds(Predicate::Not(no().into())) && !holds(Predicate::Not(yes().into())));
}

#[test]
fn a_list_takes_the_first_that_leads_somewhere() {
    let stream = fixture::stream("/", &[("x", "1"), ("y", "2")]);
    let list = |otherwise| {
        Tree::list(
            vec![
                (is(header("x"), "2"), act(1)),
                (is(header("x"), "1"), dead_end()),
                (is(header("y"), "2"), act(2)),
                (is(header("x"), "1"), act(3)),
            ],
            otherwise,
        )
    };
    assert_eq!(found(&list(None), &stream), Some(2));
    let nobody = fixture::stream("/", &[]);
    assert_eq!(found(&list(None), &nobody), None);
    assert_eq!(found(&list(Some(act(4))), &nobody), Some(4));
    assert_eq!(found(&Tree::any(Some(act(5))), &nobody), Some(5));
    assert_eq!(found(&Tree::any(None), &nobody), None);
    let mut all = Vec::new();
    list(Some(act(4))).each(&mut |action| all.push(*action));
    assert_eq!(all, [1, 99, 2, 3, 4]);
}

#[test]
fn maps_take_what_fits_best_and_go_on_where_it_leads_nowhere() {
    let of = |path: &str, tree: &Tree<u32>| found(tree, &fixture::stream(path, &[]));
    let exact =
        Tree::exact(header(":path"), vec![("/a".into(), act(1)), ("/b".into(), dead_end())], Some(act(9)));
    assert_eq!(["/a", "/b", "/c"].map(|path| of(path, &exact)), [Some(1), Some(9), Some(9)]);
    let prefix = Tree::prefix(
        header(":path"),
        vec![
            ("/".into(), act(1)),
            ("/a".into(), act(2)),
            ("/a/b".into(), dead_end()),
            ("/a/b/c".into(), act(4)),
        ],
        None,
    );
    assert_eq!(
        ["/", "/ab", "/a/bc", "/a/b/cd"].map(|path| of(path, &prefix)),
        [Some(1), Some(2), Some(2), Some(4)]
    );
    let absent = Tree::prefix(header("x"), vec![(String::new(), act(1))], None);
    assert_eq!(of("/", &absent), None, "what is not there begins with nothing");
}

#[test]
fn ranges_and_names_take_the_narrowest_first() {
    let range =
        |range: &str, then, exclusive| Range { ranges: vec![range.parse().unwrap()], then, exclusive };
    let ip = |exclusive| {
        Tree::ip(
            Input::SourceIp,
            vec![
                range("0.0.0.0/0", act(1), false),
                range("10.1.0.0/16", dead_end(), exclusive),
                range("10.0.0.0/8", act(2), false),
            ],
            Some(act(9)),
        )
    };
    let from = |address: &str, tree: &Tree<u32>| {
        let mut stream = fixture::stream("/", &[]);
        stream.remote = address.parse().unwrap();
        found(tree, &stream)
    };
    assert_eq!(
        ["10.1.0.1:1", "10.2.0.1:1", "11.0.0.1:1", "[::1]:1"].map(|address| from(address, &ip(false))),
        [Some(2), Some(2), Some(1), Some(9)]
    );
    assert_eq!(from("10.1.0.1:1", &ip(true)), Some(9), "no wider one is tried");
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let tree = Tree::names(
        header("x"),
        vec![
            (names(&["*"]), act(1)),
            (names(&["*.b.test", "c.test"]), act(2)),
            (names(&["a.b.test"]), dead_end()),
            (names(&["*.a.b.test"]), act(3)),
        ],
        None,
    );
    let of = |name: &str| found(&tree, &fixture::stream("/", &[("x", name)]));
    assert_eq!(
        ["a.b.test", "x.a.b.test", "c.test", "b.test", "d"].map(of),
        [Some(2), Some(3), Some(2), Some(1), Some(1)]
    );
}

prop_compose! {
    fn any_single()(at in 0usize..3, text in "[ab/]{0,3}", kind in 0..4) -> Predicate {
        let input = [header("x"), header("y"), header(":path")][at].clone();
        Predicate::Single(input, Test::Text(match kind {
            0 => StringMatcher::Prefix(text.as_bytes().into(), false),
            1 => StringMatcher::Regex(crate::regex::Regex::full(&format!("{text}.*b?")).unwrap()),
            2 => StringMatcher::Exact(text.as_bytes().into(), true),
            _ => StringMatcher::exact(&text),
        }))
    }
}

fn any_predicate() -> impl Strategy<Value = Predicate> {
    any_single().prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| Predicate::All(all.into())),
            prop::collection::vec(inner.clone(), 2..4).prop_map(|all| Predicate::Any(all.into())),
            inner.prop_map(|one| Predicate::Not(one.into())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    /// The index leaves out nothing that a scan would have found, and keeps the order.
    #[test]
    fn an_indexed_list_answers_as_a_scan(
        predicates in prop::collection::vec((any_predicate(), any::<bool>()), 2..20),
        path in "/[ab/]{0,3}",
        x in prop::option::of("[ab]{0,3}"),
        y in prop::collection::vec("[ab]{0,2}", 0..3),
    ) {
        let items = predicates.into_iter().zip(0u32..).map(|((predicate, leads), at)| {
            (predicate, if leads { act(at) } else { dead_end() })
        });
        let tree = Tree::list(items.collect(), None);
        let headers = x.iter().map(|x| ("x", x.as_str())).chain(y.iter().map(|y| ("y", y.as_str())));
        let stream = fixture::stream(&path, &headers.collect::<Vec<_>>());
        let subject = Subject::Stream(&stream);
        prop_assert_eq!(tree.find(subject), tree.scan(subject));
        prop_assert_eq!(begins(header(":path"), "/").holds(subject), true);
    }
}

/// A condition that takes all that expressions may scan and does not hold.
fn spends() -> Predicate {
    let test = crate::regex::Regex::full(".*[0-9]x").unwrap();
    Predicate::Single(header("x-long"), Test::Text(StringMatcher::Regex(test)))
}

/// A branch that spends everything and leads to no action.
fn spending() -> Then<u32> {
    choose(Tree::list(vec![(spends(), act(99))], None))
}

/// What stands behind what could not be tried to its end decided.
#[test]
fn behind_what_could_not_be_tried_nothing_is_found() {
    use crate::regex::work;
    let (long, name) = ("1y".repeat(100), "a.b.test");
    let stream = fixture::stream("/", &[("x-long", &long), ("x-name", name)]);
    let (on_name, always) = (|| header("x-name"), || Predicate::All(Box::default()));
    let range = |range: &str, then| Range { ranges: vec![range.parse().unwrap()], then, exclusive: false };
    let names = |of: &str, then| (vec![of.to_owned()], then);
    let trees = [
        ("list", Tree::list(vec![(spends(), act(1)), (always(), act(2))], None)),
        ("otherwise", Tree::exact(on_name(), vec![(name.into(), spending())], Some(act(2)))),
        ("prefix", Tree::prefix(on_name(), vec![("a.".into(), act(2)), ("a.b".into(), spending())], None)),
        (
            "range",
            Tree::ip(
                Input::SourceIp,
                vec![range("10.0.0.0/8", act(2)), range("10.1.0.0/16", spending())],
                None,
            ),
        ),
        ("name", Tree::names(on_name(), vec![names("*.test", act(2)), names(name, spending())], None)),
    ];
    for (kind, tree) in trees {
        work::grant(1);
        let cut_short = (found(&tree, &stream), work::is_spent());
        work::grant(usize::MAX);
        assert_eq!((cut_short, found(&tree, &stream)), ((None, true), Some(2)), "{kind}");
    }
}

/// One condition of thousands of expressions ran all of them, and what it had not tried held turned around.
#[test]
fn a_condition_ends_when_nothing_is_left_to_scan() {
    use crate::regex::{Regex, work};
    let stream = fixture::stream("/", &[("x-long", &"1y".repeat(100))]);
    let fits = |pattern: String| {
        Predicate::Single(header("x-long"), Test::Text(StringMatcher::Regex(Regex::full(&pattern).unwrap())))
    };
    let compiled = |all: &[Predicate]| {
        let is_compiled = |one: &&Predicate| match one {
            Predicate::Single(_, Test::Text(StringMatcher::Regex(regex))) => regex.is_compiled(),
            _ => false,
        };
        all.iter().filter(is_compiled).count()
    };
    let any = Predicate::Any((0..100).map(|i| fits(format!("(?:1|y){{{i},}}[a-w]"))).collect());
    let all = Predicate::All((0..100).map(|i| fits(format!("(?:1|y|{i}z)*"))).collect());
    for (predicate, whole) in [(&any, false), (&all, true)] {
        let (Predicate::Any(parts) | Predicate::All(parts)) = predicate else { unreachable!() };
        work::grant(1);
        let holds = predicate.holds(Subject::Stream(&stream));
        work::grant(usize::MAX);
        assert_eq!((holds, compiled(parts) < 5), (false, true));
        assert_eq!((predicate.holds(Subject::Stream(&stream)), compiled(parts)), (whole, 100));
    }
    let not = Predicate::Not(Box::new(any));
    work::grant(1);
    let holds = not.holds(Subject::Stream(&stream));
    work::grant(usize::MAX);
    assert_eq!((holds, not.holds(Subject::Stream(&stream))), (false, true));
}
