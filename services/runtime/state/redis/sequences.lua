#!lua name=statestream_v1
-- The state store inside Redis: one hash per sequence, replaced by compare-and-set in one call.
--
-- Fields of the hash:
--   p  position, "epoch:step". Compared as text: both may pass 2^53, where Lua's numbers stop being exact.
--   r  the record, as services/runtime/state/format.py writes it
--   b  when the sequence began, milliseconds since 1970 by this server's clock
--   x  when it expires, likewise. The key itself lives longer by the retention time, so that clients can be told
--      "expired" instead of "not found" and repeats of the last steps are answered.
-- and of a sequence with checkpoints also:
--   k  "epoch:step step ...": at which steps earlier records are kept, ascending, all before that of `p`. They only
--      count in this epoch. So a start by a version that does not know them leaves none behind.
--   c<step>  each of these records
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

-- Whether step `one` comes before step `other`; exact for any number of digits.
local function before(one, other)
  return #one < #other or (#one == #other and one < other)
end

-- "epoch:" and "step" of a position, or "epoch:" and "step step ..." of the field `k`; '' for what is not there.
local function halves(text)
  local epoch, rest = string.match(text or '', '^(%d+:)(.*)$')
  return epoch or '', rest or ''
end

-- The steps of checkpoints that count at `position`.
local function steps_kept(kept, position)
  local epoch, steps = halves(kept)
  return epoch == halves(position) and steps or ''
end

-- What a client is told of a sequence: record, position, when it expires, whether it has, steps of checkpoints.
local function found(record, position, expires_at, kept, now)
  local expired = now >= (tonumber(expires_at) or 0)
  return { record or '', position or '', expires_at or '0', expired and 1 or 0, steps_kept(kept, position) }
end

-- Makes a checkpoint of the record at position `old`, if `count` is not 0, and leaves of all no more than `count` and
-- those before the step of position `new`; none where `drop` is true.
local function keep_checkpoints(key, kept, old, new, count, drop)
  local _, old_step = halves(old)
  local new_epoch, new_step = halves(new)
  local steps, stay = {}, {}
  if not drop then
    for step in string.gmatch(steps_kept(kept, old), '%d+') do
      if before(step, new_step) then
        steps[#steps + 1] = step
      end
    end
    local record = count > 0 and before(old_step, new_step) and redis.call('HGET', key, 'r')
    if record then
      redis.call('HSET', key, 'c' .. old_step, record)
      steps[#steps + 1] = old_step
    end
    while count > 0 and #steps > count do
      table.remove(steps, 1)
    end
  end
  for _, step in ipairs(steps) do
    stay[step] = true
  end
  local _, listed = halves(kept)
  for step in string.gmatch(listed, '%d+') do
    if not stay[step] then
      redis.call('HDEL', key, 'c' .. step)
    end
  end
  local written = #steps > 0 and new_epoch .. table.concat(steps, ' ')
  if written and written ~= kept then
    redis.call('HSET', key, 'k', written)
  elseif kept and not written then
    redis.call('HDEL', key, 'k')
  end
end

-- args: expected position ('' for none), new position, begins anew (0 or 1), ended (0 or 1),
--       checkpoints to keep (0: as they are), idle, lifetime and retention time in milliseconds, record
-- Returns 1 if it was put; nil if nothing is there and something was expected; else what is there.
local function commit(keys, args)
  local key = keys[1]
  local expected, position, anew, ended, count = args[1], args[2], args[3] == '1', args[4] == '1', tonumber(args[5])
  local idle, lifetime, retention = tonumber(args[6]), tonumber(args[7]), tonumber(args[8])
  local now = now_ms()
  local stands = redis.call('HMGET', key, 'p', 'x', 'b', 'k')
  if (stands[1] or '') ~= expected then
    if not stands[1] then
      return false
    end
    return found(redis.call('HGET', key, 'r'), stands[1], stands[2], stands[4], now)
  end
  local began_at = now
  if stands[1] and not anew then
    if now >= (tonumber(stands[2]) or 0) then
      return found(redis.call('HGET', key, 'r'), stands[1], stands[2], stands[4], now)
    end
    began_at = tonumber(stands[3]) or now
  end
  if stands[4] or (count > 0 and stands[1]) then
    keep_checkpoints(key, stands[4], stands[1], position, count, anew or ended)
  end
  local expires_at, forget_at
  if ended then
    expires_at = now + retention
    forget_at = expires_at
  else
    expires_at = math.min(now + idle, began_at + lifetime)
    forget_at = expires_at + retention
  end
  redis.call('HSET', key, 'p', position, 'r', args[9], 'x', whole(expires_at), 'b', whole(began_at))
  redis.call('PEXPIREAT', key, whole(forget_at))
  return 1
end

-- Returns nil if nothing is there.
local function load(keys, _)
  local stands = redis.call('HMGET', keys[1], 'r', 'p', 'x', 'k')
  if not stands[1] and not stands[2] then
    return false
  end
  return found(stands[1], stands[2], stands[3], stands[4], now_ms())
end

-- args: step of the checkpoint
-- Returns nil if no such checkpoint is there; else as `load`, with the checkpoint's record.
local function checkpoint(keys, args)
  local stands = redis.call('HMGET', keys[1], 'c' .. args[1], 'p', 'x', 'k')
  for step in string.gmatch(steps_kept(stands[4], stands[2]), '%d+') do
    if step == args[1] then
      return found(stands[1], stands[2], stands[3], nil, now_ms())
    end
  end
  return false
end

-- args: cursor of SCAN, pattern, how many keys to look at
-- Returns which run of a server this is, for a cursor means nothing to another one; the next cursor; keys of hashes.
local function names(_, args)
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local page = redis.call('SCAN', args[1], 'MATCH', args[2], 'COUNT', args[3], 'TYPE', 'hash')
  return { run or '', page[1], page[2] }
end

redis.register_function('statestream_v1_commit', commit)
-- A last step makes its record smaller, so a server that is out of memory takes it all the same.
redis.register_function({ function_name = 'statestream_v1_end', callback = commit, flags = { 'allow-oom' } })
redis.register_function({ function_name = 'statestream_v1_load', callback = load, flags = { 'no-writes' } })
redis.register_function({ function_name = 'statestream_v1_checkpoint', callback = checkpoint, flags = { 'no-writes' } })
redis.register_function({ function_name = 'statestream_v1_names', callback = names, flags = { 'no-writes' } })
