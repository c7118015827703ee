/* Mount sources: opened with the launcher's rights, id-mapped, and sent to the child that attaches them. */
#include "child.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/stat.h>

#define MOST_SENT 240u /* of the fds that one message takes, 253 (SCM_MAX_FD) */

struct outgoing
{
  struct pc_sources_head head;
  struct pc_fds fds;
};

/* Check that a path leads to the file that the caller saw: mounts may have changed since.  -ESTALE if not. */
static int
same_file (int fd, const struct pc_source *source)
{
  struct statx seen;
  word error = sys_statx (fd, "", AT_EMPTY_PATH, STATX_INO, &seen);
  if (error < 0)
    return (int) error;
  u64 device = ((u64) seen.stx_dev_major << 32) | seen.stx_dev_minor;
  return device == source->device && seen.stx_ino == source->inode ? 0 : -ESTALE;
}

static int
open_source (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_source *source,
             const struct pc_fds *fds)
{
  u32 recursive = source->flags & PC_OP_RECURSIVE ? AT_RECURSIVE_ : 0;
  if (source->fd != PC_NO_FD)
    {
      if (source->fd >= fds->count)
        return -EBADF;
      return (int) sys_fcntl (fds->fd[source->fd], F_DUPFD_CLOEXEC, 3);
    }
  word error = sys_setns (launcher->host_mounts, CLONE_NEWNS);
  if (error < 0)
    return (int) error;
  int fd = (int) sys_open_tree (AT_FDCWD_, pc_at (plan, source->path), CLONE_TREE | recursive);
  error = sys_setns (launcher->own_mounts, CLONE_NEWNS);
  if (error == 0 && fd >= 0)
    error = same_file (fd, source);
  if (error < 0)
    {
      pc_close_fd (&fd);
      return (int) error;
    }
  return fd;
}

/* Set attributes, id map and propagation.  A copy must not stay a peer of the host's mount, to which mounts of
   the guest would propagate.  Returns 1 if the source is mounted without the id map that it should have. */
static int
set_attributes (const struct pc_plan *plan, int fd, const struct pc_source *source, int user_namespace)
{
  struct mount_attr attributes = {
    .attr_set = source->attributes,
    .propagation = source->flags & PC_OP_SLAVE ? MS_SLAVE : MS_PRIVATE,
  };

  if ((source->flags & PC_OP_IDMAP) && source->first_id != 0)
    {
      user_namespace = pc_find_map (plan, source->first_id);
      if (user_namespace < 0)
        return user_namespace;
    }
  if ((source->flags & PC_OP_IDMAP) && user_namespace >= 0)
    {
      attributes.attr_set |= MOUNT_ATTR_IDMAP;
      attributes.userns_fd = (u64) user_namespace;
    }
  word error = sys_mount_setattr (fd, AT_RECURSIVE_, &attributes);
  if (error == -EINVAL && (source->flags & PC_OP_IDMAP_OPTIONAL))
    {
      struct mount_attr map = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = attributes.userns_fd };
      attributes.attr_set = source->attributes;
      attributes.userns_fd = 0;
      error = sys_mount_setattr (fd, AT_RECURSIVE_, &attributes);
      /* A mount below may be on a file system without id maps; the top mount gets its map nevertheless. */
      if (error == 0 && source->flags & PC_OP_RECURSIVE)
        (void) sys_mount_setattr (fd, 0, &map);
      if (error == 0)
        return 1;
    }
  return (int) error;
}

/* Clone a template, which is detached, or attached at path where the kernel cannot clone detached trees. */
static int
copy_tree (int detached, const char *path)
{
  if (detached >= 0)
    return (int) sys_open_tree (detached, "", CLONE_TREE | AT_RECURSIVE_ | AT_EMPTY_PATH);
  return (int) sys_open_tree (AT_FDCWD_, path, CLONE_TREE | AT_RECURSIVE_);
}

static int
send_part (int sync, struct outgoing *out, u32 more)
{
  out->head.more = more;
  int result = pc_send (sync, &out->head, sizeof out->head, out->fds.fd, out->fds.count, 0);
  out->head = (struct pc_sources_head) { 0 };
  pc_close_fds (&out->fds);
  return result;
}

/* Add the directory in which the container's upper directories are made, if the plan has one. */
static int
add_store (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
           struct outgoing *out)
{
  struct pc_source store = plan->store;

  if (plan->store_fd == PC_NO_FD && plan->store.path.size == 0)
    return 0;
  store.fd = plan->store_fd;
  int fd = open_source (launcher, plan, &store, fds);
  if (fd < 0)
    return fd;
  out->fds.fd[out->fds.count++] = fd;
  out->head.store = 1;
  return set_attributes (plan, fd, &store, -1);
}

/* Add copies of /dev and /sys.  One that cannot be copied is missed only by an operation that attaches it. */
static void
add_templates (const struct pc_launcher *launcher, struct outgoing *out)
{
  int dev = copy_tree (launcher->dev, "/dev");
  if (dev >= 0)
    {
      out->fds.fd[out->fds.count++] = dev;
      out->head.dev = 1;
    }
  int sys = launcher->has_sys ? copy_tree (launcher->sys, "/sys") : -1;
  if (sys >= 0)
    {
      out->fds.fd[out->fds.count++] = sys;
      out->head.sys = 1;
    }
}

/* Add the plan's sources and send them, in as many messages as their number takes. */
static int
send_sources (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, int user,
              int sync, struct outgoing *out, struct pc_record *reply)
{
  const struct pc_source *sources = pc_at (plan, plan->sources);
  int error;

  for (u32 i = 0; i < plan->sources.size / sizeof *sources; i++)
    {
      if (out->fds.count == MOST_SENT && (error = send_part (sync, out, 1)) < 0)
        return pc_failed (reply, PC_STEP_SYNC, error, -1);
      int fd = open_source (launcher, plan, &sources[i], fds);
      if (fd < 0)
        return pc_failed (reply, PC_STEP_SOURCE, fd, (i32) i);
      out->fds.fd[out->fds.count++] = fd;
      error = set_attributes (plan, fd, &sources[i], user);
      if (error < 0)
        return pc_failed (reply, PC_STEP_MOUNT_IDMAP, error, (i32) i);
      if (i == 0)
        out->head.foreign = (u32) error;
    }
  error = send_part (sync, out, 0);
  return error < 0 ? pc_failed (reply, PC_STEP_SYNC, error, -1) : 0;
}

int
pc_send_sources (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, word pid,
                 int sync, struct pc_record *reply)
{
  struct outgoing out = { .fds = { .count = 0 } };
  cleanup_fd int user = plan->namespaces & CLONE_NEWUSER ? pc_open_user_namespace (pid) : -1;

  if (plan->namespaces & CLONE_NEWUSER && user < 0)
    return pc_failed (reply, PC_STEP_MOUNT_IDMAP, user, -1);
  if (plan->sources.size / sizeof (struct pc_source) > PC_MAX_FDS)
    return pc_failed (reply, PC_STEP_PLAN, -E2BIG, -1);
  int result = add_store (launcher, plan, fds, &out);
  if (result < 0)
    (void) pc_failed (reply, PC_STEP_UPPER, result, -1);
  else
    {
      add_templates (launcher, &out);
      result = send_sources (launcher, plan, fds, user, sync, &out, reply);
    }
  pc_close_fds (&out.fds);
  return result;
}
