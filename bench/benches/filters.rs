//! What the filters of a mesh's sidecars cost: all phases of a request through a chain of one of them.

#![allow(clippy::unwrap_used)]

use divan::{Bencher, black_box};
use sixfold_bench::filters::CASES;

fn main() {
    divan::main();
}

#[divan::bench(args = CASES.map(|case| case.name))]
fn request(bencher: Bencher<'_, '_>, name: &str) {
    let ready = CASES.into_iter().find(|case| case.name == name).unwrap().ready().unwrap();
    bencher.with_inputs(|| ready.request()).bench_local_values(|stream| black_box(ready.run(stream)));
}
