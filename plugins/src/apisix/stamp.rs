//! Adds a header to every response.

use crate::apisix::{self, Made};
use serde::Deserialize;
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{BuildContext, Phases, Plugin, PluginFactory, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

pub(crate) fn factory() -> Arc<dyn PluginFactory> {
    // Name, priority (larger runs first), schema, and what makes an instance.
    apisix::apisix("stamp", 500, include_str!("../../schemas/stamp.json"), Stamp::make)
}

#[derive(Deserialize)]
struct Config {
    name: String,
    value: String,
}

/// Prepared when configuration arrives; requests only read it.
struct Stamp {
    name: HeaderName,
    value: Vec<u8>,
}

impl Stamp {
    fn make(config: Config, _: &BuildContext) -> Made {
        let name = HeaderName::new(&config.name).map_err(|error| format!("name: {error}"))?;
        Ok(Arc::new(Stamp { name, value: config.value.into_bytes() }))
    }
}

impl Plugin for Stamp {
    fn name(&self) -> &str {
        "stamp"
    }

    fn phases(&self) -> Phases {
        Phases::HEADER_FILTER
    }

    fn header_filter<'a>(&'a self, stream: &'a mut Stream, _slot: usize) -> Step<'a> {
        stream.response.headers.set(&self.name, &self.value);
        Step::Continue
    }
}
