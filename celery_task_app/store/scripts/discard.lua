-- Remove the states of predictions whose message the broker has not confirmed; they do not count as accepted.
-- A worker may have got the message all the same, and begun to count: then the predictions count as deleted.
--
-- KEYS[1]       the counts of predictions, see counts.lua
-- KEYS[2]       the groups of predictions that wait
-- KEYS[2 + i]   key of prediction i
-- ARGV          none
--
-- Returns nothing.
local counts, waiting = KEYS[1], KEYS[2]
for i = 3, #KEYS do
    local group = group_of(redis.call('GET', KEYS[i]))
    if group and redis.call('HEXISTS', counts, 'pending:' .. group) == 1 then
        redis.call('HINCRBY', counts, 'pending:' .. group, -1)
        if redis.call('HINCRBY', counts, 'left:' .. group, -1) <= 0 then
            close_group(counts, waiting, group)
        end
    elseif group then
        count_ended(counts, waiting, group, 'deleted', 1)
    end
    redis.call('DEL', KEYS[i])
end
