/* The containers whose end the launcher reports. */
#include "helper/spawn.h"

#include <linux/errno.h>

#define MAX_CHILDREN 16384

struct child
{
  i32 pid;
  i32 exit_fd;
};

static struct child children[MAX_CHILDREN];
static u32 child_count;

void
pc_watch_child (i32 pid, int exit_fd)
{
  if (child_count == MAX_CHILDREN)
    {
      sys_close (exit_fd);
      return;
    }
  children[child_count++] = (struct child) { .pid = pid, .exit_fd = exit_fd };
}

/* Kill all children.  A command that is PID 1 has no agent that sees the caller's end, and may clear
   PR_SET_PDEATHSIG. */
void
pc_end_children (void)
{
  for (u32 i = 0; i < child_count; i++)
    sys_kill (children[i].pid, SIGKILL_);
}

static void
report_exit (i32 pid, i32 status, const struct pc_kernel_usage *usage)
{
  for (u32 i = 0; i < child_count; i++)
    {
      if (children[i].pid != pid)
        continue;
      struct pc_record record;
      pc_exited_record (&record, status, usage);
      (void) pc_send (children[i].exit_fd, &record, sizeof record, NULL, 0, MSG_DONTWAIT_);
      sys_close (children[i].exit_fd);
      children[i] = children[--child_count];
      return;
    }
}

void
pc_reap_children (struct pc_launcher *launcher)
{
  for (;;)
    {
      i32 status = 0;
      struct pc_kernel_usage usage;
      word pid = sys_wait4 (-1, &status, WNOHANG_, &usage);
      if (pid == -EINTR)
        continue;
      if (pid < 0 && pid != -ECHILD)
        sys_exit (1);
      if (pid <= 0)
        return;
      pc_spare_ended (launcher, (i32) pid);
      report_exit ((i32) pid, status, &usage);
    }
}

int
pc_has_children (void)
{
  return child_count > 0;
}
