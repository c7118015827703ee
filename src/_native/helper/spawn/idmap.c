/* Id maps: of a container's user namespace, and of the mounts whose files have other ids. */
#include "child.h"
#include "mountapi.h"

#include <linux/errno.h>

static int
write_map (word pid, const char *file, const void *text, usize size)
{
  char path[64] = "/proc/";
  usize n = 6 + pc_decimal (path + 6, (u64) pid);
  memcpy (path + n, file, pc_strlen (file) + 1);
  return pc_write_file (AT_FDCWD_, path, text, size);
}

int
pc_write_maps (const struct pc_plan *plan, word pid)
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

int
pc_open_user_namespace (word pid)
{
  char path[64] = "/proc/";
  usize n = 6 + pc_decimal (path + 6, (u64) pid);
  memcpy (path + n, "/ns/user", 9);
  return (int) sys_openat (AT_FDCWD_, path, O_RDONLY | O_CLOEXEC, 0);
}

/* Make a user namespace with this id map, for the idmap of a mount.  The child that it takes is killed at once. */
static int
make_map (const char *text, usize size)
{
  struct clone_args args = { .flags = CLONE_NEWUSER, .exit_signal = SIGCHLD_ };
  word pid = sys_clone3 (&args, sizeof args);
  if (pid == 0)
    for (;;)
      sys_ppoll (0, 0, 0, 0, 8);
  if (pid < 0)
    return (int) pid;
  int error = write_map (pid, "/uid_map", text, size);
  if (error >= 0)
    error = write_map (pid, "/gid_map", text, size);
  if (error >= 0)
    error = pc_open_user_namespace (pid);
  sys_kill (pid, SIGKILL_);
  sys_wait4 (pid, 0, 0, 0);
  return error;
}

struct map
{
  char text[64];
  int fd;
};

/* The last maps.  Containers of one snapshot need the same one, and blocks of ids are used again. */
static struct map maps[16];
static u32 next_map;

int
pc_find_map (const struct pc_plan *plan, u64 first)
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
