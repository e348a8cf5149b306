//! Reading what is below a prefix and following its changes, as long as the store is there.

use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use sixfold_core::deadline::YEAR;
use sixfold_core::plugin::grpc::{Call, Status};

use super::Shared;
use super::link::{Repeat, is_of_token, is_unavailable, status};
use super::messages::{
    Compare, PutRequest, PutResponse, RangeRequest, RangeResponse, Request, RequestOp, TxnRequest,
    TxnResponse, WatchAsk, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
};
use super::mirror::{PLUGINS, Snapshot, Taken, unsigned};
use crate::plugin;

/// Values that are read at once: all of them need not fit one message.
const PAGE: i64 = 1000;
/// APISIX's first wait while no member is there; it doubles up to the last.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(32);
/// A watch that lasted so long was one: the next waits begin anew.
const LASTS: Duration = Duration::from_secs(10);

/// What APISIX keeps a directory for, in the form of a key with `/` behind it.
const DIRECTORIES: [&str; 13] = [
    "upstreams",
    "plugins",
    "ssls",
    "stream_routes",
    "plugin_metadata",
    "routes",
    "services",
    "consumers",
    "global_rules",
    "protos",
    "plugin_configs",
    "consumer_groups",
    "secrets",
];

/// Why a watch has ended that was one.
enum End {
    /// Somebody wants everything to be read again.
    Asked,
    /// Changes were missed: everything is to be read again.
    Missed(&'static str),
    /// Changes were compacted, of others perhaps.
    Compacted,
    /// The member has ended it, or is gone.
    Lost(Status),
}

/// Follows until it is dropped.
pub(super) async fn follow(shared: Arc<Shared>) {
    let (mut waits, mut known) = (Waits::default(), false);
    loop {
        if !known || shared.mirror.lock().is_asked_anew() {
            match read(&shared).await {
                Ok(snapshot) => {
                    if shared.writes {
                        make_directories(&shared, &snapshot).await;
                        tell_plugins(&shared, &snapshot).await;
                    }
                    let changed = shared.mirror.lock().replace(snapshot);
                    shared.tell(changed);
                    // The watch that is opened now tells of writes from here on.
                    shared.set_following(true);
                    shared.outcome(Ok(()));
                    known = true;
                }
                Err(status) => {
                    shared.outcome(Err(&status));
                    tokio::time::sleep(waits.next(&status, shared.resync_delay)).await;
                    continue;
                }
            }
        }
        let began = tokio::time::Instant::now();
        let ended = watch(&shared).await;
        shared.set_following(false);
        if began.elapsed() > LASTS {
            waits = Waits::default();
        }
        match ended {
            Ok(End::Asked) => {}
            Ok(End::Compacted) => {
                known = is_unchanged(&shared).await;
                if !known {
                    tracing::info!("changes were compacted: everything is read from etcd again");
                }
            }
            Ok(End::Missed(reason)) => {
                tracing::info!(reason, "everything is read from etcd again");
                known = false;
            }
            Ok(End::Lost(status)) | Err(status) => {
                if is_of_token(&status) {
                    shared.link.forget_token();
                }
                shared.outcome(Err(&status));
                tokio::time::sleep(waits.next(&status, shared.resync_delay)).await;
            }
        }
    }
}

/// How long to wait after errors in a row, jittered so that a thousand gateways do not come at once.
#[derive(Default)]
struct Waits(u32);

impl Waits {
    fn next(&mut self, status: &Status, resync_delay: Duration) -> Duration {
        let count = self.0;
        self.0 = self.0.saturating_add(1);
        if !is_unavailable(status) {
            return resync_delay.min(YEAR).mul_f64(1.0 + 0.5 * fastrand::f64());
        }
        // At first there may be another member, or the same one again.
        let Some(doubled) = count.checked_sub(1) else { return Duration::from_millis(fastrand::u64(0..100)) };
        let wait = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(doubled)).min(LAST_WAIT);
        wait.mul_f64(0.5 + 0.5 * fastrand::f64())
    }
}

/// Reads all values below the prefix, as they were at one moment.
async fn read(shared: &Shared) -> Result<Snapshot, Status> {
    let mut snapshot = Snapshot::default();
    let (mut from, end) = shared.range("");
    loop {
        let question = RangeRequest {
            key: from,
            range_end: end.clone(),
            limit: PAGE,
            // The first page says which one.
            revision: i64::try_from(snapshot.revision).unwrap_or_default(),
            ..RangeRequest::default()
        };
        let answer: RangeResponse =
            shared.link.ask("/etcdserverpb.KV/Range", &question, Repeat::Safe).await?;
        let header = answer.header.unwrap_or_default();
        if snapshot.revision == 0 {
            (snapshot.revision, snapshot.cluster) = (unsigned(header.revision), header.cluster_id);
            snapshot.count = Some(unsigned(answer.count));
        }
        let last = answer.kvs.last().map(|kv| kv.key.to_vec());
        for kv in answer.kvs {
            if let Some(path) = shared.path_of(&kv.key) {
                snapshot.take(&path, kv);
            }
        }
        match last {
            Some(last) if answer.more => {
                from = last;
                from.push(0);
            }
            _ => return Ok(snapshot),
        }
    }
}

/// Whether nothing has changed below the prefix since what is known, which is then known at a later revision: where others write
/// to the cluster, what is compacted need not be anything of here. An answer that does not come says that it may have.
async fn is_unchanged(shared: &Shared) -> bool {
    let known = shared.mirror.lock().revision;
    let (key, range_end) = shared.range("");
    let min_mod_revision = i64::try_from(known + 1).unwrap_or(i64::MAX);
    let question = RangeRequest {
        key,
        range_end,
        limit: 1,
        min_mod_revision,
        keys_only: true,
        ..RangeRequest::default()
    };
    let asked: Result<RangeResponse, Status> =
        shared.link.ask("/etcdserverpb.KV/Range", &question, Repeat::Safe).await;
    asked.is_ok_and(|answer| shared.mirror.lock().is_as_at(known, &answer))
}

/// Makes the directories that are not there, as `apisix init_etcd` does; a gateway of APISIX wants them.
async fn make_directories(shared: &Shared, snapshot: &Snapshot) {
    let missing = DIRECTORIES.iter().filter(|name| !snapshot.directories.contains(**name));
    let keys: Vec<Vec<u8>> = missing.map(|name| format!("{}/{name}/", shared.prefix).into_bytes()).collect();
    if keys.is_empty() {
        return;
    }
    let put = |key: &Vec<u8>| RequestOp {
        request: Some(Request::Put(PutRequest {
            key: key.clone(),
            value: "init_dir".into(),
            ..PutRequest::default()
        })),
    };
    let question = TxnRequest {
        compare: keys.iter().map(|key| Compare::at(key.clone(), 0)).collect(),
        success: keys.iter().map(put).collect(),
    };
    let asked: Result<TxnResponse, Status> =
        shared.link.ask("/etcdserverpb.KV/Txn", &question, Repeat::Safe).await;
    if let Err(status) = asked {
        tracing::warn!(%status, "no directories were made in etcd");
    }
}

/// Tells the plugins that config.yaml lists to gateways without one: APISIX keeps the list of whoever has an Admin API. It is
/// whole: a gateway of APISIX runs nothing that is not in it. What config.yaml does not list stays as it is there, or is what
/// APISIX has by default.
async fn tell_plugins(shared: &Shared, snapshot: &Snapshot) {
    if !shared.plugins.says_something() {
        return;
    }
    let plugins = match &snapshot.plugins {
        Some(there) => shared.plugins.clone().or(there),
        None => shared.plugins.clone().or(&plugin::defaults()),
    };
    if snapshot.plugins.as_ref() == Some(&plugins) {
        return;
    }
    let value = plugins.list().into();
    let key = format!("{}/{PLUGINS}", shared.prefix).into_bytes();
    let question = PutRequest { key, value, ..PutRequest::default() };
    let asked: Result<PutResponse, Status> =
        shared.link.ask("/etcdserverpb.KV/Put", &question, Repeat::Safe).await;
    if let Err(status) = asked {
        tracing::warn!(%status, "the list of plugins was not written to etcd");
    }
}

/// Follows changes from what is known on.
async fn watch(shared: &Shared) -> Result<End, Status> {
    let (known, cluster) = {
        let mirror = shared.mirror.lock();
        (mirror.revision, mirror.cluster)
    };
    let (mut call, failed) = shared.link.open("/etcdserverpb.Watch/Watch").await?;
    let (key, range_end) = shared.range("");
    let start_revision = i64::try_from(known + 1).unwrap_or(i64::MAX);
    let create = WatchAsk::Create(WatchCreateRequest { key, range_end, start_revision });
    let first = async {
        send(&mut call, create).await?;
        receive(&mut call).await
    };
    // A member that opens a call and says nothing is to be left.
    let first = tokio::time::timeout(shared.timeout, first).await;
    let first = first
        .unwrap_or_else(|_| Err(status(14, "no answer in time")))
        .inspect_err(|_| shared.link.has_failed())?;
    let header = first.header.clone().unwrap_or_default();
    if header.cluster_id != cluster {
        return Ok(End::Missed("another cluster answers"));
    }
    if unsigned(header.revision) < known {
        // Or a member that lags behind; reading tells.
        return Ok(End::Missed("its revision went backwards"));
    }
    if let Some(end) = canceled(&first) {
        return end;
    }
    shared.outcome(Ok(()));
    shared.set_following(true);
    let lost = |status| {
        shared.link.has_failed();
        End::Lost(status)
    };
    let mut asked = false;
    loop {
        let patience = if asked { shared.timeout } else { shared.watch_timeout };
        let received = tokio::select! {
            received = tokio::time::timeout(patience, receive(&mut call)) => received,
            () = shared.again.notified() => return Ok(End::Asked),
            () = failed.notified() => return Ok(lost(status(14, "the member answers nothing else"))),
        };
        let response = match received {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => return Ok(lost(status)),
            Err(_) if asked => return Ok(lost(status(14, "a watch that says nothing"))),
            Err(_) => {
                asked = true;
                let progress = WatchAsk::Progress(WatchProgressRequest {});
                if let Err(status) = send(&mut call, progress).await {
                    return Ok(lost(status));
                }
                continue;
            }
        };
        asked = false;
        if let Some(end) = canceled(&response) {
            return end;
        }
        if take(shared, response) {
            return Ok(End::Missed("other plugins are enabled"));
        }
    }
}

/// Takes changes; answers whether everything is to be read anew.
fn take(shared: &Shared, response: WatchResponse) -> bool {
    if response.events.is_empty() {
        // It says that the watch lives.
        return false;
    }
    let Taken { changed, everything } = shared.mirror.lock().take(response, |key| shared.path_of(key));
    shared.tell(changed);
    everything
}

fn canceled(response: &WatchResponse) -> Option<Result<End, Status>> {
    if response.compact_revision > 0 {
        return Some(Ok(End::Compacted));
    }
    let reason = || response.cancel_reason.clone();
    response.canceled.then(|| match response.cancel_reason.contains("permission denied") {
        true => Err(status(7, reason())),
        false => Err(status(2, reason())),
    })
}

async fn send(call: &mut Call, ask: WatchAsk) -> Result<(), Status> {
    call.send(&WatchRequest { ask: Some(ask) }.encode_to_vec()).await
}

async fn receive(call: &mut Call) -> Result<WatchResponse, Status> {
    let message = call.receive().await?.ok_or_else(|| status(14, "the watch has ended"))?;
    WatchResponse::decode(message).map_err(|error| status(13, format!("no watch of etcd: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_while_nobody_is_there() {
        let gone = status(14, "");
        let mut waits = Waits::default();
        assert!(waits.next(&gone, Duration::ZERO) < Duration::from_millis(100));
        for bound in [1, 2, 4, 8, 16, 32, 32, 32] {
            let (wait, bound) = (waits.next(&gone, Duration::ZERO), Duration::from_secs(bound));
            assert!(wait <= bound && wait >= bound / 2, "{wait:?} of {bound:?}");
        }
        let refused = waits.next(&status(7, ""), Duration::from_secs(4));
        assert!(refused >= Duration::from_secs(4) && refused <= Duration::from_secs(6), "{refused:?}");
    }
}
