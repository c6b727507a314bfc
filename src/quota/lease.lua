-- Takes in what a replica holds as granted, and grants more.
--
-- KEYS: what is known of the data, sequence numbers, then one hash per counter.
-- ARGV: replica, sequence number, born as the replica knows it (0 for not at all), settling time, number of replicas;
--       then per counter: kind (w window, h held), limit, granted so far, wanted, least of use, welcome beyond,
--       and for a window its start and end, for what is held 0 and the time it is held. Times are microseconds.
-- Returns: status (0 good, 1 settling, 2 out of order), time, born; then per counter: granted on top, left for others,
--          1 if anybody was refused a place a moment ago; or -1, the time until the window begins, 0.
--
-- Where somebody was refused a place, `wanted` stands among the replicas for a while: those who have one to spare give it
-- back at once.
--
-- A window's hash holds `s`, the sum over replicas, and one field per replica. What a replica states is absolute, so
-- saying it twice changes nothing, and saying it to a server that lost its data restores it.
local replica, sequence, known = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local settle, replicas = tonumber(ARGV[4]), tonumber(ARGV[5])
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local text = function(number) return string.format('%.0f', number) end
local want_lasts = 1000000

local last = tonumber(redis.call('HGET', KEYS[2], replica) or '0') or 0
if sequence <= last then
    return {2, now, known}
end
redis.call('HSET', KEYS[2], replica, text(sequence))
redis.call('EXPIRE', KEYS[2], 86400)

local born, settled = birth(KEYS[1], known, settle, now)
local status = 0
if now < settled then
    status = 1
end

local reply = {status, now, born}
for i = 3, #KEYS do
    local key, at = KEYS[i], 5 + (i - 3) * 8
    local kind, limit, granted = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
    local want, least, extra = tonumber(ARGV[at + 4]), tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
    local first, finish = tonumber(ARGV[at + 7]), tonumber(ARGV[at + 8])
    if kind == 'w' and now < first then
        reply[#reply + 1] = -1
        reply[#reply + 1] = first - now
        reply[#reply + 1] = 0
    elseif kind == 'w' and now >= finish then
        reply[#reply + 1] = -1
        reply[#reply + 1] = 0
        reply[#reply + 1] = 0
    else
        local sum, wanted = 0, 0
        if kind == 'w' then
            local old = tonumber(redis.call('HGET', key, replica) or '0') or 0
            sum = (tonumber(redis.call('HGET', key, 's') or '0') or 0) + granted - old
        else
            local fields = redis.call('HGETALL', key)
            for f = 1, #fields, 2 do
                local count, ends = string.match(fields[f + 1], '^(%d+) (%d+)$')
                if not ends or tonumber(ends) <= now then
                    redis.call('HDEL', key, fields[f])
                elseif fields[f] == 'wanted' then
                    wanted = 1
                elseif fields[f] ~= replica then
                    sum = sum + tonumber(count)
                end
            end
            sum = sum + granted
        end
        if sum < 0 then
            sum = 0
        end
        local left = limit - sum
        if left < 0 then
            left = 0
        end
        local more = 0
        if status == 0 then
            if left >= want then
                more = want
                local share = math.floor((left - want) / (2 * replicas))
                if extra < share then
                    share = extra
                end
                more = more + share
            elseif left >= least then
                more = left
            end
        end
        if kind == 'w' then
            redis.call('HSET', key, replica, text(granted + more), 's', text(sum + more))
            redis.call('PEXPIREAT', key, math.floor(finish / 1000) + 60000)
        else
            if granted + more > 0 then
                redis.call('HSET', key, replica, text(granted + more) .. ' ' .. text(now + finish))
            else
                redis.call('HDEL', key, replica)
            end
            if status == 0 and more < want then
                wanted = 1
                redis.call('HSET', key, 'wanted', '0 ' .. text(now + want_lasts))
            end
            redis.call('PEXPIRE', key, math.floor(finish / 1000) * 2)
        end
        reply[#reply + 1] = more
        reply[#reply + 1] = left - more
        reply[#reply + 1] = wanted
    end
end
return reply
