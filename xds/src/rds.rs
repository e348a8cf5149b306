//! Route configurations that come by themselves: who asks for which, and what each is compiled to.
//!
//! Envoy gives every connection manager filters of its own (HttpConnectionManagerConfig), and shares one subscription
//! and one RouteConfiguration between those whose `rds` is the same (rds/route_config_provider_manager.cc). A table
//! here has chains in it, so that there is one for each list of filters that asks for its name.

mod configs;
mod file;
#[cfg(test)]
mod tests;

pub use configs::RouteConfigs;
pub(crate) use file::{FileResponse, resources_of_file};

use std::hash::{BuildHasher, Hash, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::files;
use sixfold_core::interned::Interned;
use sixfold_core::router::{FiltersId, RouteTableCell, TableKey};
use sixfold_xds_api::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use sixfold_xds_api::pb::envoy::config::core::v3::{ApiVersion, ConfigSource, PathConfigSource};
use sixfold_xds_api::pb::envoy::extensions::filters::network::http_connection_manager::v3::Rds;

use crate::api::ApiSource;
use crate::context::Context;
use crate::filters::HttpFilters;
use crate::listener::ChainPlace;
use sixfold_xds_api::refuse;
use sixfold_xds_api::values::{Result, enum_value, not_empty, one_of, required, timeout_or};

/// Envoy's default of `initial_fetch_timeout`.
const FIRST_TABLE: Duration = Duration::from_secs(15);

/// Where resources come from that are configured by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// The one stream of the bootstrap's `ads_config`.
    Ads,
    /// A file that holds a DiscoveryResponse (`path_config_source`).
    Path(PathBuf),
    /// A stream of its own (`api_config_source`).
    Api(ApiSource),
}

/// The filters that the tables of a connection manager are compiled for, and where these tables come from.
pub(crate) struct RdsFilters {
    source: Source,
    /// The filter chain, when its filters keep what another shall not see.
    chain: Option<u64>,
    pub(crate) list: HttpFilters,
}

/// All of them. Equal ones are one, so that a listener that is compiled again finds its tables again.
#[derive(Default)]
pub struct FilterLists {
    known: Mutex<Interned<u64, RdsFilters>>,
    hasher: RandomState,
}

impl RdsFilters {
    /// Everything that tells them apart.
    fn identity(&self) -> impl Hash + Eq {
        (&self.source, self.chain, self.list.identity())
    }
}

impl FilterLists {
    /// Those that are equal to `filters`, or themselves.
    fn intern(&self, filters: RdsFilters) -> Arc<RdsFilters> {
        let hash = self.hasher.hash_one(filters.identity());
        let mut known = self.known.lock();
        let same = known.get(&hash);
        if let Some(same) = same.filter(|same| same.identity() == filters.identity()) {
            return same;
        }
        let filters = Arc::new(filters);
        known.insert(hash, &filters);
        filters
    }
}

/// A connection manager's `rds`.
pub(crate) struct Subscription {
    /// The place of its table.
    pub(crate) cell: Arc<RouteTableCell>,
    /// How long a listener waits for the first.
    pub(crate) first_table: Option<Duration>,
    /// The filters of its table, which it must take itself: they may be those of an earlier compilation.
    pub(crate) filters: Arc<RdsFilters>,
}

/// Where the route configuration of this cell comes from, and its name, if it comes by itself.
pub(crate) fn asked(cell: &RouteTableCell) -> Option<(&Source, &Arc<str>)> {
    let filters = cell.key.filters.filters::<RdsFilters>()?;
    Some((&filters.source, &cell.key.name))
}

/// Asks for what `rds` names. Nothing is fetched: sources look who asks.
pub(crate) fn subscribe(
    context: &Context,
    place: ChainPlace,
    filters: HttpFilters,
    value: &Rds,
) -> Result<Subscription> {
    let Rds { config_source, route_config_name } = value;
    let name = not_empty(route_config_name, "route_config_name")?.into();
    let (source, first_table) =
        source(context, required(config_source, "config_source")?).in_key("config_source")?;
    let chain = (!filters.are_stateless()).then_some(place.chain);
    let filters = context.filter_lists.intern(RdsFilters { source, chain, list: filters });
    let key = TableKey { name, filters: FiltersId::new(filters.clone()) };
    Ok(Subscription { cell: context.compile.route_tables.cell(&key), first_table, filters })
}

/// Where a source of configuration says that resources come from, and how long the first is waited for; `None` is for
/// ever.
///
/// # Errors
/// There is no such stream, or no such file: as in Envoy one must be there when it is named.
pub(crate) fn source(context: &Context, value: &ConfigSource) -> Result<(Source, Option<Duration>)> {
    let (source, within) = source_unseen(context, value)?;
    if let Source::Path(path) = &source {
        must_be_there(value, path)?;
    }
    Ok((source, within))
}

/// Looks whether the file of a source is there, with the field in the error that names it.
pub(crate) fn must_be_there(value: &ConfigSource, path: &Path) -> Result<()> {
    let there = files::promptly(path, |path| std::fs::metadata(path).map(drop));
    let missing = |error| ConfigError::field("path", format!("{}: {error}", path.display()));
    let there = there.map_err(missing);
    match value.config_source_specifier {
        Some(ConfigSourceSpecifier::PathConfigSource(_)) => there.in_key("path_config_source"),
        _ => there,
    }
}

/// The same without a look at the disk, which a source that was looked at need not have again.
pub(crate) fn source_unseen(context: &Context, value: &ConfigSource) -> Result<(Source, Option<Duration>)> {
    let (source, within) = source_of_secrets(context, value)?;
    if let Source::Api(api) = &source {
        api.compile(context).in_key("api_config_source")?;
    }
    Ok((source, within))
}

/// The same for secrets, which come by streams of their own as well.
pub(crate) fn source_of_secrets(
    context: &Context,
    value: &ConfigSource,
) -> Result<(Source, Option<Duration>)> {
    let (source, within) = any_source(value)?;
    if source == Source::Ads && !context.ads {
        return Err(ConfigError::field("ads", "needs dynamic_resources.ads_config in the bootstrap"));
    }
    Ok((source, within))
}

/// The same without a look at what there is in the process.
pub(crate) fn any_source(value: &ConfigSource) -> Result<(Source, Option<Duration>)> {
    let ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier } =
        value;
    refuse!(authorities);
    if enum_value::<ApiVersion>(*resource_api_version, "resource_api_version")? == ApiVersion::V2 {
        return Err(ConfigError::field("resource_api_version", "V2 is not supported"));
    }
    let source = match one_of::<ConfigSource, _>(config_source_specifier, "config_source_specifier")? {
        ConfigSourceSpecifier::Path(path) => Source::Path(not_empty(path, "path")?.into()),
        ConfigSourceSpecifier::PathConfigSource(value) => {
            // A file is another one as soon as another stands at its path, by whatever link.
            let PathConfigSource { path, watched_directory: _, poll_interval } = value;
            let path = not_empty(path, "path").in_key("path_config_source")?;
            refuse::unset(poll_interval, "poll_interval").in_key("path_config_source")?;
            Source::Path(path.into())
        }
        ConfigSourceSpecifier::Ads(_) => Source::Ads,
        ConfigSourceSpecifier::ApiConfigSource(api) => Source::Api(ApiSource::new(api)),
        ConfigSourceSpecifier::Self_(_) => return Err(ConfigError::field("self", "is not supported")),
    };
    Ok((source, timeout_or(initial_fetch_timeout, Some(FIRST_TABLE), "initial_fetch_timeout")?))
}
