//! Files that resources are in, looked at again and again.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, SystemTime};

use sixfold_core::document::MAX_DOCUMENT_BYTES;
use sixfold_core::error::ConfigError;
use sixfold_core::files;
use tokio::sync::mpsc;

use super::key::Channel;

/// How often the files are looked at. A file is another one when its time, size or number is, so that a rename onto it and
/// the links of a mounted ConfigMap are seen alike.
const LOOK: Duration = Duration::from_secs(1);

/// What a file holds, or why it can't be read.
type Content = Result<Vec<u8>, ConfigError>;

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
    read: mpsc::Receiver<(Channel, Content)>,
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

    /// The next that has been read, or could not be; may be dropped at any time.
    pub(super) async fn next(&mut self) -> (Channel, Content) {
        loop {
            let Some(reader) = &mut self.reader else { return std::future::pending().await };
            match reader.read.recv().await {
                // Nobody asks for it any more.
                Some((channel, _)) if !self.wanted.contains_key(&channel) => {}
                Some(read) => return read,
                // It has ended; another one is started when this is asked again for what is wanted.
                None => *self = Files::default(),
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
fn look_at_all(asked: &Receiver<Wanted>, found: &mpsc::Sender<(Channel, Content)>) {
    let (mut wanted, mut seen) = (Wanted::new(), BTreeMap::new());
    loop {
        match asked.recv_timeout(LOOK) {
            Ok(newer) => wanted = asked.try_iter().last().unwrap_or(newer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        seen.retain(|channel, _| wanted.contains_key(channel));
        for (channel, number) in &wanted {
            let Some(path) = channel.path() else { continue };
            let last = seen.entry(channel.clone()).or_insert_with(Seen::default);
            if let Some(content) = last.look(path, *number)
                && found.blocking_send((channel.clone(), content)).is_err()
            {
                return;
            }
        }
    }
}

/// Tells a file from another one.
#[derive(PartialEq, Eq, Clone, Copy)]
struct Stamp(SystemTime, u64, u64);

/// How a file was found last.
#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    number: u64,
    /// Why it could not be read, so that this is said once.
    unreadable: Option<String>,
}

impl Seen {
    /// What there is to say of a file that is not as it was.
    fn look(&mut self, path: &Path, number: u64) -> Option<Content> {
        match read(path, self.stamp.filter(|_| number == self.number)) {
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

fn read(path: &Path, before: Option<Stamp>) -> io::Result<Option<(Stamp, Vec<u8>)>> {
    let file = files::open(path)?;
    let metadata = file.metadata();
    let stamp = Stamp(metadata.modified()?, metadata.len(), metadata.ino());
    if before == Some(stamp) {
        return Ok(None);
    }
    Ok(Some((stamp, file.read(MAX_DOCUMENT_BYTES)?)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn text(content: Option<Content>) -> Option<String> {
        content.map(|content| match content {
            Ok(content) => String::from_utf8(content).unwrap(),
            Err(error) => error.to_string(),
        })
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
        let mut seen = Seen::default();
        let mut look =
            |number| text(seen.look(&folder, number)).is_some_and(|said| said.contains("can't be read"));
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
        let (path, mut seen) = (at("cds.yaml"), Seen::default());
        let mut look = |number| text(seen.look(&path, number));
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
