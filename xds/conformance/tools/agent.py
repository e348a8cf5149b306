#!/usr/bin/env python3
"""Stands in for pilot-agent in an image: starts its proxy as the agent does, and asks what the agent asks.

    agent.py ROOT SCENARIO_DIR PROXY      ROOT: the image's file system, mounted and writable

The command line and the bootstrap are those of ../agent, recorded of pilot-agent 1.31; only the node is that of the
recorded proxy. Its sockets are under ROOT, where the bootstrap looks for them. The proxy runs as user 1337 in a
network namespace of its own. Ends with status 1 at the first thing that is not as with Envoy. Needs root.
"""
import http.client, http.server, json, os, signal, stat, subprocess, sys, threading, time

import replay, traffic, xds

AGENT = os.path.join(replay.ROOT, "agent")
USER = 1337
ADMIN, STATUS, METRICS, HEALTH = 15000, 15020, 15090, 15021
START_LIMIT, END_LIMIT = 30, 10
ARRIVED = "/stats?usedonly&filter=^(cluster_manager\\.cds|listener_manager\\.lds)\\.(update_success|update_rejected)$"
WORKING = "/stats?usedonly&filter=^(server\\.state|listener_manager\\.workers_started)"


def ask(port, path, method="GET"):
    """Status and body, or None while nobody listens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, headers={"Host": "127.0.0.1:%d" % port, "User-Agent": "Go-http-client/1.1"})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return None
    finally:
        connection.close()


def numbers(text):
    return {k: int(v) for k, v in (line.split(": ") for line in text.splitlines())}


def expect(what, good, seen):
    print("%-6s %s" % ("ok" if good else "FAILED", what), flush=True)
    if not good:
        sys.exit("%s: %s" % (what, seen))


def place(path):
    """A path under ROOT, which is the working directory: the whole one is too long for a socket."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    return path


def serve(scenario, name):
    """The sockets that the agent opens, and its own port for readiness."""
    proxies = replay.load(scenario)
    server = replay.Server(proxies, replay.Edits(None, False), verbose=True)
    control, secrets = place("etc/istio/proxy/XDS"), place("var/run/secrets/workload-spiffe-uds/socket")
    server.start("unix:" + control)
    replay.Secrets().start(secrets)
    for socket in (control, secrets):
        os.chmod(socket, 0o666)

    class Ready(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/healthz/ready" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    own = http.server.ThreadingHTTPServer(("127.0.0.1", STATUS), Ready)
    threading.Thread(target=own.serve_forever, daemon=True).start()
    return server, next(p for p in proxies if p.name == name)


def devices():
    """What a container runtime puts into /dev, as far as it is used."""
    for name, minor in (("null", 3), ("zero", 5), ("random", 8), ("urandom", 9)):
        path = place("dev/" + name)
        if not os.path.exists(path):
            os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            os.chmod(path, 0o666)


def start(proxy):
    with open(os.path.join(AGENT, "bootstrap.json")) as f:
        bootstrap = json.load(f)
    bootstrap["node"] = {k: v for k, v in xds.to_dict(proxy.node).items() if k in ("id", "cluster", "metadata", "locality")}
    with open(os.path.join(AGENT, "argv.json")) as f:
        command = json.load(f)
    with open(place(command[command.index("-c") + 1]), "w") as f:
        json.dump(bootstrap, f)
    log = open(place("proxy.log"), "w+")
    chroot = ["chroot", "--userspec=%d:%d" % (USER, USER), "."]
    return subprocess.Popen(chroot + command, stdout=log, stderr=subprocess.STDOUT), log


def ready(process):
    """Asks as the agent does: first whether configuration has come, then whether the workers run."""
    begun, seen = time.monotonic(), None
    while time.monotonic() - begun < START_LIMIT and process.poll() is None:
        seen = ask(ADMIN, ARRIVED)
        if seen and seen[0] == 200:
            found = numbers(seen[1])
            if all(found.get(k + ".update_success", 0) > 0 for k in ("cluster_manager.cds", "listener_manager.lds")):
                seen = ask(ADMIN, WORKING)
                if seen and numbers(seen[1]) == {"listener_manager.workers_started": 1, "server.state": 0}:
                    return time.monotonic() - begun
        time.sleep(0.05)
    return expect("the proxy becomes ready", False, (seen, process.poll()))


def check(root, scenario, name):
    scenario = os.path.abspath(scenario)
    os.chdir(root)
    devices()
    server, proxy = serve(scenario, name)
    process, log = start(proxy)
    try:
        expect("ready in %.1f s" % ready(process), True, None)
        expect("nothing is refused", not server.nacks, server.nacks)
        status, page = ask(METRICS, "/stats/prometheus")
        expect("port %d has the page of metrics" % METRICS, status == 200 and "envoy_server_state{} 0" in page, (status, page[:500]))
        seen = ask(HEALTH, "/healthz/ready")
        expect("port %d leads to the agent" % HEALTH, seen and seen[0] == 200, seen)
        seen = ask(ADMIN, "/drain_listeners?inboundonly&graceful&skip_exit", "POST")
        expect("it drains when it is told to", seen == (200, "OK\n"), seen)
        expect("and goes on", process.poll() is None, process.poll())
        process.send_signal(signal.SIGTERM)
        expect("SIGTERM ends it", process.wait(END_LIMIT) == 0, process.poll())
    except BaseException:
        log.seek(0)
        print(log.read()[-20000:], file=sys.stderr)
        raise
    finally:
        process.kill()


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    traffic.enter_namespace()
    check(*sys.argv[1:])
    os._exit(0)  # the servers' threads wait for streams
