-- Write the QUEUED marker of predictions whose ids have no state yet. The store's clock decides when they expire.
-- They are a group, which is counted as accepted when the broker has confirmed its message: by the next call, by
-- accept_group.lua, or by finish.lua.
--
-- KEYS[1]        the counts of predictions, see counts.lua
-- KEYS[2]        the groups of predictions that wait
-- KEYS[2 + i]    key of prediction i
-- ARGV[1]        seconds that a terminal state is kept; a marker is kept as long after its deadline
-- ARGV[2]        the group that the caller has published since its last call; 0 if there is none
-- ARGV[1 + 2i]   lifetime of prediction i, in seconds
-- ARGV[2 + 2i]   marker i: JSON in Celery's form with `"group": 0, "queued": 0, "deadline": 0`, which is replaced
--
-- Returns the number of the group; 0 if every id had a state.
local counts, waiting = KEYS[1], KEYS[2]
accept_group(counts, ARGV[2])
local now = store_time()
local group = redis.call('HINCRBY', counts, 'groups', 1)
local size, last_deadline = 0, 0
for i = 3, #KEYS do
    local lifetime_s = tonumber(ARGV[2 * i - 3])
    local deadline = now + lifetime_s
    local times = string.format('"group": %d, "queued": %.3f, "deadline": %.3f', group, now, deadline)
    local marker = string.gsub(ARGV[2 * i - 2], '"group": 0, "queued": 0, "deadline": 0', times, 1)
    if redis.call('SET', KEYS[i], marker, 'NX', 'EX', math.max(1, math.ceil(lifetime_s) + ARGV[1])) then
        size, last_deadline = size + 1, math.max(last_deadline, deadline)
    end
end
if size == 0 then
    return 0
end
open_group(counts, waiting, group, size, now, last_deadline)
redis.call('HSET', counts, 'pending:' .. group, size)
return group
