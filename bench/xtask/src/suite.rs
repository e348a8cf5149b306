//! `cargo xtask test`: everything that must pass, in the order in which a failure is cheapest to find.

use anyhow::Result;
use clap::Args;

use crate::process::{cargo, execute};
use crate::report::Report;
use crate::tools::{ETCD, OPENSSL, PYTHON, REDIS, WRK, build_proxy, ensure};
use crate::{book, chart, conformance, h2spec, image, mesh, monitoring, package, soak};

#[derive(Debug, Args)]
pub struct Options {
    /// How often the recorded cases of Envoy's behaviour run in a row; recorded meshes take minutes and run once
    #[arg(long, default_value_t = 3)]
    runs: u32,
}

/// # Errors
/// Something failed; every part was run all the same, and the last lines say which failed, and which were skipped.
pub fn run(options: &Options) -> Result<()> {
    ensure(&[PYTHON, OPENSSL, ETCD, REDIS, WRK])?;
    let mut report = Report::default();
    report.part("workspace tests", || {
        execute(cargo().args([
            "test",
            "--locked",
            "--profile",
            "ci",
            "--workspace",
            "--features",
            "sixfold/lua",
            "--no-fail-fast",
        ]))
    });
    match build_proxy("ci") {
        Ok(proxy) => {
            report.part("book", || book::run::check(&proxy, &[]));
            report.part("monitoring", || monitoring::check(&proxy));
            report.part("conformance", || conformance::check_promised(&proxy, options.runs));
            report.part("mesh", || mesh::check_promised(&proxy));
            report.part("sidecar image", || image::sidecar::check_where_possible(&proxy));
            report.part("gateway image", || image::gateway::check_where_possible(&proxy));
            report.part("chart", || chart::check(&proxy));
            report.part("package", || package::check_where_possible(&proxy));
            report.part("package under systemd", || package::booted_where_possible(&proxy));
            report.part("h2spec", || h2spec::check(&proxy, &[]));
            report.part("soak", || soak::check(&proxy, 1));
        }
        Err(error) => report.part("build", || -> Result<()> { Err(error) }),
    }
    report.finish("cargo xtask test")
}
