/* The operations that build a root, carried out in the child. */
#include "builder.h"

#include <linux/errno.h>
#include <linux/stat.h>

static int
do_filesystem (struct builder *b, const struct pc_op *op)
{
  const char *type = pc_at (b->plan, op->data);
  usize n = pc_strlen (type);
  const char *options = n < op->data.size ? type + n + 1 : "";
  cleanup_fd int mount
      = pc_new_filesystem (type, options, n < op->data.size ? op->data.size - n - 1 : 0, op->attributes);
  return mount < 0 ? mount : pc_attach (b, op, mount);
}

static int
read_only_clone (int fd)
{
  struct mount_attr attr = { .attr_set = MOUNT_ATTR_RDONLY };
  cleanup_fd int copy = (int) sys_open_tree (fd, "", CLONE_TREE | AT_RECURSIVE_ | AT_EMPTY_PATH);
  if (copy < 0)
    return copy;
  word error = sys_mount_setattr (copy, AT_RECURSIVE_, &attr);
  return error < 0 ? (int) error : pc_steal_fd (&copy);
}

static int
do_cover (struct builder *b, const struct pc_op *op)
{
  struct statx seen;
  cleanup_fd int target = pc_resolve (b->root, pc_at (b->plan, op->target), 1, O_PATH);
  if (target == -ENOENT)
    return 0;
  if (target < 0)
    return target;
  if (op->kind == PC_OP_READONLY)
    {
      cleanup_fd int copy = read_only_clone (target);
      return copy < 0 ? copy : (int) sys_move_mount (copy, target);
    }
  word error = sys_statx (target, "", AT_EMPTY_PATH, STATX_TYPE, &seen);
  if (error < 0)
    return (int) error;
  const char *source = (seen.stx_mode & S_IFMT) == S_IFDIR ? "empty" : "mask";
  cleanup_fd int cover = (int) sys_open_tree (AT_FDCWD_, source, CLONE_TREE);
  return cover < 0 ? cover : (int) sys_move_mount (cover, target);
}

static int
attach_dev (struct builder *b, const struct pc_op *op)
{
  struct statx seen;
  if (b->fds->dev < 0)
    return -EBADF;
  word error = sys_statx (b->fds->dev, "", AT_EMPTY_PATH, STATX_MNT_ID, &seen);
  if (error < 0)
    return (int) error;
  b->dev = seen.stx_mnt_id;
  return pc_attach (b, op, b->fds->dev);
}

/* Move a mount of the old root to the new one.  Mounts below it move with it, so their targets are no mount points of
   the old root any more. */
static int
do_move (struct builder *b, const struct pc_op *op)
{
  struct statx seen, root;
  cleanup_fd int from = pc_resolve (b->made->old, pc_at (b->plan, op->target), op->flags & PC_OP_NOFOLLOW, O_PATH);
  if (from < 0)
    return from == -ENOENT ? 0 : from;
  word error = sys_statx (from, "", AT_EMPTY_PATH, STATX_MNT_ID, &seen);
  if (error == 0)
    error = sys_statx (b->made->old, "", AT_EMPTY_PATH, STATX_MNT_ID, &root);
  if (error < 0)
    return (int) error;
  if (seen.stx_mnt_id == root.stx_mnt_id || !(seen.stx_attributes & STATX_ATTR_MOUNT_ROOT))
    return 0;
  cleanup_fd int to = pc_open_target (b, op);
  return to < 0 ? to : (int) sys_move_mount (from, to);
}

/* Make a directory that the image's configuration names and no layer has.  It stays missing below a read-only
   mount or one of another owner; a command that needs it reports that itself. */
static int
do_directory (struct builder *b, const struct pc_op *op)
{
  const char *path = pc_at (b->plan, op->target);
  cleanup_fd int there = pc_resolve (b->root, path, 0, O_PATH);
  if (there != -ENOENT)
    return 0;
  cleanup_fd int made = pc_make_path (b->root, path, 0, 0);
  if (made == -EROFS || made == -EACCES || made == -EPERM || made == -EOVERFLOW)
    return 0;
  if (made < 0)
    return made;
  u32 uid = (u32) op->attributes, gid = (u32) (op->attributes >> 32);
  word error = uid != 0 || gid != 0 ? sys_fchownat (made, "", uid, gid, AT_EMPTY_PATH) : 0;
  return (int) error;
}

/* Set a sysctl.  Files below /proc/sys are those of the namespaces of the process that opens them. */
static int
do_sysctl (struct builder *b, const struct pc_op *op)
{
  cleanup_fd int fd = pc_resolve (b->root, pc_at (b->plan, op->target), 1, O_WRONLY);
  if (fd < 0)
    return fd;
  word written = sys_write (fd, pc_at (b->plan, op->data), op->data.size);
  if (written < 0)
    return (int) written;
  return (usize) written == op->data.size ? 0 : -EIO;
}

static int
do_op (struct builder *b, const struct pc_op *op)
{
  struct mount_attr read_only = { .attr_set = MOUNT_ATTR_RDONLY };

  switch (op->kind)
    {
    case PC_OP_UPPER:
      return pc_do_upper (b, op);
    case PC_OP_FILE:
      return pc_do_file (b, op);
    case PC_OP_OWN_DIRECTORY:
      return pc_do_own_directory (b, op);
    case PC_OP_OVERLAY:
      return pc_do_overlay (b, op);
    case PC_OP_MOUNT:
      if (op->source >= b->fds->source_count)
        return -EBADF;
      return pc_attach (b, op, b->fds->sources[op->source]);
    case PC_OP_FILESYSTEM:
      return do_filesystem (b, op);
    case PC_OP_DEV:
      return attach_dev (b, op);
    case PC_OP_SYS:
      return pc_do_sys (b, op);
    case PC_OP_MASK:
    case PC_OP_READONLY:
      return b->root < 0 ? -EINVAL : do_cover (b, op);
    case PC_OP_DIRECTORY:
      return b->root < 0 ? -EINVAL : do_directory (b, op);
    case PC_OP_MOVE:
      return b->root < 0 || b->made->old < 0 ? -EINVAL : do_move (b, op);
    case PC_OP_SYSCTL:
      return b->root < 0 ? -EINVAL : do_sysctl (b, op);
    case PC_OP_SEAL:
      return b->root < 0 ? -EINVAL : (int) sys_mount_setattr (b->root, 0, &read_only);
    default:
      return -EINVAL;
    }
}

static u32
step_of (u16 kind)
{
  switch (kind)
    {
    case PC_OP_UPPER:
    case PC_OP_OWN_DIRECTORY:
      return PC_STEP_UPPER;
    case PC_OP_FILE:
      return PC_STEP_FILE;
    case PC_OP_OVERLAY:
      return PC_STEP_OVERLAY;
    case PC_OP_MASK:
      return PC_STEP_MASK;
    case PC_OP_READONLY:
    case PC_OP_SEAL:
      return PC_STEP_READONLY;
    default:
      return PC_STEP_MOUNT;
    }
}

int
pc_build_root (const struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_child_fds *fds,
               struct pc_root *made, i32 *op, struct pc_failure *failure)
{
  struct builder builder = {
    .launcher = launcher,
    .plan = plan,
    .fds = fds,
    .made = made,
    .root = -1,
    .upper = -1,
    .work = -1,
  };
  const struct pc_op *ops = pc_at (plan, plan->ops);

  for (u32 i = 0; i < plan->ops.size / sizeof *ops; i++)
    {
      int error = do_op (&builder, &ops[i]);
      if (error < 0)
        {
          *op = (i32) i;
          failure->step = step_of (ops[i].kind);
          failure->error = -error;
          return -1;
        }
    }
  if (builder.root < 0)
    {
      failure->step = PC_STEP_PLAN;
      failure->error = EINVAL;
    }
  made->root = builder.root;
  return builder.root < 0 ? -1 : 0;
}
