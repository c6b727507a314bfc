-- Adds usage, once for each number.
--
-- KEYS: last number by replica, sorted set of days, then one hash per day.
-- ARGV: replica, number, seconds that a day is kept, number of days, the days;
--       then per row: place of its day in KEYS, names, requests, input tokens, output tokens, spend.
-- Returns: how many amounts could not be added, because of what stands in their place; -1 when all had been before.
local last = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') or 0
if tonumber(ARGV[2]) <= last then
    return -1
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], 86400)
local days = tonumber(ARGV[4])
for i = 1, days do
    redis.call('ZADD', KEYS[2], 0, ARGV[4 + i])
end
local failed = 0
local names = {'requests', 'input', 'output', 'spend'}
for i = 5 + days, #ARGV, 6 do
    local key = KEYS[tonumber(ARGV[i])]
    for n = 1, 4 do
        if ARGV[i + 1 + n] ~= '0' then
            -- One that is refused costs no other.
            local added = redis.pcall('HINCRBY', key, ARGV[i + 1] .. '\31' .. names[n], ARGV[i + 1 + n])
            if type(added) == 'table' then
                failed = failed + 1
            end
        end
    end
end
for i = 1, days do
    redis.call('EXPIRE', KEYS[2 + i], ARGV[3])
end
return failed
