/* The launcher's side of a start: clone, id maps, mount sources, reply. */
#include "child.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/sched.h>
#include <linux/stat.h>

#define CLONED_NAMESPACES                                                                          \
  (CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS)
#define SIGKILL_ 9
#define MS_PRIVATE_ (1 << 18)
#define MS_SLAVE_ (1 << 19)

static int
write_map (word pid, const char *file, const void *text, usize size)
{
  char path[64] = "/proc/";
  usize n = 6 + pc_decimal (path + 6, (u64) pid);
  memcpy (path + n, file, pc_strlen (file) + 1);
  return pc_write_file (AT_FDCWD_, path, text, size);
}

static int
write_maps (const struct pc_plan *plan, word pid)
{
  int error = 0;
  if (plan->flags & PC_PLAN_DENY_SETGROUPS)
    error = write_map (pid, "/setgroups", "deny", 4);
  if (error >= 0)
    error = write_map (pid, "/uid_map", pc_at (plan, plan->uid_map), plan->uid_map.size);
  if (error >= 0)
    error = write_map (pid, "/gid_map", pc_at (plan, plan->gid_map), plan->gid_map.size);
  return error;
}

/* The caller's path must still be what the caller saw: its mounts may have changed since. */
static int
same_file (int fd, const struct pc_source *source)
{
  struct statx seen;
  word error = raw5 (__NR_statx, fd, "", AT_EMPTY_PATH, STATX_INO, &seen);
  if (error < 0)
    return (int) error;
  u64 device = ((u64) seen.stx_dev_major << 32) | seen.stx_dev_minor;
  return device == source->device && seen.stx_ino == source->inode ? 0 : -ESTALE;
}

static int
open_source (const struct pc_launcher *launcher, const struct pc_plan *plan,
             const struct pc_source *source, const struct pc_fds *fds)
{
  u32 recursive = source->flags & PC_OP_RECURSIVE ? AT_RECURSIVE_ : 0;
  if (source->fd != PC_NO_FD)
    {
      if (source->fd >= fds->count)
        return -EBADF;
      return (int) raw3 (__NR_fcntl, fds->fd[source->fd], F_DUPFD_CLOEXEC, 3);
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

/* A user namespace that shows ids from `first` on as those of the container: for a mount alone, so nobody lives
   in it when it is made. */
static int
make_map (const char *text, usize size)
{
  struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = 17 };
  word pid = raw2 (__NR_clone3, &args, sizeof args);
  if (pid == 0)
    for (;;)
      raw5 (__NR_ppoll, 0, 0, 0, 0, 8);
  if (pid < 0)
    return (int) pid;
  char path[64] = "/proc/";
  usize p = 6 + pc_decimal (path + 6, (u64) pid);
  int error = write_map (pid, "/uid_map", text, size);
  if (error >= 0)
    error = write_map (pid, "/gid_map", text, size);
  memcpy (path + p, "/ns/user", 9);
  if (error >= 0)
    error = (int) sys_openat (AT_FDCWD_, path, O_RDONLY | O_CLOEXEC, 0);
  raw2 (__NR_kill, pid, SIGKILL_);
  raw4 (__NR_wait4, pid, 0, 0, 0);
  return error;
}

struct map
{
  char text[64];
  int fd;
};

/* Containers of one snapshot follow each other, and their blocks return. */
static struct map maps[16];
static u32 next_map;

static int
find_map (const struct pc_plan *plan, u64 first)
{
  const char *own = pc_at (plan, plan->uid_map); /* "0 FIRST COUNT" */
  char text[64] = { 0 };
  usize n = pc_decimal (text, first);
  usize size = plan->uid_map.size;
  if (size < 3 || own[0] != '0' || own[1] != ' ' || n + size >= sizeof text)
    return -EINVAL;
  memcpy (text + n, own + 1, size - 1);
  for (u32 i = 0; i < COUNT (maps); i++)
    if (pc_streq (maps[i].text, text))
      return maps[i].fd;
  int fd = make_map (text, n + size - 1);
  if (fd < 0)
    return fd;
  struct map *map = &maps[next_map++ % COUNT (maps)];
  if (map->text[0] != '\0')
    sys_close (map->fd);
  memcpy (map->text, text, sizeof text);
  map->fd = fd;
  return fd;
}

/* Never a peer of the host's mount, which would show it what the guest mounts. */
static int
set_attributes (const struct pc_plan *plan, int fd, const struct pc_source *source, int user_namespace)
{
  struct mount_attr attributes = {
    .attr_set = source->attributes,
    .propagation = source->flags & PC_OP_SLAVE ? MS_SLAVE_ : MS_PRIVATE_,
  };

  if ((source->flags & PC_OP_IDMAP) && source->first_id != 0)
    {
      user_namespace = find_map (plan, source->first_id);
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
      /* One mount below that has no id maps does not take them from the others. */
      if (error == 0 && source->flags & PC_OP_RECURSIVE)
        (void) sys_mount_setattr (fd, 0, &map);
    }
  return (int) error;
}

/* A copy of what the launcher made: it is detached, or attached at path where such trees cannot be cloned. */
static int
copy_tree (int detached, const char *path)
{
  if (detached >= 0)
    return (int) sys_open_tree (detached, "", CLONE_TREE | AT_RECURSIVE_ | AT_EMPTY_PATH);
  return (int) sys_open_tree (AT_FDCWD_, path, CLONE_TREE | AT_RECURSIVE_);
}

#define MOST_SENT 240u /* SCM_MAX_FD is 253 */

static int
send_part (int sync, struct pc_sources_head *head, struct pc_fds *part, u32 more)
{
  head->more = more;
  int result = pc_send (sync, head, sizeof *head, part->fd, part->count, 0);
  head->store = head->dev = head->sys = 0;
  pc_close_fds (part);
  return result;
}

int
pc_send_sources (const struct pc_launcher *launcher, const struct pc_plan *plan,
                 const struct pc_fds *fds, word pid, int sync, struct pc_record *reply)
{
  struct pc_fds out = { .count = 0 };
  const struct pc_source *sources = pc_at (plan, plan->sources);
  u32 count = plan->sources.size / sizeof *sources;
  struct pc_sources_head head = { 0, 0, 0, 0 };
  char path[64] = "/proc/";
  usize n = 6 + pc_decimal (path + 6, (u64) pid);
  memcpy (path + n, "/ns/user", 9);
  cleanup_fd int user = plan->namespaces & CLONE_NEWUSER
                            ? (int) sys_openat (AT_FDCWD_, path, O_RDONLY | O_CLOEXEC, 0)
                            : -1;
  int result = -1;

  if (plan->namespaces & CLONE_NEWUSER && user < 0)
    return pc_failed (reply, PC_STEP_MOUNT_IDMAP, user, -1);
  if (count > PC_MAX_FDS)
    return pc_failed (reply, PC_STEP_PLAN, -E2BIG, -1);
  if (plan->store_fd != PC_NO_FD || plan->store.path.size > 0)
    {
      struct pc_source store = plan->store;
      store.fd = plan->store_fd;
      int fd = open_source (launcher, plan, &store, fds);
      if (fd < 0)
        return pc_failed (reply, PC_STEP_UPPER, fd, -1);
      out.fd[out.count++] = fd;
      head.store = 1;
      int error = set_attributes (plan, fd, &store, -1);
      if (error < 0)
        {
          (void) pc_failed (reply, PC_STEP_UPPER, error, -1);
          goto out;
        }
    }
  int dev = copy_tree (launcher->dev, "/dev");
  if (dev >= 0)
    {
      out.fd[out.count++] = dev;
      head.dev = 1;
    }
  int sys = launcher->has_sys ? copy_tree (launcher->sys, "/sys") : -1;
  if (sys >= 0)
    {
      out.fd[out.count++] = sys;
      head.sys = 1;
    }
  for (u32 i = 0; i < count; i++)
    {
      if (out.count == MOST_SENT && (result = send_part (sync, &head, &out, 1)) < 0)
        {
          (void) pc_failed (reply, PC_STEP_SYNC, result, -1);
          goto out;
        }
      int fd = open_source (launcher, plan, &sources[i], fds);
      if (fd < 0)
        {
          result = pc_failed (reply, PC_STEP_SOURCE, fd, (i32) i);
          goto out;
        }
      out.fd[out.count++] = fd;
      int error = set_attributes (plan, fd, &sources[i], user);
      if (error < 0)
        {
          result = pc_failed (reply, PC_STEP_MOUNT_IDMAP, error, (i32) i);
          goto out;
        }
    }
  result = send_part (sync, &head, &out, 0);
  if (result < 0)
    (void) pc_failed (reply, PC_STEP_SYNC, result, -1);
out:
  pc_close_fds (&out);
  return result;
}

/* Namespaces of others are joined here, by the one thread that has privilege over them. */
static int
join (const struct pc_plan *plan, const struct pc_fds *fds, int own[4])
{
  static const char names[][24] = { "/proc/self/ns/net", "/proc/self/ns/ipc", "/proc/self/ns/uts" };
  static const u32 types[] = { CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS };
  const struct pc_join *joins = pc_at (plan, plan->joins);

  for (u32 i = 0; i < plan->joins.size / sizeof *joins; i++)
    {
      for (u32 kind = 0; kind < COUNT (types); kind++)
        {
          if (joins[i].type != types[kind])
            continue;
          if (joins[i].fd >= fds->count || own[kind] >= 0)
            return -EBADF;
          own[kind] = (int) sys_openat (AT_FDCWD_, names[kind], O_RDONLY | O_CLOEXEC, 0);
          /* Into its own first: where it could not come back, it must not go. */
          word error = own[kind] < 0 ? own[kind] : sys_setns (own[kind], (int) types[kind]);
          if (error < 0)
            {
              pc_close_fd (&own[kind]);
              return (int) error;
            }
          error = sys_setns (fds->fd[joins[i].fd], (int) types[kind]);
          if (error < 0)
            return (int) error;
        }
    }
  return 0;
}

static void
leave (int own[4])
{
  for (u32 i = 0; i < 3; i++)
    if (own[i] >= 0)
      {
        /* A launcher that stays in a guest's namespace is worse than none. */
        if (sys_setns (own[i], 0) < 0)
          sys_exit (1);
        pc_close_fd (&own[i]);
      }
}

static word
clone_namespaces (const struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
                  int *pidfd)
{
  int owned = launcher->privileged && plan->namespaces & CLONE_NEWUSER;
  struct clone_args args = {
    .flags = (plan->namespaces & CLONED_NAMESPACES) | CLONE_PIDFD,
    .pidfd = (u64) (usize) pidfd,
    .exit_signal = 17,
  };
  if (plan->cgroup_fd != PC_NO_FD)
    {
      args.flags |= CLONE_INTO_CGROUP;
      args.cgroup = (u64) fds->fd[plan->cgroup_fd];
    }
  return owned ? pc_clone_owned (plan, &args) : raw2 (__NR_clone3, &args, sizeof args);
}

static int
fds_present (const struct pc_plan *plan, const struct pc_fds *fds)
{
  if (plan->control_fd >= fds->count)
    return 0;
  if (plan->exit_fd != PC_NO_FD && plan->exit_fd >= fds->count)
    return 0;
  if (plan->cgroup_fd != PC_NO_FD && plan->cgroup_fd >= fds->count)
    return 0;
  return plan->tasks_count == 0 || plan->tasks_fd + plan->tasks_count <= fds->count;
}

static void
kill_and_reap (struct pc_born *born)
{
  if (born->pid == 0)
    return;
  raw4 (__NR_pidfd_send_signal, born->pidfd, SIGKILL_, 0, 0);
  pc_close_fd (&born->pidfd);
  pc_close_fd (&born->sync);
  raw4 (__NR_wait4, born->pid, 0, 0, 0);
  born->pid = 0;
}

/* Clone a child and give it its ids; 0, or -1 and the reply. */
static int
clone_child (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds, int spare,
             struct pc_born *born, struct pc_record *reply)
{
  int sync[2];
  int own[4] = { -1, -1, -1, -1 };

  born->pidfd = -1;
  word error = raw4 (__NR_socketpair, 1, 5 | 0x80000, 0, sync);
  if (error < 0)
    return pc_failed (reply, PC_STEP_LAUNCHER, error, -1);
  error = join (plan, fds, own);
  word pid = error < 0 ? error : clone_namespaces (launcher, plan, fds, &born->pidfd);
  if (pid == 0)
    {
      sys_close (sync[0]);
      if (spare)
        pc_spare_child (launcher, plan, fds, sync[1]);
      pc_child (launcher, plan, fds, fds->fd[plan->control_fd], sync[1]);
    }
  leave (own);
  sys_close (sync[1]);
  if (pid < 0)
    {
      sys_close (sync[0]);
      return pc_failed (reply, error < 0 ? PC_STEP_JOIN : PC_STEP_CLONE, pid, -1);
    }
  born->pid = (i32) pid;
  born->sync = sync[0];
  error = plan->namespaces & CLONE_NEWUSER ? write_maps (plan, pid) : 0;
  if (error < 0)
    {
      kill_and_reap (born);
      return pc_failed (reply, PC_STEP_IDMAP, error, -1);
    }
  return 0;
}

/* The child that waits takes the plan. */
static int
claim_spare (struct pc_launcher *launcher, const struct pc_plan *plan, const struct pc_fds *fds,
             struct pc_born *born, struct pc_record *reply)
{
  if (launcher->spare.pid == 0)
    return pc_failed (reply, PC_STEP_SPARE, -ESRCH, -1);
  *born = launcher->spare;
  launcher->spare.pid = 0;
  int error = pc_send (born->sync, plan, plan->size, &fds->fd[plan->control_fd], 1, 0);
  if (error < 0)
    {
      kill_and_reap (born);
      return pc_failed (reply, PC_STEP_SPARE, error, -1);
    }
  return 0;
}

void
pc_spare_ended (struct pc_launcher *launcher, i32 pid)
{
  if (launcher->spare.pid != pid)
    return;
  pc_close_fd (&launcher->spare.pidfd);
  pc_close_fd (&launcher->spare.sync);
  launcher->spare.pid = 0;
}

void
pc_prepare_spare (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds)
{
  struct pc_record unsaid = { .kind = 0 };

  kill_and_reap (&launcher->spare);
  if (!fds_present (plan, fds)
      || clone_child (launcher, plan, fds, 1, &launcher->spare, &unsaid) < 0)
    launcher->spare.pid = 0;
}

int
pc_spawn (struct pc_launcher *launcher, const struct pc_plan *plan, struct pc_fds *fds,
          struct pc_record *reply)
{
  struct pc_born born = { 0, -1, -1 };

  if (!fds_present (plan, fds))
    return pc_failed (reply, PC_STEP_PLAN, -EBADF, -1);
  int error = plan->flags & PC_PLAN_SPARE ? claim_spare (launcher, plan, fds, &born, reply)
                                          : clone_child (launcher, plan, fds, 0, &born, reply);
  if (error < 0)
    return -1;
  if (pc_send_sources (launcher, plan, fds, born.pid, born.sync, reply) < 0)
    {
      kill_and_reap (&born);
      return -1;
    }
  pc_close_fd (&born.sync);
  reply->kind = PC_RECORD_STARTED;
  reply->step = 0;
  reply->error = 0;
  reply->value = born.pid;
  if (plan->exit_fd != PC_NO_FD)
    pc_watch_child (born.pid, pc_steal_fd (&fds->fd[plan->exit_fd]));
  return born.pidfd;
}
