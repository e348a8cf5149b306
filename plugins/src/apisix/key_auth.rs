//! APISIX's key-auth: consumers by a key in a header or in the query.

#[cfg(test)]
mod tests;

use super::authentication::{self, Authentication};
use crate::shared::header_names;
use crate::shared::query::{self, Argument};
use crate::shared::secret::{same, tag};
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::HeaderName;
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Credential, Identity, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::borrow::Cow;
use std::sync::Arc;

const NAME: &str = "key-auth";

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new(NAME, 2500, include_str!("../../schemas/key-auth.json"), KeyAuth::build).auth(
        include_str!("../../schemas/key-auth-consumer.json"),
        "key",
        credential,
    )
}

#[derive(Deserialize)]
struct OfConsumer {
    key: String,
}

fn credential(OfConsumer { key }: OfConsumer) -> Result<Credential, ConfigError> {
    Ok(Credential::new(tag(key.as_bytes()), Key(key.into_bytes().into())))
}

/// What clients show.
struct Key(Box<[u8]>);

#[derive(Deserialize)]
struct Config {
    header: String,
    query: String,
    realm: String,
    hide_credentials: bool,
    anonymous_consumer: Option<String>,
}

struct KeyAuth {
    header: HeaderName,
    query: Box<str>,
    hide_credentials: bool,
    authentication: Authentication,
}

/// Where a key stands.
#[derive(Clone, Copy)]
enum Source {
    Header,
    Query,
}

impl KeyAuth {
    fn build(config: Config, context: &BuildContext) -> Built {
        let Config { header, query, realm, hide_credentials, anonymous_consumer } = config;
        let authentication = Authentication::new(NAME, ("apikey", &realm), anonymous_consumer, context);
        let header = header_names::one(&header, "header")?;
        let plugin = KeyAuth { header, query: query.into(), hide_credentials, authentication };
        Ok(Plugin::of(plugin).rewrite(KeyAuth::rewrite).owns(authentication::owned()).build())
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let Some((key, source)) = self.key(&stream.request) else {
            return self.refuse(stream, "Missing API key in request");
        };
        let Some(identity) = key.and_then(|key| self.identity(&key)) else {
            return self.refuse(stream, "Invalid API key in request");
        };
        if self.hide_credentials {
            self.hide(&mut stream.request, source);
        }
        Authentication::accept(stream, &identity)
    }

    /// Whose key it is.
    fn identity(&self, key: &[u8]) -> Option<Arc<Identity>> {
        let found = self.authentication.find(&tag(key))?;
        let is_same = found.proof::<Key>().is_some_and(|shown| same(&shown.0, key));
        is_same.then_some(found)
    }

    /// The key, `None` for what can be none, and where it stands: the header goes before the query.
    fn key<'r>(&self, request: &'r RequestHead) -> Option<(Option<Cow<'r, [u8]>>, Source)> {
        if let Some(key) = request.headers.get(&self.header) {
            return Some((Some(key.into()), Source::Header));
        }
        match query::argument(request.target.query(), self.query.as_bytes()) {
            Argument::Absent => None,
            Argument::NoText => Some((None, Source::Query)),
            Argument::Text(key) => Some((Some(key), Source::Query)),
        }
    }

    fn hide(&self, request: &mut RequestHead, source: Source) {
        match source {
            Source::Header => {
                request.headers.remove(&self.header);
            }
            Source::Query => query::remove_argument(&mut request.target, self.query.as_bytes()),
        }
    }

    fn refuse(&self, stream: &mut Stream, message: &str) -> Step<'_> {
        if self.hide_credentials && self.authentication.lets_anybody_pass() {
            [Source::Header, Source::Query].into_iter().for_each(|of| self.hide(&mut stream.request, of));
        }
        self.authentication.refuse(stream, message)
    }
}
