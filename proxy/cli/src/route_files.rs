//! Route configurations in files, which a bootstrap names by `path_config_source`.

use parking_lot::{Mutex, MutexGuard};
use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::{ConfigError, tell_most};
use sixfold_core::files::{self, Stamp};
use sixfold_core::model::{ApplyError, Diff};
use sixfold_server::server::Server;
use sixfold_xds::Context;
use sixfold_xds::dump::FileRoutes;
use sixfold_xds::rds::RouteConfigs;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The files that connection managers ask for, as far as they are in force: a clone looks at what may come.
#[derive(Clone)]
pub(crate) struct RouteFiles {
    configs: RouteConfigs,
    /// What was read last of each file, for each name.
    read: BTreeMap<Key, Stamp>,
    /// Why a file that was read before can't be now, so that it is said once.
    unreadable: BTreeMap<Key, String>,
    /// Another one whenever another file or bootstrap is known.
    version: u64,
    /// Of what was to be put in force last something was refused, and nobody knows what.
    refused: bool,
    /// What of them is in force, for those who show it: they can't wait for a change that is being put in force.
    published: Arc<Mutex<Vec<FileRoutes>>>,
}

/// A file, and the name of its route configuration.
type Key = (PathBuf, Arc<str>);

/// What there was to read, by the file.
pub(crate) struct Contents(BTreeMap<Key, io::Result<Option<Content>>>);

/// The content of a file that is not as it was.
type Content = (Stamp, Vec<u8>);

/// What a look at the files has come to.
#[derive(Default)]
pub(crate) struct Look {
    /// Files that can't be read and never could.
    pub(crate) missing: Vec<String>,
    /// What is wrong in files; the last good version of each goes on.
    pub(crate) refused: Vec<ConfigError>,
}

impl RouteFiles {
    /// Nothing has been read yet.
    pub(crate) fn new(context: Context) -> RouteFiles {
        RouteFiles {
            configs: RouteConfigs::new(context),
            read: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            version: 0,
            refused: false,
            published: Arc::default(),
        }
    }

    /// Has what is there and what comes from now on compiled by another bootstrap.
    pub(crate) fn set_context(&mut self, context: Context) {
        self.configs.set_context(context);
        self.version += 1;
        // All of them are put in force with it.
        self.refused = false;
    }

    /// Where that which is in force is shown.
    pub(crate) fn published(&self) -> Arc<Mutex<Vec<FileRoutes>>> {
        self.published.clone()
    }

    /// They are in force now, unless something was refused.
    pub(crate) fn publish(&self) {
        if !self.refused {
            *self.published.lock() = self.in_force();
        }
    }

    /// Has a change of them put in force, if there is one, and shows what has come of it.
    fn apply(&mut self, diff: Diff, apply: impl FnOnce(Diff) -> Result<(), Vec<ApplyError>>) {
        if !diff.is_empty() {
            let applied = apply(diff);
            self.refused = applied.is_err();
            match applied {
                Ok(()) => tracing::info!("routes read again and applied"),
                Err(errors) => tell_most(
                    &errors,
                    |error| tracing::error!("{error}"),
                    |more| tracing::error!(more, "more parts of a change are not in force"),
                ),
            }
        }
        self.publish();
    }

    fn in_force(&self) -> Vec<FileRoutes> {
        let routes = |(path, name, value): (&Path, &Arc<str>, &Arc<[u8]>)| {
            let (path, name) = (path.to_owned(), name.clone());
            let at = self.read.get(&(path.clone(), name.clone()))?.modified;
            Some(FileRoutes { path, name, value: value.clone(), at })
        };
        self.configs.of_files().filter_map(routes).collect()
    }

    /// Reads the files that are asked for and have changed. A disk may take its time, or hang: nobody else shall wait
    /// for it, so no lock is to be held meanwhile.
    pub(crate) fn contents(&self) -> Contents {
        self.contents_by(read)
    }

    fn contents_by(&self, read: impl Fn(&Path, Option<&Stamp>) -> io::Result<Option<Content>>) -> Contents {
        let wanted = self.configs.wanted_files().into_iter();
        Contents(wanted.map(|key| (key.clone(), read(&key.0, self.read.get(&key)))).collect())
    }

    /// What `change` makes of the files in force, and what was read for that while none were locked. Nothing else is
    /// in force for as long as the lock is kept that comes with it: a bootstrap that is read again must not be
    /// overtaken, nor overtake.
    pub(crate) fn ahead(
        files: &Mutex<RouteFiles>,
        change: impl Fn(&mut RouteFiles),
    ) -> (MutexGuard<'_, RouteFiles>, RouteFiles, Contents) {
        RouteFiles::ahead_by(files, change, read)
    }

    fn ahead_by(
        files: &Mutex<RouteFiles>,
        change: impl Fn(&mut RouteFiles),
        read: impl Fn(&Path, Option<&Stamp>) -> io::Result<Option<Content>>,
    ) -> (MutexGuard<'_, RouteFiles>, RouteFiles, Contents) {
        loop {
            let mut next = files.lock().clone();
            let version = next.version;
            change(&mut next);
            let contents = next.contents_by(&read);
            let now = files.lock();
            if now.version == version {
                return (now, next, contents);
            }
        }
    }

    /// Adds the tables of what was read to `diff`. The connection managers of `diff` ask, too; for what was not wanted
    /// when it was read they wait until the next time.
    pub(crate) fn look(&mut self, contents: Contents, diff: &mut Diff) -> Look {
        let mut look = Look::default();
        self.configs.forget_unwanted();
        let wanted = self.configs.wanted_files();
        self.read.retain(|key, _| wanted.contains(key));
        self.unreadable.retain(|key, _| wanted.contains(key));
        for (key, content) in contents.0.into_iter().filter(|(key, _)| wanted.contains(key)) {
            match content {
                Ok(None) => drop(self.unreadable.remove(&key)),
                Ok(Some((stamp, bytes))) => {
                    let updated = self.configs.update_from_file(&key.0, &key.1, &bytes, diff);
                    look.refused.extend(updated.err());
                    self.unreadable.remove(&key);
                    self.read.insert(key, stamp);
                    self.version += 1;
                }
                Err(error) if self.read.contains_key(&key) => {
                    look.refused.extend(self.unreadable(key, &error));
                }
                Err(error) => look.missing.push(format!("{}: {error}", key.0.display())),
            }
        }
        look.refused.extend(self.configs.renew(diff));
        look.refused.extend(self.configs.complete(diff));
        look
    }

    /// What there is to say of a file that can't be read any more. One that is gone for a moment is being replaced, or
    /// its last version is the best there is.
    fn unreadable(&mut self, key: Key, error: &io::Error) -> Option<ConfigError> {
        let gone = error.kind() == io::ErrorKind::NotFound;
        let (reason, file) = (error.to_string(), key.0.display().to_string());
        let before = self.unreadable.insert(key, reason.clone());
        let is_new = !gone && before.as_ref() != Some(&reason);
        is_new.then(|| ConfigError::new(format!("can't be read: {reason}")).in_file(file))
    }

    /// Looks again and again, on a thread of its own, for as long as somebody holds `files`.
    pub(crate) fn follow(files: &Arc<Mutex<RouteFiles>>, server: Server) -> io::Result<()> {
        let files = Arc::downgrade(files);
        let look = move || {
            loop {
                std::thread::sleep(LOOK);
                let Some(files) = files.upgrade() else { return };
                let (mut now, mut next, contents) = RouteFiles::ahead(&files, |_| {});
                let mut diff = Diff::default();
                next.look(contents, &mut diff).tell();
                *now = next;
                now.apply(diff, |diff| server.apply_blocking(diff));
            }
        };
        std::thread::Builder::new().name("route-files".to_owned()).spawn(look).map(drop)
    }
}

impl Look {
    /// Says in the log what is wrong in files.
    pub(crate) fn tell(&self) {
        tell_most(
            &self.refused,
            |error| tracing::error!("routes refused, those of before stay: {error}"),
            |more| tracing::error!(more, "more faults in routes"),
        );
    }
}

fn read(path: &Path, before: Option<&Stamp>) -> io::Result<Option<Content>> {
    files::read_changed(path, before.copied(), MAX_DOCUMENT_BYTES)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::envoy::Text;
    use crate::process::plugins;
    use sixfold_core::compile::CompileContext;
    use sixfold_core::model::ResourceKind;
    use sixfold_xds::bootstrap::ProcessContext;
    use std::cell::Cell;

    const BOOTSTRAP: &str = r#"
static_resources:
  listeners:
  - name: a
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: a
          rds: {route_config_name: r, config_source: {path_config_source: {path: ROUTES}}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
"#;

    /// The files were locked while they were read: a disk that hung kept every bootstrap from being read again.
    #[test]
    fn nobody_waits_for_a_file_that_is_being_read() {
        // Such a file must be there, and nobody reads this one.
        let routes = std::env::current_exe().unwrap();
        let bootstrap = BOOTSTRAP.replace("ROUTES", routes.to_str().unwrap());
        let text = Text { text: bootstrap, name: "envoy.yaml".to_owned(), merged_over: None };
        let compiled = text.load(&ProcessContext::new(CompileContext::detached(plugins()))).unwrap();
        let files = Mutex::new(RouteFiles::new(compiled.followed.context.clone()));
        let reads = Cell::new(0);
        let read = |path: &Path, _: Option<&Stamp>| {
            assert_eq!(path, routes);
            let mut now = files.try_lock().unwrap();
            reads.set(reads.get() + 1);
            // Another bootstrap comes into force while the disk hangs: what is read then was read for the one before.
            if reads.get() == 1 {
                now.set_context(compiled.followed.context.clone());
            }
            Ok(None)
        };
        let (now, next, contents) = RouteFiles::ahead_by(&files, |_| {}, read);
        assert_eq!((reads.get(), contents.0.len()), (2, 1));
        assert_eq!((now.version, next.version), (1, 1));
    }

    /// `/config_dump` showed routes that had been refused as those in force.
    #[test]
    fn what_is_refused_is_not_shown_to_be_in_force() {
        let path = std::env::temp_dir().join(format!("sixfold-route-files-{}.yaml", std::process::id()));
        std::fs::write(&path, "").unwrap();
        let bootstrap = BOOTSTRAP.replace("ROUTES", path.to_str().unwrap());
        let text = Text { text: bootstrap, name: "envoy.yaml".to_owned(), merged_over: None };
        let compile = CompileContext::detached(plugins());
        let tables = compile.route_tables.clone();
        let compiled = text.load(&ProcessContext::new(compile)).unwrap();
        let mut files = RouteFiles::new(compiled.followed.context);
        let mut apply = |hosts: Option<&str>, outcome: Result<(), Vec<ApplyError>>| {
            let routes = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
            if let Some(hosts) = hosts {
                let text = format!("resources: [{{\"@type\": {routes}, name: r, virtual_hosts: {hosts}}}]");
                std::fs::write(&path, text).unwrap();
            }
            let (mut diff, contents) = (Diff::default(), files.contents());
            assert!(files.look(contents, &mut diff).refused.is_empty());
            let mut asked = false;
            files.apply(diff, |diff| {
                asked = true;
                // The rest of a change goes into force.
                for (key, table) in diff.route_tables {
                    tables.of_name(&key.name).iter().for_each(|cell| drop(cell.swap(table.clone())));
                }
                outcome
            });
            (asked, files.published.lock().len())
        };
        let refusal = ApplyError { kind: ResourceKind::Endpoints, name: "c".into(), reason: String::new() };
        let other = "[{name: v, domains: ['*']}]";
        assert_eq!(apply(Some("[]"), Err(vec![refusal])), (true, 0));
        assert_eq!(apply(None, Ok(())), (false, 0), "nor with the next look, which finds nothing new");
        assert_eq!(apply(Some(other), Ok(())), (true, 1));
        std::fs::remove_file(&path).unwrap();
    }
}
