//! An old log as `.tar.gz`, what `tar -zcf` makes of it (POSIX.1-1988, ustar).

use flate2::Compression;
use flate2::write::GzEncoder;
use sixfold_core::files::keep_name;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// What stands behind the name of a compressed file.
pub(super) const SUFFIX: &str = ".tar.gz";
/// And behind that as long as it is not whole.
pub(super) const UNFINISHED: &str = ".part";

/// Bytes of a block of an archive.
const BLOCK: usize = 512;
/// Bytes of a name within the header.
const NAME: usize = 100;

/// Puts an archive in the place of a file. After an error the file is there, and the archive is not.
///
/// # Errors
/// The operating system's; a name of more than 100 bytes, and a file of more than 8 GiB, that the format has no room for.
pub(super) fn compress(path: &Path) -> io::Result<()> {
    let (whole, part) = (beside(path, SUFFIX), beside(path, &format!("{SUFFIX}{UNFINISHED}")));
    let made = make(path, &part).and_then(|()| fs::rename(&part, &whole));
    if made.is_err() {
        // It may not even have been begun.
        let _ = fs::remove_file(&part);
        return made;
    }
    // The disk may take the two in any order.
    keep_name(&whole)?;
    fs::remove_file(path)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn make(path: &Path, part: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    let data = file.metadata()?;
    let out = OpenOptions::new().write(true).create(true).truncate(true).mode(data.mode()).open(part)?;
    write(path, &data, file, &out)?;
    if fs::metadata(path)?.len() != data.len() {
        return Err(io::Error::other("it is still written"));
    }
    out.sync_all()
}

fn write(path: &Path, data: &Metadata, file: impl Read, out: impl Write) -> io::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let mut out = GzEncoder::new(out, Compression::default());
    out.write_all(&header(name, data)?)?;
    let length = io::copy(&mut file.take(data.len()), &mut out)?;
    let rest = usize::try_from(length % BLOCK as u64).unwrap_or_default();
    let filling = if rest == 0 { 0 } else { BLOCK - rest };
    // Two empty blocks are the end.
    out.write_all(&vec![0; filling + 2 * BLOCK])?;
    out.finish()?.flush()
}

fn header(name: &str, data: &Metadata) -> io::Result<[u8; BLOCK]> {
    let too_long = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    if name.is_empty() || name.len() > NAME {
        return Err(too_long("its name is too long for an archive"));
    }
    if data.len() >= 1 << 33 {
        return Err(too_long("it is too long for an archive"));
    }
    let seconds = u64::try_from(data.mtime()).unwrap_or_default();
    // Owners of larger numbers than there is room for are left out: whoever unpacks it decides.
    let owner = |id: u32| if id < 1 << 21 { id } else { 0 };
    let fields = [
        (0, name.to_owned()),
        (100, format!("{:07o}", data.mode() & 0o7777)),
        (108, format!("{:07o}", owner(data.uid()))),
        (116, format!("{:07o}", owner(data.gid()))),
        (124, format!("{:011o}", data.len())),
        (136, format!("{seconds:011o}")),
        // The sum is that of a header with blanks in its place.
        (148, " ".repeat(8)),
        (156, "0".to_owned()),
        (257, "ustar\0".to_owned() + "00"),
    ];
    let mut block = [0; BLOCK];
    for (at, text) in fields {
        put(&mut block, at, text.as_bytes());
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    put(&mut block, 148, format!("{sum:06o}\0 ").as_bytes());
    Ok(block)
}

fn put(block: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    if let Some(place) = block.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_unpacks_what_was_in_the_file() {
        let folder = std::env::temp_dir().join(format!("sixfold-archive-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        for length in [0, 1, 512, 100_000] {
            let log = folder.join("2026-11-30_15-00-00__access.log");
            let text: Vec<u8> = (0..length).map(|at: u32| b'a' + (at % 26) as u8).collect();
            fs::write(&log, &text).unwrap();
            compress(&log).unwrap();
            assert!(!log.exists());
            let archive = beside(&log, SUFFIX);
            let unpacked = Command::new("tar").arg("-xzf").arg(&archive).current_dir(&folder).status();
            assert!(unpacked.unwrap().success());
            assert_eq!(fs::read(&log).unwrap(), text);
        }
        fs::remove_dir_all(folder).unwrap();
    }

    /// The disk on which there is no room for it.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_file_that_can_not_be_compressed_stays() {
        let folder = std::env::temp_dir().join(format!("sixfold-archive-stays-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let log = folder.join("access.log");
        fs::write(&log, "line\n").unwrap();
        let data = fs::metadata(&log).unwrap();
        assert_eq!(
            write(&log, &data, File::open(&log).unwrap(), Full).unwrap_err().kind(),
            io::ErrorKind::StorageFull
        );
        // A folder is in the way.
        fs::create_dir_all(beside(&log, SUFFIX).join("x")).unwrap();
        assert!(compress(&log).is_err());
        assert_eq!(fs::read(&log).unwrap(), b"line\n");
        assert!(!beside(&log, ".tar.gz.part").exists());
        let long = folder.join("x".repeat(101));
        fs::write(&long, "").unwrap();
        assert!(compress(&long).unwrap_err().to_string().contains("name"));
        fs::remove_dir_all(folder).unwrap();
    }
}
