/* Replacement of the root of a running container: its upper directory becomes a read-only layer of the new root.

   The container runs only its agent meanwhile, so no guest process can observe or trace the child that does it. */
#include "child.h"
#include "mountapi.h"

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/sched.h>

/* Make the directories in which mounts are attached, as the launcher's own namespace has them. */
static int
make_scaffold (const struct pc_root *root, u32 layers)
{
  static const char directories[][8] = { "r", "s", "l" };
  char name[32] = "l/";
  cleanup_fd int scaffold = pc_new_filesystem ("tmpfs", "size=64k,mode=700", 17, MOUNT_ATTR_NOSUID);
  word error = scaffold < 0 ? scaffold : 0;

  for (u32 i = 0; error == 0 && i < COUNT (directories); i++)
    error = sys_mkdirat (scaffold, directories[i], 0700);
  for (u32 i = 0; error == 0 && i < layers; i++)
    {
      pc_decimal (name + 2, i);
      error = sys_mkdirat (scaffold, name, 0700);
    }
  /* On top of the old root, with which it is detached. */
  if (error == 0)
    error = sys_move_mount (scaffold, root->old);
  return error < 0 ? (int) error : (int) sys_fchdir (scaffold);
}

/* Make the new root the root of the container: pivot_root(2) moves every process whose root is the old one. */
static int
take_place (const struct pc_root *root)
{
  word error = sys_fchdir (root->root);
  if (error == 0)
    error = sys_pivot_root (".", ".");
  /* On top of the new root is the old one now, and on top of that the scaffold. */
  for (u32 i = 0; error == 0 && i < 2; i++)
    error = sys_umount2 (".", MNT_DETACH_);
  return (int) error;
}

/* Make a mount read-only, or writable again.  The kernel refuses the former with EBUSY while a file is open for
   writing through the mount; it only compares a counter. */
static int
set_mount_access (int at, int read_only)
{
  struct mount_attr change = { 0 };

  if (read_only)
    change.attr_set = MOUNT_ATTR_RDONLY;
  else
    change.attr_clr = MOUNT_ATTR_RDONLY;
  return (int) sys_mount_setattr (at, 0, &change);
}

/* The same for the file system, and so for every mount of it.  The kernel drops its dentry cache, which takes longer
   the more names were used. */
static int
set_filesystem_access (int at, int read_only)
{
  cleanup_fd int fs = (int) sys_fspick (at);
  word error = fs < 0 ? fs : sys_fsconfig (fs, FSCONFIG_SET_FLAG, read_only ? "ro" : "rw", NULL, 0);
  return error < 0 ? (int) error : (int) sys_fsconfig (fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0);
}

/* A chrooted process cannot create a user namespace (user_namespaces(7)), and so no mount namespace with copies
   of its mounts.  If a guest cannot leave its chroot(2) either, its root has one mount, and changing that is
   enough.  Otherwise a descriptor may belong to a copy, so the file system itself is changed. */
static int
set_access (const struct pc_security *security, const struct pc_root *root, int read_only)
{
  u64 escapes = 1ull << CAP_SYS_CHROOT | 1ull << CAP_SYS_ADMIN;
  int has_one_mount = security->landlock_abi > 0 && (security->capabilities & escapes) == 0;

  return has_one_mount ? set_mount_access (root->old, read_only) : set_filesystem_access (root->old, read_only);
}

_Noreturn static void
replace_root_child (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                    int sync)
{
  static struct pc_child_fds sources;
  struct pc_failure failure = { 0, 0 };
  struct pc_record ready = { .kind = PC_RECORD_READY };
  struct pc_root root = { -1, -1, -1 };
  int control = fds->fd[plan->control_fd];
  i32 op = -1;

  CHECK (PC_STEP_JOIN, sys_setns (fds->fd[plan->exit_fd], CLONE_NEWUSER | CLONE_NEWNS));
  pc_receive_sources (control, sync, &sources);
  pc_become_root_inside (plan, control);
  const struct pc_security *security = pc_at (plan, plan->security);
  const char *place = security->landlock_abi > 0 ? "/r" : "/";
  CHECK (PC_STEP_PIVOT, root.old = (int) sys_openat (AT_FDCWD_, place, O_PATH | O_DIRECTORY | O_CLOEXEC, 0));
  CHECK (PC_STEP_PIVOT, pc_enter (root.old));
  /* A descriptor of the old root may exist outside the container's processes: in a socket's queue, in another
     process, as a mapping.  A writable one makes this step fail.  Others cannot be used to write to the layer
     afterwards. */
  CHECK (PC_STEP_SEAL, set_access (security, &root, 1));
  word error = make_scaffold (&root, sources.source_count);
  if (error < 0)
    failure = (struct pc_failure) { PC_STEP_PIVOT, (i32) -error };
  if (error == 0)
    error = pc_build_root (launcher, plan, &sources, &root, &op, &failure);
  if (error == 0 && (error = take_place (&root)) < 0)
    failure = (struct pc_failure) { PC_STEP_PIVOT, (i32) -error };
  if (error < 0)
    {
      /* The container continues with its old root. */
      (void) set_access (security, &root, 0);
      pc_die (control, failure.step, -failure.error, op);
    }
  /* Closing the last fd of the old root frees its caches, which takes time: at exit, after the answer. */
  (void) pc_send_record (control, &ready, -1);
  sys_exit (0);
}

static int
is_alive (int pidfd)
{
  return sys_pidfd_send_signal (pidfd, 0, 0, 0) == 0;
}

void
pc_replace_root (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, i32 pid,
                 struct pc_record *reply)
{
  struct clone_args args = { .exit_signal = SIGCHLD_ };
  int sync[2];

  if (plan->control_fd >= fds->count || plan->exit_fd >= fds->count)
    {
      (void) pc_failed (reply, PC_STEP_PLAN, -EBADF, -1);
      return;
    }
  word error = sys_socketpair (AF_UNIX_, SOCK_SEQPACKET_ | SOCK_CLOEXEC_, 0, sync);
  if (error < 0)
    {
      (void) pc_failed (reply, PC_STEP_LAUNCHER, error, -1);
      return;
    }
  word child = sys_clone3 (&args, sizeof args);
  if (child == 0)
    {
      sys_close (sync[0]);
      replace_root_child (launcher, plan, fds, sync[1]);
    }
  sys_close (sync[1]);
  if (child < 0)
    (void) pc_failed (reply, PC_STEP_CLONE, child, -1);
  /* A pid is not reused while its process lives.  So if PID 1 is alive now, the pid named it all the time before. */
  else if (pc_send_sources (launcher, plan, fds, pid, sync[0], reply) == 0)
    {
      reply->kind = PC_RECORD_STARTED;
      reply->step = 0;
      reply->error = is_alive (fds->fd[plan->exit_fd]) ? 0 : ESRCH;
    }
  sys_close (sync[0]);
}
