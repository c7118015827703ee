/* One start, from the plan to both answers, in one call: no signal handler of the caller's comes in between,
   so no answer is lost and none is left for the next start to find. */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int
hear (int socket, struct pc_record_fd *record)
{
  int result;
  do
    result = pcx_receive (socket, record, -1);
  while (result == -EINTR);
  return result;
}

int
pcx_exchange (int launcher, const char *plan, size_t size, const int *fds, unsigned int count, int *ours,
              unsigned int ours_count, int control, const char *script, size_t script_size,
              struct pcx_files *files, struct pcx_exchange *out)
{
  struct timespec now;

  out->ready.fd = out->reply.fd = -1;
  int error = pcx_send (launcher, plan, size, fds, count);
  if (error < 0)
    return error;
  clock_gettime (CLOCK_MONOTONIC, &now);
  out->sent = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
  /* Ours alone would hold the guest's ends open and hide the end of its stream. */
  for (unsigned int i = 0; i < ours_count; i++)
    {
      close (ours[i]);
      ours[i] = -1;
    }
  out->files_result = script_size > 0 ? pcx_run_files (script, script_size, files) : 0;
  out->ready_result = hear (control, &out->ready);
  out->reply_result = hear (launcher, &out->reply);
  return 0;
}

int
pcx_shutdown (int socket)
{
  return shutdown (socket, SHUT_RDWR) < 0 ? -errno : 0;
}
