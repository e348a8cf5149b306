//! What the workloads of an Istio mesh tell each other of themselves (contrib/istio/filters/common/source/metadata_object.cc).

use serde_json::{Map, Value};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, OnceLock};

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";
const APP: [&str; 2] = ["app.kubernetes.io/name", "app"];
const VERSION: [&str; 2] = ["app.kubernetes.io/version", "version"];

/// Kinds of workloads, by the word for them in `OWNER`.
const KINDS: [&str; 4] = ["pod", "deployment", "job", "cronjob"];

/// A workload of a mesh. What is not known is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Name of the pod (`NAME`).
    pub instance: Box<str>,
    /// `CLUSTER_ID`
    pub cluster: Box<str>,
    /// `NAMESPACE`
    pub namespace: Box<str>,
    /// `WORKLOAD_NAME`
    pub workload: Box<str>,
    /// `pod`, `deployment`, `job` or `cronjob`, from `OWNER`; `None` for others.
    pub kind: Option<&'static str>,
    /// Label `service.istio.io/canonical-name`.
    pub service: Box<str>,
    /// Label `service.istio.io/canonical-revision`.
    pub revision: Box<str>,
    /// Label `app.kubernetes.io/name`, else `app`.
    pub app: Box<str>,
    /// Label `app.kubernetes.io/version`, else `version`.
    pub version: Box<str>,
    /// `IDENTITY`
    pub identity: Box<str>,
    /// `REGION`
    pub region: Box<str>,
    /// `AVAILABILITY_ZONE`
    pub zone: Box<str>,
    /// Further labels that the configuration asks for (`additional_labels`), sorted.
    pub labels: Vec<(Box<str>, Box<str>)>,
}

/// What is told of a workload, in the order of the keys.
pub struct Told<'w> {
    /// Texts.
    pub texts: Vec<(&'static str, String)>,
    /// Labels, which are under a key of their own (`LABELS`).
    pub labels: Vec<(&'w str, &'w str)>,
}

/// A peer as it was told of.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Stands for all that is told of it, over all threads of this process ([`identity`]).
    pub number: u64,
    /// Who it is.
    pub workload: Arc<Workload>,
}

impl Peer {
    /// The peer that is this workload.
    pub fn new(workload: Workload) -> Peer {
        Peer { number: identity(&workload), workload: Arc::new(workload) }
    }
}

/// A number that stands for a value in keys of statistics: equal values have the same one, and nobody outside of the process can
/// look for two that meet.
pub fn identity(value: &impl Hash) -> u64 {
    static SECRET: OnceLock<RandomState> = OnceLock::new();
    SECRET.get_or_init(RandomState::new).hash_one(value)
}

/// The peers of one request or connection, as far as they have told who they are.
#[derive(Debug, Clone, Default)]
pub struct Peers {
    /// Who calls (`downstream_peer`).
    pub downstream: Option<Peer>,
    /// Who is called (`upstream_peer`).
    pub upstream: Option<Peer>,
    /// What the caller has sent, and so gets of us in its turn.
    pub sent: Sent,
    /// Who has agreed to tell and has not done so yet.
    pub awaited: Awaited,
}

/// Those of the two peers who are about to tell who they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Awaited {
    /// Who calls.
    pub downstream: bool,
    /// Who is called.
    pub upstream: bool,
}

/// Which of the two headers of a peer were there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// `x-envoy-peer-metadata-id`
    pub id: bool,
    /// `x-envoy-peer-metadata`
    pub metadata: bool,
}

impl Peers {
    /// The peer that is an object of Envoy's filter state under this key: `downstream_peer`, `upstream_peer`, or one of them
    /// with `_obj` behind.
    pub fn named(&self, key: &str) -> Option<&Workload> {
        let peer = match key.strip_suffix("_obj").unwrap_or(key) {
            "downstream_peer" => &self.downstream,
            "upstream_peer" => &self.upstream,
            _ => return None,
        };
        peer.as_ref().map(|peer| &*peer.workload)
    }
}

impl Workload {
    /// Of a node's metadata, or of what a peer has sent of it; `additional` are the labels that are kept beside Istio's own.
    pub fn of_metadata(metadata: &Map<String, Value>, additional: &[Box<str>]) -> Workload {
        let text = |name: &str| text_of(metadata.get(name));
        let labels = metadata.get("LABELS").and_then(Value::as_object);
        let label = |name: &str| text_of(labels.and_then(|labels| labels.get(name)));
        let first = |names: [&str; 2]| match label(names[0]) {
            "" => label(names[1]),
            text => text,
        };
        let own = |name: &str| {
            [CANONICAL_NAME, CANONICAL_REVISION].contains(&name)
                || APP.contains(&name)
                || VERSION.contains(&name)
        };
        let asked = additional.iter().filter(|name| !own(name));
        let there = asked.filter(|name| labels.is_some_and(|labels| labels.contains_key(&***name)));
        let mut others: Vec<_> = there.map(|name| (name.clone(), label(name).into())).collect();
        others.sort();
        let workload = text("WORKLOAD_NAME");
        Workload {
            instance: text("NAME").into(),
            cluster: text("CLUSTER_ID").into(),
            namespace: text("NAMESPACE").into(),
            kind: kind_of(text("OWNER"), workload),
            workload: workload.into(),
            service: label(CANONICAL_NAME).into(),
            revision: label(CANONICAL_REVISION).into(),
            app: first(APP).into(),
            version: first(VERSION).into(),
            identity: text("IDENTITY").into(),
            region: text("REGION").into(),
            zone: text("AVAILABILITY_ZONE").into(),
            labels: others,
        }
    }

    /// Of an endpoint's metadata, key `istio`, `workload`: `workload;namespace;service;revision;cluster`.
    pub fn of_endpoint(text: &str) -> Option<Workload> {
        let mut parts = text.split(';');
        let mut next = || parts.next().map(Box::<str>::from);
        let (workload, namespace) = (next()?, next()?);
        let (service, revision, cluster) = (next()?, next()?, next()?);
        Some(Workload { workload, namespace, service, revision, cluster, ..Workload::default() })
    }

    /// Of a `baggage` header (W3C): `k8s.deployment.name=…,service.name=…`; what is not known of it is passed over.
    pub fn of_baggage(text: &str) -> Workload {
        let mut found = Workload::default();
        for (key, value) in text.split(',').filter_map(|property| property.split_once('=')) {
            let fill = |place: &mut Box<str>| {
                if place.is_empty() {
                    *place = value.into();
                }
            };
            match key {
                "k8s.namespace.name" => found.namespace = value.into(),
                "k8s.cluster.name" => found.cluster = value.into(),
                "k8s.instance.name" => found.instance = value.into(),
                "cloud.region" => found.region = value.into(),
                "cloud.availability_zone" => found.zone = value.into(),
                "service.name" => {
                    found.service = value.into();
                    fill(&mut found.app);
                }
                "service.version" => {
                    found.revision = value.into();
                    fill(&mut found.version);
                }
                "app.name" => {
                    found.app = value.into();
                    fill(&mut found.service);
                }
                "app.version" => {
                    found.version = value.into();
                    fill(&mut found.revision);
                }
                "k8s.deployment.name" | "k8s.pod.name" | "k8s.cronjob.name" | "k8s.job.name" => {
                    let kind = key.split('.').nth(1).unwrap_or_default();
                    found.workload = value.into();
                    found.kind = KINDS.into_iter().find(|known| *known == kind);
                }
                _ => {}
            }
        }
        found
    }

    /// `OWNER` as it is sent, for kinds that are known.
    pub fn owner(&self) -> Option<String> {
        let kind = self.kind?;
        Some(format!("kubernetes://apis/apps/v1/namespaces/{}/{kind}s/{}", self.namespace, self.workload))
    }

    /// What is sent of it: texts by key, and the labels. Both in the order of their keys, so that the same workload sends the
    /// same bytes.
    pub fn told(&self) -> Told<'_> {
        let texts = [
            ("AVAILABILITY_ZONE", &self.zone),
            ("CLUSTER_ID", &self.cluster),
            ("IDENTITY", &self.identity),
            ("NAME", &self.instance),
            ("NAMESPACE", &self.namespace),
            ("REGION", &self.region),
            ("WORKLOAD_NAME", &self.workload),
        ];
        let texts = texts.into_iter().filter(|(_, text)| !text.is_empty());
        let mut texts: Vec<_> = texts.map(|(key, text)| (key, text.to_string())).collect();
        texts.extend(self.owner().map(|owner| ("OWNER", owner)));
        texts.sort();
        let own = [
            (APP[1], &*self.app),
            (CANONICAL_NAME, &*self.service),
            (CANONICAL_REVISION, &*self.revision),
            (VERSION[1], &*self.version),
        ];
        let mut labels: Vec<_> = own.into_iter().filter(|(_, text)| !text.is_empty()).collect();
        labels.extend(self.labels.iter().map(|(name, text)| (&**name, &**text)));
        labels.sort_unstable();
        Told { texts, labels }
    }

    /// A part of it, by Envoy's name for it: `workload`, `type`, `name`, `namespace`, `cluster`, `service`, `revision`, `app`,
    /// `version`, `identity`, `region` or `availability_zone`. `None` for what it is not known to have.
    pub fn field(&self, name: &str) -> Option<&str> {
        let text = match name {
            "workload" => &*self.workload,
            "type" => self.kind.unwrap_or("unknown"),
            "name" => &*self.instance,
            "namespace" => &*self.namespace,
            "cluster" => &*self.cluster,
            "service" => &*self.service,
            "revision" => &*self.revision,
            "app" => &*self.app,
            "version" => &*self.version,
            "identity" => &*self.identity,
            "region" => &*self.region,
            "availability_zone" => &*self.zone,
            _ => return None,
        };
        Some(text)
    }

    /// The object that expressions and logs see: what is known of it, with `labels` as an object of their own.
    pub fn to_json(&self) -> Value {
        const FIELDS: [&str; 12] = [
            "app",
            "availability_zone",
            "cluster",
            "identity",
            "name",
            "namespace",
            "region",
            "revision",
            "service",
            "type",
            "version",
            "workload",
        ];
        let there = |name: &&str| match *name {
            "type" => self.kind.is_some(),
            name => self.field(name).is_some_and(|text| !text.is_empty()),
        };
        let fields = FIELDS.iter().filter(|name| there(name));
        let mut object: Map<String, Value> =
            fields.map(|name| ((*name).to_owned(), self.field(name).unwrap_or_default().into())).collect();
        if !self.labels.is_empty() {
            let labels: Map<_, _> =
                self.labels.iter().map(|(name, text)| (name.to_string(), Value::from(&**text))).collect();
            object.insert("labels".to_owned(), labels.into());
        }
        object.into()
    }
}

fn text_of(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

/// The kind in `kubernetes://apis/apps/v1/namespaces/NS/KINDs/WORKLOAD`.
fn kind_of(owner: &str, workload: &str) -> Option<&'static str> {
    let end = owner.len().checked_sub(workload.len() + 2).filter(|end| *end > 0)?;
    let (_, kind) = owner.get(..end)?.rsplit_once('/')?;
    KINDS.into_iter().find(|known| *known == kind)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn reviews() -> Workload {
        let metadata = json!({
            "NAME": "reviews-v1-7", "NAMESPACE": "default", "WORKLOAD_NAME": "reviews-v1", "CLUSTER_ID": "Kubernetes",
            "OWNER": "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1", "OTHER": {"a": 1},
            "LABELS": {
                "app": "old", "app.kubernetes.io/name": "reviews", "version": "v1", "role": "x", "left": "out",
                "service.istio.io/canonical-name": "reviews", "service.istio.io/canonical-revision": "v1",
            },
        });
        Workload::of_metadata(metadata.as_object().unwrap(), &["role".into(), "app".into(), "gone".into()])
    }

    #[test]
    fn metadata_are_reduced_to_what_peers_need() {
        let reviews = reviews();
        assert_eq!((&*reviews.app, &*reviews.version, reviews.kind), ("reviews", "v1", Some("deployment")));
        assert_eq!(reviews.labels, [("role".into(), "x".into())]);
        let Told { texts, labels } = reviews.told();
        let keys: Vec<_> = texts.iter().map(|(key, _)| *key).collect();
        assert_eq!(keys, ["CLUSTER_ID", "NAME", "NAMESPACE", "OWNER", "WORKLOAD_NAME"]);
        assert_eq!(texts[3].1, "kubernetes://apis/apps/v1/namespaces/default/deployments/reviews-v1");
        let names: Vec<_> = labels.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["app", "role", CANONICAL_NAME, CANONICAL_REVISION, "version"]);
        assert_eq!(reviews.field("workload"), Some("reviews-v1"));
        assert_eq!(reviews.to_json()["labels"]["role"], "x");
        assert_eq!(Workload::default().to_json(), json!({}));
    }

    #[test]
    fn owners_of_other_kinds_are_not_told() {
        let of = |owner, workload| kind_of(owner, workload);
        assert_eq!(of("kubernetes://apis/batch/v1/namespaces/n/cronjobs/x", "x"), Some("cronjob"));
        assert_eq!(of("kubernetes://apis/apps/v1/namespaces/n/statefulsets/x", "x"), None);
        assert_eq!((of("", ""), of("s/x", "x"), of("äää", "x")), (None, None, None));
    }

    #[test]
    fn endpoints_and_baggage_tell_of_workloads_too() {
        let endpoint = Workload::of_endpoint("w;ns;svc;v2;c").unwrap();
        assert_eq!((&*endpoint.namespace, &*endpoint.revision, &*endpoint.cluster), ("ns", "v2", "c"));
        assert_eq!(Workload::of_endpoint("w;ns;svc"), None);
        let baggage = Workload::of_baggage("k8s.deployment.name=w,service.name=s,app.version=2,other=x,bad");
        assert_eq!((&*baggage.workload, baggage.kind, &*baggage.app), ("w", Some("deployment"), "s"));
        assert_eq!((&*baggage.version, &*baggage.revision), ("2", "2"));
    }
}
