/* The relay: one process without privileges that forwards the connections of all published ports. */
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

static int commands; /* the socket that commands come from */

/* Check that a socket is of the kind that the command names.  Returns its family or a negative errno. */
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
  word flags = sys_fcntl (fds->fd[0], F_GETFL, 0);
  word error = flags < 0 ? flags : sys_fcntl (fds->fd[0], F_SETFL, flags | O_NONBLOCK);
  struct pc_listener *listener = error < 0 ? NULL : pc_free_listener ();
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
  struct pc_listener *listener = NULL;

  while ((listener = pc_next_listener (listener)) != NULL)
    {
      if (listener->id != id)
        continue;
      if (listener->protocol == IPPROTO_UDP)
        pc_udp_drop (pc_place_of (listener));
      pc_close_listener (listener);
    }
  pc_tcp_drop (id);
}

static void
serve_command (void)
{
  struct pc_relay_command command;
  struct pc_relay_answer answer = { .error = EINVAL };
  struct pc_fds fds;
  word received = pc_receive (commands, &command, sizeof command, &fds, MSG_DONTWAIT_);

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
  /* Never block on the caller: one that does not read its answers loses them. */
  (void) pc_send (commands, &answer, sizeof answer, NULL, 0, MSG_DONTWAIT_);
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
  else
    {
      struct pc_listener *listener = pc_listener_at (place);
      if (!listener->used || listener->generation != generation)
        return;
      if (listener->protocol == IPPROTO_UDP)
        pc_udp_take (listener);
      else
        pc_tcp_accept (listener);
    }
}

_Noreturn void
pc_relay (int socket)
{
  struct epoll_event events[EVENTS_MOST];
  i64 swept = 0;
  int busy = 0;

  commands = socket;
  int epoll = pc_start_watching ();
  if (epoll < 0 || pc_watch (socket, PC_END_COMMANDS, 0, 0, EPOLLIN) < 0
      || pc_filter_calls (relay_calls, COUNT (relay_calls)) < 0)
    sys_exit (1);
  for (;;)
    {
      int patience = busy ? 0 : pc_is_stalled () ? STALL : pc_udp_busy () ? SWEEP : -1;
      word count = raw6 (__NR_epoll_pwait, epoll, (word) events, EVENTS_MOST, patience, 0, 8);
      if (count < 0 && count != -EINTR)
        sys_exit (1);
      if (pc_is_stalled () && (count == 0 || pc_stall_is_over ()))
        pc_end_stall ();
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
