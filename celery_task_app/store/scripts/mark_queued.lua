-- Write the QUEUED marker of predictions whose ids have no state yet. The store's clock decides when they expire.
-- They are a group, which is counted as accepted when the broker has confirmed its message: by the next call, by
-- accept_group.lua, or by finish.lua.
-- All markers have one template: encoding each in the API, and sending it, costs 5 µs a prediction.
--
-- KEYS[1]       the counts of predictions, see counts.lua
-- KEYS[2]       the groups of predictions that wait
-- KEYS[2 + i]   key of prediction i; it ends with the task id
-- ARGV[1]       seconds that a terminal state is kept; a marker is kept as long after its deadline
-- ARGV[2]       the group that the caller has published since its last call; 0 if there is none
-- ARGV[3]       the marker of every prediction: JSON in Celery's form with `"group": 0, "queued": 0, "deadline": 0`, which
--               is replaced, and at its end an empty task id
-- ARGV[4]       number of characters of a key before the task id
-- ARGV[4 + i]   lifetime of prediction i, in seconds
--
-- Returns the number of the group; 0 if every id had a state.
local counts, waiting = KEYS[1], KEYS[2]
accept_group(counts, ARGV[2])
local now, ttl_s = store_time(), tonumber(ARGV[1])
local group = redis.call('HINCRBY', counts, 'groups', 1)
local head, tail = string.match(ARGV[3], '^(.*)"group": 0, "queued": 0, "deadline": 0(.*)"}$')
head = string.format('%s"group": %d, "queued": %.3f, "deadline": ', head, group, now)
local id_from = ARGV[4] + 1
local size, last_deadline = 0, 0
for i = 3, #KEYS do
    local key, lifetime_s = KEYS[i], tonumber(ARGV[i + 2])
    local deadline = now + lifetime_s
    local marker = head .. string.format('%.3f', deadline) .. tail .. string.sub(key, id_from) .. '"}'
    if redis.call('SET', key, marker, 'NX', 'EX', math.max(1, math.ceil(lifetime_s) + ttl_s)) then
        size = size + 1
        if deadline > last_deadline then
            last_deadline = deadline
        end
    end
end
if size == 0 then
    return 0
end
open_group(counts, waiting, group, size, now, last_deadline)
redis.call('HSET', counts, 'pending:' .. group, size)
return group
