-- For wrk: asks for the paths that are given behind "--" in turn, and says at the end what came of it in one line:
-- measured SECONDS REQUESTS BYTES FAILURES
local requests = {}
local turn = 0

function init(paths)
    for number, path in ipairs(paths) do
        requests[number] = wrk.format("GET", path)
    end
end

function request()
    turn = turn % #requests + 1
    return requests[turn]
end

function done(summary)
    local errors = summary.errors
    local failures = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format("measured %f %d %d %d\n",
        summary.duration / 1e6, summary.requests, summary.bytes, failures))
end
