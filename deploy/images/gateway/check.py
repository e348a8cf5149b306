"""Runs what is in the gateway's image as its container would, and uses it.

    unshare --mount --net check.py ROOT CONFIG

ROOT is the mounted image, CONFIG a file with what `buildah inspect` tells of it. The process runs in ROOT as the image's user, without capabilities;
ROOT is read only but for the image's volumes.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

KEY = "key-of-the-check"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
from asking import PATIENCE, ask, until  # noqa: E402


def main(root, config):
    user, command = config["User"], config["Entrypoint"] + config["Cmd"]
    health = config["Healthcheck"]["Test"]
    assert user == "65532:65532", user
    assert health[0] == "CMD", health
    isolate(root, user, config["Volumes"])
    environment = {"SIXFOLD_ADMIN_KEY": KEY, **dict(pair.split("=", 1) for pair in config.get("Env") or [])}

    def inside(arguments, **options):
        jail = ["chroot", f"--userspec={user}", "--groups=", root]
        return subprocess.Popen(jail + arguments, env=environment, **options)

    def healthy():
        return inside(health[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait() == 0

    assert not healthy(), "healthy before it is started"
    log = open(f"{root}/../gateway.log", "w+b")
    gateway = inside(command, stdout=log, stderr=log)
    try:
        until("healthy", healthy, gateway)
        restricted(gateway.pid)
        admin = "http://127.0.0.1:9180/apisix/admin/routes/a"
        body = {"uri": "/a", "plugins": {"mocking": {"response_example": "from the image"}}}
        assert ask(admin, "PUT", json.dumps(body).encode(), KEY)[0] == 201
        until("the route", lambda: ask("http://127.0.0.1:9080/a") == (200, b"from the image"), gateway)
        store = os.stat(f"{root}/var/lib/sixfold/resources.redb")
        assert (store.st_uid, store.st_gid) == (65532, 65532), store
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(PATIENCE) == 0, gateway.returncode
        assert not healthy(), "healthy after its end"
        log.seek(0)
        assert b'"GET /a HTTP/1.1" 200 ' in log.read(), "no line in the access log on standard output"
    except BaseException:
        gateway.kill()
        log.seek(0)
        sys.stderr.buffer.write(log.read())
        raise
    print(f"the image serves as {user} with a read-only root")


def isolate(root, user, volumes):
    """What a container's runtime does of mounts; they are gone with this process."""
    mounts = [["ip", "link", "set", "lo", "up"], ["mount", "--bind", root, root], ["mount", "-o", "remount,bind,ro", root]]
    uid, gid = user.split(":")
    mounts += [["mount", "-t", "tmpfs", "-o", f"uid={uid},gid={gid},mode=0750", "none", root + volume] for volume in volumes]
    mounts += [["mount", "-t", "proc", "proc", f"{root}/proc"]]
    for command in mounts:
        subprocess.run(command, check=True)
    try:
        open(f"{root}/written", "w")
        raise AssertionError("the root can be written to")
    except OSError:
        pass


def restricted(pid):
    status = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status") if ":\t" in line)
    assert status["Uid"].split() == ["65532"] * 4, status["Uid"]
    assert int(status["CapEff"], 16) == 0 and int(status["CapPrm"], 16) == 0, status["CapEff"]


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), json.load(open(sys.argv[2]))["Docker"]["config"])
