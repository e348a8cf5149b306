-- Compares what LuaJIT's functions of patterns give with what those that have taken their place give.
local old = { find = string.find, match = string.match, gmatch = string.gmatch, gsub = string.gsub }

local function written(...)
  local words = {}
  for i = 1, select("#", ...) do words[i] = string.format("%q", tostring((select(i, ...)))) end
  return table.concat(words, ",")
end

local function all(of, text, pattern)
  local found = {}
  for a, b in of.gmatch(text, pattern) do found[#found + 1] = written(a, b) end
  return table.concat(found, ";")
end

local function upper(...)
  local first = (...)
  return first ~= "a" and written(...)
end

function compare(text, pattern, with)
  for name, call in pairs({
    find = function(of) return of.find(text, pattern) end,
    find_later = function(of) return of.find(text, pattern, -2) end,
    find_plain = function(of) return of.find(text, pattern, 2, true) end,
    find_behind = function(of) return of.find(text, pattern, 9) end,
    match = function(of) return of.match(text, pattern, 2) end,
    gmatch = function(of) return all(of, text, pattern) end,
    gsub = function(of) return of.gsub(text, pattern, with) end,
    gsub_two = function(of) return of.gsub(text, pattern, with, 2) end,
    gsub_function = function(of) return of.gsub(text, pattern, upper) end,
    gsub_table = function(of) return of.gsub(text, pattern, { a = "A", b = 7, c = false }) end,
  }) do
    local wanted, got = written(pcall(call, old)), written(pcall(call, string))
    -- Where in the code an error was is of no matter.
    wanted, got = old.gsub(wanted, "%[string[^:]*:%d+: ", ""), old.gsub(got, "%[string[^:]*:%d+: ", "")
    if wanted ~= got then
      error(name .. " of " .. written(text, pattern, with) .. " gives " .. got .. " and not " .. wanted)
    end
  end
end
