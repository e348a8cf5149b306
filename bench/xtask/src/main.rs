//! `cargo xtask`: one command for each chore.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{
    bench, book, chart, conformance, fuzz, h2spec, image, lint, mesh, monitoring, package, soak, suite,
    survey,
};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own chores")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Install what the tests need, then run all of them: the workspace's, the conformance cases, h2spec
    Test(suite::Options),
    /// Formatting, clippy with warnings denied, and the rules of deny.toml
    Lint,
    /// Run recorded cases of Envoy's behaviour through the proxy
    Conformance(conformance::Options),
    /// Run recorded meshes through the proxy: real redirection rules, real answers of Envoy
    Mesh(mesh::Options),
    /// Run the commands and configurations of the book in docs/
    Book(book::run::Options),
    /// Ask every query of the dashboards and alerts of a Prometheus that scrapes the proxy, or write them anew
    Monitoring(monitoring::Options),
    /// Run h2spec against the proxy, over cleartext and TLS
    H2spec(h2spec::Options),
    /// Run the fuzz targets under cargo-fuzz, ten minutes each
    Fuzz(fuzz::Options),
    /// Load tests beside Envoy, nginx, HAProxy and a TCP forwarder; writes bench/RESULTS.md
    Bench(bench::Options),
    /// Gateways under load and change: no lost request, no gauge that does not return, no growing memory
    Soak(soak::Options),
    /// Run `validate` over a folder of configurations and rank the reasons for refusal
    Survey(survey::Options),
    /// Build an image: the gateway's, or the one that takes the place of Istio's proxy
    Image(image::Options),
    /// Render the Helm chart, and hold what comes of it against Kubernetes' types and the proxy
    Chart(chart::Options),
    /// Make the Debian package
    Package(package::Options),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().chore {
        Chore::Test(options) => suite::run(&options),
        Chore::Lint => lint::run(),
        Chore::Conformance(options) => conformance::run(&options),
        Chore::Mesh(options) => mesh::run(&options),
        Chore::Book(options) => book::run::run(&options),
        Chore::Monitoring(options) => monitoring::run(&options),
        Chore::H2spec(options) => h2spec::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
        Chore::Bench(options) => bench::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Survey(options) => survey::run(&options),
        Chore::Image(options) => image::run(&options),
        Chore::Chart(options) => chart::run(&options),
        Chore::Package(options) => package::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
