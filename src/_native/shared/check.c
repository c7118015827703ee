/* Validation of received buffers: every reference of a plan, a command or security settings stays inside. */
#include "plan.h"

#include <linux/errno.h>

/* Bounds of the time that a check takes. */
#define MOST_OPS 4096
#define LONGEST_TARGET 4096

static int
ref_ok (const u8 *base, usize size, struct pc_ref ref, usize unit)
{
  if (ref.offset > size || ref.size > size - ref.offset)
    return 0;
  if (unit > 0)
    return ref.size % unit == 0 && ref.offset % 8 == 0;
  /* A string: its NUL is inside the buffer, and there is none before it. */
  if (ref.size == size - ref.offset || base[ref.offset + ref.size] != 0)
    return 0;
  for (u32 i = 0; i < ref.size; i++)
    if (base[ref.offset + i] == 0)
      return 0;
  return 1;
}

static int
strings_ok (const u8 *base, usize size, struct pc_ref ref, u32 count)
{
  if (ref.offset > size || ref.size > size - ref.offset || count > ref.size)
    return 0;
  u32 seen = 0;
  for (u32 i = 0; i < ref.size; i++)
    seen += base[ref.offset + i] == 0;
  return seen == count && (count == 0 || base[ref.offset + ref.size - 1] == 0);
}

int
pc_security_check (const void *buffer, usize size)
{
  const struct pc_security *security = buffer;

  if (size < sizeof *security || security->magic != PC_SECURITY_MAGIC || security->version != PC_VERSION
      || security->size != size)
    return -EINVAL;
  if (!ref_ok (buffer, size, security->rlimits, sizeof (struct pc_rlimit)))
    return -EINVAL;
  if (!ref_ok (buffer, size, security->seccomp, 8) || !ref_ok (buffer, size, security->inherited, 8))
    return -EINVAL;
  return 0;
}

int
pc_exec_check (const void *buffer, usize size)
{
  const struct pc_exec *exec = buffer;

  if (size < sizeof *exec || exec->magic != PC_EXEC_MAGIC || exec->version != PC_VERSION || exec->size != size
      || exec->argc == 0)
    return -EINVAL;
  if (!strings_ok (buffer, size, exec->argv, exec->argc) || !strings_ok (buffer, size, exec->env, exec->envc))
    return -EINVAL;
  if (!ref_ok (buffer, size, exec->workdir, 0) || !ref_ok (buffer, size, exec->search, 0))
    return -EINVAL;
  if (!ref_ok (buffer, size, exec->groups, 4) || !ref_ok (buffer, size, exec->rlimits, sizeof (struct pc_rlimit)))
    return -EINVAL;
  return 0;
}

static int
source_ok (const u8 *base, usize size, const struct pc_source *source)
{
  if (!ref_ok (base, size, source->path, 0))
    return 0;
  return source->fd == PC_NO_FD || source->fd < PC_MAX_FDS;
}

static int
ops_ok (const struct pc_plan *plan, const u8 *base, usize size)
{
  const struct pc_op *ops = pc_at (base, plan->ops);
  u32 sources = plan->sources.size / sizeof (struct pc_source);

  if (plan->ops.size / sizeof *ops > MOST_OPS)
    return 0;
  for (u32 i = 0; i < plan->ops.size / sizeof *ops; i++)
    {
      const struct pc_op *op = &ops[i];
      if (op->kind == 0 || op->kind >= PC_OP_KIND_COUNT)
        return 0;
      if (op->source > sources || op->count > sources - op->source)
        return 0;
      if (op->target.size > LONGEST_TARGET || !ref_ok (base, size, op->target, 0))
        return 0;
      /* Data may be any bytes (file content), but is inside the buffer and followed by a NUL. */
      if (op->data.offset >= size || op->data.size >= size - op->data.offset
          || base[op->data.offset + op->data.size] != 0)
        return 0;
    }
  return 1;
}

static int
fds_ok (const struct pc_plan *plan)
{
  if (plan->control_fd >= PC_MAX_FDS)
    return 0;
  if (plan->exit_fd != PC_NO_FD && plan->exit_fd >= PC_MAX_FDS)
    return 0;
  if (plan->cgroup_fd != PC_NO_FD && plan->cgroup_fd >= PC_MAX_FDS)
    return 0;
  if (plan->store_fd != PC_NO_FD && plan->store_fd >= PC_MAX_FDS)
    return 0;
  return plan->tasks_count <= 16 && (plan->tasks_count == 0 || plan->tasks_fd < PC_MAX_FDS - plan->tasks_count);
}

int
pc_plan_check (const void *buffer, usize size)
{
  const struct pc_plan *plan = buffer;

  if (size < sizeof *plan || plan->magic != PC_PLAN_MAGIC || plan->version != PC_VERSION || plan->size != size
      || !fds_ok (plan))
    return -EINVAL;
  if (!ref_ok (buffer, size, plan->uid_map, 0) || !ref_ok (buffer, size, plan->gid_map, 0)
      || !ref_ok (buffer, size, plan->hostname, 0) || !ref_ok (buffer, size, plan->counters, 0)
      || !ref_ok (buffer, size, plan->ops, sizeof (struct pc_op))
      || !ref_ok (buffer, size, plan->sources, sizeof (struct pc_source))
      || !ref_ok (buffer, size, plan->joins, sizeof (struct pc_join)))
    return -EINVAL;
  if (!source_ok (buffer, size, &plan->store))
    return -EINVAL;

  const struct pc_source *sources = pc_at (buffer, plan->sources);
  for (u32 i = 0; i < plan->sources.size / sizeof *sources; i++)
    if (!source_ok (buffer, size, &sources[i]))
      return -EINVAL;
  const struct pc_join *joins = pc_at (buffer, plan->joins);
  for (u32 i = 0; i < plan->joins.size / sizeof *joins; i++)
    if (joins[i].fd >= PC_MAX_FDS)
      return -EINVAL;
  if (!ops_ok (plan, buffer, size))
    return -EINVAL;
  if (!ref_ok (buffer, size, plan->security, 8) || !ref_ok (buffer, size, plan->command, 4))
    return -EINVAL;
  if (pc_security_check (pc_at (buffer, plan->security), plan->security.size) < 0)
    return -EINVAL;
  if ((plan->flags & PC_PLAN_COMMAND_IS_INIT)
      && pc_exec_check (pc_at (buffer, plan->command), plan->command.size) < 0)
    return -EINVAL;
  return 0;
}
