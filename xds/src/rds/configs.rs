//! The route configurations that sources have brought.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::fast_hash::FastSet;
use sixfold_core::files;
use sixfold_core::model::Diff;
use sixfold_core::router::{RouteTable, RouteTableCell, TableKey};
use sixfold_xds_api::pb::envoy::config::route::v3::{Route, RouteConfiguration};

use super::{RdsFilters, Source, asked};
use crate::ads;
use crate::context::Context;
use crate::route::{self, Earlier};
use crate::unknown::Unknown;
use prost::Name;
use sixfold_xds_api::constraints;
use sixfold_xds_api::values::Result;
use sixfold_xds_api::wire::{self, Split, decode};

/// Field numbers of `virtual_hosts.routes`.
const ROUTES: [u32; 2] = [2, 3];

type Tables = Vec<(TableKey, Option<Arc<RouteTable>>)>;

/// The last good version of each route configuration, encoded, for connection managers that ask for it now or later.
#[derive(Clone)]
pub struct RouteConfigs {
    context: Context,
    known: BTreeMap<Key, Arc<[u8]>>,
    /// Those of them whose tables were compiled by an earlier bootstrap.
    outdated: BTreeSet<Key>,
    /// Those of them that are not to be in force yet.
    held: BTreeSet<Key>,
    /// Tables of [`RouteConfigs::fit`], until they are in force.
    fitting: Tables,
    /// Tells tables of this bootstrap from those of earlier ones.
    generation: Arc<()>,
}

type Key = (Source, Arc<str>);

/// What a table was compiled from.
struct Origin {
    encoded: Arc<[u8]>,
    generation: Arc<()>,
}

impl RouteConfigs {
    /// None is known yet.
    pub fn new(context: Context) -> RouteConfigs {
        let (known, outdated, held) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        let (fitting, generation) = (Vec::new(), Arc::default());
        RouteConfigs { context: of_api(context), known, outdated, held, fitting, generation }
    }

    /// Has what comes from now on compiled by another bootstrap of the same process; [`RouteConfigs::renew`] does so
    /// with what is known.
    pub fn set_context(&mut self, context: Context) {
        self.outdated = self.known.keys().cloned().collect();
        self.context = of_api(context);
        self.generation = Arc::default();
    }

    /// Names that connection managers ask for by ADS.
    #[cfg(test)]
    pub(crate) fn wanted_by_ads(&self) -> BTreeSet<Arc<str>> {
        self.wanted().filter(|(source, _)| *source == Source::Ads).map(|(_, name)| name).collect()
    }

    fn wanted(&self) -> impl Iterator<Item = (Source, Arc<str>)> {
        let held = self.context.compile.route_tables.held().into_iter();
        held.filter_map(|cell| asked(&cell).map(|(source, name)| (source.clone(), name.clone())))
    }

    /// Takes an encoded RouteConfiguration that `source` has brought, and adds to `diff` a table for every list of
    /// filters that asks for it; nothing, if it is as it was or nobody asks.
    ///
    /// # Errors
    /// The first thing that is wrong. Nothing has changed then: the last good version goes on.
    pub fn update(&mut self, source: &Source, encoded: &[u8], diff: &mut Diff) -> Result<()> {
        let message = Message::read(encoded)?;
        let key = (source.clone(), Arc::from(message.value.name.as_str()));
        let is_known = self.known.get(&key).is_some_and(|known| **known == *encoded);
        if is_known && !self.outdated.contains(&key) {
            return Ok(());
        }
        let cells = self.context.compile.route_tables.of_name(&key.1);
        let cells: Vec<_> = cells.into_iter().filter(|cell| asks(cell, source)).collect();
        if !cells.is_empty() {
            message
                .check(&self.context.unknown, encoded, self.known.get(&key).map(|known| &**known))
                .in_resource("route configuration", &message.value.name)?;
            let encoded = Arc::from(encoded);
            diff.route_tables.extend(self.compile(&encoded, &message, &cells)?);
            self.outdated.remove(&key);
            self.known.insert(key, encoded);
        }
        Ok(())
    }

    /// Reads the files that connection managers ask for once, for who looks at a configuration that nobody serves, and
    /// adds their tables to `diff`. Answers what is wrong in them, and which can't be read.
    pub fn read_files(&mut self, diff: &mut Diff) -> Vec<ConfigError> {
        let wanted: BTreeSet<_> = self.wanted().collect();
        let mut refused = Vec::new();
        for (source, name) in wanted {
            let Source::Path(path) = &source else { continue };
            let text = files::read_promptly(path, MAX_DOCUMENT_BYTES);
            let text = text.map_err(|error| ConfigError::new(error.to_string()));
            let read = text.and_then(|text| ads::routes_of_file(path, &text, &name));
            let outcome = read.and_then(|(encoded, origin)| {
                let updated = self.update(&source, &encoded, diff);
                updated.map_err(|fault| ads::placed(origin.as_ref(), fault))
            });
            refused.extend(outcome.err().map(|error| error.in_file(path.display().to_string())));
        }
        refused
    }

    /// Says that what `source` has for a name can't be used, so that no listener waits for it.
    pub fn refuse(&self, source: &Source, name: &str) {
        let cells = self.context.compile.route_tables.of_name(name);
        cells.iter().filter(|cell| asks(cell, source)).for_each(|cell| cell.refuse());
    }

    /// Adds tables of what is known and was compiled by an earlier bootstrap. Answers what can't be compiled by this
    /// one, whose tables stay.
    pub fn renew(&mut self, diff: &mut Diff) -> Vec<ConfigError> {
        let mut refused = Vec::new();
        // Those that wait go into force as they were compiled.
        let outdated = self.outdated.difference(&self.held).cloned().collect::<Vec<_>>();
        self.outdated.retain(|key| self.held.contains(key));
        for key in outdated {
            let Some(known) = self.known.get(&key) else { continue };
            let cells = self.context.compile.route_tables.of_name(&key.1);
            let cells: Vec<_> = cells.into_iter().filter(|cell| asks(cell, &key.0)).collect();
            match Message::accepted(known).and_then(|message| self.compile(known, &message, &cells)) {
                Ok(tables) => diff.route_tables.extend(tables),
                Err(error) => refused.push(error),
            }
        }
        refused
    }

    /// Keeps what was last brought of a name from [`RouteConfigs::complete`], until it is [`RouteConfigs::release`]d.
    pub fn hold(&mut self, source: &Source, name: &str) {
        self.held.insert((source.clone(), name.into()));
    }

    /// What was last brought of a name goes into force.
    pub fn release(&mut self, source: &Source, name: &str) {
        self.held.remove(&(source.clone(), Arc::from(name)));
    }

    /// Tries what is known on connection managers that have no table yet: a listener that keeps its routes may have other
    /// filters now.
    ///
    /// # Errors
    /// The first route configuration that can't be compiled for one of them, which would be without routes.
    pub fn fit<'c>(&mut self, cells: impl IntoIterator<Item = &'c Arc<RouteTableCell>>) -> Result<()> {
        for cell in cells.into_iter().filter(|cell| cell.load().is_none()) {
            let known = asked(cell).map(|(source, name)| (source.clone(), name.clone()));
            let Some(known) = known.and_then(|key| self.known.get(&key)) else { continue };
            let tables = self.compile(known, &Message::accepted(known)?, std::slice::from_ref(cell))?;
            self.fitting.retain(|(key, _)| *key != cell.key);
            self.fitting.extend(tables);
        }
        Ok(())
    }

    /// Adds tables of what is known for connection managers that have none yet: `diff` may bring some of them.
    /// Answers what is known and can't be compiled for them.
    pub fn complete(&mut self, diff: &mut Diff) -> Vec<ConfigError> {
        let fitting = std::mem::take(&mut self.fitting);
        let mut refused = Vec::new();
        let comes = |cell: &RouteTableCell| diff.route_tables.iter().any(|(key, _)| *key == cell.key);
        let awaited = self.context.compile.route_tables.awaited().into_iter();
        let empty: Vec<_> = awaited.filter(|cell| !comes(cell)).collect();
        for cell in empty {
            let Some((source, name)) = asked(&cell) else { continue };
            let key = (source.clone(), name.clone());
            let ready = fitting.iter().find(|(of, _)| *of == cell.key);
            if self.held.contains(&key) {
                self.fitting.extend(ready.cloned());
                continue;
            }
            let Some(known) = self.known.get(&key) else { continue };
            if let Some(ready) = ready.filter(|(_, table)| self.is_of(table.as_deref(), known)) {
                diff.route_tables.push(ready.clone());
                continue;
            }
            let compiled =
                Message::accepted(known).and_then(|message| self.compile(known, &message, &[cell]));
            match compiled {
                Ok(tables) => diff.route_tables.extend(tables),
                Err(error) => refused.push(error),
            }
        }
        refused
    }

    /// Forgets what nobody asks for any more. Its source has to bring it again when somebody does.
    pub fn forget_unwanted(&mut self) {
        let wanted: BTreeSet<_> = self.wanted().collect();
        self.known.retain(|key, _| wanted.contains(key));
        self.held.retain(|key| wanted.contains(key));
    }

    /// Compiles a table for each cell. What the table there has of it already is taken over.
    fn compile(
        &self,
        encoded: &Arc<[u8]>,
        message: &Message<'_>,
        cells: &[Arc<RouteTableCell>],
    ) -> Result<Tables> {
        let origin = Arc::new(Origin { encoded: encoded.clone(), generation: self.generation.clone() });
        let table = |cell: &Arc<RouteTableCell>, filters: &RdsFilters| {
            let current = cell.load();
            let earlier = current.as_deref().and_then(|table| Some((table, self.message_of(table)?)));
            let earlier = earlier.as_ref().map(|(table, message)| {
                let Message { value, routes, rest: _ } = message;
                Earlier { value, routes, table }
            });
            let Message { value, routes, rest: _ } = message;
            let table = route::table(&self.context, &filters.list, value, routes, earlier.as_ref())?;
            Ok((cell.key.clone(), Some(Arc::new(table.with_origin(origin.clone())))))
        };
        let tables = cells.iter().filter_map(|cell| Some(table(cell, filters_of(cell)?)));
        tables.collect::<Result<_>>().in_resource("route configuration", &message.value.name)
    }

    /// Whether a table was compiled from this version, by this bootstrap.
    fn is_of(&self, table: Option<&RouteTable>, encoded: &Arc<[u8]>) -> bool {
        table.and_then(|table| table.origin::<Origin>()).is_some_and(|origin| {
            Arc::ptr_eq(&origin.generation, &self.generation) && Arc::ptr_eq(&origin.encoded, encoded)
        })
    }

    /// What a table was compiled from, if that was by this bootstrap.
    fn message_of<'t>(&self, table: &'t RouteTable) -> Option<Message<'t>> {
        let origin = table.origin::<Origin>()?;
        Arc::ptr_eq(&origin.generation, &self.generation).then(|| Message::read(&origin.encoded).ok())?
    }
}

/// A route configuration whose routes are still encoded.
struct Message<'a> {
    value: RouteConfiguration,
    /// All but the routes, encoded.
    rest: Vec<u8>,
    routes: Vec<Vec<&'a [u8]>>,
}

impl Message<'_> {
    fn read(encoded: &[u8]) -> Result<Message<'_>> {
        let Split { rest, parts: routes } = wire::split(encoded, &ROUTES)?;
        Ok(Message { value: decode(&rest)?, rest, routes })
    }

    /// One that was taken: whether its clusters are there was asked then, and it stays when one goes.
    fn accepted(encoded: &[u8]) -> Result<Message<'_>> {
        let mut message = Message::read(encoded)?;
        message.value.validate_clusters = None;
        Ok(message)
    }

    /// Whether everything keeps the rules of its definition. Of the last good version it is known that its routes do.
    fn check(&self, unknown: &Unknown, encoded: &[u8], known: Option<&[u8]>) -> Result<()> {
        let keeps = |name: &str, bytes: &[u8]| constraints::check(name, bytes).is_ok();
        let (whole, one) = (RouteConfiguration::full_name(), Route::full_name());
        let known = known.and_then(|known| wire::split(known, &ROUTES).ok());
        let is_known = known.is_some();
        let known: FastSet<&[u8]> = known.into_iter().flat_map(|known| known.parts).flatten().collect();
        let new = || self.routes.iter().flatten().filter(|route| !known.contains(**route));
        unknown.look(&whole, &self.rest)?;
        new().try_for_each(|route| unknown.look(&one, route))?;
        if is_known && keeps(&whole, &self.rest) && new().all(|route| keeps(&one, route)) {
            return Ok(());
        }
        // The whole message tells the place.
        constraints::check(&whole, encoded)
    }
}

/// Routes that come by themselves may be there before their clusters are.
fn of_api(context: Context) -> Context {
    Context { validate_clusters: false, ..context }
}

fn filters_of(cell: &RouteTableCell) -> Option<&RdsFilters> {
    cell.key.filters.filters()
}

fn asks(cell: &RouteTableCell, source: &Source) -> bool {
    filters_of(cell).is_some_and(|filters| filters.source == *source)
}
