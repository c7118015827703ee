/* The overlay of a root: its upper directory, the files written there in advance, its layers. */
#include "builder.h"

#include <linux/errno.h>

static char scratch[4096];

/* Attach a mount in the child's mount namespace.  Overlay takes directories only from mounts of a namespace that the
   child's user namespace owns, and the launcher's detached mounts belong to the host's. */
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

int
pc_do_upper (struct builder *b, const struct pc_op *op)
{
  pc_close_fd (&b->upper);
  pc_close_fd (&b->work);
  if (op->data.size == 0)
    {
      if (b->fds->store < 0)
        return -EBADF;
      b->uppers += op->mode;
      if (b->uppers == op->mode)
        {
          int error = attach_aside (b->fds->store, "s");
          if (error < 0)
            return error;
        }
      return make_upper_directories (b, b->fds->store, "s");
    }
  int base
      = pc_new_filesystem ("tmpfs", pc_at (b->plan, op->data), op->data.size, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV);
  if (base < 0)
    return base;
  int error = attach_aside (base, "t");
  if (error == 0)
    error = make_upper_directories (b, base, "t");
  sys_close (base);
  return error;
}

/* The last component of path.  Its parent below the upper directory is made, and opened at *parent if it is another. */
static int
parent_in_upper (const struct builder *b, const char *path, const char **name, int *parent)
{
  char directory[256];

  *name = path;
  for (const char *at = path; *at != '\0'; at++)
    if (*at == '/')
      *name = at + 1;
  usize size = (usize) (*name - path);
  if (b->upper < 0)
    return -EINVAL;
  if (size == 0)
    return 0;
  if (size > sizeof directory)
    return -ENAMETOOLONG;
  memcpy (directory, path, size - 1);
  directory[size - 1] = '\0';
  *parent = pc_make_path (b->upper, directory, 1, 0);
  return *parent < 0 ? *parent : 0;
}

/* Without an id map the container's users may not write to a layer's directory, nor the kernel copy it up with
   an owner that the container has no id for.  One in the upper directory, made by the container's root, is merged
   with it and gives owner and mode. */
int
pc_do_own_directory (struct builder *b, const struct pc_op *op)
{
  const char *name;
  cleanup_fd int parent = -1;

  if (!b->fds->foreign)
    return 0;
  word error = parent_in_upper (b, pc_at (b->plan, op->target), &name, &parent);
  if (error == 0)
    error = sys_mkdirat (parent >= 0 ? parent : b->upper, name, op->mode);
  return error == -EEXIST ? 0 : (int) error;
}

int
pc_do_file (struct builder *b, const struct pc_op *op)
{
  const char *name;
  cleanup_fd int parent = -1;
  int error = parent_in_upper (b, pc_at (b->plan, op->target), &name, &parent);

  if (error < 0)
    return error;
  cleanup_fd int fd = (int) sys_openat (parent >= 0 ? parent : b->upper, name,
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
  char place[32] = "l/";
  word error = 0;
  for (u32 i = 0; error == 0 && i < op->count; i++)
    {
      int layer = b->fds->sources[op->source + i];
      pc_decimal (place + 2, op->source + i);
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

/* Attach each layer of an overlay and append the list of their paths, separated by colons, to scratch.  Returns the
   bytes in scratch, sizeof scratch when they did not fit, or a negative errno. */
static word
list_layers (struct builder *b, const struct pc_op *op, usize used)
{
  char place[32] = "l/";

  for (u32 i = 0; i < op->count; i++)
    {
      pc_decimal (place + 2, op->source + i);
      int error = attach_aside (b->fds->sources[op->source + i], place);
      if (error < 0)
        return error;
      if (i > 0)
        used = APPEND (used, ":");
      used = APPEND (used, place);
    }
  return (word) used;
}

/* fsconfig(2) takes strings of up to 255 bytes.  That is enough here: below the root an overlay has two layers. */
static int
add_layers_by_name (struct builder *b, int fs, const struct pc_op *op)
{
  word used = list_layers (b, op, 0);

  if (used < 0)
    return (int) used;
  if ((usize) used >= sizeof scratch || b->upper >= 0)
    return -EINVAL;
  return (int) sys_fsconfig (fs, FSCONFIG_SET_STRING, "lowerdir", scratch, 0);
}

/* A kernel that takes no layers by fd gets them all in one string.  mount(2) takes a page of options, where
   fsconfig(2) takes only 255 bytes. */
static int
mount_by_path (struct builder *b, const struct pc_op *op)
{
  word listed = list_layers (b, op, APPEND (0, "userxattr,lowerdir="));

  if (listed < 0)
    return (int) listed;
  usize used = (usize) listed;
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
  int made = pc_make_base (b);
  const char *at = pc_place_of_root (b);
  word error = made < 0 ? made : sys_mount ("overlay", at, "overlay", op->attributes & 6, scratch);
  if (error < 0)
    return (int) error;
  b->root = (int) sys_openat (AT_FDCWD_, at, O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  return b->root;
}

int
pc_do_overlay (struct builder *b, const struct pc_op *op)
{
  if (op->count > b->fds->source_count || op->source > b->fds->source_count - op->count)
    return -EBADF;
  if (b->launcher->old_layers && op->target.size == 0)
    return mount_by_path (b, op);
  cleanup_fd int fs = (int) sys_fsopen ("overlay");
  if (fs < 0)
    return fs;
  word error = b->launcher->old_layers ? add_layers_by_name (b, fs, op) : add_layers_by_fd (b, fs, op);
  if (error == 0)
    error = sys_fsconfig (fs, FSCONFIG_SET_FLAG, "userxattr", NULL, 0);
  /* One container uses the upper directory, and none outlives a crash of the machine: nothing has to be synced. */
  if (error == 0 && b->upper >= 0)
    error = sys_fsconfig (fs, FSCONFIG_SET_FLAG, "volatile", NULL, 0);
  if (error == 0)
    error = sys_fsconfig (fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0);
  /* EINVAL: the host's tree is on as many overlays as the kernel stacks already.  Mount it as it is. */
  if (error == -EINVAL && op->target.size > 0)
    return pc_attach (b, op, b->fds->sources[op->source]);
  if (error < 0)
    return (int) error;
  cleanup_fd int mount = (int) sys_fsmount (fs, op->attributes);
  if (mount < 0)
    return mount;
  pc_close_fd (&b->upper);
  pc_close_fd (&b->work);
  return pc_attach (b, op, mount);
}
