/* Path resolution beneath a layer's directory; links cannot lead out of it. */
#include "unpack.h"
#include "helper/cleanup.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

#define AT_SYMLINK_NOFOLLOW_ 0x100
#define PARTS_MOST 256u /* each costs time with every entry below it */

int
pc_unpack_failed (struct pc_unpack *unpack, u32 problem, word error)
{
  unpack->report.problem = problem;
  unpack->report.error = (i32) -error;
  return -(int) problem;
}

int
pc_unpack_crosses (struct pc_unpack *unpack, u32 problem, word error)
{
  if (unpack->lowers.count == 0 && (error == 0 || error == -ENOENT || error == -ENOTDIR))
    unpack->report.flags |= PC_UNPACK_CROSSES;
  return pc_unpack_failed (unpack, problem, error);
}

void
pc_tree_forget (struct pc_unpack *unpack)
{
  if (unpack->parent != unpack->top)
    pc_close_fd (&unpack->parent);
  unpack->parent = -1;
}

static int
open_by (int top, const char *path, u64 resolve)
{
  struct open_how how = {
    .flags = O_PATH | O_DIRECTORY | O_CLOEXEC,
    .resolve = RESOLVE_IN_ROOT | resolve,
  };
  word fd;
  u32 tries = 0;
  /* EAGAIN: a concurrent rename made the kernel's resolution of ".." unsafe. */
  do
    fd = sys_openat2 (top, path, &how);
  while (fd == -EAGAIN && ++tries < 100);
  return (int) fd;
}

int
pc_tree_open (int top, const char *path)
{
  return open_by (top, path, RESOLVE_NO_MAGICLINKS);
}

int
pc_tree_open_nofollow (int top, const char *path)
{
  return open_by (top, path, RESOLVE_NO_SYMLINKS);
}

int
pc_tree_stat (int dir, const char *name, struct pc_stat *out)
{
  struct statx found;
  word error = raw5 (__NR_statx, dir, name, AT_SYMLINK_NOFOLLOW_ | (name[0] == '\0' ? 0x1000 : 0),
                     STATX_BASIC_STATS, &found);
  if (error < 0)
    return (int) error;
  *out = (struct pc_stat){
    .mode = found.stx_mode,
    .uid = found.stx_uid,
    .gid = found.stx_gid,
    .is_whiteout = (found.stx_mode & S_IFMT) == S_IFCHR && found.stx_rdev_major == 0 && found.stx_rdev_minor == 0,
    .seconds = found.stx_mtime.tv_sec,
    .nanoseconds = found.stx_mtime.tv_nsec,
  };
  return 0;
}

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

/* Copy the link that the lower layers have at a path, so that the path leads where theirs does: 1, or 0 without one. */
static word
copy_link (struct pc_unpack *unpack, int above, const char *path, const char *name)
{
  static char target[PC_TAR_NAME_MOST];
  struct pc_stat found = { 0 };
  word error = unpack->lowers.count == 0 ? 0 : pc_lower_link (unpack, path, name, target, &found);

  if (error != 1)
    return error;
  i64 times[4] = { found.seconds, found.nanoseconds, found.seconds, found.nanoseconds };
  error = raw3 (__NR_symlinkat, target, above, name);
  if (error == 0 && (unpack->flags & PC_UNPACK_OWNERS))
    error = raw5 (__NR_fchownat, above, name, pc_unpack_id (unpack, found.uid), pc_unpack_id (unpack, found.gid),
                  AT_SYMLINK_NOFOLLOW_);
  if (error == 0)
    error = raw4 (__NR_utimensat, above, name, times, AT_SYMLINK_NOFOLLOW_);
  if (error == 0 && ++unpack->report.implied + unpack->report.entries > unpack->max_entries)
    error = -EDQUOT;
  return error < 0 ? error : 1;
}

word
pc_tree_imply (struct pc_unpack *unpack, int above, const char *path, const char *name)
{
  struct pc_stat there;
  int hides = 0;
  word error = pc_tree_stat (above, name, &there);

  if (error == 0 && there.is_whiteout)
    {
      error = pc_tree_clear (above, name);
      hides = 1;
    }
  else if (error == 0)
    error = -ENOTDIR;
  else if (error == -ENOENT)
    {
      error = copy_link (unpack, above, path, name);
      if (error != 0)
        return error < 0 ? error : 0;
    }
  if (error == 0)
    error = sys_mkdirat (above, name, hides ? 0755 : PC_IMPLIED_MODE);
  if (error == 0 && hides)
    error = pc_tree_mark_opaque (unpack, above, name, path);
  /* A directory in the place of a whiteout of this layer hides the lower layers. */
  return error < 0 ? error : pc_tree_note (unpack, path, 0, 0, hides ? PC_NOTED_NAMED : PC_NOTED_IMPLIED);
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

int
pc_tree_clear (int dir, const char *name)
{
  struct pc_stat found = { 0 };
  word error = pc_tree_stat (dir, name, &found);

  if (error == -ENOENT)
    return 0;
  if (error < 0)
    return (int) error;
  if ((found.mode & S_IFMT) == S_IFDIR)
    return pc_remove_tree (dir, name);
  return (int) raw3 (__NR_unlinkat, dir, name, 0);
}

int
pc_tree_mark_opaque (struct pc_unpack *unpack, int dir, const char *name, const char *path)
{
  if (unpack->flags & PC_UNPACK_INTO_TREE)
    return 0;
  cleanup_fd int fd = (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0)
    return fd;
  word error = raw5 (__NR_fsetxattr, fd, PC_OPAQUE, "y", 1, 0);
  /* tmpfs before 6.6 has no user.* attributes: whiteouts replace the opaque mark once the lower layers are known. */
  if (error == -EOPNOTSUPP)
    error = pc_tree_note (unpack, path, 0, 0, PC_NOTED_OPAQUE);
  return (int) error;
}

/* Remove the content that this layer has in a directory. */
static int
empty (int dir)
{
  static char names[32768] __attribute__ ((aligned (8)));
  cleanup_fd int fd = (int) sys_openat (dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  word got = fd < 0 ? fd : 0;
  int removed;

  do
    {
      removed = 0;
      if (fd >= 0)
        got = raw3 (__NR_lseek, fd, 0, 0);
      while (got >= 0 && (got = raw3 (__NR_getdents64, fd, names, sizeof names)) > 0)
        for (word at = 0; at < got;)
          {
            struct pc_entry *entry = (struct pc_entry *) (void *) (names + at);
            at += entry->size;
            if (pc_streq (entry->name, ".") || pc_streq (entry->name, ".."))
              continue;
            int error = pc_tree_clear (fd, entry->name);
            if (error < 0)
              return error;
            removed = 1;
          }
    }
  while (got == 0 && removed);
  return (int) got;
}

int
pc_tree_hide_all (struct pc_unpack *unpack)
{
  int error = unpack->flags & PC_UNPACK_MERGE ? empty (unpack->parent) : 0;
  return error < 0 ? error : pc_tree_mark_opaque (unpack, unpack->parent, ".", unpack->parent_path);
}

int
pc_tree_whiteout (struct pc_unpack *unpack, int dir, const char *name)
{
  int cleared = unpack->flags & PC_UNPACK_MERGE ? pc_tree_clear (dir, name) : 0;
  if (cleared < 0)
    return cleared;
  static char path[PC_TAR_NAME_MOST + 8];
  usize n = unpack->parent_size;
  memcpy (path, unpack->parent_path, n);
  if (n > 0)
    path[n++] = '/';
  memcpy (path + n, name, pc_strlen (name) + 1);
  word error = raw4 (__NR_mknodat, dir, name, S_IFCHR, 0);
  if (error == 0)
    return pc_tree_note (unpack, path, 0, 0, PC_NOTED_WHITEOUT);
  if (error != -EEXIST)
    return (int) error;
  /* A whiteout does not hide this layer's own entry, but it hides the lower content of its directory. */
  struct pc_stat found = { 0 };
  error = pc_tree_stat (dir, name, &found);
  if (error < 0 || (found.mode & S_IFMT) != S_IFDIR)
    return (int) error;
  return pc_tree_mark_opaque (unpack, dir, name, path);
}

#define NOTES_STEP (1u << 20)
#define NOTES_MOST (256u << 20)

int
pc_tree_note (struct pc_unpack *unpack, const char *path, i64 seconds, u32 nanoseconds, u32 kind)
{
  usize size = (pc_strlen (path) + 1 + 7) / 8 * 8;
  usize wanted = sizeof (struct pc_noted) + size;

  if (unpack->notes_size + wanted > unpack->notes_room)
    {
      usize room = unpack->notes_room == 0 ? NOTES_STEP : unpack->notes_room * 2;
      if (room > NOTES_MOST)
        return -ENOMEM;
      word map = unpack->notes_room == 0
                     ? raw6 (__NR_mmap, 0, (word) room, 3 /* READ | WRITE */, 0x22 /* PRIVATE | ANONYMOUS */, -1, 0)
                     : raw4 (__NR_mremap, unpack->notes, unpack->notes_room, room, 1 /* MAYMOVE */);
      if (map < 0 && map > -4096)
        return (int) map;
      unpack->notes = (u8 *) map;
      unpack->notes_room = room;
    }
  struct pc_noted *noted = (struct pc_noted *) (void *) (unpack->notes + unpack->notes_size);
  *noted = (struct pc_noted){ seconds, nanoseconds, (u16) size, (u16) kind };
  memcpy (noted + 1, path, pc_strlen (path) + 1);
  unpack->notes_size += wanted;
  unpack->report.implied += kind == PC_NOTED_IMPLIED;
  if (unpack->report.implied + unpack->report.entries > unpack->max_entries)
    return -EDQUOT;
  return 0;
}
