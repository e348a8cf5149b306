-- What scripts see of a request: the objects of Envoy's Lua filter, made of one function of the host.
--
-- `host(operation, ...)` is there while a script runs, and another one each time. The handle knows the run that it is of,
-- and all other objects the turn of it that they were made in: what a script has kept over a wait, or in a global variable
-- for the next request, is of no use any more, as in Envoy.
local op, spent, text_of_error, log = ...
local host, run, turn = nil, 0, 0
local raw_pcall, raw_xpcall, raw_resume = pcall, xpcall, coroutine.resume
local raw_pairs, yield, error, type, setmetatable, getmetatable, select, tostring =
  pairs, coroutine.yield, error, type, setmetatable, getmetatable, select, tostring

-- A script that has run for too long must not go on by catching the error that says so.
local function unless_spent(ok, ...)
  if spent() then error("script has run for too long", 0) end
  -- Errors of the host are no text by themselves.
  if not ok then return ok, text_of_error((...)) end
  return ok, ...
end
function pcall(...) return unless_spent(raw_pcall(...)) end
function xpcall(called, handler, ...)
  if type(handler) ~= "function" then return unless_spent(raw_xpcall(called, handler, ...)) end
  return unless_spent(raw_xpcall(called, function(caught) return handler(text_of_error(caught)) end, ...))
end
function coroutine.resume(...) return unless_spent(raw_resume(...)) end

function pairs(object)
  local meta = getmetatable(object)
  if type(meta) == "table" and meta.__pairs then return meta.__pairs(object) end
  return raw_pairs(object)
end

function print(...)
  local words = {}
  for i = 1, select("#", ...) do words[i] = tostring((select(i, ...))) end
  log(op.LOG_INFO, table.concat(words, "\t"))
end

local function class(members)
  members.__index = members
  return members
end

local function alive(self)
  if type(self) ~= "table" or self.turn ~= turn or not host then
    error("object used outside of proper scope", 3)
  end
end

local function text(value, at)
  local kind = type(value)
  if kind == "number" then return tostring(value) end
  if kind ~= "string" then
    error("bad argument #" .. at .. " (string expected, got " .. (kind == "nil" and "no value" or kind) .. ")", 3)
  end
  return value
end

-- Leaves the script until the host goes on with it.
local function wait(...)
  host(op.WAIT, ...)
  return yield()
end

-- What is not there is no value, which is not the same as nil.
local function value_of(value)
  if value ~= nil then return value end
end

local Headers = class {}
local function headers(of) return setmetatable({ turn = turn, of = of }, Headers) end

local function changeable(self)
  if self.iterating then error("header map cannot be modified while iterating", 3) end
end

function Headers:add(name, value)
  alive(self) changeable(self)
  host(op.HEADER_ADD, self.of, text(name, 1), text(value, 2))
end
function Headers:replace(name, value)
  alive(self) changeable(self)
  host(op.HEADER_REPLACE, self.of, text(name, 1), text(value, 2))
end
function Headers:remove(name)
  alive(self) changeable(self)
  host(op.HEADER_REMOVE, self.of, text(name, 1))
end
function Headers:get(name) alive(self) return value_of(host(op.HEADER_GET, self.of, text(name, 1))) end
function Headers:getAtIndex(name, index)
  alive(self)
  return value_of(host(op.HEADER_AT, self.of, text(name, 1), index))
end
function Headers:getNumValues(name) alive(self) return host(op.HEADER_COUNT, self.of, text(name, 1)) end
function Headers:setHttp1ReasonPhrase(phrase)
  alive(self)
  host(op.REASON, text(phrase, 1))
end
function Headers:__pairs()
  alive(self)
  if self.iterating then error("cannot create a second iterator before completing the first", 2) end
  self.iterating = true
  local all, at = host(op.HEADER_ALL, self.of), -1
  return function()
    at = at + 2
    if all[at] == nil then
      self.iterating = false
      return nil
    end
    return all[at], all[at + 1]
  end
end

local Buffer = class {}
local function buffer(bytes, whole) return setmetatable({ turn = turn, bytes = bytes, whole = whole }, Buffer) end

function Buffer:length() alive(self) return #self.bytes end
function Buffer:getBytes(index, length)
  alive(self)
  if index < 0 or length < 0 or index + length > #self.bytes then
    error("index/length must be >= 0 and (index + length) must be <= buffer size", 2)
  end
  return self.bytes:sub(index + 1, index + length)
end
function Buffer:setBytes(bytes)
  alive(self)
  self.bytes = text(bytes, 1)
  host(op.SET_BODY, self.bytes, self.whole)
  return #self.bytes
end

-- Values by key that do not change: metadata of routes.
local Map = class {}
local function map(values) return setmetatable({ turn = turn, values = values }, Map) end
function Map:get(key) alive(self) return value_of(self.values[key]) end
function Map:__pairs() alive(self) return raw_pairs(self.values) end

local Metadata = class {}
function Metadata:get(filter) alive(self) return value_of(host(op.DYNAMIC_GET, text(filter, 1))) end
function Metadata:set(filter, key, value)
  alive(self)
  host(op.DYNAMIC_SET, text(filter, 1), text(key, 2), value)
end
function Metadata:__pairs() alive(self) return raw_pairs(host(op.DYNAMIC_ALL)) end

local FilterState = class {}
function FilterState:get(key) alive(self) return value_of(host(op.FILTER_STATE, text(key, 1))) end
function FilterState:set(factory, key, value)
  alive(self)
  host(op.FILTER_STATE_SET, text(factory, 1), text(key, 2), text(value, 3))
end

-- Objects whose methods without arguments each ask the host for one value.
local function asking(operations)
  local members = class {}
  for name, operation in raw_pairs(operations) do
    members[name] = function(self) alive(self) return host(operation) end
  end
  return members
end

local Ssl = asking(op.ssl)
local Info = asking(op.info)
function Info:dynamicMetadata() alive(self) return setmetatable({ turn = turn }, Metadata) end
function Info:filterState() alive(self) return setmetatable({ turn = turn }, FilterState) end
function Info:dynamicTypedMetadata(name) alive(self) text(name, 1) return nil end
function Info:downstreamSslConnection()
  alive(self)
  return host(op.IS_TLS) and setmetatable({ turn = turn }, Ssl) or nil
end
function Info:drainConnectionUponCompletion() alive(self) host(op.CLOSE) end

local Connection = class {}
function Connection:ssl()
  alive(self)
  return host(op.IS_TLS) and setmetatable({ turn = turn }, Ssl) or nil
end

local ConnectionInfo = class {}
function ConnectionInfo:dynamicMetadata() alive(self) return map({}) end
function ConnectionInfo:dynamicTypedMetadata(name) alive(self) text(name, 1) return nil end

local Holder = class {}
function Holder:metadata() alive(self) return map(host(self.operation)) end

local Key = class {}
function Key:get() return self.der end

local Handle = class {}

local function at_work(self)
  if type(self) ~= "table" or self.run ~= run or not host then
    error("object used outside of proper scope", 3)
  end
end

function Handle:headers()
  at_work(self)
  if not self.head or self.head.turn ~= turn then self.head = headers(self.of) end
  return self.head
end

function Handle:body(always)
  at_work(self)
  if self.passed then error("cannot call body() after body has been streamed", 2) end
  local bytes = host(op.BODY)
  if bytes == nil then
    wait(op.WAIT_BODY)
    bytes = host(op.BODY)
  end
  if bytes or always then return buffer(bytes or "", true) end
end

function Handle:bodyChunks()
  at_work(self)
  if self.passed then error("cannot call bodyChunks after body processing has begun", 2) end
  self.passed = true
  return function()
    if host(op.BODY) == false then return nil end
    local bytes = wait(op.WAIT_CHUNK)
    return bytes and buffer(bytes, false) or nil
  end
end

function Handle:trailers()
  at_work(self)
  self.passed = true
  if host(op.HAS_TRAILERS) or (host(op.BODY) ~= false and wait(op.WAIT_TRAILERS)) then
    return headers(self.of + 2)
  end
end

function Handle:metadata() at_work(self) return map(host(op.METADATA)) end
function Handle:virtualHost() at_work(self) return setmetatable({ turn = turn, operation = op.HOST_METADATA }, Holder) end
function Handle:route() at_work(self) return setmetatable({ turn = turn, operation = op.METADATA }, Holder) end
function Handle:filterContext() at_work(self) return map(host(op.CONTEXT)) end
function Handle:streamInfo() at_work(self) return setmetatable({ turn = turn }, Info) end
function Handle:connection() at_work(self) return setmetatable({ turn = turn }, Connection) end
function Handle:connectionStreamInfo() at_work(self) return setmetatable({ turn = turn }, ConnectionInfo) end
function Handle:clearRouteCache() at_work(self) host(op.CLEAR_ROUTE) end

function Handle:httpCall(cluster, fields, body, timeout, asynchronous)
  at_work(self)
  if type(fields) ~= "table" then error("bad argument #2 (table expected)", 2) end
  local options = { timeout_ms = timeout, asynchronous = asynchronous }
  if type(timeout) == "table" then
    options = timeout
  elseif asynchronous ~= nil and type(asynchronous) ~= "boolean" then
    error("http call asynchronous flag must be 'true', 'false', or empty", 2)
  end
  local ms = options.timeout_ms or 0
  if type(ms) ~= "number" then error("bad argument #4 (number expected)", 2) end
  if not (ms >= 0) then error("http call timeout must be >= 0", 2) end
  if body ~= nil then body = text(body, 3) end
  if options.asynchronous then
    host(op.CALL, text(cluster, 1), fields, body, ms)
    return
  end
  local names, answer = wait(op.WAIT_CALL, text(cluster, 1), fields, body, ms)
  local found = {}
  for at = 1, #names, 2 do
    local name, value = names[at], names[at + 1]
    if not options.return_duplicate_headers or found[name] == nil then
      found[name] = value
    elseif type(found[name]) == "table" then
      table.insert(found[name], value)
    else
      found[name] = { found[name], value }
    end
  end
  return found, answer
end

function Handle:respond(fields, body)
  at_work(self)
  if type(fields) ~= "table" then error("bad argument #1 (table expected)", 2) end
  if body ~= nil then body = text(body, 2) end
  wait(op.WAIT_RESPOND, fields, body)
end

for name, level in raw_pairs({
  logTrace = op.LOG_TRACE, logDebug = op.LOG_DEBUG, logInfo = op.LOG_INFO,
  logWarn = op.LOG_WARN, logErr = op.LOG_ERR, logCritical = op.LOG_ERR,
}) do
  Handle[name] = function(self, message) at_work(self) log(level, text(message, 1)) end
end

function Handle:timestamp(resolution) at_work(self) return host(op.TIME, resolution) end
function Handle:timestampString(resolution) at_work(self) return host(op.TIME_TEXT, resolution) end
function Handle:base64Escape(bytes) at_work(self) return host(op.BASE64, text(bytes, 1)) end
function Handle:importPublicKey(der, length)
  at_work(self)
  return setmetatable({ der = text(der, 1):sub(1, length) }, Key)
end
function Handle:verifySignature(hash, key, signature, signature_length, data, length)
  at_work(self)
  local bytes = type(key) == "table" and key.der or text(key, 2)
  return host(op.VERIFY, text(hash, 1), bytes, text(signature, 3):sub(1, signature_length), text(data, 5):sub(1, length))
end

EnvoyTimestampResolution = { MILLISECOND = 0, MICROSECOND = 1 }

local api = {}
-- Lets the host in for one turn of a run; without one it goes.
function api.enter(other, of_run)
  host, run, turn = other, of_run, turn + 1
end
function api.handle(of, number) return setmetatable({ run = number, of = of }, Handle) end
return api
