//! `cargo xtask chart`: the Helm chart's values files rendered, held against Kubernetes' types, and read by the proxy.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process::{execute, output, root, target};
use crate::tools::{build_proxy, go_program};

const CHART: &str = "deploy/helm/sixfold-gateway";
/// The Go module that fixes the versions of helm and of Kubernetes' types.
const CHECK: &str = "deploy/helm/check";
/// The alerts that are to fire for what the chart installs.
const ALERTS: &str = "deploy/prometheus/sixfold-gateway.yaml";
/// What the rendered config.yaml names, and who reads it here has not. Passwords of digits are texts.
const ENVIRONMENT: [(&str, &str); 2] =
    [("SIXFOLD_ADMIN_KEY", "20261130"), ("SIXFOLD_ETCD_PASSWORD", "0012345678")];

#[derive(Debug, Args)]
pub struct Options {
    /// This binary instead of the proxy built with the `ci` profile
    #[arg(long)]
    binary: Option<PathBuf>,
}

/// # Errors
/// A values file does not render to what it should, or one that is wrong is taken.
pub fn run(options: &Options) -> Result<()> {
    let binary = options.binary.clone().map_or_else(|| build_proxy("ci"), Ok)?;
    check(&binary)
}

/// Lints and renders the chart with each file of its `ci` folder, decodes every object as the API server does, holds them against
/// each other, and has the proxy validate config.yaml and apisix.yaml. Files of `ci/refused` must be refused with the words in
/// their first line.
///
/// # Errors
/// Something of that fails, or Go is missing.
pub fn check(proxy: &Path) -> Result<()> {
    let folder = root().join(CHECK);
    let helm = go_program("helm", "helm.sh/helm/v4/cmd/helm", &folder)?;
    // Its source is this project's own, and changes.
    let _ = fs::remove_file(target().join("tools/chart-check"));
    let types = go_program("chart-check", ".", &folder)?;
    let work = target().join("chart");
    let files = yaml_files(&root().join(CHART).join("ci"))?;
    for values in &files {
        println!("chart: {}", values.display());
        let made = work.join(values.file_stem().context("a values file has a name")?);
        let _ = fs::remove_dir_all(&made);
        fs::create_dir_all(&made)?;
        accepted(&[&helm, &types, proxy], values, &made)?;
    }
    let refused = yaml_files(&root().join(CHART).join("ci/refused"))?;
    for values in &refused {
        is_refused(&helm, values)?;
    }
    println!("chart: {} values files render and validate, {} are refused", files.len(), refused.len());
    Ok(())
}

fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("no folder {}", folder.display()))?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    let mut files: Vec<PathBuf> = paths
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    if files.is_empty() {
        bail!("no values in {}", folder.display());
    }
    Ok(files)
}

fn template(helm: &Path, values: &Path) -> Command {
    let mut command = Command::new(helm);
    command
        .args(["template", "edge"])
        .arg(root().join(CHART))
        .args(["--namespace", "gateways", "--values"])
        .arg(values);
    command
}

fn accepted([helm, types, proxy]: &[&Path; 3], values: &Path, made: &Path) -> Result<()> {
    output(
        Command::new(helm)
            .args(["lint", "--strict", "--quiet"])
            .arg(root().join(CHART))
            .arg("--values")
            .arg(values),
    )?;
    let text = output(&mut template(helm, values))?;
    fs::write(made.join("objects.yaml"), &text)?;
    let given = given(&fs::read_to_string(values)?);
    let objects = File::open(made.join("objects.yaml"))?;
    let mut command = Command::new(types);
    command.arg("-given").arg(given).arg("-alerts").arg(root().join(ALERTS));
    execute(command.arg("-out").arg(made).stdin(objects))
        .with_context(|| format!("{}: what is rendered is wrong", values.display()))?;
    validated(proxy, made)
}

/// `KIND/NAME` of what is there beside the chart, behind `# given: `.
fn given(values: &str) -> String {
    values.lines().find_map(|line| line.strip_prefix("# given: ")).unwrap_or_default().replace(' ', "")
}

/// Has the proxy read the files as they are mounted, strictly.
fn validated(proxy: &Path, made: &Path) -> Result<()> {
    let config = made.join("config.yaml");
    if !made.join("apisix.yaml").exists() {
        // That of an object that is there already.
        File::create(made.join("apisix.yaml"))?.write_all(b"#END\n")?;
    }
    // Certificates of Secrets are mounted in a pod alone.
    let text = fs::read_to_string(&config)?.replace("/etc/sixfold-etcd/", &format!("{}/", made.display()));
    fs::write(&config, text)?;
    crate::tools::self_signed(made)?;
    for (from, to) in [("cert.pem", "tls.crt"), ("cert.pem", "ca.crt"), ("key.pem", "tls.key")] {
        fs::copy(made.join(from), made.join(to))?;
    }
    let mut command = Command::new(proxy);
    command.args(["validate", "--strict", "-c"]).arg(&config).envs(ENVIRONMENT);
    execute(&mut command).context("the proxy refuses what is rendered")
}

fn is_refused(helm: &Path, values: &Path) -> Result<()> {
    let text = fs::read_to_string(values)?;
    let words =
        text.lines().next().and_then(|line| line.strip_prefix("# ")).context("no words in the first line")?;
    let done = template(helm, values).stdout(Stdio::null()).stderr(Stdio::piped()).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() || !said.contains(words) {
        bail!("{}: not refused for {words:?}: {said}", values.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_beside_the_chart_is_told_by_a_comment() {
        assert_eq!(given("# a\n# given: Secret/a, ConfigMap/b\nmode: x\n"), "Secret/a,ConfigMap/b");
        assert_eq!(given("mode: x\n"), "");
    }
}
