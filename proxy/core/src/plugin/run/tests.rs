#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::plugin::consumer::{KEPT, kept_chains};
use crate::plugin::{ChainBuilder, Direction, Guard, Member, OwnedHeaders, Plugin, Scope, Slot};
use crate::stream::fixture::stream;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Writes its name into `x-run` with each phase, and how often it has run, which is its state.
struct Note(&'static str);

impl Note {
    fn plugin(name: &'static str) -> Plugin {
        let note = Plugin::of(Note(name)).rewrite(Note::rewrite).access(Note::access);
        note.header_filter(Note::header_filter).log(Note::log).build()
    }
    fn note(&self, phase: &str, stream: &mut Stream, slot: Slot) {
        let times = stream.state::<u32>(slot).map_or(1, |times| *times + 1);
        stream.set_state(slot, times);
        stream.request.headers.append("x-run", format!("{}.{phase}{times}", self.0).as_bytes());
    }
    fn rewrite(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        self.note("r", stream, slot);
        Step::Continue
    }
    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        self.note("a", stream, slot);
        Step::Continue
    }
    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        self.note("h", stream, slot);
        Step::Continue
    }
    fn log(&self, stream: &mut Stream, slot: Slot) {
        self.note("l", stream, slot);
    }
}

fn member(index: u16, scope: Scope, priority: i64, name: &'static str, plugin: Plugin) -> Member {
    let position = Position::of_priority(index, scope, priority);
    Member { name: name.into(), position, plugin: Arc::new(plugin) }
}

fn note(index: u16, scope: Scope, priority: i64, name: &'static str) -> Member {
    member(index, scope, priority, name, Note::plugin(name))
}

fn chain(members: impl IntoIterator<Item = Member>) -> Arc<Chain> {
    let mut builder = ChainBuilder::new();
    members.into_iter().for_each(|member| builder.push(member));
    Arc::new(builder.build())
}

/// Names the consumer it was made with, after it has waited.
struct Auth(Arc<Consumer>);

impl Auth {
    fn identify(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        let consumer = self.0.clone();
        Step::Wait(Box::pin(async move { Step::Identify(consumer) }))
    }
}

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// Runs all phases; what was noted.
fn run(chain: &mut Arc<Chain>, stream: &mut Stream) -> Vec<String> {
    let mut phases = RequestPhases::default();
    let mut identified = 0;
    loop {
        match now(phases.run(chain, stream)) {
            Passed::Done => break,
            Passed::Identified => identified += 1,
            _ => panic!("an answer"),
        }
    }
    assert!(identified <= 1);
    assert!(matches!(now(chain.run(HeadPhase::HeaderFilter, stream)), Outcome::Done));
    chain.log(stream);
    let noted = stream.request.headers.get_all("x-run");
    noted.map(|value| String::from_utf8(value.to_vec()).unwrap()).collect()
}

/// A consumer that has `limit` (7) itself, which the route has too, and brings `extra` (8).
fn consumer() -> Arc<Consumer> {
    let plugins = vec![note(7, Scope::Route, 50, "own-limit"), note(8, Scope::Route, 3000, "extra")];
    Arc::new(Consumer::new("jack".into(), Some("g".into()), plugins))
}

/// State used to be found by the place in the chain, and a phase to go on at a number: in a merged chain plugins
/// lost their state, and ran twice or not at all.
#[test]
fn a_chain_that_a_consumer_changes_keeps_state_and_repeats_nothing() {
    let auth = |consumer: Arc<Consumer>| Plugin::of(Auth(consumer)).rewrite(Auth::identify).build();
    let jack = consumer();
    let of_route = chain([
        note(7, Scope::Global, 50, "global-limit"),
        note(6, Scope::Route, 9000, "first"),
        member(5, Scope::Route, 2500, "auth", auth(jack)),
        note(7, Scope::Route, 50, "limit"),
    ]);
    let (mut first, mut again) = (of_route.clone(), of_route.clone());
    let mut s = stream("/", &[]);
    let expected = [
        // All of the route's rewrite, its own limit among it; then that of what is new.
        "global-limit.r1",
        "first.r1",
        "limit.r1",
        "extra.r1",
        // From here on the consumer's limit runs in the place of the route's, with its state.
        "global-limit.a2",
        "first.a2",
        "extra.a2",
        "own-limit.a2",
        "global-limit.h3",
        "first.h3",
        "extra.h3",
        "own-limit.h3",
        "global-limit.l4",
        "first.l4",
        "extra.l4",
        "own-limit.l4",
    ];
    assert_eq!(run(&mut first, &mut s), expected);
    assert_eq!((s.var("consumer_name"), s.var("consumer_group_id")), (Some(&b"jack"[..]), Some(&b"g"[..])));
    // The chain is made once, and kept no longer than its route.
    run(&mut again, &mut stream("/", &[]));
    assert!(Arc::ptr_eq(&first, &again));
    assert_eq!(kept_chains(), 1);
    drop((first, again, of_route));
    Consumer::sweep_chains();
    let other = chain([note(7, Scope::Route, 50, "limit")]);
    consumer().chain(&other);
    assert_eq!(kept_chains(), 1, "the one of now");
}

#[test]
fn who_is_found_in_access_goes_on_behind_the_plugin_that_found_him() {
    let jack = consumer();
    let auth = Plugin::of(Auth(jack)).access(Auth::identify).build();
    let mut of_route = chain([
        note(6, Scope::Route, 9000, "first"),
        member(5, Scope::Route, 2500, "auth", auth),
        note(7, Scope::Route, 50, "limit"),
    ]);
    let noted = run(&mut of_route, &mut stream("/", &[]));
    assert_eq!(noted[..4], ["first.r1", "limit.r1", "first.a2", "own-limit.a2"]);
}

#[test]
fn a_consumer_without_plugins_changes_no_chain() {
    let jack = Arc::new(Consumer::new("jack".into(), None, Vec::new()));
    let auth = Plugin::of(Auth(jack)).rewrite(Auth::identify).build();
    let of_route = chain([member(5, Scope::Route, 2500, "auth", auth), note(7, Scope::Route, 50, "limit")]);
    let mut running = of_route.clone();
    assert_eq!(run(&mut running, &mut stream("/", &[])).len(), 4);
    assert!(Arc::ptr_eq(&running, &of_route));
}

#[test]
fn chains_of_consumers_are_bounded() {
    let of_route = chain([note(7, Scope::Route, 50, "limit")]);
    let consumers: Vec<_> = (0..2 * KEPT + 50).map(|_| consumer()).collect();
    let asked_again = consumers[0].chain(&of_route);
    for consumer in &consumers {
        consumer.chain(&of_route);
        assert!(Arc::ptr_eq(&asked_again, &consumers[0].chain(&of_route)), "what is asked for stays");
    }
    assert!(kept_chains() <= 2 * KEPT);
}

#[test]
fn response_phases_of_envoy_run_in_reverse() {
    let mut builder = ChainBuilder::new().reverse_response();
    builder.add("a", Note::plugin("a"));
    builder.add("b", Note::plugin("b"));
    let mut chain = Arc::new(builder.build());
    let noted = run(&mut chain, &mut stream("/", &[]));
    assert_eq!(noted, ["a.r1", "b.r1", "a.a2", "b.a2", "b.h3", "a.h3", "b.l4", "a.l4"]);
    assert!(!chain.filters(Direction::Request) && !chain.filters(Direction::Response));
}

/// Where a condition kept a plugin from running, the client's own `X-User` went on to the upstream.
#[test]
fn a_plugin_that_does_not_run_still_lets_nobody_say_what_it_would() {
    let owned = Arc::new(OwnedHeaders::new(vec![crate::headers::HeaderName::new("x-user").unwrap()]));
    let when = crate::expr::Expr::new(&serde_json::json!([["arg_a", "==", "1"]])).unwrap();
    let guard = Guard { when: Some(Arc::new(when)), refusal: None };
    let plugin =
        Plugin::of(Note("n")).access(Note::access).log(Note::log).owns(owned).build().guarded(&guard);
    let mut chain = chain([member(1, Scope::Route, 1, "n", plugin)]);
    let mut s = stream("/?a=2", &[("X_User", "eve"), ("x-user", "eve"), ("x-other", "1")]);
    assert_eq!(run(&mut chain, &mut s), [""; 0]);
    assert_eq!(format!("{:?}", s.request.headers), "{\"x-other\": \"1\"}");
    let mut s = stream("/?a=1", &[]);
    assert_eq!(run(&mut chain, &mut s), ["n.a1", "n.l2"]);
}

/// What the route's had decided held for the consumer's as well, which stands in its slot.
#[test]
fn a_plugin_of_a_consumer_runs_by_its_own_condition() {
    let guarded = |name, when| {
        let when = crate::expr::Expr::new(&serde_json::json!([["arg_a", "==", when]])).unwrap();
        Note::plugin(name).guarded(&Guard { when: Some(Arc::new(when)), refusal: None })
    };
    let jack = vec![member(7, Scope::Route, 50, "jack's", guarded("jack's", "2"))];
    let jack = Arc::new(Consumer::new("jack".into(), None, jack));
    let auth = Plugin::of(Auth(jack)).rewrite(Auth::identify).build();
    let of_route = chain([
        member(5, Scope::Route, 2500, "auth", auth),
        member(7, Scope::Route, 50, "route's", guarded("route's", "1")),
    ]);
    let noted = |path| run(&mut of_route.clone(), &mut stream(path, &[]));
    assert_eq!(noted("/?a=1"), ["route's.r1"]);
    assert_eq!(noted("/?a=2"), ["jack's.a1", "jack's.h2", "jack's.l3"]);
}

#[test]
fn the_empty_chain_is_one() {
    assert!(Arc::ptr_eq(&Chain::empty(), &Chain::empty()));
}

/// Says who the client is, in whichever phase it was given.
struct Says(&'static str);

impl Says {
    fn say(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.request.headers.append("x-user", self.0.as_bytes());
        Step::Continue
    }
    fn clear(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        Step::ClearRoute
    }
}

/// Another route's owner strips what the client has said, and never what an owner before it has.
#[test]
fn owned_headers_leave_at_the_edge_of_every_chain_that_a_request_meets() {
    let owned = || Arc::new(OwnedHeaders::new(vec![crate::headers::HeaderName::new("x-user").unwrap()]));
    let sees = || member(1, Scope::Global, 10, "sees", Plugin::of(Sees).rewrite(Sees::see).build());
    let plain = |name| Plugin::of(Says(name));
    let clears = || member(5, Scope::Route, 5000, "clears", plain("").access(Says::clear).build());
    let says = |priority, name: &'static str, phase: HeadPhase| {
        let plugin = plain(name).owns(owned());
        let plugin =
            if phase == HeadPhase::Rewrite { plugin.rewrite(Says::say) } else { plugin.access(Says::say) };
        member(6, Scope::Route, priority, name, plugin.build())
    };
    for (first, second, expected) in [
        (vec![sees(), says(1, "jack", HeadPhase::Access)], None, "|jack"),
        // The old route's owner has spoken before the new one's would.
        (
            vec![sees(), says(9000, "old", HeadPhase::Access), clears()],
            Some(says(9000, "new", HeadPhase::Access)),
            "|old",
        ),
        (
            vec![sees(), says(1, "old", HeadPhase::Rewrite), clears()],
            Some(says(1, "new", HeadPhase::Rewrite)),
            "|old",
        ),
        // It has not, and the new one's will.
        (vec![sees(), clears()], Some(says(1, "new", HeadPhase::Access)), "eve|new"),
        (
            vec![sees(), says(9000, "old", HeadPhase::Access), clears()],
            Some(says(1, "new", HeadPhase::Access)),
            "|new",
        ),
    ] {
        let mut running = chain(first);
        let mut s = stream("/", &[("x_user", "eve")]);
        let mut phases = RequestPhases::default();
        if let Some(second) = second {
            assert!(matches!(now(phases.run(&mut running, &mut s)), Passed::ClearRoute));
            running = chain([sees(), second]);
        }
        assert!(matches!(now(phases.run(&mut running, &mut s)), Passed::Done));
        let users: Vec<_> = s.request.headers.iter().filter(|(n, _)| alike(n)).map(|(_, v)| v).collect();
        let seen = s.request.headers.get("x-seen").unwrap();
        let got = format!("{}|{}", String::from_utf8_lossy(seen), String::from_utf8_lossy(&users.concat()));
        assert_eq!(got, expected);
    }
}

fn alike(name: &[u8]) -> bool {
    [&b"x-user"[..], b"x_user"].contains(&name)
}

/// Notes who it takes the client for.
struct Sees;

impl Sees {
    fn see(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let user = stream.request.headers.get("x_user").unwrap_or_default().to_vec();
        stream.request.headers.append("x-seen", &user);
        Step::Continue
    }
}

/// Asks for the body, once.
struct Reader;

impl Reader {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        match &stream.request_body {
            Some(body) => {
                stream.request.headers.append("x-run", body);
                Step::Continue
            }
            None => Step::ReadBody(ReadBody { limit: 5, on_overflow: crate::plugin::Overflow::Refuse }),
        }
    }
}

#[test]
fn a_handler_that_wants_the_body_is_asked_again_and_no_other_is() {
    let mut builder = ChainBuilder::new();
    builder.add("a", Note::plugin("a"));
    builder.add("reader", Plugin::of(Reader).access(Reader::access).build());
    builder.add("b", Note::plugin("b"));
    let (mut chain, mut s) = (Arc::new(builder.build()), stream("/", &[]));
    let mut phases = RequestPhases::default();
    let mut run = |s: &mut Stream| now(phases.run(&mut chain, s));
    assert!(matches!(run(&mut s), Passed::ReadBody(ReadBody { limit: 5, .. })));
    s.request_body = Some(bytes::Bytes::from_static(b"body"));
    assert!(matches!(run(&mut s), Passed::Done));
    let ran: Vec<_> = s.request.headers.get_all("x-run").map(String::from_utf8_lossy).collect();
    assert_eq!(ran, ["a.r1", "b.r1", "a.a2", "body", "b.a2"]);
}
