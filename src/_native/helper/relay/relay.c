/* The relay: one process that carries the connections of every published port, without a right of its own. */
#include "helper/sandbox.h"
#include "parts.h"

#include <linux/errno.h>
#include <linux/fcntl.h>

#define EVENTS_MOST 128
#define STALL 100 /* milliseconds */
#define SWEEP 1000

static const u16 relay_calls[] = {
  __NR_epoll_pwait, __NR_epoll_ctl, __NR_accept4,       __NR_socket,     __NR_connect, __NR_setsockopt,
  __NR_getsockopt,  __NR_shutdown,  __NR_splice,        __NR_pipe2,      __NR_close,   __NR_fcntl,
  __NR_recvmsg,     __NR_sendmsg,   __NR_clock_gettime, __NR_exit_group,
};

static struct
{
  int commands;
  int epoll;
  u32 end; /* of the places that were ever used */
  int stalled; /* any of them is, */
  i64 since;   /* from this second on */
  struct pc_listener listeners[PC_LISTENERS_MOST];
} relay;

static struct epoll_event
event_of (enum pc_end end, u32 place, u32 generation, u32 events)
{
  return (struct epoll_event){ .events = events, .data = (u64) generation << 32 | (u64) end << 24 | place };
}

int
pc_watch (int fd, enum pc_end end, u32 place, u32 generation, u32 events)
{
  struct epoll_event event = event_of (end, place, generation, events);
  return (int) raw4 (__NR_epoll_ctl, relay.epoll, EPOLL_CTL_ADD, fd, &event);
}

struct pc_listener *
pc_listener_at (u32 place)
{
  return &relay.listeners[place];
}

u32
pc_place_of (const struct pc_listener *listener)
{
  return (u32) (listener - relay.listeners);
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
  cleanup_fd int fd = (int) raw3 (__NR_socket, to->family, type | SOCK_FLAGS_, 0);
  if (fd < 0)
    return fd;
  word error = raw3 (__NR_connect, fd, to, to->family == AF_INET_ ? 16 : sizeof *to);
  return error < 0 && error != -EINPROGRESS ? (int) error : pc_steal_fd (&fd);
}

static void
set_interest (const struct pc_listener *listener, u32 events)
{
  struct epoll_event event = event_of (PC_END_LISTENER, pc_place_of (listener), listener->generation, events);
  raw4 (__NR_epoll_ctl, relay.epoll, EPOLL_CTL_MOD, listener->fd, &event);
}

void
pc_stall (struct pc_listener *listener)
{
  listener->stalled = 1;
  relay.stalled = 1;
  relay.since = pc_seconds ();
  set_interest (listener, 0);
}

static void
end_stall (void)
{
  relay.stalled = 0;
  for (u32 i = 0; i < relay.end; i++)
    if (relay.listeners[i].used && relay.listeners[i].stalled)
      {
        relay.listeners[i].stalled = 0;
        set_interest (&relay.listeners[i], EPOLLIN);
      }
}

void
pc_close_listener (struct pc_listener *listener)
{
  if (listener->protocol == IPPROTO_UDP)
    pc_udp_drop (pc_place_of (listener));
  /* Its caller may hold it as well, and then epoll would go on to tell of it. */
  raw4 (__NR_epoll_ctl, relay.epoll, EPOLL_CTL_DEL, listener->fd, 0);
  pc_close_fd (&listener->fd);
  listener->used = 0;
  listener->generation++;
}

static struct pc_listener *
find_place (void)
{
  for (u32 i = 0; i < relay.end; i++)
    if (!relay.listeners[i].used)
      return &relay.listeners[i];
  return relay.end < PC_LISTENERS_MOST ? &relay.listeners[relay.end++] : NULL;
}

/* The family of a socket that is what the command says, or a negative errno. */
static int
check_socket (int fd, u32 protocol)
{
  int family = pc_socket_option (fd, SO_DOMAIN);
  int found = pc_socket_option (fd, SO_PROTOCOL);

  if (family < 0 || found < 0)
    return family < 0 ? family : found;
  if ((family != AF_INET_ && family != AF_INET6_) || (u32) found != protocol)
    return -EPROTOTYPE;
  if (protocol == IPPROTO_TCP && pc_socket_option (fd, SO_ACCEPTCONN) != 1)
    return -EINVAL;
  return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP ? family : -EPROTONOSUPPORT;
}

static void
set_upstream (struct pc_address *upstream, const struct pc_relay_command *command)
{
  memset (upstream, 0, sizeof *upstream);
  upstream->family = (u16) command->family;
  upstream->port = command->port;
  if (command->family == AF_INET_)
    {
      memcpy (&upstream->first, command->address, sizeof upstream->first);
      return;
    }
  memcpy (upstream->address, command->address, sizeof upstream->address);
  upstream->scope = command->scope;
}

static int
add (const struct pc_relay_command *command, struct pc_fds *fds)
{
  if (fds->truncated)
    return -EMFILE;
  if (fds->count != 1 || command->port == 0 || (command->family != AF_INET_ && command->family != AF_INET6_))
    return -EINVAL;
  int family = check_socket (fds->fd[0], command->protocol);
  if (family < 0)
    return family;
  word flags = raw3 (__NR_fcntl, fds->fd[0], F_GETFL, 0);
  word error = flags < 0 ? flags : raw3 (__NR_fcntl, fds->fd[0], F_SETFL, flags | O_NONBLOCK);
  struct pc_listener *listener = error < 0 ? NULL : find_place ();
  if (listener == NULL)
    return error < 0 ? (int) error : -ENOSPC;
  error = pc_watch (fds->fd[0], PC_END_LISTENER, pc_place_of (listener), listener->generation, EPOLLIN);
  if (error < 0)
    return (int) error;
  listener->fd = pc_steal_fd (&fds->fd[0]);
  listener->id = command->id;
  listener->used = 1;
  listener->stalled = 0;
  listener->protocol = (u16) command->protocol;
  listener->family = (u16) family;
  listener->patience = command->patience;
  set_upstream (&listener->upstream, command);
  if (command->protocol == IPPROTO_UDP)
    pc_udp_prepare (listener);
  return 0;
}

static void
drop (u32 id)
{
  for (u32 i = 0; i < relay.end; i++)
    if (relay.listeners[i].used && relay.listeners[i].id == id)
      pc_close_listener (&relay.listeners[i]);
  pc_tcp_drop (id);
}

static void
serve_command (void)
{
  struct pc_relay_command command;
  struct pc_relay_answer answer = { .error = EINVAL };
  struct pc_fds fds;
  word received = pc_receive (relay.commands, &command, sizeof command, &fds, 0x40 /* MSG_DONTWAIT */);

  if (received == -EAGAIN)
    return;
  if (received <= 0)
    sys_exit (0);
  if (received == sizeof command)
    {
      answer.serial = command.serial;
      if (command.kind == PC_RELAY_ADD)
        answer.error = -add (&command, &fds);
      else if (command.kind == PC_RELAY_DROP)
        {
          drop (command.id);
          answer.error = 0;
        }
    }
  pc_close_fds (&fds);
  /* Who sends on without reading misses answers. */
  (void) pc_send (relay.commands, &answer, sizeof answer, NULL, 0, 0x40);
}

static void
dispatch (const struct epoll_event *event)
{
  u32 generation = (u32) (event->data >> 32);
  enum pc_end end = (enum pc_end) (event->data >> 24 & 0xff);
  u32 place = (u32) event->data & 0xffffff;

  if (end == PC_END_COMMANDS)
    serve_command ();
  else if (end == PC_END_SESSION)
    pc_udp_event (place, generation);
  else if (end != PC_END_LISTENER)
    pc_tcp_event (end, place, generation, event->events);
  else if (relay.listeners[place].used && relay.listeners[place].generation == generation)
    {
      if (relay.listeners[place].protocol == IPPROTO_UDP)
        pc_udp_take (&relay.listeners[place]);
      else
        pc_tcp_accept (&relay.listeners[place]);
    }
}

_Noreturn void
pc_relay (int socket)
{
  struct epoll_event events[EVENTS_MOST];
  i64 swept = 0;
  int busy = 0;

  relay.commands = socket;
  relay.epoll = (int) raw1 (__NR_epoll_create1, O_CLOEXEC);
  if (relay.epoll < 0 || pc_watch (socket, PC_END_COMMANDS, 0, 0, EPOLLIN) < 0
      || pc_filter_calls (relay_calls, COUNT (relay_calls)) < 0)
    sys_exit (1);
  for (;;)
    {
      int patience = busy ? 0 : relay.stalled ? STALL : pc_udp_busy () ? SWEEP : -1;
      word count = raw6 (__NR_epoll_pwait, relay.epoll, (word) events, EVENTS_MOST, patience, 0, 8);
      if (count < 0 && count != -EINTR)
        sys_exit (1);
      if (relay.stalled && (count == 0 || pc_seconds () != relay.since))
        end_stall ();
      for (word i = 0; i < count; i++)
        dispatch (&events[i]);
      busy = pc_tcp_turns ();
      if (pc_udp_busy () && pc_seconds () != swept)
        {
          swept = pc_seconds ();
          pc_udp_sweep ();
        }
    }
}
