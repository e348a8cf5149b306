use super::*;
use crate::plugin::{
    BodyFilters, BodyPiece, BodyStep, ChainBuilder, Direction, Filtered, Outcome, Passed, Plugin, Position,
    RequestPhases, Slot, Step,
};
use crate::stream::{Stream, fixture};

/// Writes its name into the request, in lower case in `rewrite`, and into the response.
struct Letter(&'static str);

impl Letter {
    fn rewrite(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        stream.set_state(slot, self.0);
        stream.request.target.set(&[stream.request.target.full(), self.0.to_lowercase().as_bytes()].concat());
        Step::Continue
    }

    fn access(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        assert!(stream.state::<&str>(slot).is_none_or(|of| *of == self.0), "the state of another one");
        stream.request.target.set(&[stream.request.target.full(), self.0.as_bytes()].concat());
        Step::Continue
    }

    fn respond(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let _ = self.access(stream, slot);
        Step::Continue
    }
}

fn plugin(name: &'static str) -> Plugin {
    Plugin::of(Letter(name))
        .rewrite(Letter::rewrite)
        .access(Letter::access)
        .header_filter(Letter::respond)
        .build()
}

fn filter(name: &'static str) -> Plugin {
    Plugin::of(Letter(name)).access(Letter::access).header_filter(Letter::respond).build()
}

/// Before and behind it other filters; P has the larger priority and comes second in the list.
fn chain() -> Arc<crate::plugin::Chain> {
    let parts = vec![Part::new("q", 7, 10, &plugin("Q")), Part::new("p", 3, 20, &plugin("P"))];
    let mut builder = ChainBuilder::new().reverse_response();
    for filter in [filter("A"), Plugin::of_parts(parts), filter("B")] {
        builder.add("f", filter);
    }
    Arc::new(builder.build())
}

fn now<T>(future: impl Future<Output = T>) -> T {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut cx) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("waits"),
    }
}

/// The parts run between the filters, `rewrite` of both before `access` of either.
#[test]
fn parts_run_in_the_turn_of_their_filter() {
    let mut stream = fixture::stream("/", &[]);
    let passed = now(RequestPhases::default().run(&mut chain(), &mut stream));
    assert!(matches!(passed, Passed::Done));
    assert_eq!(stream.request.target.full(), b"/ApqPQB");
}

/// Filters run in reverse there, the parts of one do not.
#[test]
fn parts_keep_their_order_in_the_response() {
    let mut stream = fixture::stream("/", &[]);
    let outcome = now(chain().run(HeadPhase::HeaderFilter, &mut stream));
    assert!(matches!(outcome, Outcome::Done));
    assert_eq!(stream.request.target.full(), b"/BPQA");
    assert!(!chain().filters(Direction::Response));
}

#[test]
fn a_part_has_a_slot_and_a_position_of_its_own() {
    let (before, filter, after) = (Position::of_filter(1), Position::of_filter(2), Position::of_filter(3));
    for priority in [i64::MIN, -5, 0, 22_000, i64::MAX] {
        let early = filter.part(Stage::Rewrite, priority, 9);
        let late = filter.part(Stage::Rest, priority, 9);
        assert!(before < early && early < late && late < after, "{priority}");
        assert_eq!((early.slot(), early.filter()), (late.slot(), filter.filter()));
        assert_ne!(early.slot(), filter.slot());
    }
    assert!(filter.part(Stage::Rest, 2, 9) < filter.part(Stage::Rest, 1, 1));
    assert_ne!(Slot::part(1, 2), Slot::part(2, 1));
}

#[test]
fn members_say_what_they_are_part_of() {
    let names: Vec<_> = chain().members().iter().map(|member| member.name.to_string()).collect();
    assert_eq!(names, ["f", "f/p", "f/q", "f/p", "f/q", "f"]);
}

/// Filters of Envoy see what goes through a tunnel as a body; APISIX's plugins did not expect that.
#[test]
fn parts_do_not_see_what_goes_through_a_tunnel() {
    let replacing = |with: &'static [u8]| {
        let replace =
            move |_: &(), _: &mut Stream, _: Slot, _: &BodyPiece<'_>| BodyStep::Replace(with.into());
        Plugin::of(()).response_body(replace).build()
    };
    let part = Plugin::of_parts(vec![Part::new("p", 3, 20, &replacing(b"part"))]);
    for (filters, seen) in [(vec![part], "frame"), (vec![replacing(b"filter")], "filter")] {
        let mut chain = ChainBuilder::new().reverse_response();
        filters.into_iter().for_each(|filter| chain.add("f", filter));
        let (chain, mut stream) = (chain.build(), fixture::stream("/", &[]));
        stream.is_tunnel = true;
        let filtered = BodyFilters::new(Direction::Response).push(&chain, &mut stream, b"frame", false);
        match filtered {
            Filtered::Same => assert_eq!(seen, "frame"),
            Filtered::Data(data) => assert_eq!(seen.as_bytes(), data),
            other => panic!("{other:?}"),
        }
    }
}

/// A filter whose parts do nothing is there all the same, for a route that is chosen again.
#[test]
fn a_filter_of_idle_parts_is_a_member() {
    let mut chain = ChainBuilder::new().reverse_response();
    chain.add("f", Plugin::of_parts(vec![Part::new("p", 3, 20, &Plugin::default())]));
    assert_eq!(chain.build().members().len(), 1);
}
