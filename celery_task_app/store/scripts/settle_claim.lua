-- Bind or free an Idempotency-Key, if the caller still holds its claim.
--
-- KEYS[1]   the key
-- ARGV[1]   the caller's claim: JSON
-- ARGV[2]   the accepted claim that replaces it; empty: the key is freed
-- ARGV[3]   TTL of the accepted claim, in seconds
--
-- Returns nothing that a caller reads.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    if ARGV[2] == '' then
        return redis.call('DEL', KEYS[1])
    end
    return redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
end
