//! What every filter or plugin does in the request's and the response's phases, as far as configuration tells.

use super::source::Known;
use super::{Story, verdict};
use crate::Failure;
use serde_json::{Value, json};
use sixfold_core::hcm::{HttpConnectionManager, Profile};
use sixfold_core::plugin::{Chain, Member};
use sixfold_core::stream::Stream;
use std::sync::Arc;

/// Adds the chain of the request with what its filters say of it, and what of the connection manager's is turned off.
pub(super) fn add(
    story: &mut Story,
    known: &Known,
    hcm: &HttpConnectionManager,
    chain: &Arc<Chain>,
    stream: &mut Stream,
) -> Result<(), Failure> {
    let filters = judged(known, hcm, chain, stream)?;
    let mut told = filters.as_array().into_iter().flatten();
    if let Some(filter) = told.find(|filter| filter["verdict"]["kind"] == "answers") {
        let name = filter["name"].as_str().unwrap_or_default();
        let outcome = format!("the filter \"{name}\" answers in the place of the route");
        story.insert("outcome".into(), outcome.into());
    }
    story.insert("filters".into(), filters);
    if hcm.profile == Profile::Apisix {
        return Ok(());
    }
    let is_there = |name: &str| chain.members().iter().any(|member| *member.name == *name);
    let off = hcm.chain.members().iter().filter(|member| !is_there(&member.name));
    let off: Vec<&str> = off.map(|member| &*member.name).collect();
    story.insert("filters_off".into(), json!(off));
    Ok(())
}

/// What is in a chain, in the order of the request, with what each says of it.
pub(super) fn judged(
    known: &Known,
    hcm: &HttpConnectionManager,
    chain: &Chain,
    stream: &mut Stream,
) -> Result<Value, Failure> {
    let mut filters = of(hcm, chain);
    let told = filters.as_array_mut().into_iter().flatten();
    let verdicts = match hcm.profile {
        Profile::Envoy => verdict::of(chain, &known.unsent, stream)?,
        // Plugins are not run; some say where they send requests.
        Profile::Apisix => verdict::foretold(chain, stream),
    };
    for (filter, said) in told.zip(verdicts) {
        if !said.is_null() {
            filter["verdict"] = said;
        }
    }
    Ok(filters)
}

fn of(hcm: &HttpConnectionManager, chain: &Chain) -> Value {
    let of_listener = hcm.chain.members();
    let shown = |member: &Member| {
        let is_listener_s = of_listener.iter().any(|other| Arc::ptr_eq(&other.plugin, &member.plugin));
        let from = match (member.plugin.origin(), is_listener_s) {
            (Some(origin), _) => origin.trim_start_matches("/apisix/").to_owned(),
            (None, true) => "listener".to_owned(),
            (None, false) if hcm.profile == Profile::Apisix => "route".to_owned(),
            (None, false) => "virtual host, route or table".to_owned(),
        };
        json!({"name": &*member.name, "settings": from, "phases": member.plugin.phases().collect::<Vec<_>>()})
    };
    chain.members().iter().map(shown).collect()
}
