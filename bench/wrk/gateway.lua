-- A gateway with 5,000 routes, the n-th of which takes /svc/N/*:
--   ROUTE=5000 wrk -t1 -c64 -d10s -s bench/wrk/gateway.lua http://127.0.0.1:9080
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "common.lua")("bench")
