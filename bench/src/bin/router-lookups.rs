//! Looks one route up again and again, for counting instructions: `router-lookups TABLE ROUTES N LOOKUPS`.

use std::env;
use std::hint::black_box;

use anyhow::{Context, Result, bail};
use sixfold_bench::fixtures::{TABLES, request};

fn main() -> Result<()> {
    let words: Vec<String> = env::args().skip(1).collect();
    let [table, routes, n, lookups] = words.as_slice() else {
        bail!("usage: router-lookups TABLE ROUTES N LOOKUPS");
    };
    let table = TABLES.into_iter().find(|known| format!("{known:?}") == *table).context("no such table")?;
    let table = table.compile(routes.parse()?)?;
    let mut request = request(n.parse()?);
    for _ in 0..lookups.parse()? {
        if black_box(table.find(black_box(&mut request))).is_none_or(|found| found.route.is_none()) {
            bail!("the route was not found");
        }
    }
    Ok(())
}
