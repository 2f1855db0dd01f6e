-- Functions that count the customers of a kind: predictions, or rows of batches. `load_counting_script` puts this file
-- before each script that changes states, so a state and its count change in one step.
--
-- Customers that are accepted together are a group: the predictions of a message, or the rows of a batch. A group is open
-- until each of its customers has been counted in a terminal state. So no customer is counted twice, and a customer that
-- a version without counts has accepted is not counted at all.
--
-- KEYS      each script passes two keys of a kind, `counts` and `waiting`
-- ARGV      none
-- Returns nothing; it is no script of its own.
--
-- counts    a hash: `accepted`; `success`, `failure`, `expired` and `deleted`; `groups`, the number of the last group.
--           For each open group G: `left:G`, its customers without terminal state; `deadline:G`, the time by which the
--           last one should have one; `pending:G`, its customers, while the broker may not have its message.
-- waiting   a sorted set: the numbers of the open groups, by the time at which their states were written

local function store_time()
    local time = redis.call('TIME')
    return time[1] + time[2] / 1000000
end

-- Return the group of a QUEUED marker, and the beginning that all markers of the group have; nil for any other state, and
-- for a marker of a version without counts.
local function group_of(stored)
    local start, group = string.match(stored or '', '^({"status": "QUEUED", "group": (%d+),)')
    return group, start
end

local function open_group(counts, waiting, group, size, now, deadline)
    redis.call('HSET', counts, 'left:' .. group, size, 'deadline:' .. group, deadline)
    redis.call('ZADD', waiting, now, group)
end

local function close_group(counts, waiting, group)
    redis.call('HDEL', counts, 'left:' .. group, 'deadline:' .. group, 'pending:' .. group)
    redis.call('ZREM', waiting, group)
end

-- Count the customers of a group as accepted, unless they were counted: the broker has its message.
local function accept_group(counts, group)
    local size = redis.call('HGET', counts, 'pending:' .. group)
    if size then
        redis.call('HDEL', counts, 'pending:' .. group)
        redis.call('HINCRBY', counts, 'accepted', size)
    end
end

-- Count customers of a group that got a terminal state. A group that is not open has no customer left to count.
local function count_ended(counts, waiting, group, state, number)
    if number <= 0 or redis.call('HEXISTS', counts, 'left:' .. group) == 0 then
        return
    end
    accept_group(counts, group)
    redis.call('HINCRBY', counts, state, number)
    if redis.call('HINCRBY', counts, 'left:' .. group, -number) <= 0 then
        close_group(counts, waiting, group)
    end
end
