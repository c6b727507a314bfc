-- Whether this server knows all that it was told. Part of the other scripts.
--
-- A server that has no data, or that runs anew, or that a replica remembers with other data, may have forgotten what it
-- was told last. It then settles: replicas are given time to say what they hold before anything is granted.
--
-- Takes: the key of what is known of the data, when the data began as the replica knows it (0 for not at all), the
-- settling time, the time. Returns when the data began, and when it settled. Times are microseconds.
local function birth(key, known, settle, now)
    local text = function(number) return string.format('%.0f', number) end
    local held = redis.call('HMGET', key, 'born', 'settled', 'run')
    local born, settled = tonumber(held[1] or nil), tonumber(held[2] or nil)
    -- A user that may not ask has to do without.
    local info = redis.pcall('INFO', 'server')
    local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or held[3] or ''
    if not born or not settled then
        born, settled = now, now + settle
    elseif run ~= held[3] then
        settled = math.max(settled, now + settle)
    elseif known ~= 0 and known ~= born then
        settled = math.max(settled, born + settle)
    else
        return born, settled
    end
    redis.call('HSET', key, 'born', text(born), 'settled', text(settled), 'run', run)
    return born, settled
end
