//! APISIX's cors: which origins may read responses.

#[cfg(test)]
mod tests;

use crate::shared::pattern::Pattern;
use serde::Deserialize;
use sixfold_core::error::{ConfigContext, ConfigError, collect};
use sixfold_core::headers::{HeaderName, Known};
use sixfold_core::plugin::{ApisixFactory, BuildContext, Built, LocalReply, Metadata, Plugin, Slot, Step};
use sixfold_core::stream::Stream;
use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) fn factory() -> ApisixFactory {
    let factory = ApisixFactory::new("cors", 4000, include_str!("../../schemas/cors.json"), Cors::build);
    factory.reads_metadata(include_str!("../../schemas/cors-metadata.json"), Told::of_metadata)
}

#[derive(Deserialize)]
struct Config {
    allow_origins: String,
    allow_methods: String,
    allow_headers: String,
    expose_headers: Option<String>,
    max_age: i64,
    allow_credential: bool,
    allow_origins_by_regex: Option<Vec<String>>,
    allow_origins_by_metadata: Option<Vec<String>>,
    timing_allow_origins: Option<String>,
    timing_allow_origins_by_regex: Option<Vec<String>>,
}

struct Cors {
    /// Who may read; `None` for nobody but those that the metadata allows.
    readers: Option<Origins>,
    /// Keys of the metadata whose origins may read, too.
    told: Vec<String>,
    metadata: Arc<Metadata>,
    /// Who may see how long it took.
    timing: Option<Origins>,
    /// Whether the response depends on the origin.
    varies: bool,
    /// Headers that are the same for all who may read.
    headers: Vec<(HeaderName, Vec<u8>)>,
    names: Names,
    /// Whether the headers that the client asks for are those which it may send.
    echoes_headers: bool,
}

/// `plugin_metadata`: origins by the keys that routes name.
#[derive(Deserialize)]
struct MetadataConfig {
    allow_origins: Option<BTreeMap<String, String>>,
}

/// The same, read.
struct Told(BTreeMap<String, Origins>);

/// As APISIX spells them.
struct Names {
    allow_origin: HeaderName,
    allow_headers: HeaderName,
    timing: HeaderName,
}

/// Origins that are allowed.
enum Origins {
    /// `*`
    Any,
    /// `**`: whichever asks is told that it may.
    Each,
    One(Vec<u8>),
    List(Vec<Vec<u8>>),
    Pattern(Pattern),
}

/// Where the request came from when it came: later plugins may change what the upstream gets to see.
struct Origin(Vec<u8>);

/// All methods, for `**`.
const METHODS: &str = "GET,POST,PUT,DELETE,PATCH,HEAD,OPTIONS,CONNECT,TRACE";

impl Cors {
    fn build(config: Config, context: &BuildContext) -> Built {
        config.credentials()?;
        let patterns = |list: &Option<Vec<String>>, field: &str| {
            list.as_deref().map(Origins::patterns).transpose().in_key(field)
        };
        let by_regex = patterns(&config.allow_origins_by_regex, "allow_origins_by_regex")?;
        let timing = patterns(&config.timing_allow_origins_by_regex, "timing_allow_origins_by_regex")?;
        // Next to the origins of metadata those of the route count only where they are not the default.
        let told = config.allow_origins_by_metadata.clone().unwrap_or_default();
        let only_metadata = !told.is_empty() && config.allow_origins == "*";
        let readers = by_regex.unwrap_or_else(|| Origins::new(&config.allow_origins));
        let timing = timing.or_else(|| config.timing_allow_origins.as_deref().map(Origins::new));
        let (varies, echoes_headers) = (config.allow_origins != "*", config.allow_headers == "**");
        let cors = Cors {
            readers: Some(readers).filter(|_| !only_metadata),
            told,
            metadata: context.metadata.of("cors"),
            timing,
            varies,
            headers: config.headers()?,
            names: Names {
                allow_origin: name("Access-Control-Allow-Origin")?,
                allow_headers: name("Access-Control-Allow-Headers")?,
                timing: name("Timing-Allow-Origin")?,
            },
            echoes_headers,
        };
        Ok(Plugin::of(cors).rewrite(Cors::rewrite).header_filter(Cors::header_filter).build())
    }

    fn rewrite(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        if let Some(origin) = stream.request.headers.get(Known::ORIGIN) {
            let origin = Origin(origin.to_vec());
            stream.set_state(slot, origin);
        }
        match stream.request.method == http::Method::OPTIONS {
            true => Step::Respond(LocalReply::new(200, "", "")),
            false => Step::Continue,
        }
    }

    fn header_filter(&self, stream: &mut Stream, slot: Slot) -> Step<'_> {
        let origin = stream.take_state::<Origin>(slot);
        let origin = origin.as_ref().map(|origin| origin.0.as_slice());
        let headers = &mut stream.response.headers;
        if self.varies {
            headers.push(b"Vary", b"Origin");
        }
        let by_metadata = origin.filter(|origin| self.is_told(origin));
        let allowed =
            by_metadata.or_else(|| self.readers.as_ref().and_then(|readers| readers.answer(origin)));
        if let Some(allowed) = allowed {
            headers.set(&self.names.allow_origin, allowed);
            for (name, value) in &self.headers {
                // What is empty is not sent, as in nginx.
                if value.is_empty() {
                    headers.remove(name);
                } else {
                    headers.set(name, value);
                }
            }
            if self.echoes_headers {
                match stream.request.headers.get(Known::ACCESS_CONTROL_REQUEST_HEADERS) {
                    Some(asked) => headers.set(&self.names.allow_headers, asked),
                    None => _ = headers.remove(&self.names.allow_headers),
                }
            }
        }
        if let Some(allowed) = self.timing.as_ref().and_then(|timing| timing.answer(origin)) {
            headers.set(&self.names.timing, allowed);
        }
        Step::Continue
    }
}

impl Cors {
    /// Whether the metadata allows the origin under one of the keys.
    fn is_told(&self, origin: &[u8]) -> bool {
        if self.told.is_empty() {
            return false;
        }
        let Some(metadata) = self.metadata.get::<Told>() else { return false };
        let mut told = self.told.iter().filter_map(|key| metadata.0.get(key));
        told.any(|origins| origins.answer(Some(origin)).is_some())
    }
}

impl Told {
    fn of_metadata(config: MetadataConfig) -> Result<Told, ConfigError> {
        let origins = config.allow_origins.unwrap_or_default().into_iter();
        Ok(Told(origins.map(|(key, origins)| (key, Origins::new(&origins))).collect()))
    }
}

impl Config {
    /// With credentials nothing may be left open.
    fn credentials(&self) -> Result<(), ConfigError> {
        let optional = [&self.expose_headers, &self.timing_allow_origins].into_iter().flatten();
        let mut all =
            [&self.allow_origins, &self.allow_methods, &self.allow_headers].into_iter().chain(optional);
        if self.allow_credential && all.any(|value| value == "*") {
            let reason = "you can not set '*' for other option when 'allow_credential' is true";
            return Err(ConfigError::new(reason));
        }
        Ok(())
    }

    fn headers(self) -> Result<Vec<(HeaderName, Vec<u8>)>, ConfigError> {
        let methods = if self.allow_methods == "**" { METHODS.to_owned() } else { self.allow_methods };
        let mut headers = vec![
            (name("Access-Control-Allow-Methods")?, methods.into()),
            (name("Access-Control-Max-Age")?, self.max_age.to_string().into()),
        ];
        if let Some(exposed) = self.expose_headers.filter(|exposed| !exposed.is_empty()) {
            headers.push((name("Access-Control-Expose-Headers")?, exposed.into()));
        }
        if self.allow_headers != "**" {
            headers.push((name("Access-Control-Allow-Headers")?, self.allow_headers.into()));
        }
        if self.allow_credential {
            headers.push((name("Access-Control-Allow-Credentials")?, b"true".to_vec()));
        }
        Ok(headers)
    }
}

impl Origins {
    fn new(text: &str) -> Origins {
        match text {
            "*" => Origins::Any,
            "**" => Origins::Each,
            one if !one.contains(',') => Origins::One(one.into()),
            list => Origins::List(list.split(',').filter(|one| !one.is_empty()).map(Into::into).collect()),
        }
    }

    /// Any of these patterns.
    fn patterns(list: &[String]) -> Result<Origins, ConfigError> {
        let compile = |text: &str| Pattern::new(text, "jo").map_err(ConfigError::new);
        collect(list.iter().enumerate().map(|(index, one)| compile(one).in_index(index)))?;
        compile(&list.join("|")).map(Origins::Pattern)
    }

    /// What a request of this origin is told, if it is allowed.
    fn answer<'a>(&self, origin: Option<&'a [u8]>) -> Option<&'a [u8]> {
        match self {
            Origins::Any => Some(b"*"),
            Origins::Each => Some(origin.unwrap_or(b"*")),
            Origins::One(one) => origin.filter(|origin| origin == one),
            Origins::List(list) => origin.filter(|origin| list.iter().any(|one| one == origin)),
            // A pattern that gives up does not match.
            Origins::Pattern(pattern) => origin.filter(|origin| pattern.is_match(origin).unwrap_or(false)),
        }
    }
}

fn name(text: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::as_spelled(text).map_err(|error| ConfigError::new(error.to_string()))
}
