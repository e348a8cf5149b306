//! Configurations of filters, which are parts of the listeners that name them: these are compiled with the one that has
//! come, and go into force with it.

use std::sync::Arc;
use std::time::Instant;

use sixfold_core::error::ConfigError;

use super::statics::note;
use super::{Compile, Compiled, Key, Resource, Version, World};
use crate::tracker::Event;

/// What was compiled again of those that name an extension; `None` is one that another waits to take the place of.
type Renewed<P> = Vec<(Key, Result<Option<Version<P>>, ConfigError>)>;

/// Resources, and what each becomes.
type Versions<P> = Vec<(Key, Version<P>)>;

impl<C: Compile> World<C> {
    /// Tries the extension that was compiled last on all that name it. Answers what they become with it.
    ///
    /// # Errors
    /// The first that it does not fit. It is what it was before then, and so are they.
    pub(super) fn fit(&mut self, extension: &Key, now: Instant) -> Result<Versions<C::Part>, ConfigError> {
        let renewed = self.renewed(extension, now).into_iter();
        let fitting: Result<Vec<_>, _> = renewed.map(|(key, version)| Ok((key, version?))).collect();
        self.compiler.decide(extension, fitting.is_ok());
        Ok(fitting?.into_iter().filter_map(|(key, version)| Some((key, version?))).collect())
    }

    /// Takes an extension away: those that name it are compiled once more, to be what they are without one.
    pub(super) fn remove_extension(&mut self, extension: &Key, now: Instant) {
        self.end_ttl(extension);
        if self.resources.remove(extension).is_none() {
            return note(&self.compiler, &self.statics, extension, Event::Gone);
        }
        self.waiting.remove(extension);
        self.compiler.forget(extension);
        for (key, version) in self.renewed(extension, now) {
            match version {
                Ok(Some(version)) => self.wait(&key, version),
                Ok(None) => {}
                Err(error) => self.faults.push((extension.clone(), error)),
            }
        }
    }

    /// Compiles all that name an extension, what is in force and what waits to be.
    fn renewed(&mut self, extension: &Key, now: Instant) -> Renewed<C::Part> {
        let names =
            |version: &Version<C::Part>| version.asks.needs.iter().any(|need| need.key() == *extension);
        let mut users: Vec<(Key, Arc<[u8]>, String, bool)> = Vec::new();
        for key in self.users.of(extension) {
            let Some(Resource { next, live, .. }) = self.resources.get(key).map(|it| &**it) else { continue };
            let of = |(version, is_last): (&Version<C::Part>, bool)| {
                (key.clone(), version.value.clone(), version.version.clone(), is_last)
            };
            let live = live.as_ref().map(|live| (live, next.is_none()));
            let both = live.into_iter().chain(next.as_ref().map(|next| (next, true)));
            users.extend(both.filter(|(version, _)| names(version)).map(of));
        }
        let renew = |(key, value, version, is_last): (Key, Arc<[u8]>, String, bool)| {
            let compiled = self.compiler.compile(&key, &value);
            let of = |Compiled { part, asks }| {
                is_last.then(|| Version { value, version, part: Some(part), asks, since: now })
            };
            (key, compiled.map(of))
        };
        users.into_iter().map(renew).collect()
    }
}
