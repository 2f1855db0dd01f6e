-- Read the counts of a kind of customers. A group that is still open a minute after its deadline has lost customers: their
-- message or their batch is gone. They are counted as expired, so that the number of waiting customers is right again.
--
-- KEYS[1]   the counts of predictions or of rows, see counts.lua
-- KEYS[2]   the groups that wait
-- ARGV[1]   seconds after its deadline in which a group may still end
--
-- Returns {accepted, success, failure, expired, deleted, milliseconds that the oldest group has waited}.
local counts, waiting = KEYS[1], KEYS[2]
local now, oldest_ms = store_time(), 0
local groups = redis.call('ZRANGE', waiting, 0, 99, 'WITHSCORES')
for i = 1, #groups, 2 do
    local group = groups[i]
    local values = redis.call('HMGET', counts, 'left:' .. group, 'deadline:' .. group, 'pending:' .. group)
    local is_lost = now > tonumber(values[2] or 0) + ARGV[1]
    if is_lost and values[3] then -- the process that wrote the markers ended before it published them
        close_group(counts, waiting, group)
    elseif is_lost then
        count_ended(counts, waiting, group, 'expired', tonumber(values[1] or 0))
        redis.call('ZREM', waiting, group)
    elseif not values[3] then
        oldest_ms = math.max(0, math.floor((now - groups[i + 1]) * 1000))
        break
    end
end
local read = redis.call('HMGET', counts, 'accepted', 'success', 'failure', 'expired', 'deleted')
for i = 1, #read do
    read[i] = tonumber(read[i] or 0)
end
read[#read + 1] = oldest_ms
return read
