/* The last controls before a guest's execve; shared by the agent and by a command that is PID 1. */
#ifndef PC_IDENTITY_H
#define PC_IDENTITY_H

#include "plan.h"
#include "wire.h"

/* Where a control failed; error is 0 while none did. */
struct pc_failure
{
  u32 step;
  i32 error;
};

/* Applies everything from rlimits to seccomp, then executes.  Returns only on failure. */
void pc_become_guest (const struct pc_security *security, const struct pc_exec *exec,
                      struct pc_failure *failure);
/* Drop all capabilities but `keep` from every set, the bounding set first. */
int pc_limit_capabilities (u64 keep, u32 securebits, struct pc_failure *failure);
/* The controls of its processes that an agent can bear itself: what it starts inherits them. */
int pc_confine_agent (const struct pc_security *security, struct pc_failure *failure);
int pc_apply_landlock (const struct pc_security *security, int base);
int pc_set_stdio (const int fds[3]);
/* Close everything above the streams but these: up to the execve a path through /proc/self/fd leads there. */
int pc_close_all_but (const int *kept, u32 count);

#endif
