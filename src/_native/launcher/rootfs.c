/* The child builds its root: every path is resolved beneath the root's fd. */
#include "launcher.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/magic.h>
#include <linux/stat.h>

struct builder
{
  const struct pc_launcher *launcher;
  const struct pc_plan *plan;
  struct pc_child_fds *fds;
  int root;         /* the new root once an overlay or source stands at / */
  int upper;        /* the upper directory being prepared, or -1 */
  int work;
  u64 dev;          /* mount id of /dev */
  u32 uppers;       /* how many were made: their directories are numbered */
  char upper_path[48];
  char work_path[48];
};

static char scratch[4096];

static int
resolve (int root, const char *path, int nofollow, u64 flags)
{
  struct open_how how = {
    .flags = flags | O_CLOEXEC,
    .resolve = nofollow ? RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
                        : RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
  };
  while (*path == '/')
    path++;
  return (int) sys_openat2 (root, *path == '\0' ? "." : path, &how);
}

static int
create_component (int parent, const char *name, int as_file)
{
  if (!as_file)
    return (int) sys_mkdirat (parent, name, 0755);
  int fd = (int) sys_openat (parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (fd < 0)
    return fd;
  sys_close (fd);
  return 0;
}

/* Open path beneath root, making what is missing; a symbolic link is followed inside or refused. */
static int
make_path (int root, const char *path, int nofollow, int as_file)
{
  usize size = pc_strlen (path);
  int fd = resolve (root, path, nofollow, O_PATH);
  if (fd != -ENOENT || size >= sizeof scratch)
    return fd;

  cleanup_fd int parent = resolve (root, "", 1, O_PATH);
  if (parent < 0)
    return parent;
  memcpy (scratch, path, size + 1);
  for (usize at = 0; at < size;)
    {
      while (scratch[at] == '/')
        at++;
      usize end = at;
      while (end < size && scratch[end] != '/')
        end++;
      if (end == at)
        break;
      char saved = scratch[end];
      scratch[end] = '\0';
      int next = resolve (root, scratch, nofollow, O_PATH);
      if (next == -ENOENT)
        {
          int error = create_component (parent, scratch + at, as_file && end == size);
          if (error < 0)
            return error == -EEXIST ? -ELOOP : error; /* a dangling link stands there */
          next = resolve (root, scratch, nofollow, O_PATH);
        }
      if (next < 0)
        return next;
      sys_close (parent);
      parent = next;
      scratch[end] = saved;
      at = end;
    }
  return pc_steal_fd (&parent);
}

/* A link of the image may lead a mount that the caller asked for onto one of the engine's own. */
static int
is_engines (const struct builder *b, int fd, const struct statx *seen)
{
  struct
  {
    word type;
    word rest[15];
  } fs;
  word error = raw2 (__NR_fstatfs, fd, &fs);
  if (error < 0)
    return (int) error;
  return fs.type == PROC_SUPER_MAGIC || fs.type == DEVPTS_SUPER_MAGIC
         || (b->dev != 0 && seen->stx_mnt_id == b->dev);
}

static int
open_target (const struct builder *b, const struct pc_op *op)
{
  struct statx seen;
  int want_file = op->flags & PC_OP_IS_FILE ? 1 : 0;
  cleanup_fd int fd
      = make_path (b->root, pc_at (b->plan, op->target), op->flags & PC_OP_NOFOLLOW, want_file);
  if (fd < 0)
    return fd;
  word error = raw5 (__NR_statx, fd, "", AT_EMPTY_PATH, STATX_TYPE | STATX_MNT_ID, &seen);
  if (error < 0)
    return (int) error;
  if (!(op->flags & PC_OP_NOFOLLOW))
    {
      int engines = is_engines (b, fd, &seen);
      if (engines != 0)
        return engines < 0 ? engines : -ELOOP;
    }
  if (!want_file && (seen.stx_mode & 0170000) != 0040000)
    return -ENOTDIR;
  if (want_file && (seen.stx_mode & 0170000) == 0040000)
    return -EISDIR;
  return pc_steal_fd (&fd);
}

/* Attach a detached mount at the operation's target; "/" becomes the root itself. */
static int
attach (struct builder *b, const struct pc_op *op, int mount)
{
  if (op->target.size == 0)
    {
      cleanup_fd int at = (int) sys_openat (AT_FDCWD_, "/r", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
      word error = at < 0 ? at : sys_move_mount (mount, at);
      if (error < 0)
        return (int) error;
      b->root = (int) sys_openat (AT_FDCWD_, "/r", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
      return b->root;
    }
  if (b->root < 0)
    return -EINVAL;
  cleanup_fd int target = open_target (b, op);
  if (target < 0)
    return target;
  return (int) sys_move_mount (mount, target);
}

/* Overlay takes its directories only from mounts of a namespace that the child's own user namespace
   owns; the launcher's detached mounts belong to the host's. */
static int
attach_aside (int mount, const char *place)
{
  cleanup_fd int at = (int) sys_openat (AT_FDCWD_, place, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  return at < 0 ? at : (int) sys_move_mount (mount, at);
}

static int
make_upper_directories (struct builder *b, int base, const char *place)
{
  char name[24];
  usize n = pc_decimal (name, b->uppers);
  usize p = pc_strlen (place);
  word error = sys_mkdirat (base, name, 0700);
  if (error < 0 && error != -EEXIST)
    return (int) error;
  memcpy (b->upper_path, place, p);
  b->upper_path[p] = '/';
  memcpy (b->upper_path + p + 1, name, n);
  memcpy (b->upper_path + p + 1 + n, "/u", 3);
  memcpy (b->work_path, b->upper_path, sizeof b->work_path);
  b->work_path[p + 2 + n] = 'w';
  const char *upper = b->upper_path + p + 1;
  const char *work = b->work_path + p + 1;
  error = sys_mkdirat (base, upper, 0755);
  if (error < 0 && error != -EEXIST)
    return (int) error;
  error = sys_mkdirat (base, work, 0700);
  if (error < 0 && error != -EEXIST)
    return (int) error;
  b->upper = (int) sys_openat (base, upper, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  b->work = (int) sys_openat (base, work, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  b->uppers++;
  return b->upper < 0 ? b->upper : b->work < 0 ? b->work : 0;
}

static int
do_upper (struct builder *b, const struct pc_op *op)
{
  pc_close_fd (&b->upper);
  pc_close_fd (&b->work);
  if (op->data.size == 0)
    {
      if (b->fds->store < 0)
        return -EBADF;
      if (b->uppers == 0)
        {
          int error = attach_aside (b->fds->store, "/s");
          if (error < 0)
            return error;
        }
      return make_upper_directories (b, b->fds->store, "/s");
    }
  int base = pc_new_filesystem ("tmpfs", pc_at (b->plan, op->data), op->data.size,
                                MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
  if (base < 0)
    return base;
  int error = attach_aside (base, "/t");
  if (error == 0)
    error = make_upper_directories (b, base, "/t");
  sys_close (base);
  return error;
}

static int
do_file (struct builder *b, const struct pc_op *op)
{
  const char *path = pc_at (b->plan, op->target);
  const char *name = path;

  for (const char *at = path; *at != '\0'; at++)
    if (*at == '/')
      name = at + 1;
  usize parent_size = (usize) (name - path);
  if (parent_size >= sizeof scratch || b->upper < 0)
    return -EINVAL;
  cleanup_fd int parent = -1;
  if (parent_size > 0)
    {
      char directory[256];
      if (parent_size > sizeof directory)
        return -ENAMETOOLONG;
      memcpy (directory, path, parent_size - 1);
      directory[parent_size - 1] = '\0';
      parent = make_path (b->upper, directory, 1, 0);
      if (parent < 0)
        return parent;
    }
  cleanup_fd int fd = (int) sys_openat (parent_size > 0 ? parent : b->upper, name,
                                        O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, op->mode);
  if (fd < 0)
    return fd;
  word written = sys_write (fd, pc_at (b->plan, op->data), op->data.size);
  if (written < 0)
    return (int) written;
  return (usize) written == op->data.size ? 0 : -ENOSPC;
}

static int
add_layers_by_fd (struct builder *b, int fs, const struct pc_op *op)
{
  char place[32] = "/l/";
  word error = 0;
  for (u32 i = 0; error == 0 && i < op->count; i++)
    {
      int layer = b->fds->sources[op->source + i];
      pc_decimal (place + 3, op->source + i);
      error = attach_aside (layer, place);
      if (error == 0)
        error = sys_fsconfig (fs, FSCONFIG_SET_FD, "lowerdir+", NULL, layer);
    }
  if (error == 0 && b->upper >= 0)
    error = sys_fsconfig (fs, FSCONFIG_SET_FD, "upperdir", NULL, b->upper);
  if (error == 0 && b->upper >= 0)
    error = sys_fsconfig (fs, FSCONFIG_SET_FD, "workdir", NULL, b->work);
  return (int) error;
}

static usize
append (usize at, const char *text, usize size)
{
  if (at + size >= sizeof scratch)
    return sizeof scratch;
  memcpy (scratch + at, text, size);
  scratch[at + size] = '\0';
  return at + size;
}

#define APPEND(at, text) append (at, text, pc_strlen (text))

/* Before lowerdir+ the layers are one string, of which fsconfig takes 255 bytes but mount(2) a page. */
static int
mount_by_path (struct builder *b, const struct pc_op *op)
{
  char place[32] = "/l/";
  usize used = APPEND (0, "userxattr,lowerdir=");

  for (u32 i = 0; i < op->count; i++)
    {
      pc_decimal (place + 3, op->source + i);
      int error = attach_aside (b->fds->sources[op->source + i], place);
      if (error < 0)
        return error;
      if (i > 0)
        used = APPEND (used, ":");
      used = APPEND (used, place);
    }
  if (b->upper >= 0)
    {
      used = APPEND (used, ",volatile,upperdir=");
      used = APPEND (used, b->upper_path);
      used = APPEND (used, ",workdir=");
      used = APPEND (used, b->work_path);
    }
  if (used >= sizeof scratch)
    return -E2BIG;
  pc_close_fd (&b->upper);
  pc_close_fd (&b->work);
  /* MS_NOSUID and MS_NODEV have the values of their MOUNT_ATTR_ namesakes. */
  word error = raw5 (__NR_mount, "overlay", "/r", "overlay", op->attributes & 6, scratch);
  if (error < 0)
    return (int) error;
  b->root = (int) sys_openat (AT_FDCWD_, "/r", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  return b->root;
}

static int
do_overlay (struct builder *b, const struct pc_op *op)
{
  if (op->count > b->fds->source_count || op->source > b->fds->source_count - op->count)
    return -EBADF;
  if (b->launcher->old_layers)
    return op->target.size == 0 ? mount_by_path (b, op) : -EOPNOTSUPP;
  cleanup_fd int fs = (int) sys_fsopen ("overlay");
  if (fs < 0)
    return fs;
  word error = add_layers_by_fd (b, fs, op);
  if (error == 0)
    error = sys_fsconfig (fs, FSCONFIG_SET_FLAG, "userxattr", NULL, 0);
  /* An upper directory is used by one container alone, which is gone after a crash: nothing to sync. */
  if (error == 0 && b->upper >= 0)
    error = sys_fsconfig (fs, FSCONFIG_SET_FLAG, "volatile", NULL, 0);
  if (error == 0)
    error = sys_fsconfig (fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
  if (error < 0)
    return (int) error;
  cleanup_fd int mount = (int) sys_fsmount (fs, op->attributes);
  if (mount < 0)
    return mount;
  pc_close_fd (&b->upper);
  pc_close_fd (&b->work);
  return attach (b, op, mount);
}

static int
do_filesystem (struct builder *b, const struct pc_op *op)
{
  const char *type = pc_at (b->plan, op->data);
  usize n = pc_strlen (type);
  const char *options = n < op->data.size ? type + n + 1 : "";
  cleanup_fd int mount
      = pc_new_filesystem (type, options, n < op->data.size ? op->data.size - n - 1 : 0, op->attributes);
  return mount < 0 ? mount : attach (b, op, mount);
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
  cleanup_fd int target = resolve (b->root, pc_at (b->plan, op->target), 1, O_PATH);
  if (target == -ENOENT)
    return 0;
  if (target < 0)
    return target;
  if (op->kind == PC_OP_READONLY)
    {
      cleanup_fd int copy = read_only_clone (target);
      return copy < 0 ? copy : (int) sys_move_mount (copy, target);
    }
  word error = raw5 (__NR_statx, target, "", AT_EMPTY_PATH, STATX_TYPE, &seen);
  if (error < 0)
    return (int) error;
  const char *source = (seen.stx_mode & 0170000) == 0040000 ? "/empty" : "/mask";
  cleanup_fd int cover = (int) sys_open_tree (AT_FDCWD_, source, CLONE_TREE);
  return cover < 0 ? cover : (int) sys_move_mount (cover, target);
}

static int
attach_dev (struct builder *b, const struct pc_op *op)
{
  struct statx seen;
  if (b->fds->dev < 0)
    return -EBADF;
  word error = raw5 (__NR_statx, b->fds->dev, "", AT_EMPTY_PATH, STATX_MNT_ID, &seen);
  if (error < 0)
    return (int) error;
  b->dev = seen.stx_mnt_id;
  return attach (b, op, b->fds->dev);
}

static int
do_op (struct builder *b, const struct pc_op *op)
{
  struct mount_attr read_only = { .attr_set = MOUNT_ATTR_RDONLY };

  switch (op->kind)
    {
    case PC_OP_UPPER:
      return do_upper (b, op);
    case PC_OP_FILE:
      return do_file (b, op);
    case PC_OP_OVERLAY:
      return do_overlay (b, op);
    case PC_OP_MOUNT:
      if (op->source >= b->fds->source_count)
        return -EBADF;
      return attach (b, op, b->fds->sources[op->source]);
    case PC_OP_FILESYSTEM:
      return do_filesystem (b, op);
    case PC_OP_DEV:
      return attach_dev (b, op);
    case PC_OP_MASK:
    case PC_OP_READONLY:
      return b->root < 0 ? -EINVAL : do_cover (b, op);
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
pc_build_root (const struct pc_launcher *launcher, const struct pc_plan *plan,
               struct pc_child_fds *fds, i32 *op, struct pc_failure *failure)
{
  struct builder builder = {
    .launcher = launcher,
    .plan = plan,
    .fds = fds,
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
  return builder.root;
}
