/* Pumping of a command's streams, without the interpreter for each chunk. */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FIRST_CAPACITY 16384
#define CHUNK 262144

static void
close_stream (struct pcx_pump *pump, int stream)
{
  if (pump->fds[stream] >= 0)
    close (pump->fds[stream]);
  pump->fds[stream] = -1;
}

static int
make_room (struct pcx_pump *pump, int at)
{
  if (pump->capacity[at] - pump->size[at] >= FIRST_CAPACITY / 2)
    return 0;
  size_t wanted = pump->capacity[at] == 0 ? FIRST_CAPACITY : pump->capacity[at] * 2;
  char *grown = realloc (pump->data[at], wanted);
  if (grown == NULL)
    return -ENOMEM;
  pump->data[at] = grown;
  pump->capacity[at] = wanted;
  return 0;
}

/* Never waits.  A command may open its output for reading too and take what poll saw; a read that waits then
   would keep no deadline.  Pipes take RWF_NOWAIT since Linux 6.4, and terminals do not: those are made
   non-blocking. */
static ssize_t
read_now (int fd, void *data, size_t size)
{
  struct iovec room = { .iov_base = data, .iov_len = size };
  ssize_t got = preadv2 (fd, &room, 1, -1, RWF_NOWAIT);
  int on = 1;

  if (got >= 0 || errno != EOPNOTSUPP)
    return got;
  if (ioctl (fd, FIONBIO, &on) < 0)
    return -1;
  return read (fd, data, size);
}

/* Bytes read, 0 when nothing more is there now, or a negative errno. */
static ssize_t
read_stream (struct pcx_pump *pump, int stream, size_t most)
{
  int at = stream - 1;
  int error = make_room (pump, at);
  if (error < 0)
    return error;
  size_t room = pump->capacity[at] - pump->size[at];
  if (room > most)
    room = most;
  ssize_t got = read_now (pump->fds[stream], pump->data[at] + pump->size[at], room);
  if (got < 0)
    {
      if (errno == EAGAIN || errno == EINTR)
        return 0;
      if (errno != EIO)
        return -errno;
      got = 0; /* a pty whose slave is closed */
    }
  if (got == 0)
    close_stream (pump, stream);
  pump->size[at] += (size_t) got;
  if (pump->size[at] > pump->limit)
    {
      pump->size[at] = pump->limit;
      return -EMSGSIZE;
    }
  return got;
}

static void
feed (struct pcx_pump *pump)
{
  size_t left = pump->input_size - pump->input_done;
  ssize_t written = left == 0 ? 0 : write (pump->fds[0], pump->input + pump->input_done, left < CHUNK ? left : CHUNK);
  if (written > 0)
    pump->input_done += (size_t) written;
  /* A command may close its input early.  As in subprocess, that is no error. */
  if (pump->input_done == pump->input_size || (written < 0 && errno != EAGAIN && errno != EINTR))
    close_stream (pump, 0);
}

static int
receive_record (struct pcx_pump *pump)
{
  struct pc_record_fd got;
  int result = pcx_receive (pump->channel, &got, -1);

  if (result < 0)
    return result;
  if (result == 0)
    {
      pump->ended = 1;
      return pump->record.kind == 0 ? -ECONNRESET : 0;
    }
  if (got.fd >= 0)
    close (got.fd);
  if (got.record.kind == PC_RECORD_FAILED)
    pump->record = got.record;
  if (got.record.kind != PC_RECORD_EXITED)
    return 0;
  pump->ended = 1;
  if (pump->record.kind == 0)
    pump->record = got.record;
  return 0;
}

/* Close the outputs without a writer.  Returns 1 if one is still open. */
static int
has_writers (struct pcx_pump *pump)
{
  struct pollfd polled[2] = { { .fd = pump->fds[1] }, { .fd = pump->fds[2] } };

  if (pump->fds[1] < 0 && pump->fds[2] < 0)
    return 0;
  if (poll (polled, 2, 0) < 0)
    return 1;
  for (int at = 0; at < 2; at++)
    if (polled[at].revents != 0)
      close_stream (pump, at + 1);
  return pump->fds[1] >= 0 || pump->fds[2] >= 0;
}

/* The command's output is in the pipes now.  The first read ends most streams; only where there is more is its
   size asked for, so that output of processes that the command left running is not waited for. */
static int
drain (struct pcx_pump *pump)
{
  for (int stream = 1; stream < 3; stream++)
    {
      int waiting = 0;
      if (pump->fds[stream] < 0)
        continue;
      ssize_t first = read_stream (pump, stream, (size_t) -1);
      if (first < 0)
        return (int) first;
      if (first == 0 || ioctl (pump->fds[stream], FIONREAD, &waiting) < 0)
        continue;
      while (waiting > 0 && pump->fds[stream] >= 0)
        {
          ssize_t got = read_stream (pump, stream, (size_t) waiting);
          if (got < 0)
            return (int) got;
          if (got == 0)
            break;
          waiting -= (int) got;
        }
    }
  return 0;
}

/* Return CLOCK_MONOTONIC in nanoseconds.  Tests that freeze Python's clock do not freeze this one. */
int64_t
pcx_clock (void)
{
  struct timespec now;

  clock_gettime (CLOCK_MONOTONIC, &now);
  return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

static int
milliseconds_left (int64_t deadline)
{
  if (deadline == 0)
    return -1;
  int64_t left = deadline - pcx_clock ();
  return left <= 0 ? 0 : left > 86400000000000 ? 86400000 : (int) ((left + 999999) / 1000000);
}

static int
turn (struct pcx_pump *pump, const struct pollfd polled[4])
{
  for (int stream = 1; stream < 3; stream++)
    if (polled[stream].revents != 0)
      {
        ssize_t got = read_stream (pump, stream, (size_t) -1);
        if (got < 0)
          return (int) got;
      }
  if (polled[0].revents != 0)
    feed (pump);
  return polled[3].revents != 0 ? receive_record (pump) : 0;
}

int
pcx_pump (struct pcx_pump *pump)
{
  if (pump->fds[0] >= 0 && pump->input_size == 0)
    close_stream (pump, 0);
  while (!pump->ended)
    {
      struct pollfd polled[4] = {
        { .fd = pump->fds[0], .events = POLLOUT },
        { .fd = pump->fds[1], .events = POLLIN },
        { .fd = pump->fds[2], .events = POLLIN },
        { .fd = pump->channel, .events = POLLIN },
      };
      int timeout = milliseconds_left (pump->deadline);
      int ready = poll (polled, 4, timeout);
      if (ready < 0)
        return -errno;
      if (ready == 0 && timeout <= 0)
        return -ETIMEDOUT;
      int result = turn (pump, polled);
      if (result < 0)
        return result;
      if (!pump->ended && timeout == 0)
        return -ETIMEDOUT;
    }
  int error = drain (pump);
  pump->writers = error == 0 && has_writers (pump);
  return error;
}

void
pcx_pump_free (struct pcx_pump *pump)
{
  for (int stream = 0; stream < 3; stream++)
    close_stream (pump, stream);
  for (int at = 0; at < 2; at++)
    {
      free (pump->data[at]);
      pump->data[at] = NULL;
      pump->size[at] = pump->capacity[at] = 0;
    }
}

/* The kernel does not wake pollers when a cgroup is removed, so look again after a while. */
#define LOOK_AGAIN_MS 20

int
pcx_wait_unpopulated (int events, int timeout_ms)
{
  for (int left = timeout_ms;;)
    {
      char text[256];
      ssize_t got = pread (events, text, sizeof text - 1, 0);
      if (got < 0)
        return errno == ENODEV ? 0 : -errno;
      text[got] = '\0';
      if (strstr (text, "populated 0") != NULL)
        return 0;
      if (left <= 0)
        return -EAGAIN;
      int slice = left < LOOK_AGAIN_MS ? left : LOOK_AGAIN_MS;
      struct pollfd polled = { .fd = events, .events = POLLPRI };
      int ready = poll (&polled, 1, slice);
      if (ready < 0)
        return -errno;
      if (ready == 0)
        left -= slice;
    }
}
