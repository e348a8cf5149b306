//! Whom a request is from, and what that changes of the plugins of its route.

use super::Story;
use super::source::Known;
use crate::Failure;
use crate::process::{plugins, runtime};
use serde_json::{Value, json};
use sixfold_core::plugin::{
    Chain, ChainBuilder, Consumer, HeadPhase, Kind, LocalReply, Member, Outcome, Registry,
};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// Adds the consumer of a route that asks for one; answers the chain of its requests. `wanted` is one by name. The plugins
/// that authenticate are run over the request, which is then as it was; no other plugin is.
pub(super) fn add(
    story: &mut Story,
    known: &Known,
    chain: &Arc<Chain>,
    wanted: Option<&str>,
    stream: &mut Stream,
) -> Result<Arc<Chain>, Failure> {
    let registry = plugins();
    let authenticators = of_kind_auth(chain, &registry);
    let by: Vec<&str> = authenticators.iter().map(|member| &*member.name).collect();
    let by = by.join(" and ");
    if let Some(name) = wanted {
        let none = || Failure::new(format!("no consumer is called \"{name}\""));
        let identity = known.consumers.by_name().find(name.as_bytes()).ok_or_else(none)?;
        let chain_of = identity.consumer.chain(chain);
        story.insert("consumer".into(), shown(&identity.consumer, chain, &chain_of, ""));
        return Ok(chain_of);
    }
    if authenticators.is_empty() {
        return Ok(chain.clone());
    }
    let before = stream.request.clone();
    let found = runtime()?.block_on(authenticate(&authenticators, stream));
    stream.request = before;
    let (told, chain) = match found {
        Ok(Some(consumer)) => {
            let chain_of = consumer.chain(chain);
            (shown(&consumer, chain, &chain_of, &by), chain_of)
        }
        Ok(None) => (json!({"by": by}), chain.clone()),
        Err(reply) => (json!({"by": by, "refused": refused(&reply)}), chain.clone()),
    };
    story.insert("consumer".into(), told);
    Ok(chain)
}

/// The plugins of a chain that find consumers.
fn of_kind_auth<'c>(chain: &'c Chain, registry: &Registry) -> Vec<&'c Member> {
    let is_auth = |name: &str| registry.apisix(name).is_some_and(|(_, factory)| factory.kind == Kind::Auth);
    chain.members().iter().filter(|member| is_auth(&member.name)).collect()
}

/// Runs them one after the other, as the gateway does: each must let the request pass, and it is from whom the last one has found.
async fn authenticate(
    authenticators: &[&Member],
    stream: &mut Stream,
) -> Result<Option<Arc<Consumer>>, Box<LocalReply>> {
    let mut found = None;
    for member in authenticators {
        let mut alone = ChainBuilder::new();
        alone.push((*member).clone());
        match alone.build().run(HeadPhase::Rewrite, stream).await {
            Outcome::Identify(_, consumer) => found = Some(consumer),
            Outcome::Respond(reply) => return Err(Box::new(reply)),
            _ => {}
        }
    }
    Ok(found)
}

fn shown(consumer: &Consumer, before: &Chain, after: &Chain, by: &str) -> Value {
    let is_new = |plugin: &Arc<_>| !before.members().iter().any(|member| Arc::ptr_eq(&member.plugin, plugin));
    let brought = after.members().iter().filter(|member| is_new(&member.plugin));
    let brought: Vec<&str> = brought.map(|member| &*member.name).collect();
    json!({
        "name": &*consumer.name, "group": consumer.group.as_deref(), "labels": consumer.labels,
        "by": by, "brings": brought,
    })
}

fn refused(reply: &LocalReply) -> Value {
    json!({"status": reply.status, "body": String::from_utf8_lossy(&reply.body)})
}
