#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::plugin::{ChainBuilder, Plugin, Slot};
use crate::stream::fixture::stream;
use std::task::Waker;

type On = Box<dyn Fn(&mut Stream, &BodyPiece<'_>) -> BodyStep + Send + Sync>;

/// A filter of the response.
fn filter(on: impl Fn(&mut Stream, &BodyPiece<'_>) -> BodyStep + Send + Sync + 'static) -> Plugin {
    let on: On = Box::new(on);
    Plugin::of(on).response_body(|on: &On, stream, _, piece| on(stream, piece)).build()
}

fn upper(piece: &BodyPiece<'_>) -> BodyStep {
    BodyStep::Replace(piece.data.to_ascii_uppercase().into())
}

/// Replaces the whole body, up to `limit` bytes of it, by itself in brackets.
fn bracket(limit: usize, on_overflow: Overflow) -> Plugin {
    filter(move |_, piece| match piece.last {
        true => BodyStep::Replace([b"[", piece.data, b"]"].concat().into()),
        false => BodyStep::Hold(Hold { limit, on_overflow }),
    })
}

fn chain(plugins: impl IntoIterator<Item = Plugin>) -> Chain {
    let mut builder = ChainBuilder::new();
    plugins.into_iter().for_each(|plugin| builder.add("p", plugin));
    builder.build()
}

/// What a body of these pieces becomes, piece by piece with the end.
fn send(chain: &Chain, pieces: &[&str]) -> Vec<String> {
    let (mut stream, mut filters) = (stream("/", &[]), BodyFilters::new(Direction::Response));
    let mut cx = Context::from_waker(Waker::noop());
    let ends = pieces.iter().map(|piece| (*piece, false)).chain([("", true)]);
    ends.map(|(piece, last)| {
        let mut filtered = filters.push(chain, &mut stream, piece.as_bytes(), last);
        while matches!(filtered, Filtered::Waiting) {
            assert!(filters.is_waiting());
            if let Poll::Ready(next) = filters.poll(chain, &mut stream, &mut cx) {
                filtered = next;
            }
        }
        match filtered {
            Filtered::Same => piece.to_owned(),
            Filtered::Data(data) => String::from_utf8(data.to_vec()).unwrap(),
            Filtered::Respond(reply) => reply.status.to_string(),
            Filtered::TooLong => "too long".to_owned(),
            Filtered::OverBudget => "over budget".to_owned(),
            Filtered::Waiting => panic!("it waits"),
        }
    })
    .collect()
}

#[test]
fn pieces_pass_change_and_are_held() {
    assert_eq!(send(&chain([]), &["a", "b"]), ["a", "b", ""]);
    let pass = filter(|_, _| BodyStep::Pass);
    assert_eq!(send(&chain([pass, filter(|_, piece| upper(piece))]), &["a", "b"]), ["A", "B", ""]);
    let whole = [bracket(4, Overflow::Pass), filter(|_, piece| upper(piece))];
    assert_eq!(send(&chain(whole), &["a", "bc", "d"]), ["", "", "", "[ABCD]"]);
}

/// The whole chain used to be switched off when a body outgrew what one plugin wanted whole: a filter that masks
/// something let it pass.
#[test]
fn a_body_that_outgrows_one_filter_meets_the_others() {
    for masks_first in [true, false] {
        let mut plugins = vec![filter(|_, piece| upper(piece)), bracket(2, Overflow::Pass)];
        if !masks_first {
            plugins.reverse();
        }
        assert_eq!(send(&chain(plugins), &["a", "bc", "d"]), ["", "ABC", "D", ""], "{masks_first}");
    }
    // Two that hold have two bounds.
    let two = chain([bracket(2, Overflow::Pass), bracket(9, Overflow::Pass)]);
    assert_eq!(send(&two, &["a", "bc", "d"]), ["", "", "", "[abcd]"]);
    assert_eq!(send(&chain([bracket(2, Overflow::Refuse)]), &["a", "bc"])[1], "too long");
}

#[test]
fn a_filter_may_wait_and_answer() {
    let later = |piece: &BodyPiece<'_>| {
        let data = piece.data.to_ascii_uppercase();
        let mut polls = 0;
        BodyStep::Wait(Box::pin(async move {
            std::future::poll_fn(|_| {
                polls += 1;
                if polls < 3 { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            BodyStep::Replace(data.into())
        }))
    };
    let waits = chain([filter(move |_, piece| later(piece)), bracket(9, Overflow::Pass)]);
    assert_eq!(send(&waits, &["a", "b"]), ["", "", "[AB]"]);
    let ends = chain([filter(|_, piece| {
        let (data, last) = (Bytes::copy_from_slice(piece.data), piece.last);
        BodyStep::Wait(Box::pin(async move {
            BodyStep::Finish(data, vec![(HeaderName::new("x-last").unwrap(), last.to_string().into_bytes())])
        }))
    })]);
    let (mut stream, mut filters) = (stream("/", &[]), BodyFilters::new(Direction::Response));
    for (last, told) in [(false, None), (true, Some(&b"true"[..]))] {
        assert!(matches!(filters.push(&ends, &mut stream, b"a", last), Filtered::Waiting));
        let polled = filters.poll(&ends, &mut stream, &mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Ready(Filtered::Data(data)) if data == "a"));
        assert_eq!(stream.response_trailers.get("x-last"), told);
    }
    let judge = filter(|_, piece| match piece.last {
        false => BodyStep::hold(100),
        true if piece.data == b"bad" => {
            BodyStep::Wait(Box::pin(async { BodyStep::Respond(Box::new(LocalReply::new(403, "", ""))) }))
        }
        true => BodyStep::Pass,
    });
    let judge = chain([judge]);
    assert_eq!(send(&judge, &["b", "ad"]), ["", "", "403"]);
    assert_eq!(send(&judge, &["g", "ood"]), ["", "", "good"]);
}

#[test]
fn what_is_held_grows_in_place() {
    // Every piece is shown with all before it, yet not copied with it: 64 MiB in pieces of 1 KiB would be
    // 2 TiB of copies.
    let chain =
        chain([filter(|_, piece| if piece.last { BodyStep::Pass } else { BodyStep::hold(usize::MAX) })]);
    let (mut stream, mut filters) = (stream("/", &[]), BodyFilters::new(Direction::Response));
    let piece = vec![b'x'; 1024];
    for _ in 0..(64 << 10) {
        assert!(
            matches!(filters.push(&chain, &mut stream, &piece, false), Filtered::Data(d) if d.is_empty())
        );
    }
    let Filtered::Data(whole) = filters.push(&chain, &mut stream, b"", true) else { panic!("not held") };
    assert_eq!(whole.len(), 64 << 20);
}

#[test]
fn trailers_are_changed_in_place_or_later_and_only_if_there_are_any() {
    fn count(_: &(), stream: &mut Stream, _: Slot) -> TrailersStep {
        stream.response_trailers.append("x-seen", b"1");
        TrailersStep::Continue
    }
    fn wait(_: &(), stream: &mut Stream, _: Slot) -> TrailersStep {
        let mut trailers = Headers::new();
        trailers.push(b"x-count", stream.response_trailers.len().to_string().as_bytes());
        TrailersStep::Wait(Box::pin(async { TrailersStep::Replace(trailers) }))
    }
    let chain = chain([
        Plugin::of(()).response_trailers(count).build(),
        Plugin::of(()).response_trailers(wait).build(),
        Plugin::of(()).response_trailers(count).build(),
    ]);
    for (given, expected) in [(true, "{\"x-count\": \"2\", \"x-seen\": \"1\"}"), (false, "{}")] {
        let (mut stream, mut filters) = (stream("/", &[]), BodyFilters::new(Direction::Response));
        if given {
            stream.response_trailers.push(b"x-up", b"1");
        }
        let mut cx = Context::from_waker(Waker::noop());
        assert!(matches!(filters.poll_trailers(&chain, &mut stream, &mut cx), Poll::Ready(None)));
        assert_eq!(format!("{:?}", stream.response_trailers), expected);
    }
}

#[test]
fn a_handler_of_trailers_may_answer() {
    fn refuse(_: &(), _: &mut Stream, _: Slot) -> TrailersStep {
        TrailersStep::Wait(Box::pin(async {
            TrailersStep::Respond(Box::new(LocalReply::new(403, "", "refused")))
        }))
    }
    fn mark(_: &(), stream: &mut Stream, _: Slot) -> TrailersStep {
        stream.request_trailers.set("x-late", b"1");
        TrailersStep::Continue
    }
    let chain = chain([
        Plugin::of(()).request_trailers(refuse).build(),
        Plugin::of(()).request_trailers(mark).build(),
    ]);
    let (mut stream, mut filters) = (stream("/", &[]), BodyFilters::new(Direction::Request));
    stream.request_trailers.push(b"x-sum", b"1");
    let mut cx = Context::from_waker(Waker::noop());
    let ended = filters.poll_trailers(&chain, &mut stream, &mut cx);
    assert!(matches!(ended, Poll::Ready(Some(reply)) if reply.status == 403));
    assert_eq!(stream.request_trailers.get_str("x-late"), None, "no further handler");
}
