/* The spare: a child that is cloned ahead of its plan, so that a start does not wait for the clone. */
#include "child.h"

#include <linux/errno.h>

/* The child that waits takes the plan. */
int
pc_claim_spare (struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                struct pc_child_handle *child, struct pc_record *reply)
{
  if (launcher->spare.pid == 0)
    return pc_failed (reply, PC_STEP_SPARE, -ESRCH, -1);
  *child = launcher->spare;
  launcher->spare.pid = 0;
  int error = pc_send (child->sync, plan, plan->size, &fds->fd[plan->control_fd], 1, 0);
  if (error < 0)
    {
      pc_kill_and_reap (child);
      return pc_failed (reply, PC_STEP_SPARE, error, -1);
    }
  return 0;
}

void
pc_spare_ended (struct pc_launcher *launcher, i32 pid)
{
  if (launcher->spare.pid != pid)
    return;
  pc_close_fd (&launcher->spare.pidfd);
  pc_close_fd (&launcher->spare.sync);
  launcher->spare.pid = 0;
}

void
pc_prepare_spare (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds)
{
  struct pc_record unsaid = { .kind = 0 };

  pc_kill_and_reap (&launcher->spare);
  if (!pc_has_fds (plan, fds) || pc_clone_child (launcher, plan, fds, 1, &launcher->spare, &unsaid) < 0)
    launcher->spare.pid = 0;
}
