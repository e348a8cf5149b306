"""Installs the package into a copy of this machine's root, runs what its unit says, and takes it away again.

    unshare --mount --net check.py DEB

The copy is an overlay in memory: dpkg, maintainer scripts, users and logrotate are this machine's own, and nothing of it stays.
"""

import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from asking import PATIENCE, ask, until  # noqa: E402


def main(package):
    work = tempfile.mkdtemp()
    subprocess.run(["mount", "-t", "tmpfs", "none", work], check=True)
    try:
        check(overlay(work, package))
    finally:
        subprocess.run(["umount", "--lazy", work], check=True)
        os.rmdir(work)
    print("the package installs, serves, rotates its logs and is gone when purged")


def check(root):
    before = traces(root)
    dpkg(root, "--install", "/package.deb")
    installed(root)
    unit = read_unit(f"{root}/usr/lib/systemd/system/sixfold.service")
    analyzed(root)
    serves(root, unit)
    dpkg(root, "--purge", "sixfold")
    left = traces(root) - before
    assert not left, f"purging leaves {sorted(left)}"


def overlay(work, package):
    """This machine's root with changes in memory; `lo` is up, and no systemd runs."""
    for name in ["upper", "state", "root"]:
        os.mkdir(f"{work}/{name}")
    options = f"lowerdir=/,upperdir={work}/upper,workdir={work}/state"
    root = f"{work}/root"
    for command in [
        ["ip", "link", "set", "lo", "up"],
        ["mount", "-t", "overlay", "overlay", "-o", options, root],
        ["mount", "-t", "proc", "proc", f"{root}/proc"],
        ["mount", "--rbind", "/dev", f"{root}/dev"],
        ["mount", "-t", "tmpfs", "none", f"{root}/run"],
        ["mount", "-t", "tmpfs", "none", f"{root}/tmp"],
        ["cp", package, f"{root}/package.deb"],
    ]:
        subprocess.run(command, check=True)
    return root


def inside(root, *command, **options):
    return subprocess.run(["chroot", root, *command], text=True, **options)


def dpkg(root, *arguments):
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = inside(root, "dpkg", *arguments, env=environment, capture_output=True)
    assert done.returncode == 0, f"dpkg {arguments}: {done.stdout}{done.stderr}"


def traces(root):
    """Files, users and groups that speak of the package."""
    found = set()
    for place in ["etc", "usr", "var"]:
        listed = inside(root, "find", f"/{place}", "-xdev", "-name", "*sixfold*", stdout=subprocess.PIPE, check=True)
        found.update(listed.stdout.split("\n"))
    for name in ["passwd", "group", "shadow"]:
        lines = pathlib.Path(f"{root}/etc/{name}").read_text().splitlines()
        found.update(f"{name}:{line}" for line in lines if line.startswith("sixfold:"))
    found.update(inside(root, "dpkg-query", "-W", "-f", "${Package} ${Status}\n", "sixfold", capture_output=True).stdout.split("\n"))
    return found - {""}


def installed(root):
    def stat(path):
        found = os.stat(root + path)
        names = inside(root, "stat", "-c", "%U:%G", path, stdout=subprocess.PIPE, check=True).stdout.strip()
        return names, found.st_mode & 0o7777

    assert stat("/etc/sixfold") == ("root:sixfold", 0o750), stat("/etc/sixfold")
    for folder in ["/var/lib/sixfold", "/var/log/sixfold"]:
        assert stat(folder) == ("sixfold:sixfold", 0o750), stat(folder)
    conffiles = inside(root, "dpkg-query", "-W", "-f", "${Conffiles}", "sixfold", stdout=subprocess.PIPE, check=True).stdout
    assert "/etc/sixfold/config.yaml" in conffiles and "/etc/logrotate.d/sixfold" in conffiles, conffiles
    bash = pathlib.Path(f"{root}/usr/share/bash-completion/completions/sixfold").read_text()
    assert "_sixfold" in bash and "status" in bash
    for path in ["zsh/vendor-completions/_sixfold", "fish/vendor_completions.d/sixfold.fish", "man/man1/sixfold.1.gz", "man/man1/sixfold-run.1.gz"]:
        assert os.path.getsize(f"{root}/usr/share/{path}") > 100, path
    page = inside(root, "zcat", "/usr/share/man/man1/sixfold-status.1.gz", stdout=subprocess.PIPE, check=True).stdout
    assert "sixfold\\-status" in page, page


def read_unit(path):
    settings = {}
    for line in pathlib.Path(path).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, value = line.split("=", 1)
            settings.setdefault(name, []).append(value)
    return settings


def analyzed(root):
    """What systemd itself says of the unit, where it is installed."""
    if not os.path.exists(f"{root}/usr/bin/systemd-analyze"):
        print("systemd-analyze is not here: the unit is not analyzed")
        return
    verified = inside(root, "systemd-analyze", "verify", "--man=no", "sixfold.service", capture_output=True)
    assert verified.returncode == 0 and "sixfold" not in verified.stderr, verified.stderr
    told = inside(root, "systemd-analyze", "security", "--offline=true", "--no-pager", "/usr/lib/systemd/system/sixfold.service", capture_output=True)
    level = re.search(r"Overall exposure level for sixfold.service: ([0-9.]+)", told.stdout)
    if not level:
        print(f"systemd-analyze security says nothing: {told.stderr}")
        return
    print(level.group(0))
    assert float(level.group(1)) <= 2.0, told.stdout


def serves(root, unit):
    user, folder = unit["User"][0], unit["WorkingDirectory"][0]
    runuser = ["chroot", root, "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs", "--bounding-set=-all", "env", f"--chdir={folder}"]
    for command in unit["ExecStartPre"]:
        subprocess.run(runuser + shlex.split(command), check=True)
    gateway = subprocess.Popen(runuser + shlex.split(unit["ExecStart"][0]), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        status = runuser + ["/usr/bin/sixfold", "status", "-c", "/etc/sixfold/config.yaml"]
        until("healthy", lambda: subprocess.run(status, capture_output=True).returncode == 0, gateway)
        key = pathlib.Path(f"{root}/var/lib/sixfold/admin-key").read_text().strip()
        body = {"uri": "/a", "plugins": {"mocking": {"response_example": "from the package"}}}
        admin = "http://127.0.0.1:9180/apisix/admin/routes/a"
        assert ask(admin, "PUT", json.dumps(body).encode(), key)[0] == 201
        until("the route", lambda: ask("http://127.0.0.1:9080/a") == (200, b"from the package"), gateway)
        log = pathlib.Path(f"{root}/var/log/sixfold/access.log")
        until("a line in the log", lambda: "GET /a " in log.read_text(), gateway)
        rotates(root, gateway, log)
        for command in unit["ExecReload"]:
            subprocess.run(runuser + shlex.split(command.replace("$MAINPID", str(gateway.pid))), check=True)
        assert ask("http://127.0.0.1:9080/a")[0] == 200
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(PATIENCE) == 0
    except BaseException:
        gateway.kill()
        print(gateway.stderr.read(), file=sys.stderr)
        raise


def rotates(root, gateway, log):
    """logrotate by its own file; a stand-in for systemctl sends the signal that systemd would."""
    stand_in = pathlib.Path(f"{root}/usr/local/bin/systemctl")
    stand_in.write_text(f"#!/bin/sh\necho \"$*\" > /tmp/systemctl\nkill -USR1 {gateway.pid}\n")
    stand_in.chmod(0o755)
    os.makedirs(f"{root}/run/systemd/system")
    path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    done = inside(root, "/usr/sbin/logrotate", "--force", "--state", "/tmp/state", "/etc/logrotate.d/sixfold", env={"PATH": path}, capture_output=True)
    assert done.returncode == 0, done.stderr
    asked = pathlib.Path(f"{root}/tmp/systemctl").read_text().strip()
    assert asked == "kill --kill-whom=main --signal=USR1 sixfold.service", asked
    os.rmdir(f"{root}/run/systemd/system")
    stand_in.unlink()
    assert "GET /a " in log.with_name("access.log.1").read_text()
    until("a line in the new log", lambda: ask("http://127.0.0.1:9080/a")[0] == 200 and "GET /a " in log.read_text(), gateway)


if __name__ == "__main__":
    main(sys.argv[1])
