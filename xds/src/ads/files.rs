//! Files that resources are in, looked at again and again.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::ConfigError;
use sixfold_core::files::{self, Found, Rounds, Stamp};
use tokio::sync::mpsc;

use super::key::Channel;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of files that are told together.
const TOGETHER: usize = 16 << 20;

/// What a file holds, or why it can't be read.
type Content = Result<Vec<u8>, ConfigError>;

/// What files hold that were read in one go.
pub(super) type Contents = Vec<(Channel, Content)>;

/// Files that are wanted, each with a number that grows when it is to be read though it has not changed.
type Wanted = BTreeMap<Channel, u64>;

/// Has files looked at by a thread that nobody waits for: a disk may hang.
#[derive(Default)]
pub(super) struct Files {
    wanted: Wanted,
    reader: Option<Reader>,
}

struct Reader {
    wanted: Sender<Wanted>,
    read: mpsc::Receiver<Contents>,
}

impl Files {
    /// Says which files are wanted from now on.
    pub(super) fn want(&mut self, wanted: Wanted) {
        if wanted == self.wanted {
            return;
        }
        if self.reader.is_none() {
            match Reader::start() {
                Ok(reader) => self.reader = Some(reader),
                Err(error) => return tracing::error!("files of resources are not read: {error}"),
            }
        }
        self.wanted.clone_from(&wanted);
        if let Some(reader) = &self.reader {
            // It ends with this process alone.
            let _ = reader.wanted.send(wanted);
        }
    }

    /// The next that have been read, or could not be; may be dropped at any time.
    pub(super) async fn next(&mut self) -> Contents {
        loop {
            let Some(reader) = &mut self.reader else { return std::future::pending().await };
            // It has ended; another one is started when this is asked again for what is wanted.
            let Some(mut read) = reader.read.recv().await else {
                *self = Files::default();
                continue;
            };
            // Nobody asks for the others any more.
            read.retain(|(channel, _)| self.wanted.contains_key(channel));
            if !read.is_empty() {
                return read;
            }
        }
    }
}

impl Reader {
    fn start() -> io::Result<Reader> {
        let (wanted, asked) = channel();
        let (found, read) = mpsc::channel(1);
        std::thread::Builder::new()
            .name("resource-files".to_owned())
            .spawn(move || look_at_all(&asked, &found))?;
        Ok(Reader { wanted, read })
    }
}

/// Looks until nobody wants to know any more.
fn look_at_all(asked: &Receiver<Wanted>, found: &mpsc::Sender<Contents>) {
    let (mut wanted, mut seen, rounds) = (Wanted::new(), BTreeMap::new(), Rounds::default());
    loop {
        match asked.recv_timeout(LOOK) {
            Ok(newer) => wanted = asked.try_iter().last().unwrap_or(newer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        seen.retain(|channel, _| wanted.contains_key(channel));
        match look(&rounds, &wanted, &mut seen, |contents| found.blocking_send(contents).is_ok()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => tracing::error!("files of resources are not looked at: {error}"),
        }
    }
}

/// Looks at each file once, and tells of those that are not as they were: of all together, unless one keeps the others
/// waiting or they are too large for that. Answers whether anybody wants to know more.
fn look(
    rounds: &Rounds,
    wanted: &Wanted,
    seen: &mut BTreeMap<Channel, Seen>,
    mut tell: impl FnMut(Contents) -> bool,
) -> io::Result<bool> {
    // One file may hold what several kinds of resources come from.
    let mut of_path: BTreeMap<_, Vec<&Channel>> = BTreeMap::new();
    let files = wanted.iter().filter_map(|(channel, number)| {
        let path = channel.path()?;
        of_path.entry(path.to_owned()).or_default().push(channel);
        let last = seen.entry(channel.clone()).or_default();
        Some((path.to_owned(), last.stamp.filter(|_| *number == last.number)))
    });
    let files: Vec<_> = files.collect();
    let (mut contents, mut bytes, mut goes_on) = (Contents::new(), 0, true);
    let asked = rounds.ask(
        files,
        |path, before| files::read_changed(path, before, MAX_DOCUMENT_BYTES),
        |found| {
            if let Found::Answer(path, read) = found {
                let channel = of_path
                    .get_mut(path)
                    .and_then(|channels| (!channels.is_empty()).then(|| channels.remove(0)));
                let Some(channel) = channel else { return };
                let number = wanted.get(channel).copied().unwrap_or_default();
                let said = seen.get_mut(channel).and_then(|last| last.take(read, number));
                bytes += said.as_ref().map_or(0, |said| said.as_ref().map_or(0, Vec::len));
                contents.extend(said.map(|said| (channel.clone(), said)));
                if bytes < TOGETHER {
                    return;
                }
            }
            bytes = 0;
            let contents = std::mem::take(&mut contents);
            goes_on = goes_on && (contents.is_empty() || tell(contents));
        },
    );
    goes_on = goes_on && (contents.is_empty() || tell(contents));
    asked.map(|()| goes_on)
}

/// How a file was found last.
#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    number: u64,
    /// Why it could not be read, so that this is said once.
    unreadable: Option<String>,
}

impl Seen {
    /// What there is to say of a file that was read, unless it is as it was.
    fn take(&mut self, read: io::Result<Option<(Stamp, Vec<u8>)>>, number: u64) -> Option<Content> {
        match read {
            Ok(read) => {
                self.unreadable = None;
                self.number = number;
                let (stamp, content) = read?;
                self.stamp = Some(stamp);
                Some(Ok(content))
            }
            Err(error) => {
                // Whoever is new to it waits for an answer, even if others have had it.
                let is_asked = std::mem::replace(&mut self.number, number) != number;
                // One that is gone for a moment is being replaced, or its last version is the best there is.
                if error.kind() == io::ErrorKind::NotFound && self.stamp.is_some() && !is_asked {
                    return None;
                }
                let reason = format!("can't be read: {error}");
                let is_new = self.unreadable.as_ref() != Some(&reason);
                self.unreadable = Some(reason.clone());
                (is_new || is_asked).then(|| Err(ConfigError::new(reason)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use crate::ads::Kind;
    use crate::rds::Source;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    fn channel_of(path: &Path) -> Channel {
        Channel::Of(Kind::Cluster, Source::Path(path.to_owned()))
    }

    /// What a look at a file that is wanted by this number tells.
    fn look_at(path: &Path, seen: &mut BTreeMap<Channel, Seen>, number: u64) -> Option<String> {
        let (mut told, wanted) = (Contents::new(), Wanted::from([(channel_of(path), number)]));
        let tell = |contents: Contents| {
            told.extend(contents);
            true
        };
        assert!(look(&Rounds::default(), &wanted, seen, tell).unwrap());
        told.pop().map(|(_, content)| match content {
            Ok(content) => String::from_utf8(content).unwrap(),
            Err(error) => error.to_string(),
        })
    }

    /// Each was a change by itself, and waited for the one before it.
    #[test]
    fn files_that_are_read_in_one_look_are_told_together() {
        let folder = std::env::temp_dir().join(format!("sixfold-together-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut wanted = Wanted::new();
        for index in 0..100 {
            let path = folder.join(index.to_string());
            std::fs::write(&path, "x").unwrap();
            // What comes from one file for two kinds is told for both.
            wanted.insert(channel_of(&path), 1);
            wanted.insert(Channel::Of(Kind::Listener, Source::Path(path)), 1);
        }
        let mut told = Vec::new();
        let tell = |contents: Contents| {
            told.push(contents.len());
            true
        };
        assert!(look(&Rounds::default(), &wanted, &mut BTreeMap::new(), tell).unwrap());
        // A machine that is busy may make a pause.
        assert_eq!(told.iter().sum::<usize>(), 200);
        assert!(told.len() < 10, "{told:?}");
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// The set that was wanted was still taken for one that is looked after.
    #[tokio::test]
    async fn a_reader_that_has_ended_is_started_again() {
        let (wanted, _) = channel();
        let (_, read) = mpsc::channel(1);
        let all = Wanted::from([(Channel::Aggregated, 0)]);
        let mut files = Files { wanted: all.clone(), reader: Some(Reader { wanted, read }) };
        assert!(tokio::time::timeout(Duration::from_millis(1), files.next()).await.is_err());
        assert!(files.reader.is_none());
        files.want(all);
        assert!(files.reader.is_some());
    }

    /// Who asked for one that had been found unreadable before got no answer, and waited out its time.
    #[test]
    fn everybody_who_is_new_hears_of_a_file_that_can_not_be_read() {
        let folder = std::env::temp_dir();
        let mut seen = BTreeMap::new();
        let mut look =
            |number| look_at(&folder, &mut seen, number).is_some_and(|said| said.contains("can't be read"));
        assert_eq!([look(0), look(0), look(1), look(1)], [true, false, true, false]);
    }

    /// A ConfigMap is a link to a link to a folder, of which the second one is replaced.
    #[test]
    fn files_are_seen_however_they_are_replaced() {
        let folder = std::env::temp_dir().join(format!("sixfold-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let at = |name: &str| folder.join(name);
        for (name, content) in [("one", "first"), ("two", "other")] {
            std::fs::create_dir(at(name)).unwrap();
            std::fs::write(at(name).join("cds.yaml"), content).unwrap();
        }
        symlink("one", at("data")).unwrap();
        symlink("data/cds.yaml", at("cds.yaml")).unwrap();
        let (path, mut seen) = (at("cds.yaml"), BTreeMap::new());
        let mut look = |number| look_at(&path, &mut seen, number);
        assert_eq!((look(0).as_deref(), look(0)), (Some("first"), None));
        assert_eq!((look(1).as_deref(), look(1)), (Some("first"), None), "asked for again");
        symlink("two", at("new")).unwrap();
        std::fs::rename(at("new"), at("data")).unwrap();
        assert_eq!((look(1).as_deref(), look(1)), (Some("other"), None));
        std::fs::remove_file(at("data")).unwrap();
        assert_eq!(look(1), None, "gone for a moment");
        std::fs::create_dir(at("data")).unwrap();
        std::fs::create_dir(at("data").join("cds.yaml")).unwrap();
        assert!(look(1).unwrap().starts_with("can't be read: "));
        assert_eq!(look(1), None, "said once");
        std::fs::remove_dir(at("data").join("cds.yaml")).unwrap();
        std::fs::write(at("data").join("cds.yaml"), "again").unwrap();
        assert_eq!(look(1).as_deref(), Some("again"));
        std::fs::remove_dir_all(folder).unwrap();
    }
}
