-- Writes back what a replica knows, if it is not there any more.
--
-- KEYS: the head (a hash: number, epoch, base), the records.
-- ARGV: epoch and number as the replica knows them, the epoch that begins; then fields and records in turn.
-- Returns: 1 when it was written, 0 when nothing was missing.
--
-- `base` is the number that an epoch was restored from: who knew more than that restores again.
-- A number that Redis itself writes, and an epoch of ours. Whatever else stands there was lost.
local function is_sound(number, epoch)
    return #number <= 15 and (number == '0' or number:find('^[1-9]%d*$') ~= nil)
        and #epoch <= 64 and epoch:find('^%w*$') ~= nil
end

local head = redis.call('HMGET', KEYS[1], 'number', 'epoch', 'base')
local number, epoch, base = tonumber(head[1] or '0') or 0, head[2] or '', tonumber(head[3] or '0') or 0
local known = tonumber(ARGV[2])
local sound = is_sound(head[1] or '0', epoch)
if not sound then
    number = 0
elseif (epoch == ARGV[1] and number >= known) or (epoch ~= ARGV[1] and base >= known) then
    return 0
end
-- Within one epoch a lower number is an older state of the same history, and right after a restoration there was no
-- change; otherwise somebody has gone on without knowing these records, and only what is missing is added. So it is
-- where the version was damaged: the records may be as they were.
local is_older = sound and (epoch == ARGV[1] or epoch == '' or number == base + 1)
if is_older then
    redis.call('DEL', KEYS[2])
end
for i = 4, #ARGV, 2 do
    redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1])
end
local beginning = string.format('%.0f', math.max(number, known) + 1)
redis.call('HSET', KEYS[1], 'number', beginning, 'epoch', ARGV[3], 'base', string.format('%.0f', math.max(number, known)))
return 1
