-- Reads everything at one moment.
--
-- KEYS: the head, the records.
-- Returns: number, epoch; then fields and records in turn.
local head = redis.call('HMGET', KEYS[1], 'number', 'epoch')
return {{head[1] or '0', head[2] or ''}, redis.call('HGETALL', KEYS[2])}
