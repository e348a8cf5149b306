//! One plugin with its configuration: the handlers it has, by phase.

use super::begin::Begin;
use super::body::{BodyPiece, BodyStep};
use super::owned::OwnedHeaders;
use super::part::Part;
use super::{Direction, HeadPhase, Slot, Step, TrailersStep};
use crate::cluster::ClusterCell;
use crate::expr::Expr;
use crate::format::BodyVariable;
use crate::stream::Stream;
use std::sync::Arc;

/// A plugin with its configuration.
///
/// What it does in a phase is what was registered for it; there is no list of phases to keep beside the
/// handlers. One that is written and not registered is dead code, which the compiler tells.
///
/// ```
/// use sixfold_core::plugin::{Plugin, Slot, Step};
/// use sixfold_core::stream::Stream;
///
/// struct Stamp(Vec<u8>);
///
/// impl Stamp {
///     fn mark(&self, stream: &mut Stream, _: Slot) -> Step<'_> {
///         stream.response.headers.set("x-stamp", &self.0);
///         Step::Continue
///     }
/// }
///
/// let plugin = Plugin::of(Stamp(b"1".to_vec())).header_filter(Stamp::mark).build();
/// ```
#[derive(Default)]
pub struct Plugin {
    pub(super) handlers: Vec<Handler>,
    pub(super) owned: Option<Arc<OwnedHeaders>>,
    /// Plugins that it stands for; then it has no handlers of its own.
    pub(super) parts: Vec<Part>,
    /// The resource that configures it.
    pub(super) origin: Option<Arc<str>>,
    /// Bodies of calls of gRPC alone are of interest.
    pub(super) of_calls: bool,
    /// What it is configured with has variables of the request's body.
    pub(super) body_variables: Vec<Arc<BodyVariable>>,
    /// What it begins when it goes into force.
    pub(super) begins: Vec<Begin>,
    /// What people are told that it would do.
    pub(super) foresight: Foresight,
    /// Where people are told that it may send a request.
    pub(super) leads: Option<Arc<Leads>>,
    /// The condition that it runs under ([`Plugin::guarded`]).
    pub(super) when: Option<Arc<Expr>>,
}

/// Clusters that a plugin may send a request to.
pub(super) type Leads = dyn Fn(&Stream) -> Vec<Arc<ClusterCell>> + Send + Sync;

/// Says in words what a plugin would do with a request.
pub(super) type Foretell = dyn Fn(&Stream) -> Vec<String> + Send + Sync;

/// What a plugin would do with a request that nobody has sent.
#[derive(Clone, Default)]
pub(super) enum Foresight {
    /// It says nothing of that.
    #[default]
    None,
    /// Its phase `access` is run.
    Run,
    /// It depends on more than the request, and is told in words.
    Words(Arc<Foretell>),
}

/// A handler and its phase.
#[derive(Clone)]
pub(super) enum Handler {
    Head(HeadPhase, Arc<dyn OnHead>),
    Body(Direction, Arc<dyn OnBody>),
    Trailers(Direction, Arc<dyn OnTrailers>),
    Log(Arc<dyn OnLog>),
}

/// Collects the handlers of a plugin.
pub struct PluginBuilder<T> {
    target: Arc<T>,
    plugin: Plugin,
}

/// A handler of `rewrite`, `access`, `before_proxy` or `header_filter`.
pub trait HeadFn<T>: for<'a> Fn(&'a T, &'a mut Stream, Slot) -> Step<'a> + Send + Sync + 'static {}
impl<T, F> HeadFn<T> for F where F: for<'a> Fn(&'a T, &'a mut Stream, Slot) -> Step<'a> + Send + Sync + 'static
{}

/// A handler of pieces of a body.
pub trait BodyFn<T>: Fn(&T, &mut Stream, Slot, &BodyPiece<'_>) -> BodyStep + Send + Sync + 'static {}
impl<T, F> BodyFn<T> for F where
    F: Fn(&T, &mut Stream, Slot, &BodyPiece<'_>) -> BodyStep + Send + Sync + 'static
{
}

/// A handler of trailers.
pub trait TrailersFn<T>: Fn(&T, &mut Stream, Slot) -> TrailersStep + Send + Sync + 'static {}
impl<T, F> TrailersFn<T> for F where F: Fn(&T, &mut Stream, Slot) -> TrailersStep + Send + Sync + 'static {}

/// A handler of `log`.
pub trait LogFn<T>: Fn(&T, &mut Stream, Slot) + Send + Sync + 'static {}
impl<T, F> LogFn<T> for F where F: Fn(&T, &mut Stream, Slot) + Send + Sync + 'static {}

impl Plugin {
    /// Begins a plugin whose handlers are methods of `target`.
    pub fn of<T: Send + Sync + 'static>(target: T) -> PluginBuilder<T> {
        PluginBuilder { target: Arc::new(target), plugin: Plugin::default() }
    }

    /// A filter of Envoy that is these plugins of APISIX, one after the other.
    pub fn of_parts(parts: Vec<Part>) -> Plugin {
        Plugin { parts, ..Plugin::default() }
    }

    /// Says which resource configures it, for people who ask where it comes from.
    #[must_use]
    pub fn of_resource(mut self, key: Arc<str>) -> Plugin {
        self.origin = Some(key);
        self
    }

    /// Has the request's body read before its chain runs: what it is configured with has variables of that.
    #[must_use]
    pub fn with_body_variables(mut self, variables: Vec<Arc<BodyVariable>>) -> Plugin {
        self.body_variables.extend(variables);
        self
    }

    /// The resource that configures it, where that is known: the key of one of APISIX's (`/apisix/services/1`).
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_deref()
    }

    /// The phases that it has handlers for, as people are told of them: `Access`, `HeaderFilter`, `ResponseBody` and so on.
    pub fn phases(&self) -> impl Iterator<Item = &'static str> {
        self.handlers.iter().map(|handler| match handler {
            Handler::Head(phase, _) => phase.name(),
            Handler::Body(Direction::Request, _) => "RequestBody",
            Handler::Body(Direction::Response, _) => "ResponseBody",
            Handler::Trailers(Direction::Request, _) => "RequestTrailers",
            Handler::Trailers(Direction::Response, _) => "ResponseTrailers",
            Handler::Log(_) => "Log",
        })
    }

    /// Whether its phase `access` may be run to learn what becomes of a request that nobody has sent
    /// ([`PluginBuilder::judging`]).
    pub fn is_judge(&self) -> bool {
        matches!(self.foresight, Foresight::Run)
    }

    /// What may become of the request, where that depends on more than the request ([`PluginBuilder::foretelling`]).
    pub fn foretell(&self, stream: &Stream) -> Option<Vec<String>> {
        match &self.foresight {
            Foresight::Words(words) => Some(words(stream)),
            Foresight::None | Foresight::Run => None,
        }
    }

    /// The clusters that it may send the request to, in place of the route's ([`PluginBuilder::leading`]).
    pub fn leads_to(&self, stream: &Stream) -> Vec<Arc<ClusterCell>> {
        self.leads.as_ref().map(|leads| leads(stream)).unwrap_or_default()
    }

    /// Whether its condition keeps it from running, as far as the request tells that: one that can't be evaluated does not.
    pub fn is_left_out(&self, stream: &Stream) -> bool {
        self.when.as_ref().is_some_and(|when| !when.eval(stream).unwrap_or(true))
    }

    /// Whether it sees a request before an endpoint is chosen for that.
    pub fn meets_requests(&self) -> bool {
        let meets =
            |handler: &Handler| matches!(handler, Handler::Head(HeadPhase::Rewrite | HeadPhase::Access, _));
        self.handlers.iter().any(meets) || !self.parts.is_empty()
    }

    /// Whether it has a handler at all.
    pub fn is_idle(&self) -> bool {
        self.handlers.is_empty() && self.parts.iter().all(Part::is_idle)
    }
}

impl<T: Send + Sync + 'static> PluginBuilder<T> {
    /// Phase `rewrite`: the route is chosen. Authentication and rewrites run here.
    #[must_use]
    pub fn rewrite(self, handler: impl HeadFn<T>) -> Self {
        self.head(HeadPhase::Rewrite, handler)
    }

    /// Phase `access`, after all of `rewrite`: access control. Envoy's filters run here.
    #[must_use]
    pub fn access(self, handler: impl HeadFn<T>) -> Self {
        self.head(HeadPhase::Access, handler)
    }

    /// Phase `before_proxy`: the endpoint is chosen; runs before every attempt.
    #[must_use]
    pub fn before_proxy(self, handler: impl HeadFn<T>) -> Self {
        self.head(HeadPhase::BeforeProxy, handler)
    }

    /// Phase `header_filter`: the head of the response is there and may be changed; an answer given here takes
    /// its place.
    #[must_use]
    pub fn header_filter(self, handler: impl HeadFn<T>) -> Self {
        self.head(HeadPhase::HeaderFilter, handler)
    }

    /// Every piece of the request body on its way to the upstream, after `access`. A plugin that changes the
    /// length removes Content-Length from the head in an earlier phase.
    #[must_use]
    pub fn request_body(self, handler: impl BodyFn<T>) -> Self {
        self.body(Direction::Request, handler)
    }

    /// APISIX's `body_filter`: every piece of the response body, after `header_filter`. A plugin that changes
    /// the length removes Content-Length from the head in `header_filter`.
    #[must_use]
    pub fn response_body(self, handler: impl BodyFn<T>) -> Self {
        self.body(Direction::Response, handler)
    }

    /// Trailers of the request, when there are any, after the end of its body.
    #[must_use]
    pub fn request_trailers(self, handler: impl TrailersFn<T>) -> Self {
        self.trailers(Direction::Request, handler)
    }

    /// Trailers of the response, when there are any, after the end of its body.
    #[must_use]
    pub fn response_trailers(self, handler: impl TrailersFn<T>) -> Self {
        self.trailers(Direction::Response, handler)
    }

    /// Phase `log`: the stream has ended.
    #[must_use]
    pub fn log(mut self, handler: impl LogFn<T>) -> Self {
        let bound = Arc::new(Bound { target: self.target.clone(), handler });
        self.plugin.handlers.push(Handler::Log(bound));
        self
    }

    /// Has bodies and trailers of requests that are no calls of gRPC pass by unseen, where no other plugin looks at them: that
    /// is cheaper. Its handlers may meet some all the same.
    #[must_use]
    pub fn bodies_of_calls(mut self) -> Self {
        self.plugin.of_calls = true;
        self
    }

    /// What the plugin begins by itself, such as fetching a token, or shows of itself, such as a gauge. Building it does
    /// neither, since the listener or table that it is built for may be refused. It is called on the control thread when a
    /// listener, a route table or a consumer that has the plugin goes into force, again with each that does; it may not wait.
    #[must_use]
    pub fn in_force(mut self, begin: impl Fn(&T) + Send + Sync + 'static) -> Self {
        let target = self.target.clone();
        self.plugin.begins.push(Arc::new(move || begin(&target)));
        self
    }

    /// Says that `access` is where it decides whether a request passes, and that it may decide of one that nobody has
    /// sent: beside what it leaves in the stream and counts it does nothing but ask services by
    /// [`Callout`](super::Callout).
    #[must_use]
    pub fn judging(mut self) -> Self {
        self.plugin.foresight = Foresight::Run;
        self
    }

    /// Says in words what may become of a request that nobody has sent, in place of [`judging`](PluginBuilder::judging):
    /// chance, time or the requests before it decide. Each is what the plugin does (`answers 429 once …`); nothing means that
    /// it lets the request pass. It is asked of people's tools, and changes nothing that serves.
    #[must_use]
    pub fn foretelling(mut self, words: impl Fn(&T, &Stream) -> Vec<String> + Send + Sync + 'static) -> Self {
        let target = self.target.clone();
        self.plugin.foresight = Foresight::Words(Arc::new(move |stream| words(&target, stream)));
        self
    }

    /// Says beside [`foretelling`](PluginBuilder::foretelling) which clusters a request may go to.
    #[must_use]
    pub fn leading(
        mut self,
        clusters: impl Fn(&T, &Stream) -> Vec<Arc<ClusterCell>> + Send + Sync + 'static,
    ) -> Self {
        let target = self.target.clone();
        self.plugin.leads = Some(Arc::new(move |stream| clusters(&target, stream)));
        self
    }

    /// Names that only this plugin may give the request. They leave it before any plugin runs, whatever becomes of
    /// this one; what it [judges](OwnedHeaders::judging) of them it strips itself when it runs, and the chain does
    /// where a condition keeps it from running.
    #[must_use]
    pub fn owns(mut self, headers: Arc<OwnedHeaders>) -> Self {
        self.plugin.owned = Some(headers).filter(|owned| !owned.is_empty());
        self
    }

    /// The plugin.
    pub fn build(self) -> Plugin {
        self.plugin
    }

    fn head(mut self, phase: HeadPhase, handler: impl HeadFn<T>) -> Self {
        let bound = Arc::new(Bound { target: self.target.clone(), handler });
        self.plugin.handlers.push(Handler::Head(phase, bound));
        self
    }

    fn body(mut self, direction: Direction, handler: impl BodyFn<T>) -> Self {
        let bound = Arc::new(Bound { target: self.target.clone(), handler });
        self.plugin.handlers.push(Handler::Body(direction, bound));
        self
    }

    fn trailers(mut self, direction: Direction, handler: impl TrailersFn<T>) -> Self {
        let bound = Arc::new(Bound { target: self.target.clone(), handler });
        self.plugin.handlers.push(Handler::Trailers(direction, bound));
        self
    }
}

/// Handlers as the chain calls them: one virtual call each.
pub(super) trait OnHead: Send + Sync {
    fn call<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a>;
}

pub(super) trait OnBody: Send + Sync {
    fn call(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep;
}

pub(super) trait OnTrailers: Send + Sync {
    fn call(&self, stream: &mut Stream, slot: Slot) -> TrailersStep;
}

pub(super) trait OnLog: Send + Sync {
    fn call(&self, stream: &mut Stream, slot: Slot);
}

/// A method and what it is called on.
struct Bound<T, F> {
    target: Arc<T>,
    handler: F,
}

impl<T: Send + Sync, F: HeadFn<T>> OnHead for Bound<T, F> {
    fn call<'a>(&'a self, stream: &'a mut Stream, slot: Slot) -> Step<'a> {
        (self.handler)(&self.target, stream, slot)
    }
}

impl<T: Send + Sync, F: BodyFn<T>> OnBody for Bound<T, F> {
    fn call(&self, stream: &mut Stream, slot: Slot, piece: &BodyPiece<'_>) -> BodyStep {
        (self.handler)(&self.target, stream, slot, piece)
    }
}

impl<T: Send + Sync, F: TrailersFn<T>> OnTrailers for Bound<T, F> {
    fn call(&self, stream: &mut Stream, slot: Slot) -> TrailersStep {
        (self.handler)(&self.target, stream, slot)
    }
}

impl<T: Send + Sync, F: LogFn<T>> OnLog for Bound<T, F> {
    fn call(&self, stream: &mut Stream, slot: Slot) {
        (self.handler)(&self.target, stream, slot);
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut list = f.debug_list();
        self.phases().for_each(|phase| {
            list.entry(&format_args!("{phase}"));
        });
        list.finish()
    }
}
