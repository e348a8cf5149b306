//! Descriptors that the process may have (`RLIMIT_NOFILE`).

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// What is reckoned with where the system does not say.
const UNKNOWN: usize = 1024;

/// Descriptors that the process may have at once.
pub fn limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE)
        .map_or(UNKNOWN, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// Has the process take as many as it is allowed to: the soft limit, which is 1,024 on most systems, becomes the hard one.
/// To be called at the start, before anything is reckoned with [`limit`].
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) }
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of descriptors can't be raised");
    }
}
