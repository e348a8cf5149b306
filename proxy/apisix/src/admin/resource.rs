//! Reading and writing resources (`apisix/admin/resource.lua`).

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};
use sixfold_core::plugin::Consumers;

use super::check::{self, Others, Subject};
use super::message::{AdminReply, AdminRequest};
use super::references;
use super::target::Target;
use super::{list, patch};
use crate::resource::Kind;
use crate::source::Checker;
use crate::store::{Action, Committed, Kept, Key, Store, StoreError, Write};

type Answered = Result<AdminReply, AdminReply>;

/// How often a write is tried again that is about another resource, which others change meanwhile.
const MOST_TRIES: u32 = 16;

/// The resources of a store.
pub(super) struct Resources<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) checker: &'a Checker,
    /// Those in force.
    pub(super) consumers: &'a Consumers,
}

/// Whether times that a resource holds of itself may be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Times {
    Forbidden,
    Allowed,
}

/// The methods of which a kind says that it has not got them.
fn refuses(kind: Kind, method: &Method) -> bool {
    let not: &[Method] = match kind {
        Kind::Consumer | Kind::Credential | Kind::PluginMetadata => &[Method::POST, Method::PATCH],
        Kind::ConsumerGroup | Kind::PluginConfig | Kind::GlobalRule | Kind::Secret => &[Method::POST],
        Kind::Proto | Kind::StreamRoute => &[Method::PATCH],
        Kind::Route | Kind::Service | Kind::Upstream | Kind::Ssl => &[],
    };
    not.contains(method)
}

impl Resources<'_> {
    pub(super) fn answer(
        &self,
        target: &Target<'_>,
        request: &AdminRequest,
        body: Option<Value>,
        ttl: Option<Duration>,
    ) -> Answered {
        let method = &request.method;
        if refuses(target.kind, method) {
            let reason = format!("not supported `{method}` method for {}", target.kind);
            return Err(AdminReply::error(StatusCode::METHOD_NOT_ALLOWED, reason));
        }
        match *method {
            Method::GET => self.get(target, request),
            Method::PUT => self.put(target, body, ttl),
            Method::POST => self.post(target, body, ttl),
            Method::PATCH => self.patch(target, body, ttl),
            Method::DELETE => self.delete(target, request.parameter("force") == Some("true")),
            _ => Err(AdminReply::error(StatusCode::NOT_FOUND, "not found")),
        }
    }

    fn get(&self, target: &Target<'_>, request: &AdminRequest) -> Answered {
        let Some(id) = target.id else { return self.list(target, request) };
        let key = target.key(id);
        let kept = self.store.get(&key)?.ok_or_else(AdminReply::no_key)?;
        Ok(AdminReply::json(StatusCode::OK, &list::shown(self.store.prefix(), self.checker, &key, &kept)))
    }

    fn list(&self, target: &Target<'_>, request: &AdminRequest) -> Answered {
        let mut all = self.store.list(target.kind)?;
        if let Some(parent) = target.parent {
            let prefix = match target.kind {
                Kind::Credential => format!("{parent}/credentials/"),
                _ => format!("{parent}/"),
            };
            all.retain(|(key, _)| key.id.as_str().starts_with(&prefix));
            // The folder itself is kept for kinds alone.
            if all.is_empty() {
                return Err(AdminReply::no_key());
            }
        }
        list::answer((self.store.prefix(), self.checker), target.kind, &all, request)
    }

    fn put(&self, target: &Target<'_>, body: Option<Value>, ttl: Option<Duration>) -> Answered {
        let mut conf = body.ok_or_else(|| AdminReply::bad("missing configurations"))?;
        let key = self.checked(target, &mut conf, true, Times::Forbidden)?;
        if target.kind == Kind::PluginMetadata {
            set_id(&mut conf, Value::from(key.id.as_str()));
        } else {
            let before = self.store.get(&key)?;
            let created = before.as_ref().and_then(|kept| list::value(kept).get("create_time").cloned());
            stamp(&mut conf, created, true);
        }
        self.checker.seal(&key, &mut conf);
        let committed = self.commit_put(&key, &conf.to_string().into(), ttl)?;
        Ok(self.told(&key, conf, &committed, None))
    }

    /// Puts a value as far as others let it be there: a credential needs its consumer, and a consumer that is made begins without
    /// the credentials that one of its name has left.
    fn commit_put(&self, key: &Key, value: &Bytes, ttl: Option<Duration>) -> Result<Committed, AdminReply> {
        let mut tries = 0;
        loop {
            let put = Write { key: key.clone(), action: Action::Put(value.clone(), ttl), expected: None };
            let writes = match (key.kind, key.of_consumer()) {
                (Kind::Credential, Some((consumer, _))) => {
                    let consumer = Key::new(Kind::Consumer, consumer);
                    let missing = || AdminReply::error(StatusCode::NOT_FOUND, "consumer not found");
                    let kept = self.store.get(&consumer)?.ok_or_else(missing)?;
                    vec![put, Write::keep(consumer, kept.modified)]
                }
                (Kind::Consumer, _) if self.store.get(key)?.is_none() => {
                    let left = self.store.credentials(key.id.as_str())?;
                    let expected = (!left.is_empty()).then_some(0);
                    let left = left.into_iter().map(|(key, _)| Write::delete(key));
                    std::iter::once(Write { expected, ..put }).chain(left).collect()
                }
                _ => vec![put],
            };
            match self.store.commit(writes) {
                // The consumer was written in between.
                Err(StoreError::Changed) if tries < MOST_TRIES => tries += 1,
                committed => return Ok(committed?),
            }
        }
    }

    fn post(&self, target: &Target<'_>, body: Option<Value>, ttl: Option<Duration>) -> Answered {
        let mut conf = body.ok_or_else(|| AdminReply::bad("missing configurations"))?;
        self.checked(target, &mut conf, false, Times::Forbidden)?;
        stamp(&mut conf, None, true);
        let id = format!("{:020}", self.store.next_id()?);
        set_id(&mut conf, Value::from(id.as_str()));
        self.write(&target.key(&id), conf, ttl, None, Some(StatusCode::CREATED))
    }

    fn patch(&self, target: &Target<'_>, body: Option<Value>, ttl: Option<Duration>) -> Answered {
        let missing = || match target.kind {
            Kind::Secret => AdminReply::bad("no secret id"),
            kind => AdminReply::bad(format!("missing {kind} id")),
        };
        let key = target.key(target.id.ok_or_else(missing)?);
        let body = body.ok_or_else(|| AdminReply::bad("missing new configuration"))?;
        let whole = target.rest.is_empty();
        if whole && !body.is_object() && !body.is_array() {
            return Err(AdminReply::bad("invalid configuration"));
        }
        let kept = self.store.get(&key)?.ok_or_else(AdminReply::no_key)?;
        let mut conf = list::opened(self.checker, &key, &kept);
        let refresh = match (body, whole) {
            (Value::Object(body), true) => {
                let refresh = !body.contains_key("update_time");
                if let Value::Object(conf) = &mut conf {
                    patch::merge(conf, body);
                }
                refresh
            }
            // A list has no names that could be merged.
            (_, true) => true,
            (value, false) => {
                patch::at(&mut conf, &target.rest, value).map_err(AdminReply::bad)?;
                true
            }
        };
        stamp(&mut conf, None, refresh);
        self.checked(target, &mut conf, true, Times::Allowed)?;
        self.write(&key, conf, ttl, Some(kept.modified), Some(StatusCode::OK))
    }

    fn delete(&self, target: &Target<'_>, force: bool) -> Answered {
        let missing = || AdminReply::bad(format!("missing {} id", target.kind));
        let key = target.key(target.id.ok_or_else(missing)?);
        if !force && let Some(reason) = references::users(self.store, &key)? {
            return Err(AdminReply::bad(reason));
        }
        // A consumer's credentials go with it.
        if self.store.commit(vec![Write::delete(key.clone())])?.replaced.first() != Some(&true) {
            return Err(AdminReply::no_key());
        }
        Ok(AdminReply::json(StatusCode::OK, &json!({"deleted": "1", "key": key.path(self.store.prefix())})))
    }

    /// Looks at a value that is to be written; answers its key. Of a value without one that is not told yet, it means nothing.
    fn checked(
        &self,
        target: &Target<'_>,
        conf: &mut Value,
        need_id: bool,
        times: Times,
    ) -> Result<Key, AdminReply> {
        let id = self.identified(target, conf, need_id)?;
        if times == Times::Forbidden
            && let Some(property) = forbidden(conf)
        {
            return Err(AdminReply::bad(format!("the property is forbidden:  {property}")));
        }
        let subject = Subject { kind: target.kind, id: id.as_deref(), parent: target.parent };
        let others = Others { store: self.store, consumers: self.consumers };
        check::check(self.checker, Some(&others), &subject, conf).map_err(AdminReply::bad)?;
        let id = match target.kind {
            Kind::Consumer => conf.get("username").and_then(Value::as_str).map(str::to_owned),
            _ => id,
        };
        Ok(target.key(&id.unwrap_or_default()))
    }

    /// The id of a value, in which it is then, too.
    fn identified(
        &self,
        target: &Target<'_>,
        conf: &mut Value,
        need_id: bool,
    ) -> Result<Option<String>, AdminReply> {
        let kind = target.kind;
        if matches!(kind, Kind::Consumer | Kind::PluginMetadata) {
            return Ok(target.id.map(str::to_owned));
        }
        let of_path = target.id.map(|id| match (kind, target.parent) {
            (Kind::Secret, Some(manager)) => format!("{manager}/{id}"),
            _ => id.to_owned(),
        });
        let of_body = conf.get("id").and_then(id_text);
        match (need_id, of_path, of_body) {
            (true, None, None) => Err(AdminReply::bad(format!("missing {kind} id"))),
            (false, None, None) => Ok(None),
            (false, ..) => Err(AdminReply::bad(format!("wrong {kind} id, do not need it"))),
            (true, Some(path), Some(body)) if path != body => {
                Err(AdminReply::bad(format!("wrong {kind} id")))
            }
            (true, Some(path), _) => {
                set_id(conf, Value::from(path));
                Ok(target.id.map(str::to_owned))
            }
            (true, None, body) => Ok(body),
        }
    }

    fn write(
        &self,
        key: &Key,
        mut conf: Value,
        ttl: Option<Duration>,
        expected: Option<u64>,
        status: Option<StatusCode>,
    ) -> Answered {
        self.checker.seal(key, &mut conf);
        let value = conf.to_string().into();
        let write = Write { key: key.clone(), action: Action::Put(value, ttl), expected };
        let committed = self.store.commit(vec![write])?;
        Ok(self.told(key, conf, &committed, status))
    }

    /// The answer of a write to whoever has asked for it.
    fn told(&self, key: &Key, conf: Value, committed: &Committed, status: Option<StatusCode>) -> AdminReply {
        let replaced = committed.replaced.first() == Some(&true);
        let usual = if replaced { StatusCode::OK } else { StatusCode::CREATED };
        let mut shown = Map::new();
        shown.insert("key".to_owned(), key.path(self.store.prefix()).into());
        shown.insert("value".to_owned(), list::written(key.kind, conf));
        AdminReply::json(status.unwrap_or(usual), &Value::Object(shown))
    }
}

/// An id as text.
pub(super) fn id_text(id: &Value) -> Option<String> {
    match id {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

fn set_id(conf: &mut Value, id: Value) {
    if let Value::Object(conf) = conf {
        conf.insert("id".to_owned(), id);
    }
}

/// The first time that a client may not write.
fn forbidden(conf: &Value) -> Option<String> {
    let places = [(Some(conf), ""), (conf.get("upstream"), "upstream."), (conf.get("plugins"), "plugins.")];
    places.into_iter().find_map(|(object, prefix)| {
        let time = ["create_time", "update_time"].into_iter().find(|time| {
            object.and_then(|object| object.get(time)).is_some_and(|value| *value != Value::Bool(false))
        })?;
        Some(format!("{prefix}{time}"))
    })
}

/// Says when a value was made and changed, in seconds since 1970.
fn stamp(conf: &mut Value, created: Option<Value>, refresh: bool) {
    let Value::Object(conf) = conf else { return };
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = || Value::from(since.as_secs());
    if !conf.contains_key("create_time") {
        conf.insert("create_time".to_owned(), created.unwrap_or_else(now));
    }
    if refresh || !conf.contains_key("update_time") {
        conf.insert("update_time".to_owned(), now());
    }
}

/// For whoever shows what is kept.
pub(super) fn kept_json(kept: &Kept) -> Value {
    serde_json::from_slice(&kept.value).unwrap_or_default()
}
