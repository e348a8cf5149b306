//! An installed APISIX as a peer. It keeps its configuration and its logs in its own folder, so it is given a folder
//! whose other parts are links into the installed one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::super::peers::{self, PROXY_CORE, pinned};
use crate::process::{find, output};

/// Files of `conf` that are ours, or made by `apisix init`.
const OWN: [&str; 3] = ["config.yaml", "apisix.yaml", "nginx.conf"];

/// An installed APISIX.
#[derive(Debug)]
pub(in super::super) struct Installed {
    /// Where its Lua code is: `PREFIX/apisix`
    prefix: PathBuf,
    program: PathBuf,
    openresty: PathBuf,
}

impl Installed {
    /// # Errors
    /// Something of it is missing; the error says what, and where it was looked for.
    pub(super) fn find(prefix: &Path) -> Result<Self> {
        let code = prefix.join("apisix/cli/apisix.lua");
        if !code.is_file() {
            bail!("no APISIX in {}: {} is not there", prefix.display(), code.display());
        }
        let prefix = prefix.canonicalize()?;
        let own = prefix.join("bin/apisix");
        let program = Some(own.clone()).filter(|own| own.is_file()).or_else(|| find("apisix"));
        let program = program
            .with_context(|| format!("no program apisix: neither {} nor one on PATH", own.display()))?;
        let openresty = find("openresty").context("no program openresty on PATH, which APISIX runs in")?;
        Ok(Self { prefix, program, openresty })
    }

    pub(super) fn version(&self) -> String {
        peers::version(&self.program, "version")
    }

    /// A folder of its own with this configuration, and the command that serves from it, on the proxy's core.
    ///
    /// # Errors
    /// A file can't be written, or `apisix init` refuses the configuration.
    pub(super) fn prepare(&self, home: &Path, config: &str, resources: &str) -> Result<Command> {
        self.link(home)?;
        fs::write(home.join("conf/config.yaml"), config)?;
        fs::write(home.join("conf/apisix.yaml"), resources)?;
        // Where it finds ./apisix/cli/apisix.lua, it takes the folder it is called in for its own.
        output(Command::new(&self.program).arg("init").current_dir(home)).context("apisix init")?;
        let mut command = pinned(PROXY_CORE);
        command.arg(&self.openresty).arg("-p").arg(home).arg("-c").arg(home.join("conf/nginx.conf"));
        command.args(["-g", "daemon off;"]).current_dir(home);
        Ok(command)
    }

    fn link(&self, home: &Path) -> Result<()> {
        for own in ["conf", "logs"] {
            fs::create_dir_all(home.join(own))?;
        }
        link_all(&self.prefix, home, &["conf", "logs"])?;
        let conf = self.prefix.join("conf");
        if conf.is_dir() { link_all(&conf, &home.join("conf"), &OWN) } else { Ok(()) }
    }
}

fn link_all(from: &Path, to: &Path, but: &[&str]) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if !but.iter().any(|own| name == *own) {
            symlink(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sixfold-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn a_folder_without_apisix_is_refused_by_name() {
        let dir = folder("no-apisix");
        let refused = Installed::find(&dir).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("no APISIX in {}", dir.display())), "{refused}");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn its_own_folder_has_all_but_configuration_and_logs_of_the_installed_one() {
        let prefix = folder("apisix");
        for dir in ["apisix/cli", "conf/cert", "logs", "deps"] {
            fs::create_dir_all(prefix.join(dir)).unwrap();
        }
        for file in ["apisix/cli/apisix.lua", "conf/config.yaml", "conf/mime.types", "conf/nginx.conf"] {
            fs::write(prefix.join(file), "theirs").unwrap();
        }
        let home = folder("apisix-home");
        let installed =
            Installed { prefix: prefix.clone(), program: "true".into(), openresty: "true".into() };
        let command = installed.prepare(&home, "ours", "routes").unwrap();
        assert!(command.get_args().any(|word| word == "daemon off;"));
        let read = |file: &str| fs::read_to_string(home.join(file)).unwrap();
        assert_eq!(read("conf/config.yaml"), "ours");
        assert_eq!(read("conf/apisix.yaml"), "routes");
        assert_eq!(read("conf/mime.types"), "theirs");
        assert_eq!(read("apisix/cli/apisix.lua"), "theirs");
        assert!(!home.join("conf/nginx.conf").exists());
        assert_eq!(fs::read_to_string(prefix.join("conf/config.yaml")).unwrap(), "theirs");
        assert!(home.join("deps").is_dir() && home.join("conf/cert").is_dir());
        for dir in [prefix, home] {
            fs::remove_dir_all(dir).unwrap();
        }
    }
}
