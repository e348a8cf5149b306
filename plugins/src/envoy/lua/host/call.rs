//! Calls of services, answers, and signatures.

use super::fields::{self, status};
use super::{Args, Host, Side};
use aws_lc_rs::signature::{self, UnparsedPublicKey};
use bytes::Bytes;
use mlua::{Error, LuaString, MultiValue, Table, Value};
use sixfold_core::headers::{Headers, is_clean, is_token};
use sixfold_core::message::Method;
use sixfold_core::plugin::{CalloutRequest, Keepalive, LocalReply};
use std::time::Duration;

/// Bytes of a service's answer that a script gets; a longer one is a failure.
const LONGEST_ANSWER: usize = 1 << 20;

/// A call without a timeout of its own ends after so long.
const LONGEST_CALL: Duration = Duration::from_secs(60);

/// Fields of a table: pseudo-headers apart, values of a list each by itself.
#[derive(Default)]
struct Given {
    method: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    status: Option<Vec<u8>>,
    headers: Headers,
}

impl Given {
    fn of(table: &Table) -> mlua::Result<Given> {
        let mut given = Given::default();
        // A table has no order of its own: the same one gives the same request.
        let mut fields: Vec<(String, Value)> = Vec::new();
        for pair in table.pairs::<LuaString, Value>() {
            let (name, value) = pair?;
            fields.push((String::from_utf8_lossy(&name.as_bytes()).to_ascii_lowercase(), value));
        }
        fields.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, value) in fields {
            match value {
                Value::Table(values) => {
                    for value in values.sequence_values::<LuaString>() {
                        given.add(&name, &value?.as_bytes());
                    }
                }
                Value::String(value) => given.add(&name, &value.as_bytes()),
                Value::Integer(number) => given.add(&name, number.to_string().as_bytes()),
                Value::Number(number) => given.add(&name, number.to_string().as_bytes()),
                _ => return Err(Error::runtime(format!("header {name}: a string is expected"))),
            }
        }
        Ok(given)
    }

    /// Takes a field as it is, also one that no header can hold: a script that ended over it would have let a request pass that
    /// it was about to refuse.
    fn add(&mut self, name: &str, value: &[u8]) {
        let pseudo = match name {
            ":method" => &mut self.method,
            ":path" => &mut self.path,
            ":authority" | "host" => &mut self.authority,
            ":status" => &mut self.status,
            ":scheme" => return,
            name => return fields::add(&mut self.headers, name, value),
        };
        *pseudo = Some(value.to_vec());
    }
}

impl Host<'_> {
    /// The call that a script asks for.
    pub(super) fn request(&self, args: &mut Args<'_>) -> mlua::Result<CalloutRequest> {
        let cluster: String = args.next()?;
        let mut given = Given::of(&args.next()?)?;
        let body: Option<LuaString> = args.next()?;
        let timeout: f64 = args.next()?;
        let cell = self.script.cluster(&cluster);
        let cell = cell.ok_or_else(|| Error::runtime("http call cluster invalid. Must be configured"))?;
        let (Some(path), Some(method), Some(authority)) = (given.path, given.method, given.authority) else {
            return Err(Error::runtime(
                "http call headers must include ':path', ':method', and ':authority'",
            ));
        };
        // What can't be a method can't be sent, and the script hears that there is no answer.
        let method = Method::from_bytes(&method).unwrap_or_else(|_| {
            fields::add(&mut given.headers, ":method", &method);
            Method::GET
        });
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        // What is no number at all is no time either.
        let given_time =
            Duration::try_from_secs_f64((timeout / 1000.0).clamp(0.0, 86_400.0)).unwrap_or_default();
        let bound = Some(given_time).filter(|time| !time.is_zero());
        self.script.own.clone().within(bound).tell(&mut given.headers);
        Ok(CalloutRequest {
            uri: format!("http://{}{}", text(&authority), text(&path)),
            target: None,
            cluster: Some(cell),
            retries: 0,
            method,
            headers: given.headers,
            body: body.map(|body| Bytes::copy_from_slice(&body.as_bytes())).unwrap_or_default(),
            timeout: bound.unwrap_or(LONGEST_CALL),
            verify_tls: true,
            max_body: LONGEST_ANSWER,
            keepalive: Some(Keepalive::default()),
        })
    }

    /// The answer that a script gives in the place of an upstream.
    pub(super) fn answer(&self, args: &mut Args<'_>) -> mlua::Result<LocalReply> {
        if self.side == Side::Response {
            return Err(Error::runtime("respond not currently supported in the response path"));
        }
        if !self.head_is_here {
            return Err(Error::runtime("respond() cannot be called if headers have been continued"));
        }
        let given = Given::of(&args.next()?)?;
        let body: Option<LuaString> = args.next()?;
        let status = given.status.as_deref().and_then(status);
        let status = status.ok_or_else(|| Error::runtime(":status must be between 200-599"))?;
        let body = body.map(|body| Bytes::copy_from_slice(&body.as_bytes())).unwrap_or_default();
        // The answer counts, and not how it is spelled.
        let mut headers = given.headers;
        headers.retain(|_, name, value| is_token(name) && is_clean(value));
        Ok(LocalReply { headers, ..LocalReply::new(status, body, "lua_response") })
    }
}

/// Whether a signature of the data is right, and why not.
pub(super) fn verify(args: &mut Args<'_>) -> mlua::Result<MultiValue> {
    let hash: String = args.next()?;
    let (key, sign, data): (LuaString, LuaString, LuaString) = (args.next()?, args.next()?, args.next()?);
    let algorithm = match hash.to_ascii_lowercase().as_str() {
        "sha1" => &signature::RSA_PKCS1_1024_8192_SHA1_FOR_LEGACY_USE_ONLY,
        "sha256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "sha384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "sha512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        other => return refused(args, &format!("{other} is not supported.")),
    };
    let key = UnparsedPublicKey::new(algorithm, key.as_bytes().to_vec());
    match key.verify(&data.as_bytes(), &sign.as_bytes()) {
        Ok(()) => {
            Ok(MultiValue::from_iter([Value::Boolean(true), Value::String(args.lua.create_string("")?)]))
        }
        Err(_) => refused(args, "Failed to verify digest. Error code: 0"),
    }
}

fn refused(args: &Args<'_>, why: &str) -> mlua::Result<MultiValue> {
    Ok(MultiValue::from_iter([Value::Boolean(false), Value::String(args.lua.create_string(why)?)]))
}
