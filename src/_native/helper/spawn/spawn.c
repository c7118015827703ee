/* The launcher's part in a start: a child, its mount sources, the reply. */
#include "child.h"

#include <linux/errno.h>

int
pc_spawn (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds,
          struct pc_record *reply)
{
  struct pc_born born = { 0, -1, -1 };

  if (!pc_has_fds (plan, fds))
    return pc_failed (reply, PC_STEP_PLAN, -EBADF, -1);
  int error = plan->flags & PC_PLAN_SPARE ? pc_claim_spare (launcher, plan, fds, &born, reply)
                                          : pc_clone_child (launcher, plan, fds, 0, &born, reply);
  if (error < 0)
    return -1;
  if (pc_send_sources (launcher, plan, fds, born.pid, born.sync, reply) < 0)
    {
      pc_kill_and_reap (&born);
      return -1;
    }
  pc_close_fd (&born.sync);
  reply->kind = PC_RECORD_STARTED;
  reply->step = 0;
  reply->error = 0;
  reply->value = born.pid;
  if (plan->exit_fd != PC_NO_FD)
    pc_watch_child (born.pid, pc_steal_fd (&fds->fd[plan->exit_fd]));
  return born.pidfd;
}
