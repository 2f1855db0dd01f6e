-- Mark a batch as deleted, so that no row of it is stored from now on.
--
-- KEYS[1]   the hash of the batch
-- ARGV      none
--
-- Returns the number of chunks, whose keys the caller unlinks; -1 if the batch is unknown.
if redis.call('EXISTS', KEYS[1]) == 0 then
    return -1
end
redis.call('HSET', KEYS[1], 'state', 'deleted')
return tonumber(redis.call('HGET', KEYS[1], 'chunks'))
