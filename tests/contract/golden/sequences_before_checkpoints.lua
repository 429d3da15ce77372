#!lua name=statestream_v1
-- The state store inside Redis: one hash per sequence, replaced by compare-and-set in one call.
--
-- Fields of the hash:
--   p  position, "epoch:step". Compared as text: both may pass 2^53, where Lua's numbers stop being exact.
--   r  the record, as services/runtime/state/format.py writes it
--   b  when the epoch began, milliseconds since 1970 by this server's clock
--   x  when it expires, likewise. The key itself lives longer by the retention time, so that clients can be told
--      "expired" instead of "not found" and repeats of the last steps are answered.
--
-- The server's clock is the only one that counts: replicas need not agree on the time.
-- The client adds a digest of this text to every `statestream_v1`, so different texts never share a name.

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- What a client is told of a sequence: record, position, when it expires, whether it has.
local function found(record, position, expires_at, now)
  local expired = now >= (tonumber(expires_at) or 0)
  return { record or '', position or '', expires_at or '0', expired and 1 or 0 }
end

-- args: expected position ('' for none), new position, new epoch (0 or 1), ended (0 or 1),
--       idle, lifetime and retention time in milliseconds, record
-- Returns 1 if it was put; nil if nothing is there and something was expected; else what is there.
local function commit(keys, args)
  local key = keys[1]
  local expected, position, new_epoch, ended = args[1], args[2], args[3] == '1', args[4] == '1'
  local idle, lifetime, retention = tonumber(args[5]), tonumber(args[6]), tonumber(args[7])
  local now = now_ms()
  local before = redis.call('HMGET', key, 'p', 'x', 'b')
  if (before[1] or '') ~= expected then
    if not before[1] then
      return false
    end
    return found(redis.call('HGET', key, 'r'), before[1], before[2], now)
  end
  local began_at = now
  if before[1] and not new_epoch then
    if now >= (tonumber(before[2]) or 0) then
      return found(redis.call('HGET', key, 'r'), before[1], before[2], now)
    end
    began_at = tonumber(before[3]) or now
  end
  local expires_at, forget_at
  if ended then
    expires_at = now + retention
    forget_at = expires_at
  else
    expires_at = math.min(now + idle, began_at + lifetime)
    forget_at = expires_at + retention
  end
  redis.call('HSET', key, 'p', position, 'r', args[8], 'x', whole(expires_at), 'b', whole(began_at))
  redis.call('PEXPIREAT', key, whole(forget_at))
  return 1
end

local function load(keys, _)
  local kept = redis.call('HMGET', keys[1], 'r', 'p', 'x')
  if not kept[1] and not kept[2] then
    return false
  end
  return found(kept[1], kept[2], kept[3], now_ms())
end

redis.register_function('statestream_v1_commit', commit)
-- A last step makes its record smaller, so a server that is out of memory takes it all the same.
redis.register_function({ function_name = 'statestream_v1_end', callback = commit, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'statestream_v1_load', callback = load, flags = { 'no-writes' } })
