//! Files of configuration that are written whole. Private keys and passwords may stand in them, so nobody may read a byte that
//! is not to read it later.

use sixfold_core::files::keep_name;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

/// What a new file may be used for: by its owner alone.
const OWN: u32 = 0o600;

/// Who may use a file that takes the place of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Who might use the other.
    Same,
    /// Of those its owner and group.
    NotOthers,
}

/// Puts the text in the file's place at once, for those who watch it. Owner and group stay; a file that was not there is this
/// user's alone.
///
/// # Errors
/// It can't be written, or not with that owner and group; what was there stays then.
pub(crate) fn replace(path: &Path, text: &str, rights: Rights) -> io::Result<()> {
    // What a link leads to is replaced, not the link.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let former = match fs::metadata(&path) {
        Ok(former) => Some(former),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let written = create(&beside, former.as_ref(), rights).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        keep_name(&path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

/// An empty file with the owner, group and mode of the former one.
fn create(path: &Path, former: Option<&Metadata>, rights: Rights) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(OWN).open(path)?;
    let Some(former) = former else { return Ok(file) };
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (former.uid(), former.gid()) {
        let told = |error: io::Error| {
            let reason = format!("its owner and group can't be kept, and nothing is changed: {error}");
            io::Error::new(error.kind(), reason)
        };
        fchown(&file, Some(former.uid()), Some(former.gid())).map_err(told)?;
    }
    let most = match rights {
        Rights::Same => 0o7777,
        Rights::NotOthers => 0o770,
    };
    file.set_permissions(Permissions::from_mode(former.mode() & most))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    /// They were readable by everybody, and after `fmt` the group of who ran it read them.
    #[test]
    fn whoever_could_not_read_a_file_can_not_read_what_replaces_it() {
        let folder = std::env::temp_dir().join(format!("sixfold-replacement-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, link) = (folder.join("config.yaml"), folder.join("link.yaml"));
        replace(&file, "key: 1\n", Rights::Same).unwrap();
        assert_eq!(mode(&file), 0o600);
        std::os::unix::fs::symlink(&file, &link).unwrap();
        // Only root may give a file away.
        let group =
            if fs::metadata(&file).unwrap().uid() == 0 { 4242 } else { fs::metadata(&file).unwrap().gid() };
        std::os::unix::fs::chown(&file, None, Some(group)).unwrap();
        for (before, rights, after) in [
            (0o640, Rights::Same, 0o640),
            (0o644, Rights::Same, 0o644),
            (0o644, Rights::NotOthers, 0o640),
            (0o400, Rights::NotOthers, 0o400),
        ] {
            fs::set_permissions(&file, Permissions::from_mode(before)).unwrap();
            replace(&link, "key: 2\n", rights).unwrap();
            assert_eq!((mode(&file), fs::metadata(&file).unwrap().gid()), (after, group));
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "key: 2\n");
        // Nothing stays beside it.
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
        fs::remove_dir_all(&folder).unwrap();
    }
}
