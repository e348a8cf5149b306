//! `sixfold explain`: what a request would meet, and why, by the compiled model and the code that serves.

mod action;
mod candidates;
mod consumer;
mod detected;
mod dump;
mod faulty;
mod filters;
mod request;
mod source;
mod text;
mod verdict;

use crate::Failure;
use crate::arguments::{ExplainOptions, OutputForm};
use request::Asked;
use serde_json::{Map, Value, json};
use sixfold_core::draw::{self, Drawn};
use sixfold_core::hcm::HttpConnectionManager;
use sixfold_core::headers::Known as KnownHeader;
use sixfold_core::listener::{FilterChain, Listener, MatchInput, NetworkFilter};
use sixfold_core::plugin::LocalReply;
use sixfold_core::redirect;
use sixfold_core::stream::Stream;
use sixfold_server::explain;
use source::Known;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

/// The answer, part by part, as it is printed with `--output json`.
pub(super) type Story = Map<String, Value>;

/// Explains what becomes of the request.
pub(crate) fn run(options: &ExplainOptions) -> Result<(), Failure> {
    let known = source::read(options)?;
    let asked = Asked::of(options)?;
    let story = tell(&known, &asked, options)?;
    let mut out = std::io::stdout();
    match options.output {
        OutputForm::Json => writeln!(out, "{:#}", Value::Object(story))?,
        OutputForm::Text => write!(out, "{}", text::of(&story, options.all))?,
    }
    Ok(())
}

fn tell(known: &Known, asked: &Asked, options: &ExplainOptions) -> Result<Story, Failure> {
    let mut story = Story::new();
    let listener = choose_listener(known, asked, options)?;
    let destination = asked.destination.or_else(|| listener.addresses.first().and_then(|a| a.ip()));
    story.insert("listener".into(), listener_of(&listener, destination));
    let entered = options.destination.and_then(|_| redirected(known));
    let by: Vec<&Listener> = entered
        .into_iter()
        .filter(|by| by.name != listener.name)
        .chain([&listener])
        .map(|by| &**by)
        .collect();
    let detected = detected::of(&by, asked, destination);
    story.extend(detected.shown.map(|shown| ("detected".to_owned(), shown)));
    let input = MatchInput {
        destination,
        server_name: detected.server_name.as_deref(),
        tls: detected.tls,
        application_protocols: &detected.protocols,
        direct_source: Some(asked.source),
        source: Some(asked.source),
    };
    let Some(chain) = known.listeners.chain(&listener.name, &input) else {
        story.insert("filter_chain".into(), Value::Null);
        story.insert("outcome".into(), "no filter chain takes the connection: it is closed".into());
        return Ok(story);
    };
    story.insert("filter_chain".into(), chain_of(chain, &listener));
    match &chain.filter {
        NetworkFilter::Http(hcm) => {
            let mut stream = asked.stream(&listener, chain, destination, detected.server_name);
            http(&mut story, known, hcm, options.consumer.as_deref(), &mut stream)?;
        }
        NetworkFilter::Tcp(proxy) => {
            story.insert("action".into(), json!({"kind": "tcp", "to": action::choice(&proxy.cluster)}));
            story.insert("outcome".into(), "bytes are passed on as they are: no HTTP is looked at".into());
        }
        NetworkFilter::Routed(_) => {
            story.insert("action".into(), json!({"kind": "stream_routes"}));
            story.insert(
                "outcome".into(),
                "bytes are passed on as stream routes say: no HTTP is looked at".into(),
            );
        }
        NetworkFilter::Direct(_) => {
            story.insert("outcome".into(), "the connection is answered and closed before any HTTP".into());
        }
    }
    Ok(story)
}

/// The listener that was named, else the one that a connection to the request's address meets.
fn choose_listener(known: &Known, asked: &Asked, options: &ExplainOptions) -> Result<Arc<Listener>, Failure> {
    let names = || {
        let shown = known.listeners.iter().map(|listener| {
            let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
            format!("{} ({})", listener.name, addresses.join(", "))
        });
        shown.collect::<Vec<_>>().join("; ")
    };
    if let Some(name) = &options.listener {
        known.faulty.named(name)?;
        let found = known.listeners.iter().find(|listener| *listener.name == **name);
        let none = || Failure::new(format!("no listener is called \"{name}\"; there are: {}", names()));
        return found.cloned().ok_or_else(none);
    }
    if let Some(address) = asked.destination {
        let found = known.listeners.at(address);
        let is_it =
            |listener: &&Arc<Listener>| listener.addresses.iter().any(|its| its.ip() == Some(address));
        if found.filter(is_it).is_none() {
            known.faulty.at(address)?;
        }
        if let Some(found) = found {
            return Ok(found.clone());
        }
    }
    // A connection that was redirected to this proxy and has no listener of its own stays where it came in.
    if options.destination.is_some() {
        if let Some(first) = redirected(known) {
            return Ok(first.clone());
        }
        known.faulty.redirected()?;
    }
    let has_port = |listener: &&Arc<Listener>| {
        let mut ports = listener.addresses.iter().filter_map(|address| address.ip());
        ports.any(|address| address.port() == asked.port)
    };
    let speaks = |listener: &&Arc<Listener>| listener.tls().next().is_some() == asked.is_https();
    let all: Vec<_> = known.listeners.iter().collect();
    let mut fitting: Vec<_> = all.iter().copied().filter(has_port).collect();
    if fitting.is_empty() {
        known.faulty.on(asked.port)?;
        fitting = all.iter().copied().filter(speaks).collect();
    }
    match only(&fitting).or_else(|| only(&all)) {
        Some(found) => Ok(found.clone()),
        None if all.is_empty() => Err(Failure::new("the configuration has no listener")),
        None => Err(Failure::new(format!(
            "which listener? None or several are on port {}: name one with --listener, or say --destination; there are: {}",
            asked.port,
            names()
        ))),
    }
}

/// The listener that redirected connections come to first.
fn redirected(known: &Known) -> Option<&Arc<Listener>> {
    known.listeners.iter().find(|listener| listener.use_original_dst && !listener.inbound)
}

/// The only one there is, or the only one for IPv4: APISIX listens on each of its ports for both families.
fn only<'l>(listeners: &[&'l Arc<Listener>]) -> Option<&'l Arc<Listener>> {
    let is_v4 = |listener: &Listener| {
        let mut addresses = listener.addresses.iter().filter_map(|address| address.ip());
        addresses.any(|address| address.is_ipv4())
    };
    let mut of_v4 = listeners.iter().filter(|listener| is_v4(listener));
    match (listeners, of_v4.next(), of_v4.next()) {
        ([only], ..) | (_, Some(only), None) => Some(*only),
        _ => None,
    }
}

fn listener_of(listener: &Listener, destination: Option<SocketAddr>) -> Value {
    let addresses: Vec<String> = listener.addresses.iter().map(ToString::to_string).collect();
    json!({
        "name": &*listener.name,
        "addresses": addresses,
        "destination": destination.map(|address| address.to_string()),
    })
}

fn chain_of(chain: &FilterChain, listener: &Listener) -> Value {
    let at = listener.chains.iter().position(|other| std::ptr::eq(&**other, chain));
    json!({
        "name": &*chain.name,
        "index": at,
        "default": at.is_none(),
        "tls": chain.tls.is_some(),
        "of": listener.chains.len(),
    })
}

fn http(
    story: &mut Story,
    known: &Known,
    hcm: &HttpConnectionManager,
    wanted: Option<&str>,
    stream: &mut Stream,
) -> Result<(), Failure> {
    let table = hcm.routes.load();
    story.insert("stat_prefix".into(), (&*hcm.stat_prefix).into());
    let name = table.as_ref().map_or(&hcm.routes.key.name, |table| &table.name).clone();
    story.insert("route_table".into(), (&*name).into());
    if let Some(reply) = explain::admit(hcm, table.as_deref(), stream) {
        story.insert("outcome".into(), "the request is answered before its route is chosen".into());
        story.insert("action".into(), reply_of(&reply));
        return Ok(());
    }
    story.insert("request".into(), request::shown(stream));
    let Some(table) = table else {
        if let Some(error) = known.faulty.routes.get(&name) {
            return Err(error.clone().into());
        }
        let reason = format!("the routes \"{name}\" come from a control plane and are not known here");
        story.insert("outcome".into(), reason.into());
        return Ok(());
    };
    let explained = table.explain(stream);
    candidates::add(story, &table, &explained, stream);
    let Some(found) = explained.found else {
        story.insert("outcome".into(), "no virtual host has the request's host: 404".into());
        return Ok(());
    };
    if redirect::is_for_tls(&found.virtual_host, stream) {
        filters::add(story, known, hcm, &hcm.chain, stream)?;
        let location = String::from_utf8_lossy(&redirect::to_tls(&stream.request)).into_owned();
        story.insert("action".into(), json!({"kind": "redirect", "status": 301, "location": location}));
        story.insert("outcome".into(), "the virtual host wants TLS (require_tls)".into());
        return Ok(());
    }
    stream.virtual_host = Some(found.virtual_host.clone());
    stream.route = found.route.clone();
    stream.upstream.drawn = Drawn::of(stream);
    let chain = draw::chain(stream).unwrap_or(&hcm.chain).clone();
    let Some(route) = found.route else {
        filters::add(story, known, hcm, &chain, stream)?;
        if found.cut_short {
            story.insert("action".into(), reply_of(&explain::unsearched()));
            let outcome = "routes' expressions would scan too much for one request: none is taken";
            story.insert("outcome".into(), outcome.into());
        } else {
            story.insert("outcome".into(), "no route of the virtual host is met: 404".into());
        }
        return Ok(());
    };
    story.insert("route".into(), candidates::route(&route));
    story.extend(action::drawn(&route, stream).map(|drawn| ("drawn".to_owned(), drawn)));
    let chain = consumer::add(story, known, &chain, wanted, stream)?;
    filters::add(story, known, hcm, &chain, stream)?;
    action::add(story, known, hcm, &table, &route, stream)?;
    action::add_chosen(story, known, &chain, stream);
    Ok(())
}

fn reply_of(reply: &LocalReply) -> Value {
    let location = reply.headers.get(KnownHeader::LOCATION).map(|l| String::from_utf8_lossy(l).into_owned());
    json!({
        "kind": "answer",
        "status": reply.status,
        "details": reply.details,
        "location": location,
    })
}
