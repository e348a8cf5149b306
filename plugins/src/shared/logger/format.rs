//! `log_format` and `log_format_extra`, of a logger and of its metadata.

use serde::Deserialize;
use serde_json::Value;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::format::{Dialect, Format, JsonOptions, quote};
use sixfold_core::stream::Stream;
use std::path::PathBuf;

/// `max_pending_entries` where nothing is written.
pub(crate) const MAX_PENDING: usize = 8192;

/// What `plugin_metadata` of a logger may say.
#[derive(Debug, Deserialize)]
pub(crate) struct MetadataConfig {
    path: Option<String>,
    log_format: Option<Value>,
    log_format_extra: Option<Value>,
    max_pending_entries: Option<usize>,
}

/// What a logger makes of it.
pub(crate) struct LoggerMetadata {
    /// Where file-logger writes by default.
    pub(crate) path: Option<PathBuf>,
    /// How many entries may be on their way.
    pub(crate) max_pending: usize,
    formats: Formats,
}

impl LoggerMetadata {
    pub(crate) fn read(config: MetadataConfig) -> Result<LoggerMetadata, ConfigError> {
        Ok(LoggerMetadata {
            path: config.path.map(PathBuf::from),
            max_pending: config.max_pending_entries.unwrap_or(MAX_PENDING),
            formats: Formats::new(config.log_format.as_ref(), config.log_format_extra.as_ref())?,
        })
    }
}

/// How entries look.
pub(crate) struct Formats {
    custom: Option<Members>,
    extra: Option<Members>,
}

/// Those that hold for a request.
pub(super) struct Chosen<'a> {
    /// The whole entry.
    pub(super) custom: Option<&'a Members>,
    /// What is added to the default entry.
    pub(super) extra: Option<&'a Members>,
}

/// Members of an entry.
pub(super) struct Members {
    members: Box<[Member]>,
    wants_request_body: bool,
    wants_response_body: bool,
}

/// A member of an entry.
pub(super) struct Member {
    pub(super) key: Box<str>,
    /// The key as JSON, with its colon.
    written: Box<[u8]>,
    value: Format,
}

impl Formats {
    pub(crate) fn new(custom: Option<&Value>, extra: Option<&Value>) -> Result<Formats, ConfigError> {
        let members = |value: Option<&Value>, field| value.map(Members::new).transpose().in_key(field);
        Ok(Formats { custom: members(custom, "log_format")?, extra: members(extra, "log_format_extra")? })
    }

    /// The logger's own go before those of its metadata, an empty one of which is none.
    pub(super) fn chosen<'a>(&'a self, metadata: Option<&'a LoggerMetadata>) -> Chosen<'a> {
        let general = metadata.map(|metadata| &metadata.formats);
        let of_metadata = general.and_then(|formats| formats.custom.as_ref());
        let custom = self.custom.as_ref().or(of_metadata.filter(|format| !format.members.is_empty()));
        Chosen { custom, extra: self.extra.as_ref().or(general.and_then(|formats| formats.extra.as_ref())) }
    }
}

impl Chosen<'_> {
    /// Whether `$request_body` is in it.
    pub(super) fn wants_request_body(&self) -> bool {
        self.custom.or(self.extra).is_some_and(|members| members.wants_request_body)
    }

    /// Whether `$resp_body` is in it.
    pub(super) fn wants_response_body(&self) -> bool {
        self.custom.or(self.extra).is_some_and(|members| members.wants_response_body)
    }
}

impl Members {
    fn new(value: &Value) -> Result<Members, ConfigError> {
        let options = JsonOptions { dialect: Dialect::Apisix, omit_empty: false };
        let members = value.as_object().into_iter().flatten().map(|(key, value)| {
            let mut written = Vec::new();
            quote(&mut written, key.as_bytes());
            written.push(b':');
            let value = Format::json_member(value, options).map_err(ConfigError::new).in_key(key)?;
            Ok(Member { key: key.as_str().into(), written: written.into(), value })
        });
        Ok(Members {
            members: members.collect::<Result<_, ConfigError>>()?,
            wants_request_body: has(value, "$request_body"),
            wants_response_body: has(value, "$resp_body"),
        })
    }

    /// Appends those that have a value, each behind a comma, but for those that are left out. Tells whether `asked` is
    /// among them.
    pub(super) fn write(
        &self,
        stream: &Stream,
        left_out: impl Fn(&str) -> bool,
        asked: &str,
        out: &mut Vec<u8>,
    ) -> bool {
        let mut is_there = false;
        for member in self.members.iter().filter(|member| !left_out(&member.key)) {
            let before = out.len();
            out.push(b',');
            out.extend_from_slice(&member.written);
            if member.value.write_json(stream, out) {
                is_there |= *member.key == *asked;
            } else {
                out.truncate(before);
            }
        }
        is_there
    }
}

/// Whether a document has this text somewhere.
fn has(value: &Value, text: &str) -> bool {
    match value {
        Value::String(string) => string == text,
        Value::Array(items) => items.iter().any(|item| has(item, text)),
        Value::Object(members) => members.values().any(|member| has(member, text)),
        _ => false,
    }
}
