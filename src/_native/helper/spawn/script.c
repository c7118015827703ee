/* Scripts of file operations below directories that were sent, for the cgroups of a spare. */
#include "helper/spawn.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

static const char *
next_string (const char **at, const char *end)
{
  const char *string = *at;
  for (const char *nul = string; nul < end; nul++)
    if (*nul == '\0')
      {
        *at = nul + 1;
        return string;
      }
  return NULL;
}

static int
give_away (int dir, const char *path, const char *text)
{
  word id = 0;
  for (; *text >= '0' && *text <= '9' && id < (1l << 32); text++)
    id = id * 10 + (*text - '0');
  return (int) sys_fchownat (dir, path, id, id, 0);
}

static int
keep_open (struct pc_fds *fds, int dir, const char *path, int flags)
{
  if (fds->count == COUNT (fds->fd))
    return -EMFILE;
  int fd = (int) sys_openat (dir, path, flags | O_CLOEXEC, 0);
  if (fd < 0)
    return fd;
  fds->fd[fds->count++] = fd;
  return 0;
}

static int
operate (struct pc_fds *fds, char kind, int dir, const char *path, const char *text)
{
  switch (kind)
    {
    case 'm':
      return (int) sys_mkdirat (dir, path, 0755);
    case 'c':
      return give_away (dir, path, text);
    case 'w':
      return pc_write_file (dir, path, text, pc_strlen (text));
    case 'd':
      return keep_open (fds, dir, path, O_RDONLY | O_DIRECTORY);
    case 't':
      return keep_open (fds, dir, path, O_WRONLY);
    default:
      return -EINVAL;
    }
}

int
pc_run_script (const char *script, usize size, struct pc_fds *fds)
{
  const char *end = script + size;
  u32 directories = fds->count;

  while (script + 2 < end)
    {
      char kind = script[0];
      u32 place = (u8) script[1];
      script += 2;
      const char *path = next_string (&script, end);
      const char *text = path != NULL && (kind == 'w' || kind == 'c') ? next_string (&script, end) : "";
      if (path == NULL || text == NULL || place >= directories)
        return -EINVAL;
      int error = operate (fds, kind, fds->fd[place], path, text);
      if (error < 0)
        return error;
    }
  return script == end ? 0 : -EINVAL;
}
