//! What a part of the tests needs of the machine that no package brings: where it is missing the part is left out, and said to be.

use std::process::Command;

use anyhow::Result;

use crate::report::Outcome;
use crate::tools::{IPROUTE, IPTABLES, Tool, ensure};

/// Something that a machine has or has not.
#[derive(Debug, Clone, Copy)]
pub struct Need {
    what: &'static str,
    /// What must be installed for the probe, once what comes before it is there.
    tools: &'static [Tool],
    /// A command that fails where it is missing.
    probe: &'static [&'static str],
}

/// Mounts and a network of one's own.
pub const NAMESPACES: Need = Need {
    what: "root and namespaces (unshare --mount --net)",
    tools: &[],
    probe: &["unshare", "--mount", "--net", "true"],
};

/// Connections that are redirected, as in a pod.
pub const NAT: Need = Need {
    what: "NAT in a network namespace (iptables -t nat)",
    tools: &[IPROUTE, IPTABLES],
    probe: &["unshare", "--net", "iptables", "-w", "-t", "nat", "-L"],
};

/// Groups of processes that a systemd of one's own can have a part of.
pub const CGROUPS: Need = Need {
    what: "a hierarchy of cgroups for systemd (/sys/fs/cgroup/systemd)",
    tools: &[],
    probe: &["test", "-w", "/sys/fs/cgroup/systemd"],
};

impl Need {
    fn is_met(&self) -> bool {
        let [program, arguments @ ..] = self.probe else { return true };
        Command::new(program).args(arguments).output().is_ok_and(|done| done.status.success())
    }
}

/// Does the work where the machine has all of these, which are asked for in their order.
///
/// # Errors
/// Those of the work, and of installing what a probe needs.
pub fn with(needs: &[Need], work: impl FnOnce() -> Result<()>) -> Result<Outcome> {
    with_tools(needs, ensure, work)
}

fn with_tools(
    needs: &[Need],
    install: impl Fn(&[Tool]) -> Result<()>,
    work: impl FnOnce() -> Result<()>,
) -> Result<Outcome> {
    for need in needs {
        install(need.tools)?;
        if !need.is_met() {
            return Ok(Outcome::Skipped(format!("it takes {}", need.what)));
        }
    }
    work().map(Outcome::from)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;
    use anyhow::bail;

    const HERE: Need = Need { what: "nothing", tools: &[], probe: &["true"] };
    const MISSING: Need = Need { what: "the moon", tools: &[], probe: &["false"] };

    /// What could not be installed, for a mirror that was away, was taken for what the machine has not.
    #[test]
    fn what_is_missing_is_left_out_and_what_fails_is_a_failure() {
        assert!(matches!(with(&[HERE], || Ok(())).unwrap(), Outcome::Done));
        assert!(with(&[HERE], || bail!("broken")).is_err());
        let Outcome::Skipped(why) = with(&[HERE, MISSING], || bail!("broken")).unwrap() else { panic!() };
        assert_eq!(why, "it takes the moon");
        let away = |tools: &[Tool]| if tools.is_empty() { Ok(()) } else { bail!("the mirror is away") };
        assert!(with_tools(&[HERE, NAT], away, || Ok(())).is_err());
        assert!(with_tools(&[MISSING, NAT], away, || Ok(())).is_ok(), "nothing is installed in vain");
    }
}
