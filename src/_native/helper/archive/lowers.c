/* The layers below: which directory or link of theirs is visible at a path. */
#include "lowers.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

struct pc_cursor pc_cursor;

static int
is_opaque (int dir)
{
  char value;
  return sys_fgetxattr (dir, PC_OPAQUE, &value, 1) == 1 && value == 'y';
}

static void
walk_begin (struct pc_walk *walk, int layer)
{
  *walk = (struct pc_walk) { 0 };
  walk->dir = (int) sys_openat (layer, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

static void
walk_end (struct pc_walk *walk, int error)
{
  pc_close_fd (&walk->dir);
  walk->dir = error;
}

/* Descend into the directory `part`. */
static void
walk_step (struct pc_walk *walk, const char *part)
{
  struct pc_stat found = { 0 };

  walk->hidden_above = walk->hidden;
  if (walk->dir < 0)
    return;
  int error = pc_tree_stat (walk->dir, part, &found);
  if (error < 0)
    {
      walk_end (walk, error);
      return;
    }
  walk->other = (found.mode & S_IFMT) != S_IFDIR && !found.is_whiteout;
  if ((found.mode & S_IFMT) != S_IFDIR)
    {
      walk->hidden = 1;
      walk_end (walk, -ENOENT);
      return;
    }
  int next = (int) sys_openat (walk->dir, part, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  walk_end (walk, next);
  walk->hidden |= next >= 0 && is_opaque (next);
}

/* Split the next part off a path. */
static const char *
cut_part (const char *path, char part[256])
{
  usize n = 0;
  while (path[n] != '\0' && path[n] != '/' && n < 255)
    n++;
  memcpy (part, path, n);
  part[n] = '\0';
  return path + n + (path[n] == '/');
}

struct pc_walk
pc_walk_layer (int layer, const char *path)
{
  char part[256];
  struct pc_walk walk;

  walk_begin (&walk, layer);
  while (*path != '\0' && walk.dir >= 0)
    {
      path = cut_part (path, part);
      walk_step (&walk, part);
    }
  return walk;
}

void
pc_move_cursor (const struct pc_unpack *unpack, const int *lowers, u32 count, const char *path)
{
  char part[256];
  usize had = pc_strlen (pc_cursor.path);
  const char *rest = path;
  int below = pc_cursor.ready && pc_starts_with (path, pc_cursor.path)
              && (had == 0 || path[had] == '/' || path[had] == '\0');

  if (below)
    rest = path + had + (had > 0 && path[had] == '/');
  for (u32 i = 0; !below && i <= count; i++)
    {
      if (pc_cursor.ready)
        pc_close_fd (&pc_cursor.walks[i].dir);
      walk_begin (&pc_cursor.walks[i], i == 0 ? unpack->top : lowers[i - 1]);
    }
  while (*rest != '\0')
    {
      rest = cut_part (rest, part);
      for (u32 i = 0; i <= count; i++)
        walk_step (&pc_cursor.walks[i], part);
    }
  memcpy (pc_cursor.path, path, pc_strlen (path) + 1);
  pc_cursor.ready = 1;
}

int
pc_find_below (const struct pc_unpack *unpack, const int *lowers, u32 count, const char *path)
{
  pc_move_cursor (unpack, lowers, count, path);
  int hidden = pc_cursor.walks[0].hidden_above; /* an opaque directory hides its content, not itself */
  for (u32 i = 1; i <= count && !hidden; i++)
    {
      const struct pc_walk *walk = &pc_cursor.walks[i];
      if (walk->dir >= 0)
        return walk->dir;
      if (walk->other)
        return -ELOOP;
      if (walk->dir != -ENOENT)
        return walk->dir;
      hidden = walk->hidden;
    }
  return -ENOENT;
}

void
pc_forget_cursor (u32 count)
{
  for (u32 i = 0; pc_cursor.ready && i <= count; i++)
    pc_close_fd (&pc_cursor.walks[i].dir);
  pc_cursor.ready = 0;
}

/* Read a lower layer's entry `name`: as pc_lower_link. */
static int
read_link (int dir, const char *name, const struct pc_stat *found, char target[PC_TAR_NAME_MOST])
{
  if (found->is_whiteout || (found->mode & S_IFMT) == S_IFDIR)
    return 0;
  if ((found->mode & S_IFMT) != S_IFLNK)
    return -ENOTDIR;
  word size = sys_readlinkat (dir, name, target, PC_TAR_NAME_MOST - 1);
  if (size < 0)
    return (int) size;
  target[size] = '\0';
  return 1;
}

int
pc_lower_link (const struct pc_unpack *unpack, const char *path, const char *name, char target[PC_TAR_NAME_MOST],
               struct pc_stat *found)
{
  static char above[PC_TAR_NAME_MOST];
  usize cut = pc_strlen (path) - pc_strlen (name);

  memcpy (above, path, cut);
  above[cut > 0 ? cut - 1 : 0] = '\0';
  pc_move_cursor (unpack, unpack->lowers.fd, unpack->lowers.count, above);
  /* The cursor's own walk may be older than the last entries. */
  struct pc_walk own = pc_walk_layer (unpack->top, above);
  int hidden = own.hidden;
  pc_close_fd (&own.dir);
  for (u32 i = 1; i <= unpack->lowers.count && !hidden; i++)
    {
      const struct pc_walk *walk = &pc_cursor.walks[i];
      int error = walk->dir < 0 ? walk->dir : pc_tree_stat (walk->dir, name, found);
      if (error == 0)
        return read_link (walk->dir, name, found, target);
      if (error != -ENOENT)
        return error;
      hidden = walk->hidden;
    }
  return 0;
}
