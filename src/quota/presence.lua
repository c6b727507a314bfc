-- Shows a replica.
--
-- KEYS: the sorted set of replicas by when they were seen, what is known of the data.
-- ARGV: replica, microseconds after which a silent replica is gone, when the data began as the replica knows it (0 for
--       not at all), settling time.
-- Returns: time, number of replicas, when the data began, when it settled. Times are microseconds.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[2])))
local born, settled = birth(KEYS[2], tonumber(ARGV[3]), tonumber(ARGV[4]), now)
return {now, redis.call('ZCARD', KEYS[1]), born, settled}
