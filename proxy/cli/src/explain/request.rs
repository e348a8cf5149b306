//! The request that is asked about.

use crate::Failure;
use crate::arguments::ExplainOptions;
use serde_json::{Value, json};
use sixfold_core::connection::{Certificate, Connection, TlsInfo};
use sixfold_core::headers::HeaderName;
use sixfold_core::listener::{FilterChain, Listener};
use sixfold_core::message::{Method, Scheme};
use sixfold_core::stream::Stream;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

/// What the command line says of a request and its connection.
pub(super) struct Asked {
    method: Method,
    scheme: Scheme,
    authority: Vec<u8>,
    target: Vec<u8>,
    headers: Vec<(HeaderName, String)>,
    /// Port of the URL.
    pub(super) port: u16,
    pub(super) destination: Option<SocketAddr>,
    pub(super) source: SocketAddr,
    pub(super) server_name: Option<Arc<str>>,
    pub(super) protocols: Vec<Box<[u8]>>,
    /// The URI of the client's certificate, if it shows one.
    peer: Option<String>,
}

impl Asked {
    /// Whether the URL asks for TLS.
    pub(super) fn is_https(&self) -> bool {
        self.scheme == Scheme::Https
    }

    pub(super) fn of(options: &ExplainOptions) -> Result<Asked, Failure> {
        let method = Method::from_bytes(options.method.as_bytes());
        let method = method.map_err(|_| Failure::new(format!("\"{}\" is no method", options.method)))?;
        let (scheme, rest) = match options.url.split_once("://") {
            Some((scheme, rest)) => {
                let scheme = Scheme::parse(scheme.as_bytes());
                let wrong = || Failure::new(format!("{}: only http and https are known", options.url));
                (scheme.ok_or_else(wrong)?, rest)
            }
            None => (Scheme::Http, options.url.as_str()),
        };
        let cut = rest.find(['/', '?']).unwrap_or(rest.len());
        let (of_url, target) = rest.split_at(cut);
        let target = match target {
            "" => "/".to_owned(),
            query if query.starts_with('?') => format!("/{query}"),
            target => target.to_owned(),
        };
        let mut headers = Vec::new();
        let mut authority = of_url.to_owned();
        for line in &options.headers {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| Failure::new(format!("-H '{line}': a header is NAME: VALUE")))?;
            match name.trim() {
                host if host.eq_ignore_ascii_case("host") => authority = value.trim().to_owned(),
                name => {
                    let name = HeaderName::new(name)
                        .map_err(|_| Failure::new(format!("-H '{line}': \"{name}\" is no header name")))?;
                    headers.push((name, value.trim().to_owned()));
                }
            }
        }
        let port = port_of(of_url).unwrap_or_else(|| scheme.default_port());
        let of_url = of_url.strip_suffix(&format!(":{port}")).unwrap_or(of_url);
        let ip = of_url.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
        let destination = options.destination.or_else(|| ip.map(|ip| SocketAddr::new(ip, port)));
        let server_name = options.sni.as_deref().map(str::to_ascii_lowercase);
        let named = (scheme == Scheme::Https && ip.is_none() && !of_url.is_empty())
            .then(|| of_url.to_ascii_lowercase());
        let source = options.source.as_deref().map(source).transpose()?;
        Ok(Asked {
            method,
            scheme,
            authority: authority.into_bytes(),
            target: target.into_bytes(),
            headers,
            port,
            destination,
            source: source.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 40000)),
            server_name: server_name.or(named).map(Arc::from),
            peer: options.peer.clone(),
            protocols: options.alpn.iter().map(|protocol| protocol.as_bytes().into()).collect(),
        })
    }

    /// Whether the connection is one of TLS.
    pub(super) fn is_tls(&self) -> bool {
        self.scheme == Scheme::Https || self.server_name.is_some() || self.peer.is_some()
    }

    /// The request on a connection to the listener, which has found that it is meant for the server `requested`.
    pub(super) fn stream(
        &self,
        listener: &Listener,
        chain: &FilterChain,
        destination: Option<SocketAddr>,
        requested: Option<Arc<str>>,
    ) -> Stream {
        let local = destination.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        let terminated = chain.tls.is_some() || self.is_tls();
        let peer = self.peer.clone();
        let peer = peer.map(|uri| Arc::new(Certificate { uri_sans: vec![uri], ..Certificate::default() }));
        let tls = terminated.then(|| TlsInfo {
            server_name: self.server_name.clone(),
            peer_validated: peer.is_some(),
            peer,
            ..TlsInfo::default()
        });
        let connection = Connection {
            listener: listener.name.clone(),
            filter_chain: chain.name.clone(),
            requested_server_name: requested,
            tls,
            ..Connection::plain(self.source, local)
        };
        let mut stream = Stream::new(Arc::new(connection));
        stream.request.method = self.method.clone();
        stream.request.scheme = if terminated { Scheme::Https } else { self.scheme };
        stream.request.authority.clone_from(&self.authority);
        stream.request.target.set(&self.target);
        for (name, value) in &self.headers {
            stream.request.headers.append(name, value.as_bytes());
        }
        stream
    }
}

fn port_of(authority: &str) -> Option<u16> {
    let host_end = authority.rfind(']').map_or(0, |at| at + 1);
    authority.get(host_end..)?.rsplit_once(':')?.1.parse().ok()
}

/// An address with or without a port.
fn source(text: &str) -> Result<SocketAddr, Failure> {
    let bare = || text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, 40000));
    text.parse().ok().or_else(bare).ok_or_else(|| Failure::new(format!("--source {text}: is no address")))
}

/// The request as routes see it.
pub(super) fn shown(stream: &Stream) -> Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    json!({
        "method": stream.request.method.as_str(),
        "scheme": stream.request.scheme.as_str(),
        "authority": text(&stream.request.authority),
        "path": text(stream.request.target.full()),
        "client": stream.remote.to_string(),
        "internal": stream.internal,
    })
}
