-- Shows a replica.
--
-- KEYS: the sorted set of replicas by when they were seen, when the data began.
-- ARGV: replica, microseconds after which a silent replica is gone.
-- Returns: time, number of replicas, when the data began. Times are microseconds.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - tonumber(ARGV[2])))
redis.call('SET', KEYS[2], string.format('%.0f', now), 'NX')
return {now, redis.call('ZCARD', KEYS[1]), tonumber(redis.call('GET', KEYS[2]))}
