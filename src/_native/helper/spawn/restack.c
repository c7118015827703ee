/* Another root below a container that goes on: what it has written so far becomes a layer, and is not written
   any more.  Its agent is alone then, so nobody is there to see or to meet the child that does it. */
#include "child.h"
#include "mountapi.h"

#include <linux/capability.h>
#include <linux/errno.h>
#include <linux/sched.h>

/* Directories to attach aside, as the launcher's own namespace has them. */
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
  /* Upon the old root, with which it goes. */
  if (error == 0)
    error = sys_move_mount (scaffold, root->old);
  return error < 0 ? (int) error : (int) sys_fchdir (scaffold);
}

/* pivot_root(2) takes everybody along whose root was the old one. */
static int
take_place (const struct pc_root *root)
{
  word error = sys_fchdir (root->root);
  if (error == 0)
    error = sys_pivot_root (".", ".");
  /* On the new root lies the old one now, and on that the scaffold. */
  for (u32 i = 0; error == 0 && i < 2; i++)
    error = sys_umount2 (".", MNT_DETACH_);
  return (int) error;
}

/* Make a mount read-only, or writable again.  The kernel refuses the first with EBUSY while a file is open to
   be written through that mount, and a count of such files is all that it looks at. */
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

/* The same for a whole file system, through every mount of it.  The kernel drops the caches of all its names,
   which takes the longer the more were used. */
static int
set_filesystem_access (int at, int read_only)
{
  cleanup_fd int fs = (int) sys_fspick (at);
  word error = fs < 0 ? fs : sys_fsconfig (fs, FSCONFIG_SET_FLAG, read_only ? "ro" : "rw", NULL, 0);
  return error < 0 ? (int) error : (int) sys_fsconfig (fs, FSCONFIG_CMD_RECONFIGURE, NULL, NULL, 0);
}

/* A guest that cannot leave its chroot(2) gets no user namespace (user_namespaces(7)), and so no mount namespace
   with copies of its mounts: there is one mount of its root.  Elsewhere a descriptor may belong to a copy. */
static int
set_access (const struct pc_security *security, const struct pc_root *root, int read_only)
{
  u64 escapes = 1ull << CAP_SYS_CHROOT | 1ull << CAP_SYS_ADMIN;
  int has_one_mount = security->landlock_abi > 0 && (security->capabilities & escapes) == 0;

  return has_one_mount ? set_mount_access (root->old, read_only)
                       : set_filesystem_access (root->old, read_only);
}

_Noreturn static void
restack_child (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, int sync)
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
  /* A descriptor may have left the container: in another process, a socket's queue, a mapping.  One that can
     write makes this fail; directories and files that were opened to read give no way to write afterwards. */
  CHECK (PC_STEP_SEAL, set_access (security, &root, 1));
  word error = make_scaffold (&root, sources.source_count);
  if (error < 0)
    failure = (struct pc_failure){ PC_STEP_PIVOT, (i32) -error };
  if (error == 0)
    error = pc_build_root (launcher, plan, &sources, &root, &op, &failure);
  if (error == 0 && (error = take_place (&root)) < 0)
    failure = (struct pc_failure){ PC_STEP_PIVOT, (i32) -error };
  if (error < 0)
    {
      /* The container goes on with its old root. */
      (void) set_access (security, &root, 0);
      pc_die (control, failure.step, -failure.error, op);
    }
  /* The old root's caches are torn down when its last fd, ours, is closed: after the answer. */
  (void) pc_send_record (control, &ready, -1);
  sys_exit (0);
}

static int
is_alive (int pidfd)
{
  return sys_pidfd_send_signal (pidfd, 0, 0, 0) == 0;
}

void
pc_restack (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds, i32 pid,
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
      restack_child (launcher, plan, fds, sync[1]);
    }
  sys_close (sync[1]);
  if (child < 0)
    (void) pc_failed (reply, PC_STEP_CLONE, child, -1);
  /* The pid is PID 1's as long as it lives: what was opened by it is its own if it lives now. */
  else if (pc_send_sources (launcher, plan, fds, pid, sync[0], reply) == 0)
    {
      reply->kind = PC_RECORD_STARTED;
      reply->step = 0;
      reply->error = is_alive (fds->fd[plan->exit_fd]) ? 0 : ESRCH;
    }
  sys_close (sync[0]);
}
