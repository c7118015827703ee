/* Attaching mounts to the new root. */
#include "builder.h"

#include <linux/errno.h>
#include <linux/magic.h>
#include <linux/stat.h>

/* Return 1 if the target is a mount of the engine.  A link of the image may point there, and a mount of the caller's
   would then hide /proc, /dev or /sys. */
static int
is_engines (const struct builder *b, int fd, const struct statx *seen)
{
  struct
  {
    word type;
    word rest[15];
  } fs;
  word error = sys_fstatfs (fd, &fs);
  if (error < 0)
    return (int) error;
  return fs.type == PROC_SUPER_MAGIC || fs.type == DEVPTS_SUPER_MAGIC || fs.type == SYSFS_MAGIC
         || fs.type == CGROUP_SUPER_MAGIC || fs.type == CGROUP2_SUPER_MAGIC
         || (b->dev != 0 && seen->stx_mnt_id == b->dev) || (b->sys != 0 && seen->stx_mnt_id == b->sys);
}

int
pc_open_target (const struct builder *b, const struct pc_op *op)
{
  struct statx seen;
  int want_file = op->flags & PC_OP_IS_FILE ? 1 : 0;
  cleanup_fd int fd = pc_make_path (b->root, pc_at (b->plan, op->target), op->flags & PC_OP_NOFOLLOW, want_file);
  if (fd < 0)
    return fd;
  word error = sys_statx (fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_MNT_ID, &seen);
  if (error < 0)
    return (int) error;
  if (!(op->flags & PC_OP_NOFOLLOW))
    {
      int engines = is_engines (b, fd, &seen);
      if (engines != 0)
        return engines < 0 ? engines : -ELOOP;
    }
  if (!want_file && (seen.stx_mode & S_IFMT) != S_IFDIR)
    return -ENOTDIR;
  if (want_file && (seen.stx_mode & S_IFMT) == S_IFDIR)
    return -EISDIR;
  return pc_steal_fd (&fd);
}

/* Under Landlock the root is attached to a directory of another mount, which the rules name: a rule for the root
   itself would not hold for the root that replaces it.  Landlock walks from a file up to the directory above a mount
   point and skips the hidden mount point itself (is_access_to_paths_allowed), so the rule names that directory. */
int
pc_make_base (struct builder *b)
{
  const struct pc_security *security = pc_at (b->plan, b->plan->security);
  if (security->landlock_abi == 0 || b->made->old >= 0 || b->made->base >= 0)
    return 0;
  cleanup_fd int at = (int) sys_openat (AT_FDCWD_, "r", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  cleanup_fd int mount = (int) sys_open_tree (AT_FDCWD_, "base", CLONE_TREE);
  word error = at < 0 ? at : mount < 0 ? mount : sys_move_mount (mount, at);
  if (error < 0)
    return (int) error;
  b->made->base = (int) sys_openat (AT_FDCWD_, "r", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  return b->made->base;
}

const char *
pc_place_of_root (const struct builder *b)
{
  return b->made->base >= 0 ? "r/r" : "r";
}

int
pc_attach (struct builder *b, const struct pc_op *op, int mount)
{
  if (op->target.size == 0)
    {
      int made = pc_make_base (b);
      const char *place = pc_place_of_root (b);
      cleanup_fd int at = made < 0 ? made : (int) sys_openat (AT_FDCWD_, place, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
      word error = at < 0 ? at : sys_move_mount (mount, at);
      if (error < 0)
        return (int) error;
      b->root = (int) sys_openat (AT_FDCWD_, place, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
      return b->root;
    }
  if (b->root < 0)
    return -EINVAL;
  cleanup_fd int target = pc_open_target (b, op);
  if (target < 0)
    return target;
  return (int) sys_move_mount (mount, target);
}
