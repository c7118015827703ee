/* Messages to launcher and agent, with fds. */
#define _GNU_SOURCE
#include "extension.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FDS 253

int
pcx_send (int socket, const char *buffer, size_t size, const int *fds, unsigned int count)
{
  char control[CMSG_SPACE (MAX_FDS * sizeof (int))];
  struct iovec part = { .iov_base = (void *) (uintptr_t) buffer, .iov_len = size };
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };

  if (count > MAX_FDS)
    return -E2BIG;
  if (count > 0)
    {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE (count * sizeof (int));
      struct cmsghdr *header = CMSG_FIRSTHDR (&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN (count * sizeof (int));
      memcpy (CMSG_DATA (header), fds, count * sizeof (int));
    }
  while (sendmsg (socket, &message, MSG_NOSIGNAL) < 0)
    if (errno != EINTR)
      return -errno;
  return 0;
}

static int
take_fd (struct msghdr *message)
{
  int taken = -1;
  for (struct cmsghdr *header = CMSG_FIRSTHDR (message); header != NULL; header = CMSG_NXTHDR (message, header))
    {
      if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
        continue;
      size_t count = (header->cmsg_len - CMSG_LEN (0)) / sizeof (int);
      for (size_t i = 0; i < count; i++)
        {
          int fd;
          memcpy (&fd, CMSG_DATA (header) + i * sizeof fd, sizeof fd);
          if (taken < 0)
            taken = fd;
          else
            close (fd); /* no message has two: do not leak an extra one */
        }
    }
  return taken;
}

/* Receive a record: 1, 0 at the end of the stream, -EAGAIN after timeout_ms, -EINTR on a signal. */
int
pcx_receive (int socket, struct pc_record_fd *out, int timeout_ms)
{
  char control[CMSG_SPACE (4 * sizeof (int))];
  struct iovec part = { .iov_base = &out->record, .iov_len = sizeof out->record };
  struct msghdr message = {
    .msg_iov = &part,
    .msg_iovlen = 1,
    .msg_control = control,
    .msg_controllen = sizeof control,
  };
  struct pollfd polled = { .fd = socket, .events = POLLIN };

  out->fd = -1;
  if (timeout_ms >= 0)
    {
      int ready = poll (&polled, 1, timeout_ms);
      if (ready <= 0)
        return ready == 0 ? -EAGAIN : -errno;
    }
  ssize_t got = recvmsg (socket, &message, MSG_CMSG_CLOEXEC);
  /* The peer closed its end with unread messages of ours.  The error comes once, before its last messages. */
  if (got < 0 && errno == ECONNRESET)
    {
      message.msg_controllen = sizeof control;
      got = recvmsg (socket, &message, MSG_CMSG_CLOEXEC);
    }
  if (got < 0)
    return errno == ECONNRESET ? 0 : -errno;
  if (got == 0)
    return 0;
  out->fd = take_fd (&message);
  return (size_t) got == sizeof out->record ? 1 : -EPROTO;
}

int
pcx_pair (int ends[2])
{
  return socketpair (AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0 ? -errno : 0;
}
