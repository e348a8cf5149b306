//! One Lua machine: a script of one configuration on one worker, within bounds of time and memory.

use super::budget::{Budget, SPENT};
use super::host::{self, Host, Wait};
use super::strings;
use super::values::TOO_MUCH;
use bytes::Bytes;
use mlua::chunk::ChunkMode;
use mlua::debug::Debug;
use mlua::{Function, HookTriggers, Lua, LuaOptions, LuaString, MultiValue, StdLib, Table, Thread, VmState};
use sixfold_core::headers::Headers;
use sixfold_core::plugin::{CalloutError, CalloutResponse};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes that the objects of all scripts of one machine may take.
pub(super) const MEMORY: usize = 64 << 20;

/// Instructions between two looks at what is left of the budget of a script: as few as there may be that each join texts of
/// megabytes.
const STRIDE: u32 = 250;

/// Instructions that one call of the host takes the time of.
const CALL: u64 = 50;

/// Chunks of ours, as errors name them.
const OWN: [&str; 2] = ["prelude", "bulk"];

/// Calls among which the script is that has called the host.
const DEEPEST: usize = 8;

/// What a service has answered.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Headers,
    pub(super) body: Bytes,
}

impl Answer {
    /// What a script gets of a service that gives none, as in Envoy.
    pub(super) fn of(answer: Result<CalloutResponse, CalloutError>) -> Answer {
        match answer {
            Ok(CalloutResponse { status, headers, body }) => Answer { status, headers, body },
            Err(_) => {
                Answer { status: 503, headers: Headers::new(), body: Bytes::from_static(b"upstream failure") }
            }
        }
    }
}

/// What a script goes on with.
#[derive(Clone, Copy)]
pub(super) enum Given<'a> {
    /// Nothing, or that there is nothing.
    Nothing,
    /// A piece of the body.
    Piece(&'a [u8]),
    /// That there are trailers.
    Trailers,
    /// The answer of a service.
    Answer(&'a Answer),
}

/// How a turn has ended.
pub(super) enum Turn {
    /// The script is at its end.
    Done,
    /// It waits.
    Waits(Wait),
}

/// Why a script has ended before its end.
pub(super) struct Failure {
    pub(super) told: String,
    /// One of the bounds has ended it that scripts have here and not in Envoy: whoever sends messages may have seen to it.
    pub(super) by_bound: bool,
}

/// How LuaJIT says that the memory is spent.
pub(super) const NO_MEMORY: &str = "not enough memory";

/// A script that runs, or waits to go on.
pub(super) struct Run {
    thread: Thread,
    number: u64,
    /// What it is called with.
    handle: Option<Table>,
}

/// A machine with its script.
pub(super) struct Vm {
    lua: Lua,
    enter: Function,
    handle: Function,
    on_request: Option<Function>,
    on_response: Option<Function>,
    /// What is left to the turn.
    budget: Arc<Budget>,
    runs: AtomicU64,
}

impl Vm {
    /// Loads a script and runs what is outside its functions.
    pub(super) fn new(source: &str) -> Result<Vm, String> {
        Vm::load(source).map_err(|error| told(&error))
    }

    fn load(source: &str) -> mlua::Result<Vm> {
        let libraries =
            StdLib::TABLE | StdLib::STRING | StdLib::MATH | StdLib::OS | StdLib::BIT | StdLib::JIT;
        // pcall as it is: the guarded one does not let a script wait within.
        let lua = Lua::new_with(libraries, LuaOptions::new().catch_rust_panics(false))?;
        // Compiled traces ask no hook. What of `os` touches files or the process is not for workers.
        lua.load("jit.off() jit = nil os = {time = os.time, clock = os.clock, date = os.date, difftime = os.difftime}")
            .exec()?;
        // Nobody looks whether compiled code is sound: it could do anything to the process.
        lua.load("string.dump = nil").exec()?;
        lua.globals().set("dofile", mlua::Nil)?;
        lua.globals().set("loadfile", mlua::Nil)?;
        lua.set_memory_limit(MEMORY)?;
        let budget = Arc::new(Budget::new());
        let counted = budget.clone();
        lua.set_global_hook(HookTriggers::new().every_nth_instruction(STRIDE), move |_, _| {
            match counted.take(u64::from(STRIDE)) {
                true => Ok(VmState::Continue),
                false => Err(mlua::Error::runtime(SPENT)),
            }
        })?;
        let counted = budget.clone();
        let spent = lua.create_function(move |_, ()| Ok(counted.is_spent()))?;
        // What a script catches is text, as all that Envoy's functions throw.
        let text = lua.create_function(|lua, caught: mlua::Value| match &caught {
            mlua::Value::Error(error) => Ok(mlua::Value::String(lua.create_string(told(error))?)),
            _ => Ok(caught),
        })?;
        strings::bound(&lua, &budget)?;
        let counted = budget.clone();
        let take = lua.create_function(move |_, count: f64| Ok(!counted.take(count as u64)))?;
        lua.load(include_str!("bulk.lua")).set_name("=bulk").call::<()>((take, MEMORY as f64))?;
        let counted = budget.clone();
        let log = lua.create_function(move |_, (level, text): (u8, LuaString)| {
            if !counted.take(CALL) || !counted.take_bytes(text.as_bytes().len()) {
                return Err(mlua::Error::runtime(SPENT));
            }
            host::log(level, &text.to_string_lossy());
            Ok(())
        })?;
        let prelude = lua.load(include_str!("prelude.lua")).set_name("=prelude");
        let api: Table = prelude.call((host::operations(&lua)?, spent, text, log))?;
        // Errors name a script by its first line, as in Envoy: `[string "..."]:2: ...`.
        let named = source.split('\0').next().unwrap_or_default();
        lua.load(source).set_name(named).set_mode(ChunkMode::Text).exec()?;
        let function = |name: &str| lua.globals().get::<Option<Function>>(name);
        let (on_request, on_response) = (function("envoy_on_request")?, function("envoy_on_response")?);
        let (enter, handle) = (api.get("enter")?, api.get("handle")?);
        Ok(Vm { enter, handle, on_request, on_response, budget, runs: AtomicU64::new(0), lua })
    }

    /// Which functions it has: of requests, and of responses.
    pub(super) fn hooks(&self) -> (bool, bool) {
        (self.on_request.is_some(), self.on_response.is_some())
    }

    /// Begins the script of a message; `None` without a function for it.
    pub(super) fn begin(&self, side: host::Side) -> Result<Option<Run>, Failure> {
        let function = match side {
            host::Side::Request => &self.on_request,
            host::Side::Response => &self.on_response,
        };
        let Some(function) = function else { return Ok(None) };
        let number = self.runs.fetch_add(1, Relaxed) + 1;
        // The script before may have left nothing.
        self.budget.renew();
        let made = self.lua.create_thread(function.clone()).and_then(|thread| {
            let of = if side == host::Side::Request { 0 } else { 1 };
            Ok(Run { thread, number, handle: Some(self.handle.call((of, number as f64))?) })
        });
        made.map(Some).map_err(|error| self.failure(&error))
    }

    fn failure(&self, error: &mlua::Error) -> Failure {
        let told = told(error);
        let ends = |text: &&str| told.ends_with(text);
        let by_bound = self.budget.is_spent() || [SPENT, NO_MEMORY, TOO_MUCH].iter().any(ends);
        Failure { told, by_bound: by_bound || is_of_memory(error) }
    }

    /// Goes on with a script up to its end, or until it waits.
    pub(super) fn go_on(
        &self,
        run: &mut Run,
        host: &mut Host<'_>,
        given: &Given<'_>,
    ) -> Result<Turn, Failure> {
        self.budget.renew();
        let outcome = self.turn(run, host, given).map_err(|error| self.failure(&error));
        // What was made for this turn alone goes with it.
        let left = self.enter.call::<()>((mlua::Nil, 0));
        outcome.and_then(|()| left.map_err(|error| self.failure(&error)))?;
        match (run.thread.is_resumable(), host.wait.take()) {
            (true, Some(wait)) => Ok(Turn::Waits(wait)),
            (true, None) => {
                Err(Failure { told: "script performed an unexpected yield".to_owned(), by_bound: false })
            }
            (false, _) => Ok(Turn::Done),
        }
    }

    fn turn(&self, run: &mut Run, host: &mut Host<'_>, given: &Given<'_>) -> mlua::Result<()> {
        let (thread, number) = (run.thread.clone(), run.number as f64);
        let arguments = match (run.handle.take(), given) {
            (Some(handle), _) => MultiValue::from_iter([mlua::Value::Table(handle)]),
            (None, Given::Nothing) => MultiValue::new(),
            (None, Given::Piece(bytes)) => {
                MultiValue::from_iter([mlua::Value::String(self.lua.create_string(bytes)?)])
            }
            (None, Given::Trailers) => MultiValue::from_iter([mlua::Value::Boolean(true)]),
            (None, Given::Answer(answer)) => host::answer_values(&self.lua, answer)?,
        };
        self.lua.scope(move |scope| {
            let call = scope.create_function_mut(move |lua, (op, arguments): (u8, MultiValue)| {
                if !self.budget.take(CALL) || !self.budget.take_bytes(length(&arguments)) {
                    return Err(mlua::Error::runtime(SPENT));
                }
                let given = host.call(lua, op, arguments).map_err(|error| placed(lua, &error))?;
                // What ends by this ends with the next look at the budget.
                self.budget.take_bytes(length(&given));
                Ok(given)
            })?;
            self.enter.call::<()>((call, number))?;
            thread.resume::<MultiValue>(arguments).map(drop)
        })
    }
}

/// Bytes of values that go to the host or come from it; those of a list are not looked at.
fn length(values: &MultiValue) -> usize {
    let of = |value: &mlua::Value| match value {
        mlua::Value::String(text) => text.as_bytes().len(),
        mlua::Value::Table(list) => list.raw_len() * 16,
        _ => 0,
    };
    values.iter().map(of).sum()
}

/// An error of the host behind the line of the script that has called for it, as functions of Lua tell theirs.
fn placed(lua: &Lua, error: &mlua::Error) -> mlua::Error {
    let place = |debug: &Debug<'_>| {
        let (source, line) = (debug.source().short_src?, debug.current_line()?);
        let is_script = !OWN.contains(&&*source);
        is_script.then(|| format!("{source}:{line}: "))
    };
    let mut frames = (0..DEEPEST).map_while(|level| lua.inspect_stack(level, place));
    let place = frames.find_map(|found| found).unwrap_or_default();
    mlua::Error::runtime(format!("{place}{}", told(error)))
}

fn is_of_memory(error: &mlua::Error) -> bool {
    match error {
        mlua::Error::MemoryError(_) => true,
        mlua::Error::CallbackError { cause, .. } => is_of_memory(cause),
        _ => false,
    }
}

/// An error in one line, as Envoy's log has it.
fn told(error: &mlua::Error) -> String {
    let text = match error {
        mlua::Error::CallbackError { cause, .. } => cause.to_string(),
        other => other.to_string(),
    };
    let text = text.trim_start_matches("runtime error: ").trim_start_matches("syntax error: ");
    text.lines().next().unwrap_or_default().to_owned()
}
