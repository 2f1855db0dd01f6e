-- Take the oldest message of the first queue that has one, and record it as unacknowledged, as kombu does.
-- RPOP comes first: Redis lets a script that has begun to write go on when the memory is used up.
--
-- KEYS[1]         kombu's hash of unacknowledged messages
-- KEYS[2]         kombu's index of them by time
-- KEYS[3 ...]     n queues, then their n wake-up lists
-- ARGV[1]         n
--
-- Returns {queue, message, delivery tag}; the tag is false if the element is not a message of kombu's.
-- Returns false if all queues are empty; then the wake-up lists are empty too.
for i = 3, 2 + ARGV[1] do
    local message = redis.call('RPOP', KEYS[i])
    if message then
        local is_json, envelope = pcall(cjson.decode, message)
        local is_message = is_json and type(envelope) == 'table' and type(envelope.body) == 'string'
        local properties = is_message and envelope.properties
        local tag = type(properties) == 'table' and properties.delivery_tag
        if type(tag) ~= 'string' then
            return {KEYS[i], message, false}
        end
        redis.call('HSET', KEYS[1], tag, '[' .. message .. ', "", ' .. cjson.encode(KEYS[i]) .. ']')
        redis.call('ZADD', KEYS[2], redis.call('TIME')[1], tag)
        return {KEYS[i], message, tag}
    end
end
redis.call('DEL', unpack(KEYS, 3 + ARGV[1]))
return false
