/* Attributes that a process inherits from its parent.  They are set to defined values once per launcher, so that a
   container's do not depend on the caller's.  Best effort where raising one needs privileges. */
#include "helper/spawn.h"

#include <linux/fcntl.h>
#include <linux/prctl.h>
#include <linux/resource.h>

#define UNLIMITED (~0ull)
#define STACK_SIZE (8ull << 20) /* _STK_LIM of the kernel */
#define TIMER_SLACK 50000       /* nanoseconds: that of init_task */
#define NICE_ZERO 20            /* as getpriority(2) of the kernel has it */

/* Return 1 for limits of kernel memory and counters that the caller's user shares: the caller's hard limit is
   kept. */
static int
is_shared (u32 resource)
{
  return resource == RLIMIT_NPROC || resource == RLIMIT_NOFILE || resource == RLIMIT_MEMLOCK
         || resource == RLIMIT_SIGPENDING || resource == RLIMIT_MSGQUEUE;
}

static u64
soft_limit (u32 resource, u64 hard)
{
  return resource == RLIMIT_STACK && hard > STACK_SIZE ? STACK_SIZE : hard;
}

/* Raising a hard limit needs CAP_SYS_RESOURCE on the host.  Without it, the soft limit becomes the caller's hard
   limit.  Guest processes get the limits of their security settings later. */
static void
reset_rlimits (void)
{
  for (u32 resource = 0; resource < RLIM_NLIMITS; resource++)
    {
      u64 old[2];
      if (sys_prlimit64 (0, resource, 0, old) < 0)
        continue;
      u64 hard = is_shared (resource) ? old[1] : UNLIMITED;
      if (resource == RLIMIT_NICE || resource == RLIMIT_RTPRIO)
        hard = 0;
      u64 wanted[2] = { soft_limit (resource, hard), hard };
      u64 kept[2] = { soft_limit (resource, old[1]), old[1] };
      if (sys_prlimit64 (0, resource, wanted, 0) < 0)
        sys_prlimit64 (0, resource, kept, 0);
    }
}

static void
reset_scheduling (void)
{
  static u64 processors[128]; /* 8192, the most that Linux can be built for */
  struct
  {
    i32 priority;
  } normal = { 0 };

  if ((raw1 (__NR_sched_getscheduler, 0) & 0xff) != 0 /* SCHED_OTHER */)
    raw3 (__NR_sched_setscheduler, 0, 0, &normal);
  if (raw2 (__NR_getpriority, 0, 0) != NICE_ZERO)
    raw3 (__NR_setpriority, 0, 0, 0);
  raw3 (__NR_ioprio_set, 1 /* IOPRIO_WHO_PROCESS */, 0, 0);
  memset (processors, 0xff, sizeof processors);
  raw3 (__NR_sched_setaffinity, 0, sizeof processors, processors); /* the kernel cuts it to its cpuset */
  raw3 (__NR_set_mempolicy, 0 /* MPOL_DEFAULT */, 0, 0);
  sys_prctl (PR_SET_TIMERSLACK, TIMER_SLACK, 0);
}

static void
reset_oom_score (void)
{
  char text[8] = { 0 };
  cleanup_fd int fd = (int) sys_openat (AT_FDCWD, "/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC, 0);

  if (fd >= 0 && sys_read (fd, text, sizeof text - 1) > 0 && text[0] != '0')
    (void) sys_write (fd, "0", 1);
}

void
pc_reset_ambient (void)
{
  sys_umask (022);
  reset_rlimits ();
  reset_scheduling ();
  reset_oom_score ();
  raw1 (__NR_personality, 0);
  sys_prctl (PR_SET_THP_DISABLE, 0, 0);
  sys_prctl (PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0);
}
