/* Paths beneath a root: no link, "..", or magic link leads out of it. */
#include "builder.h"

#include <linux/errno.h>

static char scratch[4096];

int
pc_resolve (int root, const char *path, int nofollow, u64 flags)
{
  struct open_how how = {
    .flags = flags | O_CLOEXEC,
    .resolve = nofollow ? RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
                        : RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
  };
  while (*path == '/')
    path++;
  return (int) sys_openat2 (root, *path == '\0' ? "." : path, &how);
}

static int
create_component (int parent, const char *name, int as_file)
{
  if (!as_file)
    return (int) sys_mkdirat (parent, name, 0755);
  int fd = (int) sys_openat (parent, name, O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644);
  if (fd < 0)
    return fd;
  sys_close (fd);
  return 0;
}

int
pc_make_path (int root, const char *path, int nofollow, int as_file)
{
  usize size = pc_strlen (path);
  int fd = pc_resolve (root, path, nofollow, O_PATH);
  if (fd != -ENOENT || size >= sizeof scratch)
    return fd;

  cleanup_fd int parent = pc_resolve (root, "", 1, O_PATH);
  if (parent < 0)
    return parent;
  memcpy (scratch, path, size + 1);
  for (usize at = 0; at < size;)
    {
      while (scratch[at] == '/')
        at++;
      usize end = at;
      while (end < size && scratch[end] != '/')
        end++;
      if (end == at)
        break;
      char saved = scratch[end];
      scratch[end] = '\0';
      int next = pc_resolve (root, scratch, nofollow, O_PATH);
      if (next == -ENOENT)
        {
          int error = create_component (parent, scratch + at, as_file && end == size);
          if (error < 0)
            return error == -EEXIST ? -ELOOP : error; /* a dangling link */
          next = pc_resolve (root, scratch, nofollow, O_PATH);
        }
      if (next < 0)
        return next;
      sys_close (parent);
      parent = next;
      scratch[end] = saved;
      at = end;
    }
  return pc_steal_fd (&parent);
}
