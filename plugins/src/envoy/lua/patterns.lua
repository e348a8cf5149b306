-- Lua's functions of patterns over those of the host, which count their steps. A fault comes first of what they give.
local host = ...
local byte, sub, concat = string.byte, string.sub, table.concat
local error, type, tonumber, tostring = error, type, tonumber, tostring

local function text(value, at, name)
  local kind = type(value)
  if kind == "string" then return value end
  if kind == "number" then return tostring(value) end
  kind = kind == "nil" and "no value" or kind
  error("bad argument #" .. at .. " to '" .. name .. "' (string expected, got " .. kind .. ")", 3)
end

local function given(fault, ...)
  if fault then error(fault, 2) end
  return ...
end

local function captures(fault, _, _, ...)
  if fault then error(fault, 2) end
  return ...
end

function string.find(s, pattern, init, plain)
  return given(host.find(text(s, 1, "find"), text(pattern, 2, "find"), init, plain and true or false))
end

function string.match(s, pattern, init)
  return captures(host.scan(text(s, 1, "match"), text(pattern, 2, "match"), init, true, false))
end

function string.gmatch(s, pattern)
  s, pattern = text(s, 1, "gmatch"), text(pattern, 2, "gmatch")
  local at = 1
  local function found(fault, first, last, ...)
    if fault then error(fault, 2) end
    if not first then return nil end
    -- Behind a match of nothing comes the next byte.
    at = last >= first and last + 1 or last + 2
    return ...
  end
  return function() return found(host.scan(s, pattern, at, false, false)) end
end
-- Its older name, which LuaJIT still knows.
if string.gfind then string.gfind = string.gmatch end

function string.gsub(s, pattern, with, most)
  s, pattern = text(s, 1, "gsub"), text(pattern, 2, "gsub")
  local kind = type(with)
  if kind == "string" or kind == "number" then
    return given(host.replace(s, pattern, tostring(with), most))
  end
  if kind ~= "function" and kind ~= "table" then
    kind = kind == "nil" and "no value" or kind
    error("bad argument #3 to 'gsub' (string/function/table expected, got " .. kind .. ")", 2)
  end
  local first, last
  local function value_of(fault, from, to, ...)
    if fault then error(fault, 3) end
    first, last = from, to
    if not from then return nil end
    if kind == "function" then return (with(...)) end
    return with[(...)]
  end
  most = tonumber(most) or #s + 1
  local anchored, out, count, at, copied = byte(pattern) == 94, {}, 0, 1, 1
  while count < most and at <= #s + 1 do
    local value = value_of(host.scan(s, pattern, at, true, kind == "table"))
    if not first then break end
    if not value then
      value = sub(s, first, last)
    elseif type(value) ~= "string" and type(value) ~= "number" then
      error("invalid replacement value (a " .. type(value) .. ")", 2)
    end
    count = count + 1
    out[#out + 1] = sub(s, copied, first - 1)
    out[#out + 1] = value
    copied, at = last + 1, last >= first and last + 1 or last + 2
    if anchored then break end
  end
  out[#out + 1] = sub(s, copied)
  return concat(out), count
end
