//! Adds a header to every response.

use crate::shared::header_names;
use serde::Deserialize;
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Plugin, Slot, Step};
use sixfold_core::stream::Stream;

/// Name, priority (larger runs first), schema, and what makes an instance.
pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new("stamp", 500, include_str!("../../schemas/stamp.json"), Stamp::build)
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
    fn build(config: Config, _: &BuildContext) -> Built {
        let stamp = Stamp { name: header_names::one(&config.name, "name")?, value: config.value.into() };
        Ok(Plugin::of(stamp).header_filter(Stamp::mark).build())
    }

    fn mark(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        stream.response.headers.set(&self.name, &self.value);
        Step::Continue
    }
}
