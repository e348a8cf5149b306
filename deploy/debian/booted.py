"""Boots systemd in a copy of this machine's root with the package in it, and uses the unit: what it confines is confined.

    booted.py DEB

It takes root, namespaces and a hierarchy of cgroups that systemd can have a part of; where they are missing it says so and passes.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import check

HIERARCHY = pathlib.Path("/sys/fs/cgroup/systemd")
SYSTEMD = "/lib/systemd/systemd"
PATIENCE = 120

# What the machine itself would start beside the unit.
MASKED = "systemd-udevd systemd-udev-trigger systemd-timesyncd systemd-networkd systemd-resolved systemd-logind getty@tty1 console-getty"

# Writes NAME=VALUE lines; each is what `EXPECTED` has.
QUESTIONS = r"""
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
tell() { echo "$1=$2"; }
ask() { curl -s --max-time 5 "$@"; }
until_is() { for _ in $(seq 100); do [ "$(ask "$1")" = "$2" ] && break; sleep 0.1; done; ask "$1"; }
for _ in $(seq 100); do sixfold status -c /etc/sixfold/config.yaml > /dev/null 2>&1 && break; sleep 0.1; done
tell active "$(systemctl is-active sixfold)"
tell status "$(sixfold status -c /etc/sixfold/config.yaml)"
process=/proc/$(systemctl show -p MainPID --value sixfold)/status
tell user "$(id -nu "$(awk '$1 == "Uid:" {print $2}' "$process")")"
for field in CapEff CapBnd NoNewPrivs Seccomp; do tell $field "$(awk -v f=$field: '$1 == f {print $2}' "$process")"; done
key=$(cat /var/lib/sixfold/admin-key)
route='{"uri": "/a", "plugins": {"mocking": {"response_example": "under systemd"}}}'
tell put "$(ask -X PUT http://127.0.0.1:9180/apisix/admin/routes/a -H "X-API-KEY: $key" -d "$route" -o /dev/null -w '%{http_code}')"
tell route "$(until_is http://127.0.0.1:9080/a 'under systemd')"
systemctl reload sixfold; tell reload $?
for _ in $(seq 100); do grep -q 'GET /a ' /var/log/sixfold/access.log && break; sleep 0.1; done
logrotate --force --state /tmp/rotated /etc/logrotate.d/sixfold; tell rotate $?
tell rotated "$(grep -q 'GET /a ' /var/log/sixfold/access.log.1; echo $?)"
for _ in $(seq 100); do ask http://127.0.0.1:9080/a > /dev/null; grep -q 'GET /a ' /var/log/sixfold/access.log && break; sleep 0.1; done
tell reopened "$(grep -q 'GET /a ' /var/log/sixfold/access.log; echo $?)"
main() { systemctl show -p MainPID --value sixfold; }
before=$(main)
systemctl kill --kill-whom=main --signal=USR2 sixfold
for _ in $(seq 100); do [ "$(main)" != "$before" ] && break; sleep 0.1; done
tell upgraded "$([ "$(main)" != "$before" ] && systemctl is-active sixfold) $(until_is http://127.0.0.1:9080/a 'under systemd')"
for _ in $(seq 100); do [ -d "/proc/$before" ] || break; sleep 0.1; done
tell replaced "$([ -d "/proc/$before" ] || systemctl is-active sixfold)"
before=$(main)
DEBIAN_FRONTEND=noninteractive dpkg --install /package.deb > /dev/null 2>&1; tell installed "$? $([ "$(main)" != "$before" ] && ask http://127.0.0.1:9080/a)"
sed -i 's/node_listen: .*/node_listen: [9080, 80]/' /etc/sixfold/config.yaml
systemctl restart sixfold; tell restart $?
tell port_80 "$(until_is http://127.0.0.1/a 'under systemd')"
echo 'apisix: {node_listen: [x]}' > /etc/sixfold/config.yaml
systemctl reload sixfold; tell bad_reload $?
tell still "$(ask http://127.0.0.1:9080/a)"
systemctl stop sixfold; tell stop "$? $(systemctl show -p Result --value sixfold)"
systemctl start sixfold; tell bad_start $?
tell end 0
kill -s RTMIN+3 1
"""

NET_BIND_SERVICE = f"{1 << 10:016x}"
EXPECTED = {
    "active": "active",
    "status": "ok",
    "user": "sixfold",
    "CapEff": NET_BIND_SERVICE,
    "CapBnd": NET_BIND_SERVICE,
    "NoNewPrivs": "1",
    "Seccomp": "2",
    "put": "201",
    "route": "under systemd",
    "reload": "0",
    "rotate": "0",
    "rotated": "0",
    "reopened": "0",
    "upgraded": "active under systemd",
    "replaced": "active",
    "installed": "0 under systemd",
    "restart": "0",
    "port_80": "under systemd",
    "bad_reload": "1",
    "still": "under systemd",
    "stop": "0 success",
    "bad_start": "1",
    "end": "0",
}


def main(package):
    if not os.path.exists(SYSTEMD) or not os.access(HIERARCHY, os.W_OK):
        print(f"booted: skipped: it takes systemd, and its hierarchy of cgroups at {HIERARCHY}")
        return
    group = HIERARCHY / f"sixfold-{os.getpid()}"
    group.mkdir()
    try:
        with tempfile.TemporaryDirectory() as folder:
            told = pathlib.Path(folder, "told")
            told.touch()
            booted(package, group, told)
    finally:
        removed(group)
    print("the unit starts, serves confined, reloads, has port 80, and refuses a wrong file under systemd")


def booted(package, group, told):
    namespaces = "--mount --net --pid --fork --kill-child --cgroup --uts --ipc --propagation private"
    inside = f"exec unshare {namespaces} {sys.executable} -B {__file__} --inside {package} {told}"
    # The namespace of cgroups begins with the group that the process is in.
    boot = subprocess.Popen(["sh", "-c", f"echo $$ > {group}/cgroup.procs; {inside}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        log, _ = boot.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        boot.kill()
        log, _ = boot.communicate()
    found = dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
    wrong = {name: found.get(name) for name, value in EXPECTED.items() if found.get(name) != value}
    assert not wrong, f"{log}\n{told.read_text()}\nother than expected: {wrong}"


def removed(group):
    """Its groups are gone once their processes are."""
    for _ in range(50):
        try:
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)
            return
        except OSError:
            time.sleep(0.1)


def inside(package, told):
    # Taken away by who waits for this.
    work = f"{told}.root"
    os.mkdir(work)
    subprocess.run(["mount", "-t", "tmpfs", "none", work], check=True)
    root = check.overlay(work, package)
    check.dpkg(root, "--install", "/package.deb")
    cgroups = f"{root}/sys/fs/cgroup"
    for command in [
        ["mount", "-t", "sysfs", "-o", "ro", "sysfs", f"{root}/sys"],
        ["mount", "-t", "tmpfs", "none", cgroups],
        ["mkdir", f"{cgroups}/systemd"],
        ["mount", "-t", "cgroup", "-o", "none,name=systemd", "cgroup", f"{cgroups}/systemd"],
        ["touch", f"{root}/told"],
        ["mount", "--bind", told, f"{root}/told"],
    ]:
        subprocess.run(command, check=True)
    units(root)
    os.chroot(root)
    os.chdir("/")
    os.execve(SYSTEMD, [SYSTEMD, "--system", "--log-target=console", "--show-status=no"], {"container": "other", "PATH": "/usr/sbin:/usr/bin"})


def units(root):
    """Nothing starts but what systemd itself needs, the unit, and the questions."""
    system = pathlib.Path(root, "etc/systemd/system")
    for wanted in system.glob("*.wants/*"):
        wanted.unlink()
    for name in MASKED.split():
        mask = system / f"{name}.service"
        mask.unlink(missing_ok=True)
        mask.symlink_to("/dev/null")
    (system / "default.target").unlink(missing_ok=True)
    (system / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    pathlib.Path(root, "questions.sh").write_text(QUESTIONS)
    (system / "questions.service").write_text(
        "[Unit]\nAfter=sixfold.service\n[Service]\nType=oneshot\nExecStart=/bin/bash /questions.sh\nStandardOutput=append:/told\n"
    )
    wants = system / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "sixfold.service").symlink_to("/usr/lib/systemd/system/sixfold.service")
    (wants / "questions.service").symlink_to("/etc/systemd/system/questions.service")


if __name__ == "__main__":
    if sys.argv[1] == "--inside":
        inside(*sys.argv[2:])
    else:
        main(sys.argv[1])
