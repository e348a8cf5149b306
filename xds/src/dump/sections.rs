//! The messages of a dump, each with its lists.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::{Message, Name};
use sixfold_xds_api::any;
use sixfold_xds_api::json::print::{Mask, Pretty};
use sixfold_xds_api::pb::envoy::admin::v3::clusters_config_dump::{DynamicCluster, StaticCluster};
use sixfold_xds_api::pb::envoy::admin::v3::ecds_config_dump::EcdsFilterConfig;
use sixfold_xds_api::pb::envoy::admin::v3::endpoints_config_dump::{
    DynamicEndpointConfig, StaticEndpointConfig,
};
use sixfold_xds_api::pb::envoy::admin::v3::listeners_config_dump::{
    DynamicListener, DynamicListenerState, StaticListener,
};
use sixfold_xds_api::pb::envoy::admin::v3::routes_config_dump::{DynamicRouteConfig, StaticRouteConfig};
use sixfold_xds_api::pb::envoy::admin::v3::secrets_config_dump::{DynamicSecret, StaticSecret};
use sixfold_xds_api::pb::envoy::admin::v3::{BootstrapConfigDump, UpdateFailureState};
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use sixfold_xds_api::pb::google::protobuf::{Any, Timestamp};

use super::bootstrap::Part;
use super::{Dump, Shown, URL, endpoints};
use crate::ads::{Key, Kind};
use crate::tracker::{Draining, Refusal, Sent, Tracked};

const MANAGER: &str = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
/// Field numbers of `filter_chains.filters.typed_config` and of `default_filter_chain.filters.typed_config`.
const FILTERS: [[u32; 3]; 2] = [[3, 3, 4], [25, 3, 4]];
/// Field number of `route_config` of a connection manager.
const ROUTE_CONFIG: u32 = 4;

/// Encodes an element of a list when its turn has come.
pub(super) type Item = Box<dyn Fn() -> Vec<u8> + Send>;

/// Whether a resource of that name is to be shown.
type Wanted<'a> = &'a dyn Fn(&str) -> bool;

/// A message of a dump.
pub(super) struct Section {
    /// Its type.
    pub(super) kind: &'static str,
    /// `version_info`
    version: String,
    lists: Vec<List>,
    /// The whole message, where it is not made of lists.
    whole: Option<Item>,
}

struct List {
    field: &'static str,
    /// The type of its elements.
    kind: String,
    items: Vec<Item>,
}

impl List {
    fn of<M: Name>(field: &'static str, items: Vec<Item>) -> List {
        List { field, kind: M::full_name(), items }
    }
}

impl Section {
    fn of(kind: &'static str, version: String, lists: Vec<List>) -> Section {
        Section { kind, version, lists, whole: None }
    }

    /// Endpoints of clusters of the bootstrap and of others.
    pub(super) fn of_endpoints(fixed: Vec<Item>, dynamic: Vec<Item>) -> Section {
        let lists = vec![
            List::of::<StaticEndpointConfig>("static_endpoint_configs", fixed),
            List::of::<DynamicEndpointConfig>("dynamic_endpoint_configs", dynamic),
        ];
        Section::of("envoy.admin.v3.EndpointsConfigDump", String::new(), lists)
    }

    pub(super) fn is_endpoints(&self) -> bool {
        self.kind == "envoy.admin.v3.EndpointsConfigDump"
    }

    /// The type of the elements of a list, if there is one of that name.
    pub(super) fn list_of(&self, field: &str) -> Option<String> {
        self.lists.iter().find(|list| list.field == field).map(|list| list.kind.clone())
    }

    /// The elements of a list.
    pub(super) fn take(&mut self, field: &str) -> Vec<Item> {
        let list = self.lists.iter_mut().find(|list| list.field == field);
        list.map(|list| std::mem::take(&mut list.items)).unwrap_or_default()
    }

    /// The message, of it what the mask shows.
    pub(super) fn write(self, out: &mut Pretty<'_>, mask: &Mask) -> io::Result<()> {
        let url = format!("{URL}{}", self.kind);
        if let Some(whole) = self.whole {
            return out.any(&url, &whole(), mask);
        }
        out.open_object()?;
        out.key("@type")?;
        out.text(&url)?;
        if !self.version.is_empty() && mask.of("version_info").is_some() {
            out.key("version_info")?;
            out.text(&self.version)?;
        }
        for List { field, kind, items } in self.lists {
            let Some(mask) = mask.of(field).filter(|_| !items.is_empty()) else { continue };
            out.key(field)?;
            out.open_array()?;
            for item in items {
                out.item()?;
                out.message(&kind, &item(), mask)?;
            }
            out.close_array()?;
        }
        out.close_object()
    }
}

impl Dump {
    /// All there is, in Envoy's order.
    pub(super) fn sections(&self, wanted: Wanted<'_>) -> Vec<Section> {
        let mut sections =
            vec![self.bootstrap(), self.clusters(wanted), endpoints::section(&self.clusters, wanted)];
        let extensions = self.tracker.of(Kind::Extension);
        if !extensions.is_empty() {
            sections.insert(2, ecds(extensions, wanted));
        }
        let scoped = Section::of(
            "envoy.admin.v3.ScopedRoutesConfigDump",
            String::new(),
            vec![
                List { field: "inline_scoped_route_configs", kind: String::new(), items: Vec::new() },
                List { field: "dynamic_scoped_route_configs", kind: String::new(), items: Vec::new() },
            ],
        );
        sections.extend([self.listeners(wanted), scoped, self.routes(wanted), self.secrets(wanted)]);
        sections
    }

    fn bootstrap(&self) -> Section {
        let Shown { encoded, at } = self.bootstrap.clone();
        let whole: Item = Box::new(move || {
            let mut out = Vec::with_capacity(encoded.len() + 32);
            prost::encoding::bytes::encode(1, &encoded.to_vec(), &mut out);
            let rest = BootstrapConfigDump { bootstrap: None, last_updated: Some(timestamp(at)) };
            out.extend(rest.encode_to_vec());
            out
        });
        let kind = "envoy.admin.v3.BootstrapConfigDump";
        Section { whole: Some(whole), ..Section::of(kind, String::new(), Vec::new()) }
    }

    fn clusters(&self, wanted: Wanted<'_>) -> Section {
        let at = self.bootstrap.at;
        let fixed = named(self.bootstrap.clusters(), wanted).map(|part| {
            item(move || StaticCluster {
                cluster: Some(held(Kind::Cluster, part.bytes())),
                last_updated: Some(timestamp(at)),
            })
        });
        let (mut active, mut warming) = (Vec::new(), Vec::new());
        for (key, Tracked { active: live, waiting, refused }) in self.of(Kind::Cluster, wanted) {
            // What could not be taken is told beside what is in force, or else beside what waits.
            let refused = refused.map(Arc::new);
            let cluster = |sent: Option<Sent>, refused: Option<Arc<Refusal>>| {
                item(move || DynamicCluster {
                    version_info: version(&sent),
                    cluster: sent.as_ref().map(|sent| held(Kind::Cluster, &sent.value)),
                    last_updated: sent.as_ref().map(|sent| timestamp(sent.at)),
                    error_state: refused.as_deref().map(|refused| failure(Kind::Cluster, refused)),
                    client_status: 0,
                })
            };
            let is_cold = self.transient.warming_clusters.contains(&key.name);
            let is_alone = waiting.is_none();
            if let Some(waiting) = waiting {
                warming.push(cluster(Some(waiting), refused.clone().filter(|_| live.is_none())));
            }
            match live {
                Some(live) if is_cold && is_alone => warming.push(cluster(Some(live), refused)),
                Some(live) => active.push(cluster(Some(live), refused)),
                None if is_alone => active.extend(refused.map(|refused| cluster(None, Some(refused)))),
                None => {}
            }
        }
        let lists = vec![
            List::of::<StaticCluster>("static_clusters", fixed.collect()),
            List::of::<DynamicCluster>("dynamic_active_clusters", active),
            List::of::<DynamicCluster>("dynamic_warming_clusters", warming),
        ];
        Section::of("envoy.admin.v3.ClustersConfigDump", self.tracker.version(Kind::Cluster), lists)
    }

    fn listeners(&self, wanted: Wanted<'_>) -> Section {
        let at = self.bootstrap.at;
        let fixed = named(self.bootstrap.listeners(), wanted).map(|part| {
            item(move || StaticListener {
                listener: Some(held(Kind::Listener, part.bytes())),
                last_updated: Some(timestamp(at)),
            })
        });
        let state = |sent: &Sent| DynamicListenerState {
            version_info: sent.version.to_string(),
            listener: Some(held(Kind::Listener, &sent.value)),
            last_updated: Some(timestamp(sent.at)),
        };
        let mut draining: BTreeMap<Arc<str>, Sent> =
            self.tracker.draining().into_iter().map(|Draining { name, sent, .. }| (name, sent)).collect();
        let mut all: Vec<_> = self.tracker.of(Kind::Listener);
        let left: Vec<_> =
            draining.keys().filter(|name| !all.iter().any(|(key, _)| key.name == **name)).collect();
        let left: Vec<_> = left.into_iter().map(|name| Key::of_name(Kind::Listener, name)).collect();
        all.extend(left.into_iter().map(|key| (key, Tracked::default())));
        all.retain(|(key, _)| wanted(&key.name));
        let dynamic = all.into_iter().map(|(key, tracked)| {
            let draining = draining.remove(&key.name);
            let Tracked { active, waiting, refused } = tracked;
            let is_cold = self.transient.warming_listeners.contains(&key.name);
            let (active, waiting) = match (active, waiting) {
                (Some(cold), None) if is_cold => (None, Some(cold)),
                states => states,
            };
            item(move || DynamicListener {
                name: key.name.to_string(),
                active_state: active.as_ref().map(state),
                warming_state: waiting.as_ref().map(state),
                draining_state: draining.as_ref().map(state),
                error_state: refused.as_ref().map(|refused| failure(Kind::Listener, refused)),
                client_status: 0,
            })
        });
        let lists = vec![
            List::of::<StaticListener>("static_listeners", fixed.collect()),
            List::of::<DynamicListener>("dynamic_listeners", dynamic.collect()),
        ];
        Section::of("envoy.admin.v3.ListenersConfigDump", self.tracker.version(Kind::Listener), lists)
    }

    fn routes(&self, wanted: Wanted<'_>) -> Section {
        let mut fixed = Vec::new();
        let mut add = |listener: Part, at: SystemTime| {
            for routes in inline_routes(&listener).into_iter().filter(|routes| wanted(routes.text(1))) {
                fixed.push(item(move || StaticRouteConfig {
                    route_config: Some(held(Kind::Routes, routes.bytes())),
                    last_updated: Some(timestamp(at)),
                }));
            }
        };
        self.bootstrap.listeners().into_iter().for_each(|listener| add(listener, self.bootstrap.at));
        for (_, tracked) in self.of(Kind::Listener, &|_| true) {
            tracked.active.into_iter().for_each(|sent| add(Part::whole(sent.value), sent.at));
        }
        let dynamic = self.of(Kind::Routes, wanted).map(|(_, tracked)| {
            let Tracked { active, waiting, refused } = tracked;
            let sent = active.or(waiting);
            item(move || DynamicRouteConfig {
                version_info: version(&sent),
                route_config: sent.as_ref().map(|sent| held(Kind::Routes, &sent.value)),
                last_updated: sent.as_ref().map(|sent| timestamp(sent.at)),
                error_state: refused.as_ref().map(|refused| failure(Kind::Routes, refused)),
                client_status: 0,
            })
        });
        let lists = vec![
            List::of::<StaticRouteConfig>("static_route_configs", fixed),
            List::of::<DynamicRouteConfig>("dynamic_route_configs", dynamic.collect()),
        ];
        Section::of("envoy.admin.v3.RoutesConfigDump", String::new(), lists)
    }

    fn secrets(&self, wanted: Wanted<'_>) -> Section {
        let fixed = named(self.bootstrap.secrets(), wanted).map(|part| {
            item(move || StaticSecret {
                name: part.text(1).to_owned(),
                last_updated: None,
                secret: Some(held(Kind::Secret, part.bytes())),
            })
        });
        let tracked = self.tracker.of(Kind::Secret).into_iter();
        let mut tracked: BTreeMap<_, _> =
            tracked.map(|(key, tracked)| ((key.source, key.name), tracked)).collect();
        let (mut active, mut warming) = (Vec::new(), Vec::new());
        let named = self.secrets.shown().into_iter().filter(|(key, _)| wanted(&key.name));
        for (key, come) in named {
            let of_key = tracked.remove(&(key.source.clone(), key.name.clone()));
            let Tracked { active: sent, waiting: _, refused } = of_key.unwrap_or_default();
            let is_there = come.is_some();
            let secret = item(move || {
                let empty = || Secret { name: key.name.to_string(), ..Secret::default() }.encode_to_vec();
                let value = match (&sent, &come) {
                    (Some(sent), _) => sent.value.to_vec(),
                    (None, Some(come)) => come.encode_to_vec(),
                    (None, None) => empty(),
                };
                DynamicSecret {
                    name: key.name.to_string(),
                    version_info: if is_there { version(&sent) } else { "uninitialized".to_owned() },
                    last_updated: sent.as_ref().map(|sent| timestamp(sent.at)),
                    secret: Some(held(Kind::Secret, &value)),
                    error_state: refused.as_ref().map(|refused| failure(Kind::Secret, refused)),
                    client_status: 0,
                }
            });
            if is_there { active.push(secret) } else { warming.push(secret) }
        }
        let lists = vec![
            List::of::<StaticSecret>("static_secrets", fixed.collect()),
            List::of::<DynamicSecret>("dynamic_active_secrets", active),
            List::of::<DynamicSecret>("dynamic_warming_secrets", warming),
        ];
        Section::of("envoy.admin.v3.SecretsConfigDump", String::new(), lists)
    }

    fn of<'a>(
        &self,
        kind: Kind,
        wanted: &'a dyn Fn(&str) -> bool,
    ) -> impl Iterator<Item = (Key, Tracked)> + 'a {
        self.tracker.of(kind).into_iter().filter(|(key, _)| wanted(&key.name))
    }
}

fn ecds(extensions: Vec<(Key, Tracked)>, wanted: Wanted<'_>) -> Section {
    let filters = extensions.into_iter().filter(|(key, _)| wanted(&key.name)).map(|(_, tracked)| {
        let Tracked { active, waiting, refused } = tracked;
        let sent = active.or(waiting);
        item(move || EcdsFilterConfig {
            version_info: version(&sent),
            ecds_filter: sent.as_ref().map(|sent| held(Kind::Extension, &sent.value)),
            last_updated: sent.as_ref().map(|sent| timestamp(sent.at)),
            error_state: refused.as_ref().map(|refused| failure(Kind::Extension, refused)),
            client_status: 0,
        })
    });
    let lists = vec![List::of::<EcdsFilterConfig>("ecds_filters", filters.collect())];
    Section::of("envoy.admin.v3.EcdsConfigDump", String::new(), lists)
}

/// Resources that are wanted by the name in their first field.
fn named(parts: Vec<Part>, wanted: Wanted<'_>) -> impl Iterator<Item = Part> {
    parts.into_iter().filter(move |part| wanted(part.text(1)))
}

/// The route configurations that a listener brings itself.
fn inline_routes(listener: &Part) -> Vec<Part> {
    let filters = FILTERS.iter().flat_map(|path| listener.messages(path));
    let of_manager = |filter: Part| {
        let url = filter.text(1);
        if any::name_of_url(url) == MANAGER {
            return filter.messages(&[2, ROUTE_CONFIG]);
        }
        // A `TypedStruct` of it.
        let decoded = Any::decode(filter.bytes()).ok();
        match decoded.as_ref().map(any::resolve) {
            Some(Ok((kind, bytes))) if kind == MANAGER => {
                Part::whole(bytes.as_ref().into()).messages(&[ROUTE_CONFIG])
            }
            _ => Vec::new(),
        }
    };
    filters.flat_map(of_manager).collect()
}

/// An element that is made when its turn has come.
fn item<M: Message + 'static>(make: impl Fn() -> M + Send + 'static) -> Item {
    Box::new(move || make().encode_to_vec())
}

fn version(sent: &Option<Sent>) -> String {
    sent.as_ref().map(|sent| sent.version.to_string()).unwrap_or_default()
}

fn held(kind: Kind, value: &[u8]) -> Any {
    Any { type_url: kind.type_url().to_owned(), value: value.to_vec() }
}

fn failure(kind: Kind, refused: &Refusal) -> UpdateFailureState {
    UpdateFailureState {
        failed_configuration: refused.value.as_deref().map(|value| held(kind, value)),
        last_update_attempt: Some(timestamp(refused.at)),
        details: refused.reason.clone(),
        version_info: refused.version.to_string(),
    }
}

/// To the millisecond, as Envoy has it.
fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, nanos) = (since.as_secs() as i64, (since.subsec_millis() * 1_000_000) as i32);
    Timestamp { seconds, nanos }
}
