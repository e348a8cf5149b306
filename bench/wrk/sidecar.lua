-- The sidecar of a client, whose service has 5,000 routes by prefix:
--   ROUTE=5000 wrk -t1 -c64 -d10s -s bench/wrk/sidecar.lua http://127.0.0.1:15001
local here = debug.getinfo(1, "S").source:match("^@(.*/)") or "./"
dofile(here .. "common.lua")("server.default.svc.cluster.local:9080")
