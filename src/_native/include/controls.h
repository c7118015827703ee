/* Controls of a process: capabilities, Landlock, seccomp, and the sequence of them before a guest's execve. */
#ifndef PC_CONTROLS_H
#define PC_CONTROLS_H

#include "plan.h"
#include "wire.h"

/* Where a control failed.  error is 0 unless one did. */
struct pc_failure
{
  u32 step;
  i32 error;
};

static inline int
pc_control_failed (struct pc_failure *failure, u32 step, word error)
{
  failure->step = step;
  failure->error = (i32) -error;
  return -1;
}

/* Apply every control from rlimits to seccomp in order, then execute the command.  Returns only on failure. */
void pc_become_guest (const struct pc_security *security, const struct pc_exec *exec, struct pc_failure *failure);

/* Drop all capabilities but `keep` from every set, the bounding set first.  0, or -1 and *failure. */
int pc_limit_capabilities (u64 keep, u32 securebits, struct pc_failure *failure);
/* Drop all capabilities but `keep` from the bounding set.  0 or a negative errno. */
int pc_drop_bounding (u64 keep);
/* Make the permitted capabilities that are in `wanted` effective.  0 or a negative errno. */
int pc_make_effective (u64 wanted);

/* struct landlock_ruleset_attr of ABI 6. */
struct pc_ruleset
{
  u64 handled_fs;
  u64 handled_net;
  u64 scoped;
};

/* Restrict this process to these rights below each of these directories.  `size` is that of the ruleset in the
   kernel's ABI.  0 or a negative errno. */
int pc_restrict_to (const struct pc_ruleset *ruleset, usize size, const int *below, const u64 *rights, u32 count);
/* Apply the Landlock rules of a container whose root is attached to the mount `base`.  0 or a negative errno. */
int pc_apply_landlock (const struct pc_security *security, int base);

/* Install a filter of `count` BPF instructions.  0 or a negative errno. */
int pc_install_filter (const void *filter, u32 count);

#endif
