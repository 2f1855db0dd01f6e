-- Write the QUEUED marker of predictions whose ids have no state yet. The store's clock decides when they expire.
--
-- KEYS[i]        key of prediction i
-- ARGV[1]        seconds that a terminal state is kept; a marker is kept as long after its deadline
-- ARGV[2i]       lifetime of prediction i, in seconds
-- ARGV[2i + 1]   marker i: JSON in Celery's form with `"deadline": 0`, which is replaced
--
-- Returns nothing.
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for i, key in ipairs(KEYS) do
    local lifetime_s = tonumber(ARGV[2 * i])
    local deadline = string.format('"deadline": %.3f', now + lifetime_s)
    local marker = string.gsub(ARGV[2 * i + 1], '"deadline": 0', deadline, 1)
    redis.call('SET', key, marker, 'NX', 'EX', math.max(1, math.ceil(lifetime_s) + ARGV[1]))
end
