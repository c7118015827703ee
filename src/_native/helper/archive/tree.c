/* The directory of an entry: its name is cleaned, its links are resolved, and what is missing is made. */
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

#define PARTS_MOST 256u /* each costs time with every entry below it */

/* Normalize "/a//./b/" to "a/b". */
static int
clean (struct pc_unpack *unpack, const char *name)
{
  usize n = 0;
  u32 parts = 0;
  while (*name != '\0')
    {
      usize size = 0;
      while (name[size] != '\0' && name[size] != '/')
        size++;
      parts += size > 0;
      if ((size == 2 && name[0] == '.' && name[1] == '.') || parts > PARTS_MOST)
        return pc_unpack_failed (unpack, PC_UNPACK_NAME, 0);
      if (size > 0 && !(size == 1 && name[0] == '.'))
        {
          if (n + size + 2 > sizeof unpack->path)
            return pc_unpack_failed (unpack, PC_UNPACK_NAME, 0);
          if (n > 0)
            unpack->path[n++] = '/';
          memcpy (unpack->path + n, name, size);
          n += size;
        }
      name += size;
      if (*name == '/')
        name++;
    }
  unpack->path[n] = '\0';
  return 0;
}

static int
is_marker (const char *part)
{
  return part[0] == '.' && part[1] == 'w' && part[2] == 'h' && part[3] == '.';
}

/* Make the missing directories of a path, each relative to the one above: starting at the top each time would make
   the cost quadratic in the path's length. */
static int
make_way (struct pc_unpack *unpack, char *path)
{
  usize cut = 0;
  cleanup_fd int above = pc_tree_open (unpack->top, ".");

  for (usize at = 0; above >= 0; at++)
    {
      if (path[at] != '/' && path[at] != '\0')
        continue;
      char kept = path[at];
      path[at] = '\0';
      const char *name = path + cut;
      int flags = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
      int fd = (int) sys_openat (above, name, flags, 0);
      if (fd < 0)
        {
          word error = pc_tree_imply (unpack, above, path, name);
          fd = error < 0 ? (int) error : (int) sys_openat (above, name, flags, 0);
        }
      path[at] = kept;
      pc_close_fd (&above);
      above = fd;
      if (kept == '\0')
        break;
      cut = at + 1;
    }
  return above < 0 ? pc_unpack_failed (unpack, PC_UNPACK_PARENT, above) : 0;
}

/* Set unpack->path to the directory's path and a last part. */
static int
join (struct pc_unpack *unpack, const char **last)
{
  static char part[PC_TAR_NAME_MOST];
  usize size = pc_strlen (*last) + 1;
  usize n = unpack->parent_size;

  memcpy (part, *last, size);
  if (n + 1 + size > sizeof unpack->path)
    return pc_unpack_failed (unpack, PC_UNPACK_NAME, 0);
  memcpy (unpack->path, unpack->parent_path, n);
  if (n > 0)
    unpack->path[n++] = '/';
  memcpy (unpack->path + n, part, size);
  *last = unpack->path + n;
  return 0;
}

/* Open the directory at unpack->asked, made if necessary. */
static int
open_parent (struct pc_unpack *unpack)
{
  char *path = unpack->parent_path;

  memcpy (path, unpack->asked, unpack->asked_size + 1);
  unpack->parent_size = unpack->asked_size;
  int fd = unpack->parent_size == 0 ? unpack->top : pc_tree_open_nofollow (unpack->top, path);
  if (fd == -ELOOP || (unpack->lowers.count > 0 && (fd == -ENOENT || fd == -ENOTDIR)))
    {
      int error = pc_tree_resolve (unpack, path, &unpack->parent_size);
      if (error < 0)
        return pc_unpack_crosses (unpack, PC_UNPACK_PARENT, error);
      fd = unpack->parent_size == 0 ? unpack->top : pc_tree_open_nofollow (unpack->top, path);
    }
  if (fd == -ENOENT || fd == -ENOTDIR)
    {
      int error = make_way (unpack, path);
      if (error < 0)
        return error;
      fd = pc_tree_open_nofollow (unpack->top, path);
    }
  return fd < 0 ? pc_unpack_failed (unpack, PC_UNPACK_PARENT, fd) : fd;
}

int
pc_tree_enter (struct pc_unpack *unpack, const char *name, const char **last)
{
  int error = clean (unpack, name);
  if (error < 0)
    return error;
  char *path = unpack->path;
  usize size = pc_strlen (path);
  usize cut = size;
  while (cut > 0 && path[cut - 1] != '/')
    cut--;
  *last = path + cut;
  usize parent = cut > 0 ? cut - 1 : 0;
  for (usize at = 0; at < cut; at++)
    if (!(unpack->flags & PC_UNPACK_INTO_TREE) && (at == 0 || path[at - 1] == '/') && is_marker (path + at))
      return pc_unpack_failed (unpack, PC_UNPACK_WHITEOUT, 0);
  if (unpack->parent >= 0 && unpack->asked_size == parent && memcmp (unpack->asked, path, parent) == 0)
    return join (unpack, last);
  pc_tree_forget (unpack);
  memcpy (unpack->asked, path, parent);
  unpack->asked[parent] = '\0';
  unpack->asked_size = parent;
  int fd = open_parent (unpack);
  if (fd < 0)
    return fd;
  unpack->parent = fd;
  struct pc_stat found = { 0 };
  word found_error = pc_tree_stat (fd, "", &found);
  if (found_error < 0)
    return pc_unpack_failed (unpack, PC_UNPACK_PARENT, found_error);
  unpack->parent_shares = (found.mode & S_ISGID) != 0;
  return join (unpack, last);
}

void
pc_tree_forget (struct pc_unpack *unpack)
{
  if (unpack->parent != unpack->top)
    pc_close_fd (&unpack->parent);
  unpack->parent = -1;
}
