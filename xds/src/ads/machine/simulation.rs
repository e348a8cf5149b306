//! The machine against a model of a control plane, over random changes, faults and delays, all from a seed.
//!
//! After every single step of every change that is applied a listener names only routes that are there, and routes
//! only clusters that are there, and both only secrets that are there, for as long as the control plane itself keeps that
//! order. Whatever happens, what is in force in the end is what was sent last and was good, for every name, and was
//! compiled with the extensions that were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checker;
mod force;
mod plane;

use self::checker::Checker;
use self::force::Force;
use self::plane::{Manners, Plane, Toy};
use super::*;
use crate::ads::BackoffConfig;
use crate::ads::update::Content;
use crate::ads::update::Update;
use crate::ads::world::{HOLD, LINGER_MAX};
use prost::Message;
use std::collections::BTreeSet;

/// A resource of the model: names are those of one kind alone.
type Key = (Kind, Arc<str>);

struct Simulation {
    plane: Plane,
    machine: Machine<Checker>,
    force: Force,
    /// The last of each resource that the client was given and could take.
    good: BTreeMap<Key, Toy>,
    now: Instant,
    registry: Registry,
    /// Changes that are being applied, and until when that takes.
    applying: Option<(Instant, Vec<Change<Toy>>)>,
    /// The control plane can be reached.
    reachable: bool,
    /// Some listeners can't be put in force.
    unfit: bool,
    /// Nonces of responses of each type that were received on this stream, and not answered yet.
    open: BTreeMap<Kind, Vec<String>>,
    /// Responses come one at a time; otherwise they are merged, and a good one that is overtaken by a bad one
    /// before anybody has looked is lost.
    apart: bool,
}

const CLUSTERS: usize = 6;
const TABLES: usize = 3;
const LISTENERS: usize = 4;
const SECRETS: usize = 3;
const EXTENSIONS: usize = 2;

impl Simulation {
    fn new(manners: Manners, seed: u64) -> Simulation {
        let Manners { flavor, good, .. } = manners;
        let now = Instant::now();
        let registry = Registry::new();
        let all = |kind| (kind, Wildcard { source: manners.source(kind), within: None });
        let config = AdsConfig {
            node: Node { id: "n".to_owned(), ..Node::default() },
            ads: Some(stream_of(flavor)),
            wildcards: BTreeMap::from([all(Kind::Cluster), all(Kind::Listener)]),
            statics: BTreeMap::new(),
        };
        let random = fastrand::Rng::with_seed(seed);
        let machine = Machine::new(config, Checker::new(manners), &registry, random, now);
        let plane = Plane::new(manners, seed);
        let force = Force { strict: good, ..Force::default() };
        Simulation {
            plane,
            machine,
            force,
            good: BTreeMap::new(),
            now,
            registry,
            applying: None,
            reachable: true,
            unfit: !good,
            open: BTreeMap::new(),
            apart: seed.is_multiple_of(2),
        }
    }

    /// A change of the control plane's mind.
    fn change(&mut self) {
        let good = self.plane.manners.good;
        let plane = &mut self.plane;
        let bad = !good && plane.rng.u8(..5) == 0;
        let toy = |name: String| Toy { name, bad, ..Toy::default() };
        let secret = plane.rng.usize(..SECRETS * 3);
        let secrets: Vec<String> =
            Some(format!("s{secret}")).filter(|_| secret < SECRETS).into_iter().collect();
        match plane.rng.u8(..13) {
            0..3 => {
                let n = plane.rng.usize(..CLUSTERS);
                let name = format!("c{n}");
                let endpoints = (n > 1).then(|| format!("e{n}"));
                if let Some(endpoints) = &endpoints {
                    plane.put(Kind::Endpoints, Toy { name: endpoints.clone(), ..Toy::default() });
                }
                plane.have(Kind::Secret, &secrets);
                plane.put(Kind::Cluster, Toy { endpoints, secrets, ..toy(name) });
            }
            3 => {
                let Some(name) = plane.any(Kind::Endpoints) else { return };
                plane.put(Kind::Endpoints, toy(name));
            }
            4 => plane.remove_cluster(good),
            5..7 => {
                let name = format!("r{}", plane.rng.usize(..TABLES));
                let mut clusters = if good {
                    plane.names(Kind::Cluster)
                } else {
                    (0..CLUSTERS).map(|n| format!("c{n}")).collect()
                };
                plane.rng.shuffle(&mut clusters);
                clusters.truncate(3);
                plane.put(Kind::Routes, Toy { clusters, ..toy(name) });
            }
            7..9 => {
                let mut routes = plane.names(Kind::Routes);
                plane.rng.shuffle(&mut routes);
                routes.truncate(2);
                let name = format!("l{}", plane.rng.usize(..LISTENERS));
                let extension = plane.rng.usize(..EXTENSIONS * 2);
                let extension = Some(format!("x{extension}")).filter(|_| extension < EXTENSIONS);
                plane.have(Kind::Secret, &secrets);
                plane.have(Kind::Extension, extension.as_slice());
                plane.put(Kind::Listener, Toy { routes, secrets, extension, ..toy(name) });
            }
            9 => {
                let Some(name) = plane.any(Kind::Listener) else { return };
                plane.truth.remove(&(Kind::Listener, name.as_str().into()));
            }
            10 => {
                let name = format!("s{}", plane.rng.usize(..SECRETS));
                plane.put(Kind::Secret, toy(name));
            }
            11 => {
                let misfit = !good && plane.rng.u8(..3) == 0;
                let name = format!("x{}", plane.rng.usize(..EXTENSIONS));
                plane.put(Kind::Extension, Toy { misfit, ..toy(name) });
            }
            _ if good => {}
            _ => {
                let kind = *plane.rng.choice(&[Kind::Secret, Kind::Extension]).unwrap();
                let Some(name) = plane.any(kind) else { return };
                plane.truth.remove(&(kind, name.as_str().into()));
            }
        }
    }

    /// Something happens.
    fn event(&mut self) {
        let good = self.plane.manners.good;
        match self.plane.rng.u8(..20) {
            0..5 => {
                self.change();
                self.plane.push(self.now);
            }
            5 if !good => {
                self.change();
                self.change();
                self.plane.push(self.now);
            }
            6 if !good => self.plane.repeat(self.now),
            7 if self.plane.rng.u8(..4) == 0 => self.cut(),
            8 if !good => self.reachable = !self.reachable,
            _ => {}
        }
        let pause = Duration::from_millis(self.plane.rng.u64(..200));
        self.advance(pause);
    }

    fn cut(&mut self) {
        let up = self.machine.peers.iter().filter(|(_, peer)| matches!(peer.link, Link::Up));
        let up: Vec<Channel> = up.map(|(channel, _)| channel.clone()).collect();
        if let Some(channel) = self.plane.rng.choice(up) {
            self.plane.cut(&channel);
            let wait = self.machine.disconnected(&channel, self.now);
            assert!(wait <= BackoffConfig::default().max);
        }
    }

    /// Lets time pass, event by event.
    fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let next = self.work();
            match next.filter(|next| *next <= end) {
                Some(next) => {
                    assert!(next >= self.now && self.force.steps < 100_000, "no time passes");
                    self.now = next;
                }
                None => break,
            }
        }
        self.now = end;
    }

    /// Does what is due now; tells when there is more.
    fn work(&mut self) -> Option<Instant> {
        loop {
            if let Some((until, _)) = &self.applying
                && *until <= self.now
            {
                let (_, batch) = self.applying.take().unwrap();
                let unfit = self.unfit(&batch);
                self.force.apply(batch, &unfit);
                self.machine.applied(unfit);
            }
            let mut came = false;
            while !(self.apart && (self.applying.is_some() || came))
                && let Some((channel, response)) =
                    self.plane.receive(self.now, |channel| self.machine.has_room(channel))
            {
                self.learn(&response);
                came = true;
                if let (Response::State(response), Some(_)) = (&response, channel.path()) {
                    self.machine.read(&channel, Ok(response.encode_to_vec()), self.now);
                    continue;
                }
                let Update { kind, nonce, .. } = response.clone().update().unwrap();
                self.open.entry(kind).or_default().push(nonce);
                self.machine.received(&channel, response, self.now).unwrap();
            }
            let step = self.machine.step(self.now);
            // What a listener has come to need is asked for.
            let room = if self.plane.manners.good { 100 } else { self.plane.rng.usize(..4) };
            for channel in self.machine.peers.keys().cloned().collect::<Vec<_>>() {
                for _ in 0..room {
                    let Some(request) = self.machine.next_request(&channel, self.now) else { break };
                    self.check_request(&request);
                    self.plane.request(&channel, request, self.now);
                }
            }
            match step {
                Step::Connect(channel) if self.reachable => {
                    self.plane.connect(&channel);
                    self.machine.connected(&channel);
                    let manners = self.plane.manners;
                    self.open.retain(|kind, _| manners.channel(*kind) != channel);
                }
                Step::Connect(channel) => drop(self.machine.disconnected(&channel, self.now)),
                Step::Apply(batch) => {
                    let takes = Duration::from_millis(self.plane.rng.u64(..10));
                    self.applying = Some((self.now + takes, batch));
                }
                Step::Wait(_) if came => {}
                Step::Wait(until) => {
                    assert!(until.is_none_or(|until| until > self.now), "a wait for what is past");
                    let applied = self.applying.as_ref().map(|(until, _)| *until);
                    let due = self.plane.next_due(|channel| self.machine.has_room(channel));
                    let more = Some(self.now + Duration::from_millis(7)).filter(|_| room < 4);
                    let next = [until, applied, due, more].into_iter().flatten();
                    return next.filter(|next| *next > self.now).min();
                }
            }
        }
    }

    /// Some listeners of a batch: their addresses are in use.
    fn unfit(&mut self, batch: &[Change<Toy>]) -> Vec<Failure> {
        // One with an extension changes with that as well, and the same that was sent is not tried again.
        let comes = |change: &&Change<Toy>| {
            let part = change.part.as_ref();
            change.kind == Kind::Listener && part.is_some_and(|toy| toy.extension.is_none())
        };
        let listeners = batch.iter().filter(comes).filter(|_| self.unfit && self.plane.rng.u8(..4) == 0);
        let failure = |change: &Change<Toy>| Failure {
            kind: Kind::Listener,
            name: change.name.clone(),
            reason: "in use".to_owned(),
        };
        let unfit: Vec<_> = listeners.map(failure).collect();
        for change in batch {
            let key = (change.kind, change.name.clone());
            if unfit.iter().any(|unfit| (unfit.kind, &unfit.name) == (key.0, &key.1))
                && self.good.get(&key) == change.part.as_ref().map(Toy::sent).as_ref()
            {
                self.good.remove(&key);
                self.good.extend(self.force.resources.get(&key).map(|toy| (key, toy.sent())));
            }
        }
        unfit
    }

    /// An answer is to the last response of its type, or to each once; a new stream is told all that the client has.
    fn check_request(&mut self, request: &Request) {
        match request {
            Request::State(request) => {
                let kind = Kind::of_type_url(&request.type_url).unwrap();
                let open = self.open.entry(kind).or_default();
                let last = open.last().cloned().unwrap_or_default();
                assert_eq!(request.response_nonce, last, "{} is answered that was overtaken", kind.noun());
            }
            Request::Delta(request) => {
                let kind = Kind::of_type_url(&request.type_url).unwrap();
                let (nonce, open) = (&request.response_nonce, self.open.entry(kind).or_default());
                if !nonce.is_empty() {
                    let at = open.iter().position(|open| open == nonce);
                    // What fails after it was acknowledged is refused later.
                    assert!(at.is_some() || request.error_detail.is_some(), "{nonce} is answered twice");
                    at.map(|at| open.remove(at));
                } else if kind.is_wildcard() && (request.node.is_some() || kind == Kind::Listener) {
                    let told: BTreeSet<&str> =
                        request.initial_resource_versions.keys().map(String::as_str).collect();
                    let names = self.machine.world.names(kind);
                    assert_eq!(told, names.iter().map(|name| &**name).collect());
                    for (key, _) in self.force.resources.iter().filter(|(key, _)| key.0 == kind) {
                        assert!(names.contains(&key.1) || !self.good.contains_key(key));
                    }
                }
            }
        }
    }

    /// Remembers what the client is given now: the last good of each name that it has asked for.
    fn learn(&mut self, response: &Response) {
        let update = response.clone().update().unwrap();
        if update.whole {
            let names: BTreeSet<_> = update.resources.iter().map(|resource| resource.name.clone()).collect();
            self.good.retain(|key, _| key.0 != update.kind || names.contains(&key.1));
        }
        for name in update.removed {
            self.good.remove(&(update.kind, name));
        }
        for resource in update.resources {
            let Content::Value(value) = resource.content else { continue };
            let toy = Toy::decode(value.as_slice()).unwrap();
            if toy.bad && update.kind == Kind::Routes {
                self.force.excused.insert(toy.name.clone());
            }
            if !toy.bad && update.kind.is_wildcard() {
                self.good.insert((update.kind, resource.name), toy);
            }
        }
    }

    /// The faults end, everything that is on its way arrives.
    fn calm_down(&mut self) {
        self.reachable = true;
        self.plane.manners.good = true;
        self.advance(Duration::from_secs(60));
        if std::mem::take(&mut self.unfit) {
            // What could not be put in force was refused, and is tried again when it comes again.
            self.plane.repeat(self.now);
            self.advance(Duration::from_secs(60));
        }
        self.plane.push(self.now);
        self.advance(Duration::from_secs(60) + HOLD + LINGER_MAX);
    }

    /// A listener has the extension that the control plane has now, if that is good, and none if there is none.
    fn check_extension(&self, listener: &Toy) {
        let Some(extension) = &listener.extension else { return };
        match self.plane.truth.get(&(Kind::Extension, extension.as_str().into())) {
            Some(toy) if toy.bad || toy.misfit => {}
            Some(toy) => assert_eq!(listener.with, toy.version, "{} has another {extension}", listener.name),
            // It is never said in the state of the world.
            None if self.plane.manners.flavor == Flavor::State => {}
            None => assert_eq!(listener.with, 0, "{} has an {extension} that has gone", listener.name),
        }
    }

    fn check_end(&self) {
        let force = |kind: Kind, name: &str| self.force.resources.get(&(kind, name.into()));
        // What the control plane has now of it is good. What is bad now may never have been good for a client that
        // has come to want it lately.
        let is_good =
            |kind: Kind, name: &str| self.plane.truth.get(&(kind, name.into())).is_some_and(|toy| !toy.bad);
        for ((kind, name), toy) in self.good.iter().filter(|(key, _)| key.0.is_wildcard()) {
            let fit = toy.routes.iter().all(|route| is_good(Kind::Routes, route))
                && toy.endpoints.iter().all(|endpoints| is_good(Kind::Endpoints, endpoints));
            if fit && (self.apart || is_good(*kind, name)) {
                assert_eq!(
                    force(*kind, name).map(Toy::sent).as_ref(),
                    Some(toy),
                    "{} {name} is not the last that was good",
                    kind.noun()
                );
            }
        }
        for ((kind, name), toy) in self.force.resources.iter().filter(|(key, _)| key.0.is_wildcard()) {
            let key = (*kind, name.clone());
            // What went and came back refused before anybody looked is what it was.
            let there = self.good.contains_key(&key) || !self.apart && self.plane.truth.contains_key(&key);
            assert!(there, "{} {name} should be gone", kind.noun());
            for route in toy.routes.iter().filter(|route| is_good(Kind::Routes, route)) {
                let key = (Kind::Routes, Arc::from(route.as_str()));
                assert_eq!(self.force.resources.get(&key), self.plane.truth.get(&key));
            }
            for endpoints in toy.endpoints.iter().filter(|name| is_good(Kind::Endpoints, name)) {
                let key = (Kind::Endpoints, Arc::from(endpoints.as_str()));
                assert_eq!(force(Kind::Endpoints, name), self.plane.truth.get(&key), "endpoints of {name}");
            }
            for secret in toy.secrets.iter().filter(|secret| is_good(Kind::Secret, secret)) {
                let key = (Kind::Secret, Arc::from(secret.as_str()));
                assert_eq!(force(Kind::Secret, secret), self.plane.truth.get(&key), "a secret of {name}");
            }
            self.check_extension(toy);
        }
        for (key, toy) in self.plane.truth.iter().filter(|(key, toy)| key.0.is_wildcard() && !toy.bad) {
            assert_eq!(self.good.get(key), Some(toy), "the simulation has lost something");
        }
    }
}

fn stream_of(flavor: Flavor) -> StreamConfig {
    StreamConfig { flavor, node_always: false, backoff: BackoffConfig::default(), rate: None }
}

/// Both protocols, by one stream and by several sources.
const WAYS: [(Flavor, bool); 4] =
    [(Flavor::Delta, false), (Flavor::State, false), (Flavor::Delta, true), (Flavor::State, true)];

fn run((flavor, mixed): (Flavor, bool), good: bool, seed: u64) -> Simulation {
    eprintln!("{flavor:?}, mixed sources: {mixed}, seed {seed}");
    let mut simulation = Simulation::new(Manners { flavor, mixed, good, slow: false }, seed);
    for _ in 0..300 {
        simulation.event();
    }
    simulation.calm_down();
    simulation.check_end();
    simulation
}

#[test]
fn no_half_applied_world_is_seen_when_the_control_plane_keeps_the_order() {
    for way in WAYS {
        let steps: usize = (0..25).map(|seed| run(way, true, seed).force.steps).sum();
        assert!(steps > 25 * 50, "hardly anything happens: {steps}");
    }
}

#[test]
fn what_is_in_force_is_the_last_good_of_each_name_whatever_happens() {
    for way in WAYS {
        let mut rejected = 0;
        for seed in 0..40 {
            let simulation = run(way, false, seed);

            rejected += simulation.registry.sum("cluster_manager.cds.", "update_rejected");
        }
        assert!(rejected > 20, "hardly anything is refused: {rejected}");
    }
}

/// Changes come together and each settles before the next, but clusters get their endpoints seconds after the routes that
/// lead to them, and clusters that go are named until then.
#[test]
fn no_half_applied_world_is_seen_when_endpoints_are_slow() {
    for (flavor, mixed) in WAYS {
        for seed in 0..25 {
            eprintln!("{flavor:?}, mixed sources: {mixed}, seed {seed}");
            let mut simulation = Simulation::new(Manners { flavor, mixed, good: true, slow: true }, seed);
            simulation.advance(Duration::from_secs(1));
            for _ in 0..20 {
                (0..4).for_each(|_| simulation.change());
                simulation.plane.push(simulation.now);
                simulation.advance(HOLD * 2);
            }
            simulation.calm_down();
            simulation.check_end();
        }
    }
}
