//! The configuration of nginx and HAProxy for a case: one worker, keep-alive to the upstream, an access log, metrics.

use std::path::Path;

use super::cases::{Case, Protocol};
use super::upstream::Upstream;

/// What every HAProxy of the load tests has in common.
pub(super) const HAPROXY_COMMON: &str = "global\n  nbthread 1\n  maxconn 4096\n  log stdout format raw local0\n\
     defaults\n  mode http\n  log global\n  option httplog\n  http-reuse always\n\
     timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n";

/// What every nginx of the load tests has in common.
pub(super) fn nginx_frame(dir: &Path, access_log: &str, http: &str) -> String {
    let dir = dir.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {dir}/nginx.pid;\nerror_log {dir}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log {access_log};\n  keepalive_requests 100000000;\n  keepalive_timeout 600s;\n\
         client_body_temp_path {dir}/body;\n  proxy_temp_path {dir}/proxy;\n  fastcgi_temp_path {dir}/fastcgi;\n\
         uwsgi_temp_path {dir}/uwsgi;\n  scgi_temp_path {dir}/scgi;\n{http}\n}}\n"
    )
}

pub(super) fn nginx_conf(case: &Case, port: u16, metrics: u16, upstream: &Upstream, dir: &Path) -> String {
    let listen = match case.protocol {
        Protocol::Http1 => String::new(),
        Protocol::H2c | Protocol::Grpc => " http2".to_owned(),
        Protocol::Tls13 => " ssl".to_owned(),
        Protocol::H2 => " ssl http2".to_owned(),
    };
    let tls = if case.protocol.has_tls() {
        let (certificate, key) = (upstream.certificate(), upstream.key());
        let (certificate, key) = (certificate.display(), key.display());
        format!("ssl_certificate {certificate}; ssl_certificate_key {key}; ssl_protocols TLSv1.3;")
    } else {
        String::new()
    };
    let (port_behind, pass) = if case.protocol == Protocol::Grpc {
        (upstream.http2, "grpc_pass grpc://upstream;")
    } else {
        (
            upstream.http1,
            "proxy_pass http://upstream; proxy_http_version 1.1; proxy_set_header Connection \"\"; client_max_body_size 0;",
        )
    };
    let http = format!(
        "  upstream upstream {{ server 127.0.0.1:{port_behind}; keepalive 256; keepalive_requests 100000000; }}\n\
         server {{ listen 127.0.0.1:{port}{listen}; {tls} location / {{ {pass} }} }}\n\
         server {{ listen 127.0.0.1:{metrics}; location / {{ stub_status; }} }}"
    );
    nginx_frame(dir, &format!("{}/access.log", dir.display()), &http)
}

pub(super) fn haproxy_conf(case: &Case, port: u16, metrics: u16, upstream: &Upstream) -> String {
    let bind = match case.protocol {
        Protocol::Http1 => String::new(),
        Protocol::H2c | Protocol::Grpc => " proto h2".to_owned(),
        Protocol::Tls13 | Protocol::H2 => {
            let alpn = if case.protocol.is_http2() { "h2" } else { "http/1.1" };
            let certificate = upstream.certificate_with_key();
            format!(" ssl crt {} alpn {alpn} ssl-min-ver TLSv1.3", certificate.display())
        }
    };
    let server = match case.protocol {
        Protocol::Grpc => format!("127.0.0.1:{} proto h2", upstream.http2),
        _ => format!("127.0.0.1:{}", upstream.http1),
    };
    format!(
        "{HAPROXY_COMMON}\
         frontend bench\n  bind 127.0.0.1:{port}{bind}\n  default_backend upstream\n\
         frontend metrics\n  bind 127.0.0.1:{metrics}\n  http-request use-service prometheus-exporter\n\
         backend upstream\n  server one {server}\n"
    )
}
