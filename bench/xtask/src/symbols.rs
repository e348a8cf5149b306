//! What is shipped has no symbols; those are an artefact of their own that debuggers find by the build id.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::image::Architecture;
use crate::process::{execute, output};

/// A binary and its symbols.
#[derive(Debug)]
pub struct Split {
    /// Without symbols.
    pub binary: PathBuf,
    /// `.build-id/xx/yyyy.debug`, as debuggers look for it below `/usr/lib/debug`.
    pub debug: PathBuf,
}

/// Puts `sixfold` without its symbols into `folder`, and the symbols below `debug`.
///
/// # Errors
/// binutils are missing, or the binary has no build id.
pub fn split(proxy: &Path, folder: &Path, debug: &Path, architecture: Architecture) -> Result<Split> {
    let tool = |name: &str| {
        let foreign = architecture != Architecture::native();
        let prefix = if foreign { format!("{}-linux-gnu-", architecture.machine()) } else { String::new() };
        Command::new(format!("{prefix}{name}"))
    };
    let id = build_id(&output(tool("readelf").arg("-n").arg(proxy))?)
        .with_context(|| format!("{} has no build id", proxy.display()))?;
    let (first, rest) = id.split_at(2);
    let place = debug.join(".build-id").join(first);
    fs::create_dir_all(&place).with_context(|| format!("cannot make {}", place.display()))?;
    let split = Split { binary: folder.join("sixfold"), debug: place.join(format!("{rest}.debug")) };
    execute(
        tool("objcopy").args(["--only-keep-debug", "--compress-debug-sections"]).arg(proxy).arg(&split.debug),
    )?;
    fs::set_permissions(&split.debug, fs::Permissions::from_mode(0o644))?;
    execute(tool("strip").arg("--strip-all").arg("-o").arg(&split.binary).arg(proxy))?;
    let link = format!("--add-gnu-debuglink={}", split.debug.display());
    execute(tool("objcopy").arg(link).arg(&split.binary))?;
    Ok(split)
}

/// The build id that `readelf -n` tells.
fn build_id(notes: &str) -> Option<String> {
    let id = notes.lines().find_map(|line| line.trim().strip_prefix("Build ID: "))?.trim();
    (id.len() > 2 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::process::find;

    #[test]
    fn a_build_id_is_found_among_notes() {
        let notes =
            "Displaying notes found in: .note.gnu.build-id\n  Owner Data size\n    Build ID: 0a1b2c\n";
        assert_eq!(build_id(notes).as_deref(), Some("0a1b2c"));
        assert_eq!(build_id("    Build ID: \n"), None);
    }

    /// The binary keeps its id, so that who has only that finds the symbols.
    #[test]
    fn symbols_go_to_a_file_of_their_own_with_the_same_id() {
        if find("readelf").is_none() {
            return;
        }
        let folder = std::env::temp_dir().join(format!("sixfold-symbols-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let program = std::env::current_exe().unwrap();
        let parts = split(&program, &folder, &folder.join("debug"), Architecture::native()).unwrap();
        let told = |option: &str, file: &Path| output(Command::new("readelf").arg(option).arg(file)).unwrap();
        let id = build_id(&told("-n", &program)).unwrap();
        assert_eq!(build_id(&told("-n", &parts.binary)).as_ref(), Some(&id));
        assert_eq!(build_id(&told("-n", &parts.debug)).as_ref(), Some(&id));
        assert!(parts.debug.ends_with(format!("{}/{}.debug", &id[..2], &id[2..])));
        let (sections, symbols) = (told("-SW", &parts.binary), told("-SW", &parts.debug));
        assert!(sections.contains(".gnu_debuglink") && !sections.contains(".symtab"), "{sections}");
        assert!(symbols.contains(".symtab"), "{symbols}");
        assert!(Command::new(&parts.binary).arg("--list").output().unwrap().status.success());
        fs::remove_dir_all(&folder).unwrap();
    }
}
