//! The flat chain of a route.

use super::begin::Begins;
use super::handlers::{Handler, OnBody, OnHead, OnLog, OnTrailers};
use super::owned::OwnedHeaders;
use super::settled::Settled;
use super::{Direction, HeadPhase, Plugin, Position, Slot};
use crate::format::BodyVariable;
use crate::stream::Stream;
use std::sync::{Arc, LazyLock};

/// A plugin at its place in a chain.
#[derive(Clone)]
pub struct Member {
    /// Its name: APISIX's, or the filter's in the configuration.
    pub name: Arc<str>,
    /// Where it stands.
    pub position: Position,
    /// The plugin with its configuration.
    pub plugin: Arc<Plugin>,
}

/// A handler at its place.
pub(super) struct Placed<H: ?Sized> {
    pub(super) position: Position,
    pub(super) on: Arc<H>,
}

/// A plugin that has request headers of its own.
struct Owner {
    position: Position,
    /// The first of the request phases that it has a handler for.
    begins: HeadPhase,
    headers: Arc<OwnedHeaders>,
}

/// The plugins of a route, one list a phase.
pub struct Chain {
    heads: [Box<[Placed<dyn OnHead>]>; 4],
    bodies: [Box<[Placed<dyn OnBody>]>; 2],
    trailers: [Box<[Placed<dyn OnTrailers>]>; 2],
    /// Whether a plugin looks at the bodies or trailers of all requests, and not of calls of gRPC alone.
    looks_at_all: [bool; 2],
    /// Whether a plugin asks for variables of the request's body.
    body_variables: Arc<[Arc<BodyVariable>]>,
    log: Box<[Placed<dyn OnLog>]>,
    members: Box<[Member]>,
    owners: Box<[Owner]>,
    begins: Begins,
    reverse_response: bool,
    /// Positions of what a consumer has brought, once one has.
    brought: Option<Box<[Position]>>,
    settled: Settled,
}

/// Collects the plugins of a chain.
#[derive(Default)]
pub struct ChainBuilder {
    members: Vec<Member>,
    reverse_response: bool,
    brought: Option<Box<[Position]>>,
    settled: Settled,
}

impl ChainBuilder {
    /// An empty chain.
    pub fn new() -> ChainBuilder {
        ChainBuilder::default()
    }

    /// Response phases run in reverse order, as Envoy's encoder filters do. APISIX keeps one order.
    #[must_use]
    pub fn reverse_response(mut self) -> ChainBuilder {
        self.reverse_response = true;
        self
    }

    /// Adds a plugin where its position puts it; of one that stands for others, those, or itself where none of them does
    /// anything: that it is there counts for routes that are chosen again.
    pub fn push(&mut self, member: Member) {
        let before = self.members.len();
        let plugin = member.plugin.clone();
        self.members.extend(plugin.parts.iter().flat_map(|part| part.placed(&member)));
        if self.members.len() == before {
            self.members.push(member);
        }
    }

    /// Adds a plugin behind the others, as a filter of Envoy.
    pub fn add(&mut self, name: &str, plugin: Plugin) {
        let position = Position::of_filter(u16::try_from(self.members.len()).unwrap_or(u16::MAX));
        self.push(Member { name: name.into(), position, plugin: Arc::new(plugin) });
    }

    /// Says what else there is for requests that come from another route, where some filters are off: those that are off and
    /// have settings of this route, and all filters as they are without any.
    pub fn off(&mut self, own: Vec<Member>, all: Arc<[Member]>) {
        self.settled = Settled::new(own, all);
    }

    /// The chain.
    pub fn build(mut self) -> Chain {
        self.members.sort_by_key(|member| member.position);
        let reverse = self.reverse_response;
        let head = |phase: HeadPhase| {
            let reverse = reverse && phase == HeadPhase::HeaderFilter;
            collect(&self.members, reverse, |handler| match handler {
                Handler::Head(of, on) if *of == phase => Some(on.clone()),
                _ => None,
            })
        };
        let body = |direction: Direction| {
            collect(&self.members, reverse && direction == Direction::Response, |handler| match handler {
                Handler::Body(of, on) if *of == direction => Some(on.clone()),
                _ => None,
            })
        };
        let trailers = |direction: Direction| {
            collect(&self.members, reverse && direction == Direction::Response, |handler| match handler {
                Handler::Trailers(of, on) if *of == direction => Some(on.clone()),
                _ => None,
            })
        };
        Chain {
            heads: HeadPhase::ALL.map(head),
            bodies: Direction::ALL.map(body),
            trailers: Direction::ALL.map(trailers),
            looks_at_all: Direction::ALL.map(|direction| {
                let looks = |handler: &Handler| match handler {
                    Handler::Body(of, _) => *of == direction,
                    Handler::Trailers(of, _) => *of == direction,
                    Handler::Head(..) | Handler::Log(_) => false,
                };
                let mut others = self.members.iter().filter(|member| !member.plugin.of_calls);
                others.any(|member| member.plugin.handlers.iter().any(looks))
            }),
            log: collect(&self.members, reverse, |handler| match handler {
                Handler::Log(on) => Some(on.clone()),
                _ => None,
            }),
            owners: self.members.iter().filter_map(Owner::of).collect(),
            body_variables: self
                .members
                .iter()
                .flat_map(|member| member.plugin.body_variables.clone())
                .collect(),
            begins: Begins::of_members(&self.members),
            members: self.members.into(),
            reverse_response: reverse,
            brought: self.brought,
            settled: self.settled,
        }
    }
}

impl Owner {
    fn of(member: &Member) -> Option<Owner> {
        let headers = member.plugin.owned.clone()?;
        let has =
            |phase| member.plugin.handlers.iter().any(|h| matches!(h, Handler::Head(of, _) if *of == phase));
        let begins = if has(HeadPhase::Rewrite) { HeadPhase::Rewrite } else { HeadPhase::Access };
        Some(Owner { position: member.position, begins, headers })
    }
}

/// The handlers of one phase, in the order of the members or against it. The parts of a filter keep their order.
fn collect<H: ?Sized>(
    members: &[Member],
    reverse: bool,
    of_phase: impl Fn(&Handler) -> Option<Arc<H>>,
) -> Box<[Placed<H>]> {
    let of_member = |member: &Member| {
        let position = member.position;
        let handlers = member.plugin.handlers.iter().filter_map(&of_phase);
        handlers.map(|on| Placed { position, on }).collect::<Vec<_>>()
    };
    if !reverse {
        return members.iter().flat_map(of_member).collect();
    }
    let filters = members.chunk_by(|a, b| a.position.filter() == b.position.filter());
    filters.rev().flatten().flat_map(of_member).collect()
}

impl Chain {
    /// The chain without plugins: one for the process, so that whoever refuses a request allocates none.
    pub fn empty() -> Arc<Chain> {
        static EMPTY: LazyLock<Arc<Chain>> = LazyLock::new(|| Arc::new(ChainBuilder::new().build()));
        EMPTY.clone()
    }

    /// The plugins, in the order of their request phases.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether it is of filters of Envoy, whose responses pass them in reverse.
    pub(super) fn is_of_filters(&self) -> bool {
        self.reverse_response
    }

    /// What it knows of filters that it does not run.
    pub(super) fn settled(&self) -> &Settled {
        &self.settled
    }

    /// Has the plugins begin what they do by themselves, as [`Model::apply`](crate::model::Model::apply) does when what has
    /// the chain goes into force; for tests and whoever runs a chain without a model.
    pub fn begin(&self) {
        self.begins.begin();
    }

    /// What the plugins begin.
    pub(super) fn begins(&self) -> &Begins {
        &self.begins
    }

    /// Whether any plugin has a handler for the phase.
    #[inline]
    pub fn has(&self, phase: HeadPhase) -> bool {
        !self.head(phase).is_empty()
    }

    /// The variables of the request's body that plugins ask for, which is to be read before.
    #[inline]
    pub fn body_variables(&self) -> &Arc<[Arc<BodyVariable>]> {
        &self.body_variables
    }

    /// Whether any plugin has a handler of bodies or trailers of that direction.
    #[inline]
    pub fn filters(&self, direction: Direction) -> bool {
        !self.body(direction).is_empty() || !self.trailers(direction).is_empty()
    }

    /// Whether any plugin wants to see the body or the trailers of this request, or of its response.
    #[inline]
    pub fn filters_of(&self, direction: Direction, stream: &Stream) -> bool {
        let [request, response] = self.looks_at_all;
        let of_all = if direction == Direction::Request { request } else { response };
        of_all || self.filters(direction) && stream.request.is_grpc()
    }

    /// The same chain with the plugins of a consumer laid over it: they take the place of plugins of the route
    /// with their slot, and come beside the others. Those that are new run `rewrite` once more than the route's.
    pub(super) fn with(&self, consumer: &[Member]) -> Chain {
        let laid_over = |slot: Slot| consumer.iter().any(|member| member.position.slot() == slot);
        let kept = self.members.iter().filter(|member| !laid_over(member.position.slot()));
        let is_new =
            |member: &&Member| !self.members.iter().any(|own| own.position.slot() == member.position.slot());
        let brought = consumer.iter().filter(is_new).map(|member| member.position).collect();
        ChainBuilder {
            members: kept.chain(consumer).cloned().collect(),
            reverse_response: self.reverse_response,
            brought: Some(brought),
            settled: Settled::default(),
        }
        .build()
    }

    /// Takes from the request what only plugins may say that have not begun to run: those whose first phase and
    /// position `is_left` holds for.
    pub(super) fn strip_owned(&self, stream: &mut Stream, is_left: impl Fn(HeadPhase, Position) -> bool) {
        for owner in self.owners.iter().filter(|owner| is_left(owner.begins, owner.position)) {
            owner.headers.strip_at_edge(&mut stream.request.headers);
        }
    }

    /// Positions of the plugins that a consumer has brought; `None` before one has been laid over the chain.
    pub(super) fn brought(&self) -> Option<&[Position]> {
        self.brought.as_deref()
    }

    #[inline]
    pub(super) fn head(&self, phase: HeadPhase) -> &[Placed<dyn OnHead>] {
        let [rewrite, access, before_proxy, header_filter] = &self.heads;
        match phase {
            HeadPhase::Rewrite => rewrite,
            HeadPhase::Access => access,
            HeadPhase::BeforeProxy => before_proxy,
            HeadPhase::HeaderFilter => header_filter,
        }
    }

    #[inline]
    pub(super) fn body(&self, direction: Direction) -> &[Placed<dyn OnBody>] {
        let [request, response] = &self.bodies;
        if direction == Direction::Request { request } else { response }
    }

    pub(super) fn trailers(&self, direction: Direction) -> &[Placed<dyn OnTrailers>] {
        let [request, response] = &self.trailers;
        if direction == Direction::Request { request } else { response }
    }

    /// Runs `log`.
    pub fn log(&self, stream: &mut Stream) {
        for placed in &self.log {
            placed.on.call(stream, placed.position.slot());
        }
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.members.iter().map(|member| &member.name)).finish()
    }
}
