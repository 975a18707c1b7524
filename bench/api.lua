-- Calls of many users at a rate that does not depend on the answers. Environment: API_CALLS (a file:
-- per line method, path, key and body, by tabs), API_PER_SECOND, API_SEED.
--
-- Each moment of a random (Poisson) schedule goes to the next connection that is free. As long as
-- there is one, a slow answer delays no other call, and no wait is left out of the figures; how late
-- calls went out is counted, and told.
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long ns; } moment_t; int clock_gettime(int, moment_t *);")
local moment = ffi.new("moment_t")
local calls, gap_ms = {}, 1000 / tonumber(os.getenv("API_PER_SECOND"))
local scheduled, first, last, due = {}, 1, 0, nil
local threads = {}
sent, late, latest = 0, 0, 0
local LATE_MS = 5

for line in io.lines(os.getenv("API_CALLS")) do
  local method, path, key, body = line:match("([^\t]*)\t([^\t]*)\t([^\t]*)\t(.*)")
  calls[#calls + 1] = {method, path, key, body}
end

local function now_ms()
  ffi.C.clock_gettime(1, moment)
  return tonumber(moment.s) * 1e3 + tonumber(moment.ns) / 1e6
end

function setup(thread)
  threads[#threads + 1] = thread
end

function init(_)
  math.randomseed(tonumber(os.getenv("API_SEED")))
end

function delay()
  local now = now_ms()
  due = (due or now) - gap_ms * math.log(1 - math.random())
  last = last + 1
  scheduled[last] = due
  return math.max(0, due - now)
end

function request()
  if scheduled[first] then
    local behind = now_ms() - scheduled[first]
    scheduled[first], first = nil, first + 1
    sent = sent + 1
    if behind > LATE_MS then late = late + 1 end
    latest = math.max(latest, behind)
  end
  local call = calls[math.random(#calls)]
  local headers = {["X-API-Key"] = call[3], ["Content-Type"] = "application/json"}
  local body = call[4]:gsub("@unique@", tostring(math.random(1, 2 ^ 50)))
  return wrk.format(call[1], call[2], headers, body ~= "" and body or nil)
end

function done(summary, latency, _)
  local failed = summary.errors
  local behind, most = 0, 0
  for _, thread in ipairs(threads) do
    behind = behind + thread:get("late")
    most = math.max(most, thread:get("latest"))
  end
  io.write(string.format(
    "RESULT\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), failed.status,
    failed.connect + failed.read + failed.write + failed.timeout, behind, most * 1000))
end
