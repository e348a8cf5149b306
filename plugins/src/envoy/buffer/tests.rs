#![allow(clippy::unwrap_used, clippy::panic)]
use super::*;
use crate::testing;
use sixfold_core::plugin::{Chain, ChainBuilder, LocalReply, Passed, RequestPhases};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

fn built(config: &str, levels: &[&str]) -> Result<Chain, String> {
    Ok(testing::filter_of::<Buffer, BufferPerRoute>(&factory(), config, levels)?.chain)
}

fn limit(config: &str, levels: &[&str]) -> Result<Option<usize>, String> {
    let mut chain = Arc::new(built(config, levels)?);
    let (mut phases, mut s) = (RequestPhases::default(), testing::stream("/", &[]));
    Ok(match run(&mut phases, &mut chain, &mut s) {
        Passed::ReadBody(wanted) => {
            assert_eq!(wanted, ReadBody::whole(wanted.limit));
            // It is asked again, whether there is a body or not, and has nothing more to say.
            assert!(matches!(run(&mut phases, &mut chain, &mut s), Passed::Done));
            Some(wanted.limit)
        }
        _ => None,
    })
}

fn run(phases: &mut RequestPhases, chain: &mut Arc<Chain>, stream: &mut Stream) -> Passed {
    match pin!(phases.run(chain, stream)).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(passed) => passed,
        Poll::Pending => panic!("it waits"),
    }
}

struct Deny;

impl Deny {
    fn access(&self, _: &mut Stream, _: Slot) -> Step<'_> {
        Step::Respond(LocalReply::new(403, "", ""))
    }
}

/// It read the body before any filter had been asked.
#[test]
fn nothing_is_read_of_a_request_that_an_earlier_filter_refuses() {
    let mut builder = ChainBuilder::new();
    builder.add("rbac", Plugin::of(Deny).access(Deny::access).build());
    for member in built("max_request_bytes: 10", &[]).unwrap().members() {
        builder.push(member.clone());
    }
    let mut chain = Arc::new(builder.build());
    let passed = run(&mut RequestPhases::default(), &mut chain, &mut testing::stream("/", &[]));
    assert!(matches!(passed, Passed::Respond(reply) if reply.status == 403));
}

#[test]
fn the_most_specific_limit_holds() {
    let own = "max_request_bytes: 10";
    assert_eq!(limit(own, &[]), Ok(Some(10)));
    assert_eq!(limit(own, &["buffer: {max_request_bytes: 100}"]), Ok(Some(100)));
    assert_eq!(limit(own, &["buffer: {max_request_bytes: 100}", "disabled: true"]), Ok(None));
    assert_eq!(limit(own, &["disabled: true", "buffer: {max_request_bytes: 5}"]), Ok(Some(5)));
}

#[test]
fn a_limit_is_needed() {
    let refused = |config: &str, levels: &[&str]| limit(config, levels).unwrap_err();
    assert_eq!(refused("{}", &[]), "max_request_bytes: must be greater than 0");
    assert_eq!(refused("max_request_bytes: 0", &[]), "max_request_bytes: must be greater than 0");
    assert_eq!(refused("max_request_bytes: 1", &["{}"]), "one of disabled and buffer is missing");
    assert_eq!(refused("max_request_bytes: 1", &["disabled: false"]), "disabled: must be true");
}
