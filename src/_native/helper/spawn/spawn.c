/* The launcher's part in a start: a child, its mount sources, the reply. */
#include "child.h"

#include <linux/errno.h>

int
pc_spawn (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds, struct pc_record *reply)
{
  struct pc_child_handle child = { 0, -1, -1 };

  if (!pc_has_fds (plan, fds))
    return pc_failed (reply, PC_STEP_PLAN, -EBADF, -1);
  int error = plan->flags & PC_PLAN_SPARE ? pc_claim_spare (launcher, plan, fds, &child, reply)
                                          : pc_clone_child (launcher, plan, fds, 0, &child, reply);
  if (error < 0)
    return -1;
  if (pc_send_sources (launcher, plan, fds, child.pid, child.sync, reply) < 0)
    {
      pc_kill_and_reap (&child);
      return -1;
    }
  pc_close_fd (&child.sync);
  reply->kind = PC_RECORD_STARTED;
  reply->step = 0;
  reply->error = 0;
  reply->value = child.pid;
  if (plan->exit_fd != PC_NO_FD)
    pc_watch_child (child.pid, pc_steal_fd (&fds->fd[plan->exit_fd]));
  return child.pidfd;
}
