//! What all of APISIX's authenticators do with a consumer that they have found, or not (apisix/consumer.lua).

use crate::apisix;
use sixfold_core::headers::HeaderName;
use sixfold_core::plugin::{BuildContext, Identities, Identity, LocalReply, OwnedHeaders, Step};
use sixfold_core::stream::Stream;
use std::sync::{Arc, LazyLock};

/// What upstreams are told of the consumer by.
struct Names {
    /// Which consumer it is.
    username: HeaderName,
    /// By which credential, if that is not part of the consumer itself.
    credential: HeaderName,
    /// The consumer's label `custom_id`.
    custom_id: HeaderName,
}

static NAMES: LazyLock<Option<Names>> = LazyLock::new(|| {
    let name = |text: &str| HeaderName::as_spelled(text).ok();
    Some(Names {
        username: name("X-Consumer-Username")?,
        credential: name("X-Credential-Identifier")?,
        custom_id: name("X-Consumer-Custom-ID")?,
    })
});

/// The headers by which upstreams are told who the consumer is: no client says them where somebody authenticates.
pub(crate) fn owned() -> Arc<OwnedHeaders> {
    OWNED.clone()
}

static OWNED: LazyLock<Arc<OwnedHeaders>> = LazyLock::new(|| {
    let names = NAMES.iter().flat_map(|names| [&names.username, &names.credential, &names.custom_id]);
    let lower = names.filter_map(|name| HeaderName::new(name.as_str()).ok());
    Arc::new(OwnedHeaders::new(lower.collect()))
});

/// Whom a plugin knows, and what it does with those whom it does not.
pub(crate) struct Authentication {
    identities: Arc<Identities>,
    by_name: Arc<Identities>,
    /// The consumer that everybody else is.
    anonymous: Option<Box<str>>,
    /// How clients are told to authenticate.
    challenge: String,
}

impl Authentication {
    /// Of this plugin, whose refusals have `SCHEME realm="REALM"` in WWW-Authenticate.
    pub(crate) fn new(
        plugin: &'static str,
        (scheme, realm): (&str, &str),
        anonymous_consumer: Option<String>,
        context: &BuildContext,
    ) -> Authentication {
        Authentication {
            identities: context.consumers.of(plugin),
            by_name: context.consumers.by_name().clone(),
            anonymous: anonymous_consumer.map(Into::into),
            challenge: format!("{scheme} realm=\"{realm}\""),
        }
    }

    /// Whose key it is.
    pub(crate) fn find(&self, key: &[u8]) -> Option<Arc<Identity>> {
        self.identities.find(key)
    }

    /// Whether somebody may pass without having authenticated.
    pub(crate) fn lets_anybody_pass(&self) -> bool {
        self.anonymous.is_some()
    }

    /// The request is from this consumer.
    pub(crate) fn accept<'a>(stream: &mut Stream, identity: &Identity) -> Step<'a> {
        let headers = &mut stream.request.headers;
        // Another authenticator may have said them before.
        OWNED.strip(headers);
        let consumer = &identity.consumer;
        // They are names, whatever else.
        let Some(names) = &*NAMES else { return Step::Respond(LocalReply::new(500, "", "")) };
        // None of them is there any more.
        headers.append(&names.username, consumer.name.as_bytes());
        let more = [(&names.credential, &identity.credential), (&names.custom_id, &consumer.custom_id)];
        for (name, value) in more {
            if let Some(value) = value {
                headers.append(name, value.as_bytes());
            }
        }
        Step::Identify(consumer.clone())
    }

    /// The request is from nobody, for this reason: so it is from the anonymous consumer, or refused.
    pub(crate) fn refuse<'a>(&self, stream: &mut Stream, message: &str) -> Step<'a> {
        let Some(name) = &self.anonymous else { return Step::Respond(self.refusal(message)) };
        match self.by_name.find(name.as_bytes()) {
            Some(anonymous) => Authentication::accept(stream, &anonymous),
            None => Step::Respond(self.refusal("Invalid user authorization")),
        }
    }

    fn refusal(&self, message: &str) -> LocalReply {
        let mut reply = apisix::message_reply(401, message);
        reply.headers.push(b"WWW-Authenticate", self.challenge.as_bytes());
        reply
    }
}
