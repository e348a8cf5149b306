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

use crate::ads::{Key, Kind};
use crate::context::Context;
use crate::filters;
use crate::rds;

/// What a control plane has sent, and what listeners ask for while they are compiled.
#[derive(Default)]
pub struct Extensions {
    known: Mutex<BTreeMap<Key, Any>>,
    /// The one that is tried on those that name it, and what it was before.
    tried: Mutex<Option<(Key, Option<Any>)>>,
    asked: Mutex<Vec<Asked>>,
}

/// A configuration that a listener asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) key: Key,
    /// How long it is waited for; `None` is for ever.
    pub(crate) within: Option<Duration>,
}

impl Extensions {
    /// Listeners that are compiled from now on have it, and are refused if it is none for them. [`Extensions::decide`]
    /// ends that.
    pub(crate) fn try_out(&self, key: &Key, config: Any) {
        let before = self.known.lock().insert(key.clone(), config);
        *self.tried.lock() = Some((key.clone(), before));
    }

    /// Keeps the one that was tried, or takes it back.
    pub(crate) fn decide(&self, fits: bool) {
        let Some((key, before)) = self.tried.lock().take().filter(|_| !fits) else { return };
        match before {
            Some(before) => drop(self.known.lock().insert(key, before)),
            None => drop(self.known.lock().remove(&key)),
        }
    }

    fn is_tried(&self, key: &Key) -> bool {
        self.tried.lock().as_ref().is_some_and(|(tried, _)| tried == key)
    }

    pub(crate) fn forget(&self, key: &Key) {
        self.known.lock().remove(key);
    }

    /// How much has been asked for, for [`Extensions::brought_since`].
    pub(crate) fn mark(&self) -> usize {
        self.asked.lock().len()
    }

    /// What has come of that which was asked for after a mark: it is part of who asks.
    pub(crate) fn brought_since(&self, mark: usize) -> Vec<u8> {
        let known = self.known.lock();
        let asked = self.asked.lock();
        let brought = asked.iter().skip(mark).filter_map(|asked| known.get(&asked.key));
        brought.flat_map(Message::encode_to_vec).collect()
    }

    /// What was asked for since the last call.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock())
    }
}

/// The configuration that a filter of this name has now: the one that has come, else the default; `None` is neither. One
/// that came for others and is none for this filter does not count, as in Envoy (`applyLastOrDefaultConfig`).
pub(crate) fn find(context: &Context, name: &str, value: &ExtensionConfigSource) -> Result<Option<Any>> {
    let ExtensionConfigSource {
        config_source,
        default_config,
        apply_default_config_without_warming: at_once,
        type_urls,
    } = value;
    let source = rds::source(context, required(config_source, "config_source")?);
    let (source, within) = source.in_key("config_source")?;
    if *at_once && default_config.is_none() {
        let reason = "needs default_config";
        return Err(ConfigError::field("apply_default_config_without_warming", reason));
    }
    let within = if *at_once { Some(Duration::ZERO) } else { within };
    let key = Key::new(Kind::Extension, &source, &name.into());
    context.extensions.asked.lock().push(Asked { key: key.clone(), within });
    if let Some(config) = default_config {
        of_types(name, config, type_urls).in_key("default_config")?;
    }
    let known = context.extensions.known.lock().get(&key).cloned();
    let Some(config) = known else { return Ok(default_config.clone()) };
    match of_types(name, &config, type_urls) {
        Ok(()) => {
            if let Some(config) = default_config {
                filters::check(context, name, config).in_key("default_config")?;
            }
            Ok(Some(config))
        }
        Err(error) if context.extensions.is_tried(&key) => Err(error),
        Err(error) => {
            tracing::warn!("a filter goes on as if nothing had come: {error}");
            Ok(default_config.clone())
        }
    }
}

fn of_types(name: &str, config: &Any, type_urls: &[String]) -> Result<()> {
    let found = any::type_name(config)?;
    if type_urls.iter().any(|url| any::name_of_url(url) == found) {
        return Ok(());
    }
    let reason = format!("is of type {found}, which is none of type_urls");
    Err(ConfigError::new(format!("the configuration \"{name}\" {reason}")))
}

/// A filter without a configuration answers every request with 500 (Envoy's MissingConfigFilter).
pub(crate) fn missing() -> Arc<FilterFactory> {
    static MISSING: LazyLock<Arc<FilterFactory>> = LazyLock::new(|| {
        let factory = FilterFactory::new(String::new(), None, |_, _| {
            Ok(Plugin::of(()).access(no_configuration).build())
        });
        Arc::new(factory.stateless())
    });
    MISSING.clone()
}

fn no_configuration<'a>(_: &'a (), _: &'a mut Stream, _: Slot) -> Step<'a> {
    let mut reply = LocalReply::new(500, "", "");
    reply.flag = Some(Flag::NFCF);
    Step::Respond(reply)
}
