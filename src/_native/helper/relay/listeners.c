/* The listeners of a relay, and the epoll instance that watches every socket. */
#include "parts.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

static int epoll;
static struct pc_listener listeners[PC_LISTENERS_MOST];
static u32 listeners_end; /* of the places that were ever used */
static int any_stalled;
static i64 stalled_since; /* in seconds */

static struct epoll_event
event_of (enum pc_end end, u32 place, u32 generation, u32 events)
{
  return (struct epoll_event) { .events = events, .data = (u64) generation << 32 | (u64) end << 24 | place };
}

int
pc_start_watching (void)
{
  epoll = (int) raw1 (__NR_epoll_create1, O_CLOEXEC);
  return epoll;
}

int
pc_watch (int fd, enum pc_end end, u32 place, u32 generation, u32 events)
{
  struct epoll_event event = event_of (end, place, generation, events);
  return (int) sys_epoll_ctl (epoll, EPOLL_CTL_ADD, fd, &event);
}

struct pc_listener *
pc_listener_at (u32 place)
{
  return &listeners[place];
}

struct pc_listener *
pc_next_listener (const struct pc_listener *after)
{
  for (u32 i = after == NULL ? 0 : pc_place_of (after) + 1; i < listeners_end; i++)
    if (listeners[i].used)
      return &listeners[i];
  return NULL;
}

u32
pc_place_of (const struct pc_listener *listener)
{
  return (u32) (listener - listeners);
}

int
pc_socket_option (int fd, int name)
{
  i32 value = 0;
  u32 size = sizeof value;
  word error = raw5 (__NR_getsockopt, fd, SOL_SOCKET, name, &value, &size);
  return error < 0 ? (int) error : value;
}

i64
pc_seconds (void)
{
  i64 now[2] = { 0, 0 };
  raw2 (__NR_clock_gettime, 1 /* CLOCK_MONOTONIC */, now);
  return now[0];
}

int
pc_dial (const struct pc_listener *listener, int type)
{
  const struct pc_address *to = &listener->upstream;
  cleanup_fd int fd = (int) sys_socket (to->family, type | SOCK_FLAGS_, 0);
  if (fd < 0)
    return fd;
  word error = raw3 (__NR_connect, fd, to, to->family == AF_INET_ ? 16 : sizeof *to);
  return error < 0 && error != -EINPROGRESS ? (int) error : pc_steal_fd (&fd);
}

static void
set_interest (const struct pc_listener *listener, u32 events)
{
  struct epoll_event event = event_of (PC_END_LISTENER, pc_place_of (listener), listener->generation, events);
  sys_epoll_ctl (epoll, EPOLL_CTL_MOD, listener->fd, &event);
}

void
pc_stall (struct pc_listener *listener)
{
  listener->stalled = 1;
  any_stalled = 1;
  stalled_since = pc_seconds ();
  set_interest (listener, 0);
}

void
pc_end_stall (void)
{
  any_stalled = 0;
  for (u32 i = 0; i < listeners_end; i++)
    if (listeners[i].used && listeners[i].stalled)
      {
        listeners[i].stalled = 0;
        set_interest (&listeners[i], EPOLLIN);
      }
}

int
pc_is_stalled (void)
{
  return any_stalled;
}

int
pc_stall_is_over (void)
{
  return pc_seconds () != stalled_since;
}

void
pc_close_listener (struct pc_listener *listener)
{
  /* The caller may hold the socket too, and then closing it here would not remove it from epoll. */
  sys_epoll_ctl (epoll, EPOLL_CTL_DEL, listener->fd, 0);
  pc_close_fd (&listener->fd);
  listener->used = 0;
  listener->generation++;
}

struct pc_listener *
pc_free_listener (void)
{
  for (u32 i = 0; i < listeners_end; i++)
    if (!listeners[i].used)
      return &listeners[i];
  return listeners_end < PC_LISTENERS_MOST ? &listeners[listeners_end++] : NULL;
}
