-- Calls of many users, each with a pause after its answer. Environment: API_CALLS (a file: per line
-- method, path, key and body, by tabs), API_PAUSE_MS (mean), API_SEED.
local calls, pause = {}, tonumber(os.getenv("API_PAUSE_MS"))
for line in io.lines(os.getenv("API_CALLS")) do
  local method, path, key, body = line:match("([^\t]*)\t([^\t]*)\t([^\t]*)\t(.*)")
  calls[#calls + 1] = {method, path, key, body}
end

function init(_)
  math.randomseed(tonumber(os.getenv("API_SEED")))
end

function request()
  local call = calls[math.random(#calls)]
  local headers = {["X-API-Key"] = call[3], ["Content-Type"] = "application/json"}
  local body = call[4]:gsub("@unique@", tostring(math.random(1, 2 ^ 50)))
  return wrk.format(call[1], call[2], headers, body ~= "" and body or nil)
end

function delay()
  return pause / 2 + math.random() * pause
end

function done(summary, latency, _)
  local failed = summary.errors
  io.write(string.format(
    "RESULT\t%d\t%d\t%d\t%d\t%d\t%d\t%d\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), failed.status,
    failed.connect + failed.read + failed.write + failed.timeout))
end
