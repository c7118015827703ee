/* Landlock rulesets. */
#include "controls.h"

#include <linux/fcntl.h>

struct beneath
{
  u64 allowed;
  i32 parent_fd;
} __attribute__ ((packed));

int
pc_restrict_to (const struct pc_ruleset *ruleset, usize size, const int *below, const u64 *rights, u32 count)
{
  cleanup_fd int fd = (int) raw3 (__NR_landlock_create_ruleset, ruleset, size, 0);

  if (fd < 0)
    return fd;
  for (u32 i = 0; i < count; i++)
    {
      struct beneath rule = { .allowed = rights[i], .parent_fd = below[i] };
      word error = below[i] < 0 ? below[i] : raw4 (__NR_landlock_add_rule, fd, 1 /* PATH_BENEATH */, &rule, 0);
      if (error < 0)
        return (int) error;
    }
  return (int) raw2 (__NR_landlock_restrict_self, fd, 0);
}

int
pc_apply_landlock (const struct pc_security *security, int base)
{
  struct pc_ruleset ruleset = {
    .handled_fs = security->landlock_fs,
    .scoped = security->landlock_scoped,
  };
  /* ABI 4 added handled_net, ABI 6 added scoped. */
  usize size = security->landlock_abi >= 6 ? 24 : security->landlock_abi >= 4 ? 16 : 8;
  /* The mount below the root, not the root, which may be replaced. */
  cleanup_fd int dev = (int) sys_openat (AT_FDCWD_, "/dev", O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  const int below[] = { base, dev };
  const u64 rights[] = { security->landlock_root, security->landlock_dev };

  return pc_restrict_to (&ruleset, size, below, rights, COUNT (below));
}
