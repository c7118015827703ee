/* The launcher's own mount namespace: a tmpfs with /proc, so that a clone copies few mounts. */
#include "helper/root.h"
#include "mountapi.h"

#include <linux/errno.h>

#define LAYER_SLOTS 128

/* Arrays, not pointers: the program has no loader to relocate it. */
static const char devices[][8] = { "null", "zero", "full", "random", "urandom", "tty" };

static int
write_own_map (const char *path, word id)
{
  char text[64] = "0 ";
  usize n = 2 + pc_decimal (text + 2, (u64) id);
  memcpy (text + n, " 1\n", 3);
  return pc_write_file (AT_FDCWD_, path, text, n + 3);
}

/* Enter a user namespace for an unprivileged user.  The caller maps it with newuidmap, or else it maps one id. */
static int
enter_user_namespace (struct pc_launcher *launcher, struct pc_record *failure)
{
  word uid = raw0 (__NR_geteuid);
  word gid = raw0 (__NR_getegid);
  struct pc_record started = { .kind = PC_RECORD_STARTED, .value = (i32) sys_getpid () };
  struct pc_request answer = { 0 };
  struct pc_fds fds;

  word error = sys_unshare (CLONE_NEWUSER);
  if (error < 0)
    return pc_failed (failure, PC_STEP_LAUNCHER, error, PC_STAGE_USER_NAMESPACE);
  (void) pc_send_record (launcher->socket, &started, -1);
  if (pc_receive (launcher->socket, &answer, sizeof answer, &fds, 0) != (word) sizeof answer
      || answer.kind != PC_REQUEST_MAPS)
    return pc_failed (failure, PC_STEP_LAUNCHER, -EPROTO, PC_STAGE_SUB_ID_MAPS);
  if (answer.value != 0)
    return 0;
  error = pc_write_file (AT_FDCWD_, "/proc/self/setgroups", "deny", 4);
  if (error >= 0)
    error = write_own_map ("/proc/self/uid_map", uid);
  if (error >= 0)
    error = write_own_map ("/proc/self/gid_map", gid);
  return error < 0 ? pc_failed (failure, PC_STEP_LAUNCHER, error, PC_STAGE_SINGLE_ID_MAP) : 0;
}

static int
fill_dev (int dev)
{
  static const char links[][2][16] = {
    { "/proc/self/fd", "fd" },       { "/proc/self/fd/0", "stdin" }, { "/proc/self/fd/1", "stdout" },
    { "/proc/self/fd/2", "stderr" }, { "pts/ptmx", "ptmx" },
  };
  static const char directories[][8] = { "pts", "shm", "mqueue" };

  for (u32 i = 0; i < COUNT (links); i++)
    {
      word error = sys_symlinkat (links[i][0], dev, links[i][1]);
      if (error < 0)
        return (int) error;
    }
  for (u32 i = 0; i < COUNT (directories); i++)
    {
      word error = sys_mkdirat (dev, directories[i], 0755);
      if (error < 0)
        return (int) error;
    }
  return 0;
}

static int
bind_device (int host_dev, int dev, const char *name)
{
  struct mount_attr guarded = { .attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, .propagation = MS_PRIVATE };
  cleanup_fd int source = (int) sys_open_tree (host_dev, name, CLONE_TREE);
  if (source < 0)
    return source;
  word error = sys_mount_setattr (source, 0, &guarded);
  if (error < 0)
    return (int) error;
  cleanup_fd int target = (int) sys_openat (dev, name, O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0444);
  if (target < 0)
    return target;
  return (int) sys_move_mount (source, target);
}

/* /dev is built attached (older kernels cannot mount onto a detached tree), then taken off again
   where the kernel can clone detached trees. */
static int
build_dev (struct pc_launcher *launcher, int host_dev)
{
  struct mount_attr read_only = { .attr_set = MOUNT_ATTR_RDONLY };
  cleanup_fd int dev = pc_new_filesystem ("tmpfs", "size=64k,mode=755", 17, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
  if (dev < 0)
    return dev;
  cleanup_fd int at = (int) sys_openat (AT_FDCWD_, "/dev", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  word error = at < 0 ? at : sys_move_mount (dev, at);
  if (error == 0)
    error = fill_dev (dev);
  for (u32 i = 0; error == 0 && i < COUNT (devices); i++)
    error = bind_device (host_dev, dev, devices[i]);
  if (error == 0)
    error = sys_mount_setattr (dev, 0, &read_only);
  if (error < 0)
    return (int) error;

  cleanup_fd int detached = (int) sys_open_tree (AT_FDCWD_, "/dev", CLONE_TREE | AT_RECURSIVE_);
  cleanup_fd int again = (int) sys_open_tree (detached, "", CLONE_TREE | AT_RECURSIVE_ | AT_EMPTY_PATH);
  if (again >= 0)
    {
      error = sys_umount2 ("/dev", MNT_DETACH_);
      if (error < 0)
        return (int) error;
      launcher->dev = pc_steal_fd (&detached);
    }
  return 0;
}

/* Make a mount that hides a masked path.  Its attributes are set once, so that a child only has to clone it. */
static int
make_cover (const char *path)
{
  struct mount_attr sealed = {
    .attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
    .propagation = MS_PRIVATE,
  };
  cleanup_fd int at = (int) sys_openat (AT_FDCWD_, path, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
  cleanup_fd int cover = (int) sys_open_tree (AT_FDCWD_, path, CLONE_TREE);
  if (at < 0 || cover < 0)
    return at < 0 ? at : cover;
  word error = sys_mount_setattr (cover, 0, &sealed);
  return error < 0 ? (int) error : (int) sys_move_mount (cover, at);
}

static int
fill_root (int root)
{
  static const char directories[][8] = { "proc", "dev", "r", "s", "t", "l", "empty", "base", "base/r" };
  char name[32] = "l/";

  for (u32 i = 0; i < COUNT (directories); i++)
    {
      word error = sys_mkdirat (root, directories[i], i >= 6 ? 0555 : 0755);
      if (error < 0)
        return (int) error;
    }
  cleanup_fd int mask = (int) sys_openat (root, "mask", O_CREAT | O_EXCL | O_CLOEXEC, 0444);
  for (u32 i = 0; i < LAYER_SLOTS; i++)
    {
      pc_decimal (name + 2, i);
      word error = sys_mkdirat (root, name, 0755);
      if (error < 0)
        return (int) error;
    }
  return mask < 0 ? mask : 0;
}

/* Return 1 if overlay takes a detached mount as a layer, by fd (Linux 6.15). */
static int
takes_detached_layers (void)
{
  cleanup_fd int layer = pc_new_filesystem ("tmpfs", "size=4k", 7, 0);
  cleanup_fd int fs = (int) sys_fsopen ("overlay");
  if (layer < 0 || fs < 0)
    return 0;
  cleanup_fd int root = (int) sys_openat (layer, ".", O_PATH | O_CLOEXEC, 0);
  return sys_fsconfig (fs, FSCONFIG_SET_FD, "lowerdir+", NULL, root) == 0;
}

static int
move_into_small_root (struct pc_launcher *launcher)
{
  cleanup_fd int proc = (int) sys_open_tree (AT_FDCWD_, "/proc", CLONE_TREE | AT_RECURSIVE_);
  if (proc < 0)
    return proc;
  cleanup_fd int host_dev = (int) sys_openat (AT_FDCWD_, "/dev", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  if (host_dev < 0)
    return host_dev;
  cleanup_fd int devices_tree = (int) sys_open_tree (AT_FDCWD_, "/dev", CLONE_TREE | AT_RECURSIVE_);
  if (devices_tree < 0)
    return devices_tree;
  cleanup_fd int root = pc_new_filesystem ("tmpfs", "size=1m,mode=755", 16, MOUNT_ATTR_NOSUID);
  if (root < 0)
    return root;
  cleanup_fd int host_root = (int) sys_openat (AT_FDCWD_, "/", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  word error = host_root < 0 ? host_root : sys_move_mount (root, host_root);
  if (error < 0)
    return (int) error;
  error = fill_root (root);
  if (error < 0)
    return (int) error;
  /* Not every kernel can clone from a detached tree, so the host's devices stay attached until the template is
     made. */
  cleanup_fd int slot = (int) sys_openat (root, "s", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  error = slot < 0 ? slot : sys_move_mount (devices_tree, slot);
  if (error < 0)
    return (int) error;
  cleanup_fd int proc_slot = (int) sys_openat (root, "proc", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);
  error = proc_slot < 0 ? proc_slot : sys_move_mount (proc, proc_slot);
  if (error < 0)
    return (int) error;
  error = pc_pivot (root);
  if (error < 0)
    return (int) error;
  error = build_dev (launcher, devices_tree);
  if (error == 0)
    error = make_cover ("/mask");
  if (error == 0)
    error = make_cover ("/empty");
  if (error == 0)
    error = make_cover ("/base");
  if (error < 0)
    return (int) error;
  return (int) sys_umount2 ("/s", MNT_DETACH_);
}

int
pc_prepare_namespace (struct pc_launcher *launcher, int rootless, struct pc_record *failure)
{
  if (rootless && enter_user_namespace (launcher, failure) < 0)
    return -1;
  word error = sys_unshare (CLONE_NEWNS);
  if (error < 0)
    return pc_failed (failure, PC_STEP_LAUNCHER, error, PC_STAGE_MOUNT_NAMESPACE);
  /* Slave, not private: with private mounts, an unmount on the host would leave the file system busy here. */
  error = sys_mount ("", "/", 0, MS_REC | MS_SLAVE, 0);
  if (error < 0)
    return pc_failed (failure, PC_STEP_LAUNCHER, error, PC_STAGE_PROPAGATION);
  if (rootless)
    {
      launcher->host_mounts = (int) sys_openat (AT_FDCWD_, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0);
      if (launcher->host_mounts < 0)
        return pc_failed (failure, PC_STEP_LAUNCHER, launcher->host_mounts, PC_STAGE_HOST_MOUNTS);
      error = sys_unshare (CLONE_NEWNS);
      if (error < 0)
        return pc_failed (failure, PC_STEP_LAUNCHER, error, PC_STAGE_SECOND_MOUNT_NAMESPACE);
    }
  error = move_into_small_root (launcher);
  if (error < 0)
    return pc_failed (failure, PC_STEP_LAUNCHER, error, PC_STAGE_SMALL_ROOT);
  launcher->own_mounts = (int) sys_openat (AT_FDCWD_, "/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC, 0);
  launcher->old_layers = !takes_detached_layers ();
  return launcher->own_mounts < 0 ? pc_failed (failure, PC_STEP_LAUNCHER, launcher->own_mounts, PC_STAGE_OWN_MOUNTS)
                                  : 0;
}
