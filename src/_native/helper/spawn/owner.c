/* Ownership of user namespaces: one that belongs to an id of its container has counters and limits of its own. */
#include "child.h"

#include <linux/sched.h>

/* Return the host id of the container's id 0, or 0. */
static u64
first_id (const struct pc_plan *plan)
{
  const char *map = pc_at (plan, plan->uid_map); /* "0 FIRST COUNT" */
  u64 id = 0;

  if (plan->uid_map.size < 3 || map[0] != '0' || map[1] != ' ')
    return 0;
  for (map += 2; *map >= '0' && *map <= '9' && id <= 0xffffffffull; map++)
    id = id * 10 + (u64) (*map - '0');
  return id;
}

/* Set the rlimits that a user namespace takes over from its creator.  They bound all ids of the namespace
   together, and are charged to the creator's id, so they are exact only for an id that belongs to one container. */
static int
take_counted_limits (const struct pc_plan *plan)
{
  static const u32 counted[] = { RLIMIT_SIGPENDING_, RLIMIT_MSGQUEUE_, RLIMIT_MEMLOCK_ };
  static u64 own[COUNT (counted)][2], now[COUNT (counted)];
  const struct pc_security *security = pc_at (plan, plan->security);
  const struct pc_rlimit *limits = pc_at (security, security->rlimits);

  for (u32 kind = 0; kind < COUNT (counted); kind++)
    {
      if (own[kind][1] == 0)
        {
          word error = sys_prlimit64 (0, counted[kind], 0, own[kind]);
          if (error < 0)
            return (int) error;
          now[kind] = own[kind][0];
        }
      u64 wanted = own[kind][0];
      for (u32 i = 0; i < security->rlimits.size / sizeof *limits; i++)
        if (limits[i].resource == counted[kind])
          wanted = limits[i].hard < own[kind][1] ? limits[i].hard : own[kind][1];
      if (wanted == now[kind])
        continue;
      u64 limit[2] = { wanted, own[kind][1] };
      word error = sys_prlimit64 (0, counted[kind], limit, 0);
      if (error < 0)
        return (int) error;
      now[kind] = wanted;
    }
  return 0;
}

word
pc_clone_owned (const struct pc_plan *plan, const struct clone_args *args)
{
  u64 id = first_id (plan);
  word error = take_counted_limits (plan);

  if (error < 0)
    return error;
  /* The kernel charges the objects of a user namespace (inotify watches, timers, namespaces) to its creator as
     well.  An id of the container's own block separates them from those of the host's root and of other
     containers. */
  if (id == 0)
    return sys_clone3 (args, sizeof *args);
  error = sys_setresuid (-1, id, -1);
  if (error < 0)
    return error;
  word pid = sys_clone3 (args, sizeof *args);
  if (pid != 0 && sys_setresuid (-1, 0, -1) < 0)
    sys_exit (1);
  return pid;
}
