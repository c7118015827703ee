/* The messages of one start: one call sends the plan, another receives both answers.  No signal handler of the caller
   can run between a system call and the note of its result in the struct. */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static int
receive (int socket, struct pc_record_fd *record)
{
  int result;
  do
    result = pcx_receive (socket, record, -1);
  while (result == -EINTR);
  return result;
}

int
pcx_send_plan (int launcher, const char *plan, size_t size, const int *fds, unsigned int count, int *ours,
               unsigned int ours_count, struct pcx_exchange *out)
{
  struct timespec now;

  int error = pcx_send (launcher, plan, size, fds, count);
  if (error < 0)
    return error;
  clock_gettime (CLOCK_MONOTONIC, &now);
  out->sent = (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
  /* If the caller kept the guest's ends open, it would never read the end of the streams. */
  for (unsigned int i = 0; i < ours_count; i++)
    {
      close (ours[i]);
      ours[i] = -1;
    }
  return 0;
}

void
pcx_receive_answers (int launcher, int control, const char *script, size_t script_size, struct pcx_files *files,
                     struct pcx_exchange *out)
{
  if (out->sent == 0 || out->received)
    return;
  out->files_result = script_size > 0 ? pcx_run_files (script, script_size, files) : 0;
  out->ready_result = receive (control, &out->ready);
  out->reply_result = receive (launcher, &out->reply);
  out->received = 1;
}

int
pcx_shutdown (int socket)
{
  return shutdown (socket, SHUT_RDWR) < 0 ? -errno : 0;
}
