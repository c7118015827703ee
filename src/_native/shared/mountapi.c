/* Operations of the mount API. */
#include "mountapi.h"

#include "wire.h"

#include <linux/errno.h>

static int
configure (int fs, char *option)
{
  for (char *at = option; *at != '\0'; at++)
    if (*at == '=')
      {
        *at = '\0';
        return (int) sys_fsconfig (fs, FSCONFIG_SET_STRING, option, at + 1, 0);
      }
  return (int) sys_fsconfig (fs, FSCONFIG_SET_FLAG, option, NULL, 0);
}

int
pc_new_filesystem (const char *type, const char *options, usize size, u64 attributes)
{
  char option[256];
  cleanup_fd int fs = (int) sys_fsopen (type);
  if (fs < 0)
    return fs;

  for (usize at = 0; at < size;)
    {
      usize n = 0;
      while (at + n < size && options[at + n] != ',')
        n++;
      if (n >= sizeof option)
        return -EINVAL;
      memcpy (option, options + at, n);
      option[n] = '\0';
      if (n > 0)
        {
          int error = configure (fs, option);
          if (error < 0)
            return error;
        }
      at += n + 1;
    }
  word error = sys_fsconfig (fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
  if (error < 0)
    return (int) error;
  return (int) sys_fsmount (fs, attributes);
}

int
pc_pivot (int fd)
{
  word error = sys_fchdir (fd);
  if (error < 0)
    return (int) error;
  error = sys_pivot_root (".", ".");
  if (error < 0)
    return (int) error;
  /* The old root now lies on top of the new one at "."; one detach waits for one expedited grace period. */
  error = sys_umount2 (".", MNT_DETACH_);
  if (error < 0)
    return (int) error;
  return (int) sys_chdir ("/");
}
