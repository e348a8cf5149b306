//! Why a command ended without success.

use sixfold_core::error::ConfigError;
use sixfold_core::model::ApplyError;
use std::fmt;

/// What goes to standard error, a line each.
#[derive(Debug, Default)]
pub(crate) struct Failure(pub(crate) Vec<String>);

impl Failure {
    /// A failure with one line.
    pub(crate) fn new(line: impl Into<String>) -> Failure {
        Failure(vec![line.into()])
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Failure {
        Failure::new(error.to_string())
    }
}

impl From<Vec<ConfigError>> for Failure {
    fn from(errors: Vec<ConfigError>) -> Failure {
        Failure(errors.iter().map(ToString::to_string).collect())
    }
}

impl From<Vec<ApplyError>> for Failure {
    fn from(errors: Vec<ApplyError>) -> Failure {
        Failure(errors.iter().map(ToString::to_string).collect())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::new(error.to_string())
    }
}

/// Why something can't be looked at.
pub(crate) enum Unread {
    /// Something is wrong with it.
    Wrong(Failure),
    /// It is not here: a file that can't be read, an etcd that is not reached.
    Away(Failure),
}

impl From<Unread> for Failure {
    fn from(unread: Unread) -> Failure {
        let (Unread::Wrong(failure) | Unread::Away(failure)) = unread;
        failure
    }
}

impl From<Failure> for Unread {
    fn from(failure: Failure) -> Unread {
        Unread::Wrong(failure)
    }
}
