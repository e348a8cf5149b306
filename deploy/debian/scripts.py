"""Holds the maintainer scripts to what debhelper's do for a unit: enabled, disabled, started and stopped when it should be.

    unshare --mount --net scripts.py DEB

In a copy of this machine's root; `systemctl` and `deb-systemd-invoke` are stand-ins that write down what they are told.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import check

LINK = "etc/systemd/system/multi-user.target.wants/sixfold.service"
STAND_IN = """#!/bin/sh
echo "${0##*/} $*" >> /tmp/calls
case "$*" in *MainPID*) cat /tmp/main 2>/dev/null || echo 0;; esac
"""
START, STOP, RESTART = (f"deb-systemd-invoke {action} sixfold.service" for action in ["start", "stop", "try-restart"])


def main(package):
    work = tempfile.mkdtemp()
    subprocess.run(["mount", "-t", "tmpfs", "none", work], check=True)
    try:
        kept(check.overlay(work, package))
    finally:
        subprocess.run(["umount", "--lazy", work], check=True)
        os.rmdir(work)
    print("the unit is enabled, started and stopped as a package's is")


def kept(root):
    link = pathlib.Path(root, LINK)
    check.dpkg(root, "--install", "/package.deb")
    assert link.is_symlink(), "not enabled where no systemd runs, as in an image"

    os.makedirs(f"{root}/run/systemd/system")
    for name in ["systemctl", "deb-systemd-invoke"]:
        stand_in = pathlib.Path(root, "usr/local/bin", name)
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)

    called = dpkg(root, "--install", "/package.deb")
    assert START in called, f"not started by an upgrade though it is enabled: {called}"
    called = dpkg(root, "--remove", "sixfold")
    assert STOP in called, called
    called = dpkg(root, "--install", "/package.deb")
    assert START in called and link.is_symlink(), f"left stopped after it was removed and installed: {called}"

    # A process that knows no hand-over.
    with subprocess.Popen(["sleep", "60"]) as running:
        pathlib.Path(root, "tmp/main").write_text(str(running.pid))
        called = dpkg(root, "--install", "/package.deb")
        running.kill()
    assert RESTART in called and START not in called, called

    link.unlink()
    dpkg(root, "--install", "/package.deb")
    assert not link.is_symlink(), "enabled though somebody has disabled it"
    dpkg(root, "--purge", "sixfold")
    assert not link.is_symlink()


def dpkg(root, *arguments):
    """Calls of the stand-ins while this is done."""
    calls = pathlib.Path(root, "tmp/calls")
    calls.write_text("")
    path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": path}
    done = check.inside(root, "dpkg", *arguments, env=environment, capture_output=True)
    assert done.returncode == 0, f"dpkg {arguments}: {done.stdout}{done.stderr}"
    return calls.read_text().splitlines()


if __name__ == "__main__":
    main(sys.argv[1])
