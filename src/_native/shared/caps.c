/* Capabilities: the bounding set, and the sets of this process. */
#include "controls.h"

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/prctl.h>

#define LAST_CAP_GUESS 63

static int
set_capabilities (u64 permitted)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[2] = {
    { .effective = (u32) permitted, .permitted = (u32) permitted },
    { .effective = (u32) (permitted >> 32), .permitted = (u32) (permitted >> 32) },
  };
  return (int) sys_capset (&header, data);
}

int
pc_make_effective (u64 wanted)
{
  struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
  struct __user_cap_data_struct data[2];
  word error = raw2 (__NR_capget, &header, data);

  if (error < 0)
    return (int) error;
  for (u32 i = 0; i < 2; i++)
    data[i].effective = data[i].permitted & (u32) (wanted >> 32 * i);
  return (int) sys_capset (&header, data);
}

/* Capabilities that may still be in the bounding set.  A child inherits this with the set itself, and so makes no
   system call for those that its parent has dropped. */
static u64 bounding = ~0ull;

int
pc_drop_bounding (u64 keep)
{
  for (word cap = 0; cap <= LAST_CAP_GUESS; cap++)
    {
      if (keep & (1ull << cap) || !(bounding & (1ull << cap)))
        continue;
      word error = sys_prctl (PR_CAPBSET_DROP, cap, 0);
      if (error == -EINVAL && sys_prctl (PR_CAPBSET_READ, cap, 0) < 0)
        break; /* past the kernel's last capability */
      if (error < 0)
        return (int) error;
    }
  bounding &= keep;
  return 0;
}

int
pc_limit_capabilities (u64 keep, u32 securebits, struct pc_failure *failure)
{
  word error = pc_drop_bounding (keep);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_BOUNDING, error);
  if (securebits != 0)
    {
      error = sys_prctl (PR_SET_SECUREBITS, securebits, 0);
      if (error < 0)
        return pc_control_failed (failure, PC_STEP_SECUREBITS, error);
    }
  error = set_capabilities (keep);
  if (error < 0)
    return pc_control_failed (failure, PC_STEP_CAPABILITIES, error);
  return 0;
}
