//! APISIX's file-logger: a line of a file for each request.

use crate::shared::logger::{EntryConfig, EntrySink, Logger, LoggerMetadata};
use arc_swap::ArcSwapOption;
use serde::Deserialize;
use sixfold_core::access_log::{LogSink, MakeSink};
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Metadata};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

const NAME: &str = "file-logger";

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new(NAME, 399, include_str!("../../schemas/file-logger.json"), build)
        .reads_metadata(include_str!("../../schemas/file-logger-metadata.json"), LoggerMetadata::read)
}

#[derive(Debug, Deserialize)]
struct Config {
    path: Option<String>,
    #[serde(flatten)]
    entry: EntryConfig,
}

fn build(config: Config, context: &BuildContext) -> Built {
    let general = || context.metadata.of(NAME).get::<LoggerMetadata>().and_then(|told| told.path.clone());
    if config.path.is_none() && context.metadata_is_whole && general().is_none() {
        let reason = "property \"path\" is not set in either the plugin conf or the metadata";
        return Err(ConfigError::new(reason));
    }
    let Config { path, entry } = config;
    let files = Arc::new(Files {
        own: path.map(PathBuf::from),
        metadata: context.metadata.of(NAME),
        sinks: context.log_sinks.clone(),
        open: ArcSwapOption::empty(),
        in_force: AtomicBool::new(false),
    });
    files.choose();
    if files.own.is_none() {
        files.metadata.follow(&files, Files::choose);
    }
    let begun = files.clone();
    Ok(Logger::plugin(NAME, &entry, files, context)?.in_force(move |_| begun.begin()).build())
}

/// The file of an instance: its own, or that of the metadata, which may change.
struct Files {
    own: Option<PathBuf>,
    metadata: Arc<Metadata>,
    sinks: Arc<dyn MakeSink>,
    open: ArcSwapOption<OpenFile>,
    in_force: AtomicBool,
}

struct OpenFile {
    path: PathBuf,
    sink: Arc<dyn LogSink>,
}

impl Files {
    /// Has lines go where they belong now. Nobody may have said where: then there are none.
    fn choose(&self) {
        let general = || self.metadata.get::<LoggerMetadata>().and_then(|told| told.path.clone());
        let path = self.own.clone().or_else(general);
        if self.open.load().as_ref().map(|open| &open.path) == path.as_ref() {
            return;
        }
        let open = path.map(|path| Arc::new(OpenFile { sink: self.sinks.opened_late(&path), path }));
        self.open.store(open);
        if self.in_force.load(Relaxed) {
            self.begin();
        }
    }

    /// Has the file's writer be there before the first line.
    fn begin(&self) {
        self.in_force.store(true, Relaxed);
        if let Some(open) = &*self.open.load() {
            open.sink.start_opening();
        }
    }
}

thread_local! {
    /// The line being made: one write each, so that lines stay whole.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Longest line buffer that a thread keeps.
const KEPT_LINE: usize = 64 << 10;

impl EntrySink for Files {
    fn take(&self, entry: &[u8], _: Option<&LoggerMetadata>) {
        let open = self.open.load();
        let Some(open) = &*open else { return };
        LINE.with_borrow_mut(|line| {
            line.clear();
            line.extend_from_slice(entry);
            line.push(b'\n');
            open.sink.write(line);
            line.shrink_to(KEPT_LINE);
        });
    }
}

#[cfg(test)]
mod tests;
