//! What resources are told by, and what brings them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use super::kind::Kind;
use crate::rds::Source;

/// A resource: its type, where it comes from, and its name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Its type.
    pub kind: Kind,
    /// Where it comes from. All clusters come from one source, and so do all listeners: they are told by their names
    /// alone, and [`Source::Ads`] stands here.
    pub source: Source,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// One of a type and a source.
    pub fn new(kind: Kind, source: &Source, name: &Arc<str>) -> Key {
        let source = if kind.is_wildcard() { Source::Ads } else { source.clone() };
        Key { kind, source, name: name.clone() }
    }

    /// A cluster, a listener, or another resource of the stream of all types.
    pub fn of_name(kind: Kind, name: &Arc<str>) -> Key {
        Key { kind, source: Source::Ads, name: name.clone() }
    }

    /// As people call it.
    pub(super) fn shown(&self) -> String {
        format!("{} \"{}\"", self.kind.noun(), self.name)
    }
}

/// What brings resources: a stream, or a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// The stream of all types (`ads_config`).
    Aggregated,
    /// What brings resources of one type from another source than that.
    Of(Kind, Source),
}

impl Channel {
    /// What brings resources of a type from a source.
    pub fn of(kind: Kind, source: &Source) -> Channel {
        match source {
            Source::Ads => Channel::Aggregated,
            source => Channel::Of(kind, source.clone()),
        }
    }

    /// Where its resources come from.
    pub fn source(&self) -> &Source {
        match self {
            Channel::Aggregated => &Source::Ads,
            Channel::Of(_, source) => source,
        }
    }

    /// The file, if it is one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Channel::Of(_, Source::Path(path)) => Some(path),
            _ => None,
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Channel::Aggregated => f.write_str("ads_config"),
            Channel::Of(_, Source::Path(path)) => write!(f, "{}", path.display()),
            Channel::Of(kind, _) => write!(f, "api_config_source of {}", kind.plural()),
        }
    }
}
