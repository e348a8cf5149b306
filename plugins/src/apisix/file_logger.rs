//! APISIX's file-logger: a line of a file for each request.

use crate::shared::logger::{EntryConfig, EntrySink, Logger, LoggerMetadata};
use arc_swap::ArcSwapOption;
use serde::Deserialize;
use sixfold_core::access_log::{LogSink, MakeSink};
use sixfold_core::error::ConfigError;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    let path = path.map(PathBuf::from);
    let files = Files { sinks: context.log_sinks.clone(), open: ArcSwapOption::empty(), path };
    // Its writer is there before the first line.
    if let Some(path) = files.path.clone().or_else(general) {
        files.file(&path);
    }
    Logger::plugin(NAME, &entry, files, context)
}

/// The file of an instance: its own, or that of the metadata, which may change.
struct Files {
    path: Option<PathBuf>,
    sinks: Arc<dyn MakeSink>,
    open: ArcSwapOption<OpenFile>,
}

struct OpenFile {
    path: PathBuf,
    sink: Arc<dyn LogSink>,
}

impl Files {
    fn file(&self, path: &Path) -> Arc<OpenFile> {
        if let Some(open) = &*self.open.load()
            && open.path == path
        {
            return open.clone();
        }
        let open = Arc::new(OpenFile { path: path.to_owned(), sink: self.sinks.opened_late(path) });
        self.open.store(Some(open.clone()));
        open
    }
}

thread_local! {
    /// The line being made: one write each, so that lines stay whole.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Longest line buffer that a thread keeps.
const KEPT_LINE: usize = 64 << 10;

impl EntrySink for Files {
    fn take(&self, entry: &[u8], metadata: Option<&LoggerMetadata>) {
        let path = self.path.as_deref().or_else(|| metadata?.path.as_deref());
        // Metadata without one has come since the configuration was taken.
        let Some(path) = path else { return };
        let file = self.file(path);
        LINE.with_borrow_mut(|line| {
            line.clear();
            line.extend_from_slice(entry);
            line.push(b'\n');
            file.sink.write(line);
            line.shrink_to(KEPT_LINE);
        });
    }
}

#[cfg(test)]
mod tests;
