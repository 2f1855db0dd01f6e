-- Count the predictions of a group as accepted, unless they were counted: the broker has confirmed their message.
--
-- KEYS[1]   the counts of predictions, see counts.lua
-- ARGV[1]   the number of the group
--
-- Returns nothing.
accept_group(KEYS[1], ARGV[1])
