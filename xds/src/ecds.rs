//! Configurations of HTTP filters that come by themselves (ECDS).

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use sixfold_core::error::{ConfigContext, ConfigError};
use sixfold_core::flags::Flag;
use sixfold_core::plugin::{FilterFactory, LocalReply, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use sixfold_xds_api::any;
use sixfold_xds_api::pb::envoy::config::core::v3::ExtensionConfigSource;
use sixfold_xds_api::pb::google::protobuf::Any;
use sixfold_xds_api::values::{Result, required};

use crate::context::Context;
use crate::rds::{self, Source};

/// What a control plane has sent, and what listeners ask for while they are compiled.
#[derive(Default)]
pub struct Extensions {
    known: Mutex<BTreeMap<String, Any>>,
    asked: Mutex<Vec<Asked>>,
}

/// A configuration that a listener asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) name: Arc<str>,
    /// How long it is waited for; `None` is for ever.
    pub(crate) within: Option<Duration>,
}

impl Extensions {
    /// Listeners that are compiled from now on have it.
    pub(crate) fn put(&self, name: &str, config: Any) {
        self.known.lock().insert(name.to_owned(), config);
    }

    pub(crate) fn forget(&self, name: &str) {
        self.known.lock().remove(name);
    }

    /// How much has been asked for, for [`Extensions::brought_since`].
    pub(crate) fn mark(&self) -> usize {
        self.asked.lock().len()
    }

    /// What has come of that which was asked for after a mark: it is part of who asks.
    pub(crate) fn brought_since(&self, mark: usize) -> Vec<u8> {
        let known = self.known.lock();
        let asked = self.asked.lock();
        let brought = asked.iter().skip(mark).filter_map(|asked| known.get(&*asked.name));
        brought.flat_map(Message::encode_to_vec).collect()
    }

    /// What was asked for since the last call.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock())
    }
}

/// The configuration that a filter of this name has now: the one that has come, else the default; `None` is neither.
pub(crate) fn find(context: &Context, name: &str, value: &ExtensionConfigSource) -> Result<Option<Any>> {
    let ExtensionConfigSource {
        config_source,
        default_config,
        apply_default_config_without_warming: at_once,
        type_urls,
    } = value;
    if context.static_clusters.is_some() {
        return Err(ConfigError::new("is for listeners of a control plane"));
    }
    let source = rds::source(context, required(config_source, "config_source")?);
    let (source, within) = source.in_key("config_source")?;
    if source != Source::Ads {
        return Err(ConfigError::field("config_source", "only ads is supported"));
    }
    if *at_once && default_config.is_none() {
        let reason = "needs default_config";
        return Err(ConfigError::field("apply_default_config_without_warming", reason));
    }
    let within = if *at_once { Some(Duration::ZERO) } else { within };
    context.extensions.asked.lock().push(Asked { name: name.into(), within });
    let known = context.extensions.known.lock().get(name).cloned();
    let Some(config) = known.or_else(|| default_config.clone()) else { return Ok(None) };
    let found = any::type_name(&config)?;
    if !type_urls.iter().any(|url| any::name_of_url(url) == found) {
        let reason = format!("is of type {found}, which is none of type_urls");
        return Err(ConfigError::new(format!("the configuration \"{name}\" {reason}")));
    }
    Ok(Some(config))
}

/// A filter without a configuration answers every request with 500 (Envoy's MissingConfigFilter).
pub(crate) fn missing() -> Arc<FilterFactory> {
    static MISSING: LazyLock<Arc<FilterFactory>> = LazyLock::new(|| {
        let none = String::new;
        let factory =
            FilterFactory::new(none(), none(), |_, _| Ok(Plugin::of(()).access(no_configuration).build()));
        Arc::new(factory.stateless())
    });
    MISSING.clone()
}

fn no_configuration<'a>(_: &'a (), _: &'a mut Stream, _: Slot) -> Step<'a> {
    let mut reply = LocalReply::new(500, "", "");
    reply.flag = Some(Flag::NFCF);
    Step::Respond(reply)
}
