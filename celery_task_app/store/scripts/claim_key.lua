-- Claim an Idempotency-Key, unless it is claimed, or bound to a prediction that was neither deleted nor has expired.
--
-- KEYS[1]   the key
-- ARGV[1]   the claim: JSON
-- ARGV[2]   TTL of the claim, in seconds
-- ARGV[3]   the first bytes of the key of each prediction; the task id follows
-- ARGV[4]   the first bytes of the state of a prediction that was deleted or has expired
--
-- Returns the claim or binding that holds the key; false if the caller holds it now.
local holder = redis.call('GET', KEYS[1])
if holder then
    local held = cjson.decode(holder)
    if not held.accepted then
        return holder
    end
    local state = redis.call('GET', ARGV[3] .. held.task_id)
    if state and string.sub(state, 1, #ARGV[4]) ~= ARGV[4] then
        local time = redis.call('TIME')
        local deadline = cjson.decode(state).deadline
        if not deadline or deadline > time[1] + time[2] / 1000000 then
            return holder
        end
    end
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return false
