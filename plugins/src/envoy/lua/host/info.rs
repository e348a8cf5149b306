//! What is known of a request beside its messages: its connection, route, metadata and filter state.

use super::super::values;
use super::{Args, Host, Op};
use mlua::{Lua, LuaString, Value};
use sixfold_core::connection::{Certificate, TlsInfo};
use sixfold_core::message::Version;
use sixfold_core::stream::FilterObject;
use std::collections::BTreeMap;

impl Host<'_> {
    pub(super) fn info(&mut self, op: Op, args: &mut Args<'_>) -> mlua::Result<Value> {
        let lua = args.lua;
        let connection = self.stream.connection.clone();
        let text = |text: &str| lua.create_string(text).map(Value::String);
        match op {
            Op::Metadata => {
                let route = self.stream.route.clone();
                let found = route.as_ref().and_then(|route| {
                    let of = |namespace: &str| route.metadata.get(namespace);
                    of(&self.script.filter).or_else(|| of("envoy.filters.http.lua"))
                });
                values::table(lua, found)
            }
            Op::HostMetadata => {
                let host = self.stream.virtual_host.clone();
                let found = host.as_ref().and_then(|host| {
                    let of = |namespace: &str| host.options.metadata.get(namespace);
                    of(&self.script.filter).or_else(|| of("envoy.filters.http.lua"))
                });
                values::table(lua, found)
            }
            Op::Context => values::table(lua, self.script.context.as_ref()),
            Op::DynamicGet => {
                let namespace: String = args.next()?;
                self.dynamic_of(&namespace, lua)
            }
            Op::DynamicSet => {
                let (namespace, key): (String, String) = (args.next()?, args.next()?);
                values::keep(self.may_keep, namespace.len() + key.len())?;
                let value = values::of_lua(&args.next()?, self.may_keep)?;
                self.stream.metadata.push((namespace.into(), key.into(), value));
                Ok(Value::Nil)
            }
            Op::DynamicAll => {
                let all = self.dynamic().into_iter();
                let all = all.map(|(namespace, fields)| (namespace, serde_json::Value::Object(fields)));
                values::to_lua(lua, &serde_json::Value::Object(all.collect()))
            }
            Op::FilterState => {
                let key: String = args.next()?;
                let value = self.stream.filter_object(&key).map(|object| object.value.to_vec());
                value.map_or(Ok(Value::Nil), |value| lua.create_string(value).map(Value::String))
            }
            Op::FilterStateSet => {
                let (_, key, value): (String, String, LuaString) = (args.next()?, args.next()?, args.next()?);
                let value = value.as_bytes();
                values::keep(self.may_keep, size_of::<FilterObject>() + key.len() + value.len())?;
                let value = value.to_vec().into();
                let object = FilterObject { key: key.into(), value, hashable: false, read_only: false };
                self.stream.set_filter_state(object);
                Ok(Value::Nil)
            }
            Op::IsTls => Ok(Value::Boolean(connection.tls.is_some())),
            Op::Protocol => text(match self.stream.request.version {
                Version::Http10 => "HTTP/1.0",
                Version::Http11 => "HTTP/1.1",
                Version::Http2 => "HTTP/2",
                Version::Http3 => "HTTP/3",
            }),
            Op::RouteName => text(self.stream.route.as_ref().map_or("", |route| &route.name)),
            Op::VirtualClusterName => {
                let host = self.stream.virtual_host.clone();
                let index = self.stream.virtual_cluster.and_then(|index| usize::try_from(index).ok());
                let found = index.and_then(|index| host.as_ref()?.options.virtual_clusters.get(index));
                text(found.map_or("", |cluster| &cluster.name))
            }
            Op::LocalAddress => text(&connection.local.to_string()),
            Op::DirectLocalAddress => text(&connection.direct_local.to_string()),
            Op::RemoteAddress => text(&self.stream.remote.to_string()),
            Op::DirectRemoteAddress => text(&connection.direct_remote.to_string()),
            Op::ServerName => text(connection.server_name().unwrap_or_default()),
            other => match &connection.tls {
                Some(tls) => tls_info(other, tls, args),
                None => Ok(Value::Nil),
            },
        }
    }

    /// Dynamic metadata of one namespace, if there is any.
    fn dynamic_of(&self, namespace: &str, lua: &Lua) -> mlua::Result<Value> {
        let mut table = None;
        for (_, key, value) in self.stream.metadata.iter().filter(|(of, _, _)| **of == *namespace) {
            let table = match &table {
                Some(table) => table,
                None => &*table.insert(lua.create_table()?),
            };
            table.set(&**key, values::to_lua(lua, value)?)?;
        }
        Ok(table.map_or(Value::Nil, Value::Table))
    }

    /// Dynamic metadata as it stands: of a key that was set twice the last value.
    fn dynamic(&self) -> BTreeMap<String, serde_json::Map<String, serde_json::Value>> {
        let mut all: BTreeMap<String, serde_json::Map<String, serde_json::Value>> = BTreeMap::new();
        for (namespace, key, value) in &self.stream.metadata {
            all.entry(namespace.to_string()).or_default().insert(key.to_string(), value.clone());
        }
        all
    }
}

fn tls_info(op: Op, tls: &TlsInfo, args: &Args<'_>) -> mlua::Result<Value> {
    let lua = args.lua;
    let text = |text: &str| lua.create_string(text).map(Value::String);
    let peer = |of: fn(&Certificate) -> &str| text(tls.peer.as_deref().map_or("", of));
    let list = |certificate: Option<&Certificate>, of: fn(&Certificate) -> &[String]| {
        let names = certificate.map_or(&[][..], of);
        lua.create_sequence_from(names.iter().map(String::as_str)).map(Value::Table)
    };
    match op {
        Op::PeerPresented => Ok(Value::Boolean(tls.peer.is_some())),
        Op::PeerValidated => Ok(Value::Boolean(tls.peer_validated)),
        Op::SubjectPeer => peer(|certificate| &certificate.subject),
        Op::IssuerPeer => peer(|certificate| &certificate.issuer),
        Op::SerialPeer => peer(|certificate| &certificate.serial),
        Op::DigestPeer => peer(|certificate| &certificate.sha256),
        Op::SubjectLocal => text(tls.local.as_deref().map_or("", |certificate| &certificate.subject)),
        Op::UriSanPeer => list(tls.peer.as_deref(), |certificate| &certificate.uri_sans),
        Op::UriSanLocal => list(tls.local.as_deref(), |certificate| &certificate.uri_sans),
        Op::DnsSansPeer => list(tls.peer.as_deref(), |certificate| &certificate.dns_sans),
        Op::DnsSansLocal => list(tls.local.as_deref(), |certificate| &certificate.dns_sans),
        Op::TlsVersion => text(tls.version),
        Op::Ciphersuite => text(tls.cipher),
        _ => Ok(Value::Nil),
    }
}
