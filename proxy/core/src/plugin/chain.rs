//! The flat chain of a route.

use super::{BodyChunk, LocalReply, Phases, Plugin, Step};
use crate::stream::Stream;
use std::sync::Arc;

/// A plugin at its place in a chain.
#[derive(Clone)]
pub struct Slot {
    /// The plugin with its configuration.
    pub plugin: Arc<dyn Plugin>,
    /// Its place, the same in every chain of one connection manager.
    pub index: usize,
}

/// The plugins of a route, one list a phase.
pub struct Chain {
    rewrite: Box<[Slot]>,
    access: Box<[Slot]>,
    before_proxy: Box<[Slot]>,
    header_filter: Box<[Slot]>,
    body_filter: Box<[Slot]>,
    log: Box<[Slot]>,
    names: Box<[Box<str>]>,
    phases: Phases,
    request_buffer: Option<usize>,
}

/// Collects the plugins of a chain in the order of their request phases.
#[derive(Default)]
pub struct ChainBuilder {
    slots: Vec<Slot>,
    reverse_response: bool,
}

impl ChainBuilder {
    /// An empty chain.
    pub fn new() -> ChainBuilder {
        ChainBuilder::default()
    }

    /// Response phases run in reverse order, as Envoy's encoder filters do. APISIX keeps one order.
    pub fn reverse_response(mut self) -> ChainBuilder {
        self.reverse_response = true;
        self
    }

    /// Adds a plugin at the next place.
    pub fn push(&mut self, plugin: Arc<dyn Plugin>) {
        let index = self.slots.len();
        self.slots.push(Slot { plugin, index });
    }

    /// Adds a plugin at a place of the caller's choice: a filter that a route leaves out keeps its number free.
    pub fn push_at(&mut self, index: usize, plugin: Arc<dyn Plugin>) {
        self.slots.push(Slot { plugin, index });
    }

    /// The chain.
    pub fn build(self) -> Chain {
        let of = |phase: Phases, reverse: bool| -> Box<[Slot]> {
            let mut list: Vec<Slot> =
                self.slots.iter().filter(|s| s.plugin.phases().contains(phase)).cloned().collect();
            if reverse {
                list.reverse();
            }
            list.into()
        };
        let reverse = self.reverse_response;
        Chain {
            rewrite: of(Phases::REWRITE, false),
            access: of(Phases::ACCESS, false),
            before_proxy: of(Phases::BEFORE_PROXY, false),
            header_filter: of(Phases::HEADER_FILTER, reverse),
            body_filter: of(Phases::BODY_FILTER, reverse),
            log: of(Phases::LOG, reverse),
            names: self.slots.iter().map(|s| s.plugin.name().into()).collect(),
            phases: self.slots.iter().fold(Phases::empty(), |p, s| p | s.plugin.phases()),
            request_buffer: self.slots.iter().filter_map(|s| s.plugin.buffers_request()).min(),
        }
    }
}

/// What became of a phase.
pub enum Outcome {
    /// All handlers ran.
    Done,
    /// One of them answers.
    Respond(LocalReply),
    /// The route must be chosen again; go on at this slot index.
    ClearRoute(usize),
}

impl Chain {
    /// A chain without plugins.
    pub fn empty() -> Chain {
        ChainBuilder::new().build()
    }

    /// Names of the plugins, in order.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// Whether any plugin has a handler for the phase.
    #[inline]
    pub fn has(&self, phase: Phases) -> bool {
        self.phases.contains(phase)
    }

    /// The least that plugins allow a buffered request body to be; `None` when none needs it.
    pub fn request_buffer(&self) -> Option<usize> {
        self.request_buffer
    }

    fn slots(&self, phase: Phases) -> &[Slot] {
        match phase {
            Phases::REWRITE => &self.rewrite,
            Phases::ACCESS => &self.access,
            Phases::BEFORE_PROXY => &self.before_proxy,
            Phases::HEADER_FILTER => &self.header_filter,
            Phases::BODY_FILTER => &self.body_filter,
            _ => &self.log,
        }
    }

    /// Runs one of the phases that may wait, from the slot with index `from` on.
    pub async fn run(&self, phase: Phases, stream: &mut Stream, from: usize) -> Outcome {
        for slot in self.slots(phase).iter().filter(|s| s.index >= from) {
            let plugin = &*slot.plugin;
            let mut step = match phase {
                Phases::REWRITE => plugin.rewrite(stream, slot.index),
                Phases::ACCESS => plugin.access(stream, slot.index),
                Phases::BEFORE_PROXY => plugin.before_proxy(stream, slot.index),
                _ => plugin.header_filter(stream, slot.index),
            };
            loop {
                match step {
                    Step::Continue => break,
                    Step::Respond(reply) => return Outcome::Respond(reply),
                    Step::ClearRoute => return Outcome::ClearRoute(slot.index + 1),
                    Step::Wait(future) => step = future.await,
                }
            }
        }
        Outcome::Done
    }

    /// The largest response body that a plugin wants whole; `None` when none does.
    pub fn response_buffer(&self, stream: &Stream) -> Option<usize> {
        self.body_filter.iter().filter_map(|s| s.plugin.buffers_response(stream)).max()
    }

    /// Runs `body_filter` on one piece.
    pub fn body_filter(&self, stream: &mut Stream, chunk: &mut BodyChunk<'_>) {
        for slot in &self.body_filter {
            slot.plugin.body_filter(stream, slot.index, chunk);
        }
    }

    /// Runs `log`.
    pub fn log(&self, stream: &mut Stream) {
        for slot in &self.log {
            slot.plugin.log(stream, slot.index);
        }
    }
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.names).finish()
    }
}
