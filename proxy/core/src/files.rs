//! Files that a configuration names: certificates, bodies, routes, the configuration itself.
//!
//! Whoever may write such a path must neither hold up a thread (a FIFO is opened for as long as nobody writes into
//! it) nor fill the memory.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Read, Result};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A regular file that is open.
#[derive(Debug)]
pub struct Regular(File, Metadata);

/// Opens a file, and never waits for another process.
///
/// # Errors
/// Those of the operating system, and a path that is no regular file.
pub fn open(path: &Path) -> Result<Regular> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(Error::other("is no regular file"));
    }
    Ok(Regular(file, metadata))
}

impl Regular {
    /// What the file was when it was opened.
    pub fn metadata(&self) -> &Metadata {
        &self.1
    }

    /// All of it, `limit` bytes at most.
    ///
    /// # Errors
    /// Those of the operating system, and a file that is larger, which is not read.
    pub fn read(self, limit: usize) -> Result<Vec<u8>> {
        let larger =
            || Error::new(ErrorKind::FileTooLarge, format!("larger than the limit of {limit} bytes"));
        let Regular(file, metadata) = self;
        // Files of /proc say 0.
        let length =
            usize::try_from(metadata.len()).ok().filter(|length| *length <= limit).ok_or_else(larger)?;
        let mut bytes = Vec::with_capacity(length.saturating_add(1));
        file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit { Err(larger()) } else { Ok(bytes) }
    }
}

/// The content of a file, `limit` bytes at most.
///
/// # Errors
/// Those of [`open`] and [`Regular::read`].
pub fn read(path: &Path, limit: usize) -> Result<Vec<u8>> {
    open(path)?.read(limit)
}

/// [`read`] of text.
///
/// # Errors
/// Its own, and what is not UTF-8.
pub fn read_text(path: &Path, limit: usize) -> Result<String> {
    String::from_utf8(read(path, limit)?).map_err(|error| Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A FIFO held up its reader until somebody wrote, and a device or a file with a hole filled the memory.
    #[test]
    fn what_would_wait_or_never_end_is_refused() {
        let folder = std::env::temp_dir().join(format!("sixfold-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (pipe, sparse) = (folder.join("pipe"), folder.join("sparse"));
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        for (path, reason) in [
            (pipe.as_path(), "is no regular file"),
            (Path::new("/dev/zero"), "is no regular file"),
            (folder.as_path(), "is a directory"),
        ] {
            assert_eq!(read(path, 10).unwrap_err().to_string(), reason);
        }
        File::create(&sparse).unwrap().set_len(3 << 30).unwrap();
        assert_eq!(read(&sparse, 10).unwrap_err().to_string(), "larger than the limit of 10 bytes");
        std::fs::write(&sparse, "0123456789").unwrap();
        assert_eq!(read_text(&sparse, 10).unwrap(), "0123456789");
        assert_eq!(read(&sparse, 9).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(!read_text(Path::new("/proc/self/stat"), 1 << 16).unwrap().is_empty());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
