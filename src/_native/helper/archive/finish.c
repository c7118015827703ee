/* Completion of a layer against the layers below: implied directories, opaque markers, directory times. */
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

#define AT_SYMLINK_NOFOLLOW_ 0x100

struct walk
{
  int dir;    /* an fd, -ENOENT, or another negative errno */
  int hidden; /* no lower layer is visible through it */
  int hidden_above; /* by one of the directories on the way */
  int other;  /* a file or a link lies on the way */
};

/* Open directories of the last path in each layer. Noted paths are sorted, mostly one step apart; a walk from the
   top for each would take minutes for a path of 2000 parts. */
struct cursor
{
  char path[PC_TAR_NAME_MOST];
  u32 ready;
  struct walk walks[COUNT (((struct pc_fds *) 0)->fd) + 1]; /* the layer's own, then the lower ones */
};

static struct cursor cursor;

static int
is_opaque (int dir)
{
  char value;
  return raw4 (__NR_fgetxattr, dir, PC_OPAQUE, &value, 1) == 1 && value == 'y';
}

static void
walk_begin (struct walk *walk, int layer)
{
  *walk = (struct walk){ 0 };
  walk->dir = (int) sys_openat (layer, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

static void
walk_end (struct walk *walk, int error)
{
  pc_close_fd (&walk->dir);
  walk->dir = error;
}

/* Descend into the directory `part`. */
static void
walk_step (struct walk *walk, const char *part)
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

/* Follow a path of directories in one layer. */
static struct walk
walk_layer (int layer, const char *path)
{
  char part[256];
  struct walk walk;

  walk_begin (&walk, layer);
  while (*path != '\0' && walk.dir >= 0)
    {
      path = cut_part (path, part);
      walk_step (&walk, part);
    }
  return walk;
}

static void
move_cursor (const struct pc_unpack *unpack, const int *lowers, u32 count, const char *path)
{
  char part[256];
  usize had = pc_strlen (cursor.path);
  const char *rest = path;
  int below = cursor.ready && pc_starts_with (path, cursor.path)
              && (had == 0 || path[had] == '/' || path[had] == '\0');

  if (below)
    rest = path + had + (had > 0 && path[had] == '/');
  for (u32 i = 0; !below && i <= count; i++)
    {
      if (cursor.ready)
        pc_close_fd (&cursor.walks[i].dir);
      walk_begin (&cursor.walks[i], i == 0 ? unpack->top : lowers[i - 1]);
    }
  while (*rest != '\0')
    {
      rest = cut_part (rest, part);
      for (u32 i = 0; i <= count; i++)
        walk_step (&cursor.walks[i], part);
    }
  memcpy (cursor.path, path, pc_strlen (path) + 1);
  cursor.ready = 1;
}

/* Find the visible lower directory at a path: a borrowed fd, -ENOENT, or -ELOOP for another kind of file. */
static int
find_below (const struct pc_unpack *unpack, const int *lowers, u32 count, const char *path)
{
  move_cursor (unpack, lowers, count, path);
  int hidden = cursor.walks[0].hidden_above; /* an opaque directory hides its content, not itself */
  for (u32 i = 1; i <= count && !hidden; i++)
    {
      const struct walk *walk = &cursor.walks[i];
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

static void
forget_cursor (u32 count)
{
  for (u32 i = 0; cursor.ready && i <= count; i++)
    pc_close_fd (&cursor.walks[i].dir);
  cursor.ready = 0;
}

/* Read a lower layer's entry `name`: as pc_lower_link. */
static int
read_link (int dir, const char *name, const struct pc_stat *found, char target[PC_TAR_NAME_MOST])
{
  if (found->is_whiteout || (found->mode & S_IFMT) == S_IFDIR)
    return 0;
  if ((found->mode & S_IFMT) != S_IFLNK)
    return -ENOTDIR;
  word size = raw4 (__NR_readlinkat, dir, name, target, PC_TAR_NAME_MOST - 1);
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
  move_cursor (unpack, unpack->lowers.fd, unpack->lowers.count, above);
  /* The cursor's own walk may be older than the last entries. */
  struct walk own = walk_layer (unpack->top, above);
  int hidden = own.hidden;
  pc_close_fd (&own.dir);
  for (u32 i = 1; i <= unpack->lowers.count && !hidden; i++)
    {
      const struct walk *walk = &cursor.walks[i];
      int error = walk->dir < 0 ? walk->dir : pc_tree_stat (walk->dir, name, found);
      if (error == 0)
        return read_link (walk->dir, name, found, target);
      if (error != -ENOENT)
        return error;
      hidden = walk->hidden;
    }
  return 0;
}

static int
copy_attributes (int from, int to)
{
  static char names[65536];
  static char value[65536];
  word size = raw3 (__NR_flistxattr, from, names, sizeof names);

  if (size < 0 && size != -EOPNOTSUPP)
    return (int) size;
  for (word at = 0; at < size; at += (word) pc_strlen (names + at) + 1)
    {
      if (!pc_attribute_is_content (names + at))
        continue;
      word got = raw4 (__NR_fgetxattr, from, names + at, value, sizeof value);
      word error = got < 0 ? got : raw5 (__NR_fsetxattr, to, names + at, value, got, 0);
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
  int below = find_below (unpack, lowers, count, path);

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
    error = raw5 (__NR_fchownat, dir, "", pc_unpack_id (unpack, found.uid),
                  pc_unpack_id (unpack, found.gid), 0x1000);
  if (error < 0)
    return pc_unpack_failed (unpack, PC_UNPACK_OWNER, error);
  error = raw2 (__NR_fchmod, dir, found.mode & 07777);
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
      struct walk walk = walk_layer (lowers[i], path);
      cleanup_fd int below = walk.dir;
      word got = below < 0 && below != -ENOENT ? below : 0;
      while (below >= 0 && (got = raw3 (__NR_getdents64, below, names, sizeof names)) > 0)
        for (word at = 0; at < got;)
          {
            struct pc_entry *entry = (struct pc_entry *) (void *) (names + at);
            at += entry->size;
            if (pc_streq (entry->name, ".") || pc_streq (entry->name, ".."))
              continue;
            word error = raw4 (__NR_mknodat, dir, entry->name, S_IFCHR, 0);
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
  move_cursor (unpack, lowers, count, cut > 0 ? path : "");
  const struct walk *own = &cursor.walks[0];
  int hidden = own->hidden;
  int error = own->dir < 0 ? -ENOENT : pc_tree_stat (own->dir, path + cut, &found);
  if (error < 0 || !found.is_whiteout)
    return 0; /* replaced by a later entry, or where a link of this layer leads */
  for (u32 i = 1; i <= count && !hidden; i++)
    {
      if (cursor.walks[i].dir >= 0)
        return 0;
      hidden = cursor.walks[i].hidden;
    }
  return (int) raw3 (__NR_unlinkat, own->dir, path + cut, 0);
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
      /* A later entry replaced or named the directory; its content may have been meant for a lower link's target. */
      int strays = find_below (unpack, lowers, count, path) == -ELOOP;
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
  word error = raw4 (__NR_utimensat, dir, NULL, times, 0);
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

  forget_cursor (unpack->lowers.count); /* its walk of this layer is older than the last entries */
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
