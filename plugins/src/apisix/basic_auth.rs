//! APISIX's basic-auth: consumers by user and password (RFC 7617).

#[cfg(test)]
mod tests;

use super::authentication::{self, Authentication};
use crate::shared::base64;
use crate::shared::secret::{Fingerprint, same};
use serde::Deserialize;
use sixfold_core::error::ConfigError;
use sixfold_core::headers::Known;
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, Credential, Identity, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::sync::Arc;

const NAME: &str = "basic-auth";

pub(crate) fn factory() -> ApisixFactory {
    ApisixFactory::new(NAME, 2520, include_str!("../../schemas/basic-auth.json"), BasicAuth::build).auth(
        include_str!("../../schemas/basic-auth-consumer.json"),
        "username",
        credential,
    )
}

#[derive(Deserialize)]
struct OfConsumer {
    username: String,
    password: String,
}

fn credential(said: OfConsumer) -> Result<Credential, ConfigError> {
    Ok(Credential::new(said.username.into_bytes(), Fingerprint::of(said.password.as_bytes())))
}

#[derive(Deserialize)]
struct Config {
    hide_credentials: bool,
    realm: String,
    anonymous_consumer: Option<String>,
}

struct BasicAuth {
    hide_credentials: bool,
    authentication: Authentication,
}

impl BasicAuth {
    fn build(config: Config, context: &BuildContext) -> Built {
        let Config { hide_credentials, realm, anonymous_consumer } = config;
        let authentication = Authentication::new(NAME, ("Basic", &realm), anonymous_consumer, context);
        let plugin = BasicAuth { hide_credentials, authentication };
        Ok(Plugin::of(plugin).rewrite(BasicAuth::rewrite).owns(authentication::owned()).build())
    }

    fn rewrite(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
        let found = self.identity(stream.request.headers.get(Known::AUTHORIZATION));
        if self.hide_credentials {
            stream.request.headers.remove(Known::AUTHORIZATION);
        }
        match found {
            Ok(identity) => Authentication::accept(stream, &identity),
            Err(message) => self.authentication.refuse(stream, message),
        }
    }

    fn identity(&self, authorization: Option<&[u8]>) -> Result<Arc<Identity>, &'static str> {
        let authorization = authorization.ok_or("Missing authorization in request")?;
        let (user, password) = user_and_password(authorization).ok_or("Invalid authorization in request")?;
        let shown = Fingerprint::of(&password);
        let identity = self.authentication.find(&user);
        let is_right = |identity: &Arc<Identity>| {
            let known = identity.proof::<Fingerprint>();
            known.is_some_and(|known| same(known.as_bytes(), shown.as_bytes()))
        };
        identity.filter(is_right).ok_or("Invalid user authorization")
    }
}

/// The user and the password in a field as APISIX reads it: what follows the word and a blank anywhere in it, up to a
/// second colon, without any blanks.
fn user_and_password(authorization: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    const WORD: &[u8] = b"basic";
    let is_word = |at: &usize| {
        let here = authorization.get(*at..).unwrap_or_default();
        let blank = here.get(WORD.len()).is_some_and(u8::is_ascii_whitespace);
        here.len() > WORD.len() + 1
            && here.get(..WORD.len()).is_some_and(|word| word.eq_ignore_ascii_case(WORD))
            && blank
    };
    let at = (0..authorization.len()).find(is_word)?;
    let decoded = base64::decode(authorization.get(at + WORD.len() + 1..)?)?;
    let mut pieces = decoded.split(|byte| *byte == b':');
    let (user, password) = (pieces.next()?, pieces.next()?);
    let without_blanks = |text: &[u8]| -> Vec<u8> {
        text.iter().copied().filter(|byte| !byte.is_ascii_whitespace() && *byte != 0x0b).collect()
    };
    Some((without_blanks(user), without_blanks(password)))
}
