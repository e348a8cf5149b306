//! sixfold: a data-plane proxy that takes APISIX's and Envoy's configuration.

mod admin;
mod ads;
mod arguments;
mod control;
mod control_plane;
mod diff;
mod doctor;
mod dump;
mod envoy;
mod explain;
mod failure;
mod fetch;
mod fmt;
mod gateway;
mod import;
mod logging;
mod process;
mod quickstart;
mod replacement;
mod resources;
mod signals;
mod status;
mod top;
mod upgrade;
mod validate;

use arguments::{Command, XdsCommand};
use failure::Failure;
use import::Stop;
use std::process::ExitCode;

/// What a command that judges ends with when it can't: as for a wrong command line.
const TROUBLE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match arguments::parse(std::env::args_os()) {
        Command::Doctor(options) => return judged(doctor::run(&options)),
        Command::Validate(options) => return judged(validate::run(&options)),
        Command::Diff(options) => return judged(diff::run(&options)),
        Command::Fmt(options) => return judged(fmt::run(&options)),
        Command::Import(options) => {
            return match import::run(&options) {
                Ok(()) => end(ExitCode::SUCCESS, None),
                Err(Stop::Undone(failure)) => end(ExitCode::FAILURE, Some(&failure)),
                Err(Stop::Misuse(failure)) => end(ExitCode::from(TROUBLE), Some(&failure)),
            };
        }
        Command::Envoy(options) => envoy::run(*options),
        Command::Run(options) => gateway::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::Dump(options) => dump::run(&options),
        Command::Status(options) => status::run(&options),
        Command::Top(options) => top::run(&options),
        Command::Quickstart(options) => quickstart::run(&options),
        Command::Xds { command: XdsCommand::Serve(options) } => control_plane::run(&options),
        Command::Version { output } => arguments::print_version(output),
        Command::Completions { shell } => arguments::print_completions(shell),
        Command::Man { command, directory } => arguments::print_manual(&command, directory.as_deref()),
    };
    match outcome {
        Ok(()) => end(ExitCode::SUCCESS, None),
        Err(failure) => end(ExitCode::FAILURE, Some(&failure)),
    }
}

/// The exit code of a command that looks at something and answers whether it is well.
fn judged(outcome: Result<bool, Failure>) -> ExitCode {
    match outcome {
        Ok(true) => end(ExitCode::SUCCESS, None),
        Ok(false) => end(ExitCode::FAILURE, None),
        Err(failure) => end(ExitCode::from(TROUBLE), Some(&failure)),
    }
}

fn end(code: ExitCode, failure: Option<&Failure>) -> ExitCode {
    let heard = logging::finish();
    // A standard error that nobody reads would keep the process from ending.
    if let Some(failure) = failure.filter(|_| heard) {
        eprint!("{failure}");
    }
    code
}
