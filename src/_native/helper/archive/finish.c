/* Completion of a layer against the layers below: implied directories, opaque markers, directory times. */
#include "lowers.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

static int
copy_attributes (int from, int to)
{
  static char names[65536];
  static char value[65536];
  word size = sys_flistxattr (from, names, sizeof names);

  if (size < 0 && size != -EOPNOTSUPP)
    return (int) size;
  for (word at = 0; at < size; at += (word) pc_strlen (names + at) + 1)
    {
      if (!pc_attribute_is_content (names + at))
        continue;
      word got = sys_fgetxattr (from, names + at, value, sizeof value);
      word error = got < 0 ? got : sys_fsetxattr (to, names + at, value, got, 0);
      if (error < 0 && error != -EPERM && error != -EOPNOTSUPP)
        return (int) error;
    }
  return 0;
}

/* Copy a directory that no entry named from the layers below, or give it common attributes. */
static int
settle_directory (struct pc_unpack *unpack, const int *lowers, u32 count, int dir, const char *path,
                  struct pc_noted *noted)
{
  struct pc_stat found = { .mode = 0755 };
  int below = pc_find_below (unpack, lowers, count, path);

  if (below == -ELOOP)
    return pc_unpack_crosses (unpack, PC_UNPACK_BELOW, 0);
  if (below < 0 && below != -ENOENT)
    return pc_unpack_failed (unpack, PC_UNPACK_LOWER, below);
  word error = below < 0 ? 0 : pc_tree_stat (below, "", &found);
  if (error == 0 && below >= 0)
    error = copy_attributes (below, dir);
  if (error < 0)
    return pc_unpack_failed (unpack, PC_UNPACK_LOWER, error);
  if (unpack->flags & PC_UNPACK_OWNERS)
    error
        = sys_fchownat (dir, "", pc_unpack_id (unpack, found.uid), pc_unpack_id (unpack, found.gid), AT_EMPTY_PATH_);
  if (error < 0)
    return pc_unpack_failed (unpack, PC_UNPACK_OWNER, error);
  error = sys_fchmod (dir, found.mode & 07777);
  if (error < 0)
    return pc_unpack_failed (unpack, PC_UNPACK_MODE, error);
  /* A fixed time for directories without one, so that equal archives give equal trees. */
  noted->seconds = found.seconds;
  noted->nanoseconds = found.nanoseconds;
  noted->kind = PC_NOTED_NAMED;
  return 0;
}

/* Create whiteouts for names of the lower layers that this directory lacks. */
static int
spell_out (struct pc_unpack *unpack, const int *lowers, u32 count, int dir, const char *path)
{
  static char names[32768] __attribute__ ((aligned (8)));

  for (u32 i = 0; i < count; i++)
    {
      struct pc_walk walk = pc_walk_layer (lowers[i], path);
      cleanup_fd int below = walk.dir;
      word got = below < 0 && below != -ENOENT ? below : 0;
      while (below >= 0 && (got = sys_getdents64 (below, names, sizeof names)) > 0)
        for (word at = 0; at < got;)
          {
            struct pc_entry *entry = (struct pc_entry *) (void *) (names + at);
            at += entry->size;
            if (pc_streq (entry->name, ".") || pc_streq (entry->name, ".."))
              continue;
            word error = sys_mknodat (dir, entry->name, S_IFCHR, 0);
            if (error < 0 && error != -EEXIST)
              return pc_unpack_failed (unpack, PC_UNPACK_WHITEOUT, error);
          }
      if (got < 0)
        return pc_unpack_failed (unpack, PC_UNPACK_LOWER, got);
      if (walk.hidden)
        return 0;
    }
  return 0;
}

/* Open a noted directory, if it still is one, and its parent. */
static int
open_noted (const struct pc_unpack *unpack, char *path, int *parent, const char **last)
{
  usize cut = pc_strlen (path);
  while (cut > 0 && path[cut - 1] != '/')
    cut--;
  *last = path[0] == '\0' ? "." : path + cut;
  if (cut > 0)
    path[cut - 1] = '\0';
  *parent = pc_tree_open_nofollow (unpack->top, cut > 0 ? path : ".");
  if (cut > 0)
    path[cut - 1] = '/';
  if (*parent < 0)
    return *parent;
  return (int) sys_openat (*parent, *last, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
}

/* overlayfs shows whiteouts in directories that exist in one layer only, so they are removed there. */
static int
settle_whiteout (const struct pc_unpack *unpack, const int *lowers, u32 count, char *path)
{
  struct pc_stat found = { 0 };
  usize cut = pc_strlen (path);
  while (cut > 0 && path[cut - 1] != '/')
    cut--;
  if (cut > 0)
    path[cut - 1] = '\0';
  pc_move_cursor (unpack, lowers, count, cut > 0 ? path : "");
  const struct pc_walk *own = &pc_cursor.walks[0];
  int hidden = own->hidden;
  int error = own->dir < 0 ? -ENOENT : pc_tree_stat (own->dir, path + cut, &found);
  if (error < 0 || !found.is_whiteout)
    return 0; /* replaced by a later entry, or behind a link of this layer */
  for (u32 i = 1; i <= count && !hidden; i++)
    {
      if (pc_cursor.walks[i].dir >= 0)
        return 0;
      hidden = pc_cursor.walks[i].hidden;
    }
  return (int) sys_unlinkat (own->dir, path + cut, 0);
}

static int
settle (struct pc_unpack *unpack, const int *lowers, u32 count, struct pc_noted *noted)
{
  char *path = (char *) (noted + 1);
  const char *last = "";
  struct pc_stat found = { 0 };

  if (noted->kind == PC_NOTED_WHITEOUT)
    {
      int error = settle_whiteout (unpack, lowers, count, path);
      return error < 0 ? pc_unpack_failed (unpack, PC_UNPACK_WHITEOUT, error) : 0;
    }
  cleanup_fd int parent = -1;
  cleanup_fd int dir = open_noted (unpack, path, &parent, &last);
  int gone = dir < 0 || pc_tree_stat (dir, "", &found) < 0;
  if (noted->kind == PC_NOTED_OPAQUE)
    return gone ? 0 : spell_out (unpack, lowers, count, dir, path);
  if (gone || (found.mode & 07777 & ~(u32) S_ISGID) != PC_IMPLIED_MODE)
    {
      /* A later entry replaced or named the directory.  Below a lower layer's link its content is in the wrong
         place. */
      int strays = pc_find_below (unpack, lowers, count, path) == -ELOOP;
      return strays ? pc_unpack_crosses (unpack, PC_UNPACK_BELOW, 0) : 0;
    }
  return settle_directory (unpack, lowers, count, dir, path, noted);
}

static int
set_times (struct pc_unpack *unpack, struct pc_noted *noted)
{
  i64 times[4] = { noted->seconds, noted->nanoseconds, noted->seconds, noted->nanoseconds };
  const char *last = "";
  cleanup_fd int parent = -1;
  cleanup_fd int dir = open_noted (unpack, (char *) (noted + 1), &parent, &last);

  if (dir < 0)
    return 0;
  word error = sys_utimensat (dir, NULL, times, 0);
  return error < 0 ? pc_unpack_failed (unpack, PC_UNPACK_TIMES, error) : 0;
}

static struct pc_noted *
next_noted (struct pc_unpack *unpack, usize *at)
{
  if (*at >= unpack->notes_size)
    return NULL;
  struct pc_noted *noted = (struct pc_noted *) (void *) (unpack->notes + *at);
  *at += sizeof *noted + noted->size;
  return noted;
}

int
pc_unpack_finish (struct pc_unpack *unpack, const int *lowers, u32 count)
{
  struct
  {
    struct pc_noted noted;
    char path[8];
  } root = { 0 };
  struct pc_noted *noted;
  int error = 0;

  pc_forget_cursor (unpack->lowers.count); /* its walk of this layer is older than the last entries */
  for (usize at = 0; error == 0 && (noted = next_noted (unpack, &at)) != NULL;)
    if (noted->kind != PC_NOTED_NAMED)
      error = settle (unpack, lowers, count, noted);
  /* A plain tree without an entry for its root keeps the root's attributes. */
  int settles_root = !unpack->root_seen && !(unpack->flags & PC_UNPACK_INTO_TREE);
  if (error == 0 && settles_root)
    error = settle_directory (unpack, lowers, count, unpack->top, "", &root.noted);
  for (usize at = 0; error == 0 && (noted = next_noted (unpack, &at)) != NULL;)
    if (noted->kind == PC_NOTED_NAMED)
      error = set_times (unpack, noted);
  if (error == 0 && settles_root)
    error = set_times (unpack, &root.noted);
  return error;
}
