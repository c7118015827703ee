/* Resolution of links in a path: a noted directory has to be found again after a link was replaced, and the lower
   layers are asked for the real path. */
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

#define LINKS_MOST 40u

struct resolving
{
  struct pc_unpack *unpack;
  int top;
  int dir; /* of `done` */
  usize size;
  char done[PC_TAR_NAME_MOST];
  usize next; /* in rest */
  char rest[2 * PC_TAR_NAME_MOST];
};

static int
append (struct resolving *at, const char *part, usize size)
{
  if (at->size + size + 2 > sizeof at->done)
    return -ENAMETOOLONG;
  if (at->size > 0)
    at->done[at->size++] = '/';
  memcpy (at->done + at->size, part, size);
  at->size += size;
  at->done[at->size] = '\0';
  return 0;
}

static int
move_to (struct resolving *at, int dir)
{
  pc_close_fd (&at->dir);
  at->dir = dir;
  return dir < 0 ? dir : 0;
}

static int
go_up (struct resolving *at)
{
  while (at->size > 0 && at->done[at->size - 1] != '/')
    at->size--;
  if (at->size > 0)
    at->size--;
  at->done[at->size] = '\0';
  return move_to (at, pc_tree_open (at->top, at->size > 0 ? at->done : "."));
}

/* Prepend a link's target to the rest. */
static int
follow (struct resolving *at, const char *part)
{
  const char *after = at->rest + at->next;
  static char target[2 * PC_TAR_NAME_MOST];
  usize before = at->size;
  int error = append (at, part, pc_strlen (part));
  /* The link has to resolve to a directory, of this layer unless the lower ones are known. */
  cleanup_fd int leads = error < 0 ? error : pc_tree_open (at->top, at->done);

  at->size = before;
  at->done[before] = '\0';
  if (error < 0)
    return error;
  if (leads < 0 && at->unpack->lowers.count == 0)
    return leads == -ENOENT ? -ENOTDIR : leads;
  word size = sys_readlinkat (at->dir, part, target, PC_TAR_NAME_MOST - 1);
  if (size < 0)
    return (int) size;
  usize left = pc_strlen (after) + 1;
  if ((usize) size + 1 + left > sizeof at->rest)
    return -ENAMETOOLONG;
  target[size] = '/';
  memcpy (target + size + 1, after, left);
  memcpy (at->rest, target, (usize) size + 1 + left);
  at->next = 0;
  if (at->rest[0] != '/')
    return 0;
  at->size = 0;
  at->done[0] = '\0';
  return move_to (at, pc_tree_open (at->top, "."));
}

/* Make what the path needs and this layer lacks: a directory, or a copy of a lower layer's link. */
static int
imply (struct resolving *at, const char *part, struct pc_stat *found)
{
  usize before = at->size;
  word error = append (at, part, pc_strlen (part));

  if (error == 0)
    error = pc_tree_imply (at->unpack, at->dir, at->done, at->done + at->size - pc_strlen (part));
  at->size = before;
  at->done[before] = '\0';
  return error < 0 ? (int) error : pc_tree_stat (at->dir, part, found);
}

/* Resolve one part; return 1 when it does not exist, so that no link can follow. */
static int
step (struct resolving *at, const char *part, u32 *links)
{
  const char *after = at->rest + at->next;
  struct pc_stat found = { 0 };

  if (part[0] == '\0' || pc_streq (part, "."))
    return 0;
  if (pc_streq (part, ".."))
    return go_up (at);
  int error = pc_tree_stat (at->dir, part, &found);
  if (at->unpack->lowers.count > 0 && (error == -ENOENT || (error == 0 && found.is_whiteout)))
    error = imply (at, part, &found);
  if (error < 0 && error != -ENOENT)
    return error;
  if (error == 0 && (found.mode & S_IFMT) == S_IFLNK)
    return ++*links > LINKS_MOST ? -ELOOP : follow (at, part);
  int full = append (at, part, pc_strlen (part));
  if (full < 0)
    return full;
  if (error == 0 && (found.mode & S_IFMT) == S_IFDIR)
    return move_to (at, (int) sys_openat (at->dir, part, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0));
  full = after[0] == '\0' ? 0 : append (at, after, pc_strlen (after));
  return full < 0 ? full : 1;
}

int
pc_tree_resolve (struct pc_unpack *unpack, char *path, usize *path_size)
{
  static struct resolving at;
  static char part[PC_TAR_NAME_MOST];
  u32 links = 0;
  int done = 0;

  at.unpack = unpack;
  at.top = unpack->top;
  at.size = at.next = 0;
  at.done[0] = '\0';
  memcpy (at.rest, path, *path_size + 1);
  at.dir = pc_tree_open (at.top, ".");
  while (done == 0 && at.dir >= 0 && at.rest[at.next] != '\0')
    {
      const char *from = at.rest + at.next;
      usize n = 0;
      while (from[n] != '\0' && from[n] != '/' && n < sizeof part - 1)
        n++;
      memcpy (part, from, n);
      part[n] = '\0';
      at.next += n + (from[n] == '/');
      done = step (&at, part, &links);
    }
  int error = at.dir < 0 ? at.dir : done < 0 ? done : 0;
  pc_close_fd (&at.dir);
  memcpy (path, at.done, at.size + 1);
  *path_size = at.size;
  return error;
}
