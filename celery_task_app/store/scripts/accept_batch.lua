-- Count the rows of a batch as accepted: the broker has confirmed all of its chunks. Its rows that have ended meanwhile are
-- counted too.
-- Idempotent: a batch is counted once. A batch that was deleted, or is unknown, is not counted.
--
-- KEYS[1]   the hash of the batch
-- KEYS[2]   the counts of rows, see counts.lua
-- KEYS[3]   the groups of rows that wait: a group is a batch
-- ARGV      none
--
-- Returns nothing.
local counts = KEYS[2]
local batch = redis.call('HMGET', KEYS[1], 'state', 'total', 'done', 'failed', 'group')
if batch[1] ~= 'running' or batch[5] then
    return
end
local now = store_time()
local group = redis.call('HINCRBY', counts, 'groups', 1)
local total, done, failed = tonumber(batch[2]), tonumber(batch[3]), tonumber(batch[4])
redis.call('HSET', KEYS[1], 'group', group, 'accepted_at', now)
redis.call('HINCRBY', counts, 'accepted', total)
if done > 0 then
    redis.call('HINCRBY', counts, 'success', done - failed)
    redis.call('HINCRBY', counts, 'failure', failed)
end
if done < total then
    open_group(counts, KEYS[3], group, total - done, now, now + redis.call('PTTL', KEYS[1]) / 1000)
end
