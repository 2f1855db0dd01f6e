-- Read the states of predictions, with the store's time: deadlines are compared with it, not with a client's clock.
--
-- KEYS[i]   key of prediction i
-- ARGV      none
--
-- Returns {time, states}: the time in seconds since the epoch, as text, and for each key its value or nil.
local time = redis.call('TIME')
local states = {}
for i, key in ipairs(KEYS) do
    states[i] = redis.call('GET', key)
end
return {time[1] .. '.' .. string.format('%06d', time[2]), states}
