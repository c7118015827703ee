/* Operations inside a network namespace: sysctls, and sockets, which stay in the namespace that they are created
   in. */
#include "helper/netns.h"
#include "mountapi.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/sched.h>

#define MOST_SOCKETS 8

struct address
{
  u16 family;
  u16 port;
  u32 address;
  u8 rest[8];
};

int
pc_raise_loopback (void)
{
  struct
  {
    char name[16];
    i32 flags;
    char rest[20];
  } request = { .name = "lo", .flags = IFF_UP_ };
  cleanup_fd int fd = (int) sys_socket (AF_INET_, SOCK_DGRAM_ | SOCK_CLOEXEC_, 0);

  if (fd < 0)
    return fd;
  return (int) sys_ioctl (fd, SIOCSIFFLAGS_, &request);
}

int
pc_enter_rootless_netns (struct pc_record *failure)
{
  word error = sys_unshare (CLONE_NEWNET);

  if (error == 0)
    error = pc_raise_loopback ();
  return error < 0 ? pc_failed (failure, PC_STEP_NETWORK, error, PC_STAGE_NETWORK_NAMESPACE) : 0;
}

/* Pairs of strings: a path below /proc/sys/net, and what is written there. */
static int
set_values (const char *text, usize size)
{
  const char *end = text + size;
  cleanup_fd int dir = (int) sys_openat (AT_FDCWD_, "/proc/sys/net", O_PATH | O_DIRECTORY | O_CLOEXEC, 0);

  if (dir < 0)
    return dir;
  while (text < end)
    {
      const char *value = text + pc_strlen (text) + 1;
      if (value >= end)
        return -EINVAL;
      int error = pc_write_file (dir, text, value, pc_strlen (value));
      /* ENOENT: the kernel lacks the protocol, so there is nothing to set. */
      if (error < 0 && error != -ENOENT)
        return error;
      text = value + pc_strlen (value) + 1;
    }
  return 0;
}

static int
open_socket (const struct pc_socket *wanted)
{
  struct address address = { .family = wanted->domain, .port = wanted->port, .address = wanted->address };
  cleanup_fd int fd = (int) sys_socket (wanted->domain, wanted->type | SOCK_CLOEXEC_, wanted->protocol);

  if (fd < 0)
    return fd;
  if (wanted->port != 0)
    {
      word error = raw3 (__NR_bind, fd, &address, sizeof address);
      if (error == 0 && wanted->backlog > 0)
        error = raw2 (__NR_listen, fd, wanted->backlog);
      if (error < 0)
        return (int) error;
    }
  return pc_steal_fd (&fd);
}

static int
open_all (const struct pc_network_request *request, const struct pc_socket *wanted, struct pc_fds *opened)
{
  const char *values = (const char *) (wanted + request->sockets);
  int error = set_values (values, request->values);

  for (u32 i = 0; error == 0 && i < request->sockets; i++)
    {
      int fd = open_socket (&wanted[i]);
      if (fd < 0)
        return fd;
      opened->fd[opened->count++] = fd;
    }
  return error;
}

/* Open everything in the network namespace of the pidfd, if one was sent, and return to the launcher's own.  A
   launcher that cannot return exits: it would clone later containers into the wrong namespace. */
static int
within (const struct pc_network_request *request, const struct pc_fds *fds, struct pc_fds *opened)
{
  const struct pc_socket *wanted = (const struct pc_socket *) (const void *) (request + 1);
  cleanup_fd int own = -1;

  if (fds->count == 0)
    return open_all (request, wanted, opened);
  own = (int) sys_openat (AT_FDCWD_, "/proc/self/ns/net", O_RDONLY | O_CLOEXEC, 0);
  if (own < 0)
    return own;
  /* Join the own namespace first: if setns(2) fails here, returning would fail as well. */
  word error = sys_setns (own, CLONE_NEWNET);
  if (error == 0)
    error = sys_setns (fds->fd[0], CLONE_NEWNET);
  if (error < 0)
    return (int) error;
  int result = open_all (request, wanted, opened);
  if (sys_setns (own, CLONE_NEWNET) < 0)
    sys_exit (1);
  return result;
}

static int
is_whole (const struct pc_network_request *request, usize received)
{
  if (received < sizeof *request || request->sockets > MOST_SOCKETS)
    return 0;
  usize size = sizeof *request + request->sockets * sizeof (struct pc_socket);
  return received > size && received - size == request->values + 1u && ((const char *) request)[received - 1] == '\0';
}

int
pc_network (int socket, const struct pc_network_request *request, usize received, const struct pc_fds *fds,
            struct pc_record *reply)
{
  struct pc_fds opened = { .count = 0 };
  int error = fds->truncated ? -EMFILE : !is_whole (request, received) || fds->count > 1 ? -EINVAL : 0;

  if (error == 0)
    error = within (request, fds, &opened);
  struct pc_record record = { .kind = PC_RECORD_OPENED };
  for (u32 i = 0; error == 0 && i < opened.count; i++)
    error = pc_send_record (socket, &record, opened.fd[i]);
  pc_close_fds (&opened);
  reply->kind = PC_RECORD_STARTED;
  reply->step = 0;
  reply->error = 0;
  return error < 0 ? pc_failed (reply, PC_STEP_NETWORK, error, -1) : 0;
}
