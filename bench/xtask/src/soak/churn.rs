//! What changes under load: resources by a file and by the Admin API, certificates, upstreams that die, gateways that
//! drain.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::clients::Door;
use super::gateway::Gateway;
use super::http;
use super::upstream::Upstream;
use crate::process::output;
use crate::tools::self_signed;

/// Routes of each gateway that lead to upstreams that die.
pub(super) const ROUTES: usize = 200;
/// How long a change may take until it is live.
const LIVE: Duration = Duration::from_secs(5);
/// Seconds that a connection to an upstream may be idle: soon after the load there must be none.
const IDLE: u32 = 2;
/// How long a drain may take: the clients' requests take milliseconds, idle connections end after a second.
const DRAIN: Duration = Duration::from_secs(15);

/// Until it is told to stop, at most a tenth of a second late. Gives whether it may go on.
pub(super) fn pause(stop: &AtomicBool, time: Duration) -> bool {
    let end = Instant::now() + time;
    while !stop.load(Ordering::Relaxed) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        sleep(left.min(Duration::from_millis(100)));
    }
    false
}

/// Where routes lead.
#[derive(Debug)]
pub(super) struct Places<'a> {
    /// Of these one may be dead
    pub mortal: &'a [Upstream],
    pub stable: &'a Upstream,
}

impl Places<'_> {
    /// The n-th route in one generation of the configuration: weights move, and a plugin comes and goes.
    fn route(&self, n: usize, generation: usize) -> Value {
        let weight = |place: usize| 1 + (generation + n + place) % 3;
        let nodes = self.mortal.iter().enumerate();
        let nodes =
            nodes.map(|(place, upstream)| (format!("127.0.0.1:{}", upstream.port), json!(weight(place))));
        let mut route = json!({
            "id": n.to_string(), "uri": format!("/svc/{n}/*"),
            "upstream": {"type": "roundrobin", "nodes": nodes.collect::<serde_json::Map<_, _>>(), "retries": 2,
                "keepalive_pool": {"size": 64, "idle_timeout": IDLE, "requests": 1000}}});
        if (generation + n).is_multiple_of(2) {
            route["plugins"] = json!({"request-id": {}});
        }
        route
    }

    /// Routes that stay as they are, to an upstream that does not die.
    fn stable(&self) -> Vec<Value> {
        let upstream = json!({"type": "roundrobin", "nodes": {format!("127.0.0.1:{}", self.stable.port): 1},
            "keepalive_pool": {"size": 64, "idle_timeout": IDLE, "requests": 1000}});
        let route = |name: &&str| json!({"id": name, "uri": format!("/{name}/*"), "upstream": upstream});
        ["stable", "slow", "large"].iter().map(route).collect()
    }

    /// A route that answers which generation is live.
    fn generation(generation: usize) -> Value {
        json!({"id": "generation", "uri": "/generation", "plugins": {"mocking": {"response_example": told(generation)}}})
    }

    /// An apisix.yaml of one generation. A route comes and goes; one of seven has a route that is wrong, which is refused
    /// by itself.
    pub(super) fn file(&self, generation: usize) -> String {
        let mut routes: Vec<Value> = (1..=ROUTES).map(|n| self.route(n, generation)).collect();
        routes.extend(self.stable());
        routes.push(Self::generation(generation));
        if generation.is_multiple_of(2) {
            routes.push(json!({"id": "extra", "uri": "/extra", "plugins": {"mocking": {"response_example": "extra"}}}));
        }
        if generation.is_multiple_of(7) {
            routes.push(json!({"id": "wrong", "uri": 5}));
        }
        let mut text = "routes:\n".to_owned();
        for route in routes {
            let _ = writeln!(text, "  - {route}");
        }
        text + "#END\n"
    }

    /// All routes of the first generation, by the Admin API.
    ///
    /// # Errors
    /// One is refused.
    pub(super) fn put_all(&self, gateway: &Gateway) -> Result<()> {
        let routes = (1..=ROUTES).map(|n| self.route(n, 0)).chain(self.stable());
        for mut route in routes.chain([Self::generation(0)]) {
            put(gateway, &mut route, &[200, 201])?;
        }
        Ok(())
    }
}

fn told(generation: usize) -> String {
    format!("generation {generation}")
}

fn put(gateway: &Gateway, route: &mut Value, wanted: &[u16]) -> Result<()> {
    let id = route.as_object_mut().and_then(|route| route.remove("id"));
    let id = id.as_ref().and_then(Value::as_str).context("a route without an id")?;
    gateway.admin("PUT", &format!("routes/{id}"), &route.to_string(), wanted)
}

/// Waits until a generation is live.
///
/// # Errors
/// It is not, in five seconds.
pub(super) fn wait_for(gateway: &Gateway, generation: usize) -> Result<()> {
    let (begun, wanted) = (Instant::now(), told(generation));
    loop {
        let answer = http::call(gateway.port, "GET", "/generation", "", "");
        match answer {
            Ok(answer) if String::from_utf8_lossy(&answer.body).trim() == wanted => return Ok(()),
            answer if begun.elapsed() > LIVE => {
                bail!("{}: {wanted} is not live after {LIVE:?}: {answer:?}", gateway.name)
            }
            _ => sleep(Duration::from_millis(10)),
        }
    }
}

/// Replaces a gateway's apisix.yaml again and again. Gives how often.
///
/// # Errors
/// A change does not become live.
pub(super) fn by_file(gateway: &Gateway, places: &Places<'_>, stop: &AtomicBool) -> Result<u64> {
    let mut generation = 0;
    while pause(stop, Duration::from_millis(500)) {
        generation += 1;
        gateway.put_file(&places.file(generation))?;
        wait_for(gateway, generation)?;
    }
    Ok(generation as u64)
}

/// Puts, patches and deletes resources by the Admin API. Gives how many writes there were.
///
/// # Errors
/// A write is answered otherwise than it must be, or does not become live.
pub(super) fn by_admin(gateway: &Gateway, places: &Places<'_>, stop: &AtomicBool) -> Result<u64> {
    let mut writes = 0;
    let mut turn = 0;
    while pause(stop, Duration::from_millis(100)) {
        turn += 1;
        let n = turn % ROUTES + 1;
        put(gateway, &mut places.route(n, turn), &[200])?;
        let other = (n + 50) % ROUTES + 1;
        gateway.admin(
            "PATCH",
            &format!("routes/{other}"),
            &json!({"desc": told(turn)}).to_string(),
            &[200],
        )?;
        match turn % 4 {
            0 => gateway.admin(
                "PUT",
                "routes/extra",
                r#"{"uri": "/extra", "plugins": {"echo": {"body": "x"}}}"#,
                &[201],
            )?,
            1 if turn > 4 => gateway.admin("DELETE", "routes/extra", "", &[200])?,
            2 => gateway.admin("PUT", "routes/wrong", r#"{"uri": 5}"#, &[400])?,
            _ => put(
                gateway,
                &mut json!({"id": "seldom", "uri": format!("/seldom/{turn}")
                , "plugins": {"mocking": {"response_example": "seldom"}}}),
                &[200, 201],
            )?,
        }
        writes += 3;
        if turn.is_multiple_of(10) {
            put(gateway, &mut Places::generation(turn), &[200])?;
            wait_for(gateway, turn)?;
            writes += 1;
        }
    }
    Ok(writes)
}

/// Lets one upstream after the other die and come back. Gives how often.
///
/// # Errors
/// One can't come back.
pub(super) fn kill(mortal: &[Upstream], stop: &AtomicBool) -> Result<u64> {
    let mut deaths = 0;
    for upstream in mortal.iter().cycle() {
        if !pause(stop, Duration::from_millis(1_300)) {
            break;
        }
        upstream.die();
        deaths += 1;
        pause(stop, Duration::from_millis(700));
        upstream.come_back()?;
    }
    Ok(deaths)
}

/// Ends a gateway by SIGTERM and starts it again, while its clients go on asking. Gives how often.
///
/// # Errors
/// It does not end in time, or does not start.
pub(super) fn drain(mut gateway: Gateway, door: &Door, stop: &AtomicBool) -> Result<u64> {
    let mut drains = 0;
    while pause(stop, Duration::from_secs(4)) {
        door.set(false);
        gateway.end(DRAIN)?;
        gateway.start_again()?;
        door.set(true);
        drains += 1;
    }
    gateway.end(DRAIN)?;
    Ok(drains)
}

/// Certificates that take turns.
#[derive(Debug)]
pub(super) struct Certificates {
    /// Of each the resource and its fingerprint
    all: Vec<(Value, String)>,
}

impl Certificates {
    /// # Errors
    /// openssl fails.
    pub(super) fn make(dir: &Path) -> Result<Self> {
        let one = |n: usize| -> Result<(Value, String)> {
            let dir = dir.join(format!("certificate-{n}"));
            fs::create_dir_all(&dir)?;
            self_signed(&dir)?;
            let read = |name: &str| fs::read_to_string(dir.join(name));
            let ssl = json!({"cert": read("cert.pem")?, "key": read("key.pem")?, "snis": ["localhost"]});
            let mut command = Command::new("openssl");
            command.args(["x509", "-noout", "-fingerprint", "-in"]).arg(dir.join("cert.pem"));
            Ok((ssl, output(&mut command)?))
        };
        Ok(Self { all: (0..3).map(one).collect::<Result<_>>()? })
    }

    /// # Errors
    /// It is refused, or not served soon.
    pub(super) fn put(&self, gateway: &Gateway, turn: usize) -> Result<()> {
        let (ssl, fingerprint) = self.all.get(turn % self.all.len()).context("no certificate")?;
        gateway.admin("PUT", "ssls/soak", &ssl.to_string(), &[200, 201])?;
        let begun = Instant::now();
        loop {
            let served = served(gateway.tls);
            if served.as_ref().is_ok_and(|served| served == fingerprint) {
                return Ok(());
            }
            if begun.elapsed() > LIVE {
                bail!("a new certificate is not served after {LIVE:?}: {served:?}");
            }
            sleep(Duration::from_millis(100));
        }
    }

    /// Lets one after the other be served. Gives how often.
    ///
    /// # Errors
    /// As [`Certificates::put`].
    pub(super) fn rotate(&self, gateway: &Gateway, every: Duration, stop: &AtomicBool) -> Result<u64> {
        let mut turn = 0;
        while pause(stop, every) {
            turn += 1;
            self.put(gateway, turn)?;
        }
        Ok(turn as u64)
    }
}

/// The fingerprint of the certificate that is served for `localhost`.
fn served(port: u16) -> Result<String> {
    let script = format!(
        "openssl s_client -connect 127.0.0.1:{port} -servername localhost </dev/null 2>/dev/null | openssl x509 -noout -fingerprint"
    );
    output(Command::new("sh").args(["-c", &script]).stderr(Stdio::null()))
}

/// A folder of its own for a run, empty.
///
/// # Errors
/// It can't be made.
pub(super) fn fresh(dir: &Path) -> Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir_all(dir)?;
    Ok(dir.canonicalize()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn generations_differ_and_some_have_a_wrong_route() {
        let mortal: Vec<Upstream> = (0..3).map(|_| Upstream::start().unwrap()).collect();
        let stable = Upstream::start().unwrap();
        let places = Places { mortal: &mortal, stable: &stable };
        let (one, seven) = (places.file(1), places.file(7));
        assert!(one.contains("\"generation 1\"") && one.ends_with("#END\n"));
        assert!(!one.contains("\"wrong\"") && seven.contains("\"wrong\""));
        assert!(!one.contains("\"extra\"") && places.file(2).contains("\"extra\""));
        assert_ne!(places.route(3, 1)["upstream"], places.route(3, 2)["upstream"]);
        assert_eq!(one.matches("request-id").count(), ROUTES / 2);
    }

    #[test]
    fn a_pause_ends_when_it_is_told_to() {
        let stop = AtomicBool::new(false);
        assert!(pause(&stop, Duration::from_millis(1)));
        stop.store(true, Ordering::Relaxed);
        assert!(!pause(&stop, Duration::from_secs(60)));
    }
}
