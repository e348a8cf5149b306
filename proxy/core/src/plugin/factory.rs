//! What makes plugins: one kind of factory for APISIX's, one for Envoy's filters.

use super::{BuildContext, Credential, MakeEndpoint, Plugin, Prepared};
use crate::error::ConfigError;
use crate::listener::ConnectionFilter;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::any::Any;
use std::sync::Arc;

/// What building a plugin comes to. The error's field is a path inside the plugin's configuration.
pub type Built = Result<Plugin, ConfigError>;
/// A plugin that was built to work on streams of TCP and UDP.
pub type BuiltInStreams = Result<Arc<dyn ConnectionFilter>, ConfigError>;

/// The name of an agreement, and what is agreed on.
type Agreement = fn(&Value) -> Option<(String, String)>;

type ReadCredential = Box<dyn Fn(&Value) -> Result<Credential, ConfigError> + Send + Sync>;

/// An upstream that a plugin's configuration brings: APISIX's traffic-split has such.
pub struct BroughtUpstream {
    /// What its cluster is called behind the resource (`traffic-split/0/1`); the plugin finds it by
    /// [`BuildContext::brought_cluster`].
    pub name: String,
    /// Where in the plugin's configuration it stands.
    pub field: String,
    /// The upstream.
    pub config: Value,
}

/// Other words for what the schema finds wrong with a configuration.
type Words = fn(&Value, &str) -> Option<&'static str>;

type Upstreams = fn(&Value) -> Vec<BroughtUpstream>;

type ReadMetadata = Box<dyn Fn(&Value) -> Result<Prepared, ConfigError> + Send + Sync>;

type BuildStream = Box<dyn Fn(&Value, &BuildContext) -> BuiltInStreams + Send + Sync>;

/// What a plugin of APISIX is for streams of TCP and UDP (apisix/stream/plugins).
pub struct StreamPart {
    /// Schema of the configuration there.
    pub schema: &'static str,
    /// Whether it only looks on: then it hears of every connection, also of one that another plugin ends at its beginning.
    pub looks_on: bool,
    build: BuildStream,
}

impl StreamPart {
    /// An instance from a configuration that the schema has accepted and filled with defaults.
    ///
    /// # Errors
    /// What is wrong beyond the schema.
    pub fn build(&self, config: &Value, context: &BuildContext) -> BuiltInStreams {
        (self.build)(config, context)
    }
}

type BuildApisix = Box<dyn Fn(&Value, &BuildContext) -> Built + Send + Sync>;

/// Makes one of APISIX's plugins. Everything but how it is built is data, as APISIX's plugin modules have it.
pub struct ApisixFactory {
    /// The plugin's name.
    pub name: &'static str,
    /// APISIX's constant: larger runs first.
    pub priority: i64,
    /// Schema (draft-07) of the configuration, as the Admin API serves it. Validation fills in its defaults, and
    /// that is the one place where they stand.
    pub schema: &'static str,
    /// Schema of what a consumer says of the plugin: the credentials of one that authenticates.
    pub consumer_schema: Option<&'static str>,
    /// Schema of `plugin_metadata`.
    pub metadata_schema: Option<&'static str>,
    /// What sort of plugin it is.
    pub kind: Kind,
    /// Whether it runs for a global rule and for a route.
    pub run_policy: RunPolicy,
    /// The field of the consumer's part that it is found by; empty for a plugin that does not authenticate.
    pub found_by: &'static str,
    /// What makes its endpoint, if it brings one.
    pub(super) endpoint: Option<MakeEndpoint>,
    /// What it is for streams of TCP and UDP; `None` for most.
    pub streams: Option<StreamPart>,
    /// Whether it looks for the endpoints of other plugins.
    pub reads_endpoints: bool,
    agreement: Option<Agreement>,
    words: Option<Words>,
    upstreams: Option<Upstreams>,
    credential: Option<ReadCredential>,
    read_metadata: Option<ReadMetadata>,
    build: BuildApisix,
}

/// What sort of plugin one of APISIX is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No particular one.
    Plain,
    /// It authenticates (`type = "auth"`): its part of a consumer is credentials and not a plugin to run.
    Auth,
}

/// What happens when a global rule and the route both have a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunPolicy {
    /// Both run.
    Both,
    /// The route's alone runs (`run_policy = "prefer_route"`).
    PreferRoute,
}

impl ApisixFactory {
    /// A plain plugin that `build` makes of its configuration, which the schema has accepted and completed.
    pub fn new<C: DeserializeOwned + 'static>(
        name: &'static str,
        priority: i64,
        schema: &'static str,
        build: fn(C, &BuildContext) -> Built,
    ) -> ApisixFactory {
        let build = move |config: &Value, context: &BuildContext| {
            build(C::deserialize(config).map_err(|error| ConfigError::new(error.to_string()))?, context)
        };
        ApisixFactory {
            name,
            priority,
            schema,
            consumer_schema: None,
            metadata_schema: None,
            kind: Kind::Plain,
            run_policy: RunPolicy::Both,
            found_by: "",
            endpoint: None,
            streams: None,
            reads_endpoints: false,
            agreement: None,
            words: None,
            upstreams: None,
            credential: None,
            read_metadata: None,
            build: Box::new(build),
        }
    }

    /// Makes it one that authenticates, by credentials of this schema in which consumers are told apart by the field
    /// `found_by`; `read` makes of one that the schema has accepted what requests are held against.
    #[must_use]
    pub fn auth<C: DeserializeOwned + 'static>(
        mut self,
        consumer_schema: &'static str,
        found_by: &'static str,
        read: fn(C) -> Result<Credential, ConfigError>,
    ) -> ApisixFactory {
        (self.kind, self.consumer_schema, self.found_by) = (Kind::Auth, Some(consumer_schema), found_by);
        self.credential = Some(Box::new(move |config| {
            read(C::deserialize(config).map_err(|error| ConfigError::new(error.to_string()))?)
        }));
        self
    }

    /// What a consumer says of the plugin, as the consumer's schema has accepted and completed it.
    ///
    /// # Errors
    /// What is wrong beyond the schema, or that the plugin does not authenticate.
    pub fn credential(&self, config: &Value) -> Result<Credential, ConfigError> {
        match &self.credential {
            Some(read) => read(config),
            None => Err(ConfigError::new("does not authenticate")),
        }
    }

    /// Has `plugin_metadata` of this schema be right, for a plugin that has no use for any.
    #[must_use]
    pub fn metadata(mut self, schema: &'static str) -> ApisixFactory {
        self.metadata_schema = Some(schema);
        self
    }

    /// Lets it be configured by `plugin_metadata` of this schema too. What `read` makes of one that the schema has accepted
    /// is what instances see in [`BuildContext::metadata`].
    #[must_use]
    pub fn reads_metadata<C: DeserializeOwned + 'static, T: Any + Send + Sync>(
        mut self,
        schema: &'static str,
        read: fn(C) -> Result<T, ConfigError>,
    ) -> ApisixFactory {
        self.metadata_schema = Some(schema);
        self.read_metadata = Some(Box::new(move |metadata| {
            let metadata = C::deserialize(metadata).map_err(|error| ConfigError::new(error.to_string()))?;
            Ok(Arc::new(read(metadata)?))
        }));
        self
    }

    /// What the plugin makes of metadata that its schema has accepted; `None` if it has no use for any.
    ///
    /// # Errors
    /// What is wrong beyond the schema.
    pub fn read_metadata(&self, metadata: &Value) -> Result<Option<Prepared>, ConfigError> {
        self.read_metadata.as_ref().map(|read| read(metadata)).transpose()
    }

    /// Has it bring an endpoint for the whole gateway, which public-api makes reachable.
    #[must_use]
    pub fn endpoint(mut self, make: MakeEndpoint) -> ApisixFactory {
        self.endpoint = Some(make);
        self
    }

    /// Keeps the one of a global rule from running where the route has its own.
    #[must_use]
    pub fn prefer_route(mut self) -> ApisixFactory {
        self.run_policy = RunPolicy::PreferRoute;
        self
    }

    /// Has it work on streams of TCP and UDP too, by configurations of this schema.
    #[must_use]
    pub fn in_streams<C: DeserializeOwned + 'static>(
        mut self,
        schema: &'static str,
        build: fn(C, &BuildContext) -> BuiltInStreams,
    ) -> ApisixFactory {
        let build: BuildStream = Box::new(move |config, context| {
            build(C::deserialize(config).map_err(|error| ConfigError::new(error.to_string()))?, context)
        });
        self.streams = Some(StreamPart { schema, looks_on: false, build });
        self
    }

    /// Has it hear of every stream, whatever other plugins do with it; behind [`ApisixFactory::in_streams`].
    #[must_use]
    pub fn looking_on(mut self) -> ApisixFactory {
        if let Some(part) = &mut self.streams {
            part.looks_on = true;
        }
        self
    }

    /// Has it be built anew when the endpoints of other plugins change.
    #[must_use]
    pub fn reading_endpoints(mut self) -> ApisixFactory {
        self.reads_endpoints = true;
        self
    }

    /// Has all resources with this plugin agree on something, as limit-count's groups do on their limits.
    #[must_use]
    pub fn agreeing(mut self, on: fn(&Value) -> Option<(String, String)>) -> ApisixFactory {
        self.agreement = Some(on);
        self
    }

    /// Says some of what its schema finds wrong in its own words, as some plugins of APISIX do: `words` gets the whole
    /// configuration and the fault.
    #[must_use]
    pub fn worded(mut self, words: fn(&Value, &str) -> Option<&'static str>) -> ApisixFactory {
        self.words = Some(words);
        self
    }

    /// The plugin's own words for what the schema has found wrong with a configuration.
    pub fn words(&self, config: &Value, fault: &str) -> Option<&'static str> {
        self.words.and_then(|words| words(config, fault))
    }

    /// Has its configuration bring upstreams: they become clusters of the resource.
    #[must_use]
    pub fn bringing(mut self, upstreams: fn(&Value) -> Vec<BroughtUpstream>) -> ApisixFactory {
        self.upstreams = Some(upstreams);
        self
    }

    /// Whether configurations may bring or name upstreams, which only APISIX's resources know.
    pub fn needs_upstreams(&self) -> bool {
        self.upstreams.is_some()
    }

    /// The upstreams that a configuration brings.
    pub fn upstreams(&self, config: &Value) -> Vec<BroughtUpstream> {
        self.upstreams.map(|upstreams| upstreams(config)).unwrap_or_default()
    }

    /// What every resource that has this plugin must have in common with others: the name of the agreement, and
    /// what is agreed on. A resource that differs from those of its name is refused.
    pub fn agreement(&self, config: &Value) -> Option<(String, String)> {
        self.agreement.and_then(|agreement| agreement(config))
    }

    /// An instance from a configuration that the schema has accepted and filled with defaults.
    ///
    /// # Errors
    /// What is wrong beyond the schema.
    pub fn build(&self, config: &Value, context: &BuildContext) -> Built {
        (self.build)(config, context)
    }
}

/// The bytes of a configuration and of the overrides for one route, the least specific first.
#[derive(Clone, Copy, Default)]
pub struct FilterConfig<'a> {
    /// Of the connection manager's list.
    pub config: &'a [u8],
    /// Of route table, virtual host, route, weighted cluster.
    pub overrides: &'a [&'a [u8]],
    /// Whether a level more specific than the last of them says something of another filter's type. Only told to a filter
    /// that [reads all levels](FilterFactory::reads_all_levels).
    pub superseded: bool,
}

type BuildFilter = Box<dyn Fn(&FilterConfig<'_>, &BuildContext) -> Built + Send + Sync>;

/// Makes one of Envoy's HTTP filters.
pub struct FilterFactory {
    /// Full name of the message that configures it: `envoy.extensions.filters.http.cors.v3.Cors`.
    pub config_type: String,
    /// Full name of the message that overrides it for a route; `None` if routes can only say whether it runs.
    pub override_type: Option<String>,
    /// Whether an instance may serve several connection managers. Envoy gives each its own, and by default so do we:
    /// what one keeps, as the tokens of a rate limit, no other shall see.
    pub stateless: bool,
    /// Whether its configuration is no message but JSON in a `TypedStruct`: what it gets is the text.
    pub json: bool,
    /// Whether each virtual host and route with settings has an instance of its own, however equal they are.
    pub told_apart: bool,
    /// Whether it reads every level with settings of its type. Of any other the most specific level that says something under
    /// its name counts alone: settings of another filter's type there leave it with none.
    pub reads_all_levels: bool,
    /// The configuration of its own with which settings of routes are looked at by themselves.
    stand_in: Vec<u8>,
    build: BuildFilter,
}

impl FilterFactory {
    /// A filter that `build` makes of messages of these types; of one without the second routes can only say whether it
    /// runs.
    pub fn new(
        config_type: String,
        override_type: impl Into<Option<String>>,
        build: impl Fn(&FilterConfig<'_>, &BuildContext) -> Built + Send + Sync + 'static,
    ) -> FilterFactory {
        FilterFactory {
            config_type,
            override_type: override_type.into(),
            stateless: false,
            json: false,
            told_apart: false,
            reads_all_levels: false,
            stand_in: Vec::new(),
            build: Box::new(build),
        }
    }

    /// Says that it keeps nothing from one request to the next and counts nothing under the name of its connection
    /// manager: those with equal filters may share its instances, and so their route tables.
    #[must_use]
    pub fn stateless(mut self) -> FilterFactory {
        self.stateless = true;
        self
    }

    /// Says that its configuration has no message: it comes as a `TypedStruct` of this type and is handed on as the text
    /// of its JSON.
    #[must_use]
    pub fn json(mut self) -> FilterFactory {
        self.json = true;
        self.stand_in = b"{}".to_vec();
        self
    }

    /// Gives each virtual host and route that has settings an instance of its own: what one counts, another one with equal
    /// settings does not. Its [`BuildContext::resource`] says whose it is.
    #[must_use]
    pub fn told_apart(mut self) -> FilterFactory {
        self.told_apart = true;
        self
    }

    /// Says that it looks at all levels that have settings of its type, as those of Envoy's filters do that ask for all
    /// (`getAllPerFilterConfig`) and not for the most specific (`resolveMostSpecificPerFilterConfig`).
    #[must_use]
    pub fn reads_all_levels(mut self) -> FilterFactory {
        self.reads_all_levels = true;
        self
    }

    /// Gives the encoded configuration of its own with which settings of routes are looked at by themselves, of a filter that
    /// can't be built with an empty one.
    #[must_use]
    pub fn standing_in(mut self, config: Vec<u8>) -> FilterFactory {
        self.stand_in = config;
        self
    }

    /// Looks at the settings of one level of routes, encoded, whatever the filter's own configuration is and whether the
    /// listener has the filter: Envoy finds who reads settings by their type alone (`createRouteSpecificFilterConfig`).
    ///
    /// # Errors
    /// What is wrong with the settings themselves.
    pub fn check_settings(&self, settings: &[u8], context: &BuildContext) -> Result<(), ConfigError> {
        let given = FilterConfig { config: &self.stand_in, overrides: &[settings], superseded: false };
        self.build(&given, context).map(drop)
    }

    /// An instance for one route.
    ///
    /// # Errors
    /// A message that can't be decoded, or what is wrong with what it says.
    pub fn build(&self, config: &FilterConfig<'_>, context: &BuildContext) -> Built {
        (self.build)(config, context)
    }
}

type BuildNetworkFilter = Box<dyn Fn(&[u8], &BuildContext) -> BuiltInStreams + Send + Sync>;

/// Makes one of Envoy's network filters that stand before the last one of their chain.
pub struct NetworkFilterFactory {
    /// Full name of the message that configures it: `envoy.extensions.filters.network.ext_authz.v3.ExtAuthz`.
    pub config_type: String,
    build: BuildNetworkFilter,
}

impl NetworkFilterFactory {
    /// A filter that `build` makes of an encoded message of this type.
    pub fn new(
        config_type: String,
        build: impl Fn(&[u8], &BuildContext) -> BuiltInStreams + Send + Sync + 'static,
    ) -> NetworkFilterFactory {
        NetworkFilterFactory { config_type, build: Box::new(build) }
    }

    /// An instance for the connections of one chain.
    ///
    /// # Errors
    /// A message that can't be decoded, or what is wrong with what it says.
    pub fn build(&self, config: &[u8], context: &BuildContext) -> BuiltInStreams {
        (self.build)(config, context)
    }
}
