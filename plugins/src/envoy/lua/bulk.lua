-- Lua's functions that do much in one instruction, within the budget of a script: `take` takes instructions of it, and
-- ends the script if none are left. What is said of wrong arguments is theirs: they are called in the place of these.
local take, most = ...
local type, tonumber, select, error, rawlen = type, tonumber, select, error, rawlen
local floor, min, max = math.floor, math.min, math.max
-- Bytes that are copied at once for about the time of one instruction, and those that are not worth counting.
local at_once, few = 16, 256

local function spend(instructions)
  if take(instructions) then error("script has run for too long", 0) end
end

local function spend_bytes(bytes)
  -- Nothing makes more than the memory has room for.
  if bytes > few then spend(floor(min(bytes, most) / at_once)) end
end

local function whole(name)
  local own = string[name]
  string[name] = function(text, ...)
    if type(text) == "string" then spend_bytes(#text) end
    return own(text, ...)
  end
end
whole("upper") whole("lower") whole("reverse")

local rep = string.rep
function string.rep(text, ...)
  local count, between = ...
  local times = tonumber(count)
  if times and type(text) == "string" then
    spend_bytes((#text + (type(between) == "string" and #between or 0)) * max(times, 0))
  end
  return rep(text, ...)
end

-- How many there are from one place to another, counted from the end if they are negative.
local function between(count, first, last)
  first, last = tonumber(first) or 1, tonumber(last) or -1
  if first < 0 then first = count + first + 1 end
  if last < 0 then last = count + last + 1 end
  return min(last, count) - max(first, 1) + 1
end

local sub = string.sub
function string.sub(text, ...)
  if type(text) == "string" and #text > few then spend_bytes(between(#text, ...)) end
  return sub(text, ...)
end

local byte = string.byte
function string.byte(text, ...)
  local first, last = ...
  if last and type(text) == "string" and #text > at_once then
    local count = between(#text, first, last)
    if count > at_once then spend(min(count, most)) end
  end
  return byte(text, ...)
end

local format = string.format
function string.format(form, ...)
  local bytes = type(form) == "string" and #form or 0
  for at = 1, select("#", ...) do
    local value = select(at, ...)
    if type(value) == "string" then bytes = bytes + #value end
  end
  spend_bytes(bytes)
  return format(form, ...)
end

local concat = table.concat
function table.concat(list, ...)
  local with, first, last = ...
  if type(list) == "table" then
    -- Their bytes are not known before; the time is looked at.
    local count = (tonumber(last) or rawlen(list)) - (tonumber(first) or 1) + 1
    if count > 0 then spend(min(count * (2 + (type(with) == "string" and #with / at_once or 0)), most)) end
  end
  return concat(list, ...)
end

-- What is behind a place is moved.
local function behind(list, place)
  place = tonumber(place)
  if place and type(list) == "table" and rawlen(list) - place > at_once then spend(min(rawlen(list) - place, most)) end
end

local insert = table.insert
function table.insert(list, ...)
  if select("#", ...) == 2 then behind(list, (...)) end
  return insert(list, ...)
end

local remove = table.remove
function table.remove(list, ...)
  behind(list, (...))
  return remove(list, ...)
end

-- A comparison is a call of the script's machine, whose instructions are counted.
local sort = table.sort
local function less(a, b) return a < b end
function table.sort(list, before)
  if before == nil then return sort(list, less) end
  if type(before) ~= "function" then return sort(list, before) end
  return sort(list, function(a, b) return before(a, b) end)
end

-- To read a script takes longer than to copy it. Compiled ones are not taken.
for _, name in ipairs({ "load", "loadstring" }) do
  local own = _G[name]
  _G[name] = own and function(text, chunk, _, env)
    if type(text) == "string" then spend(#text) end
    if type(text) ~= "function" then return own(text, chunk, "t", env) end
    return own(function()
      local piece = text()
      if type(piece) == "string" then spend(#piece) end
      return piece
    end, chunk, "t", env)
  end
end

local collect = collectgarbage
function collectgarbage(...)
  if (...) ~= "count" then spend_bytes(collect("count") * 1024) end
  return collect(...)
end
