//! The same 5,000 routes in the configuration of each peer. Those that are asked lead to one upstream, all others to
//! another: who takes the wrong route gives a wrong answer.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::super::apisix::{config, routes_to};
use super::super::cases::{Case, Protocol, ROUTES, Table};
use super::super::envoy::bootstrap;
use super::super::others::{HAPROXY_COMMON, nginx_frame};
use super::super::peers::{PROXY_CORE, Peer, Running, pinned, with_bootstrap};
use super::super::scripted::Script;
use super::super::upstream::Upstream;
use super::cases::{ASKED, PairCase};
use super::{Programs, write};
use crate::process::free_port;

/// Where the n-th route leads.
pub(super) fn port_of(n: usize, upstream: &Upstream) -> u16 {
    if ASKED.contains(&n) { upstream.http1 } else { upstream.other }
}

/// # Errors
/// The peer does not start, or does not listen within a minute.
pub(super) fn start(
    peer: Peer,
    case: &PairCase,
    programs: &Programs,
    upstream: &Upstream,
    dir: &Path,
) -> Result<Running> {
    let port = free_port()?;
    let dir = dir.join(format!("{}-{}", case.name, peer.name()));
    fs::create_dir_all(&dir)?;
    let mut command = match (peer, case.script) {
        (Peer::Sixfold, Script::Gateway) => {
            write(&dir, "apisix.yaml", &routes_to(|n| port_of(n, upstream)))?;
            let file = write(&dir, "config.yaml", &config(port, 1, &dir))?;
            let mut command = pinned(PROXY_CORE);
            command.arg(&programs.sixfold).args(["run", "-c"]).arg(file);
            command
        }
        (Peer::Apisix, _) => {
            let apisix = programs.apisix.as_ref().context("no installed APISIX was named")?;
            apisix.prepare(&dir, &config(port, 1, &dir), &routes_to(|n| port_of(n, upstream)))?
        }
        (Peer::Sixfold | Peer::Envoy, _) => {
            let text = envoy(case.script, port, upstream, &dir)?;
            let file = write(&dir, "bootstrap.json", &text)?;
            with_bootstrap(peer, &programs.sixfold, &programs.fetched.envoy, &file)
        }
        (Peer::Nginx, _) => {
            let file = write(&dir, "nginx.conf", &nginx(port, free_port()?, upstream, &dir))?;
            let mut command = pinned(PROXY_CORE);
            command.arg("nginx").arg("-c").arg(file);
            command
        }
        (Peer::Haproxy, _) => {
            let map = write(&dir, "routes.map", &haproxy_map())?;
            let file = write(&dir, "haproxy.cfg", &haproxy(port, free_port()?, upstream, &map))?;
            let mut command = pinned(PROXY_CORE);
            command.args(["haproxy", "-db", "-f"]).arg(file);
            command
        }
        (Peer::TcpForward, _) => bail!("a TCP forwarder has no routes"),
    };
    Running::spawn(peer, port, &dir, &mut command)
        .with_context(|| format!("{} in case {}", peer.name(), case.name))
}

/// As istiod writes the listener of a service at its client: one virtual host for the service's names.
fn envoy(script: Script, port: u16, upstream: &Upstream, dir: &Path) -> Result<String> {
    let table = Case {
        name: "",
        title: "",
        table: Table::Prefix,
        protocol: Protocol::Http1,
        upload: None,
        path: "",
        rate: 0,
        peers: &[],
    };
    let mut bootstrap = bootstrap(&table, port, upstream, dir)?;
    let listener = bootstrap.pointer_mut("/static_resources/listeners/0").context("no listener")?;
    if script == Script::Sidecar {
        listener["traffic_direction"] = json!("OUTBOUND");
    }
    let host = listener
        .pointer_mut("/filter_chains/0/filters/0/typed_config/route_config/virtual_hosts/0")
        .context("no virtual host")?;
    if script == Script::Sidecar {
        let service = "server.default.svc.cluster.local";
        host["name"] = json!(format!("{service}:9080"));
        host["domains"] = json!([service, format!("{service}:9080"), "server", "server:9080"]);
    }
    let routes = host["routes"].as_array_mut().context("no routes")?;
    for (n, route) in routes.iter_mut().enumerate() {
        if !ASKED.contains(&(n + 1)) {
            route["route"]["cluster"] = json!("other");
        }
    }
    let clusters = bootstrap.pointer_mut("/static_resources/clusters").and_then(|list| list.as_array_mut());
    let clusters = clusters.context("no clusters")?;
    let text = clusters.first().context("no cluster")?.to_string();
    let other = text
        .replace("\"upstream\"", "\"other\"")
        .replace(&upstream.http1.to_string(), &upstream.other.to_string());
    clusters.push(serde_json::from_str(&other)?);
    Ok(bootstrap.to_string())
}

fn nginx(port: u16, metrics: u16, upstream: &Upstream, dir: &Path) -> String {
    let server = |name: &str, port: u16| {
        format!(
            "  upstream {name} {{ server 127.0.0.1:{port}; keepalive 256; keepalive_requests 100000000; }}\n"
        )
    };
    let mut http = server("asked", upstream.http1) + &server("other", upstream.other);
    let _ = write!(
        http,
        "server {{ listen 127.0.0.1:{metrics}; location / {{ stub_status; }} }}\n\
         server {{ listen 127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Connection \"\";\n"
    );
    for n in 1..=ROUTES {
        let to = if ASKED.contains(&n) { "asked" } else { "other" };
        let _ = writeln!(http, "  location ^~ /svc/{n}/ {{ proxy_pass http://{to}; }}");
    }
    nginx_frame(dir, &format!("{}/access.log", dir.display()), &(http + "}"))
}

fn haproxy_map() -> String {
    let to = |n: usize| if ASKED.contains(&n) { "asked" } else { "other" };
    (1..=ROUTES).map(|n| format!("/svc/{n}/ {}\n", to(n))).collect()
}

fn haproxy(port: u16, metrics: u16, upstream: &Upstream, map: &Path) -> String {
    format!(
        "{HAPROXY_COMMON}\
         frontend bench\n  bind 127.0.0.1:{port}\n  use_backend %[path,map_beg({})]\n\
         frontend metrics\n  bind 127.0.0.1:{metrics}\n  http-request use-service prometheus-exporter\n\
         backend asked\n  server one 127.0.0.1:{}\nbackend other\n  server one 127.0.0.1:{}\n",
        map.display(),
        upstream.http1,
        upstream.other
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_routes_of_5000_lead_where_the_right_answer_is() {
        let map = haproxy_map();
        assert_eq!(map.lines().count(), ROUTES);
        let asked: Vec<&str> = map.lines().filter(|line| line.ends_with(" asked")).collect();
        assert_eq!(asked, ["/svc/1/ asked", "/svc/3000/ asked", "/svc/5000/ asked"]);
    }
}
