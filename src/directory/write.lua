-- Changes one record, if it still is what was expected.
--
-- KEYS: the head (a hash: number, epoch, base), the records.
-- ARGV: epoch and number as the replica knows them, an epoch to begin with, 1 if nothing else may have changed either,
--       field, 1 if a record is expected, that record, 1 if there shall be one, the new record.
-- Returns: 1 when it was done, 0 when something else was found, -1 when this data is not what the replica knows; number.
-- A number that Redis itself writes, and an epoch of ours. Whatever else stands there was lost.
local function is_sound(number, epoch)
    return #number <= 15 and (number == '0' or number:find('^[1-9]%d*$') ~= nil)
        and #epoch <= 64 and epoch:find('^%w*$') ~= nil
end

local head = redis.call('HMGET', KEYS[1], 'number', 'epoch')
local number, epoch = tonumber(head[1] or '0') or 0, head[2] or ''
if not is_sound(head[1] or '0', epoch) then
    return {-1, 0}
end
if epoch ~= ARGV[1] or number < tonumber(ARGV[2]) then
    return {-1, number}
end
local found = redis.call('HGET', KEYS[2], ARGV[5])
if (ARGV[4] == '1' and number ~= tonumber(ARGV[2])) or (ARGV[6] == '1') ~= (found ~= false)
    or (found and found ~= ARGV[7]) then
    return {0, number}
end
if epoch == '' then
    redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'base', '0')
end
if ARGV[8] == '1' then
    redis.call('HSET', KEYS[2], ARGV[5], ARGV[9])
else
    redis.call('HDEL', KEYS[2], ARGV[5])
end
return {1, redis.call('HINCRBY', KEYS[1], 'number', 1)}
