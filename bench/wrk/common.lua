-- What gateway.lua and sidecar.lua have in common: one route of 5,000 is asked, each answer is checked, and a wrong
-- status or body, or a connection that broke, makes wrk end with status 1.
--
-- From the environment:
--   ROUTE    which route is asked, 1 to 5000 (3000)
--   RATE     requests a second of all threads; none: as fast as it goes
--   EXPECT   the whole body of a right answer ("hello world, this is a body\n")
--   FRESH    1: a new connection for each request
--
-- The last line of the output is JSON: requests, seconds, p50_us, p99_us.

local route = tonumber(os.getenv("ROUTE") or 3000)
local rate = tonumber(os.getenv("RATE") or 0)
local expected = os.getenv("EXPECT") or "hello world, this is a body\n"

-- Milliseconds of a clock that never goes back; wrk has none of its own.
local function clock()
  local ffi = require("ffi")
  ffi.cdef("typedef struct { long seconds; long nanos; } load_time; int clock_gettime(int, load_time *);")
  local time = ffi.new("load_time")
  return function()
    ffi.C.clock_gettime(1, time)
    return tonumber(time.seconds) * 1e3 + tonumber(time.nanos) / 1e6
  end
end

-- Threads tell what they saw by globals, which wrk's own thread reads at the end.
local function check_answers()
  wrong, example = 0, ""
  function response(status, _, body)
    if status ~= 200 or body ~= expected then
      wrong = wrong + 1
      if wrong == 1 then
        example = status .. " " .. body:sub(1, 80)
      end
    end
  end
end

-- wrk has no rate of its own, but asks how many milliseconds a connection shall wait before its next request: each
-- takes the next slot of its thread.
local function keep_rate()
  if rate <= 0 then
    return
  end
  threads = 1
  local now, due = clock(), nil
  function delay()
    local at = now()
    due = math.max((due or at) + 1e3 * threads / rate, at - 1e3)
    return math.max(0, math.floor(due - at + 0.5))
  end
end

local function tell()
  local all = {}
  function setup(thread)
    table.insert(all, thread)
    for _, one in ipairs(all) do
      one:set("threads", #all)
    end
  end
  function done(summary, latency)
    local bad, first = 0, ""
    for _, thread in ipairs(all) do
      bad = bad + thread:get("wrong")
      first = first ~= "" and first or thread:get("example")
    end
    local errors = summary.errors
    local broken = errors.connect + errors.read + errors.write + errors.timeout
    io.write(string.format('{"requests":%d,"seconds":%.6f,"p50_us":%.0f,"p99_us":%.0f}\n', summary.requests,
      summary.duration / 1e6, latency:percentile(50), latency:percentile(99)))
    if bad > 0 or broken > 0 or summary.requests == 0 then
      io.stderr:write(string.format(
        "wrk: of %d answers %d were wrong (the first: %s); connections: %d refused, %d broke at reading, %d at writing, %d timeouts\n",
        summary.requests, bad, first, errors.connect, errors.read, errors.write, errors.timeout))
      io.stdout:flush()
      os.exit(1)
    end
  end
end

return function(host)
  wrk.path = "/svc/" .. route .. "/api"
  wrk.headers["Host"] = host
  if os.getenv("FRESH") == "1" then
    wrk.headers["Connection"] = "close"
  end
  check_answers()
  keep_rate()
  tell()
end
