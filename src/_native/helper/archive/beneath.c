/* Opening and examining files beneath a layer's directory. */
#include "mountapi.h"
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

static int
open_by (int top, const char *path, u64 resolve)
{
  struct open_how how = {
    .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
    .resolve = RESOLVE_IN_ROOT | resolve,
  };
  word fd;
  u32 tries = 0;
  /* EAGAIN: a concurrent rename made the kernel's resolution of ".." unsafe. */
  do
    fd = sys_openat2 (top, path, &how);
  while (fd == -EAGAIN && ++tries < 100);
  return (int) fd;
}

int
pc_tree_open (int top, const char *path)
{
  return open_by (top, path, RESOLVE_NO_MAGICLINKS);
}

int
pc_tree_open_nofollow (int top, const char *path)
{
  return open_by (top, path, RESOLVE_NO_SYMLINKS);
}

int
pc_tree_stat (int dir, const char *name, struct pc_stat *out)
{
  struct statx found;
  word error = sys_statx (dir, name, AT_SYMLINK_NOFOLLOW_ | (name[0] == '\0' ? AT_EMPTY_PATH_ : 0), STATX_BASIC_STATS,
                          &found);
  if (error < 0)
    return (int) error;
  *out = (struct pc_stat) {
    .mode = found.stx_mode,
    .uid = found.stx_uid,
    .gid = found.stx_gid,
    .is_whiteout = (found.stx_mode & S_IFMT) == S_IFCHR && found.stx_rdev_major == 0 && found.stx_rdev_minor == 0,
    .seconds = found.stx_mtime.tv_sec,
    .nanoseconds = found.stx_mtime.tv_nsec,
  };
  return 0;
}
