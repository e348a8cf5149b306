//! sixfold: a data-plane proxy that takes APISIX's and Envoy's configuration.

mod admin;
mod ads;
mod arguments;
mod control;
mod control_plane;
mod dump;
mod envoy;
mod explain;
mod failure;
mod fetch;
mod gateway;
mod logging;
mod process;
mod quickstart;
mod resources;
mod route_files;
mod signals;
mod status;
mod validate;

use arguments::{Command, XdsCommand};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = match arguments::parse(std::env::args_os()) {
        Command::Envoy(options) => envoy::run(*options),
        Command::Run(options) => gateway::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Dump(options) => dump::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Quickstart(options) => quickstart::run(&options),
        Command::Validate(options) => validate::run(&options),
        Command::Xds { command: XdsCommand::Serve(options) } => control_plane::run(&options),
        Command::Version { output } => arguments::print_version(output),
        Command::Completions { shell } => arguments::print_completions(shell),
        Command::Man { command, directory } => arguments::print_manual(&command, directory.as_deref()),
    };
    let heard = logging::finish();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A standard error that nobody reads would keep the process from ending.
            if heard {
                eprint!("{failure}");
            }
            ExitCode::FAILURE
        }
    }
}
