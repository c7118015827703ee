/* Measurement of a tree that a guest writes to: allocated blocks and inodes.
 *
 * The guest may rename directories meanwhile, so each level is held by its fd, and ".." is never followed.
 */
#include "helper/cleanup.h"
#include "wire.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/stat.h>

#define BLOCK 512u
#define DEPTH 256u

struct level
{
  int fd;
  u32 at;   /* in names */
  u32 size; /* of names */
  u8 names[4096] __attribute__ ((aligned (8)));
};

static struct level levels[DEPTH];

static int
is_dots (const char *name)
{
  return pc_streq (name, ".") || pc_streq (name, "..");
}

/* Count one name.  Returns 1 for a directory. */
static int
count_entry (int dir, const char *name, struct pc_measured *out)
{
  struct statx found;
  word error = sys_statx (dir, name, AT_SYMLINK_NOFOLLOW, STATX_TYPE | STATX_BLOCKS | STATX_NLINK, &found);

  if (error < 0)
    return 0; /* gone by now */
  int is_directory = (found.stx_mode & S_IFMT) == S_IFDIR;
  /* A file of several names is counted by its share, so that all names together are the file. */
  u64 names = is_directory || found.stx_nlink == 0 ? 1 : found.stx_nlink;
  out->bytes += found.stx_blocks * BLOCK / names;
  out->inodes += 1;
  return is_directory;
}

/* Open the next directory below the innermost level.  Its fd, 0 at the end, or a negative errno. */
static int
next_directory (struct level *level, struct pc_measured *out)
{
  for (;;)
    {
      if (level->at >= level->size)
        {
          word got = sys_getdents64 (level->fd, level->names, sizeof level->names);
          if (got <= 0)
            return (int) got;
          level->at = 0;
          level->size = (u32) got;
        }
      struct pc_entry *entry = (struct pc_entry *) (void *) (level->names + level->at);
      level->at += entry->size;
      if (is_dots (entry->name) || !count_entry (level->fd, entry->name, out))
        continue;
      int fd = (int) sys_openat (level->fd, entry->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
      /* These say that it was renamed or replaced.  After any other error a part of the tree would not be counted. */
      if (fd != -ENOENT && fd != -ENOTDIR && fd != -ELOOP)
        return fd;
    }
}

int
pc_measure_tree (int dir, const char *name, u64 most_bytes, u64 most_inodes, struct pc_measured *out)
{
  u32 depth = 0;
  int error = 0;

  *out = (struct pc_measured) { 0, 0 };
  levels[0].fd = (int) sys_openat (dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0);
  levels[0].at = levels[0].size = 0;
  if (levels[0].fd < 0)
    return levels[0].fd;
  for (;;)
    {
      int fd = next_directory (&levels[depth], out);
      if (out->bytes > most_bytes || out->inodes > most_inodes || fd < 0)
        {
          error = fd < 0 ? fd : 0;
          if (fd > 0)
            sys_close (fd);
          break;
        }
      if (fd == 0)
        {
          if (depth == 0)
            break;
          pc_close_fd (&levels[depth--].fd);
          continue;
        }
      if (depth + 1 == DEPTH)
        {
          /* Deeper directories are not counted, so the tree is reported as larger than the bound. */
          pc_close_fd (&fd);
          out->bytes = most_bytes + 1;
          break;
        }
      levels[++depth].fd = fd;
      levels[depth].at = levels[depth].size = 0;
    }
  for (u32 i = 0; i <= depth; i++)
    pc_close_fd (&levels[i].fd);
  return error;
}
