/* Cloning of a child into its namespaces and cgroup. */
#include "child.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/sched.h>

#define CLONED_NAMESPACES (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)

/* Join namespaces of other containers, before the clone: the launcher has privileges over them, the child has
   none. */
static int
join (const struct pc_plan *plan, const struct pc_fds *fds, int own[4])
{
  static const char names[][24] = { "/proc/self/ns/net", "/proc/self/ns/ipc", "/proc/self/ns/uts" };
  static const u32 types[] = { CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS };
  const struct pc_join *joins = pc_at (plan, plan->joins);

  for (u32 i = 0; i < plan->joins.size / sizeof *joins; i++)
    {
      for (u32 kind = 0; kind < COUNT (types); kind++)
        {
          if (joins[i].type != types[kind])
            continue;
          if (joins[i].fd >= fds->count || own[kind] >= 0)
            return -EBADF;
          own[kind] = (int) sys_openat (AT_FDCWD_, names[kind], O_RDONLY | O_CLOEXEC, 0);
          /* Join the own namespace first: if setns(2) fails here, returning would fail as well. */
          word error = own[kind] < 0 ? own[kind] : sys_setns (own[kind], (int) types[kind]);
          if (error < 0)
            {
              pc_close_fd (&own[kind]);
              return (int) error;
            }
          error = sys_setns (fds->fd[joins[i].fd], (int) types[kind]);
          if (error < 0)
            return (int) error;
        }
    }
  return 0;
}

static void
leave (int own[4])
{
  for (u32 i = 0; i < 3; i++)
    if (own[i] >= 0)
      {
        /* A launcher that stays in the namespace of a guest would clone later containers into it. */
        if (sys_setns (own[i], 0) < 0)
          sys_exit (1);
        pc_close_fd (&own[i]);
      }
}

static word
clone_namespaces (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                  int *pidfd)
{
  int owned = launcher->privileged && plan->namespaces & CLONE_NEWUSER;
  struct clone_args args = {
    .flags = (plan->namespaces & CLONED_NAMESPACES) | CLONE_PIDFD,
    .pidfd = (u64) (usize) pidfd,
    .exit_signal = SIGCHLD_,
  };
  if (plan->cgroup_fd != PC_NO_FD)
    {
      args.flags |= CLONE_INTO_CGROUP;
      args.cgroup = (u64) fds->fd[plan->cgroup_fd];
    }
  return owned ? pc_clone_owned (plan, &args) : sys_clone3 (&args, sizeof args);
}

void
pc_kill_and_reap (struct pc_child_handle *child)
{
  if (child->pid == 0)
    return;
  sys_pidfd_send_signal (child->pidfd, SIGKILL_, 0, 0);
  pc_close_fd (&child->pidfd);
  pc_close_fd (&child->sync);
  sys_wait4 (child->pid, 0, 0, 0);
  child->pid = 0;
}

/* Clone a child and give it its ids; 0, or -1 and the reply. */
int
pc_clone_child (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds, int spare,
                struct pc_child_handle *child, struct pc_record *reply)
{
  int sync[2];
  int own[4] = { -1, -1, -1, -1 };

  child->pidfd = -1;
  word error = sys_socketpair (AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0, sync);
  if (error < 0)
    return pc_failed (reply, PC_STEP_LAUNCHER, error, -1);
  error = join (plan, fds, own);
  word pid = error < 0 ? error : clone_namespaces (launcher, plan, fds, &child->pidfd);
  if (pid == 0)
    {
      sys_close (sync[0]);
      if (spare)
        pc_spare_child (launcher, plan, fds, sync[1]);
      pc_child (launcher, plan, fds, fds->fd[plan->control_fd], sync[1]);
    }
  leave (own);
  sys_close (sync[1]);
  if (pid < 0)
    {
      sys_close (sync[0]);
      return pc_failed (reply, error < 0 ? PC_STEP_JOIN : PC_STEP_CLONE, pid, -1);
    }
  child->pid = (i32) pid;
  child->sync = sync[0];
  error = plan->namespaces & CLONE_NEWUSER ? pc_write_maps (plan, pid) : 0;
  if (error < 0)
    {
      pc_kill_and_reap (child);
      return pc_failed (reply, PC_STEP_IDMAP, error, -1);
    }
  return 0;
}

int
pc_has_fds (const struct pc_plan *plan, const struct pc_fds *fds)
{
  if (plan->control_fd >= fds->count)
    return 0;
  if (plan->exit_fd != PC_NO_FD && plan->exit_fd >= fds->count)
    return 0;
  if (plan->cgroup_fd != PC_NO_FD && plan->cgroup_fd >= fds->count)
    return 0;
  return plan->tasks_count == 0 || plan->tasks_fd + plan->tasks_count <= fds->count;
}
