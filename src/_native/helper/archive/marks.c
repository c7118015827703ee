/* Removal of entries, whiteouts and opaque marks, and the notes of directories that are completed last. */
#include "helper/cleanup.h"
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

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
                     ? sys_mmap (0, (word) room, PROT_READ_ | PROT_WRITE_, MAP_PRIVATE_ | MAP_ANONYMOUS_, -1, 0)
                     : raw4 (__NR_mremap, unpack->notes, unpack->notes_room, room, MREMAP_MAYMOVE_);
      if (map < 0 && map > -4096)
        return (int) map;
      unpack->notes = (u8 *) map;
      unpack->notes_room = room;
    }
  struct pc_noted *noted = (struct pc_noted *) (void *) (unpack->notes + unpack->notes_size);
  *noted = (struct pc_noted) { seconds, nanoseconds, (u16) size, (u16) kind };
  memcpy (noted + 1, path, pc_strlen (path) + 1);
  unpack->notes_size += wanted;
  unpack->report.implied += kind == PC_NOTED_IMPLIED;
  if (unpack->report.implied + unpack->report.entries > unpack->max_entries)
    return -EDQUOT;
  return 0;
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
  return (int) sys_unlinkat (dir, name, 0);
}

int
pc_tree_mark_opaque (struct pc_unpack *unpack, int dir, const char *name, const char *path)
{
  if (unpack->flags & PC_UNPACK_INTO_TREE)
    return 0;
  cleanup_fd int fd = (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  if (fd < 0)
    return fd;
  word error = sys_fsetxattr (fd, PC_OPAQUE, "y", 1, 0);
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
        got = sys_lseek (fd, 0, 0);
      while (got >= 0 && (got = sys_getdents64 (fd, names, sizeof names)) > 0)
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
  word error = sys_mknodat (dir, name, S_IFCHR, 0);
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
