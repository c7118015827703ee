/* Removal of trees that a guest wrote, of any depth and mode, with a bounded number of fds; and of cgroups. */
#include "helper/cleanup.h"
#include "wire.h"
#include "mountapi.h"

#include <linux/errno.h>

static char listing[32768] __attribute__ ((aligned (8)));
static u64 moved;

/* Make a directory accessible to its owner.  chmod through /proc/self/fd, because the name may be a link by now.  A
   confined process has no /proc, but its root is the tree, so that a link cannot point outside. */
static void
make_writable (int from, const char *name)
{
  char path[32] = "/proc/self/fd/";
  cleanup_fd int fd = (int) sys_openat (from, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0)
    return;
  pc_decimal (path + 14, (u64) fd);
  if (sys_fchmodat (AT_FDCWD_, path, 0700) == -ENOENT)
    sys_fchmodat (from, name, 0700);
}

static int
open_directory (int dir, const char *name)
{
  int fd = (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd != -EACCES)
    return fd;
  /* The guest may have removed the owner's permissions. */
  make_writable (dir, name);
  return (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
}

static int
is_dots (const char *name)
{
  return pc_streq (name, ".") || pc_streq (name, "..");
}

/* Move a directory of `from` to the top under a fresh name, so that depth becomes width. */
static int
flatten (int from, const char *name, int top)
{
  char fresh[32] = ".pyc-";
  pc_decimal (fresh + 5, moved++);
  word error = sys_renameat2 (from, name, top, fresh, 0);
  if (error == -EACCES)
    {
      make_writable (from, name);
      error = sys_renameat2 (from, name, top, fresh, 0);
    }
  return (int) error;
}

/* One pass over a directory; its subdirectories are moved to top unless it is top itself. */
static int
empty_directory (int fd, int top, u32 *left)
{
  word got;
  while ((got = sys_getdents64 (fd, listing, sizeof listing)) > 0)
    for (word at = 0; at < got;)
      {
        struct pc_entry *entry = (struct pc_entry *) (void *) (listing + at);
        at += entry->size;
        if (is_dots (entry->name))
          continue;
        word error = sys_unlinkat (fd, entry->name, 0);
        if (error == -EISDIR || error == -EPERM)
          error = sys_unlinkat (fd, entry->name, AT_REMOVEDIR_);
        if (error == -ENOTEMPTY && fd != top)
          error = flatten (fd, entry->name, top);
        if (error == -ENOTEMPTY)
          (*left)++;
        else if (error < 0 && error != -ENOENT)
          return (int) error;
      }
  return (int) got;
}

/* Empty the first directory found below top, whose own children go to top. */
static int
empty_children (int top)
{
  word got;
  cleanup_fd int reader = open_directory (top, ".");
  static char names[32768] __attribute__ ((aligned (8)));

  if (reader < 0)
    return reader;
  while ((got = sys_getdents64 (reader, names, sizeof names)) > 0)
    for (word at = 0; at < got;)
      {
        struct pc_entry *entry = (struct pc_entry *) (void *) (names + at);
        at += entry->size;
        if (is_dots (entry->name))
          continue;
        cleanup_fd int child = open_directory (top, entry->name);
        if (child < 0)
          continue;
        u32 left = 0;
        int error = empty_directory (child, top, &left);
        if (error < 0)
          return error;
      }
  return (int) got;
}

static int
is_component (const char *name)
{
  if (name[0] == '\0' || is_dots (name))
    return 0;
  for (const char *at = name; *at != '\0'; at++)
    if (*at == '/')
      return 0;
  return 1;
}

int
pc_remove_tree (int dir, const char *name)
{
  if (!is_component (name))
    return -EINVAL;
  cleanup_fd int top = open_directory (dir, name);
  if (top == -ENOENT)
    return 0;
  if (top < 0)
    return top;
  sys_fchmod (top, 0700);
  for (;;)
    {
      u32 left = 0;
      sys_lseek (top, 0, 0);
      int error = empty_directory (top, top, &left);
      if (error < 0)
        return error;
      if (left == 0)
        break;
      error = empty_children (top);
      if (error < 0)
        return error;
    }
  return (int) sys_unlinkat (dir, name, AT_REMOVEDIR_);
}

#define GROUP_DEPTH 4

static int
remove_groups_in (int group, u32 depth)
{
  /* On the stack: the function is recursive. */
  char names[4096] __attribute__ ((aligned (8)));
  word got;

  while ((got = sys_getdents64 (group, names, sizeof names)) > 0)
    for (word at = 0; at < got;)
      {
        struct pc_entry *entry = (struct pc_entry *) (void *) (names + at);
        at += entry->size;
        if (entry->type != DT_DIR_ || is_dots (entry->name) || sys_unlinkat (group, entry->name, AT_REMOVEDIR_) == 0
            || depth == GROUP_DEPTH)
          continue;
        cleanup_fd int inner = (int) sys_openat (group, entry->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
        if (inner >= 0)
          (void) remove_groups_in (inner, depth + 1);
        sys_unlinkat (group, entry->name, AT_REMOVEDIR_);
      }
  return (int) got;
}

/* A process that was killed is in its group until the kernel has run its exit, which takes long on a busy
   machine: about five seconds are waited, first in short steps. */
#define GROUP_TRIES 200
#define FIRST_PAUSE_NS 1000000
#define LONGEST_PAUSE_NS 32000000

int
pc_remove_group (int dir, const char *name)
{
  i64 pause[2] = { 0, FIRST_PAUSE_NS };

  if (!is_component (name))
    return -EINVAL;
  for (u32 try = 0;; try++)
    {
      word error = sys_unlinkat (dir, name, AT_REMOVEDIR_);
      if (error == 0 || error == -ENOENT)
        return 0;
      cleanup_fd int group = (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
      if (group < 0)
        return group;
      error = remove_groups_in (group, 0);
      if (error == 0)
        error = sys_unlinkat (dir, name, AT_REMOVEDIR_);
      if (error != -EBUSY || try == GROUP_TRIES)
        return (int) error;
      sys_nanosleep (pause, 0);
      if (try % 10 == 9 && pause[1] < LONGEST_PAUSE_NS)
        pause[1] *= 2;
    }
}
