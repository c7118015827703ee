/* Batches of operations on small files: in Python each would take longer than its system call. */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Return the next string of the script, or NULL. */
static const char *
next_string (const char **at, const char *end)
{
  const char *string = *at;
  if (string >= end)
    return NULL;
  const char *nul = memchr (string, '\0', (size_t) (end - string));
  if (nul == NULL)
    return NULL;
  *at = nul + 1;
  return string;
}

static int
write_text (const char *path, const char *text)
{
  int fd = open (path, O_WRONLY | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  int result = write (fd, text, strlen (text)) < 0 ? -errno : 0;
  close (fd);
  return result;
}

static int
keep_open (struct pcx_files *files, const char *path, int flags)
{
  if (files->fd_count == sizeof files->fds / sizeof *files->fds)
    return -EMFILE;
  int fd = open (path, flags | O_CLOEXEC);
  if (fd < 0)
    return -errno;
  files->fds[files->fd_count++] = fd;
  return 0;
}

/* Append a file's text.  A missing file gives an empty text: its counter is unknown, not zero. */
static int
read_text (struct pcx_files *files, const char *path)
{
  size_t room = sizeof files->text - files->text_size;
  if (room < 2)
    return -ENOBUFS;
  int fd = open (path, O_RDONLY | O_CLOEXEC);
  ssize_t got = fd < 0 ? 0 : read (fd, files->text + files->text_size, room - 1);
  if (fd >= 0)
    close (fd);
  files->text_size += got > 0 ? (size_t) got : 0;
  files->text[files->text_size++] = '\0';
  return 0;
}

enum umask_state
{
  UMASK_UNKNOWN,
  UMASK_HARMLESS,
  UMASK_STRICT
};

/* Make a directory with exactly this mode.  The umask belongs to the process and must not be changed for other
   threads, so the first directory of a script shows whether it removes bits, and only then is each mode set. */
static int
make_directory (const char *path, mode_t mode, enum umask_state *mask)
{
  struct stat seen;

  if (mkdir (path, mode) < 0)
    return -errno;
  if (*mask == UMASK_UNKNOWN)
    {
      if (stat (path, &seen) < 0)
        return -errno;
      *mask = (seen.st_mode & 0777) == mode ? UMASK_HARMLESS : UMASK_STRICT;
    }
  return *mask == UMASK_STRICT && chmod (path, mode) < 0 ? -errno : 0;
}

static int
operate (struct pcx_files *files, char kind, const char *path, const char *text, enum umask_state *mask)
{
  switch (kind)
    {
    case 'm':
      return make_directory (path, 0755, mask);
    case 'p':
      return mkdir (path, 0700) < 0 ? -errno : 0;
    case 'c':
      {
        uid_t id = (uid_t) strtoul (text, NULL, 10);
        return chown (path, id, id) < 0 ? -errno : 0;
      }
    case 'w':
      return write_text (path, text);
    case 'd':
      return keep_open (files, path, O_RDONLY | O_DIRECTORY);
    case 't':
      return keep_open (files, path, O_WRONLY);
    case 'r':
      return read_text (files, path);
    default:
      return -EINVAL;
    }
}

int
pcx_run_files (const char *script, size_t size, struct pcx_files *files)
{
  const char *end = script + size;
  enum umask_state mask = UMASK_UNKNOWN;
  int result = 0;

  files->done = files->fd_count = 0;
  files->text_size = 0;
  while (script < end && result == 0)
    {
      char kind = *script++;
      const char *path = next_string (&script, end);
      const char *text = kind == 'w' || kind == 'c' ? next_string (&script, end) : "";
      result = path == NULL || text == NULL ? -EINVAL : operate (files, kind, path, text, &mask);
      files->done += result == 0;
    }
  if (result < 0)
    while (files->fd_count > 0)
      close (files->fds[--files->fd_count]);
  return result;
}
