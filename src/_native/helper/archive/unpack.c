/* Unpacking of a layer: read the stream, write the tree, report, then finish on the layers below. */
#include "helper/sandbox.h"
#include "unpack.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

static struct pc_unpack unpack;
static struct pc_tar tar;

static int
count (struct pc_unpack_report *report, const struct pc_tar_entry *entry)
{
  report->entries++;
  /* Apparent size: a program that copies a sparse file reads all of it. */
  report->bytes += entry->size > entry->stored ? entry->size : entry->stored;
  if (report->entries + report->implied > unpack.max_entries)
    return pc_unpack_failed (&unpack, PC_UNPACK_ENTRIES, 0);
  if (report->bytes > unpack.max_bytes)
    return pc_unpack_failed (&unpack, PC_UNPACK_BYTES, 0);
  return 0;
}

static int
unpack_stream (int stream)
{
  struct pc_tar_entry entry;
  word memory = sys_mmap (0, PC_TAR_MEMORY, PROT_READ_ | PROT_WRITE_, MAP_PRIVATE_ | MAP_ANONYMOUS_, -1, 0);
  int more;

  if (memory < 0 && memory > -4096)
    return pc_unpack_failed (&unpack, PC_UNPACK_MEMORY, memory);
  pc_tar_open (&tar, stream, (void *) memory);
  while ((more = pc_tar_next (&tar, &entry)) > 0)
    {
      pc_report_name (&unpack.report, entry.name);
      if (unpack.flags & PC_UNPACK_READABLE)
        entry.mode |= entry.type == PC_TAR_DIRECTORY ? 0700 : 0600;
      if ((unpack.flags & PC_UNPACK_OPEN_DIRECTORIES) && entry.type == PC_TAR_DIRECTORY)
        entry.mode |= 0700;
      if (unpack.flags & PC_UNPACK_NO_SPECIAL_FILES)
        entry.mode &= ~06000u;
      if ((unpack.flags & PC_UNPACK_NO_SET_ID) && entry.type != PC_TAR_DIRECTORY)
        entry.mode &= ~06000u;
      int error = count (&unpack.report, &entry);
      if (error == 0)
        error = pc_unpack_entry (&unpack, &tar, &entry);
      if (error < 0)
        return error;
    }
  if (more == 0)
    more = pc_tar_drain (&tar);
  if (more < 0)
    return pc_unpack_failed (&unpack, (u32) -more, -tar.error);
  unpack.report.name[0] = '\0';
  return 0;
}

static int
wait_for_lowers (int socket, struct pc_fds *lowers)
{
  struct pc_request request = { 0 };
  word got = pc_receive (socket, &request, sizeof request, lowers, 0);
  if (got != (word) sizeof request || request.kind != PC_REQUEST_FINISH || lowers->truncated)
    return -1;
  return 0;
}

static int
report (int socket)
{
  return pc_send (socket, &unpack.report, sizeof unpack.report, NULL, 0, 0);
}

_Noreturn void
pc_unpack (int socket, const struct pc_unpack_request *request, int top, int stream)
{
  struct pc_fds lowers = { .count = 0 };

  unpack.parent = -1;
  unpack.flags = request->flags;
  unpack.max_bytes = request->max_bytes;
  unpack.max_entries = request->max_entries;
  unpack.first_id = request->first_id;
  int landlock = (request->flags & PC_UNPACK_LANDLOCK) != 0;
  int is_root = request->uid == 0 && request->gid == 0 && request->group_count == 0;
  if (request->group_count > COUNT (request->groups))
    sys_exit (1);
  word confined = is_root ? 0 : pc_act_as (request->uid, request->gid, request->group_count, request->groups);
  if (confined == 0)
    confined = pc_confine_to (top, socket, stream, is_root ? 1 : PC_WRITE_AS_USER, landlock);
  /* Reopened here, because the caller may lack the right to open it for changes. */
  if (confined == 0)
    confined = sys_openat (AT_FDCWD_, "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (confined >= 0)
    unpack.top = (int) confined;
  if (confined >= 0 && (request->flags & PC_UNPACK_THROUGH) && wait_for_lowers (socket, &unpack.lowers) < 0)
    sys_exit (1);
  int error = confined < 0 ? pc_unpack_failed (&unpack, PC_UNPACK_CONFINE, confined) : unpack_stream (stream);
  sys_close (stream);
  if (report (socket) < 0 || error < 0 || wait_for_lowers (socket, &lowers) < 0)
    sys_exit (1);
  (void) pc_unpack_finish (&unpack, lowers.fd, lowers.count);
  sys_exit (report (socket) < 0);
}
