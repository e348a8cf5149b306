//! What filters say of a request: those that judge requests are run over it, and the services that they would ask are told in
//! their place; of others whose say depends on chance, time or other requests it is told in words.

use crate::Failure;
use crate::process::runtime;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sixfold_core::cluster::ClusterCell;
use sixfold_core::message::RequestHead;
use sixfold_core::plugin::{
    Callout, CalloutFuture, CalloutRequest, CalloutStreamFuture, Chain, ChainBuilder, HeadPhase, Outcome,
    Plugin,
};
use sixfold_core::stream::Stream;
use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::sync::Arc;
use std::thread::{self, ThreadId};
use std::time::Duration;
use tokio::sync::Notify;

/// How long a filter is waited for that has asked nobody: keys take a moment to be tried.
const PATIENCE: Duration = Duration::from_secs(5);

/// Sends nothing, and nobody who asks ever gets an answer: what was asked is kept.
#[derive(Default)]
pub(super) struct Unsent {
    asked: Mutex<Vec<(ThreadId, Value)>>,
    news: Notify,
}

impl Unsent {
    fn note(&self, request: &CalloutRequest) {
        let asked = match &request.cluster {
            Some(cluster) => {
                let of_uri = || request.uri.parse().map(|uri: http::Uri| uri.path().to_owned());
                let path = match &request.target {
                    Some(target) => String::from_utf8_lossy(target).split('?').next().map(str::to_owned),
                    None => of_uri().ok(),
                };
                json!({"cluster": &*cluster.name, "path": path.unwrap_or_default()})
            }
            None => json!({"uri": request.uri}),
        };
        self.asked.lock().push((thread::current().id(), asked));
        self.news.notify_one();
    }

    /// What was asked last, by this thread if it has asked anything: others fetch what is to be there before requests.
    fn take(&self) -> Value {
        let asked = std::mem::take(&mut *self.asked.lock());
        let own = asked.iter().rfind(|(thread, _)| *thread == thread::current().id());
        own.or(asked.last()).map(|(_, asked)| asked.clone()).unwrap_or_default()
    }
}

impl Callout for Unsent {
    fn send(&self, request: CalloutRequest) -> CalloutFuture {
        self.note(&request);
        Box::pin(pending())
    }

    fn open(&self, request: CalloutRequest) -> CalloutStreamFuture {
        self.note(&request);
        Box::pin(pending())
    }
}

/// What each filter of Envoy in the chain says, in their order, and nothing behind one that answers. What is asked of services
/// counts as passed. The request is then as it was.
pub(super) fn of(chain: &Chain, unsent: &Unsent, stream: &mut Stream) -> Result<Vec<Value>, Failure> {
    let runtime = runtime()?;
    let (before, body) = (stream.request.clone(), stream.request_body.clone());
    let mut said = Vec::new();
    for member in chain.members() {
        let is_over = said.iter().any(|verdict: &Value| verdict["kind"] == "answers");
        said.push(match &*member.plugin {
            _ if is_over => Value::Null,
            plugin if plugin.is_judge() => {
                let came = stream.request.clone();
                let mut alone = ChainBuilder::new();
                alone.push(member.clone());
                let mut verdict = runtime.block_on(judge(&alone.build(), unsent, stream));
                let changes = changes(&came, &stream.request);
                if !changes.is_empty() && verdict["kind"] != "answers" {
                    verdict["changes"] = changes.into();
                }
                verdict
            }
            plugin => untried(plugin, stream),
        });
    }
    (stream.request, stream.request_body) = (before, body);
    Ok(said)
}

/// What plugins of APISIX say of the request that know where it goes, in their order; null for the others.
pub(super) fn foretold(chain: &Chain, stream: &Stream) -> Vec<Value> {
    let said = |plugin: &Plugin| match plugin.foretell(stream) {
        Some(_) if plugin.is_left_out(stream) => json!({"kind": "left_out"}),
        Some(words) if !words.is_empty() => json!({"kind": "chooses", "may": words}),
        _ => Value::Null,
    };
    chain.members().iter().map(|member| said(&member.plugin)).collect()
}

/// The clusters that plugins may send the request to, each once.
pub(super) fn led_to(chain: &Chain, stream: &Stream) -> Vec<Arc<ClusterCell>> {
    let running = chain.members().iter().filter(|member| !member.plugin.is_left_out(stream));
    let mut cells: Vec<_> = running.flat_map(|member| member.plugin.leads_to(stream)).collect();
    let mut seen = BTreeSet::new();
    cells.retain(|cell| seen.insert(cell.name.clone()));
    cells
}

/// What is said of a filter that is not run.
fn untried(plugin: &Plugin, stream: &Stream) -> Value {
    match plugin.foretell(stream) {
        Some(words) if words.is_empty() => json!({"kind": "passes"}),
        Some(words) => json!({"kind": "depends", "may": words}),
        None if plugin.is_idle() => Value::Null,
        // Plugins of APISIX have phases that filters have not.
        None if plugin.meets_requests() => json!({"kind": "untried"}),
        None if plugin.phases().all(|phase| phase == "Log") => json!({"kind": "looks_on"}),
        None => json!({"kind": "later"}),
    }
}

/// What of a request a filter has changed, by name: values may be secrets.
fn changes(before: &RequestHead, after: &RequestHead) -> Vec<String> {
    let mut changed = Vec::new();
    let pseudo = [
        (":method", before.method != after.method),
        (":path", before.target.full() != after.target.full()),
        (":authority", before.authority != after.authority),
        (":scheme", before.scheme != after.scheme),
    ];
    changed.extend(pseudo.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
    let lines = |head: &RequestHead| {
        let mut lines = BTreeMap::<String, Vec<Vec<u8>>>::new();
        for (name, value) in head.headers.iter() {
            lines.entry(String::from_utf8_lossy(name).to_ascii_lowercase()).or_default().push(value.to_vec());
        }
        lines
    };
    let (before, after) = (lines(before), lines(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    changed.extend(names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned());
    changed
}

async fn judge(filter: &Chain, unsent: &Unsent, stream: &mut Stream) -> Value {
    unsent.take();
    // Whoever wants the body of a request that has none is asked again.
    for _ in 0..2 {
        let outcome = tokio::select! {
            biased;
            outcome = filter.run(HeadPhase::Access, stream) => outcome,
            () = until_asked(unsent) => return json!({"kind": "asks", "service": unsent.take()}),
            () = tokio::time::sleep(PATIENCE) => return json!({"kind": "waits"}),
        };
        match outcome {
            Outcome::Respond(reply) => {
                let body = String::from_utf8_lossy(&reply.body).into_owned();
                let (status, details) = (reply.status, &reply.details);
                return json!({"kind": "answers", "status": status, "details": details, "body": body});
            }
            Outcome::ReadBody(..) => {}
            Outcome::ClearRoute(_) => return json!({"kind": "chooses_again"}),
            Outcome::Done | Outcome::Identify(..) | Outcome::Recreate(..) => break,
        }
    }
    json!({"kind": "passes"})
}

/// Ends when somebody has asked since [`Unsent::take`].
async fn until_asked(unsent: &Unsent) {
    while unsent.asked.lock().is_empty() {
        unsent.news.notified().await;
    }
}
