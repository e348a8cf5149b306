//! What has come of each secret, and who is made of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prost::Name;
use sixfold_core::error::ConfigError;
use sixfold_core::interned::Sweep;
use sixfold_core::metrics::{Registry, named_scope};
use sixfold_core::tls::{ClientTls, ContextChange};
use sixfold_xds_api::constraints;
use sixfold_xds_api::pb::envoy::extensions::transport_sockets::tls::v3::Secret;
use sixfold_xds_api::values::Result;
use tokio::sync::Notify;

use super::files::{self, Looks, Stamps};
use super::key::{Reference, SecretKey};
use super::{SecretStats, User};
use crate::rds::Source;
use crate::tls;
use crate::unknown::Unknown;

/// All secrets of the process that come by themselves. One is there for as long as settings name it.
#[derive(Default)]
pub struct Secrets {
    state: Mutex<State>,
    registry: Registry,
    /// What is done about their unknown fields.
    unknown: Arc<Unknown>,
    /// Told when a secret is named for the first time.
    named: Notify,
    /// Told when a secret has come, or was given up.
    news: Arc<Notify>,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<SecretKey, Entry>,
    /// Settings of clusters by [`User::print`].
    clients: HashMap<u64, Users>,
    sweep: Sweep,
    /// Grows with every secret that is put in force.
    version: u64,
}

/// Keeps an entry that nobody may name yet, and is locked while its file is read for the first time.
type Hold = Arc<Mutex<()>>;

struct Entry {
    /// The last good one, with the contents of the files that it names.
    value: Option<Arc<Secret>>,
    users: Users,
    hold: Hold,
    /// Whether it was said that there is none, or one came that is no good: nobody waits for the first.
    given_up: bool,
    /// As it was sent, and what its files were then: what of it is looked at again.
    sent: Option<Sent>,
    stats: SecretStats,
}

/// Why a secret is not taken.
enum Refusal {
    /// It, or a file that it names, could not be read. It may be, later.
    Unread(ConfigError),
    /// What is wrong with it.
    Unfit(ConfigError),
}

impl Refusal {
    fn into_error(self) -> ConfigError {
        match self {
            Refusal::Unread(error) | Refusal::Unfit(error) => error,
        }
    }
}

/// Users for as long as somebody else holds them.
#[derive(Default)]
struct Users {
    all: Vec<Weak<User>>,
    sweep: Sweep,
}

#[derive(Clone)]
struct Sent {
    message: Arc<Secret>,
    stamps: Stamps,
}

/// A secret that fits all who name it, not in force yet.
pub struct Checked {
    key: SecretKey,
    value: Arc<Secret>,
    sent: Sent,
    /// Settings made of it, when the store was of that version.
    compiled: Vec<(Arc<User>, ContextChange)>,
    version: u64,
}

/// A secret that was read again since its files have changed.
pub(super) struct Again {
    checked: Checked,
    /// What it was read for, as that was sent.
    for_sent: Option<Arc<Secret>>,
}

impl std::fmt::Debug for Checked {
    /// Leaves the content out: it is a private key, or as good as one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "secret {}", self.key.name)
    }
}

impl State {
    fn value(&self, key: &SecretKey) -> Option<Arc<Secret>> {
        self.entries.get(key)?.value.clone()
    }

    fn users(&mut self, key: &SecretKey) -> Vec<Arc<User>> {
        self.entries.get_mut(key).map(|entry| entry.users.held()).unwrap_or_default()
    }

    fn add_client(&mut self, user: &Arc<User>) {
        if self.sweep.is_due(self.clients.len()) {
            self.clients.retain(|_, users| users.is_held());
            self.sweep.done(self.clients.len());
        }
        self.clients.entry(user.print()).or_default().push(user);
    }
}

impl Users {
    fn push(&mut self, user: &Arc<User>) {
        if self.sweep.is_due(self.all.len()) {
            self.forget();
        }
        self.all.push(Arc::downgrade(user));
    }

    fn held(&mut self) -> Vec<Arc<User>> {
        self.forget();
        self.all.iter().filter_map(Weak::upgrade).collect()
    }

    fn is_held(&self) -> bool {
        self.all.iter().any(|user| user.strong_count() > 0)
    }

    fn forget(&mut self) {
        self.all.retain(|user| user.strong_count() > 0);
        self.sweep.done(self.all.len());
    }
}

impl Secrets {
    /// None yet; what is counted of them is shown in `registry`.
    pub fn new(registry: Registry, unknown: Arc<Unknown>) -> Secrets {
        Secrets { registry, unknown, ..Secrets::default() }
    }

    /// Makes somebody who names secrets, from those that have come; no secret comes meanwhile. Files that secrets are
    /// named in are read now, if they were not.
    pub(super) fn enter<T>(
        &self,
        named: &[Reference],
        make: impl FnOnce(&dyn Fn(&SecretKey) -> Option<Arc<Secret>>) -> Result<(T, Option<Arc<User>>)>,
    ) -> Result<T> {
        let _held: Vec<_> = named.iter().map(|reference| self.read_first(&reference.key)).collect();
        let mut state = self.state.lock();
        let (made, user) = make(&|key| state.value(key))?;
        let Some(user) = user else { return Ok(made) };
        let mut is_new = false;
        for key in user.keys() {
            let new = || {
                is_new = true;
                Entry::new(&self.registry, key)
            };
            let entry = state.entries.entry(key.clone()).or_insert_with(new);
            entry.users.push(&user);
        }
        if user.client_place().is_some() {
            state.add_client(&user);
        }
        drop(state);
        self.release(&user);
        if is_new {
            self.named.notify_one();
        }
        Ok(made)
    }

    /// Places of clusters whose settings have this [`User::print`] and are as `wanted` says.
    pub(super) fn clients(&self, print: u64, wanted: impl Fn(&User) -> bool) -> Vec<Arc<ClientTls>> {
        let users = self.state.lock().clients.get_mut(&print).map(Users::held).unwrap_or_default();
        users.iter().filter(|user| wanted(user)).filter_map(|user| user.client_place()).collect()
    }

    /// Whether somebody names the secret already.
    pub(super) fn knows(&self, key: &SecretKey) -> bool {
        self.state.lock().entries.contains_key(key)
    }

    /// Keeps what there is of a secret, though nobody may name it yet.
    fn hold(&self, key: &SecretKey) -> Option<Hold> {
        self.state.lock().entries.get(key).map(|entry| entry.hold.clone())
    }

    /// Reads the file that a secret is to be found in, if nobody has; who comes while somebody does waits for that. What is
    /// wrong with it keeps nobody from serving. The answer keeps what has come until somebody names it.
    fn read_first(&self, key: &SecretKey) -> Option<Hold> {
        let Source::Path(path) = &key.source else { return self.hold(key) };
        let mut state = self.state.lock();
        if let Some(hold) = state.entries.get(key).map(|entry| entry.hold.clone()) {
            drop(state);
            drop(hold.lock());
            return Some(hold);
        }
        let entry = Entry::new(&self.registry, key);
        let hold = entry.hold.clone();
        // Before anybody finds it.
        let turn = hold.lock();
        state.entries.insert(key.clone(), entry);
        drop(state);
        let text = files::read(path);
        let checked = text
            .map_err(|error| ConfigError::new(error.to_string()))
            .and_then(|text| files::secret(&text, path, &key.name, &self.unknown))
            .and_then(|message| self.check_message(key, message));
        match checked {
            Ok(checked) => drop(self.put(checked)),
            Err(error) => {
                self.give_up(key);
                tracing::error!("secret \"{}\" of {} refused: {error}", key.name, path.display());
            }
        }
        drop(turn);
        Some(hold)
    }

    /// Whether a secret, as it was sent, fits all who name it. Nothing changes by that.
    ///
    /// # Errors
    /// What is wrong with it, or with what it is used for.
    pub fn check(&self, key: &SecretKey, value: &[u8]) -> Result<Checked> {
        let known = self.unknown.look(&<Secret as Name>::full_name(), value);
        let decoded = known.and_then(|()| constraints::decode(value));
        let checked = decoded.and_then(|message| self.check_message(key, message));
        self.count(key, |stats| {
            stats.update_attempt().inc();
            if checked.is_err() {
                stats.update_rejected().inc();
            }
        });
        if checked.is_err() {
            self.give_up(key);
        }
        checked
    }

    fn check_message(&self, key: &SecretKey, message: Secret) -> Result<Checked> {
        self.check_read(key, message).map_err(Refusal::into_error)
    }

    /// [`Secrets::check_message`], which tells what could not be read from what is no good.
    fn check_read(&self, key: &SecretKey, message: Secret) -> std::result::Result<Checked, Refusal> {
        if *message.name != *key.name {
            let reason = format!("is \"{}\" in the secret \"{}\"", message.name, key.name);
            return Err(Refusal::Unfit(ConfigError::field("name", reason)));
        }
        let contents = files::with_contents(&message).map_err(Refusal::Unread)?;
        self.check_contents(key, message, contents).map_err(Refusal::Unfit)
    }

    fn check_contents(
        &self,
        key: &SecretKey,
        message: Secret,
        (value, stamps): (Secret, Stamps),
    ) -> Result<Checked> {
        tls::check_secret(&value)?;
        let value = Arc::new(value);
        let mut state = self.state.lock();
        let (users, version) = (state.users(key), state.version);
        let come = |other: &SecretKey| if other == key { Some(value.clone()) } else { state.value(other) };
        let mut compiled = Vec::new();
        for user in users {
            if let Some(change) = user.compile(&come)? {
                compiled.push((user, change));
            }
        }
        let sent = Sent { message: Arc::new(message), stamps };
        Ok(Checked { key: key.clone(), value: value.clone(), sent, compiled, version })
    }

    /// Takes a secret for the one that there is, and answers what changes by it.
    pub fn put(&self, checked: Checked) -> Vec<ContextChange> {
        self.put_if(checked, |_, _| true)
    }

    /// The same with a secret that was read again. It takes only the place of what it was read for: a newer one may have
    /// come meanwhile.
    pub(super) fn put_again(&self, again: Again) -> Vec<ContextChange> {
        let Again { checked, for_sent } = again;
        self.put_if(checked, |entry, checked| {
            if !entry.is_as_sent(for_sent.as_ref()) {
                return false;
            }
            let changes = entry.value.as_ref() != Some(&checked.value);
            if changes {
                tracing::info!("secret \"{}\" has changed", checked.key.name);
            } else {
                // Other files of the same contents.
                entry.sent = Some(checked.sent.clone());
            }
            changes
        })
    }

    fn put_if(&self, checked: Checked, may: impl FnOnce(&mut Entry, &Checked) -> bool) -> Vec<ContextChange> {
        let mut state = self.state.lock();
        let users = state.users(&checked.key);
        let Some(entry) = state.entries.get_mut(&checked.key) else { return Vec::new() };
        if !may(entry, &checked) {
            return Vec::new();
        }
        let Checked { key, value, sent, compiled, version } = checked;
        entry.stats.update_success().inc();
        entry.stats.update_time().set(crate::ads::now());
        (entry.value, entry.sent) = (Some(value), Some(sent));
        // What was compiled beside other secrets than those that there are now does not count.
        let compiled = if state.version == version { compiled } else { Vec::new() };
        let mut compiled: HashMap<*const User, ContextChange> =
            compiled.into_iter().map(|(user, change)| (Arc::as_ptr(&user), change)).collect();
        state.version += 1;
        let (mut changes, mut left) = (Vec::with_capacity(users.len()), Vec::new());
        for user in users {
            let change = match compiled.remove(&Arc::as_ptr(&user)) {
                Some(ready) => Ok(Some(ready)),
                None => user.compile(&|key| state.value(key)),
            };
            match change {
                Ok(Some(change)) => {
                    user.count_update();
                    changes.push(change);
                }
                Ok(None) => left.push(user),
                Err(error) => tracing::error!("secret \"{}\" does not fit: {error}", key.name),
            }
        }
        drop(state);
        self.news.notify_one();
        // The others of theirs may be such that nobody waits for.
        left.iter().for_each(|user| self.release(user));
        changes
    }

    /// Told when a secret has come, or was given up. One may wait for it.
    pub(crate) fn news(&self) -> Arc<Notify> {
        self.news.clone()
    }

    /// Whether a secret need not be waited for: it has come, was given up, or nobody names it.
    pub(crate) fn is_over(&self, key: &SecretKey) -> bool {
        let state = self.state.lock();
        state.entries.get(key).is_none_or(|entry| entry.value.is_some() || entry.given_up)
    }

    /// All that are named, each as it was sent last, if it has come.
    pub fn shown(&self) -> Vec<(SecretKey, Option<Arc<Secret>>)> {
        let message = |entry: &Entry| entry.sent.as_ref().map(|sent| sent.message.clone());
        self.state.lock().entries.iter().map(|(key, entry)| (key.clone(), message(entry))).collect()
    }

    /// Says that there is none, or none that can be used: who waits for the first goes on without.
    pub fn give_up(&self, key: &SecretKey) {
        let users = {
            let mut state = self.state.lock();
            if let Some(entry) = state.entries.get_mut(key) {
                entry.given_up = true;
            }
            state.users(key)
        };
        self.news.notify_one();
        users.iter().for_each(|user| self.release(user));
    }

    /// Ends the wait of settings of whose secrets none is waited for.
    fn release(&self, user: &User) {
        let state = self.state.lock();
        let mut entries = user.keys().map(|key| state.entries.get(key));
        let over = |entry: Option<&Entry>| entry.is_none_or(|entry| entry.value.is_some() || entry.given_up);
        let over = entries.all(over);
        drop(state);
        if over {
            user.give_up();
        }
    }

    /// Secrets that are named and come by `is`. Those that nobody names any more are forgotten.
    pub(super) fn wanted(&self, is: impl Fn(&Source) -> bool) -> Vec<SecretKey> {
        let mut state = self.state.lock();
        state.entries.retain(|_, entry| entry.users.is_held() || Arc::strong_count(&entry.hold) > 1);
        state.entries.keys().filter(|key| is(&key.source)).cloned().collect()
    }

    /// Ends when a secret has been named that was not before. Call it before [`Secrets::wanted`].
    pub(super) async fn named(&self) {
        self.named.notified().await;
    }

    /// Reads files again that have changed, those that secrets are in and those that secrets name. What comes of it is
    /// to be [`Secrets::put_again`] by who puts the others, so that they come into force in one order.
    pub(super) fn look_at_files(&self, looks: &mut Looks) -> Vec<Again> {
        let mut read = Vec::new();
        let all = self.wanted(|_| true);
        let mut paths: BTreeSet<PathBuf> = all.iter().filter_map(|key| key.path().cloned()).collect();
        for sent in all.iter().filter_map(|key| self.sent(key)) {
            paths.extend(sent.stamps.paths().cloned());
        }
        let now = looks.now(paths);
        for key in &all {
            let Some((path, stamp)) = key.path().and_then(|path| Some((path, *now.get(path)?))) else {
                continue;
            };
            if looks.seen.get(key) == Some(&stamp) {
                continue;
            }
            let for_sent = self.sent(key).map(|sent| sent.message);
            let text = files::read(path).map_err(|error| {
                Refusal::Unread(ConfigError::new(format!("can't read {}: {error}", path.display())))
            });
            let message = text.and_then(|text| {
                files::secret(&text, path, &key.name, &self.unknown).map_err(Refusal::Unfit)
            });
            let checked = message.and_then(|message| self.check_read(key, message));
            // What could not be read, itself or a file that it names, is read again.
            if !matches!(checked, Err(Refusal::Unread(_))) {
                looks.seen.insert(key.clone(), stamp);
            }
            read.extend(self.again(key, for_sent, checked, looks));
        }
        looks.seen.retain(|key, _| self.knows(key));
        looks.refused.retain(|key, _| self.knows(key));
        for key in &all {
            if read.iter().any(|again| again.checked.key == *key) {
                continue;
            }
            let Some(sent) = self.sent(key).filter(|sent| sent.stamps.have_changed(&now)) else { continue };
            let checked = self.check_read(key, (*sent.message).clone());
            read.extend(self.again(key, Some(sent.message), checked, looks));
        }
        read
    }

    fn sent(&self, key: &SecretKey) -> Option<Sent> {
        self.state.lock().entries.get(key)?.sent.clone()
    }

    /// What was read again, to be put in force; what is refused is told, once for the same reason.
    fn again(
        &self,
        key: &SecretKey,
        for_sent: Option<Arc<Secret>>,
        checked: std::result::Result<Checked, Refusal>,
        looks: &mut Looks,
    ) -> Option<Again> {
        match checked {
            Ok(checked) => {
                looks.refused.remove(key);
                Some(Again { checked, for_sent })
            }
            Err(refusal) => {
                let reason = refusal.into_error().to_string();
                if looks.refused.get(key) != Some(&reason) {
                    self.count(key, |stats| stats.key_rotation_failed().inc());
                    tracing::error!("secret \"{}\" refused, the one before stays: {reason}", key.name);
                    looks.refused.insert(key.clone(), reason);
                }
                self.give_up(key);
                None
            }
        }
    }

    fn count(&self, key: &SecretKey, count: impl FnOnce(&SecretStats)) {
        if let Some(entry) = self.state.lock().entries.get(key) {
            count(&entry.stats);
        }
    }

    /// Counts a stream that ended, or could not be opened.
    pub(super) fn count_failure(&self, key: &SecretKey) {
        self.count(key, |stats| stats.update_failure().inc());
    }
}

impl Entry {
    fn new(registry: &Registry, key: &SecretKey) -> Entry {
        let stats = SecretStats::new(registry, &named_scope(&["sds", key.name.trim_matches('.')]));
        Entry {
            value: None,
            users: Users::default(),
            hold: Arc::default(),
            given_up: false,
            sent: None,
            stats,
        }
    }

    /// Whether nothing was sent since that was.
    fn is_as_sent(&self, message: Option<&Arc<Secret>>) -> bool {
        match (&self.sent, message) {
            (Some(sent), Some(message)) => Arc::ptr_eq(&sent.message, message),
            (sent, message) => sent.is_none() && message.is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::unknown::OnUnknown;
    use prost::Message;
    use sixfold_xds_api::pb::envoy::service::discovery::v3::DiscoveryResponse;
    use sixfold_xds_api::pb::google::protobuf::Any;

    /// Those of secrets that come by files and streams of their own went unseen, whatever the options said.
    #[test]
    fn unknown_fields_of_secrets_are_looked_for_wherever_they_come_from() {
        let registry = sixfold_core::metrics::Registry::new();
        let of = |policy| Secrets::new(registry.clone(), Arc::new(Unknown::new(policy, &registry)));
        let message = Secret { name: "a".into(), ..Secret::default() };
        // The field 9000 is the number 5.
        let value = [message.encode_to_vec(), vec![0xc0, 0xb2, 0x04, 5]].concat();
        let resource = Any { type_url: Secret::type_url(), value: value.clone() };
        let response = DiscoveryResponse { resources: vec![resource], ..DiscoveryResponse::default() };
        let path = std::env::temp_dir().join(format!("sixfold-unknown-{}.pb", std::process::id()));
        std::fs::write(&path, response.encode_to_vec()).unwrap();
        let key = SecretKey { source: Source::Path(path.clone()), name: "a".into() };
        let text = files::read(&path).unwrap();
        for (policy, counted) in [(OnUnknown::Ignore, 0), (OnUnknown::Reject, 0), (OnUnknown::Warn, 1)] {
            let secrets = of(policy);
            let sent = secrets.check(&key, &value).err().map(|error| error.to_string()).unwrap_or_default();
            let read = files::secret(&text, &path, "a", &secrets.unknown);
            let told = [sent, read.err().map(|error| error.to_string()).unwrap_or_default()];
            let are_refused = told.iter().all(|error| error.contains("has unknown fields"));
            assert_eq!(are_refused, policy == OnUnknown::Reject, "{told:?}");
            assert_eq!(registry.sum("server.", "dynamic_unknown_fields"), counted);
        }
        std::fs::remove_file(path).unwrap();
    }

    // A look at the files threw out what had been read for somebody who was not there yet.
    #[test]
    fn what_is_read_first_stays_until_somebody_names_it() {
        let path = std::env::temp_dir().join(format!("sixfold-first-{}.yaml", std::process::id()));
        std::fs::write(&path, "resources: []\n").unwrap();
        let (secrets, key) =
            (Secrets::default(), SecretKey { source: Source::Path(path.clone()), name: "a".into() });
        let held = secrets.read_first(&key);
        assert_eq!(secrets.wanted(|_| true), std::slice::from_ref(&key));
        // It is not begun anew by who comes second: whoever is there would not hear of it any more.
        let again = secrets.read_first(&key);
        assert!(Arc::ptr_eq(held.as_ref().unwrap(), again.as_ref().unwrap()));
        drop((held, again));
        assert!(secrets.wanted(|_| true).is_empty());
        std::fs::remove_file(path).unwrap();
    }

    // It put an entry of its own in the place of the one that had come meanwhile, with all who named it.
    #[test]
    fn who_comes_while_a_file_is_read_waits_for_it() {
        let (secrets, key) =
            (Secrets::default(), SecretKey { source: Source::Path("/none".into()), name: "a".into() });
        let hold = secrets.read_first(&key).unwrap();
        let turn = hold.lock();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| secrets.read_first(&key).unwrap());
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!second.is_finished());
            drop(turn);
            assert!(Arc::ptr_eq(&second.join().unwrap(), &hold));
        });
    }
}
