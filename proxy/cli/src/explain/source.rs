//! What is explained: the model that a configuration compiles to, of which nothing is opened.

use super::dump;
use super::faulty::Faulty;
use super::verdict::Unsent;
use crate::Failure;
use crate::arguments::ExplainOptions;
use crate::envoy::Text;
use crate::fetch;
use crate::process::plugins;
use crate::resources;
use crate::validate::{Kind, kind};
use sixfold_apisix::config::EnvVars;
use sixfold_apisix::{Source, SourceContext};
use sixfold_core::cluster::Clusters;
use sixfold_core::compile::CompileContext;
use sixfold_core::detached::Nowhere;
use sixfold_core::error::ConfigError;
use sixfold_core::export;
use sixfold_core::metrics;
use sixfold_core::model::{Diff, Model};
use sixfold_core::plugin::{BuildContext, Consumers};
use sixfold_server::explain::Listeners;
use sixfold_xds::bootstrap::ProcessContext;
use sixfold_xds::rds::RouteConfigs;
use std::path::Path;
use std::sync::Arc;

/// A compiled configuration.
pub(super) struct Known {
    pub(super) listeners: Listeners,
    pub(super) clusters: Arc<Clusters>,
    /// Those of APISIX.
    pub(super) consumers: Arc<Consumers>,
    /// What is not compiled.
    pub(super) faulty: Faulty,
    /// What filters ask services goes here.
    pub(super) unsent: Arc<Unsent>,
}

/// Compiles what the options name.
pub(super) fn read(options: &ExplainOptions) -> Result<Known, Failure> {
    let model = Model::default();
    let (consumers, unsent) = (Arc::<Consumers>::default(), Arc::<Unsent>::default());
    let (diff, faulty) = match (&options.config, &options.dump, &options.admin) {
        (Some(file), ..) => (of_file(file, &model, &consumers, &unsent)?, Faulty::default()),
        (None, Some(file), _) => {
            let text = Text::read(file)?;
            of_dump(&text.text, &text.name, &model, &unsent)?
        }
        (None, None, Some(address)) => of_dump(&config_dump(address)?, address, &model, &unsent)?,
        (None, None, None) => return Err(Failure::new("one of --config, --admin and --dump is needed")),
    };
    warn(faulty.errors());
    let errors = model.apply_detached(diff);
    if !errors.is_empty() {
        return Err(errors.into());
    }
    let listeners = Listeners::new(model.listeners());
    Ok(Known { listeners, clusters: model.clusters().clone(), consumers, faulty, unsent })
}

fn compile(model: &Model, unsent: &Arc<Unsent>) -> CompileContext {
    // What filters do beside a request is begun with it: it asks, too.
    let background = Arc::new(export::Here::default());
    let build = BuildContext { background, ..BuildContext::new(unsent.clone(), metrics::Registry::new()) };
    CompileContext::new(model, plugins(), build, Arc::new(Nowhere))
}

/// `/config_dump` of the administration at this address, endpoints among it.
fn config_dump(address: &str) -> Result<String, Failure> {
    let told = |reason: String| Failure::new(format!("--admin {address}: {reason}"));
    let answer = fetch::get(address, "/config_dump?include_eds", &[]).map_err(told)?;
    match answer.status {
        200 => Ok(answer.body),
        status => Err(told(format!("/config_dump answers {status}"))),
    }
}

/// What APISIX's configuration is compiled with.
fn context(model: &Model, consumers: &Arc<Consumers>, unsent: &Arc<Unsent>) -> SourceContext {
    let mut compile = compile(model, unsent);
    compile.build.consumers = consumers.clone();
    SourceContext::new(compile, EnvVars::Process)
}

fn of_file(
    file: &Path,
    model: &Model,
    consumers: &Arc<Consumers>,
    unsent: &Arc<Unsent>,
) -> Result<Diff, Failure> {
    let text = Text::read(file)?;
    match kind(&text)? {
        Kind::Bootstrap => bootstrap(&text, model, unsent),
        Kind::Configuration => {
            let config = sixfold_apisix::load_config(file, &EnvVars::Process)?;
            let store = resources::of(&config, file)?;
            let update = Source::new(config, store, context(model, consumers, unsent)).pull()?;
            warn(&update.refused);
            Ok(update.diff)
        }
        Kind::Resources => {
            let update = sixfold_apisix::load_resources(file, context(model, consumers, unsent))?.update;
            warn(&update.refused);
            Ok(update.diff)
        }
    }
}

fn of_dump(text: &str, name: &str, model: &Model, unsent: &Arc<Unsent>) -> Result<(Diff, Faulty), Failure> {
    dump::compile(text, name, &ProcessContext::new(compile(model, unsent)))
}

/// A bootstrap, with the routes that it has in files.
fn bootstrap(text: &Text, model: &Model, unsent: &Arc<Unsent>) -> Result<Diff, Failure> {
    let mut compiled = text.load(&ProcessContext::new(compile(model, unsent)))?;
    warn(&RouteConfigs::new(compiled.followed.context).read_files(&mut compiled.diff));
    Ok(compiled.diff)
}

fn warn<'a>(refused: impl IntoIterator<Item = &'a ConfigError>) {
    refused.into_iter().for_each(|error| eprintln!("warning: {error}"));
}
