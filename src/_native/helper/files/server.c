/* The file server: it opens and changes files of one container, as root of that only, for a caller on the host
   that must not walk paths which the guest controls. */
#include "files.h"
#include "helper/files.h"
#include "helper/sandbox.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/stat.h>

#define OPEN_FLAGS (O_ACCMODE | O_CREAT | O_EXCL | O_TRUNC | O_APPEND | O_DIRECTORY | O_NOFOLLOW | O_PATH)
#define TRIES 100

static struct
{
  int root;
  u8 message[16384] __attribute__ ((aligned (16)));
} filer;

/* Open a path beneath the root.  Links stay inside, and magic links of /proc are refused. */
static int
open_at (const char *path, u64 flags, u32 mode)
{
  struct open_how how = {
    .flags = flags | O_CLOEXEC | (flags & O_PATH ? 0 : O_NOCTTY | O_NONBLOCK),
    .mode = flags & O_CREAT ? mode & 07777 : 0,
    .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
  };
  word fd;
  u32 tries = 0;
  /* EAGAIN: a concurrent rename made the kernel's resolution of ".." unsafe (openat2(2)). */
  do
    fd = sys_openat2 (filer.root, path, &how);
  while (fd == -EAGAIN && ++tries < TRIES);
  return (int) fd;
}

/* Open the directory of a path, and cut the last part off the path. */
static int
open_parent (char *path, const char **last)
{
  usize cut = pc_strlen (path);
  while (cut > 0 && path[cut - 1] != '/')
    cut--;
  *last = path + cut;
  if ((*last)[0] == '\0' || pc_streq (*last, ".") || pc_streq (*last, ".."))
    return -EBUSY;
  if (cut > 0)
    path[cut - 1] = '\0';
  return open_at (path[0] == '\0' || cut == 0 ? "/" : path, O_PATH | O_DIRECTORY, 0);
}

/* Return 0 for a regular file or a directory of the guest.  Others may block, or act on the host when they are
   read or written. */
static int
check_kind (int fd)
{
  struct statx found;
  word error = sys_statx (fd, "", AT_EMPTY_PATH_, STATX_TYPE, &found);

  if (error < 0)
    return (int) error;
  if ((found.stx_mode & S_IFMT) == S_IFDIR)
    return 0;
  return (found.stx_mode & S_IFMT) != S_IFREG || pc_is_of_kernel (fd) ? -EOPNOTSUPP : 0;
}

/* Open a file, or create it and set *made: an existing file keeps its owner.  A dangling link is not created
   through. */
static int
open_or_make (const struct pc_file_request *request, const char *path, u64 flags, int *made)
{
  int fd = -EEXIST;
  for (u32 tries = 0; tries < TRIES; tries++)
    {
      if (!(flags & O_EXCL))
        {
          fd = open_at (path, flags & ~(u64) O_CREAT, 0);
          if (fd != -ENOENT || !(flags & O_CREAT))
            return fd;
        }
      fd = open_at (path, flags | O_CREAT | O_EXCL, request->mode);
      *made = fd >= 0;
      if (fd != -EEXIST || (flags & O_EXCL))
        return fd;
    }
  return -ENOENT;
}

static int
open_file (const struct pc_file_request *request, char *path)
{
  u64 flags = request->flags & OPEN_FLAGS & ~(u32) O_TRUNC;
  int made = 0;

  if (flags & O_PATH)
    return open_at (path, flags & (O_PATH | O_DIRECTORY | O_NOFOLLOW), 0);
  cleanup_fd int fd = open_or_make (request, path, flags, &made);
  if (fd < 0)
    return fd;
  int error = made ? 0 : check_kind (fd);
  /* Not by O_TRUNC, before the kind of the file is known. */
  if (error == 0 && !made && (request->flags & O_TRUNC))
    error = (int) sys_ftruncate (fd, 0);
  return error < 0 ? error : pc_steal_fd (&fd);
}

static int
make (const struct pc_file_request *request, char *path, const char *text)
{
  const char *last = "";
  int directory = request->verb == PC_FILE_MKDIR;
  cleanup_fd int parent = open_parent (path, &last);

  if (parent < 0)
    return parent == -EBUSY ? -EEXIST : parent;
  word error = directory ? sys_mkdirat (parent, last, request->mode & 07777) : sys_symlinkat (text, parent, last);
  if (error < 0)
    return (int) error;
  return (int) error;
}

static int
take_away (char *path, int flags)
{
  const char *last = "";
  cleanup_fd int parent = open_parent (path, &last);
  return parent < 0 ? parent : (int) sys_unlinkat (parent, last, flags);
}

/* Rename or link, with both names relative to directories that are opened before. */
static int
name_again (const struct pc_file_request *request, char *from, char *to)
{
  const char *from_last = "";
  const char *to_last = "";
  cleanup_fd int from_dir = open_parent (from, &from_last);
  if (from_dir < 0)
    return from_dir;
  cleanup_fd int to_dir = open_parent (to, &to_last);
  if (to_dir < 0)
    return to_dir;
  if (request->verb == PC_FILE_LINK)
    return (int) sys_linkat (from_dir, from_last, to_dir, to_last, 0);
  return (int) sys_renameat2 (from_dir, from_last, to_dir, to_last, request->flags & 1u);
}

static int
set_mode (const char *path, u64 how, u32 mode)
{
  cleanup_fd int fd = open_at (path, O_PATH | how, 0);
  int error = fd < 0 ? fd : check_kind (fd);
  if (error < 0)
    return error;
  word done = raw4 (NR_FCHMODAT2, fd, "", mode & 07777, AT_EMPTY_PATH_);
  return done == -ENOSYS ? -EACCES : (int) done;
}

static int
set (const struct pc_file_request *request, const char *path, const struct pc_fds *fds)
{
  u64 how = request->flags & O_NOFOLLOW;
  cleanup_fd int opened = fds->count > 0 ? -1 : open_at (path, O_RDONLY | how, 0);
  /* An owner may change the mode of a file that it may not read. */
  if (opened == -EACCES && request->set == PC_FILE_SET_MODE)
    return set_mode (path, how, request->mode);
  int fd = fds->count > 0 ? fds->fd[0] : opened;
  word error = fd < 0 ? fd : check_kind (fd);

  if (error == 0 && (request->set & PC_FILE_SET_OWNER))
    error = sys_fchownat (fd, "", request->owner_uid, request->owner_gid, AT_EMPTY_PATH_);
  if (error == 0 && (request->set & PC_FILE_SET_MODE))
    error = sys_fchmod (fd, request->mode & 07777);
  if (error == 0 && (request->set & PC_FILE_SET_TIMES))
    error = sys_utimensat (fd, NULL, request->times, 0);
  return (int) error;
}

static int
serve_one (const struct pc_file_request *request, char *path, char *second, const struct pc_fds *fds)
{
  switch (request->verb)
    {
    case PC_FILE_OPEN:
      return open_file (request, path);
    case PC_FILE_MKDIR:
    case PC_FILE_SYMLINK:
      return make (request, path, second);
    case PC_FILE_UNLINK:
      return take_away (path, 0);
    case PC_FILE_RMDIR:
      return take_away (path, AT_REMOVEDIR_);
    case PC_FILE_RENAME:
      return name_again (request, path, second);
    case PC_FILE_LINK:
      return name_again (request, second, path);
    case PC_FILE_SET:
      return set (request, path, fds);
    default:
      return -EINVAL;
    }
}

static int
serve_as (const struct pc_file_request *request, char *path, const struct pc_fds *fds)
{
  char *second = path + pc_strlen (path) + 1;

  if (request->group_count > PC_FILE_GROUPS_MOST)
    return -EINVAL;
  if (request->uid == 0 && request->gid == 0 && request->group_count == 0)
    return serve_one (request, path, second, fds);
  int result = pc_act_as (request->uid, request->gid, request->group_count, request->groups);
  if (result == 0)
    result = serve_one (request, path, second, fds);
  if (pc_act_as (0, 0, 0, NULL) < 0)
    sys_exit (1);
  return result;
}

static void
serve (int socket, usize received, struct pc_fds *fds)
{
  struct pc_file_request *request = (void *) filer.message;
  char *path = (char *) (request + 1);
  struct pc_record reply = { .kind = PC_RECORD_OPENED };

  if (received <= sizeof *request || received + 2 > sizeof filer.message || request->request.kind != PC_REQUEST_FILE)
    sys_exit (1);
  filer.message[received] = filer.message[received + 1] = '\0';
  int result = fds->truncated ? -EMFILE : serve_as (request, path, fds);
  cleanup_fd int fd = request->verb == PC_FILE_OPEN ? result : -1;
  reply.error = result < 0 ? -result : 0;
  reply.op = (i32) request->request.id;
  if (pc_send_record (socket, &reply, fd) < 0)
    sys_exit (1);
}

_Noreturn void
pc_serve_files (int socket, const struct pc_request *request, const struct pc_fds *fds)
{
  struct pc_record ready = { .kind = PC_RECORD_READY };
  struct pc_fds sent;
  word error = fds->count != 2 ? -EINVAL : pc_join_user (fds->fd[1]);

  filer.root = fds->fd[0];
  if (error == 0)
    error = pc_confine_server (filer.root, socket, (request->flags & PC_FILES_LANDLOCK) != 0);
  ready.error = (i32) -error;
  if (pc_send_record (socket, &ready, -1) < 0 || error < 0)
    sys_exit (1);
  for (;;)
    {
      word received = pc_receive (socket, filer.message, sizeof filer.message, &sent, 0);
      if (received <= 0)
        sys_exit (0);
      serve (socket, (usize) received, &sent);
      pc_close_fds (&sent);
    }
}
