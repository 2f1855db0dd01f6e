-- Write the QUEUED marker of predictions whose ids have no state yet.
--
-- KEYS[i]        key of prediction i
-- ARGV[2i - 1]   TTL of marker i, in seconds
-- ARGV[2i]       marker i: JSON in Celery's form
--
-- Returns nothing.
for i, key in ipairs(KEYS) do
    redis.call('SET', key, ARGV[2 * i], 'NX', 'EX', ARGV[2 * i - 1])
end
