//! Who may ask.

use std::net::IpAddr;

use aws_lc_rs::{constant_time, rand};
use http::{HeaderValue, Method, header};
use ipnet::IpNet;

use super::{AdminReply, AdminRequest};
use crate::config::{AdminConfig, AdminKey, AdminRole, Config};
use crate::listener::APISIX_VERSION;

/// Who may ask, and what all answers have.
#[derive(Debug, Clone)]
pub struct AdminAccess {
    /// `None` asks for no key.
    keys: Option<Vec<AdminKey>>,
    allow: Option<Vec<IpNet>>,
    cors: bool,
    server: HeaderValue,
}

/// A key that nobody knows.
///
/// # Errors
/// When the operating system has no randomness.
pub fn generate_key() -> Result<String, String> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).map_err(|_| "no random bytes can be had".to_owned())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl AdminAccess {
    /// What config.yaml says; `generated` is the key that counts when it has none.
    pub fn new(config: &Config, admin: &AdminConfig, generated: Option<AdminKey>) -> AdminAccess {
        let keys = || admin.keys.iter().cloned().chain(generated).collect();
        let server = match config.enable_server_tokens {
            true => format!("APISIX/{APISIX_VERSION}"),
            false => "APISIX".to_owned(),
        };
        AdminAccess {
            keys: admin.key_required.then(keys),
            allow: admin.allow.clone(),
            cors: admin.cors,
            server: HeaderValue::from_str(&server).unwrap_or(HeaderValue::from_static("APISIX")),
        }
    }

    pub(super) fn allows(&self, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        self.allow.as_ref().is_none_or(|allowed| allowed.iter().any(|network| network.contains(&peer)))
    }

    /// Why a request is refused.
    pub(super) fn check(&self, request: &AdminRequest) -> Result<(), &'static str> {
        let Some(keys) = &self.keys else { return Ok(()) };
        let token = request.parameter("api_key").map(str::to_owned);
        // nginx has one variable for both.
        let header = ["x-api-key", "x_api_key"].into_iter().find_map(|name| request.header(name));
        let token = token.or_else(|| header.map(str::to_owned));
        let token = token.or_else(|| cookie(request, "x_api_key")).ok_or("missing apikey")?;
        let same = |key: &&AdminKey| {
            constant_time::verify_slices_are_equal(key.key.as_bytes(), token.as_bytes()).is_ok()
        };
        let key = keys.iter().find(same).ok_or("wrong apikey")?;
        match key.role {
            AdminRole::Viewer if request.method != Method::GET => Err("invalid method for role viewer"),
            _ => Ok(()),
        }
    }

    /// Adds what every answer has.
    pub(super) fn finish(&self, mut reply: AdminReply) -> AdminReply {
        reply.headers.push((header::SERVER, self.server.clone()));
        if self.cors {
            let of = HeaderValue::from_static;
            reply.headers.extend([
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, of("*")),
                (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, of("true")),
                (header::ACCESS_CONTROL_EXPOSE_HEADERS, of("*")),
                (header::ACCESS_CONTROL_MAX_AGE, of("3600")),
            ]);
        }
        reply
    }
}

fn cookie(request: &AdminRequest, name: &str) -> Option<String> {
    let lines = request.headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(n, _)| *n == name).map(|(_, value)| value.to_owned())
}
