/* Memory, strings and messages with fds, without libc. */
#include "wire.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/socket.h>
#include <linux/uio.h>

void *
memcpy (void *to, const void *from, usize n)
{
  u8 *out = to;
  const u8 *in = from;
#if defined(__x86_64__)
  __asm__ volatile ("rep movsb" : "+D"(out), "+S"(in), "+c"(n) : : "memory");
#else
  for (usize i = 0; i < n; i++)
    ((volatile u8 *) out)[i] = in[i];
#endif
  return to;
}

void *
memset (void *to, int byte, usize n)
{
#if defined(__x86_64__)
  void *out = to;
  __asm__ volatile ("rep stosb" : "+D"(out), "+c"(n) : "a"(byte) : "memory");
#else
  for (usize i = 0; i < n; i++)
    ((volatile u8 *) to)[i] = (u8) byte;
#endif
  return to;
}

int
memcmp (const void *a, const void *b, usize n)
{
  const u8 *left = a;
  const u8 *right = b;
  for (usize i = 0; i < n; i++)
    if (left[i] != right[i])
      return left[i] < right[i] ? -1 : 1;
  return 0;
}

usize
pc_strlen (const char *text)
{
  usize n = 0;
  while (text[n] != '\0')
    n++;
  return n;
}

int
pc_streq (const char *a, const char *b)
{
  usize n = pc_strlen (a);
  return n == pc_strlen (b) && memcmp (a, b, n) == 0;
}

usize
pc_decimal (char *out, u64 value)
{
  char reversed[20];
  usize n = 0;
  do
    {
      reversed[n++] = (char) ('0' + value % 10);
      value /= 10;
    }
  while (value > 0);
  for (usize i = 0; i < n; i++)
    out[i] = reversed[n - 1 - i];
  out[n] = '\0';
  return n;
}

word
pc_receive (int socket, void *buffer, usize size, struct pc_fds *fds, int flags)
{
  struct
  {
    struct pc_control_header header;
    int fd[256];
  } control;
  struct iovec part = { .iov_base = buffer, .iov_len = size };
  struct pc_message message = {
    .parts = &part,
    .part_count = 1,
    .control = &control,
    .control_length = sizeof control,
  };

  fds->count = fds->truncated = 0;
  word got;
  do
    got = sys_recvmsg (socket, &message, flags | MSG_CMSG_CLOEXEC_);
  while (got == -EINTR);
  if (got <= 0)
    return got;
  fds->truncated = message.flags & MSG_CTRUNC_ ? 1 : 0;
  if (message.control_length >= sizeof control.header && control.header.level == SOL_SOCKET_
      && control.header.type == SCM_RIGHTS_)
    {
      fds->count = (u32) ((control.header.length - sizeof control.header) / sizeof (int));
      for (u32 i = 0; i < fds->count; i++)
        fds->fd[i] = control.fd[i];
    }
  return got;
}

int
pc_send (int socket, const void *buffer, usize size, const int *fds, u32 count, int flags)
{
  struct
  {
    struct pc_control_header header;
    int fd[256];
  } control;
  struct iovec part = { .iov_base = (void *) (usize) buffer, .iov_len = size };
  struct pc_message message = { .parts = &part, .part_count = 1 };

  if (count > COUNT (control.fd))
    return -EINVAL;
  if (count > 0)
    {
      control.header.length = sizeof control.header + count * sizeof (int);
      control.header.level = SOL_SOCKET_;
      control.header.type = SCM_RIGHTS_;
      for (u32 i = 0; i < count; i++)
        control.fd[i] = fds[i];
      message.control = &control;
      message.control_length = (control.header.length + 7) & ~(usize) 7;
    }
  word sent;
  do
    sent = sys_sendmsg (socket, &message, flags | MSG_NOSIGNAL_);
  while (sent == -EINTR);
  return sent < 0 ? (int) sent : 0;
}

#define SEALED (F_SEAL_SHRINK_ | F_SEAL_WRITE_)
#define MAPPED_MOST (16u << 20)

const void *
pc_map_sealed (struct pc_fds *fds, usize size)
{
  if (fds->count == 0)
    return NULL;
  cleanup_fd int fd = fds->fd[0];
  fds->count--;
  for (u32 i = 0; i < fds->count; i++)
    fds->fd[i] = fds->fd[i + 1];
  word seals = sys_fcntl (fd, F_GET_SEALS_, 0);
  word end = sys_lseek (fd, 0, SEEK_END_);
  if (seals < 0 || (seals & SEALED) != SEALED || size == 0 || size > MAPPED_MOST || end < (word) size)
    return NULL;
  word map = sys_mmap (0, (word) size, PROT_READ_, MAP_PRIVATE_, fd, 0);
  return map < 0 && map > -4096 ? NULL : (const void *) map;
}

int
pc_write_file (int dir, const char *path, const void *data, usize size)
{
  cleanup_fd int fd = (int) sys_openat (dir, path, O_WRONLY | O_CLOEXEC, 0);
  if (fd < 0)
    return fd;
  word written = sys_write (fd, data, size);
  if (written < 0)
    return (int) written;
  return (usize) written == size ? 0 : -EIO;
}
