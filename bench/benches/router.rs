//! Lookup of one route among 1 and among 5,000, and the index of 5,000 built anew.

#![allow(clippy::unwrap_used)]

use divan::{Bencher, black_box};
use sixfold_bench::fixtures::{TABLES, Table, request};
use sixfold_core::router::{HostRoutes, VirtualHostOptions};

fn main() {
    divan::main();
}

#[divan::bench(args = TABLES)]
fn of_one(bencher: Bencher<'_, '_>, table: Table) {
    lookup(bencher, table, 1, 1);
}

#[divan::bench(args = TABLES)]
fn first_of_5000(bencher: Bencher<'_, '_>, table: Table) {
    lookup(bencher, table, 5_000, 1);
}

#[divan::bench(args = TABLES)]
fn middle_of_5000(bencher: Bencher<'_, '_>, table: Table) {
    lookup(bencher, table, 5_000, 3_000);
}

#[divan::bench(args = TABLES)]
fn last_of_5000(bencher: Bencher<'_, '_>, table: Table) {
    lookup(bencher, table, 5_000, 5_000);
}

/// What changing one of 5,000 routes costs: the index of the virtual host anew, the routes themselves shared.
#[divan::bench(args = TABLES)]
fn rebuild_of_5000(bencher: Bencher<'_, '_>, table: Table) {
    let table = table.compile(5_000).unwrap();
    let routes: Vec<_> = table.routes().cloned().collect();
    bencher
        .with_inputs(|| routes.to_vec())
        .bench_values(|routes| HostRoutes::new("all", VirtualHostOptions::default(), black_box(routes)));
}

fn lookup(bencher: Bencher<'_, '_>, table: Table, routes: usize, n: usize) {
    let (table, mut request) = (table.compile(routes).unwrap(), request(n));
    assert!(table.find(&mut request).unwrap().route.is_some());
    bencher.bench_local(|| black_box(table.find(black_box(&mut request))));
}
