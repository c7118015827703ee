/* /sys of a container: processors, memory nodes and its own cgroups, read-only, and nothing else of the host.

   The launcher makes one tree, which is copied to every container.  The cgroup directories of the engine stay
   attached beside it; a child takes those of its own container from there. */
#include "builder.h"

#include <linux/errno.h>
#include <linux/sched.h>
#include <linux/stat.h>

static struct mount_attr sealed = {
  .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
  .propagation = MS_PRIVATE,
};

/* Join a v1 cgroup by its `tasks` file, once, in place of a join by each child: a clone inherits it. */
static int
join_group (const struct pc_fds *fds, u32 at)
{
  word written = at < fds->count ? sys_write (fds->fd[at], "0", 1) : -EBADF;
  return written < 0 ? (int) written : 0;
}

/* Return a mount of the caller: the fd that root has sent, or, for an unprivileged user, the path as it resolves
   in the caller's mount namespace. */
static int
open_view (const struct pc_launcher *launcher, const char *path, const struct pc_fds *fds, u32 at)
{
  if (launcher->host_mounts < 0)
    return at < fds->count ? (int) sys_fcntl (fds->fd[at], F_DUPFD_CLOEXEC, 3) : -EBADF;
  word error = sys_setns (launcher->host_mounts, CLONE_NEWNS);
  if (error < 0)
    return (int) error;
  int fd = (int) sys_open_tree (AT_FDCWD_, path, CLONE_TREE | AT_RECURSIVE_);
  error = sys_setns (launcher->own_mounts, CLONE_NEWNS);
  /* A launcher that stays in the caller's namespace would build roots there. */
  if (error < 0)
    sys_exit (1);
  return fd;
}

static int
attach_view (int at, int mount)
{
  word error = sys_mount_setattr (mount, AT_RECURSIVE_, &sealed);
  return error < 0 ? (int) error : (int) sys_move_mount (mount, at);
}

/* Seal the tree.  It is attached while it is filled, as /dev is, and detached where the kernel can clone
   detached trees. */
static int
finish_tree (struct pc_launcher *launcher, int sys)
{
  word error = sys_mount_setattr (sys, 0, &sealed);
  if (error < 0)
    return (int) error;
  cleanup_fd int detached = (int) sys_open_tree (AT_FDCWD_, "/sys", CLONE_TREE | AT_RECURSIVE_);
  if (detached < 0)
    return detached;
  if (launcher->dev >= 0)
    {
      error = sys_umount2 ("/sys", MNT_DETACH_);
      if (error < 0)
        return (int) error;
      launcher->sys = pc_steal_fd (&detached);
    }
  launcher->has_sys = 1;
  return 0;
}

/* Each entry is a letter and two strings: 's' a path in the tree, or 'c' a path beside it, and the host's path
   to mount there, or "" for a directory; 't' a v1 cgroup to join, whose `tasks` file was sent. */
int
pc_make_sys (struct pc_launcher *launcher, const char *entries, usize size, const struct pc_fds *fds)
{
  const char *end = entries + size;
  cleanup_fd int root = (int) sys_openat (AT_FDCWD_, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  cleanup_fd int at = root < 0 ? root : pc_make_path (root, "sys", 1, 0);
  u64 attributes = sealed.attr_set & ~(u64) MOUNT_ATTR_RDONLY;
  cleanup_fd int sys = pc_new_filesystem ("tmpfs", "size=64k,mode=755", 17, attributes);
  if (launcher->has_sys || size == 0 || end[-1] != '\0')
    return -EINVAL;
  word error = at < 0 ? at : sys < 0 ? sys : sys_move_mount (sys, at);
  for (u32 next = 0; error == 0 && entries < end;)
    {
      const char *place = entries + 1;
      const char *path = place + pc_strlen (place) + 1;
      if (path >= end)
        return -EINVAL;
      if (*entries == 't')
        {
          error = join_group (fds, next++);
          entries = path + pc_strlen (path) + 1;
          continue;
        }
      int below = *entries == 'c' ? root : sys;
      cleanup_fd int directory = pc_make_path (below, place, 1, 0);
      cleanup_fd int mount = *path != '\0' ? open_view (launcher, path, fds, next++) : -EBADF;
      /* EINVAL: an unprivileged user may not clone a tree of which the host has covered a part (locked mounts, see
         mount_namespaces(7)).  The container does not see it then. */
      if (directory < 0)
        error = directory;
      else if (mount >= 0)
        error = attach_view (directory, mount);
      entries = path + pc_strlen (path) + 1;
    }
  return error < 0 ? (int) error : finish_tree (launcher, sys);
}

static int
attach_group (int sys, const char *source, const char *place)
{
  cleanup_fd int group = (int) sys_open_tree (AT_FDCWD_, source, CLONE_TREE);
  if (group < 0)
    return group == -ENOENT ? 0 : group;
  cleanup_fd int at = pc_make_path (sys, place, 1, 0);
  return at < 0 ? at : (int) sys_move_mount (group, at);
}

/* Attach the tree, then the container's cgroups: the operation's data are pairs of a path beside the root and a
   path in the tree. */
int
pc_do_sys (struct builder *b, const struct pc_op *op)
{
  struct statx seen;
  const char *data = pc_at (b->plan, op->data);
  const char *end = data + op->data.size;

  if (b->fds->sys < 0)
    return 0;
  word error = sys_statx (b->fds->sys, "", AT_EMPTY_PATH, STATX_MNT_ID, &seen);
  if (error < 0)
    return (int) error;
  b->sys = seen.stx_mnt_id;
  error = pc_attach (b, op, b->fds->sys);
  while (error == 0 && data < end)
    {
      const char *place = data + pc_strlen (data) + 1;
      if (place >= end)
        return -EINVAL;
      error = attach_group (b->fds->sys, data, place);
      data = place + pc_strlen (place) + 1;
    }
  return (int) error;
}
