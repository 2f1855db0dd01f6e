-- Mark a batch as deleted, so that no row of it is stored from now on, and count its rows without a terminal state.
--
-- KEYS[1]   the hash of the batch
-- KEYS[2]   the counts of rows, see counts.lua
-- KEYS[3]   the groups of rows that wait: a group is a batch
-- ARGV      none
--
-- Returns the number of chunks, whose keys the caller unlinks; -1 if the batch is unknown.
if redis.call('EXISTS', KEYS[1]) == 0 then
    return -1
end
redis.call('HSET', KEYS[1], 'state', 'deleted')
local group = redis.call('HGET', KEYS[1], 'group')
if group then
    local left = redis.call('HGET', KEYS[2], 'left:' .. group)
    count_ended(KEYS[2], KEYS[3], group, 'deleted', tonumber(left or 0))
end
return tonumber(redis.call('HGET', KEYS[1], 'chunks'))
