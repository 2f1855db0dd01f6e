-- Write the terminal states of rows of a chunk, and count them in their batch and in the service.
-- This is the only place where a row gets a terminal state.
-- Idempotent: a whole chunk is stored only if nothing of it is stored; a row only if neither it nor the chunk is.
-- A batch that was deleted, or is unknown, stores nothing. Rows of a batch that is not accepted yet are counted in the
-- service by accept_batch.lua.
--
-- KEYS[1]             the hash of the batch
-- KEYS[2]             the hash of the chunk
-- KEYS[3]             the counts of rows, see counts.lua
-- KEYS[4]             the groups of rows that wait: a group is a batch
-- ARGV[1]             the version of the model; empty if no model was used. The batch counts the rows of each version
-- ARGV[4f - 2 ...]    of field f, four values: its name ("whole" or a row number), its value (JSON), its number of rows,
--                     and how many of these failed
--
-- Returns 1 if "whole" was refused because single rows are stored already; else 0.
local batch = redis.call('HMGET', KEYS[1], 'state', 'group')
if batch[1] ~= 'running' or redis.call('HEXISTS', KEYS[2], 'whole') == 1 then
    return 0
end
if ARGV[2] == 'whole' and redis.call('EXISTS', KEYS[2]) == 1 then
    return 1
end
local done, failed = 0, 0
for i = 2, #ARGV, 4 do
    if redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) == 1 then
        done, failed = done + ARGV[i + 2], failed + ARGV[i + 3]
        local computed = ARGV[i + 2] - ARGV[i + 3]
        if ARGV[1] ~= '' and computed > 0 then
            redis.call('HSET', KEYS[1], 'model_version', ARGV[1])
            redis.call('HINCRBY', KEYS[1], 'version:' .. ARGV[1], computed)
        end
    end
end
if done > 0 then
    redis.call('HINCRBY', KEYS[1], 'done', done)
    redis.call('HINCRBY', KEYS[1], 'failed', failed)
    if batch[2] then
        count_ended(KEYS[3], KEYS[4], batch[2], 'success', done - failed)
        count_ended(KEYS[3], KEYS[4], batch[2], 'failure', failed)
    end
end
redis.call('PEXPIRE', KEYS[2], redis.call('PTTL', KEYS[1]))
return 0
