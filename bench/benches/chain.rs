//! What plugins cost that only look at a header, in chains of none, 8 and 20.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use divan::{Bencher, black_box};
use sixfold_bench::fixtures::request;
use sixfold_core::plugin::{Chain, ChainBuilder, HeadPhase, Plugin, Slot, Step};
use sixfold_core::stream::Stream;

fn main() {
    divan::main();
}

struct Look;

impl Look {
    fn access(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        black_box(stream.request.headers.len());
        Step::Continue
    }

    fn plugin() -> Plugin {
        Plugin::of(Look).access(Look::access).header_filter(Look::access).build()
    }
}

fn chain(plugins: usize) -> Chain {
    let mut builder = ChainBuilder::new();
    (0..plugins).for_each(|_| builder.add("look", Look::plugin()));
    builder.build()
}

#[divan::bench(args = [0, 8, 20])]
fn access(bencher: Bencher<'_, '_>, plugins: usize) {
    let (chain, mut stream) = (chain(plugins), request(1));
    bencher.bench_local(|| {
        let mut run = pin!(chain.run(HeadPhase::Access, &mut stream));
        // No plugin here waits, so the first poll is the last.
        matches!(run.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
    });
}
