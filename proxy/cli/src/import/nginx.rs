//! nginx.conf as an APISIX gateway (ngx_http_core_module, _proxy_, _upstream_, _rewrite_, _limit_req_, _ssl_).

mod location;
mod parse;
mod server;
mod upstream;

use super::{Finding, Imported, Match, Stop};
use parse::Directive;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// What has no part in which answer a client gets: files are not served, and processes and logs are configured elsewhere.
const WITHOUT_EFFECT: &[&str] = &[
    "daemon",
    "pid",
    "user",
    "events",
    "worker_processes",
    "worker_rlimit_nofile",
    "error_log",
    "access_log",
    "log_format",
    "sendfile",
    "tcp_nopush",
    "tcp_nodelay",
    "types",
    "types_hash_max_size",
    "default_type",
    "server_names_hash_bucket_size",
    "server_names_hash_max_size",
    "proxy_http_version",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_buffer_size",
    "proxy_busy_buffers_size",
    "proxy_temp_path",
    "client_body_temp_path",
    "fastcgi_temp_path",
    "uwsgi_temp_path",
    "scgi_temp_path",
    "master_process",
    "include",
    "load_module",
    "server_tokens",
    "absolute_redirect",
    "port_in_redirect",
];

/// Keys of `nginx_config.http` that have nginx's names.
const SAME_NAME: &[&str] = &[
    "client_max_body_size",
    "client_header_timeout",
    "client_body_timeout",
    "send_timeout",
    "keepalive_timeout",
];

/// What one part of the file says for all that is below it.
#[derive(Debug, Default)]
struct Zone {
    /// Requests a second.
    rate: f64,
    /// The variable that tells clients apart.
    key: String,
}

/// What is known while the file is read.
#[derive(Default)]
struct Import {
    out: Imported,
    /// `upstream` blocks.
    upstreams: BTreeMap<String, Value>,
    zones: BTreeMap<String, Zone>,
    routes: Vec<Value>,
    ssls: Vec<Value>,
}

/// Reads a file and those that it includes.
///
/// # Errors
/// A file that can't be read, or is not nginx's syntax.
pub(super) fn import(path: &Path) -> Result<Imported, Stop> {
    let directives = parse::file(path)?;
    let mut import = Import::default();
    let mut http_found = false;
    for directive in &directives {
        match directive.name.as_str() {
            "http" => {
                http_found = true;
                import.http(&directive.block);
            }
            name if WITHOUT_EFFECT.contains(&name) => import.exact(directive, "does not change answers"),
            "stream" => {
                import.add(Match::Manual, directive, "write stream_routes (docs/reference/streams.md)")
            }
            _ => import.unknown(directive),
        }
    }
    if !http_found {
        // A file of sites-available has what stands within `http`.
        import.out.forget();
        import.http(&directives);
    }
    Ok(import.finish())
}

impl Import {
    fn add(&mut self, kind: Match, directive: &Directive, note: impl Into<String>) {
        // What is passed on to several locations is told once.
        self.out.add(Finding {
            kind,
            file: directive.file.clone(),
            line: directive.line,
            what: directive.shown(),
            note: note.into(),
        });
    }

    fn exact(&mut self, directive: &Directive, note: &str) {
        self.add(Match::Exact, directive, note);
    }

    fn unknown(&mut self, directive: &Directive) {
        self.add(Match::Unsupported, directive, "there is no counterpart");
    }

    fn http(&mut self, block: &[Directive]) {
        let mut http = Map::new();
        for directive in block {
            match directive.name.as_str() {
                "upstream" => self.upstream(directive),
                "limit_req_zone" => self.zone(directive),
                "server" => {}
                name if SAME_NAME.contains(&name) => {
                    let value = directive.arguments.first().cloned().unwrap_or_default();
                    http.insert(name.to_owned(), value.into());
                    self.exact(directive, "");
                }
                name if location::INHERITED.contains(&name) => {}
                name if WITHOUT_EFFECT.contains(&name) => self.exact(directive, "does not change answers"),
                _ => self.unknown(directive),
            }
        }
        let inherited: Vec<&Directive> =
            block.iter().filter(|one| location::INHERITED.contains(&one.name.as_str())).collect();
        let servers: Vec<&Directive> = block.iter().filter(|one| one.name == "server").collect();
        self.servers(&servers, &inherited);
        if !http.is_empty() {
            self.out.config.insert("nginx_config".to_owned(), json!({"http": http}));
        }
    }

    /// `limit_req_zone KEY zone=NAME:SIZE rate=RATE`
    fn zone(&mut self, directive: &Directive) {
        let argument = |name: &str| directive.arguments.iter().find_map(|text| text.strip_prefix(name));
        let name = argument("zone=").and_then(|zone| zone.split(':').next());
        let rate = argument("rate=").and_then(rate);
        let key = directive.arguments.first().and_then(|key| match key.as_str() {
            "$binary_remote_addr" | "$remote_addr" => Some("remote_addr"),
            "$server_name" => Some("server_name"),
            key => key
                .strip_prefix('$')
                .filter(|name| name.bytes().all(|b| b == b'_' || b.is_ascii_alphanumeric())),
        });
        match (name, rate, key) {
            (Some(name), Some(rate), Some(key)) => {
                self.zones.insert(name.to_owned(), Zone { rate, key: key.to_owned() });
                self.exact(directive, "");
            }
            _ => self.add(Match::Manual, directive, "write the plugin limit-req where it is used"),
        }
    }

    fn finish(mut self) -> Imported {
        let upstreams: Vec<Value> = self.upstreams.into_values().collect();
        for (section, items) in [("upstreams", upstreams), ("routes", self.routes), ("ssls", self.ssls)] {
            self.out.section(section, items);
        }
        self.out.finish();
        self.out
    }
}

/// `10r/s` or `30r/m`, a second.
fn rate(text: &str) -> Option<f64> {
    let (count, per) = text.split_once("r/")?;
    let count: f64 = count.parse().ok()?;
    match per {
        "s" => Some(count),
        "m" => Some(count / 60.0),
        _ => None,
    }
}

/// Seconds of nginx's times: `30`, `30s`, `500ms`, `1m`, `1h`.
fn seconds(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let value: f64 = digits.parse().ok()?;
    match text.get(digits.len()..)? {
        "" | "s" => Some(value),
        "ms" => Some(value / 1000.0),
        "m" => Some(value * 60.0),
        "h" => Some(value * 3600.0),
        _ => None,
    }
}
