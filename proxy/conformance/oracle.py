#!/usr/bin/env python3
"""oracle.py - differential tests for a proxy that takes Envoy configuration.

    oracle.py record --binary /path/to/envoy          # observe Envoy, write expected/*.json
    oracle.py check  --binary /path/to/other-proxy    # compare another binary with the record
    oracle.py render vhost.exact-first                # print the bootstrap of one case
    oracle.py list                                    # families and case ids

README.md describes the case schema.  Needs PyYAML; `proto: h2` steps and h2 upstreams also need h2.
"""
import argparse, collections, concurrent.futures, copy, fnmatch, json, os, re, shlex, signal, socket, ssl
import subprocess, sys, tempfile, time
import yaml
import client, upstreams

HERE = os.path.dirname(os.path.abspath(__file__))
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "envoy.filters.http.router", "typed_config": {
    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}
FILE_LOG = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
TLS_DOWN = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
LOG_FORMAT = "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %UPSTREAM_CLUSTER_RAW% %ROUTE_NAME%\n"
DEFAULT_ARGS = ("--concurrency 1 --use-dynamic-base-id --disable-hot-restart "
                "--file-flush-interval-msec 100 --log-level error")
AMBIENT = {"server", "x-envoy-upstream-service-time", "x-request-id", "x-envoy-expected-rq-timeout-ms",
           "x-forwarded-proto", "x-envoy-decorator-operation"}
UUID = re.compile(r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$")
ADMIN_OFFSET, READY_OFFSET, LISTENER_OFFSET = 90, 91, 100
USUAL_BASE, LAST_BASE, BLOCK = 21000, 31000, 1000
# How long is waited for what is still on its way when all answers are there, in seconds: mirrors, statistics.
LATE = 5
# Cases that are run a second time at most: what fails in more of them is no matter of time.
MOST_AGAIN = 20
# Cases whose answer depends on the numbers of the ports.
PORT_CASES = ("hash.ring-addresses", "filters.stateful-session-*")
local_ip_cache = []


def listening(port):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)   # connections of the run before may linger
    try:
        sock.bind(("127.0.0.1", port))
        sock.listen()
    except OSError:
        sock.close()
        return None
    return sock


def free_block():
    """The first block of ports that nobody listens on, and a socket that keeps other runs from choosing it."""
    for base in range(USUAL_BASE, LAST_BASE + 1, BLOCK):
        guard = listening(base + BLOCK - 1)
        for port in range(base, base + BLOCK - 1) if guard else ():
            sock = listening(port)
            if sock is None:
                guard.close()
                break
            sock.close()
        else:
            if guard:
                return base, guard
    sys.exit("no block of %d free ports from %d on" % (BLOCK, USUAL_BASE))


# ---------------------------------------------------------------- cases
def load_cases(patterns, exceptions=()):
    """The cases that `patterns` name; an exception is CASE (left out) or CASE#STEP,STEP (those steps not compared)."""
    cases, seen = [], set()
    steps = {case: {int(n) for n in nums.split(",")} for case, _, nums in (e.partition("#") for e in exceptions) if nums}
    whole = {e for e in exceptions if "#" not in e}
    for fname in sorted(os.listdir(os.path.join(HERE, "cases"))):
        if not fname.endswith(".yaml"):
            continue
        with open(os.path.join(HERE, "cases", fname)) as f:
            doc = yaml.safe_load(f)
        for case in doc["cases"]:
            case = merge(copy.deepcopy(doc.get("defaults", {})), case)
            case["family"] = doc["family"]
            case["id"] = "%s.%s" % (doc["family"], case["name"])
            assert case["id"] not in seen, "duplicate case id " + case["id"]
            seen.add(case["id"])
            case["not_compared"] = steps.get(case["id"], set())
            if any(fnmatch.fnmatch(case["id"], e) for e in whole):
                continue
            if not patterns or any(fnmatch.fnmatch(case["id"], p) or p == case["family"] for p in patterns):
                cases.append(case)
    return cases


def merge(base, extra):
    """Deep merge; lists and scalars of `extra` replace those of `base`."""
    for key, val in extra.items():
        if isinstance(val, dict) and isinstance(base.get(key), dict):
            base[key] = merge(base[key], val)
        else:
            base[key] = copy.deepcopy(val)
    return base


# ---------------------------------------------------------------- bootstrap
class Bootstrap:
    """Builds one Envoy bootstrap for a list of cases, each with its own listener (and port)."""

    def __init__(self, cases, base_port, tmp):
        self.base, self.tmp, self.ports, self.logs = base_port, tmp, {}, {}
        self.quiet_ports = []                              # an empty connection leaves no trace there
        self.config = {
            "node": {"id": "oracle-node", "cluster": "oracle-cluster", "locality": {"zone": "zone-1"}},
            "admin": {"address": self.addr(base_port + ADMIN_OFFSET)},
            "layered_runtime": {"layers": [{"name": "static", "static_layer": {}}, {"name": "admin", "admin_layer": {}}]},
            "static_resources": {"listeners": [self.ready_listener()], "clusters": []}}
        for name in ("a", "b", "c", "d"):
            self.config["static_resources"]["clusters"].append(self.cluster({
                "name": name, "hosts": [name],             # shared by concurrent cases, so no low limits
                "circuit_breakers": {"thresholds": [{"max_retries": 1000}]}}))
        for index, case in enumerate(cases):
            self.add(case, base_port + LISTENER_OFFSET + index)

    @staticmethod
    def addr(port):
        return {"socket_address": {"address": "127.0.0.1", "port_value": port}}

    def ready_listener(self):
        routes = [{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "ready"}}}]
        hcm = {"@type": HCM, "stat_prefix": "ready", "http_filters": [ROUTER],
               "route_config": {"virtual_hosts": [{"name": "ready", "domains": ["*"], "routes": routes}]}}
        return {"name": "ready", "address": self.addr(self.base + READY_OFFSET), "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]}]}

    def add(self, case, port):
        res = self.config["static_resources"]
        self.ports[case["id"]] = port
        self.case_id = case["id"]
        for cluster in case.get("clusters", []):
            res["clusters"].append(self.cluster(copy.deepcopy(cluster)))
        self.config["layered_runtime"]["layers"][0]["static_layer"].update(case.get("runtime", {}))
        merge(self.config, case.get("bootstrap", {}))
        if case.get("no_listener"):
            return
        self.logs[case["id"]] = os.path.join(self.tmp, case["id"] + ".log")
        listener = {"name": case["id"], "address": self.addr(port)}
        if "filter_chains" not in case and "listener" not in case:
            self.quiet_ports.append(port)
        chains = case.get("filter_chains") or [{"hcm": {}}]
        listener["filter_chains"] = [self.chain(copy.deepcopy(c), case) for c in chains]
        merge(listener, self.subst(copy.deepcopy(case.get("listener", {}))))
        res["listeners"].append(listener)

    def chain(self, chain, case):
        """A filter chain: an Envoy one, with `hcm: {...}` and `tls: {...}` as shorthands."""
        if "hcm" in chain:
            hcm = {"@type": HCM, "stat_prefix": case["id"], "access_log": [self.access_log(case)]}
            hcm["route_config"] = {"name": case["id"]}
            merge(hcm["route_config"], case.get("route_config", {}))
            if "routes" in case:
                hcm["route_config"]["virtual_hosts"] = [{"name": "all", "domains": ["*"], "routes": case["routes"]}]
            if "vhosts" in case:
                hcm["route_config"]["virtual_hosts"] = case["vhosts"]
            hcm["http_filters"] = case.get("http_filters", []) + [ROUTER]
            merge(hcm, case.get("hcm", {}))
            merge(hcm, chain.pop("hcm"))
            chain["filters"] = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]
        if "tls" in chain:
            ctx = {"@type": TLS_DOWN, "common_tls_context": {"tls_certificates": [{
                "certificate_chain": {"filename": "$CERTS/server.crt"}, "private_key": {"filename": "$CERTS/server.key"}}]}}
            chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": merge(ctx, chain.pop("tls"))}
        return self.subst(chain)

    def access_log(self, case):
        return {"name": "envoy.access_loggers.file", "typed_config": {
            "@type": FILE_LOG, "path": self.logs[case["id"]],
            "log_format": {"text_format_source": {"inline_string": LOG_FORMAT}}}}

    def cluster(self, cluster):
        hosts = cluster.pop("hosts", None)
        cluster.setdefault("connect_timeout", "1s")
        if "cluster_type" not in cluster:
            cluster.setdefault("type", "STATIC")
        if hosts is not None:
            cluster["load_assignment"] = {"cluster_name": cluster["name"], "endpoints": [
                {"lb_endpoints": [{"up": h} for h in hosts]}]}
        elif "load_assignment" in cluster:
            cluster["load_assignment"].setdefault("cluster_name", cluster["name"])
        return self.subst(cluster)

    def subst(self, node):
        """Replaces {up: NAME} endpoints and $TMP, $CERTS, $PROTOS, $LOG, $PORT_name in strings."""
        if isinstance(node, dict):
            if "up" in node and isinstance(node["up"], str):
                node = dict(node)
                ep = dict(node.pop("endpoint", {}))
                ep["address"] = self.addr(self.base + upstreams.PORTS[node.pop("up")])
                node["endpoint"] = ep
            return {k: self.subst(v) for k, v in node.items()}
        if isinstance(node, list):
            return [self.subst(v) for v in node]
        if isinstance(node, str) and "$" in node:
            node = node.replace("$TMP", self.tmp).replace("$CERTS", os.path.join(HERE, "certs"))
            node = node.replace("$PROTOS", os.path.join(HERE, "protos"))
            node = node.replace("$LOG", os.path.join(self.tmp, self.case_id + ".extra.log"))
            return re.sub(r"\$PORT_(\w+)", lambda m: str(self.base + upstreams.PORTS[m.group(1)]), node)
        return node


# ---------------------------------------------------------------- the proxy under test
class Proxy:
    def __init__(self, binary, args, bootstrap, tmp, verbose):
        path = os.path.join(tmp, "bootstrap.json")
        with open(path, "w") as f:
            json.dump(bootstrap.config, f, indent=1)
        self.errors = open(os.path.join(tmp, "proxy.err"), "w+")
        # argv[0] may be a script; start_new_session lets stop() end it together with its child.
        self.proc = subprocess.Popen([binary, "-c", path] + args, stdout=self.errors,
                                     stderr=self.errors, start_new_session=True)
        self.bootstrap, self.verbose = bootstrap, verbose

    def wait_ready(self, limit):
        end, port = time.time() + limit, self.bootstrap.base + READY_OFFSET
        while time.time() < end and self.proc.poll() is None:
            try:
                step = {"path": "/"}
                if client.Conn(port, None).exchange(client.build(step, "ready"), "GET", 2)["status"] == 200:
                    for p in self.bootstrap.quiet_ports:
                        socket.create_connection(("127.0.0.1", p), 2).close()
                    return True
            except OSError:
                pass
            time.sleep(0.05)
        return False

    def tail(self):
        self.errors.flush()
        self.errors.seek(0)
        lines = self.errors.read().splitlines()
        bad = [line[:400] for line in lines if re.search(r"critical|error|rror:|invalid|unable", line)]
        return "\n".join((bad or lines)[-4:])

    def stop(self):
        try:
            os.killpg(self.proc.pid, signal.SIGTERM)
            self.proc.wait(5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            try:
                os.killpg(self.proc.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.proc.wait()
        self.errors.close()


# ---------------------------------------------------------------- running a case
class CaseRun:
    def __init__(self, case, boot, ups):
        self.case, self.boot, self.ups = case, boot, ups
        self.conns, self.serial = {}, 0

    def run(self):
        out = {"steps": []}
        for step in self.case["requests"]:
            try:
                out["steps"].append(self.step(step))
            except Exception as err:                      # a broken step is an outcome, not a crash
                out["steps"].append({"error": "%s: %s" % (type(err).__name__, err)})
        for conn in self.conns.values():
            conn.close()
        return out

    def step(self, step):
        if "wait" in step:
            time.sleep(step["wait"])
            return {}
        if "parallel" in step:
            with concurrent.futures.ThreadPoolExecutor(len(step["parallel"])) as pool:
                results = list(pool.map(self.one, step["parallel"]))
            return {step["observe"]: results, "n": len(results)} if "observe" in step else {"parallel": results}
        if "repeat" not in step:
            return self.one(step)
        single = {k: v for k, v in step.items() if k not in ("repeat", "observe", "share", "tolerance")}
        results = [self.one(single) for _ in range(step["repeat"])]
        how = step.get("observe", "all")
        if how == "all":
            return {"repeat": results}
        return {how: results, "n": step["repeat"]}        # reduced in finish(), when the journal is complete

    def one(self, step):
        time.sleep(step.get("at", 0))
        self.serial += 1
        rid = "%s#%d" % (self.case["id"], self.serial)
        step = dict(step, headers=[self.boot.subst(h) for h in step.get("headers", [])])
        if step.get("admin"):
            step = {"host": "localhost", **step}
        port = self.boot.base + ADMIN_OFFSET if step.get("admin") else self.boot.ports[self.case["id"]]
        limit = step.get("timeout", 10)
        if step.get("proto") == "h2":
            res = client.h2_request(port, step, rid, limit)
        else:
            label = step.get("conn")
            conn = self.conns.get(label) if label else None
            try:
                if conn is None:
                    conn = client.Conn(port, step.get("tls"))
                    if label:
                        self.conns[label] = conn
                res = client.run_h1(conn, step, rid, limit)
                if not label:
                    conn.close()
            except (ConnectionError, ssl.SSLError):
                res = {"status": None, "closed": "without a response"}
        res["rid"] = rid
        if step.get("any_host"):
            res["any_host"] = True
        if "grep" in step:
            body = res.pop("body", "")
            res["grep"] = {p: sorted(set(re.findall(p, body, re.M))) for p in step["grep"]}
            res.pop("headers", None)
        return res


def finish(case, out, ups, boot):
    """Adds what the upstreams saw and masks what changes from run to run."""
    mask = [(re.compile(p), r) for p, r in case.get("mask", [])]

    names = {boot.base + port: name for name, port in upstreams.PORTS.items()}

    def port(match):
        num = int(match.group(2))
        name = names.get(num) or ("listener" if LISTENER_OFFSET <= num - boot.base < 1000 else None)
        return "127.0.0.1%s<%s>" % (match.group(1), name) if name else match.group(0)

    def text(s):
        for ip in local_ips():
            s = s.replace(ip, "<local-ip>")
        return masked(re.sub(r"127\.0\.0\.1([:_])(\d+)", port, s))

    def masked(s):
        for pat, rep in mask:
            s = pat.sub(rep, s)
        return s

    def headers(pairs, drop):
        res = {}
        for name, value in pairs:
            low = name if case.get("keep_header_case") else name.lower()
            if name.lower() in drop:
                continue
            if name.lower() == "x-request-id" and UUID.match(value):
                value = "<uuid>"
            if name.lower() == "x-envoy-upstream-service-time":
                value = "<ms>"
            res.setdefault(low, []).append(text(value))
        return res

    def one(res):
        if not isinstance(res, dict):
            return res
        if "rid" in res:
            hits = ups.hits(res.pop("rid"))
            res["hits"] = [{"upstream": h["upstream"], "method": h["method"], "path": text(h["path"]),
                            "headers": headers(h["headers"], {"x-case", "x-up", "user-agent"}),
                            **({"body": text(h["body"])} if h["body"] else {}),
                            **({"trailers": h["trailers"]} if h.get("trailers") else {}),
                            **({"message": h["message"]} if h.get("message") else {})} for h in hits]
            if res.pop("any_host", False):                 # the choice was random
                for hit in res["hits"]:
                    hit["upstream"] = "<any>"
            for i, hit in enumerate(res["hits"]):          # later attempts have an unknown part of the timeout left
                if (i or case.get("unordered")) and "x-envoy-expected-rq-timeout-ms" in hit["headers"]:
                    hit["headers"]["x-envoy-expected-rq-timeout-ms"] = ["<ms>"]
            if case.get("unordered"):
                res["hits"].sort(key=lambda h: json.dumps(h, sort_keys=True))
        if "headers" in res:
            res["headers"] = headers(res["headers"], {"date"})
        if "grep" in res:
            res["grep"] = {p: sorted({text(line) for line in lines}) for p, lines in res["grep"].items()}
        if isinstance(res.get("received"), str):
            res["received"] = masked(res["received"])
        if isinstance(res.get("body"), str):
            res["body"] = text(res["body"])
            if res["body"].startswith('{"upstream"'):      # its length follows the request headers
                res["body"] = "<echo>"
                if "content-length" in res.get("headers", {}):
                    res["headers"]["content-length"] = ["<echo>"]
        for key in ("parallel", "repeat"):
            if key in res:
                res[key] = [one(r) for r in res[key]]
        for key in ("share", "counts", "distinct"):
            if key in res:
                n, runs = res.pop("n"), [one(r) for r in res[key]]
                count = collections.Counter(r["hits"][-1]["upstream"] if r.get("hits") else
                                            "status %s" % r.get("status") for r in runs)
                res[key] = {"share": {k: round(v / n, 3) for k, v in count.items()},
                            "counts": dict(count), "distinct": len(count)}[key]
        return res

    out["steps"] = [one(s) for s in out["steps"]]
    for name, path in (("log", boot.logs.get(case["id"])), ("extra_log", os.path.join(boot.tmp, case["id"] + ".extra.log"))):
        wanted = case.get("log", not any("observe" in s for s in case["requests"]))
        if path and os.path.exists(path) and wanted:
            with open(path, errors="replace") as f:
                lines = [text(line.rstrip("\n")) for line in f if line.strip()]
            out[name] = sorted(lines) if case.get("unordered") else lines
    return out


def local_ips():
    if not local_ip_cache:
        found = set()
        try:
            text = subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout
            found = {ip for ip in text.split() if not ip.startswith("127.")}
        except OSError:
            pass
        local_ip_cache.append(sorted(found, key=len, reverse=True))
    return local_ip_cache[0]


def read_stats(boot, names):
    res = client.run_h1(client.Conn(boot.base + ADMIN_OFFSET, None), {"path": "/stats", "admin": True, "host": "localhost"},
                        "stats", 5)
    table = dict(line.split(": ", 1) for line in res.get("body", "").splitlines() if ": " in line)
    return {n: table.get(n) for n in names}


def wait_for_rest(case, out, ups, boot, opts, end):
    """Reads the statistics of a case; in a check until they and the hits are those expected, or it is too late."""
    want = (load_expected(case["family"]).get(case["id"]) if opts.mode == "check" else None) or {}
    rids, hits = list(found(out, "rid")), sum(map(len, found(want, "hits")))
    while True:
        if case.get("stats"):
            try:
                out["stats"] = read_stats(boot, case["stats"])
            except (OSError, ValueError) as err:
                out["stats"] = {"error": str(err)}
        there = sum(len(ups.hits(rid)) for rid in rids) >= hits
        if time.time() > end or (there and (opts.no_stats or out.get("stats") == want.get("stats", out.get("stats")))):
            return
        time.sleep(0.1)


def found(node, key):
    """The values of a key, however deep they are."""
    if isinstance(node, dict):
        if key in node:
            yield node[key]
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from found(inner, key)


def run_batch(cases, opts, ups):
    """Runs cases in one proxy process. Returns {id: outcome} or None if the proxy did not start."""
    with tempfile.TemporaryDirectory(prefix="oracle-") as tmp:
        boot = Bootstrap(cases, opts.base_port, tmp)
        proxy = Proxy(opts.binary, opts.args, boot, tmp, opts.verbose)
        try:
            if not proxy.wait_ready(opts.start_limit):
                if len(cases) == 1 or opts.verbose:
                    print("    did not start: " + proxy.tail())
                return None
            ups.reset()
            with concurrent.futures.ThreadPoolExecutor(opts.jobs) as pool:
                outs = list(pool.map(lambda c: CaseRun(c, boot, ups).run(), cases))
            time.sleep(0.4)                                # mirrors, and the access log flush
            end = time.time() + LATE
            for case, out in zip(cases, outs):
                wait_for_rest(case, out, ups, boot, opts, end)
        finally:
            proxy.stop()                                   # stopping flushes the rest of the log
        return {c["id"]: finish(c, o, ups, boot) for c, o in zip(cases, outs)}


def run_all(cases, opts, ups):
    outcomes, batches = {}, collections.OrderedDict()
    for case in cases:
        key = case["id"] if opts.per_case or case.get("isolate") else case["family"]
        batches.setdefault(key, []).append(case)
    for key, batch in batches.items():
        got = run_batch(batch, opts, ups)
        if got is None and len(batch) > 1:                 # one bad fragment must not fail its neighbours
            print("  %s: did not start as a whole, one process per case" % key)
            got = {}
            for case in batch:
                got.update(run_batch([case], opts, ups) or {case["id"]: {"error": "proxy did not start"}})
        outcomes.update(got or {batch[0]["id"]: {"error": "proxy did not start"}})
    return outcomes


# ---------------------------------------------------------------- comparing
def diff(exp, got, path, opts, out):
    """Appends one line per difference; `path` is the list of keys down to here."""
    in_headers = path[-1] == "headers" and len(path) > 1
    if isinstance(exp, dict) and isinstance(got, dict):
        for key in sorted(set(exp) | set(got)):
            low = key.lower()
            if in_headers and (low in opts.ignore or (opts.loose and low in AMBIENT)):
                continue
            if (key in ("log", "extra_log") and opts.no_log) or (key == "stats" and opts.no_stats):
                continue
            if key in exp and key in got:
                diff(exp[key], got[key], path + [key], opts, out)
            else:
                out.append("%s.%s: expected %s, got %s" % (
                    ".".join(path), key, json.dumps(exp.get(key)), json.dumps(got.get(key))))
    elif isinstance(exp, list) and isinstance(got, list) and len(exp) == len(got):
        for i, (e, g) in enumerate(zip(exp, got)):
            diff(e, g, path + [str(i)], opts, out)
    elif exp != got:
        out.append("%s: expected %s, got %s" % (".".join(path), json.dumps(exp), json.dumps(got)))


def shares(case, outcome):
    """Puts the authored shares over the measured ones; the measured ones must agree with them."""
    bad = []
    for step, res in zip(case["requests"], outcome.get("steps", [])):
        if step.get("observe") == "share":
            tol = step.get("tolerance", 0.1)
            for key in set(step["share"]) | set(res.get("share", {})):
                if abs(step["share"].get(key, 0) - res.get("share", {}).get(key, 0)) > tol:
                    bad.append("%s: authored share %s, measured %s" % (case["id"], step["share"], res.get("share")))
            res["share"], res["tolerance"] = step["share"], tol
    return bad


def compare(case, exp, got, opts):
    out = []
    if exp is None:
        return ["not recorded yet"]
    if "error" in got:
        return [got["error"]]
    exp, got = copy.deepcopy(exp), copy.deepcopy(got)
    if case["not_compared"]:                               # nor is the log: it has a line for each step
        for outcome in (exp, got):
            outcome["steps"] = [None if i in case["not_compared"] else s for i, s in enumerate(outcome["steps"])]
            outcome.pop("log", None)
    for e, g in zip(exp.get("steps", []), got.get("steps", [])):
        if isinstance(e, dict) and "tolerance" in e and isinstance(g, dict):       # a share: compared loosely, then taken out
            tol, want, have = e.pop("tolerance"), e.pop("share"), g.pop("share", {})
            for key in sorted(set(want) | set(have)):
                if abs(want.get(key, 0) - have.get(key, 0)) > tol:
                    out.append("%s: share of %s: expected %.2f +- %.2f, got %.2f" % (
                        case["id"], key, want.get(key, 0), tol, have.get(key, 0)))
    diff(exp, got, [case["id"]], opts, out)
    return out


def try_again(cases, outcomes, problems, opts, ups):
    """Runs what failed a second time, each case alone: a machine that is busy does not do the same to it twice.

    What passes now is put in the place of what failed; answers what was different the first time, by case."""
    failed = [c for c in cases if problems[c["id"]] and load_expected(c["family"]).get(c["id"])]
    if opts.once or not failed:
        return {}
    if len(failed) > MOST_AGAIN:
        print("%d cases failed, which is too many for a second try" % len(failed))
        return {}
    second, first = run_all(failed, argparse.Namespace(**{**vars(opts), "per_case": True}), ups), {}
    for case in failed:
        now = compare(case, load_expected(case["family"])[case["id"]], second[case["id"]], opts)
        if not now:
            first[case["id"]], problems[case["id"]], outcomes[case["id"]] = problems[case["id"]], [], second[case["id"]]
    return first


def show(problems, opts):
    for line in problems[:opts.max_diffs]:
        print("     " + line[:400])
    if len(problems) > opts.max_diffs:
        print("     ... and %d more" % (len(problems) - opts.max_diffs))


# ---------------------------------------------------------------- command line
def expected_path(family):
    return os.path.join(HERE, "expected", family + ".json")


def load_expected(family):
    if not os.path.exists(expected_path(family)):
        return {}
    with open(expected_path(family)) as f:
        return json.load(f)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("mode", choices=["record", "check", "render", "list"])
    ap.add_argument("only", nargs="*", help="families or case ids (globs); all by default")
    ap.add_argument("--binary", default=os.environ.get("ORACLE_BINARY", "envoy"))
    ap.add_argument("--args", default=DEFAULT_ARGS, help="arguments after `-c FILE` (default: %(default)s)")
    ap.add_argument("--base-port", type=int,
                    help="uses base .. base+999 on 127.0.0.1; the first free block from %d on by default" % USUAL_BASE)
    ap.add_argument("--jobs", type=int, default=6, help="cases run at once")
    ap.add_argument("--per-case", action="store_true", help="one proxy process per case")
    ap.add_argument("--once", action="store_true", help="no second try for a case that failed")
    ap.add_argument("--start-limit", type=float, default=20, help="seconds to wait for the proxy")
    ap.add_argument("--loose", action="store_true", help="ignore the headers Envoy adds to everything")
    ap.add_argument("--ignore", action="append", default=[], metavar="HEADER", help="ignore one header")
    ap.add_argument("--no-log", action="store_true", help="do not compare access logs (flags, details)")
    ap.add_argument("--no-stats", action="store_true", help="do not compare statistics")
    ap.add_argument("--except", action="append", default=[], dest="exceptions", metavar="CASE[#STEP,STEP]",
                    help="leave a case out (globs), or do not compare some steps of it (counted from 0) nor its log")
    ap.add_argument("--max-diffs", type=int, default=6, help="differences printed per case")
    ap.add_argument("--report", help="write the whole result of a check as JSON")
    ap.add_argument("-v", "--verbose", action="store_true")
    opts = ap.parse_intermixed_args()
    opts.args, opts.ignore = shlex.split(opts.args), {h.lower() for h in opts.ignore}
    guard = None
    if opts.base_port is None:
        opts.base_port, guard = (USUAL_BASE, None) if opts.mode in ("list", "render") else free_block()
        if opts.base_port != USUAL_BASE:
            print("ports from %d on, so without %s" % (opts.base_port, ", ".join(PORT_CASES)))
            opts.exceptions.extend(PORT_CASES)
    cases = load_cases(opts.only, opts.exceptions)
    if opts.mode == "list":
        for family, n in sorted(collections.Counter(c["family"] for c in cases).items()):
            print("%-18s %d" % (family, n))
        print("%-18s %d" % ("total", len(cases)))
        return 0
    if opts.mode == "render":
        print(yaml.safe_dump(Bootstrap(cases, opts.base_port, "/tmp").config, sort_keys=False))
        return 0
    started, ups = time.time(), upstreams.Upstreams(opts.base_port, os.path.join(HERE, "certs"))
    outcomes = run_all(cases, opts, ups)
    if opts.mode == "record":
        ups.close()
        bad = []
        for family in sorted({c["family"] for c in cases}):
            data = load_expected(family)
            for case in cases:
                if case["family"] == family:
                    bad += shares(case, outcomes[case["id"]])
                    if "error" in outcomes[case["id"]]:
                        bad.append(case["id"] + ": " + outcomes[case["id"]]["error"])
                    data[case["id"]] = outcomes[case["id"]]
            known = {c["id"] for c in load_cases([family])}
            with open(expected_path(family), "w") as f:
                json.dump({k: data[k] for k in sorted(data) if k in known}, f, indent=1, sort_keys=True)
                f.write("\n")
        print("\n".join(bad))
        print("%d recorded, %d doubtful (%.0f s)" % (len(cases), len(bad), time.time() - started))
        return 1 if bad else 0
    tally, report = collections.OrderedDict(), {}
    for case in cases:
        report[case["id"]] = compare(case, load_expected(case["family"]).get(case["id"]), outcomes[case["id"]], opts)
    first = try_again(cases, outcomes, report, opts, ups)
    ups.close()
    for case in cases:
        problems = report[case["id"]]
        tally.setdefault(case["family"], [0, 0])[1 if problems else 0] += 1
        if case["id"] in first:
            print("passed at the second try: %s - %s" % (case["id"], case.get("about", "")))
            show(first[case["id"]], opts)
        if problems:
            print("FAIL %s - %s" % (case["id"], case.get("about", "")))
            show(problems, opts)
    for family, (good, bad) in tally.items():
        print("%-18s %3d passed %3d failed" % (family, good, bad))
    if opts.report:
        with open(opts.report, "w") as f:
            json.dump({"diffs": report, "first_try": first, "outcomes": outcomes}, f, indent=1, sort_keys=True)
    good, bad = (sum(t[i] for t in tally.values()) for i in (0, 1))
    print("%d passed, %s%d failed (%.0f s)" % (
        good, "%d of them at the second try, " % len(first) if first else "", bad, time.time() - started))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
