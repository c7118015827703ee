/* One direction of a TCP flow: splice(2) moves bytes from socket to socket through a pipe, without a copy. */
#include "parts.h"

#include <linux/errno.h>
#include <linux/fcntl.h>
#include <linux/uio.h>

#define ROUNDS 8 /* for each direction, before the next flow has its turn */
#define PIPE_SIZE (1 << 18)
#define SPARE_PIPES 32
#define SPLICE_FLAGS (SPLICE_F_MOVE_ | SPLICE_F_NONBLOCK_)

/* Unused pipes.  An idle flow has none: with two pipes it would have six fds instead of two. */
static int spare_pipes[SPARE_PIPES][2];
static u32 spare_pipe_count;

/* Buffer for flows that get no pipe. */
static u8 copied[65536];

static int
take_pipe (int ends[2])
{
  if (spare_pipe_count > 0)
    {
      memcpy (ends, spare_pipes[--spare_pipe_count], 2 * sizeof *ends);
      return 0;
    }
  int error = (int) raw2 (__NR_pipe2, ends, O_NONBLOCK | O_CLOEXEC);
  if (error == 0)
    sys_fcntl (ends[1], F_SETPIPE_SZ_, PIPE_SIZE); /* best effort: the user's share may be used up */
  return error;
}

void
pc_leave_pipe (struct pc_half *half)
{
  if (half->pipe[0] < 0)
    return;
  if (half->waiting == 0 && spare_pipe_count < SPARE_PIPES)
    {
      memcpy (spare_pipes[spare_pipe_count++], half->pipe, sizeof half->pipe);
      half->pipe[0] = half->pipe[1] = -1;
    }
  pc_close_fd (&half->pipe[0]);
  pc_close_fd (&half->pipe[1]);
  half->waiting = 0;
}

/* Note the result of a read.  An error ends the direction as well. */
static void
note_read (struct pc_half *in, word got)
{
  if (got > 0 || got == -EINTR)
    return;
  if (got == -EAGAIN)
    {
      in->readable = 0;
      return;
    }
  in->ended = 1;
  in->broken |= got < 0;
}

static void
note_written (struct pc_half *in, struct pc_half *out, word put)
{
  if (put > 0 || put == -EINTR)
    return;
  if (put == -EAGAIN)
    {
      out->writable = 0;
      return;
    }
  /* A peer that takes no more data may still have sent some, which is forwarded until it is reset. */
  out->broken = out->readable = 1;
  in->ended = in->passed = 1;
  pc_leave_pipe (in);
}

/* Copy from socket to socket: peek, send, then consume as much as was sent. */
static void
copy (struct pc_half *in, struct pc_half *out)
{
  struct iovec part = { .iov_base = copied, .iov_len = sizeof copied };
  struct pc_message message = { .parts = &part, .part_count = 1 };

  word got = sys_recvmsg (in->fd, &message, MSG_PEEK_ | MSG_DONTWAIT_);
  note_read (in, got);
  if (got <= 0)
    return;
  part.iov_len = (usize) got;
  word put = sys_sendmsg (out->fd, &message, MSG_DONTWAIT_ | MSG_NOSIGNAL_);
  note_written (in, out, put);
  if (put <= 0)
    return;
  part.iov_len = (usize) put;
  sys_recvmsg (in->fd, &message, MSG_TRUNC_ | MSG_DONTWAIT_);
}

static void
fill (struct pc_half *in)
{
  /* The pipe is empty, so EAGAIN comes from the socket. */
  word got = sys_splice (in->fd, 0, in->pipe[1], 0, PIPE_SIZE, SPLICE_FLAGS);
  note_read (in, got);
  if (got > 0)
    in->waiting = (u32) got;
}

static void
drain (struct pc_half *in, struct pc_half *out)
{
  word put = sys_splice (in->pipe[0], 0, out->fd, 0, in->waiting, SPLICE_FLAGS);
  note_written (in, out, put);
  if (put > 0)
    in->waiting -= (u32) put;
}

int
pc_can_move (const struct pc_half *in, const struct pc_half *out)
{
  return out->writable && (in->waiting > 0 || (in->readable && !in->ended));
}

void
pc_carry (struct pc_half *in, struct pc_half *out)
{
  for (u32 i = 0; i < 2 * ROUNDS && pc_can_move (in, out); i++)
    {
      if (in->waiting > 0)
        drain (in, out);
      else if (in->pipe[0] >= 0 || take_pipe (in->pipe) == 0)
        fill (in);
      else
        copy (in, out);
    }
  if (in->waiting == 0)
    pc_leave_pipe (in);
}
